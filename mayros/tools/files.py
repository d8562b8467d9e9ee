"""The tools read, write, edit and apply_patch. Imports core, and tools.access, edits, pages and patch.

All work on the disk is done in a thread. A thread cannot be stopped, so a cancelled call drops its result: what has not begun then never begins,
and what has begun replaces whole files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import msgspec
from twisted.internet.defer import CancelledError, Deferred

from mayros.core.bounds import REFERENCE, UNTRUSTED_REFERENCE
from mayros.core.images import media_type
from mayros.core.ports import ToolSpec
from mayros.core.routing import Agent
from mayros.core.tool_ports import Tool, ToolContext, ToolResult
from mayros.errors import ToolFailed
from mayros.net.redact import Redactor
from mayros.tools.access import Access, resolve, shown, told
from mayros.tools.edits import BOM, decode, encode, replace_once
from mayros.tools.pages import PAGE_BYTES, PAGE_LINES, Page, image
from mayros.tools.patch import Change, apply, parse

#: Bytes of a file that is read or written, and of one that is changed in place.
MAX_FILE = 16 << 20
MAX_TEXT = 2 << 20

#: Runs a function in a thread: Twisted's `deferToThread`, or a test's own.
InThread = Callable[..., Deferred[Any]]
#: The text of a kept tool result, by reference and agent id; None where there is none for that agent. Called in a thread.
Results = Callable[[str, str], str | None]
Args = ParamSpec("Args")
Value = TypeVar("Value")


def tools(
    in_thread: InThread,
    results: Results,
    protected: Sequence[str],
    redact: Redactor,
    readable: Callable[[Agent], Sequence[tuple[str, str]]] = lambda _: (),
) -> Sequence[Tool]:
    """The file tools. Whether they keep to the workspace is said by the agent's `fs.workspace_only` (and `exec.apply_patch.workspace_only`).

    `protected` (access.protected_paths) is never touched, `readable` gives folders that `read` opens always: those of skills.
    """
    access = Access(protected, readable)
    return (_Read(in_thread, access, results, redact), _Write(in_thread, access), _Edit(in_thread, access, redact), _ApplyPatch(in_thread, access))


def _schema(required: Sequence[str], **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def _string(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


_PATH = _string("The path of the file, relative to the workspace.")


class _FileTool:
    """What the file tools have in common."""

    spec: ToolSpec
    read_only = False

    def __init__(self, in_thread: InThread, access: Access) -> None:
        self._in_thread, self._access = in_thread, access

    async def _run(self, function: Callable[Args, Value], *args: Args.args, **kwargs: Args.kwargs) -> Value:
        given_up = threading.Event()

        def unless_given_up() -> Value:
            if given_up.is_set():
                raise CancelledError
            return function(*args, **kwargs)

        try:
            value: Value = await self._in_thread(unless_given_up)
        finally:
            given_up.set()
        return value


class _Read(_FileTool):
    """`read`: a page of a text, an image, or a kept result."""

    read_only = True
    spec = ToolSpec(
        "read",
        f"Read a file: text, up to {PAGE_LINES} lines or {PAGE_BYTES // 1024} KB, or an image (jpg, png, gif, webp). Use offset and limit for more. "
        f"Also opens {REFERENCE} references.",
        _schema(
            ("path",),
            path=_string(f"The path of the file, relative to the workspace, or a {REFERENCE} reference."),
            offset={"type": "integer", "minimum": 1, "description": "The first line to read, from 1."},
            limit={"type": "integer", "minimum": 1, "description": "How many lines to read at most."},
        ),
    )

    def __init__(self, in_thread: InThread, access: Access, results: Results, redact: Redactor) -> None:
        super().__init__(in_thread, access)
        self._results, self._redact = results, redact

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """See core.ports.Tool."""
        path = arguments["path"].strip()
        agent = context.turn.agent
        page = Page(
            arguments.get("offset", 1),
            arguments.get("limit"),
            agent.context_tokens or (agent.models[0].context_window if agent.models else 0),
            self._redact.window,
        )
        if path.startswith(REFERENCE):
            return ToolResult(await self._run(self._kept, path, agent.id, page), untrusted=path.startswith(UNTRUSTED_REFERENCE))
        return await self._run(self._file, agent, path, page, context.images)

    def _kept(self, reference: str, agent_id: str, page: Page) -> str:
        text = self._results(reference, agent_id)
        if text is None:
            raise ToolFailed(f"{shown(reference)}: there is no such result, or it is not kept any more.")
        with told(reference):
            return page.of(text)

    def _file(self, agent: Agent, path: str, page: Page, images: bool) -> ToolResult:
        with told(path):
            with self._access.enter(agent, path, agent.fs.workspace_only, reading=True) as place:
                data, _ = place.read(MAX_FILE)
            foreign = not agent.fs.workspace_only and self._access.foreign(agent, place.path)
            kind = media_type(data)
            if kind is not None:
                return image(data, kind, images)
            if b"\0" in data:
                raise ToolFailed(f"it is a binary file of {len(data)} bytes, which cannot be read as text.")
            return ToolResult(page.of(data.decode("utf-8", "replace").removeprefix(BOM)), untrusted=foreign)


class _Write(_FileTool):
    """`write`: a whole file."""

    spec = ToolSpec(
        "write",
        "Write a file: make it, or replace all of its content. Missing folders are made.",
        _schema(("path", "content"), path=_PATH, content=_string("The whole content.")),
    )

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """See core.ports.Tool."""
        path, data = arguments["path"].strip(), encode(arguments["content"])
        await self._run(self._write, context.turn.agent, path, data)
        return ToolResult(f"{len(data)} bytes written to {shown(path)}.")

    def _write(self, agent: Agent, path: str, data: bytes) -> None:
        with told(path):
            _check_size(data)
            with self._access.enter(agent, path, agent.fs.workspace_only, make=True) as place:
                place.replace(data)


class _Edit(_FileTool):
    """`edit`: one passage of a file."""

    spec = ToolSpec(
        "edit",
        "Change a file: replace oldText, which must be in it exactly once, by newText. Copy oldText from the file with its indentation.",
        _schema(
            ("path", "oldText", "newText"),
            path=_PATH,
            oldText=_string("The passage to replace."),
            newText=_string("What to put in its place; may be empty."),
        ),
    )

    def __init__(self, in_thread: InThread, access: Access, redact: Redactor) -> None:
        super().__init__(in_thread, access)
        self._redact = redact

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """See core.ports.Tool."""
        path = arguments["path"].strip()
        old, new = arguments["oldText"], arguments["newText"]
        diff = await self._run(self._edit, context.turn.agent, path, old, new)
        return ToolResult(f"{shown(path)} is changed:\n{diff}")

    def _edit(self, agent: Agent, path: str, old: str, new: str) -> str:
        with told(path), self._access.enter(agent, path, agent.fs.workspace_only) as place:
            data, status = place.read(MAX_TEXT)
            edited = replace_once(decode(data), old, new, self._redact.lines)
            place.replace(_check_size(encode(edited.text)), expected=status)
            return edited.diff


class _Step(msgspec.Struct, frozen=True):
    """One thing to do for a patch: write `data` to `path`, which must still be `expected` (None: nothing), then remove `source`."""

    said: str
    path: str
    data: bytes | None = None
    expected: os.stat_result | None = None
    mode: int = 0o600
    source: str | None = None


class _ApplyPatch(_FileTool):
    """`apply_patch`: several files at once. Nothing is written before all hunks have been found."""

    spec = ToolSpec(
        "apply_patch",
        "Change files by a patch: '*** Begin Patch', then sections '*** Add File: path' (lines with '+'), '*** Delete File: path' or "
        "'*** Update File: path' (optionally '*** Move to: path'; hunks of '@@', then lines with ' ', '-' or '+'), then '*** End Patch'.",
        _schema(("input",), input=_string("The whole patch.")),
    )

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """See core.ports.Tool."""
        return ToolResult(await self._run(self._patch, context.turn.agent, arguments["input"]))

    def _patch(self, agent: Agent, text: str) -> str:
        # Both settings must be off for it to leave the workspace.
        only = agent.fs.workspace_only or agent.exec.apply_patch.workspace_only
        done: list[str] = []
        for step in self._plan(agent, text, only):
            try:
                self._do(agent, step, only)
            except ToolFailed as error:
                raise ToolFailed(f"{error} Done before that: {', '.join(done)}." if done else str(error)) from None
            done.append(step.said)
        return "Done:\n" + "\n".join(done)

    def _plan(self, agent: Agent, text: str, only: bool) -> list[_Step]:
        """What to do, looked at from all sides before anything is done. Raises ToolFailed."""
        steps: list[_Step] = []
        named: set[str] = set()
        total = 0
        for change in parse(text):
            names = {resolve(agent, name) for name in (change.path, change.to) if name is not None}
            if names & named:
                raise ToolFailed(f"{shown(change.path)}: the patch names a file twice. Put all that happens to it into one section.")
            named |= names
            with told(change.path):
                step = self._step(agent, change, only)
            total += len(step.data or b"")
            if total > MAX_FILE:
                raise ToolFailed("The files of the patch are too large together. Send several smaller patches.")
            steps.append(step)
        return steps

    def _step(self, agent: Agent, change: Change, only: bool) -> _Step:
        if change.action == "delete":
            with self._access.enter(agent, change.path, only, follow=False) as place:
                if place.status() is None:
                    raise FileNotFoundError(errno.ENOENT, "there is no such file")
            return _Step(f"D {change.path}", change.path, source=change.path)
        if change.action == "add":
            self._refuse_existing(agent, change.path, only)
            return _Step(f"A {change.path}", change.path, encode(change.text))
        with self._access.enter(agent, change.path, only) as place:
            before, status = place.read(MAX_TEXT)
        after = _check_size(encode(apply(decode(before), change.hunks)))
        if change.to is not None and resolve(agent, change.to) != resolve(agent, change.path):
            self._refuse_existing(agent, change.to, only)
            return _Step(f"R {change.path} -> {change.to}", change.to, after, None, stat.S_IMODE(status.st_mode) & 0o777, change.path)
        if after == before:
            raise ToolFailed("nothing would change.")
        return _Step(f"M {change.path}", change.path, after, status)

    def _refuse_existing(self, agent: Agent, path: str, only: bool) -> None:
        with told(path), contextlib.suppress(FileNotFoundError), self._access.enter(agent, path, only) as place:
            if place.status() is not None:
                raise FileExistsError(errno.EEXIST, "it exists already")

    def _do(self, agent: Agent, step: _Step, only: bool) -> None:
        with told(step.path):
            if step.data is not None:
                with self._access.enter(agent, step.path, only, make=True) as place:
                    if step.expected is None and place.status() is not None:
                        raise FileExistsError(errno.EEXIST, "it exists already")
                    place.replace(step.data, step.mode, step.expected)
            if step.source is not None:
                with self._access.enter(agent, step.source, only, follow=False) as place:
                    place.remove()


def _check_size(data: bytes) -> bytes:
    if len(data) > MAX_FILE:
        raise ToolFailed(f"it would have {len(data)} bytes; at most {MAX_FILE} are written.")
    return data
