"""Reading the stream of OpenAI's Responses API. Bytes in, events out, no I/O.

An answer is a list of items (reasoning, messages, calls), each with a place (`output_index`). An item comes in deltas, then once more as a whole, and
the last event has all items again: deltas are given out as they come, of what comes again only what was missing. Reading is tolerant: what
makes no sense is skipped. Imports events, net.redact and, of providers, calls, characters, decoder, reading, response_events
and response_items.
"""

from __future__ import annotations

import msgspec

from mayros.events import Event, FinishReason, ProviderState, ReasoningDelta, TextDelta, TurnFinished
from mayros.net.redact import Redactor
from mayros.providers.calls import MAX_INDEX, CallPart, Calls, FunctionPart, TooMuch
from mayros.providers.characters import joined, whole_characters
from mayros.providers.decoder import LONGER, NO_TEXT, NOT_OFFERED, AnswerDecoder
from mayros.providers.reading import TEXT_LIMIT
from mayros.providers.response_events import Response, Said, any_json, loose_said, read_response, read_said
from mayros.providers.response_items import Item, Placed, kept, read_item, usage_of

#: Bytes of one event. More than elsewhere: the last one repeats the whole answer, and the instructions and tools of the request.
EVENT_LIMIT = 4 << 20
#: Between two messages of one answer, and between two parts of its reasoning.
APART = "\n\n"

_MAX_NAME = 256
_REASONS: dict[str, FinishReason] = {"max_output_tokens": "length", "max_tokens": "length", "content_filter": "content_filter"}
#: How the code of a failure begins that lies in the request, so that another try is of no use.
_REFUSED = ("invalid_", "image_", "unsupported_image", "empty_image", "failed_to_download", "bio_policy", "misalignment", "data_residency")
_TEXT, _REFUSAL = "response.output_text.delta", "response.refusal.delta"
_THOUGHTS = ("response.reasoning_summary_text.delta", "response.reasoning_text.delta")
_ARGUMENTS, _ALL_ARGUMENTS = "response.function_call_arguments.delta", "response.function_call_arguments.done"
_ADDED, _DONE = "response.output_item.added", "response.output_item.done"
_ENDS = {f"response.{status}": status for status in ("completed", "incomplete", "failed", "cancelled")}


class _Place:
    """What came of one item so far. `size`: characters of its text, which begins at `start` of the turn's; `sent`: the arguments of its call."""

    __slots__ = ("call_id", "half", "index", "item", "kind", "part", "sent", "size", "start")

    def __init__(self, index: int) -> None:
        self.index, self.kind, self.half, self.call_id = index, "", "", ""
        self.part: int | None = None
        self.size = self.start = 0
        self.sent: list[str] = []
        #: The item as a whole, once it was there.
        self.item: Item | None = None


