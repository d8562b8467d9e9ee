"""What was used, by day: written with each turn, read as sums. Implements core.usage_ports.UsageStore. Imports core, database, statements and tables.

The name of a session stays in it for KEEP_DAYS and as long as there is the session; after that, what it used is added to what has no name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from twisted.internet.defer import Deferred

from mayros.core.ports import ModelTurn, RunResult, Turn
from mayros.core.spending import Spent
from mayros.core.usage_ports import Field, UsageQuery, UsageSum, day_of
from mayros.events import Usage
from mayros.storage.database import Database
from mayros.storage.statements import UsageCounts, Used, summed
from mayros.storage.tables import NAMED, usage_days

#: How long it is kept which session used what, and how many rows lose that in one job of the writer.
KEEP_DAYS, FOLDED = 90, 500

_column = usage_days.c
_FIELDS: dict[Field, sa.Column[str]] = {
    "day": _column.day,
    "agent": _column.agent_id,
    "principal": _column.principal,
    "session": _column.session_key,
    "provider": _column.provider,
    "model": _column.model,
}
_USAGE = (_column.input, _column.output, _column.cache_read, _column.cache_write, _column.reasoning, _column.cost_nano)
_TOKENS = _column.input + _column.output + _column.cache_read + _column.cache_write
_SUMS = [
    *(sa.func.sum(column) for column in (_column.runs, _column.turns)),
    sa.func.sum(sa.case((_column.cost_nano == 0, _column.turns), else_=0)),
    *(sa.func.sum(column) for column in _USAGE),
]


class SqlUsage:
    """Reads in a reader thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def sums(self, by: Sequence[Field], query: UsageQuery) -> Deferred[Sequence[UsageSum]]:
        """See UsageStore."""
        return self._database.read(lambda connection: sums(connection, by, query))


def sums(connection: sa.Connection, by: Sequence[Field], query: UsageQuery) -> Sequence[UsageSum]:
    """See UsageStore."""
    names = [_FIELDS[field] for field in by]
    wanted: list[Any] = [_column.day >= query.since, _column.day <= query.until]
    if query.session is not None:
        wanted += [_column.session_key == query.session, *([NAMED] if query.session else [])]
    if query.principal is not None:
        wanted.append(_column.principal == query.principal)
    dearest = (sa.func.sum(_column.cost_nano).desc(), sa.func.sum(_TOKENS).desc())
    found = connection.execute(sa.select(*names, *_SUMS).where(*wanted).group_by(*names).order_by(*dearest, *names).limit(query.limit))
    rows = [(tuple(row[: len(names)]), [int(value or 0) for value in row[len(names) :]]) for row in found]
    # Without fields there is always one row, even if it is over nothing.
    return [UsageSum(key, runs, turns, unpriced, Usage(*counts)) for key, (runs, turns, unpriced, *counts) in rows if turns]


def spent(connection: sa.Connection, day: str, by: Field = "agent") -> dict[str, Spent]:
    """What was used on one day, by agent or by another field."""
    name = _FIELDS[by]
    statement = sa.select(name, sa.func.sum(_TOKENS), sa.func.sum(_column.cost_nano)).where(_column.day == day)
    return {value: Spent(int(tokens), int(nano)) for value, tokens, nano in connection.execute(statement.group_by(name))}


def used(turn: Turn, result: RunResult, principal: str) -> Sequence[Used]:
    """What a run adds, one for each of its model turns. A run counts with the last of them, on the day on which it ended."""
    if result.provider is None or result.model is None:
        return ()
    day, agent_id, session_key = day_of(result.ended_at_ms), turn.agent.id, "" if turn.stateless else str(turn.session)
    turns = result.turns or (ModelTurn(result.provider, result.model, result.usage),)
    last = len(turns) - 1
    return [
        ((day, agent_id, principal, session_key, one.provider, one.model), counts_of(int(number == last), 1, one.usage))
        for number, one in enumerate(turns)
    ]


def counts_of(runs: int, turns: int, usage: Usage) -> UsageCounts:
    """What so many runs and model turns add, as a row of the table has it."""
    return runs, turns, usage.input, usage.output, usage.cache_read, usage.cache_write, usage.reasoning, usage.cost_nano


def fold(connection: sa.Connection, wanted: sa.ColumnElement[bool], upsert: str, most: int | None = None) -> int:
    """In the writer thread: take the session's name from rows, at most `most`. `upsert` is `Statements.upsert_usage`. How many it were."""
    found = connection.execute(sa.select(usage_days).where(wanted, NAMED).limit(most)).all()
    if found:
        key = [column == sa.bindparam(f"b_{column.name}") for column in usage_days.primary_key.columns]
        keys = [{f"b_{name}": value for name, value in zip(usage_days.c.keys()[:6], row, strict=False)} for row in found]
        connection.execute(sa.delete(usage_days).where(*key), keys)
        nameless = [((*row[:3], "", *row[4:6]), tuple(row[6:])) for row in found]
        connection.exec_driver_sql(upsert, summed(nameless))
    return len(found)


def fold_old(connection: sa.Connection, now_ms: int, upsert: str) -> int:
    """In the writer thread: the names of sessions whose day is long ago; at most FOLDED rows, so call again while it is as many."""
    return fold(connection, _column.day < day_of(now_ms, KEEP_DAYS), upsert, FOLDED)
