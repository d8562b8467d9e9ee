"""A client's events, kept for a reader that may be slower than the gateway. No I/O. Imports nothing of ours."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred

MAX_EVENTS, MAX_BYTES = 1024, 8 << 20


class Event(msgspec.Struct, frozen=True):
    """An event of the gateway. `seq` counts all events of the connection, or of the gateway; None for those that are not counted."""

    name: str
    payload: Any
    seq: int | None = None


class Missed(msgspec.Struct, frozen=True):
    """Events are missing here: that many were dropped, or (None) an unknown number while the connection was lost."""

    count: int | None


class Inbox:
    """Iterate over it: `Event`s in their order, and `Missed` where some are missing. One reader.

    Holds at most `max_events` and `max_bytes` (of JSON; the newest event is always kept) and drops the oldest. When the connection has
    ended the iteration does too, with the error that ended it, if one did. `close` gives it back; leaving `async with` does that.
    """

    def __init__(self, closed: Callable[[Inbox], None], max_events: int = MAX_EVENTS, max_bytes: int = MAX_BYTES) -> None:
        self._closed, self._max_events, self._max_bytes = closed, max_events, max_bytes
        self._items: deque[tuple[Event | Missed, int]] = deque()
        self._bytes = self._dropped = 0
        self._gap = False
        self._waiter: Deferred[None] | None = None
        self._ended = False
        self._error: Exception | None = None

    def put(self, item: Event | Missed, size: int = 0) -> None:
        """Something came; `size` in bytes."""
        if self._ended:
            return
        self._items.append((item, size))
        self._bytes += size
        while len(self._items) > 1 and (len(self._items) > self._max_events or self._bytes > self._max_bytes):
            old, freed = self._items.popleft()
            self._bytes -= freed
            if isinstance(old, Missed):
                self._gap = True
            else:
                self._dropped += 1
        self._wake()

    def end(self, error: Exception | None) -> None:
        """Nothing more will come."""
        if not self._ended:
            self._ended, self._error = True, error
            self._wake()

    def close(self) -> None:
        """The reader wants no more."""
        self._items.clear()
        self.end(None)
        self._closed(self)

    def __aiter__(self) -> Inbox:
        return self

    async def __anext__(self) -> Event | Missed:
        while True:
            if self._dropped or self._gap:
                count = None if self._gap else self._dropped
                self._dropped, self._gap = 0, False
                return Missed(count)
            if self._items:
                item, size = self._items.popleft()
                self._bytes -= size
                return item
            if self._ended:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                raise StopAsyncIteration
            if self._waiter is not None:
                raise RuntimeError("an inbox has one reader")
            self._waiter = Deferred()
            try:
                await self._waiter
            finally:
                self._waiter = None

    async def __aenter__(self) -> Inbox:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.called:
            self._waiter.callback(None)
