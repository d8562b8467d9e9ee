"""Canonical messages for the adapters whose wire format is not that of chat completions. Pure; imports messages."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import msgspec

from mayros.messages import ImagePart, Message, ToolCall, unpack

_DATA_URL = re.compile(r"data:([\w.+-]{1,64}/[\w.+-]{1,64});base64,", re.ASCII)
_ANYTHING: msgspec.json.Decoder[object] = msgspec.json.Decoder()


def conversation(messages: Iterable[msgspec.Raw]) -> list[Message]:
    """The messages, decoded."""
    return [unpack(raw) for raw in messages]


def state_of(message: Message, model: str) -> dict[str, object] | None:
    """What the vendor of `model` (`provider/model`) wanted back with this message; None where it belongs to another model, or makes no sense."""
    kept = message.provider_state
    if kept is None or kept.model != model:
        return None
    try:
        state = _ANYTHING.decode(kept.state)
    except msgspec.DecodeError:
        return None
    return state if isinstance(state, dict) else None


def image_of(part: ImagePart) -> tuple[str, str] | None:
    """Media type and base64 data of an image; None where it is no data URL."""
    url = part.image_url.url
    found = _DATA_URL.match(url)
    return (found[1], url[found.end() :]) if found is not None else None


def arguments_of(call: ToolCall) -> msgspec.Raw:
    """The arguments of a call as they were written; an empty object for what is none: the result of the call says what was wrong with it."""
    written = call.function.arguments
    try:
        usable = isinstance(_ANYTHING.decode(written), dict)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        usable = False
    return msgspec.Raw(written.encode() if usable else b"{}")


class Ids:
    """Ids of tool calls as one vendor takes them: calls and results of one conversation are rewritten alike, and stay different.

    `allowed`: the whole id as a regular expression; `make`: what takes the place of one that does not match, from 32 hexadecimal digits.
    """

    def __init__(self, allowed: str, make: str = "call_{}") -> None:
        self._allowed, self._make = re.compile(allowed, re.ASCII), make

    def of(self, call_id: str) -> str:
        """The id for the vendor."""
        if self._allowed.fullmatch(call_id):
            return call_id
        return self._make.format(hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:32])
