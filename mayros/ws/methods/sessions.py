"""`sessions.list`, `sessions.resolve`, `sessions.patch`, `sessions.reset` and `sessions.delete`. Imports mayros.core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from mayros.core.claims import shielded
from mayros.core.keys import SessionKey, check_text
from mayros.core.reach import default_agent
from mayros.core.routing import Settings
from mayros.core.session_ports import SessionQuery, SessionRow
from mayros.errors import InvalidRequest
from mayros.wire.frames import Request, Text, parse_params
from mayros.ws.methods.commands import renew
from mayros.ws.methods.quiet import quiet
from mayros.ws.methods.rows import chosen, entry, hidden, listed
from mayros.ws.methods.where import known_agent, level, model_of, own_session, session_key, thinking_level

if TYPE_CHECKING:
    from mayros.ws.context import Gateway
    from mayros.ws.session import Session

DEFAULT_LIMIT, MAX_LIMIT = 200, 1000
MAX_LABEL = 64
_MAX_TEXT = 512
_MINUTE_MS, _LONGEST_MINUTES = 60_000, 5_256_000

Label = Annotated[str, msgspec.Meta(max_length=MAX_LABEL)]
Short = Annotated[str, msgspec.Meta(max_length=_MAX_TEXT)]
#: A setting: null clears it, and what is not sent stays as it is.
Setting = Short | UnsetType | None


class ListParams(msgspec.Struct, frozen=True, rename="camel"):
    """There are no `global` and `unknown` sessions here, so what includes them has no effect."""

    limit: Annotated[int, msgspec.Meta(ge=1)] = DEFAULT_LIMIT
    active_minutes: Annotated[int, msgspec.Meta(ge=1)] | None = None
    include_global: bool | None = None
    include_unknown: bool | None = None
    include_derived_titles: bool = False
    include_last_message: bool = False
    label: Label | None = None
    spawned_by: Short | None = None
    agent_id: Short | None = None
    search: Short | None = None


class ResolveParams(msgspec.Struct, frozen=True, rename="camel"):
    """Exactly one of `key`, `session_id` and `label`."""

    key: Short | None = None
    session_id: Short | None = None
    label: Label | None = None
    agent_id: Short | None = None
    spawned_by: Short | None = None
    include_global: bool | None = None
    include_unknown: bool | None = None


class PatchParams(msgspec.Struct, frozen=True, rename="camel"):
    """The settings of a session."""

    key: Text
    label: Label | UnsetType | None = UNSET
    thinking_level: Setting = UNSET
    verbose_level: Setting = UNSET
    reasoning_level: Setting = UNSET
    response_usage: Setting = UNSET
    elevated_level: Setting = UNSET
    exec_host: Setting = UNSET
    exec_security: Setting = UNSET
    exec_ask: Setting = UNSET
    exec_node: Setting = UNSET
    model: Setting = UNSET
    spawned_by: Setting = UNSET
    spawn_depth: Annotated[int, msgspec.Meta(ge=0, le=100)] | UnsetType | None = UNSET
    send_policy: Setting = UNSET
    group_activation: Setting = UNSET


class ResetParams(msgspec.Struct, frozen=True, rename="camel"):
    """`reason` has no effect."""

    key: Text
    reason: Literal["new", "reset"] | None = None


class DeleteParams(msgspec.Struct, frozen=True, rename="camel"):
    """`emit_lifecycle_hooks` has no effect."""

    key: Text
    delete_transcript: bool = True
    emit_lifecycle_hooks: bool | None = None


#: Settings that are one of some words.
_WORDS = {
    "verbose_level": ("on", "full", "off"),
    "reasoning_level": ("on", "off", "stream"),
    "response_usage": ("off", "tokens", "full", "on"),
    "elevated_level": ("on", "off", "ask", "full"),
    "exec_host": ("sandbox", "gateway", "node"),
    "exec_security": ("deny", "allowlist", "full"),
    "exec_ask": ("off", "on-miss", "always"),
    "send_policy": ("allow", "deny"),
    "group_activation": ("mention", "always"),
}
_NAMES = {field.name: field.encode_name for field in msgspec.structs.fields(PatchParams)}


def sessions_list(session: Session, request: Request) -> None:
    """Newest first, 200 where nothing is said and never more than 1,000."""
    params = parse_params(ListParams, request.params, "sessions.list")
    session.spawn(request.id, _list(session, request.id, params))


async def _list(session: Session, request_id: str, params: ListParams) -> None:
    gateway = session.gateway
    settings, now = gateway.config.current, gateway.now_ms()
    since = None if params.active_minutes is None else now - min(params.active_minutes, _LONGEST_MINUTES) * _MINUTE_MS
    query = SessionQuery(
        limit=min(params.limit, MAX_LIMIT),
        active_since_ms=since,
        agent_id=_agent_id(params.agent_id),
        label=_given(params.label),
        spawned_by=_given(params.spawned_by),
        search=_given(params.search),
        titles=params.include_derived_titles,
        previews=params.include_last_message,
        space=session.principal.space,
    )
    rows = [listed(settings, row) for row in await gateway.sessions.list(query) if not hidden(row.key)]
    default = chosen(settings, default_agent(session.principal, settings.directory.default_id, settings.directory.agents))
    defaults = {"modelProvider": default.provider, "model": default.model, "contextTokens": default.context_tokens}
    session.reply(request_id, {"ts": now, "path": "(multiple)", "count": len(rows), "defaults": defaults, "sessions": rows})


def _given(text: str | None) -> str | None:
    """Blank is not given."""
    return (text.strip() or None) if text is not None else None


def _agent_id(text: str | None) -> str | None:
    given = _given(text)
    return given.lower() if given is not None else None


def sessions_resolve(session: Session, request: Request) -> None:
    """The key of a session that is known by another name."""
    params = parse_params(ResolveParams, request.params, "sessions.resolve")
    given = [text for text in (params.key, params.session_id, params.label) if _given(text) is not None]
    if not given:
        raise InvalidRequest("Either key, sessionId, or label is required")
    if len(given) > 1:
        raise InvalidRequest("Provide either key, sessionId, or label (not multiple)")
    session.spawn(request.id, _resolve(session, request.id, params))


async def _resolve(session: Session, request_id: str, params: ResolveParams) -> None:
    gateway = session.gateway
    text, rows = _given(params.key), []
    if text is not None:
        key = own_session(session, text, "sessions.resolve", "key")
        row = await gateway.sessions.get(str(key))
        agent_id, spawned_by = _agent_id(params.agent_id), _given(params.spawned_by)
        if row is not None and agent_id in (None, row.agent_id) and spawned_by in (None, row.settings.spawned_by):
            rows.append(row)
    else:
        text = _given(params.session_id) or _given(params.label)
        query = SessionQuery(
            limit=2,
            session_id=_given(params.session_id),
            label=_given(params.label),
            agent_id=_agent_id(params.agent_id),
            spawned_by=_given(params.spawned_by),
            space=session.principal.space,
        )
        rows.extend(await gateway.sessions.list(query))
    if not rows:
        raise InvalidRequest(f"No session found: {text}")
    if len(rows) > 1:
        raise InvalidRequest(f"Multiple sessions found for {text}: {', '.join(row.key for row in rows)}")
    session.reply(request_id, {"ok": True, "key": rows[0].key})


def sessions_patch(session: Session, request: Request) -> None:
    """Makes the session where it is missing."""
    params = parse_params(PatchParams, request.params, "sessions.patch")
    _not_for_pages(session, "patch")
    settings = session.gateway.config.current
    key = session_key(settings.directory, params.key, "sessions.patch", "key")
    session.spawn(request.id, _patch(session, request.id, key, _changes(settings, params)))


def _changes(settings: Settings, params: PatchParams) -> dict[str, object]:
    """The settings that are sent, in the form in which they are kept. Raises InvalidRequest."""
    changes: dict[str, object] = {}
    for name, wire_name in _NAMES.items():
        value = getattr(params, name)
        if name != "key" and value is not UNSET:
            changes[name] = _kept(settings, name, wire_name, value) if isinstance(value, str) else value
    return changes


def _kept(settings: Settings, name: str, wire_name: str, value: str) -> str:
    if name in _WORDS:
        word = level(wire_name, value, _WORDS[name])
        return "tokens" if (name, word) == ("response_usage", "on") else word
    if name == "thinking_level":
        return thinking_level(wire_name, value)
    if name == "model":
        return model_of(settings, value).ref
    text = check_text(value.strip(), wire_name)
    if not text:
        raise InvalidRequest(f"invalid {wire_name}: empty (null clears it)")
    return text


async def _patch(session: Session, request_id: str, key: SessionKey, changes: dict[str, object]) -> None:
    gateway = session.gateway
    await _must_be_known(gateway, key, "sessions.patch")
    row = await gateway.sessions.patch(key, changes)
    settings = gateway.config.current
    model = chosen(settings, row.agent_id, row)
    resolved = {"modelProvider": model.provider, "model": model.model}
    session.reply(request_id, {"ok": True, "path": settings.state_dir, "key": row.key, "entry": entry(settings, row), "resolved": resolved})


async def _must_be_known(gateway: Gateway, key: SessionKey, method: str) -> None:
    """A session is not made for an agent that there is not; one that an earlier agent has left can be changed."""
    directory = gateway.config.current.directory
    if key.agent_id not in directory.agents and await gateway.sessions.get(str(key)) is None:
        known_agent(directory, key.agent_id, method)


def sessions_reset(session: Session, request: Request) -> None:
    """A new session id; what runs is aborted."""
    params = parse_params(ResetParams, request.params, "sessions.reset")
    key = session_key(session.gateway.config.current.directory, params.key, "sessions.reset", "key")
    session.spawn(request.id, _reset(session, request.id, key))


async def _reset(session: Session, request_id: str, key: SessionKey) -> None:
    gateway = session.gateway
    await _must_be_known(gateway, key, "sessions.reset")
    row: SessionRow = await shielded(renew(gateway, key))
    session.reply(request_id, {"ok": True, "key": row.key, "entry": entry(gateway.config.current, row)})


def sessions_delete(session: Session, request: Request) -> None:
    """With its transcript: nothing is archived."""
    params = parse_params(DeleteParams, request.params, "sessions.delete")
    _not_for_pages(session, "delete")
    directory = session.gateway.config.current.directory
    key = session_key(directory, params.key, "sessions.delete", "key")
    if key == directory.main_session(directory.default_id):
        raise InvalidRequest(f"Cannot delete the main session ({key}).")
    if not params.delete_transcript:
        raise InvalidRequest("invalid sessions.delete params: deleteTranscript: a transcript cannot be kept without its session")
    session.spawn(request.id, _delete(session, request.id, key))


async def _delete(session: Session, request_id: str, key: SessionKey) -> None:
    deleted = await shielded(_deleted(session.gateway, key))
    session.reply(request_id, {"ok": True, "key": str(key), "deleted": deleted, "archived": []})


async def _deleted(gateway: Gateway, key: SessionKey) -> bool:
    async with quiet(gateway, key, "The session was deleted."):
        return await gateway.sessions.delete(key)


def _not_for_pages(session: Session, action: str) -> None:
    """Chat pages change a session by what they send. The control page is for changing things."""
    client = session.admitted.client if session.admitted is not None else None
    if client is None or client.id.removeprefix("mayros-").removeprefix("openclaw-") == "control-ui":
        return
    if client.mode == "webchat" or client.id == "webchat-ui":
        raise InvalidRequest(f"webchat clients cannot {action} sessions; use chat.send for session-scoped updates")
