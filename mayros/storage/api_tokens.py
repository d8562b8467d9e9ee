"""Tokens of persons and programs, as rows. Decides nothing: core has the rules. Imports core.token_ports, database and tables."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa
from twisted.internet.defer import Deferred, succeed

from mayros.core.token_ports import ApiToken
from mayros.errors import StartError
from mayros.storage.database import Database
from mayros.storage.engine import cause
from mayros.storage.tables import api_tokens

#: Columns that are JSON lists of texts.
_LISTS = ("scopes", "agents", "endpoints")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[str, ...]).decode


class SqlApiTokens:
    """Implements `core.token_ports.ApiTokenStore`: each call is durable when its Deferred fires, in the order of the calls."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self) -> Sequence[ApiToken]:
        """All there are. Blocks, so before the reactor runs. Raises StartError."""
        return load(self._database.engine)

    def save(self, token: ApiToken) -> Deferred[None]:
        """See token_ports.ApiTokenStore."""
        return self._database.call(lambda connection: save(connection, token))


class DirectApiTokens:
    """The same without a gateway: each call blocks until it is durable."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def save(self, token: ApiToken) -> Deferred[None]:
        """See token_ports.ApiTokenStore. Raises SQLAlchemyError."""
        with self._engine.begin() as connection:
            save(connection, token)
        return succeed(None)


def load(engine: sa.Engine) -> Sequence[ApiToken]:
    """All tokens, by name. Raises StartError."""
    try:
        with engine.connect() as connection:
            rows = connection.execute(sa.select(api_tokens).order_by(api_tokens.c.name)).mappings().all()
    except sa.exc.SQLAlchemyError as error:
        raise StartError(f"The store cannot be read: {cause(error)}") from error
    return [_token(dict(row)) for row in rows]


def save(connection: sa.Connection, token: ApiToken) -> None:
    """In the place of the row of that name."""
    found = msgspec.structs.asdict(token)
    values = {name: _encode(value).decode() if name in _LISTS and value is not None else value for name, value in found.items()}
    if not connection.execute(sa.update(api_tokens).where(api_tokens.c.name == token.name).values(values)).rowcount:
        connection.execute(sa.insert(api_tokens).values(values))


def _token(row: dict[str, object]) -> ApiToken:
    return msgspec.convert(
        {str(name): _decode(value) if name in _LISTS and isinstance(value, str) else value for name, value in row.items()}, ApiToken
    )
