"""The service manager that started this process: what it is told, what it watches, and the sockets that it holds for us. Imports net and errors.

The protocol is sd_notify's: one datagram a message to the socket that `$NOTIFY_SOCKET` names. A process that no manager started tells nobody, at no
cost. Nothing here waits: a manager that does not read must not stop the reactor. Everything is read from the environment once, at the start, and is
then taken out of it, so that no child takes it for its own.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import NamedTuple

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from mayros.core.ports import Clock

log = Logger()

#: The first descriptor that is passed; the others follow it.
FIRST = 3
#: More than any socket unit has.
MOST = 64
#: What is the manager's word to this process and to no other.
VARIABLES = (
    "CREDENTIALS_DIRECTORY",
    "FDSTORE",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "MAINPID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
)
#: How often the manager's line about us is made anew, in seconds.
STATUS_SECONDS = 10.0
#: `RestartSec=` of our units.
RESTART_SECONDS = 2.0
#: Characters of that line.
STATUS_LENGTH = 200


class Passed(NamedTuple):
    """A socket that the manager holds open and has passed on: its descriptor here, and the name that its unit gives it."""

    fd: int
    name: str


class Manager:
    """Who started us. `address` is where it listens (`/path`, or `@name` for an abstract socket); empty: nobody is told anything.

    `watchdog_seconds`: it ends the process when it hears nothing for so long; None: it does not watch.
    """

    def __init__(self, address: str = "", watchdog_seconds: float | None = None, sockets: tuple[Passed, ...] = ()) -> None:
        self.address, self.watchdog_seconds, self.sockets = address, watchdog_seconds, sockets
        #: How long after a clean end the next process serves, as far as this one can tell: as long as it took itself, and what our units wait before.
        self.again_seconds = RESTART_SECONDS

    @classmethod
    def of(cls, environ: Mapping[str, str], pid: int) -> Manager:
        """The manager that this environment tells of; what is meant for another process than `pid` is not heeded."""
        address = environ.get("NOTIFY_SOCKET", "")
        if address[:1] not in ("/", "@") or len(address) < 2:
            address = ""
        return cls(address, _watchdog(environ, pid), tuple(_passed(environ, pid)))

    def tell(self, *lines: str) -> bool:
        """Send one message of these lines; whether it was taken. Never waits, never raises."""
        if not self.address:
            return False
        address = "\0" + self.address[1:] if self.address[0] == "@" else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sending:
            sending.setblocking(False)
            try:
                sending.sendto("\n".join(lines).encode(), address)
            except OSError as error:
                log.warn("the service manager did not take {what}: {why}", what=lines[0].partition("=")[0], why=error.strerror or str(error))
                return False
        return True

    def ready(self, status: str) -> None:
        """Serving, with this said about us; also the end of a reload, whatever came of it."""
        if self.address and self.again_seconds == RESTART_SECONDS:
            self.again_seconds += _age_seconds()
        self.tell("READY=1", _status(status))

    def status(self, status: str) -> None:
        """Only what is said about us."""
        self.tell(_status(status))

    def reloading(self) -> None:
        """The configuration is read anew; `ready` must follow, also where it cannot be used."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str, seconds: float) -> None:
        """On the way out, which may take so long: the manager's own limit is moved where it is nearer."""
        self.tell("STOPPING=1", _status(status), f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")


def scrub(environ: MutableMapping[str, str]) -> None:
    """Take the manager's words out of the environment that children inherit."""
    for name in VARIABLES:
        environ.pop(name, None)


def close_on_exec(sockets: tuple[Passed, ...]) -> None:
    """No program that is started inherits them. Raises OSError for a descriptor that is none."""
    for one in sockets:
        fcntl.fcntl(one.fd, fcntl.F_SETFD, fcntl.fcntl(one.fd, fcntl.F_GETFD) | fcntl.FD_CLOEXEC)


def _age_seconds() -> float:
    """Since this process was begun; 0 where the system does not tell."""
    try:
        with open("/proc/self/stat", "rb") as file:
            began = int(file.read().rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began)
    except OSError:
        return 0.0


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())[:STATUS_LENGTH]


def _watchdog(environ: Mapping[str, str], pid: int) -> float | None:
    usec = _number(environ.get("WATCHDOG_USEC", ""))
    if not usec or environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return usec / 1_000_000


def _passed(environ: Mapping[str, str], pid: int) -> list[Passed]:
    """The sockets, by LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES.

    Twisted takes the first two out of the environment when its endpoints are imported (and only where they are meant for this process) and leaves the
    names, of which there are then as many as sockets.
    """
    names = environ["LISTEN_FDNAMES"].split(":") if environ.get("LISTEN_FDNAMES") else []
    count: int | None = len(names)
    if "LISTEN_FDS" in environ or "LISTEN_PID" in environ:
        count = _number(environ.get("LISTEN_FDS", "")) if environ.get("LISTEN_PID") == str(pid) else 0
    return [Passed(FIRST + number, names[number] if number < len(names) else "") for number in range(min(count or 0, MOST))]


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


class Heartbeat:
    """Keeps the manager informed while the gateway runs: its watchdog, and one line about what goes on.

    `stalled()` gives the seconds for which the store's writer has not come back from its work, 0 while it is well. The watchdog is told that all is
    well by a timer of the reactor, and only while the writer is: where either is stuck, the manager hears nothing and starts the gateway anew.
    `status()` gives the line.
    """

    def __init__(self, manager: Manager, clock: Clock, stalled: Callable[[], float], status: Callable[[], str]) -> None:
        self._manager, self._stalled, self._status = manager, stalled, status
        self._said = ""
        self._watching, self._saying = LoopingCall(self._ping), LoopingCall(self._say)
        self._watching.clock = self._saying.clock = clock  # type: ignore[assignment]

    def start(self) -> None:
        """Say that the gateway is ready, and what it does from now on."""
        if not self._manager.address:
            return
        self._said = self._status()
        self._manager.ready(self._said)
        self._saying.start(STATUS_SECONDS, now=False)
        if self._manager.watchdog_seconds is not None:
            self._watching.start(self._manager.watchdog_seconds / 2)

    def quiet(self) -> None:
        """No more lines of its own; the watchdog goes on."""
        if self._saying.running:
            self._saying.stop()

    def stop(self) -> None:
        """The store is about to be closed: nothing more."""
        self.quiet()
        if self._watching.running:
            self._watching.stop()

    def _say(self) -> None:
        status = self._status()
        if status != self._said and self._manager.tell(_status(status)):
            self._said = status

    def _ping(self) -> None:
        allowed = self._manager.watchdog_seconds
        if allowed is None:
            return
        stalled = self._stalled()
        if stalled < allowed / 2:
            self._manager.tell("WATCHDOG=1")
        else:
            log.error("the store's writer has not come back for {seconds:.0f} s; the service manager will start the gateway anew", seconds=stalled)
