"""Function tools that the caller runs himself: what he gets, how he goes on, and how they live with the gateway's own, table 1.5 of the facts."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from mayros.core.acting import NOT_MADE
from mayros.core.keys import SessionKey
from mayros.core.pending import NO_RESULT, joined, left_open, settled
from mayros.core.ports import History, Lease, Turn
from mayros.errors import InvalidRequest, UpstreamError
from mayros.events import TextDelta, ToolCallDelta, ToolStarted, Usage
from mayros.messages import Message, unpack
from tests.helpers import Answer, Client, FakeTool, Harness, HarnessCase, post
from tests.test_repair import faults, result, says, user
from tests.test_storage import ALICE, StoreTestCase
from tests.test_ws import ask
from tests.test_ws_chat import Base

PLACE = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
PARIS = '{"place":"Paris"}'


def function(name: str = "weather", **more: Any) -> dict[str, Any]:
    """A function tool."""
    return {"type": "function", "function": {"name": name, "description": "W.", "parameters": PLACE, **more}}


def pin(name: str) -> dict[str, Any]:
    """The choice of one function."""
    return {"type": "function", "function": {"name": name}}


def called(*calls: tuple[str, str, str]) -> dict[str, Any]:
    """An assistant message with calls: id, name and arguments each."""
    made = [{"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}} for id_, name, arguments in calls]
    return {"role": "assistant", "content": None, "tool_calls": made}


def found(id_: str, text: str = "sunny") -> dict[str, Any]:
    """The result of a call."""
    return {"role": "tool", "tool_call_id": id_, "content": text}


def asked(text: str = "hi") -> dict[str, Any]:
    """A user's message."""
    return {"role": "user", "content": text}


class CallerCase(HarnessCase):
    """Short ways to ask."""

    def use(self, *tools: Any, changes: dict[str, Any] | None = None) -> Harness:
        """A gateway whose agent has these tools."""
        self.one = Harness(self, changes, tools=tools)
        self.gateways.append(self.one)
        self.provider = self.one.provider
        return self.one

    def ask(self, *messages: dict[str, Any], tools: Any = (), **fields: Any) -> Client:
        """Send a request with the function `weather`, or with these tools."""
        return self.one.dial(post({"messages": list(messages) or [asked()], "tools": list(tools) or [function()], **fields}))

    def answer(self, client: Client) -> Answer:
        """Its answer, which must be there."""
        self.one.settle(client)
        return client.answer()

    def call(self, *messages: dict[str, Any], text: str = "", arguments: str = PARIS, **fields: Any) -> Answer:
        """A request whose model calls `weather`."""
        client = self.ask(*messages, **fields)
        self.provider.call(("weather", arguments), text=text)
        return self.answer(client)

    def say(self, *messages: dict[str, Any], text: str = "Sunny.", **fields: Any) -> Answer:
        """A request whose model says something."""
        client = self.ask(*messages, **fields)
        self.provider.say(text)
        self.provider.stop()
        return self.answer(client)

    def refused(self, param: str, *messages: dict[str, Any], **fields: Any) -> str:
        """A request that is refused before a model is asked; the message."""
        before = len(self.provider.requests)
        answer = self.answer(self.ask(*messages, **fields))
        self.assertEqual((answer.status, answer.error["type"], answer.error["param"]), (400, "invalid_request_error", param))
        self.assertEqual(len(self.provider.requests), before)
        return str(answer.error["message"])

    def id_of(self, answer: Answer) -> str:
        """The id of the one call that is handed back."""
        (call,) = answer.json["choices"][0]["message"]["tool_calls"]
        return str(call["id"])

    def recorded(self, session: str = "agent:main:openai-user:ann") -> list[Message]:
        """What a session holds."""
        return [unpack(raw) for raw in self.one.store.sessions.get(session, [])]


