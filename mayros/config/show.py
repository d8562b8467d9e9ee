"""Showing a configuration to a person: one value by its path, and trees without secrets. Pure."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import msgspec

from mayros.config.check import REDACTED

_STEP = re.compile(r"""(?:^|\.)(?P<word>[^.\[\]"]+)|\[(?P<index>[0-9]{1,6})\]|\[(?P<quoted>"(?:[^"\\]|\\.)*")\]""")
_SECRET_KEY = re.compile(
    r"token|secret|password|passwd|api[_-]?keys?|private[_-]?key|access[_-]?key|credentials?|authorization|cookie",
    re.IGNORECASE,
)
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
