"""A transcript of the original: JSON lines that form a tree, of which the branch that ends in the last line is the conversation.

The first line is a header, every other one an entry with `id` and `parentId`; entries of the first version have neither and follow one another. Files
come from outside: lines are read one at a time and bounded, one that cannot be read is told and passed over, and whatever followed it follows what
was before it. A line that ends in its middle at the end of the file is what a gateway that died leaves behind.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, TypeVar

import msgspec

#: Bytes of one line and of one file, entries and lines of one file, characters of an id.
MOST_LINE, MOST_BYTES, MOST_ENTRIES, MOST_LINES, MOST_ID = 32 << 20, 4 << 30, 250_000, 1_000_000, 64
#: Of a line the bytes that are no image's, which become Python's and up to four times as large; and the objects in a line of more than 1 MB.
MOST_TEXT, MOST_OBJECTS, _SMALL = 4 << 20, 100_000, 1 << 20
#: Problems of one file that are told one by one.
TOLD = 100
#: What reading JSON from outside may end with.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError)
#: The entries that take part in a conversation; all others are passed over.
KINDS = ("", "message", "compaction", "branch_summary", "custom_message")
_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}


class Unfit(Exception):
    """Why a session is not taken."""


class TooLong(ValueError):
    """Why a line is not read."""


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


class _Image(msgspec.Struct, gc=False):
    data: msgspec.Raw = msgspec.Raw(b"")


class _Images(msgspec.Struct, gc=False):
    content: list[_Image]


class _Shown(msgspec.Struct, gc=False):
    message: _Images


_head = msgspec.json.Decoder(_Head).decode
_cut = msgspec.json.Decoder(_Cut).decode
_shown = msgspec.json.Decoder(_Shown).decode
#: An escaped character of two halves, a half by itself, escaped backslashes.
_HALVES = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|(?:\\\\)++",
)
T = TypeVar("T")


def decoded(decode: Callable[[bytes | bytearray], T], data: bytes) -> T:
    """The line, with `?` for halves of characters, which JavaScript writes where it has cut a text. Raises one of UNREADABLE."""
    try:
        return decode(data)
    except UNREADABLE:
        whole = None
        for found in _HALVES.finditer(data):
            if found["half"] is not None:
                whole = bytearray(data) if whole is None else whole
                whole[found.start() : found.end()] = b"\\u003f"
        if whole is None:
            raise
        return decode(whole)


def bounded(data: bytes) -> bytes:
    """The line, if it may be read: images make it long, text and the number of its parts must not. Raises TooLong."""
    if len(data) > MOST_LINE or (len(data) > _SMALL and data.count(b"{") > MOST_OBJECTS):
        raise TooLong
    if len(data) > MOST_TEXT and len(data) - _pictured(data) > MOST_TEXT:
        raise TooLong
    return data


def _pictured(data: bytes) -> int:
    """The bytes of the images in a line."""
    try:
        return sum(memoryview(part.data).nbytes for part in decoded(_shown, data).message.content)
    except UNREADABLE:
        return 0


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
                head = decoded(_head, bounded(data))
            except UNREADABLE as error:
                if ended or isinstance(error, TooLong):
                    self.told(number, _words(error))
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
            if head.id is not None and len(head.id) <= MOST_ID and head.id.isascii():
                self._ids[head.id] = own

    def _walk(self) -> Iterator[tuple[int, int, bytes, bool]]:
        """Each line that is not blank: its number, where it begins, its bytes (more than MOST_LINE: not all), and whether it has its end."""
        number = offset = 0
        while data := self._file.readline(MOST_LINE + 1):
            number += 1
            begin, offset, ended = offset, offset + len(data), data.endswith(b"\n")
            while len(data) > MOST_LINE and not ended and offset <= MOST_BYTES and (rest := self._file.readline(1 << 20)):
                offset, ended = offset + len(rest), rest.endswith(b"\n")
            if offset > MOST_BYTES:
                raise Unfit(f"its transcript is larger than {MOST_BYTES >> 30} GB")
            if number > MOST_LINES:
                raise Unfit(f"its transcript has more than {MOST_LINES:,} lines")
            if not data.isspace():
                yield number, begin, data, ended

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
        """The line of an entry. Raises TooLong: it is another one than it was."""
        self._file.seek(self._offsets[place])
        return bounded(self._file.readline(MOST_LINE + 1))


def _words(error: BaseException) -> str:
    """What is wrong with a line, without anything of what it says."""
    if isinstance(error, TooLong):
        return "it is too long"
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return "it is no entry of a transcript" if isinstance(error, msgspec.ValidationError) else "it is no JSON"
