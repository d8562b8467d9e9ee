"""How a vendor is told that a tool must be called, and in which form to answer. Pure; imports core.ports.

Where a vendor does not know a form, a sentence at the end of the system prompt says it; the loop looks at the answer in any case.
"""

from __future__ import annotations

import re

import msgspec

from mayros.core.ports import ModelRequest, ResponseFormat

#: How a server says that it does not know the form, as against one that does not like the schema.
_NO_FORMAT = re.compile(
    rb"(?:response[_ ]format|json[_ ]schema|json[_ ]object).{0,200}"
    rb"(?:unsupported|not support|unavailable|not available|must be|expected|invalid value)"
    rb"|(?:unsupported|not support|unavailable|invalid value).{0,200}(?:response[_ ]format|json[_ ]schema|json[_ ]object)",
    re.IGNORECASE | re.DOTALL,
)
_BAD_SCHEMA = re.compile(rb"invalid (?:json[_ ])?schema|schema is invalid", re.IGNORECASE)
_encode = msgspec.json.Encoder().encode


def pinned(request: ModelRequest) -> str | None:
    """The name of the one tool that must be called."""
    return request.tool_choice.removeprefix("function:") if request.tool_choice.startswith("function:") else None


def forced(request: ModelRequest) -> bool:
    """Whether a tool must be called."""
    return bool(request.tools) and request.tool_choice not in ("auto", "none")


def sentence(wanted: ResponseFormat) -> str:
    """What the model is told about the form of its answer."""
    if wanted.schema is None:
        return "Your answer must be one JSON object and nothing else: no words around it, no code fence."
    schema = _encode(wanted.schema).decode()
    return f"Your answer must be JSON that fits this JSON Schema and nothing else: no words around it, no code fence.\n{schema}"


def instructed(request: ModelRequest, known: bool) -> str:
    """The system prompt, with the form of the answer where there is one to be told. `known`: the vendor is told of it in its own way.

    That there must be an object is said in any case: OpenAI's servers refuse to make one where nothing speaks of JSON.
    """
    wanted = request.response_format
    if wanted is None or (known and wanted.schema is not None):
        return request.system
    return f"{request.system}\n\n{sentence(wanted)}" if request.system else sentence(wanted)


def openai_format(wanted: ResponseFormat, flat: bool = False) -> dict[str, object]:
    """The form in OpenAI's words: of chat completions, or (`flat`) of the Responses API."""
    if wanted.schema is None:
        return {"type": "json_object"}
    said: dict[str, object] = {"name": wanted.name, "schema": wanted.schema}
    said |= {name: value for name, value in (("description", wanted.description), ("strict", wanted.strict)) if value is not None}
    return {"type": "json_schema", **said} if flat else {"type": "json_schema", "json_schema": said}


def openai_choice(request: ModelRequest, flat: bool = False) -> dict[str, object]:
    """`tool_choice` and `parallel_tool_calls` in OpenAI's words, as far as they are not what is usual."""
    if not request.tools:
        return {}
    said: dict[str, object] = {}
    if (name := pinned(request)) is not None:
        said["tool_choice"] = {"type": "function", "name": name} if flat else {"type": "function", "function": {"name": name}}
    elif request.tool_choice != "auto":
        said["tool_choice"] = request.tool_choice
    if not request.parallel_calls:
        said["parallel_tool_calls"] = False
    return said


def refuses_format(request: ModelRequest, body: bytes) -> bool:
    """Whether a refusal says that the server does not know the form."""
    return request.response_format is not None and _NO_FORMAT.search(body) is not None and _BAD_SCHEMA.search(body) is None
