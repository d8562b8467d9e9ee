"""Patches in the form that OpenAI's models write: parsing one, and applying its hunks to a text. Pure. Imports tools.edits, errors.

    *** Begin Patch
    *** Add File: path            each line of the content after a `+`
    *** Delete File: path
    *** Update File: path
    *** Move to: path             optional
    @@ a line of the file         optional: the hunk is looked for from that line on
     kept
    -removed
    +added
    *** End of File               optional: the hunk stands at the end
    *** End Patch

A hunk has no line numbers: its kept and removed lines are looked for after the hunk before it. Where they are not found exactly, blanks at line ends,
then indentation, then the kind of quotes do not count. Kept lines stay as the file has them.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from mayros.errors import ToolFailed
from mayros.tools.edits import BOM, line_end, plain, without_return

MAX_PATCH = 1 << 20
MAX_FILES = 100
MAX_HUNKS = 1_000
_BEGIN, _END, _EOF = "*** Begin Patch", "*** End Patch", "*** End of File"
_ADD, _DELETE, _UPDATE, _MOVE = "*** Add File: ", "*** Delete File: ", "*** Update File: ", "*** Move to: "
#: A kept line that is empty.
_EMPTY = (" ", "")
#: Line numbers, as other kinds of diff have them, say nothing here.
_NUMBERS = re.compile(r"-\d+(,\d+)? \+\d+(,\d+)? @@.*")
_FORMS: tuple[Callable[[str], str], ...] = (without_return, str.rstrip, str.strip, lambda line: plain(line).strip())


class Hunk(msgspec.Struct, frozen=True):
    """One change: lines, each after a sign (blank, `-` or `+`), to be looked for after the lines that `headers` quote."""

    headers: tuple[str, ...]
    lines: tuple[tuple[str, str], ...]
    at_end: bool = False


class Change(msgspec.Struct, frozen=True):
    """What becomes of one file. `text` is the content of an added one."""

    action: Literal["add", "update", "delete"]
    path: str
    to: str | None = None
    text: str = ""
    hunks: tuple[Hunk, ...] = ()


def parse(patch: str) -> list[Change]:
    """The changes of a patch. Raises ToolFailed with the line that is wrong."""
    if len(patch) > MAX_PATCH:
        raise ToolFailed(f"The patch is too long: {len(patch)} characters, at most {MAX_PATCH}. Send several smaller ones.")
    lines = patch.replace("\r\n", "\n").strip().split("\n")
    if lines[0].rstrip() != _BEGIN or lines[-1].rstrip() != _END:
        raise ToolFailed(f"The first line of a patch must be {_BEGIN!r} and the last one {_END!r}.")
    reader = _Reader(lines[:-1])
    changes = []
    while (line := reader.peek()) is not None:
        if line.strip():
            changes.append(_change(reader))
        else:
            reader.take()
    if not changes:
        raise ToolFailed("The patch is empty: it names no file.")
    if len(changes) > MAX_FILES or sum(len(change.hunks) for change in changes) > MAX_HUNKS:
        raise ToolFailed(f"The patch is too long: at most {MAX_FILES} files and {MAX_HUNKS} hunks. Send several smaller ones.")
    return changes


class _Reader:
    """The lines of a patch and where the reading is."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines, self._at = lines, 1

    def peek(self) -> str | None:
        return self._lines[self._at] if self._at < len(self._lines) else None

    def take(self) -> str:
        self._at += 1
        return self._lines[self._at - 1]

    def take_if(self, prefix: str) -> str | None:
        """What follows the prefix, where the next line has it."""
        line = self.peek()
        return self.take()[len(prefix) :].strip() if line is not None and line.startswith(prefix) else None

    def wrong(self, what: str) -> ToolFailed:
        """An error about the line that comes next."""
        return ToolFailed(f"Line {self._at + 1} of the patch: {what}")


def _change(reader: _Reader) -> Change:
    if (path := reader.take_if(_DELETE)) is not None:
        return Change("delete", path)
    if (path := reader.take_if(_ADD)) is not None:
        text = []
        while (line := reader.peek()) is not None and line.startswith("+"):
            text.append(reader.take()[1:] + "\n")
        return Change("add", path, text="".join(text))
    if (path := reader.take_if(_UPDATE)) is None:
        raise reader.wrong(
            "a file begins with '*** Add File: ', '*** Update File: ' or '*** Delete File: ' and its path; lines of an added file with '+'."
        )
    to = reader.take_if(_MOVE)
    hunks: list[Hunk] = []
    while (hunk := _hunk(reader)) is not None:
        hunks.append(hunk)
    if not hunks and to is None:
        raise reader.wrong(f"{path!r} has no hunk.")
    return Change("update", path, to, hunks=tuple(hunks))


