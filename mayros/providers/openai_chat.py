"""Models that speak OpenAI's chat completions, and the many servers that imitate it: the `openai-completions` provider.

Three parts: `chat_request` writes the request, `ChatDecoder` reads the stream (neither does I/O), `OpenAIChat` joins them to the HTTP client.
The model is always asked to stream. Imitators differ in many small ways, so reading is tolerant: a chunk of the usual shape is decoded into
typed structs, any other goes through `_loose`, and what makes no sense is skipped, as long as something does.
Imports core, wire.sse, net.http and providers.failures.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

import msgspec

from mayros.core.models import Model, Provider
from mayros.core.ports import ModelRequest
from mayros.errors import GatewayError, UpstreamError
from mayros.events import Event, FinishReason, ModelAnswered, ReasoningDelta, TextDelta, TurnFinished, Usage
from mayros.net.http import Connection, Failed, Origin, header_lines, origin_for
from mayros.providers.failures import BODY_LIMIT, Redactor, client_failure, refusal, stream_failure
from mayros.wire.sse import Decoder, TooLong

PATH = b"/chat/completions"
TEXT_LIMIT = 8 << 20  # characters of one turn, reasoning included; bytes of a body that is not a stream

_NEW_LIMIT_NAME = re.compile(r"(?:openai/)?(?:o\d|gpt-5)")
_RUN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_REASONS: dict[str, FinishReason] = {"length": "length", "max_tokens": "length", "content_filter": "content_filter"}
_COUNT_LIMIT = 1 << 40
_encode = msgspec.json.Encoder().encode


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[msgspec.Raw] | None = None
    function_call: msgspec.Raw | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    finish_reason: str | None = None
    index: int = 0


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = 0
    cache_write_tokens: int | None = 0


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = 0


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: msgspec.Raw | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


def chat_request(request: ModelRequest, ask_usage: bool = True) -> bytes:
    """The body of the request for one model turn."""
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
    return _encode(body)


def _limit_name(model: Model) -> str:
    """What the limit on the answer's tokens is called: OpenAI's o-series and gpt-5 know the new name only, imitators mostly the old one."""
    named = model.compat.get("maxTokensField")
    if named in ("max_tokens", "max_completion_tokens"):
        return str(named)
    new = model.provider.id.startswith("openai") or model.id.startswith("openai/")
    return "max_completion_tokens" if new and _NEW_LIMIT_NAME.match(model.id) else "max_tokens"


class ChatDecoder:
    """The answer of one turn, bytes in and events out. An error is kept back until the events before it are out: `close` raises it."""

    def __init__(self, provider: str, model: str, redact: Redactor) -> None:
        self._provider, self._model, self._redact = provider, model, redact
        self._sse = Decoder()
        self._answered = False
        self._reason: str | None = None
        self._usage: _Usage | None = None
        self._size = 0
        self._half = ""  # the first half of a surrogate pair; its second half is in the next chunk
        self._error: GatewayError | None = None
        #: Nothing that follows matters: the end was seen, or an error.
        self.done = False

    @property
    def complete(self) -> bool:
        """Whether the model said that it was through, so that a stream which breaks off now has lost nothing."""
        return self._reason is not None and self._error is None

    def feed(self, data: bytes) -> list[Event]:
        """The events of one read; with `[DONE]` also the last ones. Raises nothing."""
        events: list[Event] = []
        if self.done:
            return events
        try:
            blocks = self._sse.feed(data)
        except TooLong as error:
            self._fail(str(error))
            return events
        for name, block in blocks:
            if block == b"[DONE]":
                self.done = True
                events += self._last(done=True)
                break
            try:
                chunk = _decode(block)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                loose = _loose(block)
                if loose is None:
                    continue
                chunk = loose
            if chunk.error is not None or name == b"error":
                self._refuse(block)
            if chunk.choices:
                self._take(chunk.choices, events)
            if chunk.usage is not None:
                self._usage = chunk.usage
            if self.done:
                break
        if self._size > TEXT_LIMIT:
            self._fail(f"its answer is longer than {TEXT_LIMIT >> 20} million characters")
        return events

    def close(self) -> list[Event]:
        """The stream has ended: the last events, unless `feed` gave them. Raises errors of mayros.errors."""
        events: list[Event] = []
        if not self.done:
            self.done = True
            events = self._last(done=False)
        if self._error is not None:
            raise self._error
        return events

    def whole(self, body: bytes) -> list[Event]:
        """The events of an answer that is one JSON object, from a server that does not stream. Raises errors of mayros.errors."""
        self.done = True
        events: list[Event] = []
        chunk = _loose(body)
        if chunk is not None and chunk.error is not None:
            self._refuse(body)
        if self._error is None and chunk is not None and chunk.choices:
            self._take(chunk.choices, events)
            self._usage = chunk.usage
            delta = chunk.choices[0].delta
            if self._error is None and (delta is None or delta.content is None):
                self._fail("its answer has no text")
        events += self._last(done=True)
        if self._error is not None:
            raise self._error
        return events

    def _take(self, choices: list[_Choice], events: list[Event]) -> None:
        for choice in choices:
            if choice.index != 0:
                continue
            if not self._answered:
                self._answered = True
                events.append(ModelAnswered(self._provider, self._model))
            delta = choice.delta
            if delta is not None:
                if delta.tool_calls or delta.function_call is not None:
                    self._fail("it called a tool, and this version offers none")
                    return
                thought = delta.reasoning_content or delta.reasoning
                if thought:
                    self._size += len(thought)
                    events.append(ReasoningDelta(thought))
                text = delta.content or delta.refusal
                if text:
                    if self._half or "\ud800" <= text[-1] <= "\udbff":
                        text = self._joined(text)
                    self._size += len(text)
                    if text:
                        events.append(TextDelta(text))
            if choice.finish_reason:
                self._reason = choice.finish_reason

    def _joined(self, text: str) -> str:
        """Text that is cut inside a surrogate pair (`\\ud83d` in one chunk, `\\ude00` in the next), in whole characters."""
        text = self._half + text
        self._half = ""
        if "\ud800" <= text[-1] <= "\udbff":
            self._half = text[-1]
            text = text[:-1]
        return _whole_characters(text)

    def _last(self, done: bool) -> list[Event]:
        """What is said at the end of the stream."""
        if self._error is not None:
            return []
        if not self._answered:
            self._fail("its answer cannot be understood")
        elif self._reason is None and not done:
            self._fail("its answer broke off")
        elif self._reason == "error":
            self._fail("it ended its answer with an error")
        if self._error is not None:
            return []
        events: list[Event] = [TextDelta("\ufffd")] if self._half else []
        raw = self._reason[:64] if self._reason is not None else None
        return [*events, _counts(self._usage), TurnFinished(_REASONS.get(raw or "", "stop"), raw)]

    def _refuse(self, block: bytes) -> None:
        """An error object came instead of a chunk."""
        said = _json(block)
        error = said.get("error", said) if isinstance(said, dict) else said
        if error:
            self.done = True
            self._error = stream_failure(error, self._provider, self._redact)

    def _fail(self, why: str) -> None:
        self.done = True
        if self._error is None:
            self._error = UpstreamError(f"The provider {self._provider!r} failed: {why.rstrip('.')}.")


class OpenAIChat:
    """The adapter for one provider. `secrets`: more texts that must never be shown, besides the provider's own key and headers."""

    def __init__(self, provider: Provider, origin: Origin, secrets: Iterable[str] = (), now: Callable[[], float] = time.time) -> None:
        self._provider, self._origin, self._now = provider, origin, now
        self._redact = Redactor([provider.key, *(value for value in provider.headers.values() if len(value) > 15), *secrets])
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
        decoder = ChatDecoder(self._provider.id, request.model.id, self._redact)
        try:
            async with await self._open(request) as response:
                kind = response.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
                if kind in (b"text/event-stream", b""):
                    async for piece in response:
                        events = decoder.feed(piece)
                        if decoder.done:
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


