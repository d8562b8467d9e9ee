"""Sessions as clients see and change them, on a real SQLite file; and what a run gets of a session after each change."""

import time
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from mayros.core.keys import SessionKey
from mayros.core.ports import SessionSettings
from mayros.core.session_ports import EntryMeta, SessionQuery
from mayros.errors import InvalidRequest, StorageUnavailable
from mayros.events import Usage
from mayros.messages import Message, pack
from mayros.storage import listing, maintenance
from mayros.storage.sessions import SqlSessions
from mayros.storage.turns import SqlTurnStore
from tests.test_storage import ALICE, NOW, StoreTestCase, said, texts

BOB = SessionKey("main", "bob")
INJECTED = EntryMeta(origin="inject")


class SessionsTestCase(StoreTestCase):
    """A store with its sessions."""

    def setUp(self) -> None:
        super().setUp()
        self.sessions = self.over(self.store)

    def over(self, store: SqlTurnStore) -> SqlSessions:
        return SqlSessions(store.database, store, lambda: self.now)  # type: ignore[attr-defined]

    async def keys(self, **query: Any) -> list[str]:
        """The rests of the keys that a list gives."""
        return [row.key.split(":", 2)[2] for row in await self.sessions.list(SessionQuery(**query))]

    async def stateless(self, name: str) -> None:
        key = SessionKey("main", f"openai:{name}")
        await self.finish(self.turn("hi", session=key, stateless=True), self.store.fresh(key), "ho")


