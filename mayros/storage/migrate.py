"""Brings the schema up to date before anything uses the store. Imports engine and net.files; Alembic only when there is something to migrate.

The revision is read with plain SQL and compared with a constant: importing Alembic takes longer than all of the rest of opening. A new SQLite
file is made under another name and renamed when it is complete, so a file of that name without a schema is always damage, never a start
that was interrupted.
"""

from __future__ import annotations

import os

import sqlalchemy as sa

from mayros.errors import StartError
from mayros.net.files import sync, sync_directory
from mayros.storage.engine import BUSY_SECONDS, describe, make_engine, parse_url, start_error

#: All revisions, oldest first; a test keeps them equal to the scripts.
REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")
HEAD = REVISIONS[-1]

_REVISION = "SELECT version_num FROM alembic_version"
#: Writes one row that changes nothing: shows that the store can be written, durably, on either kind of database.
PROBE = "UPDATE alembic_version SET version_num = version_num"


def open_engine(text: str, busy_seconds: float = BUSY_SECONDS) -> sa.Engine:
    """An engine on a store that exists, is sound as far as a quick look tells, is at the newest revision and can be written.

    Raises StartError naming the store: 78, or 1 where waiting may help.
    """
    url = parse_url(text)
    sqlite = url.get_backend_name() == "sqlite"
    try:
        if sqlite:
            _ensure_file(url, busy_seconds)
        engine = make_engine(url, busy_seconds)
        try:
            _ensure_schema(engine, url)
            with engine.begin() as connection:
                if sqlite and (mode := connection.exec_driver_sql("PRAGMA journal_mode=WAL").scalar()) != "wal":
                    raise StartError(f"The store {describe(url)} cannot use write-ahead logging ({mode}): put it on a local file system.")
                connection.exec_driver_sql(PROBE)
        except BaseException:
            engine.dispose()
            raise
    except (sa.exc.SQLAlchemyError, OSError) as error:
        raise start_error(error, url) from error
    return engine


def _ensure_file(url: sa.URL, busy_seconds: float) -> None:
    """Make the SQLite file if there is none; refuse what only damage can have left."""
    path = str(url.database)
    if os.path.exists(path):
        if os.path.getsize(path) == 0:
            raise StartError(f"The store {path} is empty (0 bytes): restore it from a backup, or delete it to begin with an empty one.")
        return
    if os.path.exists(path + "-wal"):
        raise StartError(f"The store {path} is missing, but its {os.path.basename(path)}-wal is there: restore both, or move that away.")
    new = path + ".new"
    for leftover in (new, new + "-wal", new + "-shm", new + "-journal"):
        if os.path.lexists(leftover):
            os.unlink(leftover)
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    engine = make_engine(url.set(database=new), busy_seconds)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        _upgrade(engine)
    finally:
        engine.dispose()  # the last connection to close puts the log into the file
    sync(new)
    os.rename(new, path)
    sync_directory(os.path.dirname(path))


def _ensure_schema(engine: sa.Engine, url: sa.URL) -> None:
    revision = current(engine)
    if revision == HEAD:
        return
    if revision is None and (tables := sa.inspect(engine).get_table_names()):
        raise StartError(f"The store {describe(url)} holds tables of another program ({', '.join(sorted(tables)[:3])}).")
    if revision is not None and revision not in REVISIONS:
        raise StartError(
            f"The store {describe(url)} was written by a newer version (schema {revision}, this one knows {HEAD}): install that version again, "
            "or restore a backup of before."
        )
    if revision is not None and url.get_backend_name() == "sqlite":
        _keep_copy(str(url.database), revision)
    _upgrade(engine)


def _keep_copy(path: str, revision: str) -> None:
    """Copy the store before it is migrated, so that the version of before can be installed again. Raises StartError: then it is not migrated."""
    from mayros.storage.backup import copy_store

    kept = f"{path}.before-{revision}"
    new = kept + ".new"
    if os.path.lexists(new):
        os.unlink(new)
    copy_store(path, new)
    # One of an attempt that failed is replaced: the store was not changed by it.
    os.rename(new, kept)
    sync_directory(os.path.dirname(path))


def current(engine: sa.Engine) -> str | None:
    """The schema's revision, or None where there is no schema yet."""
    with engine.connect() as connection:
        try:
            return connection.exec_driver_sql(_REVISION).scalar()
        except (sa.exc.OperationalError, sa.exc.ProgrammingError) as error:
            # The word for a missing table is the driver's own; everything else is a real failure.
            text = str(error.orig).lower()
            if "no such table" in text or "does not exist" in text:
                return None
            raise


def _upgrade(engine: sa.Engine, revision: str = "head") -> None:
    """Run what is missing up to `revision`, in one transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", os.path.join(os.path.dirname(__file__), "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        if engine.dialect.name == "sqlite":
            # Python's driver begins no transaction for DDL; so it is begun by hand, and this connection is not used again.
            connection.connection.dbapi_connection.isolation_level = None  # type: ignore[union-attr]
            connection.detach()
        with connection.begin():
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN EXCLUSIVE")
            command.upgrade(config, revision)
