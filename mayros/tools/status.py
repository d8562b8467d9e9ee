"""The tools session_status and agents_list: what an agent may know, and set, of its own session. Imports core and errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from mayros.core.models import Model
from mayros.core.ports import ToolSpec, Turn
from mayros.core.routing import Settings
from mayros.core.session_ports import SessionRow, Sessions
from mayros.core.spending import DOLLAR
from mayros.core.tool_ports import Tool, ToolContext, ToolResult
from mayros.errors import InvalidRequest, StorageUnavailable, ToolFailed

_SHOWN = 100


def tools(sessions: Sessions, current: Callable[[], Settings], now_ms: Callable[[], int]) -> Sequence[Tool]:
    """Both tools. `current` gives the configuration in force, `now_ms` the wall clock in epoch milliseconds."""
    return _SessionStatus(sessions, current, now_ms), _AgentsList(current)


class _SessionStatus:
    """`session_status`: a card about the session, after its model was set if that was asked."""

    read_only = False
    spec = ToolSpec(
        "session_status",
        "Show the state of this session: time, model, turns, tokens, cost. With `model`, first set the model that this session uses from the next "
        "run on: provider/model or an alias, or `default` for the agent's own.",
        {
            "type": "object",
            "properties": {
                "sessionKey": {"type": "string", "description": "Only this session, or `current`; may be left out."},
                "model": {"type": "string", "description": "provider/model, an alias, or `default`."},
            },
        },
    )

    def __init__(self, sessions: Sessions, current: Callable[[], Settings], now_ms: Callable[[], int]) -> None:
        self._sessions, self._current, self._now_ms = sessions, current, now_ms

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """See Tool."""
        turn, settings = context.turn, self._current()
        asked = arguments.get("sessionKey", "").strip()
        if asked and asked not in ("current", str(turn.session), turn.session.rest):
            raise ToolFailed("Only this session can be looked at. Leave sessionKey out.")
        wanted = arguments.get("model", "").strip()
        try:
            row = await self._set(turn, settings, wanted) if wanted else await self._sessions.get(str(turn.session))
        except (InvalidRequest, StorageUnavailable) as error:
            raise ToolFailed(error.message) from None
        return ToolResult("\n".join(self._card(turn, settings, row)))

    async def _set(self, turn: Turn, settings: Settings, wanted: str) -> SessionRow:
        if turn.stateless:
            raise ToolFailed("This session ends with its only request, so its model cannot be set. Leave `model` out.")
        ref = None if wanted.lower() == "default" else _model(settings, wanted).ref
        return await self._sessions.patch(turn.session, {"model": ref})

    def _card(self, turn: Turn, settings: Settings, row: SessionRow | None) -> list[str]:
        zone, named = _zone(turn.agent.timezone)
        now = datetime.fromtimestamp(self._now_ms() / 1000, zone)
        lines = [f"Session: {turn.session} (agent {turn.agent.id})", f"Time: {now:%A, %Y-%m-%d %H:%M} ({named})"]
        own = turn.agent.models[0] if turn.agent.models else None
        chosen = row.settings.model if row is not None else None
        model = settings.catalogue.find(chosen) if chosen else own
        if chosen:
            lines.append(f"Model: {chosen}, set for this session; the agent's own is {own.ref if own else 'none'}")
        else:
            lines.append(f"Model: {own.ref if own else 'none'}")
        if row is None or not row.turns:
            return [*lines, "This is the session's first turn."]
        lines.append(f"Turns: {row.turns}")
        cached = f" ({row.cache_read_tokens:,} from the cache)" if row.cache_read_tokens else ""
        lines.append(f"Tokens: {row.input_tokens:,} in{cached}, {row.output_tokens:,} out")
        if row.cost_nano:
            lines.append(f"Cost: ${row.cost_nano / DOLLAR:.4f}")
        last = row.last_usage
        if last is not None and model is not None:
            used = last.input + last.cache_read + last.cache_write + last.output
            window = min(model.context_window, turn.agent.context_tokens or model.context_window)
            lines.append(f"Context: {used:,} of {window:,} tokens ({100 * used // window} %)")
        if row.settings.thinking_level:
            lines.append(f"Thinking: {row.settings.thinking_level}")
        return lines


def _model(settings: Settings, wanted: str) -> Model:
    """The model of an alias or of `provider/model`, among those that the configuration lists. Raises ToolFailed naming them."""
    listed = settings.config.agents.defaults.models
    aliases = {entry.alias.lower(): ref for ref, entry in listed.items() if entry.alias}
    # A person may take any model of a known provider; a model may not, since somebody pays for it.
    known = [*listed] or list(settings.catalogue.models)
    ref = aliases.get(wanted.lower(), wanted)
    model = settings.catalogue.find(ref) if ref in known else None
    if model is None:
        refs = ", ".join([*aliases, *known][:20])
        raise ToolFailed(f"There is no model {wanted[:_SHOWN]!r}. Take one of: {refs}; or `default`.")
    return model


def _zone(name: str | None) -> tuple[ZoneInfo | Any, str]:
    """The time zone of the configuration, where the system knows it, and its name; else UTC."""
    try:
        return (ZoneInfo(name), name) if name else (UTC, "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC, "UTC"


class _AgentsList:
    """`agents_list`: which agents this one may start sessions for."""

    read_only = True
    spec = ToolSpec("agents_list", "List the agents that a session may be started for.", {"type": "object", "properties": {}})

    def __init__(self, current: Callable[[], Settings]) -> None:
        self._current = current

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """See Tool. Only itself: the configuration has no list of others (`subagents.allowAgents`) yet."""
        agent = context.turn.agent
        shown = {"id": agent.id, "configured": agent.id in self._current().directory.agents, **({"name": agent.name} if agent.name else {})}
        return ToolResult(msgspec.json.encode({"requester": agent.id, "allowAny": False, "agents": [shown]}).decode())
