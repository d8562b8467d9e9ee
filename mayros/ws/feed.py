"""What runs say, for whoever watches: who gets which event, and when. Imports mayros.core and mayros.ws.

    a run's batch --> the texts of its stream grow --> at the end of the reactor's turn one `agent` event
                                                   --> at most every 150 ms one `chat` event

Runs are watched only while somebody with `operator.read` is connected. Nobody slows a run: while much waits for a client, the deltas of a run
are merged for it (its text is cumulative anyway) until it has caught up, and `chat` deltas are left out. What tools do is told by toolfeed.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from mayros.core.ports import Clock, Run, Runs
from mayros.errors import RunTimeout
from mayros.events import Event, ModelFailed, ReasoningDelta, RunEnded, RunStarted, TextDelta, ToolFinished, ToolStarted, ToolUpdate
from mayros.ws.streams import RunStream, Track
from mayros.ws.toolfeed import ToolFeed

if TYPE_CHECKING:
    from mayros.ws.broadcast import Peer

log = Logger()

CHAT_SECONDS = 0.15


class RunFeed:
    """Watches the runs. `send` takes an event, its payload and who gets it; `tools` tells what tools do."""

    def __init__(
        self, runs: Runs, clock: Clock, now_ms: Callable[[], int], send: Callable[[str, bytes, Collection[Peer]], None], tools: ToolFeed
    ) -> None:
        self._runs, self._clock, self._now_ms, self._send, self._tools = runs, clock, now_ms, send, tools
        self._readers: dict[Peer, None] = {}
        self._streams: dict[str, RunStream] = {}
        self._stops: dict[str, str] = {}
        self._grown: list[RunStream] = []
        self._turn: IDelayedCall | None = None
        self._unwatch: Callable[[], None] | None = None
        #: How many of the readers hear of one name space only.
        self._narrowed = 0
        #: How many `chat` deltas were left out for clients that were slow.
        self.left_out = 0

    @property
    def readers(self) -> Collection[Peer]:
        """Who watches."""
        return tuple(self._readers)

    def _audience(self, stream: RunStream) -> Collection[Peer]:
        """Who hears of this run."""
        return tuple(peer for peer in self._readers if peer.space in (None, stream.space)) if self._narrowed else tuple(self._readers)

    def joined(self, peer: Peer) -> None:
        """Somebody watches from now on; of runs that are going on he has missed something."""
        peer.missed.update(run_id for run_id, stream in self._streams.items() if stream.told and peer.space in (None, stream.space))
        self._readers[peer] = None
        self._narrowed += peer.space is not None
        if self._unwatch is None:
            self._unwatch = self._runs.watch(self._heard)

    def left(self, peer: Peer) -> None:
        """He is gone."""
        if peer in self._readers:
            del self._readers[peer]
            self._narrowed -= peer.space is not None
        self._tools.left(peer)
        if not self._readers and self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
            for stream in self._streams.values():
                _cancel(stream)
            if self._turn is not None:
                self._turn.cancel()
                self._turn = None
            self._streams.clear()
            self._stops.clear()
            self._grown.clear()

    def aborting(self, run_id: str, reason: str) -> None:
        """The run is about to be aborted; the word for its `chat` event."""
        if self._unwatch is not None and self._runs.get(run_id) is not None:
            self._stops[run_id] = reason

    def drained(self, peer: Peer) -> None:
        """The client has taken everything: it gets what was merged for it."""
        for run_id in tuple(peer.behind):
            if peer.slow:
                return
            self._catch_up(peer, run_id)
        for run_id in tuple(peer.missed):
            if peer.slow:
                return
            peer.missed.discard(run_id)
            stream = self._streams.get(run_id)
            if stream is not None and stream.told:
                self._send("chat", stream.chat_delta(0, True, self._now_ms()), (peer,))

    def _heard(self, run: Run, events: list[Event]) -> None:
        with log.failuresHandled("while telling of run {run_id}", run_id=run.turn.run_id):
            self._hear(run, events)

    def _hear(self, run: Run, events: list[Event]) -> None:
        run_id = run.turn.run_id
        stream = self._streams.get(run_id)
        if stream is None:
            stream = self._streams[run_id] = RunStream(run_id, str(run.turn.session), _before(run, events))
        waits = bool(stream.grown)
        for event in events:
            kind = type(event)
            if kind is TextDelta:
                stream.add(stream.assistant, event.text)  # type: ignore[attr-defined]
            elif kind is ReasoningDelta:
                stream.add(stream.thinking, event.text)  # type: ignore[attr-defined]
            elif isinstance(event, RunStarted):
                self._settle(stream)
                self._send("agent", stream.started(event.started_at_ms, self._now_ms()), self._audience(stream))
            elif isinstance(event, ModelFailed):
                self._settle(stream)
                self._send("agent", stream.fallback(event, self._now_ms()), self._audience(stream))
            elif isinstance(event, RunEnded):
                self._settle(stream)
                self._end(stream, event, run.text)
            elif isinstance(event, ToolStarted | ToolUpdate | ToolFinished) and self._tools.followed(run_id):
                self._tell(stream)
                self._tools.tell(stream, str(run.turn.session), event)
        if stream.grown and not waits:
            self._grown.append(stream)
            if self._turn is None:
                self._turn = self._clock.callLater(0, self._turn_over)

    def _turn_over(self) -> None:
        self._turn = None
        grown, self._grown = self._grown, []
        for stream in grown:
            with log.failuresHandled("while telling of run {run_id}", run_id=stream.run_id):
                self._tell(stream)

    def _tell(self, stream: RunStream) -> None:
        """What texts have gained: now for those who keep up, later for the others."""
        run_id = stream.run_id
        grown, stream.grown = stream.grown, []
        for track in grown:
            lengths = stream.lengths()
            start = stream.grow(track)
            prompt = []
            for peer in self._audience(stream):
                if run_id in peer.behind or peer.slow:
                    peer.behind.setdefault(run_id, lengths)
                else:
                    prompt.append(peer)
            if prompt:
                self._send("agent", stream.delta(track, start, self._now_ms()), prompt)
        if stream.timer is None and stream.untold:
            wait = stream.told_at + CHAT_SECONDS - self._clock.seconds()
            if wait > 0:
                stream.timer = self._clock.callLater(wait, self._chat_due, stream)
            else:
                self._chat(stream)

    def _chat_due(self, stream: RunStream) -> None:
        stream.timer = None
        with log.failuresHandled("while telling of run {run_id}", run_id=stream.run_id):
            self._chat(stream)

    def _chat(self, stream: RunStream) -> None:
        run_id, start, now_ms = stream.run_id, stream.told, self._now_ms()
        stream.told, stream.told_at = len(stream.assistant.text), self._clock.seconds()
        prompt, again = [], []
        for peer in self._audience(stream):
            if peer.slow:
                peer.missed.add(run_id)
                self.left_out += 1
            elif run_id in peer.missed:
                peer.missed.discard(run_id)
                again.append(peer)
            else:
                prompt.append(peer)
        if prompt:
            self._send("chat", stream.chat_delta(start, False, now_ms), prompt)
        if again:
            self._send("chat", stream.chat_delta(0, True, now_ms), again)

    def _settle(self, stream: RunStream) -> None:
        """Before a run's next stage, all that it has said is told to all."""
        self._tell(stream)
        for peer in self.readers:
            self._catch_up(peer, stream.run_id)

    def _catch_up(self, peer: Peer, run_id: str) -> None:
        starts, stream = peer.behind.pop(run_id, None), self._streams.get(run_id)
        if starts is not None and stream is not None:
            grown = [(t, start) for t, start in zip((stream.assistant, stream.thinking), starts, strict=True) if len(t.text) > start]
            for track, start in sorted(grown, key=_by_seq):
                self._send("agent", stream.delta(track, start, self._now_ms()), (peer,))

    def _end(self, stream: RunStream, event: RunEnded, text: str) -> None:
        run_id, now_ms = stream.run_id, self._now_ms()
        _cancel(stream)
        if event.outcome == "error" and stream.untold:
            self._chat(stream)  # the end of a run that failed does not repeat its text
        # Whoever was told may have been given up, and with the last reader everything is gone.
        self._streams.pop(run_id, None)
        stopped = self._stops.pop(run_id, "rpc")
        reason = "timeout" if isinstance(event.error, RunTimeout) else stopped
        self._tools.ended(stream)
        self._send("agent", stream.ended(event, now_ms), self._audience(stream))
        self._send("chat", stream.chat_end(event, text, reason, now_ms), self._audience(stream))
        for peer in self._readers:
            peer.missed.discard(run_id)


def _cancel(stream: RunStream) -> None:
    if stream.timer is not None:
        stream.timer.cancel()
        stream.timer = None


def _by_seq(grown: tuple[Track, int]) -> int:
    return grown[0].seq


def _before(run: Run, events: list[Event]) -> str:
    """What the run had said before these events; not empty when watching began in the middle of it."""
    said, now = run.text, "".join(event.text for event in events if isinstance(event, TextDelta))
    return said.removesuffix(now)
