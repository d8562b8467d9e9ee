"""Servers of chat completions and how they differ: what is sent to which, what is dropped when it is refused, and reasoning inside of text."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.ports import ModelRequest, Sampling
from mayros.errors import UpstreamRefused
from mayros.events import Event, ReasoningDelta, TextDelta, TurnFinished
from mayros.events import ProviderState as KeptEvent
from mayros.messages import Function, ImagePart, ImageUrl, Message, ProviderState, TextPart, ToolCall, pack
from mayros.net.redact import Redactor
from mayros.providers.chat_decoder import ChatDecoder
from mayros.providers.compat import compat_of, guessed
from mayros.providers.efforts import LEVELS, effort, other_level
from mayros.providers.openai_chat import OpenAIChat, chat_request
from mayros.providers.refused import named_parameter
from tests import vendor_cases
from tests.vendor_cases import SSE, TOOL, reply

OPENAI, LOCAL, MISTRAL = "https://api.openai.com/v1", "http://127.0.0.1:8000/v1", "https://api.mistral.ai/v1"
DONE = b"data: [DONE]\n\n"


def request(base_url: str = LOCAL, *messages: Message, sampling: Sampling | None = None, **model: Any) -> ModelRequest:
    """A turn with a server at an address."""
    return vendor_cases.request(vendor_cases.provider("openai-completions", base_url=base_url), sampling, messages, **model)


def sent(asked: ModelRequest, *dropped: str) -> dict[str, Any]:
    """The request, read back."""
    body: dict[str, Any] = json.loads(b"".join(chat_request(asked, frozenset(dropped))))
    return body


def chunk(finish: str | None = None, **delta: Any) -> bytes:
    """A chunk of an answer."""
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}).encode() + b"\n\n"


def decode(*pieces: bytes, think_tags: bool = True) -> list[Event]:
    """Text and reasoning of an answer, neighbours joined."""
    reading = ChatDecoder("acme", "m1", Redactor([]), think_tags=think_tags)
    made: list[Any] = []
    for event in [event for piece in pieces for event in reading.feed(piece)] + reading.close():
        if type(event) in (TextDelta, ReasoningDelta):
            if made and type(made[-1]) is type(event):
                made[-1] = type(event)(made[-1].text + event.text)  # type: ignore[attr-defined]
            else:
                made.append(event)
    return made


CALLED = Message("assistant", None, tool_calls=(ToolCall("call_one", Function("read", "{}")), ToolCall("abcdef123", Function("look", "{}"))))
RESULTS = (Message("tool", "1", tool_call_id="call_one"), Message("tool", "2", tool_call_id="abcdef123"))


class Compat(SynchronousTestCase):
    """What is taken to hold for a server, and what the configuration says of it."""

    def test_addresses(self) -> None:
        """By the host's name and nothing else; of an unknown server the least is assumed."""
        for url, expected in (
            (OPENAI, {"supports_store", "supports_developer_role", "openai", "every_effort"}),
            ("https://my.openai.azure.com/openai/v1", {"supports_store", "supports_developer_role", "openai", "every_effort"}),
            ("https://openrouter.ai/api/v1", {"every_effort", "think_tags"}),
            (MISTRAL, {"requires_tool_result_name", "requires_mistral_tool_ids", "think_tags"}),
            (LOCAL, {"think_tags"}),
            ("https://api.deepseek.com/v1", {"requires_reasoning_content_on_assistant_messages", "think_tags"}),
            ("https://api.openai.com.example.org/v1", {"think_tags"}),
            ("https://example.org/api.openai.com", {"think_tags"}),
            ("https://notz.ai/v1", {"think_tags"}),
        ):
            always = {"supports_reasoning_effort", "supports_usage_in_streaming"}
            known = guessed(url)
            true = {name for name in known.__struct_fields__ if getattr(known, name) is True}
            self.assertEqual(expected | always, true, url)
            self.assertEqual(("max_tokens", "openai"), (known.max_tokens_field, known.thinking_format))
        for url, style in (("https://api.z.ai/api/paas/v4", "zai"), ("https://dashscope-intl.aliyuncs.com/compatible-mode/v1", "qwen")):
            self.assertEqual((style, False), (guessed(url).thinking_format, guessed(url).supports_reasoning_effort))

    def test_the_configuration_wins(self) -> None:
        """Key by key; values that make no sense, and keys that are none, count as not there."""
        known = compat_of(request(OPENAI, compat={"supportsStore": False, "thinkingFormat": "qwen", "openai": False, "x": 1}).model)
        self.assertEqual((False, True, "qwen", True), (known.supports_store, known.supports_developer_role, known.thinking_format, known.openai))
        for odd in ({"supportsStore": 0}, {"supportsStore": "no"}, {"supportsStore": None}, {"thinkingFormat": "loud"}, {"maxTokensField": "tokens"}):
            self.assertEqual(guessed(OPENAI), compat_of(request(OPENAI, compat=odd).model), odd)


