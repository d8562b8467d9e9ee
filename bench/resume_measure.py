"""What it takes to resume a long stream: one of 10,000 chunks that was lost just before its end, and the whole of it once more. Imports bench.rig."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from bench import wire
from bench.measure import Effort, Failures, Row, own, warm
from bench.rig import BenchError, Rig, Server

CHUNKS = 10_000


def resume(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """One client with an idempotency key: its stream, the rest of it behind one of its last events, and all of it again."""
    rest: list[float] = []
    whole: list[float] = []
    with rig.subject() as server:
        warm(rig, server, failures, "subject")
        for number in range(4 * effort.rounds):
            _, stream = _ask(server, f"bench-{number}")
            ids = [line.removeprefix(b"id: ") for line in stream.split(b"\n") if line.startswith(b"id: ")]
            if len(ids) != CHUNKS + 4:
                raise BenchError(f"a stream of {CHUNKS} chunks had {len(ids)} events")
            seconds, behind = _ask(server, f"bench-{number}", ids[-10])
            if behind.count(b"id: ") != 9:
                raise BenchError("what was resumed is not the rest of the stream")
            rest.append(seconds * 1e3)
            seconds, again = _ask(server, f"bench-{number}")
            if again.count(b"id: ") != len(ids):
                raise BenchError("what was repeated is not the stream")
            whole.append(seconds * 1e3)
    return [
        own(f"resume a stream of {CHUNKS:,} chunks at its end: ms", rest, "{:.1f}", 50.0),
        own("  get all of it again: ms", whole, "{:.1f}", 50.0),
    ]


def _ask(server: Server, key: str, after: bytes | None = None) -> tuple[float, bytes]:
    """Seconds from the request to the last byte, and the answer, on a connection of its own."""
    more = f"Connection: close\r\nIdempotency-Key: {key}\r\n".encode()
    if after is not None:
        more += b"Last-Event-ID: " + after + b"\r\n"
    line, _, rest = wire.request(f"mayros:a{CHUNKS}", True, server.secret).partition(b"\r\n")
    parts: list[bytes] = []
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        began = time.perf_counter()
        connection.sendall(line + b"\r\n" + more + rest)
        while part := connection.recv(1 << 18):
            parts.append(part)
        seconds = time.perf_counter() - began
    answer = b"".join(parts)
    if b"data: [DONE]" not in answer[-200:]:
        raise BenchError(f"a stream did not end as it should: {answer[:200]!r} ... {answer[-200:]!r}")
    return seconds, answer


MEASURES: dict[str, Callable[[Rig, Failures, Effort], list[Row]]] = {"resume": resume}
