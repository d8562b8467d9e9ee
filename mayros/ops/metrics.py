"""What is measured: the catalogue of docs/operations.md. Made, and imported, only where `gateway.metrics` is enabled.

Most is heard from the outside (a watcher of the runs, the access log's entries); what is counted elsewhere anyway is read when somebody asks.
No session, user, run or address is in a label; models, tools and methods only as far as they are configured, else `other`. Imports core, meters.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any, Protocol, get_args

from twisted.internet.task import LoopingCall

from mayros.core.failover import kind_of
from mayros.core.health import Try
from mayros.core.ports import DOORS, Clock, Run
from mayros.errors import BudgetExceeded, GatewayError, QueueFull
from mayros.events import (
    CallerCallDelta,
    Event,
    ModelAnswered,
    ModelFailed,
    Outcome,
    ReasoningDelta,
    RunEnded,
    RunStarted,
    TextDelta,
    ToolCallDelta,
    ToolFinished,
    ToolStarted,
    Usage,
)
from mayros.ops.meters import Counter, Gathered, Histogram, Registry, Sample, each, one

OTHER = "other"
LAG_SECONDS = 0.5
#: The text is made at most once in so many seconds.
CACHE_SECONDS = 1.0
_H = (0.005, 0.025, 0.1, 0.25, 1, 2.5, 10, 30, 120)
_RUN = (*_H, 300, 600)
_TOOL = (*_RUN, 1800)
_FIRST = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 8, 13, 20, 30, 60)
_INTERVAL = (0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.5)
_COMMIT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_LAG = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_DELTAS = frozenset((TextDelta, ReasoningDelta, ToolCallDelta, CallerCallDelta))
_BODIES = {408: "timeout", 413: "too_large", 415: "type"}
_STARTED = time.time()
_KINDS_OF_TOKENS = ("input", "output", "cache_read", "cache_write", "reasoning")
_counts: Callable[[Usage], tuple[int, ...]] = attrgetter(*_KINDS_OF_TOKENS)
#: What a request to a provider came to, by the kind of its failure (core/failover.py).
_KINDS = {"rate_limit": "http_429", "server": "http_5xx", "timeout": "timeout", "connect": "connect"}


class Entry(Protocol):
    """What is read of an entry of the access log."""

    method: str
    path: str
    code: int
    ms: float
    stream: bool
    ttft_ms: float | None


class _Seen:
    """One live run: who answers, since when it thinks, and when its first and its newest words came."""

    __slots__ = ("began", "first", "last", "model", "tools")

    def __init__(self, began: float) -> None:
        self.began, self.first, self.last = began, 0.0, 0.0
        self.model: tuple[str, str] = (OTHER, OTHER)
        self.tools: dict[str, float] | None = None


class Metrics:
    """See the module. `clock` never jumps; `route` gives the template of a path, `model` and `tool` the names that may be told."""

    def __init__(
        self,
        clock: Clock,
        route: Callable[[str], str],
        model: Callable[[str, str], tuple[str, str]],
        tool: Callable[[str], str],
        version: str,
    ) -> None:
        self._seconds, self._route, self._model, self._tool = clock.seconds, route, model, tool
        self.registry = make = Registry()
        self._seen: dict[str, _Seen] = {}
        self._hear: Mapping[type, Callable[[Run, Any], None]] = {
            RunStarted: self._started,
            ModelAnswered: self._answered,
            ModelFailed: self._fell_back,
            ToolStarted: self._used_tool,
            ToolFinished: self._used_tool,
            RunEnded: self._ended,
        }
        self._text, self._made_at = b"", float("-inf")
        self._lag_due = 0.0
        self._lagging = LoopingCall(self._lag)
        self._lagging.clock = clock  # type: ignore[assignment]
        info = (version, ".".join(map(str, sys.version_info[:3])), _twisted())
        self.gauge("mayros_build_info", "What runs.", lambda: ((info, 1),), ("version", "python", "twisted"))
        self._http = Counter(make, "mayros_http_requests_total", "HTTP requests that were answered.", ("route", "method", "code"))
        self._http_seconds = Histogram(
            make, "mayros_http_request_duration_seconds", "From the first header to the last byte of the answer.", _H, ("route", "stream")
        )
        self._left = Counter(make, "mayros_sse_disconnects_total", "Clients that left a stream before its end.", ("phase",))
        self._body = Counter(make, "mayros_http_body_refused_total", "Requests refused for their bodies.", ("reason",))
        self._first = Histogram(
            make, "mayros_time_to_first_token_seconds", "From the start of a run to its first words.", _FIRST, ("provider", "model")
        )
        self._interval = Histogram(
            make, "mayros_output_token_interval_seconds", "Between two tokens, the mean of a run.", _INTERVAL, ("provider", "model")
        )
        self._tokens = Counter(make, "mayros_tokens_total", "Tokens that runs used.", ("provider", "model", "type"))
        self._runs = Counter(make, "mayros_runs_total", "Runs that have ended.", ("door", "outcome"))
        for door in DOORS:
            for outcome in get_args(Outcome):
                self._runs.add(door, outcome, by=0)  # so that the first of a kind is seen to be one
        self._run_seconds = Histogram(make, "mayros_run_duration_seconds", "From the submission of a run to its end.", _RUN, ("door", "outcome"))
        self._wait = Histogram(make, "mayros_lane_wait_seconds", "How long runs waited for their session and for a slot.", _H)
        self._refused = Counter(make, "mayros_run_refused_total", "Runs that ended before they began.", ("reason",))
        self._tools = Counter(make, "mayros_tool_calls_total", "Calls of the gateway's tools.", ("tool", "outcome"))
        self._tool_seconds = Histogram(make, "mayros_tool_duration_seconds", "How long they took.", _TOOL, ("tool",))
        self._asked = Counter(make, "mayros_provider_requests_total", "Requests to providers.", ("provider", "model", "outcome"))
        self._asked_seconds = Histogram(
            make, "mayros_provider_request_duration_seconds", "From the request to the end of the answer.", _RUN, ("provider", "model")
        )
        self._fallbacks = Counter(make, "mayros_provider_fallbacks_total", "Another model, or key, was tried.", ("from", "to", "reason"))
        self._ws = Counter(make, "mayros_ws_requests_total", "Requests of WebSocket clients.", ("method", "outcome"))
        self._ws_seconds = Histogram(make, "mayros_ws_request_duration_seconds", "Until the answer, or the last one.", _H, ("method",))
        self._commit = Histogram(make, "mayros_store_commit_duration_seconds", "How long a batch of the store took.", _COMMIT)
        self._batch = Histogram(make, "mayros_store_batch_size", "Jobs in a batch of the store.", _BATCH)
        self._lags = Histogram(make, "mayros_reactor_lag_seconds", "How late timers are.", _LAG)
        for name, about, read, kind in _PROCESS:
            Gathered(make, name, about, one(read), kind=kind)
        self.counted("mayros_metrics_series_dropped_total", "Values without a place among the series.", one(lambda: make.dropped))

    def gauge(self, name: str, about: str, read: Callable[[], Iterable[Sample]], labels: tuple[str, ...] = ()) -> None:
        """One more value that is read when somebody asks; see meters.Gathered."""
        Gathered(self.registry, name, about, read, labels)

    def counted(self, name: str, about: str, read: Callable[[], Iterable[Sample]], labels: tuple[str, ...] = ()) -> None:
        """The same for one that only grows."""
        Gathered(self.registry, name, about, read, labels, "counter")

    def start(self) -> None:
        """Measure the reactor's lag from now on."""
        self._lag_due = self._seconds() + LAG_SECONDS
        self._lagging.start(LAG_SECONDS, now=False)

    def stop(self) -> None:
        """No more."""
        if self._lagging.running:
            self._lagging.stop()

    def _lag(self) -> None:
        now = self._seconds()
        self._lags.observe(max(0.0, now - self._lag_due))
        self._lag_due = now + LAG_SECONDS

    def text(self) -> bytes:
        """Everything, for Prometheus; at most a second old."""
        now = self._seconds()
        if not 0 <= now - self._made_at < CACHE_SECONDS:
            self._text, self._made_at = self.registry.text(), now
        return self._text

    # What is heard.

    def http(self, entry: Entry) -> None:
        """A request has ended."""
        route, code = self._route(entry.path), entry.code
        self._http.add(route, entry.method, str(code))
        self._http_seconds.observe(entry.ms / 1000, route, "true" if entry.stream else "false")
        if code == 499 and entry.stream:
            self._left.add("waiting" if entry.ttft_ms is None else "streaming")
        elif code in _BODIES:
            self._body.add(_BODIES[code])

    def run(self, run: Run, events: list[Event]) -> None:
        """See core.ports.Watcher."""
        spoken = False
        for event in events:
            kind = type(event)
            if kind in _DELTAS:
                spoken = True
            elif (hear := self._hear.get(kind)) is not None:
                hear(run, event)
        if spoken and (seen := self._seen.get(run.turn.run_id)) is not None:
            seen.last = self._seconds()
            if not seen.first:
                seen.first = seen.last
                self._first.observe(seen.first - seen.began, *seen.model)

    def _started(self, run: Run, event: RunStarted) -> None:
        self._seen[event.run_id] = _Seen(self._seconds())
        self._wait.observe(self._seconds() - run.began)

    def _answered(self, run: Run, event: ModelAnswered) -> None:
        if (seen := self._seen.get(run.turn.run_id)) is not None:
            seen.model = self._model(event.provider, event.model)

    def _fell_back(self, run: Run, event: ModelFailed) -> None:
        now, then = self._model(event.provider, event.model), self._model(event.next_provider, event.next_model)
        self._fallbacks.add("/".join(now), "/".join(then), event.kind)

    def _used_tool(self, run: Run, event: ToolStarted | ToolFinished) -> None:
        seen = self._seen.get(run.turn.run_id)
        if seen is None:
            return
        calls = seen.tools = seen.tools if seen.tools is not None else {}
        if isinstance(event, ToolStarted):
            calls[event.call_id] = self._seconds()
        else:
            tool, began = self._tool(event.name), calls.pop(event.call_id, None)
            self._tools.add(tool, "error" if event.is_error else "ok")
            if began is not None:
                self._tool_seconds.observe(self._seconds() - began, tool)

    def _ended(self, run: Run, event: RunEnded) -> None:
        door, outcome, usage = run.turn.door, event.outcome, event.usage
        seen = self._seen.pop(run.turn.run_id, None)
        self._runs.add(door, outcome)
        self._run_seconds.observe(self._seconds() - run.began, door, outcome)
        if seen is None:
            error = event.error
            self._refused.add("queue_full" if isinstance(error, QueueFull) else "budget" if isinstance(error, BudgetExceeded) else outcome)
            return
        for kind, count in zip(_KINDS_OF_TOKENS, _counts(usage), strict=True):
            if count:
                self._tokens.add(*seen.model, kind, by=count)
        if usage.output > 1 and seen.last > seen.first:
            self._interval.observe((seen.last - seen.first) / (usage.output - 1), *seen.model)

    def provider(self, tried: Try, error: GatewayError | None, dropped: bool = False) -> None:
        """A request to a provider has ended; `dropped`: nobody waits for the answer any more."""
        model = tried.candidate.model
        names = self._model(model.provider.id, model.id)
        outcome = "cut" if dropped else "ok" if error is None else _KINDS.get(kind_of(error), "http_4xx")
        self._asked.add(*names, outcome)
        self._asked_seconds.observe(max(0.0, self._seconds() - tried.asked_at), *names)

    def request(self, method: str, ok: bool, seconds: float) -> None:
        """A WebSocket client was answered."""
        self._ws.add(method, "ok" if ok else "error")
        self._ws_seconds.observe(seconds, method)

    def committed(self, seconds: float, jobs: int) -> None:
        """The store has written a batch."""
        self._commit.observe(seconds)
        self._batch.observe(jobs)

    def by(self, name: str, about: str, label: str, read: Callable[[], Mapping[str, float]], *, counter: bool = False) -> None:
        """One more value by one label."""
        Gathered(self.registry, name, about, each(read), (label,), "counter" if counter else "gauge")


def _twisted() -> str:
    from twisted import __version__

    return __version__


def _resident() -> float:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _or_zero(read: Callable[[], float]) -> Callable[[], float]:
    """Where there is no /proc, 0."""

    def reading() -> float:
        try:
            return read()
        except OSError:
            return 0

    return reading


#: The names that dashboards know.
_PROCESS: tuple[tuple[str, str, Callable[[], float], str], ...] = (
    ("process_cpu_seconds_total", "User and system time.", lambda: sum(os.times()[:2]), "counter"),
    ("process_resident_memory_bytes", "Resident memory.", _or_zero(_resident), "gauge"),
    ("process_open_fds", "Open descriptors.", _or_zero(lambda: len(os.listdir("/proc/self/fd"))), "gauge"),
    ("process_start_time_seconds", "When the process began.", lambda: _STARTED, "gauge"),
)
