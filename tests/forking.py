"""Processes of this project that begin as the fork of one that has loaded it: an eighth of the work of a start from nothing.

They are processes like others, but for what they were started with: `/proc/<pid>/cmdline` and `environ` are those of the loader. Tests that are
about a start (what is loaded, inherited, or left to be seen) make theirs from nothing, as `Daemon` does by itself; `Quick` does it so.

This file is also the loader's program: `python forking.py FD`, where FD is a socket that takes orders.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

#: All that a gateway or a command loads, but for what imports the reactor: that has descriptors, which a fork would share.
LOADED = (
    *("twisted.scripts.twistd", "twisted.scripts._twistd_unix", "twisted.web.server", "autobahn.twisted.websocket", "alembic.command"),
    *("sqlalchemy.dialects.sqlite", "mayros.runtime", "mayros.storage.database", "mayros.storage.migrate", "mayros.cli.main", "mayros.cli.remote"),
    *("mayros.ws.client", "mayros.core.keys"),
)
#: The descriptors that come with an order: where to report, standard output, standard error.
FDS = 3
GONE = "the process that loads the program for the tests has ended; why is in its standard error, which is that of the tests"
#: The first order waits until the program is loaded.
LOAD_SECONDS = 60


class Forked:
    """A process that was started so, as far as it is like a `subprocess.Popen`."""

    def __init__(self, report: socket.socket, argv: Sequence[str]) -> None:
        self.args = argv
        self.returncode: int | None = None
        self._report = report
        report.settimeout(LOAD_SECONDS)
        self.pid = int.from_bytes(report.recv(4), "little")
        if self.pid == 0:
            raise AssertionError(GONE)

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None: it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float) -> int:
        """Its exit status. Raises TimeoutExpired after these seconds."""
        if self.returncode is None:
            self._report.settimeout(timeout)
            try:
                said = self._report.recv(4)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(list(self.args), timeout) from None
            self._report.close()
            if len(said) != 4:
                raise AssertionError(GONE)
            self.returncode = int.from_bytes(said, "little", signed=True)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing happens where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Loader:
    """The process that forks. It ends with the one that started it; what it started does not."""

    def __init__(self, path: Mapping[str, str]) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], env=os.environ | path, pass_fds=(theirs.fileno(),), stdout=subprocess.DEVNULL
            )

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def start(self, argv: Sequence[str], environ: Mapping[str, str], cwd: Path, stdout: IO[bytes], stderr: IO[bytes]) -> Forked:
        """Start `[python, "-c", code, *arguments]`."""
        python, flag, code, *arguments = argv
        if (python, flag) != (sys.executable, "-c"):
            raise ValueError(f"this is no program in a text: {argv}")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            order = json.dumps({"code": code, "arguments": arguments, "environ": dict(environ), "cwd": str(cwd)}).encode()
            try:
                socket.send_fds(self._orders, [order], [theirs.fileno(), stdout.fileno(), stderr.fileno()])
            except BrokenPipeError:
                raise AssertionError(GONE) from None
        return Forked(ours, argv)

    def run(self, argv: Sequence[str], environ: Mapping[str, str], cwd: Path, seconds: float) -> subprocess.CompletedProcess[str]:
        """Start it, wait for its end, and give what it wrote. Raises TimeoutExpired after `seconds`, when it is killed."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
            process = self.start(argv, environ, cwd, out, error)
            try:
                status = process.wait(seconds)
            finally:
                process.kill()
            said = []
            for file in (out, error):
                file.seek(0)
                said.append(file.read().decode())
        return subprocess.CompletedProcess(list(argv), status, *said)


_made: list[Loader] = []


def loader() -> Loader:
    """The one of this process, made when it is first needed, and anew where it has ended."""
    from tests.daemon import python_path

    if not _made or not _made[-1].lives:
        _made.append(Loader(python_path()))
    return _made[-1]


def serve(fd: int) -> dict[str, Any]:
    """Take orders until nobody gives any, and end. In each fork: returns with the order that it is for."""
    import select

    orders = socket.socket(fileno=fd)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    reports: dict[int, tuple[int, int]] = {}
    while True:
        for ready, _ in poll.poll():
            if ready != fd:
                poll.unregister(ready)
                pid, report = reports.pop(ready)
                _, status = os.waitpid(pid, 0)
                os.close(ready)
                _tell(report, os.waitstatus_to_exitcode(status))
                os.close(report)
                continue
            data, fds, _, _ = socket.recv_fds(orders, 1 << 20, FDS)
            if not data:
                os._exit(0)
            pid = os.fork()
            if pid == 0:
                os.dup2(fds[1], 1)
                os.dup2(fds[2], 2)
                orders.detach()
                os.closerange(3, 1 << 12)
                order: dict[str, Any] = json.loads(data)
                return order
            watched = os.pidfd_open(pid)
            reports[watched] = (pid, fds[0])
            poll.register(watched, select.POLLIN)
            _tell(fds[0], pid)
            for one in fds[1:]:
                os.close(one)


def _tell(report: int, number: int) -> None:
    try:
        os.write(report, number.to_bytes(4, "little", signed=True))
    except OSError:
        return  # nobody wants to know any more


def become(order: dict[str, Any]) -> dict[str, Any]:
    """Be what was ordered; the names that its program begins with."""
    os.environ.clear()
    os.environ.update(order["environ"])
    os.chdir(order["cwd"])
    time.tzset()
    sys.argv = ["-c", *order["arguments"]]
    sys.path[0] = ""
    return {"__name__": "__main__", "__builtins__": __builtins__}


if __name__ == "__main__":
    import gc
    import importlib
    import threading

    # Not this folder, whose modules have names of others, but the one that each process begins in.
    sys.path[:] = ["", *(folder for folder in sys.path if folder not in ("", os.path.dirname(os.path.abspath(__file__))))]
    for module in LOADED:
        importlib.import_module(module)
    assert "twisted.internet.reactor" not in sys.modules
    assert threading.active_count() == 1
    gc.collect()
    gc.freeze()
    given = serve(int(sys.argv[1]))
    exec(given["code"], become(given))  # the program of a test
