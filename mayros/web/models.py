"""What `GET /v1/models` lists: the agents, under the names that the field `model` takes. Providers' own models are not listed. Pure.

Imports core, wire and errors.
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from mayros.core.ports import Principal
from mayros.core.reach import may_use
from mayros.core.routing import Settings
from mayros.errors import AgentNotFound
from mayros.wire.models import ModelObject


def listed(settings: Settings, principal: Principal) -> dict[str, ModelObject]:
    """The models that this caller may ask, by id: `mayros` and `mayros/default` are the default agent."""
    directory, created = settings.directory, settings.loaded_at_ms // 1000
    default = directory.default_id
    ids = {"mayros": default, "mayros/default": default, **{f"mayros/{agent_id}": agent_id for agent_id in directory.agents}}
    return {
        name: ModelObject(id=name, created=created, name=directory.agents[agent_id].name or agent_id)
        for name, agent_id in ids.items()
        if may_use(principal, agent_id)
    }


def find(settings: Settings, principal: Principal, encoded: bytes) -> ModelObject:
    """The model of an id as it stands in a path, where its slash may be encoded. Raises AgentNotFound."""
    models = listed(settings, principal)
    name = unquote_to_bytes(encoded).decode("utf-8", "replace")
    model = models.get(name.lower())
    if model is None:
        raise AgentNotFound(f"There is no model {name[:80]!r} here. GET /v1/models lists those that there are.", param="model")
    return model
