"""One stream for many clients: what a keyed run says is encoded once, kept in a journal, and each client follows at its own place.

The run is suspended only while all of its clients are slow; one that is slow alone goes on from the journal, and is cut off where that does not reach
back to its place any more. Imports core, wire, web.sse and web.request.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from mayros.core.journal import Journals
from mayros.core.ports import Clock, Journal, RunResult
from mayros.errors import GatewayError
from mayros.events import Event, ModelAnswered, RunStarted
from mayros.web.request import GatewayRequest
from mayros.web.sse import PushedAnswer, Ticker
from mayros.wire.chat_answers import Stream
from mayros.wire.sse import numbered

#: How long, and how many, streams that have ended can be followed.
KEPT_SECONDS, KEPT_STREAMS = 300.0, 5_000
#: What a client that is behind gets in one write.
PIECE = 128 << 10


class SharedStream:
    """The owner of a keyed run that is streamed. `run_id` is the name of the stream in the ids of its events."""

    def __init__(self, run_id: str, model: str, journal: Journal) -> None:
        self.journal = journal
        #: Milliseconds of the wall clock when the run was submitted; set at once after that.
        self.started_ms = 0
        self.answered: ModelAnswered | None = None
        #: Why the run failed; None while it goes on, and where it ended well.
        self.error: GatewayError | None = None
        #: All has been said.
        self.over = False
        self._run_id, self._model, self._name = run_id, model, run_id.encode()
        self._frames: Stream | None = None
        self._followers: set[Follower] = set()
        self._stirred: Deferred[None] | None = None

    async def send(self, events: list[Event]) -> None:
        """See ports.Owner."""
        if self._frames is None:
            # The run may speak before its submission returns; the very first event has the time.
            self.started_ms = next((event.started_at_ms for event in events if type(event) is RunStarted), self.started_ms)
        if self.answered is None:
            self.answered = next((event for event in events if type(event) is ModelAnswered), None)
        data = self.frames.deltas(events)
        if not self.journal.last and (data or self.answered is not None):
            data = self.frames.role() + data
        if data:
            self._append(data)
        while self._followers and all(follower.paused for follower in self._followers):
            self._stirred = Deferred(self._calm)
            await self._stirred

    @property
    def frames(self) -> Stream:
        """How it is written."""
        if self._frames is None:
            self._frames = Stream(self._run_id, self.started_ms // 1000, self._model)
        return self._frames

    def begin(self) -> None:
        """The model is silent, and the clients want a sign of life."""
        if not self.journal.last:
            self._append(self.frames.role())

    def finish(self, result: RunResult, include_usage: bool) -> None:
        """The turn is committed."""
        if not self.journal.last:
            self._append(self.frames.role())
        self._end(self.frames.end(result.finish_reason, result.usage if include_usage else None))

    def fail(self, error: GatewayError) -> None:
        """The run ended with an error. Where something was said, it is the last event; clients that have heard nothing get it as their answer."""
        self.error = error
        self._end(self.frames.error(error) if self.journal.last else b"")

    def _end(self, data: bytes) -> None:
        self.over = True
        self._append(data)

    def _append(self, data: bytes) -> None:
        before = self.journal.last
        events = numbered(data, self._name, before + 1)
        self.journal.append(events)
        data = b"".join(events)
        for follower in tuple(self._followers):
            follower.take(before, data)

    def follow(self, follower: Follower) -> None:
        """One more client; it gets what it has not had."""
        self._followers.add(follower)
        follower.go_on()
        self.stir()

    def leave(self, follower: Follower) -> None:
        """It is gone, or has got all."""
        self._followers.discard(follower)
        self.stir()

    def stir(self) -> None:
        """Something has changed for whoever waits for the clients."""
        stirred, self._stirred = self._stirred, None
        if stirred is not None:
            stirred.callback(None)

    def _calm(self, _: Deferred[None]) -> None:
        self._stirred = None


class Follower(PushedAnswer):
    """One client of a shared stream. `at`: the number of the last event that it has; 0: none. `done` fires with whether its answer was written.

    Where it was not, the run failed before it said anything, and `SharedStream.error` is the answer.
    """

    def __init__(self, request: GatewayRequest, shared: SharedStream, at: int, ticker: Ticker, headers: Callable[[GatewayRequest], None]) -> None:
        super().__init__(request, ticker, headers)
        self._shared, self._at = shared, at
        self.done: Deferred[bool] = Deferred()
        shared.follow(self)

    def take(self, before: int, data: bytes) -> None:
        """What comes after the event `before`; for a client that is behind it is in the journal, too."""
        if self._at == before and (self._resumed is None or self._shared.over):
            self._write(data, self._shared.journal.last)
            self._check_end()
        else:
            self.go_on()

    def go_on(self) -> None:
        """Read on in the journal, as far as the client takes it."""
        journal = self._shared.journal
        while self._request is not None and self._resumed is None and self._at < journal.last:
            more = journal.read(self._at, PIECE)
            if more is None:
                channel = self._request.channel
                self.abandon()
                channel.forceAbortClient()  # what it has not read is gone, and a clean end would pass for complete
                return
            self._write(*more)
        self._check_end()

    def _write(self, data: bytes, at: int) -> None:
        request = self._request
        if request is None:
            return
        self._at = at
        if data:
            if not self._started:
                self._head(request)
            self._last = self._ticker.seconds()
            request.write(data)

    def _head(self, request: GatewayRequest) -> None:
        self._started = True
        answered = self._shared.answered
        if answered is not None:
            request.answered(answered.provider, answered.model)
        self._headers(request)

    def _check_end(self) -> None:
        """Finish the answer when the client has all of it."""
        request, shared = self._request, self._shared
        if request is None or not shared.over or self._at < shared.journal.last:
            return
        written = shared.error is None or shared.journal.last > 0
        if written and not self._started:
            self._head(request)
        self.abandon()
        if written:
            request.finish()
        self.done.callback(written)

    def _begin(self, request: GatewayRequest) -> None:
        self._shared.begin()

    def abandon(self) -> None:
        """See PushedAnswer."""
        self._shared.leave(self)
        super().abandon()

    def resumeProducing(self) -> None:
        """It has caught up with what was written."""
        super().resumeProducing()
        self.go_on()
        self._shared.stir()


class SharedStreams:
    """The streams of keyed runs by run id: of live runs, and of those that ended a little while ago."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self.journals = clock, Journals()
        self._streams: dict[str, SharedStream] = {}
        #: Until when those of ended runs are kept, in this order.
        self._kept: dict[str, float] = {}
        self._timer: IDelayedCall | None = None

    def get(self, run_id: str) -> SharedStream | None:
        """The stream of a run, where it is kept."""
        return self._streams.get(run_id)

    def open(self, run_id: str, model: str) -> SharedStream:
        """The stream of a run that begins. `model` is what the client calls it."""
        self._streams[run_id] = shared = SharedStream(run_id, model, self.journals.open())
        return shared

    def ended(self, run_id: str) -> None:
        """All has been said in it; keep it for those that come back."""
        self._streams[run_id].journal.close()
        self._kept[run_id] = self._clock.seconds() + KEPT_SECONDS
        if len(self._kept) > KEPT_STREAMS:
            self.forget(next(iter(self._kept)))
        if self._timer is None:
            self._timer = self._clock.callLater(KEPT_SECONDS, self._expire)

    def forget(self, run_id: str) -> None:
        """Nobody can follow it any more."""
        self._kept.pop(run_id, None)
        self._streams.pop(run_id).journal.drop()

    def close(self) -> None:
        """Forget those of runs that have ended."""
        for run_id in tuple(self._kept):
            self.forget(run_id)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        now, self._timer = self._clock.seconds(), None
        for run_id in [run_id for run_id, until in self._kept.items() if until <= now]:
            self.forget(run_id)
        if self._kept:
            self._timer = self._clock.callLater(next(iter(self._kept.values())) - now, self._expire)
