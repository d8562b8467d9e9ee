"""The tool process: looks after commands in the background. Imports core, tools.jobs, tools.keys."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from mayros.core.ports import ToolSpec
from mayros.core.tool_ports import ToolContext, ToolResult
from mayros.errors import ToolFailed
from mayros.net.spawn import Command
from mayros.tools import keys
from mayros.tools.jobs import INPUT_MAX, Job, Jobs, within

POLL_MAX = 120_000  # milliseconds
UNREAD_MAX = 30_000  # characters that a poll gives
LOG_LINES = 200
WRITE_MAX = 1 << 20  # characters of one call
KILL_WAIT = 5.0
_SHOWN_COMMAND = 200

Action = Literal["list", "poll", "log", "write", "send-keys", "submit", "paste", "kill", "clear", "remove"]
_TEXT = {"type": "string", "maxLength": WRITE_MAX}
_TEXTS = {"type": "array", "items": {"type": "string", "maxLength": 64}, "maxItems": 1_000}

_SPEC = ToolSpec(
    "process",
    "Look after commands that exec started in the background: list, poll (new output and status), log (lines of the output), write, send-keys, submit"
    " (Enter), paste, kill, clear (forget an ended one), remove (kill and forget).",
    {
        "type": "object",
        "properties": {
            "action": {"type": "string", "enum": list(Action.__args__)},  # type: ignore[attr-defined]
            "sessionId": {"type": "string", "description": "Which command; for every action but list."},
            "data": {**_TEXT, "description": "write: what to write to its input."},
            "eof": {"type": "boolean", "description": "write: end its input after that."},
            "keys": {**_TEXTS, "description": "send-keys: names of keys, such as Enter, Up, C-c, M-x, F1."},
            "hex": {**_TEXTS, "description": "send-keys: bytes in hexadecimal."},
            "literal": {**_TEXT, "description": "send-keys: text to type."},
            "text": {**_TEXT, "description": "paste: the text."},
            "bracketed": {"type": "boolean", "description": "paste: mark it as pasted, which is the default in a terminal."},
            "offset": {"type": "integer", "minimum": 0, "description": "log: the first line, from 0."},
            "limit": {"type": "integer", "minimum": 1, "maximum": 10_000, "description": "log: how many lines; the last 200 by default."},
            "timeout": {"type": "number", "minimum": 0, "maximum": POLL_MAX, "description": "poll: milliseconds to wait for output or the end."},
        },
        "required": ["action"],
    },
)


class _Arguments(msgspec.Struct, frozen=True, rename="camel"):
    action: Action
    session_id: str | None = None
    data: str = ""
    eof: bool = False
    keys: tuple[str, ...] = ()
    hex: tuple[str, ...] = ()
    literal: str = ""
    text: str = ""
    bracketed: bool = True
    offset: int | None = None
    limit: int | None = None
    timeout: float = 0


class ProcessTool:
    """See the module."""

    spec = _SPEC
    read_only = False

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """See tool_ports.Tool."""
        try:
            asked = msgspec.convert(arguments, _Arguments)
        except msgspec.ValidationError as error:
            raise ToolFailed(f"The arguments of process do not fit: {error}.") from error
        agent_id = context.turn.agent.id
        if asked.action == "list":
            return ToolResult(self._list(agent_id))
        if asked.session_id is None:
            raise ToolFailed(f"The action {asked.action} needs sessionId. The action list shows those that there are.")
        job = self._jobs.get(agent_id, asked.session_id)
        if asked.action == "poll":
            return ToolResult(await self._poll(job, asked.timeout))
        if asked.action == "log":
            return ToolResult(_log(job, asked))
        if asked.action in ("kill", "clear", "remove"):
            return ToolResult(await self._end(job, asked.action))
        return ToolResult(_write(job, asked))

    def _list(self, agent_id: str) -> str:
        now = self._jobs.clock.seconds()
        rows = [
            {
                "sessionId": job.id,
                "status": job.status(),
                "pid": job.process.pid if job.process is not None else None,
                "seconds": round((job.ended_at or now) - job.started),
                "command": job.shown[:_SHOWN_COMMAND],
                "cwd": job.cwd,
            }
            for job in self._jobs.of(agent_id)
        ]
        return msgspec.json.encode(rows).decode()

    async def _poll(self, job: Job, timeout: float) -> str:
        if job.output.position == job.read and job.ended_at is None and timeout > 0:
            await within(min(timeout, POLL_MAX) / 1000, self._jobs.clock, job.changed())
        text, skipped = job.output.since(max(job.read, job.output.position - UNREAD_MAX))
        skipped += max(0, job.output.position - UNREAD_MAX - job.read)
        job.read = job.output.position
        before = f"[... {skipped} characters left out; the action log has what is kept ...]\n" if skipped else ""
        status = "Still running." if job.ended_at is None else f"The command {job.status()}."
        return f"{before}{text.rstrip() or '(no new output)'}\n\n{status}"

    async def _end(self, job: Job, action: str) -> str:
        if action == "clear":
            if job.ended_at is None:
                raise ToolFailed("The command is still running. Use kill or remove.")
            self._jobs.forget(job)
            return "Forgotten."
        process = _process(job)
        process.kill("killed")
        if action == "remove":
            self._jobs.forget(job)
        gone = await within(KILL_WAIT, self._jobs.clock, process.gone())
        if not gone:
            return "The command was told to end, and some of its processes are not gone yet."
        return "The command and everything it started are ended." + (" Removed." if action == "remove" else "")


def _process(job: Job) -> Command:
    assert job.process is not None
    return job.process


def _log(job: Job, asked: _Arguments) -> str:
    lines = job.output.text().splitlines()
    limit = asked.limit or LOG_LINES
    start = max(0, len(lines) - limit) if asked.offset is None else asked.offset
    shown = lines[start : start + limit]
    if not shown:
        return f"(no output from line {start} on; there are {len(lines)} lines)"
    note = f"\n\n[lines {start} to {start + len(shown) - 1} of {len(lines)}]" if len(shown) < len(lines) else ""
    return "\n".join(shown) + note


def _write(job: Job, asked: _Arguments) -> str:
    process = _process(job)
    if process.has_ended:
        raise ToolFailed(f"The command {job.status()}: nothing can be written to it.")
    if not process.can_write:
        raise ToolFailed("The input of this command is closed. Start it with background or pty to write to it.")
    data = _bytes(asked, process.pty)
    job.written += len(data)
    if job.written > INPUT_MAX:
        raise ToolFailed(f"More than {INPUT_MAX} bytes were written to this command. Put them into a file.")
    process.write(data)
    if asked.eof:
        process.close_input()
    return f"{len(data)} bytes written." + (" Its input is ended." if asked.eof else "")


def _bytes(asked: _Arguments, pty: bool) -> bytes:
    """What the call writes. Raises ToolFailed."""
    if asked.action == "write":
        text = asked.data
    elif asked.action == "submit":
        text = asked.data + ("\r" if pty else "\n")
    elif asked.action == "paste":
        text = keys.paste(asked.text) if asked.bracketed and pty else asked.text
    else:
        return _keys(asked, pty)
    return _utf8(text)


def _keys(asked: _Arguments, pty: bool) -> bytes:
    data = _utf8(asked.literal)
    for name in asked.keys:
        encoded = keys.encode(name)
        if encoded is None:
            raise ToolFailed(f"There is no key {name[:40]!r}. Keys are Enter, Tab, Escape, Up, C-c, M-x, F1 and so on; text goes into literal.")
        data += _utf8("\n" if encoded == "\r" and not pty else encoded)
    for digits in asked.hex:
        if not re.fullmatch(r"(?:0x)?[0-9a-fA-F]{1,2}", digits, re.ASCII):
            raise ToolFailed(f"{digits[:40]!r} is no byte in hexadecimal.")
        data += bytes([int(digits, 16)])
    if not data:
        raise ToolFailed("send-keys needs keys, hex or literal.")
    return data


def _utf8(text: str) -> bytes:
    if len(text) > WRITE_MAX:
        raise ToolFailed(f"At most {WRITE_MAX} characters can be written at once.")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ToolFailed("The text holds surrogates, which are no characters.") from error
