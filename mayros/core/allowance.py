"""What a run may use: its time and one slot. While it waits for a person or for another session its clock stands and others have the slot."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from twisted.internet.interfaces import IDelayedCall

from mayros.core.pause import pause
from mayros.core.ports import Clock, Slots
from mayros.errors import QueueFull

T = TypeVar("T")

#: How long a run that has waited, and then finds the queue for slots full, pauses before it asks again.
AGAIN_SECONDS = 0.5


class Allowance:
    """Made when the run begins to wait for its lane, from when on its time counts; `expired` is called when it is over. End it in any case."""

    def __init__(self, clock: Clock, slots: Slots, seconds: float, expired: Callable[[], object]) -> None:
        self._clock, self._slots, self._expired = clock, slots, expired
        self._timer: IDelayedCall | None = clock.callLater(seconds, expired)
        self._left, self._waits, self._ended = seconds, 0, False
        #: Whether the run has its slot; whoever acquires it says so here.
        self.held = False

    async def waiting(self, answer: Awaitable[T]) -> T:
        """See tool_ports.ToolContext."""
        self._waits += 1
        if self._waits == 1:
            self._pause()
        try:
            return await answer
        finally:
            self._waits -= 1
            if self._waits == 0 and not self._ended:
                self._timer = self._clock.callLater(self._left, self._expired)
                await self._regain()

    def _pause(self) -> None:
        if self._timer is not None and self._timer.active():
            self._left = max(0.0, self._timer.getTime() - self._clock.seconds())
            self._timer.cancel()
        self._timer = None
        if self.held:
            self.held = False
            self._slots.release()

    async def _regain(self) -> None:
        while not self.held:
            try:
                await self._slots.acquire()
            except QueueFull:
                await pause(self._clock, AGAIN_SECONDS)
                continue
            if self.held or self._ended:
                self._slots.release()
                return
            self.held = True

    def stop(self) -> None:
        """The run's time does not count any more: it is being ended."""
        self._ended = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def end(self) -> None:
        """Give back what is held."""
        self.stop()
        if self.held:
            self.held = False
            self._slots.release()
