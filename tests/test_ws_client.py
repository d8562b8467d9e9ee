"""Our own client: what is said on a socket as a script, connections that are lost and made anew, and all of it against the real door in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import txaio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.test import iosim
from twisted.trial.unittest import SynchronousTestCase

from mayros.errors import StartError
from mayros.ws.client import call, connect
from mayros.ws.connection import Connection
from mayros.ws.conversation import CallFailed, Conversation
from mayros.ws.identity import OWN, Identity
from mayros.ws.inbox import Event, Inbox, Missed
from tests.helpers import TOKEN
from tests.test_ws_protocol import Doors

CHALLENGE = {"type": "event", "event": "connect.challenge", "payload": {"nonce": "n", "ts": 1}}
HELLO = {"type": "hello-ok", "policy": {"tickIntervalMs": 30_000}}


class Gateway:
    """The other side of one conversation, as a script. `sent` is what the client said, `left` how it went."""

    def __init__(self, clock: Clock | None = None, hello: Any = HELLO) -> None:
        self.clock = clock or Clock()
        self.hello = hello
        self.sent: list[Any] = []
        self.events: list[Event] = []
        self.gone: list[Exception] = []
        self.left: Any = None
        self.talk = Conversation(
            self.clock,
            lambda nonce, ts_ms: {"nonce": nonce, "ts": ts_ms},
            lambda event, size: self.events.append(event),
            self.gone.append,
        )
        self.talk.link = self

    def send(self, payload: bytes) -> None:
        """Of Link: the client speaks."""
        self.sent.append(json.loads(payload))

    def close(self, code: int, reason: str) -> None:
        """Of Link: the client says goodbye."""
        self.left = (code, reason)
        self.talk.lost(CallFailed("UNAVAILABLE", "closed"))

    def abort(self) -> None:
        """Of Link: the client cuts the connection."""
        self.close(0, "cut")

    def say(self, **frame: Any) -> None:
        """A frame of the gateway; `to` answers the request of that number."""
        number = frame.pop("to", None)
        if number is not None:
            frame = {"type": "res", "id": self.sent[number]["id"], **frame}
        self.talk.received(json.dumps(frame).encode())

    def welcome(self) -> None:
        """Challenge and hello."""
        self.say(**CHALLENGE)
        self.say(to=0, ok=True, payload=self.hello)


class ConversationTests(SynchronousTestCase):
    """Frames in, frames out."""

    def setUp(self) -> None:
        self.gateway = Gateway()
        self.talk = self.gateway.talk

    def test_a_request(self) -> None:
        """Challenge, connect, hello, request, accepted, events, final."""
        self.gateway.say(**CHALLENGE)
        self.assertEqual([("connect", {"nonce": "n", "ts": 1})], [(frame["method"], frame["params"]) for frame in self.gateway.sent])
        self.gateway.say(to=0, ok=True, payload=HELLO)
        self.assertEqual(HELLO, self.successResultOf(self.talk.ready))
        answer = self.talk.ask("agent", {"message": "hi"}, final=True)
        self.assertEqual(("agent", {"message": "hi"}), (self.gateway.sent[1]["method"], self.gateway.sent[1]["params"]))
        self.gateway.say(to=1, ok=True, payload={"status": "accepted"})
        self.gateway.say(type="event", event="agent", payload={"stream": "assistant"}, seq=7)
        self.assertNoResult(answer)
        self.gateway.say(to=1, ok=True, payload={"status": "ok"})
        self.assertEqual({"status": "ok"}, self.successResultOf(answer))
        self.assertEqual([Event("agent", {"stream": "assistant"}, 7)], self.gateway.events)

    def test_the_first_answer_is_enough(self) -> None:
        """Who does not ask for the final answer gets "accepted"; the second answer is nobody's."""
        self.gateway.welcome()
        answer = self.talk.ask("agent", {})
        self.gateway.say(to=1, ok=True, payload={"status": "accepted"})
        self.assertEqual({"status": "accepted"}, self.successResultOf(answer))
        self.gateway.say(to=1, ok=True, payload={"status": "ok"})

    def test_requests_side_by_side(self) -> None:
        """Answers come in any order."""
        self.gateway.welcome()
        first, second = self.talk.ask("status"), self.talk.ask("health")
        self.gateway.say(to=2, ok=True, payload="second")
        self.gateway.say(to=1, ok=True, payload="first")
        self.assertEqual(("first", "second"), (self.successResultOf(first), self.successResultOf(second)))

    def test_a_refused_connect(self) -> None:
        """The gateway's own words; nothing else was asked."""
        self.gateway.say(**CHALLENGE)
        self.gateway.say(to=0, ok=False, error={"code": "NOT_PAIRED", "message": "pairing required", "details": {"requestId": "r"}})
        error = self.failureResultOf(self.talk.ready, CallFailed).value
        self.assertEqual(("NOT_PAIRED", "pairing required", {"requestId": "r"}, False), (error.code, str(error), error.details, error.passing))
        self.assertEqual((1, []), (len(self.gateway.sent), self.gateway.gone))

    def test_a_failed_run(self) -> None:
        """The error, with the payload that came along, and when to try again."""
        self.gateway.welcome()
        answer = self.talk.ask("agent", {}, final=True)
        error = {"code": "UNAVAILABLE", "message": "no model", "retryable": True, "retryAfterMs": 1500}
        self.gateway.say(to=1, ok=False, payload={"status": "error"}, error=error)
        failure = self.failureResultOf(answer, CallFailed).value
        self.assertEqual(("no model", {"status": "error"}, True, 1.5), (str(failure), failure.payload, failure.passing, failure.retry_after))

    def test_what_cannot_be_read(self) -> None:
        """Ends everything that waits, and the connection."""
        for payload in (b"garbage", b"[]", b'{"type":5}', b'{"type":"res","id":"1","ok":false,"error":{}}', b'{"type":"event","payload":"\xff"}'):
            gateway = Gateway()
            gateway.welcome()
            answer = gateway.talk.ask("health")
            gateway.talk.received(payload)
            self.assertIn("cannot be read", str(self.failureResultOf(answer, CallFailed).value))
            self.assertEqual(((4000, "unreadable frame"), 1), (gateway.left, len(gateway.gone)))
            self.assertEqual([], gateway.clock.getDelayedCalls())

    def test_a_strange_hello(self) -> None:
        """A hello that is no object ends it; a strange tick interval in one is not believed."""
        self.gateway.hello = []
        self.gateway.welcome()
        self.failureResultOf(self.talk.ready, CallFailed)
        for tick in (None, "soon", -5, 0, 10**12):
            gateway = Gateway(hello={"policy": {"tickIntervalMs": tick}})
            gateway.welcome()
            self.successResultOf(gateway.talk.ready)
            self.assertTrue(1 <= gateway.clock.getDelayedCalls()[0].getTime() <= 3600)

    def test_answers_to_nobody(self) -> None:
        """Unknown ids, unknown types and a second challenge are ignored; events before the hello are not for the program."""
        self.gateway.say(type="event", event="agent", payload={})
        self.gateway.say(**CHALLENGE)
        self.gateway.say(**CHALLENGE)
        self.gateway.say(type="res", id="other", ok=True, payload={})
        self.gateway.say(type="res", id=5, ok=True)
        self.gateway.say(type="news")
        self.assertEqual((1, []), (len(self.gateway.sent), self.gateway.events))
        self.assertNoResult(self.talk.ready)

    def test_the_socket_is_lost(self) -> None:
        """Everything that waits fails with the reason; asking afterwards fails too."""
        self.gateway.welcome()
        answer = self.talk.ask("health")
        self.talk.lost(CallFailed("UNAVAILABLE", "gone"))
        self.assertEqual("gone", str(self.failureResultOf(answer, CallFailed).value))
        self.assertRaises(CallFailed, self.talk.ask, "health")
        self.successResultOf(self.talk.closed())

    def test_silence(self) -> None:
        """A gateway from which nothing comes for two ticks is left, with the code that other clients use; any message keeps it."""
        self.gateway.welcome()
        answer = self.talk.ask("agent.wait")
        self.gateway.clock.advance(30)
        self.gateway.say(type="event", event="tick", payload={"ts": 1})
        self.gateway.clock.advance(30)
        self.assertNoResult(answer)
        self.gateway.clock.advance(30)
        self.assertEqual((4000, "tick timeout"), self.gateway.left)
        self.assertTrue(self.failureResultOf(answer, CallFailed).value.passing)

    def test_bounds(self) -> None:
        """No more requests wait than make sense, and none is larger than the gateway takes."""
        self.gateway.welcome()
        self.assertRaises(CallFailed, self.talk.ask, "x", {"text": "x" * 26_214_400})
        waiting = [self.talk.ask("x") for _ in range(1024)]
        self.assertRaises(CallFailed, self.talk.ask, "x")
        waiting[0].cancel()
        self.failureResultOf(waiting[0], CancelledError)
        self.talk.ask("x")


