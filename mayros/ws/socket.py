"""One socket as its conversation sees it, over whoever speaks the WebSocket protocol for it. Imports mayros.core, mayros.wire and mayros.ws."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from mayros.core.address import Address
from mayros.core.ports import Principal
from mayros.errors import Unauthorized
from mayros.wire.frames import MAX_PAYLOAD, text_frame
from mayros.ws.context import Gateway
from mayros.ws.outbox import Outbox
from mayros.ws.session import Session

if TYPE_CHECKING:
    from mayros.ws.protocol import ControlProtocol

_MAX_REASON = 120


class Caller(msgspec.Struct, frozen=True):
    """Who asks for an upgrade: address, Origin (judged; None: no page), and what context.Judge.proxied says."""

    address: Address
    origin: str | None = None
    user: Principal | Unauthorized | None = None


class Socket:
    """One socket as its session sees it (context.Link). `released` is called once, when the connection is gone."""

    def __init__(self, protocol: ControlProtocol, gateway: Gateway, caller: Caller, released: Callable[[], None]) -> None:
        self._protocol, self._gateway, self._released = protocol, gateway, released
        self.session = Session(gateway, self, caller.address, caller.origin, caller.user)
        self._outbox: Outbox | None = None

    def opened(self) -> None:
        """The WebSocket handshake is over."""
        transport = self._protocol.transport
        assert transport is not None
        self._outbox = Outbox(transport.write, self._gateway.budget, self._too_slow, self.session.drained)
        self._protocol.registerProducer(self._outbox, True)
        self.session.opened()

    def lost(self) -> None:
        """The connection is gone. What refers to each other is taken apart, so that nothing has to wait for the garbage collector."""
        if self._outbox is not None:
            self._outbox.discard()
            self._outbox = None
        self.session.closed()
        self._released()
        del self.session, self._protocol, self._released

    @property
    def buffered(self) -> int:
        """See context.Link."""
        return self._outbox.buffered if self._outbox is not None else 0

    def send(self, payload: bytes) -> None:
        """See context.Link."""
        self.send_frame(text_frame(payload))

    def send_frame(self, frame: bytes) -> None:
        """See context.Link."""
        # Autobahn closes by itself on violations, and after a close frame nothing may follow.
        if self._outbox is not None and self._protocol.state == self._protocol.STATE_OPEN:
            self._gateway.traffic.sent += 1
            self._outbox.send(frame)

    def close(self, code: int, reason: str) -> None:
        """See context.Link."""
        if self._outbox is not None and self._protocol.state == self._protocol.STATE_OPEN:
            self._outbox.finish()
            text = reason.encode()[:_MAX_REASON].decode("utf-8", "ignore").encode()
            # sendClose takes only 1000 and 3000-4999.
            self._protocol.sendCloseFrame(code=code, reasonUtf8=text, isReply=False)

    def admitted(self) -> None:
        """See context.Link."""
        self._protocol.maxFramePayloadSize = self._protocol.maxMessagePayloadSize = MAX_PAYLOAD

    def _too_slow(self) -> None:
        self.session.end(1008, "slow consumer")
