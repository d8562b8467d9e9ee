"""The seam of the log: a part of it, as clients read it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

import msgspec

from mayros.errors import Unavailable


class Tail(msgspec.Struct, frozen=True):
    """A part of the log file: whole `lines`, and the byte offset behind them (`cursor`).

    `reset`: the offset that was asked for was of no use, so the part begins elsewhere. `truncated`: there is more before its first line.
    """

    file: str
    cursor: int
    size: int
    lines: tuple[str, ...]
    truncated: bool
    reset: bool


class TailLog(Protocol):
    """The end of the log (`cursor` None), or what follows a byte offset in it: at most `limit` lines and `max_bytes` bytes."""

    def __call__(self, cursor: int | None, limit: int, max_bytes: int) -> Awaitable[Tail]: ...


async def no_log(cursor: int | None, limit: int, max_bytes: int) -> Tail:
    """Where none is kept."""
    raise Unavailable("There is no log file.")
