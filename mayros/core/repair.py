"""Makes any sequence of stored messages one that a model takes: every call has its result directly after it. Pure; imports mayros.messages.

A gateway that died, a row that was lost, an edit by hand: whatever happened to a transcript, its session goes on.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from mayros.messages import Message, pack, text_of, unpack

#: The result of a call that has none.
LOST = "[The result of this call was lost: the run was interrupted. It may or may not have had its effect.]"


def repair(messages: Iterable[msgspec.Raw]) -> tuple[msgspec.Raw, ...]:
    """The messages without what is damaged. Untouched ones stay the same bytes.

    A call gets the first result with its id that comes after it, moved to directly behind its message, or else LOST. Calls with an id that was there
    before, results without a call, messages that say nothing or cannot be read are left out. The calls of the last model turn are left without, where
    nothing follows them but results: somebody may still answer them (pending.py).
    """
    given = tuple(messages)
    if not any(b'"tool' in bytes(raw) for raw in given):
        readable = [raw for raw in given if (message := _read(raw)) is not None and _says(message)]
        return given if len(readable) == len(given) else tuple(readable)
    read = [(raw, message) for raw in given if (message := _read(raw)) is not None]
    #: Results by call id, with the place of each.
    results: dict[str, list[tuple[int, msgspec.Raw]]] = {}
    for place, (raw, message) in enumerate(read):
        if message.role == "tool" and message.tool_call_id and _says(message):
            results.setdefault(message.tool_call_id, []).append((place, raw))
    end = max((place for place, (_, message) in enumerate(read) if message.role != "tool" and (message.tool_calls or _says(message))), default=-1)
    repaired: list[msgspec.Raw] = []
    seen: set[str] = set()
    for place, (raw, message) in enumerate(read):
        if message.role == "tool":
            continue
        calls = message.tool_calls or ()
        if calls:
            kept = []
            for call in calls:
                if call.id and call.function.name and call.id not in seen and message.role == "assistant":
                    seen.add(call.id)
                    kept.append(call)
            if len(kept) != len(calls):
                content = message.content if kept or text_of(message) else msgspec.UNSET
                message = replace(message, tool_calls=tuple(kept) or None, content=content)
                raw = pack(message)
            calls = tuple(kept)
        if not calls and not _says(message):
            continue
        repaired.append(raw)
        for call in calls:
            found = next((result for where, result in results.get(call.id, ()) if where > place), None)
            if found is not None or place != end:
                repaired.append(found or pack(Message("tool", LOST, tool_call_id=call.id)))
    return given if repaired == list(given) else tuple(repaired)


def _read(raw: msgspec.Raw) -> Message | None:
    try:
        return unpack(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None


def _says(message: Message) -> bool:
    """Whether there is something in it; a tool may have nothing to say."""
    return bool(message.content) or (message.role == "tool" and isinstance(message.content, str | tuple))
