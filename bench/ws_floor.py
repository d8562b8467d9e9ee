"""The floor of the WebSocket measures: a bare Autobahn server. `python -m bench.ws_floor [ANSWER]` prints its port.

It decodes each request and answers it with the JSON of the file ANSWER (an answer of the gateway to `health`) under the request's id, encoded
anew each time. `{"method": "play", "params": FILE}` sends each line of FILE to all other sockets, one line in each turn of the reactor, as
Autobahn's own prepared message. It asks for no secret. Ends with its standard input. Imports bench.floor.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet.defer import Deferred
from twisted.internet.stdio import StandardIO
from twisted.internet.task import react

from bench.floor import Leash


class Echo(WebSocketServerProtocol):
    """One socket."""

    factory: Factory

    def onOpen(self) -> None:
        self.factory.sockets.add(self)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        request = msgspec.json.decode(payload)
        if request["method"] == "play":
            lines = Path(request["params"]).read_bytes().split(b"\n")
            self.factory.play(self, iter(lines), len(lines))
        else:
            self.sendMessage(msgspec.json.encode({**self.factory.answer, "id": request["id"]}))

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self.factory.sockets.discard(self)


class Factory(WebSocketServerFactory):
    """All sockets."""

    protocol = Echo

    def __init__(self, reactor: Any, answer: dict[str, Any]) -> None:
        super().__init__(reactor=reactor)
        self.clock, self.answer = reactor, answer
        self.sockets: set[Echo] = set()

    def play(self, asking: Echo, lines: Iterator[bytes], count: int) -> None:
        """Send the next line to all but one; at the end tell that one."""
        line = next(lines, None)
        if line is None:
            asking.sendMessage(msgspec.json.encode({"type": "res", "ok": True, "sent": count}))
            return
        prepared = self.prepareMessage(line)
        for sock in self.sockets:
            if sock is not asking:
                sock.sendPreparedMessage(prepared)
        self.clock.callLater(0, self.play, asking, lines, count)


def serve(reactor: Any, answer: str = "") -> Deferred[None]:
    """Listen on a loopback port and print it."""
    factory = Factory(reactor, msgspec.json.decode(Path(answer).read_bytes()) if answer else {})
    port = reactor.listenTCP(0, factory, backlog=4096, interface="127.0.0.1")
    print(port.getHost().port, flush=True)
    leash = Leash()
    StandardIO(leash, reactor=reactor)
    return leash.cut


if __name__ == "__main__":
    react(serve, sys.argv[1:])
