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


class ImageUrl(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """`url` is a `data:` URL, whatever its sender gave. `detail`: how closely a model is to look, in OpenAI's words; None: as it likes."""

    url: str
    detail: str | None = None


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
#: How a message with parts begins, and what stands before the URL of each image; inside of texts quotes have backslashes.
_PARTS = (memoryview(b'{"role":"user","content":['), memoryview(b'{"role":"tool","content":['))
_BRACKET_AT, _BRACKET = len(_PARTS[0]) - 1, ord("[")
_URL = b'"image_url":{"url":"'
_LARGE = 64 << 10


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


def data_of(raw: msgspec.Raw) -> bytes:
    """The bytes of a canonical message. Megabytes are not copied for it, which would take milliseconds, where the message was made of them."""
    if memoryview(raw).nbytes < _LARGE:
        return bytes(raw)
    kept: object = raw.__reduce__()[1][0]  # as it would be pickled: what it refers to
    return kept if isinstance(kept, bytes) else bytes(raw)


def has_parts(raw: msgspec.Raw) -> bool:
    """Whether a canonical message has parts, so that there are images in it. Looks at its beginning only, however large it is."""
    view = memoryview(raw)
    return len(view) > _BRACKET_AT and view[_BRACKET_AT] == _BRACKET and view[: _BRACKET_AT + 1] in _PARTS


def image_urls(data: bytes) -> list[tuple[int, int]]:
    """Where the URLs of the images stand in the bytes of a canonical message: beginning and end of each.

    Large images are found so in a tenth of the time that reading the JSON would take.
    """
    found, at = [], data.find(_URL)
    while at >= 0:
        start = at + len(_URL)
        end = data.index(b'"', start)
        found.append((start, end))
        at = data.find(_URL, end)
    return found


def image_type(data: bytes) -> str | None:
    """The media type of an image by its first bytes, 12 of which say enough; None where it is none that this gateway knows."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12])
    return None


#: Of the container that pictures of phones come in: how its content is coded.
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "image/heic"),
    **dict.fromkeys((b"mif1", b"msf1", b"heif"), "image/heif"),
}
