"""The open database: one writer, a few readers, and the jobs that go to the writer. Imports writer, migrate, statements.

A service makes one Database and gives it to SqlTurnStore, SqlIdempotency and Maintenance. Nothing here blocks the reactor but `open`, which
runs before it does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import msgspec
import sqlalchemy as sa
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from mayros.errors import StorageUnavailable
from mayros.storage.engine import BUSY_SECONDS, cause, parse_url
from mayros.storage.migrate import PROBE, open_engine
from mayros.storage.statements import ClaimRow, EntryRow, SessionRow, Statements, Used, summed
from mayros.storage.writer import GroupCommit, Reactor, Settled

log = Logger()

T = TypeVar("T")


class Rows(msgspec.Struct, frozen=True, gc=False):
    """What one turn writes."""

    session: SessionRow
    entries: list[EntryRow]
    claim: ClaimRow | None
    usage: Sequence[Used] = ()


#: A job of another kind: runs in the writer thread inside the batch's transaction, perhaps twice if the batch is tried again.
Call = Callable[[sa.Connection], object]


class Stats(msgspec.Struct, frozen=True):
    """Since the start: batches, jobs that are on disk, jobs that failed."""

    batches: int
    written: int
    failed: int


class Database:
    """One store by URL. `busy_seconds`: how long another process's lock is waited for, in the writer thread."""

    def __init__(self, url: str, reactor: Reactor, *, busy_seconds: float = BUSY_SECONDS) -> None:
        self.url, self._reactor, self._busy = url, reactor, busy_seconds
        self._writer: GroupCommit[Rows | Call] | None = None
        #: What could not be written about a claim, by (scope, key): done first when the key is asked for again. A restart closes them too.
        self.owed: dict[tuple[str, str], Call] = {}

    def open(self) -> None:
        """Make or check the store, migrate it, start the writer. Blocks. StartError: 78, or 1 where waiting may help. Twice is once."""
        if self._writer is None:
            self.engine = open_engine(self.url, self._busy)
            self.statements = Statements(self.engine.dialect)
            self._path = parse_url(self.url).database if self.url.startswith("sqlite:") else None
            self._file = _identity(self._path)
            self._writer = GroupCommit(self.engine, self._write, _probe, self._reactor)

    def _write(self, connection: sa.Connection, jobs: Sequence[Rows | Call]) -> Sequence[object]:
        """In the writer thread: all turns of the batch by one statement for each table, then the other jobs in their order."""
        if _identity(self._path) != self._file:
            # SQLite goes on writing to a file that nobody will find again.
            raise OSError("the store's file was deleted or replaced while the gateway runs; restart it")
        turns = [job for job in jobs if type(job) is Rows]
        if turns:
            connection.exec_driver_sql(self.statements.upsert_session, [job.session for job in turns])
            connection.exec_driver_sql(self.statements.insert_entry, [row for job in turns for row in job.entries])
            if claims := [job.claim for job in turns if job.claim is not None]:
                connection.exec_driver_sql(self.statements.finish_claim, claims)
            if used := [one for job in turns for one in job.usage]:
                connection.exec_driver_sql(self.statements.upsert_usage, summed(used))
            if len(turns) == len(jobs):
                return (None,) * len(jobs)
        return [None if isinstance(job, Rows) else job(connection) for job in jobs]

    def submit(self, job: Rows | Call, settled: Settled) -> None:
        """Write; `settled(result or None, error or None)` in the reactor thread when it is on disk, or will not be."""
        if self._writer is None:
            settled(None, StorageUnavailable("The store is not open."))
        else:
            self._writer.submit(job, settled)

    def call(self, function: Callable[[sa.Connection], T]) -> Deferred[T]:
        """Run `function` in the writer thread; fires with its result once that is on disk. Cancelling only stops the waiting."""
        done: Deferred[T] = Deferred(_keep)

        def settled(result: object, error: StorageUnavailable | None) -> None:
            if not done.called:
                if error is None:
                    done.callback(cast(T, result))
                else:
                    done.errback(error)

        self.submit(function, settled)
        return done

    def read(self, function: Callable[[sa.Connection], T]) -> Deferred[T]:
        """Run `function` in a reader thread on a connection of its own. Fails with StorageUnavailable."""

        def run() -> T:
            with self.engine.connect() as connection:
                return function(connection)

        return deferToThreadPool(cast(IReactorFromThreads, self._reactor), self._reactor.getThreadPool(), run).addErrback(_unreadable)

    @property
    def writable(self) -> bool:
        """Whether the store takes writes, as of the last commit or probe; for readyz."""
        return self._writer is not None and self._writer.writable

    @property
    def stalled_seconds(self) -> float:
        """For how long the writer has not come back from its work; 0 while it is well."""
        return 0.0 if self._writer is None else self._writer.stalled_seconds

    @property
    def waiting(self) -> int:
        """Jobs that wait to be written."""
        return 0 if self._writer is None else self._writer.waiting

    def measure(self, heard: Callable[[float, int], None]) -> None:
        """Tell of each batch: seconds, and jobs. The store must be open."""
        assert self._writer is not None
        self._writer.heard = heard

    @property
    def stats(self) -> Stats:
        """Counts since the start."""
        writer = self._writer
        return Stats(0, 0, 0) if writer is None else Stats(writer.batches, writer.written, writer.failed)

    def close(self) -> Deferred[None]:
        """Write what was submitted, end the thread, close the files."""
        if self._writer is None:
            return succeed(None)
        return self._writer.close()


def _identity(path: str | None) -> tuple[int, int] | None:
    """Which file a SQLite store is at the moment; None: another kind of store, or the file is gone."""
    if path is None:
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _keep(_deferred: Deferred[T]) -> None:
    """A cancel stops the waiting; the job is written all the same."""


def _probe(connection: sa.Connection) -> None:
    connection.exec_driver_sql(PROBE)


def _unreadable(failure: Failure) -> Failure:
    error = failure.value
    if not isinstance(error, sa.exc.SQLAlchemyError):
        return failure
    log.error("Store: cannot be read: {cause}", cause=cause(error))
    wrapped = StorageUnavailable("The store cannot be read at the moment.")
    wrapped.__cause__ = error
    return Failure(wrapped)
