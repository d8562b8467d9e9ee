"""What the commands that ask a gateway have in common: their options, a connection, and failures as one line with what to do.

Imports ws.client through the place, and ws.conversation when a command asks.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from mayros.cli.place import Place, Target, checked, here, read_token, target
from mayros.cli.show import record
from mayros.errors import StartError

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from mayros.net.statedir import StateDir
    from mayros.ws.connection import Connection
    from mayros.ws.conversation import CallFailed

#: The command line is an operator's own tool and signs as one device: it asks for the same each time, so that one approval is enough.
SCOPES = ("operator.admin", "operator.approvals", "operator.pairing", "operator.read", "operator.write")
CONNECT_SECONDS = 10.0
_WARNING = "warning: other users of this machine can see what is on a command line: use --token-file, MAYROS_GATEWAY_TOKEN or MAYROS_GATEWAY_PASSWORD"

Answer = TypeVar("Answer")
Command = TypeVar("Command", bound=Callable[..., Any])


class Refused(click.ClickException):
    """The gateway could not be reached, or said no. `payload` is what came with it."""

    def __init__(self, message: str, payload: object = None, code: str = "UNAVAILABLE") -> None:
        super().__init__(message)
        self.payload, self.code = payload, code


class Remote:
    """The gateway that the options mean. Nothing is read or connected before it is needed."""

    def __init__(
        self,
        place: Place,
        url: str | None,
        token_file: str | None,
        token: str | None,
        password: str | None,
        fingerprint: str | None,
        as_json: bool,
        timeout: float,
    ) -> None:
        if token_file is not None and token is not None:
            raise click.UsageError("--token and --token-file are two ways to say one thing")
        if url is not None:
            checked(url)
        if token or password:
            click.echo(_WARNING, err=True)
        self.place, self.json, self.timeout = place, as_json, timeout
        self._named = url, token_file, token, password
        self._fingerprint = fingerprint
        self._clock: Any = None

    @property
    def elsewhere(self) -> bool:
        """Whether an option names a gateway or a secret."""
        return any(self._named) or self._fingerprint is not None

    @functools.cached_property
    def target(self) -> Target:
        """Where to connect, with which secret."""
        url, token_file, token, password = self._named
        return target(self.place, url, read_token(token_file) if token_file is not None else token, password, self._fingerprint)

    def call(self, method: str, params: object = None, *, expect_final: bool = False) -> Any:
        """The payload of one method's answer. Raises Refused."""
        return self.talk(lambda connection: connection.request(method, params, timeout=self.timeout, expect_final=expect_final))

    def talk(
        self,
        main: Callable[[Connection], Awaitable[Answer]],
        *,
        on_event: Callable[[str, Any], None] | None = None,
        signed: bool = True,
        again: bool = False,
    ) -> Answer:
        """Run `main` on a connection and give what it gives. Raises Refused. `signed=False` leaves the device out where there is a secret; with
        `again` a connection that is lost is made anew, and what was being asked has failed."""
        to = self.target
        identity = self.place.identity() if signed or not to.secret else None
        connect = self.place.connects()

        more: dict[str, Any] = {"reconnect": True} if again else {}
        if to.trust is not None:
            more["trust"] = to.trust

        async def talking(reactor: Any) -> Answer:
            self._clock = reactor
            connection = await connect(
                reactor,
                to.url,
                token=to.token,
                password=to.password,
                identity=identity,
                gateway=to.gateway,
                scopes=SCOPES if signed else (),
                on_event=on_event,
                timeout=min(self.timeout, CONNECT_SECONDS),
                **more,
            )
            async with connection:
                return await main(connection)

        with refusals(to):
            answer: Answer = self.place.drive(talking)
            return answer

    def pause(self, seconds: float) -> Deferred[None]:
        """In `talk`: wait."""
        from twisted.internet.task import deferLater

        waited: Deferred[None] = deferLater(self._clock, seconds)
        return waited


def idle(remote: Remote) -> StateDir | None:
    """The state directory, locked; None: a gateway runs on it, or it is another machine's gateway that is meant."""
    from mayros.net.statedir import StateDir

    if remote.place.load().config.gateway.mode == "remote":
        return None
    state = StateDir.open(remote.place.state_dir)
    try:
        state.lock()
    except StartError as failure:
        if failure.status != 1:
            raise
        return None
    return state


