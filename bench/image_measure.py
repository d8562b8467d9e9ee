"""What a request with 14 MB of images does to everybody else: how long others wait meanwhile. Imports bench.measure, rig and tool_measure."""

from __future__ import annotations

import base64
import json
import os
import socket
import statistics
from collections.abc import Callable

from bench.measure import Effort, Failures, Row, own, warm
from bench.rig import VENDORS, BenchError, Rig, Server, pause
from bench.tool_measure import Lag

IMAGES, BYTES, REPEATS, REST_SECONDS = 2, 14 << 20, 3, 1.0
_PNG = b"\x89PNG\r\n\x1a\n"


def body(model: str) -> bytes:
    """A request with images that are as large as they may be."""
    urls = ["data:image/png;base64," + base64.b64encode(_PNG + os.urandom(BYTES // IMAGES - len(_PNG))).decode() for _ in range(IMAGES)]
    parts = [{"type": "text", "text": "What is this?"}, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]
    return json.dumps({"model": model, "messages": [{"role": "user", "content": parts}]}).encode()


def ask(server: Server, sent: bytes) -> None:
    """One request, and its whole answer. Raises BenchError where that is not 200."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {server.secret}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\nConnection: close\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head.encode())
        connection.sendall(sent)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise BenchError(f"a request with images was answered with {answer[:300]!r}")


def images(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """Each round three requests in each format, after a while of rest; the longest wait of each is compared."""
    agents = {"chat completions": "a64", **{name: name for name in VENDORS}}
    longest: dict[str, list[float]] = {name: [] for name in agents}
    rest: list[float] = []
    with rig.subject() as server:
        warm(rig, server, failures, "subject")
        for name, agent in agents.items():
            sent = body(f"mayros:{agent}")
            ask(server, sent)
            for _ in range(effort.rounds):
                with Lag(server) as quiet:
                    pause(REST_SECONDS)
                rest.append(max(quiet.seconds) * 1e3)
                with Lag(server) as lag:
                    for _ in range(REPEATS):
                        ask(server, sent)
                longest[name].append(max(lag.seconds) * 1e3)
    base = f"{statistics.median(rest):.1f}"
    return [
        own(f"{BYTES >> 20} MB of images to {name}: longest wait, ms (first: at rest)", waits, "{:.1f}", 20, base) for name, waits in longest.items()
    ]


MEASURES: dict[str, Callable[[Rig, Failures, Effort], list[Row]]] = {"images": images}
