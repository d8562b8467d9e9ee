"""The rounds of tool calls of one run: how many there are, whether they get anywhere, when the model has the last word. Imports acting and calls."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing

import msgspec
from twisted.logger import Logger

from mayros.core.acting import Batch, Host, Surroundings
from mayros.core.callers import CallIds
from mayros.core.calls import Call, judge, read_calls
from mayros.core.ports import Turn
from mayros.core.repeats import Repeats
from mayros.core.reply import Reply
from mayros.core.tool_ports import ResultStore, Tool
from mayros.errors import GatewayError, LoopDetected, TooManyRounds
from mayros.events import Event
from mayros.messages import Function, ProviderState, ToolCall
from mayros.net.redact import Redactor

log = Logger()

MOST_ROUNDS = 50
_USED_UP = f"Not made: this run has used up its {MOST_ROUNDS} rounds of tool calls. Say now what you have found and what is left to do."
_TOLD = "Not made: you were told to stop calling tools. The run is ended."


class Rounds:
    """Made with the first model turn that calls. `ids`: of the conversation; `callers`: names of the tools that are the caller's."""

    def __init__(self, turn: Turn, host: Host, redact: Redactor, results: ResultStore | None, ids: CallIds, callers: Collection[str] = ()) -> None:
        self._turn, self._host, self._redact, self._results, self._ids, self._callers = turn, host, redact, results, ids, callers
        self._repeats = Repeats() if turn.agent.loop_detection.enabled else None
        self._count = 0
        #: How the run ends if the model calls again.
        self._last_word: GatewayError | None = None
        self._said, self._calls = "", list[Call]()
        self._kept: ProviderState | None = None
        #: Whether the run has said anything.
        self.spoken = False
        #: What the last round adds to the prompt.
        self.new: Sequence[msgspec.Raw] = ()

    def read(self, reply: Reply, offered: Mapping[str, Tool], why_not: Callable[[str], str | None], model: str) -> bool:
        """Take a model turn of `model` (`provider/model`). Whether it has calls to be made."""
        self._said = reply.text
        self._kept = ProviderState(model, msgspec.Raw(reply.state)) if reply.state is not None else None
        self.spoken = self.spoken or bool(self._said)
        self._calls = read_calls(reply, offered, why_not, self._ids, self._callers) if reply.calling else []
        return bool(self._calls)

    @property
    def handed_back(self) -> tuple[ToolCall, ...]:
        """The calls of the last model turn that are the caller's to make."""
        return tuple([ToolCall(call.id, Function(call.name, call.handed)) for call in self._calls if call.handed is not None])

    async def make(self, window: int, images: bool) -> AsyncGenerator[list[Event], None]:
        """Make the calls; then `new` has them and their results. Raises LoopDetected or TooManyRounds when the model does not stop."""
        end, self._count = self._last_word, self._count + 1
        if end is not None:
            self._refuse(_TOLD)
        elif self._count > MOST_ROUNDS:
            self._last_word = TooManyRounds()
            self._refuse(_USED_UP)
        elif self._repeats is not None and judge(self._calls, self._repeats, self._warn):
            self._last_word = LoopDetected()
        around = Surroundings(self._turn, self._host, self._redact, self._results, self._repeats, window, images)
        batch = Batch(around, self._said, self._calls, self._kept)
        async with aclosing(batch.events()) as events:
            async for event in events:
                yield event
        self.new = batch.messages
        if end is not None and not self.handed_back:
            raise end

    def _refuse(self, why: str) -> None:
        for call in self._calls:
            call.error = why if call.handed is None else None

    def _warn(self, text: str) -> None:
        log.warn("run {run_id}: {text}", run_id=self._turn.run_id, text=text)
