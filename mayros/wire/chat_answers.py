"""OpenAI chat completions as bytes: the answers, plain and streamed. No I/O. Source: openai-compat facts, sections 1.3 and 1.4."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mayros.errors import GatewayError
from mayros.events import CallerCallDelta, Event, FinishReason, TextDelta, Usage, one_array
from mayros.messages import ToolCall
from mayros.wire.errors import error_body

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


class _Cached(msgspec.Struct, gc=False):
    cached_tokens: int


class _Reasoning(msgspec.Struct, gc=False):
    reasoning_tokens: int


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _Cached
    completion_tokens_details: _Reasoning


class _Answer(msgspec.Struct, gc=False):
    role: str
    content: str | None
    refusal: str | None = None
    tool_calls: Sequence[ToolCall] | msgspec.UnsetType = msgspec.UNSET


class _Logprobs(msgspec.Struct, gc=False):
    content: msgspec.Raw
    refusal: None = None


class _Choice(msgspec.Struct, gc=False):
    index: int
    message: _Answer
    logprobs: _Logprobs | None
    finish_reason: str


class _Completion(msgspec.Struct, gc=False):
    id: str
    object: str
    created: int
    model: str
    choices: list[_Choice]
    usage: _Usage


def _usage(usage: Usage) -> _Usage:
    prompt = usage.input + usage.cache_read + usage.cache_write
    return _Usage(prompt, usage.output, prompt + usage.output, _Cached(usage.cache_read), _Reasoning(usage.reasoning))


def completion(
    run_id: str,
    created: int,
    model: str,
    text: str,
    finish_reason: FinishReason | None,
    usage: Usage,
    calls: Sequence[ToolCall] = (),
    logprobs: Sequence[bytes] = (),
) -> bytes:
    """The whole `chat.completion` of a run; `created` in Unix seconds. `calls`: of the caller's own tools. `logprobs`: see events.TextDelta."""
    answer = _Answer("assistant", text or None, None, calls) if calls else _Answer("assistant", text)
    odds = _Logprobs(msgspec.Raw(one_array(logprobs))) if logprobs else None
    choice = _Choice(0, answer, odds, finish_reason or "stop")
    return _encode(_Completion(f"chatcmpl-{run_id}", "chat.completion", created, model, [choice], _usage(usage)))


def _odds(array: bytes) -> bytes:
    return b'{"content":%b,"refusal":null}' % array


class Stream:
    """The frames of one streamed answer; what is the same in each is encoded once."""

    def __init__(self, run_id: str, created: int, model: str) -> None:
        head = _encode({"id": f"chatcmpl-{run_id}", "object": "chat.completion.chunk", "created": created, "model": model})[:-1]
        self._head = b"data: " + head + b',"choices":['
        self._text = self._head + b'{"index":0,"delta":{"content":'

    def role(self) -> bytes:
        """The first chunk."""
        return self._head + b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'

    def deltas(self, events: Sequence[Event]) -> bytes:
        """A content chunk for each text delta, and a chunk for each part of a call of the caller's; other events are not for this door."""
        head = self._text
        return b"".join(
            [
                b'%b%b},"logprobs":%b,"finish_reason":null}]}\n\n' % (head, _encode(e.text), _odds(e.logprobs) if e.logprobs is not None else b"null")
                if type(e) is TextDelta
                else self._call(e)  # type: ignore[arg-type]
                for e in events
                if (type(e) is TextDelta and e.text) or type(e) is CallerCallDelta
            ]
        )

    def _call(self, part: CallerCallDelta) -> bytes:
        """Id, type and name come once: clients join the texts of all parts."""
        head = self._head + b'{"index":0,"delta":{"tool_calls":[{"index":%d,' % part.index
        begin = more = b""
        if part.id is not None:
            names = _encode(part.id), _encode(part.name)
            begin = head + b'"id":%b,"type":"function","function":{"name":%b,"arguments":""}}]},"logprobs":null,"finish_reason":null}]}\n\n' % names
        if part.arguments:
            more = head + b'"function":{"arguments":%b}}]},"logprobs":null,"finish_reason":null}]}\n\n' % _encode(part.arguments)
        return begin + more

    def finish(self, reason: FinishReason | None) -> bytes:
        """The chunk that says why it ended."""
        return self._head + b'{"index":0,"delta":{},"logprobs":null,"finish_reason":"%b"}]}\n\n' % (reason or "stop").encode()

    def usage(self, usage: Usage) -> bytes:
        """The chunk with no choices that clients ask for by `stream_options.include_usage`."""
        return self._head + b'],"usage":' + _encode(_usage(usage)) + b"}\n\n"

    def end(self, reason: FinishReason | None, usage: Usage | None) -> bytes:
        """All that stands behind the last word of an answer that is complete; `usage` None: it was not asked for."""
        return self.finish(reason) + (self.usage(usage) if usage is not None else b"") + DONE

    @staticmethod
    def error(error: GatewayError) -> bytes:
        """An error after the first byte; the stream ends after it, without DONE."""
        return b"event: error\ndata: " + error_body(error) + b"\n\n"
