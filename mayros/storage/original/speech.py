"""Entries of the original's transcripts as canonical messages. Pure; imports messages and lines.

What the original puts before a user's text for its model (who sent it, when) is taken away, as its own `chat.history` does. Of images their kind and
size are kept (docs/decisions/0007). Thinking is kept where a vendor wants it back: of Anthropic's models, beside calls of tools; the form is that of
providers/anthropic_state.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import datetime

import msgspec

from mayros.messages import Function, ImagePart, ImageUrl, Message, ProviderState, TextPart, ToolCall
from mayros.storage.original.lines import UNREADABLE, Unfit

#: Longest name of a provider or a model, of a tool, and the largest state that providers take back.
MOST_NAME, MOST_TOOL, MOST_STATE = 200, 128, 1 << 20
#: Calls of one conversation, and characters of the id that one has there.
MOST_CALLS, MOST_CALL_ID = 50_000, 512
#: Bytes of a time.
_MOST_MOMENT = 64
FAILED = ("error", "aborted")
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_MEDIA = re.compile(r"[a-z]{1,20}/[A-Za-z0-9.+-]{1,60}")
#: What stands before a user's text: blocks about the sender, and the time.
_ABOUT = re.compile(r"\s*(?:Conversation info|Sender) \(untrusted metadata\):\n```json\n.*?\n```[ \t]*(?:\n+|\Z)", re.DOTALL)
_STAMP = re.compile(r"\[(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) \d{4}-\d\d-\d\d \d\d:\d\d[^\]\n]{0,40}\] ?")
_encode = msgspec.json.Encoder().encode
#: What is taken as it stands is bounded by the length of its line; made into Python's values it would be many times as large.
_NULL = msgspec.Raw(b"null")


class Part(msgspec.Struct, gc=False, rename="camel"):
    """One part of a message: text, thinking, a call, or an image."""

    type: str
    text: str = ""
    thinking: str = ""
    thinking_signature: str | None = None
    redacted: bool = False
    id: str = ""
    name: str = ""
    arguments: msgspec.Raw = msgspec.Raw(b"{}")
    data: msgspec.Raw = msgspec.Raw(b'""')
    mime_type: str = ""


class Said(msgspec.Struct, rename="camel"):
    """The message of an entry; which fields count depends on the role."""

    role: str
    content: str | list[Part] | None = None
    timestamp: msgspec.Raw = _NULL
    api: str | None = None
    provider: str | None = None
    model: str | None = None
    usage: msgspec.Raw = _NULL
    stop_reason: str | None = None
    tool_call_id: str = ""
    command: str = ""
    output: str = ""
    exclude_from_context: bool = False
    #: What the gateway adds to the text of a run that was stopped, under the name of the program.
    mayros_abort: msgspec.Raw = _NULL
    openclaw_abort: msgspec.Raw = _NULL

    @property
    def ended(self) -> str | None:
        """Why the model stopped, in the original's words."""
        stopped = any(bytes(one[:4]) != b"null" for one in (memoryview(self.mayros_abort), memoryview(self.openclaw_abort)))
        return "aborted" if stopped else self.stop_reason


class Line(msgspec.Struct, rename="camel"):
    """An entry: `message` of a message, `summary` of a compaction or a branch, `content` of a custom message."""

    type: str
    timestamp: msgspec.Raw = _NULL
    message: Said | None = None
    summary: str = ""
    content: str | list[Part] | None = None


decode = msgspec.json.Decoder(Line).decode


class CallIds:
    """The ids of one session's calls: each is used once here, whatever servers have given. `open` are those that have no result, in order."""

    def __init__(self) -> None:
        self._used: set[str] = set()
        #: How often an id was wanted again.
        self._again: dict[str, int] = {}
        #: The original's id -> ours.
        self.open: dict[str, str] = {}

    def made(self, asked: str) -> str:
        """The id of a new call. Raises Unfit where there are too many."""
        if len(self._used) == MOST_CALLS:
            raise Unfit(f"it has more than {MOST_CALLS:,} calls of tools")
        # An id of OpenAI's Responses is two: the call's and the item's.
        wanted = asked.partition("|")[0]
        found = wanted = wanted if _ID.fullmatch(wanted) else f"call_{len(self._used)}"
        while found in self._used:
            again = self._again[wanted] = self._again.get(wanted, 1) + 1
            found = f"{wanted[:110]}_{again}"
        self._used.add(found)
        self.open[asked] = found
        return found

    def answered(self, asked: str) -> str | None:
        """The id of the call that a result is of; None: it is of none, or of one that has a result."""
        return self.open.pop(asked, None)


def moment(value: object) -> int | None:
    """Milliseconds since 1970 of a number or of an ISO text, or of their JSON."""
    if isinstance(value, msgspec.Raw):
        try:
            value = msgspec.json.decode(value) if memoryview(value).nbytes <= _MOST_MOMENT else None
        except UNREADABLE:
            return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value).timestamp() * 1000
        except (ValueError, OverflowError, OSError):
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if 0 < value < 1 << 53 else None


