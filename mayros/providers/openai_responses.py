"""Models that speak OpenAI's Responses API: the `openai-responses` provider.

`responses_request` writes the request (pure), responses_decoder.py reads the answer, adapter.py does the rest. Nothing is stored with the vendor:
each request has the whole conversation, reasoning comes encrypted and goes back so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from mayros.core.models import Model
from mayros.core.ports import ModelRequest, ToolSpec
from mayros.messages import ImagePart, Message, text_of, unpack
from mayros.providers.adapter import HttpAdapter
from mayros.providers.compat import cache_key, guessed
from mayros.providers.conversation import Ids, state_of
from mayros.providers.efforts import effort, other_level
from mayros.providers.formats import instructed, openai_choice, openai_format, refuses_format
from mayros.providers.response_items import call_item, restored, said_item
from mayros.providers.responses_decoder import ResponsesDecoder
from mayros.providers.written import WrittenTools

PATH = b"/responses"

#: Parameters that an answer may be had without. Those inside of others come first.
_OPTIONAL = (
    *("reasoning.effort", "reasoning.summary", "reasoning.encrypted_content", "text.verbosity", "text.format"),
    *("temperature", "top_p", "stream_options"),
    *("prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "max_output_tokens", "include", "reasoning", "store"),
    *("tool_choice", "parallel_tool_calls"),
)
#: Of what the caller asked beyond the usual, what this API knows under the same name.
_EXTRA = ("prompt_cache_retention", "service_tier", "safety_identifier")
_LEAST_TOKENS = 16  # a lower limit is refused

_encode = msgspec.json.Encoder().encode


def _tool(spec: ToolSpec) -> object:
    return {"type": "function", "name": spec.name, "description": spec.description, "parameters": spec.parameters, "strict": bool(spec.strict)}


_tools = WrittenTools(_tool)


def responses_request(request: ModelRequest, dropped: frozenset[str] = frozenset()) -> tuple[bytes, ...]:
    """The body of the request for one model turn, in parts (the tools are shared by all runs of an agent), without the parameters in `dropped`."""
    model, sampling = request.model, request.sampling
    ours, extra = guessed(model.provider.base_url).openai, sampling.extra or {}
    body: dict[str, Any] = {"model": model.id, "input": input_items(request), "stream": True, "store": False}
    wanted = request.response_format if "text.format" not in dropped else None
    if system := instructed(request, known=wanted is not None):
        body["instructions"] = system
    if wanted is not None:
        body["text"] = {"format": openai_format(wanted, flat=True)}
    body.update(openai_choice(request, flat=True))
    if model.reasoning:
        if "reasoning.encrypted_content" not in dropped:
            body["include"] = ["reasoning.encrypted_content"]
        body["reasoning"] = _reasoning(model, sampling.reasoning_effort, ours, dropped)
    if sampling.temperature is not None:
        body["temperature"] = sampling.temperature
    if sampling.top_p is not None:
        body["top_p"] = sampling.top_p
    if sampling.max_tokens is not None:
        body["max_output_tokens"] = max(sampling.max_tokens, _LEAST_TOKENS)
    if ours:
        body["stream_options"] = {"include_obfuscation": False}  # random characters in each event
    if ours or model.provider.id.startswith("openai"):
        body.update({name: extra[name] for name in _EXTRA if name in extra})
        if "verbosity" in extra and "text.verbosity" not in dropped:
            body["text"] = {**body.get("text", {}), "verbosity": extra["verbosity"]}
        if key := extra.get("prompt_cache_key") or request.session:
            body["prompt_cache_key"] = cache_key(key)
    if not body.get("reasoning", True):
        del body["reasoning"]
    for name in dropped:
        body.pop(name, None)
    written = _encode(body)
    return (written[:-1], b',"tools":', _tools(request.tools), b"}") if request.tools else (written,)


def _reasoning(model: Model, level: str | None, ours: bool, dropped: frozenset[str]) -> dict[str, str]:
    asked: dict[str, str] = {}
    if level is not None and "reasoning.effort" not in dropped and (word := effort(model.id, level, ours, dropped)) is not None:
        asked["effort"] = word
    if "reasoning.summary" not in dropped:
        asked["summary"] = "auto"
    return asked


def input_items(request: ModelRequest) -> list[object]:
    """The conversation as input items. Messages that are the same in both forms go as the bytes they are."""
    ids = Ids(r"[A-Za-z0-9_-]{1,64}")
    made: list[object] = []
    for raw in request.messages:
        message = unpack(raw)
        if message.role == "tool":
            output = message.content if isinstance(message.content, str) else _parts(message)
            made.append({"type": "function_call_output", "call_id": ids.of(message.tool_call_id or ""), "output": output})
        elif message.role == "assistant":
            made += _assistant(message, raw, ids, request.model.ref)
        elif isinstance(message.content, str) and message.name is None:
            made.append(raw)
        else:
            made.append({"role": message.role, "content": message.content if isinstance(message.content, str) else _parts(message)})
    return made


def _assistant(message: Message, raw: msgspec.Raw, ids: Ids, model: str) -> list[object]:
    if message.tool_calls is None and message.name is None and message.provider_state is None and isinstance(message.content, str):
        return [raw]
    state = state_of(message, model)
    if state is not None and (items := restored(message, state, ids)) is not None:
        return items
    text = text_of(message)
    return [*([said_item(text)] if text else []), *[call_item(call, ids) for call in message.tool_calls or ()]]


def _parts(message: Message) -> list[object]:
    """Texts and images as parts of an input item."""
    content = message.content if isinstance(message.content, tuple) else ()
    return [
        {"type": "input_image", "image_url": part.image_url.url, "detail": part.image_url.detail or "auto"}
        if isinstance(part, ImagePart)
        else {"type": "input_text", "text": part.text}
        for part in content
    ]


class OpenAIResponses(HttpAdapter):
    """See the module."""

    def path(self, request: ModelRequest) -> bytes:
        """See HttpAdapter."""
        return PATH

    def body(self, request: ModelRequest, dropped: frozenset[str]) -> tuple[bytes, ...]:
        """See HttpAdapter."""
        return responses_request(request, dropped)

    def optional(self, request: ModelRequest) -> Iterable[str]:
        """See HttpAdapter."""
        return _OPTIONAL

    def instead(self, request: ModelRequest, body: bytes, dropped: frozenset[str]) -> str | None:
        """See HttpAdapter. A level of reasoning that the server does not have becomes one that it has."""
        if "text.format" not in dropped and refuses_format(request, body):
            return "text.format"
        level, model = request.sampling.reasoning_effort, request.model
        if level is None or not model.reasoning:
            return None
        asked = effort(model.id, level, guessed(model.provider.base_url).openai, dropped)
        return other_level(body, asked) if asked is not None else None

    def decoder(self, request: ModelRequest) -> ResponsesDecoder:
        """See HttpAdapter."""
        return ResponsesDecoder(self._provider.id, request.model.id, self._redact, tools=bool(request.tools))