class Requests(SynchronousTestCase):
    """What is asked of which server."""

    def test_the_table(self) -> None:
        """A key, and the field of the request that it decides."""
        asked = {"sampling": Sampling(max_tokens=5, reasoning_effort="high"), "reasoning": True}
        for url, compat, name, expected in (
            (LOCAL, {}, "store", None),
            (LOCAL, {"supportsStore": True}, "store", False),
            (OPENAI, {}, "store", False),
            (OPENAI, {"supportsStore": False}, "store", None),
            (LOCAL, {}, "stream_options", {"include_usage": True}),
            (LOCAL, {"supportsUsageInStreaming": False}, "stream_options", None),
            (LOCAL, {}, "max_tokens", 5),
            (LOCAL, {"maxTokensField": "max_completion_tokens"}, "max_completion_tokens", 5),
            (LOCAL, {}, "reasoning_effort", "high"),
            (LOCAL, {"supportsReasoningEffort": False}, "reasoning_effort", None),
            ("https://api.x.ai/v1", {}, "reasoning_effort", None),
            (LOCAL, {"thinkingFormat": "zai"}, "thinking", {"type": "enabled"}),
            (LOCAL, {"thinkingFormat": "zai"}, "reasoning_effort", None),
            (LOCAL, {"thinkingFormat": "qwen"}, "enable_thinking", True),
            ("https://api.z.ai/api/paas/v4", {}, "thinking", {"type": "enabled"}),
            ("https://dashscope.aliyuncs.com/compatible-mode/v1", {}, "enable_thinking", True),
        ):
            body = sent(request(url, compat=compat, **asked))
            self.assertEqual(expected, body.get(name), (url, compat, name))
        off = Sampling(reasoning_effort="none")
        self.assertEqual({"type": "disabled"}, sent(request(compat={"thinkingFormat": "zai"}, sampling=off, reasoning=True))["thinking"])
        self.assertIs(False, sent(request(compat={"thinkingFormat": "qwen"}, sampling=off, reasoning=True))["enable_thinking"])
        self.assertNotIn("enable_thinking", sent(request(compat={"thinkingFormat": "qwen"}, reasoning=True)))

    def test_the_name_of_the_limit(self) -> None:
        """OpenAI's newer models, wherever they are, know the new one only."""
        for url, model, name in (
            (OPENAI, "gpt-4o", "max_tokens"),
            (OPENAI, "gpt-4.1-mini", "max_tokens"),
            (OPENAI, "o3", "max_completion_tokens"),
            (OPENAI, "gpt-5.2", "max_completion_tokens"),
            (OPENAI, "gpt-6-astra", "max_completion_tokens"),
            ("https://openrouter.ai/api/v1", "openai/gpt-5", "max_completion_tokens"),
            (LOCAL, "gpt-5-imitation", "max_tokens"),
        ):
            self.assertIn(name, sent(request(url, id=model, sampling=Sampling(max_tokens=5))), model)

    def test_the_role_of_the_system_prompt(self) -> None:
        """`developer` for models that reason, where the server knows it."""
        for url, reasoning, compat, role in (
            (OPENAI, True, {}, "developer"),
            (OPENAI, False, {}, "system"),
            (LOCAL, True, {}, "system"),
            (LOCAL, True, {"supportsDeveloperRole": True}, "developer"),
        ):
            self.assertEqual(role, sent(request(url, reasoning=reasoning, compat=compat))["messages"][0]["role"])

    def test_strict(self) -> None:
        """Said only where the server is said to know it."""
        for compat, has in (({}, False), ({"supportsStrictMode": True}, True)):
            asked = msgspec.structs.replace(request(compat=compat), tools=[TOOL])
            (tool,) = sent(asked)["tools"]
            self.assertEqual(has, tool["function"].get("strict") is False)
            self.assertEqual("read", tool["function"]["name"])
            self.assertNotIn("strict", sent(asked, "strict")["tools"][0]["function"])

    def test_the_cache_key(self) -> None:
        """The conversation's name, for OpenAI only."""
        for url, key in ((OPENAI, "s1"), (LOCAL, None)):
            self.assertEqual(key, sent(msgspec.structs.replace(request(url), session="s1")).get("prompt_cache_key"))

    def test_the_state_of_other_vendors_is_not_sent(self) -> None:
        """Signed reasoning that is kept with a message stays here, whatever else is in the conversation."""
        kept = msgspec.structs.replace(CALLED, provider_state=ProviderState("anthropic/x", msgspec.Raw(b'{"blocks":[{"signature":"SECRET"}]}')))
        quoted = Message("user", 'what is ,"provider_state":{ ?')
        image = Message("tool", (TextPart("a"), ImagePart(ImageUrl("data:image/png;base64,AA=="))), tool_call_id="abcdef123")
        for url in (LOCAL, MISTRAL, OPENAI):
            for results in (RESULTS, (RESULTS[0], image)):
                asked = request(url, quoted, kept, *results)
                written = b"".join(chat_request(asked))
                self.assertNotIn(b"SECRET", written)
                messages = json.loads(written)["messages"]
                self.assertEqual(['what is ,"provider_state":{ ?'], [one["content"] for one in messages if one["role"] == "user"][:1])
                self.assertEqual(2, len(messages[2]["tool_calls"]))
                self.assertEqual({"role", "content", "tool_calls"} - {"content"}, messages[2].keys() - {"content"})
        untouched = b"".join(chat_request(request(LOCAL, quoted, CALLED, *RESULTS)))
        self.assertIn(b",".join(map(bytes, map(pack, (quoted, CALLED, *RESULTS)))), untouched)

    def test_ids_for_mistral(self) -> None:
        """Nine letters and digits, alike in calls and results; results name their tool."""
        _, _, called, *results = sent(request(MISTRAL, Message("user", "go"), CALLED, *RESULTS))["messages"]
        ids = [call["id"] for call in called["tool_calls"]]
        self.assertRegex(ids[0], r"^[0-9a-f]{9}$")
        self.assertEqual("abcdef123", ids[1])
        self.assertEqual([(ids[0], "read"), (ids[1], "look")], [(result["tool_call_id"], result["name"]) for result in results])

    def test_long_ids_for_openai(self) -> None:
        """At most 40 characters, alike in calls and results; others stay."""
        long = "toolu:" + "x" * 60
        called = Message("assistant", "hm", tool_calls=(ToolCall(long, Function("read", "{}")), ToolCall("call_1", Function("look", "{}"))))
        messages = [
            Message("user", "go"),
            Message("assistant", "Yes."),
            called,
            *(Message("tool", "x", tool_call_id=name) for name in (long, "call_1")),
        ]
        for url, whole in ((OPENAI, False), ("https://openrouter.ai/api/v1", False), (LOCAL, True)):
            _, *plain, made, first, second = sent(request(url, *messages))["messages"]
            self.assertEqual([{"role": "user", "content": "go"}, {"role": "assistant", "content": "Yes."}], plain)
            self.assertEqual([first["tool_call_id"], "call_1"], [call["id"] for call in made["tool_calls"]])
            self.assertEqual(("call_1", whole), (second["tool_call_id"], len(first["tool_call_id"]) > 40))

    def test_an_answer_after_results(self) -> None:
        """Where a server wants one before the next user's message."""
        key = {"requiresAssistantAfterToolResult": True}
        messages = [Message("user", "go"), CALLED, *RESULTS]
        roles = [one["role"] for one in sent(request(LOCAL, *messages, Message("user", "so?"), compat=key))["messages"]]
        self.assertEqual(["system", "user", "assistant", "tool", "tool", "assistant", "user"], roles)
        self.assertEqual("tool", sent(request(LOCAL, *messages, compat=key))["messages"][-1]["role"])
        image = Message("tool", (TextPart("a"), ImagePart(ImageUrl("data:image/png;base64,AA=="))), tool_call_id="abcdef123")
        shown = sent(request(LOCAL, *messages[:-1], image, compat=key, input=("text", "image")))["messages"]
        self.assertEqual(["tool", "tool", "assistant", "user"], [one["role"] for one in shown[-4:]])

    def test_reasoning_that_goes_back(self) -> None:
        """Some servers want the reasoning of a turn with calls back: its own model gets it, another one an empty text, other servers nothing."""
        url = "https://api.deepseek.com/v1"
        reading = ChatDecoder("acme", "m1", Redactor([]), tools=True, keep_reasoning=True)
        part = {"index": 0, "id": "call_one", "function": {"name": "read", "arguments": "{}"}}
        stream = chunk(reasoning_content="h") + chunk(reasoning_content="m") + chunk(tool_calls=[part]) + chunk("tool_calls") + DONE
        (state,) = [event.state for event in reading.feed(stream) if type(event) is KeptEvent]
        made = msgspec.structs.replace(CALLED, provider_state=ProviderState("acme/m1", msgspec.Raw(state)))
        for base, model, more, expected in (
            (url, "m1", {"reasoning": True}, "hm"),
            (url, "m2", {"reasoning": True}, ""),
            (url, "m1", {}, None),
            (LOCAL, "m1", {"reasoning": True}, None),
            (LOCAL, "m1", {"reasoning": True, "compat": {"requiresReasoningContentOnAssistantMessages": True}}, "hm"),
        ):
            _, _, called, *_ = sent(request(base, Message("user", "go"), made, *RESULTS, id=model, **more))["messages"]
            self.assertEqual(expected, called.get("reasoning_content"), (base, model))
            self.assertEqual(2, len(called["tool_calls"]))
            self.assertNotIn("provider_state", called)
        plain = ChatDecoder("acme", "m1", Redactor([]), tools=True)
        self.assertFalse([event for event in plain.feed(stream) if type(event) is KeptEvent])


