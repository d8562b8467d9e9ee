"""Failover as a run makes it: real runs and the real loop over models that fail as the test says. And hedges: two models at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace
from twisted.internet.defer import Deferred

from mayros.core.keys import SessionKey
from mayros.core.models import Credential
from mayros.core.ports import History, Turn
from mayros.errors import ContextLengthExceeded, InvalidRequest, RateLimited, UpstreamError, UpstreamRefused, UpstreamTimeout
from mayros.events import Event, ModelAnswered, ModelFailed, ReasoningDelta, TextDelta, ToolCallDelta
from mayros.messages import Message, pack
from tests.helpers import FakeProvider, FakeTool, Harness, HarnessCase, chat, post

FALLBACKS = {
    "agents": {"defaults": {"model": {"primary": "fake/one", "fallbacks": ["other/big"]}}},
    "models": {"providers": {"other": {"baseUrl": "http://127.0.0.1:1/v1", "models": [{"id": "big"}]}}},
}


def refused(kind: str) -> UpstreamRefused:
    """A refusal that lets another key or model be tried."""
    error = UpstreamRefused(f"it said {kind}")
    error.kind, error.fallback = kind, True
    return error


class RunCase(HarnessCase):
    """A gateway with a model `fake/one`, and `other/big` behind it. `said` are the events of all runs."""

    def use(self, changes: dict[str, Any] | None = None, keys: str = "", tools: Any = (), hedge: float | None = None) -> None:
        """Make it. `keys`: letters, each the id of a key of `fake`."""
        self.gate = Harness(self, changes or FALLBACKS, tools=tools)
        self.gateways.append(self.gate)
        self.one, self.big = self.gate.provider, FakeProvider()
        self.gate.providers["other"] = self.big
        self.said: list[Event] = []
        self.gate.runs.watch(lambda _, events: self.said.extend(events))
        agents = self.gate.settings.directory.agents
        credentials = tuple(Credential(f"key:{letter}", f"secret-{letter}") for letter in keys)
        first = agents["main"].models[0]
        first = replace(first, provider=replace(first.provider, credentials=credentials, ordered=True))
        agents["main"] = replace(agents["main"], models=(first, *agents["main"].models[1:]), hedge_seconds=hedge)

    def ask(self, **fields: Any) -> Any:
        """A chat request; its client."""
        client = self.gate.dial(post(chat(**fields)))
        self.gate.settle(client)
        return client

    def of(self, kind: type[Any]) -> list[Any]:
        """The events of a kind so far."""
        return [event for event in self.said if type(event) is kind]

    def steps(self) -> list[tuple[str, str, str]]:
        """What failed, how, and what was asked then."""
        found = []
        for e in self.of(ModelFailed):
            key, then = e.credential.removeprefix("key:"), e.next_credential.removeprefix("key:")
            found.append((f"{e.provider}/{e.model}:{key}", e.kind, f"{e.next_provider}/{e.next_model}:{then}"))
        return found


class Failovers(RunCase):
    """The next key, the next model, or nobody."""

    def test_the_next_key_then_the_next_model(self) -> None:
        """The client sees the answer alone; watchers are told each step; each key is asked as itself."""
        self.use(keys="ab")
        client = self.ask(stream=True)
        self.one.fail(RateLimited("slow down"))
        self.one.fail(RateLimited("slow down"))
        self.gate.settle(client)
        self.assertEqual(client.received, b"")
        self.big.say("from big")
        self.big.stop()
        self.gate.settle(client)
        self.assertEqual((client.text(), client.events()[-1]), ("from big", "[DONE]"))
        self.assertEqual([request.credential.key for request in self.one.requests if request.credential], ["secret-a", "secret-b"])
        self.assertEqual(self.steps(), [("fake/one:a", "rate_limit", "fake/one:b"), ("fake/one:b", "rate_limit", "other/big:")])
        self.assertEqual(self.gate.store.turns[-1][1].model, "big")

    def test_the_next_run_does_not_ask_who_rests(self) -> None:
        """It is told so, and comes back when the rest is over."""
        self.use(keys="ab")
        self.ask()
        self.one.fail(RateLimited("slow down"))
        self.one.say("b")
        self.one.stop()
        self.assertEqual(self.gate.serve(text="b again").status, 200)
        self.assertEqual([request.credential.id for request in self.one.requests if request.credential], ["key:a", "key:b", "key:b"])
        self.assertEqual(self.steps()[-1], ("fake/one:a", "cooling_down", "fake/one:b"))
        self.gate.advance(61)
        self.gate.serve()
        assert self.one.requests[-1].credential is not None
        self.assertEqual(self.one.requests[-1].credential.id, "key:a")

    def test_a_server_that_is_down(self) -> None:
        """Its other keys are of no use."""
        for error in (UpstreamError("x"), UpstreamTimeout("x")):
            self.use(keys="abc")
            client = self.ask()
            self.one.fail(error)
            self.big.say("ok")
            self.big.stop()
            self.gate.settle(client)
            self.assertEqual((client.answer().status, len(self.one.requests)), (200, 1))

    def test_who_can_be_asked_for_what(self) -> None:
        """Overflow and what is no failure of a model end the run."""
        for error, status in ((ContextLengthExceeded(), 400), (UpstreamRefused("no"), 502), (InvalidRequest("no"), 400)):
            self.use(keys="ab")
            client = self.ask()
            self.one.fail(error)
            self.gate.settle(client)
            self.assertEqual((client.answer().status, len(self.one.requests), len(self.big.requests)), (status, 1, 0))

    def test_never_after_a_delta(self) -> None:
        """Text, reasoning or a part of a call: what was paid for is not paid for again."""
        for delta in (TextDelta("half"), ReasoningDelta("hm"), ToolCallDelta(0, "{", "call1", "look")):
            self.use(keys="ab", tools=[FakeTool()])
            client = self.ask(stream=True)
            self.one.push([delta])
            self.one.fail(RateLimited("slow down"))
            self.gate.settle(client)
            self.assertEqual((len(self.one.requests), len(self.big.requests), self.of(ModelFailed)), (1, 0, []))

    def test_an_answer_without_a_delta_is_none(self) -> None:
        """The head of the answer alone is no reason to give up."""
        self.use()
        client = self.ask(stream=True)
        self.one.answer()
        self.one.fail(UpstreamError("broke off"))
        self.big.say("ok")
        self.big.stop()
        self.gate.settle(client)
        self.assertEqual((client.text(), [event.model for event in self.of(ModelAnswered)]), ("ok", ["one", "big"]))

    def test_a_model_chosen_for_the_session(self) -> None:
        """Falls back to the other keys and not to other models."""
        self.use(keys="ab")
        chosen = self.gate.settings.directory.agents["main"].models[0]
        self.gate.runs._thinker._find_model = lambda ref: chosen  # type: ignore[attr-defined]
        self.gate.successful = self.successResultOf(self.gate.sessions.patch(_key(self.gate), {"model": "fake/one"}))  # type: ignore[attr-defined]
        client = self.ask(user="alice")
        self.one.fail(refused("auth"))
        self.one.fail(refused("auth"))
        self.gate.settle(client)
        self.assertEqual((client.answer().status, len(self.one.requests), len(self.big.requests)), (502, 2, 0))

    def test_one_key_alone(self) -> None:
        """429 with the provider's Retry-After, and until then without asking again; the error says for how long."""
        self.use({"agents": {"defaults": {"model": "fake/one"}}}, keys="a")
        client = self.ask()
        self.one.fail(RateLimited("slow down", retry_after=7))
        self.gate.settle(client)
        answer = client.answer()
        self.assertEqual((answer.status, answer.headers["retry-after"], answer.error["message"]), (429, "7", "slow down"))
        self.gate.advance(3)
        again = self.ask().answer()
        self.assertEqual((again.status, again.headers["retry-after"], again.error["code"]), (429, "4", "rate_limit_exceeded"))
        self.assertIn("fake/one cools down (rate_limit) for another 4 s, until", again.error["message"])
        self.assertEqual(len(self.one.requests), 1)
        self.gate.advance(4)
        self.assertEqual(self.gate.serve().status, 200)

    def test_an_open_breaker(self) -> None:
        """503 with Retry-After at once, or the fallback; a probe that is cancelled gives its turn to the next run."""
        self.use({"agents": {"defaults": {"model": "fake/one"}}})
        for _ in range(5):
            client = self.ask()
            self.one.fail(UpstreamError("down"))
            self.gate.settle(client)
            self.assertEqual(client.answer().status, 502)
        answer = self.ask().answer()
        self.assertEqual((answer.status, answer.headers["retry-after"], answer.error["code"]), (503, "15", "unavailable"))
        self.gate.advance(15)
        probe = self.ask()
        self.assertEqual((len(self.one.requests), self.ask().answer().status), (6, 503))
        probe.leave()
        self.gate.settle()
        self.assertEqual((self.gate.serve().status, self.gate.health.quiet), (200, True))

    def test_a_probe_that_is_too_long(self) -> None:
        """It was not sent, so the next run is the probe."""
        self.use({"agents": {"defaults": {"model": "fake/one"}}})
        for _ in range(5):
            client = self.ask()
            self.one.fail(UpstreamError("down"))
            self.gate.settle(client)
        self.gate.advance(15)
        client = self.gate.dial(post(chat("x" * 60_000)))
        self.gate.settle(client)
        self.assertEqual((client.answer().error["code"], self.gate.serve().status), ("context_length_exceeded", 200))

    def test_between_rounds(self) -> None:
        """A key that meets its limit after tools have worked is replaced by the next one, which goes on; nothing is done twice."""
        look = FakeTool()
        self.use(keys="ab", tools=[look])
        client = self.ask(stream=True)
        self.one.call(("look", {}))
        self.one.fail(RateLimited("slow down"))
        self.one.say("Done.")
        self.one.stop()
        self.gate.settle(client)
        self.assertEqual((client.text(), len(look.calls)), ("Done.", 1))
        self.assertEqual([request.credential.id for request in self.one.requests if request.credential], ["key:a", "key:a", "key:b"])

    def test_names_of_sessions(self) -> None:
        """Providers get one for a conversation, and none for a single request."""
        self.use()
        self.gate.serve(user="alice")
        self.gate.serve(user="alice")
        self.gate.serve(user="bob")
        self.gate.serve()
        alice, again, bob, single = (request.session for request in self.one.requests)
        self.assertEqual((alice == again, alice == bob, len(alice), single), (True, False, 24, ""))

    def test_the_log(self) -> None:
        """One line for each step, with no key in it."""
        from twisted.logger import capturedLogs, formatEvent

        self.use(keys="ab")
        with capturedLogs() as captured:
            self.ask()
            self.one.fail(RateLimited("slow down"))
            self.one.say("ok")
            self.one.stop()
        lines = [formatEvent(event) or "" for event in captured]
        self.assertEqual(len([line for line in lines if "asking fake/one (key:b)" in line and "rate_limit: slow down" in line]), 1)
        self.assertNotIn("secret-", "".join(lines))

    def test_the_log_of_a_run_that_ends_so(self) -> None:
        """The last failure has a line too: nobody answered, or it came after a delta."""
        from twisted.logger import LogLevel, capturedLogs, formatEvent

        for spoken in (False, True):
            self.use()
            with capturedLogs() as captured:
                self.ask()
                if spoken:
                    self.one.say("partial")
                else:
                    self.one.fail(UpstreamError("the server is down"))
                (self.one if spoken else self.big).fail(UpstreamError("out of order"))
            lines = [formatEvent(event) or "" for event in captured if event["log_level"] is LogLevel.warn and "run " in (formatEvent(event) or "")]
            who = "fake/one" if spoken else "other/big"
            self.assertIn(f"{who} (without a key) failed (server: out of order); nobody else is asked", lines[-1])
            self.assertEqual(len(lines), 1 if spoken else 2)


