"""What it costs to measure: requests/s with the metrics on beside those without, and a scrape with as many series as there may be.

Rounds go A B A B: without, with. Imports bench.rig, and the project for the scrape.
"""

from __future__ import annotations

import statistics
import threading
import time
import urllib.request

from bench.measure import Effort, Failures, Row, warm
from bench.rig import Rig, Server
from mayros.ops.meters import Counter, Histogram, Registry

CLIENTS = 32
#: As a server is asked that a monitor looks at; each scrape is made anew after a second.
SCRAPE_SECONDS = 1.0


def metrics(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """32 clients, 8 tokens, not streamed; the one that measures is scraped each second meanwhile."""
    rates: tuple[list[float], list[float]] = ([], [])
    costs: tuple[list[float], list[float]] = ([], [])
    with rig.subject() as without, rig.subject(metrics=True) as measured:
        for server in (without, measured):
            warm(rig, server, failures, "subject")
        for _ in range(effort.rounds):
            for place, server in enumerate((without, measured)):
                with _Scraper(server if place else None):
                    result = failures.note("subject", rig.drive(server, "8", False, CLIENTS, seconds=effort.seconds))
                rates[place].append(result.rate)
                costs[place].append(result.cpu)
    ratios = [on / off for off, on in zip(*rates, strict=True)]
    dearer = [on / off for off, on in zip(*costs, strict=True)]
    ratio, cost, took = statistics.median(ratios), statistics.median(dearer), statistics.median(_scrapes(20))
    shown = [f"{statistics.median(one):,.0f}" for one in rates]
    used = [f"{statistics.median(one) * 1e6:,.0f} us" for one in costs]
    return [
        Row("requests/s without metrics, with them", *shown, ratio, f"{ratio:.3f}", ">= 0.95", ratio >= 0.95, ratios),
        Row("  CPU time per request", *used, cost, f"{cost:.3f}", "(shown)", True, dearer),
        Row("a scrape with all series that there may be, CPU ms", "", f"{took:.2f}", took, "", "<= 10", took <= 10),
    ]


class _Scraper:
    """Asks for the metrics each second, in a thread; nobody where there is no server."""

    def __init__(self, server: Server | None) -> None:
        self._server, self._over = server, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        if self._server is not None:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._server is not None:
            self._thread.join()

    def _run(self) -> None:
        assert self._server is not None
        request = urllib.request.Request(f"http://127.0.0.1:{self._server.port}/metrics", headers={"Authorization": f"Bearer {self._server.secret}"})
        while not self._over.is_set():
            with urllib.request.urlopen(request, timeout=10) as answer:
                answer.read()
            self._over.wait(SCRAPE_SECONDS)


def _scrapes(count: int) -> list[float]:
    """Milliseconds of CPU that it takes to write the text, when nothing more fits in."""
    registry = Registry()
    counter = Counter(registry, "mayros_a_total", "Counted.", ("provider", "model", "outcome"))
    histogram = Histogram(registry, "mayros_b_seconds", "Measured.", (0.005, 0.025, 0.1, 0.25, 1, 2.5, 10, 30, 120), ("provider", "model"))
    number = 0
    while not registry.dropped:
        counter.add("provider", f"model-{number}", "ok")
        histogram.observe(number / 7, "provider", f"model-{number}")
        number += 1
    took = []
    for _ in range(count):
        began = time.thread_time()
        registry.text()
        took.append((time.thread_time() - began) * 1e3)
    return took


MEASURES = {"metrics": metrics}
