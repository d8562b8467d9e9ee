"""Tokens of persons and programs on a real SQLite file, and what a restart knows of them."""

from __future__ import annotations

from msgspec.structs import replace

from mayros.core.api_tokens import ApiTokens, Wanted
from mayros.core.auth import secret_digest
from mayros.core.keys import SessionKey
from mayros.core.session_ports import EntryMeta, SessionQuery
from mayros.core.token_ports import ApiToken
from mayros.errors import StorageUnavailable
from mayros.messages import Message, pack
from mayros.storage.api_tokens import SqlApiTokens
from mayros.storage.sessions import SqlSessions
from tests.test_storage import NOW, StoreTestCase

TOKEN = ApiToken("ann", b"\x00\xff" * 16, ("operator.read",), ("main", "beta"), ("chat",), 5, 10**12, 1, 2, 3, 4, 5, b"\x01" * 32, 6)
BARE = ApiToken("bob", b"\x02" * 32, ("operator.admin",), None, None, None, None, 9)


class TokenRows(StoreTestCase):
    """What is saved is there after a restart, as it was."""

    def setUp(self) -> None:
        super().setUp()
        self.rows = SqlApiTokens(self.database)

    def loaded(self) -> list[ApiToken]:
        """What a gateway that starts on the same file finds."""
        return list(SqlApiTokens(self.open().database).load())  # type: ignore[attr-defined]

    async def test_save_and_load(self) -> None:
        """All fields come back; saving again replaces."""
        self.assertEqual(self.loaded(), [])
        for token in (BARE, replace(TOKEN, rpm=None), TOKEN):
            await self.rows.save(token)
        self.assertEqual(self.loaded(), [TOKEN, BARE])

    async def test_over_a_restart(self) -> None:
        """A secret is good in the next process, and one that was taken back is not."""
        register = ApiTokens(self.rows, lambda: NOW)
        good, _ = await register.create(Wanted("ann"), ("main",))
        bad, _ = await register.create(Wanted("bob"), ("main",))
        await register.revoke("bob")
        again = ApiTokens(self.rows, lambda: NOW)
        again.restore(self.loaded())
        found = [again.find(secret_digest(secret)) for secret in (good, bad)]
        self.assertEqual([held is not None and again.problem(held) for held in found], [None, "This token was revoked."])

    async def test_a_closed_store(self) -> None:
        """Fails with the error that says so."""
        await self.database.close()
        with self.assertRaises(StorageUnavailable):
            await self.rows.save(TOKEN)


class SpaceRows(StoreTestCase):
    """Lists of one name space."""

    async def test_lists(self) -> None:
        """Only its own, whatever other keys look like; letters that are patterns elsewhere are letters."""
        sessions = SqlSessions(self.database, self.store, lambda: NOW)
        for key in (
            "agent:main:token:a_b:x", "agent:beta:token:a_b:y", "agent:main:token:aXb:x", "agent:main:main", "agent:main:x:token:a_b:y",
            "agent:main:token:bob:agent:main:token:a_b:z", "agent:main:token:a_b", "agent:main:token:a_bc:x",
        ):  # fmt: skip
            _, agent_id, rest = key.split(":", 2)
            await sessions.append(SessionKey(agent_id, rest), pack(Message("user", "hi")), "r", EntryMeta())
        found = await sessions.list(SessionQuery(space="token:a_b"))
        self.assertEqual(sorted(row.key for row in found), ["agent:beta:token:a_b:y", "agent:main:token:a_b:x"])
        self.assertEqual(len(await sessions.list(SessionQuery())), 8)
