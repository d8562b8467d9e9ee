"""One HTTP request: judged at the end of its headers, its body bounded, its answer with the headers that every answer has.

`reply` and `fail` write whole answers; whatever a handler raises goes through `failed`. Imports core, wire, web.gate and errors.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET, Request

from mayros.core.address import Address
from mayros.core.address import Headers as HeaderLines
from mayros.core.keys import new_id
from mayros.core.ports import Principal
from mayros.errors import GatewayError, MethodNotAllowed, RequestTooLarge, TooManyAuthFailures, Unauthorized, Unavailable, bare
from mayros.web.gate import Head
from mayros.wire.chat import error_body

if TYPE_CHECKING:
    from mayros.web.channel import GatewayChannel

log = Logger()

#: After a refusal, what the client still sends is read and dropped so long and so far, so that it can read the answer.
LINGER_SECONDS = 5.0
LINGER_BYTES = 64 << 20
JSON = b"application/json"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


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


def reply(request: GatewayRequest, body: bytes, code: int = 200, content_type: bytes = JSON) -> None:
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
