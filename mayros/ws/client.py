"""The CLI's client of the Gateway protocol: one connection, one request, its final answer. Imports mayros.wire; the daemon does not import it.

`Conversation` knows the protocol and no socket; below it is the Autobahn glue.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
import txaio
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from autobahn.websocket.types import ConnectingRequest, TransportDetails
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger

from mayros.wire.frames import MAX_PAYLOAD, PROTOCOL_MAX, PROTOCOL_MIN, ErrorShape

log = Logger()

CONNECT_SECONDS = 10
PING_SECONDS = 30
_PORTS = {"ws": 80, "wss": 443}


class CallFailed(Exception):
    """The call did not succeed. `code` is the protocol's; UNAVAILABLE also when there is no gateway or no answer. `payload` is what came with it."""

    def __init__(self, code: str, message: str, details: object = None, payload: object = None) -> None:
        super().__init__(message)
        self.code, self.message, self.details, self.payload = code, message, details, payload


class _Frame(msgspec.Struct, frozen=True):
    type: str
    id: str | float | None = None
    event: str = ""
    ok: bool = False
    payload: msgspec.Raw = msgspec.Raw(b"null")
    error: ErrorShape = ErrorShape("UNAVAILABLE", "The gateway gave no reason.")


_frame = msgspec.json.Decoder(_Frame).decode
_encode = msgspec.json.Encoder().encode


class Conversation:
    """Answers the challenge, asks, and waits for the answer that is not just "accepted".

    `send` takes text messages; `done` fires with the final payload, or fails with CallFailed; `on_event` hears the events after `hello-ok`.
    """

    def __init__(
        self,
        send: Callable[[bytes], None],
        connect: dict[str, object],
        method: str,
        params: object,
        on_event: Callable[[str, Any], None] | None = None,
    ) -> None:
        self.done: Deferred[Any] = Deferred()
        self._send, self._connect, self._method, self._params, self._on_event = send, connect, method, params, on_event
        self._ids: dict[str, str] = {}

    def received(self, payload: bytes) -> None:
        """A message arrived. What makes no sense ends the call."""
        if self.done.called:
            return
        try:
            frame = _frame(payload)
            value = msgspec.json.decode(frame.payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.failed(CallFailed("UNAVAILABLE", "The gateway sent a frame that cannot be read."))
            return
        if frame.type == "event":
            self._event(frame.event, value)
        elif frame.type == "res" and isinstance(frame.id, str):
            self._answered(frame, value)

    def failed(self, error: CallFailed) -> None:
        """The call is over."""
        if not self.done.called:
            self.done.errback(error)

    def _event(self, event: str, payload: Any) -> None:  # noqa: ANN401  any JSON
        if event == "connect.challenge":
            if not self._ids:
                self._ask("connect", self._connect)
        elif self._on_event is not None:
            self._on_event(event, payload)

    def _ask(self, method: str, params: object) -> None:
        request_id = str(uuid.uuid4())
        self._ids[request_id] = method
        self._send(_encode({"type": "req", "id": request_id, "method": method, "params": params}))

    def _answered(self, frame: _Frame, payload: Any) -> None:  # noqa: ANN401  any JSON
        method = self._ids.get(str(frame.id))
        if method is None:
            return
        if not frame.ok:
            self.failed(CallFailed(frame.error.code, frame.error.message, frame.error.details, payload))
        elif len(self._ids) == 1:
            self._ask(self._method, self._params)
        elif method == self._method and not (isinstance(payload, dict) and payload.get("status") == "accepted"):
            self.done.callback(payload)


class _Protocol(WebSocketClientProtocol):
    """The socket of one conversation."""

    def prepare(self, conversation: Conversation, host: str) -> None:
        """Before the connection is made."""
        self._conversation, self._host = conversation, host
        self.lost: Deferred[None] = Deferred()

    def onConnecting(self, transport_details: TransportDetails) -> ConnectingRequest:
        """Called by Autobahn, which would write an IPv6 address without brackets."""
        factory = self.factory
        return ConnectingRequest(host=self._host, port=factory.port, resource=factory.resource, headers={}, protocols=[])

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Called by Autobahn."""
        with log.failuresHandled("while taking a message") as taking:
            self._conversation.received(payload)
        if taking.failed:
            self._conversation.failed(CallFailed("UNAVAILABLE", "The client failed on a message of the gateway."))

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """Called by Autobahn, also when the handshake failed."""
        why = reason if wasClean else self.wasNotCleanReason
        self._conversation.failed(CallFailed("UNAVAILABLE", f"The gateway closed the connection ({code}): {why or 'no reason given'}."))
        self.lost.callback(None)


async def call(
    reactor: Any,  # noqa: ANN401  Twisted's reactor is several interfaces at once
    url: str,
    *,
    token: str | None = None,
    password: str | None = None,
    method: str,
    params: object,
    on_event: Callable[[str, Any], None] | None = None,
    timeout: float | None = None,
    scopes: Sequence[str] = (),
    version: str = "dev",
) -> Any:  # noqa: ANN401  any JSON
    """Call a method of the gateway and give its final payload.

    `url` is `ws://host:port/`, `wss://...`, or `unix:/path` (also a bare path). `timeout` in seconds is for everything together; None waits for
    ever. Raises CallFailed; ValueError for a URL that is none. Cancelling closes the connection.
    """
    auth = {name: secret for name, secret in (("token", token), ("password", password)) if secret}
    connect: dict[str, object] = {
        "minProtocol": PROTOCOL_MIN,
        "maxProtocol": PROTOCOL_MAX,
        "client": {"id": "cli", "version": version, "platform": sys.platform, "mode": "cli"},
        "role": "operator",
        "scopes": list(scopes),
        "auth": auth,
    }
    endpoint, address, host = _endpoint(reactor, url)
    factory = _factory(reactor, address)
    protocol = factory.buildProtocol(None)
    conversation = Conversation(protocol.sendMessage, connect, method, params, on_event)
    protocol.prepare(conversation, host)
    work = Deferred.fromCoroutine(_talk(reactor, endpoint, protocol, conversation))
    if timeout is not None:
        work.addTimeout(timeout, reactor)
    try:
        return await work
    except TimeoutError:
        raise CallFailed("UNAVAILABLE", f"The gateway gave no answer within {timeout:g} s.") from None
    except (ConnectError, DNSLookupError, OSError) as error:
        raise CallFailed("UNAVAILABLE", f"Cannot reach a gateway at {address if host != 'unix' else url}: {error}") from None


async def _talk(reactor: Any, endpoint: IStreamClientEndpoint, protocol: _Protocol, conversation: Conversation) -> Any:  # noqa: ANN401
    await endpoint.connect(_Ready(protocol))
    try:
        answer = await conversation.done
    except CancelledError:
        protocol.dropConnection(abort=True)
        raise
    except CallFailed:
        protocol.dropConnection(abort=False)
        raise
    protocol.sendClose(1000)
    await protocol.lost
    return answer
