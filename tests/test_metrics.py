"""What is measured, and its text for Prometheus."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.test.requesthelper import DummyRequest

import mayros
from mayros.config.listen import place
from mayros.core.failover import Candidate
from mayros.core.health import Try
from mayros.errors import QueueFull, RateLimited, UpstreamError
from mayros.events import ModelFailed, RunEnded, ToolFinished, ToolStarted, Usage
from mayros.ops.meters import Counter, Gathered, Histogram, Registry, each, one
from mayros.ops.metrics import CACHE_SECONDS, Metrics
from mayros.ops.scrape import Page
from mayros.web.site import Access
from tests.helpers import Harness, HarnessCase, chat, head, post, settings

LINE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(?:[a-z_]+="(?:[^"\\\n]|\\[\\"n])*",?)+\})? (\S+)')


def samples(text: bytes) -> dict[str, float]:
    """Every line with a value, by all that stands before it. Fails on a line that is none of Prometheus' format."""
    found: dict[str, float] = {}
    for line in text.decode().splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP \S+ .+|TYPE \S+ (counter|gauge|histogram))", line), line
            continue
        match = LINE.fullmatch(line)
        assert match is not None, line
        name = match[1] + (match[2] or "")
        assert name not in found, line
        found[name] = float(match[3])
    return found


class MetersTests(SynchronousTestCase):
    """Counters and histograms."""

    def test_the_text(self) -> None:
        """As Prometheus reads it: counters, cumulative buckets, values read on the spot, labels escaped."""
        registry = Registry()
        counter = Counter(registry, "c_total", "Counted.", ("who",))
        counter.add('a"\n\\')
        counter.add("b", by=2)
        seconds = Histogram(registry, "s", "Seconds.", (0.1, 1), ("route",))
        for value in (0.05, 0.1, 0.5, 7):
            seconds.observe(value, "/x")
        Gathered(registry, "g", "Read.", one(lambda: 1.5))
        Gathered(registry, "h", "Read.", each(lambda: {"up": 1}), ("state",))
        self.assertEqual(
            registry.text().decode(),
            "# HELP c_total Counted.\n# TYPE c_total counter\n"
            'c_total{who="a\\"\\n\\\\"} 1\nc_total{who="b"} 2\n'
            "# HELP s Seconds.\n# TYPE s histogram\n"
            's_bucket{route="/x",le="0.1"} 2\ns_bucket{route="/x",le="1"} 3\ns_bucket{route="/x",le="+Inf"} 4\n'
            's_sum{route="/x"} 7.65\ns_count{route="/x"} 4\n'
            '# HELP g Read.\n# TYPE g gauge\ng 1.5\n# HELP h Read.\n# TYPE h gauge\nh{state="up"} 1\n',
        )

    def test_series_are_bounded(self) -> None:
        """What would be one too many is counted and dropped; what is there goes on."""
        registry = Registry(most=8)
        counter, seconds = Counter(registry, "c_total", "C.", ("x",)), Histogram(registry, "s", "S.", (1,), ("x",))
        for name in "abcde":
            counter.add(name)
        seconds.observe(1, "a")  # needs four lines: three are left
        counter.add("a")
        self.assertEqual((registry.dropped, counter.cells[("a",)], seconds.cells), (1, 2, {}))


def provider_failed(kind: str = "rate_limit") -> ModelFailed:
    """A fallback from the first to the second model."""
    return ModelFailed("fake", "one", "config", kind, "no", "fake", "two", "config")


