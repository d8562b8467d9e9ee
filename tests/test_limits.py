"""The failure limiter, the byte budget and the connection counter."""

from __future__ import annotations

import os
import sys
import time

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.limits import Budget, ConnectionCounter, FailureLimiter, retry_after
from mayros.errors import ConfigError

FIXED = settings(derandomize=bool(os.environ.get("CI")), database=None, deadline=None, max_examples=60)


class FailureLimiterTests(SynchronousTestCase):
    """Three failures in 60 s lock for 300 s. (The worked table of both doors is in test_auth.)"""

    def setUp(self) -> None:
        self.limiter = FailureLimiter(3, 60, 300)

    def failures(self, key: str, *times: float) -> None:
        """Failures of a key at these times."""
        for now in times:
            self.limiter.failed(key, now)

    def test_the_third_failure_locks(self) -> None:
        """Before it the key is free; from it on the time left is told."""
        self.failures("a", 0, 1)
        self.assertEqual(self.limiter.check("a", 1), 0)
        self.failures("a", 2)
        self.assertEqual(self.limiter.check("a", 2), 300)
        self.assertEqual(self.limiter.check("a", 301.5), 0.5)
        self.assertEqual(self.limiter.check("b", 2), 0)

    def test_failures_leave_the_window(self) -> None:
        """A failure counts for 60 seconds, not longer."""
        self.failures("a", 0, 1, 60, 61)
        self.assertEqual(self.limiter.check("a", 61), 0)
        self.failures("a", 62)
        self.assertEqual(self.limiter.check("a", 62), 300)

    def test_success_forgets(self) -> None:
        """A right credential starts the count anew."""
        self.failures("a", 0, 1)
        self.limiter.succeeded("a")
        self.failures("a", 2, 3)
        self.assertEqual(self.limiter.check("a", 3), 0)

    def test_a_lockout_is_not_prolonged_and_ends_clean(self) -> None:
        """Trying on while locked changes nothing, and after it all three attempts are there again."""
        self.failures("a", 0, 0, 0, 100, 299)
        self.assertEqual(self.limiter.check("a", 299.5), 0.5)
        self.limiter.succeeded("a")
        self.assertEqual(self.limiter.check("a", 299.5), 0.5)
        self.failures("a", 300, 301)
        self.assertEqual(self.limiter.check("a", 301), 0)
        self.failures("a", 302)
        self.assertEqual(self.limiter.check("a", 302), 300)

    def test_values_below_one_are_refused(self) -> None:
        """Zero attempts would refuse everybody; the message names the key."""
        for values, key in (((0, 60, 300), "maxAttempts"), ((3, 0, 300), "windowMs"), ((3, 60, 0), "lockoutMs"), ((-1, 60, 300), "maxAttempts")):
            self.assertIn(f"gateway.auth.rateLimit.{key}", str(self.assertRaises(ConfigError, FailureLimiter, *values)))

    def test_retry_after_is_rounded_up(self) -> None:
        """Whole seconds, never zero while locked."""
        self.assertEqual([retry_after(left) for left in (0.001, 0.5, 1.0, 1.001, 299.8)], [1, 1, 1, 2, 300])

    def test_full_the_expired_go_first(self) -> None:
        """Room is made of what means nothing any more, though it failed later than a lock that still holds."""
        limiter = FailureLimiter(2, 10, 300, max_keys=3)
        for now in (0, 0):
            limiter.failed("locked", now)
        limiter.failed("old", 1)
        limiter.failed("older", 2)
        limiter.failed("new", 20)
        self.assertGreater(limiter.check("locked", 20), 0)
        self.assertEqual(len(limiter), 2)

    def test_full_then_the_least_recently_failed(self) -> None:
        """When nothing has expired, the key whose last failure is longest ago is forgotten, locked or not; nobody unseen is refused."""
        limiter = FailureLimiter(2, 60, 300, max_keys=3)
        for key, now in (("a", 0), ("b", 1), ("b", 1), ("c", 2), ("a", 3)):
            limiter.failed(key, now)
        self.assertGreater(limiter.check("a", 4), 0)
        limiter.failed("d", 4)
        self.assertEqual(limiter.check("b", 4), 0, "b failed longest ago and made room")
        self.assertGreater(limiter.check("a", 4), 0)
        limiter.failed("e", 5)
        limiter.failed("c", 6)
        self.assertEqual(limiter.check("c", 6), 0, "c was forgotten before its second failure")

    def test_many_attackers_cost_little(self) -> None:
        """200,000 addresses: bounded memory, a few microseconds a call, and a newcomer is served."""
        limiter = FailureLimiter(3, 60, 300)
        begin = time.perf_counter()
        for number in range(200_000):
            key = f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::/64"
            limiter.check(key, number / 1000)
            limiter.failed(key, number / 1000)
        spent = time.perf_counter() - begin
        self.assertEqual(len(limiter), 16_384)
        self.assertLess(spent, 10.0, "400,000 calls took far longer than 10 microseconds each")
        self.assertEqual(limiter.check("203.0.113.9", 200), 0)

    def test_a_flood_of_locked_keys_stays_bounded_too(self) -> None:
        """Each attacker locks itself: still at most max_keys are kept, and their memory is small."""
        limiter = FailureLimiter(3, 60, 300)
        for number in range(20_000):
            for _ in range(3):
                limiter.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1.0)
        self.assertEqual(len(limiter), 16_384)
        size = sum(sys.getsizeof(store) for store in (limiter._failures, limiter._locked))
        self.assertLess(size, 4 << 20)

    @given(
        st.integers(1, 4),
        st.integers(1, 20),
        st.integers(1, 20),
        st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 6), st.sampled_from("wr")), max_size=60),
    )
    @FIXED
    def test_it_behaves_like_its_definition(self, attempts: int, window: int, lockout: int, steps: list[tuple[str, int, str]]) -> None:
        """Against a plain list of times per key, whatever happens in whatever order."""
        limiter = FailureLimiter(attempts, window, lockout)
        failures: dict[str, list[int]] = {}
        until: dict[str, int] = {}
        now = 0
        for key, passed, credential in steps:
            now += passed
            left = max(0, until.get(key, 0) - now)
            self.assertEqual(limiter.check(key, now), left)
            if left:
                limiter.failed(key, now)
                self.assertEqual(limiter.check(key, now), left)
            elif credential == "r":
                limiter.succeeded(key)
                failures[key] = []
            else:
                limiter.failed(key, now)
                failures[key] = [then for then in failures.get(key, []) if now - then < window] + [now]
                if len(failures[key]) >= attempts:
                    until[key], failures[key] = now + lockout, []
                self.assertEqual(limiter.check(key, now), max(0, until.get(key, 0) - now))

    @given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 15)), max_size=80))
    @FIXED
    def test_it_never_keeps_more_than_it_may(self, keys: int, steps: list[tuple[int, int]]) -> None:
        """The bound holds after every call, and a key that has just failed is always remembered."""
        limiter = FailureLimiter(2, 10, 20, max_keys=keys)
        now = 0
        for key, passed in steps:
            now += passed
            limiter.failed(str(key), now)
            self.assertTrue(1 <= len(limiter) <= keys)


