"""A shell command as a group of processes: started without delay, ended as a whole. Imports net.marks.

What `spawnProcess` alone does not give:

- The command leads a session and a process group of its own, so one signal reaches all that it started: through setsid(1), for there is no place
  in the child to do it (Twisted starts it with posix_spawn, which costs 2 ms where a fork of a large gateway costs 15; a terminal needs the fork).
- Its end is reported when the command itself ends, not when the last holder of its output does, which with `server & echo ok` may be never.
- What left the group (daemons), and what a gateway that died left behind, is found by its marks: a variable, and a limit that `env -i` keeps.
- It gets SIGTERM when the gateway dies, through setpriv(1) where there is one.
- Its environment is made from a list of allowed names.
- It gives way to the gateway where processors are short (nice(2); the kernel's groups for sessions of a terminal too, where they are on).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import struct
import sys
import termios
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal, Protocol

from twisted.internet.defer import Deferred, DeferredList, ensureDeferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from mayros.net import marks

#: What a command sees of the gateway's environment.
PASSED = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER")
#: What nobody may set for a command: names by which other code than the named command would be run, or found.
_REFUSED = """
    BASHOPTS BASH_ENV BROWSER CDPATH CLASSPATH EDITOR ENV GCONV_PATH GLOBIGNORE HOME IFS JAVA_TOOL_OPTIONS LESSCLOSE LESSOPEN MAKEFILES
    MAKEFLAGS MANPAGER NODE_OPTIONS NODE_PATH PAGER PATH PHP_INI_SCAN_DIR PROMPT_COMMAND PS4 RSYNC_RSH SHELL SHELLOPTS SSLKEYLOGFILE TAR_OPTIONS
    VISUAL XDG_CONFIG_HOME ZDOTDIR _JAVA_OPTIONS
"""
REFUSED = frozenset(_REFUSED.split())
REFUSED_PREFIXES = ("BASH_FUNC_", "DYLD_", "GIT_", "LD_", "MAYROS_", "NPM_CONFIG_", "PERL", "PYTHON", "RUBY")
GRACE = marks.KILL_GRACE
CANCELLED_GRACE = 0.8  # where the run is over: nothing is left after a second
LEFT_GRACE = 0.3  # for what a command left behind when it ended by itself
NICE = 5
LINGER = 0.2  # seconds for the last output of a command that is gone; a grandchild may hold its pipe for ever
PIPE_MAX = 1 << 20  # bytes that a pipe can hold
FULL, MORE = 8192, 56 * 1024  # bytes that Twisted reads at a time, and what is read after them where there are more: large outputs cost less

Why = Literal["exit", "timeout", "killed", "cancelled"]

log = Logger()


class Reactor(marks.Reactor, Protocol):
    """What is used of a reactor."""

    def spawnProcess(self, processProtocol: Any, executable: str, args: Sequence[str], env: Mapping[str, str], **kw: Any) -> Any: ...


def refused(name: str, value: str) -> str | None:
    """Why a call may not set this variable; None where it may."""
    upper = name.upper()
    if upper in REFUSED or upper.startswith(REFUSED_PREFIXES):
        return f"the environment variable {name} may not be set for a command"
    if not name or "=" in name or "\0" in name + value:
        return "the name of an environment variable must not be empty or hold `=`, and neither name nor value may hold a NUL byte"
    return None


def environment(environ: Mapping[str, str], more: Mapping[str, str], first: Sequence[str] = ()) -> dict[str, str]:
    """The allowed names of `environ` and `more`, which the caller has checked; `first` are folders put before PATH."""
    env = {name: environ[name] for name in PASSED if name in environ}
    env["PATH"] = os.pathsep.join([*first, env.get("PATH") or os.defpath])
    return {**env, **more}


class Spawner:
    """Starts commands, and knows which of them are not over.

    `environ` is the gateway's, of which commands see what `environment` lets through; no two gateways have `state_dir` at one time.
    """

    def __init__(self, reactor: Reactor, environ: Mapping[str, str], state_dir: str, which: Callable[[str], str | None] = shutil.which) -> None:
        self.reactor, self.environ = reactor, environ
        self.marks = marks.Marks(reactor, state_dir)
        self.live: set[Command] = set()
        self.used = False  # something was started
        self._stopping = False
        self._taken = False  # this turn of the reactor
        self._death: list[str] = []
        setpriv, setsid = which("setpriv"), which("setsid")
        if setpriv and os.path.basename(os.path.realpath(setpriv)) == "setpriv":  # that of busybox does not know how
            self._death = [setpriv, "--pdeathsig", "TERM", "--"]
        shim = [sys.executable, "-I", "-S", "-c", "import os,sys;os.setsid();os.execvp(sys.argv[1],sys.argv[1:])"]
        self._leader = [setsid] if setsid else shim

    async def turn(self) -> None:
        """Wait for one's turn to do what takes a while, a start or an end: fifty in a row would hold the reactor for a quarter of a second."""
        while self._taken:
            await marks.pause(self.reactor, 0)
        self._taken = True
        self.reactor.callLater(0, setattr, self, "_taken", False)

    def start(
        self,
        command: str,
        cwd: str,
        env: Mapping[str, str],
        on_output: Callable[[bytes], None],
        *,
        timeout: float,
        pty: bool = False,
        stdin: bool = False,
    ) -> Command:
        """Run `command` with /bin/sh in `cwd`; what it writes to both streams comes as one.

        `env` is the whole environment, see `environment`. A terminal (`pty`) has an input by itself; else the input is empty unless `stdin`. Raises
        OSError where the system has no room for it, or the gateway stops.
        """
        if self._stopping:
            raise OSError("the gateway is stopping")
        self.used = True
        mark = self.marks.new()
        started = Command(self, mark, on_output, can_write=pty or stdin, pty=pty)
        # The folder is entered in the child: asked to do it, Twisted would fork. Shells call the limit of file locks -w or -x, or do not have it.
        limits = f'ulimit -w "$3" || ulimit -x "$3"; echo {NICE} > /proc/$$/autogroup;'
        script = f'{{ {limits} }} 2> /dev/null; exec 2>&1; cd -- "$1" || exit 126; exec /bin/sh -c "$2"'
        argv = [*([] if pty else self._leader), *self._death, "/bin/sh", "-c", script, "sh", cwd, command, str(marks.limit(mark))]
        env = {**env, marks.VARIABLE: mark}
        if pty:
            self.reactor.spawnProcess(started, argv[0], argv, env, usePTY=True)
        else:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            try:
                self.reactor.spawnProcess(started, argv[0], argv, env, childFDs={0: "w" if stdin else null, 1: "r", 2: null})
            finally:
                os.close(null)
        started.limit(timeout)
        return started

    async def sweep(self, grace: float = GRACE) -> int:
        """At the start: end what earlier gateways of this state directory left running. How many processes that were."""
        return await self.marks.sweep(grace)

    def stop(self) -> Deferred[None]:
        """Start nothing more and end everything; fires when nothing is left, after a second or so."""
        self._stopping = True
        if not self.used:
            return succeed(None)
        commands = list(self.live)
        gone: Deferred[Any] = DeferredList([command.gone() for command in commands]) if commands else succeed(None)
        for command in commands:
            command.kill("cancelled")
        # And what background commands left that are over themselves.
        gone.addCallback(lambda _: ensureDeferred(self.marks.clear(self.marks.instance, CANCELLED_GRACE)))
        return gone.addCallback(lambda _: None)


