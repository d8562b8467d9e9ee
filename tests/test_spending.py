"""What tokens cost, the sums of the day, and the limits on them. Examples by hand."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.config.schema import Cost
from mayros.core.cost import cost_nano, priced
from mayros.core.routing import Agent
from mayros.core.spending import DAY_MS, Spending, Spent, tokens_of, until_midnight
from mayros.core.usage_ports import day_of
from mayros.errors import BudgetExceeded
from mayros.events import Usage
from tests.helpers import settings

NOON = 20_000 * DAY_MS + DAY_MS // 2
#: Dollars per million tokens, as a vendor lists them.
PRICES = Cost(input=3, output=15, cache_read=0.3, cache_write=3.75)


def agent(own: dict[str, Any] | None = None, name: str = "main", **limits: Any) -> Agent:
    """An agent with limits of its own and general ones."""
    listed = [{"id": one, "limits": (own or {}) if one == name else {}} for one in ("main", "beta")]
    return settings({"limits": limits, "agents": {"list": listed}}).directory.agents[name]


class CostTests(SynchronousTestCase):
    """Counts are disjoint: input without what was cached, output with reasoning."""

    def test_by_hand(self) -> None:
        """1,000 x 3 + 500 x 15 + 10,000 x 0.3 + 2,000 x 3.75 dollars, by a million each: 0.003 + 0.0075 + 0.003 + 0.0075 = 0.021 dollars."""
        usage = Usage(input=1_000, output=500, cache_read=10_000, cache_write=2_000)
        self.assertEqual(cost_nano(usage, PRICES), 21_000_000)

    def test_reasoning_is_in_the_output(self) -> None:
        """400 of the 500 tokens of output are reasoning, and paid for once: 500 x 15 by a million = 0.0075 dollars."""
        self.assertEqual(cost_nano(Usage(output=500, reasoning=400), PRICES), 7_500_000)

    def test_cached_tokens_are_cheap(self) -> None:
        """A prompt of 12,345 tokens, of which 12,000 came from the cache: 345 x 3 + 12,000 x 0.3 = 1,035 + 3,600 by a million = 0.004635 dollars."""
        self.assertEqual(cost_nano(Usage(input=345, cache_read=12_000), PRICES), 4_635_000)

    def test_small_prices(self) -> None:
        """One token at 0.075 dollars a million is 75 nano."""
        self.assertEqual(cost_nano(Usage(input=1), Cost(input=0.075)), 75)

    def test_without_prices(self) -> None:
        """What has no price costs nothing, and stays as it is."""
        usage = Usage(input=5, output=6)
        self.assertIs(priced(usage, Cost()), usage)

    @given(st.lists(st.builds(Usage, *[st.integers(0, 10**7)] * 5)))
    def test_the_sum_costs_what_the_parts_cost(self, parts: list[Usage]) -> None:
        """Sums are exact, as far as the price of a token is a whole number of nano dollars."""
        whole = Usage()
        for part in parts:
            whole = whole.plus(priced(part, PRICES))
        self.assertEqual(whole.cost_nano, cost_nano(whole, PRICES))


class DayTests(SynchronousTestCase):
    """The sums of a day, and what is refused when one is reached."""

    def setUp(self) -> None:
        self.spending = Spending()

    def check(self, who: Agent, now_ms: int = NOON) -> str | None:
        """Why a run may not begin."""
        try:
            self.spending.check(who, now_ms)
        except BudgetExceeded as error:
            self.assertEqual((error.status, error.type, error.code, error.should_retry), (429, "rate_limit_error", "budget_exceeded", False))
            self.waits = error.retry_after
            return error.message
        return None

    def test_tokens_of_all_agents(self) -> None:
        """`limits.dayTokens` holds for all agents together."""
        self.spending.add("beta", 999, 0, NOON)
        self.assertIsNone(self.check(agent(dayTokens=1_000)))
        self.spending.add("main", 1, 0, NOON)
        why = "Today's limit of 1,000 tokens (limits.dayTokens) is reached. It begins anew at midnight, UTC."
        self.assertEqual(self.check(agent(dayTokens=1_000)), why)
        self.assertEqual(self.check(agent(name="beta", dayTokens=1_000)), why)
        self.assertEqual(self.waits, 43_200)

    def test_dollars_of_one_agent(self) -> None:
        """A limit of an agent's own counts its own runs."""
        limited = agent({"dayCost": 2.5})
        self.spending.add("beta", 1, 10 * 10**9, NOON)
        self.spending.add("main", 1, 2_499_999_999, NOON)
        self.assertIsNone(self.check(limited))
        self.spending.add("main", 0, 1, NOON)
        self.assertIn("limit of $2.50 for the agent main (agents.list[].limits.dayCost) is reached", str(self.check(limited)))
        self.assertIsNone(self.check(agent(name="beta")))

    def test_the_stricter_one_holds(self) -> None:
        """Whichever of both is reached first."""
        self.spending.add("main", 50, 0, NOON)
        self.assertIn("agents.list[].limits.dayTokens", str(self.check(agent({"dayTokens": 50}, dayTokens=60))))
        self.assertIn("(limits.dayTokens)", str(self.check(agent({"dayTokens": 60}, dayTokens=50))))

    def test_midnight(self) -> None:
        """The next day of UTC begins with nothing."""
        limited = agent(dayTokens=10)
        midnight = NOON + DAY_MS // 2
        self.spending.add("main", 10, 0, midnight - 1)
        self.assertIsNotNone(self.check(limited, midnight - 1))
        self.assertEqual(self.waits, 1)
        self.assertIsNone(self.check(limited, midnight))
        self.assertEqual(self.spending.today(midnight)[0], Spent())
        self.assertEqual([until_midnight(midnight - 1_001), until_midnight(midnight)], [2, 86_400])

    def test_after_a_restart(self) -> None:
        """What the store knows of today counts."""
        self.spending.load({"main": Spent(7, 5), "beta": Spent(3)}, NOON)
        self.assertEqual(self.spending.today(NOON), (Spent(10, 5), {"main": Spent(7, 5), "beta": Spent(3)}))
        self.assertIsNotNone(self.check(agent(dayTokens=10)))

    def test_no_limits(self) -> None:
        """Without limits on the day nothing is refused, whatever was used."""
        self.spending.add("main", 10**12, 10**15, NOON)
        self.assertIsNone(self.check(agent()))
        self.assertIsNone(self.check(agent(runTokens=1, runCost=0.01)))

    @given(st.lists(st.tuples(st.sampled_from(["main", "beta", "gamma"]), st.integers(0, 10**6), st.integers(0, 10**12))))
    def test_sums(self, used: list[tuple[str, int, int]]) -> None:
        """The whole is the sum of the agents, and of what was added."""
        spending = Spending()
        for agent_id, tokens, nano in used:
            spending.add(agent_id, tokens, nano, NOON)
        whole, agents = spending.today(NOON)
        self.assertEqual(whole, Spent(sum(row[1] for row in used), sum(row[2] for row in used)))
        self.assertEqual(whole, Spent(sum(one.tokens for one in agents.values()), sum(one.nano for one in agents.values())))

    def test_days(self) -> None:
        """Days are named as in UTC."""
        self.assertEqual([day_of(0), day_of(DAY_MS - 1), day_of(DAY_MS), day_of(NOON, 90)], ["1970-01-01", "1970-01-01", "1970-01-02", "2024-07-06"])


