"""The whole of `mayros.json` as frozen structs: names, types, defaults. Reading is in load.py.

Keys in the file are camelCase, attributes snake_case. `Milliseconds` and `Bytes` take a number or a text such as "30s" or "32mb".
What the file leaves out has its default here; what this gateway does not implement is not here and is warned about by load.py.
"""

from __future__ import annotations

from typing import Any, Literal

from mayros.config.gateway import Gateway
from mayros.config.section import Bytes, Milliseconds, Section


class ModelChoice(Section, frozen=True):
    """A primary model and what to try when it fails; each `provider/model`."""

    primary: str | None = None
    fallbacks: tuple[str, ...] = ()
    #: When the first model has sent no byte for so long, the next one starts too, and the slower one is cancelled. None: never.
    hedge_after_ms: Milliseconds | None = None


class SpendingLimits(Section, frozen=True):
    """`limits`, and `agents.list[].limits`: what runs may use, in tokens of all kinds and in US dollars; None: without limit."""

    run_tokens: int | None = None
    run_cost: float | None = None
    day_tokens: int | None = None
    day_cost: float | None = None


class Identity(Section, frozen=True):
    """How an agent presents itself."""

    name: str | None = None
    theme: str | None = None
    emoji: str | None = None
    avatar: str | None = None


class ModelEntry(Section, frozen=True):
    """`agents.defaults.models["provider/model"]`."""

    alias: str | None = None
    params: dict[str, Any] = {}


class AgentDefaults(Section, frozen=True):
    """`agents.defaults`: what holds for each agent unless it says otherwise."""

    model: ModelChoice | str | None = None
    models: dict[str, ModelEntry] = {}
    workspace: str | None = None
    timeout_seconds: int = 600
    max_concurrent: int = 1024
    bootstrap_max_chars: int = 20_000
    bootstrap_total_max_chars: int = 150_000
    skip_bootstrap: bool = False
    user_timezone: str | None = None
    thinking_default: str | None = None
    context_tokens: int | None = None


ToolProfile = Literal["minimal", "coding", "messaging", "full"]
ExecSecurity = Literal["deny", "allowlist", "full"]
ExecAsk = Literal["off", "on-miss", "always"]


class ProviderPolicy(Section, frozen=True):
    """`tools.byProvider["provider"]` or `["provider/model"]`: a further layer for runs with that model."""

    profile: ToolProfile | None = None
    allow: tuple[str, ...] = ()
    also_allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


class ApplyPatch(Section, frozen=True):
    """`tools.exec.applyPatch`: the tool `apply_patch`, for models of OpenAI only. `allow_models` empty: all of them."""

    enabled: bool = False
    workspace_only: bool = True
    allow_models: tuple[str, ...] = ()


class ToolsExec(Section, frozen=True):
    """`tools.exec`. What holds for one agent is in `core.routing.Agent.exec`."""

    host: Literal["gateway", "sandbox", "node"] | None = None
    security: ExecSecurity = "allowlist"
    ask: ExecAsk = "on-miss"
    ask_fallback: ExecSecurity = "deny"
    path_prepend: tuple[str, ...] = ()
    safe_bins: tuple[str, ...] = ("jq", "cut", "uniq", "head", "tail", "tr", "wc")
    timeout_sec: int = 1_800
    background_ms: Milliseconds = Milliseconds(10_000)
    apply_patch: ApplyPatch = ApplyPatch()


class ToolsFs(Section, frozen=True):
    """`tools.fs`. What holds for one agent is in `core.routing.Agent.fs`."""

    workspace_only: bool = True


class LoopDetection(Section, frozen=True):
    """`tools.loopDetection`. What holds for one agent is in `core.routing.Agent.loop_detection`."""

    enabled: bool = True


class Tools(Section, frozen=True):
    """`tools`: which tools agents have, and what these may do. The layers are in core/policy.py."""

    profile: ToolProfile | None = None
    allow: tuple[str, ...] = ()
    also_allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    by_provider: dict[str, ProviderPolicy] = {}
    exec: ToolsExec = ToolsExec()
    fs: ToolsFs = ToolsFs()
    loop_detection: LoopDetection = LoopDetection()


class AgentExec(Section, frozen=True):
    """`agents.list[].tools.exec`: what is set wins over `tools.exec`."""

    host: Literal["gateway", "sandbox", "node"] | None = None
    security: ExecSecurity | None = None
    ask: ExecAsk | None = None
    ask_fallback: ExecSecurity | None = None
    path_prepend: tuple[str, ...] | None = None
    safe_bins: tuple[str, ...] | None = None
    timeout_sec: int | None = None
    background_ms: Milliseconds | None = None
    apply_patch: ApplyPatch | None = None


class AgentTools(Section, frozen=True):
    """`agents.list[].tools`: one more layer of policy, and settings that win over those of `tools`."""

    profile: ToolProfile | None = None
    allow: tuple[str, ...] = ()
    also_allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    by_provider: dict[str, ProviderPolicy] = {}
    exec: AgentExec = AgentExec()
    fs: ToolsFs | None = None
    loop_detection: LoopDetection | None = None


