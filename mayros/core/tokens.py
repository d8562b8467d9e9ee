"""How long is a text for a model, roughly: four characters a token, and one token a character where scripts are written without spaces. Pure.

Such characters (CJK, kana, hangul, full-width forms, and emoji, which are more than a token) are known by their first byte in UTF-8, which is found
without looking at each by itself: prompts of some hundred kilobytes are counted for every request.
"""

from __future__ import annotations

_WIDE = frozenset((*range(0xE3, 0xEE), 0xEF, 0xF0))
#: What `translate` leaves out so that one byte for each wide character stays, and one for each character at all.
_NOT_WIDE = bytes(byte for byte in range(256) if byte not in _WIDE)
_INSIDE = bytes(range(0x80, 0xC0))
_NOT_ASCII = bytes(range(0x80, 0x100))


def estimate(text: str) -> int:
    """Tokens of a text, by estimate."""
    return len(text) // 4 if text.isascii() else _quarters(text.encode("utf-8", "surrogatepass"), len(text)) // 4


def estimate_utf8(data: bytes) -> int:
    """The same of a text in UTF-8."""
    return len(data) // 4 if data.isascii() else _quarters(data, len(data.translate(None, _INSIDE))) // 4


def most_utf8(data: bytes) -> int:
    """What the estimate of a text in UTF-8 is at most, in half the time: as if all characters beyond ASCII were wide ones of three bytes."""
    ascii_ = len(data) if data.isascii() else len(data.translate(None, _NOT_ASCII))
    return ascii_ // 4 + (len(data) - ascii_) // 3 + 1


def quarters(text: str) -> int:
    """The same in quarters of a token, for sums over short texts."""
    return len(text) if text.isascii() else _quarters(text.encode("utf-8", "surrogatepass"), len(text))


def _quarters(data: bytes, characters: int) -> int:
    return characters + 3 * len(data.translate(None, _NOT_WIDE))
