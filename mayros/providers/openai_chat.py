"""Models that speak OpenAI's chat completions: the `openai-completions` provider, and the embedded model's own server.

`chat_request` writes the request (pure), chat_decoder.py reads the answer, `OpenAIChat` joins them to the HTTP client. The model is always
asked to stream. Imports core, errors, events, messages, net.http, providers.chat_decoder and providers.failures.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from operator import is_
from typing import Any

import msgspec

from mayros.core.models import Model, Provider
from mayros.core.ports import ModelRequest, ToolSpec
from mayros.errors import UpstreamError
from mayros.events import Event
from mayros.messages import ImagePart, TextPart, text_of, unpack
from mayros.net.http import Connection, Failed, Origin, header_lines, origin_for
from mayros.providers.chat_decoder import TEXT_LIMIT, ChatDecoder
from mayros.providers.failures import BODY_LIMIT, Redactor, client_failure, refusal

__all__ = ["ChatDecoder", "OpenAIChat", "chat_request"]

PATH = b"/chat/completions"

_NEW_LIMIT_NAME = re.compile(r"(?:openai/)?(?:o\d|gpt-5)")
_RUN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SECRET_NAME = re.compile(r"auth|key|token|secret|cookie", re.IGNORECASE)
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


class OpenAIChat:
    """The adapter for one provider. `secrets`: more texts that must never be shown, besides the provider's own key and headers."""

    def __init__(self, provider: Provider, origin: Origin, secrets: Iterable[str] = (), now: Callable[[], float] = time.time) -> None:
        self._provider, self._origin, self._now = provider, origin, now
        hidden = [value for name, value in provider.headers.items() if _SECRET_NAME.search(name) or len(value) >= 20]
        self._redact = Redactor([provider.key, *hidden, *secrets])
        self._headers = header_lines(_headers(provider))
        self._refuse_usage: set[str] = set()  # models whose server refuses `stream_options`

    def __repr__(self) -> str:
        return f"<OpenAIChat {self._provider.id}>"

    @classmethod
    def connect(cls, provider: Provider, reactor: Any, secrets: Iterable[str] = ()) -> OpenAIChat:
        """The adapter with connections of its own. Raises ConfigError for a URL, header or certificate file that cannot be used."""
        origin = origin_for(
            provider.base_url,
            {},
            reactor,
            connect_timeout=provider.limits.connect,
            first_byte_timeout=provider.limits.first_byte,
            idle_timeout=provider.limits.idle,
            max_connections=provider.max_connections,
            ca_path=provider.ca_path,
        )
        return cls(provider, origin, secrets)

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._origin.close()

    async def stream(self, request: ModelRequest) -> AsyncGenerator[list[Event], None]:
        """See ports.ModelProvider."""
        decoder = ChatDecoder(self._provider.id, request.model.id, self._redact, tools=bool(request.tools))
        try:
            async with await self._open(request) as response:
                kind = response.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
                if kind in (b"text/event-stream", b""):
                    async for piece in response:
                        events = decoder.feed(piece)
                        if decoder.done and decoder.complete:
                            response.settle()
                        if events:
                            yield events
                        if decoder.done:
                            break
                elif kind == b"application/json" or kind.endswith(b"+json"):
                    body = await response.read(TEXT_LIMIT)
                    yield decoder.whole(body)
                else:
                    shown = self._redact.short(kind.decode("latin-1"))
                    raise UpstreamError(f"The provider {self._provider.id!r} answered with {shown} instead of a stream of events.")
        except Failed as error:
            if not decoder.complete:
                raise client_failure(error, self._provider.id) from error
        events = decoder.close()
        if events:
            yield events

    async def _open(self, request: ModelRequest) -> Connection:
        """The response, with status 200; any other is raised as what it means."""
        headers = self._headers
        if _RUN_ID.fullmatch(request.run_id):
            headers += f"X-Request-Id: {request.run_id}\r\n".encode("ascii")
        model = request.model
        while True:
            ask_usage = model.id not in self._refuse_usage and model.compat.get("supportsUsageInStreaming") is not False
            response = await self._origin.post(PATH, chat_request(request, ask_usage), headers)
            if response.status == 200:
                return response
            async with response:
                try:
                    body = b"" if 300 <= response.status < 400 else await response.read(BODY_LIMIT)
                except Failed:
                    body = b""  # the status says enough
            if ask_usage and response.status in (400, 422) and b"stream_options" in body:
                self._refuse_usage.add(model.id)
                continue
            raise refusal(response.status, response.headers, body, self._provider.id, self._redact, self._now())


def _headers(provider: Provider) -> dict[str, str]:
    """The headers of each request; those of the configuration win."""
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    if provider.key and provider.auth_header:
        headers["Authorization"] = f"Bearer {provider.key.strip()}"
    own = {name.lower() for name in provider.headers}
    return {**{name: value for name, value in headers.items() if name.lower() not in own}, **provider.headers}
