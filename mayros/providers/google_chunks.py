"""The chunks of Google's generateContent as typed structs, and the tolerant way of reading them. Pure; imports events, characters and reading.

A chunk of the usual shape is decoded at once; any other goes through `_loose`, where each field of a wrong type counts as missing.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from mayros.events import Usage
from mayros.providers.characters import whole_characters
from mayros.providers.reading import count, lenient_json


class Kept(msgspec.Struct, gc=False, omit_defaults=True):
    """One part of a model turn as it must come back: so many characters of the text, or a signed thought, or the next call with its own id."""

    text: int | None = None
    thought: str | None = None
    call: str | None = None
    signature: str | None = None


class State(msgspec.Struct, gc=False):
    """What is kept with a model turn that has calls (events.ProviderState): its parts in their order."""

    parts: list[Kept]


class Call(msgspec.Struct, gc=False):
    """A call, whole. `args`: JSON as it was written; empty where there is none."""

    name: str | None = None
    id: str | None = None
    args: msgspec.Raw = msgspec.Raw()


class Part(msgspec.Struct, gc=False, rename="camel"):
    """A piece of the answer: text or a call, and perhaps a signature."""

    text: str | None = None
    thought: bool | None = None
    function_call: Call | None = None
    thought_signature: str | None = None


class Content(msgspec.Struct, gc=False):
    """The parts of a candidate."""

    parts: list[Part] | None = None


class Candidate(msgspec.Struct, gc=False, rename="camel"):
    """What a chunk adds to an answer; with its end also why it ended."""

    content: Content | None = None
    finish_reason: str | None = None
    index: int | None = None


class Counts(msgspec.Struct, gc=False, rename="camel"):
    """Tokens so far; the last ones count."""

    prompt_token_count: int | None = 0
    cached_content_token_count: int | None = 0
    tool_use_prompt_token_count: int | None = 0
    candidates_token_count: int | None = 0
    thoughts_token_count: int | None = 0


class Feedback(msgspec.Struct, gc=False, rename="camel"):
    """Why a prompt was not answered at all."""

    block_reason: str | None = None


class Chunk(msgspec.Struct, gc=False, rename="camel"):
    """One event of the stream. Also an error may stand in place of all."""

    candidates: list[Candidate] | None = None
    usage_metadata: Counts | None = None
    prompt_feedback: Feedback | None = None
    error: Any = None
    #: Read by `_loose`: there may be halves of surrogate pairs in its texts.
    loose: bool = False


_decode = msgspec.json.Decoder(Chunk).decode


def chunk_of(block: bytes) -> Chunk | None:
    """The chunk of one event; None for what is no JSON object."""
    try:
        return _decode(block)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _loose(lenient_json(block))


def chunks_of(body: bytes) -> list[Chunk]:
    """The chunks of an answer that is not an event stream: one JSON object, or a list of them."""
    value = lenient_json(body)
    read = [_loose(one) for one in (value if isinstance(value, list) else [value])]
    return [chunk for chunk in read if chunk is not None]


def disjoint(usage: Counts | None) -> Usage:
    """Disjoint counts: Google's count of the prompt includes what was cached, that of the candidate leaves out the thoughts."""
    if usage is None:
        return Usage()
    prompt = count(usage.prompt_token_count) + count(usage.tool_use_prompt_token_count)
    read, thoughts = min(count(usage.cached_content_token_count), prompt), count(usage.thoughts_token_count)
    return Usage(prompt - read, count(usage.candidates_token_count) + thoughts, read, 0, thoughts)


def _loose(value: object) -> Chunk | None:
    """A chunk with whatever in it has a type that makes sense; None for what is not a JSON object."""
    if not isinstance(value, dict):
        return None
    candidates, usage, feedback = value.get("candidates"), value.get("usageMetadata"), value.get("promptFeedback")
    return Chunk(
        [_loose_candidate(one) for one in candidates if isinstance(one, dict)] if isinstance(candidates, list) else None,
        Counts(*[count(usage.get(name)) for name in Counts.__struct_encode_fields__]) if isinstance(usage, dict) else None,
        Feedback(_text(feedback.get("blockReason"))) if isinstance(feedback, dict) else None,
        value.get("error"),
        loose=True,
    )


def _loose_candidate(value: dict[str, Any]) -> Candidate:
    content, index = value.get("content"), value.get("index")
    parts = content.get("parts") if isinstance(content, dict) else None
    kept = [_loose_part(part) for part in parts if isinstance(part, dict)] if isinstance(parts, list) else None
    return Candidate(Content(kept), _text(value.get("finishReason")), index if type(index) is int else 0)


def _loose_part(value: dict[str, Any]) -> Part:
    text = value.get("text")
    part = Part(text if isinstance(text, str) else None, value.get("thought") is True, None, _text(value.get("thoughtSignature")))
    call = value.get("functionCall")
    if isinstance(call, dict):
        try:
            # Encoded as ASCII: halves of surrogate pairs survive as they were written.
            arguments = json.dumps(call["args"]).encode() if call.get("args") is not None else b""
        except RecursionError:
            arguments = b""
        part.function_call = Call(_text(call.get("name")), _text(call.get("id")), msgspec.Raw(arguments))
    return part


def _text(value: object) -> str | None:
    return whole_characters(value) if isinstance(value, str) else None
