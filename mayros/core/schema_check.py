"""Checks a tool's arguments against the part of JSON Schema that tools use, in words that help a model to do better. Pure; imports nothing of ours.

Known: type (one or several), enum, const, properties, required, additionalProperties, items, minItems, maxItems, minimum, maximum, minLength,
maxLength. What else a schema says is for the model to read and is not checked; a tool checks that itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

#: Problems told at once; deeper nesting than this is refused.
_MOST, _DEPTH = 5, 32
#: Characters of a value that are shown.
_SHOWN = 60


def problems(arguments: object, schema: Mapping[str, Any]) -> list[str]:
    """What does not fit, at most five; empty where all does."""
    found: list[str] = []
    _check(arguments, schema, "", found, 0)
    return found[:_MOST]


def _check(value: object, schema: Mapping[str, Any], path: str, found: list[str], depth: int) -> None:
    if len(found) >= _MOST:
        return
    where = path or "the arguments"
    if depth > _DEPTH:
        found.append(f"{where} is nested too deep")
        return
    kinds = schema.get("type")
    wanted = (kinds,) if isinstance(kinds, str) else tuple(kinds or ())
    if wanted and not any(_is(value, kind) for kind in wanted):
        found.append(f"{where} must be {' or '.join(_A.get(kind, str(kind)) for kind in wanted)}, not {_kind(value)}")
        return
    options = schema.get("enum")
    if options is not None and not any(_same(value, option) for option in options):
        found.append(f"{where} must be one of {', '.join(_shown(option) for option in options)}, not {_shown(value)}")
    if "const" in schema and not _same(value, schema["const"]):
        found.append(f"{where} must be {_shown(schema['const'])}")
    if isinstance(value, dict):
        _object(value, schema, path, found, depth)
    elif isinstance(value, list):
        _bounds(len(value), schema, "minItems", "maxItems", f"{where} has {len(value)} items", found)
        items = schema.get("items")
        if isinstance(items, Mapping):
            for number, item in enumerate(value):
                _check(item, items, f"{path}[{number}]", found, depth + 1)
    elif isinstance(value, str):
        _bounds(len(value), schema, "minLength", "maxLength", f"{where} has {len(value)} characters", found)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _bounds(value, schema, "minimum", "maximum", f"{where} is {value}", found)


def _object(value: dict[str, Any], schema: Mapping[str, Any], path: str, found: list[str], depth: int) -> None:
    properties: Mapping[str, Any] = schema.get("properties") or {}
    found += [f"{_join(path, name)} is missing" for name in schema.get("required") or () if name not in value]
    others = schema.get("additionalProperties", True)
    for name, item in value.items():
        if name in properties:
            _check(item, properties[name], _join(path, name), found, depth + 1)
        elif others is False:
            known = ", ".join(properties) or "none"
            found.append(f"{_join(path, _short(name))} is not known (there are: {known})")
        elif isinstance(others, Mapping):
            _check(item, others, _join(path, name), found, depth + 1)


def _bounds(size: float, schema: Mapping[str, Any], least: str, most: str, said: str, found: list[str]) -> None:
    if least in schema and size < schema[least]:
        found.append(f"{said}: at least {schema[least]} wanted")
    if most in schema and size > schema[most]:
        found.append(f"{said}: at most {schema[most]} allowed")


_A = {
    "object": "an object",
    "array": "an array",
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}


def _is(value: object, kind: object) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return _kind(value) == _A.get(str(kind)) or (kind == "number" and isinstance(value, int))


def _kind(value: object) -> str:
    if value is None:
        return _A["null"]
    kinds = {bool: "boolean", dict: "object", list: "array", str: "string", int: "integer", float: "number"}
    return _A[kinds.get(type(value), "null")]


def _same(value: object, option: object) -> bool:
    """Equal in JSON: true is not 1."""
    return value == option and isinstance(value, bool) == isinstance(option, bool)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _shown(value: object) -> str:
    return _short(msgspec.json.encode(value).decode())
