"""Tool events: who gets them, what is in them at which verbose level, and what becomes of them when something is slow or large."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.keys import SessionKey
from mayros.core.session_ports import SessionRow
from mayros.errors import StorageUnavailable
from mayros.events import Event, TextDelta, ToolFinished, ToolStarted, ToolUpdate
from mayros.ws import streams
from mayros.ws.broadcast import SLOW_BYTES
from mayros.ws.session import Session
from tests.helpers import chat, post
from tests.test_ws import WRITE, FakeLink, World, agent_params, tell

CAPS = ["tool-events", "another"]
STARTED = ToolStarted("c1", "read", '{"path":"a.txt"}')
UPDATE = ToolUpdate("c1", "read", "so far")
FINISHED = ToolFinished("c1", "read", False, "the text")
MAIN = "agent:main:main"


def output(text: str) -> Any:
    """What a tool put out, as it is told."""
    return {"content": [{"type": "text", "text": text}]}


class Base(SynchronousTestCase):
    """A client that wants tool events, and one that does not."""

    def setUp(self) -> None:
        self.world = World(self)
        self.session, self.link = self.world.connect(WRITE, caps=CAPS)
        self.other, self.other_link = self.world.connect(WRITE)

    def run_agent(self, session: Session | None = None, run_id: str = "k-1", **params: Any) -> None:
        """Start a run; what it said so far is read."""
        tell(session or self.session, "agent", agent_params(idempotencyKey=run_id, **params))
        self.world.clock.advance(0)
        self.link.take()
        self.other_link.take()

    def happens(self, *events: Event, run_id: str = "k-1") -> None:
        """The run says this."""
        runs = self.world.harness.runs
        run = runs.get(run_id)
        assert run is not None
        for watcher in tuple(runs._watchers):
            watcher(run, list(events))

    def end(self) -> None:
        """The model is done."""
        self.world.provider.stop()
        self.world.clock.advance(0)

    def verbose(self, level: str | None, key: str = "main") -> None:
        """Set the level of a session."""
        self.successResultOf(Deferred.fromCoroutine(self.world.harness.sessions.patch(SessionKey("main", key), {"verbose_level": level})))

    def told(self, link: FakeLink | None = None) -> list[Any]:
        """The data of the tool events since the last look."""
        return [frame["payload"]["data"] for frame in self.frames(link)]

    def frames(self, link: FakeLink | None = None) -> list[Any]:
        """The tool events since the last look, whole."""
        return [frame for frame in (link or self.link).events("agent") if frame["payload"]["stream"] == "tool"]


class WhoTests(Base):
    """Who gets tool events."""

    def test_the_client_that_started_the_run(self) -> None:
        """Each event to it alone, without a number of its frame; others see nothing of it, and no gap in their own numbers."""
        _, new_link = self.world.connect(WRITE, protocol=4)
        self.run_agent()
        new_link.take()
        self.happens(STARTED, UPDATE, FINISHED)
        frames = self.frames()
        self.assertEqual([{"type", "event", "payload"}] * 3, [set(frame) for frame in frames])
        self.assertEqual({("k-1", MAIN, 1_000_000)}, {tuple(frame["payload"][key] for key in ("runId", "sessionKey", "ts")) for frame in frames})
        self.assertEqual([2, 3, 4], [frame["payload"]["seq"] for frame in frames])
        self.assertEqual(([], []), (self.frames(self.other_link), new_link.take()))
        self.world.provider.say("hi")
        self.end()
        numbers = [frame["seq"] for frame in new_link.take()]
        self.assertEqual(list(range(numbers[0], numbers[0] + len(numbers))), numbers)

    def test_a_client_that_did_not_ask_for_them(self) -> None:
        """Without the cap it gets none, not even of its own runs."""
        self.run_agent(self.other)
        self.happens(STARTED, FINISHED)
        self.assertEqual(([], []), (self.frames(), self.frames(self.other_link)))

    def test_chat(self) -> None:
        """`chat.send` starts runs too."""
        tell(self.session, "chat.send", {"sessionKey": "main", "message": "hello", "idempotencyKey": "k-1"})
        self.happens(STARTED)
        self.assertEqual(["start"], [data["phase"] for data in self.told()])

    def test_the_same_session(self) -> None:
        """Whoever starts a run gets those of the session's other live runs; not those of another session."""
        self.run_agent(self.other, "k-1")
        self.run_agent(self.other, "k-2", sessionKey="elsewhere")
        self.run_agent(self.session, "k-3")
        for run_id in ("k-1", "k-2", "k-3"):
            self.happens(STARTED, run_id=run_id)
        self.assertEqual(["k-1", "k-3"], [frame["payload"]["runId"] for frame in self.frames()])

    def test_a_run_that_is_asked_for_again(self) -> None:
        """A client that comes back and repeats its request gets the events of the run that goes on."""
        self.run_agent()
        self.session.end(1000, "")
        self.happens(STARTED)
        back, back_link = self.world.connect(WRITE, caps=CAPS)
        self.run_agent(back)
        self.happens(FINISHED)
        self.assertEqual(["result"], [data["phase"] for data in self.told(back_link)])

    def test_a_run_that_has_ended(self) -> None:
        """Nothing is kept for it, nor for a client that left."""
        self.run_agent()
        self.happens(STARTED)
        self.world.provider.say("done")
        self.end()
        self.run_agent(run_id="k-1")  # answered from the store
        tools = self.world.gateway.broadcaster._tools
        self.assertEqual({}, tools._followed)
        self.run_agent(run_id="k-2")
        self.assertEqual(["k-2"], list(tools._followed))
        self.session.end(1000, "")
        self.assertEqual({}, tools._followed)

    def test_http_clients_runs(self) -> None:
        """They are told to a client that starts a run in the same session meanwhile."""
        self.world.harness.dial(post(chat("hello"), "X-Mayros-Session-Key: agent:main:main"))
        (run,) = self.world.harness.runs.find(MAIN)
        self.run_agent()
        self.happens(STARTED, run_id=run.turn.run_id)
        self.assertEqual([run.turn.run_id], [frame["payload"]["runId"] for frame in self.frames()])


