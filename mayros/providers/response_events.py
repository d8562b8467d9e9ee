"""The events of OpenAI's Responses API: of the usual shape read at once into a struct, any other with whatever in it makes sense. Pure."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from mayros.providers.reading import lenient_json

_NULL = msgspec.Raw(b"null")


class Response(msgspec.Struct, gc=False):
    """What is looked at of an answer as a whole."""

    status: str | None = None
    output: list[msgspec.Raw] | None = None
    usage: Any = None
    error: Any = None
    incomplete_details: Any = None


class Said(msgspec.Struct, gc=False):
    """One event; which of the fields are there depends on its type."""

    type: str = ""
    delta: str = ""
    output_index: int | None = None
    summary_index: int | None = None
    item_id: str | None = None
    arguments: str | None = None
    item: msgspec.Raw = _NULL
    response: Response | None = None


#: Raises msgspec.DecodeError, UnicodeDecodeError or RecursionError for an event that `loose_said` may read.
read_said = msgspec.json.Decoder(Said).decode
_decode_response = msgspec.json.Decoder(Response).decode
_anything: Any = msgspec.json.Decoder().decode


def any_json(data: bytes | msgspec.Raw) -> object:
    """JSON as lenient as can be: bytes that are not UTF-8 become U+FFFD, lone surrogates stay. None for what is no JSON."""
    try:
        return _anything(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return lenient_json(data)


def loose_said(block: bytes) -> Said | None:
    """An event with whatever in it has a type that makes sense; None for what is not a JSON object."""
    value = any_json(block)
    if not isinstance(value, dict):
        return None

    def text(name: str) -> str:
        said = value.get(name)
        return said if isinstance(said, str) else ""

    def number(name: str) -> int | None:
        said = value.get(name)
        return said if type(said) is int else None

    arguments = value.get("arguments")
    written = bytes(_raw(arguments)).decode() if isinstance(arguments, dict) else text("arguments")
    said = Said(text("type"), text("delta"), number("output_index"), number("summary_index"), text("item_id"), written)
    said.item, said.response = _raw(value.get("item")), _loose_response(value.get("response"))
    return said


def _raw(value: object) -> msgspec.Raw:
    try:
        return msgspec.Raw(json.dumps(value).encode())
    except RecursionError:
        return _NULL


def read_response(data: bytes) -> Response:
    """An answer as a whole, with whatever in it has a type that makes sense; an empty one for what is none."""
    try:
        return _decode_response(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _loose_response(any_json(data)) or Response()


def _loose_response(value: object) -> Response | None:
    if not isinstance(value, dict):
        return None
    status, output = value.get("status"), value.get("output")
    items = [_raw(item) for item in output] if isinstance(output, list) else None
    return Response(status if isinstance(status, str) else None, items, value.get("usage"), value.get("error"), value.get("incomplete_details"))
