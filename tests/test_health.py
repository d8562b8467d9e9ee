"""The numbers behind the method `health`."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mayros.ops.health import Health
from tests.helpers import settings


class HealthTests(SynchronousTestCase):
    """Health."""

    def test_counts_and_nothing_that_names_anybody(self) -> None:
        """Sessions are counted every minute; clients without any scope see this, so there are no keys and no paths in it."""
        clock, counts = Clock(), {"main": 2}
        health = Health(lambda: settings(state_dir="/srv/state"), lambda: succeed(dict(counts)), clock, lambda: int(clock.seconds() * 1000))
        health.start()
        payload = health.payload()
        self.assertEqual((payload["sessions"]["count"], payload["sessions"]["recent"]), (2, []))
        self.assertEqual([(agent["agentId"], agent["sessions"]["count"]) for agent in payload["agents"]], [("main", 2), ("beta", 0)])
        self.assertNotIn("/srv/state", str(payload))
        counts["beta"] = 3
        clock.advance(60)
        self.assertEqual((health.payload()["sessions"]["count"], health.payload()["ts"]), (5, 60_000))
        health.stop()
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_how_long_it_took(self) -> None:
        """Is not a matter of the date, which may be set back meanwhile."""
        clock, counting, wall = Clock(), Deferred[dict[str, int]](), [86_400_000, 5]
        health = Health(settings, lambda: counting, clock, lambda: wall[-1] if len(wall) == 1 else wall.pop(0))
        health.start()
        clock.advance(1.5)
        counting.callback({"main": 1})
        self.assertEqual((health.payload()["durationMs"], health.payload()["ts"]), (1_500, 5))
        health.stop()

    def test_a_store_that_cannot_be_read(self) -> None:
        """The last numbers stay, the failure is logged, and the next minute tries again."""
        clock, answers = Clock(), [succeed({"main": 1}), Deferred(), succeed({"main": 4})]
        answers[1].errback(ValueError("no"))
        health = Health(settings, lambda: answers.pop(0), clock, lambda: int(clock.seconds() * 1000))
        health.start()
        clock.advance(60)
        self.assertEqual(health.payload()["sessions"]["count"], 1)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        clock.advance(60)
        self.assertEqual(health.payload()["sessions"]["count"], 4)
        health.stop()
