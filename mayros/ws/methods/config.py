"""`config.*`: the configuration file without its secrets, what may be in it, and changes of it. Imports mayros.config, core and wire."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from mayros.config.describe import json_schema
from mayros.config.revise import assign, remove
from mayros.core.audit import Act
from mayros.core.config_ports import Applied, Change, InvalidConfig, Merge, Whole
from mayros.core.limits import retry_after
from mayros.errors import InvalidRequest
from mayros.wire.frames import ErrorShape, Request, Text, parse_params
from mayros.ws.acts import invalid
from mayros.ws.config_writes import MOST, WINDOW_SECONDS
from mayros.ws.credentials import Refused

if TYPE_CHECKING:
    from mayros.ws.session import Session

#: From the answer to the restart, where none is said.
RESTART_MS = 2_000
_RELOAD = "re-run config.get and retry"
Path = Annotated[str, msgspec.Meta(min_length=1, max_length=1_024)]
Raw = Annotated[str, msgspec.Meta(min_length=1, max_length=5 << 20)]


class ConfigGetParams(msgspec.Struct, frozen=True):
    """None."""


class ConfigSchemaParams(msgspec.Struct, frozen=True):
    """None."""


class ConfigSetParams(msgspec.Struct, frozen=True, rename="camel"):
    """`raw`: the whole file, JSON5. `base_hash`: that of the file as the caller has read it; needed where there is a file."""

    raw: Raw
    base_hash: Text | None = None


class ConfigPatchParams(msgspec.Struct, frozen=True, rename="camel"):
    """`raw`: for config.patch an object to be laid over the file, for config.apply the whole file. `session_key` and `note` are not used here."""

    raw: Raw
    base_hash: Text | None = None
    session_key: str | None = None
    note: str | None = None
    restart_delay_ms: Annotated[int, msgspec.Meta(ge=0, le=600_000)] | None = None


class ConfigChangeParams(msgspec.Struct, frozen=True, rename="camel"):
    """Values by their key paths, and paths that shall be gone."""

    set: Annotated[dict[Path, Any], msgspec.Meta(max_length=256)] = {}
    unset: Annotated[tuple[Path, ...], msgspec.Meta(max_length=256)] = ()
    base_hash: Text | None = None


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


def config_set(session: Session, request: Request) -> None:
    """Replace the file. Answers what is in force now and what waits, see `_answer`."""
    params = parse_params(ConfigSetParams, request.params, "config.set")
    session.spawn(request.id, _write(session, request.id, session.acting, Whole(params.raw), params.base_hash))


def config_patch(session: Session, request: Request) -> None:
    """Lay an object over the file."""
    _count(session, "config.patch")
    params = parse_params(ConfigPatchParams, request.params, "config.patch")
    session.spawn(request.id, _write(session, request.id, session.acting, Merge(params.raw), params.base_hash))


def config_apply(session: Session, request: Request) -> None:
    """Replace the file, and restart where something of it waits for that."""
    _count(session, "config.apply")
    params = parse_params(ConfigPatchParams, request.params, "config.apply")
    delay_ms = RESTART_MS if params.restart_delay_ms is None else params.restart_delay_ms
    session.spawn(request.id, _write(session, request.id, session.acting, Whole(params.raw), params.base_hash, delay_ms))


def config_change(session: Session, request: Request) -> None:
    """Change single values; `base_hash` may be left out, since what else is in the file stays."""
    params = parse_params(ConfigChangeParams, request.params, "config.change")
    if not params.set and not params.unset:
        raise InvalidRequest("invalid config.change params: neither set nor unset names a path")
    session.acting.tell(paths=[*params.set, *params.unset])

    def change(tree: dict[str, Any]) -> None:
        for path in params.unset:
            if not remove(tree, path):
                raise InvalidRequest(f"{path} is not set in the file")
        for path, value in params.set.items():
            assign(tree, path, value)

    session.spawn(request.id, _write(session, request.id, session.acting, change, params.base_hash, needs_hash=False))


def _count(session: Session, method: str) -> None:
    """Raises Refused for a client that does this too often; a call that fails later counts too."""
    admitted, gateway = session.admitted, session.gateway
    client = (admitted.device_id if admitted is not None else None) or session.address.client or "local"
    left = gateway.config_writes.take(client, gateway.monotonic())
    if left > 0:
        seconds = retry_after(left)
        details = {"method": method, "limit": f"{MOST} per {WINDOW_SECONDS:.0f}s"}
        text = f"rate limit exceeded for {method}; retry after {seconds}s"
        raise Refused(ErrorShape("UNAVAILABLE", text, details, retryable=True, retry_after_ms=seconds * 1000))


async def _write(
    session: Session, request_id: str, act: Act, change: Change, base_hash: str | None, restart_ms: int | None = None, *, needs_hash: bool = True
) -> None:
    config = session.gateway.config
    if base_hash is None and needs_hash and (await config.source()).text is not None:
        raise InvalidRequest(f"config base hash required; {_RELOAD}")
    try:
        applied = await config.write(change, base_hash)
    except InvalidConfig as error:
        act.tell(error=invalid(error))
        raise Refused(ErrorShape("INVALID_REQUEST", error.message, {"issues": [msgspec.structs.asdict(error.issue)]})) from None
    act.tell(paths=applied.changed)
    session.reply(request_id, await _answer(session, applied, restart_ms, needs_hash))


async def _answer(session: Session, applied: Applied, restart_ms: int | None, whole: bool) -> dict[str, object]:
    """`{ok, path, hash, hot, restartRequired, config?, restart?}`: the key paths in force since this change, and all that wait for a restart.

    `config` is the whole, for those who have sent more than single values; `restart` where the caller wants one: `{ok, delayMs, reason}`.
    """
    gateway = session.gateway
    answer: dict[str, object] = {
        "ok": True,
        "path": gateway.config.current.config_path,
        "hash": applied.hash,
        "hot": applied.hot,
        "restartRequired": applied.restart,
    }
    if whole:
        answer["config"] = (await gateway.config.view()).config
    if restart_ms is not None:
        if not applied.restart:
            answer["restart"] = {"ok": False, "delayMs": 0, "reason": "nothing waits for a restart"}
        elif gateway.restart(f"config.apply: {', '.join(applied.restart)}", restart_ms / 1000):
            answer["restart"] = {"ok": True, "delayMs": restart_ms, "reason": "the service manager starts the gateway anew"}
        else:
            answer["restart"] = {"ok": False, "delayMs": 0, "reason": "no service manager would start the gateway again: restart it by hand"}
    return answer
