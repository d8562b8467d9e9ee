"""Images that come with a message, in the methods that start runs. Imports mayros.core, mayros.wire and mayros.ws.

An attachment is base64 in JSON. What it says of itself is not believed: its first bytes tell what it is. As elsewhere in this protocol, what is
no image is left out; a picture of a kind that models do not take is refused, because its sender would wait for it to be looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING

import msgspec
from twisted.logger import Logger

from mayros.core.asking import some_see_images
from mayros.core.claims import Start
from mayros.core.images import Image, media_type, pictured
from mayros.core.ports import Claim, Run, RunResult, Turn
from mayros.errors import InvalidRequest, Unavailable
from mayros.wire.frames import Request, canonical
from mayros.wire.lift import beginning, is_base64, size

if TYPE_CHECKING:
    from mayros.ws.context import Gateway

log = Logger()

MAX_IMAGES, MAX_BYTES = 8, 5_000_000
#: The parameter of the methods that take them.
ATTACHMENTS = "attachments"
_MAX_ATTACHMENTS = 64
_MAX_LABEL = 64
_DATA_URL = re.compile(r"data:[^,]{0,256};base64,", re.IGNORECASE)
#: Bytes that tell one kind from another.
_HEAD = 24


class Attachment(msgspec.Struct, frozen=True, rename="camel"):
    """`content` is base64, also as a `data:` URL. `type`, `mime_type` and `file_name` only name it in errors; other keys are ignored."""

    type: str | None = None
    mime_type: str | None = None
    file_name: str | None = None
    content: str | None = None


def images(attachments: Sequence[Attachment] | None) -> tuple[Image, ...]:
    """The images among the attachments. Raises InvalidRequest."""
    found: list[Image] = []
    given = [(number, attachment) for number, attachment in enumerate(attachments or (), 1) if attachment.content]
    if len(given) > _MAX_ATTACHMENTS:
        raise InvalidRequest(f"there are {len(given)} attachments; at most {_MAX_ATTACHMENTS} are looked at")
    for number, attachment in given:
        label = (attachment.file_name or attachment.type or "").strip()[:_MAX_LABEL] or f"attachment-{number}"
        image = _image(attachment, label)
        if image is None:
            log.info("an attachment is no image and is left out")
            continue
        found.append(image)
        if len(found) > MAX_IMAGES:
            raise InvalidRequest(f"a message may have at most {MAX_IMAGES} images")
    return tuple(found)


def _image(attachment: Attachment, label: str) -> Image | None:
    text = (attachment.content or "").strip()
    prefix = _DATA_URL.match(text)
    if prefix is not None:
        text = text[prefix.end() :]
    data = text.encode("ascii", "replace")  # "?" is no base64 either
    count = size(data)
    if count > MAX_BYTES:
        raise InvalidRequest(f"attachment {label}: exceeds size limit ({count} > {MAX_BYTES} bytes)")
    # Whole images are not decoded: only their beginning is needed.
    if not is_base64(data):
        raise InvalidRequest(f"attachment {label}: invalid base64 content")
    kind = media_type(beginning(data, _HEAD))
    if kind is not None:
        return Image(kind, text, count)
    claimed = (attachment.mime_type or (prefix[0][5:] if prefix is not None else "") or attachment.type or "").strip().lower()
    if claimed.startswith("image"):
        raise InvalidRequest(f"attachment {label}: is no PNG, JPEG, GIF or WebP image")
    return None


def digest(request: Request, found: Sequence[Image]) -> bytes:
    """What tells one request from another that has the same idempotency key."""
    made = sha256(canonical(request.params, without=ATTACHMENTS))
    for image in found:
        made.update(blake2b(image.data.encode()).digest())  # twice as fast, for megabytes
    return made.digest()


def check_model(gateway: Gateway, turn: Turn, chosen: str | None) -> None:
    """Raises InvalidRequest where none of the models that the run may ask takes images. `chosen`: the session's own model."""
    own = gateway.config.current.catalogue.find(chosen) if chosen is not None else None
    models = turn.agent.models if own is None else (own,)
    if pictured(turn.messages):
        some_see_images(models)


async def within_budget(gateway: Gateway, turn: Turn, found: Sequence[Image], start: Start, claim: Claim) -> Run | RunResult:
    """Start a run with images, which all runs together keep within a budget until they have ended. Raises Unavailable, and what `start` raises."""
    length = sum(len(image.data) for image in found)
    if not length:
        return await start(claim)
    row = await gateway.sessions.get(str(turn.session))
    check_model(gateway, turn, None if row is None else row.settings.model)
    if not gateway.image_budget.take(length):
        raise Unavailable("There is no room for more images right now. Try again shortly.", retry_after=5)
    try:
        work = await start(claim)
    except BaseException:
        gateway.image_budget.give(length)
        raise
    if isinstance(work, RunResult):
        gateway.image_budget.give(length)
    else:
        work.ended().addCallback(lambda _: gateway.image_budget.give(length))
    return work
