"""Reasoning that a model writes into its text between `<think>` and `</think>`, at the very beginning. Pure; imports events."""

from __future__ import annotations

from mayros.events import Event, ReasoningDelta, TextDelta

_BEGIN, _END = "<think>", "</think>"


class Think:
    """Tells the reasoning from the text, however the pieces are cut. `open`: nothing more can change; text is text from here on."""

    def __init__(self) -> None:
        self.open = False
        self._inside = self._after = False
        self._held = ""

    @property
    def found(self) -> bool:
        """Whether there is reasoning, even if it is empty."""
        return self._inside or self._after

    def feed(self, text: str) -> list[Event]:
        """The events of one more piece."""
        text, self._held = self._held + text, ""
        events: list[Event] = []
        if not self._inside and not self._after:
            begun = text.lstrip()
            if _BEGIN.startswith(begun):
                self._held = text
                return events
            if not begun.startswith(_BEGIN):
                self.open = True
                return [TextDelta(text)]
            self._inside, text = True, begun[len(_BEGIN) :].lstrip("\n")
        if self._inside:
            thought, end, text = text.partition(_END)
            if not end:
                held = next((length for length in range(min(len(thought), len(_END) - 1), 0, -1) if _END.startswith(thought[-length:])), 0)
                if held:
                    thought, self._held = thought[:-held], thought[-held:]
            if thought:
                events.append(ReasoningDelta(thought))
            if not end:
                return events
            self._inside, self._after = False, True
        text = text.lstrip()  # the blank lines between reasoning and text
        if text:
            self.open = True
            events.append(TextDelta(text))
        return events

    def last(self) -> list[Event]:
        """What was held back, at the end of the answer."""
        held, self._held = self._held, ""
        if not held:
            return []
        return [ReasoningDelta(held)] if self._inside else [TextDelta(held)]
