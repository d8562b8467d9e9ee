"""Something that is read once, the first time it is needed. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure


class Once:
    """Runs `read` when `done` is first asked for; all who ask meanwhile wait for the same. Where it fails, the next to ask has it tried again."""

    def __init__(self, read: Callable[[], Coroutine[Deferred[Any], Any, None]]) -> None:
        self._read = read
        self._is_done = False
        self._waiting: list[Deferred[None]] = []

    def done(self) -> Deferred[None]:
        """Fires when it is read, or fails as `read` did. A new Deferred for each caller; to cancel it stops the waiting, not the reading."""
        if self._is_done:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._waiting.append(waiter)
        if len(self._waiting) == 1:
            Deferred.fromCoroutine(self._read()).addBoth(self._tell)
        return waiter

    def _tell(self, outcome: Failure | None) -> None:
        self._is_done = not isinstance(outcome, Failure)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(outcome)
