"""Order and limits of runs: one lane per session, strictly serial, and a number of slots for all. The local implementations of two ports."""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred, fail, succeed

from mayros.core.ports import Lease
from mayros.errors import QueueFull


class LocalLanes:
    """`Lanes` in one process. At most `per_session` runs wait in a lane and `total` in all lanes."""

    def __init__(self, per_session: int, total: int) -> None:
        self._per_session, self._total = per_session, total
        #: A few wait in a lane at most, and nearly always nobody: an empty deque would take 600 bytes of each live session.
        self._lanes: dict[str, list[Deferred[Lease]]] = {}
        self._granting: set[str] = set()
        self._waiting = self._fence = 0

    def limit(self, per_session: int, total: int) -> None:
        """Hold these limits from now on; who waits already goes on waiting."""
        self._per_session, self._total = per_session, total

    @property
    def waiting(self) -> int:
        """How many runs wait for their lanes."""
        return self._waiting

    def _lease(self, session: str) -> Lease:
        self._fence += 1
        return Lease(session, self._fence)

    def acquire(self, session: str) -> Deferred[Lease]:
        """The lease, at once where the lane is free. Fails with QueueFull; cancelling leaves the queue."""
        lane = self._lanes.get(session)
        if lane is None:
            self._lanes[session] = []
            return succeed(self._lease(session))
        if len(lane) >= self._per_session or self._waiting >= self._total:
            return fail(QueueFull(f"{len(lane)} runs are waiting in this session and {self._waiting} in all: too many. Try again shortly."))

        def leave(waiter: Deferred[Lease]) -> None:
            lane.remove(waiter)
            self._waiting -= 1

        waiter: Deferred[Lease] = Deferred(leave)
        lane.append(waiter)
        self._waiting += 1
        return waiter

    def release(self, lease: Lease) -> None:
        """Give the lane to the next in line. One that is done at once gives it back from inside: then the loop outside goes on, not the stack."""
        session = lease.session
        if session in self._granting:
            self._granting.discard(session)
            return
        lane = self._lanes[session]
        while lane:
            self._waiting -= 1
            self._granting.add(session)
            lane.pop(0).callback(self._lease(session))
            if session in self._granting:
                self._granting.discard(session)
                return
        del self._lanes[session]


class LocalSlots:
    """`Slots` in one process: `total` runs think at the same time, the rest wait in order of arrival (bounded by the lanes' limits)."""

    def __init__(self, total: int, waiting: int) -> None:
        self._total = self._free = total
        self._limit, self._granting = waiting, False
        self._queue: deque[Deferred[None]] = deque()

    def limit(self, total: int, waiting: int) -> None:
        """Hold these limits from now on. Whoever has a slot keeps it; of more slots, those that wait get theirs at once."""
        self._free += total - self._total
        self._total, self._limit = total, waiting
        self._grant()

    @property
    def waiting(self) -> int:
        """How many runs wait for a slot."""
        return len(self._queue)

    def acquire(self) -> Deferred[None]:
        """A slot, at once where one is free. Fails with QueueFull; cancelling leaves the queue."""
        if self._free > 0 and not self._queue:
            self._free -= 1
            return succeed(None)
        if len(self._queue) >= self._limit:
            return fail(QueueFull(f"{len(self._queue)} runs are waiting for a free slot: too many. Try again shortly."))
        waiter: Deferred[None] = Deferred(self._queue.remove)
        self._queue.append(waiter)
        return waiter

    def release(self) -> None:
        """Give the slot to the next in line. One that is done at once gives it back from inside: then the loop outside goes on, not the stack."""
        self._free += 1
        self._grant()

    def _grant(self) -> None:
        if self._granting or not self._queue:
            return
        self._granting = True
        try:
            while self._free > 0 and self._queue:
                self._free -= 1
                self._queue.popleft().callback(None)
        finally:
            self._granting = False
