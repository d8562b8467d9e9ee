"""The Anthropic provider: its decoder on events recorded by hand, its requests, round trips with a server that refuses what the vendor refuses."""

from __future__ import annotations

import json
import os
import random
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.keys import SessionKey
from mayros.core.models import Provider
from mayros.core.ports import ModelRequest, Principal, Sampling, ToolSpec, Turn
from mayros.errors import ContextLengthExceeded, GatewayError, InsufficientQuota, RateLimited, UpstreamError, UpstreamRefused
from mayros.events import Event, ModelAnswered, ProviderState, ReasoningDelta, TextDelta, ToolCallDelta, TurnFinished, Usage
from mayros.messages import Function, ImagePart, ImageUrl, Message, TextPart, ToolCall, pack
from mayros.messages import ProviderState as KeptState
from mayros.providers.anthropic import Anthropic, generation, messages_request
from mayros.providers.anthropic_decoder import AnthropicDecoder
from mayros.providers.failures import Redactor
from tests import vendor_cases
from tests.anthropic_server import Refused, Strict
from tests.helpers import FakeTool, Harness
from tests.vendor_cases import ANSWERED, KEY, SSE, TOOL, reply

API = "anthropic-messages"
VENDOR = "https://api.anthropic.com"
EXEC = ToolSpec("exec", "", {"type": "object", "anyOf": [{"required": ["command"]}], "properties": {"command": {"type": "string"}}})
PICTURE = ImagePart(ImageUrl("data:image/png;base64,QUJD"))

settings.register_profile("anthropic", derandomize="CI" in os.environ, deadline=None, database=None)


def event(kind: str, **fields: Any) -> bytes:
    """One event as the vendor sends it, under its name."""
    return vendor_cases.event({"type": kind, **fields}, kind)


def started(**usage: int) -> bytes:
    """The first event."""
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "m1", "stop_reason": None, "stop_sequence": None}
    return event("message_start", message={**message, "usage": usage or {"input_tokens": 10, "output_tokens": 1}}) + event("ping")


def block(index: int, kind: str, **fields: Any) -> bytes:
    """A block begins."""
    return event("content_block_start", index=index, content_block={"type": kind, **fields})


def delta(index: int, kind: str, **fields: Any) -> bytes:
    """More of a block."""
    return event("content_block_delta", index=index, delta={"type": f"{kind}_delta", **fields})


def stop(index: int) -> bytes:
    """A block has ended."""
    return event("content_block_stop", index=index)


def words(index: int, *texts: str) -> bytes:
    """A whole block of text."""
    return block(index, "text", text="") + b"".join(delta(index, "text", text=one) for one in texts) + stop(index)


def ended(reason: str = "end_turn", **usage: Any) -> bytes:
    """The last events."""
    return event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage=usage or {"output_tokens": 5}) + event("message_stop")


def decoder(tools: bool = True) -> AnthropicDecoder:
    """A decoder of a turn in which tools were offered."""
    return AnthropicDecoder("acme", "m1", Redactor([KEY]), tools)


def decode(*pieces: bytes, tools: bool = True) -> list[Event]:
    """All events of an answer; raises its error."""
    reading = decoder(tools)
    return [event for piece in pieces for event in reading.feed(piece)] + reading.close()


#: Thinking, text, two calls whose parts are mixed.
CALLING = (
    started(input_tokens=20, cache_read_input_tokens=100, cache_creation_input_tokens=7, output_tokens=2)
    + block(0, "thinking", thinking="", signature="")
    + delta(0, "thinking", thinking="Let me ")
    + delta(0, "thinking", thinking="look.")
    + delta(0, "signature", signature="c2ln")
    + stop(0)
    + block(1, "redacted_thinking", data="ZGF0YQ==")
    + stop(1)
    + words(2, "I ", "look: 😀")
    + block(3, "tool_use", id="toolu_1", name="read", input={})
    + delta(3, "input_json", partial_json="")
    + delta(3, "input_json", partial_json='{"path"')
    + block(4, "tool_use", id="toolu_2", name="exec", input={})
    + delta(4, "input_json", partial_json='{"command":')
    + delta(3, "input_json", partial_json=':"é"}')
    + stop(3)
    + delta(4, "input_json", partial_json='"ls"}')
    + stop(4)
    + ended("tool_use", output_tokens=50, input_tokens=None)
)
THOUGHTS = [{"type": "thinking", "thinking": "Let me look.", "signature": "c2ln"}, {"type": "redacted_thinking", "data": "ZGF0YQ=="}]
CALLED: list[Event] = [
    ANSWERED,
    ReasoningDelta("Let me "),
    ReasoningDelta("look."),
    TextDelta("I "),
    TextDelta("look: 😀"),
    ToolCallDelta(0, "", "toolu_1", "read"),
    ToolCallDelta(0, '{"path"'),
    ToolCallDelta(1, "", "toolu_2", "exec"),
    ToolCallDelta(1, '{"command":'),
    ToolCallDelta(0, ':"é"}'),
    ToolCallDelta(1, '"ls"}'),
    ProviderState(json.dumps({"layout": [*THOUGHTS, 9, None, None]}, separators=(",", ":")).encode()),
    Usage(20, 50, 100, 7),
    TurnFinished("tool_calls", "tool_use"),
]


