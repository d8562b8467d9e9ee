"""The messages of a chat request: from what was sent to canonical ones, with every rule of their order. No I/O.

Source: openai-compat facts, section 1.2. What is not valid raises InvalidRequest naming the place in `param`.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from mayros.errors import InvalidRequest
from mayros.messages import Function, ImagePart, Message, TextPart, ToolCall
from mayros.wire.parts import Parts, SentPart, text_of, unsupported

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class _Function(msgspec.Struct, gc=False):
    name: str
    arguments: str = "{}"


class _Call(msgspec.Struct, gc=False):
    id: str
    function: _Function
    type: str = "function"


class SentMessage(msgspec.Struct, gc=False):
    """A message as it was sent."""

    role: str
    content: str | list[SentPart] | None = None
    name: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    function_call: _Function | None = None


class Conversation(NamedTuple):
    """Canonical messages, where the new ones begin, and the system text of the whole request.

    `incomplete`: a place and a sentence, where calls and results are not together. It is an error of a request that is the whole conversation; a
    session that keeps its own may have the other part.
    """

    messages: tuple[msgspec.Raw, ...]
    new_from: int
    system: str
    incomplete: tuple[str, str] | None


def conversation(given: list[SentMessage], parts: Parts) -> Conversation:
    """The messages of a request; `parts` reads those of users. Raises InvalidRequest or UnsupportedParameter."""
    if not given:
        raise InvalidRequest("messages must hold at least one message.", param="messages")
    incomplete: tuple[str, str] | None = None
    messages: list[Message] = []
    system: list[str] = []
    open_calls: dict[str, None] = {}
    functions: dict[str, str] = {}
    new_from, asked = 0, False
    for index, message in enumerate(given):
        where, role = f"messages[{index}]", message.role
        if role not in ROLES:
            raise InvalidRequest(f"{where}.role must be one of {', '.join(ROLES)}.", param=f"{where}.role")
        if role in ("system", "developer"):
            if text := _text(message, where, required=True):
                system.append(text)
            continue
        if open_calls and role != "tool":
            call = next(iter(open_calls))
            early = f"{where}.tool_call_id", f"{where} comes before the tool call {call[:64]!r} was answered."
            if role != "user" or not messages[-1].tool_calls:
                raise InvalidRequest(early[1], param=early[0])
            # None was answered: a session closes the calls, and goes on with this message.
            incomplete, open_calls, new_from = incomplete or early, {}, len(messages)
        if role == "user":
            messages.append(Message("user", _content(message, where, parts, len(messages)), name=message.name))
            asked = True
        elif role == "assistant":
            calls = _calls(message, where, index)
            open_calls = dict.fromkeys(call.id for call in calls if message.tool_calls)
            functions = {call.function.name: call.id for call in calls if not message.tool_calls}
            messages.append(Message("assistant", _text(message, where) or ("" if not calls else None), tool_calls=calls or None))
            # The results of calls that this gateway never made are new together with the turn that made them.
            new_from = len(messages) - (1 if calls else 0)
        elif role == "tool":
            loose = f"{where}.tool_call_id", f"{where}.tool_call_id answers no open tool call."
            if message.tool_call_id in open_calls:
                del open_calls[message.tool_call_id]
            elif message.tool_call_id and all(one.role == "tool" for one in messages):  # the calls may be in the session
                incomplete = incomplete or loose
            else:
                raise InvalidRequest(loose[1], param=loose[0])
            messages.append(Message("tool", _text(message, where) or "", tool_call_id=message.tool_call_id))
            asked = True
        else:
            new_from = _function_result(message, where, index, functions, messages, new_from)
            asked = True
    if open_calls:
        raise InvalidRequest(
            f"messages end before the tool call {next(iter(open_calls))[:64]!r} was answered.", param=f"messages[{len(given) - 1}].tool_call_id"
        )
    if not asked:
        raise InvalidRequest("Missing user message in `messages`.", param="messages")
    parts.check()
    return Conversation(tuple([parts.pack(message) for message in messages]), new_from, "\n\n".join(system), incomplete)


def _function_result(message: SentMessage, where: str, index: int, functions: dict[str, str], messages: list[Message], new_from: int) -> int:
    """A result of the older `function` role: it becomes a tool result, after a call where the caller left the call out."""
    if not message.name:
        raise InvalidRequest(f"{where}.name is missing.", param=f"{where}.name")
    call_id = functions.pop(message.name, None)
    if call_id is None:
        call_id = f"call_{index}"
        messages.append(Message("assistant", None, tool_calls=(ToolCall(call_id, Function(message.name, "{}")),)))
        new_from = min(new_from, len(messages) - 1)
    messages.append(Message("tool", _text(message, where) or "", tool_call_id=call_id))
    return new_from


def _calls(message: SentMessage, where: str, index: int) -> tuple[ToolCall, ...]:
    if message.tool_calls:
        for number, call in enumerate(message.tool_calls):
            if call.type != "function" or not call.id or not call.function.name:
                raise InvalidRequest(f"{where}.tool_calls[{number}] must be a function call with id and name.", param=f"{where}.tool_calls[{number}]")
        if len({call.id for call in message.tool_calls}) != len(message.tool_calls):
            raise InvalidRequest(f"{where}.tool_calls has an id twice.", param=f"{where}.tool_calls")
        return tuple([ToolCall(call.id, Function(call.function.name, call.function.arguments or "{}")) for call in message.tool_calls])
    if message.function_call is not None:
        return (ToolCall(f"call_{index}", Function(message.function_call.name, message.function_call.arguments or "{}")),)
    return ()


def _content(message: SentMessage, where: str, parts: Parts, place: int) -> str | tuple[TextPart | ImagePart, ...]:
    """The content of a user's message, the canonical message `place`."""
    if not isinstance(message.content, list) or not message.content:
        return _text(message, where, required=True)
    return parts.content(message.content, where, place)


def _text(message: SentMessage, where: str, required: bool = False) -> str:
    """The text of a message: a string, or its text parts joined by newlines."""
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if required:
            raise InvalidRequest(f"{where}.content must be a string or a list of parts.", param=f"{where}.content")
        return ""
    texts = []
    for number, part in enumerate(content):
        if part.type in ("text", "input_text"):
            texts.append(text_of(part, f"{where}.content[{number}]"))
        elif part.type == "refusal" and message.role == "assistant":
            texts.append(part.refusal or "")
        else:
            raise unsupported(part.type, f"{where}.content[{number}]", f"text of the role {message.role}")
    if required and not texts:
        raise InvalidRequest(f"{where}.content must not be empty.", param=f"{where}.content")
    return "\n".join(texts)
