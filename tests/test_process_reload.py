"""A real gateway whose configuration changes while clients use it."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

from tests.activation import HeldDaemon
from tests.daemon import TOKEN, Daemon, read_until
from tests.test_process import HELLO, Frames, ProcessCase, wait_for


def save(daemon: Daemon, **gateway: Any) -> None:
    """Save its file with other keys of `gateway`, as an editor does."""
    daemon.config["gateway"].update(gateway)
    beside = daemon.folder / "mayros.json.new"
    beside.write_text(json.dumps(daemon.config))
    beside.replace(daemon.folder / "mayros.json")


class Load:
    """Clients that ask one after the other until they are stopped; `failed` are the answers that are not 200."""

    def __init__(self, daemon: Daemon, clients: int) -> None:
        self._daemon, self._stopped = daemon, threading.Event()
        self.answered, self.failed = 0, list[Any]()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                status, body = self._daemon.request("POST", "/v1/chat/completions", HELLO)
            except OSError as error:
                self.failed.append(error)
                continue
            if status != 200 or b"one two three" not in body:
                self.failed.append((status, body))
            self.answered += 1

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(20)


class ReloadTests(ProcessCase):
    """The file, a signal, a method."""

    def test_changes_under_load(self) -> None:
        """By a method, and some by a signal: no request fails, and each change is in force when it is answered. `python -m bench` makes a hundred."""
        daemon = self.daemon(reload={"mode": "hot"})
        daemon.start()
        with connect(f"ws://127.0.0.1:{daemon.port}/") as client:
            frames = Frames(client)
            frames.connect("operator.admin", "operator.read", "operator.write")
            load = Load(daemon, 4)
            self.addCleanup(load.stop)
            for number in range(30):
                provider = "models.providers.mock.timeouts.idleMs" if number % 2 else "models.providers.mock.headers.X-Try"
                value: Any = 30_000 + number if number % 2 else f"{number}"
                changed = frames.call("config.change", {"set": {provider: value, "gateway.limits.maxQueuedRuns": 500 + number}})
                self.assertIn("gateway.limits.maxQueuedRuns", changed["hot"])
            for number in range(2):
                save(daemon, limits={"maxQueuedRuns": 700 + number})
                assert daemon.process is not None
                daemon.process.send_signal(signal.SIGHUP)
                wait_for(lambda number=number: frames.call("config.get", {})["config"]["gateway"]["limits"]["maxQueuedRuns"] == 700 + number)
                wait_for(lambda number=number: daemon.log.read_text().count("SIGHUP") == number + 1)
            load.stop()
            self.assertEqual([], load.failed)
            self.assertGreater(load.answered, 20)
            self.assertEqual([], frames.call("status", {})["config"]["restartRequired"])
        self.assertEqual(daemon.stop(), -signal.SIGTERM)
        self.assertNotIn("Traceback", daemon.log.read_text())

    def test_a_file_that_is_saved(self) -> None:
        """Is in force soon; a bad one is not, and is told of; live streams go on as they began."""
        daemon = self.daemon(reload={"mode": "hot"})
        daemon.start()
        self.upstream.hold()
        stream = daemon.stream(HELLO)
        self.addCleanup(stream.close)
        seen = read_until(stream, b'"one"')
        save(daemon, http={"endpoints": {"chatCompletions": {"enabled": False}}})
        wait_for(lambda: "chatCompletions.enabled in force" in daemon.log.read_text())
        (daemon.folder / "mayros.json").write_text("{ oops")
        wait_for(lambda: "the configuration of before stays in force" in daemon.log.read_text())
        self.assertEqual(404, daemon.request("POST", "/v1/chat/completions", HELLO)[0])
        self.upstream.go()
        seen += read_until(stream, b"0\r\n\r\n")
        self.assertIn(b"data: [DONE]", seen)
        save(daemon, http={"endpoints": {"chatCompletions": {"enabled": True}}}, auth={"token": "another-token-9876543210"})
        wait_for(lambda: daemon.request("GET", "/v1/models")[0] == 401)
        self.assertEqual(200, daemon.request("GET", "/v1/models", Authorization="Bearer another-token-9876543210")[0])
        self.assertNotIn(TOKEN, daemon.log.read_text())
        self.assertNotIn("another-token", daemon.log.read_text())

    def test_many_signals(self) -> None:
        """Do no harm."""
        daemon = self.daemon()
        daemon.start()
        assert daemon.process is not None
        for _ in range(100):
            daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "SIGHUP" in daemon.log.read_text())
        self.assertEqual(daemon.request("GET", "/healthz")[0], 200)
        self.assertLessEqual(daemon.log.read_text().count("SIGHUP"), 2)

    def test_with_a_service_manager(self) -> None:
        """It hears of each reading, and of a file that is bad; for what needs a restart the gateway ends cleanly, to be started again."""
        daemon = HeldDaemon(Path(self.mktemp()), self.upstream, {"reload": {"mode": "hybrid"}})
        self.addCleanup(daemon.close)
        daemon.start()
        manager = daemon.manager
        save(daemon, limits={"maxQueuedRuns": 7})
        self.assertIn("MONOTONIC_USEC", manager.wait("RELOADING"))
        self.assertNotIn("cannot be used", manager.wait("READY")["STATUS"])
        (daemon.folder / "mayros.json").write_text("{ oops")
        manager.wait("RELOADING")
        self.assertIn("the configuration cannot be used", manager.wait("READY")["STATUS"])
        self.assertEqual(200, daemon.request("GET", "/healthz")[0])
        with connect(f"ws://127.0.0.1:{daemon.port}/") as client:
            frames = Frames(client)
            frames.connect()
            save(daemon, port=1)
            manager.wait("STOPPING")
            expected_ms = frames.event("shutdown")["restartExpectedMs"]
        self.assertTrue(2_100 < expected_ms < 30_000, expected_ms)  # a start takes some tenths of a second at least
        assert daemon.process is not None
        self.assertEqual(0, daemon.process.wait(15))
        self.assertIn("the configuration has changed: gateway.port", daemon.log.read_text())
