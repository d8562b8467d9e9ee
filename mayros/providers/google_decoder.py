"""Reading the stream of Google's generateContent: bytes in, events out, no I/O.

Every chunk is a whole response with the next parts of its one candidate: text, thoughts, calls (each of them whole), and signatures on any of
them, which must come back on the same part (`Kept`). There is no event for the end: the candidate's finishReason is it. Imports core.keys,
errors, events, net.redact and, of providers, calls (its bounds), characters, decoder, failures, google_chunks and reading.
"""

from __future__ import annotations

import msgspec

from mayros.core.keys import new_id
from mayros.errors import UpstreamError
from mayros.events import Event, FinishReason, ProviderState, ReasoningDelta, TextDelta, ToolCallDelta, TurnFinished
from mayros.net.redact import Redactor
from mayros.providers.calls import MAX_ARGUMENTS, MAX_CALLS, TOO_LONG, TOO_MANY
from mayros.providers.characters import joined, whole_characters
from mayros.providers.decoder import LONGER, NO_TEXT, NOT_OFFERED, AnswerDecoder
from mayros.providers.failures import Malformed
from mayros.providers.google_chunks import Call, Candidate, Chunk, Counts, Kept, Part, State, chunk_of, chunks_of, disjoint
from mayros.providers.reading import STATE_LIMIT, TEXT_LIMIT

_MAX_NAME, _MAX_ID = 128, 128

