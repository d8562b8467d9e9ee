"""The tool exec: a shell command in the agent's workspace. Imports core, net, tools.access, tools.command, tools.jobs, tools.process.

Whether the command may run is decided by the port Permission, on what it is given here: the command, the real folder, what the call adds to the
environment, and which programs the line starts as far as that can be known.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IDelayedCall

from mayros.core.exec_ports import ExecAsk, ExecRequest, ExecSecurity, Permission
from mayros.core.ports import Clock, ToolSpec
from mayros.core.routing import Agent
from mayros.core.tool_ports import Tool, ToolContext, ToolResult
from mayros.errors import ToolFailed
from mayros.net.redact import Redactor
from mayros.net.spawn import Spawner, environment, refused
from mayros.tools.access import inside
from mayros.tools.command import analyse
from mayros.tools.jobs import Job, Jobs, within
from mayros.tools.process import ProcessTool

MAX_COMMAND = 100_000  # bytes; the system takes 128 KiB as one argument
MAX_ENV, MAX_VALUE = 64, 32_768
YIELD_MIN, YIELD_MAX = 10, 120_000  # milliseconds
TELL_SECONDS = 0.25
TAIL = 2_000  # characters that watchers and the answer of a background run are shown
#: Variables that change how programs speak, not what they do; with others a command does not pass by the list of allowed programs.
_PLAIN = re.compile(r"LANG|LC_[A-Z]+|TZ|TERM|COLUMNS|LINES|CI|NO_COLOR|FORCE_COLOR|CLICOLOR", re.ASCII)

_SPEC = ToolSpec(
    "exec",
    "Run a shell command (/bin/sh) in the workspace and return its output, standard error with it. A command that takes longer than yieldMs goes on"
    " in the background: the answer then is {status: running, sessionId, pid, tail}, and the process tool polls it, writes to it and ends it. What a"
    " command leaves running is ended with it; for a server use background. Standard input is empty unless background or pty is set.",
    {
        "type": "object",
        "properties": {
            "command": {"type": "string", "minLength": 1, "maxLength": MAX_COMMAND, "description": "The command line."},
            "workdir": {"type": "string", "description": "Folder to run in, relative to the workspace; the workspace itself if left out."},
            "env": {"type": "object", "additionalProperties": {"type": "string"}, "description": "Environment variables to add."},
            "yieldMs": {
                "type": "number",
                "minimum": YIELD_MIN,
                "maximum": YIELD_MAX,
                "description": "Milliseconds to wait before the command goes on in the background.",
            },
            "background": {"type": "boolean", "description": "Run in the background at once."},
            "timeout": {"type": "number", "minimum": 1, "description": "Seconds after which the command is ended, at most the configured limit."},
            "pty": {"type": "boolean", "description": "Run in a terminal, for programs that need one."},
            "security": {"type": "string", "enum": ["deny", "allowlist", "full"], "description": "Stricter rules than configured for this call."},
            "ask": {"type": "string", "enum": ["off", "on-miss", "always"], "description": "Ask for approval more often than configured."},
        },
        "required": ["command"],
    },
)


class _Arguments(msgspec.Struct, frozen=True, rename="camel"):
    command: str
    workdir: str | None = None
    env: dict[str, str] = {}
    yield_ms: float | None = None
    background: bool = False
    timeout: float | None = None
    pty: bool = False
    security: ExecSecurity | None = None
    ask: ExecAsk | None = None
    # Known to models, and to no gateway without a sandbox.
    host: str | None = None
    elevated: bool = False
    node: str | None = None


def tools(spawner: Spawner, clock: Clock, permission: Permission, redact: Redactor) -> Sequence[Tool]:
    """The tools exec and process. What holds for an agent is in its `exec` and `fs`; the spawner is stopped by whoever made it."""
    jobs = Jobs(clock, redact)
    return (ExecTool(spawner, jobs, permission), ProcessTool(jobs))


class ExecTool:
    """See the module."""

    spec = _SPEC
    read_only = False

    def __init__(self, spawner: Spawner, jobs: Jobs, permission: Permission) -> None:
        self._spawner, self._jobs, self._permission = spawner, jobs, permission

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """See tool_ports.Tool."""
        try:
            asked = msgspec.convert(arguments, _Arguments)
        except msgspec.ValidationError as error:
            raise ToolFailed(f"The arguments of exec do not fit: {error}.") from error
        agent = context.turn.agent
        await self._spawner.turn()  # looking for the programs of fifty calls takes a while, too
        cwd = _folder(asked, agent)
        env = _environment(asked, self._spawner, agent)
        request = _request(asked, cwd, env, agent, context)
        await self._permission.allow(request, context)
        await self._spawner.turn()
        if _request(asked, _folder(asked, agent), env, agent, context) != request:
            raise ToolFailed("The folder or a program of the command is not what it was when the command was allowed. Look at it, and try again.")
        self._jobs.room(agent.id)
        job = Job(agent.id, asked.command, cwd, self._jobs.clock, self._jobs.redact)
        limit = float(agent.exec.timeout_sec)
        try:
            process = self._spawner.start(
                asked.command,
                cwd,
                env,
                job.add,
                timeout=min(max(1.0, asked.timeout), limit) if asked.timeout is not None else limit,
                pty=asked.pty,
                stdin=asked.background,
            )
        except OSError as error:
            raise ToolFailed(f"The command could not be started: {error.strerror or error}.") from error
        job.run(process)
        self._jobs.add(job)
        wait = asked.yield_ms if asked.yield_ms is not None else agent.exec.background_ms
        if asked.background or not await self._finished(job, min(max(YIELD_MIN, wait), YIELD_MAX) / 1000, context):
            job.background = process.keep = True
            return _running(job)
        self._jobs.forget(job)
        return _result(job)

    async def _finished(self, job: Job, seconds: float, context: ToolContext) -> bool:
        """Whether the command ends within this time. Tells watchers what it says; a cancelled run ends the command."""
        assert job.process is not None
        timer: IDelayedCall | None = None

        def tell() -> None:
            nonlocal timer
            timer = None
            context.update(job.output.last(TAIL))

        def wrote() -> None:
            nonlocal timer
            if timer is None:
                timer = self._jobs.clock.callLater(TELL_SECONDS, tell)

        job.listener = wrote
        try:
            return await within(seconds, self._jobs.clock, job.process.ended())
        except CancelledError:
            job.process.kill("cancelled")
            self._jobs.forget(job)
            raise
        finally:
            job.listener = None
            if timer is not None:
                timer.cancel()


def _folder(asked: _Arguments, agent: Agent) -> str:
    """The real path of the folder to run in. Raises ToolFailed."""
    if asked.host not in (None, "gateway"):
        raise ToolFailed("Commands run on the gateway itself and nowhere else: leave out host.")
    if asked.elevated or asked.node is not None:
        raise ToolFailed("Elevated commands and nodes are not available: leave out elevated and node.")
    for text in (asked.command, asked.workdir or ""):
        if "\0" in text or not _encodes(text):
            raise ToolFailed("The command and its folder must not hold NUL bytes or surrogates.")
    if not asked.command.strip():
        raise ToolFailed("The command is empty.")
    if len(asked.command.encode()) > MAX_COMMAND:
        raise ToolFailed(f"The command is longer than {MAX_COMMAND} bytes. Write a script to a file, and run that.")
    workspace = os.path.realpath(agent.workspace)
    cwd = os.path.realpath(os.path.join(workspace, asked.workdir or "."))
    if agent.fs.workspace_only and not inside(cwd, workspace):
        raise ToolFailed("workdir must be inside the workspace.")
    if not os.path.isdir(cwd):
        raise ToolFailed(f"There is no folder {asked.workdir or workspace}. Make it first, or leave out workdir.")
    return cwd


def _environment(asked: _Arguments, spawner: Spawner, agent: Agent) -> dict[str, str]:
    if len(asked.env) > MAX_ENV:
        raise ToolFailed(f"At most {MAX_ENV} environment variables may be set.")
    for name, value in asked.env.items():
        if (why := refused(name, value)) is not None:
            raise ToolFailed(f"{why[0].upper()}{why[1:]}. Leave it out.")
        if len(value) > MAX_VALUE or not _encodes(name + value):
            raise ToolFailed(f"The value of {name} is too long or holds surrogates.")
    return environment(spawner.environ, asked.env, [os.path.expanduser(folder) for folder in agent.exec.path_prepend])


def _request(asked: _Arguments, cwd: str, env: dict[str, str], agent: Agent, context: ToolContext) -> ExecRequest:
    found = analyse(asked.command, cwd, env["PATH"], agent.exec.safe_bins)
    analysed = found.why_not is None and all(_PLAIN.fullmatch(name) for name in asked.env)
    return ExecRequest(
        asked.command,
        cwd,
        tuple(sorted(asked.env.items())),
        agent.id,
        str(context.turn.session),
        asked.pty,
        asked.background,
        asked.security,
        asked.ask,
        tuple(segment.executable for segment in found.segments if not segment.safe) if analysed else (),
        analysed,
    )


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _running(job: Job) -> ToolResult:
    assert job.process is not None
    job.read = job.output.position
    shown = {"status": "running", "sessionId": job.id, "pid": job.process.pid, "tail": job.output.last(TAIL)}
    return ToolResult(msgspec.json.encode(shown).decode())


def _result(job: Job) -> ToolResult:
    process = job.process
    assert process is not None
    notes = []
    if process.why == "timeout":
        notes.append("(the command reached its time limit and was ended with everything that it started)")
    elif process.why != "exit":
        notes.append("(the command was ended by the gateway)")
    elif process.signal:
        notes.append(f"(the command was ended by signal {process.signal})")
    elif process.code:
        notes.append(f"(exit code {process.code})")
    if process.why == "exit" and process.left:
        notes.append("(processes that it left behind were ended; run it with background to keep them)")
    text = job.output.text()
    return ToolResult("\n".join([text.rstrip("\n") or "(no output)", *notes]), is_error=process.why != "exit")
