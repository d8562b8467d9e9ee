"""What hostile and broken WebSocket clients do: the rows W01 to W42 of the project's table, and the test of each.

| row | what | where |
|---|---|---|
| W01-W04 | bad upgrades | test_ws_protocol: test_bad_upgrades |
| W05 | an upgrade with a body | here: test_an_upgrade_with_a_body |
| W06-W11 | violations of the standard | test_ws_protocol: test_violations_of_the_standard |
| W12, W13 | sizes before and after hello-ok | test_ws_protocol: test_sizes; test_ws: test_garbage_before_hello |
| W14 | empty continuation frames without end | here: test_empty_fragments_without_end |
| W15 | UTF-8, wrong and split | test_ws_protocol: test_violations_of_the_standard, test_fragments |
| W16 | odd close frames | here: test_odd_close_frames |
| W17 | 10,000 pings | here: test_ten_thousand_pings, test_storms |
| W18 | half-open peers | here: test_a_cable_that_is_cut; test_ws_protocol: test_pings |
| W19 | deep JSON | test_ws: test_garbage_before_hello, test_bad_frames_do_not_end_the_connection; test_frames: test_nesting_is_bounded |
| W20 | NaN, duplicate keys, lone surrogates, a byte order mark | test_frames: test_what_is_no_json, test_duplicate_keys |
| W21, W22 | wrong types and missing fields in `connect`; versions | test_ws: test_every_field_has_its_type, test_versions |
| W21 | any device at all | test_ws_connect: test_any_device_is_answered |
| W23 | another first frame | test_ws: test_the_first_frame_is_connect |
| W24 | a second `connect` | test_ws: test_connect_again |
| W25 | odd ids | test_ws: test_bad_frames_do_not_end_the_connection; here: test_one_id_for_many_requests |
| W26 | a signature replayed on another connection | test_ws_connect: test_a_signature_of_another_connection |
| W27 | a signature that is stale or from the future | test_ws_connect: test_old_and_early_signatures |
| W28 | no nonce from a remote client | test_ws_connect: test_remote_clients_need_the_nonce |
| W29 | wrong keys, ids and signatures | test_ws_connect: test_wrong_keys |
| W30 | scopes raised after signing | test_ws_connect: test_what_is_changed_after_signing |
| W31, W32 | foreign Origins | test_ws_protocol: test_origins, test_listed_origins |
| W33 | a storm of connects | here: test_storms; test_ws_protocol: test_silent_sockets |
| W34 | a handshake that never ends | here: test_handshakes_that_never_end; test_ws: test_silence_ends |
| W35 | a client that never reads | here: test_a_client_that_never_reads, test_storms |
| W36 | compression offered; compressed frames | test_ws_protocol: test_the_handshake_as_the_standard_has_it, test_violations_of_the_standard |
| W37 | 5,000 requests at once | here: test_five_thousand_requests_at_once, test_who_asks_once, test_many_runs_at_once, test_storms |
| W38 | wrong secrets, then the right one | test_ws: test_lockout_is_shared_with_http; test_ws_connect: test_guessing_device_tokens |
| W39 | odd parameters | test_frames: test_prototype_tricks_are_unknown_keys, test_parameters_that_are_no_object |
| W40 | JSON in a binary frame | test_ws_protocol: test_binary_messages; test_ws: test_binary_frames |
| W41 | frames together with the upgrade | test_ws_protocol: test_bytes_with_the_upgrade |
| W42 | 500 clients that vanish at once | here: test_five_hundred_that_vanish, test_storms |
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mayros.ws.protocol import CLOSE_SECONDS, PING_SECONDS
from mayros.ws.session import HANDSHAKE_SECONDS
from tests.daemon import TOKEN, Daemon, Upstream
from tests.test_ws import READ, WRITE, agent_params, connect_params
from tests.test_ws_protocol import Doors, frame, upgrade

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
BACKEND = {"id": "gateway-client", "version": "1", "platform": "linux", "mode": "backend"}


def request(method: str, id: str = "1", params: Any = None) -> bytes:
    """One request as a client's frame."""
    return frame(json.dumps({"type": "req", "id": id, "method": method, "params": params or {}}).encode())


