"""Models that speak Google's generateContent: the `google-generative-ai` provider (Gemini).

`google_request` writes the request (pure), google_contents.py the conversation in it; google_decoder.py reads the answer, adapter.py does the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Self
from urllib.parse import quote

import msgspec

from mayros.core.models import Model, Provider
from mayros.core.ports import ModelRequest, Sampling, ToolSpec
from mayros.errors import ConfigError
from mayros.providers.adapter import HttpAdapter
from mayros.providers.formats import forced, instructed, pinned
from mayros.providers.google_contents import contents, newest, version
from mayros.providers.google_decoder import GoogleDecoder
from mayros.providers.written import WrittenTools

_BUDGETS = {"none": 0, "minimal": 128, "low": 2048, "medium": 8192, "high": 32_768, "xhigh": 32_768}
_LEVELS = ("MINIMAL", "LOW", "MEDIUM", "HIGH")
_WANTED = {"none": 0, "minimal": 0, "low": 1, "medium": 2, "high": 3, "xhigh": 3}
#: What a refusal says, and what is dropped after it. Levels are dropped one by one, each for the nearest one that is left.
_REFUSALS = (
    (re.compile(rb"thinking[ _]?level (?P<level>[A-Z]+) is not supported", re.IGNORECASE), "thinkingLevel"),
    (re.compile(rb"thinking[ _]?level\b.{0,40}not supported", re.IGNORECASE), "thinkingLevel"),
    (re.compile(rb"\bbudget\b.{0,80}(?:invalid|not supported|must be|out of range)", re.IGNORECASE), "thinkingBudget"),
    (re.compile(rb"thinking[ _]?config is not supported|thinking is not enabled|include_thoughts is only enabled", re.IGNORECASE), "thinkingConfig"),
    (re.compile(rb"response[ _]?mime[ _]?type.{0,60}(?:unsupported|not supported)|json mode is not", re.IGNORECASE), "responseMimeType"),
    (re.compile(rb"penalty is not (?:enabled|supported)", re.IGNORECASE), "penalties"),
)
#: JSON Schema as `parameters` knows it, for servers that do not know `parametersJsonSchema`.
_SUBSET = frozenset(
    {
        *("type", "format", "title", "description", "nullable", "enum", "required", "items", "properties", "anyOf", "default"),
        *("minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength", "pattern", "minimum", "maximum"),
    }
)
_encode = msgspec.json.Encoder().encode


def google_request(request: ModelRequest, dropped: frozenset[str] = frozenset()) -> tuple[bytes, ...]:
    """The body of the request for one model turn, in parts: the tools are most of it, and all runs of an agent share one copy of them."""
    model = request.model
    body: dict[str, object] = {"contents": contents(request.messages, model)}
    form = _form(request, dropped)
    if system := instructed(request, known="responseJsonSchema" in form):
        body["systemInstruction"] = {"parts": [{"text": system}]}
    if config := _generation(model, request.sampling, dropped) | form:
        body["generationConfig"] = config
    if forced(request):
        name = pinned(request)
        body["toolConfig"] = {"functionCallingConfig": {"mode": "ANY", **({"allowedFunctionNames": [name]} if name else {})}}
    elif request.tools and request.tool_choice == "none":
        body["toolConfig"] = {"functionCallingConfig": {"mode": "NONE"}}
    written = _encode(body)
    if not request.tools:
        return (written,)
    tools = _tools if "parametersJsonSchema" not in dropped else _subset_tools
    return (written[:-1], b',"tools":[{"functionDeclarations":', tools(request.tools), b"}]}")


def _form(request: ModelRequest, dropped: frozenset[str]) -> dict[str, object]:
    """The form of the answer. Models before Gemini 3 take it only where there are no tools."""
    wanted = request.response_format
    if wanted is None or "responseMimeType" in dropped or (request.tools and not newest(request.model.id)):
        return {}
    form: dict[str, object] = {"responseMimeType": "application/json"}
    if wanted.schema is not None and "responseJsonSchema" not in dropped:
        form["responseJsonSchema"] = wanted.schema
    return form


def _generation(model: Model, sampling: Sampling, dropped: frozenset[str]) -> dict[str, object]:
    config: dict[str, object] = {
        "temperature": sampling.temperature,
        "topP": sampling.top_p,
        "maxOutputTokens": sampling.max_tokens,
        "stopSequences": sampling.stop or None,
        "seed": None if sampling.seed is None else sampling.seed % (1 << 31),  # 32 bits
        "frequencyPenalty": None if "penalties" in dropped else sampling.frequency_penalty,
        "presencePenalty": None if "penalties" in dropped else sampling.presence_penalty,
    }
    if model.reasoning and "thinkingConfig" not in dropped:
        config["thinkingConfig"] = _thinking(model.id, sampling.reasoning_effort, dropped) or None
    return {name: value for name, value in config.items() if value is not None and name not in dropped}


def _thinking(model_id: str, effort: str | None, dropped: frozenset[str]) -> dict[str, object]:
    config: dict[str, object] = {} if effort == "none" or "includeThoughts" in dropped else {"includeThoughts": True}
    if effort not in _WANTED:
        return config  # as much as the model likes
    if newest(model_id):
        if "thinkingLevel" not in dropped and (level := _level(model_id, _WANTED[effort], dropped)) is not None:
            config["thinkingLevel"] = level
    elif (version(model_id) or (0, 0)) >= (2, 5) and "thinkingBudget" not in dropped:
        config["thinkingBudget"] = _budget(model_id, effort)
    return config


def _level(model_id: str, wanted: int, dropped: frozenset[str]) -> str | None:
    """The level, or the nearest one that the model has: rather more than less."""
    missing = {level for level in _LEVELS if f"thinkingLevel:{level}" in dropped}
    if "pro" in model_id:
        missing |= {"MINIMAL", "MEDIUM"} if version(model_id) == (3, 0) else {"MINIMAL"}
    return next((level for level in (*_LEVELS[wanted:], *_LEVELS[wanted::-1]) if level not in missing), None)


def _budget(model_id: str, effort: str) -> int:
    """Gemini 2.5: tokens to think with. Pro cannot do without; the others have a lower upper bound."""
    budget = _BUDGETS[effort]
    if "pro" in model_id:
        return max(budget, 128)
    return min(max(budget, 512), 24_576) if "lite" in model_id and budget else min(budget, 24_576)


def _tool(spec: ToolSpec) -> object:
    return {"name": spec.name, "description": spec.description, "parametersJsonSchema": spec.parameters}


def _subset_tool(spec: ToolSpec) -> object:
    """With what Google's own subset has of the schema."""
    said: dict[str, object] = {"name": spec.name, "description": spec.description}
    if spec.parameters.get("properties"):  # an object without any is refused
        said["parameters"] = _subset(spec.parameters)
    return said


