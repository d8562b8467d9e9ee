"""One writer thread, many jobs per fsync: a job's callback fires when the job is on disk. Imports errors, core.ports and engine.

What is submitted in one reactor turn leaves together at its end, and one batch is out at a time, so an idle store adds one fsync and two
thread hops, and a busy one gathers larger batches by itself; no timer does better. One bad job must not fail its batch: it is tried again
job by job. A store that cannot be written (full, read-only, locked) fails the batch at once, for every job would wait for the same thing.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import sqlalchemy as sa
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from mayros.core.ports import Clock
from mayros.errors import StorageUnavailable
from mayros.storage.engine import cause

log = Logger()

J = TypeVar("J")

#: Called in the reactor thread with the job's result, or with the reason that it is not on disk.
Settled = Callable[[object, StorageUnavailable | None], None]

#: A batch that is out longer than this means a disk that hangs: the store does not count as writable.
STALL_SECONDS = 10.0
#: How old the last word on whether the store can be written may be.
PROBE_SECONDS = 5.0
#: What is wrong with one job's values, and no sign that the store is.
_BAD_ROW = (sa.exc.IntegrityError, sa.exc.DataError, sa.exc.ProgrammingError, sa.exc.InterfaceError)


class Reactor(Clock, Protocol):
    """What the store needs of Twisted's reactor."""

    def callFromThread(self, callable: Callable[..., object], *args: object, **kw: object) -> object: ...

    def getThreadPool(self) -> ThreadPool: ...


