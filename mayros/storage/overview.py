"""How many sessions each agent has. Imports database and tables."""

from __future__ import annotations

import sqlalchemy as sa
from twisted.internet.defer import Deferred

from mayros.storage.database import Database
from mayros.storage.tables import sessions

#: The number of sessions by agent id.
Overview = dict[str, int]


def overview(database: Database) -> Deferred[Overview]:
    """Counted in a reader thread. Fails with StorageUnavailable."""
    return database.read(_overview)


def _overview(connection: sa.Connection) -> Overview:
    counted = connection.execute(sa.select(sessions.c.agent_id, sa.func.count()).group_by(sessions.c.agent_id))
    return {agent: count for agent, count in counted}  # noqa: C416  (rows, not pairs)
