"""`status`: the sessions there are and how full their contexts are, and how the gateway as a whole is. Imports mayros.core."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from mayros.core.config_ports import ConfigState
from mayros.core.reach import default_agent, may_use
from mayros.core.session_ports import SessionQuery
from mayros.wire.frames import Request, parse_params
from mayros.ws.methods.rows import chosen, hidden, told

if TYPE_CHECKING:
    from mayros.ws.session import Session

RECENT = 10
#: The newest sessions, of which each agent's newest are shown.
_LOOKED_AT = 200
#: As far as the sessions of a narrowed token are counted.
MAX_COUNTED = 1000


class StatusParams(msgspec.Struct, frozen=True):
    """None."""


def status(session: Session, request: Request) -> None:
    """Administrators see sessions, models and paths, others how many there are."""
    parse_params(StatusParams, request.params, "status")
    session.spawn(request.id, _status(session, request.id))


async def _status(session: Session, request_id: str) -> None:
    gateway = session.gateway
    settings, admin = gateway.config.current, session.may("operator.admin")
    directory = settings.directory
    principal = session.principal
    if principal.space is None:
        count, agent_ids = await gateway.sessions.count(), list(directory.agents)
        counts = _counts(gateway.health_payload())
    else:
        own = await gateway.sessions.list(SessionQuery(limit=MAX_COUNTED, space=principal.space))
        count, agent_ids = len(own), [agent_id for agent_id in directory.agents if may_use(principal, agent_id)]
        counts = {agent_id: sum(1 for row in own if row.agent_id == agent_id) for agent_id in agent_ids}
    newest = await gateway.sessions.list(SessionQuery(limit=_LOOKED_AT)) if admin else ()
    now = gateway.now_ms()
    rows = [told(settings, row, now) for row in newest if not hidden(row.key)]
    default_id = default_agent(principal, directory.default_id, directory.agents)
    default = chosen(settings, default_id)
    by_agent = [
        {
            "agentId": agent_id,
            "path": settings.state_dir if admin else "[redacted]",
            "count": counts.get(agent_id, 0),
            "recent": [row for row in rows if row["agentId"] == agent_id][:RECENT],
        }
        for agent_id in agent_ids
    ]
    sessions = {
        "paths": [settings.state_dir] if admin else [],
        "count": count,
        "defaults": {"model": default.model if admin else None, "contextTokens": default.context_tokens if admin else None},
        "recent": rows[:RECENT],
        "byAgent": by_agent,
    }
    heartbeat = {
        "defaultAgentId": default_id,
        "agents": [{"agentId": agent_id, "enabled": False, "every": "0m", "everyMs": None} for agent_id in agent_ids],
    }
    answer: dict[str, object] = {"heartbeat": heartbeat, "channelSummary": [], "queuedSystemEvents": [], "sessions": sessions}
    if principal.space is None:
        answer["gateway"] = gateway.overview(admin)
    if admin:
        answer["config"] = _config(gateway.config.state)
    session.reply(request_id, answer)


def _config(state: ConfigState) -> dict[str, object]:
    """How the last reading of the configuration went."""
    shown: dict[str, object] = {"loadedAt": state.loaded_at_ms, "restartRequired": state.restart}
    if state.problem is not None:
        shown |= {"error": state.problem, "errorAt": state.problem_at_ms}
    return shown


def _counts(health: dict[str, object]) -> dict[str, int]:
    """Sessions of each agent, as they were counted for `health` (each minute)."""
    found: dict[str, int] = {}
    agents = health["agents"]
    for agent in agents if isinstance(agents, list) else ():
        found[agent["agentId"]] = agent["sessions"]["count"]
    return found
