"""The methods `sessions.*` and `status`; at the end over the real store."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mayros.core.keys import SessionKey
from mayros.storage.database import Database
from mayros.storage.idempotency import SqlIdempotency
from mayros.storage.sessions import SqlSessions
from mayros.storage.turns import SqlTurnStore
from tests.test_ws import ADMIN, READ, WRITE, World, ask, tell

MAIN = "agent:main:main"


def picked(entry: Any, *names: str) -> tuple[Any, ...]:
    """Some values of an object."""
    return tuple(entry[name] for name in names)


class Base(SynchronousTestCase):
    """An administrator, and sessions that runs have made."""

    def setUp(self) -> None:
        self.use(None)

    def use(self, changes: dict[str, Any] | None) -> None:
        self.world = World(self, changes)
        self.session, self.link = self.world.connect(ADMIN)
        self.store = self.world.harness.store
        self.count = 0

    def call(self, method: str, **params: Any) -> Any:
        """The payload of an answer."""
        answer = ask(self.session, self.link, method, params)
        self.assertTrue(answer["ok"], answer)
        return answer["payload"]

    def refused(self, method: str, **params: Any) -> str:
        """The message of an INVALID_REQUEST."""
        error = ask(self.session, self.link, method, params)["error"]
        self.assertEqual("INVALID_REQUEST", error["code"])
        message: str = error["message"]
        return message

    def talk(self, key: str = "main", text: str = "hello", answer: str = "hi") -> None:
        """One turn of a session."""
        self.count += 1
        tell(self.session, "chat.send", {"sessionKey": key, "message": text, "idempotencyKey": f"t-{self.count}"})
        self.world.provider.say(answer)
        self.world.provider.stop()
        self.world.clock.advance(1)
        self.link.take()

    def settle(self, seconds: float = 0) -> None:
        """Let the reactor turn."""
        self.world.clock.advance(seconds)
        self.world.clock.advance(0)


class ListTests(Base):
    """Which sessions there are."""

    def keys(self, **params: Any) -> list[str]:
        return [row["key"] for row in self.call("sessions.list", **params)["sessions"]]

    def test_a_row(self) -> None:
        """Counts, the model of the next run and what is set; texts only where they are asked for."""
        self.talk()
        self.call("sessions.patch", key="main", label="x", thinkingLevel="low", model="fake/two")
        payload = self.call("sessions.list")
        self.assertEqual((1, "(multiple)", 1_001_000), (payload["count"], payload["path"], payload["ts"]))
        self.assertEqual({"modelProvider": "fake", "model": "one", "contextTokens": 8192}, payload["defaults"])
        self.assertEqual(
            [{
                "key": MAIN, "kind": "direct", "chatType": "direct", "label": "x", "displayName": "x", "updatedAt": 1_001_000,
                "sessionId": f"s-{MAIN}", "systemSent": True, "abortedLastRun": False, "inputTokens": 7, "outputTokens": 3, "totalTokens": 7,
                "totalTokensFresh": True, "cacheRead": 0, "cacheWrite": 0, "thinkingLevel": "low", "modelProvider": "fake", "model": "two",
                "contextTokens": 200_000,
            }],
            payload["sessions"],
        )  # fmt: skip
        (row,) = self.call("sessions.list", includeDerivedTitles=True, includeLastMessage=True)["sessions"]
        self.assertEqual(("hello", "hi"), (row["derivedTitle"], row["lastMessagePreview"]))

    def test_order_and_limits(self) -> None:
        """Newest first; 200 where nothing is said, never more than 1,000."""
        for name in ("a", "b", "c"):
            self.talk(name)
        self.assertEqual(["agent:main:c", "agent:main:b", "agent:main:a"], self.keys())
        self.assertEqual(["agent:main:c"], self.keys(limit=1))
        self.assertIn("at /limit: must be >= 1", self.refused("sessions.list", limit=0))
        asked = []

        async def listing(query: Any) -> list[Any]:
            asked.append(query.limit)
            return []

        self.world.harness.sessions.list = listing
        self.keys()
        self.keys(limit=10**9)
        self.assertEqual([200, 1000], asked)

    def test_filters(self) -> None:
        """By agent, label, parent, age and words."""
        self.talk("a")
        self.settle(600)
        self.talk("agent:beta:b")
        self.call("sessions.patch", key="agent:beta:b", label="Trip", spawnedBy=MAIN)
        both = ["agent:beta:b", "agent:main:a"]
        for params, expected in (
            ({"includeGlobal": True, "includeUnknown": False}, both),
            ({"agentId": "Beta"}, both[:1]),
            ({"label": "Trip"}, both[:1]),
            ({"label": "trip up"}, []),
            ({"spawnedBy": MAIN}, both[:1]),
            ({"activeMinutes": 5}, both[:1]),
            ({"activeMinutes": 10**15}, both),
            ({"search": "TRIP"}, both[:1]),
            ({"search": " "}, both),
        ):
            self.assertEqual(expected, self.keys(**params), params)

    def test_groups_and_jobs(self) -> None:
        """A group's session says so, the firings of a job are not listed."""
        self.talk("agent:main:chat:group:7")
        self.talk("cron:daily:run:1")
        self.assertEqual(["group"], [row["kind"] for row in self.call("sessions.list")["sessions"]])

    def test_the_store_fails(self) -> None:
        """An error that may be tried again."""
        self.world.harness.sessions.broken = True
        error = ask(self.session, self.link, "sessions.list", {})["error"]
        self.assertEqual(("UNAVAILABLE", True), (error["code"], error["retryable"]))