class WhatTests(Base):
    """What is in them."""

    def test_levels(self) -> None:
        """What a tool puts out is told at the level `full` only; that it begins and how it ends always."""
        start = {"phase": "start", "name": "read", "toolCallId": "c1", "args": {"path": "a.txt"}}
        update = {"phase": "update", "name": "read", "toolCallId": "c1"}
        result = {"phase": "result", "name": "read", "toolCallId": "c1", "isError": False}
        for number, level in enumerate((None, "off", "on", "full")):
            self.verbose(level)
            self.run_agent(run_id=f"k-{number}")
            self.happens(STARTED, UPDATE, FINISHED, run_id=f"k-{number}")
            shown = [start, update, result]
            if level == "full":
                shown = [start, {**update, "partialResult": output("so far")}, {**result, "result": output("the text")}]
            self.assertEqual(shown, self.told(), level)
            self.world.provider.say("done")
            self.end()

    def test_an_error(self) -> None:
        """It says so."""
        self.run_agent()
        self.happens(STARTED, ToolFinished("c1", "read", True, "No such file."))
        self.assertIs(True, self.told()[-1]["isError"])

    def test_a_run_that_ends_in_the_middle(self) -> None:
        """A call that was cut off is closed before the run's end is told."""
        self.run_agent()
        self.happens(STARTED)
        self.assertEqual(["start"], [data["phase"] for data in self.told()])
        tell(self.session, "chat.abort", {"sessionKey": "main"})
        self.world.clock.advance(0)
        self.world.clock.advance(1)
        (closed,) = self.told()
        self.assertEqual(("result", STARTED.call_id, True), (closed["phase"], closed["toolCallId"], closed["isError"]))

    def test_arguments_that_are_no_json(self) -> None:
        """As a string; none at all are an empty object."""
        self.run_agent()
        for arguments, shown in (('{"path":', '{"path":'), ("", {}), ("[" * 100_000, "[" * 100_000), ('{"a": "\u2028\\""}', {"a": '\u2028"'})):
            self.happens(ToolStarted("c1", "read", arguments))
            self.assertEqual([shown], [data["args"] for data in self.told()])

    def test_text_comes_first(self) -> None:
        """What the model said before it called is told before the tool begins, and the run's numbers grow."""
        self.run_agent()
        self.happens(TextDelta("Let me "), TextDelta("look."), STARTED, FINISHED, TextDelta(" Found."))
        self.world.clock.advance(0)
        events = [frame["payload"] for frame in self.link.events("agent")]
        self.assertEqual(["assistant", "tool", "tool", "assistant"], [payload["stream"] for payload in events])
        self.assertEqual([2, 3, 4, 5], [payload["seq"] for payload in events])
        self.assertEqual(["Let me look.", " Found."], [events[0]["data"]["delta"], events[3]["data"]["delta"]])

    def test_too_large(self) -> None:
        """A text or arguments that cannot be sent are replaced by the marker."""
        self.patch(streams, "MAX_TEXT", 100)
        self.verbose("full")
        self.run_agent()
        self.happens(
            ToolStarted("c1", "read", json.dumps({"path": "x" * 100})),
            ToolUpdate("c1", "read", "\x00" * 17),
            ToolFinished("c1", "read", False, "y" * 101),
        )
        start, update, result = self.told()
        self.assertEqual([{"truncated": True, "reason": "oversized"}] * 3, [data["__mayros"] for data in (start, update, result)])
        omitted = output("[omitted: message too large]")
        self.assertEqual(({}, omitted, omitted), (start["args"], update["partialResult"], result["result"]))


