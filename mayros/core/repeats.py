"""Loop detection: notices that a model calls the same tools over and over without progress. Pure; imports nothing of ours.

One Repeats is kept for each run. A call's key is its tool with its arguments, its outcome a hash of its result. In order, for what has gone before:

* the same key with the same outcome 30 times: blocked, whatever the tool;
* a poll (of a background process) with the same outcome in a row: warned from 10, blocked from 20;
* two keys in turns, each with the same outcome every time: warned from 10, blocked from 20;
* any other key 10 times, whatever came of it: warned.

The numbers and rules are those of OpenClaw 2026.9.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Any, Literal

import msgspec

#: How many calls are looked back on.
HISTORY = 30
WARN, BLOCK, BREAK = 10, 20, 30
#: Tools, with their actions, that are meant to be called again until something has happened.
_POLLS = {"process": frozenset({"poll", "log"})}

_encode = msgspec.json.Encoder(order="sorted").encode


class Finding(msgspec.Struct, frozen=True):
    """What is wrong with a call. `text` is for the model; `first`: it has not been said of this key yet."""

    level: Literal["warn", "block"]
    text: str
    first: bool


def key_of(name: str, arguments: dict[str, Any] | str) -> str:
    """The key of a call: the tool and the SHA-256 of its arguments with sorted keys (of their text, where they are no JSON)."""
    data = arguments.encode("utf-8", "replace") if isinstance(arguments, str) else _encode(arguments)
    return f"{name}:{hashlib.sha256(data).hexdigest()}"


class Repeats:
    """The calls of one run so far."""

    def __init__(self) -> None:
        self._calls: deque[tuple[str, bytes]] = deque(maxlen=HISTORY)
        self._warned: set[str] = set()

    def ended(self, key: str, outcome: str) -> None:
        """A call has ended with this text."""
        self._calls.append((key, hashlib.sha256(outcome.encode("utf-8", "replace")).digest()))

    def judge(self, name: str, arguments: dict[str, Any], key: str) -> Finding | None:
        """What is wrong with calling this once more."""
        same = [outcome for known, outcome in self._calls if known == key]
        if not same:
            return None
        if len(same) >= BREAK and len(set(same)) == 1:
            return self._found(key, len(same), f"identical calls of {name} with the identical result", block=True)
        if arguments.get("action") in _POLLS.get(name, ()):
            count = self._streak(key)
            return self._found(key, count, f"polls by {name} in a row that found nothing new") if count >= WARN else None
        alternating = self._alternating(key)
        if alternating >= WARN:
            return self._found(key, alternating, "calls that go back and forth between two tools with unchanged results")
        return self._found(key, len(same), f"calls of {name} with identical arguments", block=False) if len(same) >= WARN else None

    def _streak(self, key: str) -> int:
        """How many of the newest calls were this one, with one outcome."""
        count, outcome = 0, None
        for known, result in reversed(self._calls):
            if known != key or outcome not in (None, result):
                break
            count, outcome = count + 1, result
        return count

    def _alternating(self, key: str) -> int:
        """How many of the newest calls were two in turns, each with one outcome, of which `key` is the one that would be next."""
        calls = list(self._calls)
        if len(calls) < 2 or calls[-1][0] == key or calls[-2][0] != key:
            return 0
        expected = calls[-1], calls[-2]
        count = 0
        for number, call in enumerate(reversed(calls)):
            if call != expected[number % 2]:
                break
            count += 1
        return count

    def _found(self, key: str, count: int, what: str, block: bool | None = None) -> Finding:
        blocked = count >= BLOCK if block is None else block
        first = key not in self._warned
        self._warned.add(key)
        if blocked:
            return Finding("block", f"Loop detected: {count} {what}. The call was not made. Stop calling tools and say what you found.", first)
        advice = "If this makes no progress, stop repeating it: do something else, or say that it cannot be done."
        return Finding("warn", f"[Loop warning: {count} {what}. {advice}]", first)
