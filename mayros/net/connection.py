"""One HTTP/1.1 connection to a server: a Protocol round httptools' C parser, one exchange at a time, and the response as its consumer sees it.

Used through net/http.py. Everything the server sends is bounded: heads, chunk lines and trailers, and what is held for a slow consumer. No
redirect, no cookie, no compression. Imports net.certificates, net.sending, net.upload.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from twisted.internet import protocol
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from mayros.net.certificates import tls_problem
from mayros.net.sending import send
from mayros.net.upload import LARGE, Upload

HEAD_LIMIT = 64 * 1024  # bytes in a row that are not body: status line, headers, chunk lines, trailers
UNREAD_LIMIT = 256 * 1024  # bytes of body nobody has asked for yet; above, the socket is paused
SETTLE_SECONDS = 1.0  # how long the end of an answer may take, once nobody wants the rest of it


class Failed(Exception):
    """The exchange failed. Root of what this client raises, beside QueueFull; no message holds a header or a body."""


class BadResponse(Failed):
    """The answer is not HTTP as this client takes it, or the connection was lost before its end."""


class ConnectFailed(Failed):
    """No connection could be made."""


class TimedOut(Failed):
    """A limit on waiting was reached."""


class ConnectTimeout(TimedOut):
    """No connection was made in time."""


class FirstByteTimeout(TimedOut):
    """The head of the answer did not come in time."""


class IdleTimeout(TimedOut):
    """The answer stopped coming."""


class Pool(Protocol):
    """Where a connection belongs: its time limits, and whom it tells what becomes of it."""

    clock: IReactorTime
    first_byte_timeout: float
    idle_timeout: float

    def keep(self, connection: Connection) -> None:
        """It is clean and may serve another exchange."""
        ...

    def forget(self, connection: Connection) -> None:
        """It is of no use any more."""
        ...

    def release(self) -> None:
        """An exchange is over."""
        ...


class Connection(protocol.Protocol):
    """While in use it is the response: `status`, `headers` (lower-case names, the last of a name), and an iterator of body pieces.

    Use it as `async with`; leaving before the end of the answer closes the socket at once, without lingering, unless `settle` was called.
    """

    # One for each live run, so that what it takes counts; beyond 30 attributes a dict of one's own would take 1.5 KB.
    __slots__ = (
        *("_body", "_busy", "_clock", "_complete", "_drained", "_draining", "_dropped", "_exchanges", "_gone", "_got_head", "_head", "_heard"),
        *("_lost", "_parser", "_paused", "_pool", "_refused", "_reusable", "_settled", "_since", "_timer", "_unread", "_upload", "_waiter"),
        *("headers", "kept_since", "status"),
    )
    status: int
    headers: dict[bytes, bytes]
    transport: Any  # made by the endpoint: writes, pauses, resumes, aborts

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._clock = pool.clock
        self._parser: HttpResponseParser | None = None
        self._waiter: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None
        self._lost: Failed | None = None  # why this connection is of no use any more
        self._gone = False  # closed, by whomever
        self._dropped = False  # closed by the server, without a word from us
        self._exchanges = 0
        self._busy = False
        self._upload: Upload | None = None
        self.kept_since = 0.0  # for the pool

    # An exchange, as the pool drives it.

    def send(self, *request: bytes | memoryview) -> None:
        """Begin an exchange: write the whole request, given in parts. A large one goes out piece by piece, as the socket takes it."""
        self._parser = HttpResponseParser(self)
        self.status, self.headers = 0, {}
        self._body: list[bytes] = []
        self._unread = self._head = self._drained = 0
        self._got_head = self._complete = self._reusable = self._heard = self._paused = self._settled = self._draining = False
        self._refused: str | None = None
        self._busy = True
        self._exchanges += 1
        # The one timer of the connection: it compares with `_since`, so that nothing is done about it for each read, nor for most exchanges.
        self._since = self._clock.seconds()
        if self._timer is None:
            self._timer = self._clock.callLater(min(self._pool.first_byte_timeout, self._pool.idle_timeout), self._check)
        self._upload = None
        if sum(map(len, request)) > LARGE:
            self._upload = Upload(self.transport, request)
        else:
            send(self.transport, b"".join(request))

    async def head(self) -> None:
        """Wait for status and headers. Raises BadResponse or FirstByteTimeout."""
        while not self._got_head:
            await self._more()

    @property
    def stale(self) -> bool:
        """Whether a kept connection turned out to be closed already: not a byte was answered, so the request may be sent once more."""
        return self._exchanges > 1 and self._dropped and not self._heard

    def drop(self) -> None:
        """End the exchange and the connection at once."""
        self._busy = self._draining = False
        self._stop_timer()
        self._abort()

    def retire(self) -> None:
        """Close a kept connection politely: TLS says goodbye, and has a second for it."""
        self._stop_timer()
        self._timer = self._clock.callLater(SETTLE_SECONDS, self._too_long)
        self.transport.loseConnection()

    # The response, as its consumer sees it.

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._discard()
        if self._settled and self._lost is None and not self._complete and self._timer is not None:
            self._draining = True
            self._timer.reset(SETTLE_SECONDS)
        else:
            self._finish()

    def __aiter__(self) -> Connection:
        return self

    async def __anext__(self) -> bytes:
        """All body bytes received since the last call, as one piece. Raises BadResponse or IdleTimeout."""
        while not self._body:
            if self._complete:
                raise StopAsyncIteration
            await self._more()
        data = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._discard()
        return data

    async def read(self, limit: int) -> bytes:
        """The first `limit` bytes of the body, or all of it."""
        pieces, size = [], 0
        async for piece in self:
            pieces.append(piece)
            size += len(piece)
            if size >= limit:
                break
        return b"".join(pieces)[:limit]

    def settle(self) -> None:
        """All that matters was read: after the `async with`, the end of the answer gets a second to come by itself, so that the connection
        can be kept."""
        self._settled = True

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("more than was asked for")  # comes out of feed_data as an HttpParserError

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._got_head:
            return  # a trailer
        name = name.lower()
        if name == b"content-length" and self.headers.get(name, value) != value:
            self._refused = "it has two different lengths"
        self.headers[name] = value

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status < 200:
            self.headers = {}  # the real head follows
            return
        if self.headers.get(b"content-encoding", b"").strip().lower() not in (b"", b"identity"):
            self._refused = "its body is compressed, which was not asked for"
        elif self.headers.get(b"transfer-encoding", b"chunked").strip().lower() != b"chunked":
            self._refused = "its transfer encoding is not chunked"
        self.status = status
        self._got_head = self._refused is None

    def on_body(self, data: bytes) -> None:
        self._body.append(data)
        self._unread += len(data)
        self._head = 0

    def on_message_complete(self) -> None:
        assert self._parser is not None
        self._complete = self._got_head
        self._reusable = self._parser.should_keep_alive()  # ask here: after this callback it always says no

    # What the transport calls.

    def dataReceived(self, data: bytes) -> None:
        if self._lost is not None:
            return
        if not self._busy or self._complete:
            self._fail(BadResponse("The server sent data that nobody asked for."))
            return
        assert self._parser is not None
        self._heard = True
        self._head += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            self._fail(BadResponse("The answer switches to another protocol."))
        except HttpParserError as error:
            self._fail(BadResponse(f"The answer is not valid HTTP: {error}."))
        else:
            if self._refused is not None:
                self._fail(BadResponse(f"The answer was refused: {self._refused}."))
            elif self._head > HEAD_LIMIT:
                self._fail(BadResponse(f"The head of the answer is larger than {HEAD_LIMIT // 1024} KiB."))
            elif self._draining:
                self._drained += len(data)
                self._discard()
                if self._complete or self._drained > HEAD_LIMIT:
                    self._finish()
            else:
                if self._unread > UNREAD_LIMIT and not self._paused:
                    self._paused = True
                    self.transport.pauseProducing()
                self._wake()

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        self._gone = True
        self._parser = None  # they refer to each other
        if self._lost is None:
            self._dropped = True
            self._lost = BadResponse(f"The connection was lost: {_plainly(reason.value)}.")
        self._pool.forget(self)
        if not self._busy:
            self._stop_timer()
            return
        if self._dropped and self._got_head and reason.check(ConnectionDone) and not self.headers.keys() & {b"content-length", b"transfer-encoding"}:
            self._complete = True  # a body of no stated length ends with its connection
        self._wake()

    # Inside.

    def _check(self) -> None:
        """The timer: ends what waits too long. While the consumer is busy elsewhere it is not the server that is late."""
        self._timer = None
        if not self._busy:
            return
        if self._draining:
            self._finish()
            return
        now = self._clock.seconds()
        limit = self._pool.idle_timeout if self._got_head else self._pool.first_byte_timeout
        due = now + limit if self._waiter is None else self._since + limit
        if now < due:
            wait = due - now if self._got_head else min(due - now, self._pool.idle_timeout)
            self._timer = self._clock.callLater(wait, self._check)
        elif self._got_head:
            self._fail(IdleTimeout(f"Nothing came for {limit:g} s in the middle of the answer."))
        else:
            self._fail(FirstByteTimeout(f"No answer began within {limit:g} s."))

    def _too_long(self) -> None:
        """The server does not answer the goodbye."""
        self._timer = None
        self._abort()

    async def _more(self) -> None:
        """Wait for the next read."""
        if self._lost is not None:
            raise self._lost
        if self._got_head:
            self._since = self._clock.seconds()
        self._waiter = Deferred(self._nobody_waits)
        await self._waiter

    def _nobody_waits(self, _: object) -> None:
        self._waiter = None

    def _wake(self) -> None:
        if self._draining:
            self._finish()
            return
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)

    def _fail(self, error: Failed) -> None:
        self._lost = error
        self._pool.forget(self)
        self._abort()
        self._wake()

    def _discard(self) -> None:
        self._body = []
        self._unread = 0
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()

    def _finish(self) -> None:
        """The exchange is over. The connection is kept where that is safe and closed at once otherwise, also after a cancel."""
        if not self._busy:
            return
        if self._complete and self._reusable and self._lost is None and (self._upload is None or self._upload.done):
            self._busy = self._draining = False
            self._pool.keep(self)
        else:
            self.drop()
        self._pool.release()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _abort(self) -> None:
        if not self._gone:
            self._gone = True
            self.transport.abortConnection()


def _plainly(error: BaseException | None) -> str:
    """Why a connection was lost, for people."""
    if isinstance(error, ConnectionDone):
        return "the server closed it"
    if isinstance(error, ConnectionLost):
        return "it broke off"
    return tls_problem(error) or str(error)