def name(text: str | None) -> str | None:
    """The name of a provider or a model, if it can be one."""
    return text if text and len(text) <= MOST_NAME and text.isprintable() else None


def stripped(text: str) -> str:
    """What the user said, without what was put before it."""
    at = 0
    while (found := _ABOUT.match(text, at)) is not None:
        at = found.end()
    if (stamp := _STAMP.match(text, at)) is not None:
        at = stamp.end()
    return text[at:]


def user(content: str | list[Part] | None) -> Message | None:
    """What a user said and showed; None: nothing."""
    text, images = _seen(content)
    text = stripped(text)
    if images:
        return Message("user", (*([TextPart(text)] if text else ()), *images))
    return Message("user", text) if text.strip() else None


def result(said: Said, ids: CallIds) -> Message | None:
    """The result of a call; None where there is no such call."""
    call = ids.answered(said.tool_call_id)
    if call is None:
        return None
    text, images = _seen(said.content)
    return Message("tool", (TextPart(text), *images) if images else text, tool_call_id=call)


def _seen(content: str | list[Part] | None) -> tuple[str, list[ImagePart]]:
    """The text of a message, and its images as they are remembered."""
    if not isinstance(content, list):
        return content or "", []
    return "\n".join(part.text for part in content if part.type == "text"), [_image(part) for part in content if part.type == "image"]


def _image(part: Part) -> ImagePart:
    data = memoryview(part.data)
    tail = bytes(data[-3:-1])
    size = max(0, len(data) - 2) // 4 * 3 - tail.count(b"=")
    kind = part.mime_type if _MEDIA.fullmatch(part.mime_type) else "image/unknown"
    return ImagePart(ImageUrl(f"omitted:{kind};bytes={max(0, size)}"))


def shell(said: Said) -> Message | None:
    """A command that the user ran by himself, and what it put out."""
    if said.exclude_from_context or not said.command:
        return None
    return Message("user", f"I ran `{said.command}`:\n\n{said.output or '(no output)'}")


def summary(text: str, branch: bool = False) -> Message | None:
    """What stands for messages that are left out: those before it, or those of a branch that was left."""
    if not text.strip():
        return None
    what = "Another branch of this conversation, which was left, in short" if branch else "What was said before, in short"
    return Message("user", f"[{what}:]\n\n<summary>\n{text}\n</summary>")


def assistant(said: Said, ids: CallIds) -> Message | None:
    """What a model said and called; None: nothing. Calls of a turn that was cut off may be cut off too, and are left out."""
    if not isinstance(said.content, list):
        return Message("assistant", said.content) if said.content else None
    parts = [part for part in said.content if part.type != "toolCall" or (said.ended not in FAILED and _callable(part))]
    text = "\n\n".join(part.text for part in parts if part.type == "text" and part.text)
    calls = tuple([_call(part, ids) for part in parts if part.type == "toolCall"])
    if not calls:
        return Message("assistant", text) if text else None
    return Message("assistant", text or None, tool_calls=calls, provider_state=_state(said, parts))


def _callable(part: Part) -> bool:
    return 0 < len(part.id) <= MOST_CALL_ID and bool(part.name) and len(part.name) <= MOST_TOOL and part.name.isprintable()


def _call(part: Part, ids: CallIds) -> ToolCall:
    given = bytes(part.arguments)
    if not given.startswith(b"{"):
        # What a model wrote and what was no object: as it was written, or nothing.
        try:
            given = msgspec.json.decode(given, type=str).encode()
        except UNREADABLE:
            given = b"{}"
    return ToolCall(ids.made(part.id), Function(part.name, given.decode()))


def _state(said: Said, parts: list[Part]) -> ProviderState | None:
    provider, model = name(said.provider), name(said.model)
    if said.api != "anthropic-messages" or provider is None or model is None or not any(map(_signed, parts)):
        return None
    state = _encode({"layout": list(_layout(parts))})
    return ProviderState(f"{provider}/{model}", msgspec.Raw(state)) if len(state) <= MOST_STATE else None


def _signed(part: Part) -> bool:
    return part.type == "thinking" and bool(part.thinking_signature)


def _layout(parts: list[Part]) -> Iterator[dict[str, str] | int | None]:
    """Thinking, how many characters of text, and calls, in their order."""
    texts = sum(part.type == "text" and bool(part.text) for part in parts)
    for part in parts:
        if part.type == "toolCall":
            yield None
        elif part.type == "text" and part.text:
            texts -= 1
            yield len(part.text) + (len("\n\n") if texts else 0)
        elif _signed(part):
            signature = part.thinking_signature or ""
            if part.redacted:
                yield {"type": "redacted_thinking", "data": signature}
            else:
                yield {"type": "thinking", "thinking": part.thinking, "signature": signature}
