"""One run for each idempotency key that a method starts something under (core/claims.py), in the order of its session. Imports mayros.core."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from twisted.internet.defer import DeferredLock

from mayros.core.claims import Asked, Found, Start
from mayros.core.ports import Claim, Principal, Run, RunResult, Turn
from mayros.errors import InvalidRequest

if TYPE_CHECKING:
    from mayros.ws.context import Gateway

KEEP_ANSWERS = 1000
_KEY = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def check_key(key: str, method: str) -> None:
    """An idempotency key is a run's id too. Raises InvalidRequest."""
    if not _KEY.fullmatch(key):
        raise InvalidRequest(f"invalid {method} params: at /idempotencyKey: must be 1 to 128 letters, digits, '.', '_', ':' or '-'")


async def obtain(gateway: Gateway, scope: str, run_id: str, session: str, digest: bytes, start: Start) -> Found:
    """The one run of this key. Cancelling only stops the waiting. Raises what `start` raises: then the key is free again.

    What is started in one `session` is started in the order in which it was asked for, also behind a reset that takes its time.
    """
    asked = Asked(scope, run_id, digest, run_id)
    return await gateway.claims.obtain(gateway.idempotency, gateway.runs, asked, partial(_in_order, gateway, session, start))


async def _in_order(gateway: Gateway, session: str, start: Start, claim: Claim) -> Run | RunResult:
    lock = gateway.starting.setdefault(session, DeferredLock())
    await lock.acquire()
    try:
        return await start(claim)
    finally:
        if lock.waiting:
            gateway.clock.callLater(0, lock.release)  # not from inside: many may wait, each one step deeper in the stack
        else:
            lock.release()
            del gateway.starting[session]


def submit(gateway: Gateway, turn: Turn, principal: Principal, claim: Claim, begun: Callable[[], None]) -> Run:
    """Start a turn. `begun` is called when nothing can refuse it any more, before its first event, so that the answer comes before that."""
    gateway.runs.check(turn, principal)
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
