"""The store: turns that survive, failures that stay small, and a start that refuses what it cannot use."""

import errno
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import psycopg
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mayros.config.schema import Stateless
from mayros.config.section import Milliseconds
from mayros.core.claim_ports import Done, Live, New
from mayros.core.keys import SessionKey
from mayros.core.ports import Claim, History, Lease, RunResult, SessionSettings, Turn
from mayros.core.routing import Agent
from mayros.core.session_ports import SessionQuery
from mayros.errors import StartError, StorageUnavailable
from mayros.events import Usage
from mayros.messages import Message, pack, unpack
from mayros.storage import listing, maintenance, migrate
from mayros.storage.database import Database
from mayros.storage.engine import default_url, make_engine, parse_url, start_error
from mayros.storage.history import Histories
from mayros.storage.idempotency import SqlIdempotency
from mayros.storage.maintenance import CHUNK, Maintenance
from mayros.storage.migrate import open_engine
from mayros.storage.statements import Statements
from mayros.storage.tables import metadata
from mayros.storage.turns import SqlTurnStore

AGENT = Agent("main", None, None, "/nowhere", (), "", {}, 600.0, 20_000, 150_000, None, None)
ALICE = SessionKey("main", "alice")
NOW = 1_700_000_000_000


def said(role: str, text: str) -> msgspec.Raw:
    """A canonical message."""
    return pack(Message(role, text))  # type: ignore[arg-type]


def texts(history: History) -> list[tuple[str, str]]:
    """(role, text) of what a prompt would get."""
    return [(message.role, message.content) for message in map(unpack, history.messages)]  # type: ignore[misc]