class Decoding(SynchronousTestCase):
    """Bytes in, events out."""

    def test_text(self) -> None:
        """Each read's events in one list, the last ones with the end."""
        reading = decoder()
        self.assertEqual([ANSWERED], reading.feed(started()))
        self.assertEqual([TextDelta("Hel"), TextDelta("lo")], reading.feed(words(0, "Hel", "lo")))
        self.assertFalse(reading.complete)
        self.assertEqual([Usage(10, 5), TurnFinished("stop", "end_turn")], reading.feed(ended()))
        self.assertTrue(reading.done and reading.complete)
        self.assertEqual([], reading.feed(words(1, "no")) + reading.close())

    def test_thinking_and_two_calls(self) -> None:
        """Thinking is kept with its place for the next request; parts of calls that are mixed are told apart."""
        self.assertEqual(CALLED, decode(CALLING))

    def test_thinking_without_calls(self) -> None:
        """It is shown, and not kept."""
        stream = started() + block(0, "thinking", thinking="hm", signature="") + delta(0, "signature", signature="s") + words(1, "hi") + ended()
        self.assertEqual([ANSWERED, ReasoningDelta("hm"), TextDelta("hi"), Usage(10, 5), TurnFinished("stop", "end_turn")], decode(stream))

    def test_any_border(self) -> None:
        """Cut at every byte, and byte by byte, the stream gives the same events."""
        self.assertEqual(CALLED, decode(*(bytes([byte]) for byte in CALLING)))
        for at in range(len(CALLING)):
            self.assertEqual(CALLED, decode(CALLING[:at], CALLING[at:]), at)

    def test_why_it_stopped(self) -> None:
        """The vendor's words as ours; calls win over `end_turn`."""
        for said, reason in (
            ("end_turn", "stop"),
            ("stop_sequence", "stop"),
            ("pause_turn", "stop"),
            ("something_new", "stop"),
            ("max_tokens", "length"),
            ("model_context_window_exceeded", "length"),
            ("refusal", "content_filter"),
            ("tool_use", "stop"),
        ):
            self.assertEqual(TurnFinished(reason, said), decode(started() + words(0, "hi") + ended(said))[-1])
        call = block(0, "tool_use", id="a", name="read", input={}) + stop(0)
        self.assertEqual(TurnFinished("tool_calls", "end_turn"), decode(started() + call + ended())[-1])
        self.assertEqual(TurnFinished("length", "max_tokens"), decode(started() + call + ended("max_tokens"))[-1])
        self.assertEqual(TurnFinished("stop"), decode(started() + words(0, "hi") + event("message_stop"))[-1])

    def test_usage(self) -> None:
        """Disjoint counts; later ones take the place of earlier ones, unless they are null or missing."""
        start = started(input_tokens=3, cache_read_input_tokens=100, cache_creation_input_tokens=20, output_tokens=1)
        for later, used in (
            ({"output_tokens": 9}, Usage(3, 9, 100, 20)),
            ({"output_tokens": 9, "input_tokens": None, "cache_read_input_tokens": 0}, Usage(3, 9, 0, 20)),
            ({"output_tokens": 9, "input_tokens": 4, "server_tool_use": {"web_search_requests": 0}}, Usage(4, 9, 100, 20)),
            ({"output_tokens": -9, "input_tokens": "4"}, Usage(0, 0, 100, 20)),
            ({"output_tokens": 9.0, "input_tokens": 10**30}, Usage(0, 9, 100, 20)),
        ):
            self.assertIn(used, decode(start + ended(**later)), later)

    def test_quirks(self) -> None:
        """What imitators do differently, and what comes of it."""
        hi: list[Event] = [ANSWERED, TextDelta("hi"), Usage(10, 5), TurnFinished("stop", "end_turn")]
        call = [ToolCallDelta(0, "", "a", "read"), ToolCallDelta(0, '{"path":"x"}')]
        for name, body, events in (
            ("text with the start of its block", block(0, "text", text="hi") + stop(0), hi[1:2]),
            ("no start of the block", delta(0, "text", text="hi"), hi[1:2]),
            (
                "blocks of other kinds",
                block(0, "server_tool_use", id="x", name="y", input={}) + delta(0, "input_json", partial_json="{}") + words(1, "hi"),
                hi[1:2],
            ),
            ("deltas of other kinds", block(0, "text", text="") + delta(0, "citations", citation={}) + delta(0, "text", text="hi"), hi[1:2]),
            (
                "arguments with the start",
                block(0, "tool_use", id="a", name="read", input={"path": "x"}) + stop(0),
                [call[0], ToolCallDelta(0, '{"path": "x"}')],
            ),
            ("the same, and no end", block(0, "tool_use", id="a", name="read", input={"path": "x"}), [call[0], ToolCallDelta(0, '{"path": "x"}')]),
            (
                "both",
                block(0, "tool_use", id="a", name="read", input={"path": "y"}) + delta(0, "input_json", partial_json='{"path":"x"}') + stop(0),
                call,
            ),
            ("no arguments", block(0, "tool_use", id="a", name="read", input={}) + stop(0), call[:1]),
            ("arguments of an unknown block", delta(7, "input_json", partial_json="{}") + words(0, "hi"), hi[1:2]),
            ("a signature of an unknown block", delta(7, "signature", signature="x") + words(0, "hi"), hi[1:2]),
            ("thinking without its start", delta(0, "thinking", thinking="hm") + words(1, "hi"), [ReasoningDelta("hm"), *hi[1:2]]),
            ("wrong types", delta(0, "text", text="hi", thinking=5) + event("content_block_start", index=[], content_block=5), hi[1:2]),
            ("[DONE]", words(0, "hi") + b"data: [DONE]\n\n", hi[1:2]),
        ):
            expected = [ANSWERED, *events]
            self.assertEqual(expected, [one for one in decode(started() + body + ended()) if type(one) not in (Usage, TurnFinished)], name)
        self.assertEqual(hi, decode((started() + words(0, "hi") + ended()).replace(b"\n", b"\r\n")))
        no_names = b"".join(line + b"\n" for line in (started() + words(0, "hi") + ended()).split(b"\n") if not line.startswith(b"event:"))
        self.assertEqual(hi, decode(no_names))

    def test_ids(self) -> None:
        """Each call has one of its own, whatever was sent."""
        starts = [{"id": "a"}, {"id": "a"}, {"id": ""}, {}, {"id": "x" * 300}, {"id": 5}, {"id": "a\nb"}]
        stream = started() + b"".join(block(at, "tool_use", name="read", input={}, **fields) for at, fields in enumerate(starts)) + ended("tool_use")
        ids = [one.id for one in decode(stream) if type(one) is ToolCallDelta]
        self.assertEqual(len(starts), len(set(ids)))
        self.assertEqual("a", ids[0])
        self.assertTrue(all(one and one.startswith("toolu_") for one in ids[1:]))

    def test_errors_in_the_stream(self) -> None:
        """Each kind as what it means; what was used until then is told."""
        for kind, said, error in (
            ("overloaded_error", "Overloaded", UpstreamError),
            ("api_error", "x", UpstreamError),
            ("timeout_error", "x", UpstreamError),
            ("rate_limit_error", "x", RateLimited),
            ("billing_error", "x", InsufficientQuota),
            ("invalid_request_error", "x", UpstreamRefused),
            ("authentication_error", f"bad {KEY}", UpstreamRefused),
            ("invalid_request_error", "prompt is too long: 9 tokens > 8 maximum", ContextLengthExceeded),
            ("request_too_large", "x", ContextLengthExceeded),
            ("new_error", "x", UpstreamError),
        ):
            reading = decoder()
            events = reading.feed(started() + delta(0, "text", text="hi") + event("error", error={"type": kind, "message": said}) + ended())
            self.assertEqual([ANSWERED, TextDelta("hi"), Usage(10, 1)], events, kind)
            self.assertTrue(reading.done)
            self.assertFalse(reading.complete)
            raised = self.assertRaises(error, reading.close)
            self.assertIs(error, type(raised), kind)
            self.assertNotIn(KEY, raised.message)
        for odd in (b"event: error\ndata: boom\n\n", b'event: error\ndata: {"message": "boom"}\n\n', event("error"), event("error", error="boom")):
            self.assertRaises(UpstreamError, decode, started() + odd)

    def test_bounds(self) -> None:
        """Arguments, calls, blocks, text: an answer that is too much is an error."""
        open_call = started() + block(0, "tool_use", id="a", name="read", input={})
        for stream, said in (
            ([open_call, *[delta(0, "input_json", partial_json="x" * 600_000)] * 2], "arguments"),
            ([started(), *[block(n, "tool_use", id=str(n), name="read", input={}) for n in range(257)]], "more than 256"),
            ([started(), *[block(0, "thinking", thinking="") for n in range(1025)]], "1024 blocks"),
            ([started(), *[delta(0, "thinking", thinking="x" * 900_000)] * 10], "longer than"),
            ([started(), block(0, "thinking", thinking=""), *[delta(0, "signature", signature="x" * 900_000)] * 10], "longer than"),
        ):
            self.assertIn(said, self.assertRaises(UpstreamError, decode, *stream).message)
        thoughts = [delta(0, "thinking", thinking="x" * 900_000)] * 2
        self.assertNotIn(ProviderState, [type(one) for one in decode(open_call, block(1, "thinking", thinking=""), *thoughts, ended("tool_use"))])

    def test_a_whole_message(self) -> None:
        """From a server that does not stream."""
        content = [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "text", "text": "hi"},
            {"type": "web_search_result"},
            {"type": "tool_use", "id": "a", "name": "read", "input": {"path": "é"}},
        ]
        body = {"type": "message", "content": content, "stop_reason": "tool_use", "usage": {"input_tokens": 3, "output_tokens": 2}}
        events = decoder().whole(json.dumps(body).encode())
        state = ProviderState(b'{"layout":[{"type":"thinking","thinking":"hm","signature":"s"},2,null]}')
        told = [ANSWERED, ReasoningDelta("hm"), TextDelta("hi"), ToolCallDelta(0, "", "a", "read"), ToolCallDelta(0, '{"path": "é"}')]
        self.assertEqual([*told, state, Usage(3, 2), TurnFinished("tool_calls", "tool_use")], events)
        nothing = {"type": "message", "content": [], "stop_reason": "end_turn"}
        self.assertEqual([ANSWERED, Usage(), TurnFinished("stop", "end_turn")], decoder().whole(json.dumps(nothing).encode()))
        refused = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        self.assertIn("Overloaded", self.assertRaises(UpstreamError, decoder().whole, json.dumps(refused).encode()).message)

    @given(st.binary(max_size=200), st.integers(0, 2**32))
    @settings(settings.get_profile("anthropic"), max_examples=100)
    def test_nonsense(self, junk: bytes, seed: int) -> None:
        """Whatever comes, there is an answer or an error of ours, and calls come whole: an id and a name in their first part, none later."""
        dice = random.Random(seed)
        stream = bytearray(CALLING)
        for _ in range(dice.randrange(12)):
            at = dice.randrange(len(stream))
            stream[at : at + dice.randrange(4)] = junk[: dice.randrange(20)]
        lines = bytes(stream).split(b"\n\n")
        dice.shuffle(lines)
        for data in (bytes(stream), b"\n\n".join(lines) + b"\n\n"):
            reading, seen = decoder(), set()
            try:
                events = reading.feed(data) + reading.close()
            except GatewayError:
                continue
            self.assertIs(ModelAnswered, type(events[0]))
            for one in events:
                if type(one) is ToolCallDelta:
                    self.assertEqual(one.index not in seen, bool(one.id and one.name))
                    seen.add(one.index)


