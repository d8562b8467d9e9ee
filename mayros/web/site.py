"""The HTTP server: connections counted, requests judged at the end of their headers, bodies bounded, every answer with its headers and log line.

Twisted's parser does the parsing. What is ours: the gate is asked before a body byte is kept; bodies share one budget; a refusal is
written while the body may still be on its way, and what follows it on the connection is never served. Deadlines are absolute: the idle timer of
the connection is not reset by single bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import msgspec
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import RESPONSES, HTTPChannel, datetimeToString
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET, Request, Site

from mayros.core.address import Address
from mayros.core.address import Headers as HeaderLines
from mayros.core.keys import new_id
from mayros.core.limits import Budget, ConnectionCounter
from mayros.core.ports import Principal
from mayros.errors import (
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    RequestTimeout,
    RequestTooLarge,
    TooManyAuthFailures,
    Unauthorized,
    Unavailable,
    bare,
)
from mayros.web.gate import Gate, Head, forbidden_proxy
from mayros.wire.chat import error_body

log = Logger()

#: Seconds between the last answer (or the connect) and the next complete request head.
IDLE_SECONDS = 60.0
#: After a refusal, what the client still sends is read and dropped so long and so far, so that it can read the answer.
LINGER_SECONDS = 5.0
LINGER_BYTES = 64 << 20
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_JSON = b"application/json"


class Access(msgspec.Struct, gc=False, omit_defaults=True):
    """One line of the access log. `ms` from the first header to the last byte handed to the socket; code 499: the client left."""

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


class GatewayRequest(Request):
    """One request. `body` is whole when a handler sees it; `principal` is None on open routes."""

    defaultContentType = None
    channel: GatewayChannel
    refusal: GatewayError | None = None
    principal: Principal | None = None
    address: Address
    #: All lines of a request header by its lower-case name.
    header: HeaderLines
    request_id = ""
    common = False
    run_id: str | None = None
    task: Deferred[Any] | None = None
    upgrade = False
    body: bytes | bytearray = b""
    _max_body = 0
    _share = 0
    _dropped = -1

    # Called by the channel, in this order: begin, handleContentChunk, requestReceived.

    def begin(self, command: bytes, target: bytes, version: bytes, length: int | None) -> None:
        """The headers are complete: judge the request. `length` None: chunked."""
        site = self.channel.site
        self.started = site.reactor.seconds()
        self.method, self.uri, self.clientproto = command, target, version
        self.path = target.partition(b"?")[0]
        # Two dozen headers are asked for; a dict of our own answers five times as fast.
        self.header = get = {name.lower(): lines for name, lines in self.requestHeaders.getAllRawHeaders()}.get
        ids = get(b"x-request-id")
        self.request_id = ids[0].decode() if ids and len(ids) == 1 and _REQUEST_ID.fullmatch(ids[0]) else new_id()
        try:
            self.address = self.channel.client_address(get)
            admit = site.gate.check(Head(command, self.path, version, get, length), self.address, self.started)
            self.principal, self._max_body, self.upgrade = admit.principal, admit.max_body, admit.upgrade
            if length:
                self._take(length)
        except GatewayError as error:
            self.refusal = bare(error)
            if length != 0:
                self.refuse_unread(error)

    def _take(self, count: int) -> None:
        if not self.channel.site.bodies.take(count):
            raise Unavailable("There is no room for the body right now. Try again shortly.")
        self._share += count

    def handleContentChunk(self, data: bytes) -> None:
        """Keep a piece of the body, within its limit and the budget."""
        if self._dropped >= 0:
            self._dropped += len(data)
            if self._dropped > LINGER_BYTES:
                self.channel.forceAbortClient()
            return
        size = len(self.body) + len(data)
        try:
            if size > self._max_body:
                raise RequestTooLarge(f"The body is larger than the {self._max_body} bytes that this gateway takes.")
            if size > self._share:
                self._take(size - self._share)
        except GatewayError as error:
            self.refuse_unread(error)
            return
        if not self.body:
            self.body = data
        else:
            if type(self.body) is bytes:
                self.body = bytearray(self.body)
            self.body += data

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The request is complete."""
        self.channel.body_due = False
        if self._dropped >= 0:
            self.channel.setTimeout(LINGER_SECONDS)
            self.channel.loseConnection()
            return
        self.args: dict[bytes, list[bytes]] = {}
        self.process()

    def process(self) -> None:
        """Answer a refusal, or let the resource answer."""
        self.site = self.channel.site
        self.prepath, self.postpath = [], []
        if self.refusal is not None:
            fail(self, self.refusal)
            return
        try:
            result = self.site.resource.render(self)
            if result is not NOT_DONE_YET:
                self.write(cast(bytes, result))
                self.finish()
        except Exception:  # noqa: BLE001  a defect in one request must not end the connection's parser
            failed(self, Failure())

    def common_headers(self) -> None:
        """What every answer carries; the channel writes it as one block."""
        self.common = True

    def refuse_unread(self, error: GatewayError) -> None:
        """Write a whole answer now; what still comes of the body is dropped, then the connection is closed."""
        self._dropped, self.body = 0, b""
        self.give_share()
        self.channel.refuse(error, self.request_id)
        self.code = error.status
        self.channel.site.log(self)

    def take_share(self) -> int:
        """The caller answers for this request's part of the body budget from now on."""
        share, self._share = self._share, 0
        return share

    def give_share(self) -> None:
        """The body is no longer needed."""
        if self._share:
            self.channel.site.bodies.give(self.take_share())

    def finish(self) -> None:
        """The answer is complete."""
        self.give_share()
        self.task = None
        super().finish()

    def connectionLost(self, reason: Failure) -> None:
        """The client left: whoever works for it is cancelled."""
        site = self.channel.site
        task, self.task = self.task, None
        if task is not None:
            task.cancel()
        if self._share:
            site.bodies.give(self.take_share())
        self.body = b""
        if self.request_id and self._dropped < 0 and not self.upgrade:
            self.code = 499
            site.log(self)
        super().connectionLost(reason)


