"""What is looked for on disk now and then: at most every few seconds, in a thread, and whoever asks meanwhile shares it. Imports core.ports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, succeed

from mayros.core.ports import Clock

T = TypeVar("T")
R = TypeVar("R")


class Recent(Generic[T]):
    """One thing of that kind. `clock` gives the `seconds` between two looks."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds
        #: What the last look found.
        self.found: T | None = None
        self._checked = 0.0
        self._waiting: list[tuple[Deferred[Any], Callable[[T], object]]] | None = None

    def get(self, look: Callable[[], Deferred[T]], shown: Callable[[T], R]) -> Deferred[R]:
        """What is `shown` of it, a new Deferred for each caller, who may cancel it. `look` begins to look, and what it gives must not fail."""
        if self.found is not None and self._clock.seconds() - self._checked < self._seconds:
            return succeed(shown(self.found))
        answer: Deferred[R] = Deferred(lambda _: None)
        if self._waiting is not None:
            self._waiting.append((answer, shown))
            return answer
        self._waiting = [(answer, shown)]
        look().addCallback(self._looked)
        return answer

    def expire(self) -> None:
        """Whoever asks next has it looked for again."""
        self._checked = float("-inf")

    def _looked(self, found: T) -> None:
        self.found, self._checked = found, self._clock.seconds()
        waiting, self._waiting = self._waiting or [], None
        for answer, shown in waiting:
            if not answer.called:
                answer.callback(shown(found))
