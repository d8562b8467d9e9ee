"""Thinking and its place in an answer: what is kept of it, and how it comes back. Pure; imports
providers.reading.

Thinking is signed, and refused when it comes back changed or elsewhere. The state is `{"layout": [...]}`: a block of thinking as it came, an integer
for as many characters of text, null for a call, in the order of the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from mayros.providers.reading import STATE_LIMIT

THINKING = ("thinking", "redacted_thinking")

_encode = msgspec.json.Encoder().encode


class Thought:
    """A block of thinking; `data` is that of a redacted one. `half`: of a character whose other half is to come."""

    __slots__ = ("data", "half", "signature", "text")

    def __init__(self, data: str | None = None) -> None:
        self.data, self.half = data, ""
        self.text: list[str] = []
        self.signature: list[str] = []

    def block(self) -> dict[str, str]:
        """As it came."""
        if self.data is not None:
            return {"type": "redacted_thinking", "data": self.data}
        block = {"type": "thinking", "thinking": "".join(self.text)}
        return {**block, "signature": "".join(self.signature)} if self.signature else block


def state(marks: Iterable[tuple[int, Thought | None]], said: int) -> bytes | None:
    """The state of an answer with `said` characters of text; None where it is too large.

    `marks`: thoughts and calls (None) in their order, each with how many characters of text came before it.
    """
    layout: list[dict[str, str] | int | None] = []
    at = 0
    for before, thought in marks:
        if before > at:
            layout.append(before - at)
        layout.append(thought.block() if thought is not None else None)
        at = before
    if said > at:
        layout.append(said - at)
    written = _encode({"layout": layout})
    return written if len(written) <= STATE_LIMIT else None


def arranged(state: dict[str, object], text: str, calls: Sequence[dict[str, Any]]) -> list[dict[str, Any] | str] | None:
    """Thinking, pieces of text and calls in the order of the answer; None for a state that is none of ours.

    Where text or calls were changed since, their places are not known: thinking comes first, at least.
    """
    layout = state.get("layout")
    if not isinstance(layout, list):
        return None
    if sum(item for item in layout if type(item) is int) != len(text) or layout.count(None) != len(calls):
        return [*filter(_is_thought, layout), text, *calls]
    made: list[dict[str, Any] | str] = []
    at, rest = 0, iter(calls)
    for item in layout:
        if item is None:
            made.append(next(rest))
        elif type(item) is int:
            made.append(text[at : at + item])
            at += item
        elif _is_thought(item):
            made.append(item)
    return made


def _is_thought(item: object) -> bool:
    return isinstance(item, dict) and item.get("type") in THINKING
