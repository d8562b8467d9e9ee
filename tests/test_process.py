"""Real processes and sockets: the few things that cannot be shown in memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import openai
from twisted.trial.unittest import SynchronousTestCase
from websockets.sync.client import connect

from tests.daemon import TOKEN, Daemon, Quick, Upstream, python_path, read_until

HELLO = {"model": "mayros", "messages": [{"role": "user", "content": "hello"}]}


class ProcessCase(SynchronousTestCase):
    """A folder, a model server, and gateways that are ended whatever happens."""

    timeout = 60

    def setUp(self) -> None:
        self.upstream = Upstream()
        self.addCleanup(self.upstream.close)

    def daemon(self, folder: str | None = None, kind: type[Daemon] = Quick, **changes: Any) -> Daemon:
        """One that is not started. `kind`: `Daemon` where the test is about a start from nothing."""
        daemon = kind(Path(folder or self.mktemp()), self.upstream, changes)
        self.addCleanup(daemon.kill)
        return daemon


class ServeTests(ProcessCase):
    """A running gateway."""

    def test_openai_client_and_websocket_client_side_by_side(self) -> None:
        """The stock OpenAI client completes and streams while a WebSocket client runs an agent on the same port."""
        daemon = self.daemon(kind=Daemon)
        daemon.start()
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{daemon.port}/v1", api_key=TOKEN, max_retries=0)
        self.addCleanup(client.close)
        with connect(f"ws://127.0.0.1:{daemon.port}/") as socket_client:
            frames = Frames(socket_client)
            hello = frames.connect()
            self.assertEqual((hello["type"], hello["protocol"], hello["auth"]["scopes"]), ("hello-ok", 4, ["operator.read", "operator.write"]))
            self.upstream.hold()
            accepted = frames.call("agent", {"message": "over the socket", "idempotencyKey": "run-1"})
            self.assertEqual((accepted["runId"], accepted["status"]), ("run-1", "accepted"))
            self.upstream.go()
            stream = client.chat.completions.create(
                model="mayros:main", messages=[{"role": "user", "content": "hi"}], stream=True, stream_options={"include_usage": True}
            )
            chunks = list(stream)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            self.assertEqual((text, chunks[-1].usage.total_tokens if chunks[-1].usage else None), ("one two three", 8))
            final = frames.answer()
            self.assertEqual((final["status"], final["result"]["payloads"][0]["text"]), ("ok", "one two three"))
            self.assertTrue(any(event["event"] == "agent" and event["payload"]["stream"] == "assistant" for event in frames.events))
            completion = client.chat.completions.create(model="mayros", messages=[{"role": "user", "content": "hi"}], user="bob")
            self.assertEqual((completion.choices[0].message.content, completion.choices[0].finish_reason), ("one two three", "stop"))
            self.assertEqual([model.id for model in client.models.list()][:2], ["mayros", "mayros/default"])
            self.assertEqual(client.models.retrieve("mayros/main").owned_by, "mayros")
        with self.assertRaises(openai.AuthenticationError):
            client.with_options(api_key="wrong").chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        self.assertEqual(daemon.stop(), -signal.SIGTERM)

    def test_a_client_that_leaves_closes_the_upstream_within_a_second(self) -> None:
        """And its turn is recorded as aborted, with what was said."""
        daemon = self.daemon()
        daemon.start()
        self.upstream.hold()
        connection = daemon.stream({**HELLO, "user": "leaver"})
        read_until(connection, b'"one"')
        connection.close()
        self.assertTrue(self.upstream.closed.wait(1.0))
        daemon.stop()
        meta = [json.loads(row[0]) for row in rows(daemon, "select meta from entries where meta is not null")]
        self.assertEqual([entry["outcome"] for entry in meta], ["aborted"])

    def test_sigterm_lets_a_stream_finish(self) -> None:
        """New connections are refused, the live stream is whole, then the process ends by the signal."""
        daemon = self.daemon()
        daemon.start()
        self.upstream.hold()
        connection = daemon.stream(HELLO)
        self.addCleanup(connection.close)
        seen = read_until(connection, b'"one"')
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not accepts(daemon.port))
        self.upstream.go()
        seen += read_until(connection, b"0\r\n\r\n")
        self.assertIn(b"data: [DONE]", seen)
        self.assertEqual(daemon.process.wait(10), -signal.SIGTERM)

    def test_sigterm_aborts_what_outlasts_the_grace(self) -> None:
        """It is recorded, and its client is told `server_shutdown` without DONE. `mayros gateway run` exits 0."""
        daemon = self.daemon(kind=Daemon, shutdown={"graceMs": 200})
        daemon.start(cli=True)
        self.upstream.hold()
        connection = daemon.stream({**HELLO, "user": "late"})
        self.addCleanup(connection.close)
        read_until(connection, b'"one"')
        self.assertEqual(daemon.stop(), 0)
        rest = read_until(connection, b"0\r\n\r\n")
        self.assertIn(b"event: error", rest)
        self.assertIn(b'"code":"server_shutdown"', rest)
        self.assertNotIn(b"[DONE]", rest)
        self.assertEqual([json.loads(row[0])["outcome"] for row in rows(daemon, "select meta from entries where meta is not null")], ["aborted"])

    def test_kill_9_loses_no_acknowledged_turn(self) -> None:
        """After a restart the session remembers; a run that was live on the WebSocket is closed as aborted."""
        daemon = self.daemon()
        daemon.start()
        status, _ = daemon.request("POST", "/v1/chat/completions", {**HELLO, "user": "memory"})
        self.assertEqual(status, 200)
        self.upstream.hold()
        with connect(f"ws://127.0.0.1:{daemon.port}/") as client:
            frames = Frames(client)
            frames.connect()
            frames.call("agent", {"message": "live", "idempotencyKey": "live-run"})
            daemon.kill()
        self.upstream.go()
        daemon.start()
        daemon.request("POST", "/v1/chat/completions", {**HELLO, "user": "memory"})
        contents = [message["content"] for message in self.upstream.asked[-1]["messages"] if message["role"] != "system"]
        self.assertEqual(contents, ["hello", "one two three", "hello"])
        with connect(f"ws://127.0.0.1:{daemon.port}/") as client:
            frames = Frames(client)
            frames.connect()
            final = frames.call("agent", {"message": "live", "idempotencyKey": "live-run"}, failed=True)
            self.assertEqual(final["payload"]["status"], "error")
        self.assertEqual(rows(daemon, "pragma integrity_check"), [("ok",)])

    def test_a_unix_socket_is_private(self) -> None:
        """`--listen unix:` serves, with mode 600, together with a second endpoint."""
        daemon = self.daemon()
        folder = tempfile.mkdtemp()  # short: the path of a unix socket has at most 107 bytes
        self.addCleanup(shutil.rmtree, folder)
        path = f"{folder}/s"
        daemon.start("--listen", f"unix:{path}", "--listen", f"tcp:{daemon.port}:interface=127.0.0.1")
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            self.assertIn(b"200 OK", read_until(client, b"true"))

    def test_files_are_private(self) -> None:
        """The state directory has mode 700, what is in it 600; a made token is not in the log, its place is."""
        daemon = self.daemon(auth={})
        daemon.start()
        for path in daemon.state.rglob("*"):
            mode = stat.S_IMODE(path.stat().st_mode)
            self.assertEqual(mode, 0o700 if path.is_dir() else 0o600, path)
        self.assertEqual(stat.S_IMODE(daemon.state.stat().st_mode), 0o700)
        token = (daemon.state / "gateway-token").read_text().strip()
        self.assertIn(str(daemon.state / "gateway-token"), daemon.log.read_text())
        self.assertNotIn(token, daemon.log.read_text())
        self.assertEqual(daemon.request("POST", "/v1/chat/completions", HELLO, Authorization=f"Bearer {token}")[0], 200)


class RefusalTests(ProcessCase):
    """Gateways that must not start: one clear line, the right status, no traceback."""

    def assertRefused(self, daemon: Daemon, status: int, *words: str, options: tuple[str, ...] = (), both: bool = False) -> None:
        for cli in (False, True) if both else (False,):
            code, said = daemon.refused(*options, cli=cli)
            self.assertEqual((code, said.count("\n"), "Traceback" in said), (status, 1, False), said)
            for word in words:
                self.assertIn(word, said)

    def test_port_in_use(self) -> None:
        """Status 1, naming the port."""
        daemon = self.daemon(kind=Daemon)
        with socket.create_server(("127.0.0.1", daemon.port)):
            self.assertRefused(daemon, 1, str(daemon.port), "in use", both=True)

    def test_second_gateway_on_a_state_directory(self) -> None:
        """Status 1, naming the holder's PID; after its end the lock is free."""
        first = self.daemon()
        first.start()
        assert first.process is not None
        self.assertRefused(first, 1, str(first.process.pid), options=("--port", "0"))
        first.kill()
        first.start()

    def test_bad_endpoint(self) -> None:
        """Status 78."""
        for text in ("tcp:notaport", "nonsense:1", "systemd:domain=INET:index=7"):
            self.assertRefused(self.daemon(), 78, "--listen", options=("--listen", text))

    def test_bad_configuration(self) -> None:
        """Status 78, naming the key; protection that cannot be given is refused, not ignored."""
        for changes, word in (
            ({"mode": None}, "gateway.mode"),
            ({"mode": "remote"}, "remote"),
            ({"tls": {"enabled": True}}, "gateway.tls"),
            ({"auth": {"tokn": "x"}}, "gateway.auth.tokn"),
            ({"bind": "lan", "auth": {"mode": "none"}}, "gateway.auth.mode none"),
            ({"auth": {"mode": "password"}}, "password"),
        ):
            daemon = self.daemon(**changes)
            daemon.config["gateway"] = {key: value for key, value in daemon.config["gateway"].items() if value is not None}
            self.assertRefused(daemon, 78, word)

    def test_wide_endpoint_without_authentication(self) -> None:
        """Every address really listened on is judged, those of --listen too."""
        daemon = self.daemon(auth={"mode": "none"})
        self.assertRefused(daemon, 78, "0.0.0.0", options=("--listen", f"tcp:{daemon.port}"))

    def test_state_directory_that_cannot_be_used(self) -> None:
        """World-writable: status 78."""
        daemon = self.daemon()
        daemon.state.mkdir(mode=0o777)
        daemon.state.chmod(0o777)
        self.assertRefused(daemon, 78, str(daemon.state))

    def test_corrupt_store(self) -> None:
        """Status 78 naming the file, which is left as it was."""
        daemon = self.daemon()
        daemon.state.mkdir(mode=0o700)
        (daemon.state / "mayros.db").write_bytes(b"not a database, really" * 100)
        self.assertRefused(daemon, 78, "mayros.db")
        self.assertTrue((daemon.state / "mayros.db").read_bytes().startswith(b"not a database"))

    def test_unknown_option(self) -> None:
        """A usage error, not a traceback."""
        code, said = self.daemon().refused("--nonsense")
        self.assertNotEqual(code, 0)
        self.assertNotIn("Traceback", said)


