"""Every answer, and every chunk of a stream, against the types of OpenAI's own SDK: strictly, with nothing missing and nothing they do not know.

The SDK itself asks, its transport is the gateway in memory. What it understands is looked at besides.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pydantic
from openai.types import ErrorObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from mayros.errors import InsufficientQuota, RateLimited, UpstreamError
from mayros.events import ModelAnswered, ReasoningDelta, TextDelta, TurnFinished, Usage
from tests.helpers import TOKEN, Answer, FakeTool, Harness, HarnessCase

ASK: Any = [{"role": "user", "content": "hi"}]
USED = Usage(input=10, output=8, cache_read=30, cache_write=5, reasoning=3)
Script = Callable[[Harness], None]
#: Extra fields that we send on purpose.
OURS = {"name"}


def says(*texts: str, reason: str = "stop", usage: Usage = USED) -> Script:
    """The model says this and stops."""

    def script(gateway: Harness) -> None:
        if texts:
            gateway.provider.say(*texts)
        gateway.provider.stop(reason, usage)

    return script


def thinks(gateway: Harness) -> None:
    """The model reasons before it says anything."""
    gateway.provider.push([ModelAnswered("fake", "one"), ReasoningDelta("hm")])
    gateway.provider.push([TextDelta("so"), USED, TurnFinished("stop", "end_turn")])
    gateway.provider.push(None)


def works(gateway: Harness) -> None:
    """The model calls a tool of the gateway, speaking before and after."""
    gateway.provider.call(("look", {"path": "a"}), ("look", {"path": "b"}), text="Let me see. ")
    gateway.provider.say("Found.")
    gateway.provider.stop()


def wants(*calls: tuple[str, Any], text: str = "") -> Script:
    """The model calls functions of the caller, after some text or none."""
    return lambda gateway: gateway.provider.call(*calls, text=text, usage=USED)


def breaks(error: Exception, *texts: str) -> Script:
    """The model fails, after it has said this."""

    def script(gateway: Harness) -> None:
        if texts:
            gateway.provider.say(*texts)
        gateway.provider.fail(error)

    return script


def extras(value: Any) -> Iterator[str]:
    """Fields that a model of the SDK does not know, at any depth."""
    if isinstance(value, pydantic.BaseModel):
        yield from value.model_extra or ()
        for name in type(value).model_fields:
            yield from extras(getattr(value, name))
    elif isinstance(value, list):
        for one in value:
            yield from extras(one)


class SdkCase(HarnessCase):
    """The SDK, and a gateway as its transport. `bodies` are what came back."""

    def setUp(self) -> None:
        super().setUp()
        self.one = Harness(self, tools=[FakeTool(answer="found")])
        self.gateways.append(self.one)
        self.script: Script = says("ok")
        self.answers: list[Answer] = []
        transport = httpx2.Client(transport=httpx2.MockTransport(self.handle))
        self.addCleanup(transport.close)
        self.sdk = openai.OpenAI(
            api_key=TOKEN, base_url="http://127.0.0.1/v1", http_client=transport, max_retries=0, _strict_response_validation=True
        )

    def handle(self, request: httpx2.Request) -> httpx2.Response:
        """One request of the SDK, as it would stand on the wire; what comes back is checked."""
        lines = [f"{request.method} {request.url.raw_path.decode()} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items())]
        client = self.one.dial("\r\n".join([*lines, "", ""]).encode() + request.read())
        if self.one.runs.live():
            self.script(self.one)
            self.one.settle(client)
        answer = client.answer()
        client.leave()
        self.answers.append(answer)
        self.check(answer)
        return httpx2.Response(answer.status, headers=answer.headers, content=answer.body)

    def check(self, answer: Answer) -> None:
        """By the SDK's types, strictly."""
        if answer.headers["content-type"].startswith("text/event-stream"):
            for block in answer.body.decode().removesuffix("\n\n").split("\n\n"):
                name, _, data = block.rpartition("data: ")
                if data != "[DONE]":
                    body = json.loads(data)
                    self.strict(ErrorObject, body["error"]) if name else self.strict(ChatCompletionChunk, body)
            return
        body = answer.json
        if answer.status >= 400:
            self.assertEqual(set(body), {"error"})
            self.strict(ErrorObject, body["error"])
        elif body["object"] == "list":
            self.assertEqual(set(body), {"object", "data"})
            for one in body["data"]:
                self.strict(Model, one)
        else:
            self.strict({"model": Model, "chat.completion": ChatCompletion}[body["object"]], body)

    def strict(self, kind: type[pydantic.BaseModel], value: Any) -> None:
        """No field is missing or of another type, no literal another one, none too many; nothing but what is set is null."""
        made = kind.model_validate(value, strict=True)
        self.assertLessEqual(set(extras(made)), OURS, value)