class SkillEntry(Section, frozen=True):
    """`skills.entries.<name>`."""

    enabled: bool = True


class SkillsLoad(Section, frozen=True):
    """`skills.load`."""

    extra_dirs: tuple[str, ...] = ()


class Skills(Section, frozen=True):
    """`skills`: folders with a SKILL.md that the prompt lists."""

    entries: dict[str, SkillEntry] = {}
    load: SkillsLoad = SkillsLoad()


class AgentEntry(Section, frozen=True):
    """One of `agents.list`."""

    id: str
    default: bool = False
    name: str | None = None
    workspace: str | None = None
    model: ModelChoice | str | None = None
    identity: Identity = Identity()
    system_prompt: str | None = None
    params: dict[str, Any] = {}
    tools: AgentTools = AgentTools()
    skills: tuple[str, ...] | None = None
    limits: SpendingLimits = SpendingLimits()
    allow_model_override: bool = False


class Agents(Section, frozen=True):
    """`agents`."""

    defaults: AgentDefaults = AgentDefaults()
    list: tuple[AgentEntry, ...] = ()


class Stateless(Section, frozen=True):
    """`session.stateless`: how long sessions of stateless requests are kept, and how many."""

    ttl: Milliseconds = Milliseconds(86_400_000)
    max_entries: int = 50_000


class Session(Section, frozen=True):
    """`session`. `store`: a SQLAlchemy URL; unset: SQLite in the state directory."""

    scope: Literal["per-sender", "global"] = "per-sender"
    main_key: str = "main"
    store: str | None = None
    stateless: Stateless = Stateless()


class Cost(Section, frozen=True):
    """US dollars per million tokens."""

    input: float = 0
    output: float = 0
    cache_read: float = 0
    cache_write: float = 0


class Timeouts(Section, frozen=True):
    """Limits on waiting for a provider; None takes the next wider setting."""

    connect_ms: Milliseconds | None = None
    first_byte_ms: Milliseconds | None = None
    idle_ms: Milliseconds | None = None


class ModelDefinition(Section, frozen=True):
    """One model of a provider."""

    id: str
    name: str | None = None
    reasoning: bool = False
    input: tuple[str, ...] = ("text",)
    cost: Cost = Cost()
    context_window: int = 200_000
    max_tokens: int = 8_192
    tools: bool = True
    compat: dict[str, Any] = {}


ProviderApi = Literal["openai-completions", "openai-responses", "anthropic-messages", "google-generative-ai", "local"]


class ProviderEntry(Section, frozen=True):
    """`models.providers.<id>`."""

    base_url: str | None = None
    api_key: str | None = None
    #: None: the built-in provider's of that id, else `openai-completions`.
    api: ProviderApi | None = None
    headers: dict[str, str] = {}
    auth_header: bool = True
    models: tuple[ModelDefinition, ...] = ()
    max_connections: int | None = None
    timeouts: Timeouts = Timeouts()
    ca_path: str | None = None
    traceparent: bool = False

    def __repr__(self) -> str:
        return f"<ProviderEntry {self.api} {self.base_url}>"


class Models(Section, frozen=True):
    """`models`."""

    mode: Literal["merge", "replace"] = "merge"
    providers: dict[str, ProviderEntry] = {}
    timeouts: Timeouts = Timeouts()


class AuthProfile(Section, frozen=True):
    """`auth.profiles.<id>`: one key of a provider, from exactly one of a text (`${NAME}`), a file, or a file of `$CREDENTIALS_DIRECTORY`."""

    provider: str
    key: str | None = None
    key_file: str | None = None
    credential: str | None = None

    def __repr__(self) -> str:
        return f"<AuthProfile {self.provider}>"


class ModelAuth(Section, frozen=True):
    """`auth`: several keys for one provider. `order.<provider>` lists profile ids, in the order in which they are tried."""

    profiles: dict[str, AuthProfile] = {}
    order: dict[str, tuple[str, ...]] = {}


class Logging(Section, frozen=True):
    """`logging`. `level`: error, warn, info or debug; `console_level` None: the same for standard output. `file` None: a file a day in the state
    directory. `max_file_bytes`: a larger one is set aside."""

    level: Literal["error", "warn", "info", "debug"] = "info"
    console_level: Literal["error", "warn", "info", "debug"] | None = None
    console_style: Literal["pretty", "compact", "json"] = "pretty"
    file: str | None = None
    max_file_bytes: Bytes = Bytes(64 << 20)


class Config(Section, frozen=True):
    """The whole file."""

    gateway: Gateway = Gateway()
    agents: Agents = Agents()
    session: Session = Session()
    models: Models = Models()
    auth: ModelAuth = ModelAuth()
    limits: SpendingLimits = SpendingLimits()
    tools: Tools = Tools()
    skills: Skills = Skills()
    logging: Logging = Logging()
