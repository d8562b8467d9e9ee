"""Events for all: what runs say (feed.py), who is here, the tick, health, the shutdown. Each is built once, whoever gets it.

Each event has a number: on protocol 3 one count of the whole gateway, which goes on for those who do not get it; on protocol 4 each connection
has its own. Imports mayros.core, mayros.wire and mayros.ws.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Protocol

import msgspec
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from mayros.core.ports import Clock, Principal, Run, Runs
from mayros.core.reach import sees, space_of
from mayros.wire.frames import MAX_PAYLOAD, TICK_MS, event_head, frame_head, text_frame
from mayros.ws.feed import RunFeed
from mayros.ws.presence import Presence
from mayros.ws.streams import chat_final
from mayros.ws.toolfeed import ToolFeed, Verbose

if TYPE_CHECKING:
    from mayros.ws.context import Link

log = Logger()

#: Everything that clients may get to hear; `hello-ok` says so.
EVENTS = (
    *("connect.challenge", "agent", "chat", "presence", "tick", "shutdown", "health"),
    *("device.pair.requested", "device.pair.resolved", "exec.approval.requested", "exec.approval.resolved"),
)
#: Waiting bytes from which a client counts as slow: it misses what may be missed, and deltas are merged.
SLOW_BYTES = 262_144
READ = "operator.read"
_TICKS_PER_HEALTH = 2
_PER_CLIENT_SEQ = 4
#: Shortest time between two lists of who is here, for each thousand clients: all hear of each that leaves.
_PRESENCE_SECONDS = 1.0
#: Room for the head and the end of an event's frame.
_ENVELOPE = 1_024

_encode = msgspec.json.Encoder().encode


class Subscriber(Protocol):
    """A connection, as far as events go."""

    link: Link

    @property
    def protocol(self) -> int:
        """The version spoken; asked after `hello-ok`."""
        ...

    @property
    def principal(self) -> Principal:
        """Who it is; asked after `hello-ok`."""
        ...

    def may(self, scope: str) -> bool:
        """Whether it has a scope."""
        ...

    def end(self, code: int, reason: str) -> None: ...


class Peer:
    """What is kept for one connection: its own count on protocol 4, where each run's merged texts begin (assistant, thinking), and of
    which runs it has missed what was told in `chat`. `space`: the only name space of sessions that it hears of; None: of all."""

    __slots__ = ("behind", "link", "missed", "own_seq", "send", "seq", "space")

    def __init__(self, subscriber: Subscriber) -> None:
        self.link = subscriber.link
        self.send = subscriber.link.send_frame
        self.own_seq = subscriber.protocol >= _PER_CLIENT_SEQ
        self.space = subscriber.principal.space
        self.seq = 0
        self.behind: dict[str, tuple[int, int]] = {}
        self.missed: set[str] = set()

    @property
    def slow(self) -> bool:
        """Whether much waits for it."""
        return self.link.buffered > SLOW_BYTES


class Broadcaster:
    """Knows every connection. `health` gives the answer of the method `health`, `verbose` the verbose level of a session."""

    def __init__(
        self,
        runs: Runs,
        clock: Clock,
        now_ms: Callable[[], int],
        health: Callable[[], Mapping[str, object]],
        presence: Presence,
        verbose: Verbose | None = None,
    ) -> None:
        self._clock, self._now_ms, self._health, self._presence = clock, now_ms, health, presence
        self._tools = ToolFeed(runs, now_ms, verbose)
        self._feed = RunFeed(runs, clock, now_ms, self._send, self._tools)
        self._all: set[Subscriber] = set()
        self._peers: dict[Subscriber, Peer] = {}
        self._timer: IDelayedCall | None = None
        self._presence_timer: IDelayedCall | None = None
        self._presence_at = float("-inf")
        self._ticks = 0
        self._seq = 0
        #: Grows with each refresh of the health event.
        self.health_version = 1
        self.stopping = False

    # Who is there

    def opened(self, subscriber: Subscriber) -> None:
        """A socket is open; its client has not said hello yet."""
        self._all.add(subscriber)

    def admitted(self, subscriber: Subscriber) -> None:
        """The client has its `hello-ok`: it gets a health event of its own, and all others from now on."""
        if subscriber not in self._all:
            return  # its hello-ok was one message too many
        peer = self._peers[subscriber] = Peer(subscriber)
        if subscriber.may(READ):
            self._feed.joined(peer)
        if self._timer is None:
            self._timer = self._clock.callLater(TICK_MS / 1000, self._beat)
        head = event_head("health", _encode(self._health()))
        peer.send(text_frame(head, self._versions(), b"}"))

    def lost(self, subscriber: Subscriber) -> None:
        """The connection is gone, or going."""
        self._all.discard(subscriber)
        peer = self._peers.pop(subscriber, None)
        if peer is not None:
            self._feed.left(peer)
        if not self._peers:
            for timer in (self._timer, self._presence_timer):
                if timer is not None:
                    timer.cancel()
            self._timer = self._presence_timer = None

    def drained(self, subscriber: Subscriber) -> None:
        """The client has taken everything: it gets what was merged for it."""
        peer = self._peers.get(subscriber)
        if peer is not None and (peer.behind or peer.missed):
            self._feed.drained(peer)

    def anyone(self, scope: str, session: str) -> bool:
        """Whether a client is connected that has the scope and may know of the session."""
        return any(subscriber.may(scope) and sees(subscriber.principal, session) for subscriber in self._peers)

    def follow_tools(self, subscriber: Subscriber, run: Run) -> None:
        """The client, which has started the run and wants to hear of its tools, hears of them until the run ends."""
        peer = self._peers.get(subscriber)
        if peer is not None and subscriber.may(READ):
            self._tools.follow(peer, run)

    def presence_changed(self) -> None:
        """Somebody left: tell all who is here, soon, and not too often when many leave."""
        if self._presence_timer is None and self._peers and not self.stopping:
            pause = _PRESENCE_SECONDS * max(1.0, len(self._peers) / 1000)
            wait = max(0.0, self._presence_at + pause - self._clock.seconds())
            self._presence_timer = self._clock.callLater(wait, self._tell_presence)

    # What is told

    def publish(
        self, event: str, payload: object, scope: str | None = None, droppable: bool = False, state_version: bool = False, session: str | None = None
    ) -> None:
        """Tell all clients that have the scope (None: all). `payload` is anything that becomes JSON; a slow client misses what is droppable.

        `session`: the key of the one it is about, for those who may know of it. Empty: for those who may know of all.
        """
        self._publish(event, _encode(payload), scope, droppable, state_version, session)

    def chat_final(self, run_id: str, session_key: str, text: str | None, now_ms: int) -> None:
        """The answer of something that was no run of a model: a command's reply, an injected message. No text: no message."""
        self._publish("chat", chat_final(run_id, session_key, text, now_ms), READ, session=session_key)

    def aborting(self, run_id: str, reason: str) -> None:
        """Say before aborting a live run why: `rpc` (a method), `stop` (a word in the chat). Told as `stopReason` in its `chat` event."""
        self._feed.aborting(run_id, reason)

    @property
    def left_out(self) -> int:
        """How many deltas were left out for clients that were slow."""
        return self._feed.left_out

    def announce(self, reason: str, restart_expected_ms: int | None) -> None:
        """Tell everybody that the gateway stops; new sockets are refused from now on."""
        self.stopping = True
        self.publish("shutdown", {"reason": reason, "restartExpectedMs": restart_expected_ms})

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
        self.publish("tick", {"ts": self._now_ms()}, droppable=True)
        self._ticks += 1
        if self._ticks % _TICKS_PER_HEALTH == 0:
            self.health_version += 1
            with log.failuresHandled("while telling of the gateway's health"):
                self.publish("health", self._health(), state_version=True)

    def _tell_presence(self) -> None:
        self._presence_timer = None
        self._presence_at = self._clock.seconds()
        self.publish("presence", {"presence": self._presence.entries(self._now_ms())}, droppable=True, state_version=True, session="")

    def _versions(self) -> bytes:
        return b',"stateVersion":{"presence":%d,"health":%d}' % (self._presence.version, self.health_version)

    def _publish(
        self, event: str, payload: bytes, scope: str | None, droppable: bool = False, state_version: bool = False, session: str | None = None
    ) -> None:
        if scope == READ:
            peers: Collection[Peer] = self._feed.readers
        elif scope is not None:
            peers = [peer for subscriber, peer in self._peers.items() if subscriber.may(scope)]
        else:
            peers = tuple(self._peers.values())
        if session is not None:
            space = space_of(session)
            peers = [peer for peer in peers if peer.space in (None, space)]
        if droppable:
            peers = [peer for peer in peers if not peer.slow]
        if self._peers:
            self._send(event, payload, peers, self._versions() if state_version else b"")

    def _send(self, event: str, payload: bytes, peers: Collection[Peer], extra: bytes = b"") -> None:
        """To each of them, with the next number of all on protocol 3 and of its own on protocol 4. `peers` must not change meanwhile."""
        self._seq += 1
        if len(payload) > MAX_PAYLOAD - _ENVELOPE:
            log.error("an event {event} of {size} bytes is too large to send", event=event, size=len(payload))
            payload = _encode({"__mayros": {"truncated": True, "reason": "oversized", "bytes": len(payload)}})
        head = event_head(event, payload) + extra
        tail = b',"seq":%d}' % self._seq
        shared = text_frame(head, tail)
        # Everything before the number is the same for all whose numbers are of one length.
        begun: dict[int, bytes] = {}
        for peer in peers:
            if not peer.own_seq:
                peer.send(shared)
                continue
            peer.seq += 1
            tail = b',"seq":%d}' % peer.seq
            start = begun.get(len(tail))
            if start is None:
                start = begun[len(tail)] = frame_head(len(head) + len(tail)) + head
            peer.send(start + tail)
