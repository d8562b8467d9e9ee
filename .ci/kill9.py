"""Kills the gateway with SIGKILL at random moments under load and looks, after each restart, for a turn that was lost or doubled.

    python .ci/kill9.py [--rounds N] [--seconds S] [--seed N]

A daemon (twistd of this Python) on a temporary state directory; a mock model on loopback in this process; 16 conversations that post turn after
turn, half of them streamed, half with an idempotency key. A turn counts as acknowledged when its whole answer arrived: the JSON, or the stream up
to `[DONE]`. After each kill the gateway is started again and must become ready, the store must pass SQLite's integrity check, and each acknowledged
turn must be in it exactly once and in order; a turn without acknowledgement may be there once or not at all. Before that, keyed turns that were not
acknowledged are sent once more: they are answered, or said to have been stopped, and are in the store once at most all the same. Only processes that
this script started are ended.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SESSIONS = 16
TOKEN = "kill9-" + os.urandom(16).hex()
MARKER = re.compile(r"turn-\d+-\d+-[0-9a-f]{8}")


#: What must not be there, and how many of it there are.
CONNECTED = {
    "entries whose parent is missing": (
        "SELECT count(*) FROM entries LEFT JOIN entries AS parent ON parent.id = entries.parent_id "
        "WHERE entries.parent_id IS NOT NULL AND parent.session_id IS NOT entries.session_id"
    ),
    "entries without a session": "SELECT count(*) FROM entries WHERE session_id NOT IN (SELECT session_id FROM sessions)",
    "runs that count as live": "SELECT count(*) FROM idempotency WHERE state = 'live'",
}


class Upstream:
    """A chat-completions server that answers `heard <marker>` in a few chunks with short pauses, on raw sockets."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._pause = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                while stream.readline():
                    length = 0
                    while (line := stream.readline()) not in (b"\r\n", b""):
                        name, _, value = line.partition(b":")
                        if name.lower() == b"content-length":
                            length = int(value)
                    self._answer(connection, json.loads(stream.read(length)))
            except (OSError, ValueError):
                return  # the gateway was killed in the middle

    def _answer(self, connection: socket.socket, request: dict[str, Any]) -> None:
        found = MARKER.findall(json.dumps(request["messages"][-1]))
        words = f"heard {found[-1] if found else 'nothing'} and that is all".split(" ")
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head)
        for number, word in enumerate(words):
            self._pause.wait(random.uniform(0, 0.01))
            self._event(connection, {"content": word if number == 0 else " " + word}, None)
        self._event(connection, {}, "stop", {"prompt_tokens": 5, "completion_tokens": len(words), "total_tokens": 5 + len(words)})
        connection.sendall(self._chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    def _event(self, connection: socket.socket, delta: dict[str, str], reason: str | None, usage: dict[str, int] | None = None) -> None:
        choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
        event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "mock", "choices": choices, "usage": usage}
        connection.sendall(self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n"))

    @staticmethod
    def _chunk(data: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(data), data)


class Daemon:
    """The gateway as a child process."""

    def __init__(self, home: Path, port: int) -> None:
        self.home, self.port, self.log = home, port, home / "gateway.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it and wait until it is ready; seconds that took. Raises RuntimeError with the end of its log."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("MAYROS_")}
        environ |= {"HOME": str(self.home), "MAYROS_STATE_DIR": str(self.home / "state"), "MAYROS_CONFIG_PATH": str(self.home / "mayros.json")}
        begun = time.monotonic()
        with self.log.open("ab") as log:
            twistd = Path(sys.executable).parent / "twistd"
            self.process = subprocess.Popen([twistd, "-n", "--pidfile=", "mayros"], cwd=self.home, env=environ, stdout=log, stderr=log)
        while time.monotonic() - begun < 30:
            if self.process.poll() is not None:
                break
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    return time.monotonic() - begun
            except (OSError, http.client.HTTPException):
                pass
            threading.Event().wait(0.05)
        status = self.process.poll()
        raise RuntimeError(f"the gateway did not become ready (exit status {status}); its log ends:\n{self.tail()}")

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)

    def tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-25:]) if self.log.exists() else ""


def user(number: int, turn: int) -> str:
    """OpenAI's `user` of a turn: a new session each 50 turns, or long runs would measure the length of histories."""
    return f"kill9-{number}-{turn // 50}"