class PreviewTests(Base):
    """The newest messages of several sessions."""

    def test_items(self) -> None:
        """Role and text, cut; sessions without messages, missing ones and impossible keys have a word of their own."""
        self.talk(text="x" * 100)
        self.call("sessions.patch", key="empty", label="e")
        payload = self.call("sessions.preview", keys=["main", "empty", "nothing", "agent:main"], maxChars=20)
        previews = {preview["key"]: preview for preview in payload["previews"]}
        items = [{"role": "user", "text": "x" * 17 + "..."}, {"role": "assistant", "text": "hi"}]
        self.assertEqual({"key": "main", "status": "ok", "items": items}, previews["main"])
        self.assertEqual(["ok", "empty", "missing", "error"], [preview["status"] for preview in payload["previews"]])

    def test_bounds(self) -> None:
        """The first 64 keys; at least one; not fewer than 20 characters."""
        self.assertEqual(64, len(self.call("sessions.preview", keys=[f"k{n}" for n in range(100)])["previews"]))
        self.talk()
        self.talk()
        self.assertEqual(1, len(self.call("sessions.preview", keys=["main"], limit=1)["previews"][0]["items"]))
        self.assertIn("at /keys: ", self.refused("sessions.preview", keys=[]))
        self.assertIn("at /maxChars: must be >= 20", self.refused("sessions.preview", keys=["a"], maxChars=5))

    def test_a_store_that_fails(self) -> None:
        """Each session says so by itself."""
        self.world.harness.sessions.broken = True
        self.assertEqual([{"key": "main", "status": "error", "items": []}], self.call("sessions.preview", keys=["main"])["previews"])