class Efforts(SynchronousTestCase):
    """Levels of reasoning."""

    def test_models(self) -> None:
        """What is asked for each level: none, minimal, low, medium, high, xhigh."""
        for model, ours, expected in (
            ("o3-mini", True, "low low low medium high high"),
            ("gpt-5-nano", True, "minimal minimal low medium high high"),
            ("gpt-5.1", True, "none low low medium high high"),
            ("gpt-5.4", True, "none low low medium high xhigh"),
            ("openai/gpt-5-pro", True, "high high high high high high"),
            ("whatever", True, "none minimal low medium high xhigh"),
            ("whatever", False, "None low low medium high high"),
        ):
            self.assertEqual(expected, " ".join(str(effort(model, level, ours)) for level in LEVELS), model)

    def test_refusals(self) -> None:
        """The words in which servers name what they know, and what is asked then."""
        for asked, said, then in (
            (
                "xhigh",
                "Unsupported value: 'xhigh' for reasoning.effort. Supported values are: 'low', 'medium', and 'high'.",
                "high",
            ),
            ("minimal", "reasoning_effort: Input should be 'low', 'medium' or 'high'", "low"),
            ("high", "`reasoning_effort` must be one of `none` or `low`", "low"),
            ("low", 'effort must be "high"', "high"),
            ("low", "`reasoning_effort` must be one of `none` or `default`", "default"),
            ("none", "`reasoning_effort` must be one of `low` or `high`", "low"),
            ("low", "`reasoning_effort` must be `none`", "none"),
            ("high", "reasoning_effort is not supported", None),
            ("high", "reasoning_effort 'high' is not supported", None),
            ("high", "temperature must be 'low'", None),
        ):
            mark = other_level(json.dumps({"error": {"message": said}}).encode(), asked)
            self.assertEqual(then, effort("m", asked, True, frozenset([mark])) if mark is not None else None, said)
        self.assertEqual("low", effort("m", "xhigh", True, frozenset(["effort:xhigh:high", "effort:high:low"])))
        self.assertIn(effort("m", "high", True, frozenset(["effort:low:high", "effort:high:low"])), ("low", "high"))


