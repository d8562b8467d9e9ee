"""One client's conversation over the Gateway protocol. No I/O: it is told what arrived and speaks through its Link.

    awaiting connect --connect accepted--> open --close, or the socket is lost--> closed
          |                                            ^
          +---- anything else, or 10 s pass -----------+

Requests run side by side, and their answers may come in any order. When the socket is lost its requests are cancelled; the runs they
started go on. Handlers raise; `_answer` is where errors become frames. Imports mayros.core, mayros.wire and mayros.ws.
"""

from __future__ import annotations

import uuid
from collections.abc import Coroutine
from typing import Literal

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from mayros.core.address import Address
from mayros.core.ports import Principal
from mayros.errors import GatewayError, InvalidRequest, Unavailable
from mayros.wire import frames
from mayros.wire.frames import ErrorShape, NotARequest, NotJson, Request
from mayros.ws.connect import Admitted, Refused, hello, judge
from mayros.ws.context import Gateway, Link
from mayros.ws.methods.table import METHODS, Handler

log = Logger()

HANDSHAKE_SECONDS = 10.0
MAX_IN_FLIGHT = 256
_MAX_SHOWN = 100
_NOBODY = Principal("nobody", frozenset())


class Session:
    """One client. The glue calls `opened`, `received`, `drained` and `closed`; everything else goes out through `link`.

    `origin` is the Origin header of its upgrade request, already judged; a client that has one is a page.
    """

    def __init__(self, gateway: Gateway, link: Link, address: Address, origin: str | None) -> None:
        self.gateway, self.link, self.address, self.origin = gateway, link, address, origin
        self.id = str(uuid.uuid4())
        self.admitted: Admitted | None = None
        self._state: Literal["awaiting connect", "open", "closed"] = "awaiting connect"
        self._handshake: IDelayedCall | None = None
        self._tasks: set[Deferred[None]] = set()

    @property
    def principal(self) -> Principal:
        """Who asks; nobody in particular before `hello-ok`."""
        return self.admitted.principal if self.admitted is not None else _NOBODY

    @property
    def protocol(self) -> int:
        """The version spoken; the lowest until one is agreed upon."""
        return self.admitted.protocol if self.admitted is not None else frames.PROTOCOL_MIN

    @property
    def reads(self) -> bool:
        """Whether the client may see what runs say."""
        return self.admitted is not None and self.may("operator.read")

    def may(self, scope: str) -> bool:
        """Whether the client has a scope: literally, by `operator.admin`, or read by write."""
        scopes = self.principal.scopes
        return scope in scopes or "operator.admin" in scopes or (scope == "operator.read" and "operator.write" in scopes)

    def opened(self) -> None:
        """The socket is open: challenge the client."""
        self.gateway.broadcaster.opened(self)
        self._handshake = self.gateway.clock.callLater(HANDSHAKE_SECONDS, self.end, 1000, "")
        self.link.send(frames.event("connect.challenge", {"nonce": str(uuid.uuid4()), "ts": self.gateway.now_ms()}))

    def received(self, payload: bytes, binary: bool) -> None:
        """A message arrived."""
        if self._state == "open":
            self._request(payload, binary)
        elif self._state == "awaiting connect":
            self._first(payload, binary)

    def drained(self) -> None:
        """The client has taken all that was sent."""
        if self._state == "open":
            self.gateway.broadcaster.drained(self)

    def end(self, code: int, reason: str) -> None:
        """Close the connection."""
        if self._state != "closed":
            self.closed()
            self.link.close(code, reason)

    def closed(self) -> None:
        """The socket is lost, or about to be."""
        if self._state == "closed":
            return
        self._state = "closed"
        if self._handshake is not None and self._handshake.active():
            self._handshake.cancel()
        self.gateway.broadcaster.lost(self)
        for task in tuple(self._tasks):
            task.cancel()

    def reply(self, request_id: str, payload: object) -> None:
        """Answer a request."""
        if self._state != "closed":
            self.link.send(frames.response(request_id, payload))

    def refuse(self, request_id: str | float | None, error: ErrorShape, payload: object = msgspec.UNSET) -> None:
        """Answer a request with an error."""
        if self._state != "closed":
            self.link.send(frames.failure(request_id, error, payload))

    def spawn(self, request_id: str, handler: Coroutine[Deferred[object], object, None]) -> None:
        """Run the rest of a request beside the others; what it raises is its answer."""
        task: Deferred[None] = Deferred.fromCoroutine(handler)
        self._tasks.add(task)
        task.addErrback(self._failed, request_id).addBoth(lambda _: self._tasks.discard(task))

    # Before hello-ok

    def _first(self, payload: bytes, binary: bool) -> None:
        """The first message must be `connect`; whatever else it is ends the connection."""
        if len(payload) > frames.MAX_FIRST_PAYLOAD:
            self.end(1009, "")
            return
        try:
            request = frames.parse_request(payload, binary)
        except NotJson:
            self.end(1000, "")
            return
        except NotARequest:
            self.end(1008, "invalid request frame")
            return
        try:
            if request.method != "connect":
                raise InvalidRequest("invalid handshake: first request must be connect")
            admitted = judge(self.gateway, frames.parse_connect(request.params), self.address, self.origin)
        except InvalidRequest as error:
            self._turn_away(request, Refused(frames.error_shape(error)))
        except Refused as refused:
            self._turn_away(request, refused)
        else:
            self._admit(request, admitted)

    def _turn_away(self, request: Request, refused: Refused) -> None:
        log.debug("connection {id} refused: {reason}", id=self.id, reason=refused.error.message)
        self.refuse(request.id, refused.error)
        self.end(refused.close_code, refused.error.message)

    def _admit(self, request: Request, admitted: Admitted) -> None:
        if self._handshake is not None:
            self._handshake.cancel()
        self.admitted, self._state = admitted, "open"
        client = admitted.client
        log.info("client {client}/{mode} connected, protocol {protocol}", client=client.id, mode=client.mode, protocol=admitted.protocol, id=self.id)
        self.link.admitted()
        self.reply(request.id, hello(self.gateway, admitted, self.id, tuple(METHODS)))
        self.gateway.broadcaster.admitted(self)

    # After hello-ok

    def _request(self, payload: bytes, binary: bool) -> None:
        try:
            request = frames.parse_request(payload, binary)
        except NotJson:
            log.debug("connection {id} sent what is no JSON; ignored", id=self.id)
            return
        except NotARequest as error:
            self.refuse(error.id, ErrorShape("INVALID_REQUEST", error.message))
            return
        try:
            handler = self._handler(request.method)
            if len(self._tasks) >= MAX_IN_FLIGHT:
                raise Unavailable(f"More than {MAX_IN_FLIGHT} requests of this connection are running. Wait for some of them.")
            handler(self, request)
        except Refused as refused:
            self.refuse(request.id, refused.error)
        except Exception:  # noqa: BLE001  a defect must cost one request, not the connection
            self._failed(Failure(), request.id)

    def _handler(self, method: str) -> Handler:
        """Who answers a method; raises Refused. A method that is not there needs `operator.admin` like any that is not listed."""
        entry = METHODS.get(method)
        scope = "operator.admin" if entry is None else entry.scope
        if scope is not None:
            if self.admitted is not None and self.admitted.role != "operator":
                raise self._forbidden(f"unauthorized role: {self.admitted.role}", None)
            if not self.may(scope):
                raise self._forbidden(f"missing scope: {scope}", scope)
        if entry is None:
            known = "connect is only valid as the first request" if method == "connect" else f"unknown method: {method[:_MAX_SHOWN]}"
            raise Refused(ErrorShape("INVALID_REQUEST", known))
        return entry.handler

    def _forbidden(self, message: str, scope: str | None) -> Refused:
        code = "INVALID_REQUEST" if self.protocol < frames.PROTOCOL_MAX else "FORBIDDEN"
        details = None if scope is None else {"code": "MISSING_SCOPE", "missingScope": scope, "requiredScopes": [scope]}
        return Refused(ErrorShape(code, message, details))

    def _failed(self, failure: Failure, request_id: str) -> None:
        """What a handler raised becomes the answer."""
        if self._state == "closed" and failure.check(CancelledError):
            return
        error = failure.value
        if not isinstance(error, GatewayError):
            log.failure("a request of connection {id} failed inside", failure=failure, id=self.id)
            error = GatewayError()
        self.refuse(request_id, frames.error_shape(error))