class ResolveTests(Base):
    """The key behind another name."""

    def test_found(self) -> None:
        """By key, session id or label."""
        self.talk()
        self.call("sessions.patch", key="main", label="x")
        for params in ({"key": "main"}, {"key": "AGENT:main:main"}, {"sessionId": f"s-{MAIN}"}, {"label": "x"}, {"label": "x", "agentId": "main"}):
            self.assertEqual({"ok": True, "key": MAIN}, self.call("sessions.resolve", **params))

    def test_not_found(self) -> None:
        """Nothing, too much, or somebody else's."""
        self.talk()
        self.call("sessions.patch", key="main", label="x")
        for params, words in (
            ({}, "Either key, sessionId, or label is required"),
            ({"key": " "}, "Either key, sessionId, or label is required"),
            ({"key": "main", "label": "x"}, "Provide either key, sessionId, or label (not multiple)"),
            ({"key": "nothing"}, "No session found: nothing"),
            ({"key": "main", "agentId": "beta"}, "No session found: main"),
            ({"label": "x", "spawnedBy": "somebody"}, "No session found: x"),
            ({"sessionId": "s"}, "No session found: s"),
        ):
            self.assertEqual(words, self.refused("sessions.resolve", **params))

    def test_several(self) -> None:
        """Two of one name are no answer."""
        self.talk("a")
        self.talk("b")
        for row in tuple(self.store.rows.values()):
            self.store.rows[row.key] = replace(row, session_id="same")
        self.assertIn("Multiple sessions found for same: ", self.refused("sessions.resolve", sessionId="same"))


class PatchTests(Base):
    """Settings."""

    def test_set_and_clear(self) -> None:
        """Null clears, what is not sent stays; a session that is missing is made."""
        payload = self.call("sessions.patch", key="trip", label=" Trip ", thinkingLevel="ON", responseUsage="on", execAsk="on-miss", spawnDepth=1)
        self.assertEqual((True, "agent:main:trip", "/nonexistent"), (payload["ok"], payload["key"], payload["path"]))
        self.assertEqual({"modelProvider": "fake", "model": "one"}, payload["resolved"])
        entry = payload["entry"]
        self.assertEqual(("Trip", "low", "tokens", "on-miss", 1), picked(entry, "label", "thinkingLevel", "responseUsage", "execAsk", "spawnDepth"))
        self.assertEqual(("s-agent:main:trip", 0, False), (entry["sessionId"], entry["totalTokens"], entry["systemSent"]))
        entry = self.call("sessions.patch", key="trip", thinkingLevel=None, label=None)["entry"]
        self.assertNotIn("label", entry)
        self.assertEqual((None, "tokens"), (entry.get("thinkingLevel"), entry["responseUsage"]))

    def test_models(self) -> None:
        """By full name, alias or an id that only one has; what is not configured is refused."""
        self.use({"agents": {"defaults": {"models": {"fake/two": {"alias": "Big"}}}}})
        for text in ("fake/two", "big", "two"):
            payload = self.call("sessions.patch", key="main", model=text)
            self.assertEqual({"modelProvider": "fake", "model": "two"}, payload["resolved"])
            self.assertEqual(("fake", "two"), (payload["entry"]["providerOverride"], payload["entry"]["modelOverride"]))
        self.assertEqual("fake/two", self.store.rows[MAIN].settings.model)
        self.assertNotIn("modelOverride", self.call("sessions.patch", key="main", model=None)["entry"])
        self.assertTrue(self.refused("sessions.patch", key="main", model="nobody/x").startswith("model not allowed: nobody/x"))

    def test_values_that_cannot_be(self) -> None:
        """Each by its name, and nothing is changed."""
        for params, words in (
            ({}, "must have required property 'key'"),
            ({"key": "a", "bad": 1}, "at root: unexpected property 'bad'"),
            ({"key": "a", "label": "l" * 65}, "at /label: must NOT have more than 64 characters"),
            ({"key": "a", "label": "  "}, "invalid label: empty"),
            ({"key": "a", "label": "a\nb"}, "label must not contain control characters"),
            ({"key": "a", "thinkingLevel": "deep"}, "invalid thinkingLevel (use off|minimal|low|medium|high|xhigh)"),
            ({"key": "a", "verboseLevel": "loud"}, "invalid verboseLevel (use on|full|off)"),
            ({"key": "a", "reasoningLevel": "x"}, "invalid reasoningLevel (use on|off|stream)"),
            ({"key": "a", "elevatedLevel": "x"}, "invalid elevatedLevel"),
            ({"key": "a", "execHost": "moon"}, "invalid execHost (use sandbox|gateway|node)"),
            ({"key": "a", "sendPolicy": "x"}, "invalid sendPolicy (use allow|deny)"),
            ({"key": "a", "groupActivation": 1}, "at /groupActivation: must be string"),
            ({"key": "a", "spawnDepth": -1}, "at /spawnDepth: must be >= 0"),
            ({"key": "agent:nobody:a", "label": "x"}, 'unknown agent id "nobody"'),
            ({"key": "agent:main"}, "key is malformed"),
        ):
            self.assertIn(words, self.refused("sessions.patch", **params))
        self.assertEqual({}, self.store.rows)

    def test_labels_are_unique(self) -> None:
        """Among all sessions; one's own may be set again."""
        self.call("sessions.patch", key="a", label="x")
        self.call("sessions.patch", key="a", label="x")
        self.assertEqual("label already in use: x", self.refused("sessions.patch", key="b", label="x"))

    def test_does_not_wait_for_runs(self) -> None:
        """Settings may change while the session thinks."""
        tell(self.session, "chat.send", {"sessionKey": "main", "message": "m", "idempotencyKey": "k"})
        self.link.take()
        self.assertEqual("high", self.call("sessions.patch", key="main", thinkingLevel="high")["entry"]["thinkingLevel"])

    def test_who_may(self) -> None:
        """Administrators; not chat pages, but the control page."""
        session, link = self.world.connect(READ, WRITE)
        for method in ("sessions.patch", "sessions.reset", "sessions.delete"):
            self.assertEqual("missing scope: operator.admin", ask(session, link, method, {})["error"]["message"])
        for page, refused in (("webchat-ui", True), ("mayros-control-ui", False), ("openclaw-control-ui", False)):
            admitted = self.session.admitted
            assert admitted is not None
            self.session.admitted = replace(admitted, client=replace(admitted.client, id=page, mode="webchat"))
            for action in ("patch", "delete"):
                answer = ask(self.session, self.link, f"sessions.{action}", {"key": "a"})
                self.assertEqual(refused, not answer["ok"])
                if refused:
                    words = f"webchat clients cannot {action} sessions; use chat.send for session-scoped updates"
                    self.assertEqual(words, answer["error"]["message"])


