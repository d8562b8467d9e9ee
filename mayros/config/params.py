"""`params` of a model or an agent: how it is asked where the request says nothing. Pure; imports schema and source.

A value that makes no sense is left out, and a warning says so: a configuration of the original's must not keep the gateway from its start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from mayros.config.schema import Agents
from mayros.config.source import join

THINKING = ("off", "minimal", "low", "medium", "high", "xhigh")
#: Also understood: `on` is low, `max` is xhigh.
_LEVELS = (*THINKING, "none", "on", "max")
_KEPT = ("none", "short", "long")


def _between(least: float, most: float) -> Callable[[object], bool]:
    return lambda value: type(value) in (int, float) and math.isfinite(value) and least <= value <= most  # type: ignore[arg-type, operator]


#: Under both names of the original: what it is called here, what is taken, and in words.
_KNOWN: dict[str, tuple[str, Callable[[object], bool], str]] = {
    "temperature": ("temperature", _between(0, 2), "a number from 0 to 2"),
    "topP": ("top_p", _between(0, 1), "a number from 0 to 1"),
    "maxTokens": ("max_tokens", lambda value: type(value) is int and 1 <= value <= 1 << 31, "a whole number of at least 1"),
    "thinking": ("thinking", lambda value: value in _LEVELS, f"one of {', '.join(THINKING)}"),
    "cacheRetention": ("cache_retention", lambda value: value in _KEPT, f"one of {', '.join(_KEPT)}"),
}
_KNOWN |= {"top_p": _KNOWN["topP"], "max_tokens": _KNOWN["maxTokens"]}


def usable(params: Mapping[str, Any]) -> dict[str, Any]:
    """What of `params` counts: `temperature`, `top_p`, `max_tokens`, `thinking`, `cache_retention`."""
    return {_KNOWN[name][0]: value for name, value in params.items() if name in _KNOWN and _takes(name, value)}


def problems(agents: Agents) -> list[str]:
    """What of all `params` does not count, and why: a line each, with the key's path."""
    asked = [(join("agents.defaults.models", ref), entry.params) for ref, entry in agents.defaults.models.items()]
    asked += [(f"agents.list[{number}]", entry.params) for number, entry in enumerate(agents.list)]
    found = []
    for path, params in asked:
        for name, value in params.items():
            if name not in _KNOWN:
                why = f"has no effect here; known are {', '.join(key for key in _KNOWN if '_' not in key)}"
            elif _takes(name, value):
                continue
            else:
                why = f"must be {_KNOWN[name][2]}; ignored"
            found.append(f"{join(f'{path}.params', name)}: {why}")
    return found


def _takes(name: str, value: object) -> bool:
    try:
        return _KNOWN[name][1](value)
    except TypeError:  # a list cannot be looked up
        return False