def _key(gate: Harness) -> SessionKey:
    return SessionKey("main", "openai-user:alice")


def said(text: str) -> Raw:
    """A message of the user."""
    return pack(Message("user", text))


async def _next(events: Any) -> Any:
    return await anext(events)


async def _close(events: Any) -> None:
    await events.aclose()


class NeverTwice(RunCase):
    """A property over all rows of failures."""

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["rate_limit", "billing", "auth", "server", "timeout", "connect", "format", "refused"]),
                st.sampled_from(["", "answered", "text", "reasoning", "call"]),
                st.booleans(),
            ),
            max_size=4,
        )
    )
    def test_no_two_model_turns_are_paid_for(self, fate: list[tuple[str, str, bool]]) -> None:
        """Once a delta has come, nobody else is asked in the same model turn; also where two were asked at once, of whom the other is closed then."""
        self.gateways: list[Harness] = []
        self.use(keys="ab", tools=[FakeTool()], hedge=5.0)
        client = self.ask(stream=True)
        delivered = False
        for kind, first, late in fate:
            if late:
                self.gate.advance(6.0, client)
            live = self.one if self.one._waiting else self.big
            if not live._waiting:
                break
            asked = len(self.one.requests) + len(self.big.requests)
            before: list[Event] = {
                "": [], "answered": [ModelAnswered("x", "y")], "text": [TextDelta("t")], "reasoning": [ReasoningDelta("r")],
                "call": [ToolCallDelta(0, "{}", "c", "look")],
            }[first]  # fmt: skip
            if before:
                live.push(before)
                self.assertEqual(len(self.one._waiting) + len(self.big._waiting), 1)
            delivered = delivered or first in ("text", "reasoning", "call")
            error = refused(kind) if kind != "refused" else UpstreamRefused("no")
            live.fail(error)
            self.gate.settle(client)
            if delivered:
                self.assertEqual(len(self.one.requests) + len(self.big.requests), asked)
                break
        self.assertEqual(self.gate.leftovers(), {})


