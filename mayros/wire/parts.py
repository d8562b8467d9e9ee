"""The parts of a user's message that are not text: images and files. No I/O; imports errors, messages and wire.lift.

Everything is counted before anything is decoded, and of an image only the first bytes ever are. Source: openai-compat facts, sections 1.2 and 5.2.
What is not valid raises InvalidRequest naming the part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from mayros.errors import InvalidRequest, InvalidValue, UnsupportedParameter
from mayros.messages import ImagePart, ImageUrl, Message, TextPart, image_type, pack
from mayros.wire.lift import Data, Lifted, beginning, is_base64, size

IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp", "image/heic", "image/heif")
FILE_TYPES = ("text/plain", "text/markdown", "text/html", "text/csv", "application/json", "application/pdf")
DETAILS = ("auto", "low", "high", "original")
#: Stands for the text of a message that is only images.
IMAGE_ALONE = "[The user sent this without any text.]"
MAX_URL = 2048
#: Of all messages together, texts as well; more would keep everybody else waiting while they are read.
MAX_PARTS = 10_000

_ALIASES = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "text/x-markdown": "text/markdown", "application/csv": "text/csv"}
_SUFFIXES = {
    **dict.fromkeys(("txt", "text", "log"), "text/plain"),
    **dict.fromkeys(("md", "markdown"), "text/markdown"),
    **dict.fromkeys(("html", "htm"), "text/html"),
    "csv": "text/csv",
    "json": "application/json",
    "pdf": "application/pdf",
}
_DATA_URL = re.compile(r"data:([^;,]{0,100})((?:;[^;,]{1,100}){0,4}?);base64,", re.IGNORECASE)
_CHARSET = re.compile(r";\s*charset=\"?([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\[\]<>\"]")
_MAX_NAME = 100
#: The two types of one container, whose brands do not tell them apart for sure.
_PHONES = {"image/heic", "image/heif"}


class SentImage(msgspec.Struct, gc=False):
    """`image_url` of a part, where it is an object."""

    url: str
    detail: str | None = None


class SentFile(msgspec.Struct, gc=False):
    """`file` of a part."""

    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class SentPart(msgspec.Struct, gc=False):
    """A part of a message, as it was sent."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: SentImage | str | None = None
    file: SentFile | None = None


class PartLimits(msgspec.Struct, frozen=True):
    """What a request may have besides text; sizes in bytes, decoded. `urls`: images may be named by http(s) URLs, so many of them."""

    images: int = 8
    image_bytes: int = 10 << 20
    all_image_bytes: int = 14 << 20
    image_types: tuple[str, ...] = IMAGE_TYPES
    urls: bool = False
    max_urls: int = 8
    files: int = 8
    file_bytes: int = 5 << 20
    file_types: tuple[str, ...] = FILE_TYPES
    #: The configuration keys that errors name.
    path: str = "gateway.http.endpoints.chatCompletions"


#: The limits of a gateway whose configuration says nothing.
ANY_PARTS = PartLimits()


class RemoteImage(msgspec.Struct, frozen=True):
    """An image that is to be fetched. `message`: in which canonical message `token` stands in its place; `where`: the part, for errors."""

    message: int
    where: str
    url: str
    token: str


class AttachedFile(msgspec.Struct, frozen=True):
    """A file whose text the model gets. `data` is valid base64, `charset` what its sender said of it, `where` the part, for errors."""

    where: str
    name: str
    kind: str
    charset: str | None
    data: bytes


