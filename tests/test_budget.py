"""Limits on what runs may use, and what is counted: whole runs over fakes, through HTTP where the client's view matters."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mayros.core.keys import SessionKey
from mayros.core.ports import ModelTurn, Principal, Turn
from mayros.core.spending import Spent
from mayros.errors import BudgetExceeded, RunAborted, UpstreamError
from mayros.events import ModelAnswered, ReasoningDelta, TextDelta, TurnFinished, Usage
from mayros.messages import Message, pack, unpack
from tests.helpers import Answer, FakeTool, Harness, chat, post

OWNER = Principal("owner", frozenset({"operator.admin"}))
#: A million tokens at $3, written ones at $15, cached ones at $0.30 and $3.75.
PRICED = {"id": "one", "contextWindow": 100_000, "cost": {"input": 3, "output": 15, "cacheRead": 0.3, "cacheWrite": 3.75}}
BASE = {"models": {"providers": {"fake": {"models": [PRICED, {"id": "two", "cost": {"output": 100}}]}}}}


class BudgetCase(SynchronousTestCase):
    """A gateway with limits."""

    def use(self, *tools: Any, own: dict[str, Any] | None = None, **limits: Any) -> None:
        listed = [{"id": "main", "limits": own or {}}, {"id": "beta"}]
        self.gateway = Harness(self, {**BASE, "limits": limits, "agents": {"list": listed}}, tools=tools)
        self.provider, self.store, self.spending = self.gateway.provider, self.gateway.store, self.gateway.runs.spending

    def submit(self, text: str = "hi", name: str = "main", run_id: str = "r", session: str = "s", **fields: Any) -> Any:
        """A run of a session."""
        agent = self.gateway.settings.directory.agents[name]
        turn = Turn(run_id, agent, SessionKey(name, session), False, (pack(Message("user", text)),), "ws", **fields)
        return self.gateway.runs.submit(turn, OWNER)

    def ask(self, **fields: Any) -> Answer:
        """A whole request, whose model is not asked or has been told what to say."""
        client = self.gateway.dial(post(chat(**fields)))
        self.gateway.settle(client)
        return client.answer()

    def today(self) -> Spent:
        return self.spending.today(int(self.gateway.clock.seconds() * 1000))[0]


class CountedTests(BudgetCase):
    """What a run is said to have used."""

    def test_the_sum_over_the_model_turns(self) -> None:
        """Through the OpenAI door: the sum over all model turns, cached tokens within the prompt's and reasoning within the completion's."""
        self.use(FakeTool(answer="found"))
        client = self.gateway.dial(post(chat()))
        self.provider.call(("look", {}), usage=Usage(100, 20, cache_read=50, cache_write=10, reasoning=5))
        self.provider.say("done")
        self.provider.stop(usage=Usage(30, 7, cache_read=160))
        self.gateway.settle(client)
        self.assertEqual(
            client.answer().json["usage"],
            {
                "prompt_tokens": 350, "completion_tokens": 27, "total_tokens": 377,
                "prompt_tokens_details": {"cached_tokens": 210}, "completion_tokens_details": {"reasoning_tokens": 5},
            },
        )  # fmt: skip

    def test_a_streams_usage(self) -> None:
        """The same in the last chunk of a stream."""
        self.use(FakeTool(answer="found"))
        client = self.gateway.dial(post(chat(stream=True, stream_options={"include_usage": True})))
        self.provider.call(("look", {}), usage=Usage(100, 20))
        self.provider.say("done")
        self.provider.stop(usage=Usage(30, 7))
        self.gateway.settle(client)
        self.assertEqual(json.loads(client.events()[-2])["usage"]["total_tokens"], 157)

    def test_cost(self) -> None:
        """By hand: 130 x 3 + 27 x 15 + 210 x 0.3 + 10 x 3.75 = 390 + 405 + 63 + 37.5 = 895.5 millionths of a dollar."""
        self.use(FakeTool(answer="found"))
        run = self.submit()
        self.provider.call(("look", {}), usage=Usage(100, 20, cache_read=50, cache_write=10, reasoning=5))
        self.provider.say("done")
        self.provider.stop(usage=Usage(30, 7, cache_read=160))
        self.assertEqual(run.result.usage.cost_nano, 895_500)
        self.assertEqual(self.today(), Spent(377, 895_500))

    def test_each_model_turn(self) -> None:
        """Of a run with several model turns each is known, and which message it made."""
        self.use(FakeTool(answer="found"))
        run = self.submit()
        self.provider.call(("look", {}), usage=Usage(100, 20))
        self.provider.say("done")
        self.provider.stop(usage=Usage(30, 7))
        first, last = Usage(100, 20, cost_nano=600_000), Usage(30, 7, cost_nano=195_000)
        self.assertEqual(run.result.turns, (ModelTurn("fake", "one", first, 0), ModelTurn("fake", "one", last, 2)))
        said = [unpack(raw).role for raw in self.store.sessions["agent:main:s"]]
        self.assertEqual(said, ["user", "assistant", "tool", "assistant"])

    def test_one_model_turn(self) -> None:
        """Of most runs there is only the sum."""
        self.use()
        run = self.submit()
        self.provider.say("done")
        self.provider.stop()
        self.assertEqual((run.result.turns, run.result.usage.input), ((), 7))

    def test_the_last_report_holds(self) -> None:
        """Some providers tell the input at the beginning and all at the end."""
        self.use()
        run = self.submit()
        self.provider.push([Usage(input=100)])
        self.provider.say("done")
        self.provider.stop(usage=Usage(100, 20))
        self.assertEqual((run.result.usage.input, run.result.usage.output, self.today().tokens), (100, 20, 120))

    def test_cut_off_before_the_report(self) -> None:
        """An answer that is aborted was paid for: it counts by estimate, four characters a token."""
        self.use()
        run = self.submit("x" * 4_000)
        self.provider.say("y" * 400)
        self.gateway.runs.abort("r", RunAborted())
        self.gateway.settle()
        self.assertEqual(run.result.outcome, "aborted")
        self.assertEqual(run.result.usage.output, 100)
        self.assertGreater(run.result.usage.input, 1_000)
        self.assertEqual(run.result.usage.cost_nano, 1_000 * (3 * run.result.usage.input + 15 * 100))
        self.assertEqual(self.today().tokens, run.result.usage.input + 100)

    def test_cut_off_among_the_calls(self) -> None:
        """The model turn was over, and is counted as it was reported."""
        self.use(FakeTool(answer=None))
        run = self.submit()
        self.provider.call(("look", {}), text="y" * 400, usage=Usage(100, 20))
        self.gateway.runs.abort("r", RunAborted())
        self.gateway.settle()
        self.assertEqual((run.result.outcome, run.result.usage.input, run.result.usage.output), ("aborted", 100, 20))

    def test_cut_off_after_a_first_report(self) -> None:
        """What was reported is believed, the rest is estimated."""
        self.use()
        run = self.submit()
        self.provider.push([Usage(input=5, cache_read=900, output=1)])
        self.provider.say("y" * 400)
        self.provider.fail(UpstreamError())
        self.gateway.settle()
        used = run.result.usage
        self.assertEqual((used.input, used.cache_read, used.output, used.cost_nano), (5, 900, 100, 1_000 * (15 + 270 + 1_500)))

    def test_a_server_that_reports_nothing(self) -> None:
        """Is believed to have used nothing; nothing is invented for the client."""
        self.use()
        run = self.submit()
        self.provider.say("done")
        self.provider.stop(usage=Usage())
        self.assertEqual(run.result.usage, Usage())

    def test_a_model_that_fails_before_it_speaks(self) -> None:
        """Is not counted; the one that answered is."""
        self.gateway = Harness(self, {**BASE, "agents": {"defaults": {"model": {"primary": "fake/one", "fallbacks": ["fake/two"]}}}})
        self.provider, self.store, self.spending = self.gateway.provider, self.gateway.store, self.gateway.runs.spending
        run = self.submit()
        self.provider.fail(UpstreamError())
        self.provider.say("done")
        self.provider.stop(usage=Usage(100, 20))
        self.assertEqual((run.result.model, run.result.turns, run.result.usage.cost_nano), ("two", (), 2_000_000))
        self.assertEqual([whose["model"] for whose, _, _ in self.store.used], ["two"])

    def test_a_change_of_models(self) -> None:
        """A run that went on with another model counts for each what it used; it is one run."""
        self.gateway = Harness(
            self, {**BASE, "agents": {"defaults": {"model": {"primary": "fake/one", "fallbacks": ["fake/two"]}}}}, tools=[FakeTool(answer="found")]
        )
        self.provider, self.store, self.spending = self.gateway.provider, self.gateway.store, self.gateway.runs.spending
        run = self.submit()
        self.provider.call(("look", {}), usage=Usage(100, 20))
        self.provider.fail(UpstreamError())
        self.provider.say("done")
        self.provider.stop(usage=Usage(30, 7))
        self.assertEqual([(one.model, one.usage.output) for one in run.result.turns], [("one", 20), ("two", 7)])
        self.assertEqual([(whose["model"], runs) for whose, runs, _ in self.store.used], [("one", 0), ("two", 1)])
        self.assertEqual({whose["principal"] for whose, _, _ in self.store.used}, {"owner"})


class RunTests(BudgetCase):
    """A run that reaches its limit ends, and says so."""

    def test_between_model_turns(self) -> None:
        """After the calls that were made, the model is not asked again: finish_reason length, and a sentence."""
        self.use(FakeTool(answer="found"), runTokens=1_000)
        client = self.gateway.dial(post(chat()))
        self.provider.call(("look", {}), text="Looking.", usage=Usage(980, 20))
        self.gateway.settle(client)
        choice = client.answer().json["choices"][0]
        self.assertEqual(choice["finish_reason"], "length")
        self.assertEqual(
            choice["message"]["content"], "Looking.\n\n[This run ends here: it has reached its limit of 1,000 tokens (limits.runTokens).]"
        )
        self.assertEqual(len(self.provider.requests), 1)

    def test_dollars(self) -> None:
        """The same for what it cost: 100 x 3 + 20 x 15 = 600 millionths of a dollar."""
        self.use(FakeTool(answer="found"), own={"runCost": 0.0006})
        run = self.submit()
        self.provider.call(("look", {}), usage=Usage(100, 20))
        self.assertEqual((run.result.outcome, run.result.finish_reason), ("ok", "length"))
        self.assertIn("limit of $0.0006 for the agent main (agents.list[].limits.runCost)", run.result.text)

    def test_below(self) -> None:
        """What is left has room for another prompt: it goes on."""
        self.use(FakeTool(answer="found"), runTokens=100_000)
        run = self.submit()
        self.provider.call(("look", {}), usage=Usage(90_000, 5_000))
        self.assertEqual(len(self.provider.requests), 2)
        self.provider.say("done")
        self.provider.stop()
        self.assertEqual((run.result.text, run.result.finish_reason), ("done", "stop"))

    def test_the_answer_is_asked_for_no_longer_than_is_left(self) -> None:
        """max_tokens is what is left after the prompt; a smaller one of the caller's stays."""
        self.use(runTokens=500)
        self.submit("x" * 400)
        asked = self.provider.requests[-1].sampling.max_tokens
        assert asked is not None
        self.assertTrue(200 < asked < 400, asked)
        self.provider.say("done")
        self.provider.stop()
        client = self.gateway.dial(post(chat(max_tokens=3)))
        self.assertEqual(self.provider.requests[-1].sampling.max_tokens, 3)
        most = self.provider.requests[-1].most_tokens  # for adapters that add the vendor's thinking to max_tokens
        assert most is not None
        self.assertTrue(400 < most < 500, most)
        self.provider.say("done")
        self.provider.stop("length")
        self.gateway.settle(client)
        self.assertEqual(client.answer().json["choices"][0]["message"]["content"], "done")

    def test_no_more_than_the_model_can(self) -> None:
        """A limit that is far away changes nothing in the request."""
        self.use(runTokens=10**9, dayCost=1_000)
        self.submit()
        self.assertIsNone(self.provider.requests[-1].sampling.max_tokens)

    def test_a_prompt_that_is_too_much(self) -> None:
        """No model is asked what can only lead beyond the limit; nothing is used."""
        self.use(runTokens=500)
        client = self.gateway.dial(post(chat("x" * 2_000)))
        self.gateway.settle(client)
        choice = client.answer().json["choices"][0]
        self.assertEqual(choice["finish_reason"], "length")
        why = "[This run ends here: the next prompt does not fit into its limit of 500 tokens (limits.runTokens).]"
        self.assertEqual(choice["message"]["content"], why)
        self.assertEqual((self.provider.requests, self.store.used, len(self.store.turns)), ([], [], 1))

    def test_a_result_that_is_too_much(self) -> None:
        """The same after calls: what they brought is recorded, and not paid for."""
        self.use(FakeTool(answer="word " * 2_000), runTokens=1_000)
        run = self.submit()
        self.provider.call(("look", {}), text="Looking.", usage=Usage(100, 20))
        self.assertEqual((run.result.finish_reason, len(self.provider.requests)), ("length", 1))
        self.assertTrue(run.result.text.startswith("Looking.\n\n[This run ends here: the next prompt does not fit into its limit of 1,000 tokens"))
        self.assertEqual([unpack(raw).role for raw in self.store.sessions["agent:main:s"]], ["user", "assistant", "tool", "assistant"])

    def test_an_answer_that_was_made_short(self) -> None:
        """The model stops at max_tokens: the reader is told why, before the end."""
        self.use(runTokens=500)
        run = self.submit()
        self.provider.say("a long story")
        self.provider.stop("length", Usage(100, 400))
        self.assertEqual(run.result.text, "a long story\n\n[This run ends here: it has reached its limit of 500 tokens (limits.runTokens).]")
        self.assertEqual(run.result.finish_reason, "length")

    def test_a_stream_that_does_not_end(self) -> None:
        """A server that ignores max_tokens is cut off by estimate, four characters a token, its socket is closed, and what came is counted."""
        self.use(runTokens=300)
        client = self.gateway.dial(post(chat(stream=True)))
        for _ in range(4):
            self.provider.say("word " * 100)
            self.gateway.settle(client)
        self.assertEqual(self.provider.closed, 1)
        self.assertTrue(client.text().endswith("word \n\n[This run ends here: it has reached its limit of 300 tokens (limits.runTokens).]"))
        self.assertEqual(json.loads(client.events()[-2])["choices"][0]["finish_reason"], "length")
        self.assertEqual(client.events()[-1], "[DONE]")
        _, result = self.store.turns[-1]
        self.assertEqual((result.outcome, result.text), ("ok", client.text()))
        self.assertGreater(self.today().tokens, 300)

    def test_reasoning_counts(self) -> None:
        """Also what the reader may not see is written and paid for."""
        self.use(runTokens=300)
        run = self.submit()
        self.provider.push([ModelAnswered("fake", "one"), ReasoningDelta("hm. " * 400)])
        self.assertEqual((self.provider.closed, run.result.finish_reason), (1, "length"))
        self.assertEqual(run.result.usage.output, 400)
        self.assertEqual(run.result.text, "[This run ends here: it has reached its limit of 300 tokens (limits.runTokens).]")

    def test_an_answer_that_is_whole(self) -> None:
        """The end came together with what was too much: nothing is cut off."""
        self.use(runTokens=300)
        run = self.submit()
        self.provider.push([TextDelta("word " * 400), Usage(10, 350), TurnFinished("stop")])
        self.provider.push(None)
        self.assertEqual((run.result.text, run.result.finish_reason), ("word " * 400, "stop"))

    def test_without_limits_nothing_is_watched(self) -> None:
        """An answer of any length, and no max_tokens."""
        self.use()
        run = self.submit()
        self.provider.say("word " * 10_000)
        self.provider.stop(usage=Usage(10, 10_000))
        self.assertEqual((run.result.finish_reason, self.provider.requests[-1].sampling.max_tokens), ("stop", None))


