"""How the gateway stops: who is refused, who may finish, who is told, and in which order. Imports core.

1. The ports are closed. Where the service manager holds them, whoever connects from now on waits there for the next process.
2. The first request of a connection that was accepted before is served, and its connection closed after it; later requests are refused (503 with
   `Retry-After`), and so are upgrades and runs of WebSocket clients (`UNAVAILABLE`, to be tried again). WebSocket clients hear of the `shutdown`.
3. What is live may finish, for the grace. Then it is aborted: recorded, and its client told.
4. WebSockets are closed with 1012, and the last bytes get a second to leave.

What comes after that (commands, the model, the store) is the composition root's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.defer import Deferred, TimeoutError
from twisted.logger import Logger

from mayros.core.pause import pause
from mayros.core.ports import Clock, Door
from mayros.core.runs import LocalRuns

log = Logger()

#: Runs of these are refused at once: their clients are connected and can be told.
CONNECTED: tuple[Door, ...] = ("ws",)
#: What has arrived at the last moment is read before idle connections are closed.
LAST_READ_SECONDS = 0.05
#: How long a connection that was accepted before the stop may take to ask for something.
FIRST_REQUEST_SECONDS = 2.0
#: After the grace: for aborted runs to be recorded.
ABORT_SECONDS = 5.0
#: For the last bytes to leave.
LINGER_SECONDS = 1.0
#: For what is left once no client is: commands, the model's process, the store.
CLOSE_SECONDS = 15.0
#: How often it is looked whether all is done.
LOOK_SECONDS = 0.02


class Site(Protocol):
    """web.site.GatewaySite."""

    channels: set[Any]

    @property
    def pending(self) -> bool: ...

    def drain(self) -> None: ...

    def close_idle(self, new: bool) -> None: ...

    def abort_all(self) -> None: ...


class Broadcaster(Protocol):
    """ws.broadcast.Broadcaster."""

    def announce(self, reason: str, restart_expected_ms: int | None) -> None: ...

    def close_all(self) -> None: ...


class Stopping:
    """One stop. `close_ports` fires when nothing is accepted any more, `sockets_gone` when no WebSocket is left; `grace` is in seconds.

    `tell(text, seconds)` is for the service manager: what goes on, and how long the process may still live. `again`: in how many seconds after its
    end a gateway serves again; None: nobody knows whether one will.
    """

    def __init__(
        self,
        site: Site,
        runs: LocalRuns,
        broadcaster: Broadcaster,
        close_ports: Callable[[], Deferred[Any]],
        sockets_gone: Callable[[], Deferred[None]],
        clock: Clock,
        grace: float,
        tell: Callable[[str, float], None],
        again: float | None = None,
    ) -> None:
        self._site, self._runs, self._broadcaster = site, runs, broadcaster
        self._close_ports, self._sockets_gone = close_ports, sockets_gone
        self._clock, self._grace, self._tell, self._again = clock, grace, tell, again
        self._hurried = False

    def hurry(self) -> None:
        """No more grace."""
        self._hurried = True
        self._runs.abort_all()

    async def run(self) -> None:
        """Stop in order; ends when no client is left."""
        site, runs, began = self._site, self._runs, self._clock.seconds()
        site.drain()
        runs.drain(CONNECTED)
        said = f"stopping: {runs.live()} runs are live, they may take {self._grace:g} s"
        log.info("{said}", said=said)
        self._tell(said, self._grace + 2 * ABORT_SECONDS + LINGER_SECONDS + CLOSE_SECONDS)
        await self._close_ports()
        self._broadcaster.announce("service restart", self._restart_expected_ms())
        await pause(self._clock, LAST_READ_SECONDS)
        site.close_idle(new=False)
        await self._finished(began)
        runs.drain()
        if runs.live():
            log.info("aborting {count} runs", count=runs.live())
            runs.abort_all()
            with suppress(TimeoutError):
                await runs.drained().addTimeout(ABORT_SECONDS, self._clock)  # type: ignore[arg-type]
        self._broadcaster.close_all()
        with suppress(TimeoutError):
            await self._sockets_gone().addTimeout(ABORT_SECONDS, self._clock)  # type: ignore[arg-type]
        site.close_idle(new=True)
        await self._wait(lambda: not site.channels, self._clock.seconds() + LINGER_SECONDS)
        site.abort_all()

    def _restart_expected_ms(self) -> int | None:
        """When a client may try again: live runs may take the grace."""
        if self._again is None:
            return None
        return round(1000 * (self._again + (self._grace if self._runs.live() else 0)))

    async def _finished(self, began: float) -> None:
        """Until nobody waits for anything, for the grace at most."""
        end = began + self._grace
        first = min(began + FIRST_REQUEST_SECONDS, end)
        await self._wait(self._done, first)
        self._site.close_idle(new=True)
        await self._wait(self._done, end)

    def _done(self) -> bool:
        return self._hurried or not (self._runs.live() or self._site.pending)

    async def _wait(self, done: Callable[[], bool], until: float) -> None:
        while not done() and self._clock.seconds() < until:
            await pause(self._clock, LOOK_SECONDS)
