"""Tool calls in the stream of chat completions: fragments into calls, the quirks of imitators, and what is too much (U21)."""

from __future__ import annotations

import json
import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.errors import UpstreamError
from mayros.events import Event, ModelAnswered, TextDelta, ToolCallDelta, TurnFinished, Usage
from mayros.net.redact import Redactor
from mayros.providers import calls
from mayros.providers.chat_decoder import ChatDecoder

DONE = b"data: [DONE]\n\n"

settings.register_profile("calls", derandomize="CI" in os.environ, deadline=None, database=None)


def decoder(tools: bool = True) -> ChatDecoder:
    """A decoder of a turn in which tools were offered."""
    return ChatDecoder("acme", "m1", Redactor([]), tools)


def chunk(*parts: Any, finish: str | None = None, **more: Any) -> bytes:
    """A chunk with fragments of calls."""
    delta = {"tool_calls": list(parts), **more} if parts else more
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}).encode() + b"\n\n"


def part(index: int | None = None, id: str | None = None, name: str | None = None, arguments: Any = None) -> dict[str, Any]:
    """A fragment; what is None is left out."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {key: value for key, value in (("index", index), ("id", id), ("function", function)) if value is not None}


def decode(*pieces: bytes) -> list[Event]:
    """All events of an answer; raises its error."""
    reading = decoder()
    return [event for piece in pieces for event in reading.feed(piece)] + reading.close()


def made(events: list[Event]) -> list[tuple[str, str]]:
    """Name and arguments of the calls, as the loop puts them together by `index`; checks that ids are there, in the first part only, and differ."""
    found: dict[int, list[str]] = {}
    ids: list[str] = []
    for event in events:
        if type(event) is ToolCallDelta:
            if event.index not in found:
                assert event.id, event
                assert event.name, event
                ids.append(event.id)
                found[event.index] = [event.name, ""]
            else:
                assert (event.id, event.name) == (None, None), event
            found[event.index][1] += event.arguments
    assert len(set(ids)) == len(ids), ids
    return [(name, arguments) for name, arguments in found.values()]


def reason(events: list[Event]) -> TurnFinished:
    """Why the turn stopped."""
    (end,) = [event for event in events if type(event) is TurnFinished]
    return end


class Usual(SynchronousTestCase):
    """As OpenAI does it."""

    def test_split_at_every_byte(self) -> None:
        """Reasoning, text and two calls whose fragments are mixed, as a server sent them: the borders of the reads make no difference."""
        stream = (
            b": keep-alive\r\n\r\n"
            + chunk(role="assistant", content="", reasoning_content="Hm, \u00e9. ").replace(b"\n", b"\r\n")
            + chunk(content="Look \U0001f600: ")
            + b'data: {"choices": [{"index": 0, "delta": {"content": "\xc3\xa4\\ud83d"}}]}\n\n'
            + b'data: {"choices": [{"index": 0, "delta": {"content": "\\ude00"}}]}\n\n'
            + chunk(part(0, "a", "read", ""), part(1, "b", "look", '{"x"'))
            + chunk(part(1, arguments=":1}"))
            + chunk(part(0, arguments="{}"), finish="tool_calls")
            + b'event: message\ndata: {"choices": [], "usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4},'
            + b' "completion_tokens": 7, "completion_tokens_details": {"reasoning_tokens": 2}}}\n\n'
            + DONE
        )
        expected = decode(stream)
        self.assertEqual("Look \U0001f600: \u00e4\U0001f600", "".join(one.text for one in expected if type(one) is TextDelta))
        self.assertEqual([("read", "{}"), ("look", '{"x":1}')], made(expected))
        self.assertEqual([Usage(5, 7, 4, 0, 2), TurnFinished("tool_calls", "tool_calls")], expected[-2:])
        for cut in range(len(stream) + 1):
            self.assertEqual(expected, decode(stream[:cut], stream[cut:]), cut)
        self.assertEqual(expected, decode(*(bytes([byte]) for byte in stream)))

    def test_a_call_in_fragments(self) -> None:
        """Id and name come first, then the arguments piece by piece; each fragment is told with the read that brought it."""
        reading = decoder()
        self.assertEqual(
            [ModelAnswered("acme", "m1"), ToolCallDelta(0, "", "call_1", "read")],
            reading.feed(chunk(part(0, "call_1", "read", ""), role="assistant", content=None)),
        )
        self.assertEqual([ToolCallDelta(0, '{"pa')], reading.feed(chunk(part(0, arguments='{"pa'))))
        self.assertEqual([ToolCallDelta(0, 'th":"a"}')], reading.feed(chunk(part(0, arguments='th":"a"}'))))
        self.assertEqual(TurnFinished("tool_calls", "tool_calls"), reading.feed(chunk(finish="tool_calls") + DONE)[-1])
        self.assertEqual([], reading.close())

    def test_text_and_calls(self) -> None:
        """A model may say something before it calls."""
        events = decode(chunk(content="Let me look."), chunk(part(0, "a", "read", "{}")), chunk(finish="tool_calls"), DONE)
        self.assertEqual(["Let me look."], [event.text for event in events if type(event) is TextDelta])
        self.assertEqual([("read", "{}")], made(events))

    def test_fragments_of_several_calls_are_mixed(self) -> None:
        """The index tells them apart."""
        events = decode(
            chunk(part(0, "a", "read", ""), part(1, "b", "exec", "")),
            chunk(part(1, arguments='{"command"'), part(0, arguments='{"path"')),
            chunk(part(0, arguments=':"x"}')),
            chunk(part(1, arguments=':"ls"}'), finish="tool_calls"),
        )
        self.assertEqual([("read", '{"path":"x"}'), ("exec", '{"command":"ls"}')], made(events))
        self.assertEqual(["a", "b"], [event.id for event in events if type(event) is ToolCallDelta and event.id])

    def test_a_call_that_was_not_offered(self) -> None:
        """Without tools it is an error, as is text in its place."""
        reading = decoder(tools=False)
        reading.feed(chunk(part(0, "a", "read", "{}")))
        self.assertIn("called a tool", self.assertRaises(UpstreamError, reading.close).message)


class Quirks(SynchronousTestCase):
    """As imitators do it."""

    def test_the_table(self) -> None:
        """Each stream, and the calls that come of it."""
        one, two = ("read", '{"a":1}'), ("exec", '{"b":2}')
        for name, stream, expected in (
            ("whole calls in one chunk", chunk(part(0, "x", *one), part(1, "y", *two)), [one, two]),
            ("no index", chunk(part(None, "x", *one)) + chunk(part(None, "y", *two)), [one, two]),
            ("no index, fragments", chunk(part(None, "x", "read", '{"a"')) + chunk(part(None, None, None, ":1}")), [one]),
            ("no index, the id in each fragment", chunk(part(None, "x", "read", '{"a"')) + chunk(part(None, "x", None, ":1}")), [one]),
            ("no index, no id", chunk(part(None, None, *one), part(None, None, *two), part(None, None, *two)), [one, two, two]),
            ("no index, the id before the name", chunk(part(None, "x")) + chunk(part(None, None, *one)), [one]),
            ("no id", chunk(part(0, None, "read", "")) + chunk(part(0, None, None, '{"a":1}')), [one]),
            ("an empty id and name in later fragments", chunk(part(0, "x", "read", '{"a"')) + chunk(part(0, "", "", ":1}")), [one]),
            ("id and name in each fragment", chunk(part(0, "x", "read", '{"a"')) + chunk(part(0, "x", "read", ":1}")), [one]),
            ("a new id in each fragment", chunk(part(0, "x", "read", '{"a"')) + chunk(part(0, "y", None, ":1}")), [one]),
            ("every call has the index 0", chunk(part(0, "x", *one)) + chunk(part(0, "y", *two)) + chunk(part(0, "z", *two)), [one, two, two]),
            ("every call has the index 0, no ids", chunk(part(0, None, *one)) + chunk(part(0, None, *two)), [one, two]),
            ("every call has one id", chunk(part(0, "x", *one)) + chunk(part(1, "x", *two)), [one, two]),
            ("a negative index", chunk(part(-1, "x", *one)), [one]),
            ("indexes from 5", chunk(part(5, "x", *one)) + chunk(part(7, "y", *two)), [one, two]),
            ("arguments as an object", chunk(part(0, "x", "read", {"a": 1})), [("read", '{"a": 1}')]),
            ("no arguments", chunk(part(0, "x", "read")), [("read", "")]),
            ("the name after the arguments", chunk(part(0, "x", None, '{"a"')) + chunk(part(0, None, "read", ":1}")), [one]),
            ("an empty fragment at the end", chunk(part(0, "x", *one)) + chunk(part(1, None, None, "")), [one]),
            ("no name at all", chunk(part(0, "x", None, "{}")), [("unnamed", "{}")]),
            ("a function that is a text, and a call that is one", chunk({"index": 1, "function": "f"}, "x", part(0, "x", *one)), [one]),
            ("arguments that are no JSON", chunk(part(0, "x", "read", '{"a":')), [("read", '{"a":')]),
            ("as it was before tools", chunk(function_call={"name": "read"}) + chunk(function_call={"arguments": '{"a":1}'}), [one]),
            ("one call that is not in a list", chunk(tool_calls=part(0, "x", *one)), [one]),
            ("an id of a megabyte", chunk(part(0, "x" * 500_000, *one)), [one]),
        ):
            for finish in ("tool_calls", "stop", "eos"):
                events = decode(stream, chunk(finish=finish), DONE)
                self.assertEqual(expected, made(events), name)
                self.assertEqual(TurnFinished("tool_calls", finish), reason(events), name)
                self.assertTrue(all(len(event.id or "") <= 300 for event in events if type(event) is ToolCallDelta), name)
            self.assertEqual(TurnFinished("tool_calls"), reason(decode(stream, DONE)), name)

    def test_an_answer_that_was_cut(self) -> None:
        """It says so, although there are calls; an answer that breaks off is an error."""
        self.assertEqual("length", reason(decode(chunk(part(0, "x", "read", '{"a'), finish="length"))).reason)
        self.assertIn("broke off", self.assertRaises(UpstreamError, decode, chunk(part(0, "x", "read", "{}"))).message)

    def test_fragments_that_are_none(self) -> None:
        """What names nothing and says nothing is no call: the turn stops."""
        events = decode(chunk("x", part(0)), chunk(finish="tool_calls"), DONE)
        self.assertEqual(([], TurnFinished("stop", "tool_calls")), (made(events), reason(events)))

    def test_a_character_in_two_fragments(self) -> None:
        """Arguments are cut inside a surrogate pair; a half without its other half is U+FFFD."""
        first, second = json.dumps("\U0001f600")[1:-1][:6], json.dumps("\U0001f600")[1:-1][6:]

        def fragment(text: str, name: str = "") -> bytes:
            return chunk(part(0, "x", name, "HERE")).replace(b"HERE", text.encode())

        self.assertEqual([("say", "a\U0001f600b")], made(decode(fragment("a" + first, "say"), fragment(second + "b"), DONE)))
        self.assertEqual([("say", "a\ufffd")], made(decode(fragment("a" + first, "say"), DONE)))

    def test_a_completion_that_is_not_streamed(self) -> None:
        """Calls in place of the text."""
        message = {"role": "assistant", "content": None, "tool_calls": [part(None, "x", "read", '{"a":1}') | {"type": "function"}]}
        body = json.dumps({"choices": [{"message": message, "finish_reason": "tool_calls"}]}).encode()
        events = decoder().whole(body)
        self.assertEqual([("read", '{"a":1}')], made(events))
        self.assertEqual("tool_calls", reason(events).reason)
        empty = json.dumps({"choices": [{"message": {"content": None, "tool_calls": []}}]}).encode()
        self.assertRaises(UpstreamError, decoder().whole, empty)

    @given(st.lists(st.tuples(st.integers(0, 4), st.text(max_size=4)), max_size=20), st.booleans())
    @settings(settings.get_profile("calls"), max_examples=100)
    def test_any_mixture(self, written: list[tuple[int, str]], ascii_only: bool) -> None:
        """The arguments of each call come out as they went in, however the fragments are mixed."""
        written = [(index, text.encode("utf-8", "replace").decode()) for index, text in written]
        expected: dict[int, str] = {}
        pieces = []
        for index, text in written:
            first = index not in expected
            expected[index] = expected.get(index, "") + text
            fragment = part(index, f"id{index}" if first else None, f"tool{index}" if first else None, text)
            body = {"choices": [{"delta": {"tool_calls": [fragment]}}]}
            pieces.append(b"data: " + json.dumps(body, ensure_ascii=ascii_only).encode() + b"\n\n")
        events = decode(chunk(content=""), *pieces, chunk(finish="stop"))
        self.assertEqual([(f"tool{index}", text) for index, text in expected.items()], made(events))


class Bounds(SynchronousTestCase):
    """U21: what is too much ends the turn with an error."""

    def test_ten_thousand_calls(self) -> None:
        """At once, and one after the other."""
        for stream in (chunk(*(part(None, None, "f", "{}") for _ in range(10_000))), b"".join(chunk(part(None, None, "f")) for _ in range(10_000))):
            self.assertIn(f"more than {calls.MAX_CALLS} times", self.assertRaises(UpstreamError, decode, stream).message)

    def test_a_huge_index(self) -> None:
        """Nothing is made room for."""
        for index in (1024, 10**9, 10**30):
            self.assertIn("index", self.assertRaises(UpstreamError, decode, chunk(part(index, "x", "f", "{}")), DONE).message)

    def test_endless_arguments(self) -> None:
        """One call has a megabyte, also before it has a name; all together have what an answer may have."""
        for name in ("f", None):
            reading, fed = decoder(), 0
            reading.feed(chunk(part(0, "x", name)))
            while not reading.done:
                reading.feed(chunk(part(0, None, None, "x" * 100_000)))
                fed += 100_000
                self.assertLess(fed, calls.MAX_ARGUMENTS + 200_000)
            self.assertIn("1 MiB", self.assertRaises(UpstreamError, reading.close).message)
        reading, count = decoder(), 0
        while not reading.done:
            reading.feed(chunk(part(count, f"x{count}", "f", "x" * 900_000)))
            count += 1
            self.assertLess(count, 12)
        self.assertIn("longer than", self.assertRaises(UpstreamError, reading.close).message)

    def test_nested_arguments(self) -> None:
        """An object without a bottom is no chunk at all; the calls beside it are read."""
        deep = b'data: {"choices":[{"delta":{"tool_calls":[{"function":{"name":"f","arguments":' + b'{"a":' * 100_000 + b"\n\n"
        self.assertEqual([("g", "{}")], made(decode(deep, chunk(part(0, "x", "g", "{}")), DONE)))