class Handed(CallerCase):
    """What the caller gets when the model calls one of his functions."""

    def test_plain(self) -> None:
        """The run ends with the calls; content is null, or the text before them."""
        self.use()
        answer = self.call()
        (choice,) = answer.json["choices"]
        self.assertEqual((answer.status, choice["finish_reason"], choice["logprobs"]), (200, "tool_calls", None))
        message = choice["message"]
        self.assertEqual(
            message,
            {
                "role": "assistant", "content": None, "refusal": None,
                "tool_calls": [{"id": "call10", "type": "function", "function": {"name": "weather", "arguments": PARIS}}],
            },
        )  # fmt: skip
        self.assertEqual(answer.json["usage"]["total_tokens"], 10)
        self.assertEqual(self.call(text="Let me see.").json["choices"][0]["message"]["content"], "Let me see.")

    def test_what_the_model_is_told(self) -> None:
        """The functions, after the agent's own tools; nothing of a choice that is the usual one."""
        self.use(FakeTool("look"))
        self.call(tools=[function(), function("tide", strict=True, parameters=None, description=None)])
        request = self.provider.requests[0]
        self.assertEqual([(tool.name, tool.strict) for tool in request.tools], [("look", None), ("weather", None), ("tide", True)])
        self.assertEqual(request.tools[2].parameters, {"type": "object", "properties": {}})
        self.assertEqual((request.tool_choice, request.parallel_calls), ("auto", True))

    def test_streamed(self) -> None:
        """Each call as it is being written: id, type and name once, then its arguments in pieces; places from 0 among the caller's calls."""
        self.use()
        client = self.ask(tools=[function(), function("tide")], stream=True, stream_options={"include_usage": True})
        self.provider.push([TextDelta("Hm."), ToolCallDelta(0, "", "a", "weather")])
        self.one.settle(client)
        self.assertIn('"name":"weather"', client.events()[-1])
        self.provider.push([ToolCallDelta(0, '{"place":'), ToolCallDelta(1, "{", "b", "tide"), ToolCallDelta(0, '"Paris"}')])
        self.provider.push([ToolCallDelta(1, "}")])
        self.provider.stop("tool_calls")
        self.one.settle(client)
        chunks = [json.loads(event) for event in client.events()[:-1]]
        self.assertEqual(client.events()[-1], "[DONE]")
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
        self.assertEqual(deltas[:2], [{"role": "assistant", "content": ""}, {"content": "Hm."}])
        parts = [delta["tool_calls"] for delta in deltas[2:-1]]
        self.assertEqual(
            parts,
            [
                [{"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": ""}}],
                [{"index": 0, "function": {"arguments": '{"place":'}}],
                [{"index": 1, "id": "b", "type": "function", "function": {"name": "tide", "arguments": ""}}],
                [{"index": 1, "function": {"arguments": "{"}}],
                [{"index": 0, "function": {"arguments": '"Paris"}'}}],
                [{"index": 1, "function": {"arguments": "}"}}],
            ],
        )
        self.assertEqual([chunk["choices"][0]["finish_reason"] for chunk in chunks[-2:-1]], ["tool_calls"])
        self.assertEqual((chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]), ([], 10))

    def test_arguments_are_always_json(self) -> None:
        """A call without arguments has an empty object, also in a stream, where clients join the pieces."""
        self.use()
        self.assertEqual(self.call(arguments="").json["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"], "{}")
        client = self.ask(stream=True)
        self.provider.call(("weather", ""))
        self.one.settle(client)
        joined_ = "".join(
            part["function"]["arguments"] for event in client.events()[:-1] for part in json.loads(event)["choices"][0]["delta"].get("tool_calls", ())
        )
        self.assertEqual(joined_, "{}")

    def test_what_is_wrong_with_a_call_is_the_callers_to_say(self) -> None:
        """The gateway hands on what the model wrote; its own record stays JSON."""
        self.use()
        answer = self.call(arguments="{nope", user="ann")
        self.assertEqual(answer.json["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"], "{nope")
        (call,) = self.recorded()[-1].tool_calls or ()
        self.assertEqual(call.function.arguments, "{}")

    def test_a_call_that_was_cut_off(self) -> None:
        """It is none: finish_reason says length; whole ones before it are handed back."""
        self.use()
        client = self.ask()
        self.provider.push([TextDelta("So"), ToolCallDelta(0, '{"pla', "a", "weather")])
        self.provider.stop("length")
        (choice,) = self.answer(client).json["choices"]
        self.assertEqual((choice["finish_reason"], choice["message"]), ("length", {"role": "assistant", "content": "So", "refusal": None}))
        client = self.ask()
        self.provider.push([ToolCallDelta(0, PARIS, "a", "weather"), ToolCallDelta(1, '{"pla', "b", "weather")])
        self.provider.stop("length")
        (choice,) = self.answer(client).json["choices"]
        self.assertEqual((choice["finish_reason"], [call["id"] for call in choice["message"]["tool_calls"]]), ("length", ["a"]))

    def test_a_filtered_answer_has_no_calls(self) -> None:
        """What the provider stopped is not acted upon."""
        self.use()
        client = self.ask()
        self.provider.push([TextDelta("So"), ToolCallDelta(0, PARIS, "a", "weather")])
        self.provider.stop("content_filter")
        (choice,) = self.answer(client).json["choices"]
        self.assertEqual((choice["finish_reason"], "tool_calls" in choice["message"]), ("content_filter", False))

    def test_a_function_that_is_not_there(self) -> None:
        """The model is told which there are, and goes on; the caller sees nothing of it."""
        self.use()
        client = self.ask()
        self.provider.call(("wether", PARIS))
        self.assertIn("weather", self.provider.seen[-1]["content"])
        self.provider.call(("weather", PARIS))
        self.assertEqual(self.answer(client).json["choices"][0]["finish_reason"], "tool_calls")

    def test_a_failure_after_a_call_began(self) -> None:
        """An error event; nobody else is asked, and a client must not ask again by itself."""
        self.use()
        client = self.ask(stream=True)
        self.provider.push([ToolCallDelta(0, PARIS, "a", "weather")])
        self.provider.fail(UpstreamError())
        self.one.settle(client)
        self.assertEqual(json.loads(client.events()[-1])["error"]["code"], "upstream_error")