class Conversation:
    """One session: posts turns until told to stop, and remembers which were sent and which were acknowledged, in order."""

    def __init__(self, number: int, port: int) -> None:
        self.number, self.port = number, port
        self.sent: list[str] = []
        self.acknowledged: list[str] = []
        self.refused: collections.Counter[str] = collections.Counter()
        #: How many turns were sent once more, and how many of these were answered.
        self.repeated = self.replayed = 0

    def run(self, stop: threading.Event) -> None:
        """Post turn after turn over one connection until `stop`, or until the gateway is gone."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            while not stop.is_set():
                self._turn(connection)
        except (OSError, http.client.HTTPException):
            return  # killed: this turn stays without acknowledgement
        finally:
            connection.close()

    def _turn(self, connection: http.client.HTTPConnection) -> None:
        self.sent.append(f"turn-{self.number}-{len(self.sent)}-{os.urandom(4).hex()}")
        status, data = self._ask(connection)
        if status != 200:
            self.refused[f"{status} {data[:200]!r}"] += 1

    def _ask(self, connection: http.client.HTTPConnection) -> tuple[int, bytes]:
        """Send the newest turn; status and body of what came."""
        turn, marker = len(self.sent) - 1, self.sent[-1]
        streamed = turn % 2 == 1
        body = {
            "model": "mayros",
            "user": user(self.number, turn),
            "stream": streamed,
            "messages": [{"role": "user", "content": f"say {marker}"}],
        }
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        if self._keyed(turn):
            headers["Idempotency-Key"] = marker
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        data = response.read()
        if response.status == 200:
            whole = data.endswith(b"data: [DONE]\n\n") if streamed else marker in json.loads(data)["choices"][0]["message"]["content"]
            if whole:
                self.acknowledged.append(marker)
        return response.status, data

    @staticmethod
    def _keyed(turn: int) -> bool:
        return turn % 4 < 2

    def repeat(self) -> str | None:
        """After a kill: the newest turn once more, if it has a key and was not acknowledged. What is wrong with the answer."""
        if not self.sent or not self._keyed(len(self.sent) - 1) or self.sent[-1] in self.acknowledged[-1:]:
            return None
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            status, data = self._ask(connection)
        except (OSError, http.client.HTTPException) as error:
            return f"no answer to the repeat of {self.sent[-1]}: {error!r}"
        finally:
            connection.close()
        self.repeated += 1
        if status == 200 and self.sent[-1] in self.acknowledged[-1:]:
            self.replayed += 1
            return None
        return None if status == 503 and b'"server_shutdown"' in data else f"the repeat of {self.sent[-1]}: {status} {data[:200]!r}"


def check(store: Path, conversations: list[Conversation]) -> list[str]:
    """What is wrong with the store: an empty list when all is well."""
    wrong: list[str] = []
    database = sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=10)
    try:
        (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
        if verdict != "ok":
            wrong.append(f"integrity_check: {verdict}")
        rows = database.execute("SELECT sessions.key, entries.body FROM entries JOIN sessions USING (session_id) ORDER BY entries.id").fetchall()
        for what, query in CONNECTED.items():
            (number,) = database.execute(query).fetchone()
            if number:
                wrong.append(f"{number} {what}")
    finally:
        database.close()
    said: dict[int, list[str]] = collections.defaultdict(list)
    heard: collections.Counter[str] = collections.Counter()
    for key, message in rows:
        content = json.loads(message)
        for marker in MARKER.findall(str(content.get("content"))):
            number, turn = (int(part) for part in marker.split("-")[1:3])
            if key != f"agent:main:openai-user:{user(number, turn)}":
                wrong.append(f"in the wrong session: {marker} in {key}")
            if content.get("role") == "user":
                said[number].append(marker)
            else:
                heard[marker] += 1
    for conversation in conversations:
        markers = said.get(conversation.number, [])
        counted = collections.Counter(markers)
        acknowledged = set(conversation.acknowledged)
        wrong += [f"lost: {marker} was acknowledged" for marker in conversation.acknowledged if not counted[marker]]
        wrong += [f"its answer is lost: {marker}" for marker in conversation.acknowledged if counted[marker] and not heard[marker]]
        wrong += [f"doubled: {marker}, {number} times" for marker, number in counted.items() if number > 1]
        wrong += [f"answered {heard[marker]} times: {marker}" for marker in counted if heard[marker] > 1]
        wrong += [f"from nowhere: {marker}" for marker in counted if marker not in set(conversation.sent)]
        if [marker for marker in markers if marker in acknowledged] != conversation.acknowledged:
            wrong.append(f"conversation {conversation.number} is out of order")
    return wrong


def configuration(port: int, upstream: int) -> str:
    """The gateway's configuration: the mock model only."""
    return json.dumps(
        {
            "gateway": {
                "mode": "local",
                "port": port,
                "auth": {"mode": "token", "token": TOKEN},
                "http": {"endpoints": {"chatCompletions": {"enabled": True}}},
            },
            "agents": {"defaults": {"model": {"primary": "mock/mock"}, "skipBootstrap": True}},
            "models": {
                "providers": {
                    "mock": {
                        "baseUrl": f"http://127.0.0.1:{upstream}/v1",
                        "apiKey": "not-a-secret",
                        "models": [{"id": "mock", "contextWindow": 1_000_000}],
                    }
                }
            },
        }
    )


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def main() -> int:
    options = argparse.ArgumentParser(description="kill -9 the gateway under load and look for lost or doubled turns")
    options.add_argument("--rounds", type=int, default=3, help="how many kills (3)")
    options.add_argument("--seconds", type=float, default=4.0, help="the longest load before a kill (4)")
    options.add_argument("--seed", type=int, default=None, help="repeat a run's moments")
    chosen = options.parse_args()
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(1 << 32)
    moments = random.Random(seed)

    home = Path(tempfile.mkdtemp(prefix="mayros-kill9-"))
    upstream = Upstream()
    daemon = Daemon(home, free_port())
    config = home / "mayros.json"
    config.touch(0o600)
    config.write_text(configuration(daemon.port, upstream.port))
    conversations = [Conversation(number, daemon.port) for number in range(SESSIONS)]
    store = home / "state" / "mayros.db"
    wrong: list[str] = []
    try:
        for number in range(chosen.rounds):
            ready = daemon.start()
            before = sum(len(each.acknowledged) for each in conversations)
            stop = threading.Event()
            threads = [threading.Thread(target=each.run, args=(stop,), daemon=True) for each in conversations]
            for thread in threads:
                thread.start()
            moment = moments.uniform(0.4, max(0.5, chosen.seconds))
            threading.Event().wait(moment)
            daemon.kill()
            stop.set()
            for thread in threads:
                thread.join(30)
            again = daemon.start()
            wrong = [fault for each in conversations if (fault := each.repeat()) is not None]
            wrong += check(store, conversations)
            gained = sum(len(each.acknowledged) for each in conversations) - before
            say(f"round {number + 1}: ready in {ready:.1f} s, killed after {moment:.2f} s, {gained} turns acknowledged, ready again in {again:.1f} s")
            if not gained and moment > 2:
                wrong.append("no turn at all was acknowledged")
            if wrong:
                break
            if number + 1 < chosen.rounds:
                daemon.kill()
        else:
            status = daemon.stop()
            # twistd drains and then dies of the signal.
            if status not in (0, -signal.SIGTERM):
                wrong.append(f"SIGTERM ended the gateway with status {status}")
    except (RuntimeError, sqlite3.Error, subprocess.TimeoutExpired) as failure:
        wrong.append(str(failure))
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.kill()
    refused = sum((each.refused for each in conversations), collections.Counter[str]())
    for reason, times in refused.most_common(5):
        say(f"refused {times} times: {reason}")
    for line in wrong[:20]:
        say(line)
    sent = sum(len(each.sent) for each in conversations)
    acknowledged = sum(len(each.acknowledged) for each in conversations)
    say(f"{sum(each.repeated for each in conversations)} sent once more, {sum(each.replayed for each in conversations)} of them answered")
    verdict = "each acknowledged turn is there once" if not wrong else f"{len(wrong)} faults, log and store kept in {home}"
    say(f"{chosen.rounds} rounds, seed {seed}: {sent} turns sent, {acknowledged} acknowledged: {verdict}")
    if not wrong:
        shutil.rmtree(home)
    return 1 if wrong else 0


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
