"""The answers of the HTTP door as types, for the OpenAPI document. The bytes themselves are written in wire/; a test holds one against the other.

Imports wire.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mayros.wire.models import ModelList, ModelObject

Finish = Literal["stop", "length", "tool_calls", "content_filter"]
Count = Annotated[int, Meta(ge=0)]
UnixSeconds = Annotated[int, Meta(ge=0, description="Unix time in seconds.")]


class Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Root of all shapes."""


class ErrorObject(Shape, frozen=True):
    """What went wrong. `param` names the field or header; `code` is for programs."""

    message: str
    type: Literal["invalid_request_error", "permission_error", "rate_limit_error", "insufficient_quota", "server_error", "api_error"]
    param: str | None
    code: str | None


class ErrorResponse(Shape, frozen=True):
    """The body of every error, and the data of an `error` event."""

    error: ErrorObject


class PromptTokens(Shape, frozen=True):
    """Of the prompt's tokens."""

    cached_tokens: Count


class CompletionTokens(Shape, frozen=True):
    """Of the answer's tokens."""

    reasoning_tokens: Count


class Usage(Shape, frozen=True):
    """Tokens, summed over all model turns of the run."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptTokens
    completion_tokens_details: CompletionTokens


class CalledFunction(Shape, frozen=True):
    """`arguments` is JSON text."""

    name: str
    arguments: str


class ToolCall(Shape, frozen=True):
    """A call of one of the caller's own functions."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(Shape, frozen=True):
    """`content` is null only beside `tool_calls`."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: Annotated[list[ToolCall], Meta(min_length=1)] | UnsetType = UNSET


class OtherToken(Shape, frozen=True):
    """What could have stood in a token's place."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(Shape, frozen=True):
    """A token of the answer, and how likely it was."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[OtherToken]


class Logprobs(Shape, frozen=True):
    """As the model's provider gave them."""

    content: list[TokenLogprob]
    refusal: None


class Choice(Shape, frozen=True):
    """The one choice."""

    index: Literal[0]
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: Finish


class ChatCompletion(Shape, frozen=True):
    """The answer to a request that is not streamed. `model` repeats what was sent."""

    id: Annotated[str, Meta(pattern="^chatcmpl-")]
    object: Literal["chat.completion"]
    created: UnixSeconds
    model: str
    choices: Annotated[list[Choice], Meta(min_length=1, max_length=1)]
    usage: Usage


class FunctionPart(Shape, frozen=True):
    """A piece of a call: its name comes once, in the first piece."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCallPart(Shape, frozen=True):
    """A piece of a call; `id` and `type` come once, in the first piece."""

    index: Count
    function: FunctionPart
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class Delta(Shape, frozen=True):
    """What a chunk adds. `role` comes in the first chunk."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCallPart] | UnsetType = UNSET


class ChunkChoice(Shape, frozen=True):
    """The one choice; `finish_reason` is set in the last chunk that has one."""

    index: Literal[0]
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: Finish | None


class ChatCompletionChunk(Shape, frozen=True):
    """One event of a streamed answer. Only the chunk with `usage` has no choice."""

    id: Annotated[str, Meta(pattern="^chatcmpl-")]
    object: Literal["chat.completion.chunk"]
    created: UnixSeconds
    model: str
    choices: Annotated[list[ChunkChoice], Meta(max_length=1)]
    usage: Usage | UnsetType = UNSET


class Health(Shape, frozen=True):
    """The process answers."""

    ok: bool


class Ready(Shape, frozen=True):
    """Whether the gateway can take work."""

    ready: bool


SHAPES = (ChatCompletion, ChatCompletionChunk, ErrorResponse, ModelList, ModelObject, Health, Ready)
