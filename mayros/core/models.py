"""Which models there are: the configured ones and the built-in entries, resolved once when the configuration is read. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from mayros.config.schema import Cost, ModelAuth, ModelDefinition, Models, ProviderApi, ProviderEntry, Timeouts
from mayros.core.vendors import VENDORS, built_in

EMBEDDED = "local/smollm2-135m-instruct"

_NO_AUTH = ModelAuth()
_NO_KEYS: Mapping[str, str] = {}


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
    #: Whether it is told of which trace a request is a part.
    traceparent: bool = False

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


#: What stands behind the name of a model where the vendor fixes a version: a date, `latest`, a preview.
_VERSION = re.compile(r"(.+?)-(?:\d{8}|\d{4}-\d{2}-\d{2}|\d{3}|latest|preview(?:-[\d-]+)?)")


def key_variables(provider_id: str) -> tuple[str, ...]:
    """The environment variables that may hold a provider's key."""
    if provider_id in VENDORS:
        return VENDORS[provider_id][2]
    return (re.sub(r"[^A-Z0-9]", "_", provider_id.upper()) + "_API_KEY",)


class Catalogue:
    """Looks up `provider/model` references. `environ` is the private map of the start; keys are taken from it where the file has none."""

    def __init__(self, models: Models, environ: Mapping[str, str], auth: ModelAuth = _NO_AUTH, keys: Mapping[str, str] = _NO_KEYS) -> None:
        entries = {} if models.mode == "replace" else built_in()
        for name, entry in models.providers.items():
            known = entries.get(name)
            if known is not None:
                entry = msgspec.structs.replace(
                    entry,
                    base_url=entry.base_url or known.base_url,
                    api=_api(name, entry, known),
                    models=entry.models + tuple(m for m in known.models if m.id not in {own.id for own in entry.models}),
                )
            entries[name] = entry
        self._entries = entries
        self._providers = {
            name: self._provider(name, entry, models.timeouts, _credentials(name, entry, auth, keys, environ), name in auth.order)
            for name, entry in entries.items()
        }
        self._models: dict[str, Model] = {}
        for name, entry in entries.items():
            for definition in entry.models:
                model = self._model(name, definition)
                self._models[model.ref] = model

    @staticmethod
    def _provider(name: str, entry: ProviderEntry, wide: Timeouts, credentials: tuple[Credential, ...], ordered: bool) -> Provider:
        def seconds(own: int | None, general: int | None, default: int) -> float:
            return next(value for value in (own, general, default) if value is not None) / 1000

        local = entry.api == "local"
        return Provider(
            id=name,
            api=entry.api or "openai-completions",
            base_url=(entry.base_url or "").rstrip("/"),
            key=credentials[0].key if credentials else None,
            headers=entry.headers,
            auth_header=entry.auth_header,
            max_connections=entry.max_connections or (1 if local else 1024),
            limits=Limits(
                connect=seconds(entry.timeouts.connect_ms, wide.connect_ms, 10_000),
                first_byte=seconds(entry.timeouts.first_byte_ms, None if local else wide.first_byte_ms, 300_000 if local else 60_000),
                idle=seconds(entry.timeouts.idle_ms, wide.idle_ms, 60_000),
            ),
            ca_path=entry.ca_path,
            credentials=credentials,
            ordered=ordered,
            traceparent=entry.traceparent,
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
                model = self._model(provider_id, self._like(provider_id, model_id))
        return model

    def _like(self, provider_id: str, model_id: str) -> ModelDefinition:
        """What is known of a model that is not listed: that of the one of which it is a fixed version."""
        if (fixed := _VERSION.fullmatch(model_id)) is not None:
            for known in self._entries[provider_id].models:
                if known.id == fixed[1]:
                    return msgspec.structs.replace(known, id=model_id, name=None)
        return ModelDefinition(id=model_id)


def _api(name: str, entry: ProviderEntry, known: ProviderEntry) -> ProviderApi | None:
    """The wire format of a built-in provider. Who gives OpenAI's another address has a server that imitates chat completions."""
    if name == "local":
        return known.api
    if entry.api is None and known.api == "openai-responses" and entry.base_url not in (None, known.base_url):
        return "openai-completions"
    return entry.api or known.api


def _credentials(name: str, entry: ProviderEntry, auth: ModelAuth, keys: Mapping[str, str], environ: Mapping[str, str]) -> tuple[Credential, ...]:
    """All keys of a provider in the order of trying: of its profiles, then the one of its entry, else the environment's; each once."""
    ids = auth.order.get(name) or [profile_id for profile_id, profile in auth.profiles.items() if profile.provider == name]
    found = [Credential(f"profile:{profile_id}", keys[profile_id]) for profile_id in ids if profile_id in keys]
    if entry.api_key:
        found.append(Credential("config", entry.api_key))
    elif (variable := next((variable for variable in key_variables(name) if environ.get(variable, "").strip()), None)) is not None:
        found.append(Credential(f"env:{variable}", environ[variable]))
    return tuple({one.key: one for one in reversed(found)}.values())[::-1]
