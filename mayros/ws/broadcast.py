"""Events for all: what runs say, the tick, health, the shutdown. Each is built once, whoever gets it. Imports mayros.core and mayros.wire.

Runs are watched only while somebody with `operator.read` is connected. Nobody slows a run: while much waits for a client, the deltas of a run
are merged for it (its text is cumulative anyway) until it has caught up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from mayros.core.ports import Clock, Run, Runs
from mayros.errors import GatewayError
from mayros.events import Event, ReasoningDelta, RunEnded, RunStarted, TextDelta
from mayros.wire.frames import TICK_MS, event_head, text_frame

if TYPE_CHECKING:
    from mayros.ws.context import Link

log = Logger()

EVENTS = ("connect.challenge", "agent", "tick", "health", "shutdown")
#: Waiting bytes from which a client counts as slow: no ticks, merged deltas.
SLOW_BYTES = 262_144
_TICKS_PER_HEALTH = 2
_PER_CLIENT_SEQ = 4

_encode = msgspec.json.Encoder().encode


class Subscriber(Protocol):
    """A connection, as far as events go."""

    link: Link

    @property
    def protocol(self) -> int:
        """The version spoken; asked after `hello-ok`."""
        ...

    @property
    def reads(self) -> bool:
        """Whether it has `operator.read`."""
        ...

    def end(self, code: int, reason: str) -> None: ...


class _Track:
    """One growing text of a run, as the inside of a JSON string, and the number of its newest event."""

    def __init__(self, stream: bytes, before: str) -> None:
        self.stream, self.seq = stream, 0
        self.text = bytearray(_encode(before)[1:-1])


class _Stream:
    """A run that is being watched: its two texts and its own count of events."""

    def __init__(self, run: Run, before: str) -> None:
        self.seq, self.started_ms = 0, None
        self.assistant, self.thinking = _Track(b"assistant", before), _Track(b"thinking", "")
        self._head = b'{"runId":%b,"stream":"' % _encode(run.turn.run_id)
        self._tail = b',"sessionKey":%b,"seq":' % _encode(str(run.turn.session))

    started_ms: int | None

    def lifecycle(self, data: bytes, now_ms: int) -> bytes:
        """The payload of a lifecycle event."""
        self.seq += 1
        return self._payload(b"lifecycle", (data,), self.seq, now_ms)

    def delta(self, track: _Track, start: int, now_ms: int) -> bytes:
        """The payload for what a text has gained since it was `start` bytes long."""
        return self._payload(track.stream, (b'{"text":"', track.text, b'","delta":"', track.text[start:], b'"}'), track.seq, now_ms)

    def _payload(self, stream: bytes, data: Sequence[bytes | bytearray], seq: int, now_ms: int) -> bytes:
        return b"".join((self._head, stream, b'","data":', *data, self._tail, b'%d,"ts":%d}' % (seq, now_ms)))


class _Client:
    """What is kept for one connection: its own count on protocol 4, and where each run's merged texts begin (assistant, thinking)."""

    def __init__(self, subscriber: Subscriber) -> None:
        self.link = subscriber.link
        self.own_seq = subscriber.protocol >= _PER_CLIENT_SEQ
        self.seq = 0
        self.behind: dict[str, tuple[int, int]] = {}

    @property
    def slow(self) -> bool:
        return self.link.buffered > SLOW_BYTES


