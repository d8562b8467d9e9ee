"""What the decoders of all vendors have in common: how much is read, JSON as lenient as can be, counts of tokens. Pure; imports nothing of ours."""

from __future__ import annotations

import json

import msgspec

TEXT_LIMIT = 8 << 20  # characters of one model turn: text, reasoning, signatures and arguments
STATE_LIMIT = 1 << 20  # bytes of what is kept with a turn for the next request (events.ProviderState)
_COUNT_LIMIT = 1 << 40  # tokens; more than this is no count


def lenient_json(data: bytes | msgspec.Raw) -> object:
    """JSON as lenient as can be: bytes that are not UTF-8 become U+FFFD, lone surrogates stay. None for what is no JSON."""
    try:
        return json.loads(bytes(data).decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError):
        return None


def count(number: object) -> int:
    """A count of tokens; 0 for what makes no sense as one."""
    return int(number) if type(number) in (int, float) and 0 <= number < _COUNT_LIMIT else 0  # type: ignore[call-overload, operator]
