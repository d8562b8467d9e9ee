"""Canonical messages for servers of chat completions that cannot take them as they are kept. Pure; imports messages, and of providers compat and
conversation.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from mayros.messages import ImagePart, Message, TextPart, pack, text_of, unpack
from mayros.providers.compat import Compat
from mayros.providers.conversation import Ids, state_of

#: How the canonical JSON of a tool message begins, and of one whose content is a list of parts.
_TOOL, _USER = b'{"role":"tool"', b'{"role":"user"'
_PARTS = _TOOL + b',"content":['
#: Stands in the canonical JSON of a message with a vendor's state; inside of texts its quotes have backslashes.
_STATE = b',"provider_state":{'
#: The first letter of the role, and the last byte of a message but one: where it ends with a vendor's state, where with its text.
_ROLE_AT, _T, _BRACE, _QUOTE = len(b'{"role":"'), ord("t"), ord("}"), ord('"')
#: The field of an answer, of what is kept with a turn, and of a request.
REASONING = "reasoning_content"
#: Between a result and a user's message, where a server wants an answer there.
_PROCESSED = pack(Message("assistant", "I have the results."))


def takeable(messages: Iterable[msgspec.Raw]) -> bool:
    """Whether all messages can go as they are. Looks at the ends only: a search through the whole conversation costs more than all else."""
    for raw in messages:
        view = memoryview(raw)
        if view[-2] == _BRACE or (view[_ROLE_AT] == _T and view[: len(_PARTS)] == _PARTS):
            return False
    return True


def rewritten(messages: Iterable[msgspec.Raw], compat: Compat, sees: bool, model: str = "") -> list[object]:
    """The messages as the server takes them.

    No vendor's state goes out. Parts are not taken in tool messages: the images of a round's results follow them in one user message (`sees`: the
    model takes images; to another one it is said that there were some). The rest as `compat` says. `model`: `provider/model`.
    """
    made: list[object] = []
    images: list[object] = []
    ids = Ids(r"[A-Za-z0-9]{9}", "{:.9}") if compat.requires_mistral_tool_ids else None
    if ids is None and compat.longest_id:
        ids = Ids(rf"[\x21-\x7e]{{1,{compat.longest_id}}}")
    ours = compat.requires_reasoning_content_on_assistant_messages
    names: dict[str, str] = {}
    after_tool = False
    for raw in messages:
        is_tool = memoryview(raw)[: len(_TOOL)] == _TOOL
        if after_tool and not is_tool:
            if compat.requires_assistant_after_tool_result and (images or memoryview(raw)[: len(_USER)] == _USER):
                made.append(_PROCESSED)
            if images:
                made.append({"role": "user", "content": images})
                images = []
        after_tool = is_tool
        parts = memoryview(raw)[: len(_PARTS)] == _PARTS
        last = memoryview(raw)[-2]
        if not parts and not (last == _BRACE and _STATE in bytes(raw)) and not (compat.rewrites and (ours or is_tool or last != _QUOTE)):
            made.append(raw)
            continue
        message = unpack(raw)
        if parts:
            message, shown = _without_images(message, sees)
            images += shown
        state = state_of(message, model)
        if message.provider_state is not None:
            message = replace(message, provider_state=None)
        if compat.rewrites:
            message = _as_wanted(message, compat, ids, names)
        if ours and message.role == "assistant":
            made.append({**msgspec.to_builtins(message), REASONING: (state or {}).get(REASONING, "")})
        else:
            made.append(message)
    if images:
        made += [*([_PROCESSED] if compat.requires_assistant_after_tool_result else []), {"role": "user", "content": images}]
    return made


def _without_images(message: Message, sees: bool) -> tuple[Message, list[object]]:
    """A tool message with text only, and what of it comes later."""
    content = message.content if isinstance(message.content, tuple) else ()
    pictures = [part for part in content if isinstance(part, ImagePart)]
    note = f"[{len(pictures)} image(s): {'in the message after the tool results' if sees else 'left out, because the model takes none'}]"
    text = "\n".join(filter(None, (text_of(message), note if pictures else "")))
    label = TextPart(f"Images of the result of the tool call {message.tool_call_id}:")
    return replace(message, content=text), [label, *pictures] if pictures and sees else []


def _as_wanted(message: Message, compat: Compat, ids: Ids | None, names: dict[str, str]) -> Message:
    """Ids and names as the server wants them. `names`: of the tools that were called, by the id of the call as it is kept."""
    if message.tool_calls is not None:
        names.update({call.id: call.function.name for call in message.tool_calls})
        if ids is not None:
            message = replace(message, tool_calls=tuple([replace(call, id=ids.of(call.id)) for call in message.tool_calls]))
    elif message.role == "tool" and message.tool_call_id is not None:
        kept_id = message.tool_call_id
        if compat.requires_tool_result_name and kept_id in names:
            message = replace(message, name=names[kept_id])
        if ids is not None:
            message = replace(message, tool_call_id=ids.of(kept_id))
    return message