#: Whatever stopped the model for what it read or wrote.
_FILTERED = frozenset(
    {
        *("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR"),
        *("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION"),
    }
)
_REASONS: dict[str, FinishReason] = {"MAX_TOKENS": "length", **dict.fromkeys(_FILTERED, "content_filter")}
#: The model's answer was no answer; asked again it mostly gives one.
_MALFORMED = frozenset({"MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "MISSING_THOUGHT_SIGNATURE", "TOO_MANY_TOOL_CALLS", "MALFORMED_RESPONSE"})

_encode = msgspec.json.Encoder().encode


class GoogleDecoder(AnswerDecoder):
    """The answer of one turn; see AnswerDecoder. `tools`: whether the model was offered any; where not, it may call none."""

    def __init__(self, provider: str, model: str, redact: Redactor, tools: bool = False) -> None:
        super().__init__(provider, model, redact)
        self._tools = tools
        self._blocked = False
        self._usage: Counts | None = None
        self._calls = 0
        self._half = ""  # the first half of a surrogate pair; its second half is in the next chunk
        self._ids: set[str] = set()
        self._kept: list[Kept] = []
        #: Since the last part that is in `_kept`: characters of text, and what was thought.
        self._text = 0
        self._thoughts: list[str] = []

    def feed(self, data: bytes) -> list[Event]:
        """The events of one read; with the last chunk also the last ones. Raises nothing."""
        events: list[Event] = []
        for _, block in self._blocks(data):
            chunk = chunk_of(block)
            if chunk is None:
                continue
            self._take(chunk, events)
            if self.done:
                return events
            if self._reason is not None and chunk.usage_metadata is not None:
                # The last chunk has both; a server that has more to say is not waited for.
                self.done = True
                events += self._last()
                return events
        if self._size > TEXT_LIMIT and not self.done:
            self._fail(LONGER)
        return events

    def whole(self, body: bytes) -> list[Event]:
        """The events of an answer that is one JSON object, or a list of chunks, from a server that does not stream. Raises as `close`."""
        events: list[Event] = []
        for chunk in chunks_of(body):
            if not self.done:
                self._take(chunk, events)
        if not self.done:
            if self._reason is not None and not self._blocked and not self._size and not self._calls:
                self._fail(NO_TEXT)
            self.done = True
            events += self._last()
        return self._unless_failed(events)

    def _take(self, chunk: Chunk, events: list[Event]) -> None:
        if chunk.error:
            self._refuse(chunk.error)
            return
        if chunk.usage_metadata is not None:
            self._usage = chunk.usage_metadata
        if chunk.candidates:
            for candidate in chunk.candidates:
                if not candidate.index:
                    self._take_candidate(candidate, events, chunk.loose)
                    if self.done:
                        return
        elif chunk.prompt_feedback is not None and chunk.prompt_feedback.block_reason and not self._answered:
            self._blocked = True
            self._reason = chunk.prompt_feedback.block_reason
            self._answer(events)

    def _take_candidate(self, candidate: Candidate, events: list[Event], loose: bool) -> None:
        reason = candidate.finish_reason
        parts = candidate.content.parts if candidate.content is not None else None
        if not self._answered and (parts or reason not in _MALFORMED):
            self._answer(events)
        for part in parts or ():
            text = part.text
            if text and (loose or self._half):
                text = self._whole(text, part)
            if text:
                self._size += len(text)
                if part.thought:
                    events.append(ReasoningDelta(text))
                    self._thoughts.append(text)
                else:
                    events.append(TextDelta(text))
                    self._text += len(text)
            if part.function_call is not None:
                self._call(part.function_call, part.thought_signature, events)
                if self.done:
                    return
            elif part.thought_signature:
                self._signed(part)
        if reason:
            if reason in _MALFORMED:
                self._fail(f"its model's answer was malformed ({reason})", UpstreamError if self._answered else Malformed)
            elif reason == "OTHER" and not self._size:
                self._fail("it gave no answer, and no reason (OTHER)")
            else:
                self._reason = reason

    def _whole(self, text: str, part: Part) -> str:
        """A part's text in whole characters: one half of a pair may be in the part before."""
        if part.thought:
            return whole_characters(text)
        text, self._half = joined(self._half, text)
        part.text = text
        return text

    def _signed(self, part: Part) -> None:
        """Keep a signed part as one of its own: signatures must not move, nor be joined with other parts."""
        if part.thought:
            self._kept.append(Kept(thought="".join(self._thoughts), signature=part.thought_signature))
        else:
            own = len(part.text or "")
            self._text -= own
            self._keep_text()
            self._kept.append(Kept(text=own, signature=part.thought_signature))
            self._text = 0
        self._thoughts.clear()

    def _keep_text(self) -> None:
        if self._text:
            self._kept.append(Kept(text=self._text))
            self._text = 0

    def _call(self, call: Call, signature: str | None, events: list[Event]) -> None:
        arguments = bytes(call.args)
        written = "" if arguments in (b"", b"null") else arguments.decode("utf-8", "replace")
        self._size += len(written)
        if not self._tools:
            self._fail(NOT_OFFERED)
        elif self._calls >= MAX_CALLS:
            self._fail(TOO_MANY)
        elif len(written) > MAX_ARGUMENTS:
            self._fail(TOO_LONG)
        else:
            own = call.id or ""
            if len(own) > _MAX_ID or not own.isprintable():
                own = ""
            made = own if own and own not in self._ids else f"call_{new_id()}"
            self._ids.add(made)
            events.append(ToolCallDelta(self._calls, written, made, (call.name or "")[:_MAX_NAME] or "unnamed"))
            self._calls += 1
            self._keep_text()
            self._thoughts.clear()
            self._kept.append(Kept(call=own, signature=signature or None))

    def _ending(self) -> list[Event]:
        raw = (self._reason or "")[:64]
        reason: FinishReason = "content_filter" if self._blocked else _REASONS.get(raw, "tool_calls" if self._calls else "stop")
        events: list[Event] = []
        if self._half:
            events.append(TextDelta("\ufffd"))
            self._text += 1
        if (state := self._state()) is not None:
            events.append(ProviderState(state))
        return [*events, disjoint(self._usage), TurnFinished(reason, raw)]

    def _state(self) -> bytes | None:
        """The parts of a turn with calls, where there is something in them that Google alone knows."""
        self._keep_text()
        if not self._calls or not any(part.signature or part.call for part in self._kept):
            return None
        state = _encode(State(self._kept))
        if len(state) > STATE_LIMIT:  # the signatures of thoughts are the ones that may be missing
            state = _encode(State([part for part in self._kept if part.thought is None]))
        return state if len(state) <= STATE_LIMIT else None