class ResponsesDecoder(AnswerDecoder):
    """The answer of one turn; see AnswerDecoder. `tools`: whether the model was offered any; where not, it may call none."""

    def __init__(self, provider: str, model: str, redact: Redactor, tools: bool = False) -> None:
        super().__init__(provider, model, redact, EVENT_LIMIT)
        self._calls = Calls() if tools else None
        self._places: dict[int, _Place] = {}
        self._by_item: dict[str, int] = {}
        self._current = _Place(-1)  # whose part came last
        self._thought = self._refused = False
        self._said = self._held = 0  # characters of text alone; bytes of the whole items

    def feed(self, data: bytes) -> list[Event]:
        """The events of one read; at the end of the answer also the last ones. Raises nothing."""
        events: list[Event] = []
        for name, block in self._blocks(data):
            loose = False
            try:
                said = read_said(block)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                odd = loose_said(block)
                if odd is None:
                    if name != b"error":
                        continue
                    odd = Said("error")
                said, loose = odd, True
            place = self._current
            if said.type == _TEXT and said.output_index == place.index and place.kind == "message" and not (loose or place.half):  # nearly all
                size = len(said.delta)
                if size:
                    place.size += size
                    self._said += size
                    self._size += size
                    events.append(TextDelta(said.delta))
                continue
            self._take(said.type or name.decode("latin-1"), said, block, events, loose)
            if self.done:
                break
        if self._size > TEXT_LIMIT and not self.done:
            self._fail(LONGER)
        return events

    def whole(self, body: bytes) -> list[Event]:
        """The events of an answer that is one JSON object, from a server that does not stream. Raises errors of mayros.errors."""
        events: list[Event] = []
        self._end(read_response(body), "", events)
        if self._error is None and not self._size and not (self._calls is not None and self._calls.any):
            self._fail(NO_TEXT)
        return self._unless_failed(events)

    def _take(self, kind: str, said: Said, block: bytes, events: list[Event], loose: bool) -> None:
        """Any event but more text of the message that is being written."""
        if kind in (_TEXT, _REFUSAL):
            self._refused = self._refused or kind == _REFUSAL
            self._text(self._place(said.output_index, said.item_id), said.delta, events)
        elif kind in _THOUGHTS:
            self._think(self._place(said.output_index, said.item_id), kind, said.summary_index, said.delta, events, loose)
        elif kind == _ARGUMENTS:
            self._call(self._place(said.output_index, said.item_id), events, loose, arguments=said.delta)
        elif kind == _ALL_ARGUMENTS:
            self._rest(self._place(said.output_index, said.item_id), said.arguments or "", events)
        elif kind in (_ADDED, _DONE):
            item = read_item(said.item)
            if item is not None:
                self._item(self._place(said.output_index, item.id, new=True), item, events, kind == _DONE)
        elif kind in _ENDS:
            self._end(said.response or Response(), _ENDS[kind], events)
        elif kind == "error" or (not kind.startswith("response.") and b'"error"' in block):
            value = any_json(block)
            error = value.get("error") or (value if kind == "error" else None) if isinstance(value, dict) else None
            if error or kind == "error":
                self._refuse(error or block.decode("utf-8", "replace"))

    def _place(self, index: int | None, name: str | None, new: bool = False) -> _Place:
        """The item an event is about: by its place, else by its id, else the last one (`new`: one more)."""
        if index is None or index < 0:
            index = self._by_item.get(name or "", len(self._places) if new else max(self._current.index, 0))
        place = self._places.get(index)
        if place is None:
            place = _Place(index)
            if index > MAX_INDEX:
                self._fail(f"an item of its answer has an index over {MAX_INDEX}")
            else:
                self._places[index] = place
        if name and len(name) <= _MAX_NAME and len(self._by_item) <= MAX_INDEX:
            self._by_item[name] = index
        self._current = place
        return place

    def _begin(self, events: list[Event]) -> bool:
        """Something of the answer is there. False where nothing more is wanted."""
        if not self.done:
            self._answer(events)
        return not self.done

    def _text(self, place: _Place, text: str, events: list[Event]) -> None:
        if not self._begin(events) or not text:
            return
        place.kind = "message"
        # Cut inside a surrogate pair (`\ud83d` in one event, `\ude00` in the next).
        text, place.half = joined(place.half, text)
        if not text:
            return
        if not place.size:
            apart = APART if self._said else ""
            place.start = self._said + len(apart)
            self._said = place.start
            events.append(TextDelta(apart + text))
        else:
            events.append(TextDelta(text))
        place.size += len(text)
        self._said += len(text)
        self._size += len(text)

    def _think(self, place: _Place, kind: str, part: int | None, text: str, events: list[Event], loose: bool) -> None:
        """Reasoning, as it is or as a summary in parts; where a server gives both, what came first."""
        if not self._begin(events) or not text or place.kind not in ("", kind):
            return
        apart = APART if (place.size and part != place.part) or (not place.size and self._thought) else ""
        place.kind, place.part, self._thought = kind, part, True
        text = apart + (whole_characters(text) if loose else text)
        place.size += len(text)
        self._size += len(text)
        events.append(ReasoningDelta(text))

    def _call(self, place: _Place, events: list[Event], loose: bool, call_id: str = "", name: str = "", arguments: str = "") -> None:
        if not self._begin(events):
            return
        if self._calls is None:
            self._fail(NOT_OFFERED)
            return
        place.kind = "call"
        if arguments:
            place.sent.append(arguments)
            self._size += len(arguments)
        try:
            event = self._calls.take(CallPart(place.index, call_id, FunctionPart(name, arguments)), loose)
        except TooMuch as error:
            self._fail(str(error))
            return
        if event is not None:
            place.call_id = place.call_id or event.id or ""
            events.append(event)

    def _rest(self, place: _Place, arguments: str, events: list[Event]) -> None:
        """All arguments of a call; what of them has not come yet is added."""
        sent = "".join(place.sent)
        if len(arguments) > len(sent) and arguments.startswith(sent):
            self._call(place, events, loose=True, arguments=arguments[len(sent) :])

    def _item(self, place: _Place, item: Item, events: list[Event], final: bool) -> None:
        """An item begins, or is there as a whole."""
        if place.item is not None or not self._begin(events):
            return
        if item.type == "function_call":
            if not place.call_id:
                self._call(place, events, True, whole_characters(item.call_id or item.id), whole_characters(item.name))
            if final and not self.done:
                self._rest(place, item.arguments, events)
        elif final and not place.size:
            if item.type == "message":
                self._text(place, "".join(item.texts()), events)
            elif item.type == "reasoning":
                self._think(place, "", None, APART.join(item.texts()), events, loose=True)
        if final:
            place.item = item
            self._held += len(memoryview(item.raw))
            if self._held > 2 * TEXT_LIMIT:
                self._fail(LONGER)

    def _end(self, response: Response, status: str, events: list[Event]) -> None:
        """The answer is over: what is said last, or its error."""
        status = status or response.status or ("completed" if response.output else "")
        if response.error or status == "failed":
            if self._answered and response.usage:
                events.append(usage_of(response.usage))  # it is paid for all the same
            self._refuse(response.error or "the answer failed")
            return
        if status not in ("completed", "incomplete"):
            self._fail("its answer was cancelled" if status == "cancelled" else "its answer cannot be understood")
            return
        fresh = not self._places
        for index, raw in enumerate((response.output or ())[: MAX_INDEX + 1]):
            place = self._places.get(index)
            if (fresh or (place is not None and place.item is None)) and (item := read_item(raw)) is not None:
                self._item(self._place(index, item.id), item, events, final=True)
        if not self._begin(events):
            return
        self.done = True
        events += [TextDelta("\ufffd") for place in self._places.values() if place.half]
        if self._calls is not None:
            events += self._calls.last()
        why = response.incomplete_details.get("reason") if isinstance(response.incomplete_details, dict) else None
        raw_reason = whole_characters(why)[:64] if isinstance(why, str) else status
        reason: FinishReason = _REASONS.get(raw_reason, "length") if status == "incomplete" else "stop"
        called = self._calls is not None and self._calls.any
        if reason == "stop" and (self._refused or any(place.item is not None and place.item.refused for place in self._places.values())):
            reason = "content_filter"
        if called and (state := self._state()) is not None:
            events.append(ProviderState(state))
        events += [usage_of(response.usage), TurnFinished("tool_calls" if called and reason == "stop" else reason, raw_reason)]

    def _state(self) -> bytes | None:
        """What goes back with this turn; None where an item was not there as a whole."""
        places = [self._places[index] for index in sorted(self._places)]
        placed = [Placed(place.item, place.call_id, place.start, place.start + place.size) for place in places if place.item is not None]
        return kept(placed) if len(placed) == len(places) else None

    def _refuse(self, error: object) -> None:
        """See AnswerDecoder. Here the code says whether the request is to blame."""
        if isinstance(error, dict) and isinstance(error.get("code"), str) and error["code"].startswith(_REFUSED):
            error = {**error, "status": 400}
        super()._refuse(error)
