"""Tokens of persons and programs, as rows. Decides nothing: core has the rules. Imports core, database, audit, rows and tables."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from twisted.internet.defer import Deferred, succeed

from mayros.core.audit_ports import AuditEntry
from mayros.core.token_ports import ApiToken
from mayros.storage.audit import add
from mayros.storage.database import Database
from mayros.storage.rows import load_rows, put, record_of, row_of
from mayros.storage.tables import api_tokens

#: Columns that are JSON lists of texts.
_LISTS = ("scopes", "agents", "endpoints")


class SqlApiTokens:
    """Implements `core.token_ports.ApiTokenStore`: each call is durable when its Deferred fires, in the order of the calls."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self) -> Sequence[ApiToken]:
        """All there are. Blocks, so before the reactor runs. Raises StartError."""
        return load(self._database.engine)

    def save(self, token: ApiToken, audit: AuditEntry | None = None) -> Deferred[None]:
        """See token_ports.ApiTokenStore."""
        return self._database.call(lambda connection: save(connection, token, audit))


class DirectApiTokens:
    """The same without a gateway: each call blocks until it is durable."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def save(self, token: ApiToken, audit: AuditEntry | None = None) -> Deferred[None]:
        """See token_ports.ApiTokenStore. Raises SQLAlchemyError."""
        with self._engine.begin() as connection:
            save(connection, token, audit)
        return succeed(None)


def load(engine: sa.Engine) -> Sequence[ApiToken]:
    """All tokens, by name. Raises StartError."""
    return [record_of(row, ApiToken, _LISTS) for row in load_rows(engine, sa.select(api_tokens).order_by(api_tokens.c.name))]


def save(connection: sa.Connection, token: ApiToken, audit: AuditEntry | None = None) -> None:
    """In the place of the row of that name, with the row that tells of it."""
    put(connection, row_of(token, _LISTS), api_tokens.c.name)
    add(connection, audit)
