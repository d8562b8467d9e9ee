"""Images in messages: what kind one is, how a user's message has them, and what is left of them later. Pure; imports mayros.messages.

A model is given the images themselves. The store keeps only what each was, so that a transcript stays small; whoever reads a conversation back from
there finds a note in its place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from mayros.messages import ImagePart, ImageUrl, Message, TextPart, data_of, has_parts, image_type, image_urls, pack, text_of, unpack

_REMEMBERED = re.compile(rb"omitted:([^;]*);bytes=(\d+)")
#: Bytes of a URL that hold what tells its kind; all of one that is only remembered.
_HEAD = 128
_USUAL = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})


class Image(msgspec.Struct, frozen=True):
    """One image: its media type, base64 data, and size in bytes."""

    media_type: str
    data: str
    size: int


def media_type(data: bytes) -> str | None:
    """The kind of an image that all models with eyes take, by its first bytes; None for anything else."""
    kind = image_type(data)
    return kind if kind in _USUAL else None


def user_message(text: str, images: Sequence[Image] = ()) -> msgspec.Raw:
    """What a user said and showed, as a canonical message; `text` may be empty beside images."""
    return _spoken(text, [ImagePart(ImageUrl(f"data:{image.media_type};base64,{image.data}")) for image in images])


def retold(raw: msgspec.Raw, text: str) -> msgspec.Raw:
    """The message with another text and the same images."""
    content = unpack(raw).content
    return _spoken(text, [part for part in content if isinstance(part, ImagePart)] if isinstance(content, tuple) else [])


def _spoken(text: str, shown: Sequence[ImagePart]) -> msgspec.Raw:
    return pack(Message("user", (*([TextPart(text)] if text else ()), *shown) if shown else text))


def pictured(messages: Sequence[msgspec.Raw]) -> bool:
    """Whether there is an image in one of the messages."""
    return any(map(has_parts, messages))


def remembered(raw: msgspec.Raw) -> msgspec.Raw:
    """The message as the store keeps it: of each image its kind and size."""
    if not has_parts(raw):
        return raw
    # By hand: with megabytes of images the reactor would be held up by reading and writing the JSON.
    data, kept, done = data_of(raw), [], 0
    for start, end in image_urls(data):
        told = _told(data[start : min(end, start + _HEAD)], data[end - 2 : end], end - start)
        kept += [data[done:start], "omitted:{};bytes={}".format(*told).encode()]
        done = end
    return msgspec.Raw(b"".join([*kept, data[done:]]))


def described(messages: Sequence[msgspec.Raw]) -> Sequence[msgspec.Raw]:
    """The messages with a note in the place of each image: for a model that takes none, and for images that are gone."""
    return tuple(_described(raw) if has_parts(raw) else raw for raw in messages) if pictured(messages) else messages


def _described(raw: msgspec.Raw) -> msgspec.Raw:
    message = unpack(remembered(raw))
    if not isinstance(message.content, tuple):
        return raw
    notes = ["[an image ({}, {} bytes) was shown here]".format(*about(part)) for part in message.content if isinstance(part, ImagePart)]
    return pack(replace(message, content="\n".join(filter(None, (text_of(message), *notes)))))


def about(part: ImagePart) -> tuple[str, int]:
    """The media type and the size in bytes of an image, also of one that is only remembered."""
    url = part.image_url.url
    return _told(url[:_HEAD].encode(), url[-2:].encode(), len(url))


def _told(head: bytes, tail: bytes, length: int) -> tuple[str, int]:
    """Media type and size, from the beginning and the end of a URL."""
    if (found := _REMEMBERED.fullmatch(head)) is not None:
        return found[1].decode(), int(found[2])
    kind, mark, _ = head.removeprefix(b"data:").partition(b";base64,")
    return kind.decode(), (length - len(b"data:" + kind + mark)) // 4 * 3 - tail.count(b"=")
