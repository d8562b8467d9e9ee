"""What keys of a terminal send. Pure; imports nothing of ours."""

from __future__ import annotations

import re

_NAMED = {
    "enter": "\r",
    "return": "\r",
    "tab": "\t",
    "escape": "\x1b",
    "esc": "\x1b",
    "space": " ",
    "backspace": "\x7f",
    "bspace": "\x7f",
    "up": "\x1b[A",
    "down": "\x1b[B",
    "right": "\x1b[C",
    "left": "\x1b[D",
    "home": "\x1b[H",
    "end": "\x1b[F",
    "insert": "\x1b[2~",
    "ic": "\x1b[2~",
    "delete": "\x1b[3~",
    "dc": "\x1b[3~",
    "pageup": "\x1b[5~",
    "ppage": "\x1b[5~",
    "pagedown": "\x1b[6~",
    "npage": "\x1b[6~",
    "btab": "\x1b[Z",
    "s-tab": "\x1b[Z",
}
_FUNCTION = {
    **{number: f"\x1bO{letter}" for number, letter in zip(range(1, 5), "PQRS", strict=True)},
    **{number: f"\x1b[{code}~" for number, code in zip(range(5, 13), (15, 17, 18, 19, 20, 21, 23, 24), strict=True)},
}
PASTE_BEGIN, PASTE_END = "\x1b[200~", "\x1b[201~"


def encode(name: str) -> str | None:
    """The characters of a key: a name (`Enter`, `Up`, `F5`), `C-c`, `M-x` or one character; None where there is no such key."""
    lowered = name.lower()
    if lowered in _NAMED:
        return _NAMED[lowered]
    if found := re.fullmatch(r"f([0-9]{1,2})", lowered, re.ASCII):
        return _FUNCTION.get(int(found.group(1)))
    if len(name) == 1:
        return name
    if lowered.startswith("c-") and re.fullmatch(r"[@-_a-z?]", lowered[2:], re.ASCII):
        return "\x7f" if lowered[2] == "?" else chr(ord(lowered[2].upper()) & 0x1F)
    if lowered.startswith("m-") and (rest := encode(name[2:])) is not None:
        return "\x1b" + rest
    return None


def paste(text: str) -> str:
    """Text as a terminal program gets what is pasted; it cannot end its own bracket."""
    return PASTE_BEGIN + text.replace(PASTE_END, "") + PASTE_END
