"""The seam of what was used: sums over days, agents, principals, sessions and models. Days are of UTC, written `YYYY-MM-DD`."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from datetime import date
from functools import lru_cache
from typing import Literal, Protocol

import msgspec

from mayros.core.spending import DAY_MS
from mayros.events import Usage

Field = Literal["day", "agent", "principal", "session", "provider", "model"]

_EPOCH = date(1970, 1, 1).toordinal()


class UsageQuery(msgspec.Struct, frozen=True):
    """Days from `since` to `until`, both counted, of one session or of all (empty: of what has no name). At most `limit` sums, the dearest first.

    `principal`: of what this one asked for.
    """

    since: str
    until: str
    session: str | None = None
    limit: int = 5_000
    principal: str | None = None


class UsageSum(msgspec.Struct, frozen=True):
    """One sum. `names` are the values of the fields that were asked for, in their order; an empty session is all that have no name, or no longer.

    `turns` are the model's, `unpriced` those of them that cost nothing: mostly those of models without a price.
    """

    names: tuple[str, ...]
    runs: int
    turns: int
    unpriced: int
    usage: Usage


class UsageStore(Protocol):
    """What all recorded runs have used."""

    def sums(self, by: Sequence[Field], query: UsageQuery) -> Awaitable[Sequence[UsageSum]]:
        """One sum for each combination of the fields `by`; without fields the whole, if there is anything. Raises StorageUnavailable."""
        ...


@lru_cache(4)
def _day(number: int) -> str:
    return date.fromordinal(_EPOCH + number).isoformat()


def day_of(now_ms: int, back: int = 0) -> str:
    """The day of a time in epoch milliseconds, or the one so many days before."""
    return _day(now_ms // DAY_MS - back)
