"""What `mayros models status` prints: the answer of `models.status` as rows. Imports cli.show."""

from __future__ import annotations

from typing import Any

from mayros.cli.show import record, records

COLUMNS = ("provider", "key", "state", "last failure", "for another", "what was said")


def rows(payload: Any) -> list[tuple[object, ...]]:
    """A row for each breaker that is not closed, and for each key, or each of its rests where it has some."""
    answer = record(payload)
    now_ms = answer.get("ts")
    made: list[tuple[object, ...]] = []
    for provider in records(answer.get("providers")):
        name, breaker = provider.get("id"), provider.get("breaker")
        if isinstance(breaker, dict) and breaker.get("state") != "closed":
            made.append((name, "", breaker.get("state"), breaker.get("lastKind"), left(breaker.get("openUntil"), now_ms), ""))
        for key in records(provider.get("keys")):
            shown, rests = key.get("id") or "(no key)", records(key.get("rests"))
            if not rests:
                made.append((name, shown, key.get("state"), "", "", ""))
            for rest in rests:
                model = f" for {rest['model']}" if rest.get("model") else ""
                still = left(rest.get("until"), now_ms)
                made.append((name, shown, f"{'cooling' if still else 'ready'}{model}", rest.get("kind"), still, rest.get("error")))
    return made


def left(until_ms: object, now_ms: object) -> str:
    """How long it still is, as `2h 05m`, `3m 10s` or `7s`; empty where it is over or not known."""
    if not isinstance(until_ms, int) or not isinstance(now_ms, int) or until_ms <= now_ms:
        return ""
    seconds = -(-(until_ms - now_ms) // 1000)
    if seconds >= 3600:
        return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m {seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
