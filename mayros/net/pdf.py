"""The text of PDF files, read by a process for each file that has little memory and little time. Imports net.process and errors.

`PdfTexts` is the local implementation of core's port `PdfReader`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.logger import Logger

from mayros.errors import InputFailed
from mayros.net.process import Child, scrubbed

log = Logger()

#: Files read at a time, and how many may wait.
AT_ONCE, WAITING = 2, 32
#: For one file: seconds altogether, seconds of the processor, bytes of memory.
SECONDS, CPU_SECONDS, MEMORY = 30.0, 10, 512 << 20
_PROGRAM = str(Path(__file__).with_name("pdf_child.py"))
_TOO_MUCH = "reading it takes too long, or too much memory"


class PdfText(NamedTuple):
    """See core.input_ports."""

    text: str
    pages: int
    read: int
    cut: bool


class PdfTexts:
    """See core.input_ports.PdfReader. `environ` is the gateway's, of which a process sees little."""

    def __init__(self, reactor: Any, environ: Mapping[str, str]) -> None:
        self._reactor, self._environ = reactor, environ
        self._places = DeferredSemaphore(AT_ONCE)

    async def __call__(self, data: bytes, *, max_pages: int, max_chars: int) -> PdfText:
        """See core.input_ports.PdfReader."""
        if len(self._places.waiting) >= WAITING:
            raise InputFailed("too many files are being read; send it again shortly")

        def too_late(_: object, limit: float) -> NoReturn:
            raise InputFailed(_TOO_MUCH)

        return await Deferred.fromCoroutine(self._wait(data, max_pages, max_chars)).addTimeout(SECONDS, self._reactor, too_late)

    async def _wait(self, data: bytes, max_pages: int, max_chars: int) -> PdfText:
        await self._places.acquire()
        try:
            return await _Reading(self._reactor).of(data, max_pages, max_chars, scrubbed(self._environ))
        finally:
            self._places.release()


class _Reading:
    """One file and its process."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._child = Child(reactor, self._line, self._exited)
        self._done: Deferred[PdfText] = Deferred(lambda _: self._child.kill())
        self._texts: list[str] = []
        self._pages = 0
        self._left = 0
        self._outcome: PdfText | InputFailed | None = None

    async def of(self, data: bytes, max_pages: int, max_chars: int, env: dict[str, str]) -> PdfText:
        """Start the process and wait for what it says. Cancelling kills it."""
        self._left = max_chars
        asked = {
            "parent": os.getpid(), "bytes": len(data), "max_pages": max_pages, "max_chars": max_chars, "memory": MEMORY, "seconds": CPU_SECONDS,
        }  # fmt: skip
        try:
            self._child.start(self._reactor.spawnProcess, [sys.executable, "-I", _PROGRAM], env)
        except OSError as error:
            raise InputFailed(f"no process could be started for it ({error.strerror})") from None
        self._child.write(json.dumps(asked).encode() + b"\n" + data)
        return await self._done

    def _line(self, line: bytes) -> None:
        try:
            said = json.loads(line)
            if "error" in said:
                self._fail(said["error"])
            elif "pages" in said:
                self._pages = int(said["pages"])
            elif "text" in said:
                self._left -= len(said["text"])
                self._texts.append(said["text"])
                if self._left < 0:
                    raise ValueError("more than was asked for")
            else:
                self._end(PdfText("".join(self._texts), self._pages, int(said["read"]), said["cut"] is True))
        except (ValueError, KeyError, TypeError):
            log.warn("a process that reads a PDF said nonsense")
            self._fail("it is no PDF that can be read")

    def _end(self, outcome: PdfText | InputFailed) -> None:
        """The first word counts; it is told when the process is gone."""
        self._outcome = self._outcome or outcome

    def _fail(self, why: str) -> None:
        self._end(InputFailed(why))
        self._child.kill()

    def _exited(self, how: str) -> None:
        if self._outcome is None:
            log.info("a process that reads a PDF ended: {how}; {words}", how=how, words=self._child.last_words[-300:])
        if not self._done.called:
            outcome = self._outcome or InputFailed(_TOO_MUCH)
            if isinstance(outcome, PdfText):
                self._done.callback(outcome)
            else:
                self._done.errback(outcome)
