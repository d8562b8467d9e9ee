"""What a chat request brings besides text, made ready for its run: a large body is read off the reactor, images are fetched, files are read.

Imports core, wire and config. All of it belongs to the request: when the client leaves, it is cancelled.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar, cast

import msgspec
from msgspec.structs import replace
from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults, maybeDeferred

from mayros.config.gateway import Endpoint
from mayros.core.asking import some_see_images
from mayros.core.bounds import wrapped
from mayros.core.images import pictured
from mayros.core.input_ports import Fetch, PdfReader
from mayros.core.ports import Turn
from mayros.errors import InputFailed, InvalidRequest
from mayros.wire.chat import ChatRequest, decode_request
from mayros.wire.lift import decoded, encoded, filled
from mayros.wire.parts import AttachedFile, PartLimits, RemoteImage, check_type

T = TypeVar("T")

#: Larger bodies are read in a thread.
INLINE_BYTES = 1 << 20
REST_SECONDS = 0.0002
#: Comes before the files' texts in the instructions.
HEADING = "# Files of the user's messages"
#: OpenAI's word for an image that could not be fetched.
NOT_FETCHED = "invalid_image_url"

_CHARSETS = {
    **dict.fromkeys(("utf-8", "utf8", "us-ascii", "ascii"), "utf-8"),
    **dict.fromkeys(("iso-8859-1", "latin1", "windows-1252", "cp1252"), "cp1252"),
    **dict.fromkeys(("utf-16", "utf-16le"), "utf-16-le"),
    "utf-16be": "utf-16-be",
}
_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))


async def _nothing(*_: Any, **__: Any) -> Any:
    raise InputFailed("this gateway cannot read it")


class Inputs:
    """Reads the bodies of chat requests. `in_thread` runs a function off the reactor; `fetch` and `read_pdf` are ports of core.input_ports."""

    def __init__(
        self,
        in_thread: Callable[..., Deferred[Any]] = maybeDeferred,
        fetch: Fetch = _nothing,
        read_pdf: PdfReader = _nothing,
    ) -> None:
        self._in_thread, self._fetch, self._read_pdf = in_thread, fetch, read_pdf
        self._known: tuple[Endpoint, PartLimits] | None = None

    def _limits(self, endpoint: Endpoint) -> PartLimits:
        """Made once for each configuration."""
        if self._known is None or self._known[0] is not endpoint:
            self._known = endpoint, limits_of(endpoint)
        return self._known[1]

    async def read(self, body: bytes | bytearray, endpoint: Endpoint) -> ChatRequest:
        """The request of a body. Raises what `decode_request` raises."""
        limits = self._limits(endpoint)
        if len(body) <= INLINE_BYTES:
            return decode_request(body, limits)
        asked: ChatRequest = await self._in_thread(decode_request, body, limits, _rest)
        return asked

    async def complete(self, turn: Turn, asked: ChatRequest, endpoint: Endpoint, take: Callable[[int], None]) -> Turn:
        """The turn with its images fetched and the text of its files in its instructions.

        `take` is called with the count of bytes before they are kept, and may raise. Raises InvalidRequest naming the part.
        """
        if not asked.remote and not asked.files:
            return turn
        # Of a session that keeps its own history only what is new is sent on.
        first = len(asked.messages) - len(turn.messages)
        wanted = [image for image in asked.remote if image.message >= first]
        if wanted:
            _check_models(turn)
            turn = replace(turn, messages=await self._fetched(turn.messages, wanted, asked.image_bytes, endpoint, take))
        if asked.files:
            texts = await _together([self._text(file, endpoint) for file in asked.files])
            turn = replace(turn, extra_system="\n\n".join(filter(None, (turn.extra_system, HEADING, *texts))))
        return turn

    async def _fetched(
        self, messages: Sequence[msgspec.Raw], images: Sequence[RemoteImage], count: int, endpoint: Endpoint, take: Callable[[int], None]
    ) -> tuple[msgspec.Raw, ...]:
        limits = self._limits(endpoint)

        def taken(image: RemoteImage) -> Callable[[int], None]:
            mine = 0

            def more(size: int) -> None:
                nonlocal count, mine
                mine, count = mine + size, count + size
                if mine > limits.image_bytes:
                    raise InputFailed(f"it has more than the {limits.image_bytes} bytes that an image may have")
                if count > limits.all_image_bytes:
                    raise InputFailed(f"all images of a request together may have at most {limits.all_image_bytes} bytes")
                take(size // 3 * 4 + 4)  # it is kept as base64

            return more

        urls = await _together([self._image(image, endpoint, taken(image)) for image in images])
        data = {image.token: url for image, url in zip(images, urls, strict=True)}
        return tuple([filled(raw, data) if pictured((raw,)) else raw for raw in messages])

    async def _image(self, image: RemoteImage, endpoint: Endpoint, take: Callable[[int], None]) -> bytes:
        """A data: URL of what another address gave."""
        place, rules = image.where, endpoint.images
        try:
            fetched = await self._fetch(
                image.url,
                hosts=rules.url_allowlist,
                kinds=rules.allowed_mimes,
                redirects=rules.max_redirects,
                seconds=rules.timeout_ms / 1000,
                take=take,
            )
        except InputFailed as error:
            raise InvalidRequest(f"{place}: the image was not fetched: {error}.", param=place, code=NOT_FETCHED) from None
        check_type(fetched.kind, fetched.data[:32], place)
        url: bytes = await self._in_thread(_data_url, fetched.kind, fetched.data)
        return url

    async def _text(self, file: AttachedFile, endpoint: Endpoint) -> str:
        """What the model is told of a file; it stands between marks that it cannot imitate."""
        limit, place = endpoint.files.max_chars, file.where
        try:
            data: bytes = await self._in_thread(decoded, file.data, _rest)
            if file.kind == "application/pdf":
                pdf = await self._read_pdf(data, max_pages=endpoint.files.pdf.max_pages, max_chars=limit)
                text, cut = pdf.text, pdf.cut
                note = f" The first {pdf.read} of its {pdf.pages} pages follow." if pdf.read < pdf.pages else ""
            else:
                text, note = await self._in_thread(text_of, data, file.charset), ""
                cut = len(text) > limit
        except InputFailed as error:
            raise InvalidRequest(f"{place}: the file could not be read: {error}.", param=place) from None
        note += f" Its text was cut after {limit} characters." if cut else ""
        marked: str = await self._in_thread(_marked, f"File: {file.name} ({file.kind}).{note}\n\n{text[:limit].strip() or '(It holds no text.)'}")
        return marked


def limits_of(endpoint: Endpoint) -> PartLimits:
    """What an endpoint's requests may have, as it is configured."""
    images, files = endpoint.images, endpoint.files
    return PartLimits(
        image_bytes=images.max_bytes,
        image_types=images.allowed_mimes,
        urls=images.allow_url,
        max_urls=endpoint.max_url_parts,
        file_bytes=files.max_bytes,
        file_types=files.allowed_mimes,
    )


