"""The CLI's client: the conversation as a script, and the whole of it against the real door in memory."""

from __future__ import annotations

import json
from typing import Any

import txaio
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.test import iosim
from twisted.trial.unittest import SynchronousTestCase

from mayros.ws.client import CallFailed, Conversation, call
from tests.helpers import TOKEN
from tests.test_ws_protocol import Doors

CHALLENGE = {"type": "event", "event": "connect.challenge", "payload": {"nonce": "n", "ts": 1}}


class ConversationTests(SynchronousTestCase):
    """Frames in, frames out."""

    def setUp(self) -> None:
        self.sent: list[Any] = []
        self.events: list[tuple[str, Any]] = []
        self.talk = Conversation({"minProtocol": 3}, "agent", {"message": "hi"}, lambda name, payload: self.events.append((name, payload)))
        self.talk.send = lambda data: self.sent.append(json.loads(data))

    def hear(self, **frame: Any) -> None:
        """A frame of the gateway; `to` answers the request of that number."""
        number = frame.pop("to", None)
        if number is not None:
            frame = {"type": "res", "id": self.sent[number]["id"], **frame}
        self.talk.received(json.dumps(frame).encode())

    def test_a_call(self) -> None:
        """Challenge, connect, hello, request, accepted, events, final."""
        self.hear(**CHALLENGE)
        self.assertEqual([("connect", {"minProtocol": 3})], [(frame["method"], frame["params"]) for frame in self.sent])
        self.hear(to=0, ok=True, payload={"type": "hello-ok"})
        self.assertEqual(("agent", {"message": "hi"}), (self.sent[1]["method"], self.sent[1]["params"]))
        self.hear(to=1, ok=True, payload={"status": "accepted"})
        self.hear(type="event", event="agent", payload={"stream": "assistant"}, seq=1)
        self.assertNoResult(self.talk.done)
        self.hear(to=1, ok=True, payload={"status": "ok"})
        self.assertEqual({"status": "ok"}, self.successResultOf(self.talk.done))
        self.assertEqual([("agent", {"stream": "assistant"})], self.events)

    def test_a_refused_connect(self) -> None:
        """The gateway's own words."""
        self.hear(**CHALLENGE)
        self.hear(to=0, ok=False, error={"code": "NOT_PAIRED", "message": "device identity required", "details": {"code": "X"}})
        error = self.failureResultOf(self.talk.done, CallFailed).value
        self.assertEqual(("NOT_PAIRED", "device identity required", {"code": "X"}), (error.code, error.message, error.details))
        self.assertEqual(1, len(self.sent))

    def test_a_failed_run(self) -> None:
        """The error, with the payload that came along."""
        self.hear(**CHALLENGE)
        self.hear(to=0, ok=True, payload={})
        self.hear(to=1, ok=False, payload={"status": "error"}, error={"code": "UNAVAILABLE", "message": "no model"})
        error = self.failureResultOf(self.talk.done, CallFailed).value
        self.assertEqual(("no model", {"status": "error"}), (str(error), error.payload))

    def test_what_cannot_be_read(self) -> None:
        """Ends the call."""
        for payload in (b"garbage", b"[]", b'{"type":5}', b'{"type":"res","id":"1","ok":false,"error":{}}'):
            talk = Conversation({}, "health", {})
            talk.received(payload)
            self.failureResultOf(talk.done, CallFailed)

    def test_answers_to_nobody(self) -> None:
        """Unknown ids, unknown types and a second challenge are ignored."""
        self.hear(**CHALLENGE)
        self.hear(**CHALLENGE)
        self.hear(type="res", id="other", ok=True, payload={})
        self.hear(type="res", id=5, ok=True)
        self.hear(type="news")
        self.assertEqual(1, len(self.sent))
        self.assertNoResult(self.talk.done)


class MemoryEndpoint:
    """Connects to a site in memory."""

    def __init__(self, doors: Doors) -> None:
        self.doors = doors
        self.pump: Any = None

    def connect(self, factory: Any) -> Deferred[Any]:
        client, server = factory.buildProtocol(None), self.doors.world.harness.site.buildProtocol(None)
        self.client = client
        there = iosim.FakeTransport(server, isServer=True, peerAddress=_Loopback())
        self.pump = iosim.connect(server, there, client, iosim.FakeTransport(client, isServer=False))
        return succeed(client)


class _Loopback:
    host, port, type = "127.0.0.1", 40_000, "TCP"


