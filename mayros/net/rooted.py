"""Files below a folder that somebody else may rearrange meanwhile: nothing leads out of it. Imports nothing of ours.

A path is walked part by part from an open descriptor and the kernel follows no symlink: what a link says is read and walked in the same way, so
a link that is swapped in between check and use is found at the use. Only regular files are opened. A file is replaced as a whole and durably.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable

MAX_LINKS = 40
#: Folders below the root; each is an open descriptor during the walk.
MAX_DEPTH = 64
#: O_PATH needs no permission to list a folder; systems without it need that.
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

#: Called with an absolute path free of symlinks before it is given out, or a folder on the way to it is made; raises OSError to refuse.
Check = Callable[[str], None]


class Place:
    """A name in an open folder, which there may or may not be a file of. Use it as a context manager. All raise OSError."""

    def __init__(self, folder: int, name: str, path: str) -> None:
        #: `path` is absolute and was free of symlinks when it was walked.
        self.folder, self.name, self.path = folder, name, path

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.folder)

    def status(self) -> os.stat_result | None:
        """What is there, a symlink not followed; None: nothing."""
        try:
            return os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open(self) -> int:
        """A descriptor of the regular file, for reading."""
        # Looked at before: opening some devices does something.
        _regular(os.stat(self.name, dir_fd=self.folder, follow_symlinks=False))
        descriptor = os.open(self.name, _READ, dir_fd=self.folder)
        try:
            _regular(os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def read(self, limit: int) -> tuple[bytes, os.stat_result]:
        """The content, and what the file was then. EFBIG beyond `limit` bytes, known before anything is read."""
        descriptor = self.open()
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            data = file.read(limit + 1) if status.st_size <= limit else b""
            if status.st_size > limit or len(data) > limit:
                raise OSError(errno.EFBIG, f"it is larger than {limit} bytes")
            return data, status

    def replace(self, data: bytes, mode: int = 0o600, expected: os.stat_result | None = None) -> os.stat_result:
        """Put a new file in the place of what is there; the new one's status. Readers, and a power cut, see the old or the new content.

        What is there keeps its permissions, a new file gets `mode`. Refused: what is no regular file, is write-protected, or has more names
        (hard links), of which some may stand elsewhere. With `expected` (from `read`): ESTALE where the file is another one by now.
        """
        found = self.status()
        if expected is not None and (found is None or _stamp(found) != _stamp(expected)):
            raise OSError(errno.ESTALE, "it has changed meanwhile")
        if found is not None:
            _regular(found)
            if found.st_nlink > 1:
                raise PermissionError(errno.EPERM, "it is a file with more than one name (hard links)")
            if not found.st_mode & 0o222:
                raise PermissionError(errno.EACCES, "it is write-protected")
            mode = stat.S_IMODE(found.st_mode) & 0o777
        beside = f".{secrets.token_hex(8)}.tmp"
        descriptor = os.open(beside, _NEW, mode, dir_fd=self.folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                # The umask has had its say in open(); the mode asked for is the one meant.
                os.fchmod(descriptor, mode)
                file.write(data)
                file.flush()
                os.fsync(descriptor)
                made = os.fstat(descriptor)
            os.rename(beside, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside, dir_fd=self.folder)
            raise
        self._sync()
        return made

    def remove(self) -> None:
        """Remove the file, or the symlink, of this name."""
        found = os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)
        if not stat.S_ISLNK(found.st_mode):
            _regular(found)
        os.unlink(self.name, dir_fd=self.folder)
        self._sync()

    def _sync(self) -> None:
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.folder)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def enter(root: str, path: str, *, make: bool = False, follow: bool = True, check: Check | None = None) -> Place:
    """The place of a path relative to `root`. Symlinks below `root` are followed as long as they stay there; the last part's only with `follow`.

    `make`: missing folders are made (0700), `root` too. EPERM: it leads out; EISDIR: it is `root` itself; else OSError as the system says.
    """
    if make:
        os.makedirs(root, 0o700, exist_ok=True)
    pending = _parts(path)[::-1]
    names: list[str] = []
    folders = [os.open(root, _FOLDER)]
    links = 0
    try:
        while pending:
            part = pending.pop()
            if part == "..":
                if not names:
                    raise PermissionError(errno.EPERM, "it is a symlink that leaves the workspace" if links else "it leaves the workspace")
                names.pop()
                os.close(folders.pop())
                continue
            target = _target(folders[-1], part) if pending or follow else None
            if target is not None:
                links += 1
                if links > MAX_LINKS:
                    raise OSError(errno.ELOOP, "it leads through too many symlinks")
                if os.path.isabs(target):
                    target = _below(root, target)
                    while names:
                        names.pop()
                        os.close(folders.pop())
                pending += _parts(target)[::-1]
                continue
            if not pending:
                full = _path(root, names, part)
                if check is not None:
                    check(full)
                return Place(folders.pop(), part, full)
            if len(names) == MAX_DEPTH:
                raise OSError(errno.ENAMETOOLONG, "it is too deep")
            try:
                deeper = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=folders[-1])
            except FileNotFoundError:
                if not make:
                    raise
                if check is not None:
                    # All of it, for the rest is not there either: what is refused at its end leaves no folders.
                    check(_path(root, names, os.path.normpath("/".join([part, *reversed(pending)]))))
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=folders[-1])
                deeper = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=folders[-1])
            folders.append(deeper)
            names.append(part)
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not a regular file")
    finally:
        for folder in folders:
            os.close(folder)


def open_inside(root: str, path: str) -> int:
    """A descriptor of a regular file below `root`, for reading. Raises OSError."""
    with enter(root, path) as place:
        return place.open()


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _path(root: str, names: list[str], name: str) -> str:
    return os.path.join(os.path.realpath(root), *names, name)


def _target(folder: int, name: str) -> str | None:
    """What a symlink says; None for anything else, and for nothing."""
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return None
        raise


def _below(root: str, target: str) -> str:
    """An absolute path as one relative to `root`, in whichever of its spellings."""
    for spelling in (os.path.realpath(root), os.path.abspath(root)):
        parts = _parts(spelling)
        if _parts(target)[: len(parts)] == parts:
            return "/".join(_parts(target)[len(parts) :])
    raise PermissionError(errno.EPERM, "it is a symlink that leaves the workspace")


def _regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not a regular file")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
