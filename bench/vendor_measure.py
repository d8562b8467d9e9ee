"""What the vendors' wire formats cost: one text streamed by each adapter, beside chat completions in the same gateway. Imports bench.rig."""

from __future__ import annotations

from collections.abc import Callable

from bench.measure import Effort, Failures, Row, at_least, warm
from bench.rig import VENDORS, Result, Rig


def vendors(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """32 clients, streams of 64 chunks; the floor is the gateway's own `openai-completions`."""
    chat: dict[str, list[Result]] = {name: [] for name in VENDORS}
    own: dict[str, list[Result]] = {name: [] for name in VENDORS}
    with rig.subject() as server:
        warm(rig, server, failures, "subject")
        for name in VENDORS:
            failures.note("subject", rig.drive(server, "64", True, 32, requests=320, agent=name))
        for _ in range(effort.rounds):
            for name in VENDORS:
                chat[name].append(failures.note("subject", rig.drive(server, "64", True, 32, seconds=effort.seconds / 2)))
                own[name].append(failures.note("subject", rig.drive(server, "64", True, 32, seconds=effort.seconds / 2, agent=name)))
    return [
        at_least(
            f"streamed by {VENDORS[name][0]}, beside chat completions: chunks/s",
            [result.chunk_rate for result in chat[name]],
            [result.chunk_rate for result in own[name]],
            "{:,.0f}",
            0.8,
        )
        for name in VENDORS
    ]


MEASURES: dict[str, Callable[[Rig, Failures, Effort], list[Row]]] = {"vendors": vendors}