class ResetTests(Base):
    """A new session id under the same key."""

    def test_reset(self) -> None:
        """Counters begin anew, settings stay, the next prompt is empty."""
        self.talk()
        self.call("sessions.patch", key="main", label="x")
        payload = self.call("sessions.reset", key="main", reason="new")
        entry = payload["entry"]
        self.assertEqual(
            (True, MAIN, "s-new-1", 0, 0, "x"),
            (payload["ok"], payload["key"], *(entry[k] for k in ("sessionId", "inputTokens", "totalTokens", "label"))),
        )
        self.assertIs(False, entry["systemSent"])
        self.talk(text="again")
        self.assertEqual(["again"], [message["content"] for message in self.world.provider.seen])
        self.assertIn("at /reason: must be equal to one of", self.refused("sessions.reset", key="main", reason="mood"))

    def test_what_runs_is_aborted(self) -> None:
        """The run and those that wait behind it are recorded as aborted, then the answer comes; the lane is free again."""
        for number in range(2):
            tell(self.session, "chat.send", {"sessionKey": "main", "message": "m", "idempotencyKey": f"k{number}"})
        self.world.provider.say("half")
        self.link.take()
        tell(self.session, "sessions.reset", {"key": "main"})
        self.settle()
        frames = self.link.take()
        chats = {frame["payload"]["runId"]: frame["payload"]["state"] for frame in frames if frame.get("event") == "chat"}
        self.assertEqual({"k0": "aborted", "k1": "aborted"}, chats)
        self.assertEqual([True], [frame["ok"] for frame in frames if frame["type"] == "res"])
        self.assertEqual("The session was reset.", self.store.turns[-1][1].error)
        self.talk()
        self.assertEqual("ok", self.store.turns[-1][1].outcome)

    def test_a_run_that_does_not_end(self) -> None:
        """After 15 seconds: try again; the queue is left."""
        self.store.hold()
        tell(self.session, "chat.send", {"sessionKey": "main", "message": "m", "idempotencyKey": "k"})
        self.world.provider.stop()
        for method in ("sessions.reset", "sessions.delete"):
            key = "main" if method == "sessions.reset" else "agent:beta:x"
            if key != "main":
                tell(self.session, "chat.send", {"sessionKey": key, "message": "m", "idempotencyKey": "k2"})
                self.world.provider.stop()
            self.link.take()
            tell(self.session, method, {"key": key})
            self.settle(14.9)
            self.assertEqual([], [frame for frame in self.link.take() if frame["type"] == "res"])
            self.settle(0.2)
            (answer,) = [frame for frame in self.link.take() if frame["type"] == "res"]
            self.assertEqual("UNAVAILABLE", answer["error"]["code"])
            self.assertTrue(answer["error"]["message"].endswith("is still active; try again in a moment."))
        self.store.commit()
        self.assertTrue(self.call("sessions.reset", key="main")["ok"])

    def test_the_client_leaves(self) -> None:
        """The reset is brought to its end."""
        tell(self.session, "chat.send", {"sessionKey": "main", "message": "m", "idempotencyKey": "k"})
        tell(self.session, "sessions.reset", {"key": "main"})
        self.session.closed()
        self.settle()
        self.assertEqual("s-new-1", self.store.rows[MAIN].session_id)


