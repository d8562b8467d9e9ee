"""Idempotency keys: one key, one run, also across a crash."""

import os
import shutil
import sqlite3
from typing import Any

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.trial.unittest import TestCase

from mayros.core.claim_ports import Conflict, Done, Live, New
from mayros.core.ports import Claim, RunResult
from mayros.errors import StorageUnavailable
from mayros.storage.database import Database
from mayros.storage.engine import default_url
from mayros.storage.idempotency import SqlIdempotency

NEW = New(Claim("owner", "k1"))


class Keys(TestCase):
    """What the second request with a key hears."""

    def setUp(self) -> None:
        self.folder = os.path.abspath(self.mktemp())
        os.mkdir(self.folder)
        self.path = os.path.join(self.folder, "mayros.db")
        self.now = 1_700_000_000_000
        self.database = self.open(self.folder)
        self.keys = SqlIdempotency(self.database, lambda: self.now)

    def open(self, folder: str) -> Database:
        database = Database(default_url(folder), reactor, busy_seconds=0.1)  # type: ignore[arg-type]
        database.open()
        self.addCleanup(database.close)
        return database

    async def begin(self, run_id: str = "run1", digest: bytes = b"request", scope: str = "owner", key: str = "k1", keep: float = 60) -> Any:
        return await self.keys.begin(scope, key, digest, run_id, keep)

    async def end(self, run_id: str) -> RunResult:
        """The run ends as the transaction of its turn would record it."""
        result = RunResult(run_id, "agent:main:main", "s", "main", "ok", "Hi.", self.now, self.now)
        row = (msgspec.json.encode(result).decode(), self.now, "owner", "k1", run_id)
        await self.database.call(lambda connection: connection.exec_driver_sql(self.database.statements.finish_claim, row))
        return result

    async def test_first_use(self) -> None:
        """An unused key is the caller's."""
        self.assertEqual(await self.begin(), NEW)

    async def test_while_the_run_goes_on(self) -> None:
        """A repeat of the same request hears which run has it."""
        await self.begin("run1")
        self.assertEqual(await self.begin("run2"), Live("run1"))

    async def test_an_answer_without_a_turn(self) -> None:
        """What a command said is kept like the answer of a run; a key that is not held is not answered."""
        result = RunResult("run1", "agent:main:main", "s", "main", "ok", "Done.", self.now, self.now)
        await self.begin("run1")
        await self.keys.finish(Claim("owner", "k1"), result)
        self.assertEqual(await self.begin("run2"), Done(result))
        await self.keys.finish(Claim("owner", "nobody"), result)
        self.assertEqual(await self.begin(key="nobody"), New(Claim("owner", "nobody")))

    async def test_after_the_run(self) -> None:
        """A repeat after the end gets the same answer."""
        await self.begin("run1")
        result = await self.end("run1")
        self.assertEqual(await self.begin("run2"), Done(result))

    async def test_other_request(self) -> None:
        """The key with another request is a conflict, during the run and after it."""
        await self.begin("run1")
        self.assertEqual(await self.begin("run2", digest=b"other"), Conflict())
        await self.end("run1")
        self.assertEqual(await self.begin("run2", digest=b"other"), Conflict())

    async def test_scopes(self) -> None:
        """Two callers may use the same key."""
        await self.begin("run1")
        self.assertEqual(await self.begin("run2", scope="user:ann"), New(Claim("user:ann", "k1")))

    async def test_expiry(self) -> None:
        """An answer is kept for the time that was asked for, counted from the run's end; then the key is free, for any request."""
        await self.begin("run1", keep=60)
        self.now += 300_000
        self.assertEqual(await self.begin("run2"), Live("run1"))
        result = await self.end("run1")
        self.now += 59_999
        self.assertEqual(await self.begin("run3"), Done(result))
        self.now += 1
        self.assertEqual(await self.begin("run4", digest=b"other"), NEW)

    async def test_release(self) -> None:
        """A key whose run was refused before it began can be used again at once; an answer cannot be released away."""
        await self.begin("run1")
        await self.keys.release(NEW.claim)
        self.assertEqual(await self.begin("run2", digest=b"other"), NEW)
        result = await self.end("run2")
        await self.keys.release(NEW.claim)
        self.assertEqual(await self.begin("run3", digest=b"other"), Done(result))

    async def test_durable_before_new(self) -> None:
        """When New is returned the claim is on disk: a crash right then leaves the key claimed."""
        await self.begin("run1")
        crashed = os.path.abspath(self.mktemp())
        shutil.copytree(self.folder, crashed)
        again = SqlIdempotency(self.open(crashed), lambda: self.now)
        self.assertEqual(await again.begin("owner", "k1", b"request", "run2", 60), Live("run1"))

    async def test_at_the_same_moment(self) -> None:
        """Of many requests with one key in the same moment exactly one may run."""
        answers = await gatherResults([Deferred.fromCoroutine(self.begin(f"run{n}")) for n in range(20)])
        self.assertEqual([type(answer) for answer in answers], [New] + [Live] * 19)
        self.assertEqual({answer.run_id for answer in answers[1:]}, {"run0"})

    async def test_client_leaves_while_claiming(self) -> None:
        """A request that is cancelled while its key is being claimed gives it back, and does not touch a claim that another run holds."""
        waiting = Deferred.fromCoroutine(self.begin("run1"))
        waiting.cancel()
        await self.assertFailure(waiting, CancelledError)
        self.assertEqual(await self.begin("run2"), NEW)
        waiting = Deferred.fromCoroutine(self.begin("run3"))
        waiting.cancel()
        await self.assertFailure(waiting, CancelledError)
        self.assertEqual(await self.begin("run4"), Live("run2"))

    async def test_store_cannot_be_written(self) -> None:
        """Without a durable claim nothing starts; a release that fails is made good when the key is used next."""
        await self.begin("run1")
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        await self.assertFailure(Deferred.fromCoroutine(self.begin("run2", key="k2")), StorageUnavailable)
        await self.assertFailure(Deferred.fromCoroutine(self.keys.release(NEW.claim)), StorageUnavailable)
        other.execute("ROLLBACK")
        self.assertEqual(await self.begin("run3", digest=b"other"), NEW)
        self.assertEqual(await self.begin("run4", digest=b"other"), Live("run3"))
