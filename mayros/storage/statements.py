"""The SQL of the hot path, written by Core once for the database in use and run by the driver with plain tuples.

Imports tables. Core's own `execute` costs about as much again as the statement does; `exec_driver_sql` with these texts does not. Each class
of tuple is given beside its statement; Statements checks that Core put the parameters into that order. Literals would become parameters
that the tuples lack: an upsert adds `excluded.x` instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import add
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from mayros.storage.tables import entries, idempotency, sessions, usage_days

#: What a turn adds to its session.
COUNTS = ("turns", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "cost_nano")
_TURN_COLUMNS = ("key", "agent_id", "session_id", "stateless", "created_ms", "updated_ms", *COUNTS)
#: As in _TURN_COLUMNS: (key, agent_id, session_id, stateless, created_ms, updated_ms, turns, tokens in, out, read, written, cost_nano)
SessionRow = tuple[str, str, str, bool, int, int, int, int, int, int, int, int]
#: Whose it is: (day, agent_id, principal, session_key, provider, model)
UsageKey = tuple[str, str, str, str, str, str]
#: (runs, turns, input, output, cache_read, cache_write, reasoning, cost_nano)
UsageCounts = tuple[int, int, int, int, int, int, int, int]
Used = tuple[UsageKey, UsageCounts]
#: Both in one.
UsageRow = tuple[str, str, str, str, str, str, int, int, int, int, int, int, int, int]
#: (id, session_id, parent_id, run_id, kind, body, meta, created_ms)
EntryRow = tuple[int, str, int | None, str, str, str, str | None, int]
#: (result, now_ms, scope, key, run_id)
ClaimRow = tuple[str, int, str, str, str]


def summed(used: Sequence[Used]) -> list[UsageRow]:
    """One row for each key: what many turns of one batch used is one row of the table, and often the same for all of them."""
    found: dict[UsageKey, Sequence[int]] = {}
    for key, counts in used:
        sums = found.get(key)
        found[key] = counts if sums is None else tuple(map(add, sums, counts))
    return [cast(UsageRow, (*key, *sums)) for key, sums in found.items()]


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
                    **{name: old[name] + new[name] for name in COUNTS},
                },
            ),
            *_TURN_COLUMNS,
        )
        used = insert(usage_days)
        keys, counts = usage_days.primary_key.columns.keys(), [column.name for column in usage_days.c if not column.primary_key]
        #: UsageRow.
        self.upsert_usage = self._text(
            used.on_conflict_do_update(index_elements=keys, set_={name: usage_days.c[name] + used.excluded[name] for name in counts}),
            *usage_days.c.keys(),
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
        #: (session_id,) -> (id, run_id, body, kind), oldest first
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
