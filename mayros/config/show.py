"""Showing a configuration to a person: one value by its path, trees and texts without secrets. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import msgspec

from mayros.config.check import REDACTED
from mayros.config.edit import Span, spans
from mayros.config.source import parse

_STEP = re.compile(r"""(?:^|\.)(?P<word>[^.\[\]"]+)|\[(?P<index>[0-9]{1,6})\]|\[(?P<quoted>"(?:[^"\\]|\\.)*")\]""")
_SECRET_KEY = re.compile(
    r"token|secret|password|passwd|api[_-]?keys?|private[_-]?key|access[_-]?key|credentials?|authorization|cookie",
    re.IGNORECASE,
)
_IN_COMMENT = re.compile(rf"((?:{_SECRET_KEY.pattern})[\w-]*[\"']?\s*[:=]\s*[\"']?)[^\s\"',}}]+", re.IGNORECASE)
_PART = re.compile(r""""(?:[^"\\]++|\\.)*+"|'(?:[^'\\]++|\\.)*+'|(?P<comment>//[^\n\r\u2028\u2029]*+|/\*.*?\*/)""", re.DOTALL)
#: Keys that look like a secret's and are counts, names of headers or switches.
_HARMLESS = re.compile(r"(max|context|run|day)tokens|tokens|tokenizer|maxcompletiontokens|allowrequestsessionkey", re.IGNORECASE)
#: Below these every text is hidden: what is in them is for other programs, under names of their own.
_HIDDEN = frozenset({"env", "headers"})


def lookup(tree: Any, path: str) -> Any:
    """The value at `a.b[0].c` or `a["b/c"].d`. Raises KeyError for one that is not set or is no path."""
    position = 0
    while position < len(path):
        step = _STEP.match(path, position)
        if step is None or path.startswith("."):
            raise KeyError(path)
        position = step.end()
        if step["index"] is not None:
            number = int(step["index"])
            if not isinstance(tree, list) or number >= len(tree):
                raise KeyError(path[:position])
            tree = tree[number]
            continue
        try:
            key = step["word"] if step["word"] is not None else msgspec.json.decode(step["quoted"], type=str)
        except msgspec.DecodeError:
            raise KeyError(path) from None
        if not isinstance(tree, dict) or key not in tree:
            raise KeyError(path[:position])
        tree = tree[key]
    return tree


def redact(tree: Any) -> Any:
    """A copy of a tree with every value hidden that is a secret by its key, and every password in a URL."""
    if isinstance(tree, dict):
        return {key: _hide(value) if _is_secret(key) else redact(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [redact(value) for value in tree]
    if isinstance(tree, str) and "://" in tree and "@" in tree:
        return _without_password(tree)
    return tree


def _is_secret(key: str) -> bool:
    return key in _HIDDEN or (_SECRET_KEY.search(key) is not None and _HARMLESS.fullmatch(key) is None)


def _hide(value: Any) -> Any:
    """Hide every text and number below, but keep the names, so that a reader sees what is set."""
    if isinstance(value, dict):
        return {key: _hide(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_hide(below) for below in value]
    return value if value is None or isinstance(value, bool) or value == "" else REDACTED


def _without_password(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return REDACTED
    return parts._replace(netloc=f"{REDACTED}@{host}").geturl() if "@" in parts.netloc else url


def secrets_of(tree: Any, hidden: bool = False) -> Iterator[str]:
    """Every text that `redact` would hide."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from secrets_of(value, hidden or _is_secret(key))
    elif isinstance(tree, list):
        for value in tree:
            yield from secrets_of(value, hidden)
    elif hidden and isinstance(tree, str):
        yield tree


def redact_text(text: str, hide: Callable[[str], str]) -> str:
    """A JSON5 text with the values hidden that `redact` hides; comments go through `hide` besides. Raises ValueError and ConfigError."""
    parts, done = [], 0
    for start, end, shown in _hidden_spans(text, spans(text), False):
        parts += [text[done:start], shown]
        done = end
    redacted = "".join([*parts, text[done:]])

    def remark(found: re.Match[str]) -> str:
        return hide(_IN_COMMENT.sub(lambda value: value[1] + REDACTED, found[0])) if found["comment"] else found[0]

    return _PART.sub(remark, redacted)


def _hidden_spans(text: str, span: Span, hidden: bool) -> Iterator[tuple[int, int, str]]:
    for member in span.members:
        yield from _hidden_spans(text, member.value, hidden or (member.key is not None and _is_secret(member.key)))
    word = text[span.start : span.end]
    if not span.kind and (hidden or "@" in word or "\\" in word):
        value = parse(word.encode(), "")
        shown = _hide(value) if hidden else redact(value)
        if shown != value:
            yield span.start, span.end, msgspec.json.encode(shown).decode()


def effective(section: Any) -> Any:
    """A configuration struct as the tree the file would hold if it set everything."""
    if isinstance(section, msgspec.Struct):
        kind = type(section)
        names = zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True)
        return {name: effective(getattr(section, field)) for field, name in names}
    if isinstance(section, dict):
        return {name: effective(value) for name, value in section.items()}
    if isinstance(section, tuple | list):
        return [effective(value) for value in section]
    return int(section) if isinstance(section, int) and not isinstance(section, bool) else section
