"""The Autobahn glue of the server: an upgrade request becomes a socket, a socket a Session. Imports mayros.core, mayros.wire and mayros.ws.

Autobahn speaks the WebSocket protocol; what a client may send before it has said hello, how much may wait for it, and how it is closed is
decided here. Bytes that arrive in the same segment as the upgrade request are lost: a client has to wait for the 101.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from io import BytesIO
from typing import Any

import txaio
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.resource import Resource
from twisted.web.server import Request

from mayros.core.address import Address
from mayros.core.ports import Clock
from mayros.errors import Forbidden
from mayros.wire.frames import MAX_FIRST_PAYLOAD, MAX_PAYLOAD
from mayros.ws.context import Gateway
from mayros.ws.library import WebSocketResource, WebSocketServerFactory, WebSocketServerProtocol
from mayros.ws.session import HANDSHAKE_SECONDS
from mayros.ws.socket import Caller, Socket
from mayros.ws.turns import SHARE, Turns

log = Logger()

PING_SECONDS = 30
#: How long a client may take to answer a close frame, and then to let go of the connection, before it is cut off.
CLOSE_SECONDS = 2
UPGRADE_REQUIRED = 426
#: What Autobahn needs of the upgrade request. The rest (credentials, cookies, sub-protocols, extensions) would only stay in memory.
_KEPT_HEADERS = frozenset((b"host", b"upgrade", b"connection", b"sec-websocket-key", b"sec-websocket-version"))


class ControlProtocol(WebSocketServerProtocol):
    """Autobahn's side of one socket. Messages are put together in one buffer, so that thousands of small fragments cost what they hold."""

    #: Nothing: Autobahn would copy each option to each socket, and write a page of them for its debug log. See ControlFactory.
    CONFIG_ATTRS: list[str] = []

    #: What was received and has to wait for its turn; None: nothing, and the transport is not paused.
    _unread: bytearray | None = None
    #: Cuts the connection off while it is being closed.
    _cutting: IDelayedCall | None = None

    def prepare(self, socket: Socket, turns: Turns) -> None:
        """Before the connection is made: whom to talk to, and who else does."""
        self._socket, self._turns = socket, turns
        self._message = bytearray()
        self.maxFramePayloadSize = self.maxMessagePayloadSize = MAX_FIRST_PAYLOAD

    @property
    def role(self) -> str:
        """The role of the client, once it has said hello."""
        admitted = self._socket.session.admitted
        return "none" if admitted is None else admitted.role

    def onOpen(self) -> None:
        """Called by Autobahn."""
        with log.failuresHandled("while opening a socket") as opening:
            self._socket.opened()
        if opening.failed:
            self._socket.close(1011, "internal error")

    def onMessageFrameData(self, payload: bytes) -> None:
        """Called by Autobahn with a piece of a message, whose announced size it has checked."""
        if self.state == self.STATE_OPEN and not self.failedByMe:
            self._message += payload

    def onMessageFrameEnd(self) -> None:
        """Called by Autobahn; the pieces are together already."""

    def onMessageEnd(self) -> None:
        """Called by Autobahn."""
        message, self._message = bytes(self._message), bytearray()
        if self.state == self.STATE_OPEN and not self.failedByMe:
            with log.failuresHandled("while taking a message") as taking:
                self._socket.session.received(message, self.message_is_binary)
            if taking.failed:
                self._socket.close(1011, "internal error")

    def dataReceived(self, data: bytes) -> None:
        """Called by the transport. Autobahn's own makes up a debug message each time, and takes everything at once."""
        if self._unread is not None:
            self._unread += data
        elif len(data) <= SHARE or self.state != self.STATE_OPEN or len(data) <= self._share():
            self._dataReceived(data)
        else:
            self._unread = bytearray(data)
            self._stream.pauseProducing()
            self._turns.join(self)

    def _share(self) -> int:
        """Bytes that may be read at once: what is left of a frame is one request at most."""
        frame = self.current_frame
        left: int = 0 if frame is None else frame.length - self.current_frame_masker.pointer()
        return max(SHARE, left)

    @property
    def _stream(self) -> Any:
        """The transport: of TCP, a unix socket or TLS, which all can pause and abort."""
        return self.transport

    def read_share(self) -> bool:
        """See turns.Reader."""
        unread = self._unread
        if unread is None:
            return False  # the connection was lost
        size = self._share()
        share = bytes(unread[:size])
        del unread[:size]
        with log.failuresHandled("while reading from a socket") as reading:
            self._dataReceived(share)
        if reading.failed:
            self._stream.abortConnection()
            return False
        if unread:
            return True
        if self._unread is not None:
            self._unread = None
            self._stream.resumeProducing()
        return False

    def _closeConnection(self, abort: bool = False) -> None:
        """Called by Autobahn, when all is said. TLS would wait for the client's goodbye, and TCP for it to read the last bytes, without end."""
        super()._closeConnection(abort)
        if not abort and self._cutting is None:
            self._cutting = self.factory.reactor.callLater(CLOSE_SECONDS, self._stream.abortConnection)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by the transport."""
        super().connectionLost(reason)
        cutting, self._cutting = self._cutting, None
        if cutting is not None and cutting.active():
            cutting.cancel()
        self._unread = None
        # It has this protocol as its result.
        del self.is_closed, self._socket

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """Called by Autobahn, once, also when the handshake failed."""
        with log.failuresHandled("while closing a socket"):
            self._socket.lost()


class ControlFactory(WebSocketServerFactory):
    """Makes the sockets and knows those that are left. `reactor` also drives Autobahn's timers, which otherwise take the global one."""

    protocol = ControlProtocol

    def __init__(self, gateway: Gateway, reactor: Clock) -> None:
        txaio.config.loop = reactor  # type: ignore[attr-defined]
        super().__init__(reactor=reactor, server="")
        self.setProtocolOptions(
            versions=[13],
            webStatus=False,
            failByDrop=False,
            maxFramePayloadSize=MAX_PAYLOAD,
            maxMessagePayloadSize=MAX_PAYLOAD,
            openHandshakeTimeout=HANDSHAKE_SECONDS,
            closeHandshakeTimeout=CLOSE_SECONDS,
            autoPingInterval=PING_SECONDS,
            autoPingTimeout=PING_SECONDS,
            tcpNoDelay=True,
        )

        class Configured(ControlProtocol):
            """The sockets of this factory: its options are theirs."""

        for name in WebSocketServerProtocol.CONFIG_ATTRS:
            setattr(Configured, name, getattr(self, name))
        self.protocol = Configured
        self.gateway = gateway
        self._turns = Turns(reactor)
        self._sockets: set[ControlProtocol] = set()
        self._waiting: list[Deferred[None]] = []

    def make(self, peer: IAddress, caller: Caller, released: Callable[[], None]) -> ControlProtocol:
        """The protocol of a new socket."""
        protocol = self.buildProtocol(peer)
        assert isinstance(protocol, ControlProtocol)

        def gone() -> None:
            self._sockets.discard(protocol)
            released()
            if not self._sockets:
                waiting, self._waiting = self._waiting, []
                for waiter in waiting:
                    waiter.callback(None)

        protocol.prepare(Socket(protocol, self.gateway, caller, gone), self._turns)
        self._sockets.add(protocol)
        return protocol

    def roles(self) -> dict[str, int]:
        """How many sockets there are of each role; `none`: of clients that have not said hello."""
        return dict(Counter(protocol.role for protocol in self._sockets))

    @property
    def open(self) -> int:
        """How many sockets there are."""
        return len(self._sockets)

    def emptied(self) -> Deferred[None]:
        """Fires when no socket is left; after `Broadcaster.close_all` within a few seconds."""
        if not self._sockets:
            return succeed(None)
        waiter: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        return waiter


