"""What is read of sessions: rows, lists and transcripts; all in a reader thread. Imports core.ports, settings, tables and turns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from mayros.core.session_ports import Entry, EntryMeta, SessionQuery, SessionRow, Transcript
from mayros.storage.settings import read_settings
from mayros.storage.tables import CONVERSATION, STATELESS, entries, sessions
from mayros.storage.turns import NO_TEXT

#: Sessions of one list, entries of one transcript.
MOST = 1000
#: Of a transcript no more is read, but the newest entry always is.
TRANSCRIPT_BYTES = 16 << 20
TITLE_CHARACTERS, PREVIEW_CHARACTERS = 120, 240
#: No key and no label is as long.
_SEARCH_CHARACTERS = 1000
#: Entries that are looked at for a title or preview, or for the newest turn below what the gateway itself wrote.
_LOOK, _LOOK_BACK = 16, 200
#: Of a message only its beginning is read for a title or preview.
_HEAD = 2000

#: As much of the text as is there, not ending inside an escape.
_CONTENT = re.compile(r'"content":(?:\[\{"type":"text","text":)?"((?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*)')
_meta = msgspec.json.Decoder(EntryMeta).decode
_NO_TURN = EntryMeta()

_COLUMNS = (
    sessions.c.key,
    sessions.c.agent_id,
    sessions.c.session_id,
    sessions.c.created_ms,
    sessions.c.updated_ms,
    sessions.c.turns,
    sessions.c.stateless,
    sessions.c.input_tokens,
    sessions.c.output_tokens,
    sessions.c.cache_read_tokens,
    sessions.c.cache_write_tokens,
    sessions.c.cost_nano,
    sessions.c.settings,
    sessions.c.label,
)


def find(connection: sa.Connection, key: str) -> SessionRow | None:
    """The session of that key."""
    found = connection.execute(_FIND, {"b_key": key}).first()
    return None if found is None else _row(found)


def one(connection: sa.Connection, key: str) -> SessionRow:
    """The session of that key, which is there."""
    return _row(connection.execute(_FIND, {"b_key": key}).one())


def count(connection: sa.Connection) -> int:
    """How many sessions there are."""
    return connection.execute(sa.select(sa.func.count()).select_from(sessions)).scalar_one()


def page(connection: sa.Connection, query: SessionQuery) -> Sequence[SessionRow]:
    """See session_ports.Sessions.list."""
    if query.search is not None and len(query.search) > _SEARCH_CHARACTERS:
        return ()
    return [_row(found) for found in connection.execute(select_page(query, connection.dialect.name))]


def select_page(query: SessionQuery, dialect: str) -> sa.Select[Any]:
    """The statement of a list.

    Without a filter conversations and stateless sessions are walked separately, each kind in the order of its own index. A filter may leave
    few or none, so then it is one pass over the table, which is several times faster than a pass along the indexes.
    """
    column, limit = sessions.c, max(1, min(query.limit, MOST))
    wanted: list[sa.ColumnElement[bool]] = []
    if query.agent_id is not None:
        wanted.append(column.agent_id == query.agent_id)
    if query.label is not None:
        wanted.append(column.label == query.label)
    if query.session_id is not None:
        wanted.append(column.session_id == query.session_id)
    if query.space is not None:
        # No pattern: `_` in a name is itself. The agent's own part is skipped, so that nothing inside of a key can look like the space.
        rest = sa.func.substr(column.key, sa.func.length(column.agent_id) + len("agent::") + 1, len(query.space) + 1)
        wanted.append(rest == f"{query.space}:")
    if query.spawned_by is not None:
        # Quotes inside of JSON strings have a backslash before them, so this can be nothing but the field.
        field = f'"spawnedBy":{msgspec.json.encode(query.spawned_by).decode()}'
        wanted.append(sa.func.replace(column.settings, field, "") != column.settings)
    if query.search is not None:
        needle = query.search.lower()
        lower = sa.func.unicode_lower if dialect == "sqlite" and not needle.isascii() else sa.func.lower
        wanted.append(sa.or_(lower(column.key).contains(needle, autoescape=True), lower(column.label).contains(needle, autoescape=True)))
    ordered = (
        sa.select(*_COLUMNS).where(column.updated_ms >= (query.active_since_ms or 0)).order_by(column.updated_ms.desc(), column.key).limit(limit)
    )
    if wanted:
        newest = ordered.where(*wanted).subquery()
    else:
        both = sa.union_all(*(sa.select(ordered.where(kind).subquery()) for kind in (CONVERSATION, STATELESS))).subquery()
        newest = sa.select(both).order_by(both.c.updated_ms.desc(), both.c.key).limit(limit).subquery()
    return _with_entries(newest, query).order_by(newest.c.updated_ms.desc(), newest.c.key)


def _with_entries(rows: sa.Subquery, query: SessionQuery) -> sa.Select[Any]:
    """`rows` and, for each of them, the newest turn's meta, the first words of the user and the newest message, as far as they are asked for."""

    def first(value: sa.ColumnElement[Any], newest: bool, look: int, where: sa.ColumnElement[bool]) -> sa.ColumnElement[Any]:
        entry = entries.c.id.desc() if newest else entries.c.id
        near = sa.select(value.label("value")).add_columns(where.label("fits"), entries.c.id)
        inner = near.where(entries.c.session_id == rows.c.session_id).order_by(entry).limit(look).correlate(rows).subquery()
        order = inner.c.id.desc() if newest else inner.c.id
        return sa.select(inner.c.value).where(inner.c.fits).order_by(order).limit(1).scalar_subquery()

    head, nothing = sa.func.substr(entries.c.body, 1, _HEAD), sa.null()
    # Messages and metas are written by msgspec: field order and spaces are always the same.
    meta = first(entries.c.meta, True, _LOOK_BACK, entries.c.meta.like('{"outcome":%'))
    title = first(head, False, _LOOK, entries.c.body.like('{"role":"user"%')) if query.titles else nothing
    preview = first(head, True, _LOOK, entries.c.body != NO_TEXT) if query.previews else nothing
    return sa.select(rows, meta, title, preview)


