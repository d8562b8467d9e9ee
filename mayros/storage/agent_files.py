"""The agents' workspaces, for clients that look after them: read and write a file, make a folder, move one aside. Imports core, net and
storage.workspace.

A workspace is written by the model as well: no symlink leads out of it, also not one that is swapped in between check and use. A file is replaced as
a whole and durably. Everything that touches the disk runs in a thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mayros.core.workspace_ports import AgentFile
from mayros.errors import InvalidRequest, StorageUnavailable
from mayros.net.files import sync_directory
from mayros.net.rooted import enter, open_inside
from mayros.storage.workspace import seed

log = Logger()

MAX_FILE = 1 << 20
MAX_PATH = 1_024
#: The only folders in the state directory that may be a workspace.
_OWN = ("workspace", "workspaces")
#: What a client may be told without the log's help; anything else is the disk's fault.
_REFUSALS = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EROFS)

Args = ParamSpec("Args")
Value = TypeVar("Value")


class LocalAgentFiles:
    """Implements core.workspace_ports.AgentFiles. `home` is the user's home directory; `in_thread` runs a function off the reactor."""

    def __init__(self, state_dir: str, home: str, in_thread: Callable[..., Deferred[Any]], now_ms: Callable[[], int]) -> None:
        self._state, self._home, self._in_thread, self._now_ms = state_dir, home, in_thread, now_ms

    async def list(self, workspace: str, names: Sequence[str]) -> Sequence[AgentFile]:
        """See AgentFiles."""
        return await self._run(_list, workspace, names)

    async def read(self, workspace: str, name: str) -> AgentFile:
        """See AgentFiles. At most 1 MiB, what is not UTF-8 replaced."""
        return await self._run(_read, workspace, name)

    async def write(self, workspace: str, name: str, text: str) -> AgentFile:
        """See AgentFiles. At most 1 MiB."""
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidRequest("half a surrogate pair is not a character") from None
        if len(data) > MAX_FILE:
            raise InvalidRequest(f"file too large: {len(data)} bytes, at most {MAX_FILE}")
        return await self._run(_write, workspace, name, data, text)

    async def make(self, workspace: str, starter: bool, identity: str) -> str:
        """See AgentFiles."""
        return await self._run(_make, workspace, self._state, self._home, starter, identity)

    async def discard(self, workspace: str, others: Sequence[str]) -> str | None:
        """See AgentFiles."""
        return await self._run(_discard, workspace, others, self._state, self._home, self._now_ms())

    async def _run(self, function: Callable[Args, Value], *args: Args.args, **kwargs: Args.kwargs) -> Value:
        try:
            value: Value = await self._in_thread(function, *args, **kwargs)
        except OSError as error:
            if error.errno in _REFUSALS:
                raise InvalidRequest(f"the workspace cannot be used: {error.strerror}") from None
            log.failure("a workspace could not be used")
            raise StorageUnavailable(f"the workspace cannot be used: {error.strerror}") from None
        return value


# The rest runs in a thread.


def _list(root: str, names: Sequence[str]) -> Sequence[AgentFile]:
    return [_found(root, name) for name in names]


def _found(root: str, name: str) -> AgentFile:
    """What there is under a name; a file that is no regular one, or outside, counts as missing."""
    path = os.path.join(root, name)
    try:
        descriptor = open_inside(root, name)
    except OSError as error:
        if error.errno in (*_REFUSALS, errno.ENOENT):
            return AgentFile(name, path, True)
        raise
    try:
        return _described(name, path, os.fstat(descriptor))
    finally:
        os.close(descriptor)


def _described(name: str, path: str, status: os.stat_result, text: str | None = None) -> AgentFile:
    return AgentFile(name, path, False, status.st_size, status.st_mtime_ns // 1_000_000, text)


def _read(root: str, name: str) -> AgentFile:
    path = os.path.join(root, name)
    try:
        descriptor = open_inside(root, name)
    except FileNotFoundError:
        return AgentFile(name, path, True)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise InvalidRequest(f'file "{name}" is larger than {MAX_FILE} bytes')
        return _described(name, path, os.fstat(descriptor), data.decode("utf-8", "replace"))


def _write(root: str, name: str, data: bytes, text: str) -> AgentFile:
    with enter(root, name, make=True) as place:
        return _described(name, os.path.join(root, name), place.replace(data), text)


def _place(workspace: str, state: str, home: str) -> str:
    """The absolute path of a folder that may be a workspace. Raises InvalidRequest."""
    text = workspace.strip()
    if text == "~" or text.startswith("~/"):
        text = home + text[1:]
    if not os.path.isabs(text) or not text.isprintable() or len(os.fsencode(text)) > MAX_PATH:
        raise InvalidRequest("workspace must be an absolute path, or begin with ~/")
    path = os.path.normpath(text)
    real, state, home = (os.path.realpath(one) for one in (path, state, home))
    if any(os.path.commonpath((real, one)) == real for one in (state, home)):
        raise InvalidRequest("workspace must not be the home directory, the state directory, or a folder that holds one of them")
    if os.path.commonpath((real, state)) == state:
        first = os.path.relpath(real, state).split(os.sep)[0]
        if first not in _OWN and not first.startswith("workspace-"):
            raise InvalidRequest("workspace must not be in the state directory, except in workspace-<name> or workspaces/")
    return path


def _make(workspace: str, state: str, home: str, starter: bool, identity: str) -> str:
    path = _place(workspace, state, home)
    os.makedirs(path, 0o700, exist_ok=True)
    # A symlink may have been put into the way between check and making.
    _place(path, state, home)
    if starter and "IDENTITY.md" in seed(path):
        _write(path, "IDENTITY.md", identity.encode(), identity)
    sync_directory(path)
    return path


def _discard(workspace: str, others: Sequence[str], state: str, home: str, now_ms: int) -> str | None:
    path = _place(workspace, state, home)
    if not os.path.isdir(path) or os.path.islink(path):
        return None
    real = os.path.realpath(path)
    for other in map(os.path.realpath, others):
        if os.path.commonpath((real, other)) in (real, other):
            return None
    aside = f"{path}.deleted.{now_ms}"
    if os.path.lexists(aside):
        raise FileExistsError(errno.EEXIST, f"there is {aside} already")
    os.rename(path, aside)
    sync_directory(os.path.dirname(path))
    return aside
