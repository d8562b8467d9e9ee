"""How many requests a caller may begin in a minute, and what it is told of its limits. Pure; time is passed in.

A bucket holds as many requests as a minute may have and fills up evenly. Tokens of a day are counted by core/spending.py and refused by the runs;
here they are only told of.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from mayros.core.limits import retry_after
from mayros.core.ports import Principal
from mayros.core.spending import Spending, until_midnight
from mayros.errors import RateLimited

_MINUTE = 60.0


class Quota(msgspec.Struct, frozen=True):
    """The limits of a caller as they stand: None where there is no such limit. Resets are seconds until all of it is there again."""

    requests: int | None = None
    requests_left: int = 0
    requests_reset: float = 0.0
    tokens: int | None = None
    tokens_left: int = 0
    tokens_reset: float = 0.0


class TooManyRequests(RateLimited):
    """Too many requests in this minute. Try again later."""

    def __init__(self, message: str, after: int, quota: Quota) -> None:
        super().__init__(message, retry_after=after)
        self.quota = quota


class Quotas:
    """The buckets of all callers that have a limit, by principal id. `now` is monotonic seconds, `now_ms` gives the wall clock."""

    def __init__(self, spending: Spending, now_ms: Callable[[], int]) -> None:
        self._spending, self._now_ms = spending, now_ms
        #: How many requests each had left, and when that was; of one that has not asked yet there is nothing, and its bucket is full.
        self._levels: dict[str, tuple[float, float]] = {}

    def take(self, principal: Principal, now: float) -> Quota | None:
        """Count a request that begins a run; the limits after that, None where there are none. Raises TooManyRequests, and counts nothing then."""
        limit = principal.rpm
        if limit is None:
            return self.look(principal, now)
        level = self._level(principal.id, limit, now)
        if level < 1:
            after = retry_after((1 - level) * _MINUTE / limit)
            message = f"This token may send {limit:,} requests a minute. Try again in {after} s."
            raise TooManyRequests(message, after, self._quota(principal, level))
        self._levels[principal.id] = (level - 1, now)
        return self._quota(principal, level - 1)

    def look(self, principal: Principal, now: float) -> Quota | None:
        """The limits as they stand; None where there are none."""
        if principal.rpm is None and principal.day_tokens is None:
            return None
        return self._quota(principal, 0.0 if principal.rpm is None else self._level(principal.id, principal.rpm, now))

    def _level(self, principal_id: str, limit: int, now: float) -> float:
        kept = self._levels.get(principal_id)
        return float(limit) if kept is None else min(float(limit), kept[0] + (now - kept[1]) * limit / _MINUTE)

    def _quota(self, principal: Principal, level: float) -> Quota:
        limit, day = principal.rpm, principal.day_tokens
        quota = Quota() if limit is None else Quota(limit, math.floor(level), (limit - level) * _MINUTE / limit)
        if day is None:
            return quota
        now_ms = self._now_ms()
        left = max(0, day - self._spending.tokens_by(principal.id, now_ms))
        return msgspec.structs.replace(quota, tokens=day, tokens_left=left, tokens_reset=float(until_midnight(now_ms)))


def span(seconds: float) -> str:
    """A time as OpenAI writes it in headers: `120ms`, `6s`, `1m30s`, `13h7m2s`; rounded up."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest}s"


def quota_headers(quota: Quota) -> list[tuple[str, str]]:
    """The headers that tell of limits."""
    found = []
    for name, limit, left, reset in (
        ("requests", quota.requests, quota.requests_left, quota.requests_reset),
        ("tokens", quota.tokens, quota.tokens_left, quota.tokens_reset),
    ):
        if limit is not None:
            found += [
                (f"x-ratelimit-limit-{name}", str(limit)),
                (f"x-ratelimit-remaining-{name}", str(left)),
                (f"x-ratelimit-reset-{name}", span(reset)),
            ]
    return found
