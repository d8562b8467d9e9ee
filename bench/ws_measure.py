"""The measures of the WebSocket door, beside a bare Autobahn server. Imports bench.measure and bench.rig."""

from __future__ import annotations

import json
import statistics
import uuid
from collections.abc import Callable
from typing import Any

from bench.measure import KB, MB, Effort, Failures, Row, at_least, at_most, own
from bench.rig import BenchError, Rig, Server, pause, resident_bytes

READ, WRITE = "operator.read", "operator.write"
#: Handshakes at once, and sockets of the calls measure.
WINDOW, CALLERS = 64, 32
SHAPE = "400x5ms"


def connect_params(secret: str, protocol: int, *scopes: str) -> dict[str, Any]:
    """What a command-line client on this machine says to `connect`."""
    client = {"id": "cli", "version": "1", "platform": "linux", "mode": "cli"}
    return {"minProtocol": protocol, "maxProtocol": protocol, "client": client, "scopes": scopes, "auth": {"token": secret}}


class Driver:
    """A server and its side of the table."""

    def __init__(self, rig: Rig, server: Server, failures: Failures, side: str) -> None:
        self.rig, self.server, self.failures, self.side = rig, server, failures, side

    def do(self, job: str, limit: float = 60, **fields: Any) -> dict[str, Any]:
        """A job; what failed is counted."""
        answer = self.rig.sockets(self.server, limit, do=job, **fields)
        self.failures.count[self.side] += answer["failed"]
        if answer["why"]:
            self.failures.why.setdefault(self.side, answer["why"])
        return answer

    def open(self, group: str, count: int, protocol: int = 4, *scopes: str) -> dict[str, Any]:
        """Sockets that have said hello; at the floor plain ones."""
        connect = connect_params(self.server.secret, protocol, *scopes) if self.side == "subject" else None
        answer = self.do("open", group=group, count=count, window=WINDOW, connect=connect)
        if answer["failed"]:
            raise BenchError(f"{answer['failed']} of {count} sockets did not open at {self.server.process.name}: {answer['why']}")
        return answer

    def memory(self) -> int:
        """Resident bytes, after a moment of rest."""
        pause(0.5)
        return resident_bytes(self.server.pid)


