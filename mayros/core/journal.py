"""What a stream has said, kept as it was sent, so that a client that lost its connection can go on where it was. No I/O; imports nothing of ours.

Events are numbered from 1 and stay encoded. A journal is bounded, and all journals together are: what is too much goes from the front, so that the
newest events can still be read. Implements `core.ports.Journal`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

#: The most that one journal holds, and all of them, in bytes.
JOURNAL_BYTES, JOURNALS_BYTES = 4 << 20, 64 << 20
JOURNAL_EVENTS = 20_000


class Journals:
    """The room that all journals share. Where it is not enough, those of streams that have ended go first, the oldest before the others."""

    def __init__(self, total: int = JOURNALS_BYTES, each: int = JOURNAL_BYTES, events: int = JOURNAL_EVENTS) -> None:
        self.total, self.each, self.events = total, each, events
        self.used = 0
        #: In the order in which their streams ended.
        self.ended: dict[MemoryJournal, None] = {}

    def open(self) -> MemoryJournal:
        """A journal for one more stream."""
        return MemoryJournal(self)

    def make_room(self) -> int:
        """Drop what has ended until all fit, if they can; by how many bytes they are still too many."""
        while self.used > self.total and self.ended:
            next(iter(self.ended)).drop()
        return max(0, self.used - self.total)


class MemoryJournal:
    """The events of one stream."""

    __slots__ = ("_base", "_bytes", "_ends", "_journals", "last")

    def __init__(self, journals: Journals) -> None:
        self._journals = journals
        self._bytes = bytearray()
        #: Where each event that is kept ends, counted from the start of the stream, and where the first one that is kept begins.
        self._ends = array("Q")
        self._base = 0
        #: The number of the newest event; 0 before the first.
        self.last = 0

    def append(self, events: Sequence[bytes]) -> None:
        """Keep more events, as far as there is room."""
        end, data, journals = self._base + len(self._bytes), b"".join(events), self._journals
        for event in events:
            end += len(event)
            self._ends.append(end)
        self._bytes += data
        self.last += len(events)
        journals.used += len(data)
        over = max(journals.make_room(), len(self._bytes) - journals.each)
        if over > 0 or len(self._ends) > journals.events:
            count = bisect_left(self._ends, self._base + over) + 1 if over > 0 else 0
            self._cut(max(count, len(self._ends) - journals.events))

    def _cut(self, count: int) -> None:
        """Let go of the oldest events."""
        count = min(count, len(self._ends))
        if count:
            size = self._ends[count - 1] - self._base
            del self._bytes[:size]
            del self._ends[:count]
            self._base += size
            self._journals.used -= size

    def holds(self, after: int) -> bool:
        """Whether all that came after an event can be read; `after` 0: everything."""
        return self.last - len(self._ends) <= after <= self.last

    def read(self, after: int, limit: int) -> tuple[bytes, int] | None:
        """What came after an event, whole events of at most `limit` bytes but at least one, and the number of the last of them.

        None where some of it is not kept any more.
        """
        if not self.holds(after):
            return None
        first = after - self.last + len(self._ends)
        if first == len(self._ends):
            return b"", after
        start = self._ends[first - 1] if first else self._base
        stop = max(bisect_right(self._ends, start + limit, first), first + 1)
        return bytes(memoryview(self._bytes)[start - self._base : self._ends[stop - 1] - self._base]), after + stop - first

    def close(self) -> None:
        """Nothing more will be appended."""
        self._journals.ended[self] = None

    def drop(self) -> None:
        """Let go of everything."""
        self._journals.ended.pop(self, None)
        self._cut(len(self._ends))
