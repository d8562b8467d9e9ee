"""The port `Sessions`: what clients see of conversations and how they change them. Imports core, database, listing and turns.

Reading happens in a reader thread. A change is one job of the writer and is durable when its Awaitable is done; the history in memory is
forgotten with it (`SqlTurnStore.change`). A job may be tried again after a rollback, so it works from what it finds in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import sqlalchemy as sa
from twisted.internet.defer import Deferred

from mayros.core.keys import SessionKey
from mayros.core.ports import SessionSettings
from mayros.core.session_ports import Entry, EntryMeta, SessionQuery, SessionRow, Transcript
from mayros.errors import InvalidRequest
from mayros.storage import listing
from mayros.storage.database import Database
from mayros.storage.maintenance import purge
from mayros.storage.settings import read_settings, write_settings
from mayros.storage.statements import COUNTS, EntryRow
from mayros.storage.tables import COMMAND, deleted_sessions, entries, session_history, sessions, usage_days
from mayros.storage.turns import SqlTurnStore, wall_ms
from mayros.storage.usage import fold

_encode = msgspec.json.Encoder().encode


class SqlSessions:
    """Implements `core.session_ports.Sessions` on the store of `turns`. `now_ms`: the wall clock in milliseconds."""

    def __init__(self, database: Database, turns: SqlTurnStore, now_ms: Callable[[], int] = wall_ms) -> None:
        self._database, self._turns, self._now_ms = database, turns, now_ms

    def list(self, query: SessionQuery) -> Deferred[Sequence[SessionRow]]:
        """See session_ports.Sessions."""
        return self._database.read(lambda connection: listing.page(connection, query))

    def count(self) -> Deferred[int]:
        """See session_ports.Sessions."""
        return self._database.read(listing.count)

    def get(self, key: str) -> Deferred[SessionRow | None]:
        """See session_ports.Sessions."""
        return self._database.read(lambda connection: listing.find(connection, key))

    def transcript(self, key: str, limit: int) -> Deferred[Transcript | None]:
        """See session_ports.Sessions; of very long messages fewer than `limit` (16 MiB in all)."""
        return self._database.read(lambda connection: listing.transcript(connection, key, limit))

    async def patch(self, key: SessionKey, changes: Mapping[str, object]) -> SessionRow:
        """See session_ports.Sessions. Raises TypeError for a field that is none, msgspec.ValidationError for a value of the wrong type."""
        write_settings(msgspec.structs.replace(SessionSettings(), **changes))
        column, now, new_id, text = sessions.c, self._now_ms(), self._turns.session_id(key), str(key)

        def write(connection: sa.Connection) -> SessionRow | None:
            wanted = changes.get("label")
            if wanted is not None and connection.execute(sa.select(column.key).where(column.label == wanted, column.key != text)).first():
                return None
            _ensure(connection, key, new_id, now)
            kept, label = connection.execute(sa.select(column.settings, column.label).where(column.key == text)).one()
            settings, label = write_settings(msgspec.structs.replace(read_settings(kept, label), **changes))
            connection.execute(sa.update(sessions).where(column.key == text).values(settings=settings, label=label))
            return listing.one(connection, text)

        row = await self._turns.change(text, write)
        if row is None:
            raise InvalidRequest(f"label already in use: {changes['label']}", param="label")
        return row

    async def reset(self, key: SessionKey) -> SessionRow:
        """See session_ports.Sessions."""
        now, new_id, text = self._now_ms(), self._turns.fresh(key).session_id, str(key)

        def write(connection: sa.Connection) -> SessionRow:
            old_id = _ensure(connection, key, new_id, now)
            if old_id != new_id:
                connection.execute(sa.insert(session_history).values(key=text, session_id=old_id))
                anew = {"session_id": new_id, **dict.fromkeys(COUNTS, 0)}
                connection.execute(sa.update(sessions).where(sessions.c.key == text).values(anew))
            return listing.one(connection, text)

        return await self._turns.change(text, write)

    async def delete(self, key: SessionKey) -> bool:
        """See session_ports.Sessions. It is gone with the first transaction; its entries follow in chunks, after a failure in a later sweep."""
        text = str(key)
        upsert_usage = self._database.statements.upsert_usage
        found = await self._turns.change(text, lambda connection: _forget(connection, text, upsert_usage))
        while found and await self._database.call(purge):
            pass
        return found

    async def append(self, key: SessionKey, message: msgspec.Raw, run_id: str, meta: EntryMeta) -> Entry:
        """See session_ports.Sessions."""
        now, new_id, body = self._now_ms(), self._turns.session_id(key), bytes(message)
        entry = Entry(self._turns.entry_id(now), run_id, msgspec.Raw(body), now, meta)
        text, meta_text = body.decode(), _encode(meta).decode()
        statement = self._database.statements.insert_entry

        def write(connection: sa.Connection) -> None:
            session_id = _ensure(connection, key, new_id, now)
            leaf = connection.execute(sa.select(sa.func.max(entries.c.id)).where(entries.c.session_id == session_id)).scalar()
            kind = COMMAND if meta.origin == COMMAND else "message"
            row: EntryRow = (entry.id, session_id, leaf, run_id, kind, text, meta_text, now)
            connection.exec_driver_sql(statement, row)

        await self._turns.change(str(key), write)
        return entry


# The rest runs in the writer thread.


def _ensure(connection: sa.Connection, key: SessionKey, new_id: str, now_ms: int) -> str:
    """The session's id; it is made under `new_id` where it is missing, and else becomes one that was changed just now."""
    column, text = sessions.c, str(key)
    found = connection.execute(sa.select(column.session_id, column.updated_ms).where(column.key == text)).first()
    if found is None:
        row = {"key": text, "agent_id": key.agent_id, "session_id": new_id, "stateless": False, "created_ms": now_ms, "updated_ms": now_ms}
        connection.execute(sa.insert(sessions).values(row | dict.fromkeys(COUNTS, 0)))
        return new_id
    # Whoever changes it means to come back: it is no longer pruned as the session of a stateless request.
    connection.execute(sa.update(sessions).where(column.key == text).values(updated_ms=max(now_ms, found.updated_ms), stateless=False))
    return str(found.session_id)


def _forget(connection: sa.Connection, key: str, upsert_usage: str) -> bool:
    """The session is gone; that something was used stays, without its name."""
    found = connection.execute(sa.select(sessions.c.session_id).where(sessions.c.key == key)).scalar()
    if found is None:
        return False
    earlier = connection.execute(sa.select(session_history.c.session_id).where(session_history.c.key == key)).scalars()
    connection.execute(sa.insert(deleted_sessions), [{"session_id": session_id} for session_id in (found, *earlier)])
    connection.execute(sa.delete(session_history).where(session_history.c.key == key))
    connection.execute(sa.delete(sessions).where(sessions.c.key == key))
    fold(connection, usage_days.c.session_key == key, upsert_usage)
    return True