class StoreTestCase(TestCase):
    """A store in a temporary folder, on the real reactor with its real writer thread."""

    empty: str | None = None

    def setUp(self) -> None:
        self.folder = self.mktemp()
        os.mkdir(self.folder)
        if StoreTestCase.empty is None:  # migrating anew for each test would take most of the time
            StoreTestCase.empty = os.path.abspath(self.mktemp())
            os.mkdir(StoreTestCase.empty)
            open_engine(default_url(StoreTestCase.empty)).dispose()
        shutil.copy(os.path.join(StoreTestCase.empty, "mayros.db"), self.folder)
        self.url = default_url(os.path.abspath(self.folder))
        self.path = os.path.join(self.folder, "mayros.db")
        self.now = NOW
        self.runs = 0
        self.store = self.open()

    def open(self, url: str | None = None, **options: Any) -> SqlTurnStore:
        """One more store, closed at the end of the test."""
        database = Database(url or self.url, reactor, busy_seconds=0.2)  # type: ignore[arg-type]
        store = SqlTurnStore(database, now_ms=lambda: self.now, **options)
        store.database = database  # type: ignore[attr-defined]
        store.open()
        self.addCleanup(store.close)
        return store

    @property
    def database(self) -> Database:
        return self.store.database  # type: ignore[attr-defined, no-any-return]

    def turn(self, *user: str, session: SessionKey = ALICE, stateless: bool = False, claim: Claim | None = None) -> Turn:
        """A turn whose new messages are the user's `user`."""
        self.runs += 1
        messages = tuple(said("user", text) for text in user)
        return Turn(f"run{self.runs}", AGENT, session, stateless, messages, "chat", claim=claim)

    def result(self, turn: Turn, history: History, text: str, outcome: str = "ok", **more: Any) -> RunResult:
        """How the turn's run ended."""
        self.now += 10
        values: dict[str, Any] = {"usage": Usage(12, 7), "provider": "mock", "model": "m", **more}
        return RunResult(
            turn.run_id,
            str(turn.session),
            history.session_id,
            "main",
            outcome,
            text,
            started_at_ms=self.now - 10,
            ended_at_ms=self.now,
            **values,  # type: ignore[arg-type]
        )

    def finish(self, turn: Turn, history: History, text: str, outcome: str = "ok", **more: Any) -> Deferred[None]:
        return self.store.finish(turn, history, self.result(turn, history, text, outcome, **more), Lease(str(turn.session), 1))

    async def say(self, user: str, text: str, outcome: str = "ok", session: SessionKey = ALICE, **more: Any) -> None:
        """A whole turn, from its history to the disk."""
        await self.finish(self.turn(user, session=session), await self.store.history(session), text, outcome, **more)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What another program sees in the file."""
        connection = sqlite3.connect(self.path)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()


class Turns(StoreTestCase):
    """What was acknowledged is there, once."""

    async def test_survives_a_crash(self) -> None:
        """An acknowledged turn is there after a crash: the files as they are at that moment open clean and hold it once."""
        await self.say("Hello?", "Hi.")
        crashed = self.mktemp()
        shutil.copytree(self.folder, crashed)
        again = self.open(default_url(os.path.abspath(crashed)))
        again.recover()
        self.assertEqual(texts(await again.history(ALICE)), [("user", "Hello?"), ("assistant", "Hi.")])

    async def test_memory_and_disk_agree(self) -> None:
        """A history that grew in memory is the one that a restarted gateway reads from the disk, leaf and session id included."""
        for n in range(3):
            await self.say(f"question {n}", f"answer {n}")
        kept = await self.store.history(ALICE)
        read = await self.open().history(ALICE)
        self.assertEqual((read.session_id, read.leaf, texts(read)), (kept.session_id, kept.leaf, texts(kept)))
        self.assertEqual(len(read.messages), 6)

    async def test_no_thread_for_a_hot_session(self) -> None:
        """The history of a session in use comes from memory, without waiting."""
        await self.say("Hello?", "Hi.")
        found: list[History] = []
        Deferred.fromCoroutine(self.store.history(ALICE)).addCallback(found.append)
        self.assertEqual(len(found), 1)

    async def test_what_is_recorded(self) -> None:
        """Entries form a chain, the assistant's carries how the run ended, and the session counts turns and tokens."""
        await self.say("one", "first", finish_reason="stop")
        await self.say("two", "sec", "error", error_code="upstream_error")
        entries = self.rows("SELECT id, parent_id, run_id, body, meta FROM entries ORDER BY id")
        self.assertEqual([parent for _, parent, *_ in entries], [None, *(row[0] for row in entries[:-1])])
        self.assertEqual([row[2] for row in entries], ["run1", "run1", "run2", "run2"])
        self.assertEqual(entries[0][3:], ('{"role":"user","content":"one"}', None))
        meta = msgspec.json.decode(entries[1][4])
        usage = meta.pop("usage")
        self.assertEqual((usage["input"], usage["output"]), (12, 7))
        self.assertEqual(meta, {"outcome": "ok", "finish_reason": "stop", "provider": "mock", "model": "m", "door": "chat"})
        self.assertEqual(msgspec.json.decode(entries[3][4])["error_code"], "upstream_error")
        session = self.rows("SELECT key, agent_id, stateless, created_ms, updated_ms, turns, input_tokens, output_tokens FROM sessions")
        self.assertEqual(session, [("agent:main:alice", "main", 0, NOW, NOW + 20, 2, 24, 14)])

    async def test_turns_of_one_reactor_turn_share_a_commit(self) -> None:
        """Thirty-two turns that end together cost one batch."""
        keys = [SessionKey("main", f"user{n}") for n in range(32)]
        before = self.database.stats
        await gatherResults([self.finish(self.turn("hi", session=key), self.store.fresh(key), "ho") for key in keys])
        after = self.database.stats
        self.assertEqual((after.batches - before.batches, after.written - before.written), (1, 32))

    async def test_entry_ids_grow_when_the_clock_does_not(self) -> None:
        """A clock that is set back a day does not disturb the order of a session."""
        await self.say("one", "1")
        self.now -= 86_400_000
        await self.say("two", "2")
        self.now -= 86_400_000
        self.store = self.open()
        await self.say("three", "3")
        self.assertEqual([text for _, text in texts(await self.open().history(ALICE))], ["one", "1", "two", "2", "three", "3"])

    async def test_turn_without_text_is_left_out_of_prompts(self) -> None:
        """A turn that ended without text stays in the transcript and out of prompts; one that failed with partial text stays in both."""
        await self.say("one", "")
        await self.say("two", "half an ans", "aborted")
        await self.say("three", "", "error")
        expected = [("user", "two"), ("assistant", "half an ans")]
        self.assertEqual(texts(await self.store.history(ALICE)), expected)
        restarted = self.open()
        self.assertEqual(texts(await restarted.history(ALICE)), expected)
        self.assertEqual((await restarted.history(ALICE)).leaf, (await self.store.history(ALICE)).leaf)
        self.assertEqual(len(self.rows("SELECT id FROM entries")), 6)

    async def test_cancel_stops_the_waiting_only(self) -> None:
        """A run cancelled while its turn is on the way does not lose it, and the session's next turn follows it."""
        waiting = self.finish(self.turn("Hello?"), await self.store.history(ALICE), "Hi.")
        waiting.cancel()
        await self.assertFailure(waiting, CancelledError)
        self.assertEqual(texts(await self.store.history(ALICE)), [("user", "Hello?"), ("assistant", "Hi.")])

    async def test_stateless_turns_stay_out_of_memory(self) -> None:
        """A stateless request is on disk, and the memory for histories is not spent on it."""
        key = SessionKey("main", "openai:1")
        await self.finish(self.turn("hi", session=key, stateless=True), self.store.fresh(key), "ho")
        self.assertEqual(self.rows("SELECT key, stateless, turns FROM sessions"), [("agent:main:openai:1", 1, 1)])
        self.assertEqual(self.store._histories.used_bytes, 0)

    async def test_close_writes_what_is_on_its_way(self) -> None:
        """Closing waits for turns that were handed in; later ones are refused, and closing twice is harmless."""
        waiting = self.finish(self.turn("Hello?"), self.store.fresh(ALICE), "Hi.")
        await gatherResults([self.store.close(), self.store.close()])
        await waiting
        self.assertEqual(len(self.rows("SELECT id FROM entries")), 2)
        await self.assertFailure(self.finish(self.turn("late"), self.store.fresh(ALICE), "x"), StorageUnavailable)
        self.assertFalse(self.store.writable)


