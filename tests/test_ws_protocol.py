"""The Autobahn glue behind the real site: raw bytes over in-memory transports, no sockets."""

from __future__ import annotations

import json
import struct
from typing import Any

import txaio
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.address import Address, AddressRules
from mayros.wire.frames import MAX_BUFFERED, MAX_PAYLOAD, text_frame
from mayros.ws.protocol import CLOSE_SECONDS, ControlFactory, ControlResource
from tests.helpers import chat, post
from tests.test_ws import READ, WRITE, World, agent_params, connect_params

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def upgrade(*lines: str, method: str = "GET", version: str = "HTTP/1.1", without: str = "", path: str = "/any/path?x=1") -> bytes:
    """An upgrade request with more lines, or without those that start with `without`."""
    usual = (
        "Host: 127.0.0.1:18789",
        "Upgrade: websocket",
        "Connection: keep-alive, Upgrade",
        f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Version: 13",
    )
    kept = [line for line in usual if not (without and line.startswith(without))]
    return "\r\n".join([f"{method} {path} {version}", *kept, *lines, "", ""]).encode()


def frame(payload: bytes, opcode: int = 1, fin: bool = True, rsv: int = 0, masked: bool = True, length: bytes | None = None) -> bytes:
    """A client's frame; `length` replaces the length bytes (mask bit left out)."""
    size = len(payload)
    short = bytes([size]) if size < 126 else b"\x7e" + struct.pack("!H", size) if size < 65_536 else b"\x7f" + struct.pack("!Q", size)
    head = bytearray([(fin << 7) | (rsv << 4) | opcode]) + bytearray(length or short)
    if not masked:
        return bytes(head) + payload
    head[1] |= 0x80
    mask = b"abcd"
    return bytes(head) + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


class Doors:
    """A gateway in memory whose site has both doors. `released` counts the sockets that were given back."""

    def __init__(self, test: SynchronousTestCase, changes: dict[str, Any] | None = None) -> None:
        self.world = World(test, changes)
        harness = self.world.harness
        # Autobahn's timers run on what txaio is told.
        test.patch(txaio.config, "loop", harness.clock)
        self.rules = AddressRules.build(harness.settings.config.gateway, ["127.0.0.1"])
        self.factory = ControlFactory(self.world.gateway, harness.clock)
        self.released = 0
        control = ControlResource(self.factory, self.address_of, self.origin_ok, self.taken)
        harness.site.resource._control = control  # type: ignore[attr-defined]

    def address_of(self, request: Any) -> Address:
        return self.rules.of(request.getClientAddress().host, request.requestHeaders.getRawHeaders)

    def origin_ok(self, request: Any, address: Address) -> bool:
        headers = request.requestHeaders.getRawHeaders
        allowed = self.world.harness.settings.config.gateway.control_ui.allowed_origins
        return self.rules.origin_ok(headers(b"origin")[0].decode("latin-1"), headers, address, allowed)

    def taken(self, request: Any) -> Any:
        given_back = request.channel.hand_over()

        def gone() -> None:
            self.released += 1
            given_back()

        return gone


