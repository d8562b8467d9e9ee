"""From what a model streams to calls that can be made: assembled, named, checked. Pure; imports of core ports, schema_check and repeats.

Whatever is wrong with a call becomes its `error`, which is its result: it tells the model what to do, and the run goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from mayros.core.repeats import Repeats, key_of
from mayros.core.schema_check import problems
from mayros.core.tool_ports import Tool
from mayros.events import Event, ProviderState, TextDelta, ToolCallDelta, TurnFinished
from mayros.messages import Function, Message, ToolCall, pack, unpack
from mayros.messages import ProviderState as KeptState

#: Calls of one model turn, and characters of the arguments of all of them together.
MOST_CALLS, MOST_CHARS = 128, 4 << 20
#: Between the texts of two model turns of one run.
APART = "\n\n"
#: Names that models were trained on, for ours.
_ALIASES = {"bash": "exec", "apply-patch": "apply_patch"}
_ARGUMENT_ALIASES = {"file_path": "path", "old_string": "oldText", "new_string": "newText"}
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_SHOWN = 200

_decode = msgspec.json.Decoder().decode


class _Part:
    """A call that is being written."""

    __slots__ = ("arguments", "id", "name")

    def __init__(self) -> None:
        self.id: str | None = None
        self.name: str | None = None
        self.arguments: list[str] = []


class Reply:
    """One model turn while it streams. Tool calls, and its end where there are some, stay here; the rest is handed on.

    `apart`: its text begins a new paragraph.
    """

    def __init__(self, apart: bool = False) -> None:
        self._apart = apart
        self._parts: dict[int, _Part] = {}
        self._texts: list[str] = []
        self._chars = 0
        #: The event of the model turn's end, for whoever knows whether it is the last one.
        self.finished: TurnFinished | None = None
        #: Whether it was handed on at once: there are no calls, so it is the last one.
        self.told = False
        #: What the vendor wants back with this model turn.
        self.state: bytes | None = None
        #: Calls that were too many, and are not looked at.
        self.dropped = 0

    @property
    def text(self) -> str:
        """The text of this model turn."""
        return "".join(self._texts)

    def take(self, events: list[Event]) -> list[Event]:
        """Remember a batch; what of it goes on to the run."""
        kept: list[Event] = []
        for event in events:
            if type(event) is ToolCallDelta:
                self._take_part(event)
            elif type(event) is ProviderState:
                self.state = event.state
            elif type(event) is TurnFinished:
                self.finished = event
                if not self._parts:
                    self.told = True
                    kept.append(event)
            else:
                if type(event) is TextDelta and event.text:
                    if self._apart and not self._texts:
                        kept.append(TextDelta(APART))
                    self._texts.append(event.text)
                kept.append(event)
        return kept

    def _take_part(self, event: ToolCallDelta) -> None:
        part = self._parts.get(event.index)
        if part is None:
            if len(self._parts) >= MOST_CALLS:
                self.dropped += event.id is not None
                return
            part = self._parts[event.index] = _Part()
        part.id = part.id or event.id
        part.name = part.name or event.name
        self._chars += len(event.arguments)
        if self._chars <= MOST_CHARS:
            part.arguments.append(event.arguments)

    def calls(self) -> list[ToolCall]:
        """The calls in their order, as the model wrote them. None where it was stopped for its content."""
        if self.finished is not None and self.finished.reason == "content_filter":
            return []
        parts = [part for _, part in sorted(self._parts.items()) if part.name or part.id or part.arguments]
        return [ToolCall(part.id or "", Function(part.name or "", "".join(part.arguments))) for part in parts]

    @property
    def calling(self) -> bool:
        """Whether there is a part of a call."""
        return bool(self._parts)

    @property
    def cut_off(self) -> bool:
        """Whether the model ran into its limit, or wrote too much, so that what it wrote last may not be whole."""
        return (self.finished is not None and self.finished.reason == "length") or self._chars > MOST_CHARS


class Call(msgspec.Struct):
    """One call to be made, or with the `error` that is its result. `arguments` fit the tool's schema then; `written` is their JSON."""

    id: str
    name: str
    written: str
    arguments: dict[str, Any]
    tool: Tool | None = None
    error: str | None = None
    key: str = ""
    #: Appended to its result.
    warning: str | None = None
    #: What came of it: the message for the prompt, and whether it was begun.
    result: msgspec.Raw | None = None
    begun: bool = False


