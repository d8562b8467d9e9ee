"""JSON Schema of structs, for other programs: of `mayros.json`, and of what the doors take. Pure; imports schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec

from mayros.config.schema import Config
from mayros.config.section import Bytes, Milliseconds

DIALECT = "https://json-schema.org/draft/2020-12/schema"
#: What msgspec cannot describe by itself.
_KINDS: dict[Any, Any] = {
    msgspec.Raw: Any,
    object: Any,
    Milliseconds: Annotated[int | str, msgspec.Meta(description='Milliseconds, or a text with ms, s, m, h or d such as "30s".')],
    Bytes: Annotated[int | str, msgspec.Meta(description='Bytes, or a text with b, kb, mb or gb such as "32mb".')],
}


def json_schema() -> dict[str, Any]:
    """The whole configuration file. Unknown keys are allowed: most are warned about, not refused."""
    return {"$schema": DIALECT, **schema_of(Config)}


def schema_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The schema of a struct, without references: not every program follows them. The struct must not refer to itself."""
    schema = msgspec.json.schema(_plain(kind, {}))
    written: dict[str, Any] = _inline(schema, schema["$defs"])
    return written


def components_of(kinds: Iterable[type[msgspec.Struct]], place: str) -> dict[str, dict[str, Any]]:
    """The schemas of structs and of those in them, by the structs' names, with references: `place` is their address, with `{name}` in it."""
    made: dict[Any, Any] = {}
    _, parts = msgspec.json.schema_components([_plain(kind, made) for kind in kinds], ref_template=place)
    return parts


def _inline(schema: Any, parts: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inline(item, parts) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        schema = {**parts[schema["$ref"].rpartition("/")[2]], **schema}
    return {key: _inline(value, parts) for key, value in schema.items() if key not in ("$ref", "$defs")}


def _plain(kind: Any, made: dict[Any, Any]) -> Any:
    """The same type in types that msgspec can describe."""
    if kind in _KINDS:
        return _KINDS[kind]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if kind not in made:
            made[kind] = _twin(kind, made)
        return made[kind]
    if get_origin(kind) in (Union, UnionType):
        return reduce(or_, (_plain(member, made) for member in get_args(kind)))
    if (origin := get_origin(kind)) in (tuple, dict, Mapping):
        return (tuple if origin is tuple else dict)[tuple(part if part is ... else _plain(part, made) for part in get_args(kind))]
    return kind


def _twin(kind: type[msgspec.Struct], made: dict[Any, Any]) -> type[msgspec.Struct]:
    fields: list[Any] = []
    for field in msgspec.structs.fields(kind):
        options: dict[str, Any] = {"name": field.encode_name}
        if field.default_factory is not msgspec.NODEFAULT:
            options["default_factory"] = field.default_factory
        elif field.default is not msgspec.NODEFAULT:
            options["default"] = _default(field.default)
        fields.append((field.name, _plain(field.type, made), msgspec.field(**options)))
    return msgspec.defstruct(kind.__name__, fields, namespace={"__doc__": kind.__doc__}, kw_only=True)


def _default(value: Any) -> Any:
    if isinstance(value, msgspec.Raw):
        return msgspec.json.decode(value)
    return int(value) if isinstance(value, Milliseconds | Bytes) else value
