"""The chunks of chat completions: of the usual shape read at once into structs, any other with whatever in it has a type that makes sense. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from mayros.events import Usage
from mayros.providers.calls import CallPart, loose_part
from mayros.providers.characters import whole_characters
from mayros.providers.reading import count, lenient_json


class PromptDetails(msgspec.Struct, gc=False):
    """What the prompt was made of."""

    cached_tokens: int | None = 0
    cache_write_tokens: int | None = 0


class CompletionDetails(msgspec.Struct, gc=False):
    """What the answer was made of."""

    reasoning_tokens: int | None = 0


class ChatUsage(msgspec.Struct, gc=False):
    """Tokens as the server counts them: the details are part of the counts. DeepSeek and Moonshot have words of their own for what was cached."""

    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    total_tokens: int | None = 0
    prompt_cache_hit_tokens: int | None = 0
    cached_tokens: int | None = 0
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class Delta(msgspec.Struct, gc=False):
    """What a chunk adds."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[CallPart] | None = None
    function_call: Any = None


class OtherToken(msgspec.Struct, gc=False):
    """What could have stood in a token's place."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class Token(msgspec.Struct, gc=False):
    """A token of the answer, and how likely it was."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[OtherToken] = []


class Logprobs(msgspec.Struct, gc=False):
    """How likely the tokens of a chunk were; what a server adds of its own is left out."""

    content: list[Token] | None = None


class Choice(msgspec.Struct, gc=False):
    """One of several answers; only the first is read. `logprobs` come where they were asked for."""

    delta: Delta | None = None
    finish_reason: str | None = None
    index: int = 0
    usage: ChatUsage | None = None
    logprobs: Logprobs | None = None


class Chunk(msgspec.Struct, gc=False):
    """One event."""

    choices: list[Choice] | None = None
    usage: ChatUsage | None = None
    error: Any = None


#: Raises msgspec.DecodeError, UnicodeDecodeError or RecursionError for a chunk that `loose_chunk` may read.
read_chunk = msgspec.json.Decoder(Chunk).decode


_PROMPT, _COMPLETION = PromptDetails(), CompletionDetails()


def counts(usage: ChatUsage | None) -> Usage:
    """Disjoint counts: the provider's prompt count includes cached tokens. What makes no sense is 0.

    xAI does not count reasoning as completion; its total tells, in which all three are.
    """
    if usage is None:
        return Usage()
    total, output = count(usage.prompt_tokens), count(usage.completion_tokens)
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    if prompt is None and completion is None and not usage.prompt_cache_hit_tokens and not usage.cached_tokens:
        return Usage(total, output)
    prompt, completion = prompt or _PROMPT, completion or _COMPLETION
    thoughts = count(completion.reasoning_tokens)
    if thoughts and count(usage.total_tokens) >= total + output + thoughts:
        output += thoughts
    read = min(max(count(prompt.cached_tokens), count(usage.prompt_cache_hit_tokens), count(usage.cached_tokens)), total)
    written = min(count(prompt.cache_write_tokens), total - read)
    return Usage(total - read - written, output, read, written, min(thoughts, output))


def loose_chunk(data: bytes) -> Chunk | None:
    """A chunk, or a whole completion, with whatever in it has a type that makes sense; None for what is not a JSON object."""
    value = lenient_json(data)
    if not isinstance(value, dict):
        return None
    choices = value.get("choices")
    return Chunk(
        choices=[_loose_choice(choice) for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else None,
        usage=_loose_usage(value.get("usage")),
        error=value.get("error"),
    )


def _loose_choice(choice: dict[str, Any]) -> Choice:
    said = choice.get("delta", choice.get("message"))
    reason, index = choice.get("finish_reason"), choice.get("index")
    return Choice(
        _loose_delta(said) if isinstance(said, dict) else None,
        whole_characters(reason) if isinstance(reason, str) else None,
        index if type(index) is int else 0,
        _loose_usage(choice.get("usage")),
    )


def _loose_delta(said: dict[str, Any]) -> Delta:
    def text(value: object) -> str | None:
        if isinstance(value, list):  # parts
            parts = [part.get("text") for part in value if isinstance(part, dict)]
            value = "".join(part for part in parts if isinstance(part, str))
        return value if isinstance(value, str) else None

    parts = said.get("content")
    thoughts = [part.get("thinking") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return Delta(
        content=text(said.get("content")),
        reasoning_content=text(said.get("reasoning_content")) or "".join(text(thought) or "" for thought in thoughts) or None,
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


def _loose_usage(usage: object) -> ChatUsage | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    prompt = prompt if isinstance(prompt, dict) else {}
    completion = completion if isinstance(completion, dict) else {}
    return ChatUsage(
        count(usage.get("prompt_tokens")),
        count(usage.get("completion_tokens")),
        count(usage.get("total_tokens")),
        count(usage.get("prompt_cache_hit_tokens")),
        count(usage.get("cached_tokens")),
        PromptDetails(count(prompt.get("cached_tokens")), count(prompt.get("cache_write_tokens"))),
        CompletionDetails(count(completion.get("reasoning_tokens"))),
    )
