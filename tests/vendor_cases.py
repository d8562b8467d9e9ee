"""What upstream servers do wrong (table 4c, U01-U24), the same for each vendor's adapter: a test module says what its vendor's bytes look like.

Use it as `from tests import vendor_cases` and `class Faults(vendor_cases.Faults): vendor = vendor_cases.Vendor(...)`: imported by name the class
would be run by itself.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.models import Limits, Model, Provider
from mayros.core.ports import ModelRequest, Sampling, ToolSpec
from mayros.errors import ContextLengthExceeded, GatewayError, InsufficientQuota, RateLimited, UpstreamError, UpstreamRefused, UpstreamTimeout
from mayros.events import Event, ModelAnswered, TextDelta, ToolCallDelta, TurnFinished, Usage
from mayros.messages import Message, pack
from mayros.net.http import Origin
from mayros.providers.adapter import HttpAdapter
from mayros.providers.reading import TEXT_LIMIT
from tests.upstream import Endpoint

KEY = "sk-live/0123456789+abcdef"
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\n\r\n"
ANSWERED = ModelAnswered("acme", "m1")
TOOL = ToolSpec("read", "Read a file.", {"type": "object", "properties": {"path": {"type": "string"}}})


def event(body: object, name: str = "") -> bytes:
    """Any JSON as one server-sent event; bytes stay as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + data + b"\n\n"


@dataclass
class Vendor:
    """What the bytes of one vendor look like; all but the last four are server-sent events.

    `begin`: before the first text; `text(t)`: one delta of text, `t` as it is in JSON (so escapes stay); `reason(usage)`: why it stopped (it was
    through), with what it used, a JSON value that may be nonsense; `end`: what follows then; `error(message)`: a failure of the server in the
    stream, one that another model may be tried for; `call(n, arguments)`: the whole call number n of `read`.

    `whole`: JSON answers to a plain request that are none; `too_long`: refusals (status, body) of a prompt that does not fit; `refused(message)`:
    the body of a refusal; `usage`: what `reason` is given usually.
    """

    adapter: type[HttpAdapter]
    api: str
    begin: bytes
    text: Callable[[bytes], bytes]
    reason: Callable[[Any], bytes]
    end: bytes
    error: Callable[[str], bytes]
    call: Callable[[int, str], bytes]
    whole: Sequence[object]
    too_long: Sequence[tuple[int, object]]
    refused: Callable[[str], object]
    usage: Any


def provider(api: str, **more: Any) -> Provider:
    """A provider with a key."""
    usual = {"base_url": "http://127.0.0.1/v1", "headers": {}, "auth_header": True, "max_connections": 4}
    return Provider(**{"id": "acme", "api": api, "key": KEY, "limits": Limits(10.0, 60.0, 30.0), **usual, **more})


def request(of: Provider, sampling: Sampling | None = None, messages: Sequence[Message] = (), system: str = "Be brief.", **more: Any) -> ModelRequest:
    """A turn; of one user message, unless there are `messages`. `more`: fields of the model."""
    usual = {"id": "m1", "context_window": 8192, "max_tokens": 4096, "input": ("text",), "tools": True, "reasoning": False, "compat": {}}
    model = Model(of, **{"name": "M", **usual, **more})
    return ModelRequest(model, system, [pack(one) for one in messages or [Message("user", "Hé")]], sampling or Sampling(), "run-7")


def text(events: Sequence[Event]) -> str:
    """The answer's text."""
    return "".join(event.text for event in events if type(event) is TextDelta)


