"""Models that speak OpenAI's chat completions: the `openai-completions` provider, and the embedded model's own server.

`chat_request` writes the request (pure), chat_decoder.py reads the answer, adapter.py does the rest. The model is always asked to stream. Servers
differ (compat.py); what one refuses by name is left out from then on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from mayros.core.models import Model
from mayros.core.ports import ModelRequest, Sampling, ToolSpec
from mayros.providers.adapter import HttpAdapter
from mayros.providers.chat_decoder import ChatDecoder
from mayros.providers.chat_messages import rewritten, takeable
from mayros.providers.compat import Compat, cache_key, compat_of
from mayros.providers.efforts import effort, other_level
from mayros.providers.formats import instructed, openai_choice, openai_format, refuses_format
from mayros.providers.written import WrittenTools

__all__ = ["ChatDecoder", "OpenAIChat", "chat_request"]

PATH = b"/chat/completions"

#: Under the same name here and there.
_SAMPLING = ("temperature", "top_p", "stop", "seed", "frequency_penalty", "presence_penalty")
_LIMITS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
#: Parameters that an answer may be had without; besides, of the limits each in the other's place.
_OPTIONAL = (
    *("stream_options", "reasoning_effort", "store", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
    *("service_tier", "verbosity", "prediction", "logit_bias", "enable_thinking", "thinking", "strict"),
    *("tool_choice", "parallel_tool_calls", "response_format"),
    *("seed", "frequency_penalty", "presence_penalty", "temperature", "top_p", "top_logprobs", "logprobs"),
)
_encode = msgspec.json.Encoder().encode
_anything = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _tool(spec: ToolSpec) -> object:
    return {"type": "function", "function": spec}


def _bare_tool(spec: ToolSpec) -> object:
    return {"type": "function", "function": {"name": spec.name, "description": spec.description, "parameters": spec.parameters}}


def _strict_tool(spec: ToolSpec) -> object:
    function = {"name": spec.name, "description": spec.description, "parameters": spec.parameters, "strict": bool(spec.strict)}
    return {"type": "function", "function": function}


_tools, _bare_tools, _strict_tools = WrittenTools(_tool), WrittenTools(_bare_tool), WrittenTools(_strict_tool)


def chat_request(request: ModelRequest, dropped: frozenset[str] = frozenset()) -> tuple[bytes, ...]:
    """The body of the request for one model turn, without the parameters in `dropped`.

    In parts: the tools are most of it, and all runs of an agent share one copy of them.
    """
    model, sampling = request.model, request.sampling
    compat = compat_of(model)
    body: dict[str, Any] = {}
    if sampling.extra is not None and model.provider.id.startswith("openai"):
        body.update(sampling.extra)
    head: list[object] = []
    wanted = request.response_format if "response_format" not in dropped else None
    if system := instructed(request, known=wanted is not None):
        developer = compat.supports_developer_role and model.reasoning and "developer" not in dropped
        head.append({"role": "developer" if developer else "system", "content": system})
    body["model"] = model.id
    as_kept = not compat.rewrites and takeable(request.messages)
    body["messages"] = [*head, *(request.messages if as_kept else rewritten(request.messages, compat, "image" in model.input, model.ref))]
    body["stream"] = True
    if compat.supports_usage_in_streaming:
        body["stream_options"] = {"include_usage": True}
    if compat.supports_store:
        body["store"] = False
    for name in _SAMPLING:
        value = getattr(sampling, name)
        if value is not None:
            body[name] = value
    if sampling.max_tokens is not None:
        name = compat.max_tokens_field
        body[_LIMITS[name] if name in dropped else name] = sampling.max_tokens
    if sampling.reasoning_effort is not None and model.reasoning:
        body.update(_thinking(model, sampling, compat, dropped))
    body.update(openai_choice(request))
    if wanted is not None:
        body["response_format"] = openai_format(wanted)
    if compat.openai and request.session:
        body.setdefault("prompt_cache_key", cache_key(request.session))
    if sampling.logprobs and "logprobs" not in dropped:
        body["logprobs"] = True
        if sampling.top_logprobs is not None:
            body["top_logprobs"] = sampling.top_logprobs
    for name in dropped:
        body.pop(name, None)
    written = _encode(body)
    if not request.tools:
        return (written,)
    tools = _bare_tools if "strict" in dropped else _strict_tools if compat.supports_strict_mode else _tools
    return (written[:-1], b',"tools":', tools(request.tools), b"}")


def _thinking(model: Model, sampling: Sampling, compat: Compat, dropped: frozenset[str]) -> dict[str, object]:
    """How hard to think, in the way of the server."""
    level = sampling.reasoning_effort or "none"
    if compat.thinking_format == "zai":
        return {"thinking": {"type": "disabled" if level == "none" else "enabled"}}
    if compat.thinking_format == "qwen":
        return {"enable_thinking": level != "none"}
    if not compat.supports_reasoning_effort:
        return {}
    asked = effort(model.id, level, compat.every_effort, dropped)
    return {} if asked is None else {"reasoning_effort": asked}


class OpenAIChat(HttpAdapter):
    """See the module."""

    def path(self, request: ModelRequest) -> bytes:
        """See HttpAdapter."""
        return PATH

    def body(self, request: ModelRequest, dropped: frozenset[str]) -> tuple[bytes, ...]:
        """See HttpAdapter."""
        return chat_request(request, dropped)

    def optional(self, request: ModelRequest) -> Iterable[str]:
        """See HttpAdapter."""
        sent: set[str] = {"strict", *_anything(b"".join(chat_request(request)))}
        if limit := sent & _LIMITS.keys():
            # A refusal of one name may recommend the other: that which is sent comes first.
            return (*limit, *_LIMITS.keys() - limit, *(name for name in _OPTIONAL if name in sent - limit))
        return [name for name in _OPTIONAL if name in sent]

    def instead(self, request: ModelRequest, body: bytes, dropped: frozenset[str]) -> str | None:
        """See HttpAdapter. A level of reasoning that the server does not have becomes one that it has; the role `developer` becomes `system`; a form
        of the answer that it does not know becomes a sentence of the system prompt."""
        if "response_format" not in dropped and refuses_format(request, body):
            return "response_format"
        level, model = request.sampling.reasoning_effort, request.model
        compat = compat_of(model)
        if compat.supports_developer_role and model.reasoning and b"developer" in body and b"role" in body:
            return "developer"
        if level is None or not model.reasoning or not compat.supports_reasoning_effort or compat.thinking_format != "openai":
            return None
        asked = effort(model.id, level, compat.every_effort, dropped)
        return other_level(body, asked) if asked is not None else None

    def decoder(self, request: ModelRequest) -> ChatDecoder:
        """See HttpAdapter."""
        compat, tools = compat_of(request.model), bool(request.tools)
        keep = tools and compat.requires_reasoning_content_on_assistant_messages
        return ChatDecoder(
            self._provider.id,
            request.model.id,
            self._redact,
            tools=tools,
            think_tags=compat.think_tags,
            keep_reasoning=keep,
            logprobs=bool(request.sampling.logprobs),
        )
