"""The agents' own files for the prompt, and the starter files of a new workspace. Imports core.ports, core.routing, net.rooted, recent.

Reading happens in a thread, at most once a second for each workspace; whoever asks meanwhile shares it. Files that did not change give the
same tuple again, so a prompt made from it can be kept by identity. A workspace is written by the model as well as by its owner: only regular
files inside it are read, and no symlink leads out of it, also not one that is swapped in between check and open.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mayros.core.ports import Clock
from mayros.core.routing import Agent
from mayros.core.workspace_ports import BOOTSTRAP, WorkspaceFile
from mayros.net.rooted import enter, open_inside
from mayros.storage.recent import Recent

log = Logger()

#: In prompt order; of each group the first that is there.
FILES: tuple[tuple[str, ...], ...] = (("AGENTS.md",), ("MAYROS.md", "SOUL.md"), ("TOOLS.md",), ("IDENTITY.md",), ("USER.md",))
STATE = os.path.join(".mayros", "workspace-state.json")
MAX_BYTES = 2 << 20
MAX_STATE = 64 << 10
CHECK_SECONDS = 1.0

#: Written by `seed`; together under 300 tokens, for the embedded model reads slowly.
STARTER_FILES = {
    "AGENTS.md": """\
# How to work

- Answer the question that was asked, in its language. Say so when you do not know.
- Keep answers short; give steps or code when they help.
- Never invent facts, quotes or links.
- Keep what is private private.
""",
    "MAYROS.md": """\
# Character

Friendly, calm and direct. Plain words, no flattery. Disagree politely when there is reason to.
""",
    "TOOLS.md": """\
# Notes on tools

Write here what the agent should know about this machine: hosts, folders, habits.
""",
    "IDENTITY.md": """\
# Identity

Name: Mayros
Role: personal assistant
""",
    "USER.md": """\
# The user

Write here who you are, how to address you, and what matters to you.
""",
}

BOOTSTRAP_TEXT = """\
# First run

This workspace is new. In your first conversation, before other things:

1. Ask who the user is, how to address them, and what they want help with. Write it to USER.md.
2. Agree on your name, character and tone. Write them to IDENTITY.md and MAYROS.md.
3. Then delete this file: it is for once only.

