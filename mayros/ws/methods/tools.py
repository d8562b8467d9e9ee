"""`tools.catalog`: the tools that policy knows, and which of them an agent has, with the rule that decided. Imports mayros.core and mayros.wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from mayros.config.toolnames import PROFILES
from mayros.core.reach import default_agent
from mayros.core.toolbox import Row
from mayros.wire.frames import Request, Text, parse_params
from mayros.ws.methods.where import known_agent

if TYPE_CHECKING:
    from mayros.ws.session import Session

_LABELS = {
    "fs": "Files",
    "runtime": "Commands",
    "web": "Web",
    "ui": "Screens",
    "nodes": "Devices",
    "automation": "Automation",
    "messaging": "Messages",
    "agents": "Agents",
    "sessions": "Sessions",
    "memory": "Memory",
    "media": "Media",
    "plugins": "Plug-ins",
}


class CatalogParams(msgspec.Struct, frozen=True, rename="camel"):
    """`agentId`: the default agent where it is left out. Plug-ins are always included; there is one key for clients that ask."""

    agent_id: Text | None = None
    include_plugins: bool | None = None


def tools_catalog(session: Session, request: Request) -> None:
    """`{agentId, profiles: [{id, label}], groups: [{id, label, source, tools: [{id, label, description, source, allowed, rule}]}]}`.

    The verdicts are those of a session of the agent with its first model.
    """
    params = parse_params(CatalogParams, request.params, "tools.catalog")
    gateway = session.gateway
    directory = gateway.config.current.directory
    agent_id = params.agent_id or default_agent(session.principal, directory.default_id, directory.agents)
    agent = known_agent(directory, agent_id, "tools.catalog", session.principal)
    groups: dict[str, list[dict[str, object]]] = {}
    for row in gateway.toolbox.catalogue(agent, agent.models[0] if agent.models else None):
        groups.setdefault(row.group, []).append(_shown(row))
    session.reply(
        request.id,
        {
            "agentId": agent.id,
            "profiles": [{"id": name, "label": name.capitalize()} for name in (*PROFILES, "full")],
            "groups": [{"id": name, "label": _LABELS[name], "source": _source(name), "tools": tools} for name, tools in groups.items()],
        },
    )


def _source(group: str) -> str:
    return "plugin" if group == "plugins" else "core"


def _shown(row: Row) -> dict[str, object]:
    return {
        "id": row.name,
        "label": row.name,
        "description": row.description,
        "source": _source(row.group),
        "allowed": row.verdict.allowed,
        "rule": row.verdict.rule,
    }
