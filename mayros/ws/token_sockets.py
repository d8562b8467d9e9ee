"""The connections of tokens: they end when their secret does, and with a token that is revoked ends what it has going on.

Imports mayros.core and mayros.ws.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall

from mayros.core.ports import Clock, Runs
from mayros.core.token_ports import Held
from mayros.errors import RunAborted
from mayros.ws.let_in import Connection

#: The longest wait at a time, in seconds: a clock may be set, and a year is too long for some.
_LONGEST = 3_600.0


class _Open:
    """One connection: by which secret, and until when (epoch milliseconds)."""

    __slots__ = ("digest", "timer", "until_ms")

    def __init__(self, digest: bytes, until_ms: int | None) -> None:
        self.digest, self.until_ms = digest, until_ms
        self.timer: IDelayedCall | None = None


class TokenSockets:
    """The audience of core.api_tokens.ApiTokens. `now_ms` is the wall clock."""

    def __init__(self, runs: Runs, clock: Clock, now_ms: Callable[[], int]) -> None:
        self._runs, self._clock, self._now_ms = runs, clock, now_ms
        self._open: dict[str, dict[Connection, _Open]] = {}

    def opened(self, held: Held, connection: Connection) -> None:
        """A connection was admitted by this secret."""
        one = self._open.setdefault(held.principal.id, {})[connection] = _Open(held.digest, held.until_ms)
        self._wait(connection, one)

    def lost(self, principal_id: str, connection: Connection) -> None:
        """It is gone."""
        connections = self._open.get(principal_id, {})
        one = connections.pop(connection, None)
        if one is not None:
            _cancel(one)
            if not connections:
                del self._open[principal_id]

    def ended(self, principal_id: str, digest: bytes | None, until_ms: int | None) -> None:
        """See core.token_ports.Audience. The one who asked for it may be among them, and gets its answer first."""
        for connection, one in self._open.get(principal_id, {}).items():
            if digest in (None, one.digest):
                one.until_ms = self._now_ms() if until_ms is None else until_ms
                self._wait(connection, one)
        if digest is None:
            for run in self._runs.of(principal_id):
                self._runs.abort(run.turn.run_id, RunAborted("The token of this run was revoked."))

    def _wait(self, connection: Connection, one: _Open) -> None:
        """Until its time has come: at the earliest on the next turn of the reactor."""
        _cancel(one)
        if one.until_ms is not None:
            left = max(0.0, (one.until_ms - self._now_ms()) / 1000)
            one.timer = self._clock.callLater(min(left, _LONGEST), self._due, connection, one)

    def _due(self, connection: Connection, one: _Open) -> None:
        one.timer = None
        if one.until_ms is not None and one.until_ms > self._now_ms():
            self._wait(connection, one)
        else:
            connection.end(1008, "token revoked or expired")


def _cancel(one: _Open) -> None:
    if one.timer is not None:
        one.timer.cancel()
        one.timer = None
