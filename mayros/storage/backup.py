"""Copies of a SQLite store that are consistent while it is written, and a close look at one. For commands and migrations; imports errors, net.files.

What is in an archive of `mayros backup` beside the store is in archive.py.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from urllib.parse import quote

from mayros.errors import StartError
from mayros.net.files import new_file, sync, sync_directory

#: Pages of one step: between two of them Ctrl-C is heard.
PAGES = 2_048
_BUSY_SECONDS = 10.0
#: What SQLite keeps beside a store.
BESIDE = ("-wal", "-shm", "-journal")


def copy_store(source: str, target: str, *, pages: int = PAGES, stepped: Callable[[int, int, int], None] | None = None) -> None:
    """Copy a store as it is at this moment, while others go on reading and writing it.

    `target` must not exist; it becomes one file without a log beside it, mode 0600, and is on disk when this returns. Raises StartError; nothing is
    left behind then. `stepped(status, remaining, total)` is told of the pages after each step.
    """
    try:
        new_file(target).close()
    except OSError as error:
        raise StartError(f"{target}: {error.strerror}", 1) from None
    try:
        with _reading(source) as old, closing(sqlite3.connect(target, timeout=_BUSY_SECONDS)) as new:
            # Held until the copy is complete: it is of one moment, however much is written meanwhile.
            old.execute("BEGIN")
            old.execute("SELECT count(*) FROM sqlite_master").fetchone()
            old.backup(new, pages=pages, progress=stepped)
            new.execute("PRAGMA journal_mode=DELETE")
        sync(target)
        sync_directory(os.path.dirname(os.path.abspath(target)))
    except BaseException as error:
        for path in (target, *(target + end for end in BESIDE)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        if isinstance(error, sqlite3.Error | OSError):
            raise StartError(f"The store {source} cannot be copied to {target} ({_words(error)}).", 1) from error
        raise


def revision(path: str) -> str | None:
    """The schema's revision of a store; None: it has no schema of ours. Raises StartError where it cannot be read."""
    try:
        with _reading(path) as connection:
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone() is None:
                return None
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            return None if found is None else str(found[0])
    except (sqlite3.Error, OSError) as error:
        raise StartError(f"The store {path} cannot be read ({_words(error)}).") from error


def damage(path: str) -> list[str]:
    """What SQLite's full check finds wrong with a store, at most ten sentences; none: it is sound. Reads the whole file."""
    try:
        if os.path.getsize(path) == 0:
            return ["it is empty (0 bytes)"]
        with _reading(path) as connection:
            found = [" ".join(str(row[0]).split()) for row in connection.execute("PRAGMA integrity_check(10)")]
    except (sqlite3.Error, OSError) as error:
        return [_words(error)]
    return [] if found == ["ok"] else found


@contextlib.contextmanager
def _reading(path: str) -> Iterator[sqlite3.Connection]:
    """A connection that only reads, to a file that must be there.

    It may write to the store's log: whoever is last to leave puts the log into the file, as after any other visit.
    """
    address = f"file:{quote(os.path.abspath(path))}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)) as connection:
        connection.execute("PRAGMA query_only=1")
        yield connection


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
