"""Conversations in the database: the TurnStore of the runs. Imports core and database.

A turn is the session's row, the turn's new messages and one assistant message, and the answer of its idempotency key, in one transaction.
Entry ids are made here, so an entry's parent is known before it is written. The lane (one writer per session) and the lock on the state
directory make the histories in memory exact: they are extended when a commit has succeeded, dropped when it failed, and dropped when a session
is changed (sessions.py), so that what was read before a change is never extended after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import msgspec
import sqlalchemy as sa
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger

from mayros.core.images import described, remembered
from mayros.core.keys import SessionKey, new_id
from mayros.core.pending import joined
from mayros.core.ports import Claim, History, Lease, RunResult, Turn
from mayros.core.repair import repair
from mayros.core.session_ports import EntryMeta
from mayros.core.spending import Spent
from mayros.core.usage_ports import Field, day_of
from mayros.errors import ServerShutdown, StorageUnavailable
from mayros.messages import Message, data_of, pack
from mayros.storage.database import Call, Database, Rows
from mayros.storage.engine import cause, parse_url, start_error
from mayros.storage.history import Histories
from mayros.storage.settings import read_settings
from mayros.storage.statements import ClaimRow, EntryRow
from mayros.storage.tables import COMMAND, entries, idempotency
from mayros.storage.usage import spent, used

log = Logger()

T = TypeVar("T")

HISTORY_BYTES = 32 << 20
_encode = msgspec.json.Encoder().encode
_ASSISTANT = '{"role":"assistant"'
#: How the assistant message of a turn without any text is kept: such a turn stays in the transcript and out of prompts.
NO_TEXT = bytes(pack(Message("assistant", ""))).decode()


def wall_ms() -> int:
    """Milliseconds of the wall clock."""
    return time.time_ns() // 1_000_000


class SqlTurnStore:
    """Implements `core.ports.TurnStore`. Call `open` before the reactor runs, then `recover`; `close` when no run is live."""

    def __init__(self, database: Database, *, history_bytes: int = HISTORY_BYTES, now_ms: Callable[[], int] = wall_ms) -> None:
        self._database, self._now_ms = database, now_ms
        self._histories = Histories(history_bytes)
        self._last_id = 0
        #: How many changes there were: what was read meanwhile is not kept.
        self._changes = 0
        #: Sessions with turns or changes on their way to the disk, and who waits for them.
        self._writing: dict[str, int] = {}
        self._waiting: dict[str, list[Deferred[None]]] = {}

    def open(self) -> None:
        """Open the database and find the newest entry. Blocks. Raises StartError."""
        self._database.open()
        engine = self._database.engine
        try:
            with engine.connect() as connection:
                self._last_id = connection.execute(sa.select(sa.func.max(entries.c.id))).scalar() or 0
        except sa.exc.SQLAlchemyError as error:
            raise self._start_error(error) from error

    def recover(self) -> None:
        """Close the runs that were live when the process died: their keys answer with an aborted result. Blocks. Raises StartError."""
        stopped = ServerShutdown("The gateway stopped during this run.")
        column, now = idempotency.c, self._now_ms()
        try:
            with self._database.engine.begin() as connection:
                live = connection.execute(sa.select(column.scope, column.key, column.run_id, column.created_ms).where(column.state == "live")).all()
                closed: list[ClaimRow] = []
                for scope, key, run_id, created_ms in live:
                    result = RunResult(
                        run_id, "", "", "", "aborted", "", started_at_ms=created_ms, ended_at_ms=now, error_code=stopped.code, error=stopped.message
                    )
                    closed.append((_encode(result).decode(), now, scope, key, run_id))
                if closed:
                    connection.exec_driver_sql(self._database.statements.finish_claim, closed)
                    log.info("Store: {count} runs that were live when the gateway stopped are closed as aborted", count=len(closed))
        except sa.exc.SQLAlchemyError as error:
            raise self._start_error(error) from error

    def spent(self, now_ms: int, by: Field = "agent") -> dict[str, Spent]:
        """What today's runs have used, by agent or by another field. Blocks. Raises StartError."""
        try:
            with self._database.engine.connect() as connection:
                return spent(connection, day_of(now_ms), by)
        except sa.exc.SQLAlchemyError as error:
            raise self._start_error(error) from error

    def _start_error(self, error: sa.exc.SQLAlchemyError) -> Exception:
        return start_error(error, parse_url(self._database.url))

    def fresh(self, session: SessionKey) -> History:
        """The empty history of a session that does not exist yet; without I/O. All that a stateless turn needs.

        The id begins with the time, so that sessions made together lie together in the index.
        """
        return History(f"{self._now_ms() & 0xFFFFFFFFFFFF:012x}{new_id()[:12]}", None, ())

    async def history(self, session: SessionKey) -> History:
        """What the session holds, from memory or else read in a thread. Raises StorageUnavailable."""
        key = str(session)
        while key in self._writing:
            # Its last run was cancelled while its turn was on the way to the disk, or somebody changes the session.
            done: Deferred[None] = Deferred()
            self._waiting.setdefault(key, []).append(done)
            await done
        found = self._histories.get(key)
        if found is None:
            changes = self._changes
            found = await self._database.read(lambda connection: self._read(connection, key)) or self.fresh(session)
            if key not in self._writing and changes == self._changes:
                self._histories.put(key, found)
        return found

    def _read(self, connection: sa.Connection, key: str) -> History | None:
        """In a reader thread."""
        statements = self._database.statements
        session = connection.exec_driver_sql(statements.select_session, (key,)).first()
        if session is None:
            return None
        session_id, settings, label = session
        rows = connection.exec_driver_sql(statements.select_entries, (session_id,)).all()
        without_text = {run_id for _, run_id, body, _ in rows if body == NO_TEXT}
        # A command's reply is for the person; the model did not say it.
        messages = repair(msgspec.Raw(body.encode()) for _, run_id, body, kind in rows if run_id not in without_text and kind != COMMAND)
        messages = tuple(described(messages))
        return History(session_id, rows[-1][0] if rows else None, messages, read_settings(settings, label))

    def session_id(self, session: SessionKey) -> str:
        """The id under which a session that is missing is made: the one that its live run has, if there is one."""
        found = self._histories.get(str(session))
        return self.fresh(session).session_id if found is None else found.session_id

    def entry_id(self, now_ms: int) -> int:
        """The id of one more entry; they grow in the order in which they are asked for."""
        self._last_id = max(self._last_id + 1, now_ms << 20)
        return self._last_id

    def change(self, key: str, function: Callable[[sa.Connection], T]) -> Deferred[T]:
        """`Database.call` for what changes the session `key`: its history in memory is forgotten, and read again after the change."""
        self._histories.drop(key)
        self._changes += 1
        self._writing[key] = self._writing.get(key, 0) + 1
        done: Deferred[T] = Deferred(lambda _: None)

        def settled(result: object, error: StorageUnavailable | None) -> None:
            self._written(key)
            if not done.called:
                if error is None:
                    done.callback(cast(T, result))
                else:
                    done.errback(error)

        self._database.submit(cast(Call, function), settled)
        return done

    def finish(
        self, turn: Turn, history: History, result: RunResult, lease: Lease, said: Sequence[msgspec.Raw] = (), principal: str = ""
    ) -> Deferred[None]:
        """Record the turn; fires when it is on disk. Cancelling stops the waiting, not the turn. Fails with StorageUnavailable.

        `said`: what the run made; without it, the result's text.
        The fence of `lease` has nothing to guard here: this process is the only writer.
        """
        try:
            rows, after = self._rows(turn, history, result, said, principal)
        except (ValueError, TypeError, msgspec.MsgspecError) as error:
            log.error("Store: a turn could not be written down: {cause}", cause=cause(error))
            self._owe(turn, result)
            refused = StorageUnavailable()
            refused.__cause__ = error
            return fail(refused)
        key = rows.session[0]
        done: Deferred[None] = Deferred(lambda _: None)
        if not turn.stateless:
            self._writing[key] = self._writing.get(key, 0) + 1

        def settled(_result: object, error: StorageUnavailable | None) -> None:
            if not turn.stateless:
                if error is None:
                    self._histories.extend(key, after, follows=history)
                else:
                    self._histories.drop(key)
                self._written(key)
            if error is not None:
                self._owe(turn, result)
            if not done.called:
                if error is None:
                    done.callback(None)
                else:
                    done.errback(error)

        self._database.submit(rows, settled)
        return done

    def _written(self, key: str) -> None:
        self._writing[key] -= 1
        if not self._writing[key]:
            del self._writing[key]
            for waiter in self._waiting.pop(key, ()):
                if not waiter.called:
                    waiter.callback(None)

    def _owe(self, turn: Turn, result: RunResult) -> None:
        """The client hears that the answer was not recorded; so must whoever repeats the key, once the store is well again."""
        if turn.claim is not None:
            lost = StorageUnavailable()
            result = msgspec.structs.replace(result, outcome="error", text="", finish_reason=None, error_code=lost.code, error=lost.message)
            sql, row = self._database.statements.finish_claim, _claim_row(turn.claim, result)
            self._database.owed[turn.claim.scope, turn.claim.key] = lambda connection: connection.exec_driver_sql(sql, row)

    def _rows(self, turn: Turn, history: History, result: RunResult, said: Sequence[msgspec.Raw], principal: str) -> tuple[Rows, History]:
        """What the turn writes, and the history after it."""
        session_id, parent, run_id, usage = history.session_id, history.leaf, turn.run_id, result.usage
        next_id = max(self._last_id + 1, result.ended_at_ms << 20)
        bodies = [data_of(message) for message in turn.messages]
        rows: list[EntryRow] = []
        for body in bodies:
            kept = bytes(remembered(msgspec.Raw(body))).decode()
            rows.append((next_id, session_id, parent, run_id, "message", kept, None, result.started_at_ms))
            parent, next_id = next_id, next_id + 1
        own = result.turns[-1].usage if result.turns else usage
        meta = EntryMeta(
            result.outcome, result.finish_reason, own, result.provider, result.model, turn.door, turn.metadata or None, result.error_code
        )
        answer = said or (pack(Message("assistant", result.text)),)
        made = [bytes(message).decode() for message in answer]
        # How it ended is told beside the last message that the model wrote: a run may have been ended while its calls were made.
        last = max((place for place, body in enumerate(made) if body.startswith(_ASSISTANT)), default=len(made) - 1)
        notes = {one.place: EntryMeta(usage=one.usage, provider=one.provider, model=one.model) for one in result.turns}
        notes[last] = meta
        for place, message in enumerate(made):
            note = _encode(notes[place]).decode() if place in notes else None
            rows.append((next_id, session_id, parent, run_id, "message", message, note, result.ended_at_ms))
            parent, next_id = next_id, next_id + 1
        self._last_id = leaf = next_id - 1
        session = (
            str(turn.session),
            turn.session.agent_id,
            session_id,
            turn.stateless,
            result.started_at_ms,
            result.ended_at_ms,
            1,
            usage.input + usage.cache_read + usage.cache_write,
            usage.output,
            usage.cache_read,
            usage.cache_write,
            usage.cost_nano,
        )
        messages = history.messages
        if (said or result.text) and not turn.stateless:
            messages = (*joined(messages, [*map(msgspec.Raw, bodies)]), *answer)
        claim = None if turn.claim is None else _claim_row(turn.claim, result)
        return Rows(session, rows, claim, used(turn, result, principal)), History(session_id, leaf, messages, history.settings)

    @property
    def writable(self) -> bool:
        """Whether the store takes writes; for readyz."""
        return self._database.writable

    def close(self) -> Deferred[None]:
        """Write what is on its way and close the database."""
        return self._database.close()


def _claim_row(claim: Claim, result: RunResult) -> ClaimRow:
    return _encode(result).decode(), result.ended_at_ms, claim.scope, claim.key, result.run_id
