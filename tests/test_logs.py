"""Log lines, the access log, and what they never show."""

from __future__ import annotations

import io
import json
import os
import stat
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, LogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mayros.ops.logs import AccessLog, LineObserver, Redactor
from mayros.web.site import Access

SECRET = "very/secret+token"


class RedactorTests(SynchronousTestCase):
    """Redactor."""

    def test_known_secrets_and_what_looks_like_one(self) -> None:
        """Exactly, URL-encoded, and by their usual forms; other text stays."""
        redact = Redactor([SECRET, None, "short"])
        for text in (
            SECRET, "very%2Fsecret%2Btoken", "Bearer abc.def", "sk-ant-abcdefgh12345", "ghp_0123456789abcdef", "xoxb-12345678-abc",
            "AKIAABCDEFGHIJKLMNOP", "token=abcdefghijkl", "https://user:pass@host/", "-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----",
        ):  # fmt: skip
            self.assertIn("***", redact(f"before {text} after"), text)
            self.assertNotIn(text, redact(f"before {text} after"))
        for text in ("short", "the token is here", "/v1/chat/completions", "passwords are good"):
            self.assertEqual(redact(text), text)


class LineTests(SynchronousTestCase):
    """LineObserver."""

    def lines(self, style: str = "pretty", journal: bool = False, level: str = "info") -> tuple[Logger, io.StringIO]:
        out = io.StringIO()
        return Logger("test", observer=LogPublisher(LineObserver(out, level, style, Redactor([SECRET]), journal))), out

    def test_a_line(self) -> None:
        """Time, level, where, text; secrets and control characters do not get through."""
        log, out = self.lines()
        log.warn("hello {who}", who=f"\x1b[31m{SECRET}\r")
        self.assertRegex(out.getvalue(), r"^\d{4}-\d\d-\d\dT[\d:+-]+ warn  test: hello \\x1b\[31m\*\*\*\\x0d\n$")

    def test_levels(self) -> None:
        """Below the level nothing is written; Twisted's old remarks never."""
        log, out = self.lines(level="warn")
        log.info("no")
        log.error("yes")
        self.assertIn("yes", out.getvalue())
        self.assertNotIn("no\n", out.getvalue())

    def test_json(self) -> None:
        """One object a line."""
        log, out = self.lines("json")
        log.info("hello")
        self.assertEqual({key: value for key, value in json.loads(out.getvalue()).items() if key != "time"},
                         {"level": "info", "logger": "test", "message": "hello"})  # fmt: skip

    def test_the_journal_gets_priorities(self) -> None:
        """Each line of a record has its own."""
        log, out = self.lines(journal=True)
        log.error("one\ntwo")
        self.assertEqual(out.getvalue(), "<3>test: one\n<3>test: two\n")

    def test_tracebacks_are_redacted(self) -> None:
        """A secret in an exception's text too."""
        log, out = self.lines()
        try:
            raise ValueError(SECRET)
        except ValueError:
            log.failure("it failed")
        self.assertIn("Traceback", out.getvalue())
        self.assertNotIn(SECRET, out.getvalue())

    def test_a_closed_output_does_not_stop_anything(self) -> None:
        """The gateway goes on when nobody reads its standard output."""
        observer = LineObserver(io.StringIO(), "info", "pretty", Redactor([]), False)
        observer._out.close()
        observer({"log_level": LogLevel.info, "log_format": "x"})
        observer({"log_level": LogLevel.info, "log_format": "x"})


class AccessLogTests(SynchronousTestCase):
    """AccessLog."""

    def setUp(self) -> None:
        self.clock, self.folder = Clock(), self.mktemp()
        self.now = 1_764_000_000.0
        self.log = AccessLog(self.folder, self.clock, lambda: self.now, Redactor([SECRET]))

    def entry(self, path: str = "/v1/chat/completions") -> Any:
        return Access(self.now, "req-1", "127.0.0.1", "POST", path, 200, 12, 3.5, "run-1", "owner")

    def lines(self) -> list[dict[str, Any]]:
        found = []
        for name in sorted(os.listdir(self.folder)):
            with open(os.path.join(self.folder, name)) as file:
                found += [json.loads(line) for line in file]
        return found

    def test_lines_are_written_once_a_second_and_at_the_end(self) -> None:
        """JSON, private, and no secret in a path."""
        self.log.start()
        self.log.record(self.entry())
        self.log.record(self.entry(f"/{SECRET}"))
        self.assertEqual(self.lines(), [])
        self.clock.advance(1)
        self.assertEqual([line["path"] for line in self.lines()], ["/v1/chat/completions", "/***"])
        self.log.record(self.entry())
        self.log.stop()
        self.assertEqual(len(self.lines()), 3)
        (name,) = os.listdir(self.folder)
        self.assertRegex(name, r"^mayros-\d{4}-\d\d-\d\d\.log$")
        self.assertEqual(stat.S_IMODE(os.stat(os.path.join(self.folder, name)).st_mode), 0o600)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_old_files_are_deleted(self) -> None:
        """After a week; other files stay."""
        os.makedirs(self.folder)
        for name in ("mayros-2020-01-01.log", "other.txt"):
            path = os.path.join(self.folder, name)
            with open(path, "w"):
                os.utime(path, (1, 1))
        self.log.record(self.entry())
        self.log.flush()
        self.assertEqual(len(os.listdir(self.folder)), 2)
        self.assertIn("other.txt", os.listdir(self.folder))

    def test_a_log_that_cannot_be_written_loses_lines_only(self) -> None:
        """No exception; what comes later is written again."""
        self.log.record(self.entry())
        self.log.flush()
        os.makedirs(self.folder)
        self.log.record(self.entry())
        self.log.flush()
        self.assertEqual(len(self.lines()), 1)
