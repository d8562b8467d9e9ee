"""Idempotency keys in the database: a key never starts two runs, across restarts. Imports core and database.

A claim is on disk before `begin` says New. It turns into the run's answer in the transaction that records the turn (turns.py), by `finish` where
there is no turn, or, after a crash, into an aborted answer (`SqlTurnStore.recover`). A live claim does not expire; how long an answer is kept
counts from its run's end.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import sqlalchemy as sa
from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure

from mayros.core.claim_ports import Conflict, Done, Live, New
from mayros.core.ports import Claim, RunResult
from mayros.errors import StorageUnavailable
from mayros.storage.database import Database
from mayros.storage.statements import ClaimRow
from mayros.storage.tables import idempotency

log = Logger()

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(RunResult).decode

Begun = New | Live | Done | Conflict
_Row = tuple[str, str, bytes, str, str, None, int, int]


class SqlIdempotency:
    """Implements `core.ports.Idempotency`. `now_ms`: the wall clock in milliseconds."""

    def __init__(self, database: Database, now_ms: Callable[[], int]) -> None:
        self._database, self._now_ms = database, now_ms

    async def begin(self, scope: str, key: str, digest: bytes, run_id: str, keep_seconds: float) -> Begun:
        """Claim the key for `run_id`; `digest` tells whether a repeat is the same request. New is durable. Raises StorageUnavailable."""
        now = self._now_ms()
        row: _Row = (scope, key, digest, run_id, "live", None, now, now + max(0, round(keep_seconds * 1000)))
        owed = self._database.owed.get((scope, key))

        def begin(connection: sa.Connection) -> Begun:
            if owed is not None:
                owed(connection)
            return self._begin(connection, row)

        try:
            begun = await self._database.call(begin)
        except CancelledError:
            # Nobody will run it: give back what is being claimed. The writer keeps its jobs in order.
            self._database.call(lambda connection: self._revoke(connection, scope, key, run_id)).addErrback(self._owe, Claim(scope, key))
            raise
        if owed is not None and self._database.owed.get((scope, key)) is owed:
            del self._database.owed[scope, key]
        return begun

    def _begin(self, connection: sa.Connection, row: _Row) -> Begun:
        """In the writer thread."""
        scope, key, digest, _, _, _, now, _ = row
        statements = self._database.statements
        connection.exec_driver_sql(statements.expire_claim, (scope, key, now))
        if connection.exec_driver_sql(statements.insert_claim, row).rowcount:
            return New(Claim(scope, key))
        kept_digest, kept_run, state, result = connection.exec_driver_sql(statements.select_claim, (scope, key)).one()
        if bytes(kept_digest) != digest:
            return Conflict()
        return Live(kept_run) if state == "live" else Done(_decode(result))

    async def finish(self, claim: Claim, result: RunResult) -> None:
        """Keep the answer of what was done without a turn. Durable when done. Raises StorageUnavailable."""
        row: ClaimRow = (_encode(result).decode(), self._now_ms(), claim.scope, claim.key, result.run_id)
        await self._database.call(lambda connection: self._finish(connection, row))

    def _finish(self, connection: sa.Connection, row: ClaimRow) -> None:
        connection.exec_driver_sql(self._database.statements.finish_claim, row)

    async def release(self, claim: Claim) -> None:
        """Give the key back. Raises StorageUnavailable; the key is then given back when it is asked for next."""
        try:
            await self._database.call(lambda connection: self._release(connection, claim))
        except StorageUnavailable:
            self._owe(None, claim)
            raise

    def _release(self, connection: sa.Connection, claim: Claim) -> None:
        connection.exec_driver_sql(self._database.statements.release_claim, (claim.scope, claim.key))

    @staticmethod
    def _revoke(connection: sa.Connection, scope: str, key: str, run_id: str) -> None:
        column = idempotency.c
        connection.execute(sa.delete(idempotency).where(column.scope == scope, column.key == key, column.run_id == run_id, column.state == "live"))

    def _owe(self, failure: Failure | None, claim: Claim) -> None:
        if failure is not None:
            failure.trap(StorageUnavailable)
        self._database.owed[claim.scope, claim.key] = lambda connection: self._release(connection, claim)