class BudgetTests(SynchronousTestCase):
    """Bytes shared by the whole process."""

    def test_take_and_give(self) -> None:
        """What does not fit is not taken at all; what comes back can be taken again."""
        budget = Budget(100)
        self.assertTrue(budget.take(60))
        self.assertFalse(budget.take(41))
        self.assertEqual(budget.free, 40)
        self.assertTrue(budget.take(40))
        self.assertTrue(budget.take(0))
        self.assertFalse(budget.take(1))
        budget.give(60)
        self.assertEqual(budget.free, 60)

    def test_wrong_counts_are_errors(self) -> None:
        """A budget that is given more than was taken would quietly grow."""
        budget = Budget(100)
        budget.take(10)
        for n in (11, -1):
            self.assertRaises(ValueError, budget.give, n)
        self.assertRaises(ValueError, budget.take, -1)
        self.assertEqual(budget.free, 90)


class ConnectionCounterTests(SynchronousTestCase):
    """Open connections, in all and of one client."""

    def test_a_client_at_its_limit_does_not_keep_others_out(self) -> None:
        """The cap is per key; connections without a key (local ones) count to the total only."""
        counter = ConnectionCounter(total=5, per_key=2)
        self.assertEqual([counter.enter("a") for _ in range(3)], [True, True, False])
        self.assertTrue(counter.enter("b"))
        self.assertEqual([counter.enter(None) for _ in range(3)], [True, True, False])
        self.assertEqual(counter.open, 5)
        self.assertFalse(counter.enter("c"))

    def test_leaving_makes_room(self) -> None:
        """For the key and in all, and nothing is kept of clients that are gone."""
        counter = ConnectionCounter(total=2, per_key=1)
        counter.enter("a")
        counter.enter(None)
        counter.leave("a")
        self.assertTrue(counter.enter("a"))
        counter.leave("a")
        counter.leave(None)
        self.assertEqual(counter.open, 0)
        for key in ("a", None):
            self.assertRaises(ValueError, counter.leave, key)
