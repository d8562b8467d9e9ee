"""Text that is cut inside a character: JSON may hold one half of a surrogate pair, and the other half comes later. Imports nothing of ours."""

from __future__ import annotations


def whole_characters(text: str) -> str:
    """Surrogate pairs as characters, surrogates without their other half as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def joined(half: str, text: str) -> tuple[str, str]:
    """`half` (of what came before) and `text`, in whole characters; and the half of a pair at the end, if there is one."""
    text, half = half + text, ""
    if text and "\ud800" <= text[-1] <= "\udbff":
        text, half = text[:-1], text[-1]
    return whole_characters(text), half
