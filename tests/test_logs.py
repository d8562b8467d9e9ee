"""Log lines, the access log, and what they never show."""

from __future__ import annotations

import io
import json
import os
import stat
import time
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, LogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mayros.errors import Unavailable
from mayros.net.redact import Redactor
from mayros.ops.logfiles import AccessLog, Files, LogFile
from mayros.ops.logs import LineObserver
from mayros.ops.tail import current, log_files, read
from mayros.web.site import Access

SECRET = "very/secret+token"


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

    def test_compact(self) -> None:
        """Time of day, one letter, the module's short name."""
        log, out = self.lines("compact")
        log.warn("hello")
        self.assertRegex(out.getvalue(), r"^\d\d:\d\d:\d\d W test: hello\n$")

    def test_ids(self) -> None:
        """Run, session, request and connection are fields of a line of JSON; for people they follow the text, unless they are in it."""
        log, out = self.lines("json")
        log.info("hello {run_id}", run_id="r1", session="agent:main:x", request="q1", id="c1", other=5)
        found = json.loads(out.getvalue())
        self.assertEqual([found[name] for name in ("run", "session", "request", "connection")], ["r1", "agent:main:x", "q1", "c1"])
        self.assertNotIn("other", found)
        log, out = self.lines()
        log.info("hello {run_id}", run_id="r1", id=SECRET)
        self.assertTrue(out.getvalue().endswith("hello r1 [connection=***]\n"), out.getvalue())

    def test_the_journal_gets_short_records(self) -> None:
        """It would cut longer ones."""
        log, out = self.lines(journal=True)
        log.info("{text}", text="x" * 100_000)
        self.assertTrue(all(len(line) <= 48 << 10 for line in out.getvalue().splitlines()))
        self.assertEqual(out.getvalue().count("x"), 100_000)

    def test_the_file_and_the_console_have_levels_of_their_own(self) -> None:
        """`logging.level` is the file's, `logging.consoleLevel` the console's; the file gets JSON whatever the console's style is."""
        out, sink = io.StringIO(), Sink()
        observer = LineObserver(out, "debug", "pretty", Redactor([SECRET]), False, "warn")
        observer.keep(sink)
        log = Logger("test", observer=LogPublisher(observer))
        log.debug("one")
        log.error("two {secret}", secret=SECRET)
        self.assertEqual([json.loads(line)["message"] for line, _ in sink.lines], ["one", "two ***"])
        self.assertEqual([urgent for _, urgent in sink.lines], [False, True])
        self.assertEqual(out.getvalue().count("\n"), 1)
        observer.use("error", "compact", None)
        log.info("three")
        self.assertEqual((len(sink.lines), out.getvalue().count("\n")), (2, 1))

    def test_what_went_wrong_lately(self) -> None:
        """The newest warnings and errors are kept for `status`, redacted; of tracebacks the end."""
        observer = LineObserver(io.StringIO(), "info", "pretty", Redactor([SECRET]), False)
        log = Logger("test", observer=LogPublisher(observer))
        log.info("fine")
        for number in range(40):
            log.warn(f"{number} {{secret}}", secret=SECRET)
        self.assertEqual([line.text for line in observer.problems], [f"{number} ***" for number in range(20, 40)])


class RepeatTests(SynchronousTestCase):
    """What is said again and again."""

    def setUp(self) -> None:
        self.out = io.StringIO()
        self.observer = LineObserver(self.out, "info", "json", str, False)
        self.now = 1000.0

    def say(self, text: str, level: Any = LogLevel.warn, **fields: Any) -> None:
        self.observer({"log_namespace": "x", "log_level": level, "log_format": text, "log_time": self.now, **fields})

    def said(self) -> list[str]:
        text = self.out.getvalue()
        self.out.truncate(self.out.seek(0))
        return [json.loads(line)["message"] for line in text.splitlines()]

    def test_five_a_minute(self) -> None:
        """Then how often, when the minute is over, or at the end."""
        for number in range(100):
            self.say("no {what}", what=number)
        self.say("something else")
        self.assertEqual(self.said(), ["no 0", "no 1", "no 2", "no 3", "no 4", "something else"])
        self.now += 61
        self.observer.tick(self.now)
        self.assertEqual(self.said(), ["repeated 95 times: no 4"])
        for number in range(7):
            self.say("no {what}", what=number)
        self.observer.close(self.now)
        self.assertEqual(self.said()[-1], "repeated 2 times: no 4")

    def test_information_is_all_written(self) -> None:
        """Only warnings and errors are folded."""
        for _ in range(20):
            self.say("connected", LogLevel.info)
        self.assertEqual(len(self.said()), 20)

    def test_it_stays_bounded(self) -> None:
        """However many different things are said; what is forgotten is told of."""
        for _ in range(6):
            self.say("first")
        for number in range(1000):
            self.say(f"thing {number}")
        self.assertEqual(len(self.observer._repeats._held), 256)
        self.assertIn("repeated 1 times: first", self.said())

    def test_a_clock_that_steps_back(self) -> None:
        """Silences nothing."""
        for _ in range(10):
            self.say("no")
        self.now -= 86_400
        self.say("no")
        self.assertEqual(self.said()[-1], "no")


