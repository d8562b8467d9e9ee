"""`mayros usage`: from a gateway that is a coroutine, and from a store without one."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from mayros.cli.usage import BAR, NAMELESS, bar, money
from mayros.core.spending import DAY_MS
from mayros.core.usage_ports import day_of
from mayros.net.statedir import StateDir
from mayros.storage.engine import default_url
from mayros.storage.migrate import open_engine
from mayros.storage.statements import Statements, UsageRow
from tests.test_cli_gateway import GatewayCase


def sums(turns: int, tokens: int, cost: float = 0.0, missing: int = 0) -> dict[str, Any]:
    return {
        "runs": turns, "turns": turns, "input": tokens, "output": 0, "cacheRead": 0, "cacheWrite": 0, "reasoning": 0,
        "totalTokens": tokens, "totalCost": cost, "missingCostEntries": missing,
    }  # fmt: skip


def today() -> str:
    return day_of(time.time_ns() // 1_000_000)


class RemoteTests(GatewayCase):
    """What a gateway knows."""

    def setUp(self) -> None:
        super().setUp()
        self.gateway.final = {
            "sessions": [{"key": "agent:main:\x1b[31mwork", "label": "x", "agentId": "main", "usage": sums(2, 1_500, 0.02)}],
            "totals": sums(4, 12_345, 1.5, 1),
            "aggregates": {
                "daily": [{"date": "2026-01-02", **sums(1, 345, 0.5)}, {"date": "2026-01-05", **sums(3, 12_000, 1.0)}],
                "byModel": [{"provider": "v", "model": "m", "count": 4, "totals": sums(4, 12_345, 1.5)}],
                "byAgent": [{"agentId": "main", "totals": sums(4, 12_345, 1.5)}],
                "byPrincipal": [{"principal": "owner", "totals": sums(4, 12_345, 1.5)}],
                "withoutSession": sums(2, 10_845, 1.48),
            },
        }

    def table(self, *args: str) -> list[list[str]]:
        """The lines of the table, in words."""
        return [line.split() for line in self.good("usage", *args).stdout.splitlines()]

    def test_by_day(self) -> None:
        """Thirty days where nothing else is said; one question to the gateway."""
        lines = self.table()
        self.assertEqual(lines[0], ["day", "runs", "input", "cached", "output", "cost"])
        self.assertEqual(lines[1], ["2026-01-02", "1", "345", "0", "0", "$0.5000"])
        self.assertEqual(lines[3], ["total", "4", "12,345", "0", "0", "$1.50"])
        self.assertEqual(" ".join(lines[4]), "1 answers came from models without a price and are not in the cost.")
        since = day_of(time.time_ns() // 1_000_000, 29)
        self.assertEqual(self.asked(), ("sessions.usage", {"startDate": since, "limit": 50}))

    def test_by(self) -> None:
        """The other sums; nothing in a name is obeyed by the terminal."""
        self.assertEqual([line[0] for line in self.table("--by", "model")], ["model", "v/m", "total", "1"])
        self.assertEqual([line[0] for line in self.table("--by", "agent")], ["agent", "main", "total", "1"])
        self.assertEqual([line[0] for line in self.table("--by", "principal")], ["principal", "owner", "total", "1"])
        text = self.good("usage", "--by", "session").stdout
        self.assertIn("agent:main:[31mwork ", text)
        self.assertIn(NAMELESS, text)
        self.assertRefused(self.mayros("usage", "--by", "colour"), 2, "colour")

    def test_since(self) -> None:
        """A number of days, or a date."""
        self.good("usage", "--since", "2026-01-02")
        self.assertEqual(self.asked()[1]["startDate"], "2026-01-02")
        self.good("usage", "--since", "1d")
        self.assertEqual(self.asked()[1]["startDate"], today())
        for text in ("yesterday", "2026-02-30", "7", "-1d", ""):
            self.assertRefused(self.mayros("usage", "--since", text), 2, "--since")
        self.assertRefused(self.mayros("usage", "--since", "2990-01-01"), 2, "future")

    def test_json(self) -> None:
        """The rows as they came, and the whole."""
        found = json.loads(self.good("usage", "--by", "model", "--json").stdout)
        self.assertEqual(found["rows"], [{"provider": "v", "model": "m", "count": 4, **sums(4, 12_345, 1.5)}])
        self.assertEqual((found["by"], found["until"], found["totals"]["turns"]), ("model", today(), 4))

    def test_nothing(self) -> None:
        """And an answer of another shape is no reason to fall over."""
        for final in (
            {"sessions": [], "totals": sums(0, 0), "aggregates": {"daily": []}},
            [],
            {"aggregates": 5},
            {"aggregates": {"daily": [{"turns": "x"}]}},
        ):
            self.gateway.final = final
            self.assertEqual(self.good("usage", "--since", "2026-01-02").stdout, "Nothing was used since 2026-01-02.\n")


class LocalTests(GatewayCase):
    """--local."""

    def fill(self, *rows: UsageRow) -> None:
        engine = open_engine(default_url(str(self.state)))
        with engine.begin() as connection:
            connection.exec_driver_sql(Statements(engine.dialect).upsert_usage, list(rows))
        engine.dispose()

    def test_the_store(self) -> None:
        """What a gateway would tell, without one."""
        old = day_of(time.time_ns() // 1_000_000 - 40 * DAY_MS)
        self.fill(
            (today(), "main", "owner", "agent:main:main", "v", "m", 2, 3, 100, 20, 5, 0, 0, 7_000_000),
            (today(), "beta", "owner", "", "v", "n", 1, 1, 10, 0, 0, 0, 0, 0),
            (old, "main", "owner", "agent:main:main", "v", "m", 1, 1, 1, 0, 0, 0, 0, 0),
        )
        found = json.loads(self.good("usage", "--local", "--by", "session", "--json").stdout)
        self.assertEqual([(row["key"], row["turns"]) for row in found["rows"]], [("agent:main:main", 3), ("", 1)])
        self.assertEqual((found["totals"]["totalTokens"], found["totals"]["totalCost"], found["totals"]["missingCostEntries"]), (135, 0.007, 1))
        for by, names in (("agent", ["main", "beta"]), ("model", ["v/m", "v/n"]), ("principal", ["owner"]), ("day", [today()])):
            lines = self.good("usage", "--local", "--by", by).stdout.splitlines()
            self.assertEqual([line.split()[0] for line in lines[1 : 1 + len(names)]], names)
        self.assertEqual(self.gateway.calls, [])
        self.assertIn(old, self.good("usage", "--local", "--since", "60d").stdout)

    def test_no_store(self) -> None:
        """Nothing is made by looking."""
        self.assertIn("Nothing was used", self.good("usage", "--local").stdout)
        self.assertFalse(os.path.exists(self.state / "mayros.db"))

    def test_a_gateway_runs(self) -> None:
        """Then it is the one to ask."""
        self.fill((today(), "main", "owner", "", "v", "m", 1, 1, 1, 0, 0, 0, 0, 0))
        state = StateDir.open(str(self.state))
        state.lock()
        self.addCleanup(state.unlock)
        self.assertRefused(self.mayros("usage", "--local"), 1, "leave out --local")

    def test_elsewhere(self) -> None:
        """--local is this machine's."""
        self.assertRefused(self.mayros("usage", "--local", "--url", "ws://far.example"), 2, "--local")


class DrawingTests(GatewayCase):
    """Bars and money."""

    def test_bars(self) -> None:
        """As long as their share of the largest; what is small is visible, what is nothing is not."""
        self.assertEqual([len(bar(value, 8)) for value in (8, 4, 0.0001, 0)], [BAR, BAR // 2, 1, 0])
        self.assertEqual(bar(0, 0), "")

    def test_money(self) -> None:
        """Cents for dollars, more digits for cents."""
        self.assertEqual([money(value) for value in (0, 1234.5, 0.0123, 0.00001)], ["$0.00", "$1,234.50", "$0.0123", "<$0.0001"])
