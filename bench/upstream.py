"""The mock upstream: an OpenAI-like server that costs next to nothing. `python -m bench.upstream` prints its port and serves loopback.

One thread, one epoll loop, answers made in advance. A reply without a delay leaves in one write, so the other side gets all its
chunks in one read; each event is an HTTP chunk of its own, as real providers send them.

Ends with its standard input. Imports bench.wire and bench.vendors.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import heapq
import json
import os
import select
import socket
import sys
import time

from bench import vendors
from bench.wire import RECORDED, TOOLS, shape, token, tool

_STREAM_HEAD = b"\r\n".join(
    (
        b"HTTP/1.1 200 OK",
        b"Server: mock",
        b"Content-Type: text/event-stream; charset=utf-8",
        b"Cache-Control: no-cache",
        b"Transfer-Encoding: chunked",
        b"\r\n",
    )
)
_MAX_REQUEST = 64 << 20
#: Bodies of requests to models that call tools that are kept: those of one run.
_KEPT = 5


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 31, "completion_tokens": tokens, "total_tokens": 31 + tokens}


def _event(payload: bytes) -> bytes:
    """One SSE event as one HTTP chunk."""
    event = b"data: " + payload + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


@functools.lru_cache(maxsize=64)
def pieces(tokens: int) -> list[bytes]:
    """A streamed answer, one item per token: the first has the head and the role before it, the last the end behind it."""

    parts = [_delta({"content": token(number)}) for number in range(tokens)]
    parts[0] = _STREAM_HEAD + _delta({"role": "assistant", "content": ""}) + parts[0]
    parts[-1] += _delta({}, "stop") + _end(tokens)
    return parts


def _chunk(choices: list[object], **more: object) -> bytes:
    whole = {"id": "chatcmpl-mock", "object": "chat.completion.chunk", "created": 1767225600, "model": "mock", "choices": choices, **more}
    return _event(json.dumps(whole, separators=(",", ":")).encode())


def _delta(content: dict[str, object], reason: str | None = None) -> bytes:
    return _chunk([{"index": 0, "delta": content, "logprobs": None, "finish_reason": reason}])


def _end(tokens: int) -> bytes:
    return _chunk([], usage=_usage(tokens)) + _event(b"[DONE]") + b"0\r\n\r\n"


@functools.lru_cache(maxsize=64)
def call(name: str, number: int) -> bytes:
    """A streamed answer that is one call of a tool, its arguments in three pieces."""
    text = json.dumps(TOOLS[name][0])
    third = len(text) // 3
    made: list[dict[str, object]] = [{"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": ""}}]
    made += [{"function": {"arguments": piece}} for piece in (text[:third], text[third : 2 * third], text[2 * third :])]
    parts = [_delta({"tool_calls": [{"index": 0, **piece}]}) for piece in made]
    return b"".join((_STREAM_HEAD, _delta({"role": "assistant", "content": None}), *parts, _delta({}, "tool_calls"), _end(0)))


@functools.lru_cache(maxsize=64)
def stream_at_once(tokens: int) -> bytes:
    """The whole streamed answer."""
    return b"".join(pieces(tokens))


@functools.lru_cache(maxsize=64)
def plain(tokens: int) -> bytes:
    """The whole answer that is not streamed."""
    message = {"role": "assistant", "content": "".join(map(token, range(tokens))), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    whole = {"id": "chatcmpl-mock", "object": "chat.completion", "created": 1767225600, "model": "mock", "choices": [choice], "usage": _usage(tokens)}
    return _ok(json.dumps(whole, separators=(",", ":")).encode())


def _ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nServer: mock\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def refusal(message: str) -> bytes:
    """A 400 that says why."""
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}).encode()
    return b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


class Connection:
    """One client's socket, what it has sent and what is still to be written."""

    __slots__ = ("closed", "inbox", "outbox", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.inbox, self.outbox, self.closed = sock, bytearray(), bytearray(), False

    def take(self) -> tuple[bytes, bytes] | None:
        """Address and body of the next whole request, or None while there is none; ValueError for what is not one."""
        end = self.inbox.find(b"\r\n\r\n")
        if end < 0:
            if len(self.inbox) > 65536:
                raise ValueError("head too long")
            return None
        method, _, rest = bytes(self.inbox[:end]).partition(b" ")
        target = rest.partition(b" ")[0]
        head = bytes(self.inbox[:end]).lower()
        if method != b"POST" or (target != b"/v1/chat/completions" and vendors.vendor(target) is None):
            raise ValueError("only POST of a vendor's address is served")
        _, found, rest = head.partition(b"\r\ncontent-length:")
        length = int(rest.partition(b"\r\n")[0]) if found else 0
        if not 0 < length <= _MAX_REQUEST:
            raise ValueError("a body with Content-Length is needed")
        if len(self.inbox) < end + 4 + length:
            return None
        body = bytes(self.inbox[end + 4 : end + 4 + length])
        del self.inbox[: end + 4 + length]
        return target, body


class Upstream:
    """The server. `serve` runs until standard input ends."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._due: list[tuple[float, int, Connection, list[bytes], int, float]] = []
        self._serial = 0
        self._kept: collections.deque[str] = collections.deque(maxlen=_KEPT)

    def serve(self) -> None:
        """Answer until standard input ends."""
        self._epoll.register(self.listener.fileno(), select.EPOLLIN)
        stdin = sys.stdin.fileno()
        with contextlib.suppress(PermissionError):  # a plain file as standard input cannot be watched: then we run until killed
            self._epoll.register(stdin, select.EPOLLIN)
        while True:
            wait = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            for number, events in self._epoll.poll(wait):
                if number == self.listener.fileno():
                    self._accept()
                elif number == stdin:
                    if not os.read(stdin, 4096):
                        return
                elif connection := self._connections.get(number):
                    if events & select.EPOLLOUT:
                        self._write(connection, b"")
                    if events & ~select.EPOLLOUT:
                        self._read(connection)
            self._tick()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self.listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connections[sock.fileno()] = Connection(sock)
                self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _close(self, connection: Connection) -> None:
        if not connection.closed:
            connection.closed = True
            del self._connections[connection.sock.fileno()]
            connection.sock.close()

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(262144)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        connection.inbox += data
        try:
            while (asked := connection.take()) is not None:
                self._answer(connection, *asked)
        except ValueError as error:
            self._write(connection, refusal(str(error)))
            self._close(connection)

    def _answer(self, connection: Connection, target: bytes, body: bytes) -> None:
        question = json.loads(body)
        if (name := vendors.vendor(target)) is not None:
            self._write(connection, vendors.stream(name, shape(vendors.model_of(name, target, question))[0]))
            return
        if question["model"] == RECORDED:
            self._write(connection, _ok(json.dumps(list(self._kept)).encode()))
            return
        tokens, delay = shape(question["model"])
        if (called := tool(question["model"])) is not None:
            self._kept.append(body.decode())
            results = [message["content"] for message in question["messages"] if message["role"] == "tool"]
            if any(TOOLS[called[0]][1] not in text for text in results):
                raise ValueError(f"a result of {called[0]} is not what it should be: {results[-1][-300:]!r}")
            if len(results) < called[1]:
                self._write(connection, call(called[0], len(results)))
                return
        if question.get("stream") is not True:
            self._write(connection, plain(tokens))
        elif not delay:
            self._write(connection, stream_at_once(tokens))
        else:
            parts = pieces(tokens)
            self._write(connection, parts[0])
            self._later(time.monotonic() + delay, connection, parts, 1, delay)

    def _later(self, when: float, connection: Connection, parts: list[bytes], number: int, delay: float) -> None:
        if number < len(parts):
            self._serial += 1
            heapq.heappush(self._due, (when, self._serial, connection, parts, number, delay))

    def _tick(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            when, _, connection, parts, number, delay = heapq.heappop(self._due)
            if not connection.closed:
                self._write(connection, parts[number])
                self._later(when + delay, connection, parts, number + 1, delay)

    def _write(self, connection: Connection, data: bytes) -> None:
        if connection.closed:
            return
        waiting = bool(connection.outbox)
        if waiting:
            connection.outbox += data
            data = bytes(connection.outbox)
        try:
            sent = connection.sock.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(connection)
            return
        if waiting or sent < len(data):
            connection.outbox[:] = data[sent:]
            self._epoll.modify(connection.sock.fileno(), select.EPOLLIN | (select.EPOLLOUT if connection.outbox else 0))


def main() -> None:
    """Print the port, then serve."""
    upstream = Upstream()
    print(upstream.port, flush=True)
    upstream.serve()


if __name__ == "__main__":
    main()
