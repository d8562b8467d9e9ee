"""A supervised child process: spoken to in lines over pipes, bounded in what it may say, stopped for good. Imports nothing of ours.

Nothing leaks into the child: it gets three pipes and no other descriptor (Twisted closes the rest), and an environment of allowed names. It
should end itself at the end of its standard input, which the system closes whatever way the gateway goes. A program of ours does the rest of
its own isolation at its start, where there is no race and no shim: a session of its own, and on Linux PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

#: What a child may see of the gateway's environment; secrets have other names.
PASSED = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ")
LINE_LIMIT = 64 * 1024  # bytes of one line of standard output
TAIL_LIMIT = 4096  # bytes kept of standard error
KILL_SECONDS = 3.0  # from SIGTERM to SIGKILL
LINGER_SECONDS = 0.2  # for what is still in the pipes once the process is gone; a grandchild may hold them for ever


class Spawn(Protocol):
    """`reactor.spawnProcess`, as far as it is used here."""

    def __call__(self, processProtocol: ProcessProtocol, executable: str, args: list[str], env: dict[str, str]) -> Any: ...


def scrubbed(environ: Mapping[str, str], **more: str) -> dict[str, str]:
    """The environment for a child: the allowed names of `environ`, and `more`."""
    return {**{name: environ[name] for name in PASSED if name in environ}, **more}


class Child(ProcessProtocol):
    """One process, from its start to its end.

    `on_line` gets each line of standard output, without its end; `on_exit` is called once, with a few words on how it ended. Neither may raise.
    """

    def __init__(self, clock: IReactorTime, on_line: Callable[[bytes], None], on_exit: Callable[[str], None]) -> None:
        self._clock, self._on_line, self._on_exit = clock, on_line, on_exit
        self._partial = b""
        self._errors = b""
        self._how: str | None = None
        self._reported = False
        self._timer: IDelayedCall | None = None
        self._stopping: list[Deferred[None]] = []

    def start(self, spawn: Spawn, argv: list[str], env: dict[str, str]) -> None:
        """Start the program `argv[0]`. Raises OSError where the system has no room for it; then `on_exit` is never called."""
        spawn(self, argv[0], argv, env)

    @property
    def last_words(self) -> str:
        """The end of what it wrote to standard error, on one line."""
        return " ".join(self._errors[-TAIL_LIMIT:].decode("utf-8", "replace").split())

    def write(self, data: bytes) -> None:
        """Write to its standard input."""
        if self.transport is not None and self._how is None:
            self.transport.write(data)

    def stop(self) -> Deferred[None]:
        """SIGTERM, and SIGKILL after 3 s. Fires when the process is gone; each caller has a Deferred of its own."""
        if self._how is not None:
            return succeed(None)
        gone: Deferred[None] = Deferred(self._stopping.remove)
        self._stopping.append(gone)
        if self._timer is None:
            self._timer = self._clock.callLater(KILL_SECONDS, self.kill)
            self._signal(signal.SIGTERM)
        return gone

    def kill(self) -> None:
        """SIGKILL at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        try:
            if self.transport is not None:
                self.transport.signalProcess(number)
        except ProcessExitedAlready:
            pass  # its end is about to be reported

    # What Twisted calls.

    def outReceived(self, data: bytes) -> None:
        """Cut standard output into lines."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > LINE_LIMIT:
            self._partial = b""
            self._errors += b"\n(killed: it wrote a line without end)"
            self.kill()
        for line in lines:
            if not self._reported:
                self._on_line(line)

    def errReceived(self, data: bytes) -> None:
        """Keep the end of standard error."""
        self._errors += data
        if len(self._errors) > 2 * TAIL_LIMIT:
            self._errors = self._errors[-TAIL_LIMIT:]

    def processExited(self, reason: Failure) -> None:
        """The process is gone; its pipes may still hold something."""
        code, number = getattr(reason.value, "exitCode", None), getattr(reason.value, "signal", None)
        self._how = f"signal {signal.Signals(number).name}" if number else f"exit status {code}"
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = self._clock.callLater(LINGER_SECONDS, self._report)

    def processEnded(self, reason: Failure) -> None:
        """The process is gone and its pipes are empty."""
        self._report()

    def _report(self) -> None:
        if self._reported:
            return
        self._reported = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        waiting, self._stopping = self._stopping, []
        self._on_exit(self._how or "unknown")
        for gone in waiting:
            gone.callback(None)
