"""OpenAI chat completions as bytes: what a request may hold, field by field, and what answers look like. No server."""

from __future__ import annotations

import json
import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.errors import GatewayError, InvalidRequest, InvalidValue, RateLimited, UnsupportedParameter, UpstreamError
from mayros.events import ModelAnswered, ReasoningDelta, TextDelta, TurnFinished, Usage
from mayros.wire.chat import MAX_MESSAGES, ChatRequest, decode_request
from mayros.wire.chat_answers import DONE, PING, Stream, completion
from mayros.wire.chat_tools import MAX_DEPTH, AskedFormat
from mayros.wire.errors import error_body

FIXED = settings(derandomize=bool(os.environ.get("CI")), database=None, deadline=None, max_examples=50)
OBJECT = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"zone":"UTC"}'}}
#: Text without lone surrogates, which no JSON holds.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def decode(*messages: Any, **fields: Any) -> ChatRequest:
    """A request with these messages (one user message where none are given) and fields."""
    return decode_request(json.dumps({"messages": list(messages) or [USER], **fields}).encode())


def seen(request: ChatRequest) -> list[dict[str, Any]]:
    """The canonical messages as values."""
    return [json.loads(bytes(raw)) for raw in request.messages]


def function(name: str, **more: Any) -> dict[str, Any]:
    """A function tool."""
    return {"type": "function", "function": {"name": name, **more}}


def pin(name: str) -> dict[str, Any]:
    """A tool choice that names a function."""
    return {"type": "function", "function": {"name": name}}


def schema(**fields: Any) -> dict[str, Any]:
    """A response format with a JSON Schema."""
    return {"type": "json_schema", "json_schema": fields}


def user(content: Any, **more: Any) -> dict[str, Any]:
    """A user message."""
    return {"role": "user", "content": content, **more}


def data_of(frame: bytes) -> dict[str, Any]:
    """The JSON of one `data:` frame."""
    assert frame.startswith(b"data: ")
    assert frame.endswith(b"\n\n")
    assert b"\n" not in frame[:-2]
    return json.loads(frame[6:])


class WireCase(SynchronousTestCase):
    """What refusals look like."""

    def refused(self, param: str | None, *messages: Any, kind: type[GatewayError] = InvalidRequest, **fields: Any) -> str:
        """The message of the refusal, whose param and class are as said."""
        error = self.assertRaises(kind, decode, *messages, **fields)
        self.assertEqual((error.param, error.status), (param, 400))
        if param:
            self.assertIn(param.partition(".")[0].partition("[")[0], error.message)
        return error.message

    def unsupported(self, param: str, *messages: Any, **fields: Any) -> None:
        """Refused as something this version does not offer."""
        self.refused(param, *messages, kind=UnsupportedParameter, **fields)

    def out_of_range(self, param: str, *values: Any) -> None:
        """Each value of the field is refused as invalid_value."""
        for value in values:
            self.refused(param, kind=InvalidValue, **{param: value})

    def wrong_type(self, param: str, *values: Any) -> None:
        """Each value of the field is refused."""
        for value in values:
            self.refused(param, **{param: value})