class DayTests(BudgetCase):
    """When the day's limit is reached."""

    def test_the_next_request_is_refused(self) -> None:
        """With 429 budget_exceeded, when to come again, and not to be tried before; nothing is recorded and no model asked."""
        self.use(dayTokens=100)
        self.provider.say("ok")
        self.provider.stop(usage=Usage(60, 40))
        self.assertEqual(self.ask().status, 200)
        refused = self.ask(stream=True)
        self.assertEqual((refused.status, refused.error["type"], refused.error["code"]), (429, "rate_limit_error", "budget_exceeded"))
        self.assertEqual(refused.error["message"], "Today's limit of 100 tokens (limits.dayTokens) is reached. It begins anew at midnight, UTC.")
        # The clock stands at 1,000 seconds after midnight.
        self.assertEqual((refused.headers["retry-after"], refused.headers["x-should-retry"]), ("85400", "false"))
        self.assertEqual((len(self.store.turns), len(self.provider.requests)), (1, 1))
        self.gateway.clock.advance(85_400)
        self.provider.say("ok")
        self.provider.stop()
        self.assertEqual(self.ask().status, 200)

    def test_a_prompt_for_which_nothing_is_left(self) -> None:
        """Is refused in the same way: it would only lead beyond the limit. One that has room is answered."""
        self.use(dayTokens=1_000)
        client = self.gateway.dial(post(chat("x" * 4_000)))
        self.gateway.settle(client)
        refused = client.answer()
        self.assertEqual((refused.status, refused.error["code"], refused.headers["retry-after"]), (429, "budget_exceeded", "85400"))
        self.assertIn("Today's limit of 1,000 tokens (limits.dayTokens) has no room left for this prompt.", refused.error["message"])
        self.assertEqual((self.store.turns, self.provider.requests), ([], []))
        self.provider.say("ok")
        self.provider.stop()
        self.assertEqual(self.ask().status, 200)

    def test_another_agent(self) -> None:
        """An agent's own limit is no other one's."""
        self.use(own={"dayCost": 0.0001})
        self.submit()
        self.provider.say("ok")
        self.provider.stop(usage=Usage(0, 7))
        self.assertRaises(BudgetExceeded, self.submit)
        self.submit(name="beta")
        self.provider.say("ok")
        self.provider.stop()

    def test_those_that_wait(self) -> None:
        """A run that was queued before the limit was reached is refused when its turn comes, and not recorded."""
        self.use(dayTokens=100)
        self.submit(run_id="first")
        second = self.submit(run_id="second")
        self.provider.say("ok")
        self.provider.stop(usage=Usage(60, 40))
        self.gateway.settle()
        self.assertEqual((second.result.outcome, second.result.error_code), ("error", "budget_exceeded"))
        self.assertEqual([result.run_id for _, result in self.store.turns], ["first"])

    def test_runs_side_by_side(self) -> None:
        """What others use meanwhile counts for a run that goes on."""
        self.use(FakeTool(answer="found"), dayTokens=1_000)
        run = self.submit(session="a", run_id="a")
        self.spending.add("beta", 900, 0, int(self.gateway.clock.seconds() * 1000))
        self.provider.call(("look", {}), usage=Usage(80, 20))
        self.assertEqual(run.result.finish_reason, "length")
        self.assertIn("[This run ends here: today has reached the limit of 1,000 tokens (limits.dayTokens).]", run.result.text)
