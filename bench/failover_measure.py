"""What a fallback costs: time to the first token with a primary that refuses connections, beside the same model asked directly. Imports bench.rig.

The gateway is compared with itself: the added time is the difference of the medians within a round.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from bench.measure import Effort, Failures, Row, added, warm
from bench.rig import Rig

#: Requests to one provider that refuses: one less than opens its breaker.
EACH = 4
#: Such providers in one round, and requests of a round beside an open breaker.
DEAD, MANY = 6, 100


def failover(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """One client, streams of 8 chunks: directly, with a primary that refuses connections, and with one whose breaker is open."""
    directly: list[list[float]] = [[], []]
    fallen: list[list[float]] = [[], []]
    with rig.subject(dead=effort.rounds * DEAD + 1) as server:
        warm(rig, server, failures, "subject")

        def first(agent: str, requests: int) -> list[float]:
            result = rig.drive(server, "8", True, 1, requests=requests, agent=agent)
            return failures.note("subject", result).first

        for number in range(effort.rounds):
            numbers = range(number * DEAD, (number + 1) * DEAD)
            directly[0].append(_median([one for _ in numbers for one in first("a8", EACH)]))
            fallen[0].append(_median([one for dead in numbers for one in first(f"dead{dead}", EACH)]))
        last = effort.rounds * DEAD
        first(f"dead{last}", EACH + 1)
        for _ in range(min(effort.rounds, 5)):  # the breaker is open for 15 s
            directly[1].append(_median(first("a8", MANY)))
            fallen[1].append(_median(first(f"dead{last}", MANY)))
    return [
        added("first token after a primary that refuses connections: p50, ms", directly[0], fallen[0], 5.0),
        added("first token with an open breaker: p50, ms", directly[1], fallen[1], 1.0),
    ]


def _median(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1e3 if seconds else float("nan")


MEASURES: dict[str, Callable[[Rig, Failures, Effort], list[Row]]] = {"failover": failover}
