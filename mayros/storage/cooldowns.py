"""Keys of providers that rest, as rows. Decides nothing: core has the rules. Imports core.health_ports, database, rows and tables."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from twisted.internet.defer import Deferred

from mayros.core.health_ports import KeptCoolDown
from mayros.storage.database import Database
from mayros.storage.rows import load_rows, put, record_of, row_of
from mayros.storage.tables import cooldowns

_OF = (cooldowns.c.provider, cooldowns.c.credential, cooldowns.c.model)


class SqlCoolDowns:
    """Implements `core.health_ports.CoolDownStore`: each call is durable when its Deferred fires, in the order of the calls."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self) -> Sequence[KeptCoolDown]:
        """All rows, the oldest failure first. Blocks, so before the reactor runs. Raises StartError."""
        rows = load_rows(self._database.engine, sa.select(cooldowns).order_by(cooldowns.c.failed_ms))
        return [record_of(row, KeptCoolDown) for row in rows]

    def save(self, cool: KeptCoolDown) -> Deferred[None]:
        """See health_ports.CoolDownStore."""
        row = row_of(cool)
        return self._database.call(lambda connection: put(connection, row, *_OF))

    def delete(self, provider: str, credential: str, model: str) -> Deferred[None]:
        """See health_ports.CoolDownStore."""
        place = sa.and_(*(column == value for column, value in zip(_OF, (provider, credential, model), strict=True)))

        def write(connection: sa.Connection) -> None:
            connection.execute(sa.delete(cooldowns).where(place))

        return self._database.call(write)
