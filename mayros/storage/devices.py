"""Paired devices, their tokens and pairing requests, as rows. Decides nothing: core has the rules. Imports core, database, audit, rows and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from twisted.internet.defer import Deferred

from mayros.core.audit_ports import AuditEntry
from mayros.core.device_ports import DeviceRecord, DeviceToken, PairingRequest
from mayros.storage.audit import add
from mayros.storage.database import Database
from mayros.storage.rows import put, record_of, row_of
from mayros.storage.tables import device_requests, device_tokens, devices

_Found = tuple[Sequence[DeviceRecord], Sequence[DeviceToken], Sequence[PairingRequest]]
_R = TypeVar("_R", DeviceRecord, DeviceToken, PairingRequest)

#: Columns that are JSON lists of texts.
_LISTS = ("roles", "scopes")


class SqlDevices:
    """Implements `core.device_ports.DeviceStore`: each call is durable when its Deferred fires, in the order of the calls."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self) -> Deferred[_Found]:
        """See device_ports.DeviceStore."""
        return self._database.read(_load)

    def save_device(self, record: DeviceRecord, audit: AuditEntry | None = None) -> Deferred[None]:
        """See device_ports.DeviceStore."""
        return self._save(devices.c.device_id, record, audit)

    def delete_device(self, device_id: str, audit: AuditEntry | None = None) -> Deferred[None]:
        """See device_ports.DeviceStore."""

        def write(connection: sa.Connection) -> None:
            for table in (device_tokens, device_requests, devices):
                connection.execute(sa.delete(table).where(table.c.device_id == device_id))
            add(connection, audit)

        return self._database.call(write)

    def save_token(self, token: DeviceToken, audit: AuditEntry | None = None) -> Deferred[None]:
        """See device_ports.DeviceStore."""
        return self._save(device_tokens.c.token_hash, token, audit)

    def delete_token(self, token_hash: bytes) -> Deferred[None]:
        """See device_ports.DeviceStore."""
        return self._delete(device_tokens, device_tokens.c.token_hash, token_hash)

    def save_request(self, request: PairingRequest) -> Deferred[None]:
        """See device_ports.DeviceStore."""
        return self._save(device_requests.c.device_id, request)

    def delete_request(self, request_id: str, audit: AuditEntry | None = None) -> Deferred[None]:
        """See device_ports.DeviceStore."""
        return self._delete(device_requests, device_requests.c.request_id, request_id, audit)

    def _save(self, one: sa.Column[Any], record: DeviceRecord | DeviceToken | PairingRequest, audit: AuditEntry | None = None) -> Deferred[None]:
        """In the place of the row that has the same value in the column `one`."""
        row = row_of(record, _LISTS)

        def write(connection: sa.Connection) -> None:
            put(connection, row, one)
            add(connection, audit)

        return self._database.call(write)

    def _delete(self, table: sa.Table, one: sa.Column[Any], value: str | bytes, audit: AuditEntry | None = None) -> Deferred[None]:
        def write(connection: sa.Connection) -> None:
            connection.execute(sa.delete(table).where(one == value))
            add(connection, audit)

        return self._database.call(write)


def _load(connection: sa.Connection) -> _Found:
    """In a reader thread."""
    return (
        _records(connection, devices, DeviceRecord),
        _records(connection, device_tokens, DeviceToken),
        _records(connection, device_requests, PairingRequest),
    )


def _records(connection: sa.Connection, table: sa.Table, kind: type[_R]) -> list[_R]:
    rows = connection.execute(sa.select(table).order_by(table.c.created_ms)).mappings()
    return [record_of(row, kind, _LISTS) for row in rows]