def split(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Opcode and payload of the whole frames, and what is left; a 101 before them is skipped."""
    if data.startswith(b"HTTP/1.1 101"):
        data = data.partition(b"\r\n\r\n")[2]
    found, at = [], 0
    while len(data) - at >= 2:
        size, start = data[at + 1], at + 2
        if size >= 126:
            start += 2 if size == 126 else 8
            size = int.from_bytes(data[at + 2 : start], "big")
        if start > len(data) or start + size > len(data):
            break
        found.append((data[at] & 0x0F, data[start : start + size]))
        at = start + size
    return found, data[at:]


class TableTests(SynchronousTestCase):
    """The table above."""

    def test_the_table_is_whole(self) -> None:
        """Every row is there, and every test that it names."""
        rows: set[int] = set()
        for numbers, where in re.findall(r"^\| (W[^|]*) \|.*\|([^|]*)\|$", __doc__ or "", re.MULTILINE):
            for first, last in re.findall(r"W(\d+)(?:-W(\d+))?", numbers):
                rows.update(range(int(first), int(last or first) + 1))
            for place in where.split(";"):
                module, _, names = place.strip().partition(": ")
                text = Path(__file__).with_name(f"{'test_ws_cases' if module == 'here' else module}.py").read_text(encoding="utf-8")
                for name in names.split(", "):
                    self.assertIn(f"    def {name}(self", text, place)
        self.assertEqual(set(range(1, 43)), rows)


class MemoryTests(SynchronousTestCase):
    """The real site over in-memory transports; the clock is the test's."""

    def setUp(self) -> None:
        self.doors = Doors(self)
        self.world = self.doors.world
        self.gateway, self.harness = self.world.gateway, self.world.harness

    def open(self, *scopes: str, **params: Any) -> Any:
        """A raw client after hello-ok, with nothing unread."""
        client = self.harness.dial(upgrade())
        client.send(request("connect", "c", connect_params(*scopes, **params)))
        self.harness.settle(client)
        self.assertIn(b'"hello-ok"', client.received)
        client.received = b""
        return client

    def frames(self, client: Any) -> list[tuple[int, bytes]]:
        """What came since the last look. What was sent at once has been read by then."""
        self.harness.settle(client)
        found, client.received = split(client.received)
        return found

    def answers(self, client: Any) -> list[Any]:
        """The responses since the last look."""
        texts = [json.loads(payload) for opcode, payload in self.frames(client) if opcode == TEXT]
        return [text for text in texts if text["type"] == "res"]

    def closed(self, client: Any) -> tuple[int, bytes] | None:
        """Code and reason of the close frame."""
        return next(
            ((struct.unpack("!H", payload[:2])[0], payload[2:]) for opcode, payload in self.frames(client) if opcode == CLOSE),
            None,
        )

    def alive(self, client: Any) -> None:
        """The client is answered."""
        self.frames(client)
        client.send(request("health", "alive"))
        self.assertEqual([("alive", True)], [(answer["id"], answer["ok"]) for answer in self.answers(client)])

    def test_an_upgrade_with_a_body(self) -> None:
        """Refused before any 101, and the body is never taken for frames (W05)."""
        hidden = request("health")
        for lines, body in (
            ((f"Content-Length: {len(hidden)}",), hidden),
            (("Transfer-Encoding: chunked",), b"%x\r\n%b\r\n0\r\n\r\n" % (len(hidden), hidden)),
            (("Content-Length: 0", "Content-Length: 5"), b"hello"),
        ):
            client = self.harness.dial(upgrade(*lines) + body)
            self.assertEqual(400, client.answer().status)
            self.assertNotIn(b" 101 ", client.received)
        self.assertEqual(0, self.doors.factory.open)

    def test_empty_fragments_without_end(self) -> None:
        """100,000 of them cost nothing, and the message they belong to is still understood (W14)."""
        client, other = self.open(READ), self.open(READ)
        message = json.dumps({"type": "req", "id": "in pieces", "method": "health"}).encode()
        client.send(frame(message[:10], fin=False))
        client.send(frame(b"", opcode=0, fin=False) * 100_000)
        self.alive(other)
        client.send(frame(message[10:], opcode=0))
        self.assertEqual(["in pieces"], [answer["id"] for answer in self.answers(client)])

    def test_odd_close_frames(self) -> None:
        """Empty, cut, with codes that nobody may send, with a reason that is no text: the connection ends (W16)."""
        for payload in (
            b"",
            b"\x03",
            struct.pack("!H", 999),
            struct.pack("!H", 1005),
            struct.pack("!H", 1000) + b"\xff\xfe",
            struct.pack("!H", 65_535),
        ):
            client = self.open(READ)
            client.send(frame(payload, opcode=CLOSE))
            self.harness.advance(CLOSE_SECONDS + 1, client)
            self.assertTrue(client.lost, payload)
        self.assertEqual(0, self.doors.factory.open)
        self.assertEqual([], self.flushLoggedErrors())

    def test_ten_thousand_pings(self) -> None:
        """All are answered, in order; the others do not notice (W17)."""
        client, other = self.open(READ), self.open(READ)
        client.send(b"".join(frame(b"%d" % number, opcode=PING) for number in range(10_000)))
        self.assertEqual([b"%d" % number for number in range(10_000)], [payload for opcode, payload in self.frames(client) if opcode == PONG])
        self.alive(other)

    def test_a_cable_that_is_cut(self) -> None:
        """A peer that is gone without a word is dropped after a ping's time, and nothing of it stays (W18)."""
        client = self.open(READ, client=BACKEND)
        (protocol,) = self.doors.factory._sockets
        # Whatever is sent to it from now on never arrives, and nothing comes back.
        protocol.transport.write = lambda data: None  # type: ignore[union-attr]
        self.harness.advance(PING_SECONDS + 1, client)
        self.assertEqual(1, self.doors.factory.open)
        self.harness.advance(PING_SECONDS + CLOSE_SECONDS + 1, client)
        self.assertEqual((0, 1), (self.doors.factory.open, self.doors.released))
        self.assertEqual({}, self.gateway.broadcaster._peers)
        (left,) = [entry for entry in self.gateway.presence.entries(self.world.now_ms()) if entry.mode == "backend"]
        self.assertEqual("disconnect", left.reason)

    def test_one_id_for_many_requests(self) -> None:
        """Each is answered under it (W25)."""
        client = self.open(READ)
        client.send(request("health", "same") * 20)
        self.assertEqual(["same"] * 20, [answer["id"] for answer in self.answers(client)])

    def test_handshakes_that_never_end(self) -> None:
        """A socket that is open and says nothing, or half a word, is closed after ten seconds; whoever said hello is not (W34)."""
        silent, half = self.harness.dial(upgrade()), self.harness.dial(upgrade())
        begun = request("connect", "c", connect_params(READ))
        half.send(begun[: len(begun) // 2])
        client = self.open(READ)
        self.harness.advance(HANDSHAKE_SECONDS - 0.1, silent, half)
        self.assertEqual(3, self.doors.factory.open)
        self.harness.advance(0.2, silent, half)
        self.harness.advance(CLOSE_SECONDS + 1, silent, half)
        self.assertEqual(((1000, b""), (1000, b"")), (self.closed(silent), self.closed(half)))
        self.assertTrue(silent.lost and half.lost)
        self.alive(client)

    def test_a_client_that_never_reads(self) -> None:
        """What waits for it is counted and bounded; when it is too much the client is closed, and the others are answered all the time (W35)."""
        client = self.open(READ)
        (protocol,) = self.doors.factory._sockets
        protocol.transport.producer.pauseProducing()  # type: ignore[union-attr]
        other = self.open(READ)
        filler = "x" * 1_000_000
        self.gateway.health = lambda: {"filler": filler}
        most = 0
        for number in range(1_000):
            client.send(request("health", str(number)))
            most = max(most, self.gateway.budget.held)
            if self.gateway.budget.held == 0 and number:
                break
        self.assertLess(number, 60)
        self.assertLess(40_000_000, most)
        self.assertLessEqual(most, 52_428_800)
        self.assertEqual((1008, b"slow consumer"), self.closed(client))
        self.gateway.health = dict
        self.alive(other)

    def test_five_thousand_requests_at_once(self) -> None:
        """All are answered, in order; the others do not notice (W37)."""
        client, other = self.open(READ), self.open(READ)
        client.send(b"".join(request("health", str(number)) for number in range(5_000)))
        self.assertEqual([str(number) for number in range(5_000)], [answer["id"] for answer in self.answers(client)])
        self.alive(other)

    def test_who_asks_once(self) -> None:
        """Ten clients send a thousand requests each; nothing of another one waits for all of that, and theirs are answered in order (W37)."""
        storm, other = [self.open(READ) for _ in range(10)], self.open(READ)
        for client in storm:
            client.send(b"".join(request("health", str(number)) for number in range(1_000)))
        self.assertEqual([b""] * 10, [client.received for client in storm])
        other.send(request("health", "other"))
        self.assertIn(b'"other"', other.received)
        for client in storm:
            self.assertEqual([str(number) for number in range(1_000)], [answer["id"] for answer in self.answers(client)])
        self.alive(storm[0])

    def test_a_storm_that_leaves(self) -> None:
        """What a client had sent and nobody has read goes with it."""
        client, other = self.open(READ), self.open(READ)
        client.send(b"".join(request("health", str(number)) for number in range(1_000)))
        client.leave()
        self.harness.settle()
        self.assertEqual((1, []), (self.doors.factory.open, self.flushLoggedErrors()))
        self.alive(other)

    def test_many_runs_at_once(self) -> None:
        """A client that starts more than the queues hold is told so, each time; what was accepted is accepted (W37)."""
        client = self.open(READ, WRITE)
        client.send(b"".join(request("agent", str(number), agent_params(idempotencyKey=f"k{number}")) for number in range(500)))
        answers = self.answers(client)
        accepted = [answer for answer in answers if answer["ok"]]
        self.assertEqual(500, len({answer["id"] for answer in answers}))
        self.assertGreater(len(accepted), 0)
        self.assertEqual({"UNAVAILABLE"}, {answer["error"]["code"] for answer in answers if not answer["ok"]})

    def test_five_hundred_that_vanish(self) -> None:
        """Sockets, watchers, presence, requests and timers are as before (W42)."""
        other = self.open(READ)
        self.harness.advance(1, other)
        timers = len(self.world.clock.getDelayedCalls())
        watchers = len(self.harness.runs._watchers)
        clients = [self.open(READ, WRITE, client={**BACKEND, "instanceId": f"i{number}"}) for number in range(500)]
        for number, client in enumerate(clients[:3]):
            client.send(request("agent", "run", agent_params(idempotencyKey=f"k{number}", sessionKey=f"s{number}")))
        self.assertEqual(501, self.doors.factory.open)
        for client in clients:
            client.transport.abortConnection()
            client.pump.flush()
        self.assertEqual((1, 500), (self.doors.factory.open, self.doors.released))
        self.assertEqual((1, 0), (len(self.gateway.broadcaster._peers), self.gateway.budget.held))
        self.harness.runs.abort_all()
        self.harness.advance(10, other)
        self.assertEqual((timers, watchers), (len(self.world.clock.getDelayedCalls()), len(self.harness.runs._watchers)))
        entries = self.gateway.presence.entries(self.world.now_ms())
        self.assertEqual({"self", "disconnect"}, {entry.reason for entry in entries})
        self.harness.advance(301, other)
        self.assertEqual(["self"], [entry.reason for entry in self.gateway.presence.entries(self.world.now_ms())])
        self.assertEqual([], self.flushLoggedErrors())


class Wire:
    """A client on a real socket that says what it is told."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        self._ready: list[tuple[int, bytes]] = []

    def upgrade(self) -> None:
        """Become a WebSocket; the challenge is taken."""
        self.socket.sendall(upgrade())
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.socket.recv(65_536)
        assert data.startswith(b"HTTP/1.1 101"), data
        # What came after the head is skipped over by `split`.
        self._ready, self._rest = split(data)
        self.next(TEXT)

    def hello(self, **client: str) -> None:
        """Authenticate."""
        self.upgrade()
        self.ask("connect", connect_params(READ, WRITE, auth={"token": TOKEN}, client={**BACKEND, **client}))

    def next(self, opcode: int) -> bytes:
        """The payload of the next frame of a kind; others are skipped."""
        while True:
            while self._ready:
                kind, payload = self._ready.pop(0)
                if kind == opcode:
                    return payload
            data = self.socket.recv(1 << 20)
            if not data:
                raise AssertionError("the connection was closed")
            self._ready, self._rest = split(self._rest + data)

    def ask(self, method: str, params: Any = None) -> Any:
        """The payload of the answer to a request."""
        self.socket.sendall(request(method, "ask", params))
        while True:
            answer = json.loads(self.next(TEXT))
            if answer["type"] == "res":
                assert answer["ok"], answer
                return answer["payload"]

    def reset(self) -> None:
        """Vanish: RST, not FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class SocketTests(SynchronousTestCase):
    """A real gateway process under storms."""

    timeout = 60

    def test_storms(self) -> None:
        """Pings, requests, clients that never read, connects without a hello, and 500 that vanish: the others are answered within a second,
        memory stays bounded, and afterwards everything is as before (W17, W33, W35, W37, W42)."""
        upstream = Upstream()
        self.addCleanup(upstream.close)
        self.daemon = Daemon(Path(self.mktemp()), upstream)
        self.addCleanup(self.daemon.kill)
        self.daemon.start()
        self.other = self.wire()
        self.other.hello(instanceId="other")
        self.prompt()
        base = self.sockets()
        self.pings()
        self.requests()
        self.never_reads()
        self.until(lambda: self.sockets() <= base)
        self.silent()
        self.vanish()
        self.until(lambda: self.sockets() <= base)
        presence = self.other.ask("system-presence")
        self.assertEqual({"self", "connect", "disconnect"}, {entry["reason"] for entry in presence})
        self.assertEqual(["other"], [entry["instanceId"] for entry in presence if entry["reason"] == "connect"])
        self.assertNotIn("Traceback", self.daemon.log.read_text(errors="replace"))

    def wire(self) -> Wire:
        wire = Wire(self.daemon.port)
        self.addCleanup(wire.socket.close)
        return wire

    def prompt(self) -> None:
        """The client that does no harm is answered within a second."""
        began = time.monotonic()
        self.assertTrue(self.other.ask("health")["ok"])
        self.assertLess(time.monotonic() - began, 1.0)

    def sockets(self) -> int:
        """Open sockets of the gateway. Files do not count: the store's readers and the logs open theirs when they are first of use."""
        assert self.daemon.process is not None
        found = 0
        for entry in os.scandir(f"/proc/{self.daemon.process.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found += os.readlink(entry.path).startswith("socket:")
        return found

    def resident(self) -> int:
        """Resident bytes of the gateway."""
        assert self.daemon.process is not None
        return int(Path(f"/proc/{self.daemon.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def until(self, condition: Any) -> None:
        """Wait for it, five seconds at most, asking for health meanwhile."""
        give_up = time.monotonic() + 5
        while not condition():
            self.assertLess(time.monotonic(), give_up)
            self.prompt()

    def pings(self) -> None:
        client = self.wire()
        client.hello()
        client.socket.sendall(frame(b"x", opcode=PING) * 10_000)
        self.prompt()
        for _ in range(10_000):
            client.next(PONG)
        client.reset()

    def requests(self) -> None:
        client = self.wire()
        client.hello()
        data = b"".join(request("health", str(number)) for number in range(5_000))
        # More than fits into the buffers of both sides: whoever reads nothing meanwhile waits for ever.
        sender = threading.Thread(target=client.socket.sendall, args=(data,))
        sender.start()
        self.prompt()
        ids: list[str] = []
        while len(ids) < 5_000:
            answer = json.loads(client.next(TEXT))
            if answer["type"] == "res":
                ids.append(answer["id"])
        sender.join()
        self.assertEqual([str(number) for number in range(5_000)], ids)
        client.reset()

    def never_reads(self) -> None:
        client = self.wire()
        client.hello()
        before = self.resident()
        client.socket.setblocking(False)
        data = b"".join(request("health", str(number)) for number in range(1_000))
        while data:
            try:
                data = data[client.socket.send(data) :]
            except BlockingIOError:
                self.prompt()
        self.prompt()
        self.assertLess(self.resident() - before, 20_000_000)
        client.reset()

    def silent(self) -> None:
        clients = [self.wire() for _ in range(500)]
        for number, client in enumerate(clients):
            if number % 2:
                client.upgrade()
            if number % 100 == 0:
                self.prompt()
        self.prompt()
        for client in clients:
            client.reset()

    def vanish(self) -> None:
        clients = [self.wire() for _ in range(500)]
        for number, client in enumerate(clients):
            client.hello(instanceId=f"i{number % 100}")
        self.prompt()
        for client in clients:
            client.reset()
        self.prompt()
