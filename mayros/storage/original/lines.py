"""A transcript of the original: JSON lines that form a tree, of which the branch that ends in the last line is the conversation.

The first line is a header, every other one an entry with `id` and `parentId`; entries of the first version have neither and follow one another. Files
come from outside: lines are read one at a time and bounded, one that cannot be read is told and passed over, and whatever followed it follows what
was before it. A line that ends in its middle at the end of the file is what a gateway that died leaves behind.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import msgspec

#: Bytes of one line and of one file, entries and lines of one file, characters of an id.
MOST_LINE, MOST_BYTES, MOST_ENTRIES, MOST_LINES, MOST_ID = 64 << 20, 4 << 30, 250_000, 1_000_000, 64
#: Bytes of a line that is mended: that makes all of it Python's, several times as large.
MOST_MENDED = 16 << 20
#: Problems of one file that are told one by one.
TOLD = 100
#: What reading JSON from outside may end with.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError)
#: The entries that take part in a conversation; all others are passed over.
KINDS = ("", "message", "compaction", "branch_summary", "custom_message")
_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}


class Unfit(Exception):
    """Why a session is not taken."""


class Problem(NamedTuple):
    """A line, counted from 1, that was passed over."""

    line: int
    reason: str


class _Head(msgspec.Struct, gc=False):
    """What makes the tree."""

    type: str
    id: str | None = None
    parentId: str | msgspec.UnsetType | None = msgspec.UNSET
    timestamp: msgspec.Raw = msgspec.Raw(b"null")


class _Cut(msgspec.Struct, gc=False, rename="camel"):
    """What a compaction kept; the index counts lines, and is of the first version."""

    first_kept_entry_id: str | None = None
    first_kept_entry_index: int | None = None


_head = msgspec.json.Decoder(_Head).decode
_cut = msgspec.json.Decoder(_Cut).decode


def mended(data: bytes) -> bytes:
    """The line with `?` for halves of characters, which JavaScript writes where it has cut a text. Raises one of UNREADABLE."""
    if len(data) > MOST_MENDED or b"\\ud" not in data.lower():
        raise ValueError("no JSON")
    return json.dumps(json.loads(data), ensure_ascii=False).encode("utf-8", "replace")


class Transcript:
    """One file, open for reading. `problems` are at most TOLD of the `bad` lines there are. Raises Unfit where it is too large."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.problems: list[Problem] = []
        self.bad = 0
        #: Of the header: when the session began, as it is written there.
        self.began = msgspec.Raw(b"null")
        self._offsets, self._lines, self._parents, self._kinds = array("q"), array("i"), array("i"), bytearray()
        self._ids: dict[str, int] = {}
        self._index()

    def _index(self) -> None:
        for number, offset, data, ended in self._walk():
            try:
                if data is None:
                    raise ValueError("it is too long")
                try:
                    head = _head(data)
                except UNREADABLE:
                    head = _head(mended(data))
            except UNREADABLE as error:
                if ended or data is None:
                    self.told(number, "it is too long" if data is None else _words(error))
                continue
            if head.type == "session":
                self.began = head.timestamp if not self._offsets else self.began
                continue
            if len(self._offsets) == MOST_ENTRIES:
                raise Unfit(f"its transcript has more than {MOST_ENTRIES:,} entries")
            own = len(self._offsets)
            # A parent stands before its child, so there are no circles.
            parent = -1 if head.parentId is None else self._ids.get(head.parentId, own - 1) if isinstance(head.parentId, str) else own - 1
            self._offsets.append(offset)
            self._lines.append(number)
            self._parents.append(parent)
            self._kinds.append(_NUMBERS.get(head.type, 0))
            if head.id is not None and len(head.id) <= MOST_ID:
                self._ids[head.id] = own

    def _walk(self) -> Iterator[tuple[int, int, bytes | None, bool]]:
        """Each line that is not blank: its number, where it begins, its bytes (None: too long), and whether it has its end."""
        number = offset = 0
        while data := self._file.readline(MOST_LINE + 1):
            number += 1
            begin, offset, kept, ended = offset, offset + len(data), len(data) <= MOST_LINE, data.endswith(b"\n")
            while not kept and not ended and (rest := self._file.readline(1 << 20)):
                offset, ended = offset + len(rest), rest.endswith(b"\n")
            if offset > MOST_BYTES:
                raise Unfit(f"its transcript is larger than {MOST_BYTES >> 30} GB")
            if number > MOST_LINES:
                raise Unfit(f"its transcript has more than {MOST_LINES:,} lines")
            if data.strip():
                yield number, begin, data if kept else None, ended

    def told(self, line: int, reason: str) -> None:
        """Keep that a line is passed over."""
        self.bad += 1
        if len(self.problems) < TOLD:
            self.problems.append(Problem(line, reason))

    def branch(self) -> list[int]:
        """The entries from the first to the last of the conversation, by their places in the file."""
        found, at = [], len(self._offsets) - 1
        while at >= 0:
            found.append(at)
            at = self._parents[at]
        return found[::-1]

    def divided(self) -> tuple[list[int], int | None, list[int]]:
        """The branch, divided by its last compaction: what is only in its summary, the compaction (None: there is none), what stays as it is."""
        branch = self.branch()
        compaction = _NUMBERS["compaction"]
        at = next((place for place in range(len(branch) - 1, -1, -1) if self._kinds[branch[place]] == compaction), None)
        if at is None:
            return [], None, branch
        try:
            cut = _cut(self.read(branch[at]))
        except UNREADABLE:
            cut = _Cut()
        kept = at
        first = self._ids.get(cut.first_kept_entry_id or "", None if cut.first_kept_entry_index is None else cut.first_kept_entry_index - 1)
        if first is not None and first >= 0:
            # The places of a branch grow, so what was kept is found by halving; of another branch nothing was.
            place = bisect_left(branch, first, 0, at)
            kept = place if place < at and branch[place] == first else at
        return branch[:kept], branch[at], branch[kept:at] + branch[at + 1 :]

    def kind(self, place: int) -> str:
        """The type of an entry; empty for one that takes no part."""
        return KINDS[self._kinds[place]]

    def line(self, place: int) -> int:
        """The number of an entry's line."""
        return self._lines[place]

    def read(self, place: int) -> bytes:
        """The line of an entry."""
        self._file.seek(self._offsets[place])
        return self._file.readline(MOST_LINE + 1)


def _words(error: BaseException) -> str:
    """What is wrong with a line, without anything of what it says."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return "it is no entry of a transcript" if isinstance(error, msgspec.ValidationError) else "it is no JSON"