class Chosen(CallerCase):
    """tool_choice and parallel_tool_calls."""

    def test_none(self) -> None:
        """The functions are dropped, the agent's tools stay."""
        self.use(FakeTool("look"))
        answer = self.say(tool_choice="none")
        request = self.provider.requests[0]
        self.assertEqual((answer.status, [tool.name for tool in request.tools], request.tool_choice), (200, ["look"], "auto"))

    def test_required_and_pinned(self) -> None:
        """The provider is told; of a pinned one's companions nothing."""
        self.use()
        for choice, names, told in (("required", ["weather", "tide"], "required"), (pin("weather"), ["weather"], "function:weather")):
            self.assertEqual(self.call(tools=[function(), function("tide")], tool_choice=choice).status, 200)
            request = self.provider.requests[-1]
            self.assertEqual(([tool.name for tool in request.tools], request.tool_choice), (names, told))

    def test_not_obeyed(self) -> None:
        """502, and no automatic repetition: plain, streamed, and where the model called what it was not to call."""
        self.use()
        for choice in ("required", pin("weather")):
            answer = self.say(tool_choice=choice)
            self.assertEqual((answer.status, answer.error["type"], answer.error["code"]), (502, "api_error", "tool_choice_unsatisfied"))
            self.assertEqual(answer.headers["x-should-retry"], "false")
            self.assertIn("tool_choice", answer.error["message"])
        client = self.ask(tool_choice="required", stream=True)
        self.provider.say("No.")
        self.provider.stop()
        self.one.settle(client)
        self.assertEqual((client.events()[-1] == "[DONE]", json.loads(client.events()[-1])["error"]["type"]), (False, "api_error"))
        client = self.ask(tools=[function(), function("tide")], tool_choice=pin("weather"))
        self.provider.call(("tide", "{}"))
        self.provider.say("Well.")
        self.provider.stop()
        self.assertEqual(self.answer(client).status, 502)

    def test_cut_short_is_not_disobedience(self) -> None:
        """A model that ran into its limit says length."""
        self.use()
        client = self.ask(tool_choice="required")
        self.provider.say("I")
        self.provider.stop("length")
        self.assertEqual(self.answer(client).json["choices"][0]["finish_reason"], "length")

    def test_one_at_a_time(self) -> None:
        """Without parallel calls only the first of a turn is handed back, streamed or not; the provider is asked for one too."""
        self.use()
        for stream in (False, True):
            client = self.ask(parallel_tool_calls=False, stream=stream, user="ann")
            self.provider.call(("weather", PARIS), ("weather", "{}"))
            self.one.settle(client)
            if stream:
                self.assertNotIn('"index":1', "".join(client.events()))
            else:
                self.assertEqual(len(client.answer().json["choices"][0]["message"]["tool_calls"]), 1)
            self.assertEqual(len(self.recorded()[-1].tool_calls or ()), 1)
            self.assertFalse(self.provider.requests[-1].parallel_calls)

    def test_a_name_of_the_gateways(self) -> None:
        """Is refused, however it is spelled, with its place; also in a stream, before its head."""
        self.use(FakeTool("look"))
        for name in ("look", "LOOK"):
            self.assertIn(name, self.refused("tools[1].function.name", tools=[function(), function(name)]))
        self.refused("tools[0].function.name", tools=[function("Look")], stream=True)
        self.use()
        self.assertEqual(self.say(tools=[function("look")]).status, 200)

    def test_a_model_without_tools(self) -> None:
        """Is refused, naming the field; without any to call it answers."""
        entry = {"id": "one", "name": "One", "contextWindow": 8192, "maxTokens": 1024, "tools": False}
        self.use(changes={"models": {"providers": {"fake": {"models": [entry]}}}})
        self.assertIn("fake/one", self.refused("tools"))
        self.assertEqual(self.say(tool_choice="none").status, 200)