class _Prepared:
    """Stands for the factory in one upgrade, which Autobahn's resource asks for a protocol."""

    def __init__(self, protocol: ControlProtocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, peer: IAddress) -> ControlProtocol:
        """Called by Autobahn's resource."""
        return self._protocol


def refusal(request: Request) -> tuple[int, str] | None:
    """Why a request cannot become a WebSocket: HTTP status and a sentence; None when it can. Looks at the head only, so a gate may ask early."""
    headers = request.requestHeaders.getRawHeaders

    def words(name: bytes) -> set[bytes]:
        return {word.strip().lower() for line in headers(name, ()) for word in line.split(b",")}

    if request.method != b"GET":
        return http.NOT_ALLOWED, "A WebSocket begins with GET."
    if request.clientproto != b"HTTP/1.1" or request.channel.transport is None:
        return UPGRADE_REQUIRED, "A WebSocket begins with HTTP/1.1."
    if headers(b"transfer-encoding") or any(line.strip() != b"0" for line in headers(b"content-length", ())):
        return http.BAD_REQUEST, "An upgrade request has no body."
    if len(headers(b"host", ())) != 1:
        return http.BAD_REQUEST, "An upgrade request has one Host header."
    if b"websocket" not in words(b"upgrade") or b"upgrade" not in words(b"connection"):
        return http.BAD_REQUEST, "An upgrade request says Upgrade: websocket and Connection: Upgrade."
    if headers(b"sec-websocket-version", ()) != [b"13"]:
        return UPGRADE_REQUIRED, "This gateway speaks WebSocket version 13."
    if len(headers(b"sec-websocket-key", ())) != 1:
        return http.BAD_REQUEST, "An upgrade request has one Sec-WebSocket-Key."
    return None


