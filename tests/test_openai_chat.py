"""The chat-completions provider: its decoder as a table, its requests, and the faults of upstream servers (U01-U24)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.trial.unittest import SynchronousTestCase

from mayros.config.schema import Cost
from mayros.core.cost import cost_nano
from mayros.core.models import Limits, Model, Provider
from mayros.core.ports import ModelRequest, Sampling, ToolSpec
from mayros.errors import (
    ConfigError,
    ContextLengthExceeded,
    GatewayError,
    InsufficientQuota,
    QueueFull,
    RateLimited,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from mayros.events import Event, ReasoningDelta, TextDelta, ToolCallDelta, TurnFinished, Usage
from mayros.messages import Function, ImagePart, ImageUrl, Message, TextPart, ToolCall, pack
from mayros.net.redact import Redactor
from mayros.providers import chat_chunks, chat_decoder
from mayros.providers.chat_decoder import ChatDecoder
from mayros.providers.openai_chat import OpenAIChat, chat_request
from tests import vendor_cases
from tests.vendor_cases import ANSWERED, KEY, SSE, event, reply, text

NO_USAGE = Usage()
STOP = TurnFinished("stop", "stop")
DONE = b"data: [DONE]\n\n"

settings.register_profile("chat", derandomize="CI" in os.environ, deadline=None, database=None)


def written(*asked: Any) -> bytes:
    """The body of a request, as it is sent."""
    return b"".join(chat_request(*asked))


def provider(**more: Any) -> Provider:
    """A provider with a key."""
    usual = {"api": "openai-completions", "base_url": "http://127.0.0.1/v1", "headers": {}, "auth_header": True, "max_connections": 4}
    return Provider(**{"id": "acme", "key": KEY, "limits": Limits(10.0, 60.0, 30.0), **usual, **more})


def request(of: Provider | None = None, sampling: Sampling | None = None, system: str = "Be brief.", **more: Any) -> ModelRequest:
    """A turn of one user message."""
    usual = {"id": "m1", "context_window": 8192, "max_tokens": 1024, "input": ("text",), "tools": True, "reasoning": False, "compat": {}}
    fields = {"name": "M", **usual, **more}
    return ModelRequest(Model(of or provider(), **fields), system, [pack(Message("user", "Hé"))], sampling or Sampling(), "run-7")


def chunk(content: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    """A chunk as OpenAI sends it."""
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    body = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m1", "choices": [choice], **more}
    return event(body)


def delta(**fields: Any) -> bytes:
    """A chunk with these fields in its delta."""
    return event({"choices": [{"index": 0, "delta": fields}]})


def decode(*pieces: bytes) -> list[Event]:
    """All events of an answer; raises its error."""
    decoder = ChatDecoder("acme", "m1", Redactor([KEY]))
    return [event for piece in pieces for event in decoder.feed(piece)] + decoder.close()


class Decoding(SynchronousTestCase):
    """Bytes in, events out."""

    def test_an_answer_as_openai_streams_it(self) -> None:
        """Role chunk, text, finish, usage in a chunk without choices, [DONE]: each read's events in one list, the last ones with the end."""
        decoder = ChatDecoder("acme", "m1", Redactor([]))
        self.assertEqual(decoder.feed(delta(role="assistant", content="")), [ANSWERED])
        self.assertEqual(decoder.feed(chunk("Hel") + chunk("lo")), [TextDelta("Hel"), TextDelta("lo")])
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        details = {"prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2}}
        last = chunk(None, "stop", usage=None) + event({"choices": [], "usage": {**usage, **details}}) + DONE
        self.assertEqual(decoder.feed(last), [Usage(6, 5, 4, 0, 2), STOP])
        self.assertTrue(decoder.done)
        self.assertEqual(decoder.close(), [])

    def test_quirks(self) -> None:
        """What imitators do differently, and what comes of it."""
        end = chunk(None, "stop") + DONE
        hi = [ANSWERED, TextDelta("hi")]
        for name, stream, events in (
            ("no [DONE] (U06)", chunk("hi") + chunk(None, "stop"), [*hi, NO_USAGE, STOP]),
            ("no finish reason", chunk("hi") + DONE, [*hi, NO_USAGE, TurnFinished("stop")]),
            ("text and finish in one chunk", chunk("hi", "length"), [*hi, NO_USAGE, TurnFinished("length", "length")]),
            ("finish reasons", chunk("hi", "content_filter"), [*hi, NO_USAGE, TurnFinished("content_filter", "content_filter")]),
            ("an own finish reason", chunk("hi", "eos") + DONE, [*hi, NO_USAGE, TurnFinished("stop", "eos")]),
            ("tool_calls without a call", chunk("hi", "tool_calls"), [*hi, NO_USAGE, TurnFinished("stop", "tool_calls")]),
            ("no text at all", end, [ANSWERED, NO_USAGE, STOP]),
            ("usage with the last choice", chunk("hi", "stop", usage={"prompt_tokens": 3, "completion_tokens": 1}), [*hi, Usage(3, 1), STOP]),
            (
                "usage inside the choice",
                event({"choices": [{"delta": {"content": "hi"}, "finish_reason": "stop", "usage": {"prompt_tokens": 3}}]}),
                [*hi, Usage(3), STOP],
            ),
            (
                "usage in every chunk",
                chunk("hi", usage={"completion_tokens": 1}) + chunk(None, "stop", usage={"completion_tokens": 2}),
                [*hi, Usage(0, 2), STOP],
            ),
            ("no index, no finish reason", event({"choices": [{"delta": {"content": "hi"}}]}) + end, [*hi, NO_USAGE, STOP]),
            ("an empty first chunk", event({"choices": [], "prompt_filter_results": []}) + chunk("hi") + end, [*hi, NO_USAGE, STOP]),
            ("a second choice", event({"choices": [{"index": 1, "delta": {"content": "no"}}]}) + chunk("hi") + end, [*hi, NO_USAGE, STOP]),
            ("null delta, null choices", event({"choices": [{"delta": None}]}) + event({"choices": None}) + end, [ANSWERED, NO_USAGE, STOP]),
            ("reasoning_content", delta(reasoning_content="hm") + end, [ANSWERED, ReasoningDelta("hm"), NO_USAGE, STOP]),
            ("reasoning", delta(reasoning="hm", content=None) + end, [ANSWERED, ReasoningDelta("hm"), NO_USAGE, STOP]),
            ("a refusal", delta(refusal="no") + end, [ANSWERED, TextDelta("no"), NO_USAGE, TurnFinished("content_filter", "stop")]),
            ("content in parts", delta(content=[{"type": "text", "text": "h"}, {"type": "text", "text": "i"}, 5]) + end, [*hi, NO_USAGE, STOP]),
            (
                "empty calls, error and usage",
                delta(content="hi", tool_calls=[], function_call=None) + chunk(None, "stop", error=None, usage=None),
                None,
            ),
            ("an error that is none", chunk("hi", error="") + end, [*hi, NO_USAGE, STOP]),
            ("CRLF and comments", (b": hello\n\n" + chunk("hi") + end).replace(b"\n", b"\r\n"), [*hi, NO_USAGE, STOP]),
            ("after the end", chunk("hi") + end + chunk("more"), [*hi, NO_USAGE, STOP]),
            ("no space after the colon", (chunk("hi") + end).replace(b"data: ", b"data:"), [*hi, NO_USAGE, STOP]),
            ("garbage between (U08)", b"x\n\ndata: {\n\ndata: 5\n\ndata: [1]\n\nevent: y\ndata: {}\n\n" + chunk("hi") + end, [*hi, NO_USAGE, STOP]),
            ("deep garbage", b"data: " + b"[" * 100_000 + b"\n\n" + chunk("hi") + end, [*hi, NO_USAGE, STOP]),
            ("NaN beside the text", chunk("hi", score=float("nan")) + end, [*hi, NO_USAGE, STOP]),
        ):
            self.assertEqual(decode(stream), events or [*hi, NO_USAGE, STOP], name)

    def test_usage_that_makes_no_sense(self) -> None:
        """Missing, negative, texts, floats, more cached than there are: 0, or the part that can be (U22)."""
        for usage, expected in (
            (None, NO_USAGE),
            ("many", NO_USAGE),
            ({}, NO_USAGE),
            ({"prompt_tokens": -5, "completion_tokens": 3}, Usage(0, 3)),
            ({"prompt_tokens": "12", "completion_tokens": 3}, Usage(0, 3)),
            ({"prompt_tokens": None, "completion_tokens": 3, "prompt_tokens_details": None}, Usage(0, 3)),
            ({"prompt_tokens": 12.0, "completion_tokens": True}, Usage(12, 0)),
            ({"prompt_tokens": 10**30, "completion_tokens": 3}, Usage(0, 3)),
            ({"prompt_tokens": 4, "prompt_tokens_details": {"cached_tokens": 9, "cache_write_tokens": 9}}, Usage(0, 0, 4)),
            ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2}}, Usage(3, 0, 4, 2)),
            ({"completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 7}}, Usage(0, 2, 0, 0, 2)),
            ({"prompt_tokens": 4, "prompt_tokens_details": []}, Usage(4)),
        ):
            events = decode(chunk("hi", "stop") + event({"choices": [], "usage": usage}) + DONE)
            self.assertEqual(events, [ANSWERED, TextDelta("hi"), expected, STOP], usage)

    def test_who_counts_otherwise(self) -> None:
        """Reasoning that is no part of the completion (xAI), and other words for what was cached (DeepSeek, Moonshot); and what the vendor billed."""
        xai = {"prompt_tokens": 10120, "completion_tokens": 1499, "total_tokens": 14428, "prompt_tokens_details": {"cached_tokens": 128}}
        xai |= {"completion_tokens_details": {"reasoning_tokens": 2809}}
        openai = {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16, "completion_tokens_details": {"reasoning_tokens": 5}}
        for usage, expected in (
            (xai, Usage(9992, 4308, 128, 0, 2809)),
            (openai, Usage(9, 7, 0, 0, 5)),
            ({"prompt_tokens": 102056, "completion_tokens": 252, "prompt_cache_hit_tokens": 94464}, Usage(7592, 252, 94464)),
            ({"prompt_tokens": 50, "completion_tokens": 5, "cached_tokens": 20}, Usage(30, 5, 20)),
            ({"prompt_tokens": 50, "completion_tokens": "5", "prompt_cache_hit_tokens": 99}, Usage(0, 0, 50)),
        ):
            events = decode(chunk("hi", "stop") + event({"choices": [], "usage": usage}) + DONE)
            self.assertEqual(events, [ANSWERED, TextDelta("hi"), expected, STOP], usage)
        self.assertEqual(cost_nano(Usage(9992, 4308, 128, 0, 2809), Cost(input=1.25, output=2.5, cache_read=0.2)), 23_285_600)

    def test_characters_stay_whole(self) -> None:
        """However the bytes are cut, and where a server cuts its text inside a surrogate pair; what is invalid is U+FFFD (U15, U17)."""
        stream = event({"choices": [{"delta": {"content": "é😀"}}]}).replace(b"\\u00e9", "é".encode()) + chunk(None, "stop") + DONE
        self.assertEqual(text(decode(*(bytes([byte]) for byte in stream))), "é😀")
        self.assertEqual(text(decode(b'data: {"choices": [{"delta": {"content": "a\xff\xc3"}}]}\n\n' + DONE)), "a\ufffd\ufffd")
        split = b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n'
        for pieces, whole in (
            ((rb"a\ud83d", rb"\ude00b"), "a😀b"),
            ((rb"\ud83d", b"", rb"\ude00"), "😀"),
            ((rb"a\ud83d", b"b"), "a\ufffdb"),
            ((rb"\ude00", b"b"), "\ufffdb"),
            ((rb"a\ud83d",), "a\ufffd"),
            ((rb"x\ud83dy",), "x\ufffdy"),
        ):
            self.assertEqual(text(decode(*(split % piece for piece in pieces), DONE)), whole)

    def test_answers_that_are_none(self) -> None:
        """Only garbage, nothing, or an end in the middle (U07, U08)."""
        for stream, said in (
            (b"", "cannot be understood"),
            (DONE, "cannot be understood"),
            (b"<html>hello</html>\n\n", "cannot be understood"),
            (b'data: x\n\ndata: {}\n\ndata: {"choices": []}\n\n' + DONE, "cannot be understood"),
            (chunk("hi"), "broke off"),
            (chunk("hi", "error"), "ended its answer with an error"),
        ):
            error = self.assertRaises(UpstreamError, decode, stream)
            self.assertIn(said, error.message)
            self.assertTrue(error.fallback)

    def test_errors_inside_the_stream(self) -> None:
        """The text before the error comes out first, then the error as what it means, without the key (U20)."""
        for body, kind in (
            (event({"error": {"message": f"boom {KEY}", "type": "server_error", "code": None}}), UpstreamError),
            (event({"error": "boom"}), UpstreamError),
            (event({"error": {"code": 502, "message": "boom"}, "choices": [{"delta": {"content": ""}, "finish_reason": "error"}]}), UpstreamError),
            (event({"error": {"code": 429, "message": "boom"}}), RateLimited),
            (event({"error": {"type": "rate_limit_error", "message": "boom"}}), RateLimited),
            (event({"error": {"code": "insufficient_quota", "message": "boom"}}), InsufficientQuota),
            (event({"error": {"code": "context_length_exceeded", "message": "boom"}}), ContextLengthExceeded),
            (event({"error": {"code": 401, "message": f"boom {KEY}"}}), UpstreamRefused),
            (b'event: error\ndata: {"message": "boom"}\n\n', UpstreamError),
            (b"event: error\ndata: boom\n\n", UpstreamError),
        ):
            decoder = ChatDecoder("acme", "m1", Redactor([KEY]))
            self.assertEqual(decoder.feed(chunk("hi") + body + chunk("no", "stop") + DONE), [ANSWERED, TextDelta("hi")], body)
            self.assertTrue(decoder.done)
            self.assertFalse(decoder.complete)
            error = self.assertRaises(kind, decoder.close)
            self.assertIs(type(error), kind, body)
            self.assertNotIn(KEY, error.message)

    def test_tools_are_not_offered_so_none_may_be_called(self) -> None:
        """Whole, broken, many, or with a huge index: an error that says so (U21)."""
        call = {"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}
        for calls in ([call], [call] * 10_000, [{**call, "index": 10**30}], {"0": call}, ["x"]):
            error = self.assertRaises(UpstreamError, decode, delta(tool_calls=calls) + DONE)
            self.assertIn("called a tool", error.message)
        self.assertRaises(UpstreamError, decode, delta(function_call={"name": "f", "arguments": "{}"}) + DONE)

    def test_bounds(self) -> None:
        """A line without end (U09), an answer without end (U18)."""
        decoder = ChatDecoder("acme", "m1", Redactor([]))
        fed = 0
        while not decoder.done:
            decoder.feed(b"x" * 65_536)
            fed += 65_536
            self.assertLess(fed, (1 << 20) + 2 * 65_536)
        self.assertIn("1 MiB", self.assertRaises(UpstreamError, decoder.close).message)

        decoder = ChatDecoder("acme", "m1", Redactor([]))
        endless, size = chunk("x" * 1_000_000), 0
        while not decoder.done:
            size += len(text(decoder.feed(endless)))
            self.assertLess(size, chat_decoder.TEXT_LIMIT + 1_000_001)
        self.assertIn("longer than", self.assertRaises(UpstreamError, decoder.close).message)

    def test_a_whole_completion(self) -> None:
        """A server that does not stream."""
        body = {"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}
        whole = ChatDecoder("acme", "m1", Redactor([])).whole(json.dumps(body).encode())
        self.assertEqual(whole, [ANSWERED, TextDelta("hi"), Usage(3), STOP])

    def test_whole_completions_that_are_none(self) -> None:
        """Invalid JSON, no choices, no content, an error (U19)."""
        message = {"message": {"content": None}}
        for body in (
            b"",
            b"x",
            b"{}",
            b"[]",
            b'{"choices": []}',
            b'{"choices": [5]}',
            json.dumps({"choices": [message]}).encode(),
            b'{"error": "x"}',
        ):
            self.assertRaises(UpstreamError, ChatDecoder("acme", "m1", Redactor([])).whole, body)

    @given(st.lists(st.text(max_size=5), max_size=6), st.lists(st.integers(0, 400), max_size=6), st.booleans())
    @settings(settings.get_profile("chat"), max_examples=60)
    def test_any_text_in_any_pieces(self, texts: list[str], cuts: list[int], ascii_only: bool) -> None:
        """The text that comes out is the text that went in, however it was written and cut."""
        texts = [word.encode("utf-8", "replace").decode() for word in texts]
        bodies = [json.dumps({"choices": [{"delta": {"content": word}}]}, ensure_ascii=ascii_only) for word in texts]
        stream = b"".join(b"data: " + body.encode() + b"\n\n" for body in bodies) + chunk(None, "stop") + DONE
        borders = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
        pieces = [stream[start:end] for start, end in zip(borders, borders[1:], strict=False)]  # noqa: RUF007
        self.assertEqual(text(decode(*pieces)), "".join(texts))


class Requests(SynchronousTestCase):
    """What is asked."""

    def body(self, sampling: Sampling | None = None, of: Provider | None = None, **model: Any) -> dict[str, Any]:
        """The request, read back."""
        made: dict[str, Any] = json.loads(written(request(of, sampling, **model)))
        return made

    def test_the_usual_request(self) -> None:
        """Always a stream with usage; the system text first; messages as they are."""
        self.assertEqual(
            self.body(),
            {
                "model": "m1",
                "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hé"}],
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        )
        self.assertEqual(json.loads(written(request(system="")))["messages"], [{"role": "user", "content": "Hé"}])

    def test_sampling(self) -> None:
        """Under OpenAI's names; reasoning effort only for models that reason."""
        sampling = Sampling(0.0, 0.5, 100, ("a", "b"), 7, 0.1, -0.1, "low")
        expected = {"temperature": 0.0, "top_p": 0.5, "max_tokens": 100, "stop": ["a", "b"], "seed": 7}
        expected |= {"frequency_penalty": 0.1, "presence_penalty": -0.1}
        body = self.body(sampling)
        self.assertEqual({name: body[name] for name in body if name not in ("model", "messages", "stream", "stream_options")}, expected)
        self.assertEqual(self.body(sampling, reasoning=True)["reasoning_effort"], "low")

    def test_tools(self) -> None:
        """What may be called, as functions with their schemas; nothing where there is nothing."""
        self.assertNotIn("tools", json.loads(written(request())))
        schema = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
        asked = msgspec.structs.replace(request(), tools=[ToolSpec("read", "Read a file.", schema), ToolSpec("status", "", {"type": "object"})])
        read, status = json.loads(written(asked))["tools"]
        self.assertEqual(read, {"type": "function", "function": {"name": "read", "description": "Read a file.", "parameters": schema}})
        self.assertEqual("status", status["function"]["name"])

    def test_calls_and_results(self) -> None:
        """They go back as they are kept."""
        messages = [
            pack(Message("user", 'look: {"role":"tool","content":[')),
            pack(Message("assistant", None, tool_calls=(ToolCall("c1", Function("read", '{"path":"a"}')),))),
            pack(Message("tool", "text", tool_call_id="c1")),
        ]
        body = written(msgspec.structs.replace(request(system=""), messages=messages))
        self.assertIn(b",".join(map(bytes, messages)), body)

    def test_images_of_results(self) -> None:
        """Servers take none in tool messages: those of one round follow its results in one user message."""

        def result(call_id: str, *parts: str) -> msgspec.Raw:
            made = [ImagePart(ImageUrl(part)) if part.startswith("data:") else TextPart(part) for part in parts]
            return pack(Message("tool", tuple(made), tool_call_id=call_id))

        calls = pack(Message("assistant", None, tool_calls=tuple(ToolCall(f"c{n}", Function("read", "{}")) for n in range(3))))
        plain = pack(Message("tool", "plain", tool_call_id="c1"))
        round_of = [calls, result("c0", "a.png", "data:a"), plain, result("c2", "data:b", "data:c")]
        asked = msgspec.structs.replace(request(input=("text", "image")), messages=[*round_of, calls, *round_of[1:], pack(Message("user", "so?"))])
        system, *sent = json.loads(written(asked))["messages"]
        self.assertEqual("system", system["role"])
        self.assertEqual(["assistant", "tool", "tool", "tool", "user"] * 2 + ["user"], [message["role"] for message in sent])
        self.assertEqual(
            ["a.png\n[1 image(s): in the message after the tool results]", "plain", "[2 image(s): in the message after the tool results]"],
            [message["content"] for message in sent[1:4]],
        )
        self.assertEqual(["c0", "c1", "c2"], [message["tool_call_id"] for message in sent[1:4]])
        image, label = {"type": "image_url"}, "Images of the result of the tool call"
        self.assertEqual(
            [
                {"type": "text", "text": f"{label} c0:"},
                {**image, "image_url": {"url": "data:a"}},
                {"type": "text", "text": f"{label} c2:"},
                {**image, "image_url": {"url": "data:b"}},
                {**image, "image_url": {"url": "data:c"}},
            ],
            sent[4]["content"],
        )

    def test_images_for_a_model_that_takes_none(self) -> None:
        """It is told that there was one."""
        told = pack(Message("tool", (TextPart("a.png"), ImagePart(ImageUrl("data:a"))), tool_call_id="c0"))
        (message,) = json.loads(written(msgspec.structs.replace(request(system=""), messages=[told])))["messages"]
        left_out = "a.png\n[1 image(s): left out, because the model takes none]"
        self.assertEqual(message, {"role": "tool", "content": left_out, "tool_call_id": "c0"})

    def test_the_name_of_the_limit(self) -> None:
        """OpenAI's newer models know `max_completion_tokens` only; `compat` decides otherwise."""
        for owner, model, compat, name in (
            ("acme", "o3", {}, "max_tokens"),
            ("openai", "gpt-4o", {}, "max_tokens"),
            ("openai", "o3-mini", {}, "max_completion_tokens"),
            ("openai", "gpt-5", {}, "max_completion_tokens"),
            ("openrouter", "openai/gpt-5-mini", {}, "max_completion_tokens"),
            ("openai", "gpt-5", {"maxTokensField": "max_tokens"}, "max_tokens"),
            ("acme", "m1", {"maxTokensField": "max_completion_tokens"}, "max_completion_tokens"),
        ):
            body = self.body(Sampling(max_tokens=5), provider(id=owner), id=model, compat=compat)
            self.assertEqual(body.get(name), 5, model)
            self.assertEqual(len(body), 5)

    def test_extra_fields(self) -> None:
        """Only for OpenAI's own kind, and never over what is ours."""
        sampling = Sampling(extra={"service_tier": "flex", "stream": False, "model": "x"})
        self.assertNotIn("service_tier", self.body(sampling))
        body = self.body(sampling, provider(id="openai"))
        self.assertEqual((body["service_tier"], body["stream"], body["model"]), ("flex", True, "m1"))


class WithServer(vendor_cases.WithServer):
    """Base: this adapter with a server in memory and a clock."""

    def setUp(self) -> None:
        super().setUp()
        self.chat = self.make(OpenAIChat, provider())

    def turn(self, tools: Sequence[ToolSpec] = (), **model: Any) -> Deferred[Any]:
        """Start a turn; its batches are collected in `batches`."""
        return self.ask(msgspec.structs.replace(request(self.of, **model), tools=tools))

    def fails(self, said: bytes, hang_up: bool = False, **model: Any) -> GatewayError:
        """See `failed`."""
        return self.failed(self.turn(**model), said, hang_up)


class Turns(WithServer):
    """Whole turns."""

    def test_what_is_sent(self) -> None:
        """Path, key, the run's id for their support, no encoding; the body of `chat_request`."""
        self.turn()
        head, _, body = self.server.wires[0].request.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        self.assertEqual(lines[0], "POST /v1/chat/completions HTTP/1.1")
        for line in (f"Authorization: Bearer {KEY}", "Content-Type: application/json", "Accept: text/event-stream", "X-Request-Id: run-7"):
            self.assertIn(line, lines)
        self.assertEqual(body, written(request()))

    def test_other_ways_to_say_the_key(self) -> None:
        """`authHeader: false` sends the configured headers only; a header of the configuration wins over ours."""
        self.chat = self.make(OpenAIChat, provider(auth_header=False, headers={"x-api-key": KEY, "accept": "*/*"}))
        self.turn()
        sent = self.server.wires[0].request
        self.assertIn(b"x-api-key: " + KEY.encode(), sent)
        self.assertNotIn(b"Authorization", sent)
        self.assertNotIn(b"text/event-stream", sent)
        self.assertRaises(ConfigError, self.make, OpenAIChat, provider(key="a\nb"))
        self.assertNotIn(KEY, repr(self.chat) + repr(provider()))

    def test_one_batch_per_read(self) -> None:
        """What one read brings leaves in one list; the first begins with the model's sign of life."""
        turn = self.turn()
        self.server.say(SSE)
        self.server.say(chunk(""))
        self.server.say(chunk("a") + chunk("b") + chunk("c")[:20])
        self.server.say(chunk("c")[20:] + chunk(None, "stop") + DONE)
        self.successResultOf(turn)
        self.assertEqual(self.batches, [[ANSWERED], [TextDelta("a"), TextDelta("b")], [TextDelta("c"), NO_USAGE, STOP]])

    def test_a_tool_is_called(self) -> None:
        """Offered in the request, called in the answer; a model that was offered none may not call."""
        call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "read", "arguments": '{"path":"a"}'}}
        turn = self.turn([ToolSpec("read", "Read a file.", {"type": "object"})])
        self.server.say(SSE + delta(tool_calls=[call]) + chunk(None, "tool_calls") + DONE)
        self.successResultOf(turn)
        called = [ANSWERED, ToolCallDelta(0, '{"path":"a"}', "c1", "read"), NO_USAGE, TurnFinished("tool_calls", "tool_calls")]
        self.assertEqual(self.batches, [called])
        turn = self.turn()
        self.server.say(SSE + delta(tool_calls=[call]))
        self.assertIn("was offered none", self.failureResultOf(turn, UpstreamError).value.message)

    def test_the_connection_is_kept(self) -> None:
        """Also when the end of the body comes after [DONE], in a read of its own."""
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        body = chunk("a", "stop") + DONE
        for _ in range(3):
            turn = self.turn()
            self.server.say(head + b"%x\r\n%s\r\n" % (len(body), body))
            self.successResultOf(turn)
            self.server.say(b"0\r\n\r\n")
        self.assertEqual(len(self.server.wires), 1)
        self.chat.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_complete_though_the_connection_breaks(self) -> None:
        """The finish reason was there: nothing is lost, whatever happens to the connection after it."""
        for ending in ("close", "break", "silence"):
            turn = self.turn()
            self.server.say(SSE.replace(b"Connection: close", b"Content-Length: 9999") + chunk("a", "stop"))
            if ending == "silence":
                self.clock.advance(30)
            else:
                self.server.hang_up(ConnectionLost() if ending == "break" else None)
            self.successResultOf(turn)
            self.assertEqual(self.batches, [[ANSWERED, TextDelta("a")], [NO_USAGE, STOP]])

    def test_a_json_answer(self) -> None:
        """A server that ignores `stream`."""
        turn = self.turn()
        self.server.say(reply(200, {"choices": [{"message": {"content": "hi"}}]}, "Content-Type: application/json"))
        self.successResultOf(turn)
        self.assertEqual(self.batches, [[ANSWERED, TextDelta("hi"), NO_USAGE, TurnFinished("stop")]])

    def test_stream_options_refused(self) -> None:
        """A server that does not know `stream_options` is asked again without, and from then on."""
        turn = self.turn()
        self.assertIn(b"stream_options", self.server.wires[0].request)
        self.server.say(reply(400, {"error": {"message": "Unknown field: stream_options"}}))
        self.assertNotIn(b"stream_options", self.server.wires[0].request)
        self.server.say(SSE + chunk("a", "stop") + DONE)
        self.successResultOf(turn)
        self.turn()
        self.assertNotIn(b"stream_options", self.server.wires[-1].request)

    def test_closing_stops_the_model(self) -> None:
        """Cancelling a run closes the socket at once, before the head and while text comes."""
        for said in (b"", SSE + chunk("a")):
            turn = self.turn()
            self.server.say(said) if said else None
            turn.cancel()
            self.failureResultOf(turn, CancelledError)
            self.assertTrue(self.server.wires[-1].aborted)
            self.assertEqual(self.origin._free, 4)

    def test_a_full_queue(self) -> None:
        """More turns than the provider's queue holds are refused as what they are."""
        self.chat = self.make(OpenAIChat, provider(max_connections=1))
        turns = [self.turn() for _ in range(1025)]
        self.failureResultOf(self.turn(), QueueFull)
        for turn in turns:
            self.assertNoResult(turn)


