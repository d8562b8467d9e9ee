"""Processes found by what they inherit. Imports nothing of ours.

A process can leave its group and its session, and outlive who started it, but it keeps the environment it was started with, which Linux shows in
/proc/*/environ. What is started with an empty one (`env -i`) keeps its limits all the same: the limit of file locks, at which the kernel has not
looked since 2004, is a number that says the same, in /proc/*/limits. Only who lowers that as well is not found, and what other programs start on
request (cron, a container engine, `systemd-run`). Where there is no /proc, nothing is found. The folder is read in a thread: a few hundred processes
take some milliseconds.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

VARIABLE = "MAYROS_EXEC_ID"
KILL_GRACE = 2.0  # seconds from SIGTERM to SIGKILL, and how long SIGKILL is repeated
LOOK_EVERY = 0.05
#: How often one look looks for what has come to be while it looked.
ROUNDS = 8
_LOCKS = re.compile(rb"^Max file locks +\d+ +(\d+)", re.MULTILINE)

log = Logger()


class Reactor(Protocol):
    """What is used of a reactor here."""

    def seconds(self) -> float: ...

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> IDelayedCall: ...

    def callFromThread(self, callable: Callable[..., object], *args: object, **kw: object) -> None: ...

    def getThreadPool(self) -> Any: ...


def pause(reactor: Reactor, seconds: float) -> Deferred[None]:
    """Fires after a while; may be cancelled."""
    waiting: Deferred[None] = Deferred(lambda _: timer.cancel())
    timer = reactor.callLater(seconds, waiting.callback, None)
    return waiting


class _Found(NamedTuple):
    """How a process is marked. `mark`: its variable; `limit`: its limit of file locks, in hexadecimal. Each empty where it has none."""

    mark: str
    limit: str

    def begins(self, prefix: str, digits: str) -> bool:
        return self.mark.startswith(prefix) or self.limit.startswith(digits)


class _Wanted(NamedTuple):
    prefix: str
    number: int
    group: int
    #: Those whose marks begin so are let be.
    spared: str | None
    #: Gets the process groups of those that were found; at SIGKILL these are killed as a whole.
    groups: set[int] | None = None


def limit(mark: str) -> int:
    """The limit of file locks that says the same as a mark."""
    return int(_digits(mark), 16)


def _digits(prefix: str) -> str:
    """The first digits of the limits that go with marks which begin so."""
    parts = zip(prefix.split("."), (5, 4, 6), strict=False)
    return "4" + "".join(part[:size] for part, size in parts)


class Marks:
    """The marks of one gateway: `<family>.<instance>.<command>`, where the family is the state directory, which one gateway at a time has."""

    def __init__(self, reactor: Reactor, state_dir: str) -> None:
        self._reactor = reactor
        try:  # the same path in another container is another gateway's
            space = os.readlink("/proc/self/ns/pid")
        except OSError:
            space = ""
        family = hashlib.sha256(f"{space}\0{os.path.realpath(state_dir)}".encode()).hexdigest()[:16]
        self.family = f"{family}."
        self.instance = f"{self.family}{secrets.token_hex(6)}."
        self._count = 0
        self._asked: list[tuple[_Wanted, Deferred[int]]] = []
        self._looking = False

    def new(self) -> str:
        """A mark for one more command. Its first digits are counted, so that the limits differ, too."""
        self._count = (self._count + 1) % (1 << 24)
        return f"{self.instance}{self._count:06x}{secrets.token_hex(5)}"

    def look(self, prefix: str, number: int = 0, group: int = 0, spared: str | None = None, groups: set[int] | None = None) -> Deferred[int]:
        """Send a signal (0: none) to all processes whose mark begins so. How many these are, with those of a process group (0: none); no zombies.

        One look serves all who ask meanwhile. `spared`: let those be whose mark begins so. `groups` gets their process groups, which at SIGKILL are
        killed as a whole.
        """
        answer: Deferred[int] = Deferred()
        self._asked.append((_Wanted(prefix, number, group, spared, groups), answer))
        if not self._looking:
            self._begin()
        return answer

    async def clear(
        self, prefix: str, grace: float, spared: str | None = None, *, group: int = 0, send: Callable[[int], bool] = lambda _: False
    ) -> int:
        """End all processes with such a mark: SIGTERM, and after `grace` seconds SIGKILL. How many there were at first.

        Those of a process group with them, which `send` signals; it says whether anybody is in it, and is not asked again after that. Processes that
        live so shortly that no look meets them, each of which starts the next one, end with their group: one of them was met before.
        """
        groups: set[int] = set()
        deadline = self._reactor.seconds() + grace
        group = group if group and send(signal.SIGTERM) else 0
        first = left = await self.look(prefix, signal.SIGTERM, group, spared, groups)
        while left:
            await pause(self._reactor, LOOK_EVERY)
            now = self._reactor.seconds()
            number = signal.SIGKILL if now >= deadline else 0
            group = group if group and send(number) else 0
            left = await self.look(prefix, number, group, spared, groups)
            if not left and any(map(_is_there, groups)):
                left = await self.look(prefix, signal.SIGKILL, 0, spared, groups)
            if left and now > deadline + KILL_GRACE:
                log.warn("{left} processes of a command could not be ended", left=left)
                break
        return first

    async def sweep(self, grace: float = KILL_GRACE) -> int:
        """End what earlier gateways of this state directory left running; how many processes that were."""
        return await self.clear(self.family, grace, spared=self.instance)

    def _thread(self, function: Callable[..., Any], *args: object) -> Deferred[Any]:
        reactor: Any = self._reactor
        return deferToThreadPool(reactor, reactor.getThreadPool(), function, *args)

    def _begin(self) -> None:
        asked, self._asked = self._asked, []
        self._looking = True

        def seen(counts: list[int] | Failure) -> None:
            self._looking = False
            if self._asked:
                self._begin()
            for index, (_, answer) in enumerate(asked):
                if answer.called:
                    continue  # nobody waits any more
                answer.callback(counts if isinstance(counts, Failure) else counts[index])  # a failure makes it fail

        self._thread(_look, [wanted for wanted, _ in asked]).addBoth(seen)


def _numbers() -> list[str]:
    """All processes but this one, newest first, since old ones wait; none where there is no /proc."""
    try:
        names = os.listdir("/proc")
    except FileNotFoundError:
        return []
    own = str(os.getpid())
    return [name for name in reversed(names) if name.isdigit() and name != own]


def _all_numbers() -> Iterator[str]:
    """Those, and then the ones that came to be meanwhile, perhaps of some that are gone; up to a bound, for there are always new ones."""
    seen: set[str] = set()
    for _ in range(ROUNDS):
        fresh = [pid for pid in _numbers() if pid not in seen]
        if not fresh:
            return
        seen.update(fresh)
        yield from fresh


def _marked(pid: str) -> _Found:
    """How a process is marked; not at all where it is gone, or another user's."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environ = b"\0" + file.read()
        if len(environ) == 1 and not _group(pid):  # a zombie has limits still
            return _Found("", "")
        with open(f"/proc/{pid}/limits", "rb") as file:
            hard = _LOCKS.search(file.read())
    except OSError:
        return _Found("", "")
    _, given, rest = environ.partition(f"\0{VARIABLE}=".encode())
    return _Found(rest.partition(b"\0")[0].decode("ascii", "replace") if given else "", f"{int(hard[1]):016x}" if hard else "")


