"""`agents.list`, `agents.create`, `agents.update`, `agents.delete`: the agents of the configuration file. Imports mayros.config, core and wire.

A change goes through `ConfigControl.write`: the rest of the file keeps its text, and the agent is there at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from twisted.logger import Logger

from mayros.config.schema import AgentEntry
from mayros.config.source import literal
from mayros.core.audit import Act
from mayros.core.config_ports import NotInFile
from mayros.core.keys import AGENT_ID, check_text, normalise_agent_id
from mayros.core.reach import default_agent, may_use
from mayros.core.routing import Agent, Settings
from mayros.errors import GatewayError, InvalidRequest, StorageUnavailable
from mayros.wire.frames import Request, Text, parse_params

if TYPE_CHECKING:
    from mayros.ws.context import Gateway
    from mayros.ws.session import Session

log = Logger()

RESERVED = "main"
MAX_AGENTS = 1_000
#: Bytes of a name, and of an avatar, which may be a picture as a `data:` URL.
MAX_NAME, MAX_AVATAR = 256, 65_536
Path = Annotated[str, msgspec.Meta(min_length=1, max_length=1_024)]


class AgentsListParams(msgspec.Struct, frozen=True):
    """None."""


class AgentsCreateParams(msgspec.Struct, frozen=True):
    """The id is made from the name."""

    name: Text
    workspace: Path
    emoji: str | None = None
    avatar: str | None = None


class AgentsUpdateParams(msgspec.Struct, frozen=True, rename="camel"):
    """What is left out stays as it is."""

    agent_id: Text
    name: Text | None = None
    workspace: Path | None = None
    model: Text | None = None
    avatar: Text | None = None


class AgentsDeleteParams(msgspec.Struct, frozen=True, rename="camel"):
    """`delete_files`: move the workspace aside."""

    agent_id: Text
    delete_files: bool = True


def agents_list(session: Session, request: Request) -> None:
    """`{defaultId, mainKey, scope, agents: [{id, name?, identity?}]}`."""
    parse_params(AgentsListParams, request.params, "agents.list")
    current = session.gateway.config.current
    directory, config = current.directory, current.config
    entries = {normalise_agent_id(entry.id): entry for entry in reversed(config.agents.list)}
    session.reply(
        request.id,
        {
            "defaultId": default_agent(session.principal, directory.default_id, directory.agents),
            "mainKey": directory.main_key,
            "scope": config.session.scope,
            "agents": [_shown(agent_id, entries.get(agent_id)) for agent_id in directory.agents if may_use(session.principal, agent_id)],
        },
    )


def _shown(agent_id: str, entry: AgentEntry | None) -> dict[str, object]:
    row: dict[str, object] = {"id": agent_id}
    if entry is None:
        return row
    if entry.name:
        row["name"] = entry.name
    identity = {name: value for name, value in msgspec.structs.asdict(entry.identity).items() if value}
    avatar = identity.get("avatar", "")
    if avatar.startswith(("https://", "http://", "data:image/")):
        identity["avatarUrl"] = avatar
    if identity:
        row["identity"] = identity
    return row


def known_agent(settings: Settings, agent_id: str) -> Agent:
    """The agent of an id in a request; InvalidRequest `unknown agent id`."""
    agent = settings.directory.agents.get(agent_id.strip().lower()) if AGENT_ID.fullmatch(agent_id.strip()) else None
    if agent is None:
        raise InvalidRequest("unknown agent id")
    return agent


def agents_create(session: Session, request: Request) -> None:
    """`{ok, agentId, name, workspace}`."""
    params = parse_params(AgentsCreateParams, request.params, "agents.create")
    name = _line(params.name, "name")
    agent_id = normalise_agent_id(name)
    identity = {"emoji": _line(params.emoji, "emoji"), "avatar": _line(params.avatar, "avatar", MAX_AVATAR)}
    entry: dict[str, Any] = {"id": agent_id, "name": literal(name)}
    if shown := {key: literal(text) for key, text in identity.items() if text}:
        entry["identity"] = shown
    if agent_id == RESERVED:
        raise InvalidRequest(f'"{RESERVED}" is reserved')
    directory = session.gateway.config.current.directory
    if agent_id in directory.agents:
        raise _taken(agent_id)
    if len(directory.agents) >= MAX_AGENTS:
        raise InvalidRequest(f"there are {MAX_AGENTS} agents already")
    about = "".join(f"{title}: {text}\n" for title, text in (("Name", name), ("Emoji", identity["emoji"])) if text)
    session.acting.tell(agent_id)
    session.spawn(request.id, _create(session, request.id, name, entry, params.workspace, f"# Identity\n\n{about}"))


async def _create(session: Session, request_id: str, name: str, entry: dict[str, Any], workspace: str, about: str) -> None:
    gateway, agent_id = session.gateway, entry["id"]
    made = await _workspace(gateway, workspace, about)
    entry["workspace"] = literal(made)
    default_id = gateway.config.current.directory.default_id

    def edit(tree: dict[str, Any]) -> None:
        entries = _entries(tree)
        if _index(entries, agent_id) is not None:
            raise _taken(agent_id)
        if not entries:
            # The agent that was there without being named stays, and stays the default.
            entries.append({"id": default_id})
        entries.append(entry)

    await gateway.config.write(edit)
    session.reply(request_id, {"ok": True, "agentId": agent_id, "name": name, "workspace": made})


def agents_update(session: Session, request: Request) -> None:
    """`{ok, agentId}`."""
    params = parse_params(AgentsUpdateParams, request.params, "agents.update")
    settings = session.gateway.config.current
    agent = known_agent(settings, params.agent_id)
    name, avatar, model = _line(params.name, "name"), _line(params.avatar, "avatar", MAX_AVATAR), _line(params.model, "model")
    if model and not _is_model(settings, model):
        raise InvalidRequest(f"unknown model: {model}")

    def change(entry: dict[str, Any], workspace: str | None) -> None:
        if name:
            entry["name"] = literal(name)
            if isinstance(entry.get("identity"), dict) and "name" in entry["identity"]:
                entry["identity"] = {**entry["identity"], "name": literal(name)}
        if workspace is not None:
            entry["workspace"] = literal(workspace)
        if model:
            chosen = entry.get("model")
            entry["model"] = {**chosen, "primary": literal(model)} if isinstance(chosen, dict) else literal(model)
        if avatar:
            entry["identity"] = {**_object(entry.get("identity"), "agents", "list"), "avatar": literal(avatar)}

    session.spawn(request.id, _update(session, request.id, agent, params.workspace, change))


async def _update(
    session: Session, request_id: str, agent: Agent, workspace: str | None, change: Callable[[dict[str, Any], str | None], None]
) -> None:
    gateway = session.gateway
    made = None if workspace is None else await _workspace(gateway, workspace, f"# Identity\n\nName: {agent.name or agent.id}\n")
    listed = bool(gateway.config.current.config.agents.list)

    def edit(tree: dict[str, Any]) -> None:
        entries = _entries(tree)
        number = _index(entries, agent.id)
        if number is None:
            if listed or entries:
                raise NotInFile("agents", "list")
            # The agent that is there as long as none is listed.
            entries.append({"id": agent.id})
            number = 0
        change(entries[number], made)

    await gateway.config.write(edit)
    session.reply(request_id, {"ok": True, "agentId": agent.id})


def agents_delete(session: Session, request: Request) -> None:
    """`{ok, agentId, removedBindings}`. Its sessions stay in the store; runs that are live end as they would have. Its rules for commands go."""
    params = parse_params(AgentsDeleteParams, request.params, "agents.delete")
    agent = known_agent(session.gateway.config.current, params.agent_id)
    if agent.id == RESERVED:
        raise InvalidRequest(f'"{RESERVED}" cannot be deleted')
    session.spawn(request.id, _delete(session, request.id, session.acting, agent, params.delete_files))


async def _delete(session: Session, request_id: str, act: Act, agent: Agent, files: bool) -> None:
    gateway = session.gateway
    removed = 0

    def edit(tree: dict[str, Any]) -> None:
        nonlocal removed
        entries = _entries(tree)
        number = _index(entries, agent.id)
        if number is None:
            raise NotInFile("agents", "list")
        del entries[number]
        bindings = tree.get("bindings")
        if isinstance(bindings, list):
            kept = [binding for binding in bindings if not _binds(binding, agent.id)]
            removed = len(bindings) - len(kept)
            if removed:
                tree["bindings"] = kept

    # What cannot even be read could not be removed either.
    await gateway.exec_rules.ready()
    await gateway.config.write(edit)
    if files:
        await _discard(gateway, agent)
    # An "always" that comes now would begin the next list.
    asked = [one.id for one in gateway.approvals.pending() if one.question.agent_id == agent.id]
    for approval_id in asked:
        gateway.approvals.resolve(approval_id, "deny", None)
    act.tell(denied=asked or None)
    try:
        await gateway.exec_rules.forget(agent.id)
    except StorageUnavailable:
        why = "is deleted, but its rules for commands are still kept: a new one with this id would have them"
        raise StorageUnavailable(f'agent "{agent.id}" {why}') from None
    session.reply(request_id, {"ok": True, "agentId": agent.id, "removedBindings": removed})


async def _discard(gateway: Gateway, agent: Agent) -> None:
    """The agent is gone whatever becomes of its folder."""
    others = [other.workspace for other in gateway.config.current.directory.agents.values()]
    try:
        aside = await gateway.agent_files.discard(agent.workspace, others)
    except GatewayError as error:
        log.warn("workspace {path} of deleted agent {id} stays where it is: {why}", path=agent.workspace, id=agent.id, why=error.message)
    else:
        log.info("workspace {path} of deleted agent {id}: moved to {aside}", path=agent.workspace, id=agent.id, aside=aside or "nowhere, it stays")


async def _workspace(gateway: Gateway, workspace: str, about: str) -> str:
    starter = not gateway.config.current.config.agents.defaults.skip_bootstrap
    return await gateway.agent_files.make(workspace, starter, about)


def _entries(tree: dict[str, Any]) -> list[Any]:
    """`agents.list` of the file's own tree, made where it is missing."""
    agents = tree.setdefault("agents", {})
    entries = _object(agents, "agents", "list").setdefault("list", [])
    if not isinstance(entries, list):
        raise NotInFile("agents", "list")
    return entries


def _object(value: Any, *keys: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise NotInFile(*keys)
    return value


def _index(entries: list[Any], agent_id: str) -> int | None:
    """Where an agent's entry is, if it is in this list."""
    for number, entry in enumerate(entries):
        own = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(own, str) and normalise_agent_id(own) == agent_id:
            return number
    return None


def _binds(binding: Any, agent_id: str) -> bool:
    own = binding.get("agentId") if isinstance(binding, dict) else None
    return isinstance(own, str) and normalise_agent_id(own) == agent_id


def _taken(agent_id: str) -> InvalidRequest:
    return InvalidRequest(f'agent "{agent_id}" already exists')


def _line(text: str | None, param: str, limit: int = MAX_NAME) -> str:
    """A text of one line without blanks around it; empty where none was given. Raises InvalidRequest."""
    if text is None:
        return ""
    line = check_text(text, param, limit).strip()
    if not line:
        raise InvalidRequest(f"{param} must not be blank.", param=param)
    return line


def _is_model(settings: Settings, model: str) -> bool:
    aliases = {entry.alias.lower() for entry in settings.config.agents.defaults.models.values() if entry.alias}
    return model.lower() in aliases or settings.catalogue.find(model) is not None
