"""One HTTP request: judged at the end of its headers, its body bounded, its answer with the headers that every answer has.

`reply` and `fail` write whole answers; whatever a handler raises goes through `failed`. Imports core, net.sending, wire, web.gate and errors.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET, Request

from mayros.core.address import Address
from mayros.core.address import Headers as HeaderLines
from mayros.core.keys import new_id
from mayros.core.limits import Budget
from mayros.core.ports import Principal
from mayros.core.quota import TooManyRequests, quota_headers
from mayros.core.tracing import Trace
from mayros.core.tracing import parse as parse_trace
from mayros.errors import GatewayError, MethodNotAllowed, RequestTooLarge, Stopping, TooManyAuthFailures, Unauthorized, Unavailable, bare
from mayros.net.sending import send
from mayros.web.gate import Head
from mayros.wire.errors import error_body

if TYPE_CHECKING:
    from mayros.web.channel import GatewayChannel

log = Logger()

#: After a refusal, what the client still sends is read and dropped so long and so far, so that it can read the answer.
LINGER_SECONDS = 5.0
LINGER_BYTES = 64 << 20
JSON = b"application/json"
#: What stays as it is in header values that are percent-encoded.
_PLAIN = "/:@+,="
_PLAINLY = re.compile(rf"[\w.~{_PLAIN}-]*", re.ASCII)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class GatewayRequest(Request):
    """One request. `body` is whole when a handler sees it; `principal` is None on open routes."""

    # One for each open stream. What every request has is in slots, Twisted's part of it too: a dict with all of it would be past the 30 keys that
    # instances share, and take four times as much.
    __slots__ = (
        *("_dropped", "_max_body", "_share", "address", "body", "head_ms", "header", "lines", "model", "out", "principal", "refusal", "request_id"),
        *("run_id", "started", "stream", "task", "trace", "upgrade"),
        *("_adapterCache", "_parsePOSTFormSubmission", "channel", "client", "cookies", "host", "notifications", "queued", "received_cookies"),
        *("requestHeaders", "responseHeaders", "transport"),
    )
    defaultContentType = None
    channel: GatewayChannel
    address: Address
    #: All lines of a request header by its lower-case name.
    header: HeaderLines
    #: When its headers were complete.
    started: float

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.refusal: GatewayError | None = None
        self.principal: Principal | None = None
        self.request_id = ""
        self.run_id: str | None = None
        #: Whether the answer is pushed, and when its head was written, in milliseconds since the request came; a stream's waits for the first words.
        self.stream = False
        self.head_ms: float | None = None
        #: What the client calls the whole of which this request is a part, if it says so (core/tracing.py).
        self.trace: Trace | None = None
        #: `provider/model`, once one has answered.
        self.model = ""
        self.task: Deferred[Any] | None = None
        self.upgrade = False
        self.body: bytes | bytearray = b""
        #: Header lines of the answer, whatever it will be; the channel writes them as they are.
        self.lines: tuple[bytes, ...] = ()
        #: What was written of the answer, and not sent; the channel puts it here.
        self.out: tuple[bytes, ...] = ()
        self._max_body = self._share = 0
        self._dropped = -1

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
        if (traces := get(b"traceparent")) is not None and len(traces) == 1:
            self.trace = parse_trace(traces[0])
        self.lines = site.gate.cors.lines(get(b"origin"))
        try:
            self.address = self.channel.client_address(get)
            admit = site.gate.check(Head(command, self.path, version, get, length), self.address, self.started)
            if site.draining and (self.channel.asked > 1 or admit.upgrade):
                raise Stopping
            self.principal, self._max_body, self.upgrade = admit.principal, admit.max_body, admit.upgrade
            self.lines += admit.lines
            if length:
                self.take(length)
        except GatewayError as error:
            self.refusal = bare(error)
            if length != 0:
                self.refuse_unread(error)

    def take(self, count: int) -> None:
        """Set bytes of the body budget aside for this request, until it is finished. Raises Unavailable."""
        reserve(self.channel.site.bodies, count)
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
                self.take(size - self._share)
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
        self.process()

    def process(self) -> None:
        """Answer a refusal, or let the resource answer."""
        if self.refusal is not None:
            fail(self, self.refusal)
            return
        try:
            result = self.channel.site.resource.render(self)
            if result is not NOT_DONE_YET:
                self.end(cast(bytes, result))
        except Exception:  # noqa: BLE001  a defect in one request must not end the connection's parser
            failed(self, Failure())

    def of_run(self, run_id: str, agent_id: str, session_key: str) -> None:
        """The answer is that of this run."""
        self.run_id = run_id
        about = f"X-Mayros-Run-Id: {run_id}\r\nX-Mayros-Agent-Id: {agent_id}\r\nX-Mayros-Session-Key: {_quoted(session_key)}"
        self.lines = (*self.lines, about.encode("ascii"))

    def answered(self, provider: str, model: str) -> None:
        """The model that answers, after fallbacks. The first one holds, as the head of a stream is sent once."""
        if not self.model:
            self.model = f"{provider}/{model}"
            self.lines = (*self.lines, b"X-Mayros-Model: " + _quoted(self.model).encode("ascii"))

    def head_lines(self) -> tuple[bytes, ...]:
        """The header lines that belong to this request alone, with what it has taken until now."""
        self.head_ms = took = (self.channel.site.reactor.seconds() - self.started) * 1000
        return (b"X-Request-Id: " + self.request_id.encode(), b"OpenAI-Processing-Ms: %d" % took, *self.lines)

    def refuse_unread(self, error: GatewayError) -> None:
        """Write a whole answer now; what still comes of the body is dropped, then the connection is closed."""
        self._dropped, self.body = 0, b""
        self.give_share()
        self.channel.refuse(error, *self.head_lines())
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

    def write(self, data: bytes) -> None:
        """Send a piece of the answer, with its head where it is the first."""
        super().write(data)
        self.flush()

    def whole(self, body: bytes) -> None:
        """The answer in one piece, whose header lines are in `lines`: what `end` would do for it, without a look at each header."""
        if not self._disconnected:
            self.startedWriting = 1
            self.channel.writeHeaders(self.clientproto, b"%d" % self.code, self.code_message, self.responseHeaders)
            if self.method != b"HEAD":
                self.sentLength = len(body)
                self.out += (body,)
        self.finish()

    def end(self, data: bytes) -> None:
        """The rest of the answer, sent with whatever marks its end."""
        super().write(data)
        self.finish()

    def flush(self) -> None:
        """Send what was written."""
        out, self.out = self.out, ()
        if out:
            send(self.channel.transport, b"".join(out))

    def finish(self) -> None:
        """The answer is complete."""
        self.give_share()
        self.task = None
        super().finish()

    def connectionLost(self, reason: Failure) -> None:
        """The client left: whoever works for it is cancelled."""
        task, self.task = self.task, None
        if task is not None:
            task.cancel()
        self.give_share()
        self.body = b""
        if self.request_id and self._dropped < 0 and not self.upgrade:
            self.code = 499
            self.channel.site.log(self)
        super().connectionLost(reason)


def _quoted(text: str) -> str:
    """As the value of a header of ours; most are plain, and looking is quicker."""
    return text if _PLAINLY.fullmatch(text) else quote(text, _PLAIN)


def reserve(bodies: Budget, count: int) -> None:
    """Set bytes of the budget of all bodies aside. Raises Unavailable."""
    if not bodies.take(count):
        raise Unavailable("There is no room for the body right now. Try again shortly.")


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
    if isinstance(error, TooManyRequests):
        pairs += [(name.encode(), value.encode()) for name, value in quota_headers(error.quota)]
    if error.should_retry is not None or isinstance(error, TooManyAuthFailures):
        pairs.append((b"X-Should-Retry", b"true" if error.should_retry else b"false"))
    return pairs


def reply(request: GatewayRequest, body: bytes, code: int = 200, content_type: bytes = JSON) -> None:
    """A whole answer."""
    request.setResponseCode(code)
    request.lines += (b"Cache-Control: no-store", b"Content-Type: " + content_type, b"Content-Length: %d" % len(body))
    request.whole(body)


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
