"""The method `agent`: two answers, the parameters, and one run per idempotency key."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mayros.core.ports import Claim
from mayros.errors import RunAborted, ServerShutdown, Unavailable
from mayros.events import Usage
from mayros.ws.session import MAX_IN_FLIGHT
from tests.helpers import FakeIdempotency, SlowIdempotency
from tests.test_ws import READ, WRITE, World, agent_params, ask, tell


class AgentTests(SynchronousTestCase):
    """Running an agent."""

    def setUp(self) -> None:
        self.world = World(self)
        self.session, self.link = self.world.connect(WRITE)

    def run_agent(self, *texts: str, **params: Any) -> list[Any]:
        """A run that says these texts; everything the client gets."""
        tell(self.session, "agent", agent_params(**params), id="a")
        for text in texts:
            self.world.provider.say(text)
            self.world.clock.advance(0)  # what comes in one turn of the reactor is one event
        self.world.provider.stop(usage=Usage(10, 8, 3))
        return self.link.take()

    def end_and_final(self) -> tuple[Any, Any]:
        """The last lifecycle event and the last answer."""
        frames = self.link.take()
        ends = [frame for frame in frames if frame.get("event") == "agent" and frame["payload"]["stream"] == "lifecycle"]
        return ends[-1], [frame for frame in frames if frame["type"] == "res"][-1]

    def test_accepted_events_final(self) -> None:
        """Two answers under one id, and between them what the run says."""
        frames = self.run_agent("word", " word")
        accepted, final = [frame for frame in frames if frame["type"] == "res"]
        self.assertIs(accepted, frames[0])
        self.assertEqual({"runId": "k-1", "status": "accepted", "acceptedAt": 1_000_000}, accepted["payload"])
        self.assertEqual(("a", True), (final["id"], final["ok"]))
        payload = final["payload"]
        self.assertEqual(("k-1", "ok", "completed"), (payload["runId"], payload["status"], payload["summary"]))
        self.assertEqual([{"text": "word word", "mediaUrl": None}], payload["result"]["payloads"])
        about = payload["result"]["meta"]["agentMeta"]
        self.assertEqual({"input": 10, "output": 8, "cacheRead": 3, "cacheWrite": 0, "total": 21}, about["usage"])
        self.assertEqual(("fake", "one", 13), (about["provider"], about["model"], about["promptTokens"]))
        self.assertIs(False, payload["result"]["meta"]["aborted"])
        events = [frame for frame in frames if frame.get("event") == "agent"]
        self.assertEqual([1, 2, 3, 4], [event["payload"]["seq"] for event in events])
        self.assertEqual({"agent:main:main"}, {event["payload"]["sessionKey"] for event in events})
        self.assertEqual(
            [
                ("lifecycle", {"phase": "start", "startedAt": 1_000_000}),
                ("assistant", {"text": "word", "delta": "word"}),
                ("assistant", {"text": "word word", "delta": " word"}),
                ("lifecycle", {"phase": "end", "outcome": "ok", "startedAt": 1_000_000, "endedAt": 1_000_000}),
            ],
            [(event["payload"]["stream"], event["payload"]["data"]) for event in events],
        )
        self.assertLess(frames.index(events[-1]), frames.index(final))

    def test_what_the_model_gets(self) -> None:
        """The message as it was sent, in the agent's session, with the extra prompt."""
        self.run_agent("ok", extraSystemPrompt="Be brief.", sessionKey="trip", agentId="beta")
        self.assertEqual([{"role": "user", "content": "hello there"}], self.world.provider.seen)
        self.assertIn("Be brief.", self.world.provider.requests[-1].system)
        turn, _ = self.world.harness.store.turns[-1]
        self.assertEqual(("agent:beta:trip", "ws", False), (str(turn.session), turn.door, turn.stateless))

    def test_sessions(self) -> None:
        """No key: the agent's main session. A full key names its agent. Bare keys belong to the chosen agent."""
        for number, (params, expected) in enumerate(
            (
                ({}, "agent:main:main"),
                ({"agentId": "beta"}, "agent:beta:main"),
                ({"sessionKey": "agent:beta:work"}, "agent:beta:work"),
                ({"sessionKey": "agent:beta:work", "agentId": "beta"}, "agent:beta:work"),
                ({"sessionKey": "main"}, "agent:main:main"),
                ({"sessionKey": "Notes", "sessionId": "ignored", "channel": "webchat", "deliver": False}, "agent:main:Notes"),
            )
        ):
            self.run_agent("ok", idempotencyKey=f"k{number}", **params)
            self.assertEqual(expected, str(self.world.harness.store.turns[-1][0].session))

    def test_parameters_that_cannot_be(self) -> None:
        """Each is refused by name before anything starts (W39)."""
        for change, words in (
            ({"bad": 1}, "at root: unexpected property 'bad'"),
            ({"agentId": "nobody"}, 'unknown agent id "nobody"'),
            ({"sessionKey": "agent:nobody:x"}, 'unknown agent id "nobody"'),
            ({"sessionKey": "agent:main"}, "malformed session key"),
            ({"sessionKey": "cron:daily"}, "malformed session key"),
            ({"sessionKey": "agent:beta:x", "agentId": "main"}, 'agent "main" does not match session key agent "beta"'),
            ({"sessionId": "s"}, "sessionId alone cannot choose a session"),
            ({"idempotencyKey": "no blanks"}, "at /idempotencyKey: "),
            ({"idempotencyKey": "k" * 129}, "at /idempotencyKey: "),
            ({"attachments": [{"content": "eA"}]}, "attachment attachment-1: invalid base64 content"),
            ({"deliver": True}, "deliver: "),
            ({"channel": "telegram"}, "unknown channel: telegram"),
            ({"timeout": "5"}, "at /timeout: must be integer"),
            ({"thinking": "deeply"}, "invalid thinking (use "),
        ):
            error = ask(self.session, self.link, "agent", agent_params(**change))["error"]
            self.assertEqual("INVALID_REQUEST", error["code"])
            self.assertTrue(error["message"].startswith(("invalid agent params: ", "invalid thinking", "attachment ")), error["message"])
            self.assertIn(words, error["message"])
        self.assertIn("must be object", ask(self.session, self.link, "agent", [1])["error"]["message"])
        self.assertEqual({}, self.world.harness.idempotency.kept)

    def test_time_limits(self) -> None:
        """Seconds; 0 and anything longer is a day; without one the agent's own."""
        for number, (params, seconds) in enumerate((({}, 600.0), ({"timeout": 5}, 5.0), ({"timeout": 0}, 86_400.0), ({"timeout": 10**9}, 86_400.0))):
            self.run_agent("ok", idempotencyKey=f"k{number}", **params)
            self.assertEqual(seconds, self.world.harness.store.turns[-1][0].timeout_seconds)

    def test_a_run_out_of_time(self) -> None:
        """The partial text comes with the error; the end event says so in a way that clients know."""
        tell(self.session, "agent", agent_params(timeout=5))
        self.world.provider.say("half")
        self.world.clock.advance(5)
        self.world.clock.advance(0)
        end, final = self.end_and_final()
        self.assertEqual(("end", "timeout", True), tuple(end["payload"]["data"][key] for key in ("phase", "outcome", "aborted")))
        self.assertEqual((False, "UNAVAILABLE", "timeout"), (final["ok"], final["error"]["code"], final["payload"]["status"]))
        self.assertEqual({"code": "run_timeout"}, final["error"]["details"])
        self.assertEqual("half", final["payload"]["result"]["payloads"][0]["text"])
        self.assertIs(True, final["payload"]["result"]["meta"]["aborted"])

    def test_a_run_that_fails(self) -> None:
        """The error as it was recorded, and a lifecycle error event."""
        tell(self.session, "agent", agent_params())
        self.world.provider.push(Unavailable("The model is on fire."))
        end, final = self.end_and_final()
        self.assertEqual(("error", "The model is on fire."), (end["payload"]["data"]["phase"], end["payload"]["data"]["error"]))
        self.assertEqual(("error", "The model is on fire."), (final["payload"]["status"], final["payload"]["summary"]))
        self.assertEqual(("UNAVAILABLE", "The model is on fire.", 1000), tuple(final["error"][k] for k in ("code", "message", "retryAfterMs")))
        self.assertEqual([], final["payload"]["result"]["payloads"])

    def test_an_aborted_run(self) -> None:
        """The end event says aborted."""
        tell(self.session, "agent", agent_params())
        self.world.provider.say("half")
        self.world.harness.runs.abort("k-1", ServerShutdown())
        self.world.clock.advance(0)
        end, final = self.end_and_final()
        self.assertEqual(("end", True), (end["payload"]["data"]["phase"], end["payload"]["data"]["aborted"]))
        self.assertEqual(
            ("error", "aborted", "server_shutdown"), (final["payload"]["status"], final["payload"]["outcome"], final["error"]["details"]["code"])
        )

    def test_a_repeated_key_attaches_to_the_run(self) -> None:
        """From another connection too: accepted again, one run, and the final for both."""
        other, link = self.world.connect(WRITE)
        tell(self.session, "agent", agent_params(), id="first")
        tell(other, "agent", agent_params(), id="second")
        self.world.provider.say("once")
        self.world.provider.stop()
        for frames, own in ((self.link.take(), "first"), (link.take(), "second")):
            answers = [frame for frame in frames if frame["type"] == "res"]
            self.assertEqual([own, own], [answer["id"] for answer in answers])
            self.assertEqual(["accepted", "ok"], [answer["payload"]["status"] for answer in answers])
        self.assertEqual(1, len(self.world.provider.requests))

    def test_a_repeated_key_of_an_ended_run(self) -> None:
        """The stored final, once."""
        scope = "ws:agent:owner"
        self.run_agent("once")
        digest, run_id, _ = self.world.harness.idempotency.kept[scope, "k-1"]
        self.world.harness.idempotency.kept[scope, "k-1"] = (digest, run_id, self.world.harness.store.turns[-1][1])
        tell(self.session, "agent", agent_params(), id="again")
        (answer,) = self.link.take()
        self.assertEqual(("again", "ok", "once"), (answer["id"], answer["payload"]["status"], answer["payload"]["result"]["payloads"][0]["text"]))
        self.assertEqual(1, len(self.world.provider.requests))

    def test_a_key_of_another_request(self) -> None:
        """The same key with other words is refused; the order of keys does not matter."""
        tell(self.session, "agent", agent_params(), id="first")
        self.link.take()
        error = ask(self.session, self.link, "agent", agent_params(message="something else"))["error"]
        self.assertEqual(("INVALID_REQUEST", {"code": "idempotency_key_reused"}), (error["code"], error["details"]))
        again = dict(reversed(list(agent_params().items())))
        self.assertEqual("accepted", ask(self.session, self.link, "agent", again)["payload"]["status"])

    def test_the_turn_carries_the_claim(self) -> None:
        """So that the answer of the key is committed together with the turn."""
        self.run_agent("ok")
        self.assertEqual(Claim("ws:agent:owner", "k-1"), self.world.harness.store.turns[-1][0].claim)

    def test_a_run_that_is_refused_gives_its_key_back(self) -> None:
        """No model, or the gateway stops: an error that may be tried again, and the key is free."""
        self.world.harness.runs.drain()
        error = ask(self.session, self.link, "agent", agent_params())["error"]
        self.assertEqual(("UNAVAILABLE", True, 2000), (error["code"], error["retryable"], error["retryAfterMs"]))
        self.assertEqual({}, self.world.harness.idempotency.kept)

    def test_full_queues(self) -> None:
        """A run that finds its session's queue full ends with an error that says when to come back."""
        self.world = World(self, {"gateway": {"limits": {"maxQueuedPerSession": 1}}})
        self.session, self.link = self.world.connect(WRITE)
        for number in range(3):
            tell(self.session, "agent", agent_params(idempotencyKey=f"k{number}"), id=str(number))
        refused = [frame for frame in self.link.take() if frame["type"] == "res" and not frame["ok"]]
        self.assertEqual(["2"], [frame["id"] for frame in refused])
        self.assertEqual(({"code": "queue_full"}, True), (refused[0]["error"]["details"], refused[0]["error"]["retryable"]))

    def test_the_client_leaves(self) -> None:
        """Its requests are cancelled, its run goes on and is recorded."""
        tell(self.session, "agent", agent_params())
        self.session.closed()
        self.world.provider.say("for nobody")
        self.world.provider.stop()
        self.assertEqual("for nobody", self.world.harness.store.turns[-1][1].text)

    def test_thinking(self) -> None:
        """A level for this run only."""
        self.run_agent("ok", thinking="medium")
        self.assertEqual("medium", self.world.harness.store.turns[-1][0].sampling.reasoning_effort)

    def test_new_and_reset(self) -> None:
        """The session is reset, and what follows is the message; any other command is text for the model."""
        self.run_agent("hi")
        self.run_agent("done", message="/new start here", idempotencyKey="k-2")
        self.assertEqual([{"role": "user", "content": "start here"}], self.world.provider.seen)
        self.run_agent("hm", message="/status", idempotencyKey="k-3")
        self.assertEqual("/status", self.world.provider.seen[-1]["content"])

    def test_new_alone(self) -> None:
        """A short reply of the gateway instead of a run; a repeat does not reset again."""
        for _ in range(2):
            frames = self.run_agent(message=" /RESET ")
            payload = [frame for frame in frames if frame["type"] == "res"][-1]["payload"]
            self.assertEqual(("ok", [{"text": "New session started.", "mediaUrl": None}]), (payload["status"], payload["result"]["payloads"]))
            about = payload["result"]["meta"]["agentMeta"]
            self.assertEqual(("s-new-1", "mayros", "gateway-injected"), (about["sessionId"], about["provider"], about["model"]))
        self.assertEqual([], self.world.provider.requests)

    def test_new_while_the_session_stays_active(self) -> None:
        """Accepted, then an error that may be tried again with the same key."""
        self.world.harness.store.hold()
        self.run_agent("slow disk")
        tell(self.session, "agent", agent_params(message="/new", idempotencyKey="k-2"))
        self.world.clock.advance(15)
        accepted, final = [frame for frame in self.link.take() if frame["type"] == "res"]
        self.assertEqual(("accepted", False, True), (accepted["payload"]["status"], final["ok"], final["error"]["retryable"]))
        self.assertNotIn(("ws:agent:owner", "k-2"), self.world.harness.idempotency.kept)

    def test_requests_in_flight_are_bounded(self) -> None:
        """One connection cannot have more than 256 unanswered requests."""
        self.world.gateway.idempotency = SlowIdempotency()
        for number in range(MAX_IN_FLIGHT):
            tell(self.session, "agent", agent_params(idempotencyKey=f"k{number}"))
        self.assertEqual([], self.link.take())
        error = ask(self.session, self.link, "agent", agent_params(idempotencyKey="one-more"))["error"]
        self.assertEqual(("UNAVAILABLE", True), (error["code"], error["retryable"]))
        self.session.closed()


