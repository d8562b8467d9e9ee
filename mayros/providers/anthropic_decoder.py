"""Reading the stream of Anthropic's Messages API, and of the servers that imitate it. Bytes in, events out, no I/O.

An answer is a list of blocks, told apart by `index`: text, thinking, calls. Reading is tolerant: an event of the usual shape is decoded into typed
structs, any other goes through `loose_event`, and what makes no sense is skipped, as long as something does. Thinking is signed and must come back
unchanged and in its place, so an answer with calls says by ProviderState where its thinking stood. Imports core.keys, events, net.redact
and, of providers, anthropic_events, anthropic_state, calls (its bounds), characters, decoder and reading.
"""

from __future__ import annotations

import msgspec

from mayros.core.keys import new_id
from mayros.events import Event, FinishReason, ProviderState, ReasoningDelta, TextDelta, ToolCallDelta, TurnFinished, Usage
from mayros.net.redact import Redactor
from mayros.providers.anthropic_events import (
    STATUS,
    Block,
    Delta,
    EventSaid,
    UsageSaid,
    decode,
    loose_block,
    loose_event,
    loose_usage,
)
from mayros.providers.anthropic_state import Thought, state
from mayros.providers.calls import MAX_ARGUMENTS, MAX_CALLS, TOO_LONG, TOO_MANY
from mayros.providers.characters import joined, whole_characters
from mayros.providers.decoder import LONGER, NOT_OFFERED, AnswerDecoder
from mayros.providers.reading import TEXT_LIMIT, count, lenient_json

MAX_BLOCKS = 1024  # of one turn, without those of text
_MAX_NAME, _MAX_ID = 128, 256

_REASONS: dict[str, FinishReason] = {"max_tokens": "length", "model_context_window_exceeded": "length", "refusal": "content_filter"}


class _Call:
    """A call that is being written. `given`: arguments that came whole, with its start."""

    __slots__ = ("given", "half", "index", "size")

    def __init__(self, index: int, given: str) -> None:
        self.index, self.given, self.half, self.size = index, given, "", 0


