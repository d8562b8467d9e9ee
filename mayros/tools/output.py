"""What a command puts out: clean text without secrets, of which the beginning and the end are kept. Imports net.redact."""

from __future__ import annotations

import codecs
import re
from collections import deque

from mayros.net.redact import Redactor

#: Small pieces are joined to blocks of about this many characters, so that a command that writes byte by byte costs no more memory.
_BLOCK = 4096
#: Characters that wait to be looked through for secrets, beside those that are sure to be kept: of a flood most are forgotten before that.
_WAITING = 65_536
#: How much of an escape sequence that has not ended is kept back.
_ESCAPE_MAX = 4096
#: Control bytes that are no text; BEL, tab, line feed, carriage return and ESC are looked at further on.
_NOISE = bytes(set(range(32)) - {7, 9, 10, 13, 27}) + b"\x7f"
_C1 = re.compile("[\x80-\x9f]")
# No part of these can run over an ESC, so that they are linear in what they read.
_ESCAPE = re.compile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|[\\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\\\)|[ -/]*[0-OQ-WYZ\\\\`a-~])")
_UNFINISHED = re.compile("\x1b(?:\\[[0-?]*[ -/]*|[\\]PX^_][^\x07\x1b]*\x1b?|[ -/]*)\\Z")


class Output:
    """The first `head` and the last `tail` characters of a stream of bytes, cleaned; what lies between is counted and forgotten.

    Bytes are read as UTF-8 whatever pieces they come in; escape sequences and control characters are left out, line ends become "\\n", secrets "***".
    What may be the beginning of a secret is no part of the text before it is told.
    """

    def __init__(self, redact: Redactor, head: int = 100_000, tail: int = 100_000) -> None:
        self._redact, self._head_max, self._tail_max = redact, head, tail
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._carry = ""  # the beginning of an escape sequence, or a carriage return
        self._c2 = False  # the last byte begins a character that may be a C1 control; looking for these costs, so it is done when one may be there
        self._small: list[str] = []
        self._small_size = 0
        self._fresh: deque[str] = deque()  # blocks that were not looked through for secrets
        self._fresh_size = 0
        self._stream = redact.stream()
        self._torn = False  # some of the text before `_fresh` was forgotten unseen
        self._head: list[str] = []
        self._head_size = 0
        self._tail: deque[str] = deque()
        self._tail_size = 0
        self._position = 0
        #: Bytes that were forgotten.
        self.dropped = 0

    @property
    def position(self) -> int:
        """Characters so far, those forgotten with them: the position of the end."""
        self._settle()
        return self._position

    def add(self, data: bytes) -> None:
        """More bytes."""
        c2, self._c2 = self._c2 or b"\xc2" in data, data.endswith(b"\xc2")
        text = self._decoder.decode(data.translate(None, _NOISE))
        self._take(self._clean(_C1.sub("", text) if c2 else text))

    def end(self) -> None:
        """No more bytes: what was kept back as unfinished is text after all."""
        self._take(self._clean(self._decoder.decode(b"", final=True), final=True))
        self._settle()
        self._keep(self._stream.end())

    def text(self) -> str:
        """All that is kept, with a line in the place of what is not."""
        self._settle()
        head, tail = "".join(self._head), "".join(self._tail)
        return f"{head}\n[... {self.dropped} bytes left out ...]\n{tail}" if self.dropped else head + tail

    def last(self, characters: int) -> str:
        """The end of the text."""
        wanted = characters + self._redact.reach
        if self._fresh_size <= wanted:
            return self.since(max(0, self.position - characters))[0]
        blocks, size = ["".join(self._small)], self._small_size
        for block in reversed(self._fresh):
            if size >= wanted:
                break
            blocks.append(block)
            size += len(block)
        return self._redact.window("".join(reversed(blocks)), size - characters, size, ended=False)

    def since(self, position: int) -> tuple[str, int]:
        """The text from a position on, and how many characters of that are forgotten."""
        self._settle()
        start = self._position - self._tail_size  # where the tail begins
        if position >= start:
            return "".join(self._tail)[position - start :], 0
        head = "".join(self._head)[position:]
        return head + "".join(self._tail), start - max(position, self._head_size)

    def _clean(self, text: str, *, final: bool = False) -> str:
        if self._carry:
            text, self._carry = self._carry + text, ""
        if "\x1b" in text:
            text = _ESCAPE.sub("", text)
            unfinished = _UNFINISHED.search(text, max(0, len(text) - _ESCAPE_MAX))
            if unfinished and not final:
                text, self._carry = text[: unfinished.start()], unfinished.group()
            text = text.replace("\x1b", "")
        if "\x07" in text:
            text = text.replace("\x07", "")
        if "\r" in text:
            if text[-1] == "\r" and not self._carry and not final:
                text, self._carry = text[:-1], "\r"
            text = text.replace("\r\n", "\n")
        return text

    def _take(self, text: str) -> None:
        if not text:
            return
        self._small.append(text)
        self._small_size += len(text)
        if self._small_size < _BLOCK:
            return
        self._join()
        if self._fresh_size > self._tail_max + self._redact.reach + _WAITING:
            self._forget()

    def _join(self) -> None:
        if self._small:
            self._fresh.append("".join(self._small))
            self._fresh_size += self._small_size
            self._small, self._small_size = [], 0

    def _forget(self) -> None:
        """Fill the head; then, of what was not looked through, keep what the tail needs, and nothing before it."""
        while self._fresh and self._head_size < self._head_max:
            block = self._fresh.popleft()
            self._fresh_size -= len(block)
            self._keep(self._stream.feed(block))
        needed = self._tail_max + self._redact.reach
        if self._fresh_size - _BLOCK <= needed:
            return
        if not self._torn:
            self._lose(self._stream.end())
            self.dropped += sum(map(_bytes, self._tail))
            self._tail.clear()
            self._tail_size = 0
            self._stream, self._torn = self._redact.stream(), True
        while self._fresh_size - len(self._fresh[0]) >= needed:
            self._fresh_size -= len(self._fresh[0])
            self._lose(self._fresh.popleft())

    def _settle(self) -> None:
        """Look through what came, and put it into head and tail."""
        self._join()
        self._forget()
        if not self._fresh:
            return
        text = "".join(self._fresh)
        self._fresh.clear()
        self._fresh_size = 0
        if self._torn:  # it begins with what only tells whether a secret is cut where the rest begins
            reach, self._torn = self._redact.reach, False
            self._lose(self._stream.feed(text[:reach]))
            text = text[reach:]
        self._keep(self._stream.feed(text))

    def _lose(self, text: str) -> None:
        self._position += len(text)
        self.dropped += _bytes(text)

    def _keep(self, text: str) -> None:
        self._position += len(text)
        room = self._head_max - self._head_size
        if room > 0 and text:
            self._head.append(text[:room])
            self._head_size += len(self._head[-1])
            text = text[room:]
        if text:
            self._tail.append(text)
            self._tail_size += len(text)
        while (excess := self._tail_size - self._tail_max) > 0:
            oldest = self._tail.popleft()
            if len(oldest) > excess:
                self._tail.appendleft(oldest[excess:])
                oldest = oldest[:excess]
            self._tail_size -= len(oldest)
            self.dropped += _bytes(oldest)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
