"""`chat.history` and `sessions.preview`: what was said in a session, in the shape of the transcripts that clients know. Imports mayros.core.

A message is `{role, content: [{type: "text", text}, {type: "toolCall", id, name, arguments}], timestamp}`, of the assistant also `api, provider,
model, stopReason`; the answer of a tool has the role `toolResult`. Of an image its kind and size are told. Long texts are cut, and a message that
is still too large gives way to a marker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import msgspec
from twisted.logger import Logger

from mayros.core.images import about
from mayros.core.routing import Settings
from mayros.core.session_ports import Entry, EntryMeta
from mayros.errors import GatewayError, class_of
from mayros.messages import ImagePart, Message, text_of, unpack
from mayros.wire.frames import Count, Request, Text, parse_params
from mayros.ws.methods.where import own_session

if TYPE_CHECKING:
    from mayros.ws.session import Session

log = Logger()

DEFAULT_LIMIT, MAX_LIMIT = 200, 1000
#: Characters of one text; bytes of one message and of all together.
MAX_TEXT, MAX_MESSAGE, MAX_TOTAL = 12_000, 131_072, 6_291_456
_CUT = "\n...(truncated)..."
_TOO_LARGE = "[chat.history omitted: message too large]"
_DAMAGED = "[chat.history omitted: message cannot be read]"
MAX_KEYS, PREVIEW_ITEMS, PREVIEW_CHARS, LEAST_CHARS = 64, 12, 240, 20
_MAX_ITEMS, _MAX_CHARS = 50, 2_000
_ROLES = {"assistant": "assistant", "user": "user", "tool": "tool", "system": "system"}
_REASONS = {"stop": "stop", "length": "length", "tool_calls": "toolUse", "content_filter": "stop"}
#: What clients take for the kind of API behind messages that no model wrote.
_GATEWAY_API = "openai-responses"
_NO_META = EntryMeta()

_encode = msgspec.json.Encoder().encode


class HistoryParams(msgspec.Struct, frozen=True, rename="camel"):
    """The newest `limit` messages."""

    session_key: Text
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT


class PreviewParams(msgspec.Struct, frozen=True, rename="camel"):
    """Of `keys` the first 64 are looked at; larger limits than there are count as the largest."""

    keys: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    limit: Count = PREVIEW_ITEMS
    max_chars: Annotated[int, msgspec.Meta(ge=LEAST_CHARS)] = PREVIEW_CHARS


def chat_history(session: Session, request: Request) -> None:
    """A session that does not exist has no messages."""
    params = parse_params(HistoryParams, request.params, "chat.history")
    session.spawn(request.id, _history(session, request.id, params))


async def _history(session: Session, request_id: str, params: HistoryParams) -> None:
    gateway = session.gateway
    settings = gateway.config.current
    key = own_session(session, params.session_key, "chat.history")
    found = await gateway.sessions.transcript(str(key), params.limit)
    answer: dict[str, object] = {"sessionKey": params.session_key, "messages": []}
    thinking = settings.config.agents.defaults.thinking_default or "off"
    if found is not None:
        own = found.row.settings
        answer |= {"sessionId": found.row.session_id, "messages": messages(settings, found.entries)}
        if own.verbose_level is not None:
            answer["verboseLevel"] = own.verbose_level
        thinking = own.thinking_level or thinking
    session.reply(request_id, {**answer, "thinkingLevel": thinking})


def messages(settings: Settings, entries: Sequence[Entry]) -> list[msgspec.Raw]:
    """The entries as transcript messages, oldest first; of those that are too many in all the oldest are left out."""
    found: deque[msgspec.Raw] = deque()
    total = 0
    for entry in reversed(entries):
        encoded = _shaped(settings, entry)
        total += len(encoded) + 1
        if total > MAX_TOTAL and found:
            break
        found.appendleft(msgspec.Raw(encoded))
    return list(found)


def _shaped(settings: Settings, entry: Entry) -> bytes:
    try:
        message = unpack(entry.message)
    except msgspec.DecodeError:
        log.error("entry {id} of the store is no message", id=entry.id)
        return _encode(_marker("system", entry, _DAMAGED, "unreadable"))
    encoded = _encode(_message(settings, message, entry))
    return encoded if len(encoded) <= MAX_MESSAGE else _encode(_marker(_role(message), entry, _TOO_LARGE, "oversized"))


def _marker(role: str, entry: Entry, text: str, reason: str) -> dict[str, object]:
    return {
        "role": role,
        "content": [{"type": "text", "text": text}],
        "timestamp": entry.created_ms,
        "__mayros": {"truncated": True, "reason": reason},
    }


def _role(message: Message) -> str:
    return "toolResult" if message.role == "tool" else message.role


def _message(settings: Settings, message: Message, entry: Entry) -> dict[str, object]:
    content: list[dict[str, object]] = []
    if (text := text_of(message)) != "":
        content.append({"type": "text", "text": cut(text)})
    for part in message.content if isinstance(message.content, tuple) else ():
        if isinstance(part, ImagePart):
            kind, size = about(part)
            content.append({"type": "image", "mimeType": kind, "omitted": True, "bytes": size})
    for call in message.tool_calls or ():
        arguments = call.function.arguments
        content.append({"type": "toolCall", "id": call.id, "name": call.function.name, "arguments": cut(arguments)})
    shaped: dict[str, object] = {"role": _role(message), "content": content}
    if message.role == "tool":
        shaped["toolCallId"] = message.tool_call_id
        if message.name is not None:
            shaped["toolName"] = message.name
    elif message.role == "assistant":
        shaped |= _about(settings, entry.meta or _NO_META, entry.run_id)
    shaped["timestamp"] = entry.created_ms
    return shaped


def _about(settings: Settings, meta: EntryMeta, run_id: str) -> dict[str, object]:
    """Where an answer came from and how it ended."""
    provider = settings.catalogue.providers.get(meta.provider or "")
    about: dict[str, object] = {
        "api": _GATEWAY_API if meta.origin is not None else provider.api if provider is not None else "openai-completions",
        "provider": meta.provider or "mayros",
        "model": meta.model or "unknown",
        "stopReason": _REASONS.get(meta.finish_reason or "stop", "stop"),
    }
    if meta.outcome in ("aborted", "timeout"):
        about |= {"stopReason": "aborted", "mayrosAbort": {"aborted": True, "runId": run_id}}
    elif meta.outcome == "error":
        about |= {"stopReason": "error", "errorMessage": class_of(meta.error_code or "internal_error")().message}
    return about


def cut(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + _CUT


def sessions_preview(session: Session, request: Request) -> None:
    """The newest messages of several sessions, for a list of them."""
    params = parse_params(PreviewParams, request.params, "sessions.preview")
    session.spawn(request.id, _preview(session, request.id, params))


async def _preview(session: Session, request_id: str, params: PreviewParams) -> None:
    gateway = session.gateway
    limit, chars = max(1, min(params.limit, _MAX_ITEMS)), min(params.max_chars, _MAX_CHARS)
    keys = [text for text in params.keys if text.strip()][:MAX_KEYS]
    previews = [await _one_preview(session, text, limit, chars) for text in keys]
    session.reply(request_id, {"ts": gateway.now_ms(), "previews": previews})


async def _one_preview(session: Session, text: str, limit: int, chars: int) -> dict[str, object]:
    """What is wrong with one session does not keep the others from being shown."""
    items: list[dict[str, str]] = []
    try:
        key = own_session(session, text, "sessions.preview", "keys")
        found = await session.gateway.sessions.transcript(str(key), limit)
        status = "missing" if found is None else "empty"
        for entry in found.entries if found is not None else ():
            message = unpack(entry.message)
            if words := text_of(message).strip():
                shown = words if len(words) <= chars else words[: chars - 3].rstrip() + "..."
                items.append({"role": _ROLES.get(message.role, "other"), "text": shown})
    except (GatewayError, msgspec.DecodeError) as error:
        log.debug("no preview of a session: {reason}", reason=str(error))
        return {"key": text[:512], "status": "error", "items": []}
    return {"key": text, "status": "ok" if items else status, "items": items}
