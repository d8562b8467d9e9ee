"""Paired devices, their tokens and pairing requests, as rows. Decides nothing: core has the rules. Imports core.ports, database and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from twisted.internet.defer import Deferred

from mayros.core.device_ports import DeviceRecord, DeviceToken, PairingRequest
from mayros.storage.database import Database
from mayros.storage.tables import device_requests, device_tokens, devices

_Found = tuple[Sequence[DeviceRecord], Sequence[DeviceToken], Sequence[PairingRequest]]
_R = TypeVar("_R", DeviceRecord, DeviceToken, PairingRequest)

#: Columns that are JSON lists of texts.
_LISTS = ("roles", "scopes")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[str, ...]).decode


class SqlDevices:
    """Implements `core.ports.DeviceStore`: each call is durable when its Deferred fires, in the order of the calls."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self) -> Deferred[_Found]:
        """See ports.DeviceStore."""
        return self._database.read(_load)

    def save_device(self, record: DeviceRecord) -> Deferred[None]:
        """See ports.DeviceStore."""
        return self._save(devices, devices.c.device_id, record)

    def delete_device(self, device_id: str) -> Deferred[None]:
        """See ports.DeviceStore."""

        def write(connection: sa.Connection) -> None:
            for table in (device_tokens, device_requests, devices):
                connection.execute(sa.delete(table).where(table.c.device_id == device_id))

        return self._database.call(write)

    def save_token(self, token: DeviceToken) -> Deferred[None]:
        """See ports.DeviceStore."""
        return self._save(device_tokens, device_tokens.c.token_hash, token)

    def delete_token(self, token_hash: bytes) -> Deferred[None]:
        """See ports.DeviceStore."""
        return self._delete(device_tokens, device_tokens.c.token_hash, token_hash)

    def save_request(self, request: PairingRequest) -> Deferred[None]:
        """See ports.DeviceStore."""
        return self._save(device_requests, device_requests.c.device_id, request)

    def delete_request(self, request_id: str) -> Deferred[None]:
        """See ports.DeviceStore."""
        return self._delete(device_requests, device_requests.c.request_id, request_id)

    def _save(self, table: sa.Table, one: sa.Column[Any], record: DeviceRecord | DeviceToken | PairingRequest) -> Deferred[None]:
        """In the place of the row that has the same value in the column `one`."""
        values = {name: _encode(value).decode() if name in _LISTS else value for name, value in msgspec.structs.asdict(record).items()}

        def write(connection: sa.Connection) -> None:
            if not connection.execute(sa.update(table).where(one == values[one.name]).values(values)).rowcount:
                connection.execute(sa.insert(table).values(values))

        return self._database.call(write)

    def _delete(self, table: sa.Table, one: sa.Column[Any], value: str | bytes) -> Deferred[None]:
        def write(connection: sa.Connection) -> None:
            connection.execute(sa.delete(table).where(one == value))

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
    return [msgspec.convert({str(name): _decode(value) if name in _LISTS else value for name, value in row.items()}, kind) for row in rows]
