"""Clients take turns: what many send at once is read a little of each at a time, and the rest of the program runs in between. Imports core.ports.

One read of a socket brings up to 64 KB, which can be a thousand requests. Whoever sends so much waits for himself: only a short beginning is read at
once, his socket is paused, and the rest is read in rounds with those of others, a few milliseconds in each turn of the reactor.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from mayros.core.ports import Clock

#: Bytes of one share: some twenty requests.
SHARE = 2_048
#: Seconds of one turn of the reactor.
TURN_SECONDS = 0.005


class Reader(Protocol):
    """A connection that has something to read."""

    def read_share(self) -> bool:
        """Read one share; whether there is more."""
        ...


class Turns:
    """The readers that wait, in a ring."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ring: deque[Reader] = deque()
        self._called = False

    def join(self, reader: Reader) -> None:
        """The reader has something to read, and is not in the ring yet."""
        self._ring.append(reader)
        self._call()

    def _call(self) -> None:
        if not self._called:
            self._called = True
            self._clock.callLater(0, self._turn)

    def _turn(self) -> None:
        self._called = False
        ring, clock = self._ring, self._clock
        until = clock.seconds() + TURN_SECONDS
        while ring:
            reader = ring.popleft()
            if reader.read_share():
                ring.append(reader)
            if clock.seconds() >= until:
                break
        if ring:
            self._call()
