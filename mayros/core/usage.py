"""Sums of what was used, as clients and the command line see them: JSON objects. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mayros.core.spending import DOLLAR, tokens_of
from mayros.core.usage_ports import UsageSum
from mayros.events import Usage


def totals(found: Iterable[UsageSum]) -> dict[str, object]:
    """The sum of sums. `missingCostEntries`: model turns that are counted and cost nothing, as their models have no price."""
    usage, runs, turns, unpriced = Usage(), 0, 0, 0
    for one in found:
        usage = usage.plus(one.usage)
        runs, turns, unpriced = runs + one.runs, turns + one.turns, unpriced + one.unpriced
    return {
        "runs": runs,
        "turns": turns,
        "input": usage.input,
        "output": usage.output,
        "cacheRead": usage.cache_read,
        "cacheWrite": usage.cache_write,
        "reasoning": usage.reasoning,
        "totalTokens": tokens_of(usage),
        "totalCost": dollars(usage.cost_nano),
        "missingCostEntries": unpriced,
    }


def daily(by_day: Iterable[UsageSum]) -> list[dict[str, object]]:
    """Sums by day, oldest first."""
    return [{"date": one.names[0], **totals((one,))} for one in sorted(by_day, key=lambda one: one.names)]


def models(by_model: Iterable[UsageSum]) -> list[dict[str, object]]:
    """Sums by provider and model; `count` is how often the model was asked."""
    return [{"provider": one.names[0], "model": one.names[1], "count": one.turns, "totals": totals((one,))} for one in by_model]


def providers(by_model: Sequence[UsageSum]) -> list[dict[str, object]]:
    """Sums by provider and model, added up by provider."""
    groups: dict[str, list[UsageSum]] = {}
    for one in by_model:
        groups.setdefault(one.names[0], []).append(one)
    return [{"provider": name, "count": sum(one.turns for one in group), "totals": totals(group)} for name, group in groups.items()]


def named(name: str, found: Iterable[UsageSum]) -> list[dict[str, object]]:
    """Sums by one field: `{<name>, totals}`."""
    return [{name: one.names[0], "totals": totals((one,))} for one in found]


def dollars(nano: int) -> float:
    """US dollars."""
    return nano / DOLLAR
