"""One piece of work for each idempotency key, whoever asks for it and how often. Shared by the doors. Imports core.ports and errors.

A key is claimed durably, then its work is started; a repeat finds the run that is going on, or how it ended. What is under way is brought to its end
although the client that asked has left: a key is never held by no run. A key whose work was refused before it began is free again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import NamedTuple, TypeVar

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mayros.core.claim_ports import Conflict, Done, Idempotency, New
from mayros.core.ports import Claim, Run, RunResult, Runs
from mayros.errors import GatewayError, IdempotencyConflict, Unavailable

log = Logger()
Value = TypeVar("Value")

#: A day.
KEEP_SECONDS = 86_400.0
_ATTEMPTS = 3

#: Starts the work of a key that was claimed just now.
Start = Callable[[Claim], Awaitable[Run | RunResult]]


class Asked(msgspec.Struct, frozen=True):
    """What is asked for: `scope` is whose key it is and for what, `digest` tells whether a repeat is the same request, `run_id` is for new work."""

    scope: str
    key: str
    digest: bytes
    run_id: str


class Found(NamedTuple):
    """The work of a key: a live run, or how it ended. `fresh`: it was started by this very request."""

    work: Run | RunResult
    fresh: bool


class Claims:
    """Keys that are being claimed this very moment, and who waits for that."""

    def __init__(self) -> None:
        self._under_way: dict[tuple[str, str], list[Deferred[None]]] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    async def obtain(self, keys: Idempotency, runs: Runs, asked: Asked, start: Start) -> Found:
        """The one piece of work of a key. Cancelling only stops the waiting.

        Raises what `start` raises: then the key is free again; IdempotencyConflict; StorageUnavailable: nothing was started.
        """
        name = asked.scope, asked.key
        while (waiting := self._under_way.get(name)) is not None:
            turn_over: Deferred[None] = Deferred(waiting.remove)
            waiting.append(turn_over)
            await turn_over
        self._under_way[name] = waiting = []

        async def claim() -> Found:
            try:
                return await _claim(keys, runs, asked, start)
            finally:
                del self._under_way[name]
                for waiter in tuple(waiting):
                    waiter.callback(None)

        return await shielded(claim())


async def _claim(keys: Idempotency, runs: Runs, asked: Asked, start: Start) -> Found:
    for _ in range(_ATTEMPTS):
        answer = await keys.begin(asked.scope, asked.key, asked.digest, asked.run_id, KEEP_SECONDS)
        if isinstance(answer, New):
            return Found(await _started(keys, answer.claim, start), True)
        if isinstance(answer, Done):
            return Found(answer.result, False)
        if isinstance(answer, Conflict):
            raise IdempotencyConflict
        run = runs.get(answer.run_id)
        if run is not None:
            return Found(run, False)
        # It ended in the moment between; the store knows how by now.
    raise Unavailable("The run of this idempotency key was lost. Try again with another key.")


async def _started(keys: Idempotency, claim: Claim, start: Start) -> Run | RunResult:
    try:
        return await start(claim)
    except Exception:
        try:
            await keys.release(claim)
        except GatewayError:
            log.failure("the idempotency key {key} could not be released; it is when it is asked for next", key=claim.key)
        raise


async def shielded(work: Coroutine[Deferred[object], object, Value]) -> Value:
    """Wait for something that goes on when the waiting is cancelled."""
    waiter: Deferred[Value] = Deferred()
    cancelled = False

    def over(outcome: Value | Failure) -> None:
        if not cancelled:
            waiter.callback(outcome)
        elif isinstance(outcome, Failure) and not outcome.check(GatewayError):
            log.failure("a request failed inside after its client had left", failure=outcome)

    Deferred.fromCoroutine(work).addBoth(over)
    try:
        return await waiter
    except CancelledError:
        cancelled = True
        raise
