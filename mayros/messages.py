"""Messages of a conversation in one canonical form: the JSON of an OpenAI chat message, kept as bytes (docs/decisions/0004).

The HTTP door writes these bytes, the store keeps them, the chat-completions provider sends them as they are; other wire formats decode them.
Imports nothing of ours.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["system", "user", "assistant", "tool"]


class Function(msgspec.Struct, frozen=True, gc=False):
    """The function a model calls; `arguments` is JSON text as the model wrote it."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True, gc=False):
    """One call a model made."""

    id: str
    function: Function
    type: Literal["function"] = "function"


class TextPart(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="text"):
    """A text among parts."""

    text: str


class ImageUrl(msgspec.Struct, frozen=True, gc=False):
    """`url` is a `data:` URL: no image is fetched from elsewhere."""

    url: str


class ImagePart(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="image_url"):
    """An image among parts."""

    image_url: ImageUrl


class ProviderState(msgspec.Struct, frozen=True, gc=False):
    """What a vendor wants to have back with an assistant message. It belongs to one `provider/model` and is dropped for any other.

    `state` is JSON in a form that only the adapter knows.
    """

    model: str
    state: msgspec.Raw


class Message(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One message. `content` is None only beside `tool_calls`; it has parts only where there are images, as in a tool's result.

    OpenAI itself takes no images from the role `tool`: the adapter puts them into a message of the role `user` after the results.
    """

    role: Role
    content: str | tuple[TextPart | ImagePart, ...] | msgspec.UnsetType | None = msgspec.UNSET
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    tool_call_id: str | None = None
    #: Never sent as it is: adapters take from it what their vendor wants.
    provider_state: ProviderState | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Message).decode


def text_of(message: Message) -> str:
    """The text of a message, of all its parts; empty where it has none."""
    content = message.content
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content if isinstance(part, TextPart)) if isinstance(content, tuple) else ""


def pack(message: Message) -> msgspec.Raw:
    """The message as canonical JSON bytes."""
    return msgspec.Raw(_encode(message))


def unpack(raw: msgspec.Raw | bytes) -> Message:
    """The message of canonical JSON bytes; raises msgspec.DecodeError on anything else."""
    return _decode(raw)
