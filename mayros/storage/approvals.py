"""Rules for the commands that agents run, as rows. Decides nothing: core has the rules. Imports core, database, audit, rows and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import sqlalchemy as sa
from twisted.internet.defer import Deferred

from mayros.core.audit_ports import AuditEntry
from mayros.core.exec_ports import AllowedExec, ExecPolicy
from mayros.storage.audit import add
from mayros.storage.database import Database
from mayros.storage.rows import record_of, row_of
from mayros.storage.tables import exec_allowlist, exec_policy

_Found = tuple[Sequence[AllowedExec], Mapping[str, ExecPolicy]]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ExecPolicy).decode


class SqlExecRules:
    """Implements `core.exec_ports.ExecRulesStore`: each call is durable when its Deferred fires, in the order of the calls."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self) -> Deferred[_Found]:
        """See exec_ports.ExecRulesStore. The lists come in the order in which they were written."""
        return self._database.read(_load)

    def save(self, entry: AllowedExec) -> Deferred[None]:
        """See exec_ports.ExecRulesStore."""
        values = row_of(entry)

        def write(connection: sa.Connection) -> None:
            table = exec_allowlist
            if not connection.execute(sa.update(table).where(table.c.id == entry.id).values(values)).rowcount:
                last = connection.execute(sa.select(sa.func.max(table.c.position))).scalar()
                connection.execute(sa.insert(table).values(position=0 if last is None else last + 1, **values))

        return self._database.call(write)

    def replace(self, entries: Sequence[AllowedExec], policies: Mapping[str, ExecPolicy], audit: AuditEntry | None = None) -> Deferred[None]:
        """See exec_ports.ExecRulesStore."""
        rows = [{**row_of(entry), "position": position} for position, entry in enumerate(entries)]
        kept = [{"agent_id": agent_id, "json": _encode(policy).decode()} for agent_id, policy in policies.items()]

        def write(connection: sa.Connection) -> None:
            for table, values in ((exec_allowlist, rows), (exec_policy, kept)):
                connection.execute(sa.delete(table))
                if values:
                    connection.execute(sa.insert(table), values)
            add(connection, audit)

        return self._database.call(write)


def _load(connection: sa.Connection) -> _Found:
    """In a reader thread."""
    wanted = [column for column in exec_allowlist.c if column.name != "position"]
    listed = connection.execute(sa.select(*wanted).order_by(exec_allowlist.c.position)).mappings()
    policies = connection.execute(sa.select(exec_policy.c.agent_id, exec_policy.c.json).order_by(exec_policy.c.agent_id))
    return (
        [record_of(row, AllowedExec) for row in listed],
        {agent_id: _decode(text) for agent_id, text in policies},
    )