class InboxTests(SynchronousTestCase):
    """Events for a slow reader."""

    def next(self, inbox: Inbox) -> Deferred[Any]:
        return Deferred.fromCoroutine(inbox.__anext__())

    def read(self, inbox: Inbox) -> list[Any]:
        """Everything that is there."""
        found = []
        while True:
            waiting = self.next(inbox)
            if not waiting.called:
                waiting.cancel()
                self.failureResultOf(waiting, CancelledError)
                return found
            found.append(self.successResultOf(waiting))

    def test_drops_the_oldest_and_says_so(self) -> None:
        """A reader that was slow gets how many are missing, then the newest in their order."""
        inbox = Inbox(lambda inbox: None, max_events=3)
        for number in range(5):
            inbox.put(Event("tick", number))
        self.assertEqual([Missed(2), Event("tick", 2), Event("tick", 3), Event("tick", 4)], self.read(inbox))
        inbox.put(Event("tick", 5))
        self.assertEqual([Event("tick", 5)], self.read(inbox))

    def test_bounded_in_bytes(self) -> None:
        """Large events count for what they are; the newest is kept whatever its size."""
        inbox = Inbox(lambda inbox: None, max_bytes=100)
        for size in (60, 60, 500):
            inbox.put(Event("agent", size), size)
        self.assertEqual([Missed(2), Event("agent", 500)], self.read(inbox))

    def test_waits(self) -> None:
        """The next event wakes its reader; a gap where the connection was lost is in its place."""
        inbox = Inbox(lambda inbox: None)
        waiting = self.next(inbox)
        self.failureResultOf(self.next(inbox), RuntimeError)
        inbox.put(Event("tick", 1))
        self.assertEqual(Event("tick", 1), self.successResultOf(waiting))
        inbox.put(Missed(None))
        inbox.put(Event("tick", 2))
        self.assertEqual([Missed(None), Event("tick", 2)], self.read(inbox))

    def test_a_dropped_gap(self) -> None:
        """Where a gap itself was dropped, the number is unknown."""
        inbox = Inbox(lambda inbox: None, max_events=1)
        inbox.put(Missed(None))
        inbox.put(Event("tick", 1))
        self.assertEqual([Missed(None), Event("tick", 1)], self.read(inbox))

    def test_the_end(self) -> None:
        """What is there is read first, then the error comes, once; without an error the iteration just ends."""
        inbox = Inbox(lambda inbox: None)
        inbox.put(Event("tick", 1))
        inbox.end(CallFailed("UNAVAILABLE", "gone"))
        self.assertEqual(Event("tick", 1), self.successResultOf(self.next(inbox)))
        self.failureResultOf(self.next(inbox), CallFailed)
        self.failureResultOf(self.next(inbox), StopAsyncIteration)

    def test_given_back(self) -> None:
        """Leaving the block ends it and tells the connection."""
        closed: list[Inbox] = []
        inbox = Inbox(closed.append)

        async def read() -> None:
            async with inbox:
                pass

        self.successResultOf(Deferred.fromCoroutine(read()))
        inbox.put(Event("tick", 1))
        self.assertEqual([inbox], closed)
        self.failureResultOf(self.next(inbox), StopAsyncIteration)


