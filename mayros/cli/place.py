"""Where a command finds things: the environment, the state directory, the configuration and the gateway to talk to.

Imports config and net when a command asks; click for the errors. Tests pass a `Place` of their own as click's `obj`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import click

if TYPE_CHECKING:
    from mayros.config.load import Loaded
    from mayros.config.secret import AuthSecret
    from mayros.core.routing import Settings

#: `call(reactor, url, token=, password=, method=, params=, on_event=, timeout=, scopes=)` of ws/client.py, with failures as `Refused`.
Call = Callable[..., Coroutine[Any, Any, Any]]


class Refused(click.ClickException):
    """The gateway could not be reached, or said no. `payload` is what came with it."""

    def __init__(self, message: str, payload: object = None) -> None:
        super().__init__(message)
        self.payload = payload


def _call() -> Call:
    from importlib.metadata import version

    from mayros.ws.client import CallFailed, call

    async def calling(*args: Any, **options: Any) -> Any:
        try:
            return await call(*args, version=version("mayros-gateway"), **options)
        except CallFailed as failure:
            hint = ""
            if failure.message.startswith("Cannot reach"):
                hint = " (is it running? `mayros gateway run` starts one)"
            elif not options.get("token") and not options.get("password"):
                hint = " (no secret was sent: set MAYROS_GATEWAY_TOKEN, or name a file with --token-file)"
            raise Refused(failure.message + hint, failure.payload) from failure

    return calling


class Place:
    """The surroundings of one command. `calls` gives the function that speaks to a gateway, `drive` the one that runs a coroutine."""

    def __init__(
        self,
        environ: Mapping[str, str] | None = None,
        calls: Callable[[], Call] = _call,
        drive: Callable[[Callable[[Any], Coroutine[Any, Any, Any]]], Any] | None = None,
    ) -> None:
        self.environ = dict(os.environ if environ is None else environ)
        self.calls = calls
        self._drive = drive

    def drive(self, main: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        """Run `main(reactor)` to its end and give what it returns; Ctrl-C cancels it and raises KeyboardInterrupt."""
        if self._drive is None:
            from mayros.cli.loop import drive

            self._drive = drive
        return self._drive(main)

    @property
    def state_dir(self) -> str:
        """The state directory's path; it need not exist."""
        from mayros.config.load import state_dir

        return state_dir(self.environ)

    @property
    def config_path(self) -> str:
        """The configuration file's path; it need not exist."""
        from mayros.config.load import config_path

        return config_path(self.environ)

    def load(self, strict: bool = False) -> Loaded:
        """Read the configuration; raises ConfigError."""
        from mayros.config.load import load

        return load(self.config_path, self.environ, state_dir=self.state_dir, cwd=os.getcwd(), strict=strict)

    def settings(self, loaded: Loaded) -> Settings:
        """What the configuration means: agents, models, sessions."""
        from mayros.core.routing import Settings

        return Settings.build(
            loaded.config,
            state_dir=self.state_dir,
            config_path=self.config_path,
            environ=loaded.environ,
            now_ms=time.time_ns() // 1_000_000,
            warnings=loaded.warnings,
        )


class Target(NamedTuple):
    """A gateway to talk to. No secret shows in its repr."""

    url: str
    token: str | None
    password: str | None

    def __repr__(self) -> str:
        return f"<Target {self.url}>"


def target(place: Place, url: str | None, token_file: str | None) -> Target:
    """The gateway that a command means.

    With `url`, only a secret given beside it is used, never a stored one: a stored secret must not travel to an address that happens to be on
    the command line. Without, `gateway.remote` in mode `remote`, else the gateway of this machine's configuration.
    """
    if url is not None or token_file is not None:
        secret = _read(token_file) if token_file is not None else None
        if url is not None:
            environ = place.environ
            token = secret or environ.get("MAYROS_GATEWAY_TOKEN") or None
            return Target(_checked(url), token, None if secret else environ.get("MAYROS_GATEWAY_PASSWORD") or None)
    else:
        secret = None
    loaded = place.load()
    gateway = loaded.config.gateway
    if gateway.mode == "remote":
        if not gateway.remote.url:
            raise click.ClickException("gateway.mode is remote, but gateway.remote.url is not set")
        return Target(_checked(gateway.remote.url), secret or gateway.remote.token, None if secret else gateway.remote.password)
    address = f"ws://{_host(gateway.bind, gateway.custom_bind_host)}:{port(place, gateway.port)}/"
    if secret is not None:
        return Target(address, secret, None)
    known = credential(place, loaded)
    return Target(address, known.value if known.mode == "token" else None, known.value if known.mode == "password" else None)


def credential(place: Place, loaded: Loaded) -> AuthSecret:
    """The authentication mode in force and its secret, found in the daemon's own order."""
    from mayros.config.secret import resolve
    from mayros.net.statedir import StateDir

    token = StateDir.open(place.state_dir, create=False).token() if os.path.isdir(place.state_dir) else None
    return resolve(loaded.config, loaded.environ, token)


def port(place: Place, configured: int) -> int:
    """The port of this machine's gateway: the environment's, else the configured one."""
    text = place.environ.get("MAYROS_GATEWAY_PORT", "").strip()
    if not text:
        return configured
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise click.ClickException("MAYROS_GATEWAY_PORT must be a port number from 1 to 65535")
    return int(text)


def _host(bind: str, custom: str | None) -> str:
    if bind != "custom" or not custom or custom in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{custom}]" if ":" in custom else custom


def _checked(url: str) -> str:
    if url.startswith(("unix:/", "/")):
        return url
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("ws", "wss") and parts.hostname and not parts.username and not parts.password and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise click.UsageError(
            "the gateway's URL must look like ws://127.0.0.1:18789 or wss://host (no user name, no password), or unix:/path/of/socket"
        )
    return url


def _read(path: str) -> str:
    """The secret in a file, without the end of its line."""
    from mayros.net.files import read_bounded

    try:
        text = read_bounded(path, 4096).decode("utf-8").strip()
    except ValueError:
        text = ""
    if not text or not text.isprintable() or " " in text:
        raise click.ClickException(f"{path}: a token file holds one line with the token and nothing else")
    return text


def here(ctx: click.Context) -> Place:
    """The place of this command."""
    return ctx.ensure_object(Place)
