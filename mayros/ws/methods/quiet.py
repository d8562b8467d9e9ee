"""Aborting runs, and having a session to oneself while its store changes. Imports mayros.core."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

from twisted.internet.defer import TimeoutError

from mayros.core.keys import SessionKey
from mayros.core.ports import Run
from mayros.errors import RunAborted, Unavailable

if TYPE_CHECKING:
    from mayros.ws.context import Gateway

#: How long a session's runs are waited for.
WAIT_SECONDS = 15.0


def abort(gateway: Gateway, run: Run, why: Literal["rpc", "stop"], words: str | None = None) -> bool:
    """Abort one run for a client; False when its turn is being committed already. `words` become its error."""
    run_id = run.turn.run_id
    aborted = gateway.runs.abort(run_id, RunAborted(words))
    if aborted:
        gateway.broadcaster.aborting(run_id, why)
    return aborted


def abort_session(gateway: Gateway, key: SessionKey, why: Literal["rpc", "stop"], words: str | None = None) -> list[str]:
    """Abort all runs of a session, the waiting ones too; gives the ids of those that were. The last come first, so that none of them begins."""
    return [run.turn.run_id for run in reversed(gateway.runs.find(str(key))) if abort(gateway, run, why, words)][::-1]


@asynccontextmanager
async def quiet(gateway: Gateway, key: SessionKey, stop: str | None = None) -> AsyncGenerator[None, None]:
    """Nothing runs in the session meanwhile. `stop`: its runs are aborted, with these words; else they are waited for.

    Raises Unavailable when they have not ended in time, QueueFull when too many wait already.
    """
    clock: Any = gateway.clock
    until = clock.seconds() + WAIT_SECONDS
    try:
        if stop is not None:
            live = list(gateway.runs.find(str(key)))
            abort_session(gateway, key, "rpc", stop)
            for run in live:
                await run.ended().addTimeout(max(0.0, until - clock.seconds()), clock)
        lease = await gateway.lanes.acquire(str(key)).addTimeout(max(0.0, until - clock.seconds()), clock)
    except TimeoutError:
        raise Unavailable(f"Session {key} is still active; try again in a moment.") from None
    try:
        yield
    finally:
        gateway.lanes.release(lease)
