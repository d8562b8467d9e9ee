"""Frames of the Gateway protocol: what is a request, what is wrong with one, and how answers look."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from mayros.errors import InvalidRequest, QueueFull
from mayros.wire import frames
from mayros.wire.frames import NotARequest, NotJson
from mayros.ws.methods.agent import AgentParams
from mayros.ws.methods.history import PreviewParams


def request(**changes: Any) -> bytes:
    """A request, changed."""
    return json.dumps({"type": "req", "id": "1", "method": "health", **changes}).encode()


class RequestTests(SynchronousTestCase):
    """Reading what clients send."""

    def test_a_request(self) -> None:
        """Id, method and undecoded parameters; unknown keys, such as a trace header, are ignored."""
        got = frames.parse_request(request(params={"probe": True}, traceparent="00-1"))
        self.assertEqual(("1", "health", b'{"probe": true}'), (got.id, got.method, bytes(got.params)))

    def test_parameters_may_be_left_out(self) -> None:
        """No params means none."""
        self.assertEqual(b"{}", bytes(frames.parse_request(request()).params))

    def test_binary_frames_hold_utf8_json(self) -> None:
        """A binary message is read like a text message, and must be UTF-8."""
        self.assertEqual("é", frames.parse_request('{"type":"req","id":"é","method":"m"}'.encode(), binary=True).id)
        self.assertRaises(NotJson, frames.parse_request, b'{"type":"req","id":"1","method":"m","params":{"a":"\xff"}}', True)

    def test_what_is_no_json(self) -> None:
        """Garbage, NaN, a byte order mark, lone surrogates, half a value, nothing."""
        for payload in (b"", b"hello", b'{"a":', request()[:-1], b"\xef\xbb\xbf" + request(), b'{"type":"req","id":"\\ud800","method":"m"}', b"NaN"):
            self.assertRaises(NotJson, frames.parse_request, payload)
        self.assertRaises(NotJson, frames.parse_request, request().replace(b"}", b',"params":NaN}'))

    def test_nesting_is_bounded(self) -> None:
        """64 levels are read, 65 are not; brackets inside strings do not count; a hostile depth is refused at once."""

        def nested(depth: int) -> bytes:
            return b'{"type":"req","id":"1","method":"m","params":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"

        self.assertEqual("m", frames.parse_request(nested(64)).method)
        for depth in (65, 100_000):
            self.assertRaises(NotJson, frames.parse_request, nested(depth))
        text = '[{"' * 500 + "\\"
        self.assertEqual({"a": text}, msgspec.json.decode(frames.parse_request(request(params={"a": text})).params))

    def test_a_string_without_end_costs_one_pass(self) -> None:
        """The depth check does not look at the same bytes again and again."""
        self.assertRaises(NotJson, frames.parse_request, b"[" * 65 + b'"' + b'\\"' * 1_000_000)

    def test_a_crowd_of_values_is_refused(self) -> None:
        """A frame of more than 200,000 strings and containers is not worth reading."""
        self.assertRaises(NotJson, frames.parse_request, b'{"type":"req","id":"1","method":"m","params":[' + b"{}," * 200_001 + b"1]}")

    def test_duplicate_keys(self) -> None:
        """The last one counts, as in every JSON parser."""
        self.assertEqual("2", frames.parse_request(b'{"type":"req","id":"1","id":"2","method":"m"}').id)

    def test_what_is_no_request(self) -> None:
        """The error has the validator's words, and the frame's own id where it has one."""
        cases: list[tuple[Any, Any, str]] = [
            ([], "invalid", "must be object"),
            (5, "invalid", "must be object"),
            ({"type": "event", "event": "x"}, "invalid", "must have required property 'id'; must have required property 'method'; "),
            ({"type": "res", "id": "a", "method": "m"}, "a", "at /type: must be equal to constant"),
            ({"type": "req", "id": 7, "method": "m"}, 7, "at /id: must be string"),
            ({"type": "req", "id": "", "method": "m"}, "", "at /id: must NOT have fewer than 1 characters"),
            ({"type": "req", "id": "a", "method": 1}, "a", "at /method: must be string"),
            ({"type": "req", "id": "x" * 1025, "method": "m"}, "invalid", "at /id: must NOT have more than 1024 characters"),
            ({"type": "req", "id": {}, "method": "m"}, "invalid", "at /id: must be string"),
        ]
        for value, own, words in cases:
            error = self.assertRaises(NotARequest, frames.parse_request, json.dumps(value).encode())
            self.assertEqual(own, error.id)
            self.assertIn(f"invalid request frame: {words}", error.message)


class ParameterTests(SynchronousTestCase):
    """Reading the parameters of methods."""

    def refused(self, params: Any) -> str:
        """What is wrong with parameters of `agent`."""
        raw = msgspec.Raw(params if isinstance(params, bytes) else json.dumps(params).encode())
        return self.assertRaises(InvalidRequest, frames.parse_params, AgentParams, raw, "agent").message

    def test_missing_and_unknown_keys_are_named_together(self) -> None:
        """The message is the one that clients of this protocol know."""
        self.assertEqual(
            "invalid agent params: must have required property 'message'; must have required property 'idempotencyKey'; "
            "at root: unexpected property 'bad'",
            self.refused({"bad": 1}),
        )

    def test_prototype_tricks_are_unknown_keys(self) -> None:
        """`__proto__` is a name like another."""
        self.assertIn("at root: unexpected property '__proto__'", self.refused({"message": "a", "idempotencyKey": "k", "__proto__": {}}))

    def test_wrong_types_and_values(self) -> None:
        """Each says where it is and what it must be, never the value."""
        good = {"message": "hi", "idempotencyKey": "k"}
        for change, words in (
            ({"timeout": "soon"}, "at /timeout: must be integer"),
            ({"timeout": -1}, "at /timeout: must be >= 0"),
            ({"message": ""}, "at /message: must NOT have fewer than 1 characters"),
            ({"label": "x" * 65}, "at /label: must NOT have more than 64 characters"),
            ({"deliver": 1}, "at /deliver: must be boolean"),
            ({"attachments": {}}, "at /attachments: must be array"),
        ):
            self.assertEqual(f"invalid agent params: {words}", self.refused({**good, **change}))
        for keys, words in (([], "at /keys: must NOT have fewer than 1 items"), ([5], "at /keys/0: must be string")):
            error = self.assertRaises(InvalidRequest, frames.parse_params, PreviewParams, msgspec.Raw(json.dumps({"keys": keys}).encode()), "x")
            self.assertEqual(f"invalid x params: {words}", error.message)

    def test_a_million_small_values(self) -> None:
        """A long text is taken; a structure as long is refused before it is built."""
        good = {"message": "x" * 3_000_000, "idempotencyKey": "k"}
        self.assertEqual(3_000_000, len(frames.parse_params(AgentParams, msgspec.Raw(json.dumps(good).encode()), "agent").message))
        self.assertEqual("invalid agent params: at /attachments: is too large", self.refused({**good, "attachments": [1] * 500_000}))
        text = json.dumps({**good, "attachments": [{"content": "x" * 3_000_000}]}).encode()
        params = frames.parse_params(AgentParams, msgspec.Raw(text), "agent", large=("attachments",))
        self.assertEqual(3_000_000, len((params.attachments or ())[0].content or ""))

    def test_digests_of_requests(self) -> None:
        """Whatever the order of the keys; with a parameter left out as if it had not been sent."""
        one, other = msgspec.Raw(b'{"b":1,"a":{"d":1,"c":2}}'), msgspec.Raw(b'{"a":{"c":2,"d":1},"big":"...","b":1}')
        self.assertEqual(frames.canonical(one), frames.canonical(other, without="big"))
        self.assertEqual(frames.canonical(one), frames.canonical(one, without="big"))

    def test_parameters_that_are_no_object(self) -> None:
        """A list is refused; null is the empty object."""
        self.assertEqual("invalid agent params: must be object", self.refused([1]))
        self.assertIn("must have required property 'message'", self.refused(None))

    def test_text_that_cannot_be_decoded(self) -> None:
        """A lone surrogate escape is refused, not passed on."""
        self.assertEqual("invalid agent params: is not valid JSON", self.refused(b'{"message":"\\ud800 x","idempotencyKey":"k"}'))

    def test_many_unknown_keys_make_a_short_message(self) -> None:
        """A hostile frame is not quoted at length."""
        self.assertLess(len(self.refused({"k" * 10_000 + str(number): 1 for number in range(100)})), 1_500)

    def test_connect_ignores_unknown_keys(self) -> None:
        """Newer clients say more about themselves."""
        raw = {
            "minProtocol": 3,
            "maxProtocol": 4,
            "client": {"id": "cli", "version": "1", "platform": "linux", "mode": "cli", "buildId": "b"},
            "x": 1,
        }
        self.assertEqual("cli", frames.parse_connect(msgspec.Raw(json.dumps(raw).encode())).client.id)

    def test_canonical_parameters(self) -> None:
        """Order and blanks do not make another request."""
        self.assertEqual(
            frames.canonical(msgspec.Raw(b'{"b":1,"a":{"d":2,"c":3}}')), frames.canonical(msgspec.Raw(b'{ "a": {"c":3,"d":2}, "b": 1 }'))
        )

    def test_secrets_are_not_shown(self) -> None:
        """The parameters of connect can be logged."""
        self.assertNotIn("s3cret", repr(frames.ConnectAuth(token="s3cret")))


class AnswerTests(SynchronousTestCase):
    """Writing what clients get."""

    def test_responses(self) -> None:
        """ok and payload; null is a payload."""
        self.assertEqual({"type": "res", "id": "1", "ok": True, "payload": None}, json.loads(frames.response("1", None)))

    def test_failures(self) -> None:
        """The error, and a payload only where there is one."""
        shape = frames.error_shape(QueueFull())
        self.assertEqual(
            {
                "type": "res",
                "id": 7,
                "ok": False,
                "error": {
                    "code": "UNAVAILABLE",
                    "message": "Too many runs are waiting. Try again shortly.",
                    "details": {"code": "queue_full"},
                    "retryable": True,
                    "retryAfterMs": 1000,
                },
            },
            json.loads(frames.failure(7, shape)),
        )
        self.assertEqual({"a": 1}, json.loads(frames.failure("1", shape, {"a": 1}))["payload"])

    def test_events(self) -> None:
        """An event for one client has no number."""
        self.assertEqual({"type": "event", "event": "tick", "payload": {"ts": 1}}, json.loads(frames.event("tick", {"ts": 1})))

    def test_websocket_frames(self) -> None:
        """The three forms of length, and a message in parts."""
        self.assertEqual(b"\x81\x05hello", frames.text_frame(b"he", b"llo"))
        self.assertEqual(b"\x81\x7e\x00\x7e", frames.text_frame(b"x" * 126)[:4])
        self.assertEqual(b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00", frames.text_frame(b"x" * 65_536)[:10])
