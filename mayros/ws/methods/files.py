"""`agents.files.list`, `agents.files.get`, `agents.files.set`: the files of an agent's workspace that go into its prompt. Imports core and wire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from mayros.core.workspace_ports import AgentFile
from mayros.errors import InvalidRequest
from mayros.wire.frames import Request, Text, parse_params
from mayros.ws.methods.agents import known_agent

if TYPE_CHECKING:
    from mayros.core.routing import Agent
    from mayros.ws.session import Session

#: Files with a meaning of their own; no others can be reached.
NAMES = (
    *("AGENTS.md", "MAYROS.md", "SOUL.md", "TOOLS.md", "IDENTITY.md", "USER.md"),
    *("HOPE.md", "HEARTBEAT.md", "BOOTSTRAP.md", "MEMORY.md", "memory.md"),
)


class AgentsFilesListParams(msgspec.Struct, frozen=True, rename="camel"):
    """Whose files."""

    agent_id: Text


class AgentsFilesGetParams(msgspec.Struct, frozen=True, rename="camel"):
    """Whose file, and which."""

    agent_id: Text
    name: Text


class AgentsFilesSetParams(msgspec.Struct, frozen=True, rename="camel"):
    """`content` is at most 1 MiB of UTF-8."""

    agent_id: Text
    name: Text
    content: Annotated[str, msgspec.Meta(max_length=1 << 20)]


def agents_files_list(session: Session, request: Request) -> None:
    """`{agentId, workspace, files: [{name, path, missing, size?, updatedAtMs?}]}`."""
    params = parse_params(AgentsFilesListParams, request.params, "agents.files.list")
    session.spawn(request.id, _list(session, request.id, known_agent(session.gateway.config.current, params.agent_id)))


async def _list(session: Session, request_id: str, agent: Agent) -> None:
    files = {file.name: file for file in await session.gateway.agent_files.list(agent.workspace, NAMES)}
    if files["memory.md"].missing or not files["MEMORY.md"].missing:
        del files["memory.md"]  # another name of MEMORY.md, of interest where it is the one in use
    else:
        del files["MEMORY.md"]
    session.reply(request_id, {"agentId": agent.id, "workspace": agent.workspace, "files": [_shown(file) for file in files.values()]})


def agents_files_get(session: Session, request: Request) -> None:
    """`{agentId, workspace, file: {name, path, missing, size?, updatedAtMs?, content?}}`."""
    params = parse_params(AgentsFilesGetParams, request.params, "agents.files.get")
    agent = known_agent(session.gateway.config.current, params.agent_id)
    session.spawn(request.id, _get(session, request.id, agent, _supported(params.name)))


async def _get(session: Session, request_id: str, agent: Agent, name: str) -> None:
    file = await session.gateway.agent_files.read(agent.workspace, name)
    session.reply(request_id, {"agentId": agent.id, "workspace": agent.workspace, "file": _shown(file)})


def agents_files_set(session: Session, request: Request) -> None:
    """`{ok, agentId, workspace, file}`; the file is on disk."""
    params = parse_params(AgentsFilesSetParams, request.params, "agents.files.set")
    agent = known_agent(session.gateway.config.current, params.agent_id)
    session.spawn(request.id, _set(session, request.id, agent, _supported(params.name), params.content))


async def _set(session: Session, request_id: str, agent: Agent, name: str, content: str) -> None:
    file = await session.gateway.agent_files.write(agent.workspace, name, content)
    session.reply(request_id, {"ok": True, "agentId": agent.id, "workspace": agent.workspace, "file": _shown(file)})


def _supported(name: str) -> str:
    if name not in NAMES:
        raise InvalidRequest(f'unsupported file "{ascii(name[:64])[1:-1]}"')
    return name


def _shown(file: AgentFile) -> dict[str, object]:
    shown: dict[str, object] = {"name": file.name, "path": file.path, "missing": file.missing}
    for key, value in (("size", file.size), ("updatedAtMs", file.updated_ms), ("content", file.text)):
        if value is not None:
            shown[key] = value
    return shown