def reply(status: int, body: bytes | object = b"", *headers: str) -> bytes:
    """A whole HTTP answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return "\r\n".join([f"HTTP/1.1 {status} X", f"Content-Length: {len(data)}", *headers, "", ""]).encode() + data


class WithServer(SynchronousTestCase):
    """Base: an adapter with a server in memory and a clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.server = Endpoint()

    def make(self, kind: type[HttpAdapter], of: Provider) -> HttpAdapter:
        """The adapter for the server."""
        limits = of.limits
        self.origin = Origin(
            self.server,
            b"Host: x\r\n",
            self.clock,
            base=b"/v1",
            connect_timeout=limits.connect,
            first_byte_timeout=limits.first_byte,
            idle_timeout=limits.idle,
            max_connections=of.max_connections,
        )
        self.of = of
        self.adapter = kind(of, self.origin, now=lambda: 1_700_000_000.0)
        return self.adapter

    def ask(self, asked: ModelRequest) -> Deferred[Any]:
        """Start a turn; its batches are collected in `batches`."""
        batches: list[list[Event]] = []
        self.batches = batches

        async def run() -> None:
            async with aclosing(self.adapter.stream(asked)) as stream:
                async for batch in stream:
                    batches.append(batch)

        turn = Deferred.fromCoroutine(run())
        self.addCleanup(self.quit, turn)
        return turn

    @staticmethod
    def quit(turn: Deferred[Any]) -> None:
        """Leave no turn behind."""
        if not turn.called:
            turn.addErrback(lambda failure: failure.trap(CancelledError) and None)
            turn.cancel()

    def failed(self, turn: Deferred[Any], said: bytes, hang_up: bool = False) -> GatewayError:
        """The turn with this reply ends with an error that has no key in it; its socket is closed or clean."""
        self.server.say(said)
        if hang_up:
            self.server.hang_up()
        error = self.failureResultOf(turn, GatewayError).value
        self.assertNotIn(KEY, str(error))
        self.assertNotIn("0123456789", str(error))
        self.assertEqual(self.origin._free, self.of.max_connections)
        assert isinstance(error, GatewayError)
        return error

    @property
    def events(self) -> list[Event]:
        """What has come of the last turn."""
        return [event for batch in self.batches for event in batch]


