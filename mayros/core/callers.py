"""What the caller of a run demands besides an answer: tools of his own, and the form of the answer. Pure; imports core ports and schema_check.

The model sees the caller's tools beside the gateway's. Calls of them are not made here: the run ends with them, and the caller answers them with his
next request (pending.py). Source: openai-compat facts, sections 1.5 and 1.6.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Iterable, Sequence

import msgspec

from mayros.core.models import Model
from mayros.core.ports import CallerTool, ResponseFormat, Turn
from mayros.core.schema_check import problems
from mayros.errors import FormatUnsatisfied, InvalidRequest, ToolChoiceIgnored
from mayros.events import TurnFinished
from mayros.messages import data_of, unpack

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_DIGITS = string.digits + string.ascii_letters
#: Ways in which a model turn ends before its answer is whole: nothing is demanded of it then.
_SHORT = ("length", "content_filter")
_decode = msgspec.json.Decoder().decode


def used_ids(messages: Iterable[msgspec.Raw]) -> set[str]:
    """The ids of all calls of a conversation."""
    found: set[str] = set()
    for raw in messages:
        if b'"tool_calls"' in data_of(raw):
            found.update(call.id for call in unpack(raw).tool_calls or ())
    return found


class CallIds:
    """The ids of a conversation's calls, so that new ones are different. Looked for when the first one is needed."""

    __slots__ = ("_known", "_messages")

    def __init__(self, messages: Sequence[msgspec.Raw]) -> None:
        self._messages = messages
        self._known: set[str] | None = None

    @property
    def _used(self) -> set[str]:
        if self._known is None:
            self._known = used_ids(self._messages)
        return self._known

    def own(self, asked: str, number: int) -> str:
        """The id of a call of the gateway's: the model's where it can be used, else one like it. `number`: of the call in its model turn."""
        wanted = asked if _ID.fullmatch(asked) else f"call_{number}"
        found, again = wanted, 1
        while found in self._used:
            again += 1
            found = f"{wanted[:120]}_{again}"
        self._used.add(found)
        return found

    def handed_back(self, asked: str) -> str:
        """The id of a call that is handed back: the model's where it can be used, else a new one."""
        found = asked if _ID.fullmatch(asked) and asked not in self._used else f"call_{''.join(secrets.choice(_DIGITS) for _ in range(24))}"
        self._used.add(found)
        return found


class Callers:
    """The caller's tools in one run. `choice`: whether one must be called, as in ports.Turn; `one`: at most one call is handed back."""

    def __init__(self, tools: Sequence[CallerTool], choice: str, one: bool, ids: CallIds) -> None:
        self._given, self.choice, self.one, self.ids = tools, choice, one, ids
        name = choice.removeprefix("function:") if choice.startswith("function:") else None
        #: Those that the model may call.
        self.tools = [tool for tool in tools if name is None or tool.name == name]
        self.names = frozenset([tool.name for tool in self.tools])

    @classmethod
    def of(cls, turn: Turn, ids: CallIds) -> Callers | None:
        """Those of a turn; None where it has none, or wants none called."""
        if not turn.caller_tools or turn.tool_choice == "none":
            return None
        return cls(turn.caller_tools, turn.tool_choice, not turn.parallel_calls, ids)

    def check(self, offered: Iterable[str]) -> None:
        """Raise InvalidRequest where a tool has the name of one of the gateway's that the run has."""
        taken = {name.casefold() for name in offered}
        for index, tool in enumerate(self._given):
            if taken and tool.name.casefold() in taken:
                param = f"tools[{index}].function.name"
                raise InvalidRequest(f"{param}: the agent has a tool {tool.name!r} of its own. Give yours another name.", param=param)


def no_tools(model: Model) -> InvalidRequest:
    """The error of tools for a model that takes none."""
    return InvalidRequest(f"The model {model.ref} takes no tools. Send the request without tools, or choose another model.", param="tools")


def check_answer(turn: Turn, demanded: str | None, handed: int, text: str, finished: TurnFinished | None) -> None:
    """Look at the last model turn of a run: its `text`, and how many calls it hands back. `demanded`: the tool choice.

    Raises ToolChoiceIgnored or FormatUnsatisfied. An answer that was cut short is not looked at.
    """
    if handed or (finished is not None and finished.reason in _SHORT):
        return
    if demanded is not None and demanded != "auto":
        what = "a function" if demanded == "required" else f"the function {demanded.removeprefix('function:')!r}"
        raise ToolChoiceIgnored(f"tool_choice demands a call of {what}, but the model made none.")
    if turn.response_format is not None and (wrong := misfit(text, turn.response_format)) is not None:
        raise FormatUnsatisfied(f"The model's answer does not fit response_format: {wrong}.")


def misfit(text: str, wanted: ResponseFormat) -> str | None:
    """What is wrong with an answer; None where it fits."""
    try:
        value = _decode(text.encode())
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        return f"it is not valid JSON ({str(error)[:200]})"
    if wanted.schema is None:
        return None if isinstance(value, dict) else "it is not a JSON object"
    wrong = problems(value, wanted.schema, "the answer")
    return "; ".join(wrong) or None
