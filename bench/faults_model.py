"""Stands for the library of the embedded model, in a process of its own as the real one: found as `xllamacpp`, as it lies in a folder by that name.

It loads nothing and says ten words, one each `pause` seconds. The file `mode` beside it says how it is: `well`, `exit` (it ends at its start), or
`stolen PORT` (it tells of a port that is another program's). bench.faults_children copies it; nothing imports it from here.
"""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PAUSE_SECONDS = 0.2


class CommonParams:
    """Takes every setting."""

    def __getattr__(self, name: str) -> Any:
        made = CommonParams()
        setattr(self, name, made)
        return made


class Server:
    """Serves from the moment that it is made."""

    def __init__(self, params: Any) -> None:
        mode = Path(__file__).with_name("mode").read_text().split()
        if mode[0] == "exit":
            os._exit(3)
        self._key: str = params.api_keys[0]
        _Handler.key = self._key
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = int(mode[1]) if mode[0] == "stolen" else server.server_address[1]
        self.listening_address = f"http://127.0.0.1:{port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    key = ""

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        """What shows that it lives (`/tokenize`), or an answer, streamed."""
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {self.key}":
            self._head(401, "application/json", b'{"error":{"message":"no"}}')
            return
        if self.path == "/tokenize":
            self._head(200, "application/json", b'{"tokens":[]}')
            return
        self._head(200, "text/event-stream", None)
        pause = threading.Event()
        for number, word in enumerate(WORDS):
            self._event({"choices": [{"index": 0, "delta": {"content": f"{' ' if number else ''}{word}"}, "finish_reason": None}]})
            pause.wait(PAUSE_SECONDS)
        usage = {"prompt_tokens": 5, "completion_tokens": 10, "total_tokens": 15}
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _head(self, status: int, kind: str, body: bytes | None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header(*(("Transfer-Encoding", "chunked") if body is None else ("Content-Length", str(len(body)))))
        self.end_headers()
        if body is not None:
            self.wfile.write(body)

    def _event(self, event: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