class DeleteTests(Base):
    """No session and no transcript."""

    def test_delete(self) -> None:
        """Whether there was one is told; nothing is archived."""
        self.talk("trip")
        answer = {"ok": True, "key": "agent:main:trip", "archived": []}
        self.assertEqual({**answer, "deleted": True}, self.call("sessions.delete", key="trip", emitLifecycleHooks=False))
        self.assertEqual({**answer, "deleted": False}, self.call("sessions.delete", key="trip", deleteTranscript=True))
        self.assertEqual([], self.call("sessions.list")["sessions"])

    def test_refused(self) -> None:
        """The main session, and a transcript without its session."""
        for key in ("main", MAIN):
            self.assertEqual(f"Cannot delete the main session ({MAIN}).", self.refused("sessions.delete", key=key))
        self.assertIn("deleteTranscript", self.refused("sessions.delete", key="trip", deleteTranscript=False))
        self.assertTrue(self.call("sessions.delete", key="agent:beta:main")["ok"])

    def test_of_an_agent_that_is_gone(self) -> None:
        """What it has left can be deleted."""
        self.successResultOf(Deferred.fromCoroutine(self.world.harness.sessions.patch(SessionKey("gone", "x"), {})))
        self.assertTrue(self.call("sessions.delete", key="agent:gone:x")["deleted"])


class StatusTests(Base):
    """`status`."""

    def test_for_administrators(self) -> None:
        """Sessions with how full their contexts are, and paths."""
        self.talk()
        self.talk("agent:beta:x")
        payload = self.call("status")
        self.assertEqual({"heartbeat", "channelSummary", "queuedSystemEvents", "sessions", "config", "gateway"}, set(payload))
        self.assertEqual([("main", False), ("beta", False)], [(agent["agentId"], agent["enabled"]) for agent in payload["heartbeat"]["agents"]])
        sessions = payload["sessions"]
        self.assertEqual((2, ["/nonexistent"], {"model": "one", "contextTokens": 8192}), (sessions["count"], sessions["paths"], sessions["defaults"]))
        self.assertEqual(["agent:beta:x", MAIN], [row["key"] for row in sessions["recent"]])
        row = sessions["recent"][1]
        self.assertEqual((7, 8185, 0, 8192, 2000), picked(row, "totalTokens", "remainingTokens", "percentUsed", "contextTokens", "age"))
        self.assertEqual(["system", f"id:s-{MAIN}"], row["flags"])
        self.assertEqual(
            [("main", [MAIN]), ("beta", ["agent:beta:x"])], [(a["agentId"], [r["key"] for r in a["recent"]]) for a in sessions["byAgent"]]
        )

    def test_for_others(self) -> None:
        """How many sessions there are, and nothing about them."""
        self.talk()
        session, link = self.world.connect(READ)
        sessions = ask(session, link, "status")["payload"]["sessions"]
        self.assertEqual((1, [], [], {"model": None, "contextTokens": None}), picked(sessions, "count", "paths", "recent", "defaults"))
        self.assertEqual({("[redacted]", 0)}, {(agent["path"], len(agent["recent"])) for agent in sessions["byAgent"]})
        self.assertIn("unexpected property 'x'", ask(session, link, "status", {"x": 1})["error"]["message"])


