"""`usage.status`, `usage.cost` and `sessions.usage`: what clients are told of what runs have used."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mayros.events import Usage
from tests.helpers import FakeTool, chat, post
from tests.test_ws import READ, WRITE, World, agent_params, ask, tell

#: The clock of the tests begins in 1970.
TODAY, TOMORROW = "1970-01-01", "1970-01-02"
PRICES = {"models": {"providers": {"fake": {"models": [{"id": "one", "contextWindow": 8192, "cost": {"input": 3, "output": 15}}, {"id": "two"}]}}}}


class UsageCase(SynchronousTestCase):
    """A client that may read, and runs of another one."""

    def use(self, **limits: Any) -> None:
        self.world = World(self, {**PRICES, "limits": limits, "agents": {"list": [{"id": "main"}, {"id": "beta", "limits": {"dayCost": 0.5}}]}})
        self.session, self.link = self.world.connect(READ)
        self.writer, self.other = self.world.connect(WRITE)
        self.count = 0

    def setUp(self) -> None:
        self.use()

    def run_(self, usage: Usage, **params: Any) -> None:
        """A whole run."""
        self.count += 1
        tell(self.writer, "agent", agent_params(idempotencyKey=f"k-{self.count}", **params))
        self.world.provider.say("ok")
        self.world.provider.stop(usage=usage)
        self.world.clock.advance(0)

    def stateless(self, usage: Usage) -> None:
        """A whole HTTP request."""
        client = self.world.harness.dial(post(chat()))
        self.world.provider.say("ok")
        self.world.provider.stop(usage=usage)
        self.world.harness.settle(client)
        client.leave()

    def ask(self, method: str, **params: Any) -> Any:
        """The payload of an answer."""
        answer = ask(self.session, self.link, method, params)
        self.assertTrue(answer["ok"], answer)
        return answer["payload"]

    def refused(self, method: str, **params: Any) -> str:
        answer = ask(self.session, self.link, method, params)
        self.assertEqual((answer["ok"], answer["error"]["code"]), (False, "INVALID_REQUEST"))
        return str(answer["error"]["message"])


def sums(**values: Any) -> dict[str, Any]:
    """What is not named is 0."""
    names = ("runs", "turns", "input", "output", "cacheRead", "cacheWrite", "reasoning", "totalTokens", "totalCost", "missingCostEntries")
    return {**dict.fromkeys(names, 0), **values}


class CostTests(UsageCase):
    """`usage.cost`."""

    def test_shape(self) -> None:
        """Days with some use, oldest first, and the whole."""
        self.run_(Usage(100, 20, cache_read=50, reasoning=5))
        self.world.clock.advance(86_400)
        self.run_(Usage(1_000, 0))
        answer = self.ask("usage.cost")
        today = sums(runs=1, turns=1, input=100, output=20, cacheRead=50, reasoning=5, totalTokens=170, totalCost=0.0006)
        tomorrow = sums(runs=1, turns=1, input=1_000, totalTokens=1_000, totalCost=0.003)
        self.assertEqual(answer.pop("updatedAt"), self.world.now_ms())
        self.assertEqual(
            answer,
            {
                "days": 30,
                "startDate": "1969-12-04",
                "endDate": TOMORROW,
                "daily": [{"date": TODAY, **today}, {"date": TOMORROW, **tomorrow}],
                "totals": sums(
                    runs=2, turns=2, input=1_100, output=20, cacheRead=50, reasoning=5, totalTokens=1_170, totalCost=0.0036
                ),
            },
        )  # fmt: skip

    def test_days(self) -> None:
        """The last ones, or those between two dates."""
        self.run_(Usage(1))
        self.world.clock.advance(86_400)
        self.run_(Usage(2))

        def days(**params: Any) -> list[str]:
            return [row["date"] for row in self.ask("usage.cost", **params)["daily"]]

        self.assertEqual(days(days=1), [TOMORROW])
        self.assertEqual(days(startDate=TODAY, endDate=TODAY), [TODAY])
        self.assertEqual(days(startDate=TODAY), [TODAY, TOMORROW])
        self.assertEqual(days(endDate=TODAY, days=1, mode="specific", utcOffset="UTC+2"), [TODAY])

    def test_wrong_days(self) -> None:
        """What is no date, and what is no stretch of time, is refused by name."""
        for text in ("1970-1-1", "1970-02-30", "today", "", "١٩٧٠-01-01"):
            self.assertIn("at /startDate: must be a date like", self.refused("usage.cost", startDate=text))
        self.assertIn("startDate must not be after endDate", self.refused("usage.cost", startDate=TOMORROW, endDate=TODAY))
        self.assertIn("nor more than 3660 days before it", self.refused("usage.cost", startDate="1900-01-01"))
        self.assertIn("/days", self.refused("usage.cost", days=0))
        self.assertIn("/mode", self.refused("usage.cost", mode="local"))

    def test_nothing(self) -> None:
        """An empty store."""
        answer = self.ask("usage.cost", days=7)
        self.assertEqual((answer["daily"], answer["totals"]), ([], sums()))

    def test_models_without_a_price(self) -> None:
        """Their answers are counted, and said to be missing in the cost."""
        tell(self.writer, "agent", agent_params(idempotencyKey="x", agentId="beta", sessionKey="agent:beta:main"))
        self.world.provider.say("ok")
        self.world.provider.stop(usage=Usage())
        self.assertEqual(self.ask("usage.cost")["totals"], sums(runs=1, turns=1, missingCostEntries=1))

    def test_scope(self) -> None:
        """Whoever may read."""
        nobody, link = self.world.connect()
        for method in ("usage.cost", "usage.status", "sessions.usage"):
            self.assertIn("missing scope: operator.read", ask(nobody, link, method, {})["error"]["message"])


class SessionsTests(UsageCase):
    """`sessions.usage`."""

    def test_shape(self) -> None:
        """The dearest sessions with what is known of them, and the sums by what else there is."""
        self.run_(Usage(100, 20))
        self.run_(Usage(1_000), sessionKey="agent:beta:work")
        self.stateless(Usage(10))
        answer = self.ask("sessions.usage")
        cheap = sums(runs=1, turns=1, input=100, output=20, totalTokens=120, totalCost=0.0006)
        dear = sums(runs=1, turns=1, input=1_000, totalTokens=1_000, totalCost=0.003)
        nameless = sums(runs=1, turns=1, input=10, totalTokens=10, totalCost=0.00003)
        whole = sums(runs=3, turns=3, input=1_110, output=20, totalTokens=1_130, totalCost=0.00363)
        work, main = answer["sessions"]
        self.assertEqual((work["key"], work["agentId"], work["usage"]), ("agent:beta:work", "beta", dear))
        self.assertEqual((main["key"], main["sessionId"], main["usage"]), ("agent:main:main", "s-agent:main:main", cheap))
        self.assertEqual((answer["totals"], answer["startDate"], answer["endDate"]), (whole, "1969-12-03", TODAY))
        groups = answer["aggregates"]
        self.assertEqual(groups["byModel"], [{"provider": "fake", "model": "one", "count": 3, "totals": whole}])
        self.assertEqual(groups["byProvider"], [{"provider": "fake", "count": 3, "totals": whole}])
        self.assertEqual([row["agentId"] for row in groups["byAgent"]], ["beta", "main"])
        self.assertEqual([row["principal"] for row in groups["byPrincipal"]], ["owner"])
        self.assertEqual(groups["daily"], [{"date": TODAY, **whole}])
        self.assertEqual(groups["withoutSession"], nameless)

    def test_one_session(self) -> None:
        """With its models and days; its key may be spelled as clients like."""
        self.run_(Usage(100, 20))
        self.run_(Usage(1_000), sessionKey="agent:beta:work")
        answer = self.ask("sessions.usage", key="main")
        (one,) = answer["sessions"]
        self.assertEqual(one["key"], "agent:main:main")
        self.assertEqual([row["model"] for row in one["usage"]["modelUsage"]], ["one"])
        self.assertEqual([row["date"] for row in one["usage"]["dailyBreakdown"]], [TODAY])
        self.assertEqual(answer["totals"]["runs"], 1)
        self.assertEqual(self.ask("sessions.usage", key="nobody")["sessions"], [])
        self.assertIn("invalid sessions.usage params", self.refused("sessions.usage", key="agent:::"))

    def test_limit(self) -> None:
        """So many sessions; the sums are of all."""
        for name in "abc":
            self.run_(Usage(10), sessionKey=name)
        answer = self.ask("sessions.usage", limit=2)
        self.assertEqual((len(answer["sessions"]), answer["totals"]["runs"]), (2, 3))

    def test_a_label(self) -> None:
        """Sessions are known by their labels."""
        self.run_(Usage(1))
        admin, link = self.world.connect("operator.admin")
        ask(admin, link, "sessions.patch", {"key": "main", "label": "Mine"})
        self.assertEqual(self.ask("sessions.usage")["sessions"][0]["label"], "Mine")

    def test_history_has_no_usage(self) -> None:
        """`chat.history` shows messages without what they used and cost."""
        self.run_(Usage(100, 20))
        for message in self.ask("chat.history", sessionKey="main")["messages"]:
            self.assertFalse({"usage", "cost", "details"} & set(message), message)


class StatusTests(UsageCase):
    """`usage.status`."""

    def test_shape(self) -> None:
        """Each provider's today, and the limits on a day that are set, with what is used of them."""
        self.use(dayTokens=1_000, runTokens=500)
        self.run_(Usage(100, 20))
        self.run_(Usage(100), sessionKey="agent:beta:work")
        answer = self.ask("usage.status")
        self.assertEqual(answer["updatedAt"], self.world.now_ms())
        whole = sums(runs=2, turns=2, input=200, output=20, totalTokens=220, totalCost=0.0009)
        self.assertEqual(answer["providers"], [{"provider": "fake", "displayName": "fake", "windows": [], "today": whole}])
        self.assertEqual(
            answer["limits"],
            [
                {"path": "limits.dayTokens", "unit": "tokens", "limit": 1_000, "used": 220, "usedPercent": 22.0, "resetAt": 86_400_000},
                {
                    "path": "agents.list[].limits.dayCost", "agentId": "beta", "unit": "dollars", "limit": 0.5, "used": 0.0003, "usedPercent": 0.1,
                    "resetAt": 86_400_000,
                },
            ],
        )  # fmt: skip

    def test_a_run_that_is_refused(self) -> None:
        """The client of the WebSocket is told as that of HTTP is."""
        self.use(dayTokens=100)
        self.run_(Usage(100))
        tell(self.writer, "agent", agent_params(idempotencyKey="more"))
        (error,) = [frame["error"] for frame in self.other.take() if frame.get("id") and not frame.get("ok")]
        self.assertEqual(error["details"]["code"], "budget_exceeded")
        self.assertIn("Today's limit of 100 tokens", error["message"])

    def test_the_last_call(self) -> None:
        """An answer of `agent` tells the sum, and apart from it what the last model turn took."""
        self.world = World(self, PRICES, tools=[FakeTool(answer="found")])
        session, link = self.world.connect(WRITE)
        tell(session, "agent", agent_params())
        self.world.provider.call(("look", {}), usage=Usage(100, 20))
        self.world.provider.say("done")
        self.world.provider.stop(usage=Usage(30, 7, cache_read=120))
        about = link.take()[-1]["payload"]["result"]["meta"]["agentMeta"]
        self.assertEqual(about["usage"], {"input": 130, "output": 27, "cacheRead": 120, "cacheWrite": 0, "total": 277, "cost": {"total": 0.000795}})
        self.assertEqual(
            about["lastCallUsage"], {"input": 30, "output": 7, "cacheRead": 120, "cacheWrite": 0, "total": 157, "cost": {"total": 0.000195}}
        )
        self.assertEqual(about["promptTokens"], 150)