class ControlResource(Resource):
    """Takes upgrade requests, on any path.

    `address_of` tells who the client is. `origin_ok` is asked for a request that has one Origin header; False is 403 before any 101. `released`
    is called when the request's connection is taken out of the HTTP server's hands (which never hears of its end: neither `notifyFinish` nor
    `HTTPChannel.connectionLost` will come), and returns what to call, once, when that connection is lost.
    """

    isLeaf = True

    def __init__(
        self,
        factory: ControlFactory,
        address_of: Callable[[Request], Address],
        origin_ok: Callable[[Request, Address], bool],
        released: Callable[[Request], Callable[[], None]],
    ) -> None:
        super().__init__()
        self._factory, self._address_of, self._origin_ok, self._released = factory, address_of, origin_ok, released

    def render(self, request: Request) -> bytes | int:
        """Upgrade, or an HTTP error."""
        problem = refusal(request)
        if problem is not None:
            return _refuse(request, *problem)
        if self._factory.gateway.broadcaster.stopping:
            request.setHeader(b"retry-after", b"2")
            return _refuse(request, http.SERVICE_UNAVAILABLE, "The gateway is stopping.")
        address = self._address_of(request)
        origins = request.requestHeaders.getRawHeaders(b"origin", ())
        if len(origins) > 1 or (origins and not self._origin_ok(request, address)):
            return _refuse(request, http.FORBIDDEN, "Pages of this origin may not connect. List it in gateway.controlUi.allowedOrigins.")
        try:
            user = self._factory.gateway.authenticator.proxied(request.requestHeaders.getRawHeaders, address)
        except Forbidden as error:
            return _refuse(request, http.FORBIDDEN, error.message)
        return self._take_over(request, Caller(address, origins[0].decode("latin-1") if origins else None, user))

    def _take_over(self, request: Request, caller: Caller) -> bytes | int:
        for name, _ in list(request.requestHeaders.getAllRawHeaders()):
            if name.lower() not in _KEPT_HEADERS:
                request.requestHeaders.removeHeader(name)
        request.uri = b"/"
        # Autobahn reads the body, which the HTTP door does not keep there.
        request.content = BytesIO()
        # HTTPChannel is the transport's producer. Left there, no other could be registered, TLS would never close, and the request would stay.
        transport: Any = request.channel.transport
        transport.unregisterProducer()
        protocol = self._factory.make(transport.getPeer(), caller, self._released(request))
        taken: bytes | int = WebSocketResource(_Prepared(protocol)).render(request)
        return taken


def _refuse(request: Request, status: int, text: str) -> bytes:
    request.setResponseCode(status)
    request.setHeader(b"content-type", b"text/plain; charset=utf-8")
    request.setHeader(b"connection", b"close")
    if status == http.NOT_ALLOWED:
        request.setHeader(b"allow", b"GET")
    if status == UPGRADE_REQUIRED:
        request.setHeader(b"upgrade", b"websocket")
        request.setHeader(b"sec-websocket-version", b"13")
    return text.encode() + b"\n"