class Refusals(vendor_cases.WithServer):
    """A server that does not know a parameter."""

    def start(self, asked: ModelRequest) -> Any:
        """Begin a turn, with a fresh adapter."""
        self.make(OpenAIChat, asked.model.provider)
        return self.ask(asked)

    def body(self) -> dict[str, Any]:
        """The request that waits for its answer."""
        body: dict[str, Any] = json.loads(self.server.wires[-1].request.partition(b"\r\n\r\n")[2])
        return body

    def test_the_table(self) -> None:
        """In the words of several servers: what is sent at first, what after the refusal."""
        everything = Sampling(0.5, 0.5, 100, None, 7, 0.1, 0.1, "high")
        for status, error, gone, instead in (
            (400, {"message": "Unknown field: stream_options"}, "stream_options", None),
            (400, {"message": "Unsupported parameter: 'reasoning_effort'", "param": "reasoning_effort"}, "reasoning_effort", None),
            (400, {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
                   "param": "max_tokens", "code": "unsupported_parameter"}, "max_tokens", "max_completion_tokens"),
            (400, {"message": "max_tokens is deprecated, use max_completion_tokens"}, "max_tokens", "max_completion_tokens"),
            (400, {"message": "Unsupported value: 'temperature' does not support 0.5 with this model.", "param": "temperature"}, "temperature", None),
            (400, {"message": "'top_p' is not supported"}, "top_p", None),
            (400, {"message": "Argument not supported on this model: presence_penalty"}, "presence_penalty", None),
            (400, {"message": "unknown parameter \"seed\""}, "seed", None),
            (422, None, "frequency_penalty", None),
        ):  # fmt: skip
            refused = {"error": error} if error else {"detail": [{"loc": ["body", gone], "msg": "Extra inputs are not permitted"}]}
            turn = self.start(request(sampling=everything, reasoning=True))
            self.assertIn(gone, self.body(), error)
            self.server.say(reply(status, refused))
            second = self.body()
            self.assertNotIn(gone, second, error)
            if instead is not None:
                self.assertEqual(100, second[instead])
            self.server.say(SSE + chunk("stop", content="a") + DONE)
            self.successResultOf(turn)
            self.ask(request(sampling=everything, reasoning=True))
            self.assertNotIn(gone, self.body())

    def test_both_names_of_the_limit(self) -> None:
        """A server that knows neither is asked without."""
        turn = self.start(request(sampling=Sampling(max_tokens=100)))
        for name in ("max_tokens", "max_completion_tokens"):
            self.assertIn(name, self.body())
            self.server.say(reply(400, {"error": {"message": f"Unrecognized request argument supplied: {name}"}}))
        self.assertFalse({"max_tokens", "max_completion_tokens"} & self.body().keys())
        self.server.say(SSE + chunk("stop", content="a") + DONE)
        self.successResultOf(turn)

    def test_the_developer(self) -> None:
        """A role that is not known after all."""
        self.start(request(compat={"supportsDeveloperRole": True}, reasoning=True))
        self.assertEqual("developer", self.body()["messages"][0]["role"])
        self.server.say(reply(400, {"error": {"message": "messages[0].role: unknown variant 'developer', expected 'system' or 'user'"}}))
        self.assertEqual("system", self.body()["messages"][0]["role"])

    def test_a_level(self) -> None:
        """It becomes one that the server names."""
        self.start(request(sampling=Sampling(reasoning_effort="medium"), reasoning=True))
        self.server.wires[-1].clear()
        self.server.say(reply(422, {"detail": "reasoning_effort: Input should be 'none' or 'high'"}))
        self.assertEqual("high", self.body()["reasoning_effort"])

    def test_what_cannot_be_done_without(self) -> None:
        """Parameters that are not sent, or must be, are refusals as they stand; nothing is asked twice."""
        for message in ("Unknown field: messages", "temperature is not supported", "Unsupported parameter: tools", "'seed' has a bad value"):
            turn = self.start(request(sampling=Sampling(seed=1)))
            self.server.say(reply(400, {"error": {"message": message}}))
            self.assertIs(UpstreamRefused, type(self.failureResultOf(turn).value), message)

    def test_names(self) -> None:
        """The parameter that the vendor names counts; a word of any text only in quotation marks."""
        for body, names, found in (
            (b'{"error": {"message": "seed or top_p", "param": "top_p"}}', ["seed", "top_p"], "top_p"),
            (b'{"error": {"message": "x", "param": "reasoning.effort"}}', ["reasoning.effort", "reasoning"], "reasoning.effort"),
            (b'{"error": {"message": "x", "param": "reasoning.summary"}}', ["reasoning"], "reasoning"),
            (b'{"error": {"message": "top_p", "param": "input[0].x"}}', ["top_p"], None),
            (b"we do not stop to include the store", ["stop", "include", "store"], None),
            (b'{"detail": [{"loc": ["body", "store"]}]}', ["stop", "store"], "store"),
            (b'{"error": "unknown \\"stop\\""}', ["stop"], "stop"),
            (b"max_tokens_x is unknown", ["max_tokens"], None),
            (b"[" * 100_000 + b"top_p", ["top_p"], "top_p"),
        ):
            self.assertEqual(found, named_parameter(body, names), body[:80])


