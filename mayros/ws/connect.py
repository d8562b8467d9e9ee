"""`connect`: whether a client may come in, with which scopes, and the `hello-ok` it gets. Pure but for the failure limiter.

The order of checks is the protocol's: version, role, (Origin: before the upgrade), identity, secret. A `device` is checked for its form only;
the client is judged as one without. Imports mayros.core, mayros.wire and mayros.ws.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from mayros.core.address import Address
from mayros.core.auth import OPERATOR_SCOPES
from mayros.core.ports import Principal
from mayros.errors import TooManyAuthFailures
from mayros.wire.frames import MAX_BUFFERED, MAX_PAYLOAD, PROTOCOL_MAX, PROTOCOL_MIN, TICK_MS, Client, Connect, ErrorShape
from mayros.ws.broadcast import EVENTS
from mayros.ws.context import Gateway

Role = Literal["operator", "node"]
PREFIXES = ("mayros-", "openclaw-")
#: Client ids without a prefix; with one, any short name is taken, since clients are more than are known here.
CLIENT_IDS = frozenset(("webchat-ui", "webchat", "cli", "gateway-client", "node-host", "test", "fingerprint"))
_MAX_CLIENT_ID = 64


class Refused(Exception):
    """The client is refused: the error it is answered with, and the code its socket closes with (the reason is the error's message)."""

    def __init__(self, error: ErrorShape, close_code: int = 1008) -> None:
        super().__init__(error.message)
        self.error, self.close_code = error, close_code


class Admitted(msgspec.Struct, frozen=True):
    """A client that came in."""

    protocol: int
    role: Role
    scopes: frozenset[str]
    principal: Principal
    client: Client


def _refused(message: str, detail: str | None = None, *, code: str = "INVALID_REQUEST", close_code: int = 1008, **details: object) -> Refused:
    if detail is not None:
        details = {"code": detail, **details}
    return Refused(ErrorShape(code, message, details or None), close_code)


def judge(gateway: Gateway, params: Connect, address: Address, origin: str | None) -> Admitted:
    """Whether these parameters, from this address, are let in. Raises Refused."""
    protocol = _negotiate(params)
    if params.role not in ("operator", "node"):
        raise _refused("invalid role")
    role: Role = "node" if params.role == "node" else "operator"
    client = params.client
    if not known_client(client.id):
        raise _refused("invalid connect params: at /client/id: must be equal to one of the allowed values")
    if client.id.removeprefix("mayros-").removeprefix("openclaw-") == "control-ui":
        raise _refused("control ui requires device identity (use HTTPS or localhost secure context)", "CONTROL_UI_DEVICE_IDENTITY_REQUIRED")
    _check_secret(gateway, params, address)
    keeps = role == "operator" and address.direct_local and origin is None and gateway.config.current.config.gateway.auth.local_scopes
    scopes = OPERATOR_SCOPES.intersection(params.scopes) if keeps else frozenset[str]()
    return Admitted(protocol, role, scopes, Principal("owner", scopes), client)


def known_client(client_id: str) -> bool:
    """Whether the id is one of a gateway client."""
    return client_id in CLIENT_IDS or (client_id.startswith(PREFIXES) and len(client_id) <= _MAX_CLIENT_ID and client_id.isprintable())


def _negotiate(params: Connect) -> int:
    low, high = params.min_protocol, params.max_protocol
    protocol = min(high, PROTOCOL_MAX)
    if protocol < PROTOCOL_MIN or low > protocol:
        raise _refused(
            "protocol mismatch",
            "PROTOCOL_MISMATCH",
            close_code=1002,
            expectedProtocol=PROTOCOL_MIN if high < PROTOCOL_MIN else PROTOCOL_MAX,
            minimumProbeProtocol=PROTOCOL_MIN,
        )
    return protocol


def _check_secret(gateway: Gateway, params: Connect, address: Address) -> None:
    """The rule for clients without a device: the shared secret, or in mode `none` a direct connection from this machine."""
    mode = gateway.authenticator.mode
    auth = params.auth
    given = {"token": auth.token, "password": auth.password} if auth is not None else {}
    if mode == "none" and address.direct_local:
        return
    if mode not in ("token", "password") or not any(given.values()):
        raise _refused("device identity required", "DEVICE_IDENTITY_REQUIRED", code="NOT_PAIRED")
    presented = given[mode] or None
    try:
        right = gateway.authenticator.secret_ok(presented, address, gateway.monotonic())
    except TooManyAuthFailures as error:
        message = "unauthorized: too many failed authentication attempts (retry later)"
        retry_ms = (error.retry_after or 1) * 1000
        raise Refused(ErrorShape("INVALID_REQUEST", message, {"code": "AUTH_RATE_LIMITED"}, retryable=True, retry_after_ms=retry_ms)) from None
    if not right:
        problem = "missing" if presented is None else "mismatch"
        message = f"unauthorized: gateway {mode} {problem} ({_hint(mode, params.client)})"
        raise _refused(message, f"AUTH_{mode}_{problem}".upper())


def _hint(mode: str, client: Client) -> str:
    """What to do about it, in the words that each kind of client shows to its user."""
    if client.mode == "cli":
        return f"set gateway.remote.{mode} to match gateway.auth.{mode}"
    if client.mode == "webchat" or client.id == "webchat-ui":
        return (
            "enter the password in Control UI settings" if mode == "password" else "open the dashboard URL and paste the token in Control UI settings"
        )
    return f"provide gateway auth {mode}"


def hello(gateway: Gateway, admitted: Admitted, connection_id: str, methods: Sequence[str]) -> dict[str, object]:
    """The payload of `hello-ok`. Paths of this machine are for administrators."""
    settings, now_ms = gateway.config.current, gateway.now_ms()
    directory = settings.directory
    snapshot: dict[str, object] = {
        "presence": [_presence(gateway, now_ms)],
        "health": gateway.health_payload(),
        "stateVersion": {"presence": 1, "health": gateway.broadcaster.health_version},
        "uptimeMs": max(0, now_ms - gateway.started_ms),
        "sessionDefaults": {
            "defaultAgentId": directory.default_id,
            "mainKey": directory.main_key,
            "mainSessionKey": str(directory.main_session(directory.default_id)),
            "scope": "per-sender",
        },
        "authMode": gateway.authenticator.mode,
    }
    if "operator.admin" in admitted.scopes:
        snapshot |= {"configPath": settings.config_path, "stateDir": settings.state_dir}
    return {
        "type": "hello-ok",
        "protocol": admitted.protocol,
        "server": {"version": gateway.version, "host": gateway.host, "connId": connection_id},
        "features": {"methods": methods, "events": EVENTS},
        "snapshot": snapshot,
        "auth": {"role": admitted.role, "scopes": sorted(admitted.scopes)},
        "policy": {"maxPayload": MAX_PAYLOAD, "maxBufferedBytes": MAX_BUFFERED, "tickIntervalMs": TICK_MS},
    }


def _presence(gateway: Gateway, now_ms: int) -> Mapping[str, object]:
    return {
        "host": gateway.host,
        "version": gateway.version,
        "platform": sys.platform,
        "mode": "gateway",
        "reason": "self",
        "text": f"Gateway: {gateway.host} · app {gateway.version} · mode gateway · reason self",
        "ts": now_ms,
    }
