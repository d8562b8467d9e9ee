"""What messages of the original's models used. Pure; imports events and lines."""

from __future__ import annotations

import msgspec

from mayros.events import Usage
from mayros.storage.original.lines import UNREADABLE

_MOST_TOKENS, _NANO = 1 << 40, 1_000_000_000
#: (day, provider, model)
UsedBy = tuple[str, str, str]


class Sums:
    """What a conversation came to. `used`: runs, model turns and what they used, by day and model."""

    def __init__(self) -> None:
        self.messages = self.turns = self.left_out = 0
        self.usage = Usage()
        self.used: dict[UsedBy, tuple[int, int, Usage]] = {}
        self.first_ms: int | None = None


class _Cost(msgspec.Struct, gc=False):
    total: float = 0


class _Tokens(msgspec.Struct, gc=False, rename="camel"):
    input: float = 0
    output: float = 0
    cache_read: float = 0
    cache_write: float = 0
    cost: _Cost | None = None


_tokens = msgspec.json.Decoder(_Tokens).decode


def usage_of(raw: msgspec.Raw) -> Usage:
    """What a message used; nothing where that makes no sense."""
    try:
        found = _tokens(raw)
    except UNREADABLE:
        return Usage()
    dollars = min(max(0.0, found.cost.total), 1e6) if found.cost is not None else 0.0
    cached = _count(found.cache_read), _count(found.cache_write)
    return Usage(_count(found.input), _count(found.output), *cached, cost_nano=round(dollars * _NANO))


def _count(count: float) -> int:
    return min(max(0, int(count)), _MOST_TOKENS)