def provider(**more: Any) -> Provider:
    """A provider with a key."""
    return vendor_cases.provider(API, **more)


class Requests(SynchronousTestCase):
    """What is asked."""

    def body(
        self, *messages: Message, of: Provider | None = None, sampling: Sampling | None = None, dropped: Any = (), **more: Any
    ) -> dict[str, Any]:
        """The request, read back. `more`: fields of the model, and of the request."""
        fields = {name: more.pop(name) for name in ("tools", "system_stable", "most_tokens") if name in more}
        asked = vendor_cases.request(of or provider(), sampling, messages, **more)
        return dict(json.loads(b"".join(messages_request(msgspec.structs.replace(asked, **fields), frozenset(dropped)))))

    def test_the_usual_request(self) -> None:
        """Always a stream; a limit is always needed; no mark for a cache unless the server is the vendor's."""
        hello = [{"role": "user", "content": [{"type": "text", "text": "Hé"}]}]
        system = [{"type": "text", "text": "Be brief."}]
        self.assertEqual({"model": "m1", "max_tokens": 4096, "stream": True, "system": system, "messages": hello}, self.body())
        self.assertNotIn("system", self.body(system=""))
        self.assertEqual(7, self.body(sampling=Sampling(max_tokens=7))["max_tokens"])

    def test_what_is_cached(self) -> None:
        """The system text that stays the same, and the whole conversation: marks on the last block of each."""
        short, long = {"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}
        asked = (Message("user", "a"), Message("assistant", "b"), Message("user", (TextPart("c"), PICTURE)))
        for url, compat, mark in (
            (VENDOR, {}, short),
            (VENDOR, {"cacheRetention": "short"}, short),
            (VENDOR, {"cacheRetention": "long"}, long),
            (VENDOR, {"cacheRetention": "none"}, None),
            (VENDOR, {"cacheRetention": 5}, None),
            ("http://127.0.0.1", {}, None),
            ("http://127.0.0.1", {"cacheRetention": "long"}, long),
        ):
            body = self.body(*asked, of=provider(base_url=url), compat=compat, input=("text", "image"))
            marked = [
                where for where in (*body["system"], *(part for turn in body["messages"] for part in turn["content"])) if "cache_control" in where
            ]
            self.assertEqual([body["system"][0], body["messages"][-1]["content"][-1]] if mark else [], marked)
            self.assertEqual([mark] * len(marked), [where["cache_control"] for where in marked])
        for url, said, mark in ((VENDOR, "long", long), (VENDOR, "none", None), ("http://127.0.0.1", "short", short)):
            body = self.body(of=provider(base_url=url), sampling=Sampling(cache_retention=said), compat={"cacheRetention": "short"})
            self.assertEqual(mark, body["system"][0].get("cache_control"), "`params` win over `compat`")
        body = self.body(of=provider(base_url=VENDOR), system="Same.\n\nOther.", system_stable=5)
        self.assertEqual([{"type": "text", "text": "Same.", "cache_control": short}, {"type": "text", "text": "Other."}], body["system"])
        self.assertNotIn("cache_control", json.dumps(self.body(of=provider(base_url=VENDOR), dropped=["cache_control"])))

    def test_a_limit_on_all_that_is_written(self) -> None:
        """A budget of thinking does not go beyond what a run may use; where there is no room for it, there is none."""
        for asked, most, limit, budget in (
            (1000, None, 3048, 2048),
            (1000, 2500, 2500, 1500),
            (1000, 2000, 1000, None),
            (500, 500, 500, None),
        ):
            sampling = Sampling(max_tokens=asked, reasoning_effort="low")
            body = self.body(sampling=sampling, reasoning=True, id="claude-sonnet-4-5", max_tokens=9000, most_tokens=most)
            self.assertEqual((limit, budget), (body["max_tokens"], body.get("thinking", {}).get("budget_tokens")), most)

    def test_the_prefix_stays_the_same(self) -> None:
        """What was sent once begins the next request: nothing but the mark moves."""
        calls = (ToolCall("c1", Function("read", "{}")),)
        history = [
            Message("user", "a"), Message("assistant", "b", tool_calls=calls), Message("tool", "r", tool_call_id="c1"), Message("assistant", "done"),
            Message("user", "x"),
        ]  # fmt: skip
        turns: list[Any] = []
        for length in (1, 3, 5):
            now = self.body(*history[:length])["messages"]
            self.assertEqual(turns, now[: len(turns)])
            turns = now

    def test_generations(self) -> None:
        """From the model's name, as vendors of several clouds write it."""
        for name, made in (
            ("claude-opus-4-6", (4, 6)), ("claude-opus-4.6", (4, 6)), ("anthropic/claude-sonnet-4.5", (4, 5)), ("claude-sonnet-4-20250514", (4, 0)),
            ("claude-3-5-sonnet-20241022", (3, 5)), ("claude-3-opus-20240229", (3, 0)), ("us.anthropic.claude-opus-4-7-v1:0", (4, 7)),
            ("claude-opus-5", (5, 0)), ("claude-fable-5-20260601", (5, 0)), ("claude-mythos-preview", (99, 0)), ("MiniMax-M2", None),
            ("glm-4.7", None),
        ):  # fmt: skip
            self.assertEqual(made, generation(name), name)

    def test_thinking(self) -> None:
        """A budget for older models, with the limit made larger by it; from 4.6 on an effort. Only for models that reason."""

        def asked(model: str, level: str | None, **more: Any) -> Any:
            body = self.body(sampling=Sampling(reasoning_effort=level), id=model, **{"reasoning": True, "max_tokens": 64_000, **more})
            return body.get("thinking"), body.get("output_config"), body["max_tokens"]

        for level, budget in (("minimal", 1024), ("low", 2048), ("medium", 8192), ("high", 16384), ("xhigh", 16384)):
            self.assertEqual(({"type": "enabled", "budget_tokens": budget}, None, 64_000), asked("claude-sonnet-4-5", level))
            few = self.body(sampling=Sampling(reasoning_effort=level, max_tokens=100), id="claude-sonnet-4-5", reasoning=True, max_tokens=64_000)
            self.assertEqual((budget, 100 + budget), (few["thinking"]["budget_tokens"], few["max_tokens"]))
        adaptive, told = {"type": "adaptive"}, {"type": "adaptive", "display": "summarized"}
        for model, thinking, highest in (
            ("claude-opus-4-6", adaptive, "max"),
            ("claude-opus-4-7", told, "xhigh"),
            ("claude-mythos-preview", told, "xhigh"),
        ):
            for level, effort in (("minimal", "low"), ("low", "low"), ("medium", "medium"), ("high", "high"), ("xhigh", highest)):
                self.assertEqual((thinking, {"effort": effort}, 64_000), asked(model, level))
        for model in ("claude-sonnet-4-5", "claude-opus-4-7"):
            self.assertEqual((None, None, 64_000), asked(model, "none"))
            self.assertEqual((None, None, 64_000), asked(model, None))
            self.assertEqual((None, None, 64_000), asked(model, "high", reasoning=False))
        self.assertEqual((None, None, 1500), asked("claude-sonnet-4-5", "high", max_tokens=1500))
        self.assertEqual({"type": "enabled", "budget_tokens": 7168}, asked("claude-sonnet-4-5", "high", max_tokens=8192)[0])
        self.assertEqual("enabled", asked("claude-opus-4-6", "low", compat={"thinkingFormat": "budget"})[0]["type"])
        self.assertEqual("adaptive", asked("MiniMax-M2", "low", compat={"thinkingFormat": "adaptive"})[0]["type"])

    def test_sampling(self) -> None:
        """Only what the vendor knows, and what the model takes."""
        everything = Sampling(1.7, 0.5, 100, ("a", " \n", "b"), 7, 0.1, -0.1, None, {"service_tier": "x"})
        for model, more, sent in (
            ("m1", {}, {"temperature": 1.0, "top_p": 0.5}),
            ("claude-3-5-sonnet-latest", {}, {"temperature": 1.0, "top_p": 0.5}),
            ("claude-sonnet-4-5", {}, {"temperature": 1.0}),
            ("claude-opus-4-7", {}, {}),
        ):
            body = self.body(sampling=everything, id=model, **more)
            self.assertEqual(
                {"max_tokens": 100, "stop_sequences": ["a", "b"], **sent},
                {name: body[name] for name in body if name not in ("model", "messages", "system", "stream")},
            )
        thinking = self.body(sampling=msgspec.structs.replace(everything, reasoning_effort="low"), id="claude-sonnet-4-5", reasoning=True)
        self.assertNotIn("temperature", thinking)
        self.assertNotIn("stop_sequences", self.body(sampling=Sampling(stop=(" ",))))

    def test_tools(self) -> None:
        """With their schemas, without what is refused at the top of one."""
        read, run = self.body(tools=[TOOL, EXEC])["tools"]
        self.assertEqual({"name": "read", "description": "Read a file.", "input_schema": TOOL.parameters}, read)
        self.assertEqual({"name": "exec", "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}}}, run)

    def test_results(self) -> None:
        """All of one turn in one user message, first in it, with texts, images, or nothing."""
        calls = tuple(ToolCall(f"call:{n}", Function("read", arguments)) for n, arguments in enumerate(('{"path": "é"}', "{", "[1]")))
        body = self.body(
            Message("user", "look"),
            Message("assistant", None, tool_calls=calls),
            Message("tool", "one", tool_call_id="call:0"),
            Message("tool", (TextPart("two"), PICTURE, TextPart(" ")), tool_call_id="call:1"),
            Message("tool", "", tool_call_id="call:2"),
            Message("user", "so?"),
            input=("text", "image"),
        )
        _, said, results = body["messages"]
        ids = [block["id"] for block in said["content"]]
        self.assertEqual([{"path": "é"}, {}, {}], [block["input"] for block in said["content"]])
        self.assertTrue(all(len(one) == 38 and one.startswith("toolu_") for one in ids) and len(set(ids)) == 3)
        picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}}
        kind = {"type": "tool_result"}
        self.assertEqual(
            [
                {**kind, "tool_use_id": ids[0], "content": "one"},
                {**kind, "tool_use_id": ids[1], "content": [{"type": "text", "text": "two"}, picture]},
                {**kind, "tool_use_id": ids[2]},
                {"type": "text", "text": "so?"},
            ],
            results["content"],
        )
        self.assertEqual(([{"name": "read", "input_schema": {"type": "object"}}], {"type": "none"}), (body["tools"], body["tool_choice"]))

    def test_images(self) -> None:
        """What the model does not take is said in words."""
        odd = [ImagePart(ImageUrl(url)) for url in ("data:image/jpg;base64,QQ==", "data:image/bmp;base64,QQ==", "omitted:image/png;bytes=5")]
        (turn,) = self.body(Message("user", tuple(odd)), input=("text", "image"))["messages"]
        self.assertEqual(["image", "text", "text"], [block["type"] for block in turn["content"]])
        self.assertEqual("image/jpeg", turn["content"][0]["source"]["media_type"])
        self.assertIn("image/bmp", turn["content"][1]["text"])
        (turn,) = self.body(Message("user", (PICTURE,)))["messages"]
        self.assertIn("takes none", turn["content"][0]["text"])

    def test_turns(self) -> None:
        """A user begins, a user ends, and they take turns; nothing that is blank is sent."""
        for said, roles in (
            ([("assistant", "a")], "uau"),
            ([("user", " "), ("assistant", "a"), ("user", "b")], "uau"),
            ([("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d"), ("user", "e")], "uau"),
            ([("system", "a"), ("user", "b")], "u"),
            ([("user", "\n")], "u"),
        ):
            turns = self.body(*(Message(role, text) for role, text in said))["messages"]
            self.assertEqual(roles, "".join(turn["role"][0] for turn in turns))
            self.assertTrue(all(block["text"].strip() for turn in turns for block in turn["content"]))

    def test_thinking_goes_back(self) -> None:
        """In its place and unchanged, to the model that thought it and to no other; first, where text or calls were changed since."""
        one, two = THOUGHTS
        layout = {"layout": [one, 2, two, None, 3, None]}
        calls = tuple(ToolCall(name, Function("read", "{}")) for name in ("a", "b"))
        results = [Message("tool", "r", tool_call_id=name) for name in ("a", "b")]

        def sent(text: str, state: object, model: str = "acme/m1") -> list[str]:
            kept = KeptState(model, msgspec.Raw(json.dumps(state).encode()))
            said = self.body(Message("user", "x"), Message("assistant", text, tool_calls=calls, provider_state=kept), *results)["messages"][1][
                "content"
            ]
            return [block.get("text") or block["type"] for block in said]

        self.assertEqual(["thinking", "Hi", "redacted_thinking", "tool_use", "abc", "tool_use"], sent("Hiabc", layout))
        self.assertEqual(["thinking", "redacted_thinking", "Hi", "tool_use", "tool_use"], sent("Hi", layout))
        kept = KeptState("acme/m1", msgspec.Raw(json.dumps(layout).encode()))
        twice = Message("assistant", "Wait."), Message("assistant", "Hiabc", tool_calls=calls, provider_state=kept)
        turns = self.body(Message("user", "x"), *twice, *results)["messages"]
        self.assertEqual(["text", "text", "text", "thinking", "tool_result"], [turn["content"][0]["type"] for turn in turns])
        for state, model in ((layout, "acme/m2"), (layout, "other/m1"), ({"blocks": []}, "acme/m1"), ([], "acme/m1"), ({"layout": 5}, "acme/m1")):
            self.assertEqual(["Hiabc", "tool_use", "tool_use"], sent("Hiabc", state, model))


class Conversation(vendor_cases.WithServer):
    """Whole turns with a server that refuses what the vendor refuses."""

    def setUp(self) -> None:
        super().setUp()
        self.make(Anthropic, provider(base_url=VENDOR))
        self.strict = Strict()

    def asked(self, messages: list[Message], level: str | None = "medium", model: str = "claude-sonnet-4-5", **more: Any) -> ModelRequest:
        """A request with tools and thinking."""
        asked = vendor_cases.request(
            self.of, Sampling(reasoning_effort=level), messages, id=model, reasoning=True, max_tokens=32_000, input=("text", "image")
        )
        return msgspec.structs.replace(asked, **{"tools": [TOOL, EXEC], **more})

    def turn(self, asked: ModelRequest, stream: bytes) -> list[Event]:
        """A turn that the server takes and answers with this stream."""
        turn = self.ask(asked)
        return self.answered(turn, stream)

    def answered(self, turn: Deferred[Any], stream: bytes) -> list[Event]:
        try:
            self.strict.check(self.server.wires[-1].request)
        except Refused as refused:
            body = {"type": "error", "error": {"type": "invalid_request_error", "message": str(refused)}}
            self.server.say(reply(400, body, "Content-Type: application/json"))
            if turn.called:
                self.successResultOf(turn)
            return self.answered(turn, stream)
        self.server.say(SSE + stream)
        self.successResultOf(turn)
        return self.events

    def spoken(self, events: list[Event], model: str = "claude-sonnet-4-5") -> Message:
        """The assistant's message of a turn, as the loop keeps it."""
        calls: dict[int, list[str]] = {}
        for one in events:
            if type(one) is ToolCallDelta:
                calls.setdefault(one.index, [one.id or "", one.name or "", ""])[2] += one.arguments
        states = [one.state for one in events if type(one) is ProviderState]
        made = tuple(ToolCall(call_id, Function(name, arguments)) for call_id, name, arguments in calls.values())
        kept = KeptState(f"acme/{model}", msgspec.Raw(states[0])) if states else None
        return Message("assistant", vendor_cases.text(events) or None, tool_calls=made or None, provider_state=kept)

    def test_a_round_trip(self) -> None:
        """Thinking, text, two calls at once; then their results, more thinking, the answer."""
        for model, level in (("claude-sonnet-4-5", "medium"), ("claude-opus-4-6", "xhigh"), ("claude-opus-4-7", "xhigh"), ("claude-fable-5", "none")):
            history = [Message("user", (TextPart("look"), PICTURE))]
            events = self.turn(self.asked(history, level, model), CALLING)
            self.assertEqual(CALLED[1:], events[1:])
            history += [
                self.spoken(events, model),
                Message("tool", "one", tool_call_id="toolu_1"),
                Message("tool", (PICTURE,), tool_call_id="toolu_2"),
            ]
            self.strict.thoughts = THOUGHTS
            events = self.turn(self.asked(history, level, model), started() + words(0, "It is.") + ended())
            self.assertEqual("It is.", vendor_cases.text(events))
            history += [self.spoken(events, model), Message("user", "Thanks.")]
            self.turn(self.asked(history, level, model), started() + words(0, "Bye.") + ended())
            self.strict.thoughts = []

    def test_the_server_is_strict(self) -> None:
        """Without its thinking a conversation is refused: the check of this test's server means something."""
        events = self.turn(self.asked([Message("user", "look")]), CALLING)
        said = self.spoken(events)
        results = [Message("tool", "one", tool_call_id="toolu_1"), Message("tool", "two", tool_call_id="toolu_2")]
        self.strict.thoughts = THOUGHTS
        forged = msgspec.structs.replace(
            said,
            provider_state=KeptState(
                "acme/claude-sonnet-4-5", msgspec.Raw(json.dumps({"layout": [{**THOUGHTS[0], "signature": "forged"}]}).encode())
            ),
        )
        turn = self.ask(self.asked([Message("user", "look"), forged, *results]))
        self.assertRaises(Refused, self.strict.check, self.server.wires[-1].request)
        self.quit(turn)

    def test_begun_by_another_vendor(self) -> None:
        """Its ids are rewritten, its thinking is left out, and thinking is not asked for before its calls are answered."""
        other = KeptState("openai/gpt-5", msgspec.Raw(b'{"items":[]}'))
        calls = tuple(ToolCall(f"call_{n}|fc:{n}", Function("read", '{"path":"x"}')) for n in range(2))
        history = [
            Message("user", "look"),
            Message("assistant", "Well.", tool_calls=calls, provider_state=other),
            *(Message("tool", "r", tool_call_id=call.id) for call in calls),
        ]
        for model in ("claude-sonnet-4-5", "claude-opus-4-6"):
            events = self.turn(self.asked(history, "high", model), CALLING)
            thinking = self.strict.body.get("thinking")
            self.assertEqual(None if model == "claude-sonnet-4-5" else {"type": "adaptive"}, thinking)
            self.strict.thoughts = THOUGHTS
            own = [Message("tool", "r", tool_call_id=name) for name in ("toolu_1", "toolu_2")]
            self.turn(self.asked([*history, self.spoken(events, model), *own], "high", model), started() + words(0, "So.") + ended())
            answered = [*history, Message("assistant", "Done."), Message("user", "More.")]
            self.strict.thoughts = []
            self.turn(self.asked(answered, "high", model), started() + words(0, "So.") + ended())
            self.assertIn("thinking", self.strict.body)

    def test_no_tools_any_more(self) -> None:
        """Calls in the conversation, and none offered: the server wants tools defined, and the model may call none."""
        history = [
            Message("user", "a"),
            Message("assistant", None, tool_calls=(ToolCall("c1", Function("read", "{}")),)),
            Message("tool", "r", tool_call_id="c1"),
        ]
        events = self.turn(self.asked(history, None, tools=()), started() + words(0, "hi") + ended())
        self.assertEqual("hi", vendor_cases.text(events))

    def test_refused_once(self) -> None:
        """What a server calls unknown is left out, or asked for in another way, and from then on at once."""
        for model, level, refuses, said in (
            ("claude-next", "high", "temperature", "`temperature` is deprecated for this model."),
            (
                "m1",
                "high",
                "budget",
                '"thinking.type.enabled" is not supported for this model. Use "thinking.type.adaptive" and "output_config.effort".',
            ),
            ("claude-opus-9", "high", "adaptive", "adaptive thinking is not supported on this model"),
            ("claude-opus-4-7", "xhigh", "xhigh", "output_config.effort: level 'xhigh' is not supported. Supported levels: high, medium, low"),
            ("claude-opus-4-6", "xhigh", "max", "output_config.effort: Input should be 'low', 'medium' or 'high'"),
            ("claude-opus-4-7", "high", "display", "thinking.adaptive.display: Extra inputs are not permitted"),
            ("claude-opus-4-7", "high", "output_config", "output_config: Extra inputs are not permitted"),
            ("m1", None, "cache_control", "messages.0.content.0.cache_control: Extra inputs are not permitted"),
        ):
            self.make(Anthropic, provider(base_url=VENDOR))
            self.strict = Strict(refuses=(refuses, said))
            asked = self.asked([Message("user", "hi")], level, model)
            self.turn(asked, started() + words(0, "hi") + ended())
            self.assertEqual(0 if refuses == "temperature" else 1, self.strict.refusals, refuses)
            self.turn(asked, started() + words(0, "hi") + ended())
            self.assertLessEqual(self.strict.refusals, 1)

    def test_no_way_to_think(self) -> None:
        """A server that refuses thinking however it is asked for is asked without."""
        self.strict = Strict(refuses=("thinking", "thinking: Extra inputs are not permitted"))
        asked = self.asked([Message("user", "hi")], "high")
        self.turn(asked, started() + words(0, "hi") + ended())
        self.turn(asked, started() + words(0, "hi") + ended())
        self.assertEqual(2, self.strict.refusals)
        self.assertNotIn("thinking", self.strict.body)

    def test_sampling_refused(self) -> None:
        """A model whose name says nothing, and which takes no temperature."""
        self.strict = Strict(refuses=("temperature", "`temperature` is deprecated for this model."))
        asked = vendor_cases.request(self.of, Sampling(temperature=0.5))
        self.turn(asked, started() + words(0, "hi") + ended())
        self.turn(asked, started() + words(0, "hi") + ended())
        self.assertEqual(1, self.strict.refusals)

    def test_headers_and_address(self) -> None:
        """The key's own header, the version, and one /v1 however the base URL is written."""
        for url, key, more, expected in (
            (VENDOR, KEY, {}, ("/v1/messages", f"x-api-key: {KEY}", "anthropic-version: 2023-06-01")),
            (f"{VENDOR}/v1", KEY, {}, ("/messages", f"x-api-key: {KEY}", "anthropic-version: 2023-06-01")),
            (VENDOR, "sk-ant-oat01-abcdefgh", {}, ("/v1/messages", "Authorization: Bearer sk-ant-oat01-abcdefgh", "anthropic-version: 2023-06-01")),
            (VENDOR, KEY, {"headers": {"Anthropic-Version": "2026-10-21"}}, ("/v1/messages", f"x-api-key: {KEY}", "Anthropic-Version: 2026-10-21")),
            (
                VENDOR,
                KEY,
                {"auth_header": False, "headers": {"Authorization": "Bearer other"}},
                ("/v1/messages", "Authorization: Bearer other", "anthropic-version"),
            ),
        ):
            self.make(Anthropic, provider(base_url=url, key=key, **more))
            self.ask(vendor_cases.request(self.of, Sampling(temperature=0.5)))
            head, _, body = self.server.wires[-1].request.partition(b"\r\n\r\n")
            for line in expected:
                self.assertIn(line.encode(), head)
            self.assertEqual(1, head.lower().count(b"anthropic-version"))
            self.assertEqual(more.get("auth_header", True) and key == KEY, b"x-api-key" in head)
            self.assertEqual("2026-10-21" not in str(more), "temperature" in json.loads(body))


class Faults(vendor_cases.Faults):
    """Table 4c."""

    vendor = vendor_cases.Vendor(
        adapter=Anthropic,
        api=API,
        begin=event("message_start", message={"role": "assistant"}) + block(0, "text", text=""),
        text=lambda text: delta(0, "text", text="@@").replace(b"@@", text),
        reason=lambda usage: stop(0) + event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage),
        end=event("message_stop"),
        error=lambda message: event("error", error={"type": "overloaded_error", "message": message}),
        call=lambda n, arguments: (
            block(n + 1, "tool_use", id=f"toolu_{n}", name="read", input={}) + delta(n + 1, "input_json", partial_json=arguments) + stop(n + 1)
        ),
        whole=(b'{"content": []}', b'{"content": null, "stop_reason": "end_turn"}', b'{"type": "message"}', b'{"type": "error", "error": {}}'),
        too_long=(
            (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 210000 tokens > 200000 maximum"}}),
            (400, {"error": {"message": "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000, decrease input length"}}),
            (413, {"type": "error", "error": {"type": "request_too_large", "message": "Request exceeds the maximum size"}}),
        ),
        refused=lambda message: {"type": "error", "error": {"type": "some_error", "message": message}, "request_id": "req_1"},
        usage={"input_tokens": 3, "output_tokens": 2},
    )

    def test_credit(self) -> None:
        """An empty account is refused with a 400."""
        said = "Your credit balance is too low to access the Anthropic API."
        body = {"type": "error", "error": {"type": "invalid_request_error", "message": said}}
        self.assertIs(type(self.fails(reply(400, body))), InsufficientQuota)


class InTheLoop(vendor_cases.WithServer):
    """The agent's loop keeps what the vendor wants back, and the vendor takes it."""

    def test_two_runs_of_a_session(self) -> None:
        """Calls, results, the answer; the next run sends it all again."""
        self.make(Anthropic, provider())
        strict = Strict()
        model = {"id": "claude-sonnet-4-5", "reasoning": True, "maxTokens": 32_000, "contextWindow": 200_000}
        changes = {"agents": {"defaults": {"model": "fake/claude-sonnet-4-5"}}, "models": {"providers": {"fake": {"models": [model]}}}}
        tools = [FakeTool(name, answer, parameters={"type": "object"}) for name, answer in (("read", "one"), ("exec", "Error: no"))]
        gateway = Harness(self, changes, tools=tools)
        gateway.provider.stream = self.adapter.stream  # type: ignore[method-assign]
        agent = gateway.settings.directory.agents["main"]
        for number in range(2):
            said, level = (pack(Message("user", "look")),), Sampling(reasoning_effort="low")
            turn = Turn(f"run{number}", agent, SessionKey("main", "s"), False, said, "ws", "Be quick.", level)
            run = gateway.runs.submit(turn, Principal("owner", frozenset()))
            gateway.settle()
            for stream in (CALLING.replace(b"toolu_", b"toolu_%d" % number), started() + words(0, "It is.") + ended()):
                strict.check(self.server.wires[-1].request)
                self.assertEqual("enabled", strict.body["thinking"]["type"])
                self.assertEqual([False, True], ["Be quick." in block["text"] for block in strict.body["system"]])
                strict.thoughts = THOUGHTS
                wire = len(self.server.wires) - 1
                self.server.say(SSE + stream)
                self.server.hang_up(wire=wire)
                for _ in range(5):
                    gateway.settle()
            assert run.result is not None
            self.assertEqual(("ok", "I look: 😀\n\nIt is."), (run.result.outcome, run.result.text))
            self.assertEqual((30, 100, 7), (run.result.usage.input, run.result.usage.cache_read, run.result.usage.cache_write))
        blocks = [block["type"] for turn in strict.body["messages"] for block in turn["content"]]
        called = ["thinking", "redacted_thinking", "text", "tool_use", "tool_use", "tool_result", "tool_result"]
        self.assertEqual(["text", *called, "text", "text", *called], blocks)
