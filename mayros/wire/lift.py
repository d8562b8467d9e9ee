"""Large base64 set aside, so that the JSON around it is small while it is read and written. No I/O; imports messages.

A request with 14 MB of images would hold up everybody else while a JSON parser goes through it. So the data is found by its mark, which is a search
for one byte and nearly free, and a token takes its place; when the canonical messages are written, the data is put where its token stands.
The tokens hold a random number, so nobody can write one, and `~`, which base64 does not know.
"""

from __future__ import annotations

import binascii
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO

import msgspec

from mayros.messages import data_of, has_parts, image_urls

#: What comes before the data in a data: URL.
MARK = b";base64,"
#: Smaller bodies, and smaller data, are read as they come.
LEAST_BODY, LEAST_DATA = 1 << 20, 32 << 10
#: So many are looked for; who sends more is refused for it, or sent something else that looks like them.
MOST = 64

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
#: Bytes that are checked at once: others get their turn in between.
_SLICE = 256 << 10

Data = bytes | memoryview
#: Called between two steps of work on megabytes; in a thread it lets others run.
Rest = Callable[[], object]


def no_rest() -> None:
    """Go on at once."""


class Lifted:
    """What was set aside of one body, under its tokens."""

    def __init__(self, rest: Rest = no_rest) -> None:
        self.rest = rest
        self._nonce = ""
        self._kept: dict[str, Data] = {}
        self._wanted: set[str] = set()
        self._count = 0

    def token(self) -> str:
        """A new token."""
        self._nonce = self._nonce or secrets.token_hex(12)
        self._count += 1
        return f"~{self._nonce}.{self._count}~"

    def add(self, data: Data) -> str:
        """Set data aside; its token."""
        token = self.token()
        self._kept[token] = data
        return token

    def take(self, text: str) -> Data | None:
        """The data that a text is the token of, which from now on counts as found."""
        found = self._kept.get(text)
        if found is not None:
            self._wanted.add(text)
        return found

    @property
    def complete(self) -> bool:
        """Whether all that was set aside has been found where data is expected."""
        return len(self._wanted) == len(self._kept)

    def fill(self, raw: msgspec.Raw) -> msgspec.Raw:
        """The JSON of a message with the data where its tokens stand. Tokens without data stay."""
        return filled(raw, self._kept, self.rest) if self._kept else raw

    def around(self, written: bytes | tuple[bytes, ...]) -> bytes | tuple[Data, ...]:
        """JSON that was written with the tokens, with the data in their place: in parts, nothing is put together here."""
        if not self._kept:
            return written
        pieces: list[Data] = []
        for one in (written,) if isinstance(written, bytes) else written:
            done = 0
            for at, token in sorted((place, name) for name in self._kept for place in _places(one, name.encode())):
                pieces += [one[done:at], self._kept[token]]
                done = at + len(token)
            pieces.append(one[done:] if done else one)
        return tuple(pieces)


def lighten(messages: Sequence[msgspec.Raw]) -> tuple[Sequence[msgspec.Raw], Lifted]:
    """Canonical messages with tokens in the place of the data of their large images, for whoever writes them in another form."""
    lifted = Lifted()
    if not any(memoryview(raw).nbytes >= LEAST_BODY for raw in messages):
        return messages, lifted
    return [_light(raw, lifted) if memoryview(raw).nbytes >= LEAST_BODY and has_parts(raw) else raw for raw in messages], lifted


def _light(raw: msgspec.Raw, lifted: Lifted) -> msgspec.Raw:
    data = data_of(raw)
    view = memoryview(data)
    kept: list[Data] = []
    done = 0
    for start, end in image_urls(data):
        at = data.find(MARK, start, min(end, start + 256))
        if at >= 0 and end - at >= LEAST_DATA:
            kept += [view[done : at + len(MARK)], lifted.add(view[at + len(MARK) : end]).encode()]
            done = end
    return msgspec.Raw(b"".join([*kept, view[done:]]))


