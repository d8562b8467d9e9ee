"""`connect`: whether a client may come in, with which scopes, and the `hello-ok` it gets. Imports mayros.core, mayros.wire and mayros.ws.

The order of checks is the protocol's: version, role, (Origin: before the upgrade), the missing device, the device's proof, the secret or the
device's token, pairing. A client with a device has the scopes it is paired for; one without has none, but for programs on this machine. A user
whom a trusted proxy names has the scopes that HTTP gives him, and needs neither device nor pairing; with the token of a device he has that one's.
Whoever comes with a token of his own (core/api_tokens.py) needs neither as well, and has that token's scopes, whatever else he brings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from mayros.core.address import Address
from mayros.core.audit_ports import Actor
from mayros.core.auth import OPERATOR_SCOPES, grants
from mayros.core.device_tokens import Grant
from mayros.core.devices import Applicant, Reason
from mayros.core.ports import Principal
from mayros.core.reach import default_agent, may_use, own_key
from mayros.core.token_ports import Held
from mayros.errors import Unauthorized
from mayros.wire.frames import MAX_BUFFERED, MAX_PAYLOAD, PROTOCOL_MAX, PROTOCOL_MIN, TICK_MS, Client, Connect, Device
from mayros.ws.broadcast import EVENTS
from mayros.ws.context import Gateway
from mayros.ws.credentials import Refused, Secrets, control_ui, prove, refused
from mayros.ws.let_in import Way
from mayros.ws.toolfeed import TOOL_EVENTS

__all__ = ["Admitted", "Refused", "Source", "hello", "judge", "known_client"]

Role = Literal["operator", "node"]
PREFIXES = ("mayros-", "openclaw-")
#: Client ids without a prefix; with one, any short name is taken, since clients are more than are known here.
CLIENT_IDS = frozenset(("webchat-ui", "webchat", "cli", "gateway-client", "node-host", "test", "fingerprint"))
#: Programs that are run by whoever has the secret, and have no device: id and mode.
LOCAL_PROGRAMS = frozenset((("cli", "cli"), ("gateway-client", "backend")))
#: What clients may want besides; other caps are dropped.
CAPS = frozenset((TOOL_EVENTS,))
_MAX_CLIENT_ID = 64
_NO_CONTROL_UI = "control ui requires device identity (use HTTPS or localhost secure context)"


class Admitted(msgspec.Struct, frozen=True):
    """A client that came in."""

    protocol: int
    role: Role
    scopes: frozenset[str]
    principal: Principal
    client: Client
    device_id: str | None = None
    caps: frozenset[str] = frozenset()
    #: The token of a person or program that it came with.
    held: Held | None = None
    #: By what else it came in, and must go when that is another one.
    way: Way = ""


class Source(msgspec.Struct, frozen=True):
    """Where a connection comes from: its address, the Origin header (judged already; None: no page), and the nonce it was challenged with.

    `user`: what context.Judge.proxied has said of the upgrade. `id`: of the connection.
    """

    address: Address
    origin: str | None
    challenge: str
    user: Principal | Unauthorized | None = None
    id: str = ""


async def judge(gateway: Gateway, params: Connect, source: Source) -> tuple[Admitted, Grant | None]:
    """Whether these parameters are let in, and the token that a device gets. Raises Refused, StorageUnavailable, Unavailable.

    Waits only for devices, and must not be cancelled then.
    """
    protocol = _negotiate(params)
    if params.role not in ("operator", "node"):
        raise refused("invalid role")
    role: Role = "node" if params.role == "node" else "operator"
    if not known_client(params.client.id):
        raise refused("invalid connect params: at /client/id: must be equal to one of the allowed values")
    asked = tuple(dict.fromkeys(scope for scope in params.scopes if scope in OPERATOR_SCOPES)) if role == "operator" else ()
    secrets = Secrets(gateway.authenticator, params, source.address, gateway.monotonic(), source.user)
    if secrets.shared in ("held", "over"):
        return _by_own_token(gateway, params, protocol, role, asked, secrets, source), None
    grant = device_id = None
    if params.device is None:
        scopes = _without_device(gateway, params, role, secrets, source).intersection(asked)
    else:
        scopes, device_id = frozenset(asked), params.device.id
        grant = await _with_device(gateway, params, params.device, role, asked, secrets, source)
        if grant is None:
            scopes = secrets.user_scopes(role) & scopes
    principal = Principal(source.user.id if isinstance(source.user, Principal) else "owner", scopes)
    way: Way = "secret" if secrets.shared == "right" else "proxy" if isinstance(source.user, Principal) else ""
    return Admitted(protocol, role, scopes, principal, params.client, device_id, CAPS.intersection(params.caps), way=way), grant


def _by_own_token(gateway: Gateway, params: Connect, protocol: int, role: Role, asked: tuple[str, ...], secrets: Secrets, source: Source) -> Admitted:
    """A client with the token of a person or program. A device must prove its key here too, but is not paired for that. Raises Refused."""
    if params.device is not None:
        prove(params, params.device, role, source.challenge, source.address.direct_local, gateway.now_ms())
    elif control_ui(params.client.id):
        raise refused(_NO_CONTROL_UI, "CONTROL_UI_DEVICE_IDENTITY_REQUIRED")
    held = secrets.held
    if held is None or role != "operator":
        secrets.refuse()
    principal = held.principal
    if principal.endpoints is not None and "ws" not in principal.endpoints:
        raise refused("unauthorized: this token is not for the WebSocket", "AUTH_ENDPOINT_NOT_ALLOWED")
    scopes = frozenset(scope for scope in asked if grants(principal.scopes, scope))
    caps, device_id = CAPS.intersection(params.caps), params.device.id if params.device is not None else None
    return Admitted(protocol, role, scopes, msgspec.structs.replace(principal, scopes=scopes), params.client, device_id, caps, held)


def known_client(client_id: str) -> bool:
    """Whether the id is one of a gateway client."""
    return client_id in CLIENT_IDS or (client_id.startswith(PREFIXES) and len(client_id) <= _MAX_CLIENT_ID and client_id.isprintable())


def _negotiate(params: Connect) -> int:
    low, high = params.min_protocol, params.max_protocol
    protocol = min(high, PROTOCOL_MAX)
    if protocol < PROTOCOL_MIN or low > protocol:
        raise refused(
            "protocol mismatch",
            "PROTOCOL_MISMATCH",
            close_code=1002,
            clientMinProtocol=low,
            clientMaxProtocol=high,
            expectedProtocol=PROTOCOL_MIN if high < PROTOCOL_MIN else PROTOCOL_MAX,
            minimumProbeProtocol=PROTOCOL_MIN,
        )
    return protocol


def _without_device(gateway: Gateway, params: Connect, role: Role, secrets: Secrets, source: Source) -> frozenset[str]:
    """The scopes that a client without a device may have: the secret lets it in, and where it sits makes the difference."""
    client, local = params.client, source.address.direct_local
    if control_ui(client.id):
        raise refused(_NO_CONTROL_UI, "CONTROL_UI_DEVICE_IDENTITY_REQUIRED")
    if secrets.shared == "proxied":
        return secrets.user_scopes(role)
    if not (secrets.shared == "right" or (secrets.shared == "open" and local)):
        if secrets.shared in ("open", "none") or not secrets.given:
            raise refused("device identity required", "DEVICE_IDENTITY_REQUIRED", code="NOT_PAIRED")
        secrets.refuse()
    secrets.let_in()
    program = local and source.origin is None and (client.id, client.mode) in LOCAL_PROGRAMS
    return OPERATOR_SCOPES if program and gateway.config.current.config.gateway.auth.local_scopes else frozenset()


async def _with_device(
    gateway: Gateway, params: Connect, device: Device, role: Role, scopes: tuple[str, ...], secrets: Secrets, source: Source
) -> Grant | None:
    """The token of a device that proves its key, and comes with the secret or with a token of its own; None for a proxy's user without one."""
    local = source.address.direct_local
    public_key = prove(params, device, role, source.challenge, local, gateway.now_ms())
    await gateway.devices.ready()
    grant = _by_token(gateway, device.id, role, scopes, secrets)
    if grant is None:
        if secrets.shared == "proxied":
            return None
        secrets.let_in()
    problem = gateway.devices.problem(device.id, role, scopes)
    if problem is not None:
        client = params.client
        names = (client.display_name, client.platform, client.id, client.mode)
        applicant = Applicant(device.id, public_key, role, scopes, *names, None if local else source.address.client)
        await _pair(gateway, applicant, problem, local, source)
    if grant is None:
        grant = await gateway.devices.issue(device.id, role, scopes)
    if grant is None:
        secrets.refuse_device_token()  # ended by somebody in this very moment
    return grant


