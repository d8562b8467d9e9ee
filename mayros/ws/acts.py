"""Which methods are audited, and what the trail tells of a call: who called, and of the parameters what names things, never what fills them.

Loaded with the first such call. Imports core, wire and ws.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from mayros.core.audit import Act, Audit
from mayros.core.audit_ports import Actor
from mayros.core.config_ports import InvalidConfig
from mayros.wire.frames import Request
from mayros.ws.credentials import Refused

if TYPE_CHECKING:
    from mayros.ws.session import Session


class Audited(NamedTuple):
    """`target`: the parameter that names what it is done to. `told`: those that are told as they are. `names`: that the others were sent is told."""

    target: str | None = None
    told: tuple[str, ...] = ()
    names: bool = False


#: Those of METHODS that are marked there. What else is known of a call, its handler tells.
AUDITED: Mapping[str, Audited] = MappingProxyType(
    {
        "sessions.patch": Audited("key", ("execHost", "execSecurity", "execAsk", "elevatedLevel"), True),
        "sessions.reset": Audited("key"),
        "sessions.delete": Audited("key"),
        "agents.create": Audited("name", ("workspace",)),
        "agents.update": Audited("agentId", ("workspace", "model"), True),
        "agents.delete": Audited("agentId", ("deleteFiles",)),
        "agents.files.set": Audited("agentId", ("name",)),
        "config.set": Audited(),
        "config.patch": Audited(),
        "config.apply": Audited(),
        "config.change": Audited(),
        "device.pair.approve": Audited("requestId", ("requestId",)),
        "device.pair.reject": Audited("requestId", ("requestId",)),
        "device.pair.remove": Audited("deviceId"),
        "device.token.rotate": Audited("deviceId", ("role", "scopes")),
        "device.token.revoke": Audited("deviceId", ("role",)),
        "exec.approval.resolve": Audited("id", ("decision",)),
        "exec.approvals.set": Audited(),
        "tokens.create": Audited("name", ("scopes", "agents", "endpoints", "rpm", "tokensPerDay", "expiresAtMs")),
        "tokens.revoke": Audited("name"),
        "tokens.rotate": Audited("name", ("graceMs", "expiresAtMs")),
    }
)
#: Of longer parameters the names are not told, of longer values only the size.
_MAX_PARAMS, _MAX_VALUE = 256 << 10, 8 << 10


def actor_of(session: Session) -> Actor:
    """Who the client is. A device is named where it has the secret's rights; a token or user is named before it."""
    admitted, principal = session.admitted, session.principal.id
    label = who = None
    if admitted is not None:
        client = admitted.client
        label = client.display_name or f"{client.id}/{client.mode}"
        who = f"device:{admitted.device_id}" if admitted.device_id is not None and principal == "owner" else None
    return Actor(who or principal, "ws", label, session.address.client, session.id)


def begun(session: Session, request: Request) -> Act:
    """What the trail will tell of a call."""
    audited = AUDITED[request.method]
    found = _named(audited, request.params)
    target = _value(found[0]) if found[0] is not None and len(found[0]) <= _MAX_VALUE else None
    details = dict(zip(audited.told, map(_value, found[1:]), strict=True))
    act = session.gateway.audit.begin(actor_of(session), request.method, target if isinstance(target, str) else None, request.id, **details)
    if audited.names:
        act.tell(sent=_sent(audited, request.params))
    return act


def over(audit: Audit, act: Act, error: BaseException | None) -> None:
    """A call is over, with this error or none."""
    if isinstance(error, InvalidConfig | Refused) and "error" not in act.details:
        act.tell(error=error.error.message if isinstance(error, Refused) else invalid(error))
    audit.settle(act, error, "refused" if isinstance(error, Refused) else None)


def invalid(error: InvalidConfig) -> str:
    """Where a configuration is not valid; its message may say what stands there."""
    return f"invalid config at {error.issue.path or 'the file as a whole'}"


@cache
def _decoder(audited: Audited) -> msgspec.json.Decoder[msgspec.Struct]:
    """Of the parameters that are named or told; whatever else is sent, it does not hide them."""
    names = [name for name in (audited.target, *audited.told) if name is not None]
    return msgspec.json.Decoder(msgspec.defstruct("Told", [(name, msgspec.Raw, msgspec.Raw()) for name in dict.fromkeys(names)]))


def _named(audited: Audited, raw: msgspec.Raw) -> list[msgspec.Raw | None]:
    """The target and what is told, as far as it was sent. What is no object the handler refuses, and says why."""
    names = (audited.target or "", *audited.told)
    try:
        params = _decoder(audited).decode(raw) if audited != Audited() else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        params = None
    return [getattr(params, name, msgspec.Raw()) or None for name in names]


def _sent(audited: Audited, raw: msgspec.Raw) -> list[str] | str:
    """The names of the other parameters."""
    if len(raw) > _MAX_PARAMS:
        return f"({len(raw)} bytes)"
    try:
        params: dict[str, msgspec.Raw] = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []
    return sorted(name for name in params if name not in (audited.target, *audited.told))


def _value(part: msgspec.Raw | None) -> object:
    if part is None:
        return None
    if len(part) > _MAX_VALUE:
        return f"({len(part)} bytes)"
    try:
        return msgspec.json.decode(part)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
