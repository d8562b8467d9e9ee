"""The processes of a benchmark run and what /proc says about them. Linux only. Imports bench.wire.

Everything started here is ended here, by its own process id, whatever happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import wire

ROOT = Path(__file__).resolve().parent.parent
#: Agents of the gateway under test, each with the mock model of the same digits.
SHAPES = ("8", "64", "10000", "50x50ms", "400x5ms", "read4-8", "exec1-8")
#: Agents whose model streams 64 tokens in another wire format: that format, and the path of its base URL.
VENDORS = {"anthropic": ("anthropic-messages", ""), "responses": ("openai-responses", "/v1"), "google": ("google-generative-ai", "/v1beta")}
INSTRUCTIONS = """# Instructions

You are the assistant of a small team. Answer in the language of the question, shortly and exactly. Say so when you do not know something.
Do not repeat the question. Give numbers with their units. Prefer a plain sentence to a list, and a list to a table.
When a request is unclear, choose the most likely meaning, say which one you chose, and answer it.
"""


class BenchError(Exception):
    """The run cannot go on; the text says why."""


def pause(seconds: float) -> None:
    """Wait, in a process that has nothing else to do."""
    select.select((), (), (), max(0.0, seconds))


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process so far, from the scheduler's statistics."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fsync_seconds(folder: Path, count: int = 50) -> float:
    """Median time to append 4 KiB to a file and have it on disk."""
    times = []
    with open(folder / "fsync", "wb", buffering=0) as file:
        for _ in range(count):
            began = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    (folder / "fsync").unlink()
    return sorted(times)[count // 2]


def filesystem(folder: Path) -> str:
    """Type of the file system that holds a folder."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [(len(at), kind) for at, kind in mounts if folder.resolve().is_relative_to(at)]
    return max(holding)[1] if holding else "unknown"


