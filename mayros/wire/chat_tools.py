"""The caller's own function tools in a chat request, and the form that it wants its answer in. No I/O; imports errors.

Source: openai-compat facts, sections 1.5 and 1.6. What is not valid raises InvalidRequest, InvalidValue or UnsupportedParameter, naming the field.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mayros.errors import InvalidRequest, InvalidValue, UnsupportedParameter

MAX_TOOLS = 128
#: Objects and arrays within each other, and values of all the schemas of one field together.
MAX_DEPTH, MAX_VALUES = 64, 20_000

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NAMING = "must be 1 to 64 letters, digits, low lines or hyphens"


class SentFunction(msgspec.Struct, gc=False):
    """A function that the caller runs. `parameters` is a JSON Schema of type object; without one it takes none."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class SentTool(msgspec.Struct, gc=False):
    """A tool; the type `function` is the only one."""

    type: str
    function: SentFunction | None = None


class ChosenFunction(msgspec.Struct, gc=False):
    """The function that must be called."""

    name: str


class Choice(msgspec.Struct, gc=False):
    """A choice that is no word."""

    type: str
    function: ChosenFunction | None = None


class SentSchema(msgspec.Struct, gc=False):
    """A JSON Schema with its name."""

    name: str
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class SentFormat(msgspec.Struct, gc=False):
    """The form of the answer: `text`, `json_object` or `json_schema`."""

    type: str
    json_schema: SentSchema | None = None


Tools = Annotated[list[SentTool], Meta(max_length=MAX_TOOLS)]


class AskedTool(msgspec.Struct, frozen=True):
    """A valid tool."""

    name: str
    description: str
    parameters: dict[str, Any]
    strict: bool | None


class AskedFormat(msgspec.Struct, frozen=True):
    """A valid form that is not plain text. `schema` None: any JSON object."""

    schema: dict[str, Any] | None = None
    name: str = ""
    description: str | None = None
    strict: bool | None = None


def read_tools(sent: list[SentTool] | None) -> tuple[AskedTool, ...]:
    """The tools of a request; none where there are none."""
    if not sent:
        return ()
    tools: dict[str, AskedTool] = {}
    values = 0
    for index, tool in enumerate(sent):
        where, function = f"tools[{index}]", tool.function
        if tool.type != "function":
            raise UnsupportedParameter(f"{where}.type is {tool.type[:40]!r}: only function tools are supported.", param=f"{where}.type")
        if function is None:
            raise InvalidRequest(f"{where}.function is missing.", param=f"{where}.function")
        if not _NAME.fullmatch(function.name):
            raise InvalidValue(f"{where}.function.name {_NAMING}.", param=f"{where}.function.name")
        if function.name in tools:
            raise InvalidValue(f"{where}.function.name is that of another tool: {function.name!r}.", param=f"{where}.function.name")
        parameters = function.parameters or {"type": "object", "properties": {}}
        kind = parameters.get("type", "object")
        if kind != "object" and not (isinstance(kind, list) and "object" in kind):
            param = f"{where}.function.parameters"
            raise InvalidValue(f"{param} must be a JSON Schema of type object.", param=param)
        values = bounded(parameters, f"{where}.function.parameters", values)
        tools[function.name] = AskedTool(function.name, function.description or "", parameters, function.strict)
    return tuple(tools.values())


def read_choice(sent: str | Choice | None, tools: tuple[AskedTool, ...]) -> str:
    """Whether a tool must be called: `none`, `auto`, `required`, or `function:NAME`."""
    if sent is None:
        return "auto"
    if isinstance(sent, str):
        if sent not in ("none", "auto", "required"):
            raise InvalidValue("tool_choice must be none, auto, required, or an object that names a function.", param="tool_choice")
        if sent == "required" and not tools:
            raise InvalidValue("tool_choice is required, but there are no tools.", param="tool_choice")
        return sent
    if sent.type != "function":
        raise UnsupportedParameter(f"tool_choice of the type {sent.type[:40]!r} is not supported: name a function.", param="tool_choice")
    if sent.function is None:
        raise InvalidRequest("tool_choice.function is missing.", param="tool_choice.function")
    if all(tool.name != sent.function.name for tool in tools):
        raise InvalidValue(f"tool_choice names the function {sent.function.name[:64]!r}, which is not among the tools.", param="tool_choice")
    return f"function:{sent.function.name}"


def read_format(sent: SentFormat | None) -> AskedFormat | None:
    """The form of the answer; None for plain text."""
    if sent is None or sent.type == "text":
        return None
    if sent.type == "json_object":
        return AskedFormat()
    if sent.type != "json_schema":
        raise InvalidValue("response_format.type must be text, json_object or json_schema.", param="response_format.type")
    where, wanted = "response_format.json_schema", sent.json_schema
    if wanted is None:
        raise InvalidRequest(f"{where} is missing.", param=where)
    if not _NAME.fullmatch(wanted.name):
        raise InvalidValue(f"{where}.name {_NAMING}.", param=f"{where}.name")
    if wanted.schema is None:
        raise InvalidRequest(f"{where}.schema is missing.", param=f"{where}.schema")
    bounded(wanted.schema, f"{where}.schema")
    return AskedFormat(wanted.schema, wanted.name, wanted.description, wanted.strict)


def bounded(value: dict[str, Any], param: str, values: int = 0) -> int:
    """Refuse objects and arrays within each other beyond MAX_DEPTH, and more values than MAX_VALUES, `values` of which are counted already.

    Gives the new count. Only what is passed on as it came needs it; what is ignored may nest.
    """
    level: list[dict[str, Any] | list[Any]] = [value]
    for _ in range(MAX_DEPTH):
        inner = [one for outer in level for one in (outer.values() if isinstance(outer, dict) else outer)]
        values += len(inner)
        if values > MAX_VALUES:
            raise InvalidRequest(f"{param} makes it more than {MAX_VALUES} values.", param=param)
        level = [one for one in inner if isinstance(one, dict | list)]
        if not level:
            return values
    raise InvalidRequest(f"{param} nests objects and arrays more than {MAX_DEPTH} levels deep.", param=param)
