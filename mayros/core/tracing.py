"""W3C trace context: which whole a request is a part of, as its client says in `traceparent`. Pure; imports nothing of ours.

The id of the whole is logged, and goes on to providers that are allowed to know it, each time with a new id of the part. Nothing is recorded here.
Source: https://www.w3.org/TR/trace-context/, version 00.
"""

from __future__ import annotations

import re
from secrets import token_hex

import msgspec

_FORM = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_NO_TRACE, _NO_PARENT = b"0" * 32, b"0" * 16


class Trace(msgspec.Struct, frozen=True):
    """`id`: 32 hexadecimal digits; `flags`: 2, of which bit 0 is "sampled" and bit 1 "the id is random"."""

    id: str
    flags: str

    def header(self) -> str:
        """The value of `traceparent` for one request further on, as a part of its own."""
        return f"00-{self.id}-{token_hex(8)}-{self.flags}"


def parse(value: bytes) -> Trace | None:
    """What a `traceparent` says; None where it says nothing, which is never an error of the request."""
    found = _FORM.fullmatch(value.strip(b" \t")) if len(value) <= 512 else None
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[5]) or found[2] == _NO_TRACE or found[3] == _NO_PARENT:
        return None
    # Of a later version the flags that are known today are kept.
    return Trace(found[2].decode(), f"{int(found[4], 16) & 3:02x}")
