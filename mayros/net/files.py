"""Files that must be whole or absent, and reads that cannot hang or grow. Imports nothing of ours."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from typing import BinaryIO


def is_full(error: OSError) -> bool:
    """Whether there was no room for what was written, which may pass."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def read_bounded(path: str, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises OSError as the system does, and ValueError with a sentence for anything that is no regular file (a FIFO would block, a device
    never ends) or is too large.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path} is larger than {limit} bytes")
    return data


def write_atomic(path: str, data: bytes, mode: int = 0o600, *, keep: bool = True) -> None:
    """Replace a file's content so that a reader, or a power cut, sees the old or the new text and nothing between.

    An existing file keeps its permissions, unless `keep` is False; a new one gets `mode`. A symlink stays and its target is replaced. Raises OSError,
    and ValueError where the target is no regular file; nothing is left behind then.
    """
    path = os.path.realpath(path)
    with contextlib.suppress(FileNotFoundError):
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a regular file")
        if keep:
            mode = stat.S_IMODE(status.st_mode) & 0o777
    folder, name = os.path.split(path)
    beside = os.path.join(folder, f".{name[:200]}.{secrets.token_hex(6)}.tmp")
    try:
        _write_new(beside, data, mode)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise
    sync_directory(folder)


def create(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write a new file, durably. Raises FileExistsError where there is something already, a dangling symlink included."""
    try:
        _write_new(path, data, mode)
    except FileExistsError:
        raise
    except BaseException:
        # A half-written file would be taken for a real one.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        raise
    sync_directory(os.path.dirname(os.path.abspath(path)))


def sync_directory(path: str) -> None:
    """Make names in a directory survive a power cut."""
    sync(path, os.O_DIRECTORY)


def sync(path: str, only: int = 0) -> None:
    """Make what is in a file survive a power cut. `only`: more flags to open it with."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | only)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def new_file(path: str, mode: int = 0o600) -> BinaryIO:
    """A new file, open for writing. Raises FileExistsError where there is something already, a dangling symlink included."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode), "wb")


def _write_new(path: str, data: bytes, mode: int) -> None:
    with new_file(path, mode) as file:
        # The umask has had its say in open(); the mode asked for is the one meant.
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
