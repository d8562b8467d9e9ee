"""The sessions of a narrowed token are its own at both doors: it reaches no others, and hears of no others."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from mayros.core.approvals import Question
from mayros.core.keys import SessionKey
from mayros.core.session_ports import EntryMeta
from mayros.messages import Message, pack
from mayros.ws.methods.table import NARROWED
from tests.helpers import TOKEN, chat
from tests.test_token_doors import BOTH, DoorCase
from tests.test_ws import ADMIN, LOCAL, agent_params, ask, tell

APPROVALS = "operator.approvals"
#: Stands in what nobody but Bob (and the gateway's owner) may read.
WORD = "bobs-own-words"
#: Every way to write a session of somebody else's that there is to think of.
KEYS = (
    "main", "x", "token:bob:x", "agent:main:token:bob:x", "agent:main:main", "agent:beta:token:bob:x", "AGENT:main:token:bob:x", " token:bob:x ",
    "agent:main:token:ann:x", "token:ann:token:bob:x", "TOKEN:bob:x", "agent:main:token:bob:openai-user:u", "openai-user:u", "token:bob", "..",
    "agent:main:token:ann:../token:bob:x", "agent:main:x:token:bob:x", "agent:main:%74oken:bob:x", "", "agent:", "token:ann:", "subagent:x",
)  # fmt: skip


class HttpTests(DoorCase):
    """Over HTTP."""

    def session(self) -> str:
        return str(self.harness.store.turns[-1][0].session)

    def test_names(self) -> None:
        """Of sessions by header, by `user`, and of none: all in its space; what the gateway says is taken as it is."""
        secret = self.create()
        for lines, body, key in (
            (("x-mayros-session-key: work",), chat(), "agent:main:token:ann:work"),
            (("x-mayros-session-key: main",), chat(), "agent:main:token:ann:main"),
            (("x-mayros-session-key: agent:beta:work",), chat(), "agent:beta:token:ann:work"),
            (("x-mayros-session-key: agent:main:token:bob:x",), chat(), "agent:main:token:ann:token:bob:x"),
            ((), chat(user="u1"), "agent:main:token:ann:openai-user:u1"),
        ):
            answer = self.http(secret, *lines, body=body)
            self.assertEqual((answer.status, self.session()), (200, key))
            told = unquote(answer.headers["x-mayros-session-key"])
            self.assertEqual((self.http(secret, f"x-mayros-session-key: {told}").status, self.session()), (200, key))
        self.http(secret)
        self.assertTrue(self.session().startswith("agent:main:token:ann:openai:"))
        self.http(TOKEN, "x-mayros-session-key: work")
        self.assertEqual(self.session(), "agent:main:work")

    def test_memory(self) -> None:
        """Two tokens that say the same name do not share what was said."""
        ann, bob = self.create(), self.create("bob")
        for secret, word in ((ann, "one"), (bob, "two"), (ann, "three"), (TOKEN, "four")):
            self.http(secret, "x-mayros-session-key: work", body=chat(word))
        seen = [[message["content"] for message in self.messages(number)] for number in range(4)]
        self.assertEqual(seen, [["one"], ["two"], ["one", "ok", "three"], ["four"]])

    def messages(self, number: int) -> list[Any]:
        return [json.loads(bytes(raw)) for raw in self.harness.provider.requests[number].messages]

    def test_too_long(self) -> None:
        """A name that has no room for the space is refused."""
        answer = self.http(self.create(), "x-mayros-session-key: " + "x" * 500)
        self.assertEqual((answer.status, answer.error["param"]), (400, "x-mayros-session-key"))


class SocketCase(DoorCase):
    """Ann's connection, and a session of Bob's in which something was said."""

    def setUp(self) -> None:
        super().setUp()
        self.bob = self.create("bob")
        self.key = SessionKey("main", "token:bob:x")
        for key in (self.key, SessionKey("main", "main"), SessionKey("main", "token:bob:openai-user:u")):
            self.done(self.harness.sessions.append(key, pack(Message("user", WORD)), "r", EntryMeta()))
            self.done(self.harness.sessions.patch(key, {"label": f"{WORD} {key}", "spawned_by": "s"}))
        self.ann, self.link = self.member(self.create("ann", scopes=(*BOTH, APPROVALS)), *BOTH, APPROVALS, caps=["tool-events"])

    def done(self, work: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def ask(self, method: str, **params: Any) -> Any:
        self.asked = getattr(self, "asked", 0) + 1
        tell(self.ann, method, params, id=f"a{self.asked}")
        answer = next(frame for frame in self.link.take() if frame.get("id") == f"a{self.asked}")
        return answer.get("payload", answer.get("error"))

    def finish(self, *texts: str) -> None:
        """The oldest run says this and ends; whoever waits for that hears of it."""
        self.harness.provider.say(*texts)
        self.harness.provider.stop()
        self.world.clock.advance(0.2)


class SocketTests(SocketCase):
    """Over the WebSocket, method by method."""

    def test_hello(self) -> None:
        """Says where its main session is, and not who else is here."""
        page = {"id": "webchat", "version": "1", "platform": "web", "mode": "webchat"}
        self.world.connect(ADMIN, address=LOCAL, client=page)
        self.assertEqual(len(self.world.gateway.presence.entries(self.world.now_ms())), 2)
        _, link = self.open(self.bob, *BOTH)
        snapshot = link.take()[0]["payload"]["snapshot"]
        self.assertEqual(snapshot["sessionDefaults"]["mainSessionKey"], "agent:main:token:bob:main")
        self.assertEqual([entry["mode"] for entry in snapshot["presence"]], ["gateway"])
        self.assertEqual([entry["mode"] for entry in self.ask("system-presence")], ["gateway"])

    def test_its_own(self) -> None:
        """A session of its own is used under its short name as any is."""
        self.assertEqual(self.ask("chat.send", sessionKey="x", message="hi", idempotencyKey="1")["status"], "started")
        self.finish("good day")
        self.assertEqual([m["content"][0]["text"] for m in self.ask("chat.history", sessionKey="x")["messages"]], ["hi", "good day"])
        self.assertEqual([row["key"] for row in self.ask("sessions.list")["sessions"]], ["agent:main:token:ann:x"])
        self.assertEqual(self.ask("sessions.resolve", key="x")["key"], "agent:main:token:ann:x")
        self.assertEqual([one["status"] for one in self.ask("sessions.preview", keys=["x", "agent:main:token:ann:x"])["previews"]], ["ok", "ok"])
        self.assertEqual(self.ask("agent.wait", runId="1", timeoutMs=0)["status"], "ok")
        self.assertEqual(self.ask("status")["sessions"]["count"], 1)
        self.assertEqual(self.ask("agent", **agent_params(message="again"))["status"], "accepted")
        self.assertEqual(str(self.harness.runs.get("k-1").turn.session), "agent:main:token:ann:main")  # type: ignore[union-attr]
        self.finish("x")
        self.assertEqual(self.ask("chat.send", sessionKey="x", message="/new", idempotencyKey="2")["status"], "started")

    def test_lists_and_names(self) -> None:
        """Others are not found by label, session id or search."""
        row = self.harness.store.rows[str(self.key)]
        self.assertEqual(self.ask("sessions.list", search="bob")["count"], 0)
        self.assertEqual(self.ask("sessions.list", spawnedBy="s", label=row.settings.label)["count"], 0)
        for way in ({"label": row.settings.label}, {"sessionId": row.session_id}, {"key": row.key}):
            self.assertIn("No session found", self.ask("sessions.resolve", **way)["message"])
        self.assertEqual(self.ask("status")["sessions"]["count"], 0)

    def test_runs(self) -> None:
        """A run of somebody else's cannot be waited for, nor aborted, nor can its session."""
        bob, their = self.member(self.bob)
        self.assertEqual(ask(bob, their, "agent", agent_params(sessionKey="x"))["payload"]["status"], "accepted")
        tell(self.ann, "agent.wait", {"runId": "k-1", "timeoutMs": 1_000}, id="w")
        for params in ({"sessionKey": str(self.key)}, {"sessionKey": str(self.key), "runId": "k-1"}, {"sessionKey": "x", "runId": "k-1"}):
            self.assertEqual(self.ask("chat.abort", **params), {"ok": True, "aborted": False, "runIds": []})
        self.ask("chat.send", sessionKey=str(self.key), message="/stop", idempotencyKey="9")
        self.finish("done")
        self.assertEqual(their.events("chat")[-1]["payload"]["state"], "final")
        self.assertEqual(self.ask("agent.wait", runId="k-1", timeoutMs=0)["status"], "timeout")
        self.world.clock.advance(1)
        self.assertEqual([frame["payload"]["status"] for frame in self.link.take() if frame.get("id") == "w"], ["timeout"])

    def test_the_same_idempotency_key(self) -> None:
        """Of two callers it is two keys."""
        bob, their = self.member(self.bob)
        ask(bob, their, "agent", agent_params(sessionKey="x"))
        self.finish("for bob")
        self.assertEqual(self.ask("agent", **agent_params(sessionKey="x"))["status"], "accepted")
        self.finish("for ann")
        self.assertEqual([frame["payload"]["result"]["payloads"][0]["text"] for frame in self.link.take() if frame["type"] == "res"], ["for ann"])

    def test_usage(self) -> None:
        """What it used itself."""
        self.http(self.bob, "x-mayros-session-key: x")
        self.assertEqual(self.ask("sessions.usage")["totals"]["runs"], 0)
        self.assertEqual(self.ask("usage.cost")["totals"]["runs"], 0)
        self.assertEqual((self.ask("usage.status")["providers"], self.ask("usage.status")["limits"]), ([], []))
        self.assertEqual(self.ask("sessions.usage", key=str(self.key))["sessions"], [])
        self.ask("agent", **agent_params(sessionKey="x"))
        self.finish("x")
        found = self.ask("sessions.usage")
        self.assertEqual([one["key"] for one in found["sessions"]], ["agent:main:token:ann:x"])
        self.assertEqual([one["principal"] for one in found["aggregates"]["byPrincipal"]], ["token:ann"])
        self.assertEqual(self.ask("usage.cost")["totals"]["runs"], 1)

    def test_approvals(self) -> None:
        """Who may approve for his own sessions hears of those only, and decides only there."""
        approvals = self.world.approvals
        self.assertFalse(approvals.audience.present(str(self.key)))
        self.assertTrue(approvals.audience.present("agent:main:token:ann:y"))
        theirs = approvals.ask(Question("rm x", session_key=str(self.key)))
        nobodys = approvals.ask(Question("rm y"))
        own = approvals.ask(Question("rm z", session_key="agent:main:token:ann:y"))
        self.assertEqual([event["payload"]["id"] for event in self.link.events("exec.approval.requested")], [own.id])
        self.assertEqual([one["id"] for one in self.ask("exec.approval.list")], [own.id])
        for other in (theirs, nobodys):
            for method, more in (("resolve", {"decision": "allow-once"}), ("waitDecision", {})):
                self.assertEqual(self.ask(f"exec.approval.{method}", id=other.id, **more)["message"], "unknown approval id")
        self.assertEqual(self.ask("exec.approval.resolve", id=own.id, decision="deny"), {"ok": True})
        for other in (theirs, nobodys):
            approvals.resolve(other.id, "deny", None)
        tell(self.ann, "exec.approval.request", {"command": "ls", "sessionKey": str(self.key), "twoPhase": True})
        (waiting,) = approvals.pending()
        self.assertEqual(waiting.question.session_key, "agent:main:token:ann:token:bob:x")
        approvals.withdraw(waiting)