class Reading(SessionsTestCase):
    """Lists, rows and transcripts."""

    async def test_row(self) -> None:
        """A session's row has its times, its counts and how its newest turn ended."""
        await self.say("one", "first", usage=Usage(12, 7, cache_read=3))
        await self.say("two", "sec", "aborted", usage=Usage(5, 1), model="m2")
        row = await self.sessions.get("agent:main:alice")
        assert row is not None
        self.assertEqual((row.key, row.agent_id, row.session_id), ("agent:main:alice", "main", (await self.store.history(ALICE)).session_id))
        self.assertEqual((row.created_ms, row.updated_ms, row.turns, row.stateless), (NOW, NOW + 20, 2, False))
        self.assertEqual((row.input_tokens, row.output_tokens), (20, 8))
        self.assertEqual((row.last_outcome, row.last_model, row.last_usage), ("aborted", "m2", Usage(5, 1)))
        self.assertEqual((row.title, row.preview, row.settings), (None, None, SessionSettings()))
        self.assertEqual(await self.sessions.list(SessionQuery()), [row])
        self.assertIsNone(await self.sessions.get("agent:main:nobody"))

    async def test_newest_first_and_bounded(self) -> None:
        """Conversations and stateless sessions come together, newest first, and never more than asked for."""
        await self.say("a", "b", session=SessionKey("main", "first"))
        await self.stateless("second")
        await self.say("a", "b", session=SessionKey("main", "third"))
        await self.stateless("fourth")
        self.assertEqual(await self.keys(), ["openai:fourth", "third", "openai:second", "first"])
        self.assertEqual(await self.keys(limit=3), ["openai:fourth", "third", "openai:second"])
        self.assertEqual(await self.keys(limit=0), ["openai:fourth"])
        self.assertEqual(await self.keys(active_since_ms=self.now - 10), ["openai:fourth", "third"])
        self.assertEqual(await self.sessions.count(), 4)

    async def test_filters(self) -> None:
        """Lists can be narrowed to an agent, a label, whoever spawned the session, or one session id."""
        await self.say("a", "b")
        other = SessionKey("beta", "x")
        await self.say("a", "b", session=other)
        row = await self.sessions.patch(BOB, {"label": "My Bob", "spawned_by": 'agent:main:al"ice', "model": 'spawnedBy":"me'})
        self.assertEqual(await self.keys(agent_id="beta"), ["x"])
        self.assertEqual(await self.keys(label="My Bob"), ["bob"])
        self.assertEqual(await self.keys(label="My"), [])
        self.assertEqual(await self.keys(spawned_by='agent:main:al"ice'), ["bob"])
        self.assertEqual(await self.keys(spawned_by='agent:main:AL"ice'), [])
        self.assertEqual(await self.keys(spawned_by="me"), [])
        self.assertEqual(await self.keys(session_id=row.session_id), ["bob"])
        self.assertEqual(await self.keys(session_id=row.session_id, agent_id="beta"), [])

    async def test_search(self) -> None:
        """The search finds parts of keys and labels in either case; its signs are no wildcards."""
        await self.say("a", "b", session=SessionKey("main", "Straße_1"))
        await self.say("a", "b", session=SessionKey("main", "plain"))
        await self.sessions.patch(BOB, {"label": "100% ÜBER"})
        for search, found in (
            ("PLAI", ["plain"]),
            ("straSSE", []),
            ("STRAßE", ["Straße_1"]),
            ("über", ["bob"]),
            ("0% ", ["bob"]),
            ("0%B", []),
            ("e_1", ["Straße_1"]),
            ("lain_", []),
            ("x" * 100_000, []),
        ):
            self.assertEqual(await self.keys(search=search), found, search[:20])

    async def test_titles_and_previews(self) -> None:
        """The first user message and the newest message, on one line and cut; asked for only."""
        await self.say('Plan a  trip\nto "Oslo" ' + "x" * 3000, "")
        await self.say("and back", "Take the\ttrain. \u0001" + "é" * 3000)
        await self.say("empty", "", "error")
        (row,) = await self.sessions.list(SessionQuery(titles=True, previews=True))
        assert row.title is not None
        assert row.preview is not None
        self.assertTrue(row.title.startswith('Plan a trip to "Oslo" xxx'))
        self.assertTrue(row.title.endswith("x…"))
        self.assertEqual(row.preview, "empty")
        self.assertEqual(len(row.title), 120)
        await self.say("and back", "Take the\ttrain. \u0001" + "é" * 3000)
        (row,) = await self.sessions.list(SessionQuery(previews=True))
        assert row.preview is not None
        self.assertEqual((len(row.preview), row.preview[:18]), (240, "Take the train. \u0001é"))
        self.assertIsNone(row.title)

    def test_opening_of_a_cut_message(self) -> None:
        """A message cut at any place gives its text as far as it goes; one without text gives none."""
        whole = bytes(pack(Message("user", 'say "\u0007" \\ né'))).decode()
        for end in range(len(whole) + 1):
            text = listing.opening(whole[:end], 100)
            self.assertTrue('say "\u0007" \\ né'.startswith(text or ""), (end, text))
        self.assertEqual(listing.opening(whole, 100), 'say "\u0007" \\ né')
        self.assertIsNone(listing.opening('{"role":"assistant","content":null,"tool_calls":[]}', 100))

    async def test_newest_turn_is_that_of_a_model(self) -> None:
        """What the gateway itself added does not hide how the newest turn ended."""
        await self.say("one", "first", "timeout")
        await self.sessions.append(ALICE, said("assistant", "a note"), "inject-1", INJECTED)
        row = await self.sessions.get(str(ALICE))
        assert row is not None
        self.assertEqual((row.last_outcome, row.last_model, row.turns), ("timeout", "m", 1))

    async def test_transcript(self) -> None:
        """The newest entries, oldest first, with everything that was recorded: also turns that prompts leave out."""
        await self.say("one", "", "error", error_code="upstream_error")
        await self.say("two", "second")
        found = await self.sessions.transcript(str(ALICE), 3)
        assert found is not None
        self.assertEqual(found.row, await self.sessions.get(str(ALICE)))
        self.assertEqual([entry.run_id for entry in found.entries], ["run1", "run2", "run2"])
        self.assertEqual([bytes(entry.message) for entry in found.entries[1:]], [bytes(said("user", "two")), bytes(said("assistant", "second"))])
        self.assertIsNone(found.entries[1].meta)
        self.assertEqual((found.entries[0].meta.outcome, found.entries[0].meta.error_code), ("error", "upstream_error"))  # type: ignore[union-attr]
        self.assertEqual(found.entries[2].created_ms, self.now)
        self.assertIsNone(await self.sessions.transcript("agent:main:nobody", 3))

    async def test_transcript_of_giant_messages(self) -> None:
        """However long the messages are, a transcript stays within its bytes; the newest entry is there always."""
        self.patch(listing, "TRANSCRIPT_BYTES", 2500)
        for text in ("x" * 1000, "y" * 1000, "z" * 1000):
            await self.say("?", text)
        found = await self.sessions.transcript(str(ALICE), 100)
        assert found is not None
        self.assertEqual(len(found.entries), 4)
        await self.say("?", "w" * 5000)
        found = await self.sessions.transcript(str(ALICE), 100)
        assert found is not None
        self.assertEqual(len(found.entries), 1)

    async def test_many_stateless_sessions(self) -> None:
        """With 50,000 sessions of stateless requests the list still comes from the indexes and takes milliseconds."""
        session = "INSERT INTO sessions (key, agent_id, session_id, stateless, created_ms, updated_ms, turns, input_tokens, output_tokens) "
        rows = [(f"agent:main:openai:{n * 7919 % 50_000:05}", "main", f"s{n}", True, n, n, 1, 1, 1) for n in range(50_000)]
        entries = [(n + 1, f"s{n}", None, "r", "message", '{"role":"assistant","content":"x"}', '{"outcome":"ok"}', n) for n in range(50_000)]

        def fill(connection: Any) -> None:
            connection.exec_driver_sql(session + "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            connection.exec_driver_sql("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", entries)

        await self.database.call(fill)
        await self.say("Hello?", "Hi.")
        times = []
        for _ in range(5):
            start = time.process_time()
            found = await self.sessions.list(SessionQuery(limit=200))
            times.append(time.process_time() - start)
        self.assertEqual((len(found), found[0].key, found[1].session_id), (200, "agent:main:alice", "s49999"))
        self.assertLess(min(times), 0.03)
        sql = str(listing.select_page(SessionQuery(), "sqlite").compile(self.database.engine, compile_kwargs={"literal_binds": True}))
        plan = [line for *_, line in self.rows(f"EXPLAIN QUERY PLAN {sql}") if " sessions " in line]
        self.assertEqual(len(plan), 2)
        for line, kind in zip(plan, ("conversations", "stateless"), strict=True):
            self.assertIn(f"USING INDEX sessions_{kind}", line)

    async def test_store_that_cannot_be_read(self) -> None:
        """A damaged store is the store's error, not a list that ends early."""
        await self.database.call(lambda connection: connection.exec_driver_sql("DROP TABLE sessions"))
        for reading in (self.sessions.list(SessionQuery()), self.sessions.count(), self.sessions.get("x"), self.sessions.transcript("x", 1)):
            await self.assertFailure(reading, StorageUnavailable)


class Settings(SessionsTestCase):
    """What clients set for a session."""

    async def test_patch(self) -> None:
        """Settings are set one by one, None clears, and what is not named stays; the runs get them."""
        await self.say("Hello?", "Hi.")
        await self.sessions.patch(ALICE, {"thinking_level": "high", "label": "Trip"})
        row = await self.sessions.patch(ALICE, {"model": "fake/two", "thinking_level": None})
        self.assertEqual(row.settings, SessionSettings(label="Trip", model="fake/two"))
        self.assertEqual((row.turns, row.input_tokens), (1, 12))
        self.assertEqual((await self.store.history(ALICE)).settings, row.settings)
        restarted = self.open()
        self.assertEqual((await restarted.history(ALICE)).settings, row.settings)
        self.assertEqual(await self.over(restarted).get(str(ALICE)), row)

    async def test_patch_makes_the_session(self) -> None:
        """Settings may come before the first turn, which then finds them and keeps the session's id."""
        row = await self.sessions.patch(BOB, {"model": "fake/two"})
        self.assertEqual((row.turns, row.created_ms, row.updated_ms, row.last_outcome), (0, NOW, NOW, None))
        history = await self.store.history(BOB)
        self.assertEqual((history.session_id, history.leaf, history.settings.model), (row.session_id, None, "fake/two"))
        await self.say("Hello?", "Hi.", session=BOB)
        after = await self.sessions.get(str(BOB))
        assert after is not None
        self.assertEqual((after.session_id, after.turns, after.settings.model), (row.session_id, 1, "fake/two"))

    async def test_settings_set_while_a_run_is_live(self) -> None:
        """A patch during a run survives the run's commit, in memory and on disk."""
        await self.say("Hello?", "Hi.")
        for between in (True, False):
            history = await self.store.history(ALICE)
            turn = self.turn("more")
            if between:
                await self.sessions.patch(ALICE, {"model": "fake/two"})
                await self.finish(turn, history, "yes")
            else:  # both on their way to the disk together
                await gatherResults([Deferred.fromCoroutine(self.sessions.patch(ALICE, {"model": "fake/three"})), self.finish(turn, history, "yes")])
            expected = "fake/two" if between else "fake/three"
            self.assertEqual((await self.store.history(ALICE)).settings.model, expected)
            self.assertEqual((await self.open().history(ALICE)).settings.model, expected)
        self.assertEqual(len((await self.store.history(ALICE)).messages), 6)

    async def test_hot_session_keeps_its_settings_in_memory(self) -> None:
        """After a patch the history is read once; then settings and messages come from memory, turn after turn."""
        await self.sessions.patch(ALICE, {"model": "fake/two"})
        await self.say("Hello?", "Hi.")
        found: list[Any] = []
        Deferred.fromCoroutine(self.store.history(ALICE)).addCallback(found.append)
        self.assertEqual([(history.settings.model, len(history.messages)) for history in found], [("fake/two", 2)])

    async def test_patch_that_nobody_waits_for(self) -> None:
        """A patch whose client went away is made all the same, and the next run finds it."""
        await self.say("Hello?", "Hi.")
        waiting = Deferred.fromCoroutine(self.sessions.patch(ALICE, {"model": "fake/two"}))
        waiting.addErrback(lambda failure: None)
        waiting.cancel()
        self.assertEqual((await self.store.history(ALICE)).settings.model, "fake/two")

    async def test_label_names_one_session(self) -> None:
        """A label in use is refused by name; its own session may set it again, and a cleared label is free."""
        await self.sessions.patch(ALICE, {"label": "Trip"})
        error = await self.assertFailure(Deferred.fromCoroutine(self.sessions.patch(BOB, {"label": "Trip", "model": "x/y"})), InvalidRequest)
        self.assertEqual(str(error), "label already in use: Trip")
        self.assertIsNone(await self.sessions.get(str(BOB)))
        await self.sessions.patch(ALICE, {"label": "Trip"})
        await self.sessions.patch(ALICE, {"label": None})
        self.assertEqual((await self.sessions.patch(BOB, {"label": "Trip"})).settings.label, "Trip")

    async def test_two_ask_for_a_label_at_once(self) -> None:
        """Of two that want the same label in the same moment one gets it."""
        wanted = [Deferred.fromCoroutine(self.sessions.patch(key, {"label": "Trip"})) for key in (ALICE, BOB)]
        await wanted[0]
        await self.assertFailure(wanted[1], InvalidRequest)

    async def test_mistakes_of_the_caller(self) -> None:
        """A field that does not exist or a value of the wrong type is refused before anything is written."""
        await self.assertFailure(Deferred.fromCoroutine(self.sessions.patch(ALICE, {"colour": "red"})), TypeError)
        await self.assertFailure(Deferred.fromCoroutine(self.sessions.patch(ALICE, {"model": 5})), ValueError)
        self.assertEqual(await self.sessions.count(), 0)

    async def test_patched_session_is_no_longer_stateless(self) -> None:
        """Whoever sets something for the session of a stateless request wants to keep it."""
        await self.stateless("1")
        row = await self.sessions.patch(SessionKey("main", "openai:1"), {"label": "keep"})
        self.assertEqual((row.stateless, row.turns), (False, 1))
        self.assertEqual(await self.keys(), ["openai:1"])


class Changes(SessionsTestCase):
    """Reset, delete, append."""

    async def test_reset(self) -> None:
        """A reset begins anew under the same key: a new id, no messages, counters at zero, settings kept, old entries still stored."""
        await self.say("Hello?", "Hi.")
        before = await self.sessions.patch(ALICE, {"label": "Trip", "model": "fake/two"})
        self.now += 5
        row = await self.sessions.reset(ALICE)
        self.assertNotEqual(row.session_id, before.session_id)
        self.assertEqual((row.turns, row.input_tokens, row.output_tokens, row.last_outcome, row.last_usage), (0, 0, 0, None, None))
        self.assertEqual((row.settings, row.created_ms, row.updated_ms), (before.settings, before.created_ms, self.now))
        history = await self.store.history(ALICE)
        self.assertEqual((history.session_id, history.leaf, history.messages, history.settings), (row.session_id, None, (), row.settings))
        await self.say("New start", "Yes.")
        self.assertEqual(texts(await self.store.history(ALICE)), [("user", "New start"), ("assistant", "Yes.")])
        self.assertEqual(texts(await self.open().history(ALICE)), [("user", "New start"), ("assistant", "Yes.")])
        found = await self.sessions.transcript(str(ALICE), 100)
        assert found is not None
        self.assertEqual((len(found.entries), found.row.turns, found.row.session_id), (2, 1, row.session_id))
        self.assertEqual(self.rows("SELECT count(*) FROM entries"), [(4,)])

    async def test_reset_of_nothing(self) -> None:
        """A reset of a session that is missing makes an empty one."""
        row = await self.sessions.reset(BOB)
        self.assertEqual((await self.store.history(BOB)).session_id, row.session_id)
        self.assertEqual(row.turns, 0)

    async def test_delete(self) -> None:
        """A delete removes the session with the entries of all its ids, and nothing of others; what comes later is a new session."""
        self.patch(maintenance, "ENTRIES", 3)
        for _ in range(3):
            await self.say("Hello?", "Hi.")
        await self.sessions.reset(ALICE)
        await self.say("Hello?", "Hi.")
        await self.sessions.patch(ALICE, {"label": "Trip"})
        await self.say("I stay", "Yes.", session=BOB)
        old = (await self.store.history(ALICE)).session_id
        self.assertTrue(await self.sessions.delete(ALICE))
        self.assertEqual(self.rows("SELECT key FROM sessions"), [("agent:main:bob",)])
        self.assertEqual(self.rows("SELECT count(*) FROM entries"), [(2,)])
        self.assertEqual(self.rows("SELECT * FROM session_history UNION SELECT session_id, '' FROM deleted_sessions"), [])
        history = await self.store.history(ALICE)
        self.assertEqual((history.messages, history.settings), ((), SessionSettings()))
        self.assertNotEqual(history.session_id, old)
        self.assertFalse(await self.sessions.delete(ALICE))
        await self.sessions.patch(BOB, {"label": "Trip"})

    async def test_append(self) -> None:
        """A message that no run made is part of the conversation, of the transcript and of the next prompt."""
        await self.say("Hello?", "Hi.")
        self.now += 5
        entry = await self.sessions.append(ALICE, said("assistant", "a note"), "inject-1", INJECTED)
        self.assertEqual((entry.run_id, entry.created_ms, entry.meta), ("inject-1", self.now, INJECTED))
        expected = [("user", "Hello?"), ("assistant", "Hi."), ("assistant", "a note")]
        self.assertEqual(texts(await self.store.history(ALICE)), expected)
        await self.say("And?", "Well.")
        expected += [("user", "And?"), ("assistant", "Well.")]
        self.assertEqual(texts(await self.store.history(ALICE)), expected)
        self.assertEqual(texts(await self.open().history(ALICE)), expected)
        parents = self.rows("SELECT id, parent_id FROM entries ORDER BY id")
        self.assertEqual([parent for _, parent in parents], [None, *(id_ for id_, _ in parents[:-1])])
        found = await self.sessions.transcript(str(ALICE), 100)
        assert found is not None
        self.assertEqual(found.entries[2], entry)
        self.assertEqual((found.row.turns, found.row.input_tokens), (2, 24))

    async def test_commands_stay_out_of_prompts(self) -> None:
        """A command and its reply are in the transcript, and the model never sees them."""
        await self.say("Hello?", "Hi.")
        await self.sessions.append(ALICE, said("assistant", "Context: 3 tokens"), "r1", EntryMeta(origin="command"))
        history = await self.store.history(ALICE)
        self.assertEqual([bytes(message) for message in history.messages], [bytes(said("user", "Hello?")), bytes(said("assistant", "Hi."))])
        found = await self.sessions.transcript(str(ALICE), 10)
        assert found is not None
        self.assertEqual((len(found.entries), history.leaf), (3, found.entries[-1].id))

    async def test_append_makes_the_session(self) -> None:
        """The answer to a command may be the first message of a session."""
        first = await self.sessions.append(BOB, said("user", "/help"), "r1", EntryMeta(origin="command"))
        second = await self.sessions.append(BOB, said("assistant", "Commands: ..."), "r1", EntryMeta(origin="command"))
        self.assertLess(first.id, second.id)
        found = await self.sessions.transcript(str(BOB), 10)
        assert found is not None
        self.assertEqual([bytes(entry.message) for entry in found.entries], [bytes(said("user", "/help")), bytes(said("assistant", "Commands: ..."))])
        row = await self.sessions.get(str(BOB))
        assert row is not None
        self.assertEqual((row.turns, row.updated_ms, row.last_outcome), (0, self.now, None))

    async def test_append_during_the_first_run(self) -> None:
        """A note that comes before a new session's first turn is committed belongs to the same session."""
        history = await self.store.history(ALICE)
        turn = self.turn("Hello?")
        await self.sessions.append(ALICE, said("assistant", "a note"), "inject-1", INJECTED)
        await self.finish(turn, history, "Hi.")
        expected = [("assistant", "a note"), ("user", "Hello?"), ("assistant", "Hi.")]
        self.assertEqual(texts(await self.store.history(ALICE)), expected)
        self.assertEqual(texts(await self.open().history(ALICE)), expected)

    async def test_history_asked_for_during_a_change(self) -> None:
        """A run that begins while the session is being changed gets the session as it is afterwards."""
        await self.say("Hello?", "Hi.")
        changing = Deferred.fromCoroutine(self.sessions.reset(ALICE))
        history = await self.store.history(ALICE)
        self.assertEqual((history.session_id, history.messages), ((await changing).session_id, ()))

    async def test_history_read_during_a_change_is_not_kept(self) -> None:
        """A read from the disk that a change overtakes does not stay in memory."""
        await self.say("Hello?", "Hi.")
        self.store._histories.drop(str(ALICE))
        reading = Deferred.fromCoroutine(self.store.history(ALICE))
        row = await self.sessions.patch(ALICE, {"model": "fake/two"})
        await reading
        self.assertEqual((await self.store.history(ALICE)).settings, row.settings)

    async def test_many_changes_at_once(self) -> None:
        """Changes of one session that are asked for together are made in their order and share commits."""
        before = self.database.stats.batches
        changes = [Deferred.fromCoroutine(self.sessions.append(ALICE, said("assistant", f"{n}"), f"r{n}", INJECTED)) for n in range(20)]
        await gatherResults(changes)
        self.assertEqual([text for _, text in texts(await self.store.history(ALICE))], [str(n) for n in range(20)])
        self.assertLessEqual(self.database.stats.batches - before, 2)

    async def test_change_that_fails(self) -> None:
        """When the store cannot be written the change is refused, and memory stays true to the disk."""
        await self.say("Hello?", "Hi.")
        await self.database.call(lambda connection: connection.exec_driver_sql("DROP TABLE session_history"))
        await self.assertFailure(Deferred.fromCoroutine(self.sessions.reset(ALICE)), StorageUnavailable)
        self.assertEqual(texts(await self.store.history(ALICE)), [("user", "Hello?"), ("assistant", "Hi.")])
        await self.store.close()
        for change in (self.sessions.reset(ALICE), self.sessions.delete(ALICE), self.sessions.append(ALICE, said("user", "x"), "r", INJECTED)):
            await self.assertFailure(Deferred.fromCoroutine(change), StorageUnavailable)
