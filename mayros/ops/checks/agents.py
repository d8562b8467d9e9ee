"""What agents can do: commands without asking, workspaces that are too wide, small models with strong tools, and whether a model can answer."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from mayros.config.toolnames import TOOLS
from mayros.core.models import Model
from mayros.core.policy import decide
from mayros.core.routing import Agent
from mayros.ops.subject import Finding, Level, Subject, is_loopback

#: Billions of parameters up to which a model easily does what a page tells it to.
SMALL = 8.0
_SIZE = re.compile(r"(?:^|[-_:/.x ])(\d+(?:\.\d+)?)([bm])(?=$|[-_:/. ])", re.IGNORECASE)
_INSTALL = "mayros setup --provider ID, or mayros models install smollm2"
_WEB = ("web_fetch", "web_search", "browser")


def commands_asked_for(subject: Subject) -> Iterator[Finding]:
    """Where others reach the gateway, no agent runs any command without anybody being asked."""
    for agent in _agents(subject):
        if subject.open_to_others and _may(agent, None, "exec") and agent.exec.security == "full" and agent.exec.ask == "off":
            text = f"agent {agent.id} runs every command without asking, and gateway.bind is {subject.gateway.bind}: one valid request is a shell"
            remedy = "mayros config set tools.exec.security allowlist, or tools.exec.ask always"
            yield Finding("tools.exec.unasked", "critical", text, remedy)


def workspaces_narrow(subject: Subject) -> Iterator[Finding]:
    """No workspace is the whole disk, a home, or has the gateway's own state in it."""
    state = os.path.realpath(subject.state_dir)
    for agent in _agents(subject):
        real = os.path.realpath(agent.workspace)
        if real == os.path.realpath(subject.home) or state == real or state.startswith(real.rstrip("/") + "/"):
            text = f"the workspace of agent {agent.id} is {agent.workspace}: it can change the gateway's secrets and rules, or all of your files"
            yield Finding(
                "agents.workspace.wide", "critical", text, "give it a folder of its own (agents.defaults.workspace, agents.list[].workspace)"
            )


def small_models_weak(subject: Subject) -> Iterator[Finding]:
    """A small model has no tools that reach both the web and this machine: it follows what a page tells it."""
    for agent in _agents(subject):
        for model in agent.models:
            size = parameters(model)
            if size is None or size > SMALL or not model.tools or not _may(agent, model, "exec") or agent.exec.security == "deny":
                continue
            if agent.exec.security == "full" or any(TOOLS[name].here and _may(agent, model, name) for name in _WEB):
                text = f"agent {agent.id} gives {model.ref}, a small model, commands and the web: it is easily led by what it reads"
                yield Finding(
                    "agents.small-model.strong-tools", "warn", text, f"mayros config set 'tools.byProvider[\"{model.ref}\"].deny' '[\"exec\"]'"
                )


def parameters(model: Model) -> float | None:
    """Billions of parameters, as the name says it; None where it says nothing."""
    found = _SIZE.search(model.id)
    return None if found is None else float(found[1]) / (1000 if found[2].lower() == "m" else 1)


def models_usable(subject: Subject) -> Iterator[Finding]:
    """Each agent has a model that can be asked: one with a key, one nearby, or the embedded one, installed."""
    if subject.loaded is None or not subject.loaded.exists:
        return
    for agent in _agents(subject):
        if not agent.models:
            text = f"agent {agent.id} has no model"
            yield Finding("models.none", "critical", text, "mayros models set PROVIDER/MODEL")
            continue
        why = [trouble for model in agent.models if (trouble := _trouble(subject, model)) is not None]
        if why:
            level: Level = "critical" if len(why) == len(agent.models) else "warn"
            yield Finding("models.unusable", level, f"agent {agent.id}: {'; '.join(why)}", _INSTALL)


def _trouble(subject: Subject, model: Model) -> str | None:
    provider = model.provider
    if provider.api == "local":
        return f"{model.ref} is not installed" if subject.embedded is False else None
    host = re.sub(r"^[a-z]+://(\[[^\]]*\]|[^:/]*).*$", r"\1", provider.base_url).strip("[]")
    near = host == "localhost" or is_loopback(host)
    return None if near or provider.credentials or provider.key or provider.headers else f"there is no key for {model.ref}"


def _agents(subject: Subject) -> list[Agent]:
    return [] if subject.settings is None else list(subject.settings.directory.agents.values())


def _may(agent: Agent, model: Model | None, tool: str) -> bool:
    """Whether the policy lets an agent have a tool, with that model or with any of its own."""
    models = agent.models if model is None else (model,)
    return any(decide(agent, one.provider.id, one.id, "session", [tool])[tool].allowed for one in models if one.tools)
