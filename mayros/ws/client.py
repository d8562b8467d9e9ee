"""Our own client of the Gateway protocol, for the command line and for programs on Twisted: `connect` and `call`. The daemon does not import it.

The Autobahn glue of a client is here; what is said on a socket is in conversation.py, what outlives one in connection.py. Imports mayros.wire,
mayros.ws and net.certificates.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import txaio
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from mayros.net.certificates import Trust, tls_problem
from mayros.wire.frames import MAX_PAYLOAD, PROTOCOL_MAX, PROTOCOL_MIN
from mayros.ws.connection import Connection
from mayros.ws.conversation import CallFailed, Conversation
from mayros.ws.identity import Identity
from mayros.ws.inbox import Event
from mayros.ws.library import ConnectingRequest, WebSocketClientFactory, WebSocketClientProtocol
from mayros.ws.urls import Where, where

log = Logger()

CONNECT_SECONDS = 10.0
PING_SECONDS = 30


class _Protocol(WebSocketClientProtocol):
    """The socket of one conversation."""

    def prepare(self, conversation: Conversation, to: Where) -> None:
        """Before the connection is made."""
        self._conversation, self._to = conversation, to
        conversation.link = self

    def send(self, payload: bytes) -> None:
        """Of Link."""
        self.sendMessage(payload)

    def close(self, code: int, reason: str) -> None:
        """Of Link."""
        if self.state == self.STATE_OPEN:
            self.sendClose(code, reason)
        else:
            self.dropConnection(abort=True)

    def abort(self) -> None:
        """Of Link."""
        self.dropConnection(abort=True)

    def onConnecting(self, transport_details: object) -> ConnectingRequest:
        """Called by Autobahn, which would write an IPv6 address without brackets."""
        options: dict[str, Any] = {
            "host": self._to.host,
            "port": self.factory.port,
            "resource": self.factory.resource,
            "headers": {},
            "protocols": [],
        }
        return ConnectingRequest(**options)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Called by Autobahn. What a hearer of events raises ends the conversation, and is what its requests then raise."""
        try:
            self._conversation.received(payload)
        except Exception as error:  # noqa: BLE001 - handed on
            self._conversation.end(error, "the client failed")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by the transport."""
        problem = tls_problem(reason.value)
        if problem is not None:
            # Autobahn's words would be that the connection was closed uncleanly.
            self._conversation.lost(CallFailed("UNAVAILABLE", f"Cannot speak to a gateway at {self._to.shown}: {problem}"))
        super().connectionLost(reason)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """Called by Autobahn, once, also when the handshake failed."""
        why = reason if wasClean else self.wasNotCleanReason
        message = f"The gateway closed the connection ({code}): {why or 'no reason given'}."
        self._conversation.lost(CallFailed("UNAVAILABLE", message, passing=True))


class _Factory(WebSocketClientFactory):
    """Makes the socket of one conversation."""

    protocol = _Protocol

    def __init__(self, reactor: Any, to: Where, conversation: Conversation) -> None:
        txaio.config.loop = reactor  # type: ignore[attr-defined]
        super().__init__(to.address, reactor=reactor)
        self.setProtocolOptions(
            failByDrop=False,
            maxFramePayloadSize=MAX_PAYLOAD,
            maxMessagePayloadSize=MAX_PAYLOAD,
            openHandshakeTimeout=CONNECT_SECONDS,
            autoPingInterval=PING_SECONDS,
            autoPingTimeout=PING_SECONDS,
            tcpNoDelay=True,
        )
        self._conversation, self._to = conversation, to

    def buildProtocol(self, addr: IAddress | None) -> _Protocol:
        """Called by Twisted when the connection is made."""
        protocol = super().buildProtocol(addr)
        assert isinstance(protocol, _Protocol)
        protocol.prepare(self._conversation, self._to)
        return protocol


class _Dialler:
    """Makes sockets to one gateway and introduces this client to it."""

    def __init__(
        self,
        reactor: Any,
        to: Where,
        timeout: float,
        *,
        token: str | None,
        password: str | None,
        identity: Identity | None,
        gateway: str,
        role: str,
        scopes: Sequence[str],
        client: Mapping[str, str],
        caps: Sequence[str],
    ) -> None:
        self._reactor, self._to, self._timeout = reactor, to, timeout
        self._token, self._password, self._identity, self._gateway = token, password, identity, gateway
        self._role, self._scopes, self._client, self._caps = role, tuple(scopes), dict(client), list(caps)
        self._by_device = False

    async def __call__(self, heard: Callable[[Event, int], None], gone: Callable[[Exception], None]) -> tuple[Conversation, dict[str, Any]]:
        """A conversation after its hello. Raises CallFailed."""
        conversation = Conversation(self._reactor, self._introduce, heard, gone)
        work = Deferred.fromCoroutine(self._talk(conversation)).addTimeout(self._timeout, self._reactor)
        try:
            hello = await work
        except TimeoutError:
            message = f"The gateway at {self._to.shown} gave no answer within {self._timeout:g} s."
            raise CallFailed("UNAVAILABLE", message, passing=True) from None
        except (ConnectError, DNSLookupError) as error:
            raise CallFailed("UNAVAILABLE", f"Cannot reach a gateway at {self._to.shown}: {error}", passing=True) from None
        except CallFailed as error:
            # The same words are said of a wrong shared secret that a device sends.
            if self._by_device and "device token mismatch" in error.message:
                self._forget()
            raise
        self._keep(hello)
        return conversation, hello

    async def _talk(self, conversation: Conversation) -> dict[str, Any]:
        await self._to.endpoint.connect(_Factory(self._reactor, self._to, conversation))
        try:
            return await conversation.ready
        except CancelledError:
            conversation.link.abort()
            raise
        except CallFailed:
            conversation.link.close(1000, "")
            raise

    def _introduce(self, nonce: str, ts_ms: int | None) -> Mapping[str, object]:
        token, scopes = self._token, self._scopes
        self._by_device = False
        if self._identity is not None and not token and not self._password:
            held = self._identity.token(self._gateway, self._role)
            if held is not None:
                # More than the token is good for would be refused as if it were wrong.
                self._by_device = True
                token, scopes = held.token, tuple(scope for scope in scopes if held.covers(scope))
        params: dict[str, object] = {
            "minProtocol": PROTOCOL_MIN,
            "maxProtocol": PROTOCOL_MAX,
            "client": self._client,
            "role": self._role,
            "scopes": scopes,
            "caps": self._caps,
            "auth": {name: secret for name, secret in (("token", token), ("password", self._password)) if secret},
        }
        if self._identity is not None:
            params["device"] = self._identity.prove(
                client_id=self._client["id"],
                client_mode=self._client["mode"],
                role=self._role,
                scopes=scopes,
                token=token or "",
                nonce=nonce,
                # By the gateway's clock, which is the one it compares with.
                signed_at_ms=_now_ms() if ts_ms is None else ts_ms,
                platform=self._client["platform"],
            )
        return params

    def _keep(self, hello: Mapping[str, Any]) -> None:
        auth = hello.get("auth")
        token, scopes = (auth.get("deviceToken"), auth.get("scopes")) if isinstance(auth, dict) else (None, None)
        if self._identity is None or not isinstance(token, str) or not token or not isinstance(scopes, list):
            return
        try:
            self._identity.keep(self._gateway, self._role, token, [scope for scope in scopes if isinstance(scope, str)], _now_ms())
        except (OSError, ValueError) as error:
            log.warn("the device token cannot be kept: {reason}", reason=str(error))

    def _forget(self) -> None:
        if self._identity is not None:
            try:
                self._identity.forget(self._gateway, self._role)
            except (OSError, ValueError) as error:
                log.warn("the device token cannot be removed: {reason}", reason=str(error))


async def connect(
    reactor: Any,
    url: str,
    *,
    token: str | None = None,
    password: str | None = None,
    identity: Identity | None = None,
    gateway: str | None = None,
    role: str = "operator",
    scopes: Sequence[str] = (),
    caps: Sequence[str] = (),
    client_id: str = "cli",
    client_mode: str = "cli",
    version: str = "dev",
    reconnect: bool = False,
    on_event: Callable[[str, Any], None] | None = None,
    timeout: float = CONNECT_SECONDS,
    endpoint: IStreamClientEndpoint | None = None,
    trust: Trust | None = None,
    chance: Callable[[], float] = random.random,
) -> Connection:
    """Connect to a gateway and introduce this client.

    `url` is `ws://host:port/`, `wss://...`, or `unix:/path` (also a bare path); `endpoint` connects elsewhere than it says. With an `identity` the
    challenge is signed and the device token in the hello is kept; without `token` and `password` the kept one is sent, and forgotten when the
    gateway does not take it. `gateway` is the name under which it is kept: the URL, or identity.OWN for this machine's own. `on_event(name,
    payload)` is called at once for each event; see also `Connection.events`. `timeout` in seconds is for each attempt.

    With `trust` a gateway (`wss://`) must show the one certificate that has its fingerprint, whoever vouches for that, or it hears nothing from us;
    without, one that the system's authorities vouch for.

    Raises CallFailed, and ValueError for a URL that is none. Cancelling drops the connection.
    """
    to = where(reactor, url, timeout, trust)
    dialler = _Dialler(
        reactor,
        to if endpoint is None else to._replace(endpoint=endpoint),
        timeout,
        token=token,
        password=password,
        identity=identity,
        gateway=to.shown if gateway is None else gateway,
        role=role,
        scopes=scopes,
        client={"id": client_id, "version": version, "platform": sys.platform, "mode": client_mode},
        caps=caps,
    )
    connection = Connection(reactor, dialler, reconnect=reconnect, on_event=on_event, random=chance)
    await connection.start()
    return connection


async def call(
    reactor: Any, url: str, method: str, params: object = None, *, timeout: float | None = None, expect_final: bool = False, **how: Any
) -> Any:
    """Connect, call one method, and give its payload. `how` is what `connect` takes; `timeout` in seconds (None: no limit) is for all together.

    Raises as `connect` and `Connection.request` do. Cancelling drops the connection.
    """

    async def calling() -> Any:
        async with await connect(reactor, url, **how) as connection:
            return await connection.request(method, params, timeout=None, expect_final=expect_final)

    work = Deferred.fromCoroutine(calling())
    if timeout is not None:
        work.addTimeout(timeout, reactor)
    try:
        return await work
    except TimeoutError:
        raise CallFailed("UNAVAILABLE", f"The gateway gave no answer within {timeout or 0:g} s.", passing=True) from None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
