"""`models.list`: the models that can be chosen. Imports mayros.core and mayros.wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from mayros.core.models import Model
from mayros.core.routing import Settings
from mayros.wire.frames import Request, parse_params

if TYPE_CHECKING:
    from mayros.ws.session import Session


class ModelsListParams(msgspec.Struct, frozen=True):
    """None."""


def models_list(session: Session, request: Request) -> None:
    """`{models: [{id, name, provider, contextWindow, reasoning, input}]}`."""
    parse_params(ModelsListParams, request.params, "models.list")
    session.reply(request.id, {"models": [_shown(model) for model in _known(session.gateway.config.current)]})


def _known(settings: Settings) -> list[Model]:
    """The models that the configuration lists, and those that agents use without."""
    known = dict(settings.catalogue.models)
    for agent in settings.directory.agents.values():
        known.update((model.ref, model) for model in agent.models if model.ref not in known)
    return list(known.values())


def _shown(model: Model) -> dict[str, object]:
    return {
        "id": model.id,
        "name": model.name,
        "provider": model.provider.id,
        "contextWindow": model.context_window,
        "reasoning": model.reasoning,
        "input": model.input,
    }
