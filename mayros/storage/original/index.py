"""The original's sessions.json: which sessions there are, and what was set for them. Pure; imports core.ports and lines.

It may be large, and what stands in it is not believed: entries are read one at a time, and of each only texts and numbers are kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from mayros.core.ports import SessionSettings
from mayros.storage.original.lines import UNREADABLE, Unfit

#: Brackets of the file, bytes of an entry and of a key or value that is looked at, characters of a label.
MOST_BRACKETS, MOST_ENTRY, MOST_VALUE, MOST_LABEL = 8_000_000, 8 << 20, 8 << 10, 64
#: Settings that are one of some words; what is none of them is not taken.
_WORDS = {
    "thinking_level": ("off", "minimal", "low", "medium", "high", "xhigh"),
    "verbose_level": ("on", "full", "off"),
    "reasoning_level": ("on", "off", "stream"),
    "response_usage": ("off", "tokens", "full"),
    "elevated_level": ("on", "off", "ask", "full"),
    "exec_host": ("gateway",),
    "exec_security": ("deny", "allowlist", "full"),
    "exec_ask": ("off", "on-miss", "always"),
    "send_policy": ("allow", "deny"),
    "group_activation": ("mention", "always"),
}


class Entry(msgspec.Struct):
    """A session as sessions.json has it, as far as it is looked at: texts, numbers, and False for any other value."""

    session_id: Any = None
    session_file: Any = None
    updated_at: Any = None
    label: Any = None
    display_name: Any = None
    thinking_level: Any = None
    verbose_level: Any = None
    reasoning_level: Any = None
    response_usage: Any = None
    elevated_level: Any = None
    exec_host: Any = None
    exec_security: Any = None
    exec_ask: Any = None
    send_policy: Any = None
    group_activation: Any = None
    provider_override: Any = None
    model_override: Any = None
    spawned_by: Any = None
    spawn_depth: Any = None

    @property
    def settings(self) -> SessionSettings:
        """What was set for the session and is known here. Rules for commands only narrow: the strictest ones hold (core/permission.py)."""
        found: dict[str, Any] = {}
        for field, words in _WORDS.items():
            value = getattr(self, field)
            if isinstance(value, str) and value.strip().lower() in words:
                found[field] = value.strip().lower()
        found["label"] = next((text for one in (self.label, self.display_name) if (text := _line(one, MOST_LABEL))), None)
        found["model"] = self._model()
        found["spawned_by"] = _line(self.spawned_by, 512)
        if type(self.spawn_depth) is int and 0 <= self.spawn_depth <= 100:
            found["spawn_depth"] = self.spawn_depth
        return SessionSettings(**found)

    def _model(self) -> str | None:
        provider, model = _line(self.provider_override, 100), _line(self.model_override, 200)
        if model is None:
            return None
        return f"{provider}/{model}" if provider is not None and not model.startswith(f"{provider}/") else model if "/" in model else None


def _line(value: object, most: int) -> str | None:
    """A text that may stand in a list, cut; None for anything else."""
    text = "".join(one for one in value[: 4 * most] if one.isprintable()).strip() if isinstance(value, str) else ""
    return text[:most] or None


class _Object(msgspec.Struct):
    """Any object; nothing of it is kept."""


_object = msgspec.json.Decoder(_Object).decode
_key = msgspec.json.Decoder(str).decode
_scalar = msgspec.json.Decoder(str | int | float | None).decode
_FIELDS = Entry.__struct_fields__
_raw_entry = msgspec.json.Decoder(
    msgspec.defstruct("_RawEntry", [(name, msgspec.Raw, msgspec.Raw(b"null")) for name in _FIELDS], rename="camel")
).decode  # fmt: skip
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
#: In JSON: the name of a member, a value without brackets, and what is before the next bracket.
_NAME = re.compile(rb"[\s,]*+(" + _STRING + rb")\s*+:", re.DOTALL)
_PLAIN = re.compile(rb"\s*+(?:" + _STRING + rb'|[^"\[\]{},]++)', re.DOTALL)
_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|' + _STRING + rb")*+[\[\]{}]", re.DOTALL)


def read(data: bytes) -> Iterator[tuple[str, Entry | None, int]]:
    """The entries of a sessions.json by their keys, None for one that cannot be read, and the bytes that each takes, about. Raises Unfit."""
    if sum(map(data.count, (b"[", b"]", b"{", b"}"))) > MOST_BRACKETS:
        raise Unfit(f"it has more than {MOST_BRACKETS:,} brackets")
    try:
        _object(data)
    except UNREADABLE:
        raise Unfit("it is no JSON object of sessions") from None
    for key, value in _members(data):
        entry, size = _read(value)
        yield key, entry, size + len(key)


def _members(data: bytes) -> Iterator[tuple[str, bytes | None]]:
    """The keys and values of an object of JSON, one at a time: all at once are many times as large. None: a value that is too large."""
    at = data.index(b"{") + 1
    while (found := _NAME.match(data, at)) is not None:
        begin = at = found.end()
        if (value := _PLAIN.match(data, at)) is not None:
            at = value.end()
        else:
            depth = 0
            while depth or at == begin:
                at = _BRACKET.match(data, at).end()  # type: ignore[union-attr]  # it is JSON
                depth += 1 if data[at - 1] in b"[{" else -1
        try:
            key = _key(found[1]) if found.end(1) - found.start(1) <= MOST_VALUE else ""
        except UNREADABLE:
            key = ""
        yield key, data[begin:at] if at - begin <= MOST_ENTRY else None


def _read(data: bytes | None) -> tuple[Entry | None, int]:
    """An entry, None where it cannot be read; and the bytes that it takes, about."""
    try:
        raw = _raw_entry(data) if data is not None else None
    except UNREADABLE:
        raw = None
    if raw is None:
        return None, 0
    values = [memoryview(getattr(raw, name)) for name in _FIELDS]
    return Entry(*map(_value, values)), sum(min(value.nbytes, MOST_VALUE) for value in values)


def _value(raw: memoryview) -> Any:
    try:
        return _scalar(raw) if raw.nbytes <= MOST_VALUE else False
    except UNREADABLE:
        return False
