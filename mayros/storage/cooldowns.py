"""Keys of providers that rest, as rows. Decides nothing: core has the rules. Imports core.health_ports, database and tables."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa
from twisted.internet.defer import Deferred

from mayros.core.health_ports import KeptCoolDown
from mayros.errors import StartError
from mayros.storage.database import Database
from mayros.storage.engine import cause
from mayros.storage.tables import cooldowns

_OF = (cooldowns.c.provider, cooldowns.c.credential, cooldowns.c.model)


class SqlCoolDowns:
    """Implements `core.health_ports.CoolDownStore`: each call is durable when its Deferred fires, in the order of the calls."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self) -> Sequence[KeptCoolDown]:
        """All rows, the oldest failure first. Blocks, so before the reactor runs. Raises StartError."""
        try:
            with self._database.engine.connect() as connection:
                rows = connection.execute(sa.select(cooldowns).order_by(cooldowns.c.failed_ms)).mappings().all()
        except sa.exc.SQLAlchemyError as error:
            raise StartError(f"The store cannot be read: {cause(error)}") from error
        return [msgspec.convert({str(name): value for name, value in row.items()}, KeptCoolDown) for row in rows]

    def save(self, cool: KeptCoolDown) -> Deferred[None]:
        """See health_ports.CoolDownStore."""
        values = msgspec.structs.asdict(cool)
        place = sa.and_(*(column == values[column.name] for column in _OF))

        def write(connection: sa.Connection) -> None:
            if not connection.execute(sa.update(cooldowns).where(place).values(values)).rowcount:
                connection.execute(sa.insert(cooldowns).values(values))

        return self._database.call(write)

    def delete(self, provider: str, credential: str, model: str) -> Deferred[None]:
        """See health_ports.CoolDownStore."""
        place = sa.and_(*(column == value for column, value in zip(_OF, (provider, credential, model), strict=True)))

        def write(connection: sa.Connection) -> None:
            connection.execute(sa.delete(cooldowns).where(place))

        return self._database.call(write)