class GatewayChannel(HTTPChannel):
    """One connection."""

    maxHeaders = 100
    site: GatewaySite
    transport: Any
    _counted: tuple[str | None] | None = None
    _refused = False
    _host: Any = None
    #: The head is complete, the body is not, and its time does not run yet.
    body_due = False

    def connectionMade(self) -> None:
        """Count it; one too many is told so and closed."""
        super().connectionMade()
        self._real_peer = peer_of(innermost(self.transport))
        key = self.site.gate.rules.connection_key(self._real_peer)
        if not self.site.connections.enter(key):
            self.refuse(Unavailable("Too many connections. Try again shortly."), new_id())
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

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """Write status line and headers in one piece; Twisted's own hands the transport forty."""
        lines = [b"%b %b %b" % (version, code, reason)]
        lines += [b"%b: %b" % (name, value) for name, values in headers.getAllRawHeaders() for value in values]
        request: GatewayRequest = self.requests[0]
        if request.common:
            lines += (self.site.common_block(), b"X-Request-Id: " + request.request_id.encode())
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n")

    def client_address(self, headers: Callable[[bytes], Any]) -> Address:
        """Who is at the other end, by the rules for proxies."""
        peer = peer_of(self.transport)
        rules = self.site.gate.rules
        if peer == self._real_peer:
            return rules.of(peer, headers)
        if self._real_peer is not None and not rules.trusts(self._real_peer):
            raise forbidden_proxy()
        return rules.of(peer, headers, proxied=True)

    def allHeadersReceived(self) -> None:
        """Judge the request before its body."""
        request = self.requests[-1]
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
            self.refuse(error, new_id())

    def refuse(self, error: GatewayError, request_id: str) -> None:
        """Write a whole answer outside the request's own course, with `Connection: close`."""
        self.persistent, self._refused, self.body_due = False, True, False
        self.setTimeout(LINGER_SECONDS)
        body = error_body(error)
        lines = [
            b"HTTP/1.1 %d %b" % (error.status, RESPONSES.get(error.status, b"Error")),
            self.site.common_block(),
            b"Cache-Control: no-store",
            b"Content-Type: " + _JSON,
            b"Content-Length: %d" % len(body),
            b"Connection: close",
            b"X-Request-Id: " + request_id.encode(),
            *(b"%b: %b" % pair for pair in error_headers(error)),
        ]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    def requestDone(self, request: GatewayRequest) -> None:
        """Its answer is complete: from here on the idle limit holds, not the one that its body had, also for a client that must only take it."""
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
        """Between requests."""
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