def _group(pid: str) -> int:
    """The process group of a process that is no zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, _, group = file.read().rpartition(b")")[2].split()[:3]
    except (OSError, ValueError):  # gone
        return 0
    return 0 if state in (b"Z", b"X") else int(group)


def _look(asked: Sequence[_Wanted]) -> list[int]:
    counts = [0] * len(asked)
    groups = any(wanted.group or wanted.groups is not None for wanted in asked)
    digits = [_digits(wanted.prefix) for wanted in asked]
    for pid in _all_numbers():
        group = _group(pid) if groups else 0
        found = _marked(pid)
        for index, wanted in enumerate(asked):
            if found.begins(wanted.prefix, digits[index]):
                if wanted.spared is not None and found.begins(wanted.spared, _digits(wanted.spared)):
                    continue
                counts[index] += 1
                if wanted.groups is not None:
                    wanted.groups.add(group)
                if wanted.number:
                    _send(pid, found, wanted.number)
            elif group and group == wanted.group:
                counts[index] += 1
    for wanted in asked:
        if wanted.number == signal.SIGKILL and wanted.groups:
            _kill_groups(wanted, wanted.groups)
    return counts


def _is_there(group: int) -> bool:
    """Whether anybody is in a process group; a zombie counts."""
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    return True


def _send(pid: str, found: _Found, number: int) -> None:
    """Signal the process that is marked so, and no other that came to have its number."""
    with suppress(OSError):  # it is gone; or it changed its user, and is no longer ours to end
        handle = os.pidfd_open(int(pid))
        try:
            if _marked(pid) == found:
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


def _kill_groups(wanted: _Wanted, groups: set[int]) -> None:
    """End the groups in which marked processes were seen; those that are not to be ended are taken out of `groups`.

    Commands lead groups of their own, and so do daemons. Where anybody else is seen in a group it is let be, as is the gateway's own. The number of a
    group that is empty by now is nobody else's so soon: the system gives out all others before.
    """
    groups -= {0, os.getpgrp()}
    for pid in _numbers():
        if (group := _group(pid)) in groups:
            found = _marked(pid)
            meant = found.begins(wanted.prefix, _digits(wanted.prefix))
            spared = wanted.spared is not None and found.begins(wanted.spared, _digits(wanted.spared))
            if (spared or not meant) and _group(pid) == group:
                groups.discard(group)
    for group in groups:
        with suppress(OSError):
            os.killpg(group, signal.SIGKILL)