class Faults(WithServer):
    """All rows; a subclass says the vendor."""

    vendor: ClassVar[Vendor]

    def setUp(self) -> None:
        super().setUp()
        self.make(self.vendor.adapter, provider(self.vendor.api))

    def turn(self, *tools: ToolSpec) -> Deferred[Any]:
        """Start a turn."""
        return self.ask(msgspec.structs.replace(request(self.of), tools=tools))

    def fails(self, said: bytes, hang_up: bool = False) -> GatewayError:
        """See `failed`."""
        return self.failed(self.turn(), said, hang_up)

    def answer(self, *texts: bytes, usage: Any = None) -> bytes:
        """The events of a whole answer."""
        return self.vendor.begin + b"".join(map(self.vendor.text, texts)) + self.vendor.reason(usage or self.vendor.usage) + self.vendor.end

    def test_a_good_answer(self) -> None:
        """For comparison: the text, what it used, the end; byte by byte the same events."""
        told = []
        for size in (1 << 20, 1):
            turn = self.turn()
            self.server.say(SSE)
            body = self.answer(b"a", b"b")
            for at in range(0, len(body), size):
                if not turn.called:
                    self.server.say(body[at : at + size])
            self.server.hang_up()
            self.successResultOf(turn)
            told.append(self.events)
        self.assertEqual(told[0], told[1])
        self.assertEqual([ANSWERED, TextDelta("a"), TextDelta("b")], told[0][:3])
        self.assertEqual([Usage, TurnFinished], [type(event) for event in told[0][3:]])
        self.assertEqual("stop", told[0][-1].reason)

    def test_no_connection(self) -> None:
        """U01, U02: refused, or closed at once: another model may be tried."""
        self.server.error = ConnectionRefusedError()
        error = self.failureResultOf(self.turn(), UpstreamError).value
        self.assertEqual((502, True), (error.status, error.fallback))
        self.server.error = None
        turn = self.turn()
        self.server.hang_up()
        self.assertTrue(self.failureResultOf(turn, UpstreamError).value.fallback)

    def test_silence(self) -> None:
        """U03, U04: before the head, and after the first text, which is kept."""
        turn = self.turn()
        self.clock.advance(60)
        self.assertEqual(504, self.failureResultOf(turn, UpstreamTimeout).value.status)
        turn = self.turn()
        self.server.say(SSE + self.vendor.begin + self.vendor.text(b"a"))
        self.clock.advance(30)
        self.failureResultOf(turn, UpstreamTimeout)
        self.assertEqual("a", text(self.events))
        self.assertTrue(all(wire.aborted for wire in self.server.wires))

    def test_broken_off(self) -> None:
        """U05, U07: by a reset and by a clean end; the text before it was given out."""
        for reason in (ConnectionLost(), None):
            turn = self.turn()
            self.server.say(SSE + self.vendor.begin + self.vendor.text(b"a"))
            self.server.hang_up(reason)
            self.assertEqual(502, self.failureResultOf(turn, UpstreamError).value.status)
            self.assertEqual([ANSWERED, TextDelta("a")], self.events)

    def test_no_last_event(self) -> None:
        """U06: the reason was there, the end is missing: nothing was lost."""
        for ending in ("close", "break", "silence"):
            turn = self.turn()
            self.server.say(SSE + self.vendor.begin + self.vendor.text(b"a") + self.vendor.reason(self.vendor.usage))
            if ending == "silence":
                self.clock.advance(30)
            else:
                self.server.hang_up(ConnectionLost() if ending == "break" else None)
            self.successResultOf(turn)
            self.assertEqual("a", text(self.events))
            self.assertIs(type(self.events[-1]), TurnFinished)

    def test_garbage(self) -> None:
        """U08: between events it is skipped, alone it is no answer."""
        junk = (
            b': hi\n\nx\n\ndata: {\n\ndata: 5\n\ndata: [1]\n\nevent: y\ndata: {}\n\ndata: {"type": "new", "x": {}}\n\ndata: '
            + b"[" * 50_000
            + b"\n\n"
        )
        turn = self.turn()
        self.server.say(SSE + junk + self.vendor.begin + junk + self.vendor.text(b"a") + junk + self.vendor.reason(None) + junk + self.vendor.end)
        self.server.hang_up()
        self.successResultOf(turn)
        self.assertEqual("a", text(self.events))
        self.assertEqual(502, self.fails(SSE + junk, hang_up=True).status)

    def test_a_line_without_end(self) -> None:
        """U09: the socket is closed when one event is over 1 MiB."""
        turn = self.turn()
        self.server.say(SSE)
        for _ in range(17):
            self.server.say(b"x" * 65_536)
        self.failureResultOf(turn, UpstreamError)
        self.assertTrue(self.server.wires[-1].aborted)

    def test_not_a_stream(self) -> None:
        """U10, U19, U23, U24, and an answer without a body."""
        as_json = "Content-Type: application/json"
        for said in (
            reply(200, b"<html>", "Content-Type: text/html"),
            *(reply(200, body, as_json) for body in (b"{}", b"{", b"[]", b"null", b"", *self.vendor.whole)),
            reply(200, gzip.compress(b"0" * 1_000_000), "Content-Type: text/event-stream", "Content-Encoding: gzip"),
            reply(200, b"", "Content-Type: text/event-stream"),
            reply(200, b"", "Content-Length: 5"),
            reply(204),
            b"HTTP/1.1 banana\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"X-Long: aaaaaaaaaaaaaaaa\r\n" * 10_000,
        ):
            error = self.fails(said)
            self.assertEqual((502, "upstream_error", True), (error.status, error.code, error.fallback), said[:200])

    def test_rate_limits(self) -> None:
        """U11: seconds, a date, junk."""
        for value, seconds in (("7", 7), ("0.2", 1), ("99999", 3600), ("Tue, 14 Nov 2023 22:13:30 GMT", 10), ("soon", None), ("-5", None)):
            error = self.fails(reply(429, self.vendor.refused("slow down"), f"Retry-After: {value}"))
            self.assertIs(type(error), RateLimited)
            self.assertEqual((seconds, True), (error.retry_after, error.fallback), value)
        for status, said in ((429, "check your plan and billing details"), (402, "pay")):
            self.assertIs(type(self.fails(reply(status, self.vendor.refused(said)))), InsufficientQuota)

    def test_statuses(self) -> None:
        """U12, U13: which error, whether another model may be tried, and no key in it."""
        for status, kind, fallback in (
            *((status, UpstreamError, True) for status in (500, 502, 503, 529, 409)),
            (408, UpstreamTimeout, True),
            *((status, UpstreamRefused, True) for status in (401, 403, 404)),
            *((status, UpstreamRefused, False) for status in (400, 422, 418)),
        ):
            error = self.fails(reply(status, self.vendor.refused(f"no\x00 {KEY} way")))
            self.assertIs(type(error), kind, status)
            self.assertEqual(fallback, error.fallback, status)
            self.assertIn("no *** way", error.message)
        for said in (KEY, "sk-live%2F0123456789%2Babcdef", f"Bearer {KEY}", "x" * 290 + KEY):
            self.fails(reply(401, self.vendor.refused(said)))

    def test_too_long(self) -> None:
        """A prompt that does not fit is one error, however it is said."""
        for status, body in (*self.vendor.too_long, (413, {})):
            self.assertIs(type(self.fails(reply(status, body))), ContextLengthExceeded, body)

    def test_long_errors(self) -> None:
        """U14: at most 64 KiB are read."""
        turn = self.turn()
        self.server.say(b"HTTP/1.1 500 X\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(2):
            self.server.say(b"a\r\n\x1b[31mb " * 8192)
        error = self.failureResultOf(turn, UpstreamError).value
        self.assertTrue(self.server.wires[-1].aborted)
        self.assertLess(len(error.message), 400)
        self.assertTrue(error.message.isprintable())

    def test_characters(self) -> None:
        """U15, U17: cut anywhere, halves of pairs, bytes that are no text."""
        for pieces, whole in (
            (("é😀".encode(),), "é😀"),
            ((rb"a\ud83d", rb"\ude00b"), "a😀b"),
            ((rb"a\ud83d", b"b"), "a\ufffdb"),
            ((rb"a\ud83d",), "a\ufffd"),
            ((b"a\xff\xc3",), "a\ufffd\ufffd"),
        ):
            turn = self.turn()
            self.server.say(SSE)
            for byte in self.answer(*pieces):
                self.clock.advance(1)
                if not turn.called:
                    self.server.say(bytes([byte]))
            self.server.hang_up()
            self.successResultOf(turn)
            self.assertEqual(whole, text(self.events))

    def test_redirects(self) -> None:
        """U16: never followed."""
        for status in (301, 302, 303, 307, 308):
            error = self.fails(reply(status, b"", "Location: http://169.254.169.254/"))
            self.assertEqual((502, True), (error.status, error.fallback))

    def test_without_end(self) -> None:
        """U18: an answer that never ends is stopped."""
        turn = self.turn()
        self.server.say(SSE + self.vendor.begin)
        endless = self.vendor.text(b"x" * 1_000_000)
        for _ in range(TEXT_LIMIT // 1_000_000 + 1):
            if not turn.called:
                self.server.say(endless)
        self.assertIn("longer than", self.failureResultOf(turn, UpstreamError).value.message)
        self.assertTrue(self.server.wires[-1].aborted)

    def test_an_error_in_the_stream(self) -> None:
        """U20: after a 200; the text before it is kept, the socket closed, no key shown; also as the first event."""
        for before in (self.vendor.begin + self.vendor.text(b"a"), b""):
            turn = self.turn()
            self.server.say(SSE + before + self.vendor.error(f"exploded {KEY}") + self.vendor.text(b"no"))
            error = self.failureResultOf(turn, UpstreamError).value
            self.assertIn("exploded ***", error.message)
            self.assertTrue(error.fallback)
            self.assertEqual("a" if before else "", text(self.events))
            self.assertNotIn(TurnFinished, [type(event) for event in self.events])
            self.assertTrue(self.server.wires[-1].aborted)

    def test_calls(self) -> None:
        """U21: broken arguments go on to the loop, 10,000 calls do not; nor does a call where none was offered."""
        turn = self.turn(TOOL)
        self.server.say(SSE + self.vendor.begin + self.vendor.call(0, '{"path": "a"}') + self.vendor.reason(None) + self.vendor.end)
        self.server.hang_up()
        self.successResultOf(turn)
        parts = [event for event in self.events if type(event) is ToolCallDelta]
        self.assertEqual(({"path": "a"}, 0, "read"), (json.loads("".join(part.arguments for part in parts)), parts[0].index, parts[0].name))
        self.assertTrue(parts[0].id)
        self.assertEqual("tool_calls", self.events[-1].reason)
        turn = self.turn(TOOL)
        self.server.say(SSE + self.vendor.begin + b"".join(self.vendor.call(n, "{}") for n in range(10_000)))
        self.failureResultOf(turn, UpstreamError)
        turn = self.turn()
        self.server.say(SSE + self.vendor.begin + self.vendor.call(0, "{}"))
        self.assertIn("offered none", self.failureResultOf(turn, UpstreamError).value.message)

    def test_usage_that_makes_no_sense(self) -> None:
        """U22: it counts as nothing, and the answer stands."""
        for usage in ("many", {}, [], 5, dict.fromkeys(self.vendor.usage, -5), dict.fromkeys(self.vendor.usage, "5")):
            turn = self.turn()
            self.server.say(SSE + self.vendor.begin + self.vendor.text(b"a") + self.vendor.reason(usage) + self.vendor.end)
            self.server.hang_up()
            self.successResultOf(turn)
            self.assertEqual("a", text(self.events))
            (used,) = [event for event in self.events if type(event) is Usage]
            self.assertEqual(Usage(), used, usage)

    def test_closing_stops_the_model(self) -> None:
        """Cancelling a run closes the socket at once, before the head and while text comes."""
        for said in (b"", SSE + self.vendor.begin + self.vendor.text(b"a")):
            turn = self.turn()
            if said:
                self.server.say(said)
            turn.cancel()
            self.failureResultOf(turn, CancelledError)
            self.assertTrue(self.server.wires[-1].aborted)
            self.assertEqual(4, self.origin._free)
