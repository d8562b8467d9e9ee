"""Reading the stream of OpenAI's chat completions, and of the many servers that imitate it. Bytes in, events out, no I/O.

Imitators differ in many small ways, so reading is tolerant: a chunk of the usual shape is decoded into typed structs, any other goes through
`_loose`, and what makes no sense is skipped, as long as something does. Tool calls are put together in calls.py. Imports errors, events,
wire.sse, providers.calls, providers.characters and providers.failures.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from mayros.errors import GatewayError, UpstreamError
from mayros.events import Event, FinishReason, ModelAnswered, ReasoningDelta, TextDelta, TurnFinished, Usage
from mayros.providers.calls import CallPart, Calls, TooMuch, loose_part
from mayros.providers.characters import joined, whole_characters
from mayros.providers.failures import Redactor, stream_failure
from mayros.wire.sse import Decoder, TooLong

TEXT_LIMIT = 8 << 20  # characters of one turn, reasoning included

_REASONS: dict[str, FinishReason] = {"length": "length", "max_tokens": "length", "content_filter": "content_filter"}
_COUNT_LIMIT = 1 << 40  # tokens; more than this is no count


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


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[CallPart] | None = None
    function_call: Any = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    finish_reason: str | None = None
    index: int = 0
    usage: _Usage | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class ChatDecoder:
    """The answer of one turn, bytes in and events out. An error is kept back until the events before it are out: `close` raises it.

    `tools`: whether the model was offered any; where not, it may call none.
    """

    def __init__(self, provider: str, model: str, redact: Redactor, tools: bool = False) -> None:
        self._provider, self._model, self._redact = provider, model, redact
        self._calls = Calls() if tools else None
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
        return self._answered and self._error is None and (self.done or self._reason is not None)

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
            if name == b"error":
                said = _json(block)
                self._refuse(said.get("error") or said if isinstance(said, dict) else block.decode("utf-8", "replace"))
                break
            loose = False
            try:
                chunk = _decode(block)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                odd = _loose(block)
                if odd is None:
                    continue
                chunk, loose = odd, True
            if chunk.error:
                self._refuse(chunk.error)
            if chunk.choices:
                self._take(chunk.choices, events, loose)
            if chunk.usage is not None:
                self._usage = chunk.usage
            if self.done:
                break
        if self._size > TEXT_LIMIT and not self.done:
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
        if chunk is not None and chunk.error:
            self._refuse(chunk.error)
        if self._error is None and chunk is not None and chunk.choices:
            self._take(chunk.choices, events, loose=True)
            self._usage = chunk.usage or self._usage
            delta = chunk.choices[0].delta
            if self._error is None and (delta is None or delta.content is None) and not self._called:
                self._fail("its answer has no text")
        events += self._last(done=True)
        if self._error is not None:
            raise self._error
        return events

    def _take(self, choices: list[_Choice], events: list[Event], loose: bool) -> None:
        for choice in choices:
            if choice.index != 0:
                continue
            if not self._answered:
                self._answered = True
                events.append(ModelAnswered(self._provider, self._model))
            delta = choice.delta
            if delta is not None:
                if delta.tool_calls or delta.function_call:
                    self._take_calls(delta, events, loose)
                    if self.done:
                        return
                thought = delta.reasoning_content or delta.reasoning
                if thought:
                    thought = whole_characters(thought) if loose else thought
                    self._size += len(thought)
                    events.append(ReasoningDelta(thought))
                text = delta.content or delta.refusal
                if text:
                    if loose or self._half:
                        # Cut inside a surrogate pair (`\ud83d` in one chunk, `\ude00` in the next).
                        text, self._half = joined(self._half, text)
                    if text:
                        self._size += len(text)
                        events.append(TextDelta(text))
            if choice.finish_reason:
                self._reason = choice.finish_reason
            if choice.usage is not None:
                self._usage = choice.usage

    @property
    def _called(self) -> bool:
        return self._calls is not None and self._calls.any

    def _take_calls(self, delta: _Delta, events: list[Event], loose: bool) -> None:
        calls = self._calls
        if calls is None:
            self._fail("it called a tool, and was offered none")
            return
        parts = [(part, loose) for part in delta.tool_calls or ()]
        if isinstance(delta.function_call, dict):  # as calls were written before there could be several
            parts.append((loose_part({"function": delta.function_call}), True))
        try:
            for part, halves in parts:
                if part.function is not None and part.function.arguments is not None:
                    self._size += len(part.function.arguments)
                event = calls.take(part, halves)
                if event is not None:
                    events.append(event)
        except TooMuch as error:
            self._fail(str(error))

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
        if self._calls is not None:
            events += self._calls.last()
        raw = self._reason[:64] if self._reason is not None else None
        reason = _REASONS.get(raw or "", "stop")
        if reason == "stop" and self._called:
            reason = "tool_calls"  # many say "stop", or nothing
        return [*events, _counts(self._usage), TurnFinished(reason, raw)]

    def _refuse(self, error: object) -> None:
        """An error came instead of a chunk, or inside one. What may follow it does not matter."""
        self.done = True
        self._error = stream_failure(error, self._provider, self._redact)

    def _fail(self, why: str) -> None:
        self.done = True
        if self._error is None:
            self._error = UpstreamError(f"The provider {self._provider!r} failed: {why.rstrip('.')}.")


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
    choices = value.get("choices")
    return _Chunk(
        choices=[_loose_choice(choice) for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else None,
        usage=_loose_usage(value.get("usage")),
        error=value.get("error"),
    )


def _loose_choice(choice: dict[str, Any]) -> _Choice:
    said = choice.get("delta", choice.get("message"))
    reason, index = choice.get("finish_reason"), choice.get("index")
    return _Choice(
        _loose_delta(said) if isinstance(said, dict) else None,
        whole_characters(reason) if isinstance(reason, str) else None,
        index if type(index) is int else 0,
        _loose_usage(choice.get("usage")),
    )


def _loose_delta(said: dict[str, Any]) -> _Delta:
    def text(value: object) -> str | None:
        if isinstance(value, list):  # parts
            parts = [part.get("text") for part in value if isinstance(part, dict)]
            value = "".join(part for part in parts if isinstance(part, str))
        return value if isinstance(value, str) else None

    return _Delta(
        content=text(said.get("content")),
        reasoning_content=text(said.get("reasoning_content")),
        reasoning=text(said.get("reasoning")),
        refusal=text(said.get("refusal")),
        tool_calls=_loose_calls(said.get("tool_calls")),
        function_call=said.get("function_call"),
    )


def _loose_calls(said: object) -> list[CallPart] | None:
    """The fragments; an empty one stands for what cannot be understood, since calling without being offered tools is an error in any form."""
    if not said:
        return None
    parts = said if isinstance(said, list) else [said]
    return [loose_part(part) if isinstance(part, dict) else CallPart() for part in parts]


def _loose_usage(usage: object) -> _Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    prompt = prompt if isinstance(prompt, dict) else {}
    completion = completion if isinstance(completion, dict) else {}
    return _Usage(
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        _PromptDetails(_count(prompt.get("cached_tokens")), _count(prompt.get("cache_write_tokens"))),
        _CompletionDetails(_count(completion.get("reasoning_tokens"))),
    )
