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
from autobahn.websocket.types import ConnectingRequest
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
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

    `connect` are the parameters of the method of that name. `send` takes text messages; the glue sets it. `done` fires with the final payload, or
    fails with CallFailed; `on_event` hears the events after `hello-ok`.
    """

    send: Callable[[bytes], None]

    def __init__(self, connect: dict[str, object], method: str, params: object, on_event: Callable[[str, Any], None] | None = None) -> None:
        self.done: Deferred[Any] = Deferred()
        self._connect, self._method, self._params, self._on_event = connect, method, params, on_event
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

    def _event(self, event: str, payload: Any) -> None:
        if event == "connect.challenge":
            if not self._ids:
                self._ask("connect", self._connect)
        elif self._on_event is not None:
            self._on_event(event, payload)

    def _ask(self, method: str, params: object) -> None:
        request_id = str(uuid.uuid4())
        self._ids[request_id] = method
        self.send(_encode({"type": "req", "id": request_id, "method": method, "params": params}))

    def _answered(self, frame: _Frame, payload: Any) -> None:
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
        conversation.send = self.sendMessage

    def onConnecting(self, transport_details: object) -> ConnectingRequest:
        """Called by Autobahn, which would write an IPv6 address without brackets."""
        options: dict[str, Any] = {"host": self._host, "port": self.factory.port, "resource": self.factory.resource, "headers": {}, "protocols": []}
        return ConnectingRequest(**options)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Called by Autobahn."""
        with log.failuresHandled("while taking a message") as taking:
            self._conversation.received(payload)
        if taking.failed:
            self._conversation.failed(CallFailed("UNAVAILABLE", "The client failed on a message of the gateway."))

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """Called by Autobahn, once, also when the handshake failed."""
        why = reason if wasClean else self.wasNotCleanReason
        self._conversation.failed(CallFailed("UNAVAILABLE", f"The gateway closed the connection ({code}): {why or 'no reason given'}."))
        self.lost.callback(None)


class _Factory(WebSocketClientFactory):
    """Makes the socket of one conversation."""

    protocol = _Protocol

    def __init__(self, reactor: Any, url: str, host: str, conversation: Conversation) -> None:
        txaio.config.loop = reactor  # type: ignore[attr-defined]
        super().__init__(url, reactor=reactor)
        self.setProtocolOptions(
            failByDrop=False,
            maxFramePayloadSize=MAX_PAYLOAD,
            maxMessagePayloadSize=MAX_PAYLOAD,
            openHandshakeTimeout=CONNECT_SECONDS,
            autoPingInterval=PING_SECONDS,
            autoPingTimeout=PING_SECONDS,
            tcpNoDelay=True,
        )
        self._conversation, self._written_host = conversation, host

    def buildProtocol(self, addr: IAddress | None) -> _Protocol:
        """Called by Twisted when the connection is made."""
        protocol = super().buildProtocol(addr)
        assert isinstance(protocol, _Protocol)
        protocol.prepare(self._conversation, self._written_host)
        return protocol


def _where(reactor: Any, url: str) -> tuple[IStreamClientEndpoint, str, str]:
    """How to connect, the WebSocket URL without credentials, and the host as the Host header writes it. ValueError for a bad URL."""
    if url.startswith(("unix:", "/")):
        return UNIXClientEndpoint(reactor, "/" + url.removeprefix("unix:").lstrip("/"), timeout=CONNECT_SECONDS), "ws://localhost/", "localhost"
    parts = urlsplit(url)
    host, scheme = parts.hostname, parts.scheme
    if scheme not in _PORTS or not host:
        raise ValueError(f"{url!r} is no gateway URL: write ws://host:port/, wss://host:port/ or unix:/path.")
    port = parts.port or _PORTS[scheme]
    endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, host, port, timeout=CONNECT_SECONDS)
    if scheme == "wss":
        # pyOpenSSL costs a tenth of a second, which the usual call has no use for.
        from twisted.internet.ssl import optionsForClientTLS

        endpoint = wrapClientTLS(optionsForClientTLS(host), endpoint)
    written = f"[{host}]" if ":" in host else host
    return endpoint, f"{scheme}://{written}:{port}{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", written


async def call(
    reactor: Any,
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
    endpoint: IStreamClientEndpoint | None = None,
) -> Any:
    """Call a method of the gateway and give its final payload.

    `url` is `ws://host:port/`, `wss://...`, or `unix:/path` (also a bare path); `endpoint` connects elsewhere than it says. `timeout` in seconds
    is for everything together; None waits for ever. Raises CallFailed, and ValueError for a URL that is none. Cancelling closes the connection.
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
    conversation = Conversation(connect, method, params, on_event)
    own, address, host = _where(reactor, url)
    work = Deferred.fromCoroutine(_talk(endpoint or own, _Factory(reactor, address, host, conversation), conversation))
    if timeout is not None:
        work.addTimeout(timeout, reactor)
    try:
        return await work
    except TimeoutError:
        raise CallFailed("UNAVAILABLE", f"The gateway gave no answer within {timeout or 0:g} s.") from None
    except (ConnectError, DNSLookupError) as error:
        raise CallFailed("UNAVAILABLE", f"Cannot reach a gateway at {_shown(url, address)}: {error}") from None


def _shown(url: str, address: str) -> str:
    """The URL for a message: no user name, no password, no query."""
    return url if url.startswith(("unix:", "/")) else address.partition("?")[0]


async def _talk(endpoint: IStreamClientEndpoint, factory: _Factory, conversation: Conversation) -> Any:
    protocol: Any = await endpoint.connect(factory)
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