class SlowTests(Base):
    """Slow clients, and a slow store."""

    def test_a_slow_client(self) -> None:
        """It misses updates, and nothing else."""
        self.run_agent()
        self.link.buffered = SLOW_BYTES + 1
        self.happens(STARTED, UPDATE, FINISHED)
        self.assertEqual(["start", "result"], [data["phase"] for data in self.told()])

    def test_the_level_is_looked_up_once(self) -> None:
        """For each run, when its first tool begins. What comes before the answer waits, in order; updates are left out."""
        asked: list[Deferred[SessionRow | None]] = []
        self.verbose("full")
        sessions = self.world.harness.sessions
        row = self.successResultOf(Deferred.fromCoroutine(sessions.get(MAIN)))

        def get(key: str) -> Deferred[SessionRow | None]:
            asked.append(Deferred())
            return asked[-1]

        self.patch(sessions, "get", get)
        self.run_agent()
        self.assertEqual([], asked)
        self.happens(STARTED, UPDATE, FINISHED, ToolStarted("c2", "exec", "{}"))
        self.assertEqual(["start"], [data["phase"] for data in self.told()])
        asked[0].callback(row)
        self.assertEqual([("result", "c1"), ("start", "c2")], [(data["phase"], data["toolCallId"]) for data in self.told()])
        self.happens(ToolFinished("c2", "exec", False, "ok"))
        self.assertEqual([output("ok")], [data["result"] for data in self.told()])
        self.assertEqual(1, len(asked))

    def test_the_level_comes_too_late(self) -> None:
        """At the run's end what waits is told without results."""
        asked: list[Deferred[SessionRow | None]] = []

        def get(key: str) -> Deferred[SessionRow | None]:
            asked.append(Deferred())
            return asked[-1]

        self.patch(self.world.harness.sessions, "get", get)
        self.run_agent()
        self.happens(STARTED, FINISHED)
        self.link.take()
        self.world.provider.say("done")
        self.end()
        tail = [(frame["payload"]["stream"], frame["payload"]["data"].get("phase")) for frame in self.link.events("agent")]
        self.assertEqual([("assistant", None), ("tool", "result"), ("lifecycle", "end")], tail)
        asked[0].callback(None)
        self.assertEqual([], self.link.take())

    def test_a_store_that_fails(self) -> None:
        """Then results are not told."""

        async def get(key: str) -> SessionRow | None:
            raise StorageUnavailable

        self.patch(self.world.harness.sessions, "get", get)
        self.run_agent()
        self.happens(STARTED, FINISHED)
        self.assertEqual([False, False], ["result" in data for data in self.told()])

    def test_a_client_that_is_given_up_by_an_event(self) -> None:
        """Nothing breaks, and the run goes on."""
        self.run_agent()
        broadcaster = self.world.gateway.broadcaster
        broadcaster._peers[self.session].send = lambda frame: self.session.end(1008, "slow consumer")
        self.happens(STARTED, FINISHED)
        self.assertEqual(((1008, "slow consumer"), []), (self.link.closed, self.flushLoggedErrors()))
        self.assertIsNotNone(self.world.harness.runs.get("k-1"))
