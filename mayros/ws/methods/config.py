"""`config.get` and `config.schema`: the configuration file without its secrets, and what may be in it. Imports mayros.config, core and wire."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from mayros.config.describe import json_schema
from mayros.wire.frames import Request, parse_params

if TYPE_CHECKING:
    from mayros.ws.session import Session


class ConfigGetParams(msgspec.Struct, frozen=True):
    """None."""


class ConfigSchemaParams(msgspec.Struct, frozen=True):
    """None."""


def config_get(session: Session, request: Request) -> None:
    """What ports.ConfigView says, under its own names; `legacyIssues` is empty."""
    parse_params(ConfigGetParams, request.params, "config.get")
    session.spawn(request.id, _get(session, request.id))


async def _get(session: Session, request_id: str) -> None:
    view = await session.gateway.config.view()
    session.reply(request_id, {**msgspec.structs.asdict(view), "legacyIssues": []})


def config_schema(session: Session, request: Request) -> None:
    """`{schema, uiHints, version, generatedAt}`: JSON Schema, and when this process began as ISO 8601 in UTC."""
    parse_params(ConfigSchemaParams, request.params, "config.schema")
    gateway = session.gateway
    made = datetime.fromtimestamp(gateway.started_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    session.reply(request.id, {"schema": _schema(), "uiHints": {}, "version": gateway.version, "generatedAt": made})


@cache
def _schema() -> dict[str, Any]:
    return json_schema()