class Together(CallerCase):
    """The gateway's tools and the caller's in one run."""

    def test_the_gateways_calls_are_made(self) -> None:
        """They never show; the run goes on until the model calls a function of the caller's, or is done."""
        look = FakeTool("look", "a map")
        self.use(look)
        client = self.ask(stream=True)
        self.provider.call(("look", {"n": 1}))
        self.provider.call(("weather", PARIS))
        self.one.settle(client)
        parts = [json.loads(event)["choices"][0]["delta"].get("tool_calls") for event in client.events()[:-1]]
        self.assertEqual([part[0].get("id") for part in parts if part and "id" in part[0]], ["call20"])
        self.assertEqual(len(look.calls), 1)

    def test_both_in_one_turn(self) -> None:
        """The gateway's are made and recorded, the caller's handed back; on continuation all results come in the order of the calls."""
        look = FakeTool("look", lambda arguments, _: f"map {arguments['n']}")
        self.use(look)
        heard: list[Any] = []
        self.one.runs.watch(lambda run, events: heard.extend(events))
        client = self.ask(user="ann")
        self.provider.call(("look", {"n": 1}), ("weather", PARIS), ("look", {"n": 2}), ("weather", "{}"))
        answer = self.answer(client)
        ids = [call["id"] for call in answer.json["choices"][0]["message"]["tool_calls"]]
        self.assertEqual(ids, ["call11", "call13"])
        self.assertEqual([event.call_id for event in heard if type(event) is ToolStarted], ["call10", "call12"])
        self.say(asked(), called(*[(id_, "weather", "{}") for id_ in ids]), found(ids[1], "rain"), found(ids[0]), user="ann")
        seen = self.provider.seen
        self.assertEqual([message["role"] for message in seen], ["user", "assistant", "tool", "tool", "tool", "tool"])
        self.assertEqual([call["function"]["name"] for call in seen[1]["tool_calls"]], ["look", "weather", "look", "weather"])
        self.assertEqual([message["content"] for message in seen[2:]], ["map 1", "sunny", "map 2", "rain"])

    def test_an_aborted_run_hands_nothing_back(self) -> None:
        """The client leaves while the gateway's calls of the same turn are made: no call is left open."""
        slow = FakeTool("slow", None)
        self.use(slow)
        client = self.ask(user="ann")
        self.provider.call(("weather", PARIS), ("slow", {}))
        client.leave()
        self.one.settle()
        self.assertEqual(next(message.content for message in self.recorded() if message.role == "tool"), NOT_MADE)
        self.assertEqual(left_open(self.one.store.sessions["agent:main:openai-user:ann"]), ())
        self.assertEqual(self.one.store.turns[-1][1].calls, ())

    def test_loops_are_looked_for_in_the_gateways_calls_only(self) -> None:
        """The caller may be asked the same a hundred times."""
        self.use(FakeTool("look"))
        messages = [asked()]
        for number in range(40):
            messages += [called((f"c{number}", "weather", PARIS)), found(f"c{number}")]
        self.assertEqual(self.call(*messages).json["choices"][0]["finish_reason"], "tool_calls")