class GlueTests(SynchronousTestCase):
    """The real site, Autobahn, and raw bytes over in-memory transports."""

    def setUp(self) -> None:
        self.start()

    def start(self, changes: dict[str, Any] | None = None) -> None:
        """A new gateway."""
        self.doors = Doors(self, changes)
        self.world, self.factory = self.doors.world, self.doors.factory

    def dial(self, data: bytes = b"", peer: str = "127.0.0.1") -> Any:
        return self.world.harness.dial(data, peer)

    def open(self, *scopes: str, protocol: int = 4) -> Any:
        """A raw client after hello-ok, with nothing unread."""
        client = self.dial(upgrade())
        self.payloads(client)
        self.send(
            client, {"type": "req", "id": "c", "method": "connect", "params": connect_params(*scopes, minProtocol=protocol, maxProtocol=protocol)}
        )
        self.assertTrue(self.payloads(client)[0]["ok"])
        return client

    def send(self, client: Any, value: Any) -> None:
        client.send(frame(json.dumps(value).encode()))

    def frames(self, client: Any) -> list[tuple[int, bytes]]:
        """Opcode and payload of the frames since the last look; a 101 before them is skipped. What was sent at once has been read by then."""
        self.world.harness.settle(client)
        data = client.received
        if data.startswith(b"HTTP/1.1 101"):
            data = data.partition(b"\r\n\r\n")[2]
        client.received = b""
        found = []
        while data:
            size, start = data[1], 2
            if size == 126:
                size, start = struct.unpack("!H", data[2:4])[0], 4
            elif size == 127:
                size, start = struct.unpack("!Q", data[2:10])[0], 10
            found.append((data[0] & 0x0F, data[start : start + size]))
            data = data[start + size :]
        return found

    def payloads(self, client: Any) -> list[Any]:
        """The JSON of the text frames since the last look."""
        return [json.loads(payload) for opcode, payload in self.frames(client) if opcode == 1]

    def closed(self, client: Any) -> tuple[int, bytes] | None:
        """Code and reason of the close frame."""
        for opcode, payload in self.frames(client):
            if opcode == 8:
                return struct.unpack("!H", payload[:2])[0], payload[2:]
        return None

    def test_both_doors(self) -> None:
        """On one port and any path: a WebSocket client connects and runs an agent while an HTTP client gets its answer."""
        client = self.open(WRITE)
        self.send(client, {"type": "req", "id": "1", "method": "agent", "params": agent_params()})
        self.world.provider.say("hello")
        self.world.provider.stop()
        client.pump.flush()
        answers = [got["payload"]["status"] for got in self.payloads(client) if got["type"] == "res"]
        self.assertEqual(["accepted", "ok"], answers)
        http = self.dial(post(chat()))
        self.world.provider.say("hi")
        self.world.provider.stop()
        http.pump.flush()
        self.assertEqual("hi", http.answer().json["choices"][0]["message"]["content"])

    def test_the_handshake_as_the_standard_has_it(self) -> None:
        """101 with the right key, no extension, no sub-protocol, no name of the library (W36)."""
        client = self.dial(upgrade("Sec-WebSocket-Extensions: permessage-deflate", "Sec-WebSocket-Protocol: chat", "Authorization: Bearer x"))
        head = client.received.partition(b"\r\n\r\n")[0].lower()
        self.assertIn(b"http/1.1 101", head)
        self.assertIn(b"sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=", head)
        for absent in (b"sec-websocket-extensions", b"sec-websocket-protocol", b"server:"):
            self.assertNotIn(absent, head)
        self.assertEqual("connect.challenge", self.payloads(client)[0]["event"])

    def test_bad_upgrades(self) -> None:
        """Each is an HTTP error, never a 101 (W01-W05)."""
        for data, statuses in (
            (upgrade(without="Sec-WebSocket-Key"), {400}),
            (upgrade("Sec-WebSocket-Key: short", without="Sec-WebSocket-Key"), {400}),
            (upgrade(without="Sec-WebSocket-Version"), {400, 426}),
            (upgrade("Sec-WebSocket-Version: 99", without="Sec-WebSocket-Version"), {400, 426}),
            (upgrade("Sec-WebSocket-Version: 8", without="Sec-WebSocket-Version"), {400, 426}),
            (upgrade("Content-Length: 0", method="POST"), {400, 405}),
            (upgrade(without="Connection"), {400}),
            (upgrade(without="Host"), {400}),
            (upgrade(version="HTTP/1.0"), {400, 426}),
            (upgrade("Content-Length: 5") + b"hello", {400}),
            (upgrade("Transfer-Encoding: chunked") + b"0\r\n\r\n", {400}),
        ):
            client = self.dial(data)
            self.assertIn(client.answer().status, statuses)
        self.assertEqual(0, self.factory.open)
        self.open()

    def test_origins(self) -> None:
        """Every page is judged before the 101, whatever it will call itself and whatever secret it has (W31, W32)."""
        for origin in ("https://evil.example", "null", "junk", "http://127.0.0.1.evil.example", "file://"):
            self.assertEqual(403, self.dial(upgrade(f"Origin: {origin}")).answer().status)
        self.assertEqual(403, self.dial(upgrade("Origin: http://127.0.0.1:18789", "Origin: https://evil.example")).answer().status)
        self.assertIn(b" 101 ", self.dial(upgrade("Origin: http://localhost:5173")).received)

    def test_behind_a_trusted_proxy(self) -> None:
        """The proxy's user comes in without a secret; one who may not use the gateway gets 403, as he does over HTTP."""
        auth = {"mode": "trusted-proxy", "trustedProxy": {"userHeader": "X-User", "allowUsers": ["ann"]}}
        self.start({"gateway": {"auth": auth, "trustedProxies": ["10.0.0.1"]}})
        for lines, peer, outcome in (
            (("X-User: ann",), "10.0.0.1", "hello-ok"),
            (("X-User: ann",), "203.0.113.9", "device identity required"),
            ((), "10.0.0.1", "device identity required"),
            (("X-User: ann", "X-User: ann"), "10.0.0.1", "device identity required"),
        ):
            client = self.dial(upgrade("X-Forwarded-For: 203.0.113.5", *lines), peer)
            self.payloads(client)
            self.send(client, {"type": "req", "id": "c", "method": "connect", "params": connect_params(READ, auth={})})
            answer = self.payloads(client)[0]
            self.assertEqual(outcome, answer["payload"]["type"] if answer["ok"] else answer["error"]["message"], (lines, peer))
        self.assertEqual(403, self.dial(upgrade("X-User: eve"), "10.0.0.1").answer().status)

    def test_listed_origins(self) -> None:
        """What the configuration lists comes in, also what is no http address."""
        self.start({"gateway": {"controlUi": {"allowedOrigins": ["chrome-extension://abc", "null"]}}})
        for origin in ("chrome-extension://abc", "null"):
            self.assertIn(b" 101 ", self.dial(upgrade(f"Origin: {origin}")).received)

    def test_violations_of_the_standard(self) -> None:
        """Each ends the connection with 1002, 1007 or 1009 (W06-W11, W15)."""
        for data, codes in (
            (frame(b"{}", masked=False), {1002}),
            (frame(b"{}", rsv=1), {1002}),
            (frame(b"{}", rsv=4), {1002}),
            (frame(b"{}", opcode=3), {1002}),
            (frame(b"{}", opcode=11), {1002}),
            (frame(b"", opcode=9, fin=False), {1002}),
            (frame(b"x" * 126, opcode=9), {1002}),
            (frame(b"{}", opcode=0), {1002}),
            (frame(b"{", fin=False) + frame(b"}"), {1002}),
            (frame(b"", length=b"\x7f" + struct.pack("!Q", 1 << 63)), {1002, 1009}),
            (frame(b"", length=b"\x7e\x00\x05"), {1002}),
            (frame(b"", length=b"\x7f" + struct.pack("!Q", 1 << 40)), {1009}),
            (frame(b"\xff\xfe"), {1007}),
            (frame(b"\xed\xa0\x80"), {1007}),
        ):
            client = self.open()
            client.send(data)
            closed = self.closed(client)
            self.assertIsNotNone(closed, data[:20])
            self.assertIn(closed[0] if closed else 0, codes, data[:20])
            self.world.harness.advance(CLOSE_SECONDS + 1, client)
            self.assertTrue(client.lost)
        self.assertEqual(0, self.factory.open)

    def test_sizes(self) -> None:
        """64 KiB before hello-ok, 25 MiB after it, in one frame or in fragments (W12, W13)."""
        early = self.dial(upgrade())
        self.payloads(early)
        early.send(frame(b"", length=b"\x7f" + struct.pack("!Q", 70_000)))
        self.assertEqual(1009, (self.closed(early) or (0,))[0])
        fragments = self.dial(upgrade())
        self.payloads(fragments)
        fragments.send(frame(b" " * 40_000, fin=False) + frame(b" " * 40_000, opcode=0))
        self.assertEqual(1009, (self.closed(fragments) or (0,))[0])
        late = self.open()
        late.send(frame(b"", length=b"\x7f" + struct.pack("!Q", MAX_PAYLOAD + 1)))
        self.assertEqual(1009, (self.closed(late) or (0,))[0])
        large = self.open()
        self.send(large, {"type": "req", "id": "1", "method": "health", "params": {"x": "y" * 200_000}})
        self.assertTrue(self.payloads(large)[0]["ok"])

    def test_fragments(self) -> None:
        """A message in pieces, split inside a character, and a crowd of empty pieces (W14, W15)."""
        client = self.open()
        message = '{"type":"req","id":"é","method":"health"}'.encode()
        cut = message.index("é".encode()) + 1
        client.send(frame(message[:cut], fin=False) + frame(b"", opcode=0, fin=False) * 1_000 + frame(message[cut:], opcode=0))
        self.assertEqual("é", self.payloads(client)[0]["id"])

    def test_binary_messages(self) -> None:
        """JSON in a binary frame is answered (W40)."""
        client = self.open()
        client.send(frame(b'{"type":"req","id":"b","method":"health"}', opcode=2))
        self.assertEqual("b", self.payloads(client)[0]["id"])

    def test_bytes_with_the_upgrade(self) -> None:
        """Frames sent before the 101 are ignored or answered; nothing breaks (W41)."""
        client = self.dial(upgrade() + frame(b'{"type":"req","id":"1","method":"health"}'))
        self.assertIn(b"101", client.received)
        self.world.harness.advance(15, client)
        self.assertEqual([], self.flushLoggedErrors())
        self.open()

    def test_silent_sockets(self) -> None:
        """500 sockets that never say hello are all gone after the limit, and the gateway answers meanwhile (W33, W34)."""
        silent = [self.dial(upgrade()) for _ in range(500)]
        self.assertEqual(500, self.factory.open)
        client = self.open()
        self.send(client, {"type": "req", "id": "1", "method": "health"})
        self.assertTrue(self.payloads(client)[0]["ok"])
        self.world.clock.advance(10)
        self.world.harness.advance(CLOSE_SECONDS + 1, *silent)
        self.assertTrue(all(one.lost for one in silent))
        self.assertEqual((1, 500), (self.factory.open, self.doors.released))
        self.assertEqual((1000, b""), self.closed(silent[0]))

    def test_pings(self) -> None:
        """Ours come every 30 s and who does not answer is dropped; the client's are answered (W17, W18)."""
        client = self.open()
        client.send(frame(b"abc", opcode=9))
        self.assertIn((10, b"abc"), self.frames(client))
        self.world.harness.advance(31, client)
        (ping,) = [payload for opcode, payload in self.frames(client) if opcode == 9]
        client.send(frame(ping, opcode=10))
        self.world.harness.advance(29, client)
        self.assertFalse(client.lost)
        self.world.harness.advance(31, client)
        self.world.harness.advance(31, client)
        self.assertTrue(client.lost)

    def test_a_refused_connect(self) -> None:
        """The answer, then a close frame with the same words, at most 120 bytes of them, then the end."""
        client = self.dial(upgrade())
        self.payloads(client)
        self.send(client, {"type": "req", "id": "1", "method": "connect", "params": connect_params(auth={"token": "wrong"})})
        answer, close = self.frames(client)
        reason = json.loads(answer[1])["error"]["message"]
        self.assertEqual(struct.pack("!H", 1008) + reason.encode()[:120], close[1])
        client.send(frame(close[1], opcode=8))
        self.assertTrue(client.lost)

    def test_a_client_that_never_reads(self) -> None:
        """What waits for it is bounded; in the end it is closed 1008 (W35)."""
        client = self.open(READ)
        (protocol,) = self.factory._sockets
        protocol._socket._outbox.pauseProducing()  # type: ignore[union-attr]
        self.payloads(client)
        big = text_frame(b'"' + b"x" * 1_000_000 + b'"')
        for _ in range(60):
            protocol._socket.send_frame(big)
        self.assertEqual(0, self.world.gateway.budget.held)
        client.pump.flush()
        self.assertEqual((1008, b"slow consumer"), self.closed(client))
        self.assertLess(MAX_BUFFERED, 60 * len(big))

    def test_shutdown(self) -> None:
        """The event, 1012, and a word to whoever waits for the sockets to go; new ones are refused with 503."""
        client = self.open()
        emptied = self.factory.emptied()
        self.world.gateway.broadcaster.shutdown()
        client.pump.flush()
        self.assertEqual((1012, b"service restart"), self.closed(client))
        self.assertEqual(503, self.dial(upgrade()).answer().status)
        self.assertNoResult(emptied)
        self.world.harness.advance(CLOSE_SECONDS + 1, client)
        self.successResultOf(emptied)
        self.successResultOf(self.factory.emptied())

    def test_a_lost_connection(self) -> None:
        """Its place is given back, its session forgotten, no timer stays."""
        client = self.open(READ)
        self.assertEqual(1, self.factory.open)
        client.leave()
        self.assertEqual((0, 1), (self.factory.open, self.doors.released))
        self.assertEqual([], self.world.harness.runs._watchers)
        self.world.clock.advance(0.2)
        self.assertEqual([], [call for call in self.world.clock.getDelayedCalls() if "timeout" not in str(call).lower()])

    def test_defects_are_contained(self) -> None:
        """An exception in the conversation is logged, and ends one connection with 1011."""
        client = self.open()
        (protocol,) = self.factory._sockets
        protocol._socket.session.received = None  # type: ignore[method-assign,assignment]
        self.send(client, {"type": "req", "id": "1", "method": "health"})
        self.assertEqual((1011, b"internal error"), self.closed(client))
        self.assertEqual(1, len(self.flushLoggedErrors(TypeError)))

    def test_the_request_is_let_go(self) -> None:
        """HTTPChannel is no longer the transport's producer, and no credential of the upgrade request stays in memory."""
        self.dial(upgrade("Authorization: Bearer s3cret", "Cookie: a=s3cret", path="/?token=s3cret"))
        (protocol,) = self.factory._sockets
        self.assertIs(protocol._socket._outbox, protocol.transport.producer)  # type: ignore[union-attr]
        self.assertNotIn("s3cret", repr(vars(protocol)))