def free_port() -> int:
    """A loopback port that nobody listens on, for IPv6 too where there is IPv6."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


class Process:
    """A child. `first_line` waits for what it prints when it is ready."""

    def __init__(self, command: list[str], folder: Path, name: str, cores: set[int] | None, pipes: bool, environ: dict[str, str]) -> None:
        self.name, self.log_path = name, folder / f"{name}.log"
        pipe = subprocess.PIPE if pipes else None
        with open(self.log_path, "ab") as log:
            self.popen = subprocess.Popen(
                command, cwd=folder, env=environ, stdin=pipe or subprocess.DEVNULL, stdout=pipe or log, stderr=log, start_new_session=True
            )
        self._rest = b""
        if cores:
            os.sched_setaffinity(self.popen.pid, cores)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.popen.pid

    def say(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(line.encode() + b"\n")
        self.popen.stdin.flush()

    def line(self, limit: float, meanwhile: Callable[[], None] | None = None) -> str:
        """The next line of its standard output, within `limit` seconds; `meanwhile` is called about each 20 ms."""
        assert self.popen.stdout is not None
        give_up = time.monotonic() + limit
        while b"\n" not in self._rest:
            left = give_up - time.monotonic()
            if left <= 0:
                raise BenchError(f"{self.name} said nothing within {limit:.0f} s")
            if meanwhile is not None:
                meanwhile()
            if select.select([self.popen.stdout], (), (), min(left, 0.02 if meanwhile else left))[0]:
                data = os.read(self.popen.stdout.fileno(), 1 << 20)
                if not data:
                    raise BenchError(f"{self.name} ended: {self.tail()}")
                self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def tail(self) -> str:
        """The end of its log."""
        return self.log_path.read_bytes()[-2000:].decode("utf-8", "replace").strip() or "it logged nothing"

    def end(self) -> None:
        """TERM, then KILL after five seconds."""
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(5)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait(5)


class Server:
    """A server under test: the floor or the gateway."""

    def __init__(self, process: Process, port: int, secret: str, started_in: float) -> None:
        self.process, self.port, self.secret, self.started_in = process, port, secret, started_in
        self.pid = process.pid


class Rig:
    """The upstream, the load generator and the servers. Use it in `with`.

    `gateway`: whether the subject is the gateway; if not, the floor stands in for it (to try the benchmark itself).
    `busiest`: the largest share of a core that load generator and upstream together have used; near 1 they would be what is measured.
    `pin`: servers on the first core, all else on the second. `deadline`: `time.monotonic()` at which the whole run gives up.
    """

    def __init__(self, folder: Path, gateway: bool, pin: bool, deadline: float) -> None:
        self.folder, self.gateway, self.deadline = folder, gateway, deadline
        cores = sorted(os.sched_getaffinity(0))
        pin = pin and len(cores) > 1
        self.server_cores = {cores[0]} if pin else None
        self.other_cores = set(cores[1:]) if pin else None
        self.busiest = 0.0
        if self.other_cores:
            os.sched_setaffinity(0, self.other_cores)
        self.environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith("MAYROS_")},
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder),
            "MAYROS_STATE_DIR": str(folder / "state"),
        }
        self._serial = 0
        self._running: list[Process] = []
        self._ws_load: Process | None = None

    def __enter__(self) -> Rig:
        try:
            self.upstream = self._start("upstream", ["-m", "bench.upstream"], self.other_cores)
            self.upstream_port = int(self.upstream.line(10))
            self.load = self._start("load", ["-m", "bench.load"], self.other_cores)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        while self._running:
            self._running.pop().end()

    def _start(self, name: str, arguments: list[str], cores: set[int] | None, pipes: bool = True, state: str = "state") -> Process:
        environ = self.environ | {"MAYROS_STATE_DIR": str(self.folder / state)}
        process = Process([sys.executable, *arguments], self.folder, name, cores, pipes, environ)
        self._running.append(process)
        return process

    def left(self, limit: float) -> float:
        """`limit` seconds, or what is left of the whole run if that is less."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise BenchError("the time for the whole run is used up")
        return min(limit, left)

    @contextlib.contextmanager
    def floor(self) -> Iterator[Server]:
        """A fresh floor."""
        self._serial += 1
        arguments = ["-m", "bench.floor", str(self.upstream_port), str(self.folder / f"floor-{self._serial}-access.log")]
        began = time.monotonic()
        process = self._start(f"floor-{self._serial}", arguments, self.server_cores)
        try:
            port = int(process.line(self.left(15)))
            yield Server(process, port, "x", time.monotonic() - began)
        finally:
            self._stop(process)

    @contextlib.contextmanager
    def ws_floor(self, answer: str = "") -> Iterator[Server]:
        """A fresh floor of the WebSocket measures; `answer` is the answer that it gives to each request."""
        self._serial += 1
        path = self.folder / f"answer-{self._serial}.json"
        path.write_text(answer or "{}")
        began = time.monotonic()
        process = self._start(f"ws-floor-{self._serial}", ["-m", "bench.ws_floor", str(path)], self.server_cores)
        try:
            port = int(process.line(self.left(15)))
            yield Server(process, port, "", time.monotonic() - began)
        finally:
            self._stop(process)

    @contextlib.contextmanager
    def subject(self, dead: int = 0, metrics: bool = False) -> Iterator[Server]:
        """A fresh process of what is under test, on the state directory of this run. `dead`: agents `dead0` ... whose primary refuses connections.

        `metrics`: with `/metrics`, and a state directory of its own.
        """
        if not self.gateway:
            with self.floor() as server:
                yield server
            return
        self._serial += 1
        port, secret = free_port(), secrets.token_hex(16)
        config = self._configure(port, secret, dead, metrics)
        twistd = ["-c", "from twisted.scripts.twistd import run; run()"]  # `python -m twisted` is `twist`, another program
        arguments = [*twistd, "-n", "--pidfile=", "mayros", "--config", str(config), "--port", str(port)]
        began = time.monotonic()
        process = self._start(f"mayros-{self._serial}", arguments, self.server_cores, pipes=False, state="measured" if metrics else "state")
        try:
            give_up = began + self.left(30)
            while not self._listening(port):
                if process.popen.poll() is not None:
                    raise BenchError(f"the gateway ended with status {process.popen.returncode}: {process.tail()}")
                if time.monotonic() > give_up:
                    raise BenchError(f"the gateway did not listen within 30 s: {process.tail()}")
                pause(0.002)
            yield Server(process, port, secret, time.monotonic() - began)
        finally:
            self._stop(process)

    def _stop(self, process: Process) -> None:
        process.end()
        if process in self._running:
            self._running.remove(process)

    @staticmethod
    def _listening(port: int) -> bool:
        with socket.socket() as sock:
            sock.settimeout(1)
            return sock.connect_ex(("127.0.0.1", port)) == 0

    def _configure(self, port: int, secret: str, dead: int, metrics: bool) -> Path:
        """Write the gateway's configuration: one agent for each mock model, one workspace with instructions for all."""
        workspace = self.folder / "workspace"
        workspace.mkdir(exist_ok=True)
        (workspace / "AGENTS.md").write_text(INSTRUCTIONS)
        (workspace / wire.NOTES[0]).write_text(wire.NOTES[1])
        config = {
            "gateway": {
                "mode": "local",
                "port": port,
                "auth": {"mode": "token", "token": secret},
                "http": {"endpoints": {"chatCompletions": {"enabled": True}}},
                # all 500 clients come from one address
                "limits": {"maxConnectionsPerAddress": 4096},
                "metrics": {"enabled": metrics},
            },
            "agents": {
                "list": [
                    *({"id": f"a{shape}", "model": f"mock/mock-{shape}", "workspace": str(workspace)} for shape in SHAPES),
                    *(
                        {"id": f"dead{n}", "model": {"primary": f"dead{n}/x", "fallbacks": ["mock/mock-8"]}, "workspace": str(workspace)}
                        for n in range(dead)
                    ),
                    *({"id": name, "model": f"mock-{name}/mock-64", "workspace": str(workspace)} for name in VENDORS),
                ]
            },
            # nobody is there to be asked
            "tools": {"exec": {"security": "full", "ask": "off"}},
            "models": {
                "providers": {
                    "mock": {
                        "baseUrl": f"http://127.0.0.1:{self.upstream_port}/v1",
                        "apiKey": "mock-key-0123456789",
                        "api": "openai-completions",
                        "models": [{"id": f"mock-{shape}", "input": ["text", "image"]} for shape in SHAPES],
                    },
                    **{
                        f"mock-{name}": {
                            "baseUrl": f"http://127.0.0.1:{self.upstream_port}{path}",
                            "apiKey": "mock-key-0123456789",
                            "api": api,
                            "models": [{"id": "mock-64", "input": ["text", "image"]}],
                        }
                        for name, (api, path) in VENDORS.items()
                    },
                    **{f"dead{n}": {"baseUrl": f"http://127.0.0.1:{free_port()}/v1", "models": [{"id": "x"}]} for n in range(dead)},
                }
            },
        }
        path = self.folder / ("measured.json" if metrics else "mayros.json")
        path.write_text(json.dumps(config, indent=2))
        path.chmod(0o600)
        return path

    def drive(
        self,
        server: Server,
        shape: str,
        stream: bool,
        clients: int,
        seconds: float = 0,
        requests: int = 0,
        limit: float = 30,
        meanwhile: Callable[[], None] | None = None,
        agent: str | None = None,
    ) -> Result:
        """Put load on a server. `seconds` or `requests` says how much, `limit` how long an answer may stay away. `agent`: not the shape's."""
        limit = self.left(seconds + limit)
        job: dict[str, Any] = {
            "port": server.port,
            "request": wire.request(f"mayros:{agent or f'a{shape}'}", stream, server.secret).decode(),
            "tokens": wire.shape(shape)[0],
            "stream": stream,
            "clients": clients,
            "seconds": seconds,
            "requests": requests,
            "limit": limit,
        }
        answer = self._work(self.load, server, job, meanwhile)
        return Result(answer, job["tokens"], answer["cpu"])

    def sockets(self, server: Server, limit: float = 60, **job: Any) -> dict[str, Any]:
        """A job of bench.ws_load on a server; `cpu` in the answer is the server's CPU seconds. Whether anything `failed` is for the caller to see."""
        if self._ws_load is None:
            self._ws_load = self._start("ws-load", ["-m", "bench.ws_load"], self.other_cores)
        return self._work(self._ws_load, server, job | {"port": server.port, "limit": self.left(limit)})

    def _work(self, generator: Process, server: Server, job: dict[str, Any], meanwhile: Callable[[], None] | None = None) -> dict[str, Any]:
        """What a generator of load answers to a job; `cpu` is the server's CPU seconds."""
        before, ours = cpu_seconds(server.pid), self._own_cpu()
        generator.say(json.dumps(job))
        answer: dict[str, Any] = json.loads(generator.line(job["limit"] + 30, meanwhile))
        if server.process.popen.poll() is not None:
            raise BenchError(f"{server.process.name} ended under load: {server.process.tail()}")
        if "error" in answer:
            raise BenchError(f"the load generator could not reach {server.process.name}: {answer['error']}")
        answer["cpu"] = cpu_seconds(server.pid) - before
        if answer.get("seconds", 0) > 0.5:
            self.busiest = max(self.busiest, (self._own_cpu() - ours) / answer["seconds"])
        return answer

    def _own_cpu(self) -> float:
        ours = [self.load, self.upstream, *([self._ws_load] if self._ws_load else ())]
        return sum(cpu_seconds(process.pid) for process in ours)


class Result:
    """What one stretch of load brought."""

    def __init__(self, answer: dict[str, Any], tokens: int, cpu: float) -> None:
        self.done: int = answer["done"]
        self.failed: int = answer["failed"]
        self.why: str | None = answer["why"]
        self.first: list[float] = answer["first"]
        self.whole: list[float] = answer["whole"]
        self.rate: float = self.done / answer["seconds"]
        self.chunk_rate = self.rate * tokens
        self.cpu = cpu / max(1, self.done)

    def first_token(self, share: float) -> float:
        """Seconds to the first token that `share` of the answers kept within."""
        return self.first[min(len(self.first) - 1, int(len(self.first) * share))] if self.first else float("nan")