class ReconnectTests(SynchronousTestCase):
    """A connection whose gateway comes and goes."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.gateways: list[Gateway] = []
        self.refusals: list[CallFailed] = []

    async def dial(self, heard: Any, gone: Any) -> tuple[Conversation, Any]:
        """A new gateway, which welcomes at once; or the next refusal."""
        if self.refusals:
            raise self.refusals.pop(0)
        gateway = Gateway(self.clock, {"number": len(self.gateways), **HELLO})
        gateway.talk._heard, gateway.talk._gone = heard, gone
        self.gateways.append(gateway)
        gateway.welcome()
        return gateway.talk, await gateway.talk.ready

    def connected(self, chance: float = 0.0, **options: Any) -> Connection:
        """A connection to the first gateway."""
        connection = Connection(self.clock, self.dial, random=lambda: chance, **{"reconnect": True, **options})
        self.successResultOf(Deferred.fromCoroutine(connection.start()))
        return connection

    def lose(self) -> None:
        """The newest gateway's socket is lost."""
        self.gateways[-1].talk.lost(CallFailed("UNAVAILABLE", "The gateway closed the connection (1012): service restart.", passing=True))

    def ask(self, connection: Connection, method: str = "health", **options: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(connection.request(method, **options))

    def test_again(self) -> None:
        """What waited for an answer fails; what is asked meanwhile is asked of the next gateway; the events go on, with a gap."""
        connection = self.connected()
        events = connection.events()
        lost = self.ask(connection)
        self.lose()
        self.assertIn("service restart", str(self.failureResultOf(lost, CallFailed).value))
        self.assertFalse(connection.open)
        later = self.ask(connection, "status")
        self.clock.advance(0.5)
        self.assertEqual((True, 1), (connection.open, connection.hello["number"]))
        self.gateways[1].say(to=1, ok=True, payload="fine")
        self.assertEqual("fine", self.successResultOf(later))
        self.gateways[1].say(type="event", event="tick", payload={"ts": 1})
        found = [self.successResultOf(Deferred.fromCoroutine(events.__anext__())) for _ in range(2)]
        self.assertEqual([Missed(None), Event("tick", {"ts": 1})], found)

    def test_pauses(self) -> None:
        """0.5 s, doubled each time up to 30 s, and up to half shorter by chance; a connection that lasted begins with 0.5 s again."""
        for chance, factor in ((0.0, 1.0), (1.0, 0.5)):
            connection = self.connected(chance)
            self.refusals = [CallFailed("UNAVAILABLE", "Cannot reach it", passing=True) for _ in range(8)]
            self.lose()
            for pause in (0.5, 1, 2, 4, 8, 16, 30, 30):
                left = len(self.refusals)
                self.clock.advance(pause * factor - 0.01)
                self.assertEqual(left, len(self.refusals))
                self.clock.advance(0.01)
                self.assertEqual(left - 1, len(self.refusals))
            self.clock.advance(30 * factor)
            self.assertTrue(connection.open)
            self.gateways[-1].say(type="event", event="tick", payload={})
            self.clock.advance(30)
            self.lose()
            self.clock.advance(0.5)
            self.assertTrue(connection.open)
            connection.abort()

    def test_silence_is_a_loss(self) -> None:
        """A gateway that has fallen silent is left for a new connection."""
        connection = self.connected()
        self.clock.advance(30)
        self.clock.advance(30)
        self.assertEqual((4000, "tick timeout"), self.gateways[0].left)
        self.clock.advance(0.5)
        self.assertTrue(connection.open)

    def test_a_refusal_is_the_end(self) -> None:
        """What will not pass is said to everybody who waits, and nothing is tried again."""
        connection = self.connected()
        events = connection.events()
        self.refusals = [CallFailed("INVALID_REQUEST", "unauthorized: device token mismatch")]
        self.lose()
        waiting = self.ask(connection)
        self.clock.advance(0.5)
        self.assertIn("mismatch", str(self.failureResultOf(waiting, CallFailed).value))
        self.failureResultOf(self.ask(connection), CallFailed)
        self.successResultOf(Deferred.fromCoroutine(events.__anext__()))
        self.failureResultOf(Deferred.fromCoroutine(events.__anext__()), CallFailed)
        self.failureResultOf(Deferred.fromCoroutine(connection.events().__anext__()), StopAsyncIteration)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_the_gateway_says_when(self) -> None:
        """A pause that the gateway asks for is kept."""
        connection = self.connected()
        self.refusals = [CallFailed("INVALID_REQUEST", "retry later", passing=True, retry_after=300.0)]
        self.lose()
        self.clock.advance(0.5)
        self.clock.advance(299)
        self.assertFalse(connection.open)
        self.clock.advance(1)
        self.assertTrue(connection.open)

    def test_without_reconnect(self) -> None:
        """A lost connection stays lost, and says why."""
        connection = self.connected(reconnect=False)
        self.lose()
        self.assertIn("service restart", str(self.failureResultOf(self.ask(connection), CallFailed).value))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_time_limits(self) -> None:
        """Each request has one, also while there is no connection; its late answer is nobody's."""
        connection = self.connected()
        slow = self.ask(connection, timeout=5)
        self.gateways[0].say(type="event", event="tick", payload={})
        self.clock.advance(5)
        self.assertEqual("The gateway gave no answer within 5 s.", str(self.failureResultOf(slow, CallFailed).value))
        self.gateways[0].say(to=1, ok=True, payload="late")
        self.refusals = [CallFailed("UNAVAILABLE", "Cannot reach it", passing=True) for _ in range(9)]
        self.lose()
        waiting = self.ask(connection, timeout=5)
        self.clock.pump([1] * 5)
        self.assertIn("within 5 s", str(self.failureResultOf(waiting, CallFailed).value))

    def test_closing(self) -> None:
        """Closing while nothing is there ends the attempts, the iterations and who waits; closing twice is fine."""
        connection = self.connected()
        events = connection.events()
        self.lose()
        waiting = self.ask(connection)
        self.successResultOf(Deferred.fromCoroutine(connection.close()))
        self.successResultOf(Deferred.fromCoroutine(connection.close()))
        self.failureResultOf(waiting, CallFailed)
        self.successResultOf(Deferred.fromCoroutine(events.__anext__()))
        self.failureResultOf(Deferred.fromCoroutine(events.__anext__()), StopAsyncIteration)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_leaving(self) -> None:
        """The end of the block says goodbye; a cancelled one cuts the connection."""

        async def work(connection: Connection, waits: bool) -> None:
            async with connection:
                if waits:
                    await connection.request("health")

        self.successResultOf(Deferred.fromCoroutine(work(self.connected(), waits=False)))
        self.assertEqual((1000, ""), self.gateways[0].left)
        waiting = Deferred.fromCoroutine(work(self.connected(), waits=True))
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual((0, "cut"), self.gateways[1].left)
        self.assertEqual([], self.clock.getDelayedCalls())


class IdentityTests(SynchronousTestCase):
    """The files of a device."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()) / "identity"
        self.identity = Identity.open(str(self.folder), 1_700_000_000_000)

    def test_made_once(self) -> None:
        """The first use makes a key that other programs can read, for its owner only; later uses find it."""
        file = json.loads((self.folder / "device.json").read_text())
        self.assertEqual({"version", "deviceId", "publicKeyPem", "privateKeyPem", "createdAtMs"}, set(file))
        public: Any = load_pem_public_key(file["publicKeyPem"].encode())
        private: Any = load_pem_private_key(file["privateKeyPem"].encode(), None)
        raw = public.public_bytes_raw()
        self.assertEqual(raw, private.public_key().public_bytes_raw())
        self.assertEqual((1, hashlib.sha256(raw).hexdigest(), 1_700_000_000_000), (file["version"], file["deviceId"], file["createdAtMs"]))
        self.assertEqual(0o600, stat.S_IMODE((self.folder / "device.json").stat().st_mode))
        self.assertEqual(["device.json"], os.listdir(self.folder))
        self.assertEqual(self.identity.device_id, Identity.open(str(self.folder), 5).device_id)

    def test_the_signature(self) -> None:
        """It is over the eleven fields of version 3: scopes as sent, platform and family trimmed and in lower case."""
        device = self.identity.prove(
            client_id="cli",
            client_mode="cli",
            role="operator",
            scopes=("operator.write", "operator.read"),
            token="t",
            nonce="n",
            signed_at_ms=5,
            platform=" Linux ",
            device_family="ÄB",
        )
        raw = base64.urlsafe_b64decode(self.identity.public_key + "=")
        text = f"v3|{hashlib.sha256(raw).hexdigest()}|cli|cli|operator|operator.write,operator.read|5|t|n|linux|Äb"
        Ed25519PublicKey.from_public_bytes(raw).verify(base64.urlsafe_b64decode(f"{device['signature']}=="), text.encode())
        self.assertEqual((self.identity.device_id, 5, "n"), tuple(device[name] for name in ("id", "signedAt", "nonce")))

    def test_tokens(self) -> None:
        """Kept as other programs read them, under the gateway that gave them; a token that did not change is not written again."""
        self.identity.keep(OWN, "operator", "secret-one", ["operator.write", "operator.read"], 7)
        self.identity.keep("wss://far.example", "operator", "secret-two", ["operator.read"], 8)
        path = self.folder / "device-auth.json"
        file = json.loads(path.read_text())
        own = {"token": "secret-one", "role": "operator", "scopes": ["operator.read", "operator.write"], "updatedAtMs": 7}
        self.assertEqual((1, self.identity.device_id, {"operator": own}), (file["version"], file["deviceId"], file["tokens"]))
        self.assertEqual(0o600, stat.S_IMODE(path.stat().st_mode))
        written = path.stat().st_mtime_ns
        self.identity.keep(OWN, "operator", "secret-one", ["operator.read"], 9)
        self.assertEqual(written, path.stat().st_mtime_ns)
        again = Identity.open(str(self.folder), 5)
        far, near = again.token("wss://far.example", "operator"), again.token(OWN, "operator")
        assert far is not None
        assert near is not None
        self.assertEqual(("secret-two", "secret-one"), (far.token, near.token))
        self.assertNotIn("secret", repr(near))
        self.assertIsNone(again.token("wss://other.example", "operator"))
        self.assertIsNone(again.token(OWN, "node"))
        again.forget(OWN, "operator")
        again.forget(OWN, "operator")
        self.assertIsNone(again.token(OWN, "operator"))
        self.assertIsNotNone(again.token("wss://far.example", "operator"))

    def test_what_tokens_cover(self) -> None:
        """Admin stands for every scope, write for read, and read for itself."""
        asked = ("operator.admin", "operator.pairing", "operator.read", "operator.write")
        for scope, covered in (("operator.admin", asked), ("operator.write", asked[2:]), ("operator.read", asked[2:3])):
            self.identity.keep(OWN, "operator", f"token for {scope}", [scope], 1)
            token = self.identity.token(OWN, "operator")
            assert token is not None
            self.assertEqual(covered, tuple(scope for scope in asked if token.covers(scope)))

    def test_damaged_files(self) -> None:
        """A key that is none is said, and not replaced; damaged tokens, or another device's, are as good as none."""
        for text in ("", "{}", "[]", json.dumps({"version": 1, "deviceId": "", "publicKeyPem": "", "privateKeyPem": "x", "createdAtMs": 1})):
            folder = Path(self.mktemp())
            folder.mkdir()
            (folder / "device.json").write_text(text)
            error = self.assertRaises(StartError, Identity.open, str(folder), 1)
            self.assertIn("device.json", str(error))
            self.assertEqual(text, (folder / "device.json").read_text())
        for text in ("garbage", '{"version":1,"deviceId":"other","tokens":{"operator":{"token":"t","role":"operator","scopes":[],"updatedAtMs":1}}}'):
            (self.folder / "device-auth.json").write_text(text)
            self.assertIsNone(self.identity.token(OWN, "operator"))
        self.identity.keep(OWN, "operator", "t", [], 1)
        self.assertIsNotNone(self.identity.token(OWN, "operator"))


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


class DoorCase(SynchronousTestCase):
    """The real door in memory."""

    def setUp(self) -> None:
        self.doors = Doors(self)
        self.world, self.clock = self.doors.world, self.doors.world.clock
        self.endpoint = MemoryEndpoint(self.doors)

    def settle(self) -> None:
        """Let both sides say what they have to."""
        if self.endpoint.pump is not None:
            self.endpoint.pump.flush()


class CallTests(DoorCase):
    """`call` against the door."""

    def call(self, method: str, params: Any, **options: Any) -> Deferred[Any]:
        """A call that is under way."""
        options = {"token": TOKEN, "endpoint": self.endpoint, "scopes": ["operator.read", "operator.write"], **options}
        work = Deferred.fromCoroutine(call(self.clock, "ws://127.0.0.1:18789/", method, params, **options))
        self.settle()
        return work

    def agent(self, **options: Any) -> Deferred[Any]:
        return self.call("agent", {"message": "hi", "idempotencyKey": "k"}, expect_final=True, **options)

    def test_health(self) -> None:
        """One call, and the connection is closed properly."""
        self.assertEqual("main", self.successResultOf(self.call("health", {}))["defaultAgentId"])
        self.assertEqual(0, self.doors.factory.open)

    def test_agent(self) -> None:
        """The events as they come, then the second answer."""
        heard: list[Any] = []
        work = self.agent(on_event=lambda name, payload: heard.append((name, payload)))
        self.world.provider.say("one")
        self.clock.advance(0)
        self.settle()
        self.assertNoResult(work)
        deltas = [payload["data"]["delta"] for name, payload in heard if name == "agent" and payload["stream"] == "assistant"]
        self.assertEqual(["one"], deltas)
        self.world.provider.stop()
        self.settle()
        self.assertEqual("one", self.successResultOf(work)["result"]["payloads"][0]["text"])

    def test_a_wrong_token(self) -> None:
        """The gateway's error."""
        error = self.failureResultOf(self.call("health", {}, token="wrong"), CallFailed).value
        self.assertEqual("INVALID_REQUEST", error.code)
        self.assertIn("token mismatch", error.message)
        self.settle()
        self.assertEqual(0, self.doors.factory.open)

    def test_no_answer_in_time(self) -> None:
        """The time limit is for everything together; the connection is dropped."""
        work = self.agent(timeout=5)
        self.clock.advance(5)
        self.settle()
        self.assertEqual("The gateway gave no answer within 5 s.", self.failureResultOf(work, CallFailed).value.message)
        self.assertEqual(0, self.doors.factory.open)

    def test_cancelling(self) -> None:
        """Closes the connection; the run goes on."""
        work = self.agent()
        work.cancel()
        self.settle()
        self.failureResultOf(work, CancelledError)
        self.assertEqual((0, 1), (self.doors.factory.open, self.world.harness.runs.live()))

    def test_a_program_that_fails_on_an_event(self) -> None:
        """Its own error comes out of the call, and the connection is closed."""

        def fall(name: str, payload: Any) -> None:
            raise BrokenPipeError("nobody reads")

        work = self.agent(on_event=fall)
        self.settle()
        self.failureResultOf(work, BrokenPipeError)
        self.assertEqual(0, self.doors.factory.open)

    def test_the_gateway_stops(self) -> None:
        """A connection that is closed from the other side is an error that says why."""
        work = self.agent()
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
        work = Deferred.fromCoroutine(call(self.clock, url, "health", endpoint=Nobody()))
        error = self.failureResultOf(work, CallFailed).value
        self.assertTrue(error.message.startswith("Cannot reach a gateway at ws://127.0.0.1:1/: Connection was refused"), error.message)

    def test_urls(self) -> None:
        """What is no URL of a gateway is said at once, and not repeated; IPv6 addresses are written with brackets."""
        for url in ("http://user:secret@127.0.0.1/", "127.0.0.1:18789", "ws://"):
            error = self.failureResultOf(Deferred.fromCoroutine(call(self.clock, url, "health")), ValueError).value
            self.assertNotIn("secret", str(error))
        six = MemoryEndpoint(self.doors)
        Deferred.fromCoroutine(call(self.clock, "ws://[::1]:18789/", "health", token=TOKEN, endpoint=six))
        self.assertIn(b"Host: [::1]:18789\r\n", six.client.http_request_data)


class ConnectTests(DoorCase):
    """`connect` against the door."""

    def connect(self, **options: Any) -> Deferred[Connection]:
        options = {"token": TOKEN, "endpoint": self.endpoint, "scopes": ["operator.read", "operator.write"], **options}
        work = Deferred.fromCoroutine(connect(self.clock, "ws://127.0.0.1:18789/", **options))
        self.settle()
        return work

    def test_one_connection_for_many_requests(self) -> None:
        """The hello, answers side by side, events to iterate over, and a proper end."""
        connection = self.successResultOf(self.connect())
        self.assertEqual("main", connection.hello["snapshot"]["sessionDefaults"]["defaultAgentId"])
        events = connection.events()
        health, unknown = (Deferred.fromCoroutine(connection.request(method)) for method in ("health", "nosuch"))
        self.settle()
        self.assertTrue(self.successResultOf(health)["ok"])
        self.failureResultOf(unknown, CallFailed)
        self.clock.advance(30)
        self.settle()
        self.assertEqual("tick", self.successResultOf(Deferred.fromCoroutine(events.__anext__())).name)
        closing = Deferred.fromCoroutine(connection.close())
        self.settle()
        self.successResultOf(closing)
        self.assertEqual(0, self.doors.factory.open)

    def test_the_device(self) -> None:
        """It signs and is paired; the token it is given is enough without a secret, for the scopes it covers; one that is not taken is forgotten."""
        identity = Identity.open(self.mktemp(), 1)
        hello = self.successResultOf(self.connect(identity=identity, gateway=OWN)).hello
        kept = identity.token(OWN, "operator")
        assert kept is not None
        self.assertEqual((hello["auth"]["deviceToken"], ("operator.read", "operator.write")), (kept.token, kept.scopes))
        without: dict[str, Any] = {"identity": identity, "gateway": OWN, "token": None, "scopes": ["operator.admin", "operator.read"]}
        hello = self.successResultOf(self.connect(**without)).hello
        self.assertEqual(["operator.read"], hello["auth"]["scopes"])
        self.failureResultOf(self.connect(**{**without, "gateway": "wss://other.example"}), CallFailed)
        self.failureResultOf(self.connect(identity=identity, gateway=OWN, token="wrong"), CallFailed)
        self.assertEqual(kept, identity.token(OWN, "operator"))
        identity.keep(OWN, "operator", "made-up", ["operator.read"], 1)
        error = self.failureResultOf(self.connect(**without), CallFailed).value
        self.assertIn("device token mismatch", error.message)
        self.assertIsNone(identity.token(OWN, "operator"))

    def test_a_gateway_that_does_not_say_goodbye(self) -> None:
        """Closing does not wait for ever."""
        connection = self.successResultOf(self.connect())
        closing = Deferred.fromCoroutine(connection.close())
        self.clock.advance(3)
        self.successResultOf(closing)


class TimerTests(SynchronousTestCase):
    """The client's timers."""

    def test_timers_run_on_the_given_clock(self) -> None:
        """Nothing touches the global reactor."""
        clock = Clock()
        self.patch(txaio.config, "loop", None)
        work = Deferred.fromCoroutine(call(clock, "ws://127.0.0.1:1/", "health", endpoint=Silent(), timeout=3))
        clock.advance(3)
        self.failureResultOf(work, CallFailed)
        self.assertEqual([], clock.getDelayedCalls())

    def test_nobody_answers(self) -> None:
        """An attempt to connect has a limit of its own."""
        clock = Clock()
        self.patch(txaio.config, "loop", None)
        work = Deferred.fromCoroutine(connect(clock, "ws://127.0.0.1:1/", endpoint=Silent()))
        clock.advance(10)
        self.assertIn("ws://127.0.0.1:1/ gave no answer within 10 s", str(self.failureResultOf(work, CallFailed).value))
        self.assertEqual([], clock.getDelayedCalls())


class Silent:
    """A gateway that never answers the connection."""

    def connect(self, factory: Any) -> Deferred[Any]:
        return Deferred()
