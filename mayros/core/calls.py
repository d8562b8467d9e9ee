"""From a model turn to calls that can be made: named, checked, each with its tool. Pure; imports of core reply, schema_check and repeats.

Whatever is wrong with a call becomes its `error`, which is its result: it tells the model what to do, and the run goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from mayros.core.callers import CallIds
from mayros.core.repeats import Repeats, key_of
from mayros.core.reply import MOST_CALLS, Reply
from mayros.core.schema_check import problems
from mayros.core.tool_ports import Tool
from mayros.messages import Function, Message, ProviderState, ToolCall, pack

#: Names that models were trained on, for ours.
_ALIASES = {"bash": "exec", "apply-patch": "apply_patch"}
_ARGUMENT_ALIASES = {"file_path": "path", "old_string": "oldText", "new_string": "newText"}
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_SHOWN = 200

_decode = msgspec.json.Decoder().decode


class Call(msgspec.Struct):
    """One call to be made, or with the `error` that is its result. `arguments` fit the tool's schema then; `written` is their JSON.

    `handed`: the arguments of a call that is the caller's to make, as the model wrote them; None for the gateway's calls.
    """

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
    handed: str | None = None


def spoken(text: str, calls: Sequence[Call], written: Callable[[str], str] = lambda text: text, kept: ProviderState | None = None) -> msgspec.Raw:
    """The canonical message of a model turn with calls; `written` is applied to the arguments' JSON, `kept` is what the vendor wants back."""
    made = tuple([ToolCall(call.id, Function(call.name, written(call.written))) for call in calls])
    return pack(Message("assistant", text or None, tool_calls=made, provider_state=kept))


def read_calls(
    reply: Reply, offered: Mapping[str, Tool], why_not: Callable[[str], str | None], ids: CallIds, callers: Collection[str] = ()
) -> list[Call]:
    """The calls of a model turn, each with its tool and arguments or its error. `callers`: names of tools that are the caller's."""
    calls = []
    for number, made in enumerate(reply.calls(), 1):
        name = made.function.name
        if name in callers:
            if (call := _handed(made, reply.cut_off)) is not None:
                calls.append(call)
            continue
        tool = offered.get(name)
        if tool is None and (own := _ALIASES.get(name, "")) in offered:
            name, tool = own, offered[own]
        call = Call(ids.own(made.id, number), _NOT_IN_NAMES.sub("_", name)[:64] or "unknown", "{}", {}, tool)
        read = _arguments(made.function.arguments, reply.cut_off)
        if isinstance(read, str):
            call.error = read
            call.key = key_of(call.name, made.function.arguments)
        else:
            call.arguments, call.written = read, made.function.arguments.strip() or "{}"
            call.key = key_of(call.name, read)
        if tool is None:
            call.error = _no_tool(name, why_not(name), [*offered, *callers])
        elif call.error is None:
            _fit(call, tool)
        calls.append(call)
    if reply.dropped and calls:
        calls[-1].warning = f"[You made more than {MOST_CALLS} calls at once: the rest was not looked at. Make fewer.]"
    return calls


def _handed(made: ToolCall, cut_off: bool) -> Call | None:
    """A call of the caller's. Where the model was cut off in the middle of it, it is none; else what is wrong with it is for the caller to say."""
    text = made.function.arguments if made.function.arguments.strip() else "{}"
    whole = isinstance(_arguments(text, cut_off), dict)
    if cut_off and not whole:
        return None
    return Call(made.id, made.function.name, text if whole else "{}", {}, handed=text)


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


def _no_tool(name: str, why: str | None, offered: Sequence[str]) -> str:
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
    calls = [call for call in calls if call.handed is None]
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
