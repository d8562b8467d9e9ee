"""What is said again and again is said a few times, and then how often. Pure; time is passed in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

#: Within so many seconds the same thing is said so often.
WINDOW_SECONDS, MOST = 60.0, 5
#: Different things that are remembered; the one that was said first is forgotten first.
MOST_KEYS = 256


@dataclass
class Held:
    """One thing that is being said: the text of the last time, and how often it was left out since."""

    since: float
    text: str
    told: int = 0
    left_out: int = 0


class Repeats:
    """What was said lately, by a key (logger, format and level, say)."""

    def __init__(self) -> None:
        self._held: OrderedDict[Hashable, Held] = OrderedDict()
        self._gone: list[tuple[Hashable, Held]] = []

    def take(self, key: Hashable, now: float, most: int = MOST) -> Held | None:
        """Say it: the thing, whose `text` is to be filled in; None: leave it out, it was said often enough."""
        held = self._held.get(key)
        if held is not None and not 0 <= now - held.since < WINDOW_SECONDS:
            self._forget(key)
            held = None
        if held is None:
            while len(self._held) >= MOST_KEYS:
                self._forget(next(iter(self._held)))
            held = self._held[key] = Held(now, "")
        if held.told >= most:
            held.left_out += 1
            return None
        held.told += 1
        return held

    def over(self, now: float, everything: bool = False) -> list[tuple[Hashable, Held]]:
        """Whose time is over and which were left out meanwhile: to be told how often. Each comes once."""
        while self._held:
            key, held = next(iter(self._held.items()))
            if not everything and 0 <= now - held.since < WINDOW_SECONDS:
                break
            self._forget(key)
        gone, self._gone = self._gone, []
        return gone

    def _forget(self, key: Hashable) -> None:
        held = self._held.pop(key)
        if held.left_out:
            self._gone.append((key, held))