class MetricsTests(HarnessCase):
    """The catalogue, over runs and requests in memory."""

    def setUp(self) -> None:
        super().setUp()
        self.one: Harness = self.gateway()
        self.metrics = Metrics(
            self.one.clock,
            lambda path: path if path.startswith("/v1") else "other",
            lambda provider, model: (provider, model if model in ("one", "two") else "other"),
            lambda name: name if name == "look" else "other",
            "1.2",
        )
        self.one.runs.watch(self.metrics.run)
        self.one.health.heard = self.metrics.provider

    def now(self) -> dict[str, float]:
        """All values, made anew."""
        self.one.clock.advance(CACHE_SECONDS)
        return samples(self.metrics.text())

    def test_a_run(self) -> None:
        """Door, outcome, tokens, first words, the provider's answer; nothing that names a session or a run."""
        client = self.one.dial(post(chat()))
        self.one.clock.advance(0.3)
        self.one.provider.say("Hello")
        self.one.settle(client)
        self.one.clock.advance(0.02)
        self.one.provider.say(" there")
        self.one.settle(client)
        self.one.provider.stop(usage=Usage(input=7, output=3))
        self.one.settle(client)
        found = self.now()
        for line, value in {
            'mayros_runs_total{door="chat",outcome="ok"}': 1,
            'mayros_run_duration_seconds_count{door="chat",outcome="ok"}': 1,
            'mayros_tokens_total{provider="fake",model="one",type="input"}': 7,
            'mayros_tokens_total{provider="fake",model="one",type="output"}': 3,
            'mayros_time_to_first_token_seconds_bucket{provider="fake",model="one",le="0.2"}': 0,
            'mayros_time_to_first_token_seconds_bucket{provider="fake",model="one",le="0.35"}': 1,
            'mayros_output_token_interval_seconds_bucket{provider="fake",model="one",le="0.01"}': 1,
            'mayros_provider_requests_total{provider="fake",model="one",outcome="ok"}': 1,
            "mayros_lane_wait_seconds_count": 1,
        }.items():
            self.assertEqual(found.get(line), value, line)
        (run,) = (turn.run_id for turn, _ in self.one.store.turns)
        self.assertNotIn(run.encode(), self.metrics.text())
        self.assertNotIn(b"agent:", self.metrics.text())
        self.assertIn('mayros_build_info{version="1.2"', self.metrics.text().decode())

    def test_requests(self) -> None:
        """By route, method and code; a client that leaves a stream; refused bodies."""
        for entry in (
            Access(0, "r", None, "GET", "/v1/models", 200, 1, 3.0),
            Access(0, "r", None, "GET", "/secret-path", 404, 1, 3.0),
            Access(0, "r", None, "POST", "/v1/x", 499, 1, 3.0, stream=True, ttft_ms=1.0),
            Access(0, "r", None, "POST", "/v1/x", 499, 1, 3.0, stream=True),
            Access(0, "r", None, "POST", "/v1/x", 413, 1, 3.0),
        ):
            self.metrics.http(entry)
        found = self.now()
        self.assertEqual(found['mayros_http_requests_total{route="other",method="GET",code="404"}'], 1)
        self.assertEqual(found['mayros_http_request_duration_seconds_bucket{route="/v1/models",stream="false",le="0.005"}'], 1)
        self.assertEqual((found['mayros_sse_disconnects_total{phase="streaming"}'], found['mayros_sse_disconnects_total{phase="waiting"}']), (1, 1))
        self.assertEqual(found['mayros_http_body_refused_total{reason="too_large"}'], 1)
        self.assertNotIn(b"secret-path", self.metrics.text())

    def test_providers(self) -> None:
        """What their requests came to, and whom was asked instead."""
        config = settings()
        tried = Try(Candidate(config.directory.agents["main"].models[0], None), self.one.clock.seconds())
        self.one.clock.advance(2)
        self.metrics.provider(tried, None)
        self.metrics.provider(tried, RateLimited())
        self.metrics.provider(tried, UpstreamError())
        self.metrics.provider(tried, None, dropped=True)
        run: Any = self.submitted()
        self.metrics.run(run, [provider_failed()])
        found = self.now()
        for outcome in ("ok", "http_429", "http_5xx", "cut"):
            self.assertEqual(found[f'mayros_provider_requests_total{{provider="fake",model="one",outcome="{outcome}"}}'], 1, outcome)
        self.assertEqual(found['mayros_provider_fallbacks_total{from="fake/one",to="fake/two",reason="rate_limit"}'], 1)
        self.assertEqual(found['mayros_provider_request_duration_seconds_bucket{provider="fake",model="one",le="2.5"}'], 4)

    def submitted(self) -> Any:
        """A live run that has not said anything."""
        self.one.dial(post(chat()))
        (run,) = self.one.runs.newest(5)
        return run

    def test_tools_and_refusals(self) -> None:
        """Tools by their names, as far as they are ours; a run that never began is a refusal."""
        run: Any = self.submitted()
        self.metrics.run(run, [ToolStarted("1", "look", "{}")])
        self.one.clock.advance(2)
        self.metrics.run(run, [ToolFinished("1", "look", False, "x"), ToolFinished("2", "made-up", True, "no such tool")])
        found = self.now()
        self.assertEqual(found['mayros_tool_calls_total{tool="look",outcome="ok"}'], 1)
        self.assertEqual(found['mayros_tool_calls_total{tool="other",outcome="error"}'], 1)
        self.assertEqual(found['mayros_tool_duration_seconds_bucket{tool="look",le="2.5"}'], 1)
        self.metrics._seen.clear()
        self.metrics.run(run, [RunEnded("error", None, Usage(), run.started_ms, QueueFull())])
        self.assertEqual(self.now()['mayros_run_refused_total{reason="queue_full"}'], 1)

    def test_a_clock_that_is_set(self) -> None:
        """By a day, forth or back, while a run waits for its session and while it thinks: what was waited and used is what it was."""
        for step in (86_400_000, -86_400_000):
            wall = 1_764_000_000_000
            self.one.runs._now_ms = lambda: wall  # noqa: B023  the wall clock of this turn of the loop
            first = self.one.dial(post(chat("first", user=f"set{step}")))
            second = self.one.dial(post(chat("second", user=f"set{step}")))
            wall += step
            for client in (first, second):
                self.one.clock.advance(2)
                self.one.provider.say("Hello")
                self.one.provider.stop()
                self.one.settle(client)
            result = self.one.store.turns[-1][1]
            self.assertEqual(result.ended_at_ms - result.started_at_ms, 4_000)
        found = self.now()
        self.assertEqual(found['mayros_run_duration_seconds_sum{door="chat",outcome="ok"}'], 2 * (2 + 4))
        self.assertEqual(found["mayros_lane_wait_seconds_sum"], 2 * 2)

    def test_the_text_is_kept_for_a_second(self) -> None:
        """However many ask."""
        first = self.metrics.text()
        self.metrics.request("health", True, 0.01)
        self.assertIs(self.metrics.text(), first)
        self.assertEqual(self.now()['mayros_ws_requests_total{method="health",outcome="ok"}'], 1)

    def test_lag(self) -> None:
        """How late timers are."""
        self.metrics.start()
        self.one.clock.advance(0.5)
        self.one.clock.advance(0.75)
        self.metrics.stop()
        found = self.now()
        self.assertEqual((found['mayros_reactor_lag_seconds_bucket{le="0.001"}'], found["mayros_reactor_lag_seconds_count"]), (1, 2))


