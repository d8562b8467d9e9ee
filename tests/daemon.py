"""A real gateway process and a real (small) model server on loopback, for the few tests that need them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.forking import Forked

TOKEN = "process-token-0123456789"
ROOT = Path(__file__).parent.parent
#: `mayros`, as this Python runs it.
MAYROS = (sys.executable, "-c", "from mayros.cli.main import main; main()")


class Upstream:
    """Answers chat completions, streamed: "one two three", unless there is a `script`.

    `hold()` stops it after the first word until `go()`; `closed` is set when a client has left. `script`: the next answers in order, each a text, or
    the tools that are called with their arguments.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.asked: list[dict[str, Any]] = []
        self.script: list[str | list[tuple[str, dict[str, Any]]]] = []
        self.closed = threading.Event()
        self._go = threading.Event()
        self._go.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self) -> None:
        self._go.clear()

    def go(self) -> None:
        self._go.set()

    def close(self) -> None:
        self._go.set()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            try:
                while stream.readline():
                    length = 0
                    while (line := stream.readline()) not in (b"\r\n", b""):
                        name, _, value = line.partition(b":")
                        if name.lower() == b"content-length":
                            length = int(value)
                    self.asked.append(json.loads(stream.read(length)))
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                    answer = self.script.pop(0) if self.script else None
                    if isinstance(answer, list):
                        self._event(connection, {"choices": [{"index": 0, "delta": {"tool_calls": _calls(answer)}, "finish_reason": None}]})
                    else:
                        for word in ("one", " two", " three") if answer is None else (answer,):
                            self._event(connection, {"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
                            self._wait(connection)
                    reason = "tool_calls" if isinstance(answer, list) else "stop"
                    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
                    self._event(connection, {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}], "usage": usage})
                    connection.sendall(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            except (OSError, ValueError):
                self.closed.set()

    def _wait(self, connection: socket.socket) -> None:
        """Until `go`, or until the client leaves."""
        while not self._go.wait(0.02):
            connection.settimeout(0.001)
            try:
                if connection.recv(1) == b"":
                    raise OSError
            except TimeoutError:
                pass
            finally:
                connection.settimeout(None)

    @staticmethod
    def _event(connection: socket.socket, chunk: dict[str, Any]) -> None:
        connection.sendall(_chunk(b"data: " + json.dumps(chunk).encode() + b"\n\n"))


def _calls(made: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Calls as a provider streams them."""
    return [
        {"index": number, "id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for number, (name, arguments) in enumerate(made)
    ]


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Daemon:
    """A gateway on a state directory of its own. `start` waits until it is ready."""

    def __init__(self, folder: Path, upstream: Upstream | None = None, changes: dict[str, Any] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.state, self.log = folder.resolve(), folder.resolve() / "state", folder.resolve() / "gateway.log"
        self.port = free_port()
        self.config: dict[str, Any] = {
            "gateway": {
                "mode": "local",
                "port": self.port,
                "auth": {"token": TOKEN},
                "http": {"endpoints": {"chatCompletions": {"enabled": True}}},
                "shutdown": {"graceMs": 2_000},
                **(changes or {}),
            },
            "agents": {"defaults": {"model": "mock/m"}},
            "models": {"providers": {"mock": {"baseUrl": f"http://127.0.0.1:{upstream.port if upstream else 1}/v1", "apiKey": "k"}}},
        }
        self.process: subprocess.Popen[bytes] | Forked | None = None

    @property
    def environ(self) -> dict[str, str]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("MAYROS_")}
        return environ | {"HOME": str(self.folder), "MAYROS_STATE_DIR": str(self.state), "MAYROS_CONFIG_PATH": str(self.folder / "mayros.json")}

    def command(self, *options: str, cli: bool = False) -> list[str]:
        """The command line of the daemon: twistd, or `mayros gateway run`."""
        if cli:
            return [*MAYROS, "gateway", "run", *options]
        return [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=", "mayros", *options]

    def spawn(self, *options: str, cli: bool = False) -> subprocess.Popen[bytes] | Forked:
        (self.folder / "mayros.json").write_text(json.dumps(self.config))
        with self.log.open("ab") as log:
            self.process = self._begin(self.command(*options, cli=cli), log)
        return self.process

    def _begin(self, argv: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes] | Forked:
        return subprocess.Popen(argv, cwd=self.folder, env=self.environ | python_path(), stdout=log, stderr=log)

    def _run(self, argv: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        environ = self.environ | python_path()
        return subprocess.run(argv, cwd=self.folder, env=environ, capture_output=True, text=True, timeout=seconds, check=False)

    def start(self, *options: str, cli: bool = False) -> None:
        process = self.spawn(*options, cli=cli)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if self.request("GET", "/readyz")[0] == 200:
                    return
            except OSError:
                pass
            threading.Event().wait(0.02)
        raise AssertionError(f"the gateway did not become ready:\n{self.log.read_text(errors='replace')}")

    def refused(self, *options: str, cli: bool = False) -> tuple[int, str]:
        """Start it where it must not start: exit status and what it printed."""
        (self.folder / "mayros.json").write_text(json.dumps(self.config))
        done = self._run(self.command(*options, cli=cli), 20)
        return done.returncode, done.stderr

    def mayros(self, *arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """A command, beside the gateway."""
        return self._run([*MAYROS, *arguments], seconds)

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        connection = self._connect()
        try:
            data = None if body is None else json.dumps(body)
            fields = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json", **headers}
            connection.request(method, path, data, fields)
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()

    def stream(self, body: dict[str, Any]) -> socket.socket:
        """Send a streamed request and return the socket, to be read by the test."""
        data = json.dumps({**body, "stream": True}).encode()
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
        connection.sendall(head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return connection

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


class Quick(Daemon):
    """The same, and its commands, by a fork of a process that has loaded the program; see forking.py."""

    def _begin(self, argv: Sequence[str], log: IO[bytes]) -> Forked:
        from tests.forking import loader

        return loader().start(argv, self.environ | python_path(), self.folder, log, log)

    def _run(self, argv: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        from tests.forking import loader

        return loader().run(argv, self.environ | python_path(), self.folder, seconds)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def python_path() -> dict[str, str]:
    """The project of these tests, if it is run from its tree; an installed copy is found anyway."""
    return {"PYTHONPATH": str(ROOT)} if (ROOT / "mayros").is_dir() else {}


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    """What comes, up to and with `mark`; or everything, when the other side closes first."""
    data = b""
    while mark not in data:
        piece = connection.recv(65_536)
        if not piece:
            break
        data += piece
    return data
