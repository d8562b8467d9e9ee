"""Models that speak OpenAI's chat completions: the `openai-completions` provider, and the embedded model's own server.

`chat_request` writes the request (pure), chat_decoder.py reads the answer, adapter.py does the rest. The model is always asked to stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from operator import is_

import msgspec

from mayros.core.models import Model
from mayros.core.ports import ModelRequest, ToolSpec
from mayros.messages import ImagePart, TextPart, text_of, unpack
from mayros.providers.adapter import HttpAdapter
from mayros.providers.chat_decoder import ChatDecoder

__all__ = ["ChatDecoder", "OpenAIChat", "chat_request"]

PATH = b"/chat/completions"

_NEW_LIMIT_NAME = re.compile(r"(?:openai/)?(?:o\d|gpt-5)")
#: How the canonical JSON of a tool message begins, and of one whose content is a list of parts.
_TOOL = b'{"role":"tool"'
_PARTS = _TOOL + b',"content":['
_encode = msgspec.json.Encoder().encode


def chat_request(request: ModelRequest, ask_usage: bool = True) -> tuple[bytes, ...]:
    """The body of the request for one model turn, in parts: the tools are most of it, and all runs of an agent share one copy of them."""
    model, sampling = request.model, request.sampling
    body: dict[str, object] = {}
    if sampling.extra is not None and model.provider.id.startswith("openai"):
        body.update(sampling.extra)
    messages: list[object] = list(request.messages)
    if request.system:
        messages.insert(0, {"role": "system", "content": request.system})
    body["model"] = model.id
    body["messages"] = messages
    body["stream"] = True
    if ask_usage:
        body["stream_options"] = {"include_usage": True}
    for name in ("temperature", "top_p", "stop", "seed", "frequency_penalty", "presence_penalty"):
        value = getattr(sampling, name)
        if value is not None:
            body[name] = value
    if sampling.max_tokens is not None:
        body[_limit_name(model)] = sampling.max_tokens
    if sampling.reasoning_effort is not None and model.reasoning:
        body["reasoning_effort"] = sampling.reasoning_effort
    written = _encode(body)
    if _PARTS in written:
        body["messages"] = [*messages[: 1 if request.system else 0], *_images_after(request.messages, "image" in model.input)]
        written = _encode(body)
    return (written[:-1], b',"tools":', _written(request.tools), b"}") if request.tools else (written,)


#: The tools of some requests as they are written: runs of one agent have the same ones, and they are most of what is sent.
_TOOLS: dict[tuple[str, ...], tuple[Sequence[ToolSpec], bytes]] = {}
_MOST_TOOLS = 32


def _written(tools: Sequence[ToolSpec]) -> bytes:
    names = tuple([spec.name for spec in tools])
    specs, written = _TOOLS.get(names, ((), b""))
    if not specs or not all(map(is_, specs, tools)):
        written = _encode([{"type": "function", "function": spec} for spec in tools])
        if len(_TOOLS) >= _MOST_TOOLS:
            _TOOLS.clear()
        _TOOLS[names] = (tools, written)
    return written


def _images_after(messages: Iterable[msgspec.Raw], seen: bool) -> list[object]:
    """The messages without parts in tool messages, which servers refuse there: the images of a round's results follow them in one user message.

    `seen`: the model takes images; to another one it is said that there were some.
    """
    made: list[object] = []
    images: list[object] = []
    for raw in messages:
        is_tool = memoryview(raw)[: len(_TOOL)] == _TOOL
        if images and not is_tool:
            made.append({"role": "user", "content": images})
            images = []
        if memoryview(raw)[: len(_PARTS)] != _PARTS:
            made.append(raw)
            continue
        message = unpack(raw)
        content = message.content if isinstance(message.content, tuple) else ()
        pictures = [part for part in content if isinstance(part, ImagePart)]
        note = f"[{len(pictures)} image(s): {'in the message after the tool results' if seen else 'left out, because the model takes none'}]"
        text = "\n".join(filter(None, (text_of(message), note if pictures else "")))
        made.append(msgspec.structs.replace(message, content=text))
        if pictures and seen:
            images += [TextPart(f"Images of the result of the tool call {message.tool_call_id}:"), *pictures]
    if images:
        made.append({"role": "user", "content": images})
    return made


def _limit_name(model: Model) -> str:
    """What the limit on the answer's tokens is called: OpenAI's o-series and gpt-5 know the new name only, imitators mostly the old one."""
    named = model.compat.get("maxTokensField")
    if named in ("max_tokens", "max_completion_tokens"):
        return str(named)
    new = model.provider.id.startswith("openai") or model.id.startswith("openai/")
    return "max_completion_tokens" if new and _NEW_LIMIT_NAME.match(model.id) else "max_tokens"


class OpenAIChat(HttpAdapter):
    """See the module."""

    def path(self, request: ModelRequest) -> bytes:
        """See HttpAdapter."""
        return PATH

    def body(self, request: ModelRequest, dropped: frozenset[str]) -> tuple[bytes, ...]:
        """See HttpAdapter."""
        ask_usage = "stream_options" not in dropped and request.model.compat.get("supportsUsageInStreaming") is not False
        return chat_request(request, ask_usage)

    def optional(self, request: ModelRequest) -> Iterable[str]:
        """See HttpAdapter."""
        return ("stream_options",)

    def decoder(self, request: ModelRequest) -> ChatDecoder:
        """See HttpAdapter."""
        return ChatDecoder(self._provider.id, request.model.id, self._redact, tools=bool(request.tools))