class Continued(CallerCase):
    """The caller's next request."""

    def test_stateless(self) -> None:
        """The request is the whole conversation: its calls and results are turns, and the loop goes on from them."""
        self.use()
        answer = self.say(asked("Weather?"), called(("x", "weather", PARIS)), found("x"))
        self.assertEqual(answer.json["choices"][0]["message"]["content"], "Sunny.")
        self.assertEqual([message["role"] for message in self.provider.seen], ["user", "assistant", "tool"])
        self.assertEqual(self.refused("messages[1].tool_call_id", asked(), found("x")), "messages[1].tool_call_id answers no open tool call.")
        self.refused("messages[0].tool_call_id", found("x"), asked())
        self.refused("messages[2].tool_call_id", asked(), called(("x", "weather", PARIS)), asked("No."))
        self.refused("messages[2].tool_call_id", asked(), called(("x", "weather", PARIS), ("y", "weather", PARIS)), found("x"))

    def test_in_a_session(self) -> None:
        """The transcript waits for the results; the lane is free meanwhile; the model gets its own turn back, and not the caller's copy of it."""
        self.use()
        id_ = self.id_of(self.call(asked("Weather?"), text="Hm.", user="ann"))
        self.assertEqual(left_open(self.one.store.sessions["agent:main:openai-user:ann"]), (id_,))
        answer = self.say(asked("Weather?"), called((id_, "weather", "{}")), found(id_), user="ann")
        self.assertEqual(answer.status, 200)
        self.assertEqual([message["role"] for message in self.provider.seen], ["user", "assistant", "tool"])
        self.assertEqual(self.provider.seen[1]["content"], "Hm.")
        self.assertEqual(self.provider.seen[1]["tool_calls"][0]["function"]["arguments"], PARIS)
        self.assertEqual([message.role for message in self.recorded()], ["user", "assistant", "tool", "assistant"])
        self.assertEqual(faults(self.one.store.sessions["agent:main:openai-user:ann"]), [])

    def test_the_results_alone(self) -> None:
        """A session keeps its own history, so they are enough; more may follow them."""
        self.use()
        id_ = self.id_of(self.call(user="ann"))
        self.say({"role": "system", "content": "s"}, found(id_), asked("And then?"), user="ann")
        self.assertEqual([message["content"] for message in self.provider.seen[2:]], ["sunny", "And then?"])

    def test_results_of_other_calls(self) -> None:
        """400: every call must be answered, once, and no other."""
        self.use()
        client = self.ask(user="ann")
        self.provider.call(("weather", PARIS), ("weather", "{}"))
        one, two = (call["id"] for call in self.answer(client).json["choices"][0]["message"]["tool_calls"])
        both = called((one, "weather", PARIS), (two, "weather", "{}"))
        self.assertIn(two, self.refused("messages", asked(), called((one, "weather", PARIS)), found(one), user="ann"))
        self.assertIn(two, self.refused("messages", found(one), user="ann"))
        self.assertIn("other", self.refused("messages", found(one), found("other"), user="ann"))
        self.refused("messages", found(one), found(one), user="ann")
        self.refused("messages", asked(), called(("zzz", "weather", PARIS)), found("zzz"), user="ann")
        self.assertIn("waits for none", self.refused("messages", found(one), user="bob"))
        self.assertEqual(len(self.recorded()), 2)
        self.assertEqual(self.say(asked(), both, found(two, "2"), found(one, "1"), user="ann").status, 200)
        self.assertEqual([message["content"] for message in self.provider.seen[2:]], ["1", "2"])

    def test_something_else_instead(self) -> None:
        """A new message closes the calls: that there is no result is recorded, and the model is told; through either door."""
        self.use()
        id_ = self.id_of(self.call(user="ann"))
        self.say(asked("Never mind."), user="ann")
        self.assertEqual([message["content"] for message in self.provider.seen[2:]], [NO_RESULT, "Never mind."])
        kept = self.recorded()
        self.assertEqual([message.role for message in kept], ["user", "assistant", "tool", "user", "assistant"])
        self.assertEqual((kept[2].content, kept[2].tool_call_id), (NO_RESULT, id_))
        id_ = self.id_of(self.call(user="ann"))
        self.say(asked(), called((id_, "weather", PARIS)), asked("Never mind."), user="ann")
        self.assertEqual(self.provider.seen[-2]["content"], NO_RESULT)

    def test_a_result_that_came_too_late(self) -> None:
        """Of calls that were closed or answered already: the caller's pair is a new one, under ids of its own."""
        self.use()
        id_ = self.id_of(self.call(user="ann"))
        pair = called((id_, "weather", PARIS)), found(id_)
        for _ in range(2):
            self.assertEqual(self.say(asked(), *pair, user="ann").status, 200)
        self.assertEqual(faults(self.one.store.sessions["agent:main:openai-user:ann"]), [])

    def test_ids_are_the_models_where_they_are_new(self) -> None:
        """Else there is a new one, which the caller uses and the model is told."""
        self.use()
        ids = []
        for _ in range(2):
            client = self.ask(user="ann")
            self.provider.push([ToolCallDelta(0, PARIS, "same", "weather")])
            self.provider.stop("tool_calls")
            ids.append(self.id_of(self.answer(client)))
            self.say(found(ids[-1]), user="ann")
        self.assertEqual(ids[0], "same")
        self.assertRegex(ids[1], "^call_[0-9A-Za-z]{24}$")
        self.assertEqual(self.provider.seen[-1]["tool_call_id"], ids[1])
        self.assertEqual(faults(self.one.store.sessions["agent:main:openai-user:ann"]), [])

    def test_a_run_that_failed_leaves_the_calls_open(self) -> None:
        """Nothing was said, so the same results may be sent again."""
        self.use()
        id_ = self.id_of(self.call(user="ann"))
        client = self.ask(found(id_), user="ann")
        self.provider.fail(UpstreamError())
        self.assertEqual(self.answer(client).status, 502)
        self.assertEqual(self.say(found(id_), user="ann").status, 200)

    def test_many_rounds(self) -> None:
        """A session goes back and forth; usage is of each run alone."""
        self.use()
        client = self.ask(user="ann")
        for number in range(5):
            self.provider.call(("weather", PARIS), usage=Usage(input=10 + number, output=1))
            answer = self.answer(client)
            self.assertEqual(answer.json["usage"]["prompt_tokens"], 10 + number)
            client = self.ask(found(self.id_of(answer), f"r{number}"), user="ann")
        self.provider.say("Done.")
        self.provider.stop()
        self.answer(client)
        self.assertEqual([message.content for message in self.recorded() if message.role == "tool"], [f"r{number}" for number in range(5)])
        self.assertEqual(faults(self.one.store.sessions["agent:main:openai-user:ann"]), [])


