"""The tool calls of one answer of chat completions, put together from fragments. Imports core.keys, events and providers.characters.

The calls are told apart by `index`, and their fragments may be mixed. Imitators leave out the index or the id, give every call the index 0, write
a new id into each fragment, or send arguments as an object. So a fragment belongs to the call of its index, else of its id, else to the last
one; a new name with a new id starts a call in any case, and so does a new id or a name where there is no index.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from mayros.core.keys import new_id
from mayros.events import ToolCallDelta
from mayros.providers.characters import joined, whole_characters

#: In one answer; a model that means it makes a few.
MAX_CALLS = 256
MAX_INDEX = 1023
#: Characters of one call's arguments.
MAX_ARGUMENTS = 1 << 20
# What is said of answers with more.
TOO_MANY = f"it called tools more than {MAX_CALLS} times at once"
TOO_LONG = f"the arguments of a tool call are longer than {MAX_ARGUMENTS >> 20} MiB"
_MAX_NAME, _MAX_ID = 128, 256
#: A call whose function was never named: the model is told that there is none of this name.
_UNNAMED = "unnamed"


class TooMuch(Exception):
    """The calls are more than can be taken; the text says why."""


class FunctionPart(msgspec.Struct, gc=False):
    """What a fragment says of the function."""

    name: str | None = None
    arguments: str | None = None


class CallPart(msgspec.Struct, gc=False):
    """One fragment of a call."""

    index: int | None = None
    id: str | None = None
    function: FunctionPart | None = None


_NOTHING = FunctionPart()


def loose_part(said: dict[str, Any]) -> CallPart:
    """A fragment with whatever in it has a type that makes sense."""
    index, sent_id, function = said.get("index"), said.get("id"), said.get("function")
    part = CallPart(index if type(index) is int else None, whole_characters(sent_id) if isinstance(sent_id, str) else None)
    if isinstance(function, dict):
        name = function.get("name")
        part.function = FunctionPart(whole_characters(name) if isinstance(name, str) else None, _arguments(function.get("arguments")))
    return part


def _arguments(value: object) -> str | None:
    """Arguments as JSON text, also where they came as what that text means."""
    if value is None or isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return ""


class _Call:
    """A call that is being written. `sent`: the id as the server wrote it; `held`: arguments that came before the name."""

    __slots__ = ("half", "held", "id", "index", "name", "sent", "size")

    def __init__(self, index: int, sent: str) -> None:
        self.index, self.sent, self.id, self.name = index, sent, "", ""
        self.held: list[str] = []
        self.half = ""
        self.size = 0


class Calls:
    """The calls of one answer. The `index` of what comes out counts the calls from 0, in the order in which they began."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}
        self._current: _Call | None = None

    @property
    def any(self) -> bool:
        """Whether the model called anything."""
        return any(call.name for call in self._calls)

    def take(self, part: CallPart, loose: bool) -> ToolCallDelta | None:
        """What a fragment adds. `loose`: there may be halves of characters in it. Raises TooMuch."""
        function = part.function or _NOTHING
        name = (function.name or "")[:_MAX_NAME]
        call = self._current = self._call(part.index, part.id or "", name)
        text = function.arguments or ""
        call.size += len(text)
        if call.size > MAX_ARGUMENTS:
            raise TooMuch(TOO_LONG)
        if loose or call.half:
            text, call.half = joined(call.half, text)
        if call.name:
            return ToolCallDelta(call.index, text) if text else None
        if text:
            call.held.append(text)
        return self._named(call, name) if name else None

    def last(self) -> list[ToolCallDelta]:
        """What is left at the end of the answer. What never had a name nor arguments was no call."""
        rest = []
        for call in self._calls:
            if call.half:
                call.held.append("\ufffd")
            text = "".join(call.held)
            if text:
                rest.append(ToolCallDelta(call.index, text) if call.name else self._named(call, _UNNAMED))
        return rest

    def _named(self, call: _Call, name: str) -> ToolCallDelta:
        """The first part of a call, now that its name is known."""
        text, call.name, call.held = "".join(call.held), name, []
        usable = len(call.sent) <= _MAX_ID and call.sent.isprintable() and self._by_id.get(call.sent) is call
        call.id = call.sent if usable else f"call_{new_id()}"
        return ToolCallDelta(call.index, text, call.id, name)

    def _call(self, index: int | None, sent: str, name: str) -> _Call:
        """The call that a fragment belongs to."""
        call: _Call | None
        if index is None or index < 0:
            call = self._by_id.get(sent) if sent else self._current
            if name and not sent and call is not None and call.name:
                call = None
            return call or self._begin(sent)
        if index > MAX_INDEX:
            raise TooMuch(f"a tool call has an index over {MAX_INDEX}")
        call = self._by_index.get(index)
        if call is None or (name and call.name and (name != call.name or (sent and sent != call.sent))):
            call = self._by_index[index] = self._begin(sent)
        elif sent and not call.sent and not call.name:
            call.sent = sent
            self._by_id.setdefault(sent, call)
        return call

    def _begin(self, sent: str) -> _Call:
        if len(self._calls) >= MAX_CALLS:
            raise TooMuch(TOO_MANY)
        call = _Call(len(self._calls), sent)
        self._calls.append(call)
        if sent:
            self._by_id.setdefault(sent, call)
        return call
