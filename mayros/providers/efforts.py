"""How hard a model of OpenAI's kind is asked to think: which levels it knows, and what to ask when a server refuses one. Pure.

The levels are none, minimal, low, medium, high, xhigh. A level that a model is known not to have becomes the nearest that it has (of two the higher).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

LEVELS = ("none", "minimal", "low", "medium", "high", "xhigh")

_RANK = {level: rank for rank, level in enumerate(LEVELS)}
#: The first that matches. Models that are not here are taken to know every level: newer ones do.
_KNOWN = tuple(
    (re.compile(pattern), levels)
    for pattern, levels in (
        (r"o\d", LEVELS[2:5]),
        (r"gpt-oss", LEVELS[2:5]),
        (r"gpt-5-pro", LEVELS[4:5]),
        (r"gpt-5-codex", LEVELS[2:5]),
        (r"gpt-5(?!\.\d)", LEVELS[1:5]),
        (r"gpt-5\.1-codex-max", LEVELS[2:]),
        (r"gpt-5\.1", ("none", *LEVELS[2:5])),
        (r"gpt-5\.2-pro", LEVELS[3:]),
        (r"gpt-\d", ("none", *LEVELS[2:])),
    )
)
_QUOTED = re.compile(rb"""\\?["'`]([a-z]{3,8})\\?["'`]""")
_SWAP = "effort:"
#: What some servers call thinking as much as the model likes.
_DEFAULT = "default"


def fitting(level: str, levels: Iterable[str]) -> str:
    """The level of `levels` that is nearest."""
    rank = _RANK.get(level, 3)
    return min(levels, key=lambda known: (abs(_RANK[known] - rank), -_RANK[known]))


def effort(model_id: str, level: str, ours: bool, dropped: frozenset[str] = frozenset()) -> str | None:
    """What to ask of a model for a level; None: nothing. `ours`: the server is OpenAI's own, or passes on what OpenAI's knows.

    `dropped` may hold what `other_level` gave.
    """
    name = model_id.rpartition("/")[2]
    known = next((levels for pattern, levels in _KNOWN if pattern.match(name)), None)
    asked: str | None = level
    if known is not None:
        asked = fitting(level, known)
    elif not ours:  # low, medium and high are what servers have in common
        asked = None if level == "none" else fitting(level, LEVELS[2:5])
    for _ in LEVELS:
        other = next((mark[len(_SWAP) :].partition(":")[2] for mark in dropped if mark.startswith(f"{_SWAP}{asked}:")), None)
        if other is None:
            break
        asked = other
    return asked


def other_level(body: bytes, asked: str) -> str | None:
    """Where a refusal names the levels that the server has: a mark for `dropped`, by which the nearest of them is asked from then on."""
    if b"effort" not in body:
        return None
    named = {word.decode() for word in _QUOTED.findall(body)} & {*LEVELS, _DEFAULT} - {asked}
    if asked != "none" and named - {"none"}:
        named.discard("none")  # who is asked to think is not told not to, unless there is nothing else
    levels = named - {_DEFAULT}
    other = fitting(asked, levels) if levels else _DEFAULT if named else None
    return f"{_SWAP}{asked}:{other}" if other is not None else None
