"""Which tools a run may have: one pure function from (the agent's configuration, provider, model, kind of session) to a rule for each tool.

Layers, each of which a tool must pass; the first one that stops it is the rule that decided:

1. the profile: the agent's, else that of `tools`, with the `alsoAllow` beside it;
2. the profile of `byProvider`, likewise;
3. `tools.allow` and `tools.deny`;
4. `tools.byProvider["provider/model"]`, else `["provider"]`;
5. the agent's `allow` and `deny`;
6. the agent's `byProvider`;
7. what sub-agents never have.

In a layer `deny` is looked at first; no `allow` means all. `apply_patch` passes wherever `exec` is allowed, and is off unless it is enabled, and for
models of OpenAI only. Source: agent-runtime facts, section 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from mayros.config.schema import AgentTools, ProviderPolicy, ToolProfile, Tools
from mayros.config.toolnames import PROFILES, first_match, plain
from mayros.core.keys import SessionKey
from mayros.core.routing import Agent

SessionKind = Literal["session", "subagent"]
#: What a session that another one started never has.
NOT_FOR_SUBAGENTS = ("gateway", "agents_list", "session_status", "cron", "memory_search", "memory_get", "sessions_send")
NO_RULE = "no rule forbids it"
_OPENAI = ("openai", "openai-codex")


class Verdict(msgspec.Struct, frozen=True):
    """Whether a tool may be had, and the rule that decided: a key path of the configuration with the entry that matched, or a sentence."""

    allowed: bool
    rule: str


class Layer(msgspec.Struct, frozen=True):
    """One filter. `allow` None: everything. `path` is where it stands in the configuration."""

    path: str
    allow: Sequence[str] | None
    deny: Sequence[str] = ()
    #: How its `allow` is called in a rule.
    word: str = ".allow"

    def judge(self, name: str) -> Verdict | None:
        """The verdict on the tool of this (small-letter) name; None where nothing in the layer means it and everything may pass."""
        denied = first_match(name, self.deny)
        if denied is not None:
            return Verdict(False, f"{self.path}.deny: {denied}")
        if self.allow is None:
            return None
        allowed = first_match(name, self.allow)
        if allowed is None and name == "apply_patch":
            allowed = first_match("exec", self.allow)
        if allowed is not None:
            return Verdict(True, f"{self.path}{self.word}: {allowed}")
        return Verdict(False, f"{self.path}{self.word}: it is not in it")


def kind_of(session: SessionKey) -> SessionKind:
    """The kind of a session, as far as it matters to policy."""
    return "subagent" if session.rest.casefold().startswith("subagent:") else "session"


def decide(agent: Agent, provider: str, model: str, kind: SessionKind, names: Iterable[str]) -> dict[str, Verdict]:
    """The verdict on each of the tools, by name, in their order. `model` is its id without the provider."""
    chain = list(layers(agent, provider, model, kind))
    off = _patch(agent, provider, model)
    return {name: off if off is not None and name == "apply_patch" else _through(chain, name) for name in names}


def layers(agent: Agent, provider: str, model: str, kind: SessionKind) -> Iterator[Layer]:
    """The layers that hold for such a run, in order."""
    general, own, path = agent.tools, agent.own_tools, agent.tools_path
    by_general = _of_provider("tools", general.by_provider, provider, model)
    by_own = _of_provider(path, own.by_provider, provider, model)
    if own.profile is not None:
        yield from _profile(path, own.profile, own.also_allow or general.also_allow)
    elif general.profile is not None:
        yield from _profile("tools", general.profile, own.also_allow or general.also_allow)
    for found in (by_own, by_general):
        if found is not None and found[1].profile is not None:
            yield from _profile(found[0], found[1].profile, found[1].also_allow)
            break
    yield _lists("tools", general)
    if by_general is not None:
        yield _lists(*by_general)
    yield _lists(path, own)
    if by_own is not None:
        yield _lists(*by_own)
    if kind == "subagent":
        yield Layer("sub-agents", None, NOT_FOR_SUBAGENTS)


def _of_provider(path: str, policies: Mapping[str, ProviderPolicy], provider: str, model: str) -> tuple[str, ProviderPolicy] | None:
    """The entry for the model, else for its provider, with its path."""
    provider = provider.lower()
    for wanted in (f"{provider}/{model.lower()}", provider):
        for key, policy in policies.items():
            if key.strip().lower() == wanted:
                return f"{path}.byProvider[{msgspec.json.encode(key).decode()}]", policy
    return None


def _profile(path: str, profile: ToolProfile, also: Sequence[str]) -> Iterator[Layer]:
    if profile != "full":
        yield Layer(path, (*PROFILES[profile], *also), word=f".profile {profile}")


def _lists(path: str, policy: Tools | AgentTools | ProviderPolicy) -> Layer:
    """`allow` and `deny` of one place. `alsoAllow` adds to an `allow`; without one everything passes anyhow."""
    return Layer(path, (*policy.allow, *policy.also_allow) if policy.allow else None, policy.deny)


def _through(chain: Sequence[Layer], name: str) -> Verdict:
    """The first verdict against the tool, else the last one for it."""
    wanted = plain(name)
    last = Verdict(True, NO_RULE)
    for layer in chain:
        verdict = layer.judge(wanted)
        if verdict is None:
            continue
        if not verdict.allowed:
            return verdict
        last = verdict
    return last


def _patch(agent: Agent, provider: str, model: str) -> Verdict | None:
    """Why `apply_patch` is off, whatever the layers say."""
    settings = agent.exec.apply_patch
    if not settings.enabled:
        return Verdict(False, "tools.exec.applyPatch.enabled: it is not true")
    if provider.lower() not in _OPENAI:
        return Verdict(False, "apply_patch is for models of OpenAI only")
    wanted = {model.lower(), f"{provider}/{model}".lower()}
    if settings.allow_models and not wanted & {one.strip().lower() for one in settings.allow_models}:
        return Verdict(False, "tools.exec.applyPatch.allowModels: this model is not in it")
    return None