class Parts:
    """Reads the parts of one request. First `content` of each message, which counts; then `check`, once, which looks into the data."""

    def __init__(self, limits: PartLimits, lifted: Lifted) -> None:
        self._limits, self._lifted = limits, lifted
        self._images: list[tuple[str, str, Data]] = []
        self._bytes = self._count = self._parts = 0
        self.remote: list[RemoteImage] = []
        self._files: list[tuple[str, str, str, str | None, Data]] = []
        self.files: tuple[AttachedFile, ...] = ()

    @property
    def image_bytes(self) -> int:
        """Of all images that came as data."""
        return self._bytes

    def content(self, sent: Sequence[SentPart], where: str, message: int) -> str | tuple[TextPart | ImagePart, ...]:
        """The content of a user's message, the canonical message `message`: a text where there are no images, else parts."""
        self._parts += len(sent)
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"{where}.content has too many parts: a request may have at most {MAX_PARTS}.", param=f"{where}.content")
        parts: list[TextPart | ImagePart] = []
        pictured, said = False, False
        for number, part in enumerate(sent):
            place, kind = f"{where}.content[{number}]", part.type
            if kind in ("text", "input_text"):
                words = text_of(part, place)
                parts.append(TextPart(words))
                said = said or bool(words and not words.isspace())
            elif kind == "image_url":
                parts.append(self._image(part, place, message))
                pictured = True
            elif kind == "file":
                parts.append(TextPart(f"[file: {self._file(part, place)}]"))
                said = True
            else:
                raise unsupported(kind, place, "text, image_url and file")
        if pictured:
            return tuple(parts) if said else (TextPart(IMAGE_ALONE), *(part for part in parts if isinstance(part, ImagePart)))
        return "\n".join(part.text for part in parts if isinstance(part, TextPart))

    def pack(self, message: Message) -> msgspec.Raw:
        """The canonical message, with the data that was set aside in its place. Of images that are to be fetched the tokens stay."""
        return self._lifted.fill(pack(message)) if isinstance(message.content, tuple) else pack(message)

    def _image(self, part: SentPart, place: str, message: int) -> ImagePart:
        if part.image_url is None:
            raise InvalidRequest(f"{place}.image_url is missing.", param=f"{place}.image_url")
        sent = SentImage(part.image_url) if isinstance(part.image_url, str) else part.image_url
        given, detail = sent.url, sent.detail
        if detail is not None and detail not in DETAILS:
            raise InvalidValue(f"{place}.image_url.detail must be one of {', '.join(DETAILS)}.", param=f"{place}.image_url.detail")
        self._count += 1
        if self._count > self._limits.images:
            raise InvalidRequest(f"{place} is one image too many: a request may have at most {self._limits.images}.", param=place)
        if given[:5].lower() == "data:":
            return ImagePart(ImageUrl(self._image_data(given, place), detail))
        if given[:7].lower() != "http://" and given[:8].lower() != "https://":
            raise InvalidRequest(f"{place}.image_url must be a data: URL with base64, or an http(s) URL.", param=place)
        token = self._lifted.token()
        self._remote(RemoteImage(message, place, given, token))
        return ImagePart(ImageUrl(token, detail))

    def _remote(self, image: RemoteImage) -> None:
        place, limits = image.where, self._limits
        if not limits.urls:
            raise UnsupportedParameter(
                f"{place}.image_url: no images are fetched ({limits.path}.images.allowUrl is off). Send it as a data: URL.",
                param=place,
            )
        if len(image.url) > MAX_URL:
            raise InvalidRequest(f"{place}.image_url has {len(image.url)} characters; an address may have {MAX_URL}.", param=place)
        self.remote.append(image)
        if len(self.remote) > limits.max_urls:
            raise InvalidRequest(f"{place} is one URL too many: at most {limits.max_urls} are fetched for a request.", param=place)

    def _image_data(self, url: str, place: str) -> str:
        kind, _, data, text = self._data_of(url, place)
        if kind not in self._limits.image_types:
            raise InvalidRequest(f"{place} is of the type {kind[:40]!r}; images may be {', '.join(self._limits.image_types)}.", param=place)
        self.add_bytes(size(data), place)
        self._images.append((place, kind, data))
        return f"data:{kind};base64,{text}"

    def add_bytes(self, count: int, place: str) -> None:
        """Count the bytes of one more image."""
        limits = self._limits
        if count > limits.image_bytes:
            raise InvalidRequest(f"{place} has {count} bytes; an image may have at most {limits.image_bytes}.", param=place)
        self._bytes += count
        if self._bytes > limits.all_image_bytes:
            raise InvalidRequest(f"{place}: all images of a request together may have at most {limits.all_image_bytes} bytes.", param=place)

    def _data_of(self, url: str, place: str) -> tuple[str, str, Data, str]:
        """Of a data: URL its type, its parameters, its base64, and what stands for that in the URL."""
        found = _DATA_URL.match(url)
        if found is None:
            raise InvalidRequest(f"{place} must be a data: URL with a type and ;base64, before its data.", param=place)
        kind, text = found[1].strip().lower(), url[found.end() :]
        kept = self._lifted.take(text)
        return _ALIASES.get(kind, kind), found[2], self._plain(text, place) if kept is None else kept, text

    @staticmethod
    def _plain(text: str, place: str) -> bytes:
        if not text.isascii():
            raise InvalidRequest(f"{place} is not valid base64.", param=place)
        return text.encode()

    def _file(self, part: SentPart, place: str) -> str:
        """Take a file; its name."""
        given, limits = part.file, self._limits
        if given is None:
            raise InvalidRequest(f"{place}.file is missing.", param=f"{place}.file")
        if given.file_id is not None:
            raise UnsupportedParameter(f"{place}.file.file_id: there are no uploaded files here; send file_data.", param=f"{place}.file.file_id")
        if not given.file_data:
            raise InvalidRequest(f"{place}.file.file_data is missing.", param=f"{place}.file.file_data")
        name = " ".join(_UNFIT.sub(" ", given.filename or "").split())[:_MAX_NAME] or f"file {len(self._files) + 1}"
        kind = parameters = ""
        data: Data
        if given.file_data[:5].lower() == "data:":
            kind, parameters, data, _ = self._data_of(given.file_data, place)
        else:
            data = self._plain(given.file_data, place)
        if kind in ("", "application/octet-stream"):
            kind = _SUFFIXES.get(name.rpartition(".")[2].lower(), kind or "unknown")
        if kind not in limits.file_types:
            raise InvalidRequest(f"{place} is of the type {kind[:40]!r}; files may be {', '.join(limits.file_types)}.", param=place)
        if size(data) > limits.file_bytes:
            raise InvalidRequest(f"{place} has {size(data)} bytes; a file may have at most {limits.file_bytes}.", param=place)
        charset = _CHARSET.search(parameters)
        self._files.append((place, name, kind, charset[1].lower() if charset is not None else None, data))
        if len(self._files) > limits.files:
            raise InvalidRequest(f"{place} is one file too many: a request may have at most {limits.files}.", param=place)
        return name

    def check(self) -> None:
        """Look into the data. It is base64; images begin as their type does."""
        for place, kind, data in self._images:
            if not len(data) or not is_base64(data, self._lifted.rest):
                raise InvalidRequest(f"{place} is not valid base64.", param=place)
            check_type(kind, beginning(data, 32), place)
        for place, _, kind, _, data in self._files:
            if not is_base64(data, self._lifted.rest):
                raise InvalidRequest(f"{place} is not valid base64.", param=place)
            if kind == "application/pdf" and b"%PDF-" not in beginning(data, 1024):
                raise InvalidRequest(f"{place} says that it is a PDF, but it is none.", param=place)
        self.files = tuple(AttachedFile(place, name, kind, charset, bytes(data)) for place, name, kind, charset, data in self._files)


def check_type(kind: str, head: bytes, place: str) -> None:
    """Raise InvalidRequest where an image is not what it is said to be, by its first bytes."""
    found = image_type(head)
    if found is None:
        raise InvalidRequest(f"{place} says that it is {kind}, but it is no image that this gateway knows.", param=place)
    if found != kind and not {found, kind} <= _PHONES:
        raise InvalidRequest(f"{place} says that it is {kind}, but it is {found}.", param=place)


def text_of(part: SentPart, place: str) -> str:
    """The text of a text part."""
    if part.text is None:
        raise InvalidRequest(f"{place}.text is missing.", param=f"{place}.text")
    return part.text


def unsupported(kind: str, place: str, taken: str) -> UnsupportedParameter:
    """The error of a part that is not taken where it stands."""
    if kind == "input_audio":
        return UnsupportedParameter(f"{place}: this gateway takes no audio.", param=f"{place}.type", code="unsupported_content_part")
    return UnsupportedParameter(f"{place} has the type {kind[:40]!r}: only {taken} can stand here.", param=f"{place}.type")
