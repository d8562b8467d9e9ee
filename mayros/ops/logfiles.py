"""Log files: the daemon's own lines, and one line a request. JSON lines, a file a day, set aside when it is large, deleted after a week.

Lines wait for the next second and are then written at once; those of errors are not kept waiting. A full disk costs lines, never requests.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import BinaryIO, Protocol

import msgspec
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from mayros.core.ports import Clock

log = Logger()

KEEP_DAYS = 7
MAX_FILE_BYTES = 64 << 20
#: Of the files of one day that were set aside, so many are kept.
KEEP_ASIDE = 4
#: Lines that wait for the next flush; above, new ones are dropped and counted.
MAX_PENDING = 50_000
DAEMON, ACCESS = "mayros", "access"


class Files:
    """The file that lines go to now: `path` as it is, or for a folder `<path>/<name>-YYYY-MM-DD.log`. `now` is the time of day in seconds."""

    def __init__(self, path: str, name: str | None, max_bytes: int) -> None:
        self.path, self._name, self._max = path, name, max_bytes
        self._day = ""
        self._missing = False

    def make(self) -> None:
        """Make the folder. Raises OSError."""
        os.makedirs(self.path if self._name is not None else os.path.dirname(self.path), mode=0o700, exist_ok=True)

    def begin(self, what: str) -> None:
        """Make the folder. Where that cannot be, it is told of and tried again with each write: a full disk must not stop the start."""
        try:
            self.make()
        except OSError as error:
            self._missing = True
            log.warn("the folder of the {what} cannot be made: {why}", what=what, why=str(error))

    def append(self, data: bytes, now: float) -> None:
        """Write to the end of the file. Raises OSError. It is opened anew each time, so whoever moves it away need not tell us."""
        if self._missing:
            self.make()
            self._missing = False
        path = self.at(now)
        if path != self._day:
            self._day = path
            self._remove_old(now)
        with self._open(path) as file:
            if not file.tell() or file.tell() + len(data) <= self._max:
                file.write(data)
                return
        for number in range(KEEP_ASIDE, 0, -1):
            with suppress(FileNotFoundError):
                os.replace(path if number == 1 else f"{path}.{number - 1}", f"{path}.{number}")
        with self._open(path) as file:
            file.write(data)

    def at(self, now: float) -> str:
        """The file of a time of day."""
        if self._name is None:
            return self.path
        return os.path.join(self.path, f"{self._name}-{time.strftime('%Y-%m-%d', time.localtime(now))}.log")

    @staticmethod
    def _open(path: str) -> BinaryIO:
        # Not waiting for somebody to read a FIFO that is there by that name.
        return open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600), "ab")

    def _remove_old(self, now: float) -> None:
        if self._name is None:
            return
        for entry in os.scandir(self.path):
            old = entry.name.startswith(f"{self._name}-") and ".log" in entry.name
            if old and entry.stat(follow_symlinks=False).st_mtime < now - KEEP_DAYS * 86_400:
                os.unlink(entry.path)


class LogFile:
    """The daemon's own lines in a file; see logs.Sink. What comes before `start` is kept for it."""

    def __init__(self, files: Files, clock: Clock, wall: Callable[[], float]) -> None:
        self.files, self._wall = files, wall
        self._pending: list[bytes] = []
        #: Lines that could not be written, and whether the last ones could.
        self.lost, self._failed = 0, False
        self._flushing = LoopingCall(self.flush)
        self._flushing.clock = clock  # type: ignore[assignment]

    def start(self) -> None:
        """Write once a second from now on."""
        self.files.begin("log file")
        self._flushing.start(1.0, now=False)

    def stop(self) -> None:
        """Write what is left."""
        if self._flushing.running:
            self._flushing.stop()
        self.flush()

    def write(self, line: bytes, urgent: bool) -> None:
        """See logs.Sink."""
        if len(self._pending) >= MAX_PENDING:
            self.lost += 1
            return
        self._pending.append(line)
        if urgent and self._flushing.running and not self._failed:
            self.flush()

    def flush(self) -> None:
        """Append what has come since the last time."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        try:
            self.files.append(b"".join(pending), self._wall())
            self._failed = False
        except OSError as error:
            self.lost += len(pending)
            if not self._failed:  # told once, and on standard output only: there is no other place
                self._failed = True
                log.warn("the log file cannot be written ({error}); lines are lost until it can", error=str(error))


class Entry(Protocol):
    """One line of the access log: a struct with the fields to be written."""

    path: str


class AccessLog:
    """`<directory>/access-YYYY-MM-DD.log`. `wall` is the time of day in seconds."""

    def __init__(
        self, directory: str, clock: Clock, wall: Callable[[], float], redact: Callable[[str], str], max_bytes: int = MAX_FILE_BYTES
    ) -> None:
        self._files, self._wall = Files(directory, ACCESS, max_bytes), wall
        # Of a line only the path is the client's own text; most are known routes.
        self._shown = lru_cache(1024)(redact)
        self._encode = msgspec.json.Encoder().encode
        self._pending: list[Entry] = []
        self._dropped = 0
        self._flushing = LoopingCall(self.flush)
        self._flushing.clock = clock  # type: ignore[assignment]

    def start(self) -> None:
        """Write once a second from now on."""
        self._files.begin("access log")
        self._flushing.start(1.0, now=False)

    def stop(self) -> None:
        """Write what is left."""
        if self._flushing.running:
            self._flushing.stop()
        self.flush()

    def record(self, entry: Entry) -> None:
        """Take one line; it is encoded when it is written."""
        if len(self._pending) >= MAX_PENDING:
            self._dropped += 1
        else:
            self._pending.append(entry)

    def flush(self) -> None:
        """Append what has come since the last time."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        for entry in pending:
            entry.path = self._shown(entry.path)
        lines = b"".join([self._encode(entry) + b"\n" for entry in pending])
        try:
            self._files.append(lines, self._wall())
        except OSError as error:
            self._dropped += len(pending)
            log.warn("the access log cannot be written ({error}); {count} lines are lost so far", error=str(error), count=self._dropped)
