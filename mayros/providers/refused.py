"""Which parameter a provider's refusal is about. Pure; imports nothing of ours."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

#: Parameters whose names are words of any text: they count in quotation marks only.
_WORDS = frozenset({"include", "reasoning", "seed", "stop", "store", "strict", "text", "tools", "user"})
_anything = msgspec.json.Decoder().decode


def named_parameter(body: bytes, names: Iterable[str]) -> str | None:
    """The one of `names` that the body of a refusal names: as its `param`, else in its text. In `names`, `a.b` comes before `a`."""
    names = list(names)
    try:
        value = _anything(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = None
    error = value.get("error") if isinstance(value, dict) else None
    param = error.get("param") if isinstance(error, dict) else None
    if isinstance(param, str) and param:
        return next((name for name in names if param == name or param.startswith(f"{name}.")), None)
    for name in names:
        word = re.escape(name.encode())
        if re.search(rb"""["'`]%s\\?["'`]""" % word if name in _WORDS else rb"\b%s\b" % word, body):
            return name
    return None