class Failures(StoreTestCase):
    """One bad turn, or a store that cannot be written, does little harm."""

    async def test_bad_row_fails_alone(self) -> None:
        """A provider that reports an absurd token count spoils its own turn and not those beside it."""
        keys = [SessionKey("main", f"user{n}") for n in range(3)]
        good, bad, other = (
            self.finish(self.turn("hi", session=key), self.store.fresh(key), "ho", usage=Usage(10**30 if n == 1 else 1, 1))
            for n, key in enumerate(keys)
        )
        await self.assertFailure(bad, StorageUnavailable)
        await gatherResults([good, other])
        self.assertEqual(self.rows("SELECT key FROM sessions ORDER BY key"), [("agent:main:user0",), ("agent:main:user2",)])
        self.assertTrue(self.store.writable)

    async def test_text_that_is_no_utf8_fails_alone(self) -> None:
        """An answer that cannot be encoded is refused as the store's failure, without touching anything else."""
        await self.assertFailure(self.finish(self.turn("hi"), self.store.fresh(ALICE), "\ud800"), StorageUnavailable)
        await self.say("Hello?", "Hi.")

    async def test_memory_forgets_a_failed_turn(self) -> None:
        """After a turn that could not be recorded, the session's history is what the disk holds."""
        await self.say("one", "1")
        await self.assertFailure(self.finish(self.turn("two"), await self.store.history(ALICE), "2", usage=Usage(10**30)), StorageUnavailable)
        await self.say("three", "3")
        expected = [("user", "one"), ("assistant", "1"), ("user", "three"), ("assistant", "3")]
        self.assertEqual(texts(await self.store.history(ALICE)), expected)
        self.assertEqual(texts(await self.open().history(ALICE)), expected)

    async def test_locked_store_does_not_block_the_reactor(self) -> None:
        """While another process holds the database, timers run, the turn fails as unavailable, readyz turns red, and it all passes."""
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        ticks: list[None] = []

        def tick() -> None:
            ticks.append(None)
            nonlocal timer
            timer = reactor.callLater(0.01, tick)  # type: ignore[attr-defined]

        timer = reactor.callLater(0, tick)  # type: ignore[attr-defined]
        failed = await gatherResults(
            [self.assertFailure(self.finish(self.turn("hi"), self.store.fresh(ALICE), "ho"), StorageUnavailable) for _ in "abc"]
        )
        timer.cancel()
        self.assertGreater(len(ticks), 5)
        self.assertIn("locked", str(failed[0].__cause__))
        self.assertFalse(self.store.writable)
        other.execute("ROLLBACK")
        await self.say("Hello?", "Hi.")
        self.assertTrue(self.store.writable)

    async def test_full_disk(self) -> None:
        """On a full disk the turn is refused and nothing of it is kept; with space again the next turn is recorded."""
        pages = await self.database.call(lambda connection: connection.exec_driver_sql("PRAGMA page_count").scalar())
        await self.database.call(lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count={pages}"))
        large = self.finish(self.turn("x" * 100_000), self.store.fresh(ALICE), "ho")
        error = await self.assertFailure(large, StorageUnavailable)
        self.assertIn("full", str(error.__cause__))
        self.assertFalse(self.store.writable)
        self.assertEqual(self.rows("SELECT * FROM entries"), [])
        await self.say("x" * 100_000, "Hi.")  # on a new connection, which has no such limit
        self.assertTrue(self.store.writable)

    async def test_damage_found_at_run_time(self) -> None:
        """Pages that are overwritten while the gateway runs make turns fail as unavailable; the file is not made anew."""
        await self.say("Hello?", "Hi.")
        await self.store.close()
        self.store = self.open()
        with open(self.path, "r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (os.path.getsize(self.path) - 4096))
        await self.assertFailure(Deferred.fromCoroutine(self.store.history(ALICE)), StorageUnavailable)
        await self.assertFailure(self.finish(self.turn("hi"), self.store.fresh(ALICE), "ho"), StorageUnavailable)
        self.assertFalse(self.store.writable)

    async def test_deleted_file_is_not_made_anew(self) -> None:
        """A store whose file vanishes at run time fails; no empty file takes its place."""
        await self.assertFailure(self.database.call(lambda connection: connection.exec_driver_sql("SELECT * FROM nothing")), StorageUnavailable)
        os.unlink(self.path)
        await self.assertFailure(self.finish(self.turn("hi"), self.store.fresh(ALICE), "ho"), StorageUnavailable)
        self.assertFalse(os.path.exists(self.path))

    async def test_a_replaced_file_takes_no_turns(self) -> None:
        """SQLite would go on writing to the deleted file, and acknowledge turns that nobody finds after a restart."""
        await self.say("Hello?", "Hi.")
        os.rename(self.path, self.path + ".away")
        await self.assertFailure(self.finish(self.turn("hi"), self.store.fresh(ALICE), "ho"), StorageUnavailable)
        self.assertFalse(self.store.writable)
        os.rename(self.path + ".away", self.path)
        await self.finish(self.turn("hi"), self.store.fresh(ALICE), "ho")

    async def test_no_conversation_in_an_error(self) -> None:
        """What the log gets of a failed statement has no message text in it."""
        await self.database.call(lambda connection: connection.exec_driver_sql("DROP TABLE entries"))
        error = await self.assertFailure(self.finish(self.turn("my secret"), self.store.fresh(ALICE), "ho"), StorageUnavailable)
        self.assertIn("entries", str(error.__cause__))
        self.assertNotIn("my secret", str(error.__cause__))


class Readiness(SynchronousTestCase):
    """What readyz asks, on a clock."""

    def test_probe(self) -> None:
        """With no commit for five seconds, asking starts one probe; its answer is what the next asking gets."""
        folder = self.mktemp()
        os.mkdir(folder)
        clock = ThreadlessClock()
        database = Database(default_url(os.path.abspath(folder)), clock, busy_seconds=0.05)  # type: ignore[arg-type]
        self.assertFalse(database.writable)
        database.open()
        self.addCleanup(lambda: clock.run_until(database.close()))
        self.assertTrue(database.writable)
        clock.advance(4.9)
        self.assertTrue(database.writable)
        self.assertEqual(clock.getDelayedCalls(), [])
        other = sqlite3.connect(os.path.join(folder, "mayros.db"), isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        clock.advance(0.1)
        self.assertTrue(database.writable)
        clock.run_once()
        self.assertFalse(database.writable)
        other.execute("ROLLBACK")
        clock.advance(5)
        self.assertFalse(database.writable)
        clock.run_once()
        self.assertTrue(database.writable)

    def test_hanging_disk(self) -> None:
        """A commit that has not come back for ten seconds means not ready, whatever the last one said."""
        folder = self.mktemp()
        os.mkdir(folder)
        clock = ThreadlessClock()
        database = Database(default_url(os.path.abspath(folder)), clock)  # type: ignore[arg-type]
        database.open()
        self.addCleanup(lambda: clock.run_until(database.close()))
        done = database.call(lambda _: None)
        clock.advance(0)
        clock.advance(10.5)
        self.assertFalse(database.writable)
        clock.run_until(done)
        self.assertTrue(database.writable)


class ThreadlessClock(Clock):
    """A clock that takes the writer's calls when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        import queue

        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def callFromThread(self, function: Any, *arguments: Any) -> None:
        self._calls.put((function, arguments))

    def run_once(self) -> None:
        """Hand over what is submitted and take the writer's next call."""
        self.advance(0)
        function, arguments = self._calls.get(timeout=5)
        function(*arguments)

    def run_until(self, done: "Deferred[Any]") -> None:
        """Take calls until `done` has fired."""
        while not done.called:
            self.run_once()


class Opening(SynchronousTestCase):
    """A store that cannot work ends the start with one line that names it."""

    def setUp(self) -> None:
        self.folder = os.path.abspath(self.mktemp())
        os.mkdir(self.folder)
        self.path = os.path.join(self.folder, "mayros.db")
        self.url = default_url(self.folder)

    def make(self) -> None:
        """A sound store with some pages of content."""
        engine = open_engine(self.url)
        with engine.begin() as connection:
            for n in range(200):
                connection.exec_driver_sql("INSERT INTO entries VALUES (?, 's', NULL, 'r', 'message', ?, NULL, 0)", (n, "x" * 500))
        engine.dispose()

    def refused(self, status: int = 78) -> str:
        error = self.assertRaises(StartError, open_engine, self.url, 0.05)
        self.assertEqual(error.status, status)
        self.assertIn(self.path, str(error))
        self.assertNotIn("\n", str(error))
        return str(error)

    def test_new_store_is_private(self) -> None:
        """The file, its log and its index are readable by the owner only, and write-ahead logging and full syncs are on."""
        os.umask(old := os.umask(0))
        self.addCleanup(os.umask, old)
        os.umask(0)
        engine = open_engine(self.url)
        self.addCleanup(engine.dispose)
        with engine.connect() as connection:
            self.assertEqual(connection.exec_driver_sql("PRAGMA journal_mode").scalar(), "wal")
            self.assertEqual(connection.exec_driver_sql("PRAGMA synchronous").scalar(), 2)
            modes = {name: oct(stat.S_IMODE(os.stat(os.path.join(self.folder, name)).st_mode)) for name in os.listdir(self.folder)}
        self.assertEqual(modes, {"mayros.db": "0o600", "mayros.db-wal": "0o600", "mayros.db-shm": "0o600"})

    def test_not_a_database(self) -> None:
        """A file of something else is refused and left as it is."""
        with open(self.path, "wb") as file:
            file.write(b"hello " * 2000)
        self.assertIn("damaged", self.refused())
        self.assertEqual(os.path.getsize(self.path), 12_000)

    def test_overwritten_header(self) -> None:
        """A database whose first bytes were overwritten is refused."""
        self.make()
        with open(self.path, "r+b") as file:
            file.write(b"\0" * 100)
        self.assertIn("damaged", self.refused())

    def test_truncated(self) -> None:
        """A database that lost its end is refused."""
        self.make()
        os.truncate(self.path, 8192)
        self.assertIn("damaged", self.refused())

    def test_empty_file(self) -> None:
        """A file of 0 bytes is damage, not a new store: new ones are renamed into place complete."""
        open(self.path, "wb").close()
        self.assertIn("0 bytes", self.refused())
        self.assertEqual(os.path.getsize(self.path), 0)

    def test_log_without_its_file(self) -> None:
        """A log left alone is refused: a new file beside it would be corrupted by it."""
        open(self.path + "-wal", "wb").close()
        self.assertIn("missing", self.refused())
        self.assertFalse(os.path.exists(self.path))

    def test_missing_table(self) -> None:
        """A store at the right revision that lost a table is refused."""
        self.make()
        connection = sqlite3.connect(self.path)
        connection.execute("DROP TABLE entries")
        connection.close()
        clock = ThreadlessClock()
        database = Database(self.url, clock)  # type: ignore[arg-type]
        self.addCleanup(lambda: clock.run_until(database.close()))
        error = self.assertRaises(StartError, SqlTurnStore(database).open)
        self.assertIn(self.path, str(error))
        self.assertIn("entries", str(error))

    def test_interrupted_first_start(self) -> None:
        """What a first start left half made is made anew."""
        with open(self.path + ".new", "wb") as file:
            file.write(b"half")
        self.make()
        self.assertEqual(sorted(os.listdir(self.folder)), ["mayros.db"])

    def test_other_program(self) -> None:
        """A database of another program is not touched."""
        connection = sqlite3.connect(self.path)
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
        connection.close()
        self.assertIn("bookmarks", self.refused())

    def test_newer_version(self) -> None:
        """A store written by a newer version is refused, naming both revisions."""
        self.make()
        connection = sqlite3.connect(self.path)
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
        connection.commit()
        connection.close()
        self.assertIn("0999", self.refused())

    def test_locked(self) -> None:
        """A store that another process is writing is status 1: it may pass by itself."""
        self.make()
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        self.assertIn("locked", self.refused(1))

    def test_full_disk(self) -> None:
        """A disk without room is status 1: it may pass by itself."""
        url = parse_url(self.url)
        full = sa.exc.OperationalError("UPDATE", None, sqlite3.OperationalError("database or disk is full"))
        for error in (full, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))):
            told = start_error(error, url)
            self.assertEqual((told.status, "no room" in str(told), self.path in str(told)), (1, True, True), error)

    def test_cannot_be_opened(self) -> None:
        """A folder in the file's place, or no folder to put it into, is one line."""
        os.mkdir(self.path)
        self.refused()
        os.rmdir(self.path)
        os.rmdir(self.folder)
        self.refused()

    def test_urls(self) -> None:
        """Only SQLite files and PostgreSQL by psycopg are taken; a password is not repeated."""
        for url in (
            "mysql://me:hush@host/x",
            "postgresql://me:hush@host/x",
            "sqlite://",
            "sqlite:///:memory:",
            "sqlite:///x?mode=memory",
            "nonsense",
        ):
            error = self.assertRaises(StartError, parse_url, url)
            self.assertEqual(error.status, 78)
            self.assertIn("session.store", str(error))
            self.assertNotIn("hush", str(error))
        self.assertEqual(parse_url("postgresql+psycopg://me:hush@host/x").drivername, "postgresql+psycopg")
        self.assertEqual(parse_url("sqlite:///x.db").database, os.path.abspath("x.db"))
        self.assertEqual(parse_url(default_url("/a b/%c")).database, "/a b/%c/mayros.db")

    def test_missing_driver(self) -> None:
        """A PostgreSQL URL without the driver says what to install."""
        try:
            import psycopg as _  # type: ignore[import-not-found]  # noqa: F401
        except ImportError:
            error = self.assertRaises(StartError, make_engine, parse_url("postgresql+psycopg://me:hush@host/x"))
            self.assertIn("psycopg", str(error))

    def test_postgresql_statements(self) -> None:
        """The hot path's SQL can be written for PostgreSQL too, with positional parameters."""
        statements = Statements(psycopg.dialect(paramstyle="format"))
        self.assertIn("ON CONFLICT (key) DO UPDATE", statements.upsert_session)
        self.assertEqual(statements.insert_entry.count("%s"), 8)


class Migrations(SynchronousTestCase):
    """The scripts make what the code expects."""

    def setUp(self) -> None:
        self.folder = os.path.abspath(self.mktemp())
        os.mkdir(self.folder)
        self.url = default_url(self.folder)

    def test_revisions(self) -> None:
        """The list in migrate.py is that of the scripts, oldest first."""
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", os.path.join(os.path.dirname(migrate.__file__), "migrations"))
        config.set_main_option("path_separator", "os")
        scripts = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
        self.assertEqual(tuple(reversed(scripts)), migrate.REVISIONS)

    def test_tables(self) -> None:
        """A migrated store has exactly the tables, columns and indexes of tables.py."""
        from alembic.autogenerate import compare_metadata
        from alembic.runtime.migration import MigrationContext

        engine = open_engine(self.url)
        self.addCleanup(engine.dispose)
        with engine.connect() as connection:
            self.assertEqual(compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata), [])

    def test_store_of_the_first_revision(self) -> None:
        """A store written before there were settings and devices is opened with all it holds, and goes on."""
        path = os.path.join(self.folder, "mayros.db")
        open(path, "wb").close()
        old = make_engine(parse_url(self.url))
        migrate._upgrade(old, "0001")
        with old.begin() as connection:
            connection.exec_driver_sql("INSERT INTO sessions VALUES ('agent:main:alice', 'main', 's1', 0, 5, 9, 1, 12, 7)")
            connection.exec_driver_sql("INSERT INTO sessions VALUES ('agent:main:openai:1', 'main', 's2', 1, 6, 8, 1, 12, 7)")
            body = '{"role":"user","content":"Hello?"}'
            connection.exec_driver_sql("INSERT INTO entries VALUES (1, 's1', NULL, 'r1', 'message', ?, NULL, 5)", (body,))
            meta = '{"outcome":"ok","usage":{"input":12,"output":7},"model":"m"}'
            body = '{"role":"assistant","content":"Hi."}'
            connection.exec_driver_sql("INSERT INTO entries VALUES (2, 's1', 1, 'r1', 'message', ?, ?, 9)", (body, meta))
        self.assertEqual(migrate.current(old), "0001")
        old.dispose()
        engine = open_engine(self.url)
        self.addCleanup(engine.dispose)
        self.assertEqual(migrate.current(engine), migrate.HEAD)
        with engine.connect() as connection:
            alice, stateless = listing.page(connection, SessionQuery(titles=True))
            self.assertEqual((alice.key, alice.title, alice.last_outcome, alice.last_model), ("agent:main:alice", "Hello?", "ok", "m"))
            self.assertEqual((alice.settings, alice.input_tokens, alice.updated_ms), (SessionSettings(), 12, 9))
            self.assertEqual((stateless.key, stateless.stateless), ("agent:main:openai:1", True))

    def test_migration_is_all_or_nothing(self) -> None:
        """A migration that fails half-way leaves the store as it was."""
        path = os.path.join(self.folder, "half.db")
        open(path, "wb").close()
        engine = make_engine(parse_url(f"sqlite:///{path}"))
        self.addCleanup(engine.dispose)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE idempotency (x)")  # the third table: the script fails after two
        self.assertRaises(sa.exc.OperationalError, migrate._upgrade, engine)
        self.assertEqual(sa.inspect(engine).get_table_names(), ["idempotency"])

    def test_daemon_does_not_import_alembic(self) -> None:
        """Opening a store whose schema is current does not import Alembic, which would slow down every start."""
        open_engine(self.url).dispose()
        script = (
            "import sys\nfrom mayros.storage.database import Database\nfrom mayros.storage.turns import SqlTurnStore\n"
            "from twisted.internet.task import Clock\nstore = SqlTurnStore(Database(sys.argv[1], Clock()))\nstore.open()\nstore.recover()\n"
            "print(sorted({name.partition('.')[0] for name in sys.modules} & {'alembic', 'mako', 'rich', 'mcp', 'xllamacpp'}))"
        )
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        environment = {**os.environ, "HOME": self.folder, "PYTHONPATH": root}
        output = subprocess.run([sys.executable, "-c", script, self.url], capture_output=True, text=True, env=environment, check=False)
        self.assertEqual((output.stdout.strip(), output.returncode), ("[]", 0), output.stderr)


