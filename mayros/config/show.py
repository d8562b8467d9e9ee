"""Showing a configuration to a person: one value by its path, trees and texts without secrets. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from mayros.config.check import REDACTED
from mayros.config.gateway import Auth, RateLimit, TrustedProxy
from mayros.config.source import parse, split
from mayros.net.redact import SECRET_WORD, names_secret

if TYPE_CHECKING:
    from mayros.config.edit import Span

#: Keys from the top of the configuration down.
Path = tuple[str, ...]

_IN_COMMENT = re.compile(rf"((?:{SECRET_WORD.pattern})[\w-]*[\"']?\s*[:=]\s*[\"']?)[^\s\"',}}]+", re.IGNORECASE)
_PART = re.compile(r""""(?:[^"\\]++|\\.)*+"|'(?:[^'\\]++|\\.)*+'|(?P<comment>//[^\n\r\u2028\u2029]*+|/\*.*?\*/)""", re.DOTALL)
_WRITTEN_KEY = re.compile(r""""(?:[^"\\]++|\\.)*+"|'(?:[^'\\]++|\\.)*+'|[^\s:/]+""", re.DOTALL)
#: The sections around the gateway's own secret, and the keys that each has.
_AUTH = {
    ("gateway", "auth", *below): frozenset((*section.__struct_encode_fields__, "$include"))
    for below, section in (((), Auth), (("rateLimit",), RateLimit), (("trustedProxy",), TrustedProxy))
}
#: Below these every text is hidden: what is in them is for other programs, under names of their own.
_HIDDEN = frozenset({"env", "headers"})


def lookup(tree: Any, path: str) -> Any:
    """The value at `a.b[0].c` or `a["b/c"].d`. Raises KeyError for one that is not set or is no path."""
    try:
        for step, end in split(path):
            there = isinstance(tree, list) and step < len(tree) if isinstance(step, int) else isinstance(tree, dict) and step in tree
            if not there:
                raise KeyError(path[:end])
            tree = tree[step]
    except ValueError:
        raise KeyError(path) from None
    return tree


def redact(tree: Any, hide: Callable[[str], str] = str, path: Path = ()) -> Any:
    """A copy of a tree with every value hidden that is a secret by its key, every password in a URL, and every text that `hide` would change.

    `path`: the keys under which the tree stands in the configuration.
    """
    if isinstance(tree, dict):
        return {REDACTED if hide(key) != key else key: _shown(value, hide, path, key) for key, value in tree.items()}
    if isinstance(tree, list):
        return [redact(value, hide, path) for value in tree]
    if isinstance(tree, str) and "://" in tree and "@" in tree:
        tree = _without_password(tree)
    if tree is None or isinstance(tree, bool):
        return tree
    return REDACTED if hide(str(tree)) != str(tree) else tree


def _shown(value: Any, hide: Callable[[str], str], path: Path, key: str) -> Any:
    return _hide(value) if _conceals(path, key, isinstance(value, dict)) else redact(value, hide, (*path, key))


def _conceals(path: Path, key: str, section: bool) -> bool:
    """Whether what is at a key is hidden whatever it says. Around the gateway's own secret that is also what no key of the configuration is:
    it may be a misspelt one. `section`: it is an object.
    """
    if _is_secret(key):
        return True
    known = _AUTH.get(path)
    return (known is not None and key not in known) or (not section and (*path, key) in _AUTH)


def conceals(keys: Sequence[str]) -> bool:
    """Whether the value at these keys is a secret: by its own key, or because of the section that it is in."""
    return any(_conceals(tuple(keys[:number]), key, number + 1 < len(keys)) for number, key in enumerate(keys))


def _is_secret(key: str) -> bool:
    return key in _HIDDEN or names_secret(key)


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


def secrets_of(tree: Any, hidden: bool = False, path: Path = ()) -> Iterator[str]:
    """Every text, and every number as one, that `redact` would hide by its key."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from secrets_of(value, hidden or _conceals(path, key, isinstance(value, dict)), (*path, key))
    elif isinstance(tree, list):
        for value in tree:
            yield from secrets_of(value, hidden, path)
    elif hidden and isinstance(tree, str | int) and not isinstance(tree, bool):
        yield str(tree)


def redact_text(text: str, hide: Callable[[str], str]) -> str:
    """A JSON5 text with the values and keys hidden that `redact` hides; comments go through `hide` too. Raises ValueError and ConfigError."""
    from mayros.config.edit import spans  # loaded by the first client that looks

    parts, done = [], 0
    for start, end, shown in _hidden_spans(text, spans(text), False, hide, ()):
        parts += [text[done:start], shown]
        done = end
    redacted = "".join([*parts, text[done:]])

    def remark(found: re.Match[str]) -> str:
        return hide(_IN_COMMENT.sub(lambda value: value[1] + REDACTED, found[0])) if found["comment"] else found[0]

    return _PART.sub(remark, redacted)


def _hidden_spans(text: str, span: Span, hidden: bool, hide: Callable[[str], str], path: Path) -> Iterator[tuple[int, int, str]]:
    for member in span.members:
        key, value = member.key, member.value
        if key is None:
            yield from _hidden_spans(text, value, hidden, hide, path)
            continue
        if hide(key) != key and (written := _WRITTEN_KEY.match(text, member.start)) is not None:
            yield written.start(), written.end(), f'"{REDACTED}"'
        yield from _hidden_spans(text, value, hidden or _conceals(path, key, value.kind == "{"), hide, (*path, key))
    if span.kind:
        return
    word = text[span.start : span.end]
    plain = word[:1] in ('"', "'") and "\\" not in word
    found = word[1:-1] if plain else parse(word.encode(), "")
    shown = _hide(found) if hidden else redact(found, hide)
    if shown != found:
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