_tools, _subset_tools = WrittenTools(_tool), WrittenTools(_subset_tool)


def _subset(schema: object) -> object:
    """A JSON Schema without what `parameters` does not know: references, further properties, constants, several types."""
    if not isinstance(schema, dict):
        return {}
    kept: dict[str, object] = {name: value for name, value in schema.items() if name in _SUBSET}
    if isinstance(kinds := schema.get("type"), list):
        kept["type"] = next((kind for kind in kinds if kind != "null"), "string")
        if "null" in kinds:
            kept["nullable"] = True
    if "const" in schema:
        kept["enum"] = [schema["const"]]
    if isinstance(choices := kept.get("enum"), list):
        if all(isinstance(choice, str) for choice in choices):
            kept.setdefault("type", "string")
        else:
            del kept["enum"]  # texts only
    if schema.get("format") not in ("enum", "date-time", "int32", "int64", "float", "double"):
        kept.pop("format", None)
    if isinstance(properties := kept.get("properties"), dict):
        kept["properties"] = {name: _subset(value) for name, value in properties.items()}
    if "items" in kept:
        kept["items"] = _subset(kept["items"])
    if isinstance(ways := schema.get("anyOf", schema.get("oneOf")), list):
        kept["anyOf"] = [_subset(way) for way in ways]
    return kept


class GoogleAI(HttpAdapter):
    """See the module."""

    @classmethod
    def connect(cls, provider: Provider, *given: Any, **more: Any) -> Self:
        """See HttpAdapter."""
        if "?" in provider.base_url:
            raise ConfigError("baseUrl must not have a query: give the key as apiKey")
        return super().connect(provider, *given, **more)

    def path(self, request: ModelRequest) -> bytes:
        """See HttpAdapter."""
        name = request.model.id if "/" in request.model.id else f"models/{request.model.id}"
        return f"/{quote(name)}:streamGenerateContent?alt=sse".encode("ascii")

    def key_headers(self, key: str) -> Mapping[str, str]:
        """See HttpAdapter."""
        return {"x-goog-api-key": key}

    def body(self, request: ModelRequest, dropped: frozenset[str]) -> tuple[bytes, ...]:
        """See HttpAdapter."""
        return google_request(request, dropped)

    def optional(self, request: ModelRequest) -> Iterable[str]:
        """See HttpAdapter."""
        thinking = ("thinkingLevel", "thinkingBudget", "includeThoughts", "thinkingConfig")
        return (*thinking, "parametersJsonSchema", "responseJsonSchema", "responseMimeType", "seed", "frequencyPenalty", "presencePenalty")

    def instead(self, request: ModelRequest, body: bytes, dropped: frozenset[str]) -> str | None:
        """See HttpAdapter. Google says in words what a model does not take."""
        for pattern, name in _REFUSALS:
            if (found := pattern.search(body)) is not None:
                level = found.groupdict().get("level")
                return f"{name}:{level.decode().upper()}" if level else name
        return None

    def decoder(self, request: ModelRequest) -> GoogleDecoder:
        """See HttpAdapter."""
        return GoogleDecoder(self._provider.id, request.model.id, self._redact, tools=bool(request.tools))
