"""The connections by what let them in: they end when that is something else. Imports mayros.core.

Those of devices and of tokens are known elsewhere (pairing.py, token_sockets.py).
"""

from __future__ import annotations

from typing import Literal, Protocol

from mayros.core.ports import Clock

#: By the shared secret, or by the word of a trusted proxy; empty: by something else.
Way = Literal["secret", "proxy", ""]
#: Until they end: the one who asked for it may be among them, and gets its answer first.
END_SECONDS = 1.0
REASONS = {"secret": "gateway secret changed", "proxy": "proxy rules changed"}


class Connection(Protocol):
    """A connection, as its session is seen by those who may end it."""

    def end(self, code: int, reason: str) -> None: ...


class LetIn:
    """Who came in which way."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: dict[str, set[Connection]] = {"secret": set(), "proxy": set()}

    def opened(self, way: Way, connection: Connection) -> None:
        """A connection was admitted this way."""
        if way:
            self._open[way].add(connection)

    def lost(self, way: Way, connection: Connection) -> None:
        """It is gone."""
        if way:
            self._open[way].discard(connection)

    def end(self, way: Way) -> None:
        """What let these in does not any more."""
        ended = tuple(self._open.get(way, ()))
        if ended:
            self._clock.callLater(END_SECONDS, self._end, ended, way)

    def _end(self, connections: tuple[Connection, ...], way: Way) -> None:
        for connection in connections:
            connection.end(1008, REASONS[way])
