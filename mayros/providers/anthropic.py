"""Models that speak Anthropic's Messages API: the `anthropic-messages` providers, Anthropic itself and servers that imitate it.

`messages_request` writes the request (pure; the conversation in anthropic_messages.py), anthropic_decoder.py reads the answer, adapter.py does the
rest. What a model takes depends on its generation, which its name tells; for a name that says nothing, a 400 that names a parameter corrects it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from mayros.core.models import Model
from mayros.core.ports import ModelRequest, ToolSpec
from mayros.providers.adapter import HttpAdapter
from mayros.providers.anthropic_decoder import AnthropicDecoder
from mayros.providers.anthropic_messages import called, thinks, turns_of
from mayros.providers.formats import forced, instructed, pinned
from mayros.providers.written import WrittenTools

#: The version that imitators know; `headers` may name another.
VERSION = "2023-06-01"
#: From this version on there are no sampling parameters.
_NO_SAMPLING_VERSION = "2026-10-21"
_VENDOR = "https://api.anthropic.com"

#: Tokens of thinking, for models that take a budget; the least that is one, and the least that is left for the answer.
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 16384}
_LEAST = 1024
#: Effort, for models that decide by themselves how much they think; the words of the vendor, in order.
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh"}
_LADDER = ("low", "medium", "high", "xhigh", "max")
_LEVEL = re.compile(rb"\b(?:low|medium|high|xhigh|max)\b")
#: Dropped where a server refuses thinking both ways.
_NO_THINKING = "thinking=none"

_GENERATION = re.compile(r"claude-(?:[a-z]+-)*(\d{1,2})(?:[-.](\d{1,2}))?(?!\d)")
_NEWEST = (99, 0)
_encode = msgspec.json.Encoder().encode


@lru_cache(256)
def generation(model_id: str) -> tuple[int, int] | None:
    """(4, 6) for `claude-opus-4-6`; that of the newest ones for a Claude whose name has no number; None for other models."""
    found = _GENERATION.search(model_id)
    if found is not None:
        return int(found[1]), int(found[2] or 0)
    return _NEWEST if "claude" in model_id else None


def messages_request(request: ModelRequest, dropped: frozenset[str] = frozenset(), version: str = VERSION) -> tuple[bytes, ...]:
    """The body of the request for one model turn, in parts. `dropped`: parameters that the server refused before, see Anthropic.optional."""
    model, sampling = request.model, request.sampling
    turns = turns_of(request.messages, model.ref, "image" in model.input)
    body: dict[str, Any] = {"model": model.id, "max_tokens": sampling.max_tokens or model.max_tokens, "stream": True}
    mark = _mark(request) if "cache_control" not in dropped else None
    if blocks := _system(request, mark):
        body["system"] = blocks
    body["messages"] = turns
    if mark is not None:
        last = turns[-1]["content"]
        last[-1] = {**last[-1], "cache_control": mark}
    _think(body, request, dropped)
    body.update((name, value) for name, value in _sampling(request, version).items() if name not in dropped)
    if sampling.stop and (stop := [text for text in sampling.stop if not text.isspace()]):
        body["stop_sequences"] = stop
    if request.tools:
        if choice := _choice(request):
            body["tool_choice"] = choice
        return _encode(body)[:-1], b',"tools":', _written(request.tools), b"}"
    if names := called(turns):  # calls in the conversation are refused where no tool is defined
        body["tools"] = [{"name": name, "input_schema": {"type": "object"}} for name in names]
        body["tool_choice"] = {"type": "none"}
    return (_encode(body),)


def _system(request: ModelRequest, mark: Mapping[str, str] | None) -> list[dict[str, Any]]:
    """The system text: what stays the same ends with the mark, so that it is cached; what the caller adds to it comes after."""
    text = instructed(request, known=False)
    stable = request.system_stable or (len(request.system) if text is not request.system else 0)
    parts = [part for part in ((text[:stable].rstrip("\n"), text[stable:].lstrip("\n")) if stable else (text,)) if part and not part.isspace()]
    blocks: list[dict[str, Any]] = [{"type": "text", "text": part} for part in parts]
    if mark is not None and blocks:
        blocks[0]["cache_control"] = mark
    return blocks


def _choice(request: ModelRequest) -> dict[str, object]:
    """Whether a tool must be called, and whether only one at a time; nothing where it is as usual."""
    choice: dict[str, object] = {}
    if (name := pinned(request)) is not None:
        choice = {"type": "tool", "name": name}
    elif request.tool_choice != "auto":
        choice = {"type": {"required": "any"}.get(request.tool_choice, request.tool_choice)}
    if not request.parallel_calls and request.tool_choice != "none":
        choice = {"type": "auto", **choice, "disable_parallel_tool_use": True}
    return choice


def _mark(request: ModelRequest) -> dict[str, str] | None:
    """What marks the end of a prefix to be cached. `params.cacheRetention`, or that of `compat`, is none, short (5 minutes) or long (an hour);
    imitators get none."""
    model = request.model
    usual = "short" if model.provider.base_url.startswith(_VENDOR) else "none"
    kept = request.sampling.cache_retention or model.compat.get("cacheRetention", usual)
    return {"short": {"type": "ephemeral"}, "long": {"type": "ephemeral", "ttl": "1h"}}.get(kept) if isinstance(kept, str) else None


def _thinks(request: ModelRequest) -> bool:
    """Whether the model is asked to think. Who must call a tool may not."""
    return request.model.reasoning and request.sampling.reasoning_effort in _BUDGETS and not forced(request)


def _style(model: Model, dropped: frozenset[str]) -> str:
    """How thinking is asked for: `adaptive` (from 4.6 on) or `budget`; the other one where the server refused the first."""
    style = model.compat.get("thinkingFormat")
    if style not in ("adaptive", "budget"):
        style = "adaptive" if (generation(model.id) or (0, 0)) >= (4, 6) else "budget"
    return {"adaptive": "budget", "budget": "adaptive"}[style] if "thinking" in dropped else str(style)


def effort(request: ModelRequest, dropped: frozenset[str]) -> str | None:
    """The effort that is asked for, below those that the server refused (`effort=max`)."""
    if not _thinks(request) or dropped & {"output_config", "effort", _NO_THINKING} or _style(request.model, dropped) != "adaptive":
        return None
    level = _EFFORTS[request.sampling.reasoning_effort or ""]
    if level == "xhigh" and (generation(request.model.id) or _NEWEST) < (4, 7):
        level = "max"
    below = _LADDER[: _LADDER.index(level) + 1]
    return next((word for word in reversed(below) if f"effort={word}" not in dropped), None)


def _think(body: dict[str, Any], request: ModelRequest, dropped: frozenset[str]) -> None:
    """Thinking as the caller wants it, with the answer's limit made larger by its budget as far as the model goes."""
    model = request.model
    if not _thinks(request) or _NO_THINKING in dropped:
        return
    if _style(model, dropped) == "adaptive":
        # The newest keep their thinking to themselves unless they are asked.
        shown = {"display": "summarized"} if (generation(model.id) or (0, 0)) >= (4, 7) and "display" not in dropped else {}
        body["thinking"] = {"type": "adaptive", **shown}
        if (word := effort(request, dropped)) is not None:
            body["output_config"] = {"effort": word}
        return
    asked, budget = body["max_tokens"], _BUDGETS[request.sampling.reasoning_effort or ""]
    limit = max(asked, min(asked + budget, model.max_tokens, request.most_tokens or model.max_tokens))
    budget = min(budget, limit - min(asked, _LEAST))
    if budget >= _LEAST and thinks(body["messages"]):
        body["max_tokens"] = limit
        body["thinking"] = {"type": "enabled", "budget_tokens": budget}