_FIND = _with_entries(sa.select(*_COLUMNS).where(sessions.c.key == sa.bindparam("b_key")).subquery(), SessionQuery())


def _row(found: Sequence[Any]) -> SessionRow:
    key, agent_id, session_id, created_ms, updated_ms, turns, stateless, *counts, settings, label, meta, title, preview = found
    input_tokens, output_tokens, cache_read, cache_write, cost_nano = counts
    last = _NO_TURN if meta is None else _meta(meta)
    return SessionRow(
        key,
        agent_id,
        session_id,
        created_ms,
        updated_ms,
        turns,
        bool(stateless),
        read_settings(settings, label),
        input_tokens,
        output_tokens,
        last_outcome=last.outcome,
        last_model=last.model,
        last_usage=None if meta is None else last.usage,
        cache_read_tokens=cache_read,
        cache_write_tokens=cache_write,
        cost_nano=cost_nano,
        title=None if title is None else opening(title, TITLE_CHARACTERS),
        preview=None if preview is None else opening(preview, PREVIEW_CHARACTERS),
    )


def opening(body: str, characters: int) -> str | None:
    """The first words of a message on one line, from its canonical JSON, which may be cut anywhere. None: no text."""
    found = _CONTENT.search(body)
    text = "" if found is None else " ".join(str(msgspec.json.decode(f'"{found[1]}"')).split())
    return (text if len(text) <= characters else text[: characters - 1].rstrip() + "…") or None


_NEWEST = (
    sa.select(entries.c.id, entries.c.run_id, entries.c.body, entries.c.created_ms, entries.c.meta)
    .where(entries.c.session_id == sa.bindparam("b_session"))
    .order_by(entries.c.id.desc())
    .limit(sa.bindparam("b_limit"))
)


def transcript(connection: sa.Connection, key: str, limit: int) -> Transcript | None:
    """See session_ports.Sessions.transcript; at most TRANSCRIPT_BYTES."""
    row = find(connection, key)
    if row is None:
        return None
    found: list[Entry] = []
    left = TRANSCRIPT_BYTES
    with connection.execute(_NEWEST, {"b_session": row.session_id, "b_limit": max(1, min(limit, MOST))}) as result:
        for id_, run_id, body, created_ms, meta in result:
            message = body.encode()
            left -= len(message)
            if left < 0 and found:
                break
            found.append(Entry(id_, run_id, msgspec.Raw(message), created_ms, None if meta is None else _meta(meta)))
    return Transcript(row, tuple(reversed(found)))
