"""Replacing one passage of a text, and showing the difference. Pure. Imports errors.

The passage must be there exactly once. Line ends are compared as if all were `\\n`; where nothing is found, blanks at line ends do not count and
typographic quotes, dashes and spaces count as their plain kin. Whatever is outside of the passage stays as it is, to the byte.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from mayros.errors import ToolFailed

BOM = "\ufeff"
CONTEXT_LINES = 3
_PLAIN = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **dict.fromkeys("\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "),
    }
)


class Edited(msgspec.Struct, frozen=True):
    """The whole new text, and a unified diff of what changed."""

    text: str
    diff: str


def decode(data: bytes) -> str:
    """The text of a file that is going to be changed, a BOM kept in it. Raises ToolFailed: changing it would damage what is not UTF-8."""
    if b"\0" in data:
        raise ToolFailed("it is a binary file, which cannot be changed as text.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ToolFailed(f"it is not UTF-8 (byte {error.start}), so changing it as text would damage it.") from None


def encode(text: str) -> bytes:
    """UTF-8. Raises ToolFailed for half a surrogate pair."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise ToolFailed("The text holds half a surrogate pair, which is not a character. Send it without.") from None


def line_end(text: str) -> str:
    """The line end of a text: that of its first line."""
    first = text.find("\n")
    return "\r\n" if first > 0 and text[first - 1] == "\r" else "\n"


def without_return(line: str) -> str:
    """A line as it is, without the carriage return of its line end."""
    return line.removesuffix("\r")


def plain(line: str) -> str:
    """A line without blanks at its end, each typographic quote, dash and space as the plain one. Columns stay."""
    return line.rstrip().translate(_PLAIN)


def replace_once(text: str, old: str, new: str, hide: Callable[[str], str] = str) -> Edited:
    """Put `new` in the place of `old`. Raises ToolFailed where `old` is not there exactly once, or nothing would change.

    `hide` gives a text as it may be shown, with as many lines.
    """
    old, new = old.replace("\r\n", "\n"), new.replace("\r\n", "\n")
    if not old:
        raise ToolFailed("oldText is empty. Give the passage to replace, or use write to make the whole file.")
    bom = BOM if text.startswith(BOM) else ""
    body = text[len(bom) :]
    found = _find(body, old.removeprefix(BOM), without_return)
    if found is None and old.strip():
        found = _find(body, old.removeprefix(BOM), plain)
    if found is None:
        raise ToolFailed("oldText was not found. Read the file again and copy the passage exactly, with its indentation.")
    start, end = found
    after = body[:start] + new.replace("\n", line_end(body)) + body[end:]
    if after == body:
        raise ToolFailed("Nothing would change: newText is what is there already.")
    return Edited(bom + after, diff(body, after, start, end, hide))


def _find(text: str, old: str, form: Callable[[str], str]) -> tuple[int, int] | None:
    """Where `old` begins and ends in `text`, lines compared in a form that only drops what is at their ends."""
    lines = text.split("\n")
    whole = "\n".join(map(form, lines))
    wanted = "\n".join(map(form, old.split("\n")))
    at = whole.find(wanted) if wanted else -1
    if at < 0:
        return None
    if whole.find(wanted, at + 1) >= 0:
        raise ToolFailed("oldText is there more than once. Add lines before or after it so that only one place fits.")

    def place(position: int) -> int:
        line = whole.count("\n", 0, position)
        return sum(len(one) + 1 for one in lines[:line]) + position - (whole.rfind("\n", 0, position) + 1)

    return place(at), place(at + len(wanted))


def diff(before: str, after: str, start: int, end: int, hide: Callable[[str], str] = str) -> str:
    """A unified diff, without file names, of two texts that differ only between `start` and `end` of the first; `hide`: see `replace_once`."""
    begin = before.rfind("\n", 0, start) + 1
    number = before.count("\n", 0, begin)
    old = _lines_to(before, begin, end)
    new = _lines_to(after, begin, end + len(after) - len(before))
    while old and new and old[0] == new[0]:
        number, old, new = number + 1, old[1:], new[1:]
        begin = before.find("\n", begin) + 1
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    above = before[:begin].split("\n")[:-1][-CONTEXT_LINES:] if number else []
    below = before.split("\n")[number + len(old) :][:CONTEXT_LINES]
    if below and before.endswith("\n") and number + len(old) + len(below) > before.count("\n"):
        below.pop()
    first = number - len(above) + 1
    shown = [f"@@ -{first},{len(above) + len(old) + len(below)} +{first},{len(above) + len(new) + len(below)} @@"]
    # The lines next to a change can be those of a key that begins further up.
    was, now, upto = hide(before).split("\n"), hide(after).split("\n"), number + len(old)
    parts = (" ", was[first - 1 : number]), ("-", was[number:upto]), ("+", now[number : number + len(new)]), (" ", was[upto : upto + len(below)])
    for sign, lines in parts:
        shown += [sign + without_return(line) for line in lines]
    return "\n".join(shown)


def _lines_to(text: str, begin: int, end: int) -> list[str]:
    """The lines from `begin`, the start of one, to the one that holds `end`."""
    last = text.find("\n", end)
    return text[begin : len(text) if last < 0 else last].split("\n")
