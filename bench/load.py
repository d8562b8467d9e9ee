"""The load generator: closed-loop clients on raw sockets. `python -m bench.load` reads one job per line and prints one result per line, in JSON.

Each client keeps one connection, sends a request, reads the whole answer, checks it, sends the next. One thread, one epoll loop: it
must cost much less than what it measures. Imports bench.wire. Ends with its standard input.

A job: `port`, `request` (text), `tokens`, `stream`, `clients`, `limit` (seconds until what is unanswered counts as failed) and `seconds` (send
for so long) or `requests` (send so many). A result: `sent`, `done`, `failed`, `why` (the first failure), `seconds`, `first` (seconds to the
first token, one per answer, sorted), `whole` (the same to the end) and `opened` (connections); or `error`.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import sys
import time
from typing import Any

from bench.wire import verify

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
#: Ends a chunked body. It cannot occur inside ours: JSON never has a bare CR LF.
_LAST_CHUNK = b"\r\n0\r\n\r\n"
#: Connections opened at once, then a breath: the listening backlog is not what is measured.
_BATCH = 16


class Client:
    """One connection and the answer it is reading."""

    __slots__ = ("buffer", "checked", "first_at", "head_end", "length", "sent_at", "sock")

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.checked = False
        self.start(0.0)

    def start(self, now: float) -> None:
        """Forget the last answer; a request leaves now."""
        self.buffer, self.head_end, self.length, self.first_at, self.sent_at = bytearray(), -1, -1, 0.0, now

    def complete(self) -> bool:
        """Whether the answer is all there."""
        buffer = self.buffer
        if self.head_end < 0:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return False
            self.head_end = end + 4
            head = bytes(buffer[: end + 2])
            if found := _LENGTH.search(head):
                self.length = self.head_end + int(found[1])
            elif not _CHUNKED.search(head):
                self.length = 1 << 62  # ends with the connection, which no answer here may do
        return len(buffer) >= self.length if self.length >= 0 else buffer.endswith(_LAST_CHUNK)


class Job:
    """One measured stretch of load."""

    def __init__(self, port: int, request: str, tokens: int, stream: bool, clients: int, limit: float, seconds: float = 0, requests: int = 0) -> None:
        self.address = ("127.0.0.1", port)
        self.request, self.tokens, self.stream, self.limit = request.encode(), tokens, stream, limit
        self.clients = [Client() for _ in range(clients)]
        self.seconds, self.budget = seconds or limit, requests or sys.maxsize
        self.by_fd: dict[int, Client] = {}
        self.epoll = select.epoll()
        self.first: list[float] = []
        self.whole: list[float] = []
        self.sent = self.failed = self.opened = 0
        self.why: str | None = None

    def run(self) -> dict[str, Any]:
        """Do it and give the result."""
        for number, client in enumerate(self.clients, 1):
            self._connect(client)
            if number % _BATCH == 0:
                select.select((), (), (), 0.005)
        began = time.perf_counter()
        self.stop_at, give_up = began + self.seconds, began + self.limit
        for client in self.clients:
            self._send(client)
        while self.live and (left := give_up - time.perf_counter()) > 0:
            for number, _ in self.epoll.poll(left):
                self._read(self.by_fd[number])
        ended = time.perf_counter()
        if self.live:
            self._fail(f"no whole answer within {self.limit:.0f} s", self.live)
        for client in self.clients:
            if client.sock is not None:
                client.sock.close()
        self.epoll.close()
        return {
            "sent": self.sent,
            "done": len(self.whole),
            "failed": self.failed,
            "why": self.why,
            "seconds": ended - began,
            "first": sorted(self.first),
            "whole": sorted(self.whole),
            "opened": self.opened,
        }

    @property
    def live(self) -> int:
        """Requests without an answer yet."""
        return self.sent - len(self.whole) - self.failed

    def _connect(self, client: Client) -> None:
        sock = socket.create_connection(self.address, timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        client.sock = sock
        self.by_fd[sock.fileno()] = client
        self.epoll.register(sock.fileno(), select.EPOLLIN)
        self.opened += 1

    def _send(self, client: Client) -> None:
        now = time.perf_counter()
        if self.sent >= self.budget or now >= self.stop_at:
            return
        if client.sock is None:
            self._connect(client)
        client.start(now)
        self.sent += 1
        try:
            sent = client.sock.send(self.request) if client.sock else 0
        except OSError as error:
            self._broken(client, f"send: {error}")
            return
        if sent < len(self.request):
            self._broken(client, "the request did not fit into the socket")

    def _read(self, client: Client) -> None:
        if client.sock is None:
            return
        try:
            data = client.sock.recv(262144)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(client, f"read: {error}")
            return
        if not data:
            self._broken(client, "the connection was closed before the whole answer was there")
            return
        if not client.sent_at:
            self._broken(client, "bytes after the answer")
            return
        client.buffer += data
        if not client.first_at and b"tok" in data:
            client.first_at = time.perf_counter()
        if client.complete():
            self._finished(client)

    def _finished(self, client: Client) -> None:
        now = time.perf_counter()
        problem = self._check(client)
        if problem is not None:
            self._broken(client, problem)
            return
        self.first.append(client.first_at - client.sent_at)
        self.whole.append(now - client.sent_at)
        closes = b"\r\nconnection: close" in bytes(client.buffer[: client.head_end]).lower()
        client.sent_at = 0.0
        if closes:
            self._hang_up(client)
        self._send(client)

    def _check(self, client: Client) -> str | None:
        """None if the answer is right. The first of each client, and any that looks odd, is read exactly; the rest are counted."""
        buffer = client.buffer
        if client.checked and buffer.startswith(b"HTTP/1.1 200 ") and buffer.count(b"tok") == self.tokens:
            # role, the tokens, finish, usage, [DONE]
            if not self.stream:
                return None
            if buffer.count(b"data: ") == self.tokens + 4 and b'"usage"' in buffer and buffer.endswith(b"data: [DONE]\n\n" + _LAST_CHUNK):
                return None
        problem = verify(bytes(buffer[: client.head_end]), bytes(buffer[client.head_end :]), self.tokens, self.stream)
        client.checked = problem is None
        return problem

    def _fail(self, why: str, count: int = 1) -> None:
        self.failed += count
        self.why = self.why or why

    def _hang_up(self, client: Client) -> None:
        if client.sock is not None:
            del self.by_fd[client.sock.fileno()]
            client.sock.close()
            client.sock = None

    def _broken(self, client: Client, why: str) -> None:
        """A failure. An idle connection that the server closes is none."""
        waiting = bool(client.sent_at)
        client.sent_at = 0.0
        self._hang_up(client)
        if waiting:
            self._fail(why)
            self._send(client)


def main() -> None:
    """Jobs in, results out."""
    for line in sys.stdin:
        job = json.loads(line)
        try:
            result = Job(**job).run()
        except OSError as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