class Claims(StoreTestCase):
    """Idempotency keys and turns in one transaction."""

    def setUp(self) -> None:
        super().setUp()
        self.keys = SqlIdempotency(self.database, lambda: self.now)

    async def begin(self, run_id: str) -> Any:
        return await self.keys.begin("owner", "k1", b"digest", run_id, 60)

    async def test_answer_is_committed_with_the_turn(self) -> None:
        """Once the turn is recorded, repeating its key gives the same answer."""
        begun = await self.begin("run1")
        self.assertEqual(begun, New(Claim("owner", "k1")))
        turn, history = self.turn("Hello?", claim=begun.claim), self.store.fresh(ALICE)
        result = self.result(turn, history, "Hi.")
        await self.store.finish(turn, history, result, Lease("", 1))
        self.assertEqual(await self.begin("run2"), Done(result))

    async def test_recover(self) -> None:
        """A key whose run was live when the gateway died answers with an aborted result, and never starts a second run."""
        await self.begin("run1")
        again = self.open()
        again.recover()
        done = await SqlIdempotency(again.database, lambda: self.now).begin("owner", "k1", b"digest", "run2", 60)  # type: ignore[attr-defined]
        self.assertIsInstance(done, Done)
        self.assertEqual((done.result.run_id, done.result.outcome, done.result.error_code), ("run1", "aborted", "server_shutdown"))
        self.assertIn("stopped", done.result.error)

    async def test_turn_that_could_not_be_recorded(self) -> None:
        """When the turn fails to reach the disk, its key answers with that error instead of staying live for ever."""
        begun = await self.begin("run1")
        turn = self.turn("Hello?", claim=begun.claim)
        await self.assertFailure(self.finish(turn, self.store.fresh(ALICE), "Hi.", usage=Usage(10**30)), StorageUnavailable)
        done = await self.begin("run2")
        self.assertEqual((done.result.outcome, done.result.error_code, done.result.text), ("error", "storage_unavailable", ""))
        self.assertEqual(await self.begin("run3"), done)
        self.assertEqual(self.database.owed, {})

    async def test_live_until_the_turn_is_recorded(self) -> None:
        """A repeat that arrives while the run goes on hears of that run."""
        await self.begin("run1")
        self.assertEqual(await self.begin("run2"), Live("run1"))