class Hedges(RunCase):
    """The first model is slow, so the next one is asked too."""

    def test_off(self) -> None:
        """It waits as long as it must."""
        self.use()
        client = self.ask(stream=True)
        self.gate.advance(50, client)
        self.assertEqual(len(self.big.requests), 0)
        self.one.say("late")
        self.one.stop()
        self.gate.settle(client)
        self.assertEqual(client.text(), "late")

    def test_the_second_one_wins(self) -> None:
        """The first is closed before anything of the second is handed on, and is not heard any more; its key and breaker are not blamed."""
        self.use(hedge=2.0)
        client = self.ask(stream=True)
        self.gate.advance(1.9, client)
        self.assertEqual((len(self.one.requests), len(self.big.requests)), (1, 0))
        self.gate.advance(0.2, client)
        self.assertEqual((len(self.big.requests), self.one.closed), (1, 0))
        self.big.say("from ", "big")
        self.assertEqual((self.one.closed, self.big.closed), (1, 0))
        self.big.stop()
        self.gate.settle(client)
        self.assertEqual((client.text(), self.steps()), ("from big", [("fake/one:", "slow", "other/big:")]))
        self.assertEqual((self.gate.store.turns[-1][1].model, self.gate.health.quiet), ("big", True))

    def test_the_first_one_wins(self) -> None:
        """A late first event is still the first: the second is closed, and there was no failure."""
        self.use(hedge=2.0)
        client = self.ask(stream=True)
        self.gate.advance(3, client)
        self.one.say("from one")
        self.assertEqual((self.one.closed, self.big.closed), (0, 1))
        self.one.stop()
        self.gate.settle(client)
        self.assertEqual((client.text(), self.steps()), ("from one", []))

    def test_in_time(self) -> None:
        """Nobody else is asked, and no timer is left."""
        self.use(hedge=2.0)
        client = self.ask(stream=True)
        self.gate.advance(1, client)
        self.one.say("from one")
        self.gate.advance(5, client)
        self.one.stop()
        self.gate.settle(client)
        self.assertEqual((client.text(), len(self.big.requests)), ("from one", 0))

    def test_a_failure_before_its_time(self) -> None:
        """Is a failover as always."""
        self.use(hedge=2.0)
        client = self.ask(stream=True)
        self.one.fail(UpstreamError("down"))
        self.big.say("ok")
        self.big.stop()
        self.gate.settle(client)
        self.assertEqual((client.text(), self.steps()), ("ok", [("fake/one:", "server", "other/big:")]))

    def test_the_first_fails_meanwhile(self) -> None:
        """That does not matter while the other lives."""
        self.use(hedge=2.0)
        client = self.ask(stream=True)
        self.gate.advance(2, client)
        self.one.fail(UpstreamError("down"))
        self.gate.settle(client)
        self.assertEqual(client.received, b"")
        self.big.say("ok")
        self.big.stop()
        self.gate.settle(client)
        self.assertEqual((client.text(), self.steps(), len(self.big.requests)), ("ok", [("fake/one:", "server", "other/big:")], 1))

    def test_the_second_fails_meanwhile(self) -> None:
        """The first goes on, and the second is not asked again when it fails too."""
        for last in (None, UpstreamTimeout("slow")):
            self.use(hedge=2.0)
            client = self.ask()
            self.gate.advance(2, client)
            self.big.fail(UpstreamError("down"))
            self.gate.settle(client)
            if last is None:
                self.one.say("ok")
                self.one.stop()
            else:
                self.one.fail(last)
            self.gate.settle(client)
            self.assertEqual((client.answer().status, len(self.one.requests), len(self.big.requests)), (504 if last else 200, 1, 1))

    def test_both_fail_and_a_third_answers(self) -> None:
        """Each failure counts, and the next model is asked."""
        third = {"agents": {"defaults": {"model": {"primary": "fake/one", "fallbacks": ["other/big", "fake/two"]}}}, "models": FALLBACKS["models"]}
        self.use(third, hedge=2.0)
        client = self.ask()
        self.gate.advance(2, client)
        self.big.fail(UpstreamError("down"))
        self.one.fail(UpstreamError("down"))
        self.one.say("from two")
        self.one.stop()
        self.gate.settle(client)
        self.assertIn(b"from two", client.answer().body)
        self.assertEqual([request.model.id for request in self.one.requests], ["one", "two"])
        self.assertFalse(self.gate.health.quiet)

    def test_the_client_leaves(self) -> None:
        """Both are closed at once."""
        self.use(hedge=2.0)
        client = self.ask(stream=True)
        self.gate.advance(3, client)
        client.leave()
        self.gate.settle()
        self.assertEqual((self.one.closed, self.big.closed, self.gate.leftovers()), (1, 1, {}))

    def test_the_client_leaves_before(self) -> None:
        """The timer is gone with it."""
        self.use(hedge=2.0)
        client = self.ask(stream=True)
        client.leave()
        self.gate.settle()
        self.assertEqual((self.one.closed, len(self.big.requests), self.gate.leftovers()), (1, 0, {}))

    def test_the_run_ends_while_it_is_told(self) -> None:
        """Before anything of the winner is read: it is closed all the same."""
        self.use(hedge=2.0)
        turn = Turn("run1", self.gate.settings.directory.agents["main"], _key(self.gate), True, (said("hi"),), "chat")
        host: Any = SimpleNamespace(clock=self.gate.clock, asking=lambda request: request, exceeded=lambda: None)
        thinking = self.gate.runs._thinker.think(turn, History("s", None, ()), host)
        first = Deferred.fromCoroutine(_next(thinking))
        self.gate.clock.advance(2)
        self.big.say("from big")
        self.assertEqual([type(event) for event in self.successResultOf(first)], [ModelFailed])
        self.successResultOf(Deferred.fromCoroutine(_close(thinking)))
        self.assertEqual((self.one.closed, self.big.closed), (1, 1))

    def test_the_first_says_that_it_is_too_much(self) -> None:
        """The other one may have more room, and is being asked already."""
        self.use(hedge=2.0)
        client = self.ask(stream=True)
        self.gate.advance(2, client)
        self.one.fail(ContextLengthExceeded())
        self.big.say("ok")
        self.big.stop()
        self.gate.settle(client)
        self.assertEqual((client.text(), self.steps()), ("ok", [("fake/one:", "overflow", "other/big:")]))

    def test_nobody_to_hedge_with(self) -> None:
        """One model, or one whose provider's breaker is open."""
        self.use({"agents": {"defaults": {"model": "fake/one"}}}, hedge=2.0)
        client = self.ask(stream=True)
        self.gate.advance(3, client)
        self.one.say("ok")
        self.one.stop()
        self.gate.settle(client)
        self.assertEqual(client.text(), "ok")
        self.use(hedge=2.0)
        from mayros.core.health import Try

        big = self.gate.runs._thinker._plans.candidates(self.gate.settings.directory.agents["main"].models, "s")[1]  # type: ignore[attr-defined]
        for _ in range(5):
            self.gate.health.failed(Try(big, 0.0), UpstreamError("down"), self.gate.clock.seconds())
        client = self.ask(stream=True)
        self.gate.advance(3, client)
        self.one.say("ok")
        self.one.stop()
        self.gate.settle(client)
        self.assertEqual((client.text(), len(self.big.requests)), ("ok", 0))

    def test_a_defect(self) -> None:
        """Is logged and ends the run, whoever has it."""
        self.use(hedge=2.0)
        client = self.ask()
        self.gate.advance(2, client)
        self.big.fail(ZeroDivisionError("inside"))
        self.gate.settle(client)
        self.assertEqual((client.answer().status, self.one.closed), (500, 1))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_the_configuration(self) -> None:
        """`hedgeAfterMs` of the agent's model, else of all agents."""
        model = {"primary": "fake/one", "fallbacks": ["fake/two"], "hedgeAfterMs": 1500}
        agents = [{"id": "main"}, {"id": "beta", "model": {"primary": "fake/one", "hedgeAfterMs": 10}}, {"id": "gamma", "model": "fake/two"}]
        gate = self.gateway({"agents": {"defaults": {"model": model}, "list": agents}})
        self.assertEqual([gate.settings.directory.agents[name].hedge_seconds for name in ("main", "beta", "gamma")], [1.5, 0.01, 1.5])
