"""The SQL of the hot path, written by Core once for the database in use and run by the driver with plain tuples.

Imports tables. Core's own `execute` costs about as much again as the statement does; `exec_driver_sql` with these texts does not. Each class
of tuple is given beside its statement; Statements checks that Core put the parameters into that order. Literals would become parameters
that the tuples lack: an upsert adds `excluded.x` instead.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from mayros.storage.tables import entries, idempotency, sessions

#: (key, agent_id, session_id, stateless, created_ms, updated_ms, turns, input_tokens, output_tokens)
SessionRow = tuple[str, str, str, bool, int, int, int, int, int]
_TURN_COLUMNS = ("key", "agent_id", "session_id", "stateless", "created_ms", "updated_ms", "turns", "input_tokens", "output_tokens")
#: (id, session_id, parent_id, run_id, kind, body, meta, created_ms)
EntryRow = tuple[int, str, int | None, str, str, str, str | None, int]
#: (result, now_ms, scope, key, run_id)
ClaimRow = tuple[str, int, str, str, str]


class Statements:
    """The texts for one dialect."""

    def __init__(self, dialect: sa.Dialect) -> None:
        insert: Any = sqlite.insert
        if dialect.name == "postgresql":
            from sqlalchemy.dialects import postgresql

            insert = postgresql.insert
        self._dialect = dialect
        row = insert(sessions)
        new, old, claim = row.excluded, sessions.c, idempotency.c
        held = sa.and_(claim.scope == sa.bindparam("scope_"), claim.key == sa.bindparam("key_"))

        #: SessionRow. A session that was stateless stays so only as long as every turn says it.
        self.upsert_session = self._text(
            row.on_conflict_do_update(
                index_elements=["key"],
                set_={
                    "session_id": new.session_id,
                    "stateless": sa.and_(old.stateless, new.stateless),
                    "updated_ms": new.updated_ms,
                    "turns": old.turns + new.turns,
                    "input_tokens": old.input_tokens + new.input_tokens,
                    "output_tokens": old.output_tokens + new.output_tokens,
                },
            ),
            *_TURN_COLUMNS,
        )
        #: EntryRow.
        self.insert_entry = self._text(sa.insert(entries), *entries.c.keys())
        #: ClaimRow. How long the answer is kept counts from the end of the run.
        self.finish_claim = self._text(
            sa.update(idempotency)
            .where(held, claim.run_id == sa.bindparam("run_id_"), claim.state == sa.literal_column("'live'"))
            .values(
                state=sa.literal_column("'done'"),
                result=sa.bindparam("result_"),
                expires_ms=claim.expires_ms - claim.created_ms + sa.bindparam("now_"),
            ),
            "result_",
            "now_",
            "scope_",
            "key_",
            "run_id_",
        )
        #: (scope, key, digest, run_id, state, result, created_ms, expires_ms); no row is made where there is one.
        self.insert_claim = self._text(insert(idempotency).on_conflict_do_nothing(), *idempotency.c.keys())
        #: (scope, key, now_ms). The claim of a live run never expires.
        self.expire_claim = self._text(
            sa.delete(idempotency).where(held, claim.state == sa.literal_column("'done'"), claim.expires_ms <= sa.bindparam("now_")),
            "scope_",
            "key_",
            "now_",
        )
        #: (scope, key) -> (digest, run_id, state, result)
        self.select_claim = self._text(sa.select(claim.digest, claim.run_id, claim.state, claim.result).where(held), "scope_", "key_")
        #: (scope, key)
        self.release_claim = self._text(sa.delete(idempotency).where(held, claim.state == sa.literal_column("'live'")), "scope_", "key_")
        #: (key,) -> (session_id, settings, label)
        self.select_session = self._text(sa.select(old.session_id, old.settings, old.label).where(old.key == sa.bindparam("key_")), "key_")
        #: (session_id,) -> (id, run_id, body), oldest first
        self.select_entries = self._text(
            sa.select(entries.c.id, entries.c.run_id, entries.c.body, entries.c.kind)
            .where(entries.c.session_id == sa.bindparam("session_id_"))
            .order_by(entries.c.id),
            "session_id_",
        )

    def _text(self, statement: Any, *order: str) -> str:
        compiled = statement.compile(dialect=self._dialect, column_keys=order if statement.is_insert else None)
        if tuple(compiled.positiontup) != order:
            raise AssertionError(f"parameters of {compiled} are {compiled.positiontup}, not {order}")
        return str(compiled)