class GroupCommit(Generic[J]):
    """Owns the thread and its connection. All public methods are for the reactor thread.

    `write` runs in the thread, inside a transaction: it takes the connection and a batch and returns one result per job. It may run again
    for the same job after a rollback.
    """

    def __init__(self, engine: sa.Engine, write: Callable[[sa.Connection, Sequence[J]], Sequence[object]], probe: J, reactor: Reactor) -> None:
        self._engine, self._write, self._probe, self._reactor = engine, write, probe, reactor
        self._jobs: list[tuple[J, Settled]] = []
        self._queue: queue.SimpleQueue[list[tuple[J, Settled]] | None] = queue.SimpleQueue()
        self._out_since: float | None = None
        self._ok, self._checked, self._probing = True, reactor.seconds(), False
        self._closers: list[Deferred[None]] = []
        self._closing = self._closed = False
        self._connection: sa.Connection | None = None
        #: Since the start: batches, and jobs in them; their ratio is how many turns share an fsync.
        self.batches = self.written = self.failed = 0
        #: Hears of each batch: for how many seconds it was out, and how many jobs were in it.
        self.heard: Callable[[float, int], None] | None = None
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    @property
    def writable(self) -> bool:
        """Whether the last commit went through. Asking when that is over 5 s ago starts a probe, whose answer the next asking gets."""
        now = self._reactor.seconds()
        if self._closing or (self._out_since is not None and now - self._out_since > STALL_SECONDS):
            return False
        if now - self._checked >= PROBE_SECONDS and not self._probing:
            self._probing = True
            self.submit(self._probe, self._probed)
        return self._ok

    @property
    def waiting(self) -> int:
        """Jobs that wait for the batch that is out."""
        return len(self._jobs)

    @property
    def stalled_seconds(self) -> float:
        """For how long the thread has been away with the batch that is out; infinite where the thread has died; 0 when it waits for work."""
        if not self._closing and not self._thread.is_alive():
            return math.inf
        return 0.0 if self._out_since is None else self._reactor.seconds() - self._out_since

    def _probed(self, _result: object, _error: StorageUnavailable | None) -> None:
        self._probing = False

    def submit(self, job: J, settled: Settled) -> None:
        """Write `job`. Bound the number of unfinished runs, and this queue is bounded."""
        if self._closing:
            settled(None, StorageUnavailable("The store is closed; the answer was not recorded."))
            return
        self._jobs.append((job, settled))
        if self._out_since is None and len(self._jobs) == 1:
            self._reactor.callLater(0, self._hand_over)

    def _hand_over(self) -> None:
        if self._jobs and self._out_since is None:
            batch, self._jobs = self._jobs, []
            self._out_since = self._reactor.seconds()
            self._queue.put(batch)

    def close(self) -> Deferred[None]:
        """Write what was submitted and end the thread; fires when it has ended."""
        if self._closed:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._closers.append(done)
        if not self._closing:
            self._closing = True
            self._hand_over()
            if self._out_since is None:
                self._queue.put(None)
        return done

    def _finish(
        self, batch: list[tuple[J, Settled]], results: Sequence[object], errors: dict[int, BaseException], broken: BaseException | None
    ) -> None:
        """In the reactor thread, once per batch. The next batch is being written while these runs tell their clients."""
        if self.heard is not None and self._out_since is not None:
            self.heard(self._reactor.seconds() - self._out_since, len(batch))
        self._out_since = None
        self._hand_over()
        if self._closing and self._out_since is None:
            self._queue.put(None)
        self.batches += 1
        self.written += len(batch) - len(errors)
        self.failed += len(errors)
        if broken is not None or len(errors) < len(batch):
            self._checked = self._reactor.seconds()
            self._report(broken)
        for number, (_, settled) in enumerate(batch):
            error = None
            if number in errors:
                error = StorageUnavailable()
                error.__cause__ = errors[number]
                if broken is None:
                    log.error("Store: a turn could not be recorded: {cause}", cause=cause(errors[number]))
            try:
                settled(results[number], error)
            except Exception:  # noqa: BLE001  (whoever waits for the other jobs must hear of them all the same)
                log.failure("Store: the callback of a job failed")

    def _report(self, broken: BaseException | None) -> None:
        """One line when the store stops or starts to be writable, not one per turn."""
        if broken is not None and self._ok:
            log.error("Store: cannot be written: {cause}", cause=cause(broken))
        elif broken is None and not self._ok:
            log.info("Store: can be written again")
        self._ok = broken is None

    # The rest runs in the writer thread.

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            results, errors, broken = self._attempt([job for job, _ in batch])
            self._reactor.callFromThread(self._finish, batch, results, errors, broken)  # one wake-up per batch
        self._drop()
        self._engine.dispose()
        self._reactor.callFromThread(self._ended)

    def _ended(self) -> None:
        self._thread.join()
        self._closed = True
        closers, self._closers = self._closers, []
        for done in closers:
            done.callback(None)

    def _attempt(self, jobs: list[J]) -> tuple[Sequence[object], dict[int, BaseException], BaseException | None]:
        """The batch's results, the errors by position, and what keeps the store from being written, if anything does."""
        try:
            return self._commit(jobs), {}, None
        except Exception as error:  # noqa: BLE001  (handed to whoever waits for the jobs)
            first = error
        results: list[object] = [None] * len(jobs)
        if not self._is_bad_row(first):
            self._drop()
            return results, dict.fromkeys(range(len(jobs)), first), first
        if len(jobs) == 1:
            return results, {0: first}, None
        errors: dict[int, BaseException] = {}
        for number, job in enumerate(jobs):
            try:
                results[number] = self._commit([job])[0]
            except Exception as error:  # noqa: BLE001  (as above)
                errors[number] = error
                if not self._is_bad_row(error):
                    self._drop()
                    errors.update(dict.fromkeys(range(number, len(jobs)), error))
                    return results, errors, error
        return results, errors, None

    @staticmethod
    def _is_bad_row(error: BaseException) -> bool:
        if isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated:
            return False
        return isinstance(error, _BAD_ROW) or not isinstance(error, (sa.exc.SQLAlchemyError, OSError))

    def _commit(self, jobs: Sequence[J]) -> Sequence[object]:
        if self._connection is None:
            self._connection = self._engine.connect()
        with self._connection.begin():
            return self._write(self._connection, jobs)

    def _drop(self) -> None:
        """Forget the connection: the next batch starts on a fresh one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.invalidate()
                connection.close()
            except sa.exc.SQLAlchemyError as error:
                log.warn("Store: closing a broken connection failed: {cause}", cause=cause(error))