class GatewaySite(Site):
    """Both doors' listener. `gate` is read anew for each request; `record` writes the access log and must be quick."""

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
    ) -> None:
        super().__init__(resource, timeout=min(IDLE_SECONDS, head_seconds), reactor=reactor, parsePOSTFormSubmission=False)
        self.gate, self.bodies, self.connections = gate, bodies, connections
        self.channels: set[GatewayChannel] = set()
        self.body_seconds, self._record, self._wall = body_seconds, record, wall
        self._block: tuple[int, bytes] = (0, b"")

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
        """The gateway stops: connections between requests are closed, others after their answer."""
        self.draining = True
        for channel in list(self.channels):
            if channel.idle:
                channel.loseConnection()

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
                )
            )
        except Exception:  # noqa: BLE001  see above
            log.failure("while writing the access log")


def innermost(transport: Any) -> Any:
    """The socket under TLS and PROXY wrappers."""
    while getattr(transport, "wrappedProtocol", None) is not None:
        transport = transport.transport
    return transport


def peer_of(transport: Any) -> str | None:
    """The address of the other end; None for a unix socket."""
    peer = transport.getPeer()
    return None if isinstance(peer, UNIXAddress) else getattr(peer, "host", "unknown")


def error_headers(error: GatewayError) -> list[tuple[bytes, bytes]]:
    """The headers that an error brings along."""
    pairs = []
    if isinstance(error, Unauthorized):
        pairs.append((b"WWW-Authenticate", b"Bearer"))
    if isinstance(error, MethodNotAllowed):
        pairs.append((b"Allow", error.allow.encode()))
    if error.status == 415:
        pairs.append((b"Accept-Encoding", b"identity"))
    if error.retry_after is not None:
        pairs.append((b"Retry-After", b"%d" % error.retry_after))
    if error.should_retry is not None or isinstance(error, TooManyAuthFailures):
        pairs.append((b"X-Should-Retry", b"true" if error.should_retry else b"false"))
    return pairs


def reply(request: GatewayRequest, body: bytes, code: int = 200, content_type: bytes = _JSON) -> None:
    """A whole answer."""
    request.setResponseCode(code)
    request.common_headers()
    put = request.responseHeaders.setRawHeaders
    put(b"Cache-Control", [b"no-store"])
    put(b"Content-Type", [content_type])
    put(b"Content-Length", [b"%d" % len(body)])
    request.write(body)
    request.finish()


def fail(request: GatewayRequest, error: GatewayError) -> None:
    """An error as OpenAI's error object; once the answer has begun, the connection is cut instead, so that it cannot pass for complete."""
    if request.startedWriting:
        request.channel.forceAbortClient()
        return
    for name, value in error_headers(error):
        request.responseHeaders.setRawHeaders(name, [value])
    reply(request, error_body(error), error.status)


def failed(request: GatewayRequest, failure: Failure) -> None:
    """Whatever went wrong in a handler becomes an answer; defects are logged under the request's id."""
    error = failure.value
    if not isinstance(error, GatewayError):
        log.failure("request {request} failed inside", failure=failure, request=request.request_id)
        error = GatewayError()
    forget(failure)
    if not request._disconnected and not request.finished:
        fail(request, error)


def forget(failure: Failure) -> None:
    """The way of a failure ends here. See `errors.bare`; a Failure has frames of its own besides its error's."""
    bare(cast(BaseException, failure.value))
    failure.cleanFailure()
