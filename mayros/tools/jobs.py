"""The commands that are running, and those in the background that have ended lately. Imports core, net.spawn, net.redact, tools.output.

An agent sees its own only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime

from mayros.core.keys import new_id
from mayros.core.ports import Clock
from mayros.errors import ToolFailed
from mayros.net.redact import Redactor
from mayros.net.spawn import Command
from mayros.tools.output import Output

KEEP_SECONDS = 1_800.0
#: Of one agent, and of all.
RUNNING_MAX, ALL_MAX = 64, 128
#: Ended ones of one agent; the oldest go first.
ENDED_MAX = 32
INPUT_MAX = 16 << 20  # bytes that one command may be written


class Job:
    """One command with what it put out. `read` is the position up to which `poll` has given its output; `shown` is the command without secrets."""

    def __init__(self, agent_id: str, command: str, cwd: str, clock: Clock, redact: Redactor) -> None:
        self.id = new_id()[:8]
        self.agent_id, self.shown, self.cwd = agent_id, redact(command), cwd
        self.output = Output(redact)
        self.process: Command | None = None
        self.background = False
        self.read = 0
        self.written = 0
        self.started = clock.seconds()
        self.ended_at: float | None = None
        #: Hears of each output while somebody waits for the command.
        self.listener: Callable[[], None] | None = None
        self._clock = clock
        self._changes: list[Deferred[None]] = []

    def run(self, process: Command) -> None:
        """It has been started."""
        self.process = process
        process.ended().addCallback(self._ended)

    def add(self, data: bytes) -> None:
        """It wrote something."""
        self.output.add(data)
        if self.listener is not None:
            self.listener()
        self._changed()

    def changed(self) -> Deferred[None]:
        """Fires when there is more output, or the end; may be cancelled."""
        one: Deferred[None] = Deferred(self._changes.remove)
        self._changes.append(one)
        return one

    def status(self) -> str:
        """In a few words: `running`, or how it ended."""
        process = self.process
        if process is None or not process.has_ended:
            return "running"
        if process.why == "timeout":
            return "ended at its time limit"
        if process.why in ("killed", "cancelled"):
            return "killed"
        return f"ended by signal {process.signal}" if process.signal else f"exited with code {process.code}"

    def _ended(self, _: None) -> None:
        self.ended_at = self._clock.seconds()
        self.output.end()
        self._changed()

    def _changed(self) -> None:
        waiting, self._changes = self._changes, []
        for one in waiting:
            one.callback(None)


class Jobs:
    """All of them. Ended ones are kept for 30 minutes, at most 32 for each agent."""

    def __init__(self, clock: Clock, redact: Redactor) -> None:
        self.clock, self.redact = clock, redact
        self._jobs: dict[str, Job] = {}

    def room(self, agent_id: str) -> None:
        """Raises ToolFailed where no more commands may run."""
        self._prune()
        running = [job for job in self._jobs.values() if job.ended_at is None]
        if len(running) >= ALL_MAX or sum(job.agent_id == agent_id for job in running) >= RUNNING_MAX:
            raise ToolFailed("Too many commands are running. Look at them with the process tool (action list), and end some of them (action kill).")

    def add(self, job: Job) -> None:
        """Know of a command that was started."""
        self._jobs[job.id] = job

    def forget(self, job: Job) -> None:
        """Whoever started it has its whole output, or removes it."""
        self._jobs.pop(job.id, None)

    def of(self, agent_id: str) -> list[Job]:
        """An agent's background commands, oldest first."""
        self._prune()
        return [job for job in self._jobs.values() if job.agent_id == agent_id and job.background]

    def get(self, agent_id: str, job_id: str) -> Job:
        """Raises ToolFailed where the agent has no such one."""
        for job in self.of(agent_id):
            if job.id == job_id:
                return job
        raise ToolFailed(f"There is no session {job_id[:40]!r} (any more). The action list shows those that there are.")

    def _prune(self) -> None:
        now = self.clock.seconds()
        ended: dict[str, int] = {}
        for job in sorted((job for job in self._jobs.values() if job.ended_at is not None), key=lambda job: -(job.ended_at or 0)):
            ended[job.agent_id] = ended.get(job.agent_id, 0) + 1
            if ended[job.agent_id] > ENDED_MAX or now - (job.ended_at or 0) > KEEP_SECONDS:
                self.forget(job)


async def within(seconds: float, clock: Clock, event: Deferred[None]) -> bool:
    """Wait for an event so long; whether it came. Cancelling goes through."""
    try:
        await event.addTimeout(seconds, cast(IReactorTime, clock))
    except TimeoutError:
        return False
    return True
