"""Order and limits of runs."""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.lanes import LocalLanes, LocalSlots
from mayros.errors import QueueFull


class LaneTests(SynchronousTestCase):
    """LocalLanes."""

    def test_a_session_is_serial_in_order_of_arrival(self) -> None:
        """The second and third wait; each release lets in the next; fences grow."""
        lanes = LocalLanes(10, 10)
        first = self.successResultOf(lanes.acquire("a"))
        second, third = lanes.acquire("a"), lanes.acquire("a")
        self.assertNoResult(second)
        lanes.release(first)
        lease = self.successResultOf(second)
        self.assertNoResult(third)
        lanes.release(lease)
        last = self.successResultOf(third)
        self.assertLess(first.fence, lease.fence)
        self.assertLess(lease.fence, last.fence)
        lanes.release(last)

    def test_sessions_do_not_wait_for_each_other(self) -> None:
        """Another session's lane is free."""
        lanes = LocalLanes(10, 10)
        self.successResultOf(lanes.acquire("a"))
        self.successResultOf(lanes.acquire("b"))

    def test_a_full_lane_refuses(self) -> None:
        """More than `per_session` waiting is QueueFull with a Retry-After; room comes back when one leaves."""
        lanes = LocalLanes(1, 10)
        self.successResultOf(lanes.acquire("a"))
        waiting = lanes.acquire("a")
        self.assertEqual(self.failureResultOf(lanes.acquire("a"), QueueFull).value.retry_after, 1)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertNoResult(lanes.acquire("a"))

    def test_all_lanes_together_are_bounded(self) -> None:
        """`total` waiting runs, however many sessions."""
        lanes = LocalLanes(10, 2)
        for session in "abc":
            self.successResultOf(lanes.acquire(session))
        self.assertNoResult(lanes.acquire("a"))
        self.assertNoResult(lanes.acquire("b"))
        self.failureResultOf(lanes.acquire("c"), QueueFull)

    def test_other_limits(self) -> None:
        """Hold for who comes from then on."""
        lanes = LocalLanes(1, 10)
        self.successResultOf(lanes.acquire("a"))
        self.assertNoResult(lanes.acquire("a"))
        lanes.limit(2, 10)
        self.assertNoResult(lanes.acquire("a"))
        lanes.limit(1, 1)
        self.failureResultOf(lanes.acquire("a"), QueueFull)

    def test_an_idle_lane_leaves_nothing_behind(self) -> None:
        """Memory does not grow with sessions that are over."""
        lanes = LocalLanes(10, 10)
        for number in range(100):
            lanes.release(self.successResultOf(lanes.acquire(str(number))))
        self.assertEqual(lanes._lanes, {})


class SlotTests(SynchronousTestCase):
    """LocalSlots."""

    def test_runs_above_the_limit_wait_in_order(self) -> None:
        """A released slot goes to the first in line; one who left is passed over."""
        slots = LocalSlots(1, 10)
        self.successResultOf(slots.acquire())
        second, third = slots.acquire(), slots.acquire()
        second.cancel()
        self.failureResultOf(second, CancelledError)
        slots.release()
        self.successResultOf(third)

    def test_the_queue_is_bounded(self) -> None:
        """One more than `waiting` is refused."""
        slots = LocalSlots(1, 1)
        self.successResultOf(slots.acquire())
        self.assertNoResult(slots.acquire())
        self.failureResultOf(slots.acquire(), QueueFull)

    def test_more_slots(self) -> None:
        """Those that wait get them at once, in order; the queue may be longer."""
        slots = LocalSlots(1, 2)
        self.successResultOf(slots.acquire())
        waiting = [slots.acquire() for _ in range(2)]
        slots.limit(2, 3)
        self.successResultOf(waiting[0])
        self.assertNoResult(waiting[1])
        self.assertNoResult(slots.acquire())
        self.assertNoResult(slots.acquire())
        self.failureResultOf(slots.acquire(), QueueFull)

    def test_fewer_slots(self) -> None:
        """Nobody loses the one he has; a new one is given when enough have come back."""
        slots = LocalSlots(3, 10)
        for _ in range(3):
            self.successResultOf(slots.acquire())
        slots.limit(1, 10)
        waiting = slots.acquire()
        slots.release()
        slots.release()
        self.assertNoResult(waiting)
        slots.release()
        self.successResultOf(waiting)
