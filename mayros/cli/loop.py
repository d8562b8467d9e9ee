"""Runs one coroutine on the reactor for a command. The only module of the command line that touches the global reactor."""

from __future__ import annotations

import signal
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure


def drive(main: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
    """Run `main(reactor)` to its end and give what it returns or raise what it raises.

    SIGINT and SIGTERM cancel it, so that sockets close and runs are recorded, and end in KeyboardInterrupt; a second signal does not wait for that.
    """
    from twisted.internet import reactor as module  # noqa: TID251

    reactor: Any = module
    running: list[Deferred[Any]] = []
    outcome: list[Any] = []
    interrupted = False

    def finish(result: Any) -> None:
        outcome.append(result)
        if reactor.running:
            reactor.stop()

    def interrupt() -> None:
        nonlocal interrupted
        if interrupted or not running:
            reactor.stop()
        else:
            interrupted = True
            running[0].cancel()

    def begin() -> None:
        # Ours instead of the reactor's, which would stop without cancelling; first of all, since the coroutine runs at once.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: reactor.callFromThread(interrupt))
        running.append(Deferred.fromCoroutine(main(reactor)))
        running[0].addBoth(finish)

    reactor.callWhenRunning(begin)
    reactor.run()
    if not outcome or (interrupted and isinstance(outcome[0], Failure)):
        raise KeyboardInterrupt
    if isinstance(outcome[0], Failure):
        outcome[0].raiseException()
    return outcome[0]
