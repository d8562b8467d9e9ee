"""Keeps the store small: old stateless sessions, entries of deleted sessions, expired idempotency keys and old audit rows go.

A sweep runs at the start and then every minute. It deletes in chunks, each a job of the writer thread, so that turns are never far behind.
Imports config, database and audit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import sqlalchemy as sa
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from mayros.config.schema import Stateless
from mayros.core.ports import Clock
from mayros.core.spending import DAY_MS
from mayros.errors import StorageUnavailable
from mayros.storage import audit
from mayros.storage.database import Database
from mayros.storage.tables import STATELESS, deleted_sessions, entries, idempotency, sessions
from mayros.storage.usage import FOLDED, fold_old

log = Logger()

EVERY_SECONDS = 60.0
#: Sessions or keys deleted in one job of the writer: some milliseconds.
CHUNK = 100
#: Answers of idempotency keys that are kept at most.
MAX_KEYS = 100_000
HOUR_MS = 3_600_000
#: Entries of deleted sessions that go in one job.
ENTRIES = 500


class Maintenance:
    """Prunes by `policy()`, asked anew for each sweep. `clock` decides when, `now_ms` (the wall clock) what is old."""

    def __init__(self, database: Database, clock: Clock, policy: Callable[[], Stateless], now_ms: Callable[[], int]) -> None:
        self._database, self._clock, self._policy, self._now_ms = database, clock, policy, now_ms
        self._timer: IDelayedCall | None = None
        self._stopped = False
        self._folded = self._shortened = -1

    def start(self) -> None:
        """Sweep now, and a minute after each sweep's end."""
        self._stopped = False
        self._tick()

    def stop(self) -> None:
        """No more sweeps; one that is on its way ends after its current chunk."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        sweeping = Deferred.fromCoroutine(self.sweep())
        sweeping.addErrback(lambda failure: log.failure("Store: pruning failed", failure))
        sweeping.addBoth(self._again)

    def _again(self, _result: object) -> None:
        if not self._stopped:
            self._timer = self._clock.callLater(EVERY_SECONDS, self._tick)

    async def sweep(self) -> int:
        """Delete what is due; the number of sessions and keys that went. A store that cannot be written is left for the next sweep."""
        policy, now = self._policy(), self._now_ms()
        gone = 0
        try:
            for due, count, most, oldest in (
                (partial(_prune_old, before_ms=now - policy.ttl), _count, policy.max_entries, _prune_oldest),
                (partial(_prune_keys, now_ms=now), _count_keys, MAX_KEYS, _prune_oldest_keys),
            ):
                gone += await self._chunks(due)
                excess = await self._database.read(count) - most
                while excess > 0 and not self._stopped:
                    went = await self._database.call(partial(oldest, count=min(excess, CHUNK)))
                    gone, excess = gone + went, excess - (went or excess)
            while await self._database.call(purge) and not self._stopped:
                pass
            await self._fold(now)
            await self._shorten(now)
        except StorageUnavailable as error:
            log.warn("Store: pruning has to wait: {error}", error=error)
        if gone:
            log.info("Store: {count} old stateless sessions and idempotency keys deleted", count=gone)
        return gone

    async def _fold(self, now_ms: int) -> None:
        """Once a day: usage of long ago loses the names of its sessions."""
        upsert = self._database.statements.upsert_usage
        while self._folded != now_ms // DAY_MS and not self._stopped:
            if await self._database.call(lambda connection: fold_old(connection, now_ms, upsert)) < FOLDED:
                self._folded = now_ms // DAY_MS

    async def _shorten(self, now_ms: int) -> None:
        """Once an hour: the oldest rows of the audit trail go."""
        if self._shortened == now_ms // HOUR_MS:
            return
        await self._chunks(partial(audit.drop_old, before_ms=now_ms - audit.KEEP_MS, count=CHUNK))
        for noise, many in zip((True, False), await self._database.read(audit.excess), strict=True):
            while many > 0 and not self._stopped:
                many -= await self._database.call(partial(audit.drop, count=min(many, audit.CHUNK), noise=noise)) or many
        self._shortened = now_ms // HOUR_MS

    async def _chunks(self, prune: Callable[[sa.Connection], int]) -> int:
        gone = went = await self._database.call(prune)
        while went == CHUNK and not self._stopped:
            went = await self._database.call(prune)
            gone += went
        return gone


_OLDEST = sa.select(sessions.c.key, sessions.c.session_id).where(STATELESS).order_by(sessions.c.updated_ms)
_COUNT = sa.select(sa.func.count()).select_from(sessions).where(STATELESS)


def _count(connection: sa.Connection) -> int:
    return connection.execute(_COUNT).scalar_one()


def _prune_old(connection: sa.Connection, before_ms: int) -> int:
    return _delete(connection, connection.execute(_OLDEST.where(sessions.c.updated_ms < before_ms).limit(CHUNK)).all())


def _prune_oldest(connection: sa.Connection, count: int) -> int:
    return _delete(connection, connection.execute(_OLDEST.limit(count)).all())


def _delete(connection: sa.Connection, found: Sequence[sa.Row[str, str]]) -> int:
    if found:
        connection.execute(sa.delete(entries).where(entries.c.session_id == sa.bindparam("b_id")), [{"b_id": row.session_id} for row in found])
        connection.execute(sa.delete(sessions).where(sessions.c.key == sa.bindparam("b_key")), [{"b_key": row.key} for row in found])
    return len(found)


def purge(connection: sa.Connection) -> bool:
    """In the writer thread: delete some entries of deleted sessions. Whether there was one to work on: call again."""
    session_id = connection.execute(sa.select(deleted_sessions.c.session_id).limit(1)).scalar()
    if session_id is None:
        return False
    some = sa.select(entries.c.id).where(entries.c.session_id == session_id).limit(ENTRIES)
    if connection.execute(sa.delete(entries).where(entries.c.id.in_(some))).rowcount < ENTRIES:
        connection.execute(sa.delete(deleted_sessions).where(deleted_sessions.c.session_id == session_id))
    return True


_KEYS = sa.select(idempotency.c.scope, idempotency.c.key).where(idempotency.c.state == "done").order_by(idempotency.c.expires_ms)


def _count_keys(connection: sa.Connection) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(idempotency)).scalar_one()


def _prune_keys(connection: sa.Connection, now_ms: int) -> int:
    return _delete_keys(connection, connection.execute(_KEYS.where(idempotency.c.expires_ms <= now_ms).limit(CHUNK)).all())


def _prune_oldest_keys(connection: sa.Connection, count: int) -> int:
    return _delete_keys(connection, connection.execute(_KEYS.limit(count)).all())


def _delete_keys(connection: sa.Connection, found: Sequence[sa.Row[str, str]]) -> int:
    if found:
        column = idempotency.c
        gone = sa.delete(idempotency).where(column.scope == sa.bindparam("b_scope"), column.key == sa.bindparam("b_key"))
        connection.execute(gone, [{"b_scope": row.scope, "b_key": row.key} for row in found])
    return len(found)
