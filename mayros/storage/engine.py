"""Opening the database: which URLs are taken, how a connection is set up, and what the operator reads when that fails.

Imports errors, net.files and SQLAlchemy. A SQLite file is opened with `mode=rw`, so that a file that vanishes at run time is never made anew
silently; migrate.py makes the file the first time.
"""

from __future__ import annotations

import os
import sqlite3
from urllib.parse import quote

import sqlalchemy as sa

from mayros.errors import StartError
from mayros.net.files import is_full

#: Connections at most: the writer's, and those of the threads that read histories.
POOL_SIZE = 4
BUSY_SECONDS = 5.0


def default_url(state_dir: str) -> str:
    """The store when `session.store` says nothing: SQLite in the state directory."""
    return sa.URL.create("sqlite", database=os.path.join(state_dir, "mayros.db")).render_as_string(hide_password=False)


def parse_url(url: str) -> sa.URL:
    """The URL of `session.store`, a SQLite path made absolute. StartError (78) for anything but a SQLite file or `postgresql+psycopg`."""
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise StartError("session.store is not a database URL: write sqlite:////path/to/file or postgresql+psycopg://host/name.") from error
    if parsed.drivername == "postgresql+psycopg":
        return parsed
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise StartError(f"session.store: {parsed.drivername} is not supported: use sqlite or postgresql+psycopg.")
    if not parsed.database or parsed.database == ":memory:":
        raise StartError("session.store: a SQLite store needs a file; one in memory would lose every turn.")
    if parsed.query or parsed.host:
        raise StartError("session.store: a SQLite URL takes a path and no options: sqlite:////path/to/file.")
    return parsed.set(database=os.path.abspath(os.path.expanduser(parsed.database)))


def describe(url: sa.URL) -> str:
    """How messages name the store: the file's path, or the URL without its password."""
    return str(url.database) if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)


def make_engine(url: sa.URL, busy_seconds: float = BUSY_SECONDS) -> sa.Engine:
    """An engine for a URL of `parse_url`; connects to nothing yet. `busy_seconds`: how long to wait for another process's lock."""
    if url.get_backend_name() != "sqlite":
        try:
            # Positional parameters, so that rows are plain tuples for both kinds of database.
            return sa.create_engine(url, paramstyle="format", pool_size=POOL_SIZE, max_overflow=0, pool_pre_ping=True, hide_parameters=True)
        except ImportError as error:
            raise StartError("session.store: PostgreSQL needs the psycopg package: pip install 'psycopg[binary]'.") from error
    path = quote(str(url.database))

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=busy_seconds, check_same_thread=False)
        try:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=OFF")
            # SQLite's own lower() knows ASCII only.
            connection.create_function("unicode_lower", 1, _lower, deterministic=True)
        except BaseException:
            connection.close()
            raise
        return connection

    # Parameters are conversations: never in an error text.
    return sa.create_engine(
        "sqlite://", creator=connect, poolclass=sa.QueuePool, pool_size=POOL_SIZE, max_overflow=0, pool_use_lifo=True, hide_parameters=True
    )


def _lower(text: str | None) -> str | None:
    return None if text is None else text.lower()


def cause(error: BaseException) -> str:
    """One line for the log: the driver's own words, without SQL and parameters."""
    if isinstance(error, sa.exc.DBAPIError) and error.orig is not None:
        error = error.orig
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def start_error(error: BaseException, url: sa.URL) -> StartError:
    """What the operator reads when the store cannot be opened: 1 for what may pass by itself (a lock, a full disk, a server away), else 78."""
    name, text = describe(url), cause(error)
    if url.get_backend_name() != "sqlite":
        passing = isinstance(error, sa.exc.OperationalError)
        return StartError(f"The store {name} cannot be used: {text}.", 1 if passing else 78)
    lowered = text.lower()
    if "locked" in lowered:
        return StartError(f"The store {name} is locked by another process.", 1)
    if "disk is full" in lowered or (isinstance(error, OSError) and is_full(error)):
        return StartError(f"The store {name} has no room on its disk ({text}).", 1)
    if "not a database" in lowered or "malformed" in lowered:
        return StartError(f"The store {name} is damaged ({text}). Restore it from a backup, or move it away to begin with an empty one.")
    if "readonly" in lowered or "unable to open" in lowered or isinstance(error, OSError):
        return StartError(f"The store {name} cannot be opened for writing ({text}).")
    return StartError(f"The store {name} cannot be used ({text}).")
