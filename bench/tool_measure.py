"""The measures of tools: what a round of calls costs, and what commands that flood the gateway do to it. Imports bench.measure, rig and wire."""

from __future__ import annotations

import json
import socket
import statistics
import threading
import time
from collections.abc import Callable

from bench import wire
from bench.measure import MB, Effort, Failures, Peak, Row, own, warm
from bench.rig import BenchError, Rig, Server, pause

READS, CALLS = "read4-8", "exec1-8"
ROUNDS, RUNS = 4, 30
COMMANDS = 50
#: Seconds between two looks at the gateway's lag.
EVERY = 0.01


class Bare:
    """Makes requests to the upstream, one after the other on one connection."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """No more requests."""
        self._sock.close()

    def recorded(self) -> list[bytes]:
        """The requests of the last run, as the upstream got them."""
        answer = self._ask(self._request(json.dumps({"model": wire.RECORDED}).encode()), b"]")
        bodies: list[str] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return [self._request(body.encode()) for body in bodies]

    def make(self, requests: list[bytes]) -> float:
        """Make them; how many seconds that took."""
        began = time.perf_counter()
        for request in requests:
            self._ask(request, b"\r\n0\r\n\r\n")
        return time.perf_counter() - began

    def _ask(self, request: bytes, end: bytes) -> bytes:
        self._sock.sendall(request)
        answer = bytearray()
        while not answer.endswith(end):
            data = self._sock.recv(262144)
            if not data:
                raise BenchError(f"the upstream closed a bare connection: {bytes(answer[-300:])!r}")
            answer += data
        return bytes(answer)

    @staticmethod
    def _request(body: bytes) -> bytes:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body


class Lag:
    """Asks for /healthz each 10 ms while in `with`; `seconds` has how long each answer took."""

    def __init__(self, server: Server) -> None:
        self._sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.seconds: list[float] = []

    def __enter__(self) -> Lag:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sock.close()

    def _look(self) -> None:
        while not self._stop.is_set():
            asked = time.perf_counter()
            self._sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            answer = self._sock.recv(65536)
            took = time.perf_counter() - asked
            if not answer.startswith(b"HTTP/1.1 200 "):
                return
            self.seconds.append(took)
            # Whoever would have asked meanwhile would have waited too.
            while (took := took - EVERY) > 0:
                self.seconds.append(took)
            self._stop.wait(max(0.0, asked + EVERY - time.perf_counter()))


def rounds(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """Runs of four rounds, each a `read` of a small file, beside the very requests that such a run makes, made bare."""
    bare_ms: list[float] = []
    own_ms: list[float] = []
    bare = Bare(rig.upstream_port)
    try:
        with rig.subject() as server:
            warm(rig, server, failures, "subject")
            failures.note("subject", rig.drive(server, READS, False, 1, requests=RUNS))
            requests = bare.recorded()
            if len(requests) != ROUNDS + 1:
                raise BenchError(f"a run made {len(requests)} requests instead of {ROUNDS + 1}")
            bare.make(requests)
            for _ in range(effort.rounds):
                bare_ms.append(statistics.median(bare.make(requests) for _ in range(RUNS)) * 1e3)
                result = failures.note("subject", rig.drive(server, READS, False, 1, requests=RUNS))
                own_ms.append(statistics.median(result.whole or [float("nan")]) * 1e3)
    finally:
        bare.close()
    more = [(mine - other) / ROUNDS for mine, other in zip(own_ms, bare_ms, strict=True)]
    value = statistics.median(more)
    return [
        Row(
            f"a run of {ROUNDS} tool rounds beside its {ROUNDS + 1} requests made bare: p50, ms",
            f"{statistics.median(bare_ms):.2f}",
            f"{statistics.median(own_ms):.2f}",
            value,
            f"{value:+.2f} a round",
            "<= +3.00 ms",
            value <= 3.0,
            more,
        )
    ]


def flood(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """50 runs at once, each with a command that puts out 10 MB: memory of the gateway, and how long it takes to answer others meanwhile."""
    highest: list[float] = []
    late: list[float] = []
    took: list[float] = []
    before = 0
    for _ in range(max(1, effort.bursts - 1)):
        with rig.subject() as server:
            warm(rig, server, failures, "subject")
            failures.note("subject", rig.drive(server, CALLS, False, 1, requests=1))
            pause(0.2)
            memory = Peak(server)
            before = memory.before
            with Lag(server) as lag:
                result = failures.note("subject", rig.drive(server, CALLS, False, COMMANDS, requests=COMMANDS, meanwhile=memory))
            if not lag.seconds:
                raise BenchError("the gateway did not answer /healthz while commands ran")
            highest.append(memory.highest / MB)
            late.append(sorted(lag.seconds)[int(len(lag.seconds) * 0.99)] * 1e3)
            took.append(max(result.whole or [float("nan")]))
    each = wire.OUTPUT_BYTES / MB
    return [
        own(f"{COMMANDS} exec calls at once, {each:.0f} MB output each: memory, MB ({before / MB:.0f} before)", highest, "{:.1f}", 150),
        own("  answer to /healthz meanwhile: p99, ms", late, "{:.1f}", 50),
        Row("  until all are done, s", "", f"{statistics.median(took):.1f}", 0, "", "", True, took),
    ]


MEASURES: dict[str, Callable[[Rig, Failures, Effort], list[Row]]] = {"tools": rounds, "exec": flood}