def idle(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """Thousands of sockets that have said hello and nothing since: what each costs, and how long `health` takes meanwhile."""
    kilobytes: dict[str, float] = {}
    opening: dict[str, float] = {}
    calls: dict[str, Any] = {}
    with rig.subject() as subject, rig.ws_floor() as floor:
        for side, server in (("floor", floor), ("subject", subject)):
            driver = Driver(rig, server, failures, side)
            driver.open("warm", 50, 4, READ)
            driver.do("close", group="warm")
            driver.open("one", 1)
            before = driver.memory()
            opened = driver.open("idle", effort.sockets, 4, READ)
            opening[side] = opened["cpu"] / effort.sockets * 1e6
            kilobytes[side] = (driver.memory() - before) / effort.sockets / KB
            if side == "subject":
                calls = driver.do("calls", effort.idle_seconds + 30, group="one", seconds=effort.idle_seconds, pace=0.02)
            driver.do("close", group="idle")
            driver.do("close", group="one")
    middle = calls["p50"] * 1e3
    shown = f"{middle:.1f} (p95 {calls['p95'] * 1e3:.1f}, max {calls['max'] * 1e3:.0f})"
    return [
        own(f"{effort.sockets:,} idle sockets: memory each, KB", [kilobytes["subject"]], "{:.1f}", 30, f"{kilobytes['floor']:.1f}"),
        Row("  health meanwhile: p50, ms", "", shown, middle, "", "<= 50", middle <= 50, [middle]),
        Row("  CPU per connect and hello, us", f"{opening['floor']:,.0f}", f"{opening['subject']:,.0f}", opening["subject"], "", "", True),
    ]


def health(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """`health` over 32 sockets, one question at a time on each. The floor decodes the same question and encodes the same answer."""
    rates: dict[str, list[float]] = {"floor": [], "subject": []}
    cost: dict[str, list[float]] = {"floor": [], "subject": []}
    with rig.subject() as subject:
        driver = Driver(rig, subject, failures, "subject")
        driver.open("calls-subject", CALLERS, 4, READ)
        sample = driver.do("calls", group="calls-subject", seconds=0.5)["sample"]
        with rig.ws_floor(sample) as server:
            floor = Driver(rig, server, failures, "floor")
            floor.open("calls-floor", CALLERS)
            floor.do("calls", group="calls-floor", seconds=0.5)
            for _ in range(effort.rounds):
                for side, one in (("floor", floor), ("subject", driver)):
                    answer = one.do("calls", effort.seconds + 30, group=f"calls-{side}", seconds=effort.seconds)
                    rates[side].append(answer["done"] / answer["seconds"])
                    cost[side].append(answer["cpu"] / max(1, answer["done"]) * 1e6)
            floor.do("close", group="calls-floor")
        driver.do("close", group="calls-subject")
    row = at_least(f"health, {CALLERS} sockets, {len(sample):,} bytes: calls/s", rates["floor"], rates["subject"], "{:,.0f}", 0.7)
    row.target, row.passed = ">= 0.70 or 6,000/s", row.passed or statistics.median(rates["subject"]) >= 6_000
    return [row, shown("  CPU per call, us", cost)]


def fanout(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """One run's events to many watchers. The floor sends the very same messages, as Autobahn's prepared message."""
    rows: list[Row] = []
    with rig.subject() as subject, rig.ws_floor() as server:
        floor, driver = Driver(rig, server, failures, "floor"), Driver(rig, subject, failures, "subject")
        floor.open("bare", effort.watchers)
        floor.open("bare-control", 1)
        for protocol, target in ((3, 0.7), (4, 0.5)):
            driver.open("watchers", effort.watchers, protocol, READ)
            driver.open("control", 1, protocol, READ, WRITE)
            rates: dict[str, list[float]] = {"floor": [], "subject": []}
            cost: dict[str, list[float]] = {"floor": [], "subject": []}
            events: list[int] = []
            script = str(rig.folder / f"events-{protocol}")
            for number in range(effort.bursts + 1):
                for side, answer in (("subject", _run(driver, script)), ("floor", _play(floor, script))):
                    if answer["short"]:
                        failures.count[side] += answer["short"]
                        failures.why.setdefault(side, f"{answer['short']} watchers got another number of messages than {answer['events']}")
                    if number:  # the first round is for warmth
                        rates[side].append(answer["deliveries"] / answer["seconds"])
                        cost[side].append(answer["cpu"] / answer["deliveries"] * 1e6)
                events.append(answer["events"])
            driver.do("close", group="watchers")
            driver.do("close", group="control")
            name = f"one run to {effort.watchers:,} watchers, protocol {protocol}, {max(events)} messages each: deliveries/s"
            rows += [at_least(name, rates["floor"], rates["subject"], "{:,.0f}", target), shown("  CPU per delivery, us", cost)]
        floor.do("close", group="bare")
        floor.do("close", group="bare-control")
    return rows


def _run(driver: Driver, script: str) -> dict[str, Any]:
    key = uuid.uuid4().hex
    params = {"message": "Tell me about the weather.", "idempotencyKey": key, "sessionKey": f"agent:a{SHAPE}:{key}"}
    request = json.dumps({"type": "req", "id": key, "method": "agent", "params": params})
    return driver.do("fan", group="watchers", control="control", request=request, record=script)


def _play(floor: Driver, script: str) -> dict[str, Any]:
    request = json.dumps({"type": "req", "id": "p", "method": "play", "params": script})
    return floor.do("fan", group="bare", control="bare-control", request=request)


def churn(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """Three passes of connect, authenticate, close: resident memory after each. The third may not be over the second."""
    after: list[float] = []
    cost: list[float] = []
    with rig.subject() as server:
        driver = Driver(rig, server, failures, "subject")
        for _ in range(3):
            answer = driver.do("churn", count=effort.churn, window=WINDOW, connect=connect_params(server.secret, 4, READ))
            cost.append(answer["cpu"] / max(1, answer["done"]) * 1e6)
            after.append(driver.memory() / MB)
    grown = (after[2] - after[1]) * MB / effort.churn
    passes = " ".join(f"{value:.1f}" for value in after)
    return [
        Row(f"memory after 3 x {effort.churn:,} connects, MB", "", passes, grown, f"{grown:+.0f} B each", "<= +100 B", grown <= 100, after),
        Row("  CPU per connect, hello and close, us", "", f"{statistics.median(cost):,.0f}", 0, "", "", True, cost),
    ]


def shown(name: str, cost: dict[str, list[float]]) -> Row:
    """A row without a target."""
    row = at_most(name, cost["floor"], cost["subject"], "{:,.1f}", 1.0)
    row.target, row.passed = "", True
    return row


MEASURES: dict[str, Callable[[Rig, Failures, Effort], list[Row]]] = {
    "ws-idle": idle,
    "ws-health": health,
    "ws-fanout": fanout,
    "ws-churn": churn,
}
