"""Which models there are: the configured ones and the built-in entries, resolved once when the configuration is read. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from mayros.config.schema import Cost, ModelDefinition, Models, ProviderEntry, Timeouts

EMBEDDED = "local/smollm2-135m-instruct"


class Limits(msgspec.Struct, frozen=True):
    """How long to wait for a provider, in seconds."""

    connect: float = 10.0
    first_byte: float = 60.0
    idle: float = 60.0


class Credential(msgspec.Struct, frozen=True):
    """One key of a provider. `id` names it in logs and lists (`profile:<id>`, `env:<NAME>`, `config`) and is no secret; `key` is one."""

    id: str
    key: str

    def __repr__(self) -> str:
        return f"<Credential {self.id}>"


class Provider(msgspec.Struct, frozen=True):
    """One provider with everything an adapter needs. `key` is a secret: never logged, never in an error.

    `credentials` are all its keys, in the order in which they are tried; `key` is the first one's. `ordered`: the configuration says this order
    (`auth.order`); where not, sessions are spread over the keys.
    """

    id: str
    api: str
    base_url: str
    key: str | None
    headers: dict[str, str]
    auth_header: bool
    max_connections: int
    limits: Limits
    ca_path: str | None = None
    credentials: tuple[Credential, ...] = ()
    ordered: bool = False

    def __repr__(self) -> str:
        return f"<Provider {self.id} {self.api}>"


class Model(msgspec.Struct, frozen=True):
    """One model of one provider."""

    provider: Provider
    id: str
    name: str
    context_window: int
    max_tokens: int
    input: tuple[str, ...]
    tools: bool
    reasoning: bool
    compat: dict[str, Any]
    cost: Cost = Cost()

    @property
    def ref(self) -> str:
        """`provider/model`."""
        return f"{self.provider.id}/{self.id}"


#: Vendors that speak chat completions: base URL and the environment variable of the key. Ids are the field's usual ones.
VENDORS: dict[str, tuple[str, str]] = {
    "openai": ("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "openrouter": ("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "groq": ("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "mistral": ("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "xai": ("https://api.x.ai/v1", "XAI_API_KEY"),
    "together": ("https://api.together.xyz/v1", "TOGETHER_API_KEY"),
    "cerebras": ("https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    "ollama": ("http://127.0.0.1:11434/v1", "OLLAMA_API_KEY"),
    "vllm": ("http://127.0.0.1:8000/v1", "VLLM_API_KEY"),
    "litellm": ("http://127.0.0.1:4000/v1", "LITELLM_API_KEY"),
}
_LOCAL = ProviderEntry(
    api="local",
    max_connections=1,
    models=(ModelDefinition(id="smollm2-135m-instruct", name="SmolLM2 135M Instruct", context_window=8192, max_tokens=2048, tools=False),),
)


def key_variable(provider_id: str) -> str:
    """The environment variable that holds a provider's key."""
    return VENDORS[provider_id][1] if provider_id in VENDORS else re.sub(r"[^A-Z0-9]", "_", provider_id.upper()) + "_API_KEY"


class Catalogue:
    """Looks up `provider/model` references. `environ` is the private map of the start; keys are taken from it where the file has none."""

    def __init__(self, models: Models, environ: Mapping[str, str]) -> None:
        entries = {} if models.mode == "replace" else {"local": _LOCAL, **{name: ProviderEntry(base_url=url) for name, (url, _) in VENDORS.items()}}
        for name, entry in models.providers.items():
            built_in = entries.get(name)
            if built_in is not None:
                entry = msgspec.structs.replace(
                    entry,
                    base_url=entry.base_url or built_in.base_url,
                    api=built_in.api if name == "local" else entry.api,
                    models=entry.models + tuple(m for m in built_in.models if m.id not in {own.id for own in entry.models}),
                )
            entries[name] = entry
        self._entries = entries
        self._providers = {name: self._provider(name, entry, models.timeouts, environ) for name, entry in entries.items()}
        self._models: dict[str, Model] = {}
        for name, entry in entries.items():
            for definition in entry.models:
                model = self._model(name, definition)
                self._models[model.ref] = model

    @staticmethod
    def _provider(name: str, entry: ProviderEntry, wide: Timeouts, environ: Mapping[str, str]) -> Provider:
        def seconds(own: int | None, general: int | None, default: int) -> float:
            return next(value for value in (own, general, default) if value is not None) / 1000

        local = entry.api == "local"
        key = entry.api_key or environ.get(key_variable(name)) or None
        return Provider(
            id=name,
            api=entry.api,
            base_url=(entry.base_url or "").rstrip("/"),
            key=key,
            credentials=(Credential("config" if entry.api_key else f"env:{key_variable(name)}", key),) if key else (),
            headers=entry.headers,
            auth_header=entry.auth_header,
            max_connections=entry.max_connections or (1 if local else 1024),
            limits=Limits(
                connect=seconds(entry.timeouts.connect_ms, wide.connect_ms, 10_000),
                first_byte=seconds(entry.timeouts.first_byte_ms, None if local else wide.first_byte_ms, 300_000 if local else 60_000),
                idle=seconds(entry.timeouts.idle_ms, wide.idle_ms, 60_000),
            ),
            ca_path=entry.ca_path,
        )

    def _model(self, provider_id: str, definition: ModelDefinition) -> Model:
        return Model(
            provider=self._providers[provider_id],
            id=definition.id,
            name=definition.name or definition.id,
            context_window=definition.context_window,
            max_tokens=definition.max_tokens,
            input=definition.input,
            tools=definition.tools,
            reasoning=definition.reasoning,
            compat=definition.compat,
            cost=definition.cost,
        )

    @property
    def providers(self) -> Mapping[str, Provider]:
        """All providers by id."""
        return self._providers

    @property
    def models(self) -> Mapping[str, Model]:
        """The models that are listed, by `provider/model`."""
        return self._models

    def find(self, ref: str) -> Model | None:
        """The model of a reference. A model that a known provider does not list is taken on trust; an unknown provider gives None."""
        model = self._models.get(ref)
        if model is None:
            provider_id, _, model_id = ref.partition("/")
            if model_id and provider_id in self._providers and self._entries[provider_id].api != "local":
                model = self._model(provider_id, ModelDefinition(id=model_id))
        return model