def _hunk(reader: _Reader) -> Hunk | None:
    headers: list[str] = []
    while (line := reader.peek()) is not None and (line.rstrip() == "@@" or line.startswith("@@ ")):
        header = reader.take()[3:]
        if header.strip() and not _NUMBERS.fullmatch(header):
            headers.append(header)
    lines: list[tuple[str, str]] = []
    while (line := reader.peek()) is not None and not line.startswith(("*** ", "@@")):
        if line and line[0] not in " +-":
            raise reader.wrong("a line of a hunk begins with a blank (kept), '-' (removed) or '+' (added).")
        # An empty line is a kept one whose blank got lost.
        lines.append((line[:1] or " ", reader.take()[1:]))
    at_end = line is not None and line.rstrip() == _EOF
    if at_end:
        reader.take()
    if not lines:
        if headers or at_end:
            raise reader.wrong("the hunk before it has no lines.")
        return None
    if not headers and not at_end and all(line == _EMPTY for line in lines):
        # Only space between two sections.
        return _hunk(reader)
    return Hunk(tuple(headers), tuple(lines), at_end)


def apply(text: str, hunks: Sequence[Hunk]) -> str:
    """The text with its hunks applied; BOM, line ends, and whether the last line has one, stay. Raises ToolFailed: lines were not found."""
    bom = BOM if text.startswith(BOM) else ""
    text = text[len(bom) :]
    back = line_end(text).removesuffix("\n")
    ended = not text or text.endswith("\n")
    lines = text.split("\n")
    if ended:
        lines.pop()
    else:
        lines[-1] += back
    file, done, made = _Lines(lines), 0, list[str]()
    for number, hunk in enumerate(hunks, 1):
        at, changes = _locate(file, done, hunk, number)
        made += lines[done:at]
        for sign, line in changes:
            if sign == "+":
                made.append(line + back)
                continue
            if sign == " ":
                made.append(lines[at])
            at += 1
        done = at
    made += lines[done:]
    whole = "\n".join(made)
    return bom + (whole + "\n" if ended and made else whole if ended else whole.removesuffix(back))


def _locate(file: _Lines, done: int, hunk: Hunk, number: int) -> tuple[int, Sequence[tuple[str, str]]]:
    """The line at which a hunk's lines begin, and these lines."""
    begin, after_header = done, None
    for header in hunk.headers:
        found = file.find([header], begin if after_header is None else after_header)
        if found is None:
            raise ToolFailed(f"Hunk {number}: the line after '@@' was not found below line {begin}: {header[:200]}")
        begin, after_header = found, found + 1
    changes = hunk.lines
    wanted = [line for sign, line in changes if sign != "+"]
    if not wanted:
        return (len(file.lines) if after_header is None or hunk.at_end else after_header), changes
    at = file.find(wanted, begin, hunk.at_end)
    if at is None and changes[-1] == _EMPTY:
        # The space between two sections of the patch, taken for lines of the file.
        end = next((end for end in range(len(changes), 0, -1) if changes[end - 1] != _EMPTY), 0)
        wanted = wanted[: len(wanted) - (len(changes) - end)]
        changes = changes[:end]
        at = file.find(wanted, begin, hunk.at_end) if wanted else None
    if at is None:
        shown = "\n".join(line[:200] for line in wanted[:8])
        raise ToolFailed(f"Hunk {number}: its lines were not found below line {begin}. Read the file again. Looked for:\n{shown}")
    return at, changes


class _Lines:
    """A text's lines, ready to be searched for several in a row."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = lines
        self._views: dict[int, tuple[str, array[int]]] = {}

    def find(self, wanted: Sequence[str], begin: int, at_end: bool = False) -> int | None:
        """The first line from `begin` on at which `wanted` stands, the strictest comparison first; with `at_end` preferably the last ones."""
        for form in range(len(_FORMS)):
            whole, starts = self._view(form)
            sought = "".join("\n" + _FORMS[form](line) for line in wanted) + "\n"
            last = len(self.lines) - len(wanted)
            if at_end and last >= begin and whole[starts[last] - 1 :] == sought:
                return last
            position = whole.find(sought, starts[begin] - 1)
            if position >= 0:
                return bisect_left(starts, position + 1)
        return None

    def _view(self, form: int) -> tuple[str, array[int]]:
        """The lines in a form, joined, with where each begins."""
        if form not in self._views:
            formed, starts, position = [_FORMS[form](line) for line in self.lines], array("l"), 1
            for line in formed:
                starts.append(position)
                position += len(line) + 1
            starts.append(position)
            self._views[form] = "\n".join(["", *formed, ""]) if formed else "\n", starts
        return self._views[form]