@contextmanager
def refusals(to: Target) -> Iterator[None]:
    """CallFailed inside becomes Refused, with a hint at what to do."""
    from mayros.ws.conversation import CallFailed

    try:
        yield
    except CallFailed as failure:
        _refuse(to, failure)


def _refuse(to: Target, failure: CallFailed) -> NoReturn:
    details = record(failure.details)
    hint = ""
    if failure.message.startswith("Cannot reach") and to.own:
        hint = " (is it running? `mayros gateway run` starts one)"
    elif "closed the connection (1006)" in failure.message and to.url.startswith("ws:"):
        hint = " (was gateway.tls switched off since it started? Restart it)" if to.own else " (if it speaks TLS, its URL begins with wss://)"
    elif failure.message.startswith("Cannot speak to"):
        hint = _about_tls(to, failure.message)
    elif failure.message.startswith("pairing required") and isinstance(details.get("requestId"), str):
        hint = f": on the gateway's machine, run `mayros devices approve {details['requestId']}`"
    elif to.secret and "device token mismatch" in failure.message:
        hint = " (what was sent is neither the gateway's secret nor a token of this device)"
    elif not to.secret and ("unauthorized" in failure.message or failure.message.startswith("device identity required")):
        hint = " (no secret was sent: set MAYROS_GATEWAY_TOKEN, or name a file with --token-file)"
    raise Refused(failure.message + hint, failure.payload, failure.code) from failure


def _about_tls(to: Target, message: str) -> str:
    """What to do about a handshake that failed."""
    if "expected was" in message and to.own:
        return " (gateway.tls.certPath was renewed this moment or cannot be used, or somebody else has the port: `mayros logs` says which)"
    if "expected was" in message:
        return " (was it renewed? See `mayros gateway cert --show` there, before you change --tls-fingerprint or gateway.remote.tlsFingerprint)"
    if "certificate verify failed" in message or "another host" in message:
        return " (compare the fingerprint that `mayros gateway cert --show` prints there, and give it with --tls-fingerprint)"
    if "alert" in message and "certificate" in message:
        return " (it wants a certificate of its clients: gateway.tls.caPath)"
    return " (it may not speak TLS: is gateway.tls on there, and has the gateway been restarted since?)"


def _fingerprint(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """The fingerprint of an option. Raises BadParameter."""
    from mayros.net.certificates import parse_fingerprint

    try:
        return None if value is None else parse_fingerprint(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, parameter) from None


def gateway_options(seconds: float | None = 30.0) -> Callable[[Command], Command]:
    """Adds --url, --token-file, --token, --password, --tls-fingerprint, --json, and --timeout where `seconds` is its default; the command gets a
    `Remote` first."""

    def adding(command: Command) -> Command:
        @functools.wraps(command)
        def wrapped(
            *args: Any,
            url: str | None,
            token_file: str | None,
            token: str | None,
            password: str | None,
            fingerprint: str | None,
            as_json: bool,
            wait: float = CONNECT_SECONDS,
            **rest: Any,
        ) -> Any:
            place = here(click.get_current_context())
            return command(Remote(place, url, token_file, token, password, fingerprint, as_json, wait), *args, **rest)

        options = [
            click.option("--url", metavar="URL", help="Another gateway: ws://, wss:// or unix:/path. Stored secrets are not sent there."),
            click.option("--token-file", type=click.Path(exists=True, dir_okay=False), help="A file that holds the gateway's token."),
            click.option("--token", metavar="T", help="The gateway's token. Other users can see it: prefer --token-file or MAYROS_GATEWAY_TOKEN."),
            click.option("--password", metavar="P", help="The gateway's password. Other users can see it: prefer MAYROS_GATEWAY_PASSWORD."),
            click.option(
                "--tls-fingerprint",
                "fingerprint",
                metavar="HEX",
                callback=_fingerprint,
                help="The SHA-256 fingerprint of the certificate of a wss:// gateway. It alone is trusted then.",
            ),
            click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON."),
        ]
        if seconds is not None:
            limit = click.FloatRange(0.1, 86_400)
            options.append(
                click.option("--timeout", "wait", type=limit, default=seconds, show_default=True, metavar="S", help="Seconds to wait for an answer.")
            )
        done: Any = wrapped
        for option in reversed(options):
            done = option(done)
        return done  # type: ignore[no-any-return]

    return adding