def text_of(data: bytes, charset: str | None) -> str:
    """The text of a file, by its byte order mark, else as its sender said, else UTF-8. Raises InputFailed."""
    for mark, name in _MARKS:
        if data.startswith(mark):
            data, charset = data[len(mark) :], name
            break
    encoding = _CHARSETS.get(charset or "utf-8", charset or "")
    if encoding not in _CHARSETS.values():
        raise InputFailed(f"its charset {encoding!r} is not known here; send it as UTF-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise InputFailed(f"it is not {encoding.upper()} text") from None
    if "\0" in text:
        raise InputFailed("it is a binary file")
    return text


def _rest() -> None:
    """In a thread: let the reactor run. Python itself would let it wait for 5 ms each time."""
    time.sleep(REST_SECONDS)  # noqa: TID251  this is no reactor thread


def _marked(text: str) -> str:
    return wrapped(text, secrets.token_hex(8))


def _data_url(kind: str, data: bytes) -> bytes:
    return b"data:%b;base64,%b" % (kind.encode(), encoded(data, _rest))


def _check_models(turn: Turn) -> None:
    """Nothing is fetched for a model that could not look at it. (A session may have a model of its own, which is known later.)"""
    models = turn.agent.models if turn.model is None else (turn.model,)
    if turn.stateless or turn.model is not None:
        some_see_images(models, "messages")


async def _together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results, in order; with the first failure the others are cancelled."""
    tasks = [Deferred.fromCoroutine(one) for one in work]
    together: Awaitable[list[T]] = gatherResults(tasks, consumeErrors=True)
    try:
        return await together
    except FirstError as error:
        for task in tasks:
            task.cancel()
        cause = cast(BaseException, error.subFailure.value)
    raise CancelledError if isinstance(cause, CancelledError) else cause
