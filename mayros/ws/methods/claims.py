"""One run for each idempotency key, whoever asks for it and how often. Shared by the methods that start runs. Imports mayros.core.

A key is claimed durably, then its work is started; a repeat finds the run that is going on, or how it ended. What is under way is brought to
its end although the client that asked has left: a key is never held by no run.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from mayros.core.ports import Claim, Conflict, Done, New, Principal, Run, RunResult, Turn
from mayros.errors import GatewayError, IdempotencyConflict, InvalidRequest, Unavailable

if TYPE_CHECKING:
    from mayros.ws.context import Gateway

log = Logger()
Value = TypeVar("Value")

#: A day.
KEEP_SECONDS = 86_400.0
KEEP_ANSWERS = 1000
_ATTEMPTS = 3
_KEY = re.compile(r"[A-Za-z0-9._:-]{1,128}")

#: Starts the work of a key that was claimed just now.
Start = Callable[[Claim], Awaitable[Run | RunResult]]


class Found(NamedTuple):
    """The work of a key: a live run, or how it ended. `fresh`: it was started by this very request."""

    work: Run | RunResult
    fresh: bool


def check_key(key: str, method: str) -> None:
    """An idempotency key is a run's id too. Raises InvalidRequest."""
    if not _KEY.fullmatch(key):
        raise InvalidRequest(f"invalid {method} params: at /idempotencyKey: must be 1 to 128 letters, digits, '.', '_', ':' or '-'")


async def obtain(gateway: Gateway, scope: str, run_id: str, session: str, digest: bytes, start: Start) -> Found:
    """The one run of this key. Cancelling only stops the waiting. Raises what `start` raises: then the key is free again.

    What is started in one `session` is started in the order in which it was asked for, also behind a reset that takes its time.
    """
    name = f"{scope}:{run_id}"
    while (waiting := gateway.claiming.get(name)) is not None:
        turn_over: Deferred[None] = Deferred(waiting.remove)
        waiting.append(turn_over)
        await turn_over
    gateway.claiming[name] = waiting = []

    async def claim() -> Found:
        try:
            return await _claim(gateway, scope, run_id, session, digest, start)
        finally:
            del gateway.claiming[name]
            for waiter in tuple(waiting):
                waiter.callback(None)

    return await shielded(claim())


async def _claim(gateway: Gateway, scope: str, run_id: str, session: str, digest: bytes, start: Start) -> Found:
    for _ in range(_ATTEMPTS):
        answer = await gateway.idempotency.begin(scope, run_id, digest, run_id, KEEP_SECONDS)
        if isinstance(answer, New):
            return Found(await _started(gateway, answer.claim, session, start), True)
        if isinstance(answer, Done):
            return Found(answer.result, False)
        if isinstance(answer, Conflict):
            raise IdempotencyConflict
        run = gateway.runs.get(answer.run_id)
        if run is not None:
            return Found(run, False)
        # It ended in the moment between; the store knows how by now.
    raise Unavailable("The run of this idempotency key was lost. Try again with another key.")


async def _started(gateway: Gateway, claim: Claim, session: str, start: Start) -> Run | RunResult:
    lock = gateway.starting.setdefault(session, DeferredLock())
    await lock.acquire()
    try:
        return await start(claim)
    except Exception:
        try:
            await gateway.idempotency.release(claim)
        except GatewayError:
            log.failure("the idempotency key of run {run_id} could not be released; it expires by itself", run_id=claim.key)
        raise
    finally:
        if lock.waiting:
            gateway.clock.callLater(0, lock.release)  # not from inside: many may wait, each one step deeper in the stack
        else:
            lock.release()
            del gateway.starting[session]


def submit(gateway: Gateway, turn: Turn, principal: Principal, claim: Claim, begun: Callable[[], None]) -> Run:
    """Start a turn. `begun` is called when nothing can refuse it any more, before its first event, so that the answer comes before that."""
    gateway.runs.check(turn)
    begun()
    run = gateway.runs.submit(msgspec.structs.replace(turn, claim=claim), principal, None, "keep")
    _tell_waiting(gateway, turn.run_id, run)
    return run


async def conclude(gateway: Gateway, claim: Claim, result: RunResult) -> RunResult:
    """The end of what was answered without a run: the answer of its key, durably, and of whoever waits for its id."""
    await gateway.idempotency.finish(claim, result)
    gateway.answered[result.run_id] = result
    while len(gateway.answered) > KEEP_ANSWERS:
        del gateway.answered[next(iter(gateway.answered))]
    _tell_waiting(gateway, result.run_id, result)
    return result


def _tell_waiting(gateway: Gateway, run_id: str, work: Run | RunResult) -> None:
    for waiter in tuple(gateway.awaited.pop(run_id, ())):
        if not waiter.called:  # what one of them does may end another
            waiter.callback(work)


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