class EventTests(SocketCase):
    """What is told without being asked."""

    def test_runs_of_others(self) -> None:
        """Nothing of them, from the first event to the last; the owner hears of all."""
        owner, all_ears = self.world.connect(ADMIN, address=LOCAL)
        self.http(self.bob, "x-mayros-session-key: x")
        self.http(TOKEN, "x-mayros-session-key: main")
        self.world.clock.advance(1)
        self.assertEqual([frame for frame in self.link.take() if frame["event"] in ("agent", "chat")], [])
        self.assertGreater(len(all_ears.events("agent")), 3)
        tell(self.ann, "agent", agent_params(sessionKey="y"))
        self.finish("mine")
        keys = {frame["payload"]["sessionKey"] for frame in self.link.take() if frame.get("event") in ("agent", "chat")}
        self.assertEqual(keys, {"agent:main:token:ann:y"})
        self.assertEqual({frame["payload"]["sessionKey"] for frame in all_ears.events("chat")}, keys)
        self.assertIsNotNone(owner)

    def test_a_slow_client(self) -> None:
        """Not later, either, when it has caught up."""
        self.link.buffered = 10**6
        bob, _ = self.member(self.bob)
        tell(bob, "agent", agent_params(sessionKey="x"))
        self.harness.provider.say("one", "two")
        self.world.clock.advance(1)
        self.link.buffered = 0
        self.ann.drained()
        self.harness.provider.say("three")
        self.world.clock.advance(1)
        self.assertEqual([frame for frame in self.link.take() if frame["event"] in ("agent", "chat")], [])
        self.finish("end")

    def test_who_comes_late(self) -> None:
        """Gets what is new of runs of its own."""
        tell(self.ann, "agent", agent_params(sessionKey="y"))
        self.harness.provider.say("one")
        self.world.clock.advance(1)
        _, again = self.member(self.create("ann2"))
        self.ann.closed()
        self.finish("two")
        self.assertEqual([frame for frame in again.take() if frame["event"] in ("agent", "chat")], [])

    def test_commands_and_who_is_here(self) -> None:
        """What was no run is told to the same, and presence to none of them."""
        bob, _ = self.member(self.bob)
        tell(bob, "chat.send", {"sessionKey": "x", "message": "/help", "idempotencyKey": "5"})
        self.world.gateway.broadcaster.presence_changed()
        self.world.clock.advance(5)
        self.assertEqual({frame["event"] for frame in self.link.take()}, set())


