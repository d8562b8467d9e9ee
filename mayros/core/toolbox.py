"""The tools of this gateway, and which of them a run has: the registry after policy. Imports config.toolnames and core."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import msgspec

from mayros.config.toolnames import TOOLS
from mayros.core.models import Model
from mayros.core.policy import SessionKind, Verdict, decide, kind_of
from mayros.core.ports import Turn
from mayros.core.routing import Agent
from mayros.core.tool_ports import NO_TOOLS, Tool

NOT_HERE = "this gateway does not have it"
#: As many combinations of agent and model are kept; sessions may choose any model.
MOST_KEPT = 256


class Row(msgspec.Struct, frozen=True):
    """One tool as a person sees it. `group` and `description` are empty for what is known by name only."""

    name: str
    group: str
    description: str
    verdict: Verdict


class LocalToolbox:
    """Implements core.tool_ports.Toolbox. The names of `tools` are unique."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools = in_order({tool.spec.name: tool for tool in tools})
        self._kept: dict[tuple[str, str, SessionKind], tuple[Agent, Mapping[str, Tool]]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The tools there are, in the order of the prompt."""
        return tuple(self._tools)

    def offered(self, turn: Turn, model: Model) -> Mapping[str, Tool]:
        """See Toolbox. The same mapping again as long as agent, model and kind of session are the same."""
        if not self._tools or not model.tools or turn.tools == "none":
            return NO_TOOLS
        key = turn.agent.id, model.ref, kind_of(turn.session)
        kept = self._kept.get(key)
        if kept is None or kept[0] is not turn.agent:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            verdicts = decide(turn.agent, model.provider.id, model.id, key[2], self._tools)
            kept = turn.agent, MappingProxyType({name: tool for name, tool in self._tools.items() if verdicts[name].allowed})
            self._kept[key] = kept
        return kept[1]

    def why_not(self, turn: Turn, model: Model, name: str) -> str | None:
        """See Toolbox."""
        if name not in self._tools:
            return None
        if turn.tools == "none":
            return "runs of this endpoint have no tools"
        verdict = _verdict(self._tools, turn.agent, model, kind_of(turn.session), name)
        return None if verdict.allowed else verdict.rule

    def catalogue(self, agent: Agent, model: Model | None) -> list[Row]:
        """Every tool that policy knows, in order, as a session of the agent has it with a model (None: the agent has none)."""
        return catalogue(self._tools, agent, model)


def in_order(tools: Mapping[str, Tool]) -> dict[str, Tool]:
    """Tools in the order of the prompt; those that are not known to it come after, by name."""
    places = {name: place for place, name in enumerate(TOOLS)}
    return dict(sorted(tools.items(), key=lambda item: (places.get(item[0], len(places)), item[0])))


def catalogue(tools: Mapping[str, Tool] | None, agent: Agent, model: Model | None) -> list[Row]:
    """See LocalToolbox.catalogue; `tools` None: those that a gateway of this version has."""
    here = {name for name, known in TOOLS.items() if known.here} if tools is None else set(tools)
    rows = []
    for name in (*TOOLS, *sorted(here - set(TOOLS))):
        known = TOOLS.get(name)
        verdict = _verdict(here, agent, model, "session", name)
        description = tools[name].spec.description if tools and name in tools else known.summary if known else ""
        rows.append(Row(name, known.group if known else "plugins", description, verdict))
    return rows


def _verdict(here: Iterable[str], agent: Agent, model: Model | None, kind: SessionKind, name: str) -> Verdict:
    """What policy says, after what no policy can change."""
    if name not in here:
        return Verdict(False, NOT_HERE)
    if model is not None and not model.tools:
        return Verdict(False, f"models.providers.{model.provider.id}: {model.id} takes no tools")
    provider, model_id = (model.provider.id, model.id) if model is not None else ("", "")
    return decide(agent, provider, model_id, kind, (name,))[name]
