"""Checks a value against the part of JSON Schema that tools and response formats use, in words that help a model to do better. Pure; imports nothing.

Known: type (one or several), nullable, enum, const, properties, required, additionalProperties, dependentRequired, minProperties, maxProperties,
items, prefixItems, contains, minItems, maxItems, uniqueItems, minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf, minLength, maxLength,
anyOf, oneOf, allOf, not, if/then/else, $ref within the schema, and true and false as schemas.

What else a schema says is for the model to read and is not checked; `pattern` too, because a regular expression of somebody else's can take for ever.
A keyword whose value makes no sense does not count. What takes too many steps to find out is taken to fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard
from urllib.parse import unquote

import msgspec

#: Problems told at once; deeper nesting than this is refused.
_MOST, _DEPTH = 5, 64
#: Schemas that are held against a value, all together: some 25 ms at most.
_STEPS = 5_000
#: Keywords that put schemas together.
_WAYS = frozenset(("allOf", "anyOf", "oneOf", "not", "if"))
#: Characters of a value that are shown.
_SHOWN = 60


def problems(value: object, schema: Mapping[str, Any], called: str = "the arguments") -> list[str]:
    """What does not fit, at most five; empty where all does. `called`: the value, in words."""
    check = _Check(schema, called)
    check.at(value, schema, "", 0)
    return check.found[:_MOST] if check.decided else []


class _Check:
    """One value against one schema. `steps` are shared by all ways that are tried."""

    def __init__(self, root: Mapping[str, Any], called: str, steps: list[int] | None = None) -> None:
        self._root, self._called, self._steps = root, called, steps if steps is not None else [_STEPS]
        self.found: list[str] = []

    @property
    def decided(self) -> bool:
        """Whether all was looked at."""
        return self._steps[0] >= 0

    def at(self, value: object, schema: object, path: str, depth: int) -> None:
        """Look at the value in one place."""
        self._steps[0] -= 1
        if len(self.found) >= _MOST or self._steps[0] < 0 or schema is True:
            return
        where = path or self._called
        if depth > _DEPTH:
            self.found.append(f"{where} is nested too deep")
        elif schema is False:
            self.found.append(f"{where} is not allowed")
        elif isinstance(schema, Mapping):
            self._here(value, schema, path, where, depth)

    def _here(self, value: object, schema: Mapping[str, Any], path: str, where: str, depth: int) -> None:
        if isinstance(reference := schema.get("$ref"), str):
            self.at(value, self._resolved(reference), path, depth + 1)
        if value is None and schema.get("nullable") is True:
            return
        kinds = schema.get("type")
        wanted = [kinds] if isinstance(kinds, str) else _texts(kinds)
        if wanted and not any(_is(value, kind) for kind in wanted):
            self.found.append(f"{where} must be {' or '.join(_A.get(kind, kind) for kind in wanted)}, not {_kind(value)}")
            return
        options = schema.get("enum")
        if isinstance(options, list | tuple) and not any(_same(value, option) for option in options):
            self.found.append(f"{where} must be one of {', '.join(_shown(option) for option in options[:20])}, not {_shown(value)}")
        if "const" in schema and not _same(value, schema["const"]):
            self.found.append(f"{where} must be {_shown(schema['const'])}")
        if isinstance(value, dict):
            self._object(value, schema, path, where, depth)
        elif isinstance(value, list):
            self._array(value, schema, path, where, depth)
        elif isinstance(value, str):
            self._bounds(len(value), schema, "minLength", "maxLength", where, "has {} characters")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            self._number(value, schema, where)
        if not _WAYS.isdisjoint(schema):
            self._ways(value, schema, path, where, depth)

    def _object(self, value: dict[str, Any], schema: Mapping[str, Any], path: str, where: str, depth: int) -> None:
        properties, required = _object_of(schema.get("properties")), schema.get("required")
        self.found += [f"{_join(path, name)} is missing" for name in _texts(required) if name not in value]
        for name, needed in _object_of(schema.get("dependentRequired")).items():
            if name in value:
                self.found += [f"{_join(path, other)} is missing beside {_short(name)}" for other in _texts(needed) if other not in value]
        self._bounds(len(value), schema, "minProperties", "maxProperties", where, "has {} properties")
        others = schema.get("additionalProperties", True)
        if others is False and "patternProperties" in schema:
            others = True  # which names these mean is not looked at
        for name, item in value.items():
            if name in properties:
                self.at(item, properties[name], _join(path, name), depth + 1)
            elif others is False:
                known = ", ".join(list(properties)[:40]) or "none"
                self.found.append(f"{_join(path, _short(name))} is not known (there are: {known})")
            else:
                self.at(item, others, _join(path, _short(name)), depth + 1)

    def _array(self, value: list[Any], schema: Mapping[str, Any], path: str, where: str, depth: int) -> None:
        self._bounds(len(value), schema, "minItems", "maxItems", where, "has {} items")
        first = schema.get("prefixItems")
        first = first if isinstance(first, list) else []
        items = schema.get("items", True)
        for number, item in enumerate(value):
            self.at(item, first[number] if number < len(first) else items, f"{path}[{number}]", depth + 1)
        if "contains" in schema and not any(self._fits(item, schema["contains"], depth) for item in value):
            self.found.append(f"{where} has no item of the kind that it must contain")
        if schema.get("uniqueItems") is True and len({msgspec.json.encode(item, order="sorted") for item in value}) < len(value):
            self.found.append(f"{where} has an item twice")

    def _number(self, value: float, schema: Mapping[str, Any], where: str) -> None:
        self._bounds(value, schema, "minimum", "maximum", where, "is {}")
        least, most, step = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum"), schema.get("multipleOf")
        if _is_number(least) and value <= least:
            self.found.append(f"{where} is {value}: more than {least} wanted")
        if _is_number(most) and value >= most:
            self.found.append(f"{where} is {value}: less than {most} wanted")
        if _is_number(step) and step > 0 and abs(value) < 2**53 and abs(value / step - round(value / step)) > 1e-9:
            self.found.append(f"{where} is {value}: a multiple of {step} wanted")

    def _ways(self, value: object, schema: Mapping[str, Any], path: str, where: str, depth: int) -> None:
        """The keywords that put schemas together."""
        for one in _schemas(schema.get("allOf")):
            self.at(value, one, path, depth + 1)
        if ways := _schemas(schema.get("anyOf")):
            self._one_of(value, ways, where, path, depth)
        if ways := _schemas(schema.get("oneOf")):
            fitting = sum(self._fits(value, way, depth) for way in ways)
            if not fitting:
                self._one_of(value, ways, where, path, depth)
            elif fitting > 1:
                self.found.append(f"{where} fits {fitting} of the alternatives, and must fit exactly one")
        if "not" in schema and self._fits(value, schema["not"], depth):
            self.found.append(f"{where} is what it must not be")
        if "if" in schema:
            self.at(value, schema.get("then" if self._fits(value, schema["if"], depth) else "else", True), path, depth + 1)

    def _one_of(self, value: object, ways: list[object], where: str, path: str, depth: int) -> None:
        said: list[str] = []
        for way in ways:
            tried = self._tried(value, way, path, depth)
            if not tried:
                return
            said.append(tried[0])
        # What is nearest says most: where the kind is right, what is inside it is wrong.
        inside = [one for one in said if not one.startswith(f"{where} must be ")]
        self.found.append(inside[0] if len(inside) == 1 else f"{where} fits none of the alternatives ({'; '.join(said[:3])})")

    def _fits(self, value: object, schema: object, depth: int) -> bool:
        return not self._tried(value, schema, "", depth)

    def _tried(self, value: object, schema: object, path: str, depth: int) -> list[str]:
        check = _Check(self._root, self._called, self._steps)
        check.at(value, schema, path, depth + 1)
        return check.found

    def _resolved(self, reference: str) -> object:
        """What a reference within the schema means; anything fits one that leads elsewhere or nowhere."""
        if reference == "#":
            return self._root
        if not reference.startswith("#/"):
            return True
        found: object = self._root
        for step in reference[2:].split("/"):
            step = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and step in found:
                found = found[step]
            elif isinstance(found, list) and step.isdecimal() and len(step) < 6 and int(step) < len(found):
                found = found[int(step)]
            else:
                return True
        return found

    def _bounds(self, size: float, schema: Mapping[str, Any], least: str, most: str, where: str, said: str) -> None:
        if least in schema and _is_number(low := schema[least]) and size < low:
            self.found.append(f"{where} {said.format(size)}: at least {low} wanted")
        if most in schema and _is_number(high := schema[most]) and size > high:
            self.found.append(f"{where} {said.format(size)}: at most {high} allowed")


_A = {
    "object": "an object",
    "array": "an array",
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}


def _is(value: object, kind: str) -> bool:
    if kind not in _A:
        return True
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return _kind(value) == _A[kind] or (kind == "number" and isinstance(value, int))


def _kind(value: object) -> str:
    if value is None:
        return _A["null"]
    kinds = {bool: "boolean", dict: "object", list: "array", str: "string", int: "integer", float: "number"}
    return _A[kinds.get(type(value), "null")]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(value: object, option: object) -> bool:
    """Equal in JSON: true is not 1."""
    return value == option and isinstance(value, bool) == isinstance(option, bool)


def _object_of(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _texts(value: object) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list | tuple) else []


def _schemas(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _shown(value: object) -> str:
    return _short(msgspec.json.encode(value).decode())