class Kept(StoreTestCase):
    """What the database has of it."""

    async def test_a_restart_between_call_and_result(self) -> None:
        """The calls are still open, and memory and disk agree before and after they are answered, results in the order of the calls."""
        turn = self.turn("Weather?")
        said = (says("Hm.", "a", "b", "c"), result("b", "own"))
        history = await self.store.history(ALICE)
        await self.store.finish(turn, history, self.result(turn, history, "Hm.", finish_reason="tool_calls"), Lease(str(ALICE), 1), said)
        for store in (self.store, self.open()):
            self.assertEqual(left_open((await store.history(ALICE)).messages), ("a", "c"))
        turn = replace(self.turn(), messages=(result("c", "3"), result("a", "1")))
        history = await self.store.history(ALICE)
        turn = settled(turn, history)
        await self.store.finish(turn, history, self.result(turn, history, "So."), Lease(str(ALICE), 1))
        kept, read = await self.store.history(ALICE), await self.open().history(ALICE)
        self.assertEqual(list(map(bytes, kept.messages)), list(map(bytes, read.messages)))
        self.assertEqual([unpack(raw).content for raw in read.messages], ["Weather?", "Hm.", "1", "own", "3", "So."])
        self.assertEqual(faults(kept.messages), [])


class Watched(Base):
    """The other door."""

    def test_watchers_and_chat_pages(self) -> None:
        """See it as any run; the history has the calls; a message from there closes them."""
        harness = self.world.harness
        client = harness.dial(post({"messages": [asked("Weather?")], "tools": [function()]}, "x-mayros-session-key: main"))
        harness.provider.call(("weather", PARIS), text="Let me ask.")
        self.settle()
        client.pump.flush()
        self.assertEqual(client.answer().json["choices"][0]["finish_reason"], "tool_calls")
        chats = self.chats()
        self.assertEqual((chats[-1]["state"], chats[-1]["message"]["content"][0]["text"]), ("final", "Let me ask."))
        history = self.ask_history()
        self.assertEqual(history[-1]["content"][-1], {"type": "toolCall", "id": "call10", "name": "weather", "arguments": PARIS})
        self.assertEqual(history[-1]["stopReason"], "toolUse")
        self.send("Never mind.")
        self.answer_with("All right.")
        self.assertEqual([message["content"] for message in harness.provider.seen[2:]], [NO_RESULT, "Never mind."])
        self.assertEqual([message["role"] for message in self.ask_history()], ["user", "assistant", "toolResult", "user", "assistant"])

    def ask_history(self) -> list[dict[str, Any]]:
        """chat.history of the main session."""
        found = ask(self.session, self.link, "chat.history", {"sessionKey": "main"})
        return list(found["payload"]["messages"])


