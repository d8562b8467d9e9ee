"""One connection of the HTTP server: counted, its deadlines absolute, refusals written while a body may still be on its way.

Twisted's parser does the parsing. The idle timer is not reset by single bytes (docs/decisions/0003), and what follows a refusal on the connection is
never served. Imports core, wire, web.gate, web.request and errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.address import UNIXAddress
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import RESPONSES, HTTPChannel
from twisted.web.http_headers import Headers

from mayros.core.address import Address
from mayros.core.keys import new_id
from mayros.errors import GatewayError, InvalidRequest, RequestTimeout, Unavailable
from mayros.web.gate import forbidden_proxy
from mayros.web.request import JSON, LINGER_SECONDS, GatewayRequest, error_headers
from mayros.wire.errors import error_body

if TYPE_CHECKING:
    from mayros.web.site import GatewaySite


#: After the common header lines, where it is asked for: for a year, and for this name alone.
HSTS = b"\r\nStrict-Transport-Security: max-age=31536000"


class GatewayChannel(HTTPChannel):
    """One connection."""

    # As with requests: a dict of what Twisted and we keep of a connection would be past what instances share.
    __slots__ = (
        *("_counted", "_host", "_peer", "_real_peer", "_refused", "asked", "body_due"),
        *("_dataBuffer", "_handlingRequest", "_transferDecoder", "callLater", "factory", "requestFactory", "requests"),
        *("site", "timeOut", "transport"),
    )
    maxHeaders = 100
    site: GatewaySite
    transport: Any
    _counted: tuple[str | None] | None
    _host: Any
    _peer: Any

    def __init__(self) -> None:
        super().__init__()
        self.transport = self._counted = self._host = self._peer = None
        self._refused = False
        #: The head is complete, the body is not, and its time does not run yet.
        self.body_due = False
        #: Heads of requests that came.
        self.asked = 0

    def connectionMade(self) -> None:
        """Count it; one too many is told so and closed."""
        super().connectionMade()
        self._real_peer = peer_of(innermost(self.transport))
        key = self.site.gate.rules.connection_key(self._real_peer)
        if not self.site.connections.enter(key):
            if self.isSecure():
                # An answer would cost a handshake, for which the client may take its time on a connection that nobody counts.
                self.transport.abortConnection()
                return
            self.refuse(Unavailable("Too many connections. Try again shortly."))
            self.loseConnection()
            return
        self._counted = (key,)
        self.site.channels.add(self)

    def dataReceived(self, data: bytes) -> None:
        """Parse. Unlike Twisted's, this does not reset the idle timer: a trickle does not keep a connection."""
        if self._counted is None:
            return
        try:
            super(HTTPChannel, self).dataReceived(data)
        except ValueError:
            # int() does not read a Content-Length of thousands of digits. Once a request has begun, it deals with its own errors.
            if not self.requests or self.requests[-1].request_id:
                raise
            self._respondToBadRequestAndDisconnect()
        if self.body_due:
            # Not all of the body came with the head: from now on its own limit holds.
            self.body_due = False
            self.setTimeout(self.site.body_seconds)

    def getHost(self) -> Any:
        """Where the connection came in; asked for each request, told by the system once."""
        if self._host is None:
            self._host = self.transport.getHost()
        return self._host

    def getPeer(self) -> Any:
        """Who is at the other end; the same for all requests, the first of which comes after what a proxy says of it."""
        if self._peer is None:
            self._peer = self.transport.getPeer()
        return self._peer

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """Write status line and headers in one piece; Twisted's own hands the transport forty."""
        lines = [b"%b %b %b" % (version, code, reason)]
        lines += [b"%b: %b" % (name, value) for name, values in headers.getAllRawHeaders() for value in values]
        request: GatewayRequest = self.requests[0]
        if request.request_id:
            lines += (self._common_block(), *request.head_lines())
        if self.site.draining and self.persistent:  # it was asked before the stop
            self.persistent = False
            lines.append(b"Connection: close")
        request.out = (b"\r\n".join(lines) + b"\r\n\r\n",)

    def write(self, data: bytes) -> None:
        """A piece of the answer; its request sends together what it writes in one call."""
        self.requests[0].out += (data,)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Pieces of the answer."""
        self.requests[0].out += tuple(iovec)

    def _common_block(self) -> bytes:
        block = self.site.common_block()
        return block + HSTS if self.site.hsts and self.isSecure() else block

    def client_address(self, headers: Callable[[bytes], Any]) -> Address:
        """Who is at the other end, by the rules for proxies."""
        peer = peer_of(self)
        rules = self.site.gate.rules
        if peer == self._real_peer:
            return rules.of(peer, headers)
        if self._real_peer is not None and not rules.trusts(self._real_peer):
            raise forbidden_proxy()
        return rules.of(peer, headers, proxied=True)

    def allHeadersReceived(self) -> None:
        """Judge the request before its body."""
        request = self.requests[-1]
        self.asked += 1
        self.persistent = self.checkPersistence(request, self._version)
        if self.site.draining:
            self.persistent = False
            request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        request.begin(self._command, self._path, self._version, self.length)
        if self.length != 0 and request.refusal is None:
            self.body_due = True
            expect = request.header(b"expect")
            if expect and expect[0].lower() == b"100-continue" and self._version == b"HTTP/1.1":
                self._send100Continue()

    def _respondToBadRequestAndDisconnect(self) -> None:
        """The parser's word for bytes that are no request."""
        self._give_up(InvalidRequest("This is not a well-formed HTTP/1.1 request."))
        self.loseConnection()

    def _give_up(self, error: GatewayError) -> None:
        """Refuse a request that has not arrived as a whole, if that has not been done."""
        if self._refused:
            return
        request = self.requests[-1] if self.requests else None
        if request is not None and request.request_id:
            request.refuse_unread(error)
        else:
            self.refuse(error)

    def refuse(self, error: GatewayError, *own: bytes) -> None:
        """Write a whole answer outside the request's own course, with `Connection: close`. `own`: the header lines of a request that has begun."""
        self.persistent, self._refused, self.body_due = False, True, False
        self.setTimeout(LINGER_SECONDS)
        body = error_body(error)
        lines = [
            b"HTTP/1.1 %d %b" % (error.status, RESPONSES.get(error.status, b"Error")),
            self._common_block(),
            b"Cache-Control: no-store",
            b"Content-Type: " + JSON,
            b"Content-Length: %d" % len(body),
            b"Connection: close",
            *(own or (b"X-Request-Id: " + new_id().encode(), b"OpenAI-Processing-Ms: 0")),
            *(b"%b: %b" % pair for pair in error_headers(error)),
        ]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    def requestDone(self, request: GatewayRequest) -> None:
        """Its answer is complete: from here on the idle limit holds, not the one that its body had, also for a client that must only take it."""
        request.flush()
        self._savedTimeOut = self.site.timeOut
        if self.site.draining:
            self.persistent = False
        super().requestDone(request)
        if not self.persistent:
            self.setTimeout(self.site.timeOut)

    def timeoutConnection(self) -> None:
        """Idle too long, or a request that does not arrive in time."""
        if self.requests:
            self._give_up(RequestTimeout())
        super(HTTPChannel, self).setTimeout(None)
        self._abortingCall = self.callLater(LINGER_SECONDS, self.forceAbortClient)
        self.loseConnection()

    def forceAbortClient(self) -> None:
        """Reset the connection."""
        self._abortingCall = None
        self.transport.abortConnection()

    @property
    def idle(self) -> bool:
        """Between requests, or before the first one."""
        return not self.requests

    def hand_over(self) -> Callable[[], None]:
        """The socket becomes a WebSocket: stop counting it as HTTP; call the result when it is closed."""
        counted, self._counted = self._counted, None
        self.site.channels.discard(self)
        self.requests.clear()  # which refer to this channel
        if counted is None:
            return lambda: None
        # The channel itself is not kept for the life of the socket.
        return partial(self.site.connections.leave, counted[0])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        counted, self._counted = self._counted, None
        if counted is not None:
            self.site.channels.discard(self)
            self.site.connections.leave(counted[0])
        super().connectionLost(reason)


def innermost(transport: Any) -> Any:
    """The socket under TLS and PROXY wrappers."""
    while getattr(transport, "wrappedProtocol", None) is not None:
        transport = transport.transport
    return transport


def peer_of(transport: Any) -> str | None:
    """The address of the other end; None for a unix socket."""
    peer = transport.getPeer()
    return None if isinstance(peer, UNIXAddress) else getattr(peer, "host", "unknown")