class ImportTests(ProcessCase):
    """What the daemon does not load."""

    def test_heavy_libraries_stay_out(self) -> None:
        """Once the schema is current: no alembic, rich, mcp, xllamacpp or json5 in the daemon."""
        daemon = self.daemon()
        daemon.start()
        daemon.stop()
        script = (
            "import sys\nfrom mayros.tap import Options, makeService\noptions = Options()\noptions.parseOptions(['--port', '0'])\n"
            "makeService(options).privilegedStartService()\n"
            "print(sorted({'alembic', 'rich', 'mcp', 'xllamacpp', 'json5', 'treq'} & set(sys.modules)))\n"
            "import os\nos._exit(0)"
        )
        done = subprocess.run(
            [sys.executable, "-uc", script],
            env=daemon.environ | python_path(),
            cwd=daemon.folder,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        self.assertEqual((done.stdout.strip().splitlines() or [""])[-1], "[]", done.stderr)


class Frames:
    """The conversation of an ordinary WebSocket client."""

    def __init__(self, client: Any) -> None:
        self._client, self.events, self._count = client, [], 0

    def _next(self) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(self._client.recv(timeout=10))
        return frame

    def connect(self, *scopes: str) -> dict[str, Any]:
        """Answer the challenge as a device-less command-line client, with these scopes or those for reading and writing; the hello."""
        challenge = self._next()
        assert challenge["event"] == "connect.challenge", challenge
        return self.call(
            "connect",
            {
                "minProtocol": 3,
                "maxProtocol": 4,
                "client": {"id": "cli", "version": "1", "platform": "linux", "mode": "cli"},
                "role": "operator",
                "scopes": scopes or ["operator.read", "operator.write"],
                "auth": {"token": TOKEN},
            },
        )

    def call(self, method: str, params: dict[str, Any], failed: bool = False) -> dict[str, Any]:
        """The payload of the first response; the whole frame of a refusal when `failed`."""
        self._count += 1
        self._client.send(json.dumps({"type": "req", "id": str(self._count), "method": method, "params": params}))
        return self.answer(failed)

    def event(self, name: str) -> Any:
        """The payload of the next event of this name, which was not taken before; other events are kept."""
        while True:
            for number, frame in enumerate(self.events):
                if frame["event"] == name:
                    return self.events.pop(number)["payload"]
            self.events.append(self._next())

    def answer(self, failed: bool = False) -> dict[str, Any]:
        """The next response; events before it are kept."""
        while True:
            frame = self._next()
            if frame["type"] == "event":
                self.events.append(frame)
                continue
            assert frame["ok"] is not failed, frame
            return frame if failed else frame["payload"]  # type: ignore[no-any-return]


def rows(daemon: Daemon, query: str) -> list[Any]:
    """What the store holds."""
    connection = sqlite3.connect(daemon.state / "mayros.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def accepts(port: int) -> bool:
    """Whether somebody listens."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_for(condition: Any, seconds: float = 5.0) -> None:
    """Until it is true."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError("it did not happen")
