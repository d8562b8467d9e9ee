"""Reads whole conversations out of a store that a gateway may be using. For commands; imports engine, migrate, listing and tables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import sqlalchemy as sa

from mayros.errors import StartError
from mayros.storage.engine import describe, make_engine, parse_url, start_error
from mayros.storage.migrate import HEAD, REVISIONS, current
from mayros.storage.tables import entries, session_history

_ROWS = 500


class Record(NamedTuple):
    """One entry as it is kept: `message` and `meta` are JSON; times in milliseconds of the wall clock."""

    id: int
    session_id: str
    parent_id: int | None
    run_id: str
    kind: str
    message: msgspec.Raw
    meta: msgspec.Raw | None
    created_ms: int


def open_to_read(text: str) -> sa.Engine:
    """An engine on a store that is there and at this program's revision; nothing is made or migrated. Raises StartError."""
    url = parse_url(text)
    if url.get_backend_name() == "sqlite" and not os.path.exists(str(url.database)):
        raise StartError(f"There is no store at {url.database} yet.", 1)
    engine = make_engine(url)
    try:
        found = current(engine)
    except (sa.exc.SQLAlchemyError, OSError) as error:
        engine.dispose()
        raise start_error(error, url) from error
    if found != HEAD:
        engine.dispose()
        if found in REVISIONS:
            raise StartError(f"The store {describe(url)} is of an older version: start the gateway once, which migrates it.", 1)
        raise StartError(f"The store {describe(url)} was written by a newer version (schema {found}, this one knows {HEAD}).")
    return engine


def session_ids(connection: sa.Connection, key: str, current_id: str) -> Sequence[str]:
    """All session ids that a key has had, as far as anything was said under them, the oldest first and the current one last."""
    had = session_history.c
    first = sa.select(sa.func.min(entries.c.id)).where(entries.c.session_id == had.session_id).correlate(session_history).scalar_subquery()
    found = connection.execute(sa.select(had.session_id, first.label("first")).where(had.key == key)).all()
    old = sorted((id_, name) for name, id_ in found if id_ is not None and name != current_id)
    return (*(name for _, name in old), current_id)


def records(connection: sa.Connection, session_id: str) -> Iterator[Record]:
    """Everything that was recorded under a session id, oldest first; a part at a time, however long it is."""
    last = -1
    column = entries.c
    wanted = (column.id, column.session_id, column.parent_id, column.run_id, column.kind, column.body, column.meta, column.created_ms)
    statement = sa.select(*wanted).where(column.session_id == session_id, column.id > sa.bindparam("b_last")).order_by(column.id).limit(_ROWS)
    while rows := connection.execute(statement, {"b_last": last}).all():
        for id_, name, parent, run_id, kind, body, meta, created_ms in rows:
            yield Record(
                id_, name, parent, run_id, kind, msgspec.Raw(body.encode()), None if meta is None else msgspec.Raw(meta.encode()), created_ms
            )
        last = rows[-1][0]
