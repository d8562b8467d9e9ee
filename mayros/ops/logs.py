"""The daemon's own lines: on standard output, and as JSON in a file. Each is made and redacted once, before any of them gets it.

Under journald lines carry the priority prefix and no time. What is said again and again is said a few times a minute, and then how often. The newest
warnings and errors are kept for `status`.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TextIO, cast

import msgspec
from twisted.logger import ILogObserver, LogLevel, formatEvent
from zope.interface import implementer

from mayros.ops.repeats import MOST, Repeats

LEVELS = {"error": LogLevel.error, "warn": LogLevel.warn, "info": LogLevel.info, "debug": LogLevel.debug}
#: The newest warnings and errors that are kept, and so many characters of each.
KEPT, KEPT_CHARS = 20, 500
#: One record of the journal.
JOURNAL_BYTES = 48 << 10
_PRIORITY = {LogLevel.critical: 2, LogLevel.error: 3, LogLevel.warn: 4, LogLevel.info: 6, LogLevel.debug: 7}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
#: What an event may say of where it belongs, and how lines call it.
_IDS = (("run_id", "run"), ("session", "session"), ("request", "request"), ("id", "connection"), ("trace", "trace"))


class Line(NamedTuple):
    """One event, redacted. `at`: seconds of the wall clock; `ids`: run, session and the like, by name."""

    at: float
    level: Any
    where: str
    text: str
    ids: dict[str, str]

    def json(self) -> bytes:
        """As a line of JSON, with its end."""
        shown = {"time": round(self.at, 3), "level": self.level.name, "logger": self.where, "message": self.text, **self.ids}
        return msgspec.json.encode(shown) + b"\n"


class Sink(Protocol):
    """Where lines go besides standard output; see logfiles.LogFile."""

    def write(self, line: bytes, urgent: bool) -> None: ...


@implementer(ILogObserver)
class LineObserver:
    """Writes events as lines: `pretty` (time, level, where, text), `compact` or `json`; with journald's prefix where the journal reads us.

    `level` is that of the file, and of `out` where `console_level` does not say another.
    """

    def __init__(self, out: TextIO, level: str, style: str, redact: Callable[[str], str], journal: bool, console_level: str | None = None) -> None:
        self._out, self._redact, self._journal, self._deaf = out, redact, journal, False
        self._repeats = Repeats()
        self._file: Sink | None = None
        #: The newest warnings and errors, oldest first.
        self.problems: deque[Line] = deque(maxlen=KEPT)
        self.use(level, style, console_level)

    def use(self, level: str, style: str, console_level: str | None = None) -> None:
        """Another `logging.level`, `logging.consoleStyle` and `logging.consoleLevel`."""
        self._level, self._console, self._style = LEVELS[level], LEVELS[console_level or level], style
        self.keep(self._file)

    def keep(self, file: Sink | None) -> None:
        """Write to this file as well from now on; None: to none."""
        self._file = file
        self._lowest = self._console if file is None else min(self._level, self._console)

    def __call__(self, event: dict[str, Any]) -> None:
        """Write one event."""
        level, where = event.get("log_level", LogLevel.info), event.get("log_namespace", "-")
        if level < self._lowest or (level is LogLevel.info and where == "log_legacy"):
            return  # Twisted's own remarks of the old kind say nothing that ours do not
        now = event.get("log_time", 0.0)
        self._sum_up(now)
        held = None
        # Twisted repeats itself for each connection while file descriptors are short: that once a minute is enough.
        remark = where.startswith("twisted.internet.") and "log_failure" not in event
        if remark or level >= LogLevel.warn:
            held = self._repeats.take((where, level, event.get("log_format") or ""), now, 1 if remark else MOST)
            if held is None:
                return
        text = formatEvent(event)
        if "log_failure" in event:
            text = f"{text}\n{event['log_failure'].getTraceback()}"
        text = self._clean(text)
        if held is not None:
            held.text = text
        ids = {name: self._clean(str(event[key])) for key, name in _IDS if event.get(key)}
        self._write(Line(event.get("log_time") or time.time(), level, where, text, ids))

    def tick(self, now: float) -> None:
        """Say how often was left out what is over; to be called now and then. `now`: seconds of the wall clock."""
        self._sum_up(now)

    def close(self, now: float) -> None:
        """The same for all, at the end."""
        self._sum_up(now, everything=True)

    def _sum_up(self, now: float, everything: bool = False) -> None:
        for key, held in self._repeats.over(now, everything):
            where, level, _ = cast(tuple[str, Any, str], key)
            if level < LogLevel.warn:
                continue
            first = held.text.partition("\n")[0]
            self._write(Line(now or time.time(), level, where, f"repeated {held.left_out} times: {first}", {}))

    def _clean(self, text: str) -> str:
        return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", self._redact(text))

    def _write(self, line: Line) -> None:
        if line.level >= LogLevel.warn:
            self.problems.append(line._replace(text=line.text.rstrip()[-KEPT_CHARS:] if "\n" in line.text else line.text[:KEPT_CHARS]))
        if self._file is not None and line.level >= self._level:
            self._file.write(line.json(), line.level >= LogLevel.error)
        if line.level < self._console or self._deaf:
            return
        try:
            self._out.write(self._shown(line))
            self._out.flush()
        except (OSError, ValueError):
            # Nobody reads our standard output any more.
            self._deaf = True

    def _shown(self, line: Line) -> str:
        if self._style == "json" and not self._journal:
            return line.json().decode()
        text = line.text
        if more := " ".join(f"{name}={value}" for name, value in line.ids.items() if value not in text):
            first, end, rest = text.partition("\n")
            text = f"{first} [{more}]{end}{rest}"
        if self._journal:
            prefix = f"<{_PRIORITY.get(line.level, 6)}>{line.where}: "
            return "".join(f"{prefix}{part}\n" for whole in text.split("\n") for part in _pieces(whole))
        moment = time.localtime(line.at)
        if self._style == "compact":
            return f"{time.strftime('%H:%M:%S', moment)} {line.level.name[0].upper()} {line.where.removeprefix('mayros.')}: {text}\n"
        return f"{time.strftime('%Y-%m-%dT%H:%M:%S%z', moment)} {line.level.name:5} {line.where}: {text}\n"


def _pieces(text: str) -> list[str]:
    """A line in parts that the journal takes whole."""
    size = JOURNAL_BYTES // 4  # characters of at most four bytes
    return [text[start : start + size] for start in range(0, len(text), size)] or [""]


def console(level: str, style: str, redact: Callable[[str], str], out: TextIO | None = None, console_level: str | None = None) -> LineObserver:
    """The observer for standard output; finds out by itself whether that is the journal."""
    if out is None:
        # Where standard output is closed Python has none, and there is nobody to tell.
        out = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  open until the end
    try:
        stat = os.fstat(out.fileno())
        journal = os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"
    except (OSError, ValueError):
        journal = False
    return LineObserver(out, level, style, redact, journal, console_level)
