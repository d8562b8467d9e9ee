"""What a command puts out: clean text, of which the beginning and the end are kept. Imports nothing of ours."""

from __future__ import annotations

import codecs
import re
from collections import deque

#: Small pieces are joined to blocks of about this many characters, so that a command that writes byte by byte costs no more memory.
_BLOCK = 4096
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

    Bytes are read as UTF-8 whatever pieces they come in; escape sequences and control characters are left out, line ends become "\\n".
    """

    def __init__(self, head: int = 100_000, tail: int = 100_000) -> None:
        self._head_max, self._tail_max = head, tail
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._carry = ""  # the beginning of an escape sequence, or a carriage return
        self._c2 = False  # the last byte begins a character that may be a C1 control; looking for these costs, so it is done when one may be there
        self._fresh: list[str] = []
        self._fresh_size = 0
        self._head: list[str] = []
        self._head_size = 0
        self._tail: deque[str] = deque()
        self._tail_size = 0
        #: Characters so far, those forgotten with them: the position of the end.
        self.position = 0
        #: Bytes that were forgotten.
        self.dropped = 0

    def add(self, data: bytes) -> None:
        """More bytes."""
        c2, self._c2 = self._c2 or b"\xc2" in data, data.endswith(b"\xc2")
        text = self._decoder.decode(data.translate(None, _NOISE))
        self._take(self._clean(_C1.sub("", text) if c2 else text))

    def end(self) -> None:
        """No more bytes: what was kept back as unfinished is text after all."""
        self._take(self._clean(self._decoder.decode(b"", final=True), final=True))

    def text(self) -> str:
        """All that is kept, with a line in the place of what is not."""
        self._settle()
        head, tail = "".join(self._head), "".join(self._tail)
        return f"{head}\n[... {self.dropped} bytes left out ...]\n{tail}" if self.dropped else head + tail

    def last(self, characters: int) -> str:
        """The end of the text."""
        return self.since(max(0, self.position - characters))[0]

    def since(self, position: int) -> tuple[str, int]:
        """The text from a position on, and how many characters of that are forgotten."""
        self._settle()
        start = self.position - self._tail_size  # where the tail begins
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
        if text:
            self.position += len(text)
            self._fresh.append(text)
            self._fresh_size += len(text)
            if self._fresh_size >= _BLOCK:
                self._settle()

    def _settle(self) -> None:
        """Put what came into head and tail."""
        if not self._fresh:
            return
        block = "".join(self._fresh)
        self._fresh, self._fresh_size = [], 0
        room = self._head_max - self._head_size
        if room > 0:
            self._head.append(block[:room])
            self._head_size += len(self._head[-1])
            block = block[room:]
        if block:
            self._tail.append(block)
            self._tail_size += len(block)
        while (excess := self._tail_size - self._tail_max) > 0:
            oldest = self._tail.popleft()
            if len(oldest) > excess:
                self._tail.appendleft(oldest[excess:])
                oldest = oldest[:excess]
            self._tail_size -= len(oldest)
            self.dropped += len(oldest) if oldest.isascii() else len(oldest.encode())