class ClaimTests(SynchronousTestCase):
    """Keys while they are being claimed."""

    def setUp(self) -> None:
        self.world = World(self)
        self.keys = self.world.gateway.idempotency = SlowIdempotency()
        self.session, self.link = self.world.connect(WRITE)

    def test_a_repeat_waits_for_the_first(self) -> None:
        """The same key twice before the first is claimed: still one run, and both are told."""
        tell(self.session, "agent", agent_params(), id="first")
        tell(self.session, "agent", agent_params(), id="second")
        self.assertEqual(1, len(self.keys.waiting))
        self.keys.go()
        self.keys.go()
        self.world.provider.stop()
        answers = [frame["id"] for frame in self.link.take() if frame["type"] == "res"]
        self.assertEqual({"first": 2, "second": 2}, {own: answers.count(own) for own in ("first", "second")})
        self.assertEqual(1, len(self.world.provider.requests))

    def test_a_client_that_leaves_while_its_key_is_claimed(self) -> None:
        """The claim is brought to its end: a key is never held by no run."""
        tell(self.session, "agent", agent_params())
        self.session.closed()
        self.keys.go()
        self.assertIsNotNone(self.world.harness.runs.get("k-1"))
        self.assertEqual(0, len(self.world.gateway.claims))

    def test_the_store_cannot_be_written(self) -> None:
        """An error that may be tried again; also when nobody waits for it any more."""
        self.keys.broken = True
        tell(self.session, "agent", agent_params())
        self.keys.go()
        (answer,) = self.link.take()
        self.assertEqual(("UNAVAILABLE", {"code": "storage_unavailable"}), (answer["error"]["code"], answer["error"]["details"]))
        tell(self.session, "agent", agent_params())
        self.session.closed()
        self.keys.go()
        self.assertEqual(0, len(self.world.gateway.claims))

    def test_a_run_that_is_lost(self) -> None:
        """A key that says live, and no run: an error, not silence."""
        self.world.gateway.idempotency = lost = FakeIdempotency()
        tell(self.session, "agent", agent_params())
        self.world.provider.stop()
        self.link.take()
        self.assertIsNone(lost.kept["ws:agent:owner", "k-1"][2])
        self.assertIn("was lost", ask(self.session, self.link, "agent", agent_params())["error"]["message"])


