"""What is wrong with parameters, in the words of a JSON schema validator: clients of the Gateway protocol show and know them. Imports msgspec."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

_KINDS = {"str": "string", "int": "integer", "bool": "boolean", "float": "number", "array": "array", "object": "object", "null": "null"}
_WORDS: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(r"Expected `str` of length >= (\d+)"), "must NOT have fewer than {0} characters"),
    (re.compile(r"Expected `str` of length <= (\d+)"), "must NOT have more than {0} characters"),
    (re.compile(r"Expected `array` of length >= (\d+)"), "must NOT have fewer than {0} items"),
    (re.compile(r"Expected `array` of length <= (\d+)"), "must NOT have more than {0} items"),
    (re.compile(r"Expected `int(?: \| null)?` (>=|<=) (-?\d+)"), "must be {0} {1}"),
    (re.compile(r"Object missing required field `(\w+)`"), "must have required property '{0}'"),
    (re.compile(r"Object contains unknown field `([^`]{1,64})"), "unexpected property '{0}'"),
    (re.compile(r"Invalid enum value"), "must be equal to one of the allowed values"),
)


def describe(error: msgspec.ValidationError) -> str:
    """What is wrong with parameters, in a schema validator's words: `at /timeout: must be integer`. Never shows a value."""
    text, _, path = str(error).partition(" - at `$")
    said = next((words.format(*found.groups()) for pattern, words in _WORDS if (found := pattern.match(text)) is not None), None)
    if said is None:
        found = re.match(r"Expected `(\w+)", text)
        said = f"must be {_KINDS.get(found[1], found[1])}" if found is not None else "is not valid"
    pointer = path.rstrip("`").replace("[...]", "/*").replace("[", "/").replace("]", "").replace(".", "/")
    return f"at {pointer}: {said}" if pointer else said
