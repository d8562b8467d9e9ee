"""Reading the stream of Google's generateContent: bytes in, events out, no I/O.

Every chunk is a whole response with the next parts of its one candidate: text, thoughts, calls (each of them whole), and signatures on any of
them, which must come back on the same part (`Kept`). There is no event for the end: the candidate's finishReason is it. Imports core.keys,
errors, events, wire.sse and, of providers, calls, characters, failures, google_chunks and reading.
"""

from __future__ import annotations

import msgspec

from mayros.core.keys import new_id
from mayros.errors import GatewayError, UpstreamError
from mayros.events import Event, FinishReason, ModelAnswered, ProviderState, ReasoningDelta, TextDelta, ToolCallDelta, TurnFinished
from mayros.net.redact import Redactor
from mayros.providers.calls import MAX_ARGUMENTS, MAX_CALLS
from mayros.providers.characters import joined, whole_characters
from mayros.providers.failures import Malformed, stream_failure
from mayros.providers.google_chunks import Call, Candidate, Chunk, Counts, Kept, Part, State, chunk_of, chunks_of, disjoint
from mayros.providers.reading import STATE_LIMIT, TEXT_LIMIT
from mayros.wire.sse import Decoder, TooLong

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


class GoogleDecoder:
    """The answer of one turn; see adapter.StreamDecoder. `tools`: whether the model was offered any; where not, it may call none."""

    def __init__(self, provider: str, model: str, redact: Redactor, tools: bool = False) -> None:
        self._provider, self._model, self._redact, self._tools = provider, model, redact, tools
        self._sse = Decoder()
        self._answered = False
        self._reason: str | None = None
        self._blocked = False
        self._usage: Counts | None = None
        self._size = 0
        self._calls = 0
        self._half = ""  # the first half of a surrogate pair; its second half is in the next chunk
        self._ids: set[str] = set()
        self._kept: list[Kept] = []
        #: Since the last part that is in `_kept`: characters of text, and what was thought.
        self._text = 0
        self._thoughts: list[str] = []
        self._error: GatewayError | None = None
        self.done = False

    @property
    def complete(self) -> bool:
        """Whether the model said that it was through, so that a stream which breaks off now has lost nothing."""
        return self._answered and self._error is None and self._reason is not None

    def feed(self, data: bytes) -> list[Event]:
        """The events of one read; with the last chunk also the last ones. Raises nothing."""
        events: list[Event] = []
        if self.done:
            return events
        try:
            blocks = self._sse.feed(data)
        except TooLong as error:
            self._fail(str(error))
            return events
        for _, block in blocks:
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
        if self._size > TEXT_LIMIT:
            self._fail(f"its answer is longer than {TEXT_LIMIT >> 20} million characters")
        return events

    def close(self) -> list[Event]:
        """The stream has ended: the last events, unless `feed` gave them. Raises errors of mayros.errors."""
        events: list[Event] = []
        if not self.done:
            self.done = True
            events = self._last()
        if self._error is not None:
            raise self._error
        return events

    def whole(self, body: bytes) -> list[Event]:
        """The events of an answer that is one JSON object, or a list of chunks, from a server that does not stream. Raises as `close`."""
        events: list[Event] = []
        for chunk in chunks_of(body):
            if not self.done:
                self._take(chunk, events)
        if not self.done:
            if self._reason is not None and not self._blocked and not self._size and not self._calls:
                self._fail("its answer has no text")
            self.done = True
            events += self._last()
        if self._error is not None:
            raise self._error
        return events

    def _take(self, chunk: Chunk, events: list[Event]) -> None:
        if chunk.error:
            self.done = True
            self._error = stream_failure(chunk.error, self._provider, self._redact)
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

    def _answer(self, events: list[Event]) -> None:
        self._answered = True
        events.append(ModelAnswered(self._provider, self._model))

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
            self._fail("it called a tool, and was offered none")
        elif self._calls >= MAX_CALLS:
            self._fail(f"it called tools more than {MAX_CALLS} times at once")
        elif len(written) > MAX_ARGUMENTS:
            self._fail(f"the arguments of a tool call are longer than {MAX_ARGUMENTS >> 20} MiB")
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

    def _last(self) -> list[Event]:
        """What is said at the end of the stream."""
        if self._error is not None:
            return []
        if not self._answered:
            self._fail("its answer cannot be understood")
        elif self._reason is None:
            self._fail("its answer broke off")
        if self._error is not None:
            return []
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

    def _fail(self, why: str, kind: type[UpstreamError] = UpstreamError) -> None:
        self.done = True
        if self._error is None:
            self._error = kind(f"The provider {self._provider!r} failed: {why.rstrip('.')}.")
