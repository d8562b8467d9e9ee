"""The tools of a request as they are written: runs of one agent have the same ones, and they are most of what is sent. Pure; imports core.ports.

Those of a caller are his request's own and are not remembered; they come after the agent's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_

import msgspec

from mayros.core.ports import CallerTool, ToolSpec

_MOST = 32
_encode = msgspec.json.Encoder().encode


class WrittenTools:
    """Remembers the last lists of tools in one vendor's form; `form` makes the vendor's object of a tool."""

    def __init__(self, form: Callable[[ToolSpec], object]) -> None:
        self._form = form
        self._kept: dict[tuple[str, ...], tuple[Sequence[ToolSpec], bytes]] = {}

    def __call__(self, tools: Sequence[ToolSpec]) -> bytes:
        """The JSON array."""
        if tools and type(tools[-1]) is CallerTool:
            return _encode([self._form(spec) for spec in tools])
        names = tuple([spec.name for spec in tools])
        specs, written = self._kept.get(names, ((), b""))
        if not specs or not all(map(is_, specs, tools)):
            written = _encode([self._form(spec) for spec in tools])
            if len(self._kept) >= _MOST:
                self._kept.clear()
            self._kept[names] = (tools, written)
        return written