class Sink:
    """A file that is a list."""

    def __init__(self) -> None:
        self.lines: list[tuple[bytes, bool]] = []

    def write(self, line: bytes, urgent: bool) -> None:
        self.lines.append((line, urgent))


class FileTests(SynchronousTestCase):
    """The log file, and reading it."""

    def setUp(self) -> None:
        self.clock, self.folder = Clock(), self.mktemp()
        self.now = 1_764_000_000.0

    def file(self, name: str | None = "mayros", max_bytes: int = 1000) -> LogFile:
        log = LogFile(Files(self.folder if name else os.path.join(self.folder, "own.log"), name, max_bytes), self.clock, lambda: self.now)
        log.start()
        self.addCleanup(log.stop)
        return log

    def names(self) -> list[str]:
        return sorted(os.listdir(self.folder))

    def test_lines_wait_a_second_and_errors_do_not(self) -> None:
        """In a private file of the day."""
        log = self.file()
        log.write(b"one\n", False)
        self.assertEqual(self.names(), [])
        log.write(b"two\n", True)
        path = current(log.files, self.now)
        self.assertEqual((Path(path).read_bytes(), stat.S_IMODE(os.stat(path).st_mode)), (b"one\ntwo\n", 0o600))
        log.write(b"three\n", False)
        self.clock.advance(1)
        self.assertEqual(Path(path).read_bytes(), b"one\ntwo\nthree\n")

    def test_what_comes_before_the_start_is_kept(self) -> None:
        """The gateway says things before it may write into the state directory."""
        log = LogFile(Files(self.folder, "mayros", 1000), self.clock, lambda: self.now)
        log.write(b"early\n", True)
        self.assertFalse(os.path.exists(self.folder))
        log.start()
        log.stop()
        self.assertEqual(Path(current(log.files, self.now)).read_bytes(), b"early\n")

    def test_large_files_are_set_aside(self) -> None:
        """And four of them kept."""
        log = self.file(None, max_bytes=100)
        for number in range(10):
            log.write(b"%d" % number * 60 + b"\n", True)
        self.assertEqual(self.names(), ["own.log", "own.log.1", "own.log.2", "own.log.3", "own.log.4"])
        self.assertEqual([Path(self.folder, name).read_bytes()[:1] for name in self.names()], [b"9", b"8", b"7", b"6", b"5"])

    def test_a_day_is_a_file(self) -> None:
        """Of this name only, those older than a week are deleted."""
        log = self.file()
        for name in ("other-2020-01-01.log", "mayros-2020-01-01.log.1"):
            path = Path(self.folder, name)
            path.touch()
            os.utime(path, (1, 1))
        log.write(b"x\n", True)
        self.now += 86_400
        log.write(b"x\n", True)
        self.assertEqual(len(self.names()), 3)
        self.assertIn("other-2020-01-01.log", self.names())

    def test_what_cannot_be_written(self) -> None:
        """Costs lines, and is said once; a FIFO, a link and a file that is moved away do not stop anything."""
        log = self.file(None)
        os.mkfifo(Path(self.folder, "own.log"))
        for _ in range(3):
            log.write(b"lost\n", True)
            log.flush()
        self.assertEqual(log.lost, 3)
        os.unlink(Path(self.folder, "own.log"))
        log.write(b"one\n", False)
        log.flush()
        os.rename(Path(self.folder, "own.log"), Path(self.folder, "moved"))
        log.write(b"two\n", True)
        self.assertEqual(Path(self.folder, "own.log").read_bytes(), b"two\n")

    def test_a_folder_that_cannot_be_made(self) -> None:
        """Costs lines until it can be made; a full disk does not stop the start."""
        Path(self.folder).touch()
        log = self.file()
        log.write(b"lost\n", True)
        os.unlink(self.folder)
        log.write(b"kept\n", False)
        log.flush()
        self.assertEqual((log.lost, Path(current(log.files, self.now)).read_bytes()), (1, b"kept\n"))

    def test_where_it_is(self) -> None:
        """A file a day in the state directory, or where the configuration says."""
        day = time.strftime("%Y-%m-%d", time.localtime(self.now))
        self.assertEqual(log_files(None, "/s", 1).at(self.now), f"/s/logs/mayros-{day}.log")
        self.assertEqual(log_files("x.log", "/s", 1).at(self.now), "/s/x.log")
        self.assertEqual(log_files("/var/log/x.log", "/s", 1).at(self.now), "/var/log/x.log")

    def test_the_newest_file_is_read(self) -> None:
        """Also when today nothing was said; where there is none, that is said."""
        files = Files(self.folder, "mayros", 1000)
        self.assertRaises(Unavailable, current, files, self.now)
        files.make()
        for name in ("mayros-2020-01-01.log", "mayros-2021-01-01.log", "mayros-2022-01-01.log.1", "access-2023-01-01.log"):
            Path(self.folder, name).touch()
        self.assertTrue(current(files, self.now).endswith("mayros-2021-01-01.log"))


