"""One model turn while it streams: what of it is handed on at once, and what stays until its end. Pure; imports events, messages and callers.

Text is handed on as it comes, and so are the calls of the caller's own tools, for him to see them being written. Calls of the gateway's tools stay.
"""

from __future__ import annotations

from mayros.core.callers import Callers
from mayros.events import CallerCallDelta, Event, ProviderState, TextDelta, ToolCallDelta, TurnFinished, one_array
from mayros.messages import Function, ToolCall

#: Calls of one model turn, and characters of the arguments of all of them together.
MOST_CALLS, MOST_CHARS = 128, 4 << 20
#: Between the texts of two model turns of one run.
APART = "\n\n"


class _Part:
    """A call that is being written. `out`: its place among the calls that are handed back; `known`: whose it is has been found out."""

    __slots__ = ("arguments", "dropped", "id", "known", "name", "out")

    def __init__(self) -> None:
        self.id: str | None = None
        self.name: str | None = None
        self.arguments: list[str] = []
        self.out: int | None = None
        self.known = self.dropped = False


class Reply:
    """One model turn while it streams.

    `apart`: its text begins a new paragraph. `held`: text stays until it is clear that it is the answer; with calls of the gateway's it is none.
    """

    def __init__(self, apart: bool = False, callers: Callers | None = None, held: bool = False) -> None:
        self._apart, self._callers, self._held = apart, callers, held
        self._parts: dict[int, _Part] = {}
        self._texts: list[str] = []
        self._logprobs: list[bytes] = []
        self._chars = 0
        #: How many calls are handed back to the caller.
        self.handed = 0
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
                self._take_part(event, kept)
            elif type(event) is ProviderState:
                self.state = event.state
            elif type(event) is TurnFinished:
                self._finish(event, kept)
            else:
                if type(event) is TextDelta and event.text:
                    first = not self._texts
                    self._texts.append(event.text)
                    if self._held:
                        if event.logprobs is not None:
                            self._logprobs.append(event.logprobs)
                        continue
                    if self._apart and first:
                        kept.append(TextDelta(APART))
                kept.append(event)
        return kept

    def _finish(self, event: TurnFinished, kept: list[Event]) -> None:
        self.finished = event
        if self._held and self._texts and (self.handed or not self._parts):
            kept.append(TextDelta(self.text, one_array(self._logprobs) if self._logprobs else None))
        # Clients read the arguments as JSON, which no text is.
        kept += [CallerCallDelta(part.out, "{}") for part in self._parts.values() if part.out is not None and not any(part.arguments)]
        if not self._parts:
            self.told = True
            kept.append(event)

    def _take_part(self, event: ToolCallDelta, kept: list[Event]) -> None:
        part = self._parts.get(event.index)
        if part is None:
            if len(self._parts) >= MOST_CALLS:
                self.dropped += event.id is not None
                return
            part = self._parts[event.index] = _Part()
        part.id = part.id or event.id
        part.name = part.name or event.name
        self._chars += len(event.arguments)
        fits = self._chars <= MOST_CHARS
        if fits:
            part.arguments.append(event.arguments)
        if self._callers is None or part.name is None:
            return
        if part.known:
            if part.out is not None and fits and event.arguments:
                kept.append(CallerCallDelta(part.out, event.arguments))
            return
        part.known = True
        if part.name in self._callers.names:
            part.dropped = self._callers.one and self.handed > 0
            if not part.dropped:
                part.out, self.handed = self.handed, self.handed + 1
                part.id = self._callers.ids.handed_back(part.id or "")
                kept.append(CallerCallDelta(part.out, "".join(part.arguments), part.id, part.name))

    def calls(self) -> list[ToolCall]:
        """The calls in their order, as the model wrote them. None where it was stopped for its content."""
        if self.finished is not None and self.finished.reason == "content_filter":
            return []
        parts = [part for _, part in sorted(self._parts.items()) if (part.name or part.id or part.arguments) and not part.dropped]
        return [ToolCall(part.id or "", Function(part.name or "", "".join(part.arguments))) for part in parts]

    @property
    def calling(self) -> bool:
        """Whether there is a part of a call."""
        return bool(self._parts)

    @property
    def cut_off(self) -> bool:
        """Whether the model ran into its limit, or wrote too much, so that what it wrote last may not be whole."""
        return (self.finished is not None and self.finished.reason == "length") or self._chars > MOST_CHARS
