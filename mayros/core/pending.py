"""Calls that a session waits for: those of its last model turn that were handed back to the caller. Pure; imports core ports and callers.

The transcript ends with the model turn, and the results of what the gateway did itself. What follows is one of

* the results of all calls that are left: the conversation goes on from them;
* something else: the calls are closed with a result that says there is none.

Source: openai-compat facts, section 1.5.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from mayros.core.callers import CallIds
from mayros.core.ports import History, Turn
from mayros.errors import InvalidRequest
from mayros.messages import Message, data_of, pack, unpack

#: The result of a call that nobody answered.
NO_RESULT = "[No result: the caller did not answer this call and went on.]"
#: How the canonical JSON of messages begins.
_TOOL, _ASSISTANT = b'{"role":"tool"', b'{"role":"assistant"'


def left_open(messages: Sequence[msgspec.Raw]) -> tuple[str, ...]:
    """The ids of the calls at the end of a conversation that have no result, in their order."""
    answered: set[str | None] = set()
    for raw in reversed(messages):
        if _begins(raw, _TOOL):
            answered.add(unpack(raw).tool_call_id)
            continue
        return tuple(call for call in _calls_of(raw) if call not in answered)
    return ()


def settled(turn: Turn, history: History) -> Turn:
    """The turn with all calls answered that the session waits for. Raises InvalidRequest where its results are not those of the calls."""
    if turn.stateless or not turn.messages:
        return turn
    pending = left_open(history.messages)
    first = turn.messages[0]
    if not pending:
        if _begins(first, _TOOL):
            raise InvalidRequest(f"The tool result {_id_of(first)[:64]!r} answers no call: this session waits for none.", param="messages")
        return replace(turn, messages=_renamed(turn.messages, history.messages)) if _calls_of(first) else turn
    echoed = set(_calls_of(first))  # the caller's copy of the model turn; ours has more in it
    if echoed and not echoed & set(pending):
        raise InvalidRequest(f"The calls answered are not those that this session waits for: {_named(pending)}.", param="messages")
    rest = list(turn.messages[1:] if echoed else turn.messages)
    results: dict[str, msgspec.Raw] = {}
    while rest and _begins(rest[0], _TOOL):
        call = _id_of(rest[0])
        if call not in pending or call in results:
            raise InvalidRequest(f"The tool result {call[:64]!r} answers no open call: this session waits for {_named(pending)}.", param="messages")
        results[call] = rest.pop(0)
    if results and (missing := [call for call in pending if call not in results]):
        raise InvalidRequest(f"All calls must be answered together; there is no result of {_named(missing)}.", param="messages")
    closing = [results.get(call) or pack(Message("tool", NO_RESULT, tool_call_id=call)) for call in pending]
    return replace(turn, messages=(*closing, *rest))


def joined(history: Sequence[msgspec.Raw], new: Sequence[msgspec.Raw]) -> tuple[msgspec.Raw, ...]:
    """A conversation with what is new in it: results in the order of their calls, also where some were there before."""
    if not new or not _begins(new[0], _TOOL):
        return (*history, *new) if history else tuple(new)
    at = len(history)
    while at and _begins(history[at - 1], _TOOL):
        at -= 1
    upto = next((place for place, raw in enumerate(new) if not _begins(raw, _TOOL)), len(new))
    order = {call: place for place, call in enumerate(_calls_of(history[at - 1]) if at else ())}
    results = sorted([*history[at:], *new[:upto]], key=lambda raw: order.get(_id_of(raw), len(order)))
    return (*history[:at], *results, *new[upto:])


def _begins(raw: msgspec.Raw, how: bytes) -> bool:
    return memoryview(raw)[: len(how)] == how


def _calls_of(raw: msgspec.Raw) -> tuple[str, ...]:
    """The ids of the calls that a message makes."""
    if not _begins(raw, _ASSISTANT) or b'"tool_calls"' not in data_of(raw):
        return ()
    return tuple(call.id for call in unpack(raw).tool_calls or ())


def _id_of(raw: msgspec.Raw) -> str:
    return unpack(raw).tool_call_id or ""


def _named(calls: Sequence[str]) -> str:
    return ", ".join(repr(call[:64]) for call in calls[:8])


def _renamed(new: Sequence[msgspec.Raw], history: Sequence[msgspec.Raw]) -> tuple[msgspec.Raw, ...]:
    """Calls that the caller says were made, with their results: their ids become ones that the session does not have."""
    ids, names = CallIds(history), dict[str, str]()
    made: list[msgspec.Raw] = []
    for raw in new:
        message = unpack(raw)
        if message.tool_calls:
            names = {call.id: ids.handed_back(call.id) for call in message.tool_calls}
            raw = pack(replace(message, tool_calls=tuple([replace(call, id=names[call.id]) for call in message.tool_calls])))
        elif message.role == "tool" and message.tool_call_id in names:
            raw = pack(replace(message, tool_call_id=names[message.tool_call_id]))
        made.append(raw)
    return tuple(made)
