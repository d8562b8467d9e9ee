"""The outbound adapters of a configuration: which one speaks to which provider."""

from __future__ import annotations

from typing import Any

from mayros.core.models import Provider
from mayros.core.ports import ModelProvider
from mayros.core.routing import Settings
from mayros.errors import ConfigError
from mayros.providers.adapter import HttpAdapter
from mayros.providers.local import LocalModel
from mayros.providers.openai_chat import OpenAIChat


class Adapters:
    """The outbound adapters by provider id, made when first asked for: agents may be given other models while the gateway runs."""

    def __init__(self, settings: Settings, state_dir: str, reactor: Any) -> None:
        self._providers, self._state_dir, self._reactor = settings.catalogue.providers, state_dir, reactor
        self._made: dict[str, ModelProvider] = {}
        self.local: LocalModel | None = None
        self.check(settings)

    def check(self, settings: Settings) -> None:
        """Raise ConfigError where an agent's model cannot be reached as its provider is configured: told at the start, not by the first run."""
        for agent in settings.directory.agents.values():
            for model in agent.models:
                self.get(model.provider.id)

    def get(self, provider_id: str) -> ModelProvider | None:
        """The adapter, or None where this version has none for the provider's api. Raises ConfigError."""
        adapter = self._made.get(provider_id)
        if adapter is None and (provider := self._providers.get(provider_id)) is not None:
            adapter = self._make(provider)
            if adapter is not None:
                self._made[provider_id] = adapter
        return adapter

    def _make(self, provider: Provider) -> ModelProvider | None:
        if provider.api == "local":
            self.local = LocalModel.connect(provider, self._state_dir, self._reactor)
            return self.local
        if (kind := _adapter(provider.api)) is None:
            return None
        if not provider.base_url:
            raise ConfigError(f"models.providers.{provider.id}.baseUrl is not set")
        return kind.connect(provider, self._reactor)

    async def close(self) -> None:
        """The model's process, then the connections."""
        if self.local is not None:
            await self.local.stop()
        for adapter in self._made.values():
            if isinstance(adapter, HttpAdapter):
                adapter.close()


def _adapter(api: str) -> type[HttpAdapter] | None:
    """The adapter of a wire format; loaded with the first provider that speaks it."""
    if api == "openai-completions":
        return OpenAIChat
    return None