class AnthropicDecoder(AnswerDecoder):
    """The answer of one turn; see AnswerDecoder. `tools`: whether the model was offered any; where not, it may call none."""

    def __init__(self, provider: str, model: str, redact: Redactor, tools: bool = False) -> None:
        super().__init__(provider, model, redact)
        self._tools = tools
        self._usage: UsageSaid | None = None
        self._said = 0  # characters of text; `_size` are those of everything else
        self._half = ""  # the first half of a surrogate pair of the text; its second half is in the next event
        self._open: dict[int, Thought | _Call] = {}
        #: Thoughts and calls (None) in their order, each with how many characters of text came before it.
        self._marks: list[tuple[int, Thought | None]] = []
        self._calls: dict[str, _Call] = {}  # by id

    def feed(self, data: bytes) -> list[Event]:
        """The events of one read; with `message_stop` also the last ones. Raises nothing."""
        events: list[Event] = []
        if self.done:
            return events
        blocks = self._blocks(data)
        if self.done:  # an event is too long
            return self._used()
        for name, block in blocks:
            loose = False
            try:
                event = decode(block)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                odd = loose_event(lenient_json(block))
                if odd is None:
                    if name == b"error":
                        self._refused(block.decode("utf-8", "replace"), events)
                        break
                    continue
                event, loose = odd, True
            delta = event.delta
            if event.type == "content_block_delta" and delta is not None:
                text = delta.text
                if text and self._answered and not loose and not self._half:  # as nearly all events are
                    self._said += len(text)
                    events.append(TextDelta(text))
                else:
                    self._take_delta(event.index, delta, events, loose)
            elif event.error or event.type == "error" or name == b"error":
                self._refused(event.error or lenient_json(block), events)
            else:
                self._take(event, events, loose)
            if self.done:
                break
        if self._said + self._size > TEXT_LIMIT and not self.done:
            self._failed(LONGER, events)
        return events

    def whole(self, body: bytes) -> list[Event]:
        """The events of an answer that is one JSON object, from a server that does not stream. Raises errors of mayros.errors."""
        self.done = True
        events: list[Event] = []
        value = lenient_json(body)
        value = value if isinstance(value, dict) else {}
        content, reason = value.get("content"), value.get("stop_reason")
        if value.get("error"):
            self._refused(value["error"], events)
        elif isinstance(content, list) and (content or isinstance(reason, str)):  # it may have nothing to say
            self._answer(events)
            self._count(loose_usage(value.get("usage")))
            self._reason = whole_characters(reason) if isinstance(reason, str) else None
            for index, said in enumerate(content):
                if isinstance(said, dict) and self._error is None:
                    self._start(index, loose_block(said), events, loose=True)
        return self._unless_failed([*events, *self._last(done=True)])

    def _take(self, event: EventSaid, events: list[Event], loose: bool) -> None:
        """Any event but errors and deltas of blocks."""
        if event.type == "content_block_start" and event.content_block is not None:
            self._answer(events)
            self._start(event.index, event.content_block, events, loose)
        elif event.type == "content_block_stop":
            self._stop(self._open.get(event.index), events)
        elif event.type == "message_start":
            self._answer(events)
            self._count(event.message.usage if event.message is not None else None)
        elif event.type == "message_delta":
            self._count(event.usage)
            if event.delta is not None and event.delta.stop_reason:
                self._answer(events)
                reason = event.delta.stop_reason
                self._reason = whole_characters(reason) if loose else reason
        elif event.type == "message_stop":
            self.done = True
            events += self._last(done=True)

    def _start(self, index: int, block: Block, events: list[Event], loose: bool) -> None:
        """A block begins; imitators give it whole. Blocks of other kinds are skipped."""
        if block.type == "tool_use":
            self._begin_call(index, block, events, loose)
        elif block.type in ("thinking", "redacted_thinking"):
            redacted = block.type == "redacted_thinking"
            data = (whole_characters(block.data or "") if loose else block.data or "") if redacted else None
            self._size += len(data or "")
            self._mark(Thought(data), index, events)
        else:
            self._open.pop(index, None)
            if block.type != "text":
                return
        if block.text or block.thinking or block.signature:
            self._take_delta(index, Delta(block.text if block.type == "text" else None, None, block.thinking, block.signature), events, loose)

    def _mark(self, what: Thought | _Call, index: int, events: list[Event]) -> None:
        self._open[index] = what
        self._marks.append((self._said, what if isinstance(what, Thought) else None))
        if len(self._marks) > MAX_BLOCKS:
            self._failed(f"its answer has more than {MAX_BLOCKS} blocks", events)

    def _begin_call(self, index: int, block: Block, events: list[Event], loose: bool) -> None:
        if not self._tools:
            self._failed(NOT_OFFERED, events)
        elif len(self._calls) >= MAX_CALLS:
            self._failed(TOO_MANY, events)
        else:
            sent, name = block.id or "", (block.name or "unnamed")[:_MAX_NAME]
            usable = 0 < len(sent) <= _MAX_ID and sent.isprintable() and sent not in self._calls
            given = "" if len(block.input) <= 2 else bytes(block.input).decode("utf-8", "replace")
            call = _Call(len(self._calls), "" if given == "null" else given)
            call_id = sent if usable else f"toolu_{new_id()}"
            self._calls[call_id] = call
            self._mark(call, index, events)
            events.append(ToolCallDelta(call.index, "", call_id, whole_characters(name) if loose else name))

    def _take_delta(self, index: int, delta: Delta, events: list[Event], loose: bool) -> None:
        """More of a block. Text needs none: some servers leave its start out."""
        self._answer(events)
        block = self._open.get(index)
        if delta.text:
            text = delta.text
            if loose or self._half:
                # Cut inside a surrogate pair (`\ud83d` in one event, `\ude00` in the next).
                text, self._half = joined(self._half, text)
            if text:
                self._said += len(text)
                events.append(TextDelta(text))
        if delta.partial_json and isinstance(block, _Call):
            block.given = ""
            self._arguments(block, delta.partial_json, events, loose)
        if delta.thinking:
            if not isinstance(block, Thought):
                block = Thought()
                self._mark(block, index, events)
            thought = delta.thinking
            if loose or block.half:
                thought, block.half = joined(block.half, thought)
            self._size += len(thought)
            if self._tools:
                block.text.append(thought)
            if thought:
                events.append(ReasoningDelta(thought))
        if delta.signature and isinstance(block, Thought):
            self._size += len(delta.signature)
            if self._tools:
                block.signature.append(whole_characters(delta.signature) if loose else delta.signature)

    def _arguments(self, call: _Call, text: str, events: list[Event], loose: bool) -> None:
        call.size += len(text)
        self._size += len(text)
        if call.size > MAX_ARGUMENTS:
            self._failed(TOO_LONG, events)
            return
        if loose or call.half:
            text, call.half = joined(call.half, text)
        if text:
            events.append(ToolCallDelta(call.index, text))

    def _stop(self, block: Thought | _Call | None, events: list[Event]) -> None:
        """A block has ended."""
        if isinstance(block, _Call):
            given, block.given = block.given, ""
            if given:
                self._arguments(block, given, events, loose=False)
            if block.half:
                block.half = ""
                events.append(ToolCallDelta(block.index, "\ufffd"))

    def _count(self, usage: UsageSaid | None) -> None:
        """Counts are cumulative: a later one takes the place of an earlier one."""
        if usage is None:
            return
        if self._usage is None:
            self._usage = usage
            return
        for name in usage.__struct_fields__:
            value = getattr(usage, name)
            if value is not None:
                setattr(self._usage, name, value)

    def _ending(self) -> list[Event]:
        events: list[Event] = []
        if self._half:
            self._said += 1
            events.append(TextDelta("\ufffd"))
        for call in self._calls.values():
            self._stop(call, events)
        if self._calls and any(thought is not None for _, thought in self._marks) and (kept := state(self._marks, self._said)) is not None:
            events.append(ProviderState(kept))
        raw = self._reason[:64] if self._reason is not None else None
        reason = _REASONS.get(raw or "", "tool_calls" if self._calls else "stop")
        return [*events, self._counts(), TurnFinished(reason, raw)]

    def _counts(self) -> Usage:
        usage = self._usage or UsageSaid()
        return Usage(
            count(usage.input_tokens),
            count(usage.output_tokens),
            count(usage.cache_read_input_tokens),
            count(usage.cache_creation_input_tokens),
        )

    def _used(self) -> list[Event]:
        """What is told with an error: what was used until then."""
        return [self._counts()] if self._usage is not None else []

    def _refused(self, error: object, events: list[Event]) -> None:
        """An error came; its type says which kind it is."""
        if isinstance(error, dict):
            inner = error.get("error")
            error = inner if isinstance(inner, dict) and inner else error
            kind = error.get("type")
            if isinstance(kind, str) and kind in STATUS:
                error = {**error, "status": STATUS[kind]}
        self._refuse(error)
        events += self._used()

    def _failed(self, why: str, events: list[Event]) -> None:
        if self._error is None:
            self._fail(why)
            events += self._used()
