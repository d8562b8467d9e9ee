"""The stock OpenAI SDK against a real gateway process: the caller's own functions, plain and streamed, and answers that are parsed into types."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
from openai.types.chat import ChatCompletionMessageFunctionToolCall
from pydantic import BaseModel

from tests.daemon import TOKEN, Daemon
from tests.test_process import ProcessCase

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"], "additionalProperties": False},
        "strict": True,
    },
}


class Step(BaseModel):
    explanation: str
    kind: Literal["add", "multiply"]


class Solution(BaseModel):
    steps: list[Step]
    result: int | None


class SdkCase(ProcessCase):
    """A running gateway and a client."""

    def setUp(self) -> None:
        super().setUp()
        self.gateway: Daemon = self.daemon()
        self.gateway.start()
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{self.gateway.port}/v1", api_key=TOKEN, max_retries=2)
        self.addCleanup(self.client.close)


class FunctionTests(SdkCase):
    """The loop that every agent framework runs."""

    def test_a_loop_of_functions(self) -> None:
        """Ask, get the call, answer it, get the text: as a conversation of the caller's, and in a session that the gateway keeps."""
        for user in (openai.omit, "ann"):
            self.upstream.script = [[("weather", {"place": "Paris"}), ("weather", {"place": "Rome"})], "Sunny in both."]
            messages: list[Any] = [{"role": "user", "content": "How is the weather?"}]
            first = self.client.chat.completions.create(model="mayros", messages=messages, tools=[WEATHER], user=user)
            self.assertEqual((first.choices[0].finish_reason, first.choices[0].message.content), ("tool_calls", None))
            calls = first.choices[0].message.tool_calls or []
            messages.append(first.choices[0].message)  # as it is, as people do
            for call in calls:
                assert isinstance(call, ChatCompletionMessageFunctionToolCall)
                place = json.loads(call.function.arguments)["place"]
                messages.append({"role": "tool", "tool_call_id": call.id, "content": f"sunny in {place}"})
            second = self.client.chat.completions.create(model="mayros", messages=messages, tools=[WEATHER], user=user)
            self.assertEqual((second.choices[0].finish_reason, second.choices[0].message.content), ("stop", "Sunny in both."))
            told = self.upstream.asked[-1]["messages"]
            self.assertEqual([message["role"] for message in told], ["system", "user", "assistant", "tool", "tool"])
            self.assertEqual([message["content"] for message in told[3:]], ["sunny in Paris", "sunny in Rome"])
            self.assertEqual(self.upstream.asked[-1]["tools"][-1]["function"], WEATHER["function"])

    def test_streamed(self) -> None:
        """The SDK's own helper puts the pieces together; so does the usual loop by hand."""
        self.upstream.script = [[("weather", {"place": "Paris"})], [("weather", {"place": "Rome"})]]
        with self.client.chat.completions.stream(model="mayros", messages=[{"role": "user", "content": "?"}], tools=[WEATHER]) as stream:
            kinds = [event.type for event in stream]
            choice = stream.get_final_completion().choices[0]
        self.assertIn("tool_calls.function.arguments.delta", kinds)
        assert choice.message.tool_calls
        call = choice.message.tool_calls[0]
        self.assertEqual((choice.finish_reason, call.function.name, call.function.parsed_arguments), ("tool_calls", "weather", {"place": "Paris"}))
        made: dict[int, list[str]] = {}
        for chunk in self.client.chat.completions.create(
            model="mayros", messages=[{"role": "user", "content": "?"}], tools=[WEATHER], tool_choice="required", stream=True
        ):
            for part in chunk.choices[0].delta.tool_calls or ():
                made.setdefault(part.index, []).append(part.function.arguments or "" if part.function else "")
        self.assertEqual({index: json.loads("".join(parts)) for index, parts in made.items()}, {0: {"place": "Rome"}})
        self.assertEqual(self.upstream.asked[-1]["tool_choice"], "required")

    def test_a_choice_that_is_not_obeyed(self) -> None:
        """Is an error that the SDK does not repeat by itself."""
        with self.assertRaises(openai.InternalServerError) as failed:
            self.client.chat.completions.create(
                model="mayros",
                messages=[{"role": "user", "content": "?"}],
                tools=[WEATHER],
                tool_choice={"type": "function", "function": {"name": "weather"}},
            )
        self.assertEqual((failed.exception.status_code, failed.exception.code), (502, "tool_choice_unsatisfied"))
        self.assertEqual(len(self.upstream.asked), 1)


class ParseTests(SdkCase):
    """`parse()`, plain and streamed."""

    GOOD = json.dumps({"steps": [{"explanation": "six times seven", "kind": "multiply"}], "result": 42})

    def test_parsed(self) -> None:
        """The SDK's strict schema goes to the provider, and its answer comes back as a value."""
        self.upstream.script = [self.GOOD, self.GOOD]
        messages: list[Any] = [{"role": "user", "content": "What is 6 x 7?"}]
        done = self.client.chat.completions.parse(model="mayros", messages=messages, response_format=Solution)
        parsed = done.choices[0].message.parsed
        assert parsed is not None
        self.assertEqual((parsed.result, parsed.steps[0].kind), (42, "multiply"))
        form = self.upstream.asked[-1]["response_format"]
        self.assertEqual((form["type"], form["json_schema"]["name"], form["json_schema"]["strict"]), ("json_schema", "Solution", True))
        with self.client.chat.completions.stream(model="mayros", messages=messages, response_format=Solution) as stream:
            last = stream.get_final_completion().choices[0].message.parsed
        assert last is not None
        self.assertEqual(last.result, 42)

    def test_an_answer_that_does_not_fit(self) -> None:
        """An error, once, in place of a value that is none; while streaming too."""
        self.upstream.script = ["Forty-two.", '{"steps":[],"result":"42"}']
        messages: list[Any] = [{"role": "user", "content": "What is 6 x 7?"}]
        with self.assertRaises(openai.InternalServerError) as failed:
            self.client.chat.completions.parse(model="mayros", messages=messages, response_format=Solution)
        self.assertEqual(failed.exception.code, "response_format_unsatisfied")
        with (
            self.assertRaises(openai.APIError),
            self.client.chat.completions.stream(model="mayros", messages=messages, response_format=Solution) as stream,
        ):
            stream.until_done()
        self.assertEqual(len(self.upstream.asked), 2)
