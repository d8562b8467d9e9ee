"""Changing a JSON5 text so that it says something else, and everything that need not change stays as it was: comments, blanks, quotes, commas.

The text is parsed into spans (where each value, key and comma stands); the difference between what it says and what it shall say becomes a few
replacements. What is new is written in the manner of its neighbours. A comment goes only with the value it stands in. Imports source and errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

import msgspec

from mayros.config.source import MAX_DEPTH, parse
from mayros.errors import ConfigError

_SKIP = re.compile(r"(?:[\s\ufeff]++|//[^\n\r\u2028\u2029]*+|/\*.*?\*/)*+", re.DOTALL)
_WORD = re.compile(r""""(?:[^"\\]++|\\.)*+"|'(?:[^'\\]++|\\.)*+'|[^\s\ufeff{}\[\],:"'/]++""", re.DOTALL)
_BESIDE = re.compile(r"[ \t]*(?://[^\n\r\u2028\u2029]*|/\*[^\n\r]*?\*/)")
_BARE_KEY = re.compile(r"(?!(?:true|false|null|Infinity|NaN)\Z)[A-Za-z_$][A-Za-z0-9_$]*")
#: Above so many comparisons, the items of two lists are paired in order.
_MAX_PAIRS = 250_000


@dataclass(slots=True)
class Span:
    """Where a value stands. `kind` is `{`, `[`, or empty for anything else."""

    start: int
    end: int
    kind: str = ""
    members: list[Member] = field(default_factory=list)


@dataclass(slots=True)
class Member:
    """A member of an object or an item of a list; of an item `key` is None. `comma` is where the comma after it stands."""

    key: str | None
    start: int
    value: Span
    comma: int | None


def spans(text: str) -> Span:
    """The spans of a text that source.parse has read. Raises ValueError where this module sees it differently."""
    root, end = _value(text, _skip(text, 0), 0)
    if _skip(text, end) != len(text):
        raise ValueError("more than one value")
    return root


def rewrite(text: str, after: Any, name: str) -> str:
    """The text, changed to say `after`, which is a tree of plain JSON. Raises ConfigError naming the file `name` where it cannot be done."""
    before = parse(text.encode(), name)
    try:
        if same(before, after):
            return text
        editor = _Editor(text)
        editor.change(editor.root, before, after)
        edited = editor.text()
        if same(parse(edited.encode(), name), after):
            return edited
    except UnicodeEncodeError:
        raise ConfigError(f"{name}: half a surrogate pair is not a character") from None
    except (ConfigError, ValueError):
        pass  # what was made is not what was meant, so it is not used
    raise ConfigError(f"{name}: this change cannot be made without rewriting the file; edit it by hand")


def same(one: Any, other: Any) -> bool:
    """Whether two trees are equal, numbers and switches told apart."""
    return _canonical(one) == _canonical(other)


def _canonical(tree: Any) -> bytes:
    return msgspec.json.encode(tree, order="sorted")


def _skip(text: str, at: int) -> int:
    found = _SKIP.match(text, at)
    return at if found is None else found.end()


def _value(text: str, at: int, depth: int) -> tuple[Span, int]:
    opening = text[at : at + 1]
    if opening not in ("{", "["):
        word = _word(text, at)
        return Span(at, at + len(word)), at + len(word)
    if depth > MAX_DEPTH:
        raise ValueError("nested too deep")
    span, closing = Span(at, at, opening), "}" if opening == "{" else "]"
    at = _skip(text, at + 1)
    while text[at : at + 1] != closing:
        start, key = at, None
        if opening == "{":
            word = _word(text, at)
            key, at = _key(word), _skip(text, at + len(word))
            if text[at : at + 1] != ":":
                raise ValueError("no colon")
            at = _skip(text, at + 1)
        value, at = _value(text, at, depth + 1)
        at = _skip(text, at)
        comma = at if text[at : at + 1] == "," else None
        span.members.append(Member(key, start, value, comma))
        if comma is not None:
            at = _skip(text, at + 1)
        elif text[at : at + 1] != closing:
            raise ValueError("no comma")
    span.end = at + 1
    return span, at + 1


def _word(text: str, at: int) -> str:
    found = _WORD.match(text, at)
    if found is None:
        raise ValueError("no value")
    return found[0]