class FieldTests(WireCase):
    """The rows of the table of request fields."""

    def test_messages(self) -> None:
        """A non-empty array of objects."""
        self.wrong_type("messages", 5, "x", None, {})
        error = self.assertRaises(InvalidRequest, decode_request, b'{"messages":[]}')
        self.assertEqual(error.param, "messages")
        error = self.assertRaises(InvalidRequest, decode_request, b"{}")
        self.assertEqual((error.param, error.message), ("messages", "messages is missing."))
        self.refused("messages[1]", USER, 5)

    def test_too_many_messages(self) -> None:
        """Bounded, so that one request does not keep the others waiting."""
        self.assertEqual(len(decode(*[USER] * MAX_MESSAGES).messages), MAX_MESSAGES)
        self.refused("messages", *[USER] * (MAX_MESSAGES + 1), kind=InvalidValue)

    def test_model(self) -> None:
        """A string; missing, null and empty mean `mayros`; control characters and what is beyond 256 characters are dropped."""
        for given_model, model in ((None, "mayros"), ("", "mayros"), ("gpt-4o", "gpt-4o"), ("a\r\nb", "ab"), ("x" * 300, "x" * 256)):
            self.assertEqual(decode(model=given_model).model, model)
        self.assertEqual(decode().model, "mayros")
        self.wrong_type("model", 5, [], {}, True)

    def test_stream(self) -> None:
        """A boolean or null."""
        self.assertEqual([decode(stream=value).stream for value in (True, False, None)], [True, False, False])
        self.wrong_type("stream", 1, 0, "true", [])

    def test_stream_options(self) -> None:
        """include_usage counts while streaming only; include_obfuscation is ignored."""
        self.assertTrue(decode(stream=True, stream_options={"include_usage": True}).include_usage)
        self.assertFalse(decode(stream_options={"include_usage": True}).include_usage)
        for options in (None, {}, {"include_usage": None}, {"include_usage": False}, {"include_obfuscation": True}):
            self.assertFalse(decode(stream=True, stream_options=options).include_usage)
        self.wrong_type("stream_options", 5, [], True)
        self.refused("stream_options.include_usage", stream_options={"include_usage": 1})

    def test_user(self) -> None:
        """A string, as it is; what makes a session of it trims and checks it."""
        self.assertEqual(decode(user=" Ann ").user, " Ann ")
        self.wrong_type("user", 5, ["x"], {})

    def test_tools(self) -> None:
        """At most 128 functions with names of their own; a schema is one of an object, and bounded."""
        self.assertEqual([decode(tools=tools).tools for tools in ([], None)], [(), ()])
        (one, two) = decode(tools=[function("f"), function("g-1_", description="G.", parameters=OBJECT, strict=True)]).tools
        self.assertEqual((one.name, one.description, one.parameters, one.strict), ("f", "", {"type": "object", "properties": {}}, None))
        self.assertEqual((two.name, two.description, two.parameters, two.strict), ("g-1_", "G.", OBJECT, True))
        decode(tools=[function(f"f{number}") for number in range(128)])
        self.out_of_range("tools", [function(f"f{number}") for number in range(129)])
        self.wrong_type("tools", 5, {})
        self.refused("tools[0]", tools=[5])
        self.refused("tools[0].type", tools=[{"function": {"name": "f"}}])
        self.unsupported("tools[1].type", tools=[function("f"), {"type": "custom", "custom": {"name": "c"}}])
        self.refused("tools[0].function", tools=[{"type": "function"}])
        for name in ("", "a b", "\u00fc", "x" * 65, "f\n"):
            self.refused("tools[0].function.name", kind=InvalidValue, tools=[function(name)])
        self.refused("tools[1].function.name", kind=InvalidValue, tools=[function("f"), function("f")])
        for field, value in (("name", 5), ("description", 5), ("parameters", []), ("strict", "yes")):
            self.refused(f"tools[0].function.{field}", tools=[{"type": "function", "function": {"name": "f", field: value}}])
        self.refused("tools[0].function.parameters", kind=InvalidValue, tools=[function("f", parameters={"type": "string"})])
        self.refused("tools[0].function.parameters", tools=[function("f", parameters={"enum": list(range(20_001))})])

    def test_tool_choice(self) -> None:
        """A word, or one of the functions by its name; what demands a call needs something to call."""
        tools = [function("f"), function("g")]
        for choice, taken in ((None, "auto"), ("none", "none"), ("auto", "auto"), ("required", "required"), (pin("g"), "function:g")):
            self.assertEqual(decode(tools=tools, tool_choice=choice).tool_choice, taken)
        self.assertEqual([decode(tool_choice=choice).tool_choice for choice in ("none", "auto")], ["none", "auto"])
        self.out_of_range("tool_choice", "required", "always", "", pin("f"))
        self.refused("tool_choice", kind=InvalidValue, tools=tools, tool_choice=pin("h"))
        for kind in ("allowed_tools", "custom", "zzz"):
            self.unsupported("tool_choice", tools=tools, tool_choice={"type": kind, kind: {"name": "f"}})
        self.refused("tool_choice.function", tools=tools, tool_choice={"type": "function"})
        self.refused("tool_choice.type", tools=tools, tool_choice={})
        self.wrong_type("tool_choice", 5, [])
        self.assertEqual([decode(parallel_tool_calls=value).parallel_calls for value in (True, None, False)], [True, True, False])
        self.wrong_type("parallel_tool_calls", 1, "x")

    def test_functions(self) -> None:
        """The older fields are refused, naming the newer ones, whatever they hold."""
        for value in ([], [{}], {}, "auto", 5, False):
            for field in ("functions", "function_call"):
                self.assertIn("tools", self.refused(field, kind=UnsupportedParameter, **{field: value}))
        decode(functions=None, function_call=None)

    def test_token_limits(self) -> None:
        """Integers from 1; max_completion_tokens wins, the other is checked all the same."""
        self.assertEqual(decode(max_tokens=5).sampling, {"max_tokens": 5})
        self.assertEqual(decode(max_tokens=5, max_completion_tokens=6).sampling, {"max_tokens": 6})
        for field in ("max_tokens", "max_completion_tokens"):
            self.out_of_range(field, 0, -1, 2**31, 10**30)
            self.wrong_type(field, "5", 1.5, True)
        self.refused("max_tokens", kind=InvalidValue, max_tokens=0, max_completion_tokens=6)

    def test_sampling(self) -> None:
        """Ranges, both ends included, finite."""
        for field, low, high in (("temperature", 0, 2), ("top_p", 0, 1), ("frequency_penalty", -2, 2), ("presence_penalty", -2, 2)):
            for value in (low, high, (low + high) / 2):
                self.assertEqual(decode(**{field: value}).sampling, {field: value})
            self.out_of_range(field, low - 0.01, high + 0.01, 10**400)
            self.wrong_type(field, "1", True, [])
        self.assertEqual(decode(seed=-(2**63)).sampling, {"seed": -(2**63)})
        self.out_of_range("seed", 2**63)
        self.wrong_type("seed", 1.5, "1")

    def test_zero_is_not_missing(self) -> None:
        """Zero is a value like any other."""
        self.assertEqual(decode(temperature=0, seed=0, top_p=0).sampling, {"temperature": 0, "seed": 0, "top_p": 0})

    def test_stop(self) -> None:
        """A text or at most four, none empty."""
        for stop, taken in (("a", ("a",)), (["a", "b"], ("a", "b")), (["a"] * 4, ("a",) * 4)):
            self.assertEqual(decode(stop=stop).sampling, {"stop": taken})
        self.assertEqual(decode(stop=[]).sampling, {})
        self.out_of_range("stop", "", [""], ["a"] * 5)
        self.wrong_type("stop", 5, {})
        self.refused("stop[0]", stop=[5])

    def test_response_format(self) -> None:
        """Text, any JSON object, or a JSON Schema with a name."""
        self.assertEqual([decode(response_format=value).format for value in (None, {"type": "text"})], [None, None])
        self.assertEqual(decode(response_format={"type": "json_object"}).format, AskedFormat())
        wanted = {"name": "n", "schema": OBJECT, "strict": True, "description": "D."}
        self.assertEqual(decode(response_format=schema(**wanted)).format, AskedFormat(OBJECT, "n", "D.", True))
        self.refused("response_format.type", kind=InvalidValue, response_format={"type": "grammar"})
        self.refused("response_format.type", response_format={})
        self.refused("response_format.type", response_format={"type": 5})
        self.refused("response_format.json_schema", response_format={"type": "json_schema"})
        self.refused("response_format.json_schema.name", response_format=schema(schema=OBJECT))
        self.refused("response_format.json_schema.schema", response_format=schema(name="n"))
        for name in ("", "a b", "x" * 65):
            self.refused("response_format.json_schema.name", kind=InvalidValue, response_format=schema(name=name, schema=OBJECT))
        for field, value in (("schema", []), ("strict", 1), ("description", 5)):
            self.refused(f"response_format.json_schema.{field}", response_format=schema(**{**wanted, field: value}))
        self.wrong_type("response_format", "text", 5)

    def test_reasoning_effort(self) -> None:
        """One of the known words."""
        for word in ("none", "minimal", "low", "medium", "high", "xhigh", "max"):
            self.assertEqual(decode(reasoning_effort=word).sampling, {"reasoning_effort": word})
        self.out_of_range("reasoning_effort", "tremendous", "", "LOW")
        self.assertLess(len(self.refused("reasoning_effort", reasoning_effort="x" * 100_000)), 300)

    def test_fields_of_openais_own(self) -> None:
        """Passed on together, for providers of that kind; checked for their type only."""
        extra = {
            "verbosity": "low", "prompt_cache_key": "k", "prompt_cache_retention": "24h", "service_tier": "flex",
            "safety_identifier": "s", "prediction": {"type": "content", "content": "x"}, "logit_bias": {"50256": -100},
        }  # fmt: skip
        self.assertEqual(decode(**extra).sampling, {"extra": extra})
        self.wrong_type("verbosity", 5)
        self.wrong_type("logit_bias", [], 5)
        self.wrong_type("prediction", [], "x")

    def test_metadata(self) -> None:
        """At most 16 pairs of strings, bounded."""
        self.assertEqual(decode(metadata={"a": "b"}).metadata, {"a": "b"})
        self.assertIsNone(decode(metadata={}).metadata)
        self.assertEqual(decode(metadata={"k" * 64: "v" * 512}).metadata, {"k" * 64: "v" * 512})
        self.out_of_range("metadata", {str(number): "x" for number in range(17)}, {"k" * 65: "x"}, {"k": "v" * 513})
        self.wrong_type("metadata", [], 5)
        self.refused("metadata[...]", metadata={"a": 5})

    def test_one_choice(self) -> None:
        """n is 1."""
        decode(n=1)
        self.out_of_range("n", 0, 2, -1, 10**9)
        self.wrong_type("n", "1", 1.5, True)

    def test_logprobs(self) -> None:
        """Accepted, and never invented; top_logprobs needs them."""
        decode(logprobs=False)
        decode(logprobs=True, top_logprobs=20)
        self.out_of_range("top_logprobs", 0, 5, -1, 21)
        self.refused("top_logprobs", kind=InvalidValue, logprobs=True, top_logprobs=21)
        self.wrong_type("logprobs", 1, "x")

    def test_modalities(self) -> None:
        """Text only."""
        decode(modalities=["text"])
        for value in (["text", "audio"], ["audio"], []):
            self.unsupported("modalities", modalities=value)
        for field in ("audio", "web_search_options", "moderation"):
            self.unsupported(field, **{field: {}})
            self.unsupported(field, **{field: False})

    def test_ignored_fields(self) -> None:
        """store is checked and ignored; unknown fields are ignored, whatever they hold."""
        decode(store=True)
        self.wrong_type("store", 1, "x")
        decode(top_k=5, chat_id={"a": [1, None]}, options=[], **{"": 1})

    def test_null_is_not_given(self) -> None:
        """For every optional field."""
        optional = (
            "model", "stream", "stream_options", "user", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed",
            "max_tokens", "max_completion_tokens", "stop", "n", "reasoning_effort", "metadata", "store", "tools", "tool_choice",
            "parallel_tool_calls", "functions", "function_call", "response_format", "logprobs", "top_logprobs", "modalities", "audio",
            "web_search_options", "moderation", "verbosity", "prompt_cache_key", "prompt_cache_retention", "service_tier",
            "safety_identifier", "prediction", "logit_bias",
        )  # fmt: skip
        self.assertEqual(decode(**dict.fromkeys(optional)), decode())

    def test_depth(self) -> None:
        """What is passed on nests no deeper than others can read; what is ignored may, and never harms."""

        def nested(levels: int) -> Any:
            value: Any = {}
            for _ in range(levels - 1):
                value = {"a": value}
            return value

        for param, fields in (
            ("prediction", lambda value: {"prediction": value}),
            ("tools[0].function.parameters", lambda value: {"tools": [function("f", parameters=value)]}),
            ("response_format.json_schema.schema", lambda value: {"response_format": schema(name="n", schema=value)}),
        ):
            decode(**fields(nested(MAX_DEPTH)))
            self.refused(param, **fields(nested(MAX_DEPTH + 1)))
        decode(unknown=nested(200))