class Thinking(SynchronousTestCase):
    """Reasoning that a model writes into its text."""

    def test_tags(self) -> None:
        """At the very beginning, closed or not; anywhere else they are text."""
        for text, expected in (
            ("<think>hm</think>hi", [ReasoningDelta("hm"), TextDelta("hi")]),
            ("\n<think>\nhm\n</think>\n\nhi", [ReasoningDelta("hm\n"), TextDelta("hi")]),
            ("<think></think>\n\nhi", [TextDelta("hi")]),
            ("<think>hm", [ReasoningDelta("hm")]),
            ("<think>a</thi", [ReasoningDelta("a</thi")]),
            ("<think>a < b </thin> c</think>hi </think>", [ReasoningDelta("a < b </thin> c"), TextDelta("hi </think>")]),
            ("hi <think>hm</think>", [TextDelta("hi <think>hm</think>")]),
            ("<thinking>hm", [TextDelta("<thinking>hm")]),
            ("<thi", [TextDelta("<thi")]),
            (" ", [TextDelta(" ")]),
            (" hi", [TextDelta(" hi")]),
        ):
            for size in (1, 2, 3, 100):
                pieces = [chunk(content=text[at : at + size]) for at in range(0, len(text), size)]
                self.assertEqual(expected, decode(*pieces, chunk("stop"), DONE), (text, size))
            self.assertEqual([TextDelta(text)], decode(chunk(content=text), DONE, think_tags=False))

    @given(st.text(alphabet="<>/think a\n", max_size=30), st.lists(st.integers(0, 30), max_size=5))
    @settings(deadline=None, database=None, max_examples=100)
    def test_the_borders_make_no_difference(self, text: str, cuts: list[int]) -> None:
        """However the text is cut; without tags nothing is lost."""
        borders = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
        pieces = [chunk(content=text[start:end]) for start, end in zip(borders, borders[1:], strict=False)]  # noqa: RUF007
        whole = decode(chunk(content=text), DONE)
        self.assertEqual(whole, decode(*pieces, chunk(content=""), DONE))
        if not text.lstrip().startswith("<think>"):
            self.assertEqual(text, "".join(event.text for event in whole if type(event) is TextDelta))

    def test_parts(self) -> None:
        """Mistral sends reasoning as a part of the content."""
        parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "hi"}]
        self.assertEqual([ReasoningDelta("hm"), TextDelta("hi")], decode(chunk(content=parts), DONE))

    def test_an_answer_in_one_piece(self) -> None:
        """From a server that does not stream."""
        body = json.dumps({"choices": [{"message": {"content": "<think>hm</think>hi"}, "finish_reason": "stop"}]}).encode()
        events = ChatDecoder("acme", "m1", Redactor([]), think_tags=True).whole(body)
        self.assertEqual([ReasoningDelta("hm"), TextDelta("hi")], events[1:3])
        self.assertEqual(TurnFinished("stop", "stop"), events[-1])


class Faults(vendor_cases.Faults):
    """Table 4c, as for the other vendors."""

    vendor = vendor_cases.Vendor(
        adapter=OpenAIChat,
        api="openai-completions",
        begin=chunk(role="assistant", content=""),
        text=lambda text: vendor_cases.event(b'{"choices":[{"index":0,"delta":{"content":"%s"}}]}' % text),
        reason=lambda usage: chunk("stop") + vendor_cases.event({"choices": [], "usage": usage}),
        end=DONE,
        error=lambda message: vendor_cases.event({"error": {"message": message, "type": "server_error", "code": None}}),
        call=lambda number, arguments: chunk(
            tool_calls=[{"index": number, "id": f"c{number}", "type": "function", "function": {"name": "read", "arguments": arguments}}]
        ),
        whole=[b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}', b'{"error": "x"}'],
        too_long=[(400, {"error": {"code": "context_length_exceeded", "message": "x"}}), (400, {"error": {"message": "prompt is too long: 9 > 8"}})],
        refused=lambda message: {"error": {"message": message, "type": "x", "param": None, "code": None}},
        usage={"prompt_tokens": 10, "completion_tokens": 5},
    )