def _key(word: str) -> str:
    if "\\" in word:
        tree: dict[str, Any] = parse(f"{{{word}:0}}".encode(), "")
        return next(iter(tree))
    return word[1:-1] if word[0] in "\"'" else word


class _Editor:
    """Collects replacements for one text."""

    def __init__(self, text: str) -> None:
        self._text, self._edits = text, list[tuple[int, int, str]]()
        self.root = spans(text)
        self._newline = "\r\n" if "\r\n" in text else "\n"
        first = self.root.members[0] if self.root.members else None
        self._bare = first is not None and first.key is not None and text[first.start] not in "\"'"
        self._unit = (self._indent(first.start) if first is not None and self._spread(self.root) else "") or "  "

    def text(self) -> str:
        """The text with all replacements made; of two that overlap, which only deletions do, the later begins where the earlier ends."""
        parts, done = [], 0
        for start, end, new in sorted(self._edits, key=lambda edit: edit[:2]):
            parts += [self._text[done : max(start, done)], new]
            done = max(done, end)
        return "".join([*parts, self._text[done:]])

    def change(self, span: Span, before: Any, after: Any) -> None:
        """Make the value at `span`, which is `before`, say `after`."""
        if same(before, after):
            return
        if span.kind == "{" and isinstance(after, dict):
            self._object(span, before, after)
        elif span.kind == "[" and isinstance(after, list):
            self._list(span, before, after)
        else:
            self._put(span.start, span.end, self._render(after, self._indent(span.start), "\n" in self._text, self._bare))

    def _object(self, span: Span, before: dict[str, Any], after: dict[str, Any]) -> None:
        last = {member.key: number for number, member in enumerate(span.members)}  # of a repeated key the last one counts
        for key, value in before.items():
            if key in after:
                self.change(span.members[last[key]].value, value, after[key])
        dropped = {number for number, member in enumerate(span.members) if member.key not in after}
        new = [(key, value) for key, value in after.items() if key not in before]
        anchor = max((number for number in range(len(span.members)) if number not in dropped), default=-1)
        self._members(span, dropped, {anchor: new} if new else {})

    def _list(self, span: Span, before: list[Any], after: list[Any]) -> None:
        dropped: set[int] = set()
        added: dict[int, list[tuple[None, Any]]] = {}
        for was, is_now in _pairs(before, after):
            paired = min(len(was), len(is_now))
            for number, other in zip(was, is_now, strict=False):
                self.change(span.members[number].value, before[number], after[other])
            dropped.update(was[paired:])
            if len(is_now) > paired:
                added.setdefault(was.start + paired - 1, []).extend((None, after[other]) for other in is_now[paired:])
        self._members(span, dropped, added)

    def _members(self, span: Span, dropped: set[int], added: Mapping[int, Sequence[tuple[str | None, Any]]]) -> None:
        """Take members out and put new ones in, each group after the member of its number (-1: first), and set the commas right."""
        members, spread = span.members, self._spread(span)
        trailing = bool(members) and members[-1].comma is not None
        indent = self._indent(members[0].start) if members and spread else self._indent(span.start) + self._unit
        bare = self._text[members[0].start] not in "\"'" if members and span.kind == "{" else self._bare
        rendered = {number: [self._member(key, value, indent, spread, bare) for key, value in new] for number, new in added.items()}
        if not members:
            self._fill(span, rendered.get(-1, []), indent, spread)
            return
        kept = [number for number in range(len(members)) if number not in dropped]
        left = len(kept) + sum(map(len, rendered.values()))
        for number in sorted(dropped):
            self._drop(members[number])
        for number in (-1, *kept):
            at = span.start + 1
            if number >= 0:
                left -= 1
                at = self._comma(members[number], left > 0 or trailing)
            if number not in rendered:
                continue
            if spread:
                while (beside := _BESIDE.match(self._text, at)) is not None:
                    at = beside.end()
                lead = self._newline + indent
            elif number >= 0:
                lead = " "
            else:
                lead = " " if self._text[at] in " \t" else ""
            for item in rendered[number]:
                left -= 1
                self._put(at, at, lead + item + ("," if left > 0 or trailing else ""))

    def _comma(self, member: Member, wanted: bool) -> int:
        """Make a member that stays have a comma or none; where something new may follow it."""
        if member.comma is None:
            if wanted:
                self._put(member.value.end, member.value.end, ",")
            return member.value.end
        if not wanted:
            self._put(member.comma, member.comma + 1, "")
        return member.comma + 1

    def _fill(self, span: Span, items: list[str], indent: str, spread: bool) -> None:
        """Put the first members into an empty object or list."""
        if not items:
            return
        start, end = span.start + 1, span.end - 1
        inner = self._text[start:end]
        if spread or inner.strip():
            joined = f",{self._newline}{indent}".join(items)
            self._put(start + len(inner.rstrip()), end, f"{self._newline}{indent}{joined}{self._newline}{self._indent(span.start)}")
        else:
            self._put(start, end, ", ".join(items))

    def _drop(self, member: Member) -> None:
        """Take a member out with its comma, and with its lines where nothing else stands there."""
        end = member.value.end
        if member.comma is not None:
            if self._text[end : member.comma].strip(" \t"):
                self._put(member.comma, member.comma + 1, "")
            else:
                end = member.comma + 1
        left, right, text = member.start, end, self._text
        while left > 0 and text[left - 1] in " \t":
            left -= 1
        while right < len(text) and text[right] in " \t":
            right += 1
        begins, ends = left == 0 or text[left - 1] in "\r\n", right == len(text) or text[right] in "\r\n"
        if begins and ends:
            self._put(left, right + (2 if text.startswith("\r\n", right) else 1), "")
        elif begins:
            self._put(member.start, right, "")
        else:
            self._put(left, end, "")

    def _spread(self, span: Span) -> bool:
        """Whether the members of a value stand on lines of their own."""
        if not span.members:
            return span is self.root or "\n" in self._text
        return "\n" in self._text[span.start : span.members[0].start]

    def _indent(self, at: int) -> str:
        """The blanks that the line of a place begins with."""
        begin = max(self._text.rfind("\n", 0, at), self._text.rfind("\r", 0, at)) + 1
        end = begin
        while end < at and self._text[end] in " \t":
            end += 1
        return self._text[begin:end]

    def _member(self, key: str | None, value: Any, indent: str, spread: bool, bare: bool) -> str:
        shown = self._render(value, indent, spread, bare)
        return shown if key is None else f"{_quoted(key, bare)}: {shown}"

    def _render(self, value: Any, indent: str, spread: bool, bare: bool) -> str:
        """A new value, as JSON or in bare keys; lists of plain values and everything in a line of its own neighbours stay on one line."""
        if not isinstance(value, dict | list) or not value:
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        pairs: Iterable[tuple[str | None, Any]] = value.items() if isinstance(value, dict) else ((None, item) for item in value)
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        if not spread or (isinstance(value, list) and not any(isinstance(item, dict | list) for item in value)):
            inner = ", ".join(self._member(key, below, "", False, bare) for key, below in pairs)
            return f"{opening} {inner} {closing}" if bare and opening == "{" else f"{opening}{inner}{closing}"
        deeper = indent + self._unit
        inner = f",{self._newline}{deeper}".join(self._member(key, below, deeper, True, bare) for key, below in pairs)
        return f"{opening}{self._newline}{deeper}{inner}{self._newline}{indent}{closing}"

    def _put(self, start: int, end: int, new: str) -> None:
        self._edits.append((start, end, new))


def _quoted(key: str, bare: bool) -> str:
    return key if bare and _BARE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)


def _pairs(before: list[Any], after: list[Any]) -> Iterable[tuple[range, range]]:
    """Which items of a list became which; equal ones and objects of the same `id` belong together."""
    names, wanted = [_name(item) for item in before], [_name(item) for item in after]
    if len(names) * len(wanted) > _MAX_PAIRS:
        return [(range(len(before)), range(len(after)))]
    blocks = SequenceMatcher(None, names, wanted, autojunk=False).get_opcodes()
    return [(range(i1, i2), range(j1, j2)) for _, i1, i2, j1, j2 in blocks]


def _name(item: Any) -> bytes:
    named = isinstance(item, dict) and isinstance(item.get("id"), str)
    return b"#" + item["id"].encode(errors="replace") if named else _canonical(item)
