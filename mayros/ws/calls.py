"""The requests of one client that go on: side by side, and cancelled when it leaves.

Those that are audited (acts.py) are not cancelled: what they do is done to its end, so that the trail tells what became of it. Imports core and ws.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from mayros.core.audit import Act
from mayros.ws.timing import Timing

if TYPE_CHECKING:
    from mayros.ws.context import Gateway


class Calls:
    """`begins` one, then it is spawned or not, then its handler `returned`. Its length is how many go on."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway, self._timing = gateway, Timing(gateway)
        self._tasks: set[Deferred[None]] = set()
        #: Of the tasks those that are audited.
        self._acts: set[Deferred[None]] = set()
        #: Of the call whose handler runs now.
        self.act: Act | None = None

    def __len__(self) -> int:
        return len(self._tasks)

    def begins(self, method: str) -> None:
        """A request is about to be answered."""
        self._timing.begins(method)

    def spawn(self, handler: Coroutine[Deferred[object], object, None], failed: Callable[[Failure], None]) -> None:
        """Run the rest of a request beside the others; `failed` answers what it raises."""
        act, self.act = self.act, None
        task: Deferred[None] = Deferred.fromCoroutine(handler)
        self._tasks.add(task)
        self._timing.goes_on(task)
        if act is not None:
            self._acts.add(task)
            task.addBoth(self._over, act)
        task.addErrback(failed).addBoth(self._ended, task)

    def returned(self, failure: Failure | None) -> None:
        """The handler has; `failure` is what it has raised."""
        self._timing.answered(failure is None)
        if self.act is not None:
            act, self.act = self.act, None
            self._over(failure, act)

    def cancel(self) -> None:
        """The client has left."""
        for task in self._tasks - self._acts:
            task.cancel()

    def _over(self, result: Failure | None, act: Act) -> Failure | None:
        from mayros.ws.acts import over  # loaded by now

        over(self._gateway.audit, act, result.value if isinstance(result, Failure) else None)
        return result

    def _ended(self, _result: None, task: Deferred[None]) -> None:
        self._tasks.discard(task)
        self._acts.discard(task)
