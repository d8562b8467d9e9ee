"""Journals: what a stream has said, within bounds."""

from __future__ import annotations

import os
import time

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.journal import Journals, MemoryJournal

settings.register_profile("journal", derandomize="CI" in os.environ, deadline=None, database=None)
SETTINGS = settings.get_profile("journal")
BATCHES = st.lists(st.lists(st.binary(min_size=1, max_size=9), max_size=5), max_size=20)


def everything(journal: MemoryJournal, after: int, limit: int) -> list[bytes]:
    """What is read after an event, piece by piece."""
    found: list[bytes] = []
    while after < journal.last:
        more = journal.read(after, limit)
        assert more is not None
        found.append(more[0])
        after = more[1]
    return found


class Reading(SynchronousTestCase):
    """One journal."""

    def test_by_number(self) -> None:
        """Events are numbered from 1; what comes after one is read whole, in pieces that end between events."""
        journal = Journals().open()
        self.assertEqual((journal.last, journal.holds(0), journal.read(0, 10)), (0, True, (b"", 0)))
        journal.append([b"one ", b"two "])
        journal.append([b"three"])
        self.assertEqual(journal.last, 3)
        self.assertEqual(journal.read(0, 100), (b"one two three", 3))
        self.assertEqual(journal.read(1, 100), (b"two three", 3))
        self.assertEqual(journal.read(0, 8), (b"one two ", 2))
        self.assertEqual(journal.read(0, 9), (b"one two ", 2))
        self.assertEqual(journal.read(2, 1), (b"three", 3))
        self.assertEqual(journal.read(3, 1), (b"", 3))
        self.assertEqual((journal.holds(4), journal.read(4, 1)), (False, None))

    @given(BATCHES, st.integers(1, 40), st.integers(1, 8), st.integers(1, 30))
    @settings(SETTINGS, max_examples=80)
    def test_what_is_kept_is_the_newest(self, batches: list[list[bytes]], each: int, events: int, limit: int) -> None:
        """Whatever comes: within the bounds, nothing but the oldest events is missing, and from any event that is kept all can be read."""
        journals = Journals(total=10_000, each=each, events=events)
        journal = journals.open()
        said: list[bytes] = []
        for batch in batches:
            journal.append(batch)
            said += batch
            self.assertEqual(journal.last, len(said))
            kept = [number for number in range(len(said) + 1) if journal.holds(number)]
            self.assertEqual(kept, list(range(kept[0], len(said) + 1)))
            rest = said[kept[0] :]
            self.assertTrue(len(rest) <= events and sum(map(len, rest)) <= each and journals.used == sum(map(len, rest)))
            self.assertFalse(kept[0] and len(rest) < events and sum(map(len, said[kept[0] - 1 :])) <= each, "more was dropped than had to be")
            for number in kept:
                self.assertEqual(b"".join(everything(journal, number, limit)), b"".join(said[number:]))

    def test_quick(self) -> None:
        """A stream of 10,000 events is read at its end in a few milliseconds, and following it costs the same at its end as at its start."""
        journal = Journals().open()
        for _ in range(10_000):
            journal.append([b"x" * 250])
        begun = time.perf_counter()
        self.assertEqual(len(b"".join(everything(journal, 0, 1 << 17))), 2_500_000)
        for number in range(9_000, 10_000):
            journal.read(number, 1 << 17)
        self.assertLess(time.perf_counter() - begun, 0.5)


class Together(SynchronousTestCase):
    """All journals share one room."""

    def test_ended_ones_go_first(self) -> None:
        """The oldest of the streams that have ended make room, then the one that grows loses its own beginning; others are not touched."""
        journals = Journals(total=10)
        first, second, live, growing = (journals.open() for _ in range(4))
        for journal in (first, second, live):
            journal.append([b"abc"])
        first.close()
        second.close()
        whole = lambda: [journal.holds(0) for journal in (first, second, live, growing)]  # noqa: E731
        growing.append([b"12"])
        self.assertEqual(whole(), [False, True, True, True])
        growing.append([b"34", b"5"])
        self.assertEqual(whole(), [False, False, True, True])
        growing.append([b"6", b"7"])
        self.assertEqual((whole(), journals.used), ([False, False, True, True], 10))
        growing.append([b"8"])
        self.assertEqual((whole(), growing.read(1, 99)), ([False, False, True, False], (b"345678", 6)))
        self.assertLessEqual(journals.used, 10)

    def test_forgotten(self) -> None:
        """What is forgotten takes no room."""
        journals = Journals()
        journal = journals.open()
        journal.append([b"abc"])
        journal.close()
        journal.drop()
        self.assertEqual((journals.used, journal.last, journal.holds(0), len(journals.ended)), (0, 1, False, 0))