class RealStoreTests(TestCase):
    """The same methods over SQLite."""

    async def test_a_session_from_its_first_label_to_its_end(self) -> None:
        """Patched, injected into, listed, previewed, read, reset (by a command once for its key) and deleted."""
        from twisted.internet import reactor

        database = Database(f"sqlite:///{self.mktemp()}.db", reactor)
        turns = SqlTurnStore(database)
        turns.open()
        self.addCleanup(database.close)
        world = World(self)  # type: ignore[arg-type]
        world.gateway.sessions = SqlSessions(database, turns)
        world.gateway.idempotency = SqlIdempotency(database, world.now_ms)
        session, link = world.connect(ADMIN)

        async def call(method: str, **params: Any) -> Any:
            tell(session, method, params)
            while len(session._calls):
                pause: Deferred[None] = Deferred()
                reactor.callLater(0.002, pause.callback, None)  # type: ignore[attr-defined]
                await pause
            (answer,) = [frame for frame in link.take() if frame["type"] == "res"]
            self.assertTrue(answer["ok"], answer)
            return answer["payload"]

        first = await call("sessions.patch", key="trip", label="Trip", thinkingLevel="low")
        await call("chat.inject", sessionKey="trip", message="by hand")
        (row,) = (await call("sessions.list", includeLastMessage=True, search="trip"))["sessions"]
        self.assertEqual(("agent:main:trip", "Trip", "low", "by hand"), picked(row, "key", "label", "thinkingLevel", "lastMessagePreview"))
        self.assertEqual("agent:main:trip", (await call("sessions.resolve", sessionId=row["sessionId"]))["key"])
        (preview,) = (await call("sessions.preview", keys=["trip"]))["previews"]
        self.assertEqual([{"role": "assistant", "text": "by hand"}], preview["items"])
        (message,) = (await call("chat.history", sessionKey="trip"))["messages"]
        self.assertEqual(("assistant", "gateway-injected"), (message["role"], message["model"]))
        again = await call("sessions.reset", key="trip")
        self.assertNotEqual(first["entry"]["sessionId"], again["entry"]["sessionId"])
        self.assertEqual("Trip", again["entry"]["label"])
        self.assertEqual([], (await call("chat.history", sessionKey="trip"))["messages"])
        command = {"sessionKey": "trip", "message": "/new", "idempotencyKey": "k-1"}
        self.assertEqual("started", (await call("chat.send", **command))["status"])
        renewed = (await call("chat.history", sessionKey="trip"))["sessionId"]
        self.assertNotEqual(again["entry"]["sessionId"], renewed)
        self.assertEqual({"runId": "k-1", "status": "ok"}, await call("chat.send", **command))
        self.assertEqual(renewed, (await call("chat.history", sessionKey="trip"))["sessionId"])
        self.assertEqual(1, (await call("status"))["sessions"]["count"])
        self.assertTrue((await call("sessions.delete", key="trip"))["deleted"])
        self.assertEqual(0, (await call("sessions.list"))["count"])