class Broadcaster:
    """Knows every connection. `health` gives the answer of the method `health`."""

    def __init__(self, runs: Runs, clock: Clock, now_ms: Callable[[], int], health: Callable[[], Mapping[str, object]]) -> None:
        self._runs, self._clock, self._now_ms, self._health = runs, clock, now_ms, health
        self._all: set[Subscriber] = set()
        self._clients: dict[Subscriber, _Client] = {}
        self._readers: dict[Subscriber, _Client] = {}
        self._streams: dict[str, _Stream] = {}
        self._unwatch: Callable[[], None] | None = None
        self._timer: IDelayedCall | None = None
        self._ticks = 0
        self._seq = 0
        #: Grows with each refresh of the health event.
        self.health_version = 1
        self.stopping = False

    def opened(self, subscriber: Subscriber) -> None:
        """A socket is open; its client has not said hello yet."""
        self._all.add(subscriber)

    def admitted(self, subscriber: Subscriber) -> None:
        """The client has its `hello-ok`: it gets a health event of its own, and all others from now on."""
        client = _Client(subscriber)
        self._clients[subscriber] = client
        if subscriber.reads:
            self._readers[subscriber] = client
            if self._unwatch is None:
                self._unwatch = self._runs.watch(self._watch)
        if self._timer is None:
            self._timer = self._clock.callLater(TICK_MS / 1000, self._beat)
        head = event_head("health", _encode(self._health()))
        client.link.send_frame(text_frame(head, self._health_state(), b"}"))

    def lost(self, subscriber: Subscriber) -> None:
        """The connection is gone, or going."""
        self._all.discard(subscriber)
        self._clients.pop(subscriber, None)
        self._readers.pop(subscriber, None)
        if not self._readers and self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
            self._streams.clear()
        if not self._clients and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def drained(self, subscriber: Subscriber) -> None:
        """The client has taken everything: it gets what was merged for it."""
        client = self._readers.get(subscriber)
        if client is not None:
            for run_id in tuple(client.behind):
                if client.slow:
                    break
                self._catch_up(client, run_id)

    def announce(self, reason: str, restart_expected_ms: int | None) -> None:
        """Tell everybody that the gateway stops; new sockets are refused from now on."""
        self.stopping = True
        self._send("shutdown", {"reason": reason, "restartExpectedMs": restart_expected_ms}, self._clients.values())

    def close_all(self, code: int = 1012, reason: str = "service restart") -> None:
        """Close every socket."""
        for subscriber in tuple(self._all):
            subscriber.end(code, reason)

    def shutdown(self, reason: str = "service restart", restart_expected_ms: int | None = None) -> None:
        """`announce`, then `close_all` with 1012."""
        self.announce(reason, restart_expected_ms)
        self.close_all()

    def _beat(self) -> None:
        self._timer = self._clock.callLater(TICK_MS / 1000, self._beat)
        self._send("tick", {"ts": self._now_ms()}, [client for client in self._clients.values() if not client.slow])
        self._ticks += 1
        if self._ticks % _TICKS_PER_HEALTH == 0:
            self.health_version += 1
            self._send("health", self._health(), self._clients.values(), self._health_state())

    def _health_state(self) -> bytes:
        return b',"stateVersion":{"presence":1,"health":%d}' % self.health_version

    def _send(self, event: str, payload: object, clients: Collection[_Client], extra: bytes = b"") -> None:
        self._send_built(event, _encode(payload), clients, extra)

    def _send_built(self, event: str, payload: bytes, clients: Collection[_Client], extra: bytes = b"") -> None:
        """To each of them, with the next number of all on protocol 3 and of its own on protocol 4."""
        self._seq += 1
        head = event_head(event, payload)
        shared: bytes | None = None
        for client in tuple(clients):
            if client.own_seq:
                client.seq += 1
                client.link.send_frame(text_frame(head, b'%b,"seq":%d}' % (extra, client.seq)))
            else:
                if shared is None:
                    shared = text_frame(head, b'%b,"seq":%d}' % (extra, self._seq))
                client.link.send_frame(shared)

    def _watch(self, run: Run, events: list[Event]) -> None:
        with log.failuresHandled("while telling of run {run_id}", run_id=run.turn.run_id):
            self._tell(run, events)

    def _tell(self, run: Run, events: list[Event]) -> None:
        run_id = run.turn.run_id
        stream = self._streams.get(run_id)
        if stream is None:
            stream = self._streams[run_id] = _Stream(run, _before(run, events))
        texts: list[str] = []
        track: _Track | None = None
        for event in events:
            if isinstance(event, TextDelta | ReasoningDelta):
                own = stream.assistant if type(event) is TextDelta else stream.thinking
                if own is not track and track is not None:
                    self._grow(run_id, stream, track, texts)
                    texts = []
                track = own
                texts.append(event.text)
            elif isinstance(event, RunStarted | RunEnded):
                if track is not None:
                    self._grow(run_id, stream, track, texts)
                    track, texts = None, []
                self._lifecycle(run_id, stream, event)
        if track is not None:
            self._grow(run_id, stream, track, texts)

    def _grow(self, run_id: str, stream: _Stream, track: _Track, texts: list[str]) -> None:
        """More text of one kind: now for those who keep up, later for the others."""
        lengths = (len(stream.assistant.text), len(stream.thinking.text))
        start = len(track.text)
        track.text += _encode("".join(texts))[1:-1]
        stream.seq += 1
        track.seq = stream.seq
        prompt = []
        for client in self._readers.values():
            if run_id in client.behind or client.slow:
                client.behind.setdefault(run_id, lengths)
            else:
                prompt.append(client)
        if prompt:
            self._send_built("agent", stream.delta(track, start, self._now_ms()), prompt)

    def _catch_up(self, client: _Client, run_id: str) -> None:
        starts, stream = client.behind.pop(run_id, None), self._streams.get(run_id)
        if starts is not None and stream is not None:
            grown = [(t, start) for t, start in zip((stream.assistant, stream.thinking), starts, strict=True) if len(t.text) > start]
            for track, start in sorted(grown, key=_by_seq):
                self._send_built("agent", stream.delta(track, start, self._now_ms()), (client,))

    def _lifecycle(self, run_id: str, stream: _Stream, event: RunStarted | RunEnded) -> None:
        for client in tuple(self._readers.values()):
            self._catch_up(client, run_id)
        if isinstance(event, RunStarted):
            stream.started_ms = event.started_at_ms
            data: dict[str, object] = {"phase": "start", "startedAt": event.started_at_ms}
        else:
            data = _ended(event, stream.started_ms)
            # Catching up may have closed the last reader, and then nothing is left.
            self._streams.pop(run_id, None)
        self._send_built("agent", stream.lifecycle(_encode(data), self._now_ms()), self._readers.values())


def _by_seq(grown: tuple[_Track, int]) -> int:
    return grown[0].seq


def _before(run: Run, events: list[Event]) -> str:
    """What the run had said before these events; not empty when watching began in the middle of it."""
    said, now = run.text, "".join(event.text for event in events if isinstance(event, TextDelta))
    return said.removesuffix(now)


def _ended(event: RunEnded, started_ms: int | None) -> dict[str, object]:
    data: dict[str, object] = {"phase": "error" if event.outcome == "error" else "end", "outcome": event.outcome, "endedAt": event.ended_at_ms}
    if started_ms is not None:
        data["startedAt"] = started_ms
    if event.outcome in ("aborted", "timeout"):
        data["aborted"] = True
    if event.error is not None:
        data["error"] = event.error.message if isinstance(event.error, GatewayError) else GatewayError().message
    return data
