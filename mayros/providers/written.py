"""The tools of a request as they are written: runs of one agent have the same ones, and they are most of what is sent. Pure; imports core.

Those of a caller are his request's own and are not remembered; they come after the agent's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from mayros.core.ports import CallerTool, ToolSpec
from mayros.core.remembered import Remembered

_encode = msgspec.json.Encoder().encode


class WrittenTools:
    """Remembers the last lists of tools in one vendor's form; `form` makes the vendor's object of a tool."""

    def __init__(self, form: Callable[[ToolSpec], object]) -> None:
        self._form = form
        self._written = Remembered(self._write, 32)

    def __call__(self, tools: Sequence[ToolSpec]) -> bytes:
        """The JSON array; there is at least one."""
        return self._write(tools) if type(tools[-1]) is CallerTool else self._written(tools)

    def _write(self, tools: Sequence[ToolSpec]) -> bytes:
        return _encode([self._form(spec) for spec in tools])
