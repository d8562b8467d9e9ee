"""How a model is asked: what the caller wants, over the session's settings, over the agent's parameters. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from mayros.core.models import Model
from mayros.core.ports import History, Sampling, Turn

#: How much a model thinks is one of these, with `none` for not at all; clients and files also say `off` and `on`.
LEVELS = ("none", "minimal", "low", "medium", "high", "xhigh")
_WORDS = {"off": "none", "on": "low", "max": "xhigh"}
#: What reasoning models do where nobody says anything.
DEFAULT_LEVEL = "low"


def sampling(turn: Turn, history: History, model: Model) -> Sampling:
    """What the caller asked for, over the session's thinking level and the agent's own `params`, over the model's limit where it needs one."""
    asked, params = turn.sampling, turn.agent.params_for(model.ref)
    changes: dict[str, Any] = {}
    if asked.reasoning_effort is None and model.reasoning:
        said = (history.settings.thinking_level, params.get("thinking"), turn.agent.thinking, DEFAULT_LEVEL)
        changes["reasoning_effort"] = next(level for level in map(_level, said) if level is not None)
    if params or model.provider.api == "local":
        for field in ("temperature", "top_p", "max_tokens", "cache_retention"):
            value = params.get(field)
            if value is None and field == "max_tokens" and model.provider.api == "local":
                value = model.max_tokens  # a small model may never stop by itself
            if value is not None and getattr(asked, field) is None:
                changes[field] = value
    return msgspec.structs.replace(asked, **changes) if changes else asked


def _level(said: object) -> str | None:
    word = _WORDS.get(said, said) if isinstance(said, str) else None
    return word if word in LEVELS else None