class Command(ProcessProtocol):
    """A command, from its start to the end of everything that it started.

    It has `ended` when its own process is gone; it is `gone` when that and all the processes it started are, its `keep`ing of these left aside.
    `code` and `signal` are set when it has ended, `why` says what ended it, `left` how many processes it left behind that were ended for it.
    """

    def __init__(self, spawner: Spawner, mark: str, on_output: Callable[[bytes], None], *, can_write: bool, pty: bool) -> None:
        self._spawner, self._mark, self._on_output = spawner, mark, on_output
        self.pid = 0
        self.pty, self.can_write = pty, can_write
        #: Whether processes that it leaves behind may stay, as those of a command in the background may.
        self.keep = False
        self.code: int | None = None
        self.signal: int | None = None
        self.why: Why = "exit"
        self.left = 0
        self.has_ended = False
        self._exited = False  # its process is reaped
        self._grace = LEFT_GRACE
        self._closed: Deferred[None] = Deferred()  # nobody holds its output any more
        self._silent = False
        self._clearing = False
        self._deadline = 0.0
        self._is_gone = False
        self._ended: list[Deferred[None]] = []
        self._gone: list[Deferred[None]] = []
        self._timers: list[IDelayedCall] = []

    def ended(self) -> Deferred[None]:
        """Fires when the command has ended and its output is here; a new Deferred for each caller, which may cancel it."""
        return self._wait(self._ended, self.has_ended)

    def gone(self) -> Deferred[None]:
        """Fires when nothing is left of it."""
        return self._wait(self._gone, self._is_gone)

    def limit(self, seconds: float) -> None:
        """End it after so long."""
        if not self._exited:
            self._timers.append(self._spawner.reactor.callLater(seconds, self.kill, "timeout"))

    def write(self, data: bytes) -> None:
        """Write to its input."""
        if self.transport is not None and not self._exited:
            self.transport.write(data)

    def close_input(self) -> None:
        """End its input. A terminal has no end: it is sent what means one at the beginning of a line."""
        if self.transport is not None and not self._exited:
            if self.pty:
                self.transport.write(b"\x04")
            else:
                self.transport.closeStdin()
                self.can_write = False

    def kill(self, why: Why) -> None:
        """End it with all that it started: SIGTERM, and after 2 s SIGKILL; after 0.8 s where the run was cancelled. Also what it left, once ended."""
        if self._is_gone or self._clearing:
            return
        self.keep = False
        if self._exited and self.has_ended:
            self._begin(self._clear(CANCELLED_GRACE))
            return
        if self.why != "exit" or self._exited:
            return
        self.why = why
        grace = CANCELLED_GRACE if why == "cancelled" else GRACE
        self._deadline = self._spawner.reactor.seconds() + grace
        self._signal_group(signal.SIGTERM)
        self._timers.append(self._spawner.reactor.callLater(grace, self._kill_all))

    def _kill_all(self) -> None:
        self._signal_group(signal.SIGKILL)
        self._spawner.marks.look(self._mark, signal.SIGKILL).addErrback(lambda failure: log.failure("looking for processes", failure))

    def _signal_group(self, number: int) -> bool:
        """Whether there is anybody in the group."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            if self._exited:
                return False
            os.kill(self.pid, number)  # on its way to become a leader; it is not reaped, so the number is its own
        except PermissionError:  # one of them is another user's: the others did get it
            pass
        return True

    # What Twisted calls.

    def connectionMade(self) -> None:
        """It runs."""
        self.pid = self.transport.pid if self.transport is not None else 0
        self._spawner.live.add(self)
        os.setpriority(os.PRIO_PROCESS, self.pid, min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICE))

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """It wrote something."""
        self._on_output(data)
        if len(data) == FULL:
            self._read(MORE)

    def _read(self, most: int) -> None:
        """Read what is in the pipe at the moment, at most so many bytes."""
        pipe = self.transport if self.pty else getattr(self.transport, "pipes", {}).get(1)
        fd = getattr(pipe, "fd", -1)
        try:
            left = min(most, *struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4))))
            while left > 0 and (data := os.read(fd, left)):
                self._on_output(data)
                left -= len(data)
        except (OSError, ValueError):  # it is closed, or of a kind that does not tell: Twisted will see
            pass

    def processExited(self, reason: Failure) -> None:
        """Its process is gone; others may hold its output."""
        self._exited = True
        self.code, self.signal = getattr(reason.value, "exitCode", None), getattr(reason.value, "signal", None)
        self._begin(self._finish())

    def processEnded(self, reason: Failure) -> None:
        """And nobody holds its output."""
        self._silent = True
        if not self._closed.called:
            self._closed.callback(None)
        if self.has_ended and not self._clearing:
            self._over()

    def _begin(self, work: Coroutine[Deferred[Any], Any, None]) -> None:
        ensureDeferred(work).addErrback(lambda failure: log.failure("ending a command", failure))

    async def _finish(self) -> None:
        reactor = self._spawner.reactor
        if not self._closed.called:  # let its last output arrive
            linger = reactor.callLater(LINGER, self._closed.callback, None)
            await self._closed
            if linger.active():
                linger.cancel()
            else:
                self._read(PIPE_MAX)  # it may be that the gateway was busy
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        if not self.keep:
            await self._clear(LEFT_GRACE if self.why == "exit" else max(0.0, self._deadline - reactor.seconds()))
            return
        await self._tell()
        if self._silent:
            self._over()

    async def _clear(self, grace: float) -> None:
        """End what it left, in its group and outside of it."""
        self._clearing = True
        marked, reactor = self._spawner.marks, self._spawner.reactor
        deadline = reactor.seconds() + grace
        group = self.pid if self._signal_group(0) else 0
        self.left = await marked.look(self._mark, 0, group)
        if self.left:
            await marked.clear(self._mark, deadline - reactor.seconds(), group=group, send=self._signal_group)
        if self.transport is not None:
            self.transport.loseConnection()
        await self._tell()
        self._over()

    async def _tell(self) -> None:
        await self._spawner.turn()  # the end of its output is looked through then
        self.has_ended = True
        waiting, self._ended = self._ended, []
        for one in waiting:
            one.callback(None)

    def _over(self) -> None:
        self._is_gone = True
        self._spawner.live.discard(self)
        waiting, self._gone = self._gone, []
        for one in waiting:
            one.callback(None)

    def _wait(self, waiting: list[Deferred[None]], already: bool) -> Deferred[None]:
        if already:
            return succeed(None)
        one: Deferred[None] = Deferred(waiting.remove)
        waiting.append(one)
        return one
