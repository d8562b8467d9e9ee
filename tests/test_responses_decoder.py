"""The stream of OpenAI's Responses API: as the vendor sends it, as others do, and what is too much."""

from __future__ import annotations

import json
import os
import random
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.errors import ContextLengthExceeded, GatewayError, InsufficientQuota, RateLimited, UpstreamError, UpstreamRefused
from mayros.events import ProviderState, ReasoningDelta, TextDelta, ToolCallDelta, TurnFinished, Usage
from mayros.providers import calls
from tests.responses import (
    ANSWERED,
    CALLED,
    CREATED,
    END,
    KEY,
    NO_USAGE,
    STOP,
    WHOLE,
    added,
    call,
    completed,
    content,
    decode,
    decoder,
    ended,
    joined,
    message,
    part_delta,
    said,
    text,
    text_delta,
    thinking,
    thought_delta,
)  # fmt: skip

settings.register_profile("responses_decoder", derandomize="CI" in os.environ, deadline=None, database=None)


class Decoding(SynchronousTestCase):
    """Bytes in, events out."""

    def test_text(self) -> None:
        """Each read's events in one list, the last ones with the end; `response.created` is no sign that an answer comes."""
        reading = decoder()
        self.assertEqual([], reading.feed(CREATED + said("response.in_progress", response={})))
        self.assertEqual([ANSWERED], reading.feed(added(0, "message", role="assistant", content=[])))
        self.assertEqual([TextDelta("Hel"), TextDelta("lo")], reading.feed(text_delta("Hel", obfuscation="x") + text_delta("lo")))
        usage = {"input_tokens": 10, "output_tokens": 5}
        last = said("response.output_text.done", output_index=0, text="Hello") + ended(0, "message", content=content("Hello"))
        self.assertEqual([], reading.feed(last))
        self.assertEqual([Usage(10, 5), STOP], reading.feed(completed(usage=usage, output=[{"type": "message", "content": content("Hello")}])))
        self.assertTrue(reading.done and reading.complete)
        self.assertEqual([], reading.feed(text_delta("more")))
        self.assertEqual([], reading.close())

    def test_thinking_text_and_two_calls(self) -> None:
        """Interleaved fragments, disjoint counts, and what goes back with the turn just before its end."""
        events = decode(WHOLE)
        self.assertEqual(
            [
                *(ANSWERED, ReasoningDelta("Look é😀 twice."), TextDelta("Let me "), TextDelta("look: é😀")),
                *(ToolCallDelta(0, "", "call_a", "read"), ToolCallDelta(1, "", "call_b", "look")),
                *(ToolCallDelta(0, '{"pa'), ToolCallDelta(1, '{"x":'), ToolCallDelta(0, 'th":"é"}'), ToolCallDelta(1, "1}")),
            ],
            events[:-3],
        )
        self.assertEqual([Usage(30, 50, 60, 10, 20), CALLED], events[-2:])
        state = events[-3]
        assert type(state) is ProviderState
        reasoning = {"type": "reasoning", "id": "re_0", "summary": [{"type": "summary_text", "text": "Look é😀 twice."}], "encrypted_content": "gAAA"}
        calls_kept = [{"call": "call_a", "id": "fu_2"}, {"call": "call_b", "id": "fu_3"}]
        kept = [{"reasoning": reasoning}, {"id": "me_1", "phase": "commentary", "text": [0, 15]}, *calls_kept]
        self.assertEqual({"items": kept}, json.loads(state.state))

    def test_split_at_every_byte(self) -> None:
        """The borders of the reads make no difference."""
        expected = decode(WHOLE)
        for cut in range(len(WHOLE) + 1):
            self.assertEqual(expected, decode(WHOLE[:cut], WHOLE[cut:]), cut)
        self.assertEqual(expected, decode(*(bytes([byte]) for byte in WHOLE)))

    def test_shapes(self) -> None:
        """What servers do differently, and what comes of it."""
        good, stopped = [TextDelta("hi"), NO_USAGE, STOP], [NO_USAGE, STOP]
        refused = [TextDelta("hi"), NO_USAGE, TurnFinished("content_filter", "completed")]
        whole = {"type": "message", "content": content("hi")}
        ended_hi = ended(0, "message", content=content("h", "i"))
        read, function = [ToolCallDelta(0, "{}", "c1", "read"), NO_USAGE, CALLED], {"call_id": "c1", "name": "read"}
        begun, refusal = added(0, "function_call", **function), [{"type": "refusal", "refusal": "hi"}]
        odd = said("response.output_text.delta", delta=5, output_index="0") + said("response.output_item.added", item=[])
        by_id = said("response.function_call_arguments.delta", item_id="fu_3", delta="{}")
        nameless = ended(0, "function_call", name="read", arguments="{}")
        plain = said("response.reasoning_text.delta", output_index=0, delta="hm")
        summary = [{"type": "summary_text", "text": "a"}, {"text": "b"}]

        def cut(why: str) -> bytes:
            return completed("incomplete", incomplete_details={"reason": why})

        for name, stream, events in (
            ("no item before the text", text_delta("hi") + END, good),
            ("no text at all", END, stopped),
            ("text in the whole item only", added(0, "message") + ended_hi + END, good),
            ("text at the very end only", completed(output=[whole]), good),
            ("the item ends only with the answer", text_delta("h") + text_delta("i") + completed(output=[whole]), good),
            ("no places", text_delta("hi").replace(b'"output_index": 0', b'"x": 0') + END, good),
            ("odd ids", text_delta("h").replace(b'"me_0"', b"null") + text_delta("i").replace(b'"me_0"', b"5") + END, good),
            ("no event names", (message("hi") + END).replace(b"event: ", b"x: "), good),
            ("types in the event names only", (text_delta("hi") + END).replace(b'"type": "response', b'"kind": "response'), good),
            ("CRLF and comments", (b": hello\n\n" + message("hi") + END).replace(b"\n", b"\r\n"), good),
            ("after the end", message("hi") + END + b"data: [DONE]\n\n" + text_delta("more"), good),
            ("garbage (U08)", b"x\n\ndata: {\n\ndata: 5\n\ndata: [1]\n\nevent: y\ndata: {}\n\ndata: [DONE]\n\n" + message("hi") + END, good),
            ("deep garbage", b"data: " + b"[" * 100_000 + b"\n\n" + message("hi") + END, good),
            ("unknown events", said("response.x.delta", delta="no", output_index=0) + said("keepalive") + message("hi") + END, good),
            ("unknown items", added(0, "web_search_call") + ended(0, "web_search_call") + message("hi", place=1) + END, good),
            ("odd types", odd + message("hi") + END, good),
            ("NaN beside the text", text_delta("hi", score=float("nan")) + END, good),
            ("NaN in an item", ended(0, "message", content=content("hi"), score=float("nan")) + END, good),
            ("a refusal", said("response.refusal.delta", output_index=0, delta="hi") + ended(0, "message", content=refusal) + END, refused),
            ("a refusal, whole", ended(0, "message", content=refusal) + END, refused),
            ("two messages", message("a") + message("b", place=1) + END, [TextDelta("a\n\nb"), *stopped]),
            ("cut off", message("hi") + cut("max_output_tokens"), [*good[:2], TurnFinished("length", "max_output_tokens")]),
            ("filtered", message("hi") + cut("content_filter"), [*good[:2], TurnFinished("content_filter", "content_filter")]),
            ("cut off, unsaid why", message("hi") + completed("incomplete"), [*good[:2], TurnFinished("length", "incomplete")]),
            ("cut off in a call", begun + part_delta("{}", 0) + cut("max_output_tokens"), [*read[:2], TurnFinished("length", "max_output_tokens")]),
            ("a call", call(0, "c1", "read", "{", "}") + END, read),
            ("a call as a whole only", ended(0, "function_call", **function, arguments="{}") + END, read),
            ("a call at the very end only", completed(output=[{"type": "function_call", **function, "arguments": "{}"}]), read),
            ("the rest of it at the end", begun + part_delta("{", 0) + ended(0, "function_call", **function, arguments="{}") + END, read),
            ("other arguments at the end", begun + part_delta("{}", 0) + ended(0, "function_call", **function, arguments="{ }") + END, read),
            ("arguments before the call", part_delta("{", 0) + begun + part_delta("}", 0) + END, read),
            ("arguments as an object", ended(0, "function_call", **function, arguments={}) + END, read),
            ("arguments by the item's id", added(3, "function_call", **function) + by_id + END, read),
            ("a call without its own id", nameless + END, [ToolCallDelta(0, "{}", "fu_0", "read"), NO_USAGE, CALLED]),
            ("reasoning as it is", plain + message("hi", place=1) + END, [ReasoningDelta("hm"), *good]),
            ("reasoning and a summary of it", plain + thought_delta("no") + END, [ReasoningDelta("hm"), *stopped]),
            (
                "summaries in parts",
                thought_delta("a") + thought_delta("b") + thought_delta("c", 0, 1) + thinking(1, "d") + END,
                [ReasoningDelta("ab\n\nc\n\nd"), *stopped],
            ),
            ("a summary, whole", ended(0, "reasoning", summary=summary) + END, [ReasoningDelta("a\n\nb"), *stopped]),
        ):
            self.assertEqual([ANSWERED, *events], joined(decode(stream)), name)

    def test_state_is_kept_only_where_it_can_go_back(self) -> None:
        """It is encrypted, whole, and followed by what it belongs to; without calls nothing is kept."""

        def state(stream: bytes) -> Any:
            return next((json.loads(event.state) for event in decode(stream + END) if type(event) is ProviderState), None)

        one = call(1, "c1", "read", "{}")
        self.assertEqual(["reasoning", "call"], [next(iter(item)) for item in state(thinking(0, "x") + one)["items"]])
        for name, stream in (
            ("no reasoning", call(0, "c1", "read", "{}")),
            ("no calls", thinking(0, "x") + message("hi", place=1)),
            ("not encrypted", thinking(0, "x", None) + one),
            ("one of two is not encrypted", thinking(0, "x") + one + thinking(2, "x", None) + call(3, "c2", "read", "{}")),
            ("never ended", thinking(0, "x") + added(1, "function_call", call_id="c1", name="read") + part_delta("{}", 1)),
            ("a refusal", thinking(0, "x") + ended(2, "message", content=[{"type": "refusal", "refusal": "no"}]) + one),
            ("a message without text", thinking(0, "x") + ended(2, "message", content=[]) + one),
            ("too much", thinking(0, "x", "x" * (1 << 20)) + one),
        ):
            self.assertIsNone(state(stream), name)
        self.assertEqual(["call"], [next(iter(item)) for item in state(thinking(0, "x") + one + thinking(2, "y"))["items"]][1:])
        for empty in ({}, {"content": None}, {"summary": [], "content": [], "status": "completed"}):
            first = state(ended(0, "reasoning", encrypted_content="g", **empty) + one)["items"][0]
            self.assertEqual({"reasoning": {"summary": [], "type": "reasoning", "id": "re_0", "encrypted_content": "g"}}, first)
        plain = {"summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
        self.assertEqual({"type": "reasoning", "id": "re_0", **plain}, state(ended(0, "reasoning", **plain) + one)["items"][0]["reasoning"])

    def test_usage_that_makes_no_sense(self) -> None:
        """Missing, negative, texts, floats, more cached than there are: 0, or the part that can be (U22)."""
        for usage, expected in (
            (None, NO_USAGE),
            ("many", NO_USAGE),
            ({"input_tokens": -5, "output_tokens": 3}, Usage(0, 3)),
            ({"input_tokens": "12", "output_tokens": None, "input_tokens_details": 5}, NO_USAGE),
            ({"input_tokens": 12.0, "output_tokens": True}, Usage(12)),
            ({"input_tokens": 10**30, "output_tokens": 3}, Usage(0, 3)),
            ({"input_tokens": 4, "input_tokens_details": {"cached_tokens": 9, "cache_write_tokens": 9}}, Usage(0, 0, 4)),
            ({"output_tokens": 2, "output_tokens_details": {"reasoning_tokens": 7}}, Usage(0, 2, 0, 0, 2)),
        ):
            self.assertEqual([ANSWERED, TextDelta("hi"), expected, STOP], decode(text_delta("hi"), completed(usage=usage)), usage)

    def test_characters_stay_whole(self) -> None:
        """However a server cuts its text; what is invalid is U+FFFD (U15, U17)."""

        def cut(*pieces: bytes) -> list[bytes]:
            return [text_delta("HERE").replace(b"HERE", piece) for piece in pieces]

        for pieces, whole in (
            ((rb"a\ud83d", rb"\ude00b"), "a😀b"),
            ((b"x", rb"\ud83d", b"", rb"\ude00", b"y"), "x😀y"),
            ((rb"a\ud83d", b"b"), "a\ufffdb"),
            ((rb"a\ud83d",), "a\ufffd"),
            ((b"a\xff\xc3",), "a\ufffd\ufffd"),
        ):
            self.assertEqual(whole, text(decode(*cut(*pieces), END)), pieces)
        fragments = [part_delta("HERE", 0).replace(b"HERE", piece) for piece in (rb"a\ud83d", rb"\ude00b")]
        events = decode(added(0, "function_call", call_id="c", name="f"), *fragments, END)
        self.assertEqual("a😀b", "".join(event.arguments for event in events if type(event) is ToolCallDelta))

    def test_answers_that_are_none(self) -> None:
        """Only garbage, nothing, an end in the middle, or one of another kind (U07, U08)."""
        for stream, why in (
            (b"", "cannot be understood"),
            (b"data: [DONE]\n\n", "cannot be understood"),
            (b"<html>hello</html>\n\n", "cannot be understood"),
            (CREATED, "cannot be understood"),
            (CREATED + message("hi"), "broke off"),
            (message("hi") + b"data: [DONE]\n\n", "broke off"),
            (message("hi") + completed("cancelled"), "cancelled"),
            (said("response.failed", response=None), "failed"),
        ):
            error = self.assertRaises(UpstreamError, decode, stream)
            self.assertIn(why, error.message)
            self.assertTrue(error.fallback)

    def test_errors_inside_the_stream(self) -> None:
        """The text before the error comes out first, then the error as what it means, without the key (U20)."""

        def failed(code: Any, message: str = f"boom {KEY}") -> bytes:
            return completed("failed", error={"code": code, "message": message})

        for body, kind, fallback in (
            (failed("server_error"), UpstreamError, True),
            (failed(None), UpstreamError, True),
            (failed("rate_limit_exceeded"), RateLimited, True),
            (failed("insufficient_quota"), InsufficientQuota, True),
            (failed("context_length_exceeded"), ContextLengthExceeded, False),
            (failed(None, "Your input exceeds the context window of this model."), ContextLengthExceeded, False),
            (failed("invalid_prompt"), UpstreamRefused, False),
            (failed("image_content_policy_violation"), UpstreamRefused, False),
            (said("error", code="server_error", message=f"boom {KEY}", param=None), UpstreamError, True),
            (said("error", code="rate_limit_exceeded", message="boom"), RateLimited, True),
            (said("error", error={"type": "server_error", "code": None, "message": "boom"}), UpstreamError, True),
            (b'data: {"error": {"code": 429, "message": "boom"}}\n\n', RateLimited, True),
            (b"event: error\ndata: boom\n\n", UpstreamError, True),
            (b'event: error\ndata: {"message": "boom"}\n\n', UpstreamError, True),
        ):
            for tools in (True, False):
                reading = decoder(tools)
                self.assertEqual([ANSWERED, TextDelta("hi")], reading.feed(text_delta("hi") + body + text_delta("no") + END), body)
                self.assertTrue(reading.done)
                self.assertFalse(reading.complete)
                error = self.assertRaises(kind, reading.close)
                self.assertEqual((kind, fallback), (type(error), error.fallback), body)
                self.assertNotIn(KEY, error.message)

    def test_what_a_failed_answer_used(self) -> None:
        """It counts."""
        reading = decoder()
        broken = completed("failed", error={"code": "server_error", "message": "x"}, usage={"input_tokens": 7, "output_tokens": 1})
        self.assertEqual([ANSWERED, TextDelta("hi"), Usage(7, 1)], reading.feed(text_delta("hi") + broken))
        self.assertRaises(UpstreamError, reading.close)

    def test_a_call_that_was_not_offered(self) -> None:
        """Without tools it is an error."""
        reading = decoder(tools=False)
        reading.feed(call(0, "c", "read", "{}"))
        self.assertIn("was offered none", self.assertRaises(UpstreamError, reading.close).message)

    def test_bounds(self) -> None:
        """A line without end (U09), an answer without end (U18), calls, places and arguments without end (U21)."""

        def until(*pieces: bytes, most: int = 20_000) -> str:
            reading, count = decoder(), 0
            for piece in pieces[:-1]:
                reading.feed(piece)
            while not reading.done:
                reading.feed(pieces[-1].replace(b"123456", b"%d" % count))
                count += 1
                self.assertLess(count, most)
            return self.assertRaises(UpstreamError, reading.close).message

        self.assertIn("4 MiB", until(b"x" * 65_536, most=66))
        self.assertIn("longer than 8 million", until(text_delta("x" * 1_000_000), most=10))
        self.assertIn("longer than 8 million", until(thought_delta("x" * 1_000_000), most=10))
        self.assertIn("1 MiB", until(added(0, "function_call", call_id="c", name="f"), part_delta("x" * 100_000, 0), most=13))
        self.assertIn(f"more than {calls.MAX_CALLS} times", until(added(123456, "function_call", call_id="c", name="f")))
        self.assertIn("index over", until(added(123456, "message")))
        self.assertIn("index over", until(text_delta("x", 10**30)))
        self.assertIn("longer than 8 million", until(ended(123456, "web_search_call", query="x" * 1_000_000), most=18))
        many = [{"type": "function_call", "call_id": f"c{n}", "name": "f", "arguments": "{}"} for n in range(10_000)]
        self.assertIn("more than", self.assertRaises(UpstreamError, decode, completed(output=many)).message)

    def test_a_whole_answer(self) -> None:
        """From a server that does not stream; one that says nothing is none (U19)."""
        body = {"status": "completed", "output": [{"type": "message", "content": content("hi")}], "usage": {"input_tokens": 3}}
        self.assertEqual([ANSWERED, TextDelta("hi"), Usage(3), STOP], decoder().whole(json.dumps(body).encode()))
        for value in ({**body, "status": None}, {"output": body["output"]}):
            self.assertEqual("hi", text(decoder().whole(json.dumps(value).encode())))
        function = {"type": "function_call", "call_id": "c1", "name": "read", "arguments": "{}"}
        self.assertEqual(CALLED, decoder().whole(json.dumps({**body, "output": [function]}).encode())[-1])
        for broken in (
            *(b"", b"x", b"{}", b"[]", b'{"output": []}', b'{"output": [5]}', b'{"error": {"message": "x"}}', b'{"status": "queued", "output": []}'),
            json.dumps({**body, "status": "failed"}).encode(),
            json.dumps({**body, "output": [{"type": "message", "content": None}]}).encode(),
        ):
            self.assertRaises(UpstreamError, decoder().whole, broken)

    @given(st.lists(st.text(max_size=5), max_size=6), st.lists(st.integers(0, 3000), max_size=6), st.booleans())
    @settings(settings.get_profile("responses_decoder"), max_examples=60)
    def test_any_text_in_any_pieces(self, texts: list[str], cuts: list[int], ascii_only: bool) -> None:
        """The text that comes out is the text that went in, however it was written and cut."""
        texts = [word.encode("utf-8", "replace").decode() for word in texts]
        bodies = [json.dumps({"type": "response.output_text.delta", "output_index": 0, "delta": word}, ensure_ascii=ascii_only) for word in texts]
        stream = b"".join(b"data: " + body.encode() + b"\n\n" for body in bodies) + END
        borders = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
        pieces = [stream[start:end] for start, end in zip(borders, borders[1:], strict=False)]  # noqa: RUF007
        self.assertEqual("".join(texts), text(decode(*pieces)))

    def test_anything_at_all(self) -> None:
        """Streams with parts changed, swapped and left out never do worse than an error of ours."""
        values: list[Any] = [None, 5, -1, 10**30, "x", "\ud83d", [], {}, [{}], {"type": "message"}, {"type": 5}, 1.5, True]
        events = [json.loads(block.partition(b"data: ")[2]) for block in WHOLE.split(b"\n\n") if block]
        for seed in range(1500):
            dice = random.Random(seed)
            stream = []
            for event in events:
                event = json.loads(json.dumps(event))
                for _ in range(dice.choice((0, 0, 1, 2))):
                    inside = dice.choice([part for part in (event, event.get("item"), event.get("response")) if isinstance(part, dict)])
                    name = dice.choice([*inside, "error", "output", "item", "response", "delta", "type"])
                    inside[name] = json.loads(json.dumps(dice.choice(values)))
                stream.append(b"data: " + json.dumps(event).encode() + b"\n\n")
            if dice.random() < 0.3:
                dice.shuffle(stream)
            reading = decoder(dice.random() < 0.8)
            try:
                told = [event for piece in stream for event in reading.feed(piece)] + reading.close()
            except GatewayError:
                continue
            self.assertIs(TurnFinished, type(told[-1]), seed)
            self.assertIs(Usage, type(told[-2]), seed)
            json.dumps(msgspec.to_builtins(told), ensure_ascii=False).encode()  # no half of a character