class PropertyTests(SocketCase):
    """No way leads to another space."""

    PARAMS = {
        "chat.send": {"message": "hello", "idempotencyKey": ""},
        "agent": {"message": "hello", "idempotencyKey": ""},
        "sessions.preview": {"keys": None},
        "sessions.resolve": {"key": None},
        "sessions.usage": {"key": None},
        "exec.approval.request": {"command": "ls", "timeoutMs": 1},
    }

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(sorted(NARROWED)), st.sampled_from(KEYS), st.sampled_from(("x", "k-1", "r"))), min_size=1, max_size=8))
    def test_nothing_leads_there(self, steps: list[tuple[str, str, str]]) -> None:
        """Whatever is called with whatever key: not a word of Bob's comes back, and what is his stays as it is."""
        before = self.theirs()
        for number, (method, key, run_id) in enumerate(steps):
            self.count = getattr(self, "count", 0) + 1
            params: dict[str, Any] = {"sessionKey": key, **self.PARAMS.get(method, {})}
            if method in ("sessions.preview", "sessions.resolve", "sessions.usage"):
                del params["sessionKey"]
            params = {name: [key] if name == "keys" else key if value is None else value for name, value in params.items()}
            if "idempotencyKey" in params:
                params["idempotencyKey"] = f"p-{self.count}"
            if method in ("chat.abort", "agent.wait"):
                params["runId"] = run_id
            tell(self.ann, method, params, id=str(number))
            if self.harness.runs.live():
                self.finish("fine")
        self.world.clock.advance(0.2)
        told = b"".join(self.link.frames)
        self.link.frames.clear()
        self.assertNotIn(WORD.encode(), told)
        self.assertEqual(self.theirs(), before)
        for key in self.harness.store.rows:
            self.assertTrue(key in before or key.split(":")[2:4] == ["token", "ann"], key)

    def theirs(self) -> dict[str, Any]:
        store = self.harness.store
        return {
            key: (row, len(store.entries[key]))
            for key, row in store.rows.items()
            if not key.startswith(("agent:main:token:ann", "agent:beta:token:ann"))
        }
