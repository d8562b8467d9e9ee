"""Which agent, session and models a request means. Pure; built once per configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from mayros.config.params import usable
from mayros.config.schema import AgentEntry, AgentExec, AgentTools, Config, LoopDetection, ModelChoice, SpendingLimits, Tools, ToolsExec, ToolsFs
from mayros.config.secret import AuthSecret
from mayros.config.source import join
from mayros.config.stamps import Stamp
from mayros.core.keys import SessionKey, check_text, new_id, normalise_agent_id, valid_agent_id
from mayros.core.models import Catalogue, Model
from mayros.errors import AgentNotFound

_NO_LIMITS = SpendingLimits()
MODEL_PREFIXES = ("mayros:", "mayros/", "agent:")


class Agent(msgspec.Struct, frozen=True):
    """A configured agent, defaults filled in. `models` is the primary and its fallbacks, in order; empty when none is configured."""

    id: str
    name: str | None
    emoji: str | None
    workspace: str
    models: tuple[Model, ...]
    system_prompt: str
    #: What holds for all its models, over `model_params`, which are by `provider/model` (agents.defaults.models).
    params: dict[str, Any]
    timeout_seconds: float
    file_max_chars: int
    total_max_chars: int
    timezone: str | None
    context_tokens: int | None
    #: The layers of tool policy: those of all agents and this one's own (core/policy.py), and where the latter stand in the file.
    tools: Tools = Tools()
    own_tools: AgentTools = AgentTools()
    tools_path: str = "agents.list[].tools"
    #: `tools.exec`, `tools.fs` and `tools.loopDetection` as they hold for this agent.
    exec: ToolsExec = ToolsExec()
    fs: ToolsFs = ToolsFs()
    loop_detection: LoopDetection = LoopDetection()
    #: The names of the skills it may have; None: all.
    skills: tuple[str, ...] | None = None
    #: What runs may use: `limits`, for all agents together, and this agent's own. Both hold.
    limits: SpendingLimits = SpendingLimits()
    own_limits: SpendingLimits = SpendingLimits()
    model_params: dict[str, dict[str, Any]] = {}
    #: How much its models think, unless something more special says so: off, minimal, low, medium, high, xhigh.
    thinking: str | None = None
    #: How long the first model may be silent before the next one is asked too, in seconds; None: for ever.
    hedge_seconds: float | None = None
    #: Whether any caller may choose another model for a request; administrators always may.
    allow_model_override: bool = False

    @property
    def limited(self) -> bool:
        """Whether there is a limit on what its runs may use."""
        return self.limits != _NO_LIMITS or self.own_limits != _NO_LIMITS

    def params_for(self, model: str) -> dict[str, Any]:
        """The sampling parameters for a model (`provider/model`)."""
        own = self.model_params.get(model)
        return {**own, **self.params} if own else self.params


class Directory:
    """The agents of one configuration. `unknown_models` lists references that name no known provider, for a warning."""

    def __init__(self, config: Config, catalogue: Catalogue, state_dir: str) -> None:
        self.unknown_models: list[str] = []
        self._config, self._catalogue = config, catalogue
        entries = config.agents.list or (AgentEntry(id="main"),)
        self.main_key = config.session.main_key.strip().lower() or "main"
        self.default_id = normalise_agent_id(next((entry for entry in entries if entry.default), entries[0]).id)
        self.agents: dict[str, Agent] = {}
        for number, entry in enumerate(entries):
            agent = self._agent(number, entry, state_dir)
            self.agents.setdefault(agent.id, agent)

    def _agent(self, number: int, entry: AgentEntry, state_dir: str) -> Agent:
        defaults = self._config.agents.defaults
        agent_id = normalise_agent_id(entry.id)
        if entry.workspace:
            workspace = entry.workspace
        elif agent_id == self.default_id:
            workspace = defaults.workspace or os.path.join(state_dir, "workspace")
        else:
            workspace = f"{defaults.workspace or os.path.join(state_dir, 'workspace')}-{agent_id}"
        refs = self._refs(entry.model) or self._refs(defaults.model)
        tools = self._config.tools
        return Agent(
            id=agent_id,
            name=entry.identity.name or entry.name,
            emoji=entry.identity.emoji,
            workspace=os.path.abspath(os.path.expanduser(workspace)),
            models=tuple(model for ref in refs if (model := self._find(ref)) is not None),
            system_prompt=entry.system_prompt or "",
            params=usable(entry.params),
            timeout_seconds=float(defaults.timeout_seconds),
            file_max_chars=defaults.bootstrap_max_chars,
            total_max_chars=defaults.bootstrap_total_max_chars,
            timezone=defaults.user_timezone,
            context_tokens=defaults.context_tokens,
            tools=tools,
            own_tools=entry.tools,
            tools_path=f"agents.list[{number}].tools",
            exec=_merged(tools.exec, entry.tools.exec),
            fs=entry.tools.fs or tools.fs,
            loop_detection=entry.tools.loop_detection or tools.loop_detection,
            skills=entry.skills,
            limits=self._config.limits,
            own_limits=entry.limits,
            model_params={ref: usable(known.params) for ref, known in defaults.models.items() if known.params},
            thinking=defaults.thinking_default,
            hedge_seconds=_hedge_seconds(entry.model, defaults.model),
            allow_model_override=entry.allow_model_override,
        )

    @staticmethod
    def _refs(choice: ModelChoice | str | None) -> list[str]:
        if choice is None:
            return []
        if isinstance(choice, str):
            return [choice]
        return [ref for ref in (choice.primary, *choice.fallbacks) if ref]

    def full(self, ref: str) -> str:
        """`provider/model` for an alias of `agents.defaults.models`; anything else as it is."""
        for full, entry in self._config.agents.defaults.models.items():
            if entry.alias and entry.alias.lower() == ref.lower():
                return full
        return ref

    def _find(self, ref: str) -> Model | None:
        model = self._catalogue.find(self.full(ref))
        if model is None:
            self.unknown_models.append(ref)
        return model

    def agent(self, agent_id: str, param: str = "model") -> Agent:
        """The agent of an id as a request sent it; AgentNotFound names the ids there are."""
        agent = self.agents.get(agent_id.lower()) if valid_agent_id(agent_id) else None
        if agent is None:
            shown = agent_id if valid_agent_id(agent_id) else "that name"
            raise AgentNotFound(f"There is no agent {shown!r} here. Configured agents: {', '.join(sorted(self.agents))}.", param=param)
        return agent

    def by_model(self, model: str) -> Agent:
        """The agent that OpenAI's `model` field names. `mayros`, `mayros/default` and names that are no agent's mean the default agent."""
        return self._named(model) or self.agents[self.default_id]

    def _named(self, model: str) -> Agent | None:
        """The agent whose id the model field spells out, or None where it only stands for the default agent."""
        lowered = model.lower()
        if lowered == "mayros/default" and "default" not in self.agents:
            return None
        for prefix in MODEL_PREFIXES:
            if lowered.startswith(prefix):
                return self.agent(model[len(prefix) :])
        return None

    def main_session(self, agent_id: str) -> SessionKey:
        """Where an agent's messages go when nothing else is said."""
        return SessionKey(agent_id, self.main_key)

    def http_session(self, agent: Agent | None, model: str, session_key: str | None, user: str | None) -> tuple[Agent, SessionKey, bool]:
        """Agent, session and whether it is stateless, for an HTTP request.

        `agent` is the one a header chose, else None; `session_key` is the header's text; `user` is OpenAI's field. Blank is not given.
        """
        if session_key is not None and session_key.strip():
            named = agent or self._named(model)
            chosen = named.id if named is not None else None
            param = "x-mayros-session-key"
            key = SessionKey.parse(session_key, chosen, self.default_id, self.main_key, param=param)
            return self.agent(key.agent_id, param), key, False
        agent = agent or self.by_model(model)
        user = (user or "").strip()
        if user:
            return agent, SessionKey(agent.id, "openai-user:" + check_text(user, "user")), False
        return agent, SessionKey(agent.id, "openai:" + new_id()), True


