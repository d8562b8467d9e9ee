"""`health`: the gateway is there, and which agents it has. Imports mayros.core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mayros.core.routing import Agent, Settings
from mayros.wire.frames import Request

if TYPE_CHECKING:
    from mayros.ws.session import Session


def health(session: Session, request: Request) -> None:
    """Its parameters are not looked at."""
    session.reply(request.id, session.gateway.health_answer())


def health_payload(settings: Settings, known: Mapping[str, object], now_ms: int) -> dict[str, object]:
    """The answer. There are no channels and no heartbeats; sessions are counted, not named: every client sees this."""
    directory = settings.directory
    return {
        "ok": True,
        "ts": now_ms,
        "durationMs": 0,
        "channels": {},
        "channelOrder": [],
        "channelLabels": {},
        "heartbeatSeconds": 0,
        "defaultAgentId": directory.default_id,
        "agents": [_agent(agent, directory.default_id) for agent in directory.agents.values()],
        "sessions": _NO_SESSIONS,
        **known,
    }


_NO_SESSIONS: Mapping[str, object] = {"path": "", "count": 0, "recent": []}
_NO_HEARTBEAT: Mapping[str, object] = {"enabled": False, "every": "disabled", "everyMs": None, "prompt": "", "target": "none", "ackMaxChars": 300}


def _agent(agent: Agent, default_id: str) -> dict[str, object]:
    entry: dict[str, object] = {
        "agentId": agent.id,
        "isDefault": agent.id == default_id,
        "heartbeat": _NO_HEARTBEAT,
        "sessions": _NO_SESSIONS,
    }
    if agent.name:
        entry["name"] = agent.name
    return entry