class DoorTests(HarnessCase):
    """`GET /metrics`."""

    ON = {"gateway": {"metrics": {"enabled": True}}}

    def test_with_a_token(self) -> None:
        """The text; without a credential 401."""
        gateway = self.gateway(self.ON)
        gateway.api.metrics = lambda: b"up 1\n"
        answer = gateway.dial(head("GET", "/metrics") + b"\r\n").answer()
        self.assertEqual((answer.status, answer.body), (200, b"up 1\n"))
        self.assertEqual(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8")
        self.assertEqual(gateway.dial(head("GET", "/metrics", token=None) + b"\r\n").answer().status, 401)

    def test_off(self) -> None:
        """By default, and where they have a listener of their own, there is nothing here."""
        for changes in ({}, {"gateway": {"metrics": {"enabled": True, "listen": "127.0.0.1:0"}}}):
            answer = self.gateway(changes).dial(head("GET", "/metrics") + b"\r\n").answer()
            self.assertEqual((answer.status, answer.error["code"]), (404, "endpoint_disabled"))
            self.assertIn("gateway.metrics.enabled", answer.error["message"])

    def test_the_listener_of_its_own(self) -> None:
        """One page."""
        page = Page(lambda: b"up 1\n", b"text/plain")
        for path, code in ((b"/metrics", 200), (b"/", 404), (b"/metrics/x", 404)):
            request = DummyRequest([])
            request.path = path
            body = page.render_GET(request)  # type: ignore[arg-type]
            self.assertEqual((request.responseCode or 200, body == b"up 1\n"), (code, code == 200), path)

    def test_where(self) -> None:
        """An address and a port, or a path; anything else is told of by its key."""
        self.assertEqual([place(text) for text in ("127.0.0.1:9464", "[::1]:0", "localhost:1", "unix:/run/m.sock")],
                         [("127.0.0.1", 9464), ("::1", 0), ("127.0.0.1", 1), "/run/m.sock"])  # fmt: skip
        for text in ("", "9464", ":9464", "0.0.0.0", "example.org:80", "::1:80", "[127.0.0.1]:80", "127.0.0.1:99999", "unix:x", "127.0.0.1:²"):
            with self.assertRaises(ValueError, msg=text):
                place(text)


class ClockTests(SynchronousTestCase):
    """Times."""

    def test_no_timer_before_the_start(self) -> None:
        """And none after the stop."""
        clock = Clock()
        metrics = Metrics(clock, str, lambda provider, model: (provider, model), str, "1")
        self.assertEqual(clock.getDelayedCalls(), [])
        metrics.start()
        metrics.stop()
        self.assertEqual(clock.getDelayedCalls(), [])


class CatalogueTests(SynchronousTestCase):
    """docs/operations.md."""

    def test_every_name_is_in_it(self) -> None:
        """And none that is not measured."""
        told = set(re.findall(r"`((?:mayros|process)_[a-z_]+)`", (Path(__file__).parents[1] / "docs" / "operations.md").read_text()))
        root = Path(mayros.__file__).parent
        sources = (root / "ops" / "metrics.py").read_text() + (root / "measure.py").read_text()
        self.assertEqual(told, set(re.findall(r'"((?:mayros|process)_[a-z_]+)"', sources)))