class CallTests(SynchronousTestCase):
    """`call` against the door."""

    def setUp(self) -> None:
        self.doors = Doors(self)
        self.world, self.clock = self.doors.world, self.doors.world.clock
        self.endpoint = MemoryEndpoint(self.doors)

    def call(self, method: str, params: Any, **options: Any) -> Deferred[Any]:
        """A call that is under way."""
        options = {"token": TOKEN, "endpoint": self.endpoint, "scopes": ["operator.read", "operator.write"], **options}
        work = Deferred.fromCoroutine(call(self.clock, "ws://127.0.0.1:18789/", method=method, params=params, **options))
        self.settle()
        return work

    def settle(self) -> None:
        """Let both sides say what they have to."""
        if self.endpoint.pump is not None:
            self.endpoint.pump.flush()

    def test_health(self) -> None:
        """One call, and the connection is closed properly."""
        self.assertEqual("main", self.successResultOf(self.call("health", {}))["defaultAgentId"])
        self.assertEqual(0, self.doors.factory.open)

    def test_agent(self) -> None:
        """The events as they come, then the second answer."""
        heard: list[Any] = []
        work = self.call("agent", {"message": "hi", "idempotencyKey": "k"}, on_event=lambda name, payload: heard.append((name, payload)))
        self.world.provider.say("one")
        self.settle()
        self.assertNoResult(work)
        self.assertEqual("one", heard[-1][1]["data"]["delta"])
        self.world.provider.stop()
        self.settle()
        self.assertEqual("one", self.successResultOf(work)["result"]["payloads"][0]["text"])

    def test_a_wrong_token(self) -> None:
        """The gateway's error."""
        error = self.failureResultOf(self.call("health", {}, token="wrong"), CallFailed).value
        self.assertEqual("INVALID_REQUEST", error.code)
        self.assertIn("token mismatch", error.message)

    def test_no_answer_in_time(self) -> None:
        """The time limit is for everything together; the connection is dropped."""
        work = self.call("agent", {"message": "hi", "idempotencyKey": "k"}, timeout=5)
        self.clock.advance(5)
        self.settle()
        self.assertEqual("The gateway gave no answer within 5 s.", self.failureResultOf(work, CallFailed).value.message)
        self.assertEqual(0, self.doors.factory.open)

    def test_cancelling(self) -> None:
        """Closes the connection; the run goes on."""
        work = self.call("agent", {"message": "hi", "idempotencyKey": "k"})
        work.cancel()
        self.settle()
        self.failureResultOf(work, CancelledError)
        self.assertEqual((0, 1), (self.doors.factory.open, self.world.harness.runs.live()))

    def test_the_gateway_stops(self) -> None:
        """A connection that is closed from the other side is an error that says why."""
        work = self.call("agent", {"message": "hi", "idempotencyKey": "k"})
        self.world.gateway.broadcaster.shutdown()
        self.settle()
        self.assertIn("(1012): service restart", self.failureResultOf(work, CallFailed).value.message)

    def test_a_refused_upgrade(self) -> None:
        """An HTTP error instead of a 101."""
        self.world.gateway.broadcaster.stopping = True
        error = self.failureResultOf(self.call("health", {}), CallFailed).value
        self.assertIn("503", error.message)

    def test_nobody_is_there(self) -> None:
        """One line that names the address, without credentials."""

        class Nobody:
            def connect(self, factory: Any) -> Deferred[Any]:
                return fail(ConnectionRefusedError())

        url = "ws://user:secret@127.0.0.1:1/?token=secret"
        work = Deferred.fromCoroutine(call(self.clock, url, method="health", params={}, endpoint=Nobody()))
        error = self.failureResultOf(work, CallFailed).value
        self.assertTrue(error.message.startswith("Cannot reach a gateway at ws://127.0.0.1:1/: Connection was refused"), error.message)

    def test_urls(self) -> None:
        """What is no URL of a gateway is said at once; IPv6 addresses are written with brackets."""
        for url in ("http://127.0.0.1/", "127.0.0.1:18789", "ws://"):
            self.failureResultOf(Deferred.fromCoroutine(call(self.clock, url, method="health", params={})), ValueError)
        work = self.call("health", {}, endpoint=self.endpoint)
        self.successResultOf(work)
        six = MemoryEndpoint(self.doors)
        Deferred.fromCoroutine(call(self.clock, "ws://[::1]:18789/", token=TOKEN, method="health", params={}, endpoint=six))
        self.assertIn(b"Host: [::1]:18789\r\n", six.client.http_request_data)


class TimerTests(SynchronousTestCase):
    """The client's timers."""

    def test_timers_run_on_the_given_clock(self) -> None:
        """Nothing touches the global reactor."""
        clock = Clock()
        self.patch(txaio.config, "loop", None)
        work = Deferred.fromCoroutine(call(clock, "ws://127.0.0.1:1/", method="health", params={}, endpoint=Silent(), timeout=3))
        clock.advance(3)
        self.failureResultOf(work, CallFailed)
        self.assertEqual([], clock.getDelayedCalls())


class Silent:
    """A gateway that never answers the connection."""

    def connect(self, factory: Any) -> Deferred[Any]:
        return Deferred()