One question at a time; when the user wants something else, do that first.
"""


#: Runs a function in a thread: Twisted's `deferToThread`, or a test's own.
DeferToThread = Callable[..., Deferred[Any]]
_Stamp = tuple[int, ...] | str


class _Snapshot:
    """What one reading found: the files, and what their metadata was."""

    def __init__(self, stamps: tuple[_Stamp, ...], files: tuple[WorkspaceFile, ...]) -> None:
        self.stamps, self.files = stamps, files


class FileWorkspace:
    """Implements `core.workspace_ports.Workspace`. `clock` gives the seconds between two checks."""

    def __init__(self, clock: Clock, defer_to_thread: DeferToThread) -> None:
        self._clock, self._defer_to_thread = clock, defer_to_thread
        self._folders: dict[str, Recent[_Snapshot]] = {}

    def files(self, agent: Agent) -> Deferred[Sequence[WorkspaceFile]]:
        """The texts in prompt order, at most a second old. Never fails: what cannot be read is missing."""
        root = agent.workspace
        folder = self._folders.get(root)
        if folder is None:
            folder = self._folders[root] = Recent(self._clock, CHECK_SECONDS)
        return folder.get(partial(self._look, root, folder), _files_of)

    def _look(self, root: str, folder: Recent[_Snapshot]) -> Deferred[_Snapshot]:
        return self._defer_to_thread(_look, root, folder.found).addErrback(self._failed, root, folder)

    @staticmethod
    def _failed(failure: Failure, root: str, folder: Recent[_Snapshot]) -> _Snapshot:
        log.failure("Workspace {root} could not be read", failure, root=root)
        return folder.found or _Snapshot((), tuple(_missing(root, names[0]) for names in FILES))


def _files_of(snapshot: _Snapshot) -> Sequence[WorkspaceFile]:
    return snapshot.files


def _missing(root: str, name: str) -> WorkspaceFile:
    return WorkspaceFile(name, os.path.join(root, name), None)


# The rest runs in a thread.


def _look(root: str, known: _Snapshot | None) -> _Snapshot:
    """The present state of a workspace; `known` itself if nothing changed."""
    descriptors: dict[str, int] = {}
    stamps: list[_Stamp] = []
    try:
        for number, name in enumerate(name for names in (*FILES, (BOOTSTRAP,)) for name in names):
            try:
                descriptors[name] = descriptor = open_inside(root, name)
                status = os.fstat(descriptor)
                stamps.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
            except OSError as error:
                stamps.append(_why(error))
                if error.errno not in (errno.ENOENT, errno.ENOTDIR) and (known is None or known.stamps[number : number + 1] != tuple(stamps[-1:])):
                    log.warn("Workspace file {path} is not read: {why}", path=os.path.join(root, name), why=_why(error))
        if known is not None and known.stamps == tuple(stamps):
            return known
        files = []
        for names in FILES:
            name = next((name for name in names if name in descriptors), names[0])
            files.append(WorkspaceFile(name, os.path.join(root, name), _text(descriptors[name])) if name in descriptors else _missing(root, name))
        if BOOTSTRAP in descriptors:
            files.append(WorkspaceFile(BOOTSTRAP, os.path.join(root, BOOTSTRAP), _text(descriptors[BOOTSTRAP])))
        return _Snapshot(tuple(stamps), tuple(files))
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def _text(descriptor: int) -> str | None:
    """At most MAX_BYTES, invalid UTF-8 replaced; None if the disk fails."""
    data = bytearray()
    try:
        while len(data) < MAX_BYTES and (more := os.read(descriptor, MAX_BYTES - len(data))):
            data += more
    except OSError as error:
        log.warn("A workspace file could not be read: {why}", why=_why(error))
        return None
    return data.decode("utf-8", "replace").removeprefix("\ufeff")


def make_workspace(workspace: str, starter: bool) -> list[str]:
    """Make an agent's workspace where there is none, with starter files if wanted; the names written. One that holds anything stays as it is.

    Raises OSError.
    """
    os.makedirs(workspace, mode=0o700, exist_ok=True)
    return seed(workspace) if starter and not os.listdir(workspace) else []


def seed(workspace: str) -> list[str]:
    """Write the starter files into a workspace that has none of the files, and the first-run ritual if it never had that; the names written.

    Never overwrites. Raises OSError.
    """
    os.makedirs(workspace, mode=0o700, exist_ok=True)
    state = _state(workspace)
    if any(os.path.lexists(os.path.join(workspace, name)) for names in FILES for name in names):
        if "bootstrapSeededAt" in state and "onboardingCompletedAt" not in state and not os.path.lexists(os.path.join(workspace, BOOTSTRAP)):
            _keep(workspace, {**state, "onboardingCompletedAt": _now()})
        return []
    starter = dict(STARTER_FILES)
    if "bootstrapSeededAt" not in state and not os.path.lexists(os.path.join(workspace, BOOTSTRAP)):
        # Told before it is done: after a crash in between there is no ritual, rather than two.
        _keep(workspace, {**state, "bootstrapSeededAt": _now()})
        starter[BOOTSTRAP] = BOOTSTRAP_TEXT
    for name, text in starter.items():
        descriptor = os.open(os.path.join(workspace, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    return list(starter)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _state(workspace: str) -> dict[str, Any]:
    """What is known of the workspace's beginning; nothing where it cannot be read."""
    try:
        with enter(workspace, STATE) as place:
            data, _ = place.read(MAX_STATE)
        found = msgspec.json.decode(data)
    except (OSError, msgspec.DecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _keep(workspace: str, state: dict[str, Any]) -> None:
    with enter(workspace, STATE, make=True) as place:
        place.replace(msgspec.json.format(msgspec.json.encode({"version": 1, **state})) + b"\n")