def _hedge_seconds(*choices: ModelChoice | str | None) -> float | None:
    """`hedgeAfterMs` of the first choice that says one."""
    said = (choice.hedge_after_ms for choice in choices if isinstance(choice, ModelChoice) and choice.hedge_after_ms is not None)
    return next((after_ms / 1000 for after_ms in said), None)


def _merged(general: ToolsExec, own: AgentExec) -> ToolsExec:
    """The settings of `exec` for an agent: its own where they are set."""
    changes = {name: value for name in own.__struct_fields__ if (value := getattr(own, name)) is not None}
    return msgspec.structs.replace(general, **changes) if changes else general


class Settings(msgspec.Struct, frozen=True):
    """One immutable reading of the configuration, with what was worked out from it. A request or a run takes it once, at its start."""

    config: Config
    directory: Directory
    catalogue: Catalogue
    state_dir: str
    config_path: str
    loaded_at_ms: int
    #: The environment of the start, secrets included; never shown.
    environ: Mapping[str, str]
    warnings: Sequence[str] = ()
    #: The keys of `auth.profiles` by profile id, secrets too.
    keys: Mapping[str, str] = {}
    #: The files that were read, as they were then (config/stamps.py), and what the file says under `env`.
    files: Mapping[str, Stamp] = {}
    variables: Any = None
    #: What callers prove themselves by; None outside of a gateway.
    secret: AuthSecret | None = None

    def __repr__(self) -> str:
        return f"<Settings of {self.config_path}>"

    @classmethod
    def build(
        cls,
        config: Config,
        *,
        state_dir: str,
        config_path: str,
        environ: Mapping[str, str],
        now_ms: int,
        warnings: Sequence[str] = (),
        keys: Mapping[str, str] | None = None,
        files: Mapping[str, Stamp] | None = None,
        variables: Any = None,
        secret: AuthSecret | None = None,
    ) -> Settings:
        """Work out agents and models of a configuration. `keys`: `Loaded.keys`; `files`: `Loaded.stamps`; `variables`: what is under `env`."""
        keys = keys or {}
        catalogue = Catalogue(config.models, environ, config.auth, keys)
        directory = Directory(config, catalogue, state_dir)
        unknown = [f"agents: unknown model {ref!r}: no provider of that name under models.providers" for ref in directory.unknown_models]
        unknown += [
            f"{join('auth.profiles', profile_id)}.provider: there is no provider {profile.provider!r}, so nothing is asked with this key"
            for profile_id, profile in config.auth.profiles.items()
            if profile.provider not in catalogue.providers
        ]
        return cls(config, directory, catalogue, state_dir, config_path, now_ms, environ, [*warnings, *unknown], keys, files or {}, variables, secret)
