"""The events of Anthropic's Messages API as typed structs, and the tolerant way of reading them. Pure; imports characters and reading.

Only what is needed is named; msgspec skips the rest. `loose_event` reads what an imitator writes differently.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from mayros.providers.characters import whole_characters
from mayros.providers.reading import count

#: The status that goes with a kind of error, for errors that come after a 200.
STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class UsageSaid(msgspec.Struct, gc=False):
    """Tokens; disjoint counts, cumulative from event to event."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class Delta(msgspec.Struct, gc=False):
    """More of a block, or (with `stop_reason`) of the message."""

    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None
    signature: str | None = None
    stop_reason: str | None = None


class Block(msgspec.Struct, gc=False):
    """A block of the answer, as it begins."""

    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw()


class MessageSaid(msgspec.Struct, gc=False):
    """The message, as it begins."""

    usage: UsageSaid | None = None


class EventSaid(msgspec.Struct, gc=False):
    """Any event; `type` says which of the fields mean something."""

    type: str = ""
    index: int = 0
    delta: Delta | None = None
    content_block: Block | None = None
    message: MessageSaid | None = None
    usage: UsageSaid | None = None
    error: Any = None


decode = msgspec.json.Decoder(EventSaid).decode


def loose_event(value: object) -> EventSaid | None:
    """An event with whatever in it has a type that makes sense; None for what is not a JSON object."""
    if not isinstance(value, dict):
        return None
    kind, index, delta, block, message = (value.get(name) for name in ("type", "index", "delta", "content_block", "message"))
    return EventSaid(
        kind if isinstance(kind, str) else "",
        index if type(index) is int else 0,
        Delta(**_texts(delta, Delta)) if isinstance(delta, dict) else None,
        loose_block(block) if isinstance(block, dict) else None,
        MessageSaid(loose_usage(message.get("usage"))) if isinstance(message, dict) else None,
        loose_usage(value.get("usage")),
        value.get("error"),
    )


def _texts(said: dict[str, Any], kind: type[msgspec.Struct]) -> dict[str, str]:
    return {name: said[name] for name in kind.__struct_fields__ if isinstance(said.get(name), str)}


def loose_block(said: dict[str, Any]) -> Block:
    """A block with whatever in it has a type that makes sense."""
    given = said.get("input")
    texts = {name: text for name, text in _texts(said, Block).items() if name != "input"}
    if isinstance(given, str):  # some write the JSON of the arguments as a text
        raw = given
    else:
        try:
            raw = json.dumps(given, ensure_ascii=False) if given is not None else ""
        except RecursionError:
            raw = ""
    return Block(**texts, input=msgspec.Raw(whole_characters(raw).encode()))


def loose_usage(usage: object) -> UsageSaid | None:
    """Usage with counts that make sense."""
    if not isinstance(usage, dict):
        return None
    return UsageSaid(*(None if usage.get(name) is None else count(usage[name]) for name in UsageSaid.__struct_fields__))