class Pruning(StoreTestCase):
    """What a stateless request leaves behind does not stay for ever."""

    def setUp(self) -> None:
        super().setUp()
        self.policy = Stateless(ttl=Milliseconds(1000), max_entries=10_000)
        self.clock = Clock()
        self.maintenance = Maintenance(self.database, self.clock, lambda: self.policy, lambda: self.now)

    async def stateless(self, *names: str) -> None:
        for name in names:
            key = SessionKey("main", f"openai:{name}")
            await self.finish(self.turn("hi", session=key, stateless=True), self.store.fresh(key), "ho")

    def keys(self) -> list[str]:
        return [key.rpartition(":")[2] for (key,) in self.rows("SELECT key FROM sessions ORDER BY updated_ms")]

    async def test_older_than_the_limit(self) -> None:
        """Stateless sessions older than the limit go with their entries; conversations stay however old they are."""
        await self.say("Hello?", "Hi.")
        await self.stateless("old")
        self.now += 2000
        await self.stateless("young")
        self.assertEqual(await self.maintenance.sweep(), 1)
        self.assertEqual(self.keys(), ["alice", "young"])
        self.assertEqual(self.rows("SELECT count(*) FROM entries"), [(4,)])

    async def test_more_than_the_limit(self) -> None:
        """Beyond the number that is kept, the oldest stateless sessions go first."""
        await self.say("Hello?", "Hi.")
        await self.stateless("a", "b", "c", "d")
        self.policy = Stateless(ttl=Milliseconds(10**9), max_entries=2)
        self.assertEqual(await self.maintenance.sweep(), 2)
        self.assertEqual(self.keys(), ["alice", "c", "d"])

    async def test_many_go_in_chunks(self) -> None:
        """A sweep of more than one chunk leaves nothing behind, and turns get their place between the chunks."""
        names = [f"s{n}" for n in range(2 * CHUNK + 3)]
        await gatherResults([Deferred.fromCoroutine(self.stateless(name)) for name in names])
        self.now += 10**6
        before = self.database.stats.batches
        self.assertEqual(await self.maintenance.sweep(), len(names))
        self.assertEqual(self.keys(), [])
        self.assertGreaterEqual(self.database.stats.batches - before, 3)

    async def test_pruning_reads_the_index_only(self) -> None:
        """Finding and counting old sessions walks their own small index, however many conversations there are."""
        for statement in (maintenance._OLDEST.limit(1), maintenance._COUNT):
            sql = str(statement.compile(self.database.engine, compile_kwargs={"literal_binds": True}))
            self.assertIn("INDEX sessions_stateless", self.rows(f"EXPLAIN QUERY PLAN {sql}")[0][3])

    async def test_a_session_that_is_continued_is_a_conversation(self) -> None:
        """A stateless session that is later used by its key is kept like any other."""
        await self.stateless("x")
        await self.say("again", "yes", session=SessionKey("main", "openai:x"))
        self.now += 10**6
        self.assertEqual(await self.maintenance.sweep(), 0)
        self.assertEqual(len((await self.store.history(SessionKey("main", "openai:x"))).messages), 4)

    async def test_entries_of_deleted_sessions(self) -> None:
        """What a delete that was interrupted left of a session goes with the next sweep, and nothing else."""
        await self.say("Hello?", "Hi.")
        (gone,) = self.rows("SELECT session_id FROM sessions")
        sql = "INSERT INTO deleted_sessions VALUES (?)"
        await self.database.call(lambda connection: connection.exec_driver_sql("DELETE FROM sessions"))
        await self.database.call(lambda connection: connection.exec_driver_sql(sql, gone))
        self.store = self.open()
        await self.say("Still here?", "Yes.")
        await self.maintenance.sweep()
        self.assertEqual(self.rows("SELECT count(*) FROM entries WHERE body LIKE '%Hello%'"), [(0,)])
        self.assertEqual(len((await self.store.history(ALICE)).messages), 2)
        self.assertEqual(self.rows("SELECT * FROM deleted_sessions"), [])

    async def test_expired_keys(self) -> None:
        """Answers of idempotency keys go when their time is over; a live key stays."""
        keys = SqlIdempotency(self.database, lambda: self.now)
        begun: Any = await keys.begin("owner", "done", b"", "run1", 1)
        await keys.begin("owner", "live", b"", "run9", 1)
        await self.finish(self.turn("hi", claim=begun.claim), self.store.fresh(ALICE), "ho")
        self.now += 2000
        self.assertEqual(await self.maintenance.sweep(), 1)
        self.assertEqual(self.rows("SELECT key FROM idempotency"), [("live",)])

    async def test_more_keys_than_are_kept(self) -> None:
        """Beyond the number that is kept, the answers that would expire first go first; a live key stays."""
        self.patch(maintenance, "MAX_KEYS", 3)
        keys = SqlIdempotency(self.database, lambda: self.now)
        for name in ("live", "a", "b", "c", "d"):
            begun: Any = await keys.begin("owner", name, b"", f"run-{name}", 60)
            if name != "live":
                await keys.finish(begun.claim, RunResult(f"run-{name}", "agent:main:main", "s", "main", "ok", "", self.now, self.now))
            self.now += 1
        self.assertEqual(await self.maintenance.sweep(), 2)
        self.assertEqual(self.rows("SELECT key FROM idempotency ORDER BY created_ms"), [("live",), ("c",), ("d",)])

    async def test_every_minute(self) -> None:
        """A sweep runs at the start and a minute after the last one; stopped, none follows."""
        swept: list[None] = []

        async def sweep() -> int:
            swept.append(None)
            return 0

        self.patch(self.maintenance, "sweep", sweep)
        self.maintenance.start()
        self.assertEqual(len(swept), 1)
        self.clock.advance(60)
        self.assertEqual(len(swept), 2)
        self.maintenance.stop()
        self.clock.advance(600)
        self.assertEqual(len(swept), 2)

    async def test_waits_while_the_store_cannot_be_written(self) -> None:
        """A sweep that meets a locked store gives up quietly and leaves it to the next one."""
        await self.stateless("old")
        self.now += 10**6
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        self.assertEqual(await self.maintenance.sweep(), 0)
        other.execute("ROLLBACK")
        self.assertEqual(await self.maintenance.sweep(), 1)


