"""What the rows of bench.faults have in common: a gateway that things can be done to, turns that are remembered, and who looks on meanwhile.

All processes are children of this one, and each is ended by its own process id. Linux only.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from bench.measure import MB
from bench.rig import pause, resident_bytes
from tests.daemon import Daemon, Upstream, python_path

#: `/healthz` must be answered within so many seconds while something is wrong. Other processes use this machine too.
PROMPT_SECONDS = 0.5
HELLO = {"model": "mayros", "messages": [{"role": "user", "content": "hello"}]}


class Part(NamedTuple):
    """One thing that was done, and what was seen. `ok` None: it cannot be done on this machine, `seen` says why."""

    done: str
    seen: str
    ok: bool | None


class Place(NamedTuple):
    """Where a row works: a folder of its own, a model server, and the small file system that the operator has named, if any."""

    folder: Path
    upstream: Upstream
    small: Path | None


Row = Callable[[Place], Iterator[Part]]


class Gateway(Daemon):
    """A gateway that `before` (a program and its options) starts, and in which `preamble` (Python) runs first. `output`: where it writes."""

    def __init__(self, folder: Path, upstream: Upstream | None = None, **changes: Any) -> None:
        super().__init__(folder, upstream, changes)
        self.config["agents"]["defaults"]["skipBootstrap"] = True
        self.before: list[str] = []
        self.preamble = ""
        self.output: int | None = None

    def command(self, *options: str, cli: bool = False) -> list[str]:
        """See Daemon."""
        python, flag, code, *rest = super().command(*options, cli=cli)
        return [*self.before, python, flag, f"{self.preamble}\n{code}", *rest]

    def _begin(self, argv: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        output = log if self.output is None else self.output
        return subprocess.Popen(argv, cwd=self.folder, env=self.environ | python_path(), stdout=output, stderr=output)

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process is not None
        return self.process.pid

    @property
    def store(self) -> Path:
        """The file of its store."""
        return self.state / "mayros.db"

    def said(self, words: str) -> int:
        """How often it has said this in its log."""
        return self.log.read_text(errors="replace").count(words)

    def ready(self) -> int:
        """The status of /readyz."""
        return self.request("GET", "/readyz")[0]

    def up(self) -> bool:
        """Whether it runs and answers."""
        return self.process is not None and self.process.poll() is None and self.request("GET", "/healthz")[0] == 200

    def descriptors(self) -> int:
        """How many files it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def megabytes(self) -> float:
        """Its resident memory."""
        return resident_bytes(self.pid) / MB

    def limit_files(self, most: int) -> None:
        """The size that a file it writes can have, in bytes: 0 is a disk without any room, -1 is none. It stays for one who tries: soft and hard."""
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


class Answer(NamedTuple):
    """How a turn was answered: the HTTP status, the code of the error, and in how many seconds."""

    status: int
    code: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.status}{f' {self.code}' if self.code else ''} after {self.seconds:.1f} s"


class Turns:
    """Turns of one gateway, each with a text of its own, and which of them were acknowledged."""

    def __init__(self, gateway: Gateway, size: int = 0) -> None:
        self._gateway, self._size = gateway, size
        self._sent = 0
        self.acknowledged: list[str] = []
        self.refused: list[str] = []

    def ask(self, user: str = "someone") -> Answer:
        """One turn. Raises OSError where nobody answers."""
        self._sent += 1
        text = f"turn-{self._sent}-{os.urandom(4).hex()} {'x' * self._size}"
        began = time.monotonic()
        body = {"model": "mayros", "user": user, "messages": [{"role": "user", "content": text}]}
        status, answer = self._gateway.request("POST", "/v1/chat/completions", body)
        took = time.monotonic() - began
        (self.acknowledged if status == 200 else self.refused).append(text.split()[0])
        return Answer(status, "" if status == 200 else str(json.loads(answer)["error"]["code"]), took)

    def until_answered(self, seconds: float) -> Answer:
        """Ask until a turn is recorded and the gateway calls itself ready; the last answer, whatever it is."""
        began = time.monotonic()
        while True:
            answer = self.ask()
            took = time.monotonic() - began
            if (answer.status == 200 and self._gateway.ready() == 200) or took > seconds:
                return Answer(answer.status, answer.code, took)
            pause(0.2)

    def kept(self) -> str:
        """Look into the store: what is wrong with it, or nothing."""
        with contextlib.closing(sqlite3.connect(f"file:{self._gateway.store}?mode=ro", uri=True, timeout=10)) as database:
            if (verdict := database.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
                return f"integrity_check: {verdict}"
            texts = [row[0] for row in database.execute("SELECT body FROM entries WHERE body LIKE '%\"user\"%'")]
        found = Counter(marker for text in texts for marker in (*self.acknowledged, *self.refused) if marker in text)
        wrong = [f"{marker}: {found[marker]} times" for marker in self.acknowledged if found[marker] != 1]
        wrong += [f"{marker} was refused and is there" for marker in self.refused if found[marker]]
        return "; ".join(wrong[:3])


class Pulse:
    """Asks /healthz each 20 ms while it is open. `slowest` is the longest answer in seconds, `missed` how many did not come."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway, self._over = gateway, threading.Event()
        self.slowest, self.missed, self.asked = 0.0, 0, 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(15)

    def _run(self) -> None:
        while True:
            began = time.monotonic()
            try:
                self.missed += self._gateway.request("GET", "/healthz")[0] != 200
            except OSError:
                self.missed += 1
            self.asked += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
            if self._over.wait(0.02):
                return

    @property
    def ok(self) -> bool:
        """Whether it was answered always, and soon."""
        return not self.missed and self.slowest < PROMPT_SECONDS

    def __str__(self) -> str:
        return f"/healthz within {self.slowest * 1e3:.0f} ms" + (f", {self.missed} of {self.asked} not at all" if self.missed else "")


class Load:
    """Clients that ask one turn after the other until it is closed. `wrong`: answers that were not 200."""

    def __init__(self, gateway: Gateway, clients: int) -> None:
        self._gateway, self._over, self._count = gateway, threading.Event(), threading.Lock()
        self.answered, self.wrong = 0, list[str]()
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(15)

    def _run(self, number: int) -> None:
        turns = Turns(self._gateway)
        while not self._over.is_set():
            try:
                answer = turns.ask(f"load-{number}")
            except OSError as error:
                self.wrong.append(repr(error))
                return
            with self._count:
                self.answered += 1
            if answer.status != 200:
                self.wrong.append(str(answer))


class Locker:
    """Another process, which holds the write lock of a store while it is open."""

    _CODE = (
        "import sqlite3, sys\nstore = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=5)\n"
        "store.execute('BEGIN EXCLUSIVE')\nprint('held', flush=True)\nsys.stdin.read()\nstore.execute('ROLLBACK')"
    )

    def __init__(self, store: Path) -> None:
        self._argv = [sys.executable, "-ISc", self._CODE, str(store)]

    def __enter__(self) -> Locker:
        self._process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"held\n":
            self.__exit__()
            raise AssertionError("the store could not be locked")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=10)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true in so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        pause(0.02)
    return condition()


def refusal(gateway: Gateway) -> tuple[int, str]:
    """Start it where it must not start: its status, and what it said on standard error."""
    status, said = gateway.refused()
    return status, said.strip()