def _counts(usage: _Usage | None) -> Usage:
    """Disjoint counts: the provider's prompt count includes cached tokens. What makes no sense is 0."""
    if usage is None:
        return Usage()
    prompt = usage.prompt_tokens_details or _PromptDetails()
    completion = usage.completion_tokens_details or _CompletionDetails()
    total, output = _count(usage.prompt_tokens), _count(usage.completion_tokens)
    read = min(_count(prompt.cached_tokens), total)
    written = min(_count(prompt.cache_write_tokens), total - read)
    return Usage(total - read - written, output, read, written, min(_count(completion.reasoning_tokens), output))


def _count(number: object) -> int:
    return int(number) if type(number) in (int, float) and 0 <= number < _COUNT_LIMIT else 0  # type: ignore[call-overload, operator]


def _json(data: bytes) -> object:
    """JSON as lenient as can be: bytes that are not UTF-8 become U+FFFD, lone surrogates stay. None for what is no JSON."""
    try:
        return json.loads(data.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError):
        return None


def _loose(data: bytes) -> _Chunk | None:
    """A chunk, or a whole completion, with whatever in it has a type that makes sense; None for what is not a JSON object."""
    value = _json(data)
    if not isinstance(value, dict):
        return None
    choices, usage = value.get("choices"), value.get("usage")
    return _Chunk(
        choices=[_loose_choice(choice) for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else None,
        usage=_loose_usage(usage) if isinstance(usage, dict) else None,
        error=msgspec.Raw(b"{}") if value.get("error") else None,
    )


def _loose_choice(choice: dict[str, Any]) -> _Choice:
    said = choice.get("delta", choice.get("message"))
    reason, index = choice.get("finish_reason"), choice.get("index")
    return _Choice(
        _loose_delta(said) if isinstance(said, dict) else None,
        reason if isinstance(reason, str) else None,
        index if type(index) is int else 0,
    )


def _loose_delta(said: dict[str, Any]) -> _Delta:
    def text(value: object) -> str | None:
        if isinstance(value, list):  # parts
            parts = [part.get("text") for part in value if isinstance(part, dict)]
            value = "".join(part for part in parts if isinstance(part, str))
        return value if isinstance(value, str) else None

    calls, call = said.get("tool_calls"), said.get("function_call")
    return _Delta(
        content=text(said.get("content")),
        reasoning_content=text(said.get("reasoning_content")),
        reasoning=text(said.get("reasoning")),
        refusal=text(said.get("refusal")),
        tool_calls=[msgspec.Raw(b"{}")] if calls else None,
        function_call=msgspec.Raw(b"{}") if call else None,
    )


def _loose_usage(usage: dict[str, Any]) -> _Usage:
    prompt, completion = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    prompt = prompt if isinstance(prompt, dict) else {}
    completion = completion if isinstance(completion, dict) else {}
    return _Usage(
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        _PromptDetails(_count(prompt.get("cached_tokens")), _count(prompt.get("cache_write_tokens"))),
        _CompletionDetails(_count(completion.get("reasoning_tokens"))),
    )


def _whole_characters(text: str) -> str:
    """Surrogate pairs as characters, surrogates without their other half as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