def _by_token(gateway: Gateway, device_id: str, role: Role, scopes: tuple[str, ...], secrets: Secrets) -> Grant | None:
    """The device token that was sent. None: the client has the shared secret, or needs none. Raises Refused."""
    tried = list(secrets.device_tokens)
    welcome = secrets.shared in ("right", "open", "proxied")
    if not tried and not welcome:
        secrets.refuse()
    if tried and not welcome:
        secrets.check_device_lock()
    for text in tried:
        grant = gateway.devices.check_token(device_id, role, scopes, text)
        if grant is not None:
            secrets.count_device_token(True)
            return grant
    if not welcome:
        secrets.refuse_device_token()
    return None


async def _pair(gateway: Gateway, applicant: Applicant, problem: Reason, local: bool, source: Source) -> None:
    """On this machine a device is paired by asking; elsewhere, and for another role, somebody has to approve. Raises Refused."""
    if local and problem != "role-upgrade":
        label = applicant.display_name or f"{applicant.client_id}/{applicant.client_mode}"
        actor = Actor(f"device:{applicant.device_id}", "ws", label, source.address.client, source.id)
        await gateway.devices.pair(applicant, gateway.audit.begin(actor, "device.pair.local", applicant.device_id, reason=problem))
        return
    request = await gateway.devices.ask(applicant)
    raise refused("pairing required", "PAIRING_REQUIRED", code="NOT_PAIRED", requestId=request.request_id, reason=problem)