class Faults(WithServer):
    """What upstream servers do wrong (table 4c)."""

    def test_no_connection(self) -> None:
        """U01."""
        self.server.error = ConnectionRefusedError()
        error = self.failureResultOf(self.turn(), UpstreamError).value
        self.assertEqual((error.status, error.fallback), (502, True))
        self.assertIn("'acme' could not be reached", str(error))

    def test_closes_at_once(self) -> None:
        """U02."""
        turn = self.turn()
        self.server.hang_up()
        self.assertTrue(self.failureResultOf(turn, UpstreamError).value.fallback)

    def test_silence(self) -> None:
        """Before the connection, before the head, after it: U03, U04."""
        self.server.hold = True
        turn = self.turn()
        self.clock.advance(10)
        self.assertTrue(self.failureResultOf(turn, UpstreamTimeout).value.fallback)
        self.server.hold = False
        turn = self.turn()
        self.clock.advance(59)
        self.assertNoResult(turn)
        self.clock.advance(1)
        self.assertEqual(self.failureResultOf(turn, UpstreamTimeout).value.status, 504)
        turn = self.turn()
        self.server.say(SSE + chunk("a"))
        self.clock.advance(30)
        self.failureResultOf(turn, UpstreamTimeout)
        self.assertEqual(self.batches, [[ANSWERED, TextDelta("a")]])
        self.assertTrue(all(wire.aborted for wire in self.server.wires))

    def test_broken_off(self) -> None:
        """U05, U07: by a reset and by a clean end; the text before it was given out."""
        for reason in (ConnectionLost(), None):
            turn = self.turn()
            self.server.say(SSE + chunk("a"))
            self.server.hang_up(reason)
            self.assertEqual(self.failureResultOf(turn, UpstreamError).value.status, 502)
            self.assertEqual(self.batches, [[ANSWERED, TextDelta("a")]])

    def test_not_a_stream(self) -> None:
        """U10, U19, U23, U24, and an answer without a body."""
        for said in (
            reply(200, b"<html>", "Content-Type: text/html"),
            reply(200, b"{}", "Content-Type: application/json"),
            reply(200, b"{", "Content-Type: application/json"),
            reply(200, b"x", "Content-Type: text/event-stream", "Content-Encoding: gzip"),
            reply(200, b"", "Content-Type: text/event-stream"),
            reply(200, b"", "Content-Length: 5"),
            reply(204),
            b"HTTP/1.1 banana\r\n\r\n",
        ):
            error = self.fails(said)
            self.assertEqual((error.status, error.code, error.fallback), (502, "upstream_error", True), said)

    def test_a_line_without_end(self) -> None:
        """U09: the socket is closed when one event is over 1 MiB."""
        turn = self.turn()
        self.server.say(SSE)
        for _ in range(17):
            self.server.say(b"x" * 65_536)
        self.failureResultOf(turn, UpstreamError)
        self.assertTrue(self.server.wires[0].aborted)

    def test_rate_limits(self) -> None:
        """U11: seconds, fractions, a date, junk, too much."""
        for value, seconds in (
            ("7", 7),
            ("0.2", 1),
            ("0", 0),
            ("99999", 3600),
            ("Tue, 14 Nov 2023 22:13:30 GMT", 10),
            ("Tue, 14 Nov 2000 22:13:30 GMT", 0),
            ("Fri, 01 Jan 2100 00:00:00 GMT", 3600),
            ("soon", None),
            ("-5", None),
            ("nan", None),
            ("1e9", None),
            ("9" * 5000, None),
            ("", None),
        ):
            error = self.fails(reply(429, {"error": {"message": "slow down"}}, f"Retry-After: {value}"))
            self.assertIs(type(error), RateLimited)
            self.assertEqual((error.retry_after, error.fallback), (seconds, True), value)

    def test_quota(self) -> None:
        """A 429 that no waiting helps against."""
        for status, said in (
            (429, {"code": "insufficient_quota", "message": "x"}),
            (429, {"message": "check your plan and billing details"}),
            (402, {}),
        ):
            error = self.fails(reply(status, {"error": said}))
            self.assertEqual((error.status, error.code, error.should_retry), (429, "insufficient_quota", False))

    def test_statuses(self) -> None:
        """U12 and the others: which error, and whether another model may be tried."""
        for status, kind, fallback in (
            (500, UpstreamError, True),
            (503, UpstreamError, True),
            (529, UpstreamError, True),
            (409, UpstreamError, True),
            (408, UpstreamTimeout, True),
            (400, UpstreamRefused, False),
            (401, UpstreamRefused, True),
            (403, UpstreamRefused, True),
            (404, UpstreamRefused, True),
            (422, UpstreamRefused, False),
            (418, UpstreamRefused, False),
        ):
            error = self.fails(reply(status, {"error": {"message": f"no\x00 {KEY} way"}}))
            self.assertIs(type(error), kind, status)
            self.assertEqual(error.fallback, fallback)
            self.assertIn("'acme'", error.message)
            self.assertIn("no *** way", error.message)

    def test_too_long(self) -> None:
        """A prompt that does not fit, in the words of several servers."""
        for status, said in (
            (400, {"error": {"code": "context_length_exceeded", "message": "x"}}),
            (400, {"error": {"message": "This model's maximum context length is 8192 tokens. Please reduce the length."}}),
            (400, {"error": {"message": "prompt is too long: 9 tokens > 8 maximum"}}),
            (400, {"error": {"message": "the request exceeds the available context size, try increasing it"}}),
            (400, {"error": {"message": "Your input exceeds the context window of this model."}}),
            (422, {"detail": "The input token count (9) exceeds the maximum number of tokens allowed (8)."}),
            (400, {"message": "too many tokens"}),
            (413, {}),
        ):
            error = self.fails(reply(status, said))
            self.assertEqual((type(error), error.status), (ContextLengthExceeded, 400), said)

    def test_the_key_is_not_shown(self) -> None:
        """U13: as it is, as a URL has it, inside markup, in pieces of other shapes; also keys that are none of ours."""
        for said in (
            KEY,
            "sk-live%2F0123456789%2Babcdef",
            f"Authorization: Bearer {KEY}",
            "Bearer zzz0123456789zzz",
            "Incorrect API key provided: sk-0123456789*****6789",
            "http://me:0123456789@host/",
            f"sk-live\u200b/{KEY[8:]}",
            "x" * 290 + KEY,
        ):
            for body in ({"error": {"message": said}}, {"error": said}, {"detail": said}, said.encode()):
                self.fails(reply(401, body))
        self.chat = self.make(OpenAIChat, provider(key=None, headers={"x-api-key": "short0123456789", "X-Other": "a" * 20}))
        self.assertNotIn("aaaa", self.fails(reply(401, {"error": {"message": "short0123456789 " + "a" * 20}})).message)

    def test_long_errors(self) -> None:
        """U14: at most 64 KiB are read, at most 300 characters shown, in one line."""
        turn = self.turn()
        self.server.say(b"HTTP/1.1 500 X\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(2):
            self.server.say(b"a\r\n\x1b[31mb " * 8192)
        error = self.failureResultOf(turn, UpstreamError).value
        self.assertTrue(self.server.wires[0].aborted)
        self.assertLess(len(error.message), 400)
        self.assertTrue(error.message.isprintable())
        self.assertNotIn("<html", self.fails(reply(500, b"<html>...")).message)

    def test_odd_error_bodies(self) -> None:
        """Nothing, no JSON, JSON of other shapes, deep JSON, bytes that are no text: always an error of ours."""
        for body in (
            b"",
            b"oops",
            b"[]",
            b"5",
            b"null",
            b'{"error": 5}',
            b'{"error": {"message": 5, "code": {}}}',
            b"[" * 60_000,
            b"\xff\xfe",
            b'[{"error": {}}]',
        ):
            self.assertEqual(type(self.fails(reply(500, body))), UpstreamError)
        self.assertEqual(type(self.fails(b"HTTP/1.1 500 X\r\nContent-Length: 9\r\n\r\n{", hang_up=True)), UpstreamError)

    def test_redirects(self) -> None:
        """U16: never followed."""
        for status in (301, 302, 303, 307, 308):
            error = self.fails(reply(status, b"", "Location: http://169.254.169.254/"))
            self.assertEqual((error.status, error.fallback), (502, True))
        self.assertLessEqual(len(self.server.wires), 5)

    def test_slow_and_split(self) -> None:
        """U15, U17: a byte each second, and every character whole."""
        turn = self.turn()
        self.server.say(SSE)
        for byte in event({"choices": [{"delta": {"content": "é"}}]}).replace(b"\\u00e9", "é".encode()) + chunk(None, "stop") + DONE:
            self.clock.advance(1)
            self.server.say(bytes([byte]))
            if turn.called:
                break
        self.successResultOf(turn)
        self.assertEqual(text([event for batch in self.batches for event in batch]), "é")

    def test_an_error_in_the_stream(self) -> None:
        """U20: the text is kept, the socket closed."""
        turn = self.turn()
        self.server.say(SSE + chunk("a") + event({"error": {"message": f"overloaded {KEY}"}}))
        error = self.failureResultOf(turn, UpstreamError).value
        self.assertIn("overloaded ***", error.message)
        self.assertEqual(self.batches, [[ANSWERED, TextDelta("a")]])
        self.assertTrue(self.server.wires[0].aborted)


class Loose(SynchronousTestCase):
    """The tolerant way of reading a chunk."""

    def test_reads_what_the_strict_way_reads(self) -> None:
        """For chunks of the usual shape both ways give the same."""
        for block in (
            chunk("hi"),
            chunk(None, "stop", usage={"prompt_tokens": 5, "completion_tokens": 2}),
            delta(reasoning_content="x", refusal="y"),
            delta(function_call={"name": "f"}),
            event({"choices": [], "error": {"message": "x"}}),
        ):
            body = block[6:-2]
            strict, loose = chat_chunks.read_chunk(body), chat_chunks.loose_chunk(body)
            assert loose is not None
            self.assertEqual([self.plain(c) for c in strict.choices or []], [self.plain(c) for c in loose.choices or []])
            self.assertEqual(chat_chunks.counts(strict.usage), chat_chunks.counts(loose.usage))
            self.assertEqual(strict.error, loose.error)

    @staticmethod
    def plain(choice: Any) -> Any:
        return msgspec.to_builtins(choice)
