"""One client's conversation over the Gateway protocol. No I/O: it is told what arrived and speaks through its Link.

    awaiting connect --connect--> judging --accepted--> open --close, or the socket is lost--> closed
          |                          |                                                        ^
          +--- anything else --------+--- refused, or 10 s pass ------------------------------+

What comes while a device is being looked up waits, within the limit of the first message.

Requests run side by side, and their answers may come in any order. When the socket is lost its requests are cancelled, as far as calls.py says;
the runs they started go on. Handlers raise; `_failed` is where errors become frames. Imports mayros.core, mayros.wire and mayros.ws.
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
from mayros.core.audit import Act
from mayros.core.auth import grants
from mayros.core.device_tokens import Grant
from mayros.core.ports import Principal, Run
from mayros.errors import GatewayError, InvalidRequest, Unauthorized, Unavailable
from mayros.wire import frames
from mayros.wire.frames import ErrorShape, NotARequest, NotJson, Request
from mayros.ws.calls import Calls
from mayros.ws.connect import Admitted, Refused, Source, hello, judge
from mayros.ws.context import Gateway, Judge, Link
from mayros.ws.methods.table import METHODS, NARROWED, Handler
from mayros.ws.toolfeed import TOOL_EVENTS

log = Logger()

HANDSHAKE_SECONDS = 10.0
MAX_IN_FLIGHT = 256
MAX_EARLY = 64
_MAX_SHOWN = 100
_NOBODY = Principal("nobody", frozenset())


class Session:
    """One client. The glue calls `opened`, `received`, `drained` and `closed`; everything else goes out through `link`.

    `origin` is the Origin header of its upgrade request, already judged; a client that has one is a page. `user`: see context.Judge.proxied.
    """

    def __init__(self, gateway: Gateway, link: Link, address: Address, origin: str | None, user: Principal | Unauthorized | None = None) -> None:
        self.gateway, self.link, self.address, self.origin, self._user = gateway, link, address, origin, user
        self.id = str(uuid.uuid4())
        self.admitted: Admitted | None = None
        self._state: Literal["awaiting connect", "judging", "open", "closed"] = "awaiting connect"
        self._challenge = str(uuid.uuid4())
        self._early: list[tuple[bytes, bool]] = []
        self._handshake: IDelayedCall | None = None
        self._calls = Calls(gateway)
        self._present: str | None = None

    @property
    def principal(self) -> Principal:
        """Who asks; nobody in particular before `hello-ok`."""
        return self.admitted.principal if self.admitted is not None else _NOBODY

    @property
    def protocol(self) -> int:
        """The version spoken; the lowest until one is agreed upon."""
        return self.admitted.protocol if self.admitted is not None else frames.PROTOCOL_MIN

    @property
    def acting(self) -> Act:
        """What the audit trail will tell of the call, for its handler, until that spawns or returns. Only for methods that are audited."""
        assert self._calls.act is not None
        return self._calls.act

    def may(self, scope: str) -> bool:
        """Whether the client has a scope: literally, by `operator.admin`, or read by write."""
        return grants(self.principal.scopes, scope)

    def count_run(self) -> None:
        """The client asks for a run. Raises TooManyRequests where its token has none left in this minute."""
        self.gateway.quotas.take(self.principal, self.gateway.monotonic())

    def started(self, run: Run) -> None:
        """The client has started a run, or asked for it again: it hears of its tools, if it said that it wants to."""
        if self.admitted is not None and TOOL_EVENTS in self.admitted.caps:
            self.gateway.broadcaster.follow_tools(self, run)

    def opened(self) -> None:
        """The socket is open: challenge the client."""
        self.gateway.broadcaster.opened(self)
        self._handshake = self.gateway.clock.callLater(HANDSHAKE_SECONDS, self.end, 1000, "")
        self.link.send(frames.event("connect.challenge", {"nonce": self._challenge, "ts": self.gateway.now_ms()}))

    def received(self, payload: bytes, binary: bool) -> None:
        """A message arrived."""
        self.gateway.traffic.received += 1
        if self._state == "open":
            self._request(payload, binary)
        elif self._state == "awaiting connect":
            self._first(payload, binary)
        elif self._state == "judging":
            self._early.append((payload, binary))
            if len(self._early) > MAX_EARLY or sum(len(early) for early, _ in self._early) > frames.MAX_FIRST_PAYLOAD:
                self.end(1009, "")

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
        gateway = self.gateway
        gateway.broadcaster.lost(self)
        self._early.clear()
        if (admitted := self.admitted) is not None:
            if admitted.device_id is not None:
                gateway.device_connections.lost(admitted.device_id, self)
            if admitted.held is not None:
                gateway.token_sockets.lost(admitted.held.principal.id, self)
            gateway.let_in.lost(admitted.way, self)
        if self._present is not None and gateway.presence.disconnected(self._present, gateway.now_ms()):
            gateway.broadcaster.presence_changed()
        self._calls.cancel()

    def reply(self, request_id: str, payload: object) -> None:
        """Answer a request."""
        if self._state != "closed":
            self._send_answer(request_id, frames.response(request_id, payload))

    def refuse(self, request_id: str | float | None, error: ErrorShape, payload: object = msgspec.UNSET) -> None:
        """Answer a request with an error."""
        if self._state != "closed":
            self._send_answer(request_id, frames.failure(request_id, error, payload))

    def _send_answer(self, request_id: str | float | None, answer: bytes) -> None:
        """An answer that is too large to send is told of, not dropped."""
        if len(answer) > frames.MAX_PAYLOAD:
            log.error("an answer of {size} bytes is too large to send", size=len(answer))
            text = f"the answer has {len(answer)} bytes; at most {frames.MAX_PAYLOAD} can be sent"
            answer = frames.failure(request_id, ErrorShape("UNAVAILABLE", text, {"code": "PAYLOAD_TOO_LARGE", "bytes": len(answer)}))
        self.gateway.traffic.answered += 1
        self.link.send(answer)

    def spawn(self, request_id: str, handler: Coroutine[Deferred[object], object, None]) -> None:
        """Run the rest of a request beside the others; what it raises is its answer."""
        self._calls.spawn(handler, lambda failure: self._failed(failure, request_id))

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
            params = frames.parse_connect(request.params)
        except InvalidRequest as error:
            self._turn_away(request, Refused(frames.error_shape(error)))
            return
        self._state = "judging"
        by = self.gateway.authenticator
        judging = Deferred.fromCoroutine(judge(self.gateway, params, Source(self.address, self.origin, self._challenge, self._user, self.id)))
        judging.addCallbacks(self._admit, self._not_admitted, callbackArgs=(request, by), errbackArgs=(request,)).addErrback(self._broken)

    def _not_admitted(self, failure: Failure, request: Request) -> None:
        error = failure.value
        if isinstance(error, GatewayError):
            error = Refused(frames.error_shape(error), 1013 if error.retry_after is not None else 1008)
        if not isinstance(error, Refused):
            failure.raiseException()
        else:
            self._turn_away(request, error)

    def _broken(self, failure: Failure) -> None:
        """A defect in what lets clients in."""
        log.failure("connection {id} failed inside", failure=failure, id=self.id)
        self.end(1011, "internal error")

    def _turn_away(self, request: Request, refused: Refused) -> None:
        log.debug("connection {id} refused: {reason}", id=self.id, reason=refused.error.message)
        away = self.gateway.traffic.turned_away
        away[refused.error.code] = away.get(refused.error.code, 0) + 1
        self.refuse(request.id, refused.error)
        self.end(refused.close_code, refused.error.message)

    def _admit(self, found: tuple[Admitted, Grant | None], request: Request, by: Judge) -> None:
        if self._state == "closed":
            return
        admitted, grant = found
        if admitted.way and by is not self.gateway.authenticator:
            self.end(1008, "the configuration changed; connect again")  # while a device was looked up
            return
        if self._handshake is not None:
            self._handshake.cancel()
        self.admitted, self._state, self._challenge = admitted, "open", ""
        client = admitted.client
        log.info("client {client}/{mode} connected, protocol {protocol}", client=client.id, mode=client.mode, protocol=admitted.protocol, id=self.id)
        self.link.admitted()
        self._present = self.gateway.presence.connected(
            client,
            admitted.role,
            admitted.scopes,
            connection_id=self.id,
            device_id=admitted.device_id,
            ip=None if self.address.direct_local else self.address.client,
            now_ms=self.gateway.now_ms(),
        )
        if admitted.device_id is not None:
            self.gateway.device_connections.opened(admitted.device_id, admitted.role, self)
        if admitted.held is not None:
            self.gateway.token_sockets.opened(admitted.held, self)
        self.gateway.let_in.opened(admitted.way, self)
        self.reply(request.id, hello(self.gateway, admitted, grant, self.id, tuple(METHODS)))
        self.gateway.broadcaster.admitted(self)
        early, self._early = self._early, []
        for payload, binary in early:
            self.received(payload, binary)

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
        self._calls.begins(request.method)
        failure = None
        try:
            self._handler(request)(self, request)
        except Exception:  # noqa: BLE001  a defect must cost one request, not the connection
            failure = Failure()
            self._failed(failure, request.id)
        self._calls.returned(failure)

    def _handler(self, request: Request) -> Handler:
        """Who answers; raises Refused, and Unavailable. A method that is not there needs `operator.admin` like any that is not listed."""
        method = request.method
        entry = METHODS.get(method)
        if entry is not None and entry.audited:
            from mayros.ws.acts import begun

            self._calls.act = begun(self, request)
        scope = "operator.admin" if entry is None else entry.scope
        if scope is not None:
            if self.admitted is not None and self.admitted.role != "operator":
                raise self._forbidden(f"unauthorized role: {self.admitted.role}", None)
            if not self.may(scope):
                raise self._forbidden(f"missing scope: {scope}", scope)
        if self.principal.space is not None and method not in NARROWED:
            raise self._forbidden(f"a token without operator.admin may not call {method[:_MAX_SHOWN]}", "operator.admin")
        if entry is None:
            known = "connect is only valid as the first request" if method == "connect" else f"unknown method: {method[:_MAX_SHOWN]}"
            raise Refused(ErrorShape("INVALID_REQUEST", known))
        if len(self._calls) >= MAX_IN_FLIGHT:
            raise Unavailable(f"More than {MAX_IN_FLIGHT} requests of this connection are running. Wait for some of them.")
        return entry.handler

    def lacks(self, scope: str) -> Refused:
        """The refusal of a client that lacks a scope."""
        return self._forbidden(f"missing scope: {scope}", scope)

    def _forbidden(self, message: str, scope: str | None) -> Refused:
        code = "INVALID_REQUEST" if self.protocol < frames.PROTOCOL_MAX else "FORBIDDEN"
        details = None if scope is None else {"code": "MISSING_SCOPE", "missingScope": scope, "requiredScopes": [scope]}
        return Refused(ErrorShape(code, message, details))

    def _failed(self, failure: Failure, request_id: str) -> None:
        """What a handler raised becomes the answer."""
        if self._state == "closed" and failure.check(CancelledError):
            return
        error = failure.value
        if isinstance(error, Refused):
            self.refuse(request_id, error.error)
            return
        if not isinstance(error, GatewayError):
            log.failure("a request of connection {id} failed inside", failure=failure, id=self.id)
            error = GatewayError()
        self.refuse(request_id, frames.error_shape(error))
