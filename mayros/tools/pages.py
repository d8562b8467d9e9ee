"""What `read` shows of a file: some lines of a text, or an image. Pure. Imports core.ports, errors."""

from __future__ import annotations

import base64
from collections.abc import Callable

from mayros.core.tool_ports import ToolImage, ToolResult
from mayros.errors import ToolFailed

PAGE_LINES, PAGE_BYTES = 2_000, 50 * 1_024
#: Without a limit, a page grows with the model's window: to a fifth of it, at four bytes a token, and to so much at most.
MOST_PAGES, MOST_BYTES = 8, 512 * 1_024
WINDOW_PART, TOKEN_BYTES = 0.2, 4
#: Base64 of it has 5 MB, which is what vendors take.
MAX_IMAGE = 3_750_000
_BLOCK = 1 << 16


class Page:
    """Which lines are asked for: `limit` of them from line `offset` on, by a model with a window of `window_tokens` (0: not known).

    `part` gives a part of a text, without secrets: those that only its surroundings tell are hidden as well.
    """

    def __init__(self, offset: float, limit: float | None, window_tokens: int, part: Callable[[str, int, int], str]) -> None:
        self._part = part
        # JSON's 2.0 is an integer too.
        self._offset, self._limit = int(offset), None if limit is None else int(limit)
        self._most_lines, self._most_bytes = PAGE_LINES, PAGE_BYTES
        if limit is None:
            self._most_bytes = min(MOST_BYTES, max(PAGE_BYTES, int(window_tokens * WINDOW_PART * TOKEN_BYTES)))
            self._most_lines = PAGE_LINES * min(MOST_PAGES, max(1, self._most_bytes // PAGE_BYTES))

    def of(self, text: str) -> str:
        """Whole lines, and a note that says where to go on. Raises ToolFailed: the text ends before `offset`."""
        total = text.count("\n") + (text != "" and not text.endswith("\n"))
        if not total and self._offset == 1:
            return "[The file is empty.]"
        if self._offset > total:
            raise ToolFailed(f"it has {total} lines, so there is nothing from line {self._offset} on.")
        begin = _line_start(text, self._offset - 1)
        most = min(self._limit or self._most_lines, self._most_lines, total - self._offset + 1)
        taken, end = 0, begin
        size, cut = 0, ""
        # What is cut off at the end of this piece is too much anyway.
        for line in text[begin : begin + self._most_bytes + 2].split("\n")[:most]:
            data = line.encode("utf-8", "replace")
            size += len(data) + 1
            if size > self._most_bytes + 1:
                if not taken:
                    taken, end = 1, begin + len(data[: self._most_bytes].decode("utf-8", "ignore")) + 1
                    cut = f"Line {self._offset} is long: only its first {self._most_bytes} bytes are shown. "
                break
            taken, end = taken + 1, end + len(line) + 1
        last = self._offset + taken - 1
        shown = self._part(text, begin, end - 1).replace("\r\n", "\n")
        shown = shown if cut else shown.removesuffix("\r")
        if last == total and not cut:
            return shown
        more = f"Lines {self._offset} to {last} of {total} are shown; go on with offset={last + 1}." if last < total else ""
        return f"{shown}\n\n[{(cut + more).strip()}]"


def _line_start(text: str, line: int) -> int:
    """Where a line (from 0) begins. Nothing is made of the lines before it: there may be millions."""
    begin = 0
    while (here := text.count("\n", begin, begin + _BLOCK)) < line:
        begin, line = begin + _BLOCK, line - here
    for _ in range(line):
        begin = text.index("\n", begin) + 1
    return begin


def image(data: bytes, kind: str, taken: bool) -> ToolResult:
    """The image as a result; `taken`: whether the model takes images. Raises ToolFailed."""
    if not taken:
        raise ToolFailed(f"it is an image ({kind}, {len(data)} bytes), and the model takes no images.")
    if len(data) > MAX_IMAGE:
        raise ToolFailed(f"it is an image of {len(data)} bytes; at most {MAX_IMAGE} can be shown. Make a smaller one.")
    return ToolResult(f"[An image: {kind}, {len(data)} bytes.]", images=(ToolImage(kind, base64.b64encode(data).decode()),))
