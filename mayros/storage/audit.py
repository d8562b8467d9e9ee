"""The audit trail, as rows that are added and read. Decides nothing: core has the rules. Imports core.audit_ports, database and tables.

Old rows go with the store's other pruning: after a year, and when there are too many, those first that were refused or only asked for, then those of
whoever has the most, so that nobody pushes out what others did.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa
from twisted.internet.defer import Deferred, succeed

from mayros.core.audit import NOISY
from mayros.core.audit_ports import AuditEntry, AuditQuery, AuditRow
from mayros.storage.database import Database
from mayros.storage.tables import audit

KEEP_MS = 365 * 86_400_000
#: Rows that are kept at most; of them, such as `core.audit.NOISY` is about.
MAX_ROWS, MAX_NOISE = 100_000, 20_000
#: Rows that go in one job.
CHUNK = 1_000

_COLUMNS = tuple(audit.c[name] for name in AuditEntry.__struct_fields__)
_NOISE = sa.or_(audit.c.outcome != "done", audit.c.action.in_(sorted(NOISY)))


class SqlAudit:
    """Implements `core.audit_ports.AuditTrail`: rows are durable when their Deferreds fire, in the order of the calls."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, entry: AuditEntry) -> Deferred[None]:
        """See audit_ports.AuditTrail."""
        return self._database.call(lambda connection: add(connection, entry))

    def list(self, query: AuditQuery) -> Deferred[Sequence[AuditRow]]:
        """See audit_ports.AuditTrail."""
        return self._database.read(lambda connection: found(connection, query))


class DirectAudit:
    """The same without a gateway: each call blocks until it is done."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def record(self, entry: AuditEntry) -> Deferred[None]:
        """See audit_ports.AuditTrail. Raises SQLAlchemyError."""
        with self._engine.begin() as connection:
            add(connection, entry)
        return succeed(None)

    def list(self, query: AuditQuery) -> Deferred[Sequence[AuditRow]]:
        """See audit_ports.AuditTrail. Raises SQLAlchemyError."""
        with self._engine.connect() as connection:
            return succeed(found(connection, query))


def add(connection: sa.Connection, entry: AuditEntry | None) -> None:
    """One more row, in the transaction of whoever has begun one; None: nothing."""
    if entry is not None:
        connection.execute(sa.insert(audit).values(msgspec.structs.asdict(entry)))


def found(connection: sa.Connection, query: AuditQuery) -> Sequence[AuditRow]:
    """The rows that a query asks for."""
    column = audit.c
    wanted = sa.select(column.id, *_COLUMNS).limit(query.limit).order_by(column.id if query.after is not None else column.id.desc())
    if query.before is not None:
        wanted = wanted.where(column.id < query.before)
    if query.after is not None:
        wanted = wanted.where(column.id > query.after)
    if query.since_ms is not None:
        wanted = wanted.where(column.at_ms >= query.since_ms)
    if query.until_ms is not None:
        wanted = wanted.where(column.at_ms < query.until_ms)
    if query.action is not None:
        wanted = wanted.where(column.action.startswith(query.action, autoescape=True))
    if query.who is not None:
        wanted = wanted.where(sa.or_(column.who.icontains(query.who, autoescape=True), column.label.icontains(query.who, autoescape=True)))
    return [AuditRow(id_, AuditEntry(*values)) for id_, *values in connection.execute(wanted)]


def excess(connection: sa.Connection) -> tuple[int, int]:
    """How many rows there are too many: of the noise, and of all that would be left without these."""
    noise, rows = (
        connection.execute(sa.select(sa.func.count()).select_from(audit).where(which)).scalar_one() for which in (_NOISE, sa.true())
    )  # fmt: skip
    over = max(0, noise - MAX_NOISE)
    return over, max(0, rows - over - MAX_ROWS)


def drop_old(connection: sa.Connection, before_ms: int, count: int) -> int:
    """In the writer thread: delete those of the `count` oldest rows that are older; how many these were."""
    first = sa.select(audit.c.id, audit.c.at_ms).order_by(audit.c.id).limit(count).subquery()
    return _drop(connection, sa.select(first.c.id).where(first.c.at_ms < before_ms))


def drop(connection: sa.Connection, count: int, *, noise: bool) -> int:
    """In the writer thread: delete the `count` oldest rows of the noise, or of whoever has the most rows; how many there were."""
    oldest = sa.select(audit.c.id).order_by(audit.c.id).limit(count)
    most = sa.select(audit.c.who).group_by(audit.c.who).order_by(sa.func.count().desc(), audit.c.who).limit(1).scalar_subquery()
    return _drop(connection, oldest.where(_NOISE if noise else audit.c.who == most))


def _drop(connection: sa.Connection, which: sa.Select[int]) -> int:
    ids = connection.execute(which).scalars().all()
    if ids:
        connection.execute(sa.delete(audit).where(audit.c.id.in_(ids)))
    return len(ids)
