"""Reading the stream of OpenAI's chat completions, and of the many servers that imitate it. Bytes in, events out, no I/O.

Imitators differ in many small ways, so reading is tolerant: a chunk of the usual shape is decoded into typed structs, any other goes through
`loose_chunk`, and what makes no sense is skipped, as long as something does. Tool calls are put together in calls.py. Imports events,
net.redact and, of providers, calls, characters, chat_chunks, chat_messages, decoder, reading and think.
"""

from __future__ import annotations

import msgspec

from mayros.events import Event, FinishReason, ProviderState, ReasoningDelta, TextDelta, TurnFinished, one_array
from mayros.net.redact import Redactor
from mayros.providers.calls import Calls, TooMuch, loose_part
from mayros.providers.characters import joined, whole_characters
from mayros.providers.chat_chunks import ChatUsage, Choice, Delta, counts, loose_chunk, read_chunk
from mayros.providers.chat_messages import REASONING
from mayros.providers.decoder import LONGER, NO_TEXT, NOT_OFFERED, AnswerDecoder
from mayros.providers.reading import STATE_LIMIT, TEXT_LIMIT, lenient_json
from mayros.providers.think import Think

_REASONS: dict[str, FinishReason] = {"length": "length", "max_tokens": "length", "content_filter": "content_filter"}
_encode = msgspec.json.Encoder().encode


class ChatDecoder(AnswerDecoder):
    """The answer of one turn, bytes in and events out; see AnswerDecoder.

    `tools`: whether the model was offered any; where not, it may call none. `think_tags`: text may begin with reasoning between `<think>` tags.
    `keep_reasoning`: the server wants the reasoning of a turn with calls back. `logprobs`: they were asked for.
    """

    def __init__(
        self,
        provider: str,
        model: str,
        redact: Redactor,
        tools: bool = False,
        think_tags: bool = False,
        keep_reasoning: bool = False,
        logprobs: bool = False,
    ) -> None:
        super().__init__(provider, model, redact)
        self._calls = Calls() if tools else None
        self._think = Think() if think_tags else None
        self._kept: list[str] | None = [] if keep_reasoning else None
        self._logprobs: list[bytes] | None = [] if logprobs else None
        self._refused = False
        self._usage: ChatUsage | None = None
        self._half = ""  # the first half of a surrogate pair; its second half is in the next chunk

    def feed(self, data: bytes) -> list[Event]:
        """The events of one read; with `[DONE]` also the last ones. Raises nothing."""
        events: list[Event] = []
        for name, block in self._blocks(data):
            if block == b"[DONE]":
                self.done = True
                events += self._last(done=True)
                break
            if name == b"error":
                said = lenient_json(block)
                self._refuse(said.get("error") or said if isinstance(said, dict) else block.decode("utf-8", "replace"))
                break
            loose = False
            try:
                chunk = read_chunk(block)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                odd = loose_chunk(block)
                if odd is None:
                    continue
                chunk, loose = odd, True
            if chunk.error:
                self._refuse(chunk.error)
            if chunk.choices:
                self._take(chunk.choices, events, loose)
            if chunk.usage is not None:
                self._usage = chunk.usage
            if self.done:
                break
        if self._size > TEXT_LIMIT and not self.done:
            self._fail(LONGER)
        return events

    def whole(self, body: bytes) -> list[Event]:
        """The events of an answer that is one JSON object, from a server that does not stream. Raises errors of mayros.errors."""
        self.done = True
        events: list[Event] = []
        chunk = loose_chunk(body)
        if chunk is not None and chunk.error:
            self._refuse(chunk.error)
        if self._error is None and chunk is not None and chunk.choices:
            self._take(chunk.choices, events, loose=True)
            self._usage = chunk.usage or self._usage
            delta = chunk.choices[0].delta
            if self._error is None and (delta is None or delta.content is None) and not self._called:
                self._fail(NO_TEXT)
        return self._unless_failed([*events, *self._last(done=True)])

    def _take(self, choices: list[Choice], events: list[Event], loose: bool) -> None:
        for choice in choices:
            if choice.index != 0:
                continue
            if not self._answered:
                self._answer(events)
            delta = choice.delta
            if delta is not None:
                if delta.tool_calls or delta.function_call:
                    self._take_calls(delta, events, loose)
                    if self.done:
                        return
                thought = delta.reasoning_content or delta.reasoning
                if thought:
                    thought = whole_characters(thought) if loose else thought
                    self._size += len(thought)
                    if self._kept is not None:
                        self._kept.append(thought)
                    events.append(ReasoningDelta(thought))
                text = delta.content or delta.refusal
                if self._logprobs is not None and choice.logprobs is not None and choice.logprobs.content:
                    self._logprobs.append(_encode(choice.logprobs.content))
                if text:
                    self._refused = self._refused or not delta.content
                    if loose or self._half:
                        # Cut inside a surrogate pair (`\ud83d` in one chunk, `\ude00` in the next).
                        text, self._half = joined(self._half, text)
                    if text:
                        self._size += len(text)
                        if self._think is None:
                            events.append(TextDelta(text, self._odds()))
                        else:
                            events += self._thinking(self._think.feed(text))
                            self._think = None if self._think.open else self._think
            if choice.finish_reason:
                self._reason = choice.finish_reason
            if choice.usage is not None:
                self._usage = choice.usage

    def _thinking(self, fed: list[Event]) -> list[Event]:
        """What a text that may be reasoning turned out to be. Where it was, the tokens of the answer cannot be told from those."""
        if self._think is not None and self._think.found:
            self._logprobs = None
        return fed if self._logprobs is None else [TextDelta(event.text, self._odds()) if type(event) is TextDelta else event for event in fed]

    def _odds(self) -> bytes | None:
        """How likely the tokens were that came since the last text: with some a character is not complete, and they come without any."""
        kept = self._logprobs
        if not kept:
            return None
        self._logprobs = []
        return one_array(kept)

    @property
    def _called(self) -> bool:
        return self._calls is not None and self._calls.any

    def _take_calls(self, delta: Delta, events: list[Event], loose: bool) -> None:
        calls = self._calls
        if calls is None:
            self._fail(NOT_OFFERED)
            return
        parts = [(part, loose) for part in delta.tool_calls or ()]
        if isinstance(delta.function_call, dict):  # as calls were written before there could be several
            parts.append((loose_part({"function": delta.function_call}), True))
        try:
            for part, halves in parts:
                if part.function is not None and part.function.arguments is not None:
                    self._size += len(part.function.arguments)
                event = calls.take(part, halves)
                if event is not None:
                    events.append(event)
        except TooMuch as error:
            self._fail(str(error))

    def _ending(self) -> list[Event]:
        if self._reason == "error":
            self._fail("it ended its answer with an error")
            return []
        events: list[Event] = self._think.last() if self._think is not None else []
        if self._half:
            events.append(TextDelta("\ufffd"))
        if self._calls is not None:
            events += self._calls.last()
        raw = self._reason[:64] if self._reason is not None else None
        reason = _REASONS.get(raw or "", "stop")
        if reason == "stop" and (self._called or self._refused):
            reason = "tool_calls" if self._called else "content_filter"  # many say "stop", or nothing
        if self._kept and self._called and len(state := _encode({REASONING: "".join(self._kept)})) <= STATE_LIMIT:
            events.append(ProviderState(state))
        return [*events, counts(self._usage), TurnFinished(reason, raw)]
