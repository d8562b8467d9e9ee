"""How many sessions each agent has, and the newest of them. Imports database and tables."""

from __future__ import annotations

import sqlalchemy as sa
from twisted.internet.defer import Deferred

from mayros.storage.database import Database
from mayros.storage.tables import sessions

RECENT = 5

#: By agent id: the number of sessions, and the newest as (key, updated_ms).
Overview = dict[str, tuple[int, list[tuple[str, int]]]]


def overview(database: Database) -> Deferred[Overview]:
    """Counted in a reader thread. Fails with StorageUnavailable."""
    return database.read(_overview)


def _overview(connection: sa.Connection) -> Overview:
    columns = sessions.c
    found: Overview = {
        agent: (count, []) for agent, count in connection.execute(sa.select(columns.agent_id, sa.func.count()).group_by(columns.agent_id))
    }
    for agent, (_, recent) in found.items():
        newest = sa.select(columns.key, columns.updated_ms).where(columns.agent_id == agent).order_by(columns.updated_ms.desc()).limit(RECENT)
        recent.extend((key, updated) for key, updated in connection.execute(newest))
    return found
