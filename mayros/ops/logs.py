"""Logs: the daemon's own lines on its standard output, and one JSON line a request in a dated file. Secrets are redacted before every sink.

Under journald lines carry the priority prefix and no time. The access log is buffered and written once a second; a full disk costs lines,
never requests.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Protocol, TextIO
from urllib.parse import quote

import msgspec
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, Logger, LogLevel, formatEvent
from zope.interface import implementer

from mayros.core.ports import Clock

log = Logger()

KEEP_DAYS = 7
MAX_FILE_BYTES = 256 << 20
#: Lines that wait for the next flush; above, new ones are dropped and counted.
MAX_PENDING = 50_000
#: Twisted repeats itself for each connection while file descriptors are short; each of its remarks is written once in so many seconds.
REPEAT_SECONDS = 60.0
_LEVELS = {"error": LogLevel.error, "warn": LogLevel.warn, "info": LogLevel.info, "debug": LogLevel.debug}
_PRIORITY = {LogLevel.critical: 2, LogLevel.error: 3, LogLevel.warn: 4, LogLevel.info: 6, LogLevel.debug: 7}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _any_case(word: str) -> str:
    """As sets of letters: with a set at its beginning a pattern is found some ten times faster than where case is ignored."""
    return "".join(f"[{letter.upper()}{letter}]" for letter in word)


_NAMED = "[=:\"' ]{1,4}[A-Za-z0-9_./+-]{12,}"
#: What looks like a secret, by a word in small letters without which it cannot be there: long results of tools go through this.
_PATTERNS = tuple(
    (word, re.compile(pattern, re.DOTALL))
    for word, pattern in (
        ("private key-----", r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----"),
        ("bearer", _any_case("bearer") + r"\s+[^\s\"']+"),
        ("sk-", r"sk-(?<=\bsk-)[A-Za-z0-9_-]{8,}"),
        ("gh", r"gh[pousr]_(?<=\bgh._)[A-Za-z0-9]{8,}"),
        ("github_pat_", r"github_pat_(?<=\bgithub_pat_)\w{8,}"),
        ("xox", r"xox[abprs]-(?<=\bxox.-)[A-Za-z0-9-]{8,}"),
        ("akia", r"AKIA(?<=\bAKIA)[A-Z0-9]{12,}"),
        ("aiza", r"AIza(?<=\bAIza)[A-Za-z0-9_-]{20,}"),
        ("eyj", r"eyJ(?<=\beyJ)[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+"),
        *((word, _any_case(word) + _NAMED) for word in ("token", "secret", "password")),
        ("key", _any_case("api") + ".?" + _any_case("key") + _NAMED),
        ("//", r"//[^/\s:@]+:[^/\s:@]+@"),
    )
)


class Redactor:
    """Takes secrets out of text: the known ones exactly (also URL-encoded), and what looks like one."""

    def __init__(self, secrets: Iterable[str | None]) -> None:
        known = {secret for secret in secrets if secret and len(secret) >= 8}
        known |= {quote(secret, safe="") for secret in known}
        self._known = sorted(known, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text with each secret replaced by `***`."""
        for secret in self._known:
            text = text.replace(secret, "***")
        small = text.lower()
        for word, pattern in _PATTERNS:
            if word in small:
                text = pattern.sub("***", text)
        return text


@implementer(ILogObserver)
class LineObserver:
    """Writes events as lines: `pretty` (time, level, where, text) or `json`; with journald's prefix where the journal reads us."""

    def __init__(self, out: TextIO, level: str, style: str, redact: Callable[[str], str], journal: bool) -> None:
        self._out, self._threshold, self._json, self._redact, self._journal = out, _LEVELS[level], style == "json", redact, journal
        self._said: dict[str, float] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        """Write one event."""
        level = event.get("log_level", LogLevel.info)
        if level < self._threshold or (level is LogLevel.info and event.get("log_namespace") == "log_legacy"):
            return  # Twisted's own remarks of the old kind say nothing that ours do not
        if event.get("log_namespace", "").startswith("twisted.internet.") and "log_failure" not in event and self._repeats(event):
            return
        text = formatEvent(event)
        if "log_failure" in event:
            text = f"{text}\n{event['log_failure'].getTraceback()}"
        text = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", self._redact(text))
        where = event.get("log_namespace", "-")
        if self._journal:
            prefix = f"<{_PRIORITY.get(level, 6)}>"
            line = "".join(f"{prefix}{where}: {part}\n" for part in text.split("\n"))
        elif self._json:
            line = msgspec.json.encode({"time": event.get("log_time"), "level": level.name, "logger": where, "message": text}).decode() + "\n"
        else:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(event.get("log_time", time.time())))
            line = f"{stamp} {level.name:5} {where}: {text}\n"
        try:
            self._out.write(line)
            self._out.flush()
        except (OSError, ValueError):
            # Nobody reads our standard output any more; there is no other place to say so.
            self._threshold = LogLevel.critical

    def _repeats(self, event: dict[str, Any]) -> bool:
        """Whether this was said a moment ago, but for its details."""
        form, now = event.get("log_format") or "", event.get("log_time", 0.0)
        if 0 <= now - self._said.get(form, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return True
        self._said[form] = now
        return False


def console(level: str, style: str, redact: Callable[[str], str], out: TextIO | None = None) -> LineObserver:
    """The observer for standard output; finds out by itself whether that is the journal."""
    if out is None:
        # Where standard output is closed Python has none, and there is nobody to tell.
        out = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  open until the end
    try:
        stat = os.fstat(out.fileno())
        journal = os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"
    except (OSError, ValueError):
        journal = False
    return LineObserver(out, level, style, redact, journal)


class Line(Protocol):
    """One line of the access log: a struct with the fields to be written."""

    path: str


class AccessLog:
    """`<directory>/mayros-YYYY-MM-DD.log`, JSON lines, deleted after a week. `wall` is the time of day in seconds."""

    def __init__(self, directory: str, clock: Clock, wall: Callable[[], float], redact: Callable[[str], str]) -> None:
        self._directory, self._wall = directory, wall
        # Of a line only the path is the client's own text; most are known routes.
        self._shown = lru_cache(1024)(redact)
        self._encode = msgspec.json.Encoder().encode
        self._pending: list[Line] = []
        self._dropped = 0
        self._day = ""
        self._flushing = LoopingCall(self.flush)
        self._flushing.clock = clock  # type: ignore[assignment]

    def start(self) -> None:
        """Make the directory and write once a second from now on."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        self._flushing.start(1.0, now=False)

    def stop(self) -> None:
        """Write what is left."""
        if self._flushing.running:
            self._flushing.stop()
        self.flush()

    def record(self, entry: Line) -> None:
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
            day = time.strftime("%Y-%m-%d", time.localtime(self._wall()))
            path = os.path.join(self._directory, f"mayros-{day}.log")
            if day != self._day:
                self._day = day
                self._remove_old()
            with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600), "ab") as file:
                if file.tell() + len(lines) > MAX_FILE_BYTES:
                    self._dropped += len(pending)
                else:
                    file.write(lines)
        except OSError as error:
            self._dropped += len(pending)
            log.warn("the access log cannot be written ({error}); {count} lines are lost so far", error=str(error), count=self._dropped)

    def _remove_old(self) -> None:
        oldest = self._wall() - KEEP_DAYS * 86_400
        for entry in os.scandir(self._directory):
            if entry.name.startswith("mayros-") and entry.name.endswith(".log") and entry.stat().st_mtime < oldest:
                os.unlink(entry.path)
