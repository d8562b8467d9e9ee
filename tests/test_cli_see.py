"""`mayros logs` and `mayros status`, in memory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mayros.cli.logs import shown
from mayros.cli.status import lasting
from mayros.ws.conversation import CallFailed
from tests.test_cli import CommandLine

NOON = time.mktime((2026, 11, 25, 12, 0, 0, 0, 0, -1))


def line(text: str, level: str = "info", **more: Any) -> str:
    """A line of the log."""
    return json.dumps({"time": NOON, "level": level, "logger": "mayros.x", "message": text, **more})


def tail(*lines: str, cursor: int = 10, file: str = "/logs/a.log", reset: bool = False) -> dict[str, Any]:
    """An answer of `logs.tail`."""
    return {"file": file, "cursor": cursor, "size": cursor, "lines": list(lines), "truncated": False, "reset": reset}


class LogsTests(CommandLine):
    """`mayros logs`."""

    def test_the_end(self) -> None:
        """Local time, level, who, what, and where it belongs; with --json the lines as they are."""
        self.gateway.final = tail(line("hello", run="r1"), line("a\x1b[31m\nb", "warn"), "no JSON")
        result = self.mayros("logs", "--limit", "7")
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertEqual(result.stdout, "2026-11-25 12:00:00 info  mayros.x: hello [run=r1]\n2026-11-25 12:00:00 warn  mayros.x: a[31m\nb\nno JSON\n")
        self.assertEqual(self.gateway.methods(), [("logs.tail", {"limit": 7})])
        self.assertEqual(json.loads(self.mayros("logs", "--json").stdout.splitlines()[0])["run"], "r1")

    def test_whatever_stands_in_a_line(self) -> None:
        """Is shown, never obeyed, and never a traceback."""
        for text in (
            "",
            "{",
            "[1]",
            '{"message": 5}',
            '{"message": "x", "time": 1e300}',
            '{"message": "x", "time": "y", "level": ["z"]}',
            "[" * 5000,
        ):
            self.assertIsInstance(shown(text), str)

    def test_a_gateway_that_does_not_answer(self) -> None:
        """Its log file is read; where another gateway is meant, there is only the error."""
        self.gateway.final = CallFailed("UNAVAILABLE", "Cannot reach a gateway at ws://127.0.0.1:18789/: refused")
        (self.state / "logs").mkdir(parents=True)
        (self.state / "logs" / "mayros-2026-11-24.log").write_text(line("it is full", "error") + "\n")
        result = self.mayros("logs")
        self.assertEqual((result.exit_code, result.stdout), (0, "2026-11-25 12:00:00 error mayros.x: it is full\n"), result.output)
        self.assertIn("its log file", result.stderr)
        self.assertRefused(self.mayros("logs", "--url", "ws://127.0.0.1:1/"), 1, "Cannot reach")
        # It knows why the gateway does not show the certificate of the file.
        self.gateway.final = CallFailed("UNAVAILABLE", "Cannot speak to a gateway at wss://127.0.0.1:18789/: it shows X; expected was Y")
        self.assertIn("it is full", self.mayros("logs").stdout)
        self.gateway.final = CallFailed("UNAVAILABLE", "Cannot reach a gateway at ws://127.0.0.1:18789/: refused")
        (self.state / "logs" / "mayros-2026-11-24.log").unlink()
        self.assertRefused(self.mayros("logs"), 1, "Cannot reach", "mayros gateway run")

    def test_follow(self) -> None:
        """Each second what has come, also after failures and from the next day's file, until the gateway is gone for good."""
        gone = CallFailed("UNAVAILABLE", "Cannot reach it")
        answers: list[Any] = [
            tail(line("one")), tail(line("two"), cursor=20), gone, tail(cursor=20), tail("", cursor=30, file="/logs/b.log"),
            tail(line("three"), cursor=5, file="/logs/b.log"), *[gone] * 8,
        ]  # fmt: skip
        gateway = self.gateway

        class Finals(dict[str, Any]):
            def get(self, method: str, default: Any = None) -> Any:
                return answers.pop(0)

        gateway.finals = Finals()
        clock = Clock()

        def drive(run: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
            work = Deferred.fromCoroutine(run(clock))
            for _ in range(20):
                clock.advance(1)
            return work.result if not hasattr(work.result, "raiseException") else self.failureResultOf(work).raiseException()

        self.drive = drive  # type: ignore[method-assign]
        result = self.mayros("logs", "--follow")
        self.assertEqual([text.rpartition(" ")[2] for text in result.stdout.splitlines()], ["one", "two", "three"])
        self.assertEqual([params.get("cursor") for _, params in gateway.methods()], [None, 10, 20, 20, 20, 0, *[5] * 8])
        self.assertTrue(gateway.calls[0]["reconnect"])


class StatusTests(CommandLine):
    """`mayros status`."""

    STATUS: dict[str, Any] = {
        "sessions": {"count": 3, "recent": [{"key": "agent:main:main", "updatedAt": 1}]},
        "config": {"loadedAt": 1, "restartRequired": ["gateway.port"]},
        "gateway": {
            "version": "1.2.3", "uptimeMs": 93_784_000, "notReady": None,
            "doors": {"urls": ["http://127.0.0.1:18789"], "httpConnections": 2, "streams": 1, "webSockets": 5},
            "runs": {"live": 1, "waitingForSession": 2, "waitingForSlot": 0, "newest": [
                {"runId": "r1", "agentId": "main", "sessionKey": "agent:main:x", "door": "ws", "startedAtMs": 1, "model": None}]},
            "store": {"kind": "sqlite", "writable": True, "waiting": 0, "written": 7, "failed": 0},
            "lastErrors": [{"ts": 1, "level": "warn", "logger": "mayros.x", "message": "the disk is\x1b[2J slow"}],
        },
    }  # fmt: skip
    MODELS: dict[str, Any] = {
        "ts": 1_000,
        "providers": [
            {"id": "acme", "breaker": {"state": "open", "lastKind": "timeout", "openUntil": 8_000}, "keys": [{"id": "env:K", "state": "ready"}]},
        ],
    }

    def test_one_screen(self) -> None:
        """Doors, runs, sessions, providers, store, configuration, the last errors."""
        self.gateway.finals = {"status": self.STATUS, "models.status": self.MODELS}
        result = self.mayros("status")
        self.assertEqual(result.exit_code, 0, result.output)
        for text in (
            "gateway      1.2.3 at ws://127.0.0.1:18789/, up 1d 2h, ready",
            "doors        http://127.0.0.1:18789: 2 HTTP connections, 1 stream, 5 WebSockets",
            "runs         1 live, 2 waiting for their session, 0 for a slot",
            "r1  agent:main:x by ws, no answer yet",
            "sessions     3",
            "acme: open (timeout, 7s more); env:K ready",
            "store        sqlite, writable, 7 writes, 0 failed",
            "after a restart: gateway.port",
            "warn mayros.x: the disk is[2J slow",
        ):
            self.assertIn(text, result.stdout)
        self.assertLess(len(result.stdout.splitlines()), 24)

    def test_not_ready(self) -> None:
        """Status 1, and why."""
        gateway = {**self.STATUS["gateway"], "notReady": "the store cannot be written"}
        self.gateway.finals = {"status": {**self.STATUS, "gateway": gateway}, "models.status": self.MODELS}
        result = self.mayros("status")
        self.assertEqual(result.exit_code, 1)
        self.assertIn("NOT READY: the store cannot be written", result.stdout)

    def test_json(self) -> None:
        """Both answers as one object."""
        self.gateway.finals = {"status": self.STATUS, "models.status": self.MODELS}
        self.assertEqual(json.loads(self.mayros("status", "--json").stdout), {**self.STATUS, "models": self.MODELS})

    def test_a_gateway_that_tells_less(self) -> None:
        """An older one, or to a client that may know less: what is not there is blank."""
        self.gateway.finals = {"status": {}, "models.status": None}
        self.assertEqual(self.mayros("status").exit_code, 0)

    def test_durations(self) -> None:
        """Two units at most."""
        self.assertEqual([lasting(ms) for ms in (0, 59_999, 61_000, 7_260_000, 90_000_000, None)], ["0s", "59s", "1m 1s", "2h 1m", "1d 1h", ""])