class WaitTests(SynchronousTestCase):
    """`agent.wait`."""

    def setUp(self) -> None:
        self.world = World(self)
        self.session, self.link = self.world.connect(WRITE)

    def wait(self, **params: Any) -> list[Any]:
        """The payloads of the answers there are to one wait."""
        self.link.take()
        tell(self.session, "agent.wait", {"runId": "k-1", **params}, id="w")
        return self.answers()

    def answers(self) -> list[Any]:
        return [frame["payload"] for frame in self.link.take() if frame["type"] == "res" and frame["id"] == "w"]

    def start(self, **params: Any) -> None:
        tell(self.session, "agent", agent_params(**params), id="a")

    def test_a_run_that_ends_well(self) -> None:
        """Answered when it ends, and for ten minutes after."""
        self.start()
        self.assertEqual([], self.wait())
        self.world.clock.advance(2)
        self.world.provider.stop()
        ended = {"runId": "k-1", "status": "ok", "startedAt": 1_000_000, "endedAt": 1_002_000}
        self.assertEqual([ended], self.answers())
        self.assertEqual([ended], self.wait(timeoutMs=0))
        self.world.clock.advance(600)
        self.assertEqual([{"runId": "k-1", "status": "timeout"}], self.wait(timeoutMs=0))

    def test_a_run_that_goes_on(self) -> None:
        """`timeout` without times, after 30 seconds or as long as was asked; the run goes on."""
        self.start()
        self.assertEqual([], self.wait())
        self.world.clock.advance(29.9)
        self.assertEqual([], self.answers())
        self.world.clock.advance(0.2)
        self.assertEqual([{"runId": "k-1", "status": "timeout"}], self.answers())
        self.assertEqual([], self.wait(timeoutMs=500))
        self.world.clock.advance(0.5)
        self.assertEqual([{"runId": "k-1", "status": "timeout"}], self.answers())
        self.assertEqual([{"runId": "k-1", "status": "timeout"}], self.wait(timeoutMs=0))
        self.assertIsNotNone(self.world.harness.runs.get("k-1"))

    def test_a_run_that_fails(self) -> None:
        """At once, with the error's text."""
        self.start()
        self.wait()
        self.world.provider.fail(Unavailable("The model is on fire."))
        (answer,) = self.answers()
        self.assertEqual(("error", "The model is on fire."), (answer["status"], answer["error"]))

    def test_an_aborted_run(self) -> None:
        """An error, at once: `timeout` would mean to ask again."""
        self.start()
        self.wait()
        self.world.harness.runs.abort("k-1", RunAborted())
        self.world.clock.advance(0)
        (answer,) = self.answers()
        self.assertEqual(("error", "The run was aborted.", True, 1_000_000), tuple(answer[k] for k in ("status", "error", "aborted", "endedAt")))

    def test_a_run_out_of_time(self) -> None:
        """`timeout` with its times."""
        self.start(timeout=5)
        self.wait()
        self.world.clock.advance(5)
        self.world.clock.advance(0)
        (answer,) = self.answers()
        self.assertEqual(("timeout", 1_000_000, 1_005_000), tuple(answer[k] for k in ("status", "startedAt", "endedAt")))

    def test_a_run_that_begins_later(self) -> None:
        """Its request may be on the way: it is waited for."""
        keys = self.world.gateway.idempotency = SlowIdempotency()
        self.start()
        self.assertEqual([], self.wait())
        keys.go()
        self.world.provider.stop()
        self.assertEqual(["ok"], [answer["status"] for answer in self.answers()])
        self.assertEqual({}, self.world.gateway.awaited)

    def test_a_run_that_never_begins(self) -> None:
        """Timeout; nobody is kept, nor when the client leaves."""
        self.wait(timeoutMs=100)
        self.world.clock.advance(0.1)
        self.assertEqual([{"runId": "k-1", "status": "timeout"}], self.answers())
        self.wait()
        self.session.closed()
        self.assertEqual({}, self.world.gateway.awaited)

    def test_a_command(self) -> None:
        """What no model answered has ended too."""
        tell(self.session, "chat.send", {"sessionKey": "main", "message": "/help", "idempotencyKey": "k-1"})
        self.assertEqual(["ok"], [answer["status"] for answer in self.wait()])

    def test_refused(self) -> None:
        """By name."""
        for params, words in (
            ({}, "must have required property 'runId'"),
            ({"runId": ""}, "at /runId: must NOT have fewer than 1 characters"),
            ({"runId": "r", "timeoutMs": -1}, "at /timeoutMs: must be >= 0"),
        ):
            self.assertEqual(f"invalid agent.wait params: {words}", ask(self.session, self.link, "agent.wait", params)["error"]["message"])


