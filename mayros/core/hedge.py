"""Two models are asked at once where the first one is slow: whose first event comes first goes on, the other is cancelled.

Nothing of the loser is handed on, and it is closed before anything of the winner is. Used only where `model.hedgeAfterMs` says so. Imports errors,
events and ports.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

import msgspec
from twisted.internet.defer import Deferred

from mayros.core.ports import Clock
from mayros.errors import GatewayError, bare
from mayros.events import Event

Stream = AsyncGenerator[list[Event], None]


class Lead(msgspec.Struct, frozen=True):
    """How the race ended: the winner's number (0 or 1) and its first batch, empty where it ended without any. `errors`: of those that failed.

    `winner` None: all that ran have failed.
    """

    winner: int | None
    batch: list[Event]
    errors: tuple[tuple[int, GatewayError], ...]


class _Runner:
    """A stream that is waited for."""

    def __init__(self, stream: Stream, changed: Callable[[], None]) -> None:
        self.stream, self._changed = stream, changed
        self.batch: list[Event] | None = None
        self.error: Exception | None = None
        self.task: Deferred[None] = Deferred.fromCoroutine(self._first())

    async def _first(self) -> None:
        try:
            self.batch = await anext(self.stream)
        except StopAsyncIteration:
            self.batch = []
        except Exception as error:  # noqa: BLE001  (looked at by whoever waits for the race)
            self.error = bare(error) if isinstance(error, GatewayError) else error
        self._changed()

    async def stop(self) -> None:
        """Cancel what it does and close it. Fails never: what a loser says does not matter."""
        if self.batch is None and self.error is None:
            self.task.cancel()
            await self.task
        await self.stream.aclose()


async def race(first: Stream, second: Callable[[], Awaitable[Stream | None]], after_seconds: float, clock: Clock) -> Lead:
    """Wait for the first batch of `first`, and after so many seconds also for that of `second()` (None: there is none after all).

    The winner's stream is left open where it is; the others are closed. Raises what is no GatewayError. Cancelling closes both.
    """
    bell: Deferred[None] = Deferred()
    due = False

    def ring() -> None:
        nonlocal bell
        ringing, bell = bell, Deferred()
        ringing.callback(None)

    def late() -> None:
        nonlocal due
        due = True
        ring()

    runners: list[_Runner] = []
    winner: int | None = None
    timer = clock.callLater(after_seconds, late)
    try:
        runners.append(_Runner(first, ring))
        while True:
            waiting = bell
            winner = next((number for number, runner in enumerate(runners) if runner.batch is not None), None)
            for runner in runners:
                if runner.error is not None and not isinstance(runner.error, GatewayError):
                    winner = None
                    raise runner.error
            if winner is not None or all(runner.error is not None for runner in runners):
                break
            if due:
                due = False
                if (stream := await second()) is not None:
                    if waiting.called:  # meanwhile the first one has come to something
                        await stream.aclose()
                    else:
                        runners.append(_Runner(stream, ring))
                continue
            await waiting
    finally:
        if timer.active():
            timer.cancel()
        try:
            for number, runner in enumerate(runners):
                if number != winner:
                    await runner.stop()
        except BaseException:  # cancelled meanwhile: then nobody takes the winner over
            if winner is not None:
                await runners[winner].stream.aclose()
            raise
    errors = tuple([(number, runner.error) for number, runner in enumerate(runners) if isinstance(runner.error, GatewayError)])
    return Lead(winner, (runners[winner].batch or []) if winner is not None else [], errors)


async def resumed(batch: list[Event], stream: Stream) -> Stream:
    """A stream with the first batch that was taken from it. Closing the stream stays the caller's business."""
    if batch:
        yield batch
    async for more in stream:
        yield more
