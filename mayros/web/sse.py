"""Event streams: one answer pushed as SSE, with back-pressure. The owner of a streamed run.

The answer's head and first chunk wait for the provider's first event, so that a failure before it is still a proper status; after
START_SECONDS of silence the stream starts anyway. One ticker serves all streams: no timer per stream, none per delta.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from mayros.core.ports import Clock, RunResult
from mayros.errors import GatewayError
from mayros.events import Event, ModelAnswered
from mayros.web.request import GatewayRequest
from mayros.wire.chat_answers import PING, Stream

PING_SECONDS = 15.0
START_SECONDS = 10.0
#: A client that takes nothing for so long is cut off.
STALL_SECONDS = 120.0


class Ticker:
    """Looks at all open streams once a second; runs only while there are any."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._streams: set[PushedAnswer] = set()
        self._call = LoopingCall(self._tick)
        self._call.clock = clock  # type: ignore[assignment]
        self.seconds = clock.seconds

    def add(self, stream: PushedAnswer) -> None:
        """Keep this stream alive."""
        if not self._streams:
            self._call.start(1.0, now=False)
        self._streams.add(stream)

    def remove(self, stream: PushedAnswer) -> None:
        """It is over."""
        self._streams.discard(stream)
        if not self._streams and self._call.running:
            self._call.stop()

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def paused(self) -> int:
        """How many wait for clients that are slow."""
        return sum(stream.paused for stream in self._streams)

    def _tick(self) -> None:
        now = self.seconds()
        for stream in list(self._streams):
            stream.tick(now)


@implementer(IPushProducer)
class PushedAnswer:
    """An answer that is pushed: kept alive while there is nothing to say, and with back-pressure. It ends with `abandon`."""

    def __init__(self, request: GatewayRequest, ticker: Ticker, headers: Callable[[GatewayRequest], None]) -> None:
        self._request: GatewayRequest | None = request
        self._ticker, self._headers = ticker, headers
        self._resumed: Deferred[None] | None = None
        self._last = self._opened = ticker.seconds()
        self._started = False
        request.stream = True
        request.registerProducer(self, True)
        ticker.add(self)

    @property
    def started(self) -> bool:
        """Whether the client has the head of the answer."""
        return self._started

    @property
    def paused(self) -> bool:
        """Whether the client is slow."""
        return self._resumed is not None

    def _begin(self, request: GatewayRequest) -> None:
        """The model is silent for long: write the head and what comes first."""
        raise NotImplementedError

    def tick(self, now: float) -> None:
        """Called once a second."""
        request = self._request
        if request is None:
            return
        if self._resumed is not None:
            if now - self._last >= STALL_SECONDS:
                request.channel.forceAbortClient()
        elif not self._started:
            if now - self._opened >= START_SECONDS:
                self._begin(request)
                self._last = now
        elif now - self._last >= PING_SECONDS:
            request.write(PING)
            self._last = now

    def abandon(self) -> None:
        """Let go of the request: it is finished, answered otherwise, or its client is gone."""
        request, self._request = self._request, None
        self._ticker.remove(self)
        if request is not None and request.producer is self and not request._disconnected:
            request.unregisterProducer()
        self.resumeProducing()

    def pauseProducing(self) -> None:
        """The client is slow."""
        if self._resumed is None:
            self._resumed = Deferred(self._forget)
            self._last = self._ticker.seconds()

    def resumeProducing(self) -> None:
        """It has caught up."""
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.callback(None)

    def stopProducing(self) -> None:
        """It is gone."""
        self.abandon()

    def _forget(self, _: Deferred[None]) -> None:
        """The run was cancelled while it waited for the client, who may be slow still: whoever waits next gets a Deferred of its own."""
        self._resumed = None


class EventStream(PushedAnswer):
    """One streamed answer, the owner of its run. End it with `finish`, `fail` or `abandon`; `send` is the run's."""

    def __init__(self, request: GatewayRequest, frames: Stream, ticker: Ticker, headers: Callable[[GatewayRequest], None]) -> None:
        super().__init__(request, ticker, headers)
        self._frames = frames

    async def send(self, events: list[Event]) -> None:
        """See ports.Owner."""
        request = self._request
        if request is None:
            return
        data = self._frames.deltas(events)
        if not self._started:
            answered = next((event for event in events if type(event) is ModelAnswered), None)
            if answered is not None:
                request.answered(answered.provider, answered.model)
            elif not data:
                return
            data = self._start(request) + data
        if data:
            request.write(data)
            self._last = self._ticker.seconds()
        if self._resumed is not None:
            await self._resumed

    def _start(self, request: GatewayRequest) -> bytes:
        self._started = True
        self._headers(request)
        return self._frames.role()

    def _begin(self, request: GatewayRequest) -> None:
        request.write(self._start(request))

    def finish(self, result: RunResult, include_usage: bool) -> None:
        """The turn is committed: finish chunk, usage, DONE and the end of the answer leave in one write."""
        request = self._request
        if request is None:
            return
        head = b"" if self._started else self._start(request)
        self.abandon()
        request.end(head + self._frames.end(result.finish_reason, result.usage if include_usage else None))

    def fail(self, error: GatewayError) -> None:
        """An error after the first byte: an error event, and the end without DONE."""
        request = self._request
        if request is None:
            return
        self.abandon()
        request.end(self._frames.error(error))
