"""The HTTP server of both doors: its connections, what is judged by, the budget of bodies, the access log. Imports core, web.gate and web.channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.logger import Logger
from twisted.web.http import datetimeToString
from twisted.web.resource import IResource
from twisted.web.server import Site

from mayros.core.limits import Budget, ConnectionCounter
from mayros.web.channel import GatewayChannel
from mayros.web.gate import Gate
from mayros.web.request import GatewayRequest

log = Logger()

#: Seconds between the last answer (or the connect) and the next complete request head.
IDLE_SECONDS = 60.0


class Access(msgspec.Struct, gc=False, omit_defaults=True):
    """One line of the access log. `ms` from the first header to the last byte handed to the socket; code 499: the client left.

    `ttft_ms`: until the head of a `stream`, which waits for the first words. `trace`: the id of the client's trace.
    """

    time: float
    request: str
    remote: str | None
    method: str
    path: str
    code: int
    bytes: int
    ms: float
    run: str | None = None
    principal: str | None = None
    stream: bool = False
    ttft_ms: float | None = None
    trace: str | None = None


class GatewaySite(Site):
    """Both doors' listener. `gate` is read anew for each request; `record` writes the access log and must be quick.

    `hsts`: answers over TLS tell browsers never to come without it again.
    """

    requestFactory = GatewayRequest
    protocol = GatewayChannel  # type: ignore[assignment]  # no HTTP/2, so nothing to negotiate
    draining = False
    noisy = False

    def __init__(
        self,
        resource: IResource,
        gate: Gate,
        bodies: Budget,
        connections: ConnectionCounter,
        reactor: Any,
        record: Callable[[Access], None],
        wall: Callable[[], float],
        body_seconds: float = 60.0,
        head_seconds: float = IDLE_SECONDS,
        hsts: bool = False,
    ) -> None:
        super().__init__(resource, reactor=reactor, parsePOSTFormSubmission=False)
        self.limit(body_seconds, head_seconds)
        self.gate, self.bodies, self.connections = gate, bodies, connections
        self.channels: set[GatewayChannel] = set()
        self._record, self._wall, self.hsts = record, wall, hsts
        self._block: tuple[int, bytes] = (0, b"")

    def limit(self, body_seconds: float, head_seconds: float) -> None:
        """Hold these limits for what comes from now on."""
        self.body_seconds, self.timeOut = body_seconds, min(IDLE_SECONDS, head_seconds)

    def startFactory(self) -> None:
        """No log file of Twisted's: lines go to `record`."""

    def stopFactory(self) -> None:
        """Nothing was opened."""

    def common_block(self) -> bytes:
        """The header lines that every answer has, made once a second."""
        now = int(self._wall())
        if now != self._block[0]:
            lines = (b"Server: mayros", b"Date: " + datetimeToString(now), b"X-Content-Type-Options: nosniff", b"Referrer-Policy: no-referrer")
            self._block = (now, b"\r\n".join(lines))
        return self._block[1]

    def drain(self) -> None:
        """The gateway stops: the first request of a connection is served, later ones are refused, and after an answer the connection is closed."""
        self.draining = True

    def close_idle(self, new: bool) -> None:
        """Close connections between requests; with `new` also those that have not asked for anything yet."""
        for channel in list(self.channels):
            if channel.idle and (new or channel.asked):
                channel.loseConnection()

    @property
    def pending(self) -> bool:
        """Whether a client waits for an answer, or has connected and may be about to ask."""
        return any(not channel.idle or not channel.asked for channel in self.channels)

    def abort_all(self) -> None:
        """Close whatever is left."""
        for channel in list(self.channels):
            channel.forceAbortClient()

    def log(self, request: GatewayRequest) -> None:  # type: ignore[override]
        """One line for an ended request. Must not raise: that would leave the client hanging."""
        try:
            if not request.request_id or request.path in (b"/healthz", b"/readyz"):
                return
            address = getattr(request, "address", None)
            self._record(
                Access(
                    round(self._wall(), 3),
                    request.request_id,
                    address.client if address is not None else None,
                    request.method.decode("latin-1"),
                    request.path[:512].decode("ascii", "backslashreplace"),
                    request.code,
                    request.sentLength,
                    round((self.reactor.seconds() - request.started) * 1000, 2),
                    request.run_id,
                    request.principal.id if request.principal is not None else None,
                    request.stream,
                    round(request.head_ms, 2) if request.stream and request.head_ms is not None else None,
                    request.trace.id if request.trace is not None else None,
                )
            )
        except Exception:  # noqa: BLE001  see above
            log.failure("while writing the access log")
