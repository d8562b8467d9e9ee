"""Where a command finds things: the environment, the state directory, the configuration and the gateway to talk to.

Imports config, net and storage when a command asks; click for the errors. Tests pass a `Place` of their own as click's `obj`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import click

from mayros.errors import StartError

if TYPE_CHECKING:
    from mayros.cli.host import Host
    from mayros.config.load import Loaded
    from mayros.config.secret import AuthSecret
    from mayros.core.routing import Settings
    from mayros.net.certificates import Trust
    from mayros.net.statedir import StateDir
    from mayros.ws.identity import Identity

#: `connect(reactor, url, token=, password=, identity=, gateway=, scopes=, on_event=, timeout=)` of ws/client.py.
Connect = Callable[..., Coroutine[Any, Any, Any]]


def _connect() -> Connect:
    from mayros.net.version import program_version
    from mayros.ws.client import connect

    own = program_version()

    def connecting(*args: Any, **options: Any) -> Coroutine[Any, Any, Any]:
        return connect(*args, version=own, **options)

    return connecting


class Place:
    """The surroundings of one command. `connects` gives the function that connects to a gateway, `drive` the one that runs a coroutine."""

    def __init__(
        self,
        environ: Mapping[str, str] | None = None,
        connects: Callable[[], Connect] = _connect,
        drive: Callable[[Callable[[Any], Coroutine[Any, Any, Any]]], Any] | None = None,
        host: Host | None = None,
    ) -> None:
        self.environ = dict(os.environ if environ is None else environ)
        self.connects = connects
        self._drive = drive
        #: The machine, where it is not this one; see host.py.
        self.host = host

    def drive(self, main: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        """Run `main(reactor)` to its end and give what it returns; Ctrl-C cancels it and raises KeyboardInterrupt."""
        if self._drive is None:
            from mayros.cli.loop import drive

            self._drive = drive
        return self._drive(main)

    def identity(self) -> Identity | None:
        """This machine's device identity, made where there is none; None where the state directory cannot be used. Raises StartError: damaged."""
        from mayros.net.statedir import StateDir, recognise_foreign
        from mayros.ws.identity import Identity

        if recognise_foreign(self.state_dir):
            return None
        try:
            folder = StateDir.open(self.state_dir).join("identity")
        except StartError:
            return None
        try:
            return Identity.open(folder, time.time_ns() // 1_000_000)
        except OSError:
            return None

    @property
    def home(self) -> str:
        """This user's home directory."""
        return self.environ.get("HOME") or os.path.expanduser("~")

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

    def store_url(self, loaded: Loaded) -> str:
        """The URL of the store that the configuration means, as it is written."""
        from mayros.storage.engine import default_url

        return loaded.config.session.store or default_url(self.state_dir)

    def store_path(self, loaded: Loaded) -> str | None:
        """The file of that store where it is one of SQLite; None: it is in PostgreSQL. Raises StartError."""
        from mayros.storage.engine import parse_url

        url = parse_url(self.store_url(loaded))
        return str(url.database) if url.get_backend_name() == "sqlite" else None

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
            keys=loaded.keys,
        )


class Target(NamedTuple):
    """A gateway to talk to. `own`: this machine's; device tokens of others are kept under their URLs. No secret shows in its repr.

    `trust`: whose certificate is taken; None: the system's authorities are asked.
    """

    url: str
    token: str | None
    password: str | None
    own: bool = False
    trust: Trust | None = None

    @property
    def gateway(self) -> str:
        """The name under which its device token is kept; empty (`identity.OWN`) for this machine's."""
        return "" if self.own else self.url.rstrip("/")

    @property
    def secret(self) -> bool:
        """Whether there is a shared secret to send."""
        return bool(self.token or self.password)

    def __repr__(self) -> str:
        return f"<Target {self.url}>"


def target(place: Place, url: str | None, token: str | None = None, password: str | None = None, fingerprint: str | None = None) -> Target:
    """The gateway that a command means.

    With `url`, only a secret given beside it is used, never a stored one: a stored secret must not travel to an address that happens to be on
    the command line. Without, `gateway.remote` in mode `remote`, else the gateway of this machine's configuration. `fingerprint` (as
    `parse_fingerprint` gives it) is that of the certificate; without one it is the configured one, of this machine's gateway its own.
    """
    from mayros.config.tls import own_trust

    given = bool(token or password)
    if url is not None:
        if not given:
            token, password = (place.environ.get(name) or None for name in ("MAYROS_GATEWAY_TOKEN", "MAYROS_GATEWAY_PASSWORD"))
        return Target(checked(url), token, password, trust=_trust(place, url, fingerprint))
    loaded = place.load()
    gateway = loaded.config.gateway
    if gateway.mode == "remote":
        if not gateway.remote.url:
            raise click.ClickException("gateway.mode is remote, but gateway.remote.url is not set")
        if not given:
            token, password = gateway.remote.token, gateway.remote.password
        return Target(checked(gateway.remote.url), token, password, trust=_trust(place, gateway.remote.url, fingerprint, loaded))
    own = own_trust(gateway.tls, place.state_dir)
    address = f"{'ws' if own is None else 'wss'}://{_host(gateway.bind, gateway.custom_bind_host)}:{port(place, gateway.port)}/"
    trust = own if fingerprint is None else _trust(place, address, fingerprint)
    if given:
        return Target(address, token, password, own=True, trust=trust)
    known = credential(place, loaded)
    return Target(address, known.value if known.mode == "token" else None, known.value if known.mode == "password" else None, own=True, trust=trust)


def _trust(place: Place, url: str, fingerprint: str | None, loaded: Loaded | None = None) -> Trust | None:
    """By what a gateway elsewhere is known: a given fingerprint, else that of `gateway.remote` where it is the gateway that is meant.

    `loaded`: the configuration, where it was read already.
    """
    from mayros.net.certificates import Trust, parse_fingerprint

    secure = url.lower().startswith("wss:")
    if fingerprint is not None:
        if not secure:
            raise click.UsageError(f"--tls-fingerprint needs a wss:// URL, and this is {url}: without TLS there is no certificate")
        return Trust(fingerprint)
    if not secure:
        return None
    remote = (place.load() if loaded is None else loaded).config.gateway.remote
    if remote.tls_fingerprint is None or (remote.url is not None and _authority(remote.url) != _authority(url)):
        return None
    return Trust(parse_fingerprint(remote.tls_fingerprint))


def _authority(url: str) -> tuple[str | None, int]:
    parts = urlsplit(url)
    return parts.hostname, parts.port or 443


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


def checked(url: str) -> str:
    """A gateway's URL, as it is; UsageError for what is none or holds a password."""
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


def read_token(path: str) -> str:
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


def stopped(place: Place) -> StateDir:
    """The state directory, locked, so that no gateway runs on it or starts. Raises StartError."""
    from mayros.net.statedir import StateDir

    state = StateDir.open(place.state_dir)
    try:
        state.lock()
    except StartError as failure:
        raise StartError(f"{failure}: stop it first (mayros gateway stop)" if failure.status == 1 else str(failure), failure.status) from failure
    return state
