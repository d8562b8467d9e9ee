"""What was made of an object, for as long as the same object comes again. Pure; imports nothing of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """A function of one object that does not change, made once for each: told by which object it is, not by what is in it.

    At most so many are kept, with their objects; then all are made anew.
    """

    def __init__(self, make: Callable[[K], V], most: int = 256) -> None:
        self._make, self._most = make, most
        self._kept: dict[int, tuple[K, V]] = {}

    def __call__(self, thing: K) -> V:
        """What was made of it."""
        kept = self._kept.get(id(thing))
        if kept is None:  # another object cannot have this id: it is held here
            if len(self._kept) >= self._most:
                self._kept.clear()
            kept = self._kept[id(thing)] = thing, self._make(thing)
        return kept[1]