class HistoriesInMemory(SynchronousTestCase):
    """The cache of hot sessions."""

    def history(self, *sizes: int) -> History:
        return History("s", 1, tuple(msgspec.Raw(b"x" * size) for size in sizes))

    def test_least_recently_used_goes_first(self) -> None:
        """Within the limit all are kept; beyond it the one that was not asked for longest goes."""
        kept = Histories(10_000)
        for key in "abc":
            kept.put(key, self.history(2000))
        kept.get("a")
        kept.put("d", self.history(2500))
        self.assertEqual([key for key in "abcd" if kept.get(key) is not None], ["a", "c", "d"])
        self.assertLessEqual(kept.used_bytes, 10_000)

    def test_bytes_are_counted_once(self) -> None:
        """A history that grows turn by turn is counted as if it had been put whole, and dropping it gives all of that back."""
        grown, whole = Histories(10_000), Histories(10_000)
        first = self.history(10, 20)
        grown.put("a", first)
        second = History("s", 2, (*first.messages, msgspec.Raw(b"x" * 30)))
        grown.extend("a", second, follows=first)
        whole.put("a", second)
        self.assertEqual(grown.used_bytes, whole.used_bytes)
        grown.drop("a")
        self.assertEqual(grown.used_bytes, 0)

    def test_what_has_changed_since_is_forgotten(self) -> None:
        """A history that extends another one than what is kept, or one that was dropped, is not kept: what it follows is not known to be true."""
        kept = Histories(10_000)
        first = self.history(10)
        second = History("s", 2, (*first.messages, msgspec.Raw(b"x" * 30)))
        kept.extend("a", second, follows=first)
        self.assertIsNone(kept.get("a"))
        kept.put("a", self.history(10))
        kept.extend("a", second, follows=first)
        self.assertIsNone(kept.get("a"))
        self.assertEqual(kept.used_bytes, 0)

    def test_too_large_for_the_whole_cache(self) -> None:
        """One giant session does not push out all others."""
        kept = Histories(10_000)
        kept.put("a", self.history(100))
        kept.put("giant", self.history(20_000))
        self.assertIsNotNone(kept.get("a"))
        self.assertIsNone(kept.get("giant"))
