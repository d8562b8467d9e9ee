"""A conversation as Google's generateContent takes it: canonical messages to `contents`. Pure; imports core.models, messages and providers.

The rules that Google's servers enforce are kept here: a conversation begins with the user, the calls of a turn have their responses in the very
next content, and signatures come back on the part where they were.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from mayros.core.models import Model
from mayros.messages import ImagePart, Message, ToolCall, text_of
from mayros.providers.conversation import arguments_of, conversation, image_of, state_of
from mayros.providers.google_chunks import Kept, State

#: What Google's documentation gives for calls that another model made: its own calls have a signature, and Gemini 3 refuses a turn without one.
UNSIGNED = "skip_thought_signature_validator"
#: A conversation that begins with the model gets this user message before it.
OPENING = "(The conversation begins with your answer.)"

_VERSION = re.compile(r"gemini-(\d{1,3})(?:\.(\d{1,3}))?")


def version(model_id: str) -> tuple[int, int] | None:
    """The version of a Gemini model; None for another one, and for names like `gemini-flash-latest`."""
    found = _VERSION.search(model_id)
    return (int(found[1]), int(found[2] or 0)) if found is not None else None


def newest(model_id: str) -> bool:
    """Whether it is Gemini 3 or later: it thinks in levels, demands signatures, and takes images in responses of functions."""
    return "gemini" in model_id and (version(model_id) or (3, 0)) >= (3, 0)


class _Called(msgspec.Struct, gc=False):
    """A call that may be answered: its function, and Google's own id for it, if there was one."""

    name: str
    id: str


def contents(messages: Iterable[msgspec.Raw], model: Model) -> list[dict[str, object]]:
    """The conversation for the model: what one side says in a row is one content, but responses of functions stand alone, right after their calls."""
    made: list[dict[str, object]] = []
    parts: list[object] = []
    last = ""
    called: dict[str, _Called] = {}
    images: list[object] = []
    sees, strict = "image" in model.input, newest(model.id)

    def add(kind: str, new: Iterable[object]) -> None:
        nonlocal last, parts
        if kind != last:
            parts, last = [], kind
            made.append({"role": "model" if kind == "model" else "user", "parts": parts})
        parts.extend(new)

    for message in conversation(messages):
        if message.role == "tool":
            answered = called.get(message.tool_call_id or "")
            if answered is not None:
                add("responses", [_response(message, answered, sees, strict, images)])
            continue
        if images:
            add("user", images)
            images = []
        if message.role == "assistant":
            if said := _model_parts(message, model.ref, called, strict):
                add("model", said)
        elif said := _user_parts(message, sees):
            add("user", said)
    if images:
        add("user", images)
    if not made or made[0]["role"] == "model":
        made.insert(0, {"role": "user", "parts": [{"text": OPENING}]})
    return made


def _user_parts(message: Message, sees: bool) -> list[object]:
    if not isinstance(message.content, tuple):
        text = text_of(message)
        return [{"text": text}] if text else []
    parts: list[object] = []
    for part in message.content:
        if isinstance(part, ImagePart):
            parts.append((_image(part) if sees else None) or {"text": "[An image was left out, because the model cannot take it.]"})
        elif part.text:
            parts.append({"text": part.text})
    return parts


def _image(part: ImagePart) -> dict[str, object] | None:
    found = image_of(part)
    return {"inlineData": {"mimeType": found[0], "data": found[1]}} if found is not None else None


def _response(message: Message, answered: _Called, sees: bool, strict: bool, after: list[object]) -> dict[str, object]:
    """The result of a call. Its images go into it, with older models into `after`."""
    text = text_of(message)
    images: list[object] = []
    if isinstance(message.content, tuple):
        pictures = [part for part in message.content if isinstance(part, ImagePart)]
        images = [image for part in pictures if sees and (image := _image(part)) is not None]
        where = ["in the message after the function responses"] if images and not strict else []
        where += [f"{len(pictures) - len(images)} left out, because the model cannot take it"] if len(images) < len(pictures) else []
        if where:
            text = "\n".join(filter(None, (text, f"[{len(pictures)} image(s): {'; '.join(where)}]")))
    response: dict[str, object] = {"name": answered.name, "response": {"output": text}}
    if answered.id:
        response["id"] = answered.id
    if images and strict:
        response["parts"] = images
    elif images:
        after += [{"text": f"Images of the response of the function {answered.name}:"}, *images]
    return {"functionResponse": response}


def _model_parts(message: Message, ref: str, called: dict[str, _Called], strict: bool) -> list[object]:
    """A model turn: part by part as Google wrote it, where this model did, else its text and its calls. `called` learns of the calls."""
    text, calls = text_of(message), iter(message.tool_calls or ())
    kept = _kept(message, ref)
    if any((part.text or 0) < 0 for part in kept) or sum(part.text or 0 for part in kept) != len(text):
        kept = [part for part in kept if part.text is None]  # the text is not the one that was kept
        kept.insert(0, Kept(text=len(text)))
    parts: list[object] = []
    signed, first, at = False, None, 0
    for part in kept:
        made: dict[str, object]
        if part.call is not None:
            call = next(calls, None)
            if call is None:
                continue
            made = _call(call, part.call, called)
            first = first or made
        elif part.thought is not None:
            made = {"text": part.thought, "thought": True}
        elif part.text or part.signature:
            made = {"text": text[at : at + (part.text or 0)]}
            at += part.text or 0
        else:
            continue
        if part.signature:
            made["thoughtSignature"], signed = part.signature, True
        parts.append(made)
    for call in calls:
        made = _call(call, "", called)
        first = first or made
        parts.append(made)
    if strict and first is not None and not signed:
        first["thoughtSignature"] = UNSIGNED
    return parts


def _kept(message: Message, ref: str) -> list[Kept]:
    state = state_of(message, ref)
    try:
        return msgspec.convert(state, State).parts if state is not None else []
    except msgspec.ValidationError:
        return []


def _call(call: ToolCall, own_id: str, called: dict[str, _Called]) -> dict[str, object]:
    name = call.function.name
    called[call.id] = _Called(name, own_id)
    made: dict[str, object] = {"name": name, "args": arguments_of(call)}
    if own_id:
        made["id"] = own_id
    return {"functionCall": made}
