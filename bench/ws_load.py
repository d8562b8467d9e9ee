"""The load generator for WebSockets. `python -m bench.ws_load` reads one job per line and prints one result per line, in JSON.

Raw sockets, one thread, one epoll loop, frames made in advance, and of what comes only what the job needs is looked at: it must cost much less
than what it measures. Sockets stay open from job to job, in groups, and answer pings all the time. Ends with its standard input.

A job says what to `do`, with `limit` seconds to do it in:

    open    `count` sockets to `port` into `group`, up to `window` handshakes at once; with `connect` (parameters) each authenticates. -> {seconds}
    calls   each socket of `group` sends `health`, waits for the answer, sends the next, for `seconds`; `pace`: one socket, so many seconds between
            answer and question. -> {done, seconds, p50, p95, max, sample (one answer)}
    fan     the socket of `control` sends `request` (text; one that is answered `accepted` first is over with its second answer); what arrives in
            `group` until then, and until nothing has come for 0.3 s, is counted. `record`: a file that gets what `control` was told.
            -> {deliveries, events (of `control`), short (sockets that got fewer), seconds (first to last), bytes (of one socket)}
    churn   `count` times connect, authenticate, close, up to `window` at once. -> {done, seconds}
    close   the sockets of `group`. -> {}

Every result has `failed` and `why` (the first failure); or it is `{error}`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MASK = b"\x37\xfa\x21\x3d"
_PONG, _CLOSE = 0x8A, 0x88
_QUIET_SECONDS = 0.3
#: Progress of a socket.
_DIALLING, _UPGRADING, _GREETING, _OPEN, _CLOSING = range(5)


def frame(payload: bytes, first: int = 0x81) -> bytes:
    """A client's frame, masked."""
    size = len(payload)
    head = bytes((first, 0x80 | size)) if size < 126 else bytes((first, 0xFE)) + size.to_bytes(2, "big")
    return head + _MASK + bytes(byte ^ _MASK[number & 3] for number, byte in enumerate(payload))


