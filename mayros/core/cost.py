"""What tokens cost. Pure; in whole US dollars / 10^9 ("nano"), so that sums stay exact. Source of the prices: the catalogue, per million tokens."""

from __future__ import annotations

import msgspec

from mayros.config.schema import Cost
from mayros.events import Usage

#: A price of one dollar per million tokens is this many nano a token.
NANO = 1_000
FREE = Cost()


def cost_nano(usage: Usage, cost: Cost) -> int:
    """The cost of these disjoint counts at these prices."""
    dollars = usage.input * cost.input + usage.output * cost.output + usage.cache_read * cost.cache_read + usage.cache_write * cost.cache_write
    return round(dollars * NANO)


def priced(usage: Usage, cost: Cost) -> Usage:
    """The counts with what they cost."""
    return usage if cost == FREE else msgspec.structs.replace(usage, cost_nano=cost_nano(usage, cost))
