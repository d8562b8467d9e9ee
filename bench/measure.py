"""The measures: each drives the floor and the subject in turn (A B A B) and gives rows for the table. Imports bench.rig.

A ratio is the median of the ratios within a round, so that what slows the whole machine for a while cancels out.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from bench.rig import BenchError, Result, Rig, Server, pause, resident_bytes

MB, KB = 1e6, 1e3


@dataclass
class Row:
    """One line of the table. `value` is what the target is about (a ratio, or a figure of the subject's own)."""

    name: str
    floor: str
    subject: str
    value: float
    shown: str
    target: str
    passed: bool
    rounds: list[float] = field(default_factory=list)


@dataclass
class Effort:
    """How much to measure."""

    rounds: int
    seconds: float
    starts: int
    bursts: int
    pass_requests: int
    #: Of the WebSocket measures: idle sockets and seconds with them, watchers of a run, connects of a pass.
    sockets: int = 5_000
    idle_seconds: float = 32.0
    watchers: int = 1_000
    churn: int = 2_000


class Failures:
    """Answers that did not come as they should have, on both sides."""

    def __init__(self) -> None:
        self.count: dict[str, int] = {"floor": 0, "subject": 0}
        self.why: dict[str, str] = {}

    def note(self, side: str, result: Result) -> Result:
        """Count a result's failures and hand it on."""
        self.count[side] += result.failed
        if result.why:
            self.why.setdefault(side, result.why)
        return result


def at_least(name: str, floor: list[float], subject: list[float], form: str, target: float) -> Row:
    """A row whose ratio must not be below the target."""
    ratios = [own / other for own, other in zip(subject, floor, strict=True)]
    value = statistics.median(ratios)
    return Row(name, _median(floor, form), _median(subject, form), value, f"{value:.2f}", f">= {target:.2f}", value >= target, ratios)


def at_most(name: str, floor: list[float], subject: list[float], form: str, target: float) -> Row:
    """A row whose ratio must not be above the target."""
    ratios = [own / other for own, other in zip(subject, floor, strict=True)]
    value = statistics.median(ratios)
    return Row(name, _median(floor, form), _median(subject, form), value, f"{value:.2f}", f"<= {target:.2f}", value <= target, ratios)


def own(name: str, values: list[float], form: str, target: float, floor: str = "") -> Row:
    """A row of the subject alone: the median must not be above the target."""
    value = statistics.median(values)
    shown = form.format(value)
    return Row(name, floor, shown, value, "", "<= " + form.format(target), value <= target, values)


def added(name: str, floor: list[float], subject: list[float], target: float) -> Row:
    """A row of milliseconds of which so many more than the floor's are allowed."""
    more = [own - other for own, other in zip(subject, floor, strict=True)]
    value = statistics.median(more)
    form = "{:.2f}"
    return Row(name, _median(floor, form), _median(subject, form), value, f"{value:+.2f} ms", f"<= +{target:.2f} ms", value <= target, more)


class Peak:
    """The most resident memory that a server had when this was called, and what it had `before`; in bytes."""

    def __init__(self, server: Server) -> None:
        self._pid = server.pid
        self.before = self.highest = resident_bytes(self._pid)

    def __call__(self) -> None:
        self.highest = max(self.highest, resident_bytes(self._pid))


def _median(values: list[float], form: str) -> str:
    return form.format(statistics.median(values))


def warm(rig: Rig, server: Server, failures: Failures, side: str) -> None:
    """Let a fresh server open its connections and take each path a few times."""
    for streamed in (False, True):
        result = failures.note(side, rig.drive(server, "8", streamed, 32, requests=640))
        if not result.done:
            raise BenchError(f"{server.process.name} gives no right answer: {result.why}")


@contextlib.contextmanager
def both(rig: Rig, failures: Failures) -> Iterator[tuple[Server, Server]]:
    """A fresh floor and a fresh subject, warm."""
    with rig.floor() as floor, rig.subject() as subject:
        warm(rig, floor, failures, "floor")
        warm(rig, subject, failures, "subject")
        yield floor, subject


def _alternate(rig: Rig, failures: Failures, effort: Effort, shape: str, stream: bool, clients: int) -> tuple[list[Result], list[Result]]:
    floors: list[Result] = []
    subjects: list[Result] = []
    with both(rig, failures) as (floor, subject):
        for _ in range(effort.rounds):
            floors.append(failures.note("floor", rig.drive(floor, shape, stream, clients, seconds=effort.seconds)))
            subjects.append(failures.note("subject", rig.drive(subject, shape, stream, clients, seconds=effort.seconds)))
    return floors, subjects


def plain(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """32 clients, 8-token replies, not streamed."""
    floors, subjects = _alternate(rig, failures, effort, "8", False, 32)
    return [
        at_least("plain, 32 clients, 8 tokens: requests/s", [r.rate for r in floors], [r.rate for r in subjects], "{:,.0f}", 0.9),
        at_most("  CPU per request, us", [r.cpu * 1e6 for r in floors], [r.cpu * 1e6 for r in subjects], "{:,.0f}", 1.0),
    ]


def stream(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """32 clients, streams of 64 chunks."""
    floors, subjects = _alternate(rig, failures, effort, "64", True, 32)
    return [
        at_least("streamed, 32 clients, 64 chunks: chunks/s", [r.chunk_rate for r in floors], [r.chunk_rate for r in subjects], "{:,.0f}", 1.1),
        at_most("  CPU per request, us", [r.cpu * 1e6 for r in floors], [r.cpu * 1e6 for r in subjects], "{:,.0f}", 0.65),
    ]


def first(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """One client, streams of 8 chunks: time to the first token."""
    floors, subjects = _alternate(rig, failures, effort, "8", True, 1)
    before, after = ([result.first_token(0.5) * 1e3 for result in results] for results in (floors, subjects))
    late = [[result.first_token(0.95) * 1e3 for result in results] for results in (floors, subjects)]
    return [
        added("first token, 1 client: p50, ms", before, after, 0.3),
        Row("  p95, ms", _median(late[0], "{:.2f}"), _median(late[1], "{:.2f}"), 0, "", "", True),
    ]


def crowd(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """500 streams at once of 50 chunks at 50 ms, on fresh processes each round, so that memory grown in one round is not reused in the next."""
    streams = 500
    p95: dict[str, list[float]] = {"floor": [], "subject": []}
    failed = {"floor": 0, "subject": 0}
    kilobytes: dict[str, list[float]] = {"floor": [], "subject": []}
    for _ in range(effort.bursts):
        for side, start in (("floor", rig.floor), ("subject", rig.subject)):
            with start() as server:
                warm(rig, server, failures, side)
                memory = Peak(server)
                result = failures.note(side, rig.drive(server, "50x50ms", True, streams, requests=streams, meanwhile=memory))
                failed[side] += result.failed
                p95[side].append(result.first_token(0.95) * 1e3)
                kilobytes[side].append((memory.highest - memory.before) / streams / KB)
    none = failed["subject"] == 0
    return [
        Row("500 streams, 50 chunks at 50 ms: failed", str(failed["floor"]), str(failed["subject"]), failed["subject"], "", "0", none),
        at_most("  first token p95, ms", p95["floor"], p95["subject"], "{:,.0f}", 1.0),
        own("  memory per open stream, KB", kilobytes["subject"], "{:.1f}", 35, _median(kilobytes["floor"], "{:.1f}")),
    ]


def start(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """From exec to listening, and memory at rest. The first start makes the store; it is shown, the later ones count."""
    seconds: list[float] = []
    idle: list[float] = []
    for number in range(effort.starts + 1):
        with rig.subject() as server:
            seconds.append(server.started_in)
            if number == effort.starts:
                pause(1.0)
                idle.append(resident_bytes(server.pid) / MB)
    with rig.floor() as server:
        pause(1.0)
        floor_idle, floor_start = resident_bytes(server.pid) / MB, server.started_in
    return [
        own(f"from exec to listening, s (the very first {seconds[0]:.2f})", seconds[1:], "{:.2f}", 1.2, f"{floor_start:.2f}"),
        own("resident memory idle, MB", idle, "{:.1f}", 85, f"{floor_idle:.1f}"),
    ]


def growth(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """Three passes of requests, half of them streamed: resident memory after each. The third may not be over the second by 2 %."""
    after: list[float] = []
    half = effort.pass_requests // 2
    with rig.subject() as server:
        for _ in range(3):
            for streamed in (False, True):
                failures.note("subject", rig.drive(server, "8", streamed, 32, requests=half, limit=120))
            pause(0.5)
            after.append(resident_bytes(server.pid) / MB)
    ratio = after[2] / after[1]
    passes = " ".join(f"{value:.1f}" for value in after)
    return [Row(f"memory after 3 x {2 * half:,} requests, MB", "", passes, ratio, f"{ratio:.3f}", "0.98-1.02", abs(ratio - 1) <= 0.02, after)]


MEASURES: dict[str, Callable[[Rig, Failures, Effort], list[Row]]] = {
    "start": start,
    "plain": plain,
    "stream": stream,
    "first": first,
    "crowd": crowd,
    "growth": growth,
}