def _sampling(request: ModelRequest, version: str) -> dict[str, float]:
    """Temperature and top_p, where both the model and the version take them; neither with thinking, which refuses them."""
    sampling, made = request.sampling, generation(request.model.id) or (0, 0)
    if made >= (4, 7) or version >= _NO_SAMPLING_VERSION or _thinks(request):
        return {}
    values: dict[str, float] = {}
    if sampling.temperature is not None:
        values["temperature"] = min(sampling.temperature, 1.0)  # OpenAI's goes to 2
    if sampling.top_p is not None and not (values and made >= (4, 1)):  # these refuse both together
        values["top_p"] = sampling.top_p
    return values


#: Not taken at the top of a schema.
_ALTERNATIVES = ("oneOf", "anyOf", "allOf")


def _tool(spec: ToolSpec) -> dict[str, Any]:
    schema = {**{key: value for key, value in spec.parameters.items() if key not in _ALTERNATIVES}, "type": "object"}
    described = {"description": spec.description} if spec.description else {}
    return {"name": spec.name, **described, "input_schema": schema}


_written = WrittenTools(_tool)


class Anthropic(HttpAdapter):
    """See the module."""

    def path(self, request: ModelRequest) -> bytes:
        """See HttpAdapter. The base URL may have the version or not, as people write it both ways."""
        return b"/messages" if self._provider.base_url.endswith("/v1") else b"/v1/messages"

    def key_headers(self, key: str) -> Mapping[str, str]:
        """An API key has a header of its own; a token of a login is a bearer's."""
        return {"Authorization": f"Bearer {key}"} if key.startswith("sk-ant-oat") else {"x-api-key": key}

    def more_headers(self) -> Mapping[str, str]:
        """See HttpAdapter."""
        return {"anthropic-version": VERSION}

    def body(self, request: ModelRequest, dropped: frozenset[str]) -> tuple[bytes, ...]:
        """See HttpAdapter."""
        return messages_request(request, dropped, self._version)

    @property
    def _version(self) -> str:
        return next((value for name, value in self._provider.headers.items() if name.lower() == "anthropic-version"), VERSION)

    def optional(self, request: ModelRequest) -> Iterable[str]:
        """See HttpAdapter. The more special ones first, because a refusal of one names what it is in. `thinking` is then asked for the other way."""
        sent = [] if _mark(request) is None else ["cache_control"]
        sent += _sampling(request, self._version)
        if _thinks(request):
            sent += ["display", "thinking", "effort", "output_config"]
        return sent

    def decoder(self, request: ModelRequest) -> AnthropicDecoder:
        """See HttpAdapter."""
        return AnthropicDecoder(self._provider.id, request.model.id, self._redact, tools=bool(request.tools))

    def _named(self, request: ModelRequest, body: bytes, dropped: frozenset[str]) -> str | None:
        """Also a level of effort that the server does not know (the next lower one is tried), and thinking, where it knows no way to ask for it."""
        word = effort(request, dropped)
        if word is not None and re.search(rb"\beffort\b", body) and _LEVEL.search(body):
            return f"effort={word}"
        named = super()._named(request, body, dropped - {"thinking"})
        if named == "thinking" and "thinking" in dropped:
            return _NO_THINKING if _NO_THINKING not in dropped else None
        return named
