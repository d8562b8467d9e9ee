"""`models.list` and `models.status`: the models that can be chosen, and how their providers do. Imports mayros.core and mayros.wire."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

import msgspec

from mayros.core.models import Model
from mayros.core.routing import Settings
from mayros.wire.frames import Request, parse_params

if TYPE_CHECKING:
    from mayros.ws.session import Session


class ModelsListParams(msgspec.Struct, frozen=True):
    """None."""


class ModelsStatusParams(msgspec.Struct, frozen=True):
    """None."""


def models_list(session: Session, request: Request) -> None:
    """`{models: [{id, name, provider, contextWindow, reasoning, input}]}`."""
    parse_params(ModelsListParams, request.params, "models.list")
    session.reply(request.id, {"models": [_shown(model) for model in _known(session.gateway.config.current)]})


def models_status(session: Session, request: Request) -> None:
    """`{ts, providers}`: each provider that can be asked, as core.health.ModelHealth.status gives it."""
    parse_params(ModelsStatusParams, request.params, "models.status")
    gateway = session.gateway
    providers = {model.provider.id: model.provider for model in _known(gateway.config.current)}
    found = gateway.model_health.status(providers.values(), gateway.monotonic())
    session.reply(request.id, {"ts": gateway.now_ms(), "providers": found})


def _known(settings: Settings) -> list[Model]:
    """The models that can be asked: of providers that are configured or have a key, and those that agents use."""
    own = settings.config.models.providers
    known = {ref: model for ref, model in settings.catalogue.models.items() if usable(model, own)}
    for agent in settings.directory.agents.values():
        known.update((model.ref, model) for model in agent.models if model.ref not in known)
    return list(known.values())


def usable(model: Model, configured: Container[str]) -> bool:
    """Whether there is anything to ask it with: built-in vendors need a key."""
    provider = model.provider
    return bool(provider.credentials) or provider.api == "local" or provider.id in configured


def _shown(model: Model) -> dict[str, object]:
    return {
        "id": model.id,
        "name": model.name,
        "provider": model.provider.id,
        "contextWindow": model.context_window,
        "reasoning": model.reasoning,
        "input": model.input,
    }
