"""Devices, their tokens and pairing requests on a real SQLite file."""

from typing import Any

from msgspec.structs import replace

from mayros.core.device_ports import DeviceRecord, DeviceToken, PairingRequest
from mayros.errors import StorageUnavailable
from mayros.storage.devices import SqlDevices
from tests.test_storage import StoreTestCase

LAPTOP = DeviceRecord(
    device_id="d1",
    public_key="key-1",
    display_name="Läptop",
    platform="linux",
    client_id="mayros-cli",
    client_mode="cli",
    roles=("operator", "node"),
    scopes=("operator.read", "operator.write"),
    remote_ip="127.0.0.1",
    created_ms=10,
    approved_ms=20,
)
PHONE = DeviceRecord("d2", "key-2", None, None, None, None, ("operator",), (), None, 5, 6)
TOKEN = DeviceToken(b"\x00hash-1\xff", "d1", "operator", ("operator.read",), 30)
REQUEST = PairingRequest("r1", "d3", "key-3", None, "ios", "mayros-ios", "ui", ("operator",), ("operator.read",), "203.0.113.9", False, True, 40)


class Devices(StoreTestCase):
    """What is saved is there after a restart, as it was."""

    def setUp(self) -> None:
        super().setUp()
        self.devices = SqlDevices(self.database)

    async def loaded(self) -> tuple[list[Any], list[Any], list[Any]]:
        """What a gateway that starts on the same file finds."""
        devices, tokens, requests = await SqlDevices(self.open().database).load()  # type: ignore[attr-defined]
        return list(devices), list(tokens), list(requests)

    async def test_empty(self) -> None:
        """A new store knows no device."""
        self.assertEqual(await self.loaded(), ([], [], []))

    async def test_save_and_load(self) -> None:
        """All fields come back with their types, oldest first."""
        await self.devices.save_device(LAPTOP)
        await self.devices.save_device(PHONE)
        await self.devices.save_token(TOKEN)
        await self.devices.save_request(REQUEST)
        self.assertEqual(await self.loaded(), ([PHONE, LAPTOP], [TOKEN], [REQUEST]))

    async def test_save_again(self) -> None:
        """Saving a device or a token again replaces it."""
        newer, used = replace(LAPTOP, display_name=None, scopes=()), replace(TOKEN, rotated_ms=50, revoked_ms=60, last_used_ms=55)
        for record in (LAPTOP, newer):
            await self.devices.save_device(record)
        for token in (TOKEN, used):
            await self.devices.save_token(token)
        self.assertEqual(await self.loaded(), ([newer], [used], []))

    async def test_one_request_for_each_device(self) -> None:
        """A device's new request takes the place of its earlier one, under a new id or the same."""
        again = replace(REQUEST, request_id="r2", silent=True, created_ms=70)
        await self.devices.save_request(REQUEST)
        await self.devices.save_request(again)
        self.assertEqual((await self.loaded())[2], [again])
        merged = replace(again, roles=("operator", "node"))
        await self.devices.save_request(merged)
        self.assertEqual((await self.loaded())[2], [merged])

    async def test_delete(self) -> None:
        """Tokens and requests can go one by one; what is not there is gone already."""
        other = replace(TOKEN, token_hash=b"hash-2")
        for token in (TOKEN, other):
            await self.devices.save_token(token)
        await self.devices.save_request(REQUEST)
        await self.devices.delete_token(b"hash-2")
        await self.devices.delete_token(b"nothing")
        await self.devices.delete_request("r1")
        await self.devices.delete_request("r1")
        self.assertEqual(await self.loaded(), ([], [TOKEN], []))

    async def test_delete_device(self) -> None:
        """A device goes with its tokens and its request, and takes nothing of others with it."""
        await self.devices.save_device(LAPTOP)
        await self.devices.save_device(PHONE)
        await self.devices.save_token(TOKEN)
        kept = DeviceToken(b"hash-3", "d2", "operator", (), 1)
        await self.devices.save_token(kept)
        await self.devices.save_request(replace(REQUEST, device_id="d1"))
        await self.devices.delete_device("d1")
        self.assertEqual(await self.loaded(), ([PHONE], [kept], []))

    async def test_store_that_cannot_be_written(self) -> None:
        """What did not reach the disk is an error, for reading and writing alike."""
        await self.database.call(lambda connection: connection.exec_driver_sql("DROP TABLE devices"))
        await self.assertFailure(self.devices.save_device(LAPTOP), StorageUnavailable)
        await self.assertFailure(self.devices.load(), StorageUnavailable)
