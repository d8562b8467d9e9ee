"""Which files the file tools may touch, and opening them. Imports core, net, errors.

In the workspace everything; elsewhere nothing, or (where `workspaceOnly` is off) everything but what is protected: what would let a model change
the gateway, its configuration or its account. Everything here blocks, so it runs in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from twisted.logger import Logger

from mayros.core.routing import Agent
from mayros.errors import ToolFailed
from mayros.net.rooted import Place, enter

log = Logger()

MAX_PATH = 4_096
#: Not files, though some say so.
_SYSTEM = ("/dev", "/proc", "/sys")
_SHELLS = ("bashrc", "bash_profile", "bash_login", "bash_logout", "profile", "zshrc", "zshenv", "zprofile", "zlogin", "zlogout")
_OTHER_SHELLS = ("kshrc", "mkshrc", "cshrc", "tcshrc", "login", "logout", "inputrc", "config/fish")
_ADVICE = {
    errno.ENOENT: "there is no such file",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.ESTALE: "it has changed meanwhile; read it again",
}
#: What a model has to live with; anything else is the disk's fault and is logged.
_USUAL = (*_ADVICE, errno.EACCES, errno.EEXIST, errno.EFBIG, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EPERM, errno.EROFS)


def protected_paths(state_dir: str, config_path: str, home: str) -> tuple[str, ...]:
    """What no file tool reads or writes: the state directory, the configuration, the program's own code, `.ssh`, and what shells run."""
    code = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    own = (code,) if sys.prefix == sys.base_prefix else (code, sys.prefix)
    names = (".ssh", *(f".{name}" for name in (*_SHELLS, *_OTHER_SHELLS)))
    return (state_dir, config_path, *own, *(os.path.join(home, name) for name in names))


class Access:
    """The rules. `protected` are files and folders, `readable(agent)` folders that may be read although they are outside or protected: each a root,
    out of which nothing leads, and a path below it."""

    def __init__(self, protected: Sequence[str], readable: Callable[[Agent], Sequence[tuple[str, str]]]) -> None:
        self._protected = [os.path.split(os.path.abspath(path)) for path in (*protected, *_SYSTEM)]
        self._folders = {folder for folder, _ in self._protected}
        self._readable = readable

    def enter(self, agent: Agent, path: str, workspace_only: bool, *, reading: bool = False, make: bool = False, follow: bool = True) -> Place:
        """The place of a path, relative to the workspace, absolute or below `~`. Raises ToolFailed, and OSError as net.rooted does."""
        full = resolve(agent, path)
        for root, below in self._readable(agent) if reading else ():
            # Those of its own workspace are opened as its other files are.
            if root != agent.workspace and inside(full, os.path.join(root, below).rstrip("/")):
                return enter(root, os.path.relpath(full, root))
        check = self._check(agent)
        if not workspace_only:
            # Folders of the system are there or are not ours to make, except below the workspace.
            return enter("/", os.path.relpath(full, "/"), make=make, follow=follow, check=check)
        for root in (agent.workspace, os.path.realpath(agent.workspace)):
            if inside(full, root):
                return enter(agent.workspace, os.path.relpath(full, root), make=make, follow=follow, check=check)
        raise ToolFailed(f"{shown(path)}: it is outside of the workspace. Use a path relative to the workspace.")

    def foreign(self, agent: Agent, path: str) -> bool:
        """Whether a file, by its real path, is neither in the workspace nor among the skills: it was put there for others, by others."""
        own = [agent.workspace, *(os.path.join(root, below) for root, below in self._readable(agent))]
        return not any(inside(path, os.path.realpath(folder)) for folder in own)

    def _check(self, agent: Agent) -> Callable[[str], None]:
        workspace = _fold(os.path.realpath(agent.workspace))
        closed, real = [], {folder: os.path.realpath(folder) for folder in self._folders}
        for folder, name in self._protected:
            own = os.path.join(real[folder], name)
            # Both the file and, where it is a symlink, its own name. A workspace that stands inside is one because somebody wanted it so.
            for path in (own, os.path.realpath(own)) if os.path.islink(own) else (own,):
                closed.append((one := _fold(path), inside(workspace, one)))

        def check(path: str) -> None:
            folded = _fold(path)
            for one, holds_workspace in closed:
                if inside(folded, one) and not (holds_workspace and inside(folded, workspace)):
                    raise PermissionError(errno.EPERM, "it is protected: it belongs to the gateway or to the system's account")

        return check


def resolve(agent: Agent, path: str) -> str:
    """The absolute path that a tool's argument means, symlinks not looked at. Raises ToolFailed for what is no path."""
    try:
        size = len(path.encode("utf-8"))
    except UnicodeEncodeError:
        size = 0
    if not path.strip() or not 0 < size <= MAX_PATH or any(sign < " " or sign == "\x7f" for sign in path):
        raise ToolFailed(f"The path is not valid: it must be 1 to {MAX_PATH} bytes long, without control characters.")
    if path == "~" or path.startswith("~/"):
        path = os.path.expanduser("~") + path[1:]
    # A root of two slashes is a thing of its own to normpath.
    return "/" + os.path.normpath(os.path.join(agent.workspace, path)).lstrip("/")


@contextlib.contextmanager
def told(path: str) -> Iterator[None]:
    """Turn an OSError, and what a ToolFailed says about a text, into a ToolFailed that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno not in _USUAL:
            log.warn("A file tool failed: {why}", why=error.strerror)
        raise ToolFailed(f"{shown(path)}: {_ADVICE.get(error.errno or 0, error.strerror)}.") from None
    except ToolFailed as error:
        text = str(error)
        raise ToolFailed(text if text.startswith(shown(path)) else f"{shown(path)}: {text}") from None


def shown(path: str) -> str:
    """A path in a message: not without end."""
    return path if len(path) <= 300 else path[:300] + "..."


def _fold(path: str) -> str:
    # Some disks take `.SSH` for `.ssh`.
    return path.casefold()


def inside(path: str, folder: str) -> bool:
    """Whether a path is a folder's, or below it; both absolute and normal."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")
