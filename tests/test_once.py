"""What is read once, for all who need it."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.once import Once
from mayros.errors import StorageUnavailable


class OnceTests(SynchronousTestCase):
    """Once, with a reading that a test ends."""

    def setUp(self) -> None:
        self.reading: list[Deferred[None]] = []
        self.once = Once(self.read)

    async def read(self) -> None:
        self.reading.append(Deferred())
        await self.reading[-1]

    def test_all_wait_for_one(self) -> None:
        """It is read when somebody asks, for all who ask meanwhile, and never again."""
        self.assertEqual(self.reading, [])
        waiting = [self.once.done(), self.once.done()]
        for one in waiting:
            self.assertNoResult(one)
        self.reading[0].callback(None)
        self.assertEqual([self.successResultOf(one) for one in (*waiting, self.once.done())], [None] * 3)
        self.assertEqual(len(self.reading), 1)

    def test_a_failure_is_told_to_all_and_tried_again(self) -> None:
        """By the next who asks."""
        waiting = [self.once.done(), self.once.done()]
        self.reading[0].errback(StorageUnavailable())
        for one in waiting:
            self.failureResultOf(one, StorageUnavailable)
        again = self.once.done()
        self.reading[1].callback(None)
        self.successResultOf(again)

    def test_whoever_leaves_only_stops_waiting(self) -> None:
        """The others get what they wait for."""
        first, second = self.once.done(), self.once.done()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.reading[0].callback(None)
        self.successResultOf(second)