class TailTests(SynchronousTestCase):
    """What `logs.tail` gives of a file."""

    def setUp(self) -> None:
        self.path = self.mktemp()
        Path(self.path).write_bytes(b"one\ntwo\nthree\nfo")

    def read(self, cursor: int | None = None, limit: int = 500, max_bytes: int = 1000) -> tuple[tuple[str, ...], int, bool, bool]:
        found = read(self.path, cursor, limit, max_bytes)
        self.assertEqual((found.file, found.size), (self.path, os.path.getsize(self.path)))
        return found.lines, found.cursor, found.truncated, found.reset

    def test_the_end(self) -> None:
        """Whole lines; one that is still being written comes later, as a whole."""
        self.assertEqual(self.read(), (("one", "two", "three"), 14, False, False))
        self.assertEqual(self.read(limit=1), (("three",), 14, True, False))
        self.assertEqual(self.read(14), ((), 14, True, False))
        with open(self.path, "ab") as file:
            file.write(b"ur\nfive\n")
        self.assertEqual(self.read(14), (("four", "five"), 24, False, False))

    def test_nothing_is_passed_over_behind_a_cursor(self) -> None:
        """Where there are more lines than asked for, the first ones."""
        self.assertEqual(self.read(0, limit=2), (("one", "two"), 8, False, False))
        self.assertEqual(self.read(8, limit=2), (("three",), 14, False, False))

    def test_a_cursor_that_is_of_no_use(self) -> None:
        """Beyond the end (the file is another one), or too far back: the end again, and it is said."""
        self.assertEqual(self.read(900), (("one", "two", "three"), 14, False, True))
        self.assertEqual(self.read(0, max_bytes=9), (("three",), 14, True, True))

    def test_the_middle_of_a_line(self) -> None:
        """Is dropped."""
        self.assertEqual(self.read(max_bytes=11), (("three",), 14, True, False))
        self.assertEqual(self.read(5), (("three",), 14, False, False))

    def test_a_line_without_end(self) -> None:
        """Does not stop the reader: what is longer than may be asked for is passed over."""
        Path(self.path).write_bytes(b"x" * 50)
        lines, cursor, _, _ = self.read(0, max_bytes=50)
        self.assertEqual((lines, cursor), ((), 50))

    def test_no_utf8(self) -> None:
        """Is shown as far as it can be."""
        Path(self.path).write_bytes(b"a\xffb\n")
        self.assertEqual(self.read()[0], ("a\ufffdb",))


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
        self.assertRegex(name, r"^access-\d{4}-\d\d-\d\d\.log$")
        self.assertEqual(stat.S_IMODE(os.stat(os.path.join(self.folder, name)).st_mode), 0o600)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_old_files_are_deleted(self) -> None:
        """After a week; other files stay."""
        os.makedirs(self.folder)
        for name in ("access-2020-01-01.log", "other.txt"):
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

    def test_a_folder_that_cannot_be_made(self) -> None:
        """Does not stop the start; what comes when it can be made is written."""
        Path(self.folder).touch()
        self.log.start()
        self.log.record(self.entry())
        self.log.flush()
        os.unlink(self.folder)
        self.log.record(self.entry("/later"))
        self.log.stop()
        self.assertEqual([line["path"] for line in self.lines()], ["/later"])