class CapTests(SynchronousTestCase):
    """How long an answer may be."""

    def cap(self, limited: Agent, used: Spent = Spent(), prompt: int = 100, cost: Cost = PRICES) -> int | None:  # noqa: B008
        found = Spending().cap(limited, used, prompt, cost, NOON)
        return None if found is None else found.tokens

    def test_tokens(self) -> None:
        """What is left after what was used and the prompt, of the smallest limit; less than nothing where the prompt is too much."""
        self.assertEqual(self.cap(agent(runTokens=1_000), Spent(300)), 600)
        self.assertEqual(self.cap(agent({"runTokens": 500}, runTokens=1_000, dayTokens=700)), 400)
        self.assertEqual(self.cap(agent(runTokens=50)), -50)
        self.assertIsNone(self.cap(agent()))

    def test_dollars(self) -> None:
        """One dollar less a prompt of 100 tokens from the cache (0.00003 dollars), at 15 dollars a million: 66,664 tokens."""
        self.assertEqual(self.cap(agent(runCost=1)), 66_664)
        self.assertEqual(self.cap(agent(runCost=1), cost=Cost(input=3, output=15)), 66_646)
        self.assertIsNone(self.cap(agent(runCost=1), cost=Cost()))

    def test_tokens_of_all_kinds(self) -> None:
        """Cached ones count too, reasoning is in the output."""
        self.assertEqual(tokens_of(Usage(1, 2, 4, 8, reasoning=2)), 15)
