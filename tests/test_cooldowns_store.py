"""Rests of keys on a real SQLite file, and over a restart."""

from __future__ import annotations

from msgspec.structs import replace

from mayros.core.health import ModelHealth, Try
from mayros.core.health_ports import KeptCoolDown
from mayros.errors import InsufficientQuota, StorageUnavailable
from mayros.storage.cooldowns import SqlCoolDowns
from tests.test_failover import Candidate, model
from tests.test_storage import StoreTestCase

REST = KeptCoolDown("acme", "profile:work", "", "billing", 2, 1_000, 2_000, 1_000, "no crédit", "0011223344556677")


class CoolDownRows(StoreTestCase):
    """What is saved is there after a restart, as it was."""

    def setUp(self) -> None:
        super().setUp()
        self.rests = SqlCoolDowns(self.database)

    def loaded(self) -> list[KeptCoolDown]:
        """What a gateway that starts on the same file finds."""
        return list(SqlCoolDowns(self.open().database).load())  # type: ignore[attr-defined]

    async def test_save_and_load(self) -> None:
        """All fields come back, the oldest failure first; saving again replaces."""
        self.assertEqual(self.loaded(), [])
        earlier = replace(REST, model="large", kind="rate_limit", failed_ms=5)
        for row in (replace(REST, failures=1), earlier, REST):
            await self.rests.save(row)
        self.assertEqual(self.loaded(), [earlier, REST])

    async def test_delete(self) -> None:
        """One that is not there is fine."""
        await self.rests.save(REST)
        await self.rests.delete("acme", "profile:work", "large")
        self.assertEqual(self.loaded(), [REST])
        await self.rests.delete("acme", "profile:work", "")
        self.assertEqual(self.loaded(), [])

    async def test_a_closed_store(self) -> None:
        """Fails with the error that says so."""
        await self.database.close()
        with self.assertRaises(StorageUnavailable):
            await self.rests.save(REST)

    async def test_over_a_restart(self) -> None:
        """A key that cannot pay rests on in the next process."""
        wall = 1_764_000_000_000
        acme = model(keys="ab")
        one, two = (Candidate(acme, key) for key in acme.provider.credentials)
        health = ModelHealth(self.rests, lambda: wall)
        health.failed(Try(one, 50.0), InsufficientQuota("pay first"), 50.0)
        await self.database.close()
        again = ModelHealth(None, lambda: wall + 3_600_000)
        again.restore(self.loaded(), {"acme": acme.provider}, 7.0)
        self.assertEqual([type(again.admit(candidate, 8.0)).__name__ for candidate in (one, two)], ["Block", "Try"])
        self.assertEqual(type(again.admit(one, 7.0 + 4 * 3600)).__name__, "Try")
