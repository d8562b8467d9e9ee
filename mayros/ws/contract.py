"""The protocol for programs: JSON Schema of frames and of the methods' parameters, from the types that check them. Imports config and wire.

`python -m mayros.ws.contract FILE` writes it (`make docs`); a test compares docs/protocol.schema.json with what this gives.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from mayros.config.describe import DIALECT, schema_of
from mayros.wire.frames import MAX_PAYLOAD, PROTOCOL_MAX, PROTOCOL_MIN, Connect, Count, ErrorShape, Request
from mayros.ws.broadcast import EVENTS
from mayros.ws.methods import (
    agent,
    agents,
    approvals,
    audit,
    chat,
    config,
    devices,
    files,
    history,
    logs,
    models,
    presence,
    sessions,
    status,
    tokens,
    tools,
    usage,
    wait,
)
from mayros.ws.methods.table import METHODS


class Response(msgspec.Struct, frozen=True):
    """What answers a request, under its id. `agent` is answered twice; a run that failed has `payload` and `error`."""

    type: Literal["res"]
    id: str | float | None
    ok: bool
    payload: msgspec.Raw = msgspec.Raw(b"null")
    error: ErrorShape | None = None


class StateVersion(msgspec.Struct, frozen=True):
    """Grows with each change of what `presence` and `health` tell."""

    presence: Count
    health: Count


class EventFrame(msgspec.Struct, frozen=True, rename="camel"):
    """What the gateway says by itself. `seq`: of the whole gateway on protocol 3, of the connection on protocol 4."""

    type: Literal["event"]
    event: Literal[EVENTS]  # type: ignore[valid-type]
    payload: msgspec.Raw = msgspec.Raw(b"null")
    seq: Annotated[int, msgspec.Meta(ge=1)] | None = None
    state_version: StateVersion | None = None


class Anything(msgspec.Struct, frozen=True):
    """Not looked at."""


#: What each method's parameters are checked against. A test holds this to what the methods do.
PARAMS: Mapping[str, type[msgspec.Struct]] = {
    "health": Anything,
    "status": status.StatusParams,
    "agent": agent.AgentParams,
    "agent.wait": wait.WaitParams,
    "agent.identity.get": wait.IdentityParams,
    "chat.send": chat.SendParams,
    "chat.history": history.HistoryParams,
    "chat.abort": chat.AbortParams,
    "chat.inject": chat.InjectParams,
    "sessions.list": sessions.ListParams,
    "sessions.preview": history.PreviewParams,
    "sessions.resolve": sessions.ResolveParams,
    "sessions.patch": sessions.PatchParams,
    "sessions.reset": sessions.ResetParams,
    "sessions.delete": sessions.DeleteParams,
    "sessions.usage": usage.SessionsUsageParams,
    "usage.status": usage.UsageStatusParams,
    "usage.cost": usage.UsageCostParams,
    "logs.tail": logs.TailParams,
    "models.list": models.ModelsListParams,
    "models.status": models.ModelsStatusParams,
    "tools.catalog": tools.CatalogParams,
    "agents.list": agents.AgentsListParams,
    "agents.create": agents.AgentsCreateParams,
    "agents.update": agents.AgentsUpdateParams,
    "agents.delete": agents.AgentsDeleteParams,
    "agents.files.list": files.AgentsFilesListParams,
    "agents.files.get": files.AgentsFilesGetParams,
    "agents.files.set": files.AgentsFilesSetParams,
    "config.get": config.ConfigGetParams,
    "config.schema": config.ConfigSchemaParams,
    "config.set": config.ConfigSetParams,
    "config.patch": config.ConfigPatchParams,
    "config.apply": config.ConfigPatchParams,
    "config.change": config.ConfigChangeParams,
    "device.pair.list": devices.ListParams,
    "device.pair.approve": devices.RequestParams,
    "device.pair.reject": devices.RequestParams,
    "device.pair.remove": devices.DeviceParams,
    "device.token.rotate": devices.RotateParams,
    "device.token.revoke": devices.TokenParams,
    "exec.approval.request": approvals.RequestParams,
    "exec.approval.waitDecision": approvals.WaitParams,
    "exec.approval.resolve": approvals.ResolveParams,
    "exec.approval.list": approvals.NoParams,
    "exec.approvals.get": approvals.NoParams,
    "exec.approvals.set": approvals.SetParams,
    "tokens.create": tokens.CreateParams,
    "tokens.list": tokens.ListParams,
    "tokens.revoke": tokens.RevokeParams,
    "tokens.rotate": tokens.RotateParams,
    "audit.list": audit.AuditListParams,
    "system-presence": presence.NoParams,
    "last-heartbeat": presence.NoParams,
}


def contract() -> dict[str, Any]:
    """The document: `frames`, `connect` (the parameters of that method), `methods` by name, `events`."""
    return {
        "$schema": DIALECT,
        "title": "Gateway protocol",
        "description": "Made by `make docs` from the types that the gateway checks messages with; docs/protocol.md says what they mean.",
        "protocol": {"min": PROTOCOL_MIN, "max": PROTOCOL_MAX, "maxPayload": MAX_PAYLOAD},
        "frames": {"request": _schema(Request), "response": _schema(Response), "event": _schema(EventFrame)},
        "connect": _schema(Connect),
        "methods": {
            name: {"scope": method.scope, "params": _schema(PARAMS[name], strict=PARAMS[name] is not Anything)} for name, method in METHODS.items()
        },
        "events": list(EVENTS),
    }


def _schema(kind: type[msgspec.Struct], *, strict: bool = False) -> dict[str, Any]:
    schema = schema_of(kind)
    del schema["title"]
    return {**schema, "additionalProperties": False} if strict else schema


def text() -> str:
    """The document as it is written to its file."""
    return json.dumps(contract(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
