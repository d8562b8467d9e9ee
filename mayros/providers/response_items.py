"""The items of OpenAI's Responses API: as an answer has them, as they are kept for the next request, and as a request has them.

Kept is what the canonical message cannot hold: reasoning (encrypted, sent back as it came), the items' ids and order, the phase of each message. A
server takes reasoning only together with what followed it, so all of it goes back or none. Pure; imports events, messages and, of
providers, conversation, reading and response_events.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from mayros.events import Usage
from mayros.messages import Message, ToolCall, text_of
from mayros.providers.conversation import Ids
from mayros.providers.reading import STATE_LIMIT, count
from mayros.providers.response_events import any_json

_MAX_ID = 128

_encode = msgspec.json.Encoder().encode


class Item(msgspec.Struct, frozen=True, gc=False):
    """One item of an answer; `raw` is the whole of it."""

    type: str
    id: str = ""
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    phase: str | None = None
    raw: msgspec.Raw = msgspec.Raw(b"{}")

    def value(self) -> dict[str, Any]:
        """All that came."""
        value = any_json(self.raw)
        return value if isinstance(value, dict) else {}

    def kinds(self) -> list[object]:
        """The types of a message's parts."""
        parts = self.value().get("content")
        return [part.get("type") if isinstance(part, dict) else None for part in parts] if isinstance(parts, list) else []

    @property
    def refused(self) -> bool:
        """Whether it is a message in which the model refuses."""
        return self.type == "message" and b'"refusal"' in bytes(self.raw) and "refusal" in self.kinds()

    def texts(self) -> list[str]:
        """The texts of a message or of reasoning, its summary first."""
        value = self.value()
        lists = [value.get("content")] if self.type == "message" else [value.get("summary"), value.get("content")]
        for parts in lists:
            said = [part.get("text") or part.get("refusal") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
            if texts := [text for text in said if isinstance(text, str) and text]:
                return texts
        return []


_decode_item = msgspec.json.Decoder(Item).decode


def read_item(raw: msgspec.Raw) -> Item | None:
    """An item with whatever in it has a type that makes sense; None for what is none."""
    try:
        return msgspec.structs.replace(_decode_item(raw), raw=raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = any_json(raw)
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        return None
    texts = {name: value[name] for name in ("type", "id", "call_id", "name", "arguments", "phase") if isinstance(value.get(name), str)}
    if isinstance(value.get("arguments"), dict):
        texts["arguments"] = json.dumps(value["arguments"])
    return Item(**texts, raw=raw)


class Placed(msgspec.Struct, frozen=True, gc=False):
    """An item with what it became here: the id of a call, or where a message's text is in that of the turn."""

    item: Item
    call_id: str = ""
    start: int = 0
    end: int = 0


def kept(items: Iterable[Placed]) -> bytes | None:
    """What goes back with the message that these items made, as JSON. None where there is no reasoning, or where it cannot go back."""
    made: list[dict[str, Any]] = []
    thought = False
    for placed in items:
        item = placed.item
        if item.type == "reasoning":
            value = item.value()
            if not item.id or not (value.get("encrypted_content") or value.get("content")):
                return None  # the server would look for it in its store, where it is not; and without it refuses the ids of what followed
            # What is empty, and the status, are refused by some who gave them; the summary must be there.
            whole = {"summary": [], **{name: part for name, part in value.items() if part and name != "status"}}
            made.append({"reasoning": whole})
            thought = True
        elif item.type == "message":
            if not item.id or placed.start >= placed.end or any(kind != "output_text" for kind in item.kinds()):
                return None
            made.append({"id": item.id, "phase": item.phase or "", "text": [placed.start, placed.end]})
        elif item.type == "function_call":
            if not placed.call_id:
                return None
            made.append({"call": placed.call_id, "id": item.id if len(item.id) <= _MAX_ID else ""})
    while made and "reasoning" in made[-1]:
        made.pop()  # refused without what follows it
    if not thought or not made:
        return None
    try:
        written = _encode({"items": made})
    except UnicodeEncodeError:  # half of a character
        return None
    return written if len(written) <= STATE_LIMIT else None


def call_item(call: ToolCall, ids: Ids, item_id: str = "") -> dict[str, Any]:
    """A call of the model's, for a request."""
    function = call.function
    item = {"type": "function_call", "call_id": ids.of(call.id), "name": function.name, "arguments": function.arguments or "{}"}
    return {**item, "id": item_id} if item_id else item


def said_item(text: str) -> dict[str, Any]:
    """What the model said, for a request."""
    return {"role": "assistant", "content": text}


def _message_item(item: _KeptItem, text: str) -> dict[str, Any]:
    """The same as the item that it was."""
    part = {"type": "output_text", "text": text, "annotations": []}
    made = {"type": "message", "id": item.id, "role": "assistant", "status": "completed", "content": [part]}
    return {**made, "phase": item.phase} if item.phase else made


class _KeptItem(msgspec.Struct, frozen=True, gc=False):
    """One of reasoning, a call (its id here, and the item's), or a message (its id and phase, and where its text is in that of the turn)."""

    reasoning: dict[str, Any] | None = None
    call: str | None = None
    id: str = ""
    phase: str = ""
    text: tuple[int, int] | None = None


class _KeptItems(msgspec.Struct, frozen=True, gc=False):
    items: list[_KeptItem]


def restored(message: Message, state: Mapping[str, object], ids: Ids) -> list[object] | None:
    """The items of an assistant message with what was kept. None where they do not fit together any more: then it goes back without."""
    try:
        items = msgspec.convert(state, _KeptItems).items
    except msgspec.ValidationError:
        return None
    calls, text = {call.id: call for call in message.tool_calls or ()}, text_of(message)
    if [item.call for item in items if item.call is not None] != list(calls):
        return None
    spans = [item.text for item in items if item.text is not None]
    if (spans[-1][1] if spans else 0) != len(text):
        return None
    made: list[object] = []
    for item in items:
        if item.reasoning is not None:
            made.append(item.reasoning)
        elif item.call is not None:
            made.append(call_item(calls[item.call], ids, item.id))
        elif item.text is not None:
            made.append(_message_item(item, text[slice(*item.text)]))
    return made


def usage_of(usage: object) -> Usage:
    """Disjoint counts: the provider's input includes cached tokens, its output reasoning. What makes no sense is 0."""
    if not isinstance(usage, dict):
        return Usage()
    total, output = count(usage.get("input_tokens")), count(usage.get("output_tokens"))
    given, made = usage.get("input_tokens_details"), usage.get("output_tokens_details")
    given, made = given if isinstance(given, dict) else {}, made if isinstance(made, dict) else {}
    read = min(count(given.get("cached_tokens")), total)
    written = min(count(given.get("cache_write_tokens")), total - read)
    return Usage(total - read - written, output, read, written, min(count(made.get("reasoning_tokens")), output))