def _places(data: bytes, token: bytes) -> Iterator[int]:
    at = data.find(token)
    while at >= 0:
        yield at
        at = data.find(token, at + len(token))


def filled(raw: msgspec.Raw, data: Mapping[str, Data], rest: Rest = no_rest) -> msgspec.Raw:
    """JSON with data in the place of tokens. The data must need no escapes."""
    small = data_of(raw)
    found = sorted((at, token) for token in data if (at := small.find(token.encode())) >= 0)
    pieces: list[Data] = []
    done = 0
    for at, token in found:
        pieces += [memoryview(small)[done:at], data[token]]
        done = at + len(token)
    return msgspec.Raw(_joined([*pieces, memoryview(small)[done:]], rest)) if found else raw


def _joined(pieces: Sequence[Data], rest: Rest) -> bytes:
    """Put together in steps: in one it takes ten milliseconds for 20 MB, and nobody else runs meanwhile."""
    if sum(map(len, pieces)) <= _SLICE:
        return b"".join(pieces)
    made = BytesIO()
    for piece in pieces:
        for start in range(0, len(piece), _SLICE):
            made.write(piece[start : start + _SLICE])
            rest()
    return made.getvalue()


def lift(body: bytes | bytearray, rest: Rest = no_rest) -> tuple[bytes | bytearray, Lifted]:
    """The body with tokens in the place of large data, and the data.

    Only the bytes are looked at. What is set aside may be no data, or stand where none is expected, and the rest may not be JSON any more:
    then, and where not all that was set aside is found again, the body has to be read as it came.
    """
    lifted = Lifted(rest)
    if len(body) < LEAST_BODY:
        return body, lifted
    view = memoryview(body)
    kept: list[Data] = []
    done, at = 0, body.find(MARK)
    for _ in range(MOST):
        start = at + len(MARK)
        end = body.find(b'"', start) if at >= 0 else -1
        if end < 0:
            break
        if end - start >= LEAST_DATA:
            data: Data = view[start:end]
            if body.find(b"\\", start, end) >= 0:  # PHP writes slashes so
                data = bytes(data).replace(b"\\/", b"/")
            kept += [view[done:start], lifted.add(data).encode()]
            done = end
        at = body.find(MARK, end)
        rest()
    return (b"".join([*kept, view[done:]]) if done else body), lifted


def is_base64(data: Data, rest: Rest = no_rest) -> bool:
    """Whether it is base64 with its padding, in one line."""
    if len(data) % 4:
        return False
    other = b""
    for start in range(0, len(data), _SLICE):
        if other:
            return False  # padding, and more after it
        other = bytes(data[start : start + _SLICE]).translate(None, _ALPHABET)
        rest()
    return other in (b"", b"=", b"==") and bytes(data[len(data) - len(other) :]) == other


def size(data: Data) -> int:
    """How many bytes valid base64 stands for."""
    return len(data) // 4 * 3 - bytes(data[-2:]).count(b"=")


def decoded(data: Data, rest: Rest = no_rest) -> bytes:
    """What valid base64 stands for."""
    return _in_steps(binascii.a2b_base64, data, _SLICE, rest)


def encoded(data: Data, rest: Rest = no_rest) -> bytes:
    """The base64 of data."""
    return _in_steps(lambda piece: binascii.b2a_base64(piece, newline=False), data, _SLICE * 3 // 4, rest)


def _in_steps(step: Callable[[Data], bytes], data: Data, size: int, rest: Rest) -> bytes:
    view, made = memoryview(data), []
    for start in range(0, len(view), size):
        made.append(step(view[start : start + size]))
        rest()
    return b"".join(made)


def beginning(data: Data, count: int) -> bytes:
    """About the first `count` bytes that valid base64 stands for."""
    return binascii.a2b_base64(bytes(data[: (count + 2) // 3 * 4]))