def spoken(text: str, calls: Sequence[Call], written: Callable[[str], str] = lambda text: text, kept: KeptState | None = None) -> msgspec.Raw:
    """The canonical message of a model turn with calls; `written` is applied to the arguments' JSON, `kept` is what the vendor wants back."""
    made = tuple([ToolCall(call.id, Function(call.name, written(call.written))) for call in calls])
    return pack(Message("assistant", text or None, tool_calls=made, provider_state=kept))


def used_ids(messages: Iterable[msgspec.Raw]) -> set[str]:
    """The ids of all calls of a conversation."""
    found: set[str] = set()
    for raw in messages:
        if b'"tool_calls"' in bytes(raw):
            found.update(call.id for call in unpack(raw).tool_calls or ())
    return found


def read_calls(reply: Reply, offered: Mapping[str, Tool], why_not: Callable[[str], str | None], ids: set[str]) -> list[Call]:
    """The calls of a model turn, each with its tool and arguments or its error. `ids` are taken already, and grow."""
    calls = []
    for number, made in enumerate(reply.calls(), 1):
        name = made.function.name
        tool = offered.get(name)
        if tool is None and (own := _ALIASES.get(name, "")) in offered:
            name, tool = own, offered[own]
        call = Call(_unique(made.id, number, ids), _NOT_IN_NAMES.sub("_", name)[:64] or "unknown", "{}", {}, tool)
        read = _arguments(made.function.arguments, reply.cut_off)
        if isinstance(read, str):
            call.error = read
            call.key = key_of(call.name, made.function.arguments)
        else:
            call.arguments, call.written = read, made.function.arguments.strip() or "{}"
            call.key = key_of(call.name, read)
        if tool is None:
            call.error = _no_tool(name, why_not(name), offered)
        elif call.error is None:
            _fit(call, tool)
        calls.append(call)
    if reply.dropped and calls:
        calls[-1].warning = f"[You made more than {MOST_CALLS} calls at once: the rest was not looked at. Make fewer.]"
    return calls


def _unique(asked: str, number: int, ids: set[str]) -> str:
    wanted = asked if _ID.fullmatch(asked) else f"call_{number}"
    found, again = wanted, 1
    while found in ids:
        again += 1
        found = f"{wanted[:120]}_{again}"
    ids.add(found)
    return found


def _arguments(text: str, cut_off: bool) -> dict[str, Any] | str:
    """The arguments, or what is wrong with them."""
    if cut_off and not text.strip().endswith("}"):
        return "Your answer reached its limit inside this call, so it was not made. Make the call again with less text in it, or in several steps."
    if not text.strip():
        return {}
    try:
        read = _decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        return f"The arguments are not valid JSON ({str(error)[:_SHOWN]}), so the call was not made. Make it again with one JSON object."
    if not isinstance(read, dict):
        return "The arguments must be one JSON object, so the call was not made. Make it again."
    return read


def _no_tool(name: str, why: str | None, offered: Mapping[str, Tool]) -> str:
    shown = name[:_SHOWN]
    if why is not None:
        return f"The tool {shown!r} may not be used here: {why}. Do without it, or tell the user what you would need it for."
    return f"There is no tool {shown!r}. The tools are: {', '.join(offered) or 'none'}. Names must match exactly."


def _fit(call: Call, tool: Tool) -> None:
    schema = tool.spec.parameters
    properties = schema.get("properties") or {}
    for alias, own in _ARGUMENT_ALIASES.items():
        if alias in call.arguments and own in properties and alias not in properties and own not in call.arguments:
            call.arguments[own] = call.arguments.pop(alias)
    wrong = problems(call.arguments, schema)
    if wrong:
        call.error = f"The arguments of {call.name} do not fit: {'; '.join(wrong)}. The call was not made: correct it and make it again."


def judge(calls: Sequence[Call], repeats: Repeats, say: Callable[[str], None]) -> bool:
    """Mark calls that repeat what made no progress. True: the whole batch is skipped, and every call has its error. `say` is for the log."""
    blocked = False
    for call in calls:
        finding = repeats.judge(call.name, call.arguments, call.key)
        if finding is None:
            continue
        if finding.first:
            say(finding.text)
        if finding.level == "block":
            blocked, call.error = True, finding.text
        else:
            call.warning = f"{call.warning}\n{finding.text}" if call.warning else finding.text
    if blocked:
        for call in calls:
            call.error = call.error or "Not made: another call of the same turn was blocked as a loop. Stop calling tools and say what you found."
    return blocked
