"""Canonical messages as Anthropic's Messages API wants them. Pure; imports messages, providers.anthropic_state and providers.conversation.

User and assistant take turns, a user begins and a user ends. All results of a turn's calls are in one user message right after it, first in it.
Thinking goes back in its place and unchanged, to the model that thought it. Texts that are blank are refused there, so they are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from mayros.messages import ImagePart, Message, ToolCall, text_of
from mayros.providers.anthropic_state import THINKING, arranged
from mayros.providers.conversation import Ids, arguments_of, conversation, image_of, state_of

Json = dict[str, Any]

#: What a user says where the conversation needs one.
BEGIN, GO_ON = "(The conversation begins here.)", "(Go on.)"
_IMAGES = {"image/jpeg", "image/png", "image/gif", "image/webp"}


def turns_of(messages: Iterable[msgspec.Raw], model: str, images: bool) -> list[Json]:
    """The `messages` of a request. `model`: `provider/model`, which gets its own thinking back; `images`: whether it takes any."""
    ids = Ids(r"[A-Za-z0-9_-]{1,64}", "toolu_{}")
    turns: list[Json] = []

    def add(role: str, blocks: list[Json]) -> None:
        if not blocks:
            return
        if turns and turns[-1]["role"] == role:
            if role == "user" or blocks[0]["type"] not in THINKING:
                turns[-1]["content"] += blocks
                return
            turns.append({"role": "user", "content": [_text(GO_ON)]})  # thinking must come first
        elif not turns and role == "assistant":
            turns.append({"role": "user", "content": [_text(BEGIN)]})
        turns.append({"role": role, "content": blocks})

    for message in conversation(messages):
        if message.role == "assistant":
            add("assistant", _said(message, model, ids))
        elif message.role == "tool":
            add("user", [_result(message, ids, images)])
        else:
            add("user", _parts(message, images))
    if not turns or turns[-1]["role"] == "assistant":
        add("user", [_text(GO_ON if turns else BEGIN)])
    return turns


def thinks(turns: Sequence[Json]) -> bool:
    """Whether thinking with a budget may be asked for: the calls whose results are sent now must have begun with thinking, or it is refused."""
    at = len(turns) - 1
    while at > 1 and turns[at]["content"][0]["type"] == "tool_result":
        at -= 2
    return at + 1 == len(turns) or turns[at + 1]["content"][0]["type"] in THINKING


def called(turns: Iterable[Json]) -> list[str]:
    """The names of the tools that were called, each once."""
    return list(dict.fromkeys(block["name"] for turn in turns for block in turn["content"] if block["type"] == "tool_use"))


def _text(text: str) -> Json:
    return {"type": "text", "text": text}


def _texts(text: str) -> list[Json]:
    return [_text(text)] if text and not text.isspace() else []


def _parts(message: Message, images: bool) -> list[Json]:
    content = message.content
    if not isinstance(content, tuple):
        return _texts(text_of(message))
    blocks: list[Json] = []
    for part in content:
        blocks += [_image(part, images)] if isinstance(part, ImagePart) else _texts(part.text)
    return blocks


def _image(part: ImagePart, images: bool) -> Json:
    found = image_of(part) if images else None
    if found is None:
        return _text("[An image was here.]" if images else "[An image, left out because the model takes none.]")
    kind, data = found[0].lower().replace("image/jpg", "image/jpeg"), found[1]
    if kind not in _IMAGES:
        return _text(f"[An image of the type {kind}, left out because the model does not take it.]")
    return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}


def _result(message: Message, ids: Ids, images: bool) -> Json:
    block = {"type": "tool_result", "tool_use_id": ids.of(message.tool_call_id or "")}
    content = message.content
    said: object = _parts(message, images) if isinstance(content, tuple) else text_of(message)
    return {**block, "content": said} if said else block


def _said(message: Message, model: str, ids: Ids) -> list[Json]:
    """The blocks of an assistant's message."""
    text = text_of(message)
    calls = [_call(call, ids) for call in message.tool_calls or ()]
    kept = state_of(message, model) if calls else None
    order = arranged(kept, text, calls) if kept is not None else None
    if order is None:
        order = [text, *calls]
    blocks: list[Json] = []
    for item in order:
        if isinstance(item, str):
            blocks += _texts(item)
        else:
            blocks.append(item)
    return blocks


def _call(call: ToolCall, ids: Ids) -> Json:
    return {"type": "tool_use", "id": ids.of(call.id), "name": call.function.name, "input": arguments_of(call)}