def hello(gateway: Gateway, admitted: Admitted, grant: Grant | None, connection_id: str, methods: Sequence[str]) -> dict[str, object]:
    """The payload of `hello-ok`. Paths of this machine are for administrators."""
    settings, now_ms, principal = gateway.config.current, gateway.now_ms(), admitted.principal
    directory = settings.directory
    default_id = default_agent(principal, directory.default_id, directory.agents)
    main = directory.main_session(default_id)
    snapshot: dict[str, object] = {
        "presence": gateway.presence.shown(now_ms, principal.space is None),
        "health": gateway.health_payload(),
        "stateVersion": {"presence": gateway.presence.version, "health": gateway.broadcaster.health_version},
        "uptimeMs": gateway.uptime_ms(),
        "sessionDefaults": {
            "defaultAgentId": default_id,
            "mainKey": directory.main_key,
            "mainSessionKey": str(own_key(principal, main, "mainSessionKey") if may_use(principal, default_id) else main),
            "scope": settings.config.session.scope,
        },
        "authMode": gateway.authenticator.mode,
    }
    if "operator.admin" in admitted.scopes:
        snapshot |= {"configPath": settings.config_path, "stateDir": settings.state_dir}
    auth: dict[str, object] = {"role": admitted.role, "scopes": sorted(admitted.scopes)}
    if grant is not None:
        auth = {"deviceToken": grant.token, **auth, "issuedAtMs": grant.issued_ms}
    return {
        "type": "hello-ok",
        "protocol": admitted.protocol,
        "server": {"version": gateway.version, "host": gateway.host, "connId": connection_id},
        "features": {"methods": methods, "events": EVENTS},
        "snapshot": snapshot,
        "auth": auth,
        "policy": {"maxPayload": MAX_PAYLOAD, "maxBufferedBytes": MAX_BUFFERED, "tickIntervalMs": TICK_MS},
    }