def upgrade(port: int) -> bytes:
    """An upgrade request."""
    return (
        f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


class Peer:
    """One socket. `take` gets each text message as (peer, buffer, start, end)."""

    __slots__ = ("frames", "octets", "out", "prefix", "request", "rest", "sent_at", "sock", "stage", "take")

    def __init__(self, sock: socket.socket, take: Callable[[Peer, bytes, int, int], None]) -> None:
        self.sock, self.take, self.stage = sock, take, _DIALLING
        self.rest = self.out = self.request = b""
        self.prefix: bytes | None = None
        self.sent_at, self.frames, self.octets = 0.0, 0, 0


class Load:
    """All sockets and the job that is being done."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.peers: dict[int, Peer] = {}
        self.groups: dict[str, list[Peer]] = {}
        self.asked = False
        self._begin(0.0)

    def serve(self) -> None:
        """Do what standard input says, until it ends."""
        stdin, rest = sys.stdin.fileno(), b""
        os.set_blocking(stdin, False)
        self.epoll.register(stdin, select.EPOLLIN)
        while True:
            self._pump(None)
            if not self.asked:
                continue
            self.asked = False
            data = os.read(stdin, 1 << 20)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                print(json.dumps(self.perform(json.loads(line))), flush=True)

    def perform(self, job: dict[str, Any]) -> dict[str, Any]:
        """One job."""
        self._begin(job["limit"])
        try:
            result: dict[str, Any] = getattr(self, f"do_{job['do']}")(job)
        except OSError as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return {**result, "failed": self.failed, "why": self.why}

    def _begin(self, limit: float) -> None:
        self.failed, self.why = 0, None
        self.opened: list[Peer] = []
        self.closed = 0
        self.last_at = 0.0
        self.latencies: list[float] = []
        self.sample = b""
        self.told: list[bytes] = []
        self.over = False
        self.give_up = time.perf_counter() + limit

    why: str | None

    # The jobs

    def do_open(self, job: dict[str, Any]) -> dict[str, Any]:
        """See the module."""
        began, wanted = time.perf_counter(), job["count"]
        self._prepare(job)
        started = 0
        while len(self.opened) + self.failed < wanted and self._time_left():
            while started < wanted and started - len(self.opened) - self.failed < job["window"]:
                self._dial()
                started += 1
            self._pump(0.1)
        missing = wanted - len(self.opened) - self.failed
        if missing > 0:
            self._fail("no hello in time", missing)
        self.groups.setdefault(job["group"], []).extend(self.opened)
        return {"seconds": time.perf_counter() - began}

    def do_churn(self, job: dict[str, Any]) -> dict[str, Any]:
        """See the module."""
        began, wanted = time.perf_counter(), job["count"]
        self._prepare(job)
        started = 0
        while self.closed + self.failed < wanted and self._time_left():
            while started < wanted and started - self.closed - self.failed < job["window"]:
                self._dial()
                started += 1
            self._pump(0.1)
            while self.opened:
                peer = self.opened.pop()
                peer.stage = _CLOSING
                self._send(peer, frame(b"\x03\xe8", _CLOSE))
        if self.closed + self.failed < wanted:
            self._fail("not closed in time", wanted - self.closed - self.failed)
        return {"done": self.closed, "seconds": time.perf_counter() - began}

    def do_calls(self, job: dict[str, Any]) -> dict[str, Any]:
        """See the module."""
        peers = self.groups[job["group"]]
        for number, peer in enumerate(peers):
            peer.take, peer.prefix = self._answered, None
            peer.request = frame(json.dumps({"type": "req", "id": f"h{number}", "method": "health", "params": {}}).encode())
        began = time.perf_counter()
        self.stop_at = began + job["seconds"]
        self.pace: float = job.get("pace", 0.0)
        for peer in peers:
            self._ask(peer)
        while any(peer.sent_at for peer in peers) and self._time_left():
            self._pump(0.1)
            if self.pace and not peers[0].sent_at and time.perf_counter() < self.stop_at:
                self._rest(self.pace)
                self._ask(peers[0])
        ended = time.perf_counter()
        unanswered = sum(1 for peer in peers if peer.sent_at)
        if unanswered:
            self._fail("no answer in time", unanswered)
        for peer in peers:
            peer.take, peer.sent_at = self._ignore, 0.0
        sorted_ = sorted(self.latencies) or [float("nan")]
        return {
            "done": len(self.latencies),
            "seconds": ended - began,
            "p50": sorted_[len(sorted_) // 2],
            "p95": sorted_[int(len(sorted_) * 0.95)],
            "max": sorted_[-1],
            "sample": self.sample.decode(),
        }

    def do_fan(self, job: dict[str, Any]) -> dict[str, Any]:
        """See the module."""
        watchers, (control,) = self.groups[job["group"]], self.groups[job["control"]]
        for peer in watchers:
            peer.take, peer.frames, peer.octets = self._count, 0, 0
        control.take = self._record
        self.first_at = 0.0
        self._send(control, frame(job["request"].encode()))
        while self._time_left():
            self._pump(0.05)
            if self.over and time.perf_counter() - self.last_at > _QUIET_SECONDS:
                break
        else:
            self._fail("the run did not end in time")
        for peer in (*watchers, control):
            peer.take = self._ignore
        expected = len(self.told)
        if job.get("record"):
            Path(job["record"]).write_bytes(b"\n".join(self.told))
        short = sum(1 for peer in watchers if peer.frames != expected)
        return {
            "deliveries": sum(peer.frames for peer in watchers),
            "events": expected,
            "short": short,
            "seconds": self.last_at - self.first_at,
            "bytes": sum(peer.octets for peer in watchers) // max(1, len(watchers)),
        }

    def do_close(self, job: dict[str, Any]) -> dict[str, Any]:
        """See the module."""
        for peer in self.groups.pop(job["group"], ()):
            self._forget(peer)
        return {}

    # What arrives

    def _greeted(self, peer: Peer, data: bytes, start: int, end: int) -> None:
        message = json.loads(data[start:end])
        if message["type"] == "event" and message["event"] == "connect.challenge":
            self._send(peer, self.hello)
        elif message.get("ok") is True:
            peer.stage, peer.take = _OPEN, self._ignore
            self.opened.append(peer)
        else:
            self._broken(peer, f"not admitted: {message.get('error')}")

    def _ignore(self, peer: Peer, data: bytes, start: int, end: int) -> None:
        """Nothing of interest."""

    def _count(self, peer: Peer, data: bytes, start: int, end: int) -> None:
        peer.frames += 1
        peer.octets += end - start

    def _record(self, peer: Peer, data: bytes, start: int, end: int) -> None:
        if data.startswith(b'{"type":"event"', start):
            self.told.append(data[start:end])
            return
        message = json.loads(data[start:end])
        if not message.get("ok"):
            self._fail(f"refused: {message.get('error')}")
        # A run is answered twice; the floor once, saying how many it has sent.
        self.over = message.get("payload", {}).get("status") != "accepted"
        self.told += [b""] * message.get("sent", 0)

    def _answered(self, peer: Peer, data: bytes, start: int, end: int) -> None:
        now = time.perf_counter()
        if peer.prefix is None:
            message = json.loads(data[start:end])
            if message.get("type") == "event":
                return
            if message.get("ok") is not True:
                self._broken(peer, f"health failed: {message.get('error')}")
                return
            self.sample = data[start:end]
            peer.prefix = data[start : data.index(b'"payload"', start)]
        elif not data.startswith(peer.prefix, start):
            if not data.startswith(b'{"type":"event"', start):
                self._broken(peer, f"another answer: {data[start : start + 200]!r}")
            return
        self.latencies.append(now - peer.sent_at)
        peer.sent_at = 0.0
        if not self.pace:
            self._ask(peer)

    def _ask(self, peer: Peer) -> None:
        now = time.perf_counter()
        if now < self.stop_at:
            peer.sent_at = now
            self._send(peer, peer.request)

    # Sockets

    def _prepare(self, job: dict[str, Any]) -> None:
        self.address = ("127.0.0.1", job["port"])
        self.upgrade = upgrade(job["port"])
        connect = job.get("connect")
        self.greets = connect is not None
        self.hello = frame(json.dumps({"type": "req", "id": "c", "method": "connect", "params": connect}).encode())

    def _dial(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        problem = sock.connect_ex(self.address)
        if problem not in (0, errno.EINPROGRESS):
            sock.close()
            raise OSError(problem, os.strerror(problem))
        peer = Peer(sock, self._greeted)
        self.peers[sock.fileno()] = peer
        self.epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _pump(self, seconds: float | None) -> None:
        for number, events in self.epoll.poll(seconds):
            peer = self.peers.get(number)
            if peer is None:
                self.asked = True
                continue
            if events & select.EPOLLOUT:
                self._writable(peer)
            if events & ~select.EPOLLOUT:
                self._read(peer)

    def _rest(self, seconds: float) -> None:
        until = time.perf_counter() + seconds
        while (left := until - time.perf_counter()) > 0:
            self._pump(left)

    def _writable(self, peer: Peer) -> None:
        if peer.stage == _DIALLING:
            peer.stage, peer.out = _UPGRADING, self.upgrade
        out, peer.out = peer.out, b""
        self.epoll.modify(peer.sock.fileno(), select.EPOLLIN)
        self._send(peer, out)

    def _send(self, peer: Peer, data: bytes) -> None:
        if peer.out:
            peer.out += data
            return
        try:
            sent = peer.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._broken(peer, f"send: {error}")
            return
        if sent < len(data):
            peer.out = data[sent:]
            self.epoll.modify(peer.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _read(self, peer: Peer) -> None:
        try:
            data = peer.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(peer, f"read: {error}")
            return
        if not data:
            self._broken(peer, "closed by the server")
            return
        if peer.rest:
            data, peer.rest = peer.rest + data, b""
        at, length = 0, len(data)
        if peer.stage == _UPGRADING:
            at = data.find(b"\r\n\r\n") + 4
            if at < 4:
                peer.rest = data
                return
            if not data.startswith(b"HTTP/1.1 101 "):
                self._broken(peer, f"no upgrade: {data[:300]!r}")
                return
            peer.stage = _GREETING if self.greets else _OPEN
            if not self.greets:
                peer.take = self._ignore
                self.opened.append(peer)
        seen = peer.frames
        while length - at >= 2:
            size, start = data[at + 1], at + 2
            if size >= 126:
                start += 2 if size == 126 else 8
                if start > length:
                    break
                size = int.from_bytes(data[at + 2 : start], "big")
            end = start + size
            if end > length:
                break
            first, at = data[at], end
            if first == 0x81:
                peer.take(peer, data, start, end)
            else:
                self._control(peer, first, data[start:end])
        peer.rest = data[at:]
        if peer.frames != seen:
            self.last_at = time.perf_counter()
            if not self.first_at:
                self.first_at = self.last_at

    first_at = 0.0

    def _control(self, peer: Peer, first: int, payload: bytes) -> None:
        if first == 0x89:
            self._send(peer, frame(payload, _PONG))
        elif first == 0x88:
            if peer.stage != _CLOSING:
                self._broken(peer, f"closed with {payload!r}")
        elif first != _PONG:
            self._broken(peer, f"a frame that begins with {first:#x}")

    def _broken(self, peer: Peer, why: str) -> None:
        """The end of a socket: as it should be when it is closing, else a failure."""
        if peer.sock.fileno() < 0:
            return
        if peer.stage == _CLOSING:
            self.closed += 1
        else:
            self._fail(why)
            for group in self.groups.values():
                with contextlib.suppress(ValueError):
                    group.remove(peer)
        peer.sent_at = 0.0
        self._forget(peer)

    def _forget(self, peer: Peer) -> None:
        if peer.sock.fileno() >= 0:
            del self.peers[peer.sock.fileno()]
            peer.sock.close()

    def _fail(self, why: str, count: int = 1) -> None:
        self.failed += count
        self.why = self.why or why

    def _time_left(self) -> bool:
        return time.perf_counter() < self.give_up


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        Load().serve()