class Pure(HarnessCase):
    """What a session waits for, as functions."""

    def settle(self, history: Any, *new: msgspec.Raw) -> list[Message]:
        """The conversation after a turn with these messages begins."""
        gateway = self.gateway()
        turn = _turn(gateway, new)
        kept = History("s", None, tuple(history))
        return [unpack(raw) for raw in joined(kept.messages, settled(turn, kept).messages)]

    def test_nothing_to_do(self) -> None:
        """Where nothing is open the turn stays the very same."""
        gateway = self.gateway()
        turn = _turn(gateway, (user(),))
        for history in ((), (user(), says("Hi.")), (user(), says(None, "a"), result("a")), (user(), says(None, "a"), result("a"), says("So."))):
            self.assertIs(settled(turn, History("s", None, history)), turn)

    @settings(deadline=None, max_examples=80)
    @given(st.lists(st.sampled_from(["own", "theirs"]), min_size=1, max_size=6), st.randoms(use_true_random=False), st.booleans(), st.booleans())
    def test_any_order_of_results_gives_a_valid_prompt(self, kinds: list[str], random: Any, answer: bool, follow: bool) -> None:
        """However calls of the gateway's and of the caller's are mixed, and however the caller answers."""
        ids = [f"c{number}" for number in range(len(kinds))]
        history = [user(), says("Hm.", *ids), *[result(id_) for id_, kind in zip(ids, kinds, strict=True) if kind == "own"]]
        theirs = [id_ for id_, kind in zip(ids, kinds, strict=True) if kind == "theirs"]
        self.assertEqual(left_open(history), tuple(theirs))
        random.shuffle(theirs)
        new = [result(id_, f"of {id_}") for id_ in theirs] if answer else []
        new += [user("x")] if follow or not new else []
        made = self.settle(history, *new)
        self.assertEqual(faults([msgspec.Raw(msgspec.json.encode(message)) for message in made]), [])
        if answer and theirs:
            self.assertLessEqual({f"of {id_}" for id_ in theirs}, {message.content for message in made})

    def test_part_of_the_results(self) -> None:
        """Is refused whatever follows."""
        history = (user(), says(None, "a", "b"))
        for new in ((result("a"),), (result("a"), user()), (result("a"), result("a")), (says(None, "a"), result("a"))):
            self.assertRaises(InvalidRequest, self.settle, history, *new)


def _turn(gateway: Harness, messages: Any) -> Any:
    agent = gateway.settings.directory.agents["main"]
    return Turn("r", agent, SessionKey("main", "s"), False, tuple(messages), "chat")
