"""Reads the end of a log file, or what follows a byte offset in it. Blocks, so in a thread. Imports core.log_ports."""

from __future__ import annotations

import os
import re

from mayros.core.log_ports import Tail
from mayros.errors import Unavailable
from mayros.ops.logfiles import DAEMON, Files

_DATED = re.compile(rf"{DAEMON}-\d{{4}}-\d\d-\d\d\.log")


def log_files(file: str | None, state_dir: str, max_bytes: int) -> Files:
    """Where the daemon's lines go: `logging.file`, which may be relative to the state directory, or a file a day in its folder `logs`."""
    if file is None:
        return Files(os.path.join(state_dir, "logs"), DAEMON, max_bytes)
    return Files(os.path.join(state_dir, os.path.expanduser(file)), None, max_bytes)


def current(files: Files, now: float) -> str:
    """The file to read: the one of now, or where there is none yet the newest of those before it. Raises Unavailable."""
    path = files.at(now)
    if os.path.exists(path):
        return path
    folder = os.path.dirname(path)
    try:
        dated = [name for name in os.listdir(folder) if _DATED.fullmatch(name)] if path != files.path else []
    except OSError:
        dated = []
    if not dated:
        raise Unavailable("There is no log file yet.")
    return os.path.join(folder, max(dated))


def read(path: str, cursor: int | None, limit: int, max_bytes: int) -> Tail:
    """See core.log_ports.TailLog. Of the end, the last `limit` lines; behind a cursor, the first ones, so that nothing is passed over.

    A line that is still being written comes the next time. Raises Unavailable.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            fresh = cursor is None or not 0 <= cursor <= size or size - cursor > max_bytes
            start = max(0, size - max_bytes) if fresh or cursor is None else cursor
            file.seek(max(0, start - 1))
            before = file.read(min(1, start))
            data = file.read(min(size - start, max_bytes))
    except OSError as error:
        raise Unavailable(f"The log file cannot be read: {error.strerror}.") from None
    skipped = 0
    if before not in (b"", b"\n"):  # it begins in the middle of a line
        skipped = data.find(b"\n") + 1 or len(data)
    end = data.rfind(b"\n") + 1
    if end <= skipped:
        # Not one whole line. One that is longer than may be asked for is passed over.
        whole = len(data) >= max_bytes
        return Tail(path, start + len(data) if whole else start, size, (), start > 0, cursor is not None and fresh)
    lines = data[skipped:end].split(b"\n")[:-1]
    if fresh:
        shown, cut = lines[-limit:], len(lines) > limit
    else:
        shown, cut = lines[:limit], False
        end = skipped + sum(len(line) + 1 for line in shown)
    texts = tuple(line.decode("utf-8", "replace") for line in shown)
    return Tail(path, start + end, size, texts, cut or (fresh and start > 0), cursor is not None and fresh)
