"""The state directory: whose it is, one gateway at a time, and the token file. Imports net.files and errors."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import secrets
import stat
from collections.abc import Iterator

from mayros.errors import StartError
from mayros.net.files import create, is_full, read_bounded

TOKEN_FILE = "gateway-token"  # noqa: S105 - a file's name
LOCK_FILE = "gateway.lock"
#: What only this gateway puts into a state directory, or what it shares with the original by name.
_MARKERS = frozenset({TOKEN_FILE, LOCK_FILE, "mayros.json"})
#: Folders that commands (`mayros setup`, `mayros models install`, a client's identity) may have made before the first start.
_OWN = frozenset({"workspace", "models", "logs", "identity", "keys", "tls"})
_OPEN_FILES_MAX = 1 << 20


class StateDir:
    """An open state directory. `path` is absolute; `warnings` says what is not as it should be without being refused."""

    def __init__(self, path: str, warnings: list[str] | None = None) -> None:
        self.path = path
        self.warnings = warnings if warnings is not None else []
        self._lock: int | None = None

    @classmethod
    def open(cls, path: str, *, create: bool = True) -> StateDir:
        """Set the umask to 077, then take a directory in use, made with mode 0700 where it is missing.

        Raises StartError (status 78) for a directory of another user, one that everybody may write, one that cannot be written, and what
        is no directory. With `create=False` (a command that only reads) nothing is made, and the directory need not be writable.
        """
        os.umask(0o077)
        path = os.path.abspath(os.path.expanduser(path))
        try:
            if create:
                os.makedirs(path, 0o700, exist_ok=True)
            status = os.stat(path)
        except FileExistsError:
            raise StartError(f"state directory {path}: not a directory") from None
        except OSError as error:
            raise StartError(f"state directory {path}: {error.strerror}") from None
        if not stat.S_ISDIR(status.st_mode):
            raise StartError(f"state directory {path}: not a directory")
        if status.st_uid != os.geteuid():
            raise StartError(f"state directory {path}: belongs to user {status.st_uid}, this process runs as user {os.geteuid()}")
        if status.st_mode & stat.S_IWOTH:
            raise StartError(f"state directory {path}: every user may write to it; chmod 700 it")
        if create and not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise StartError(f"state directory {path}: not writable")
        warnings = []
        if status.st_mode & 0o077:
            warnings.append(f"state directory {path}: other users may read it or write to it (mode {stat.S_IMODE(status.st_mode):o}); chmod 700 it")
        return cls(path, warnings)

    def join(self, *names: str) -> str:
        """The path of something in the directory."""
        return os.path.join(self.path, *names)

    def lock(self) -> None:
        """Claim the directory for this process until `unlock` or its end, however it ends. Call after any fork into the background.

        Raises StartError with status 1 while another process has it, naming that one's id, and while the disk is full; else with 78.
        """
        path = self.join(LOCK_FILE)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartError(f"{path}: {error.strerror}", 1 if is_full(error) else 78) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).strip().decode("ascii", "replace")
            os.close(fd)
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise StartError(f"state directory {self.path}: in use by another gateway ({who})", status=1) from None
        except OSError as error:
            os.close(fd)
            raise StartError(f"{path}: {error.strerror}", 1 if is_full(error) else 78) from None
        self._lock = fd

    def unlock(self) -> None:
        """Give the directory back; does nothing where it was not locked. The file stays: removing it would race with the next holder."""
        if self._lock is not None:
            fd, self._lock = self._lock, None
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
            os.close(fd)

    def token(self) -> str | None:
        """The token kept in the directory; None where there is none. Raises StartError for a file that cannot be one."""
        path = self.join(TOKEN_FILE)
        try:
            text = read_bounded(path, 4096).decode("utf-8").strip()
            if os.stat(path).st_mode & 0o077:
                self.warnings.append(f"{path}: other users may read it; chmod 600 it")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StartError(f"{path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise StartError(f"{path}: not a token; delete it and a new one is made") from None
        except ValueError as error:
            raise StartError(str(error)) from None
        if not text or not text.isprintable() or " " in text:
            raise StartError(f"{path}: not a token; delete it and a new one is made")
        return text

    def make_token(self) -> str:
        """Make a token of 32 random bytes (base64url, 43 characters) and keep it, mode 0600; an existing one is given back instead."""
        token = secrets.token_urlsafe(32)
        path = self.join(TOKEN_FILE)
        try:
            create(path, token.encode() + b"\n", 0o600)
        except FileExistsError:
            kept = self.token()
            if kept is None:
                raise StartError(f"{path}: a link that leads nowhere") from None
            return kept
        except OSError as error:
            raise StartError(f"{path}: {error.strerror}") from None
        return token


def from_state(state_dir: str, path: str) -> str:
    """A path of the configuration: `~` is the home directory, and a relative one is below the state directory."""
    return os.path.join(state_dir, os.path.expanduser(path))


def recognise_foreign(path: str) -> str | None:
    """A sentence about what another program keeps in a directory, or None where it is missing, empty or this gateway's own."""
    path = os.path.abspath(os.path.expanduser(path))
    try:
        with os.scandir(path) as entries:
            names = {entry.name for _, entry in zip(range(10_000), entries, strict=False)}
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{path} cannot be used as a state directory: {error.strerror}."
    if names & {TOKEN_FILE, LOCK_FILE}:
        return None
    found = next(_foreign_signs(path, names), None)
    if found is not None:
        return f"{path} belongs to another program: it holds {found}. Choose another directory with MAYROS_STATE_DIR."
    # Hidden files (.env, .DS_Store) say nothing about whose directory it is.
    visible = {name for name in names if not name.startswith(".")}
    if visible & _MARKERS or visible <= _OWN:
        return None
    shown = ", ".join(ascii(name)[1:-1] for name in sorted(visible)[:3])
    return f"{path} is not empty and is not a state directory of this gateway: it holds {shown}. Choose another directory with MAYROS_STATE_DIR."


def _foreign_signs(path: str, names: set[str]) -> Iterator[str]:
    """What the original gateway and its parent leave behind."""
    for name in ("openclaw.json", os.path.join("devices", "paired.json")):
        if os.path.lexists(os.path.join(path, name)):
            yield name
    if "agents" in names:
        # Unreadable, or gone meanwhile: no sign.
        with contextlib.suppress(OSError), os.scandir(os.path.join(path, "agents")) as agents:
            for _, agent in zip(range(1_000), agents, strict=False):
                name = os.path.join("agents", agent.name, "sessions", "sessions.json")
                if os.path.lexists(os.path.join(path, name)):
                    yield name


def raise_open_files() -> int:
    """Raise the soft limit of open files to the hard one (at most 1,048,576 where that has no end); gives the limit then in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _OPEN_FILES_MAX if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        # macOS names a hard limit that the kernel does not grant; the old one still holds.
        return soft
    return wanted