class IdentityTests(SynchronousTestCase):
    """`agent.identity.get`."""

    def test_identities(self) -> None:
        """By agent or by session; what is not configured has a default."""
        identity = {"name": "Bea", "emoji": "*", "avatar": "https://example.net/b.png"}
        world = World(self, {"agents": {"list": [{"id": "main"}, {"id": "beta", "identity": identity}]}})
        session, link = world.connect(READ)
        main = {"agentId": "main", "name": "Assistant", "avatar": "A"}
        for params, expected in (
            (None, main),
            ({"agentId": "main", "sessionKey": "x"}, main),
            ({"agentId": "Beta"}, {"agentId": "beta", **identity}),
            ({"sessionKey": "agent:beta:x"}, {"agentId": "beta", **identity}),
        ):
            self.assertEqual(expected, ask(session, link, "agent.identity.get", params)["payload"])
        for params, words in (
            ({"agentId": "nobody"}, 'unknown agent id "nobody"'),
            ({"agentId": "main", "sessionKey": "agent:beta:x"}, 'agent "main" does not match session key agent "beta"'),
            ({"sessionKey": "agent:beta"}, "sessionKey is malformed"),
        ):
            self.assertIn(f"invalid agent.identity.get params: {words}", ask(session, link, "agent.identity.get", params)["error"]["message"])
