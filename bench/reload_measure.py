"""What changes of the configuration cost under load: a hundred of them, and each tenth by a signal; no request may fail. Imports bench.rig.

A failure of a request fails the whole run, as everywhere here.
"""

from __future__ import annotations

import json
import signal
import statistics
import time
from collections.abc import Callable
from typing import Any

from websockets.sync.client import ClientConnection, connect

from bench.measure import Effort, Failures, Row, warm
from bench.rig import BenchError, Rig, Server
from bench.ws_measure import connect_params

CHANGES = 100
#: Each of so many is saved in the file and told of by SIGHUP, which is heeded once a second.
BY_SIGNAL = 20
CLIENTS = 32


def reloads(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """32 clients, 8 tokens, not streamed, while providers, keys and limits change."""
    with rig.subject() as server:
        warm(rig, server, failures, "subject")
        quiet = failures.note("subject", rig.drive(server, "8", False, CLIENTS, seconds=effort.seconds))
        with connect(f"ws://127.0.0.1:{server.port}/") as socket:
            changes = Changes(rig, server, socket)
            busy = []
            while changes.made < CHANGES:
                busy.append(failures.note("subject", rig.drive(server, "8", False, CLIENTS, seconds=effort.seconds, meanwhile=changes.next)))
    failed, took = sum(one.failed for one in busy), statistics.median(changes.took) * 1e3
    slower = statistics.median([one.rate for one in busy]) / quiet.rate
    return [
        Row(f"{changes.made} reloads under load: failed requests", "", str(failed), failed, "", "0", failed == 0),
        Row("  a change by config.change, p50, ms", "", f"{took:.1f}", took, "", "<= 250", took <= 250, changes.took),
        Row("  requests/s beside those without", f"{quiet.rate:,.0f}", "", slower, f"{slower:.2f}", "(shown)", True),
    ]


class Changes:
    """Makes one change of the configuration each time that it is asked, until there were enough."""

    def __init__(self, rig: Rig, server: Server, socket: ClientConnection) -> None:
        self.made = 0
        self.took: list[float] = []
        self._rig, self._server, self._socket, self._id = rig, server, socket, 0
        self._not_before = 0.0
        socket.recv(timeout=10)  # the challenge
        self._call("connect", **connect_params(server.secret, 4, "operator.admin"))

    def next(self) -> None:
        """The next one, if its time has come."""
        if self.made >= CHANGES or time.monotonic() < self._not_before:
            return
        number = self.made
        self.made += 1
        if number % BY_SIGNAL == BY_SIGNAL - 1:
            path = self._rig.folder / "mayros.json"
            text = path.read_text()
            beside = path.with_suffix(".new")
            beside.write_text(f"{text.rstrip()}\n// {number}\n")
            beside.replace(path)
            self._server.process.popen.send_signal(signal.SIGHUP)
            self._not_before = time.monotonic() + 0.5
            return
        # Each other time the model's provider gets another key: then its adapter is made anew.
        values: dict[str, Any] = {"gateway.limits.maxQueuedRuns": 1000 + number}
        if number % 2:
            values["models.providers.mock.apiKey"] = f"mock-key-{number}"
        began = time.monotonic()
        answer = self._call("config.change", set=values)
        self.took.append(time.monotonic() - began)
        if set(answer["hot"]) != set(values) or answer["restartRequired"]:
            raise BenchError(f"a change is not in force: {answer['hot']}, {answer['restartRequired']}")

    def _call(self, method: str, **params: Any) -> Any:
        self._id += 1
        self._socket.send(json.dumps({"type": "req", "id": str(self._id), "method": method, "params": params}))
        while True:
            frame = json.loads(self._socket.recv(timeout=10))
            if frame["type"] == "res" and frame["id"] == str(self._id):
                if not frame["ok"]:
                    raise BenchError(f"{method}: {frame['error']}")
                return frame["payload"]


MEASURES: dict[str, Callable[[Rig, Failures, Effort], list[Row]]] = {"reload": reloads}