class MessageTests(WireCase):
    """The rows of the table of messages."""

    def test_system_and_developer(self) -> None:
        """Both become the extra system prompt, wherever they stand, joined by a blank line; they are no turns."""
        request = decode({"role": "system", "content": "a"}, USER, {"role": "developer", "content": [{"type": "text", "text": "b"}]})
        self.assertEqual((request.system, seen(request)), ("a\n\nb", [USER]))
        self.assertEqual(decode({"role": "system", "content": ""}, USER).system, "")
        self.refused("messages[0].content", {"role": "system"}, USER)

    def test_user_parts(self) -> None:
        """A string, or text parts, joined by a newline; a name is passed on."""
        parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]
        self.assertEqual(seen(decode(user(parts, name="ann"))), [{"role": "user", "content": "a\nb", "name": "ann"}])
        for content in (None, [], 5, {}, True):
            self.refused("messages[0].content", user(content))
        self.refused("messages[0].content[1].text", user([{"type": "text", "text": "a"}, {"type": "text"}]))
        self.refused("messages[0].content[0]", user([5]))

    def test_other_parts(self) -> None:
        """Are named, with their place. What images and files may be is in test_parts.py."""
        self.unsupported("messages[1].content[0].type", USER, user([{"type": "zzz"}]))
        for role in ("system", "assistant"):
            self.unsupported("messages[1].content[0].type", USER, {"role": role, "content": [{"type": "image_url", "image_url": "data:,"}]})
        self.unsupported("messages[0].content[0].type", user([{"type": "refusal", "refusal": "no"}]))

    def test_assistant(self) -> None:
        """A string, null, text or refusal parts, tool calls; keys that clients echo are tolerated."""
        for content, text in (("x", "x"), (None, ""), ([], ""), ([{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}], "a\nb")):
            message = {"role": "assistant", "content": content, "refusal": None, "annotations": [], "reasoning_content": "hm", "audio": None}
            self.assertEqual(seen(decode(USER, message, USER))[1], {"role": "assistant", "content": text})

    def test_tool_calls(self) -> None:
        """Keep their ids; empty arguments become an empty object; content is null beside them unless there is text."""
        bare = {"id": "c2", "function": {"name": "f", "arguments": ""}}
        request = decode(
            USER,
            {"role": "assistant", "tool_calls": [CALL, bare]},
            {"role": "tool", "tool_call_id": "c2", "content": ""},
            {"role": "tool", "tool_call_id": "c1", "content": []},
        )
        self.assertEqual(
            seen(request)[1:],
            [
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [CALL, {"id": "c2", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "content": "", "tool_call_id": "c2"},
                {"role": "tool", "content": "", "tool_call_id": "c1"},
            ],
        )

    def test_calls_that_are_none(self) -> None:
        """Are named: no id, no name, another type, an id twice."""
        for call in ({**CALL, "id": ""}, {**CALL, "type": "custom"}, {**CALL, "function": {"name": ""}}):
            self.refused("messages[1].tool_calls[0]", USER, {"role": "assistant", "tool_calls": [call]})
        self.refused("messages[1].tool_calls", USER, {"role": "assistant", "tool_calls": [CALL, CALL]})
        self.refused("messages[1].tool_calls[0].function", USER, {"role": "assistant", "tool_calls": [{"id": "x"}]})
        self.refused(
            "messages[1].tool_calls[0].function.arguments",
            USER,
            {"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": {}}}]},
        )

    def test_the_order_of_results(self) -> None:
        """Each result answers a call of the assistant message before it, each call is answered before anything else."""
        calls, result = {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c1", "content": "x"}
        self.refused("messages[1].tool_call_id", USER, result)
        self.refused("messages[2].tool_call_id", USER, calls, {**result, "tool_call_id": "other"})
        self.refused("messages[3].tool_call_id", USER, calls, result, result)
        self.refused("messages[1].tool_call_id", USER, calls)
        self.refused("messages[2].tool_call_id", USER, calls, calls)
        self.refused("messages[2].tool_call_id", USER, calls, {"role": "tool", "content": "x"})
        self.refused("messages[4].tool_call_id", USER, calls, result, {"role": "assistant", "content": "x"}, result)

    def test_what_only_a_session_may_complete(self) -> None:
        """Results of calls that are not there, and calls that were not answered: an error of a request that is the whole conversation."""
        calls, result = {"role": "assistant", "tool_calls": [CALL, {**CALL, "id": "c2"}]}, {"role": "tool", "tool_call_id": "c1", "content": "x"}
        for messages, place, new in (
            ([result, USER], "messages[0].tool_call_id", ["tool", "user"]),
            ([{"role": "system", "content": "s"}, result], "messages[1].tool_call_id", ["tool"]),
            ([USER, calls, USER], "messages[2].tool_call_id", ["user"]),
        ):
            request = decode(*messages)
            assert request.incomplete is not None
            self.assertEqual(request.incomplete[0], place)
            self.assertEqual([message["role"] for message in seen(request)[request.new_from :]], new)
        self.assertIsNone(decode(USER, {"role": "assistant", "tool_calls": [CALL]}, result, USER).incomplete)
        self.refused("messages[3].tool_call_id", USER, calls, result, USER)

    def test_function_results(self) -> None:
        """The older role becomes a tool result, with its call, or with one made up for it."""
        made = decode(USER, {"role": "function", "name": "clock", "content": "noon"})
        self.assertEqual([message["role"] for message in seen(made)], ["user", "assistant", "tool"])
        self.assertEqual(seen(made)[1]["tool_calls"][0]["id"], seen(made)[2]["tool_call_id"])
        called = decode(
            USER, {"role": "assistant", "function_call": {"name": "clock", "arguments": "{}"}}, {"role": "function", "name": "clock", "content": None}
        )
        self.assertEqual([message["role"] for message in seen(called)], ["user", "assistant", "tool"])
        self.assertEqual(seen(called)[1]["tool_calls"][0]["id"], seen(called)[2]["tool_call_id"])
        self.refused("messages[1].name", USER, {"role": "function", "content": "x"})

    def test_roles(self) -> None:
        """Others are named; so is a message without one."""
        self.assertIn("assistant", self.refused("messages[1].role", USER, {"role": "x" * 10_000, "content": "a"}))
        self.refused("messages[0].role", {"content": "a"})
        self.refused("messages[0].role", {"role": 5, "content": "a"})

    def test_somebody_must_ask(self) -> None:
        """Only system and assistant messages are no request."""
        self.refused("messages", {"role": "system", "content": "x"})
        self.refused("messages", {"role": "assistant", "content": "x"})

    def test_what_is_new(self) -> None:
        """All after the last assistant message; results of tools are new together with the turn that called for them."""
        assistant = {"role": "assistant", "content": "x"}
        calls, result = {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c1", "content": "x"}
        for messages, new in (
            ([USER], [USER]),
            ([USER, USER], [USER, USER]),
            ([USER, assistant, user("b"), user("c")], [user("b"), user("c")]),
            ([USER, assistant], []),
            ([USER, {"role": "system", "content": "s"}, assistant, {"role": "system", "content": "s"}, user("b")], [user("b")]),
        ):
            request = decode(*messages)
            self.assertEqual(seen(request)[request.new_from :], new)
        request = decode(USER, calls, result)
        self.assertEqual([message["role"] for message in seen(request)[request.new_from :]], ["assistant", "tool"])


class BytesTests(WireCase):
    """What is no request at all."""

    def test_no_json(self) -> None:
        """Nothing, nonsense, other types, other encodings: one sentence, no field."""
        for body in (
            b"",
            b"x",
            b"[]",
            b'"s"',
            b"null",
            b"5",
            b"{}x",
            b"\xff",
            b'{"messages":[{"role":"user","content":"\xff"}]}',
            "{}".encode("utf-16"),
        ):
            error = self.assertRaises(InvalidRequest, decode_request, body)
            self.assertLess(len(error.message), 300)

    def test_byte_order_mark_and_bytearray(self) -> None:
        """A mark before the text is forgiven; a body that came in pieces is read as well."""
        body = json.dumps({"messages": [USER]}).encode()
        self.assertEqual(seen(decode_request(b"\xef\xbb\xbf" + body)), [USER])
        self.assertEqual(seen(decode_request(bytearray(b"\xef\xbb\xbf" + body))), [USER])

    @FIXED
    @given(st.binary(max_size=200))
    def test_any_bytes(self, body: bytes) -> None:
        """Are decoded or refused, never anything else."""
        try:
            decode_request(body)
        except InvalidRequest:
            pass

    @FIXED
    @given(
        st.dictionaries(st.sampled_from(["messages", "model", "stream", "stop", "tools", "user", "metadata", "n", "functions", "prediction"]), JSON)
    )
    def test_any_json(self, body: dict[str, Any]) -> None:
        """Likewise; what is accepted can be encoded again."""
        try:
            request = decode_request(json.dumps(body).encode())
        except InvalidRequest as error:
            self.assertTrue(error.message)
            error_body(error)
        else:
            seen(request)

    @FIXED
    @given(
        st.lists(
            st.builds(
                dict,
                role=st.sampled_from(["system", "developer", "user", "assistant", "tool", "function", "x"]),
                content=st.none() | TEXT | st.lists(st.builds(dict, type=st.sampled_from(["text", "input_text", "refusal"]), text=TEXT), max_size=3),
                name=st.none() | TEXT,
                tool_call_id=st.none() | st.sampled_from(["a", "b"]),
                tool_calls=st.none() | st.lists(st.builds(dict, id=st.sampled_from(["a", "b"]), function=st.just({"name": "f"})), max_size=2),
            ),
            max_size=6,
        )
    )
    def test_any_conversation(self, messages: list[dict[str, Any]]) -> None:
        """An accepted one keeps its order, and every result follows its call, but for what a session may have the other part of."""
        try:
            request = decode_request(json.dumps({"messages": messages}).encode())
        except InvalidRequest:
            return
        self.assertLessEqual(request.new_from, len(request.messages))
        waiting: set[str] = set()
        for message in seen(request) if request.incomplete is None else ():
            if message["role"] == "tool":
                waiting.remove(message["tool_call_id"])
            else:
                self.assertEqual(waiting, set())
            waiting |= {call["id"] for call in message.get("tool_calls", ())}
        self.assertEqual(waiting, set())
        sent = [
            message["content"] if isinstance(message["content"], str) else "\n".join(part["text"] for part in message["content"])
            for message in messages
            if message["role"] == "user"
        ]
        self.assertEqual([message["content"] for message in seen(request) if message["role"] == "user"], sent)


class AnswerTests(SynchronousTestCase):
    """What goes back."""

    def test_completion(self) -> None:
        """Counts are summed as OpenAI counts: cached ones are part of the prompt, reasoning is part of the completion."""
        body = json.loads(completion("abc", 1_700_000_000, "m", "text", "length", Usage(input=5, output=4, cache_read=2, cache_write=1, reasoning=3)))
        self.assertEqual((body["id"], body["created"], body["model"]), ("chatcmpl-abc", 1_700_000_000, "m"))
        self.assertEqual(body["choices"][0]["finish_reason"], "length")
        usage = body["usage"]
        self.assertEqual((usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]), (8, 4, 12))
        self.assertEqual((usage["prompt_tokens_details"], usage["completion_tokens_details"]), ({"cached_tokens": 2}, {"reasoning_tokens": 3}))

    def test_an_empty_completion(self) -> None:
        """Has an empty text and a finish reason."""
        choice = json.loads(completion("abc", 1, "m", "", None, Usage()))["choices"][0]
        self.assertEqual((choice["message"]["content"], choice["finish_reason"]), ("", "stop"))

    def test_errors(self) -> None:
        """Always the four fields."""
        body = json.loads(error_body(InvalidRequest("x is wrong.", param="x")))
        self.assertEqual(body, {"error": {"message": "x is wrong.", "type": "invalid_request_error", "param": "x", "code": None}})
        body = json.loads(error_body(RateLimited()))
        self.assertEqual(set(body["error"]), {"message", "type", "param", "code"})

    def test_stream_frames(self) -> None:
        """Each is one `data:` line with the same head; the error has an event line."""
        stream = Stream("abc", 7, 'm"\n')
        frames = [stream.role(), stream.deltas([TextDelta("x")]), stream.finish("length"), stream.usage(Usage(1, 2))]
        for frame in frames:
            chunk = data_of(frame)
            self.assertEqual((chunk["id"], chunk["object"], chunk["created"], chunk["model"]), ("chatcmpl-abc", "chat.completion.chunk", 7, 'm"\n'))
        self.assertEqual(data_of(frames[0])["choices"][0]["delta"], {"role": "assistant", "content": ""})
        self.assertEqual(data_of(frames[2])["choices"][0], {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"})
        self.assertEqual((data_of(frames[3])["choices"], data_of(frames[3])["usage"]["total_tokens"]), ([], 3))
        event, data, *rest = stream.error(UpstreamError("gone")).split(b"\n")
        self.assertEqual((event, json.loads(data[6:])["error"]["code"], rest), (b"event: error", "upstream_error", [b"", b""]))
        self.assertEqual((DONE, PING), (b"data: [DONE]\n\n", b": ping\n\n"))

    def test_what_makes_no_frame(self) -> None:
        """Empty deltas, reasoning, and events that are not for this door."""
        events = [ModelAnswered("p", "m"), ReasoningDelta("hm"), TextDelta(""), Usage(1, 1), TurnFinished("stop")]
        self.assertEqual(Stream("abc", 7, "m").deltas(events), b"")

    @FIXED
    @given(st.lists(TEXT.filter(bool), max_size=8))
    def test_any_text(self, texts: list[str]) -> None:
        """Comes out as it went in, one frame for each delta, and never breaks a line."""
        data = Stream("abc", 7, "m").deltas([TextDelta(text) for text in texts])
        frames = [frame + b"\n\n" for frame in data.split(b"\n\n")[:-1]]
        self.assertEqual([data_of(frame)["choices"][0]["delta"]["content"] for frame in frames], texts)

    @FIXED
    @given(TEXT, TEXT)
    def test_any_model_and_completion(self, model: str, text: str) -> None:
        """Likewise for whole answers."""
        body = json.loads(completion("abc", 7, model, text, "stop", Usage()))
        self.assertEqual((body["model"], body["choices"][0]["message"]["content"]), (model, text))
