"""Google's generateContent: its decoder as a table, its requests, whole turns with a server that is as strict as Google's, and its faults."""

from __future__ import annotations

import json
import os
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from mayros.core.ports import ModelRequest, Sampling, ToolSpec
from mayros.core.reply import Reply
from mayros.errors import ConfigError, ContextLengthExceeded, GatewayError, InsufficientQuota, RateLimited, UpstreamError, UpstreamRefused
from mayros.events import Event, ProviderState, ReasoningDelta, TextDelta, ToolCallDelta, TurnFinished, Usage
from mayros.messages import Function, ImagePart, ImageUrl, Message, TextPart, ToolCall
from mayros.messages import ProviderState as KeptState
from mayros.net.redact import Redactor
from mayros.providers.adapters import _adapter
from mayros.providers.google import GoogleAI, google_request
from mayros.providers.google_contents import OPENING, UNSIGNED
from mayros.providers.google_decoder import GoogleDecoder
from mayros.providers.reading import STATE_LIMIT
from tests import vendor_cases
from tests.vendor_cases import ANSWERED, KEY, SSE, TOOL, event, provider, reply, text

USED = {"promptTokenCount": 20, "candidatesTokenCount": 5, "totalTokenCount": 25}
COUNTED = Usage(20, 5)
STOP = TurnFinished("stop", "STOP")
WRITE = ToolSpec("write", "Write a file.", {"type": "object", "properties": {"path": {"type": "string"}, "text": {"type": "string"}}})

settings.register_profile("google", derandomize="CI" in os.environ, deadline=None, database=None)


