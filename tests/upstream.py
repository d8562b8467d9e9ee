"""A provider's server in memory: what the HTTP client connects to in tests."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer, protocol
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.python.failure import Failure


class Wire(StringTransportWithDisconnection):
    """A transport in memory. `request` is what was sent since it was last looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = self.paused = False

    @property
    def request(self) -> bytes:
        data = self.value()
        self.clear()
        return data

    def abortConnection(self) -> None:
        self.aborted = True
        self.loseConnection()

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False


class Endpoint:
    """A server in memory. Connects at once unless `hold` is set; then each attempt waits in `attempts`."""

    def __init__(self) -> None:
        self.wires: list[Wire] = []
        self.attempts: list[Deferred[Any]] = []
        self.cancelled = 0
        self.hold = False
        self.error: Exception | None = None

    def connect(self, factory: protocol.Factory) -> Deferred[Any]:
        if self.error is not None:
            return defer.fail(self.error)
        made: Deferred[Any] = Deferred(self._cancel)
        self.attempts.append(made)
        made.addCallback(lambda _: self._made(factory))
        if not self.hold:
            made.callback(None)
        return made

    def _cancel(self, _: object) -> None:
        self.cancelled += 1

    def _made(self, factory: protocol.Factory) -> protocol.Protocol:
        made = factory.buildProtocol(None)
        wire = Wire()
        wire.protocol = made
        self.wires.append(wire)
        made.makeConnection(wire)
        return made

    def say(self, data: bytes, wire: int = -1) -> None:
        """The server sends."""
        self.wires[wire].protocol.dataReceived(data)

    def hang_up(self, reason: Exception | None = None, wire: int = -1) -> None:
        """The server closes, or its connection breaks."""
        if reason is None:
            self.wires[wire].loseConnection()
        else:
            self.wires[wire].connected = False
            self.wires[wire].protocol.connectionLost(Failure(reason))
