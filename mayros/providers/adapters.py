"""The outbound adapters of a configuration: which one speaks to which provider."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from mayros.core.models import Provider
from mayros.core.ports import ModelProvider, ModelRequest
from mayros.core.routing import Settings
from mayros.errors import ConfigError, Unavailable
from mayros.events import Event
from mayros.providers.adapter import HttpAdapter
from mayros.providers.local import LocalModel
from mayros.providers.openai_chat import OpenAIChat

#: Adapters of providers as they were before, for runs that began then.
MOST_OLD = 16


class Adapters:
    """The outbound adapters by provider id, made when first asked for: agents may be given other models while the gateway runs.

    So may the configuration of a provider be another one (`use`). A run speaks to the provider that it began with: its key is never sent elsewhere.
    """

    def __init__(self, settings: Settings, state_dir: str, reactor: Any) -> None:
        self._providers: Mapping[str, Provider] = settings.catalogue.providers
        self._state_dir, self._reactor = state_dir, reactor
        self._environ = settings.environ
        self._made: dict[str, tuple[Provider, ModelProvider]] = {}
        self._old: list[tuple[Provider, ModelProvider]] = []
        self._changed: dict[str, _Changed] = {}
        self.local: LocalModel | None = None
        self.check(settings)

    def check(self, settings: Settings) -> None:
        """Raise ConfigError where an agent's model cannot be reached as its provider is configured: told at the start, not by the first run."""
        providers = {model.provider.id: model.provider for agent in settings.directory.agents.values() for model in agent.models}
        for provider_id, provider in providers.items():
            if self._providers.get(provider_id) == provider:
                self._current(provider_id)
            elif provider.api != "local":
                _close(self._make(provider))

    def use(self, settings: Settings) -> None:
        """These settings are in force. Adapters of providers that have changed are made anew when they are asked for; of the old ones the idle
        connections are closed now, the others when they are done."""
        self._providers = settings.catalogue.providers
        for provider_id, (provider, adapter) in tuple(self._made.items()):
            now = self._providers.get(provider_id)
            if now == provider:
                continue
            if isinstance(adapter, LocalModel):  # there is one, and its process goes on
                if now is not None and now.api == "local":
                    adapter.use(now)
                    self._made[provider_id] = now, adapter
                continue
            del self._made[provider_id]
            self._changed[provider_id] = _Changed(self)
            self._keep(provider, adapter)

    def get(self, provider_id: str) -> ModelProvider | None:
        """The adapter, or None where this version has none for the provider's api. Raises ConfigError."""
        changed = self._changed.get(provider_id)
        return self._current(provider_id) if changed is None else changed

    def of(self, provider: Provider) -> ModelProvider | None:
        """The adapter for a provider as it is, or was. Raises ConfigError."""
        if self._providers.get(provider.id) == provider:
            return self._current(provider.id)
        known = next((adapter for old, adapter in self._old if old == provider), None)
        if known is None and (known := self._make(provider)) is not None:
            self._keep(provider, known)
        return known

    def _current(self, provider_id: str) -> ModelProvider | None:
        made = self._made.get(provider_id)
        if made is not None:
            return made[1]
        provider = self._providers.get(provider_id)
        adapter = self._make(provider) if provider is not None else None
        if provider is not None and adapter is not None:
            self._made[provider_id] = provider, adapter
        return adapter

    def _keep(self, provider: Provider, adapter: ModelProvider) -> None:
        """For those that still want it. It keeps no connection open from now on."""
        _close(adapter)
        self._old.append((provider, adapter))
        del self._old[:-MOST_OLD]

    def _make(self, provider: Provider) -> ModelProvider | None:
        if provider.api == "local":
            self.local = LocalModel.connect(provider, self._state_dir, self._reactor)
            return self.local
        if (kind := _adapter(provider.api)) is None:
            return None
        if not provider.base_url:
            raise ConfigError(f"models.providers.{provider.id}.baseUrl is not set")
        try:
            return kind.connect(provider, self._reactor, environ=self._environ)
        except ConfigError as error:
            raise ConfigError(f"models.providers.{provider.id}: {error}") from error

    async def close(self) -> None:
        """The model's process, then the connections."""
        if self.local is not None:
            await self.local.stop()
        for _, adapter in self._made.values():
            _close(adapter)


class _Changed:
    """Stands for the adapters of a provider whose configuration was another one before."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters

    def stream(self, request: ModelRequest) -> AsyncGenerator[list[Event], None]:
        """See ports.ModelProvider."""
        adapter = self._adapters.of(request.model.provider)
        if adapter is None:
            raise Unavailable(f"This version cannot speak to {request.model.ref}.")
        return adapter.stream(request)


def _close(adapter: ModelProvider | None) -> None:
    if isinstance(adapter, HttpAdapter):
        adapter.close()


def _adapter(api: str) -> type[HttpAdapter] | None:
    """The adapter of a wire format; loaded with the first provider that speaks it."""
    if api == "openai-completions":
        return OpenAIChat
    if api == "anthropic-messages":
        from mayros.providers.anthropic import Anthropic

        return Anthropic
    if api == "openai-responses":
        from mayros.providers.openai_responses import OpenAIResponses

        return OpenAIResponses
    if api == "google-generative-ai":
        from mayros.providers.google import GoogleAI

        return GoogleAI
    return None