def chunk(*parts: Any, finish: str | None = None, usage: Any = None, **more: Any) -> bytes:
    """A chunk as Google sends it; a text stands for a part of text."""
    said = [{"text": part} if isinstance(part, str) else part for part in parts]
    candidate: dict[str, Any] = {"content": {"parts": said, "role": "model"}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    body = {"candidates": [candidate], "modelVersion": "m1", "responseId": "r1", **more}
    return event({**body, "usageMetadata": usage} if usage is not None else body)


def call(name: str, args: Any = None, signature: str | None = None, **more: Any) -> dict[str, Any]:
    """A part with a call."""
    made: dict[str, Any] = {"functionCall": {"name": name, **({} if args is None else {"args": args}), **more}}
    return made if signature is None else {**made, "thoughtSignature": signature}


END = chunk(finish="STOP", usage=USED)


def decoder(tools: bool = True) -> GoogleDecoder:
    """A decoder of a turn in which tools were offered."""
    return GoogleDecoder("acme", "m1", Redactor([KEY]), tools)


def decode(*pieces: bytes) -> list[Event]:
    """All events of an answer; raises its error."""
    reading = decoder()
    return [event for piece in pieces for event in reading.feed(piece)] + reading.close()


def made(events: list[Event]) -> list[tuple[str, str]]:
    """Names and arguments of the calls."""
    return [(event.name or "", event.arguments) for event in events if type(event) is ToolCallDelta]


def state(events: list[Event]) -> Any:
    """What is kept of a turn, read back; None where nothing is."""
    return next((json.loads(event.state)["parts"] for event in events if type(event) is ProviderState), None)


class Decoding(vendor_cases.SynchronousTestCase):
    """Bytes in, events out."""

    def test_an_answer_as_google_streams_it(self) -> None:
        """Lines end with CRLF, each chunk has the counts so far, the last one the reason: each read's events in one list."""
        reading = decoder()
        first = chunk({"text": "Hm.", "thought": True}, usage={"promptTokenCount": 20, "thoughtsTokenCount": 9}).replace(b"\n", b"\r\n")
        self.assertEqual(reading.feed(first), [ANSWERED, ReasoningDelta("Hm.")])
        self.assertEqual(reading.feed(chunk("Hel", usage=USED) + chunk("lo", usage=USED)), [TextDelta("Hel"), TextDelta("lo")])
        self.assertFalse(reading.complete)
        counts = {
            "promptTokenCount": 20,
            "cachedContentTokenCount": 12,
            "candidatesTokenCount": 5,
            "thoughtsTokenCount": 9,
            "toolUsePromptTokenCount": 3,
        }
        self.assertEqual(reading.feed(chunk("", finish="STOP", usage=counts)), [Usage(11, 14, 12, 0, 9), STOP])
        self.assertTrue(reading.done and reading.complete)
        self.assertEqual(reading.close(), [])

    def test_quirks(self) -> None:
        """What servers do differently, and what comes of it."""
        hi = [ANSWERED, TextDelta("hi")]
        none = Usage()
        for name, stream, events in (
            ("no usage: the end of the stream counts", chunk("hi", finish="STOP"), [*hi, none, STOP]),
            ("usage after the reason", chunk("hi", finish="STOP") + event({"usageMetadata": USED}), [*hi, COUNTED, STOP]),
            ("usage before it", chunk("hi", usage=USED) + chunk(finish="STOP"), [*hi, COUNTED, STOP]),
            ("the last usage counts", chunk("hi", usage={"promptTokenCount": 1}) + END, [*hi, COUNTED, STOP]),
            ("usage first, alone", event({"usageMetadata": {"promptTokenCount": 1}}) + chunk("hi") + END, [*hi, COUNTED, STOP]),
            (
                "no content with the reason",
                chunk("hi") + event({"candidates": [{"finishReason": "STOP"}], "usageMetadata": USED}),
                [*hi, COUNTED, STOP],
            ),
            ("null content, null index", event({"candidates": [{"content": None, "index": None}]}) + chunk("hi") + END, [*hi, COUNTED, STOP]),
            (
                "a second candidate",
                event({"candidates": [{"index": 1, "content": {"parts": [{"text": "no"}]}}]}) + chunk("hi") + END,
                [*hi, COUNTED, STOP],
            ),
            ("limit", chunk("hi", finish="MAX_TOKENS", usage=USED), [*hi, COUNTED, TurnFinished("length", "MAX_TOKENS")]),
            ("its filters", chunk("hi", finish="SAFETY", usage=USED), [*hi, COUNTED, TurnFinished("content_filter", "SAFETY")]),
            ("recitation", chunk(finish="RECITATION", usage=USED), [ANSWERED, COUNTED, TurnFinished("content_filter", "RECITATION")]),
            ("OTHER after text", chunk("hi", finish="OTHER", usage=USED), [*hi, COUNTED, TurnFinished("stop", "OTHER")]),
            ("a reason of tomorrow", chunk("hi", finish="TIRED", usage=USED), [*hi, COUNTED, TurnFinished("stop", "TIRED")]),
            ("nothing said", END, [ANSWERED, COUNTED, STOP]),
            ("after the end", chunk("hi") + END + chunk("more"), [*hi, COUNTED, STOP]),
            (
                "the prompt was blocked",
                event({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 20}}),
                [ANSWERED, Usage(20), TurnFinished("content_filter", "PROHIBITED_CONTENT")],
            ),
            ("feedback that blocks nothing", chunk("hi", promptFeedback={"safetyRatings": []}) + END, [*hi, COUNTED, STOP]),
            (
                "fields of wrong types",
                event({"candidates": [{"content": {"parts": [{"text": 5}, 7, {"text": "hi", "thought": "no"}], "role": 3}, "index": "x"}]}) + END,
                [*hi, COUNTED, STOP],
            ),
            ("parts that are none of ours", chunk({"executableCode": {"code": "x"}}, {"inlineData": {"data": ""}}, "hi") + END, [*hi, COUNTED, STOP]),
            ("[DONE]", chunk("hi", finish="STOP") + b"data: [DONE]\n\n", [*hi, none, STOP]),
        ):
            self.assertEqual(decode(stream), events, name)

    def test_calls(self) -> None:
        """They come whole, have no id or one, and no arguments or some."""
        for name, stream, expected in (
            ("one", chunk(call("read", {"path": "a"})), [("read", '{"path": "a"}')]),
            (
                "two in a chunk",
                chunk(call("read", {}), call("write", {"a": [1, {"b": "é"}]})),
                [("read", "{}"), ("write", '{"a": [1, {"b": "\\u00e9"}]}')],
            ),
            ("two in two chunks, text between", chunk(call("read", {})) + chunk("x") + chunk(call("read", {})), [("read", "{}"), ("read", "{}")]),
            ("no arguments", chunk(call("read")), [("read", "")]),
            ("null arguments", chunk({"functionCall": {"name": "read", "args": None}}), [("read", "")]),
            ("no name", chunk(call("", {})), [("unnamed", "{}")]),
            ("a name that is none", chunk({"functionCall": {"name": 5, "args": {"a": 1}}}), [("unnamed", '{"a": 1}')]),
            ("arguments that are no object: for the loop to tell", chunk(call("read", "x")), [("read", '"x"')]),
        ):
            for finish in ("STOP", "TIRED"):
                events = decode(stream, chunk(finish=finish, usage=USED))
                self.assertEqual(expected, made(events), name)
                self.assertEqual(TurnFinished("tool_calls", finish), events[-1], name)
                calls = [event for event in events if type(event) is ToolCallDelta]
                self.assertEqual(list(range(len(expected))), [event.index for event in calls], name)
                self.assertEqual(len(expected), len({event.id for event in calls}), name)
        self.assertEqual("length", decode(chunk(call("read", {})), chunk(finish="MAX_TOKENS", usage=USED))[-1].reason)  # type: ignore[attr-defined]

    def test_ids(self) -> None:
        """Google's own are taken, unless they are none or there twice."""
        events = decode(chunk(*(call("read", {}, id=one) for one in ("a1", "a1", "", "x" * 500, "a\nb"))), END)
        ids = [event.id or "" for event in events if type(event) is ToolCallDelta]
        self.assertEqual("a1", ids[0])
        self.assertEqual(5, len(set(ids)))
        self.assertTrue(all(len(one) < 40 and one.isprintable() for one in ids))

    def test_what_is_kept(self) -> None:
        """Signatures with the part they came on, texts by their length, ids; only of turns with calls, and only where there is something to keep."""
        sign = {"thoughtSignature": "s3"}
        for name, stream, kept in (
            ("nothing to keep", chunk(call("read", {})), None),
            ("an id", chunk(call("read", {}, id="a")), [{"call": "a"}]),
            ("on the first call", chunk(call("read", {}, "s1"), call("read", {})), [{"call": "", "signature": "s1"}, {"call": ""}]),
            ("after text", chunk("ab") + chunk("c") + chunk(call("read", {}, "s1")), [{"text": 3}, {"call": "", "signature": "s1"}]),
            (
                "on an empty text",
                chunk("ab", call("read", {})) + chunk({"text": "", **sign}),
                [{"text": 2}, {"call": ""}, {"text": 0, "signature": "s3"}],
            ),
            (
                "on a text among texts",
                chunk("ab", {"text": "cde", **sign}, "f", call("read", {})),
                [{"text": 2}, {"text": 3, "signature": "s3"}, {"text": 1}, {"call": ""}],
            ),
            (
                "on a thought",
                chunk({"text": "h", "thought": True}) + chunk({"text": "m", "thought": True, **sign}) + chunk(call("read", {})),
                [{"thought": "hm", "signature": "s3"}, {"call": ""}],
            ),
            ("an unsigned thought", chunk({"text": "h", "thought": True}, call("read", {}, "s1")), [{"call": "", "signature": "s1"}]),
            ("no part but the signature", chunk(call("read", {}), sign), [{"call": ""}, {"text": 0, "signature": "s3"}]),
        ):
            events = decode(stream, END)
            self.assertEqual(kept, state(events), name)
            if kept is not None:
                self.assertIs(type(events[-3]), ProviderState, name)
        self.assertIsNone(state(decode(chunk({"text": "ab", "thoughtSignature": "s1"}), END)))

    def test_too_much_to_keep(self) -> None:
        """Thoughts go first; more than 1 MiB of signatures is not kept at all."""
        thoughts = chunk({"text": "x" * 900_000, "thought": True, "thoughtSignature": "s0"})
        self.assertEqual([{"call": "", "signature": "s1"}], state(decode(thoughts, thoughts, chunk(call("read", {}, "s1")), END)))
        signed = chunk(call("read", {}, "s" * (STATE_LIMIT // 2)))
        self.assertIsNone(state(decode(signed, signed, signed, END)))

    def test_answers_that_are_none(self) -> None:
        """Only garbage, nothing, an end in the middle, an answer that Google itself could not read (U07, U08)."""
        for stream, said in (
            (b"", "cannot be understood"),
            (b"<html>\n\n", "cannot be understood"),
            (event({"usageMetadata": USED}), "cannot be understood"),
            (event({"candidates": []}), "cannot be understood"),
            (chunk("hi"), "broke off"),
            (chunk("hi", call("read", {})), "broke off"),
            (chunk(finish="OTHER", usage=USED), "OTHER"),
            (chunk("hi", finish="MALFORMED_FUNCTION_CALL", usage=USED), "MALFORMED_FUNCTION_CALL"),
            (chunk(finish="UNEXPECTED_TOOL_CALL"), "UNEXPECTED_TOOL_CALL"),
        ):
            error = self.assertRaises(UpstreamError, decode, stream)
            self.assertIn(said, error.message)
            self.assertTrue(error.fallback)

    def test_errors_inside_the_stream(self) -> None:
        """As what they mean, after the text before them (U20)."""

        def said(code: int, status: str, message: str = "boom", **more: Any) -> bytes:
            return event({"error": {"code": code, "message": f"{message} {KEY}", "status": status, **more}})

        retry = [{"@type": "type.googleapis.com/google.rpc.Help"}, {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "16.2s"}]
        for body, kind, seconds in (
            (said(503, "UNAVAILABLE", "The model is overloaded."), UpstreamError, None),
            (said(500, "INTERNAL"), UpstreamError, None),
            (said(429, "RESOURCE_EXHAUSTED"), RateLimited, None),
            (said(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota", details=retry), RateLimited, 17),
            (
                said(400, "INVALID_ARGUMENT", "The input token count (9) exceeds the maximum number of tokens allowed (8)."),
                ContextLengthExceeded,
                None,
            ),
            (said(400, "INVALID_ARGUMENT", "API key not valid."), UpstreamRefused, None),
        ):
            reading = decoder()
            self.assertEqual([ANSWERED, TextDelta("hi")], reading.feed(chunk("hi") + body + chunk("no", finish="STOP", usage=USED)), body)
            self.assertTrue(reading.done and not reading.complete)
            error = self.assertRaises(kind, reading.close)
            self.assertEqual((kind, seconds), (type(error), error.retry_after), body)
            self.assertNotIn(KEY, error.message)

    def test_bounds(self) -> None:
        """Calls and their arguments (U21)."""
        self.assertIn("256 times", self.assertRaises(UpstreamError, decode, *[chunk(call("f", {}))] * 257).message)
        whole = {"candidates": [{"content": {"parts": [call("f", {"x": "a" * (1 << 20)})]}, "finishReason": "STOP"}]}
        self.assertIn("1 MiB", self.assertRaises(UpstreamError, decoder().whole, json.dumps(whole).encode()).message)

    def test_an_answer_that_is_not_streamed(self) -> None:
        """One object, or the list of chunks that Google sends without `alt=sse`."""
        parts = [chunk({"text": "hm", "thought": True}, "h")[6:-2], chunk("i", call("read", {"a": 1}, "s"), finish="STOP", usage=USED)[6:-2]]
        for body in (b"[" + b",\n".join(parts) + b"]", parts[1]):
            events = decoder().whole(body)
            self.assertEqual([("read", '{"a": 1}')], made(events))
            self.assertEqual([COUNTED, TurnFinished("tool_calls", "STOP")], events[-2:])
        error = b'[{"error": {"code": 429, "message": "slow down", "status": "RESOURCE_EXHAUSTED"}}]'
        self.assertRaises(RateLimited, decoder().whole, error)


#: One answer with everything in it, its calls with Google's own ids.
EVERYTHING = b"".join(
    [
        chunk({"text": "Let me sée.", "thought": True}, usage={"promptTokenCount": 20}),
        event(b'{"candidates": [{"content": {"parts": [{"text": "I \xc3\xa9 \xf0\x9f\x98\x80 look"}]}}]}'),
        chunk(" at both."),
        chunk(call("read", {"path": "ä"}, "sig/1+==", id="g1"), call("write", {"path": "b", "text": "\U0001f600"}, id="g2"), usage=USED),
        event({"candidates": [{"content": {"parts": [{"text": 5}, {"text": "odd"}]}}]}),
        chunk({"text": "", "thoughtSignature": "sig2"}, finish="STOP", usage={**USED, "cachedContentTokenCount": 8, "thoughtsTokenCount": 2}),
    ]
)


class Pieces(vendor_cases.SynchronousTestCase):
    """However the bytes come."""

    def test_cut_anywhere(self) -> None:
        """At every byte, and into single bytes: the same events."""
        for stream in (EVERYTHING, EVERYTHING.replace(b"\n", b"\r\n")):
            expected = decode(EVERYTHING)
            self.assertEqual([("read", '{"path": "\\u00e4"}'), ("write", '{"path": "b", "text": "\\ud83d\\ude00"}')], made(expected))
            self.assertEqual([Usage(12, 7, 8, 0, 2), TurnFinished("tool_calls", "STOP")], expected[-2:])
            for at in range(len(stream)):
                self.assertEqual(expected, decode(stream[:at], stream[at:]), at)
            self.assertEqual(expected, decode(*(bytes([byte]) for byte in stream)))

    @given(st.lists(st.binary(max_size=60), max_size=8), st.lists(st.integers(0, len(EVERYTHING)), max_size=8))
    @settings(settings.get_profile("google"), max_examples=60)
    def test_noise(self, noise: list[bytes], places: list[int]) -> None:
        """Bytes put in anywhere: events, or an error of ours."""
        stream = EVERYTHING
        for junk, place in zip(noise, places, strict=False):
            stream = stream[:place] + junk + stream[place:]
        self.survives(stream)

    @given(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text(max_size=4)
            | st.sampled_from(["STOP", "SAFETY", "read", "\ud83d", "\ude00"]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        [
                            *("candidates", "content", "parts", "text", "thought", "thoughtSignature", "functionCall", "name", "args", "id", "index"),
                            *(
                                "finishReason",
                                "usageMetadata",
                                "promptTokenCount",
                                "cachedContentTokenCount",
                                "promptFeedback",
                                "blockReason",
                                "error",
                            ),
                        ]
                    ),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=20,
        ),
        st.lists(st.sampled_from(["text", "thought", "thoughtSignature", "functionCall"]), max_size=3),
    )
    @settings(settings.get_profile("google"), max_examples=100)
    def test_any_json(self, value: object, names: list[str]) -> None:
        """Chunks of any shape, and known fields with values of any shape."""
        parts = [{name: value} for name in names]
        self.survives(
            event(value) + event({"candidates": value}) + event({"candidates": [{"content": {"parts": parts}, "finishReason": value}]}) + END
        )

    def survives(self, stream: bytes) -> None:
        """Reads it whole and as an answer that is no stream."""
        for tools in (True, False):
            reading = decoder(tools)
            try:
                events = [*reading.feed(stream), *reading.close()]
            except GatewayError:
                continue
            self.assertIs(type(events[-1]), TurnFinished)
            text(events).encode()
        try:
            decoder().whole(stream)
        except GatewayError:
            pass


def sent(asked: ModelRequest, dropped: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The request, read back."""
    body: dict[str, Any] = json.loads(b"".join(google_request(asked, dropped)))
    return body


def request(*messages: Message, sampling: Sampling | None = None, tools: tuple[ToolSpec, ...] = (), **model: Any) -> ModelRequest:
    """A turn at a Gemini 3."""
    made = vendor_cases.request(provider("google-generative-ai"), sampling, messages, **{"id": "gemini-3-flash-preview", **model})
    return msgspec.structs.replace(made, tools=tools)


def calling(*calls: tuple[str, str, str], content: str | None = None, kept: KeptState | None = None) -> Message:
    """An assistant message with calls: id, name, arguments."""
    return Message("assistant", content, tool_calls=tuple(ToolCall(id, Function(name, written)) for id, name, written in calls), provider_state=kept)


class Requests(vendor_cases.SynchronousTestCase):
    """What is asked."""

    def test_the_usual_request(self) -> None:
        """The system text beside the contents, and nothing that was not asked for."""
        expected = {"contents": [{"role": "user", "parts": [{"text": "Hé"}]}], "systemInstruction": {"parts": [{"text": "Be brief."}]}}
        self.assertEqual(expected, sent(request()))

    def test_sampling(self) -> None:
        """Under Google's names; seeds have 32 bits there."""
        sampling = Sampling(0.0, 0.5, 100, ("a", "b"), (1 << 40) + 7, 0.1, -0.1, "low", {"service_tier": "flex"})
        expected = {"temperature": 0.0, "topP": 0.5, "maxOutputTokens": 100, "stopSequences": ["a", "b"], "seed": 7}
        expected |= {"frequencyPenalty": 0.1, "presencePenalty": -0.1}
        self.assertEqual(expected, sent(request(sampling=sampling))["generationConfig"])
        left = sent(request(sampling=sampling), frozenset({"penalties", "seed"}))["generationConfig"]
        self.assertEqual({"temperature", "topP", "maxOutputTokens", "stopSequences"}, set(left))

    def test_thinking(self) -> None:
        """Levels from Gemini 3 on, budgets for 2.5, nothing for older ones; the nearest where a model has fewer."""
        for model, effort, config in (
            ("gemini-3-flash-preview", None, {"includeThoughts": True}),
            ("gemini-3-flash-preview", "none", {"thinkingLevel": "MINIMAL"}),
            ("gemini-3-flash-preview", "minimal", {"includeThoughts": True, "thinkingLevel": "MINIMAL"}),
            ("gemini-3-flash-preview", "medium", {"includeThoughts": True, "thinkingLevel": "MEDIUM"}),
            ("gemini-3-flash-preview", "xhigh", {"includeThoughts": True, "thinkingLevel": "HIGH"}),
            ("gemini-3-pro-preview", "none", {"thinkingLevel": "LOW"}),
            ("gemini-3-pro-preview", "medium", {"includeThoughts": True, "thinkingLevel": "HIGH"}),
            ("gemini-3.1-pro-preview", "medium", {"includeThoughts": True, "thinkingLevel": "MEDIUM"}),
            ("gemini-3.1-pro-preview", "minimal", {"includeThoughts": True, "thinkingLevel": "LOW"}),
            ("gemini-flash-latest", "low", {"includeThoughts": True, "thinkingLevel": "LOW"}),
            ("gemini-2.5-flash", "none", {"thinkingBudget": 0}),
            ("gemini-2.5-flash", "high", {"includeThoughts": True, "thinkingBudget": 24_576}),
            ("gemini-2.5-pro", "none", {"thinkingBudget": 128}),
            ("gemini-2.5-pro", "low", {"includeThoughts": True, "thinkingBudget": 2048}),
            ("gemini-2.5-pro", "xhigh", {"includeThoughts": True, "thinkingBudget": 32_768}),
            ("gemini-2.5-flash-lite", "minimal", {"includeThoughts": True, "thinkingBudget": 512}),
            ("gemini-2.5-flash-lite", "none", {"thinkingBudget": 0}),
            ("gemini-2.0-flash", "low", {"includeThoughts": True}),
            ("gemini-2.0-flash", "none", None),
        ):
            asked = request(sampling=Sampling(reasoning_effort=effort), id=model, reasoning=True)
            self.assertEqual(config, sent(asked).get("generationConfig", {}).get("thinkingConfig"), (model, effort))
        self.assertNotIn("generationConfig", sent(request(sampling=Sampling(reasoning_effort="low"))))

    def test_levels_that_were_refused(self) -> None:
        """Rather more than was asked for than less."""
        asked = request(sampling=Sampling(reasoning_effort="low"), reasoning=True)
        for refused, level in ((("LOW",), "MEDIUM"), (("LOW", "MEDIUM", "HIGH"), "MINIMAL"), (("LOW", "MEDIUM", "HIGH", "MINIMAL"), None)):
            config = sent(asked, frozenset(f"thinkingLevel:{one}" for one in refused))["generationConfig"]["thinkingConfig"]
            self.assertEqual(level, config.get("thinkingLevel"))

    def test_tools(self) -> None:
        """With their whole schema; for servers that do not know that field, with the part of it that `parameters` knows."""
        schema = {
            "type": "object",
            "$defs": {"x": {}},
            "additionalProperties": False,
            "properties": {
                "a": {"type": ["string", "null"], "format": "uri", "const": "x"},
                "b": {"type": "array", "items": {"oneOf": [{"type": "integer", "exclusiveMinimum": 1}, {"$ref": "#/$defs/x"}]}},
                "c": {"enum": [1, 2]},
                "format": {"type": "string", "format": "date-time"},
            },
            "required": ["a"],
        }
        tool, bare = ToolSpec("odd", "Odd.", schema), ToolSpec("status", "", {"type": "object", "properties": {}})
        (declared,) = sent(request(tools=(tool, bare)))["tools"]
        self.assertEqual({"name": "odd", "description": "Odd.", "parametersJsonSchema": schema}, declared["functionDeclarations"][0])
        (declared,) = sent(request(tools=(tool, bare)), frozenset({"parametersJsonSchema"}))["tools"]
        self.assertEqual(
            {
                "type": "object",
                "properties": {
                    "a": {"type": "string", "nullable": True, "enum": ["x"]},
                    "b": {"type": "array", "items": {"anyOf": [{"type": "integer"}, {}]}},
                    "c": {},
                    "format": {"type": "string", "format": "date-time"},
                },
                "required": ["a"],
            },
            declared["functionDeclarations"][0]["parameters"],
        )
        self.assertEqual({"name": "status", "description": ""}, declared["functionDeclarations"][1])

    def test_images(self) -> None:
        """Of users, and of results: in them with Gemini 3, after them with older models, and only a word where a model sees none."""
        picture = ImagePart(ImageUrl("data:image/png;base64,QUJD"))
        data = {"inlineData": {"mimeType": "image/png", "data": "QUJD"}}
        asking = Message("user", (TextPart("look"), picture, ImagePart(ImageUrl("https://x/y.png"))))
        result = Message("tool", (TextPart("a.png"), picture), tool_call_id="c1")
        talk = (asking, calling(("c1", "read", "{}")), result, Message("user", "so?"))
        user, _, answer, more = sent(request(*talk, input=("text", "image")))["contents"]
        self.assertEqual([{"text": "look"}, data, {"text": "[An image was left out, because the model cannot take it.]"}], user["parts"])
        self.assertEqual([{"functionResponse": {"name": "read", "response": {"output": "a.png"}, "parts": [data]}}], answer["parts"])
        self.assertEqual([{"text": "so?"}], more["parts"])
        _, _, answer, more = sent(request(*talk, input=("text", "image"), id="gemini-2.5-flash"))["contents"]
        said = "a.png\n[1 image(s): in the message after the function responses]"
        self.assertEqual([{"functionResponse": {"name": "read", "response": {"output": said}}}], answer["parts"])
        self.assertEqual([{"text": "Images of the response of the function read:"}, data, {"text": "so?"}], more["parts"])
        _, _, answer, _ = sent(request(*talk))["contents"]
        said = "a.png\n[1 image(s): 1 left out, because the model cannot take it]"
        self.assertEqual([{"functionResponse": {"name": "read", "response": {"output": said}}}], answer["parts"])

    def test_contents(self) -> None:
        """The user begins; what one side says in a row is one content; empty messages and results of no call are left out."""
        talk = (
            Message("assistant", "hello"),
            Message("user", "a"),
            Message("user", ""),
            Message("user", "b"),
            Message("assistant", ""),
            Message("tool", "stray", tool_call_id="c0"),
        )
        expected = [("user", [{"text": OPENING}]), ("model", [{"text": "hello"}]), ("user", [{"text": "a"}, {"text": "b"}])]
        self.assertEqual(expected, [(one["role"], one["parts"]) for one in sent(request(*talk))["contents"]])

    def test_arguments_that_are_no_object(self) -> None:
        """An empty object stands for them; the others go back as the model wrote them."""
        for written, kept in (('{"a": 1.50}', b'{"a": 1.50}'), ("", b"{}"), ("[1]", b"{}"), ('{"a":', b"{}"), ('{"a":' * 2000, b"{}")):
            body = b"".join(google_request(request(calling(("c1", "read", written)))))
            self.assertIn(b'"args":' + kept + b"}", body)


class Gemini:
    """A server as strict as Google's. `issued`: the contents with signatures that it has made, as they must come back."""

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict
        self.issued: list[list[dict[str, Any]]] = []

    def refuses(self, body: dict[str, Any]) -> str | None:
        """Why a request is refused, or None."""
        if unknown := body.keys() - {"contents", "systemInstruction", "generationConfig", "tools", "toolConfig"}:
            return f"Unknown name {unknown}"
        contents = body["contents"]
        if not contents or contents[0]["role"] != "user":
            return "the conversation must begin with the user"
        open_calls: list[dict[str, Any]] = []
        for content in contents:
            if content.keys() != {"role", "parts"} or content["role"] not in ("user", "model") or not content["parts"]:
                return "a content is not valid"
            parts = content["parts"]
            for part in parts:
                data = part.keys() - {"thought", "thoughtSignature"}
                if len(data) != 1 or data - {"text", "inlineData", "functionCall", "functionResponse"}:
                    return f"a part must have exactly one kind of data: {part}"
                if part.get("text") == "" and "thoughtSignature" not in part:
                    return "a text must not be empty"
            answers = [part["functionResponse"] for part in parts if "functionResponse" in part]
            if open_calls or answers:
                if len(answers) != len(parts) or [one["name"] for one in answers] != [one["name"] for one in open_calls]:
                    return "the number of function response parts must equal that of the function call parts of the turn before"
                if [one.get("id") for one in answers] != [one.get("id") for one in open_calls]:
                    return "the ids of calls and responses differ"
                if any(one.keys() - {"name", "id", "response", "parts"} or not isinstance(one["response"], dict) for one in answers):
                    return "a function response is not valid"
            open_calls = [part["functionCall"] for part in parts if "functionCall" in part]
            if any(one.keys() - {"name", "id", "args"} or not isinstance(one["args"], dict) for one in open_calls):
                return "a function call is not valid"
            if open_calls and content["role"] != "model":
                return "calls are the model's"
            signatures = [part["thoughtSignature"] for part in parts if "thoughtSignature" in part]
            if self.strict and open_calls and not signatures:
                return "Function call is missing a thought_signature in functionCall parts."
            if any(one != UNSIGNED for one in signatures) and parts not in self.issued:
                return f"Thought signature is not valid: {parts}"
        return "calls are open" if open_calls else None


class RoundTrips(vendor_cases.WithServer):
    """Turns that go on from what the model said."""

    def setUp(self) -> None:
        super().setUp()
        self.google = Gemini()
        self.make(GoogleAI, provider("google-generative-ai"))

    def turn(self, asked: ModelRequest, *answer: bytes) -> Message:
        """One model turn: the server looks at the request and answers; the message that the loop makes of it."""
        turn = self.ask(asked)
        head, _, body = self.server.wires[-1].request.partition(b"\r\n\r\n")
        self.assertIn(b":streamGenerateContent?alt=sse HTTP/1.1", head)
        self.assertIsNone(self.google.refuses(json.loads(body)))
        self.server.say(SSE + b"".join(answer))
        self.successResultOf(turn)
        said = Reply()
        said.take(self.events)
        kept = KeptState(asked.model.ref, msgspec.Raw(said.state)) if said.state is not None else None
        return Message("assistant", said.text or None, tool_calls=tuple(said.calls()) or None, provider_state=kept)

    def test_thinking_text_and_two_calls(self) -> None:
        """All of it comes back as it was, and the results in their order with Google's ids."""
        asking = Message("user", "Compare.")
        said = self.turn(
            request(asking, tools=(TOOL, WRITE), reasoning=True),
            chunk({"text": "Let me see.", "thought": True}),
            chunk("I look ") + chunk("at both."),
            chunk(call("read", {"path": "ä"}, "s1", id="g1"), call("write", {"path": "b"}, id="g2")),
            chunk({"text": "", "thoughtSignature": "s2"}, finish="STOP", usage=USED),
        )
        self.google.issued.append(
            [
                {"text": "I look at both."},
                call("read", {"path": "ä"}, "s1", id="g1"),
                call("write", {"path": "b"}, id="g2"),
                {"text": "", "thoughtSignature": "s2"},
            ]
        )
        assert said.tool_calls
        results = [Message("tool", f"result {n}", tool_call_id=one.id) for n, one in enumerate(said.tool_calls)]
        last = self.turn(request(asking, said, *results, tools=(TOOL, WRITE), reasoning=True), chunk("Equal.") + END)
        self.assertEqual(Message("assistant", "Equal."), last)

    def test_what_was_altered_on_the_way(self) -> None:
        """A text that is not the one that was kept is sent whole before the calls, whose signatures stay; surplus calls go unsigned."""
        asked = request(tools=(TOOL,))
        said = self.turn(asked, chunk("a secret", call("read", {}, "s1")), END)
        assert said.tool_calls
        more = (*said.tool_calls, ToolCall("other", Function("read", "{}")))
        altered = msgspec.structs.replace(said, content="a ***", tool_calls=more)
        self.google.issued.append([{"text": "a ***"}, call("read", {}, "s1"), call("read", {})])
        results = [Message("tool", "x", tool_call_id=one.id) for one in more]
        self.turn(request(Message("user", "q"), altered, *results), chunk("ok") + END)

    def test_signed_thoughts(self) -> None:
        """A thought with a signature is a part of the turn."""
        thought = {"text": "hm", "thought": True, "thoughtSignature": "s0"}
        said = self.turn(request(tools=(TOOL,)), chunk(thought), chunk(call("read", {})), END)
        self.google.issued.append([thought, call("read", {})])
        assert said.tool_calls
        self.turn(request(Message("user", "q"), said, Message("tool", "x", tool_call_id=said.tool_calls[0].id)), chunk("ok") + END)

    def test_begun_by_another_vendor(self) -> None:
        """Its thoughts and ids stay behind; Gemini 3 is told that the calls are not its own, older models need no word."""
        foreign = KeptState("anthropic/claude", msgspec.Raw(b'{"blocks": [{"type": "thinking", "thinking": "hm", "signature": "z"}]}'))
        odd = KeptState("acme/gemini-3-flash-preview", msgspec.Raw(b'{"parts": [{"text": "x"}]}'))
        talk = [
            Message("user", "q"),
            calling(("toolu_01", "read", '{"path": "a"}'), ("call_x|fc_1", "write", "{}"), content="I look.", kept=foreign),
            Message("tool", "1", tool_call_id="toolu_01"),
            Message("tool", "Error: 2", tool_call_id="call_x|fc_1"),
            calling(("c9", "read", "{}"), kept=odd),
            Message("tool", "3", tool_call_id="c9"),
            Message("user", "go on"),
        ]
        contents = sent(request(*talk))["contents"]
        signatures = [part.get("thoughtSignature") for content in contents for part in content["parts"] if "functionCall" in part]
        self.assertEqual([UNSIGNED, None, UNSIGNED], signatures)
        self.assertNotIn("hm", json.dumps(contents))
        self.assertNotIn('"id"', json.dumps(contents))
        self.turn(request(*talk), chunk("ok") + END)
        self.google = Gemini(strict=False)
        self.assertNotIn("thoughtSignature", json.dumps(sent(request(*talk, id="gemini-2.5-pro"))))
        self.turn(request(*talk, id="gemini-2.5-pro"), chunk("ok") + END)

    def test_malformed_answers(self) -> None:
        """What Google could not read is asked for once more, if nothing of it was told."""
        bad = chunk(finish="MALFORMED_FUNCTION_CALL", usage=USED)
        turn = self.ask(request())
        self.server.say(SSE + bad)
        self.assertEqual([], self.events)
        self.server.say(SSE + chunk("hi") + END)
        self.successResultOf(turn)
        self.assertEqual([ANSWERED.__class__("acme", "gemini-3-flash-preview"), TextDelta("hi"), COUNTED, STOP], self.events)
        for first in (SSE + bad, SSE + chunk("hi") + bad):
            turn = self.ask(request())
            self.server.say(first)
            if not turn.called:
                self.server.say(SSE + bad)
            self.assertIn("malformed", self.failureResultOf(turn, UpstreamError).value.message)
        self.assertEqual(5, len(self.server.wires))

    def test_refused_parameters(self) -> None:
        """Dropped, or replaced by what is left, and remembered for the model."""

        def refusal(message: str) -> bytes:
            return reply(400, {"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}})

        unknown = "Invalid JSON payload received. Unknown name \"parametersJsonSchema\" at 'tools[0].function_declarations[0]': Cannot find field."
        asked = request(sampling=Sampling(reasoning_effort="medium", presence_penalty=1.0), tools=(TOOL,), reasoning=True)
        turn = self.ask(asked)
        for said, gone in (
            (unknown, '"parametersJsonSchema"'),
            ("Thinking level MEDIUM is not supported for this model. Please retry with other thinking level.", '"MEDIUM"'),
            ("Penalty is not enabled for models/x", '"presencePenalty"'),
            ("Thinking level is not supported for this model.", '"thinkingLevel"'),
        ):
            self.assertIn(gone, self.server.wires[-1].request.decode().replace(":", ": "))
            self.server.say(refusal(said))
        self.server.say(SSE + chunk("hi") + END)
        self.successResultOf(turn)
        self.ask(asked)
        body = json.loads(self.server.wires[-1].request.partition(b"\r\n\r\n")[2])
        self.assertEqual({"thinkingConfig": {"includeThoughts": True}}, body["generationConfig"])
        self.assertIn("parameters", body["tools"][0]["functionDeclarations"][0])
        for model, effort, said in (
            ("gemini-2.5-a", "none", "Budget 0 is invalid. This model only works in thinking mode."),
            ("gemini-2.5-b", "low", "The thinking budget 2048 is invalid. Please choose a value between 1 and 2."),
            ("gemini-2.5-c", "low", "Thinking is not enabled for models/gemini-2.5-c"),
        ):
            turn = self.ask(request(sampling=Sampling(reasoning_effort=effort), id=model, reasoning=True))
            self.assertIn(b"thinkingBudget", self.server.wires[-1].request)
            self.server.say(refusal(said))
            self.assertNotIn(b"thinkingBudget", self.server.wires[-1].request)
            self.server.say(SSE + chunk("hi") + END)
            self.server.hang_up()
            self.successResultOf(turn)

    def test_what_is_sent(self) -> None:
        """Path and key in Google's form; models may be named by their path."""
        for model, path in (("m1", "/v1/models/m1"), ("tunedModels/a b?", "/v1/tunedModels/a%20b%3F"), ("models/x", "/v1/models/x")):
            self.ask(request(id=model))
            lines = self.server.wires[-1].request.decode().split("\r\n")
            self.assertEqual(f"POST {path}:streamGenerateContent?alt=sse HTTP/1.1", lines[0])
            self.assertIn(f"x-goog-api-key: {KEY}", lines)
            self.assertNotIn("Authorization", "".join(lines))
        self.assertIs(GoogleAI, _adapter("google-generative-ai"))
        self.assertRaises(ConfigError, GoogleAI.connect, provider("google-generative-ai", base_url="https://x/v1beta?key=abc"), self.clock)

    def test_refusals(self) -> None:
        """In Google's form: a wrong key with a 400, quotas with the time to wait, in a list as well."""
        retry = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "33s"}]
        quota = "You exceeded your current quota, please check your plan and billing details."
        bad_key = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]
        for status, error, kind, seconds, words in (
            (400, {"message": "API key not valid. Please pass a valid API key.", "details": bad_key}, UpstreamRefused, None, "credential"),
            (429, {"message": quota, "status": "RESOURCE_EXHAUSTED", "details": retry}, RateLimited, 33, "rate"),
            (429, {"message": quota, "status": "RESOURCE_EXHAUSTED"}, RateLimited, None, "rate"),
            (429, {"message": quota, "details": [{"retryDelay": "soon"}, 5, {"retryDelay": 7}]}, InsufficientQuota, None, "quota"),
            (403, {"message": "Permission denied", "status": "PERMISSION_DENIED"}, UpstreamRefused, None, "credential"),
            (404, {"message": "models/x is not found", "status": "NOT_FOUND"}, UpstreamRefused, None, "model"),
            (503, {"message": "The model is overloaded.", "status": "UNAVAILABLE", "details": retry}, UpstreamError, 33, "overloaded"),
        ):
            for body in ({"error": {"code": status, **error}}, [{"error": {"code": status, **error}}]):
                turn = self.ask(request())
                self.server.say(reply(status, body))
                failed = self.failureResultOf(turn, kind).value
                self.assertEqual((kind, seconds), (type(failed), failed.retry_after), error)
                self.assertIn(words, failed.message)


class Faults(vendor_cases.Faults):
    """Table 4c."""

    vendor = vendor_cases.Vendor(
        adapter=GoogleAI,
        api="google-generative-ai",
        begin=b"",
        text=lambda said: event(b'{"candidates": [{"content": {"parts": [{"text": "' + said + b'"}], "role": "model"}, "index": 0}]}'),
        reason=lambda usage: chunk("", finish="STOP", usage=usage),
        end=b"",
        error=lambda said: event({"error": {"code": 500, "message": said, "status": "INTERNAL"}}),
        call=lambda n, arguments: chunk(call("read", json.loads(arguments))),
        whole=[
            {"candidates": []},
            {"candidates": [{}]},
            {"candidates": [{"content": None, "finishReason": "STOP"}]},
            {"candidates": [{"content": {"parts": []}, "finishReason": "STOP"}]},
            {"candidates": "x"},
            {"error": "x"},
        ],
        too_long=[
            (
                400,
                {
                    "error": {
                        "code": 400,
                        "message": "The input token count (9) exceeds the maximum number of tokens allowed (8).",
                        "status": "INVALID_ARGUMENT",
                    }
                },
            ),
            (400, [{"error": {"code": 400, "message": "input token count is 9 but model only supports up to 8: it exceeds the context window"}}]),
        ],
        refused=lambda said: {"error": {"code": 400, "message": said, "status": "FAILED"}},
        usage=USED,
    )
