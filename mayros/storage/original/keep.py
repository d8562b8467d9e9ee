"""Puts sessions of the original into the store: each with all that was said in it, or not at all. Imports core, statements, tables and usage.

For a command that has the store for itself: the lock on the state directory is held. What was said before the last compaction becomes an earlier part
of the session, as if it had been reset then: it can be read (`mayros export --earlier`), and prompts have its summary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec
import sqlalchemy as sa

from mayros.core.keys import SessionKey, new_id
from mayros.core.ports import SessionSettings
from mayros.core.usage_ports import day_of
from mayros.storage.original.lines import Transcript
from mayros.storage.original.turns import Conversation, Row
from mayros.storage.original.used import Sums
from mayros.storage.settings import write_settings
from mayros.storage.statements import EntryRow, Statements, Used, summed
from mayros.storage.tables import deleted_sessions, entries, session_history, sessions
from mayros.storage.usage import counts_of

#: Who asked for what the original's sessions used.
PRINCIPAL = "imported"
#: Entries, and characters of their messages, that are written by one statement.
_CHUNK, _CHARACTERS = 200, 4 << 20
_encode = msgspec.json.Encoder().encode


# Made once: making a statement costs more than most of them do.
_KNOWN = sa.select(sessions.c.key).where(sessions.c.key == sa.bindparam("b_key"))
_LABELLED = sa.select(sessions.c.key).where(sessions.c.label == sa.bindparam("b_label"))
#: Whether a session id has entries, or had some that are still being deleted.
_IN_USE = sa.union_all(
    sa.select(sa.select(sa.literal(1)).where(entries.c.session_id == sa.bindparam("b_id")).limit(1).subquery()),
    sa.select(sa.literal(1)).where(deleted_sessions.c.session_id == sa.bindparam("b_id")),
)
_SESSION, _EARLIER = sa.insert(sessions), sa.insert(session_history)


class Kept(msgspec.Struct, frozen=True):
    """What became of a session. `label`: the one that it wanted and another has."""

    messages: int
    turns: int
    left_out: int
    label: str | None = None


class Nothing(Exception):
    """There is nothing in a session: no message and no setting."""


class Keeper:
    """Writes through `engine`; with `dry` it only says what it would write, and there need not be a store. `now_ms`: of the wall clock."""

    def __init__(self, engine: sa.Engine | None, now_ms: int, *, dry: bool = False) -> None:
        self._engine, self._now_ms = engine, now_ms
        self._writes = engine if not dry else None
        self._next = 0
        if engine is not None:
            self._statements = Statements(engine.dialect)
            with engine.connect() as connection:
                self._next = max((connection.execute(sa.select(sa.func.max(entries.c.id))).scalar() or 0) + 1, now_ms << 20)

    def known(self, key: str) -> bool:
        """Whether there is a session of that key."""
        if self._engine is None:
            return False
        with self._engine.connect() as connection:
            return connection.execute(_KNOWN, {"b_key": key}).first() is not None

    def keep(self, key: SessionKey, wanted_id: str, settings: SessionSettings, updated_ms: int | None, transcript: Transcript | None) -> Kept:
        """One session in one transaction, under the session id that it had where that is free. Raises Nothing, and what reading raises."""
        parts: list[Iterable[Row]] = [(), ()]
        sums = [Sums(), Sums()]
        if transcript is not None:
            before, compaction, after = transcript.divided()
            earlier, current = Conversation(transcript, self._now_ms), Conversation(transcript, self._now_ms)
            parts, sums = [earlier.rows(before), current.rows(after, compaction)], [earlier.sums, current.sums]
        taken = None
        if self._writes is not None:
            with self._writes.begin() as connection:
                taken = self._write(connection, key, wanted_id, settings, updated_ms, parts, sums)
        else:
            for _ in (row for rows in parts for row in rows):
                pass
        if not any(one.messages for one in sums) and settings == SessionSettings():
            raise Nothing
        return Kept(sum(one.messages for one in sums), sum(one.turns for one in sums), sum(one.left_out for one in sums), taken)

    def _write(
        self,
        connection: sa.Connection,
        key: SessionKey,
        wanted_id: str,
        settings: SessionSettings,
        updated_ms: int | None,
        parts: Sequence[Iterable[Row]],
        sums: Sequence[Sums],
    ) -> str | None:
        """The label of another session, where this one wanted it."""
        earlier_id = new_id()
        if self._rows(connection, earlier_id, parts[0]):
            connection.execute(_EARLIER, {"key": str(key), "session_id": earlier_id})
        session_id = new_id() if connection.execute(_IN_USE, {"b_id": wanted_id}).first() is not None else wanted_id
        if not self._rows(connection, session_id, parts[1]):
            if not sums[0].messages and settings == SessionSettings():
                raise Nothing
            # Its id could be that of another session without entries, and the two would grow together.
            session_id = new_id()
        label = settings.label
        taken = label is not None and connection.execute(_LABELLED, {"b_label": label}).first() is not None
        text, label = write_settings(msgspec.structs.replace(settings, label=None) if taken else settings)
        own = sums[-1]
        usage = own.usage
        first = min((one.first_ms for one in sums if one.first_ms is not None), default=self._now_ms)
        updated = min(updated_ms or first, self._now_ms)
        row = {
            "key": str(key),
            "agent_id": key.agent_id,
            "session_id": session_id,
            "stateless": False,
            "created_ms": min(first, updated),
            "updated_ms": updated,
            "turns": own.turns,
            "input_tokens": usage.input + usage.cache_read + usage.cache_write,
            "output_tokens": usage.output,
            "cache_read_tokens": usage.cache_read,
            "cache_write_tokens": usage.cache_write,
            "cost_nano": usage.cost_nano,
            "settings": text,
            "label": label,
        }
        connection.execute(_SESSION, row)
        used = [one for part in sums for one in self._used(key, part)]
        if used:
            connection.exec_driver_sql(self._statements.upsert_usage, summed(used))
        return settings.label if taken else None

    def _rows(self, connection: sa.Connection, session_id: str, rows: Iterable[Row]) -> int:
        """Write a chain of entries; how many."""
        parent: int | None = None
        count = 0
        for chunk in _chunks(rows):
            made: list[EntryRow] = []
            for row in chunk:
                meta = None if row.meta is None else _encode(row.meta).decode()
                made.append((self._next, session_id, parent, row.run_id, "message", row.body, meta, row.created_ms))
                parent, self._next = self._next, self._next + 1
            connection.exec_driver_sql(self._statements.insert_entry, made)
            count += len(made)
        return count

    def _used(self, key: SessionKey, sums: Sums) -> list[Used]:
        """What was used on earlier days. What was used today would count against today's limits, which are not about the original's runs."""
        today = day_of(self._now_ms)
        return [
            ((day, key.agent_id, PRINCIPAL, str(key), provider, model), counts_of(runs, turns, usage))
            for (day, provider, model), (runs, turns, usage) in sums.used.items()
            if day < today
        ]


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows, as many together as may be in memory."""
    chunk: list[Row] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += len(row.body)
        if len(chunk) == _CHUNK or size >= _CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