#: What the model does, by name.
SCRIPTS: dict[str, Script] = {
    "text": says("Hello", ", ", "w\u00f6rld \U0001f600"),
    "nothing": says(),
    "cut off": says("half", reason="length"),
    "filtered": says("half", reason="content_filter"),
    "a call that is not ours to make": says("x", reason="tool_calls"),
    "no usage": says("x", usage=Usage()),
    "reasoning": thinks,
    "the gateway's tools": works,
    "fails at once": breaks(UpstreamError()),
    "fails late": breaks(UpstreamError(), "half"),
    "no quota": breaks(InsufficientQuota(retry_after=9)),
    "rate limit": breaks(RateLimited(retry_after=3), "half"),
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
#: What the model does with functions of the caller, by name.
CALLS: dict[str, Script] = {
    "one call": wants(("weather", {"city": "Oslo"})),
    "two calls after text": wants(("weather", {"city": "Oslo"}), ("weather", {"city": "Rome"}), text="Let me ask."),
    "a call without arguments": wants(("weather", "")),
    "no call": says("It rains."),
}
#: How it is asked, by name.
REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "in a session": {"user": "ann"},
    "streamed": {"stream": True},
    "streamed, with usage": {"stream": True, "stream_options": {"include_usage": True}},
}


class ShapeTests(SdkCase):
    """All scripts, asked in all ways."""

    def test_all(self) -> None:
        """Whatever happens, the SDK has it as its own types, or as its own exceptions."""
        for how, fields in REQUESTS.items():
            for what, script in SCRIPTS.items():
                with self.subTest(how=how, what=what):
                    self.script = script
                    try:
                        made = self.sdk.chat.completions.create(model="mayros", messages=ASK, **fields)
                        if fields.get("stream"):
                            list(made)
                    except openai.APIError as error:
                        self.assertNotIsInstance(error, openai.APIResponseValidationError)
                        self.assertTrue(what in ("fails at once", "fails late", "no quota", "rate limit"), repr(error))
                        self.one.advance(86_400)  # the provider's limits end
        self.assertEqual(len(self.answers), len(SCRIPTS) * len(REQUESTS))

    def test_functions_of_the_caller(self) -> None:
        """Calls as they are handed back, whole and in pieces, with all that a client needs to make them."""
        for how, fields in REQUESTS.items():
            for what, script in CALLS.items():
                with self.subTest(how=how, what=what):
                    self.script = script
                    made = self.sdk.chat.completions.create(model="mayros", messages=ASK, tools=[WEATHER], **{**fields, "user": f"{what} {how}"})
                    if fields.get("stream"):
                        list(made)
                        continue
                    choice = made.choices[0]
                    for call in choice.message.tool_calls or ():
                        self.assertEqual((call.type, call.function.name), ("function", "weather"))
                        self.assertIsInstance(json.loads(call.function.arguments), dict)
                    self.assertEqual(choice.finish_reason, "stop" if what == "no call" else "tool_calls")

    def test_functions_in_a_stream(self) -> None:
        """The SDK's own accumulation gives whole calls: no name, id or type is doubled."""
        self.script = CALLS["two calls after text"]
        with self.sdk.chat.completions.stream(model="mayros", messages=ASK, tools=[WEATHER]) as stream:
            choice = stream.get_final_completion().choices[0]
        calls = choice.message.tool_calls or []
        self.assertEqual(
            [(call.function.name, json.loads(call.function.arguments)) for call in calls], [("weather", {"city": c}) for c in ("Oslo", "Rome")]
        )
        self.assertEqual((choice.message.content, choice.finish_reason, len({call.id for call in calls})), ("Let me ask.", "tool_calls", 2))

    def test_requests_that_are_refused(self) -> None:
        """Their errors too."""
        for fields in ({"temperature": 9}, {"messages": []}, {"model": "mayros/nobody"}, {"n": 2}, {"extra_headers": {"Authorization": "Bearer x"}}):
            with self.subTest(fields=fields), self.assertRaises(openai.APIStatusError):
                self.sdk.chat.completions.create(**{"model": "mayros", "messages": ASK, **fields})
        self.assertEqual([answer.status for answer in self.answers], [400, 400, 404, 400, 401])

    def test_a_whole_answer(self) -> None:
        """What a program reads off it."""
        made = self.sdk.chat.completions.create(model="mayros/beta", messages=ASK)
        usage = made.usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        assert usage.completion_tokens_details is not None
        self.assertEqual((made.model, made.choices[0].message.content, made.choices[0].finish_reason), ("mayros/beta", "ok", "stop"))
        self.assertEqual((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (45, 8, 53))
        self.assertEqual((usage.prompt_tokens_details.cached_tokens, usage.completion_tokens_details.reasoning_tokens), (30, 3))
        self.assertEqual(made._request_id, self.answers[0].headers["x-request-id"])
        self.assertGreater(made.created, 1_600_000_000)

    def test_a_stream(self) -> None:
        """One role, the text in order, one finish reason, the usage at the end; id, time and model are the same throughout."""
        self.script = says("Hello", " ", "you")
        chunks = list(self.sdk.chat.completions.create(model="mayros", messages=ASK, stream=True, stream_options={"include_usage": True}))
        self.assertEqual(len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}), 1)
        choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
        self.assertEqual([choice.delta.role for choice in choices], ["assistant", *[None] * 4])
        self.assertEqual("".join(choice.delta.content or "" for choice in choices), "Hello you")
        self.assertEqual([choice.finish_reason for choice in choices], [*[None] * 4, "stop"])
        last = chunks[-1].usage
        assert last is not None
        self.assertEqual((chunks[-1].choices, last.total_tokens), ([], 53))

    def test_the_helper_for_streams(self) -> None:
        """The SDK's own accumulation gives the whole answer."""
        self.script = says("Hello", " you")
        with self.sdk.chat.completions.stream(model="mayros", messages=ASK) as stream:
            made = stream.get_final_completion()
        self.assertEqual((made.choices[0].message.content, made.choices[0].finish_reason), ("Hello you", "stop"))

    def test_an_error_in_a_stream(self) -> None:
        """Is raised where the stream breaks off, after what was said."""
        self.script = breaks(UpstreamError("it broke off"), "half")
        texts = []
        with self.assertRaises(openai.APIError) as raised:
            for chunk in self.sdk.chat.completions.create(model="mayros", messages=ASK, stream=True):
                texts += [choice.delta.content for choice in chunk.choices]
        self.assertEqual(
            ("".join(text or "" for text in texts), raised.exception.code, raised.exception.type), ("half", "upstream_error", "api_error")
        )

    def test_models(self) -> None:
        """The list, and one of it; the SDK encodes the slash."""
        names = [model.id for model in self.sdk.models.list()]
        self.assertEqual(names, ["mayros", "mayros/default", "mayros/main", "mayros/beta"])
        self.assertEqual([self.sdk.models.retrieve(name).id for name in names], names)
        with self.assertRaises(openai.NotFoundError) as raised:
            self.sdk.models.retrieve("gpt-4o")
        self.assertEqual(raised.exception.code, "model_not_found")

    def test_headers(self) -> None:
        """The raw answer has what the gateway says of the run."""
        raw = self.sdk.chat.completions.with_raw_response.create(model="mayros", messages=ASK, extra_headers={"X-Request-Id": "mine"})
        self.assertEqual((raw.headers["x-request-id"], raw.headers["x-mayros-agent-id"], raw.headers["x-mayros-model"]), ("mine", "main", "fake/one"))
        self.assertEqual(raw.parse().choices[0].message.content, "ok")
