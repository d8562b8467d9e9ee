"""A transcript of the original as the entries of a session here: turns with their outcomes, and what they used. Imports core and its siblings.

A turn begins with what a user says and lasts until the next time he does. As in our own transcripts, how it ended and what it used stands beside the
last message of the model; one that ended without any text is kept and stays out of prompts. A message that broke off and was followed by another try
is left out, as the original does when it asks a model.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from mayros.core.keys import new_id
from mayros.core.repair import LOST
from mayros.core.session_ports import EntryMeta
from mayros.core.usage_ports import day_of
from mayros.events import FinishReason, Outcome, Usage
from mayros.messages import Message, pack
from mayros.storage.original import speech
from mayros.storage.original.lines import UNREADABLE, Transcript, Unfit, decoded
from mayros.storage.original.speech import CallIds, Line, Said
from mayros.storage.original.used import Sums, UsedBy, usage_of
from mayros.storage.turns import NO_TEXT

#: Models that are none: messages that the gateway itself has put into a transcript.
_GATEWAY = ("gateway-injected", "delivery-mirror")
_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "toolUse": "tool_calls"}
_OUTCOMES: dict[str, Outcome] = {"error": "error", "aborted": "aborted"}
#: Characters of the results that wait for what comes after their turn's message, and days and models whose use is told apart.
MOST_HELD, MOST_USED = 8 << 20, 10_000
_PIECE = 1 << 20


class Row(NamedTuple):
    """An entry without its place: the canonical message, its run, its time in milliseconds, what is known of the model's turn."""

    body: str
    run_id: str
    created_ms: int
    meta: EntryMeta | None = None


class Conversation:
    """Reads a part of a transcript into rows. `now_ms` is the time of what has none. `sums` are right when all rows were taken."""

    def __init__(self, transcript: Transcript, now_ms: int) -> None:
        self._transcript, self._now_ms = transcript, now_ms
        self._time = now_ms
        self.sums = Sums()
        self._ids = CallIds()
        self._run = ""
        #: The model's last message of the turn (None: it said nothing), what it is known by, and the results after it.
        self._last: tuple[Message | None, Said, int] | None = None
        self._results: list[Row] = []
        self._held = 0
        #: Whether anything of the turn beside the user's words was given out, and whether there is a turn.
        self._answered = self._open = False

    def rows(self, places: Sequence[int], compaction: int | None = None) -> Iterator[Row]:
        """The entries at these places of the transcript, oldest first, after the summary of a compaction where there is one."""
        self._time = self._began()
        for place in ([compaction] if compaction is not None else []) + list(places):
            kind = self._transcript.kind(place)
            if kind == "" or (kind == "compaction" and place != compaction):
                continue
            line = self._read(place)
            if line is not None:
                said = line.message
                self._time = self._moment(line)
                if kind == "message" and said is not None:
                    yield from self._message(said)
                elif kind == "custom_message":
                    yield from self._asked(speech.user(line.content))
                elif kind != "message":
                    yield from self._note(speech.summary(line.summary, kind == "branch_summary"))
        yield from self._end()
        for call in self._ids.open.values():
            yield self._counted(Row(_text(Message("tool", LOST, tool_call_id=call)), self._run, self._time))

    def _read(self, place: int) -> Line | None:
        try:
            data = self._transcript.read(place)
            _check(data)
            return decoded(speech.decode, data)
        except UNREADABLE:
            self._transcript.told(self._transcript.line(place), "it is no message of a transcript")
            return None

    def _began(self) -> int:
        return min(speech.moment(self._transcript.began) or self._now_ms, self._now_ms)

    def _moment(self, line: Line) -> int:
        """When it was said; what has no time was said when what was before it was."""
        found = (speech.moment(line.message.timestamp) if line.message is not None else None) or speech.moment(line.timestamp)
        return min(found or self._time, self._now_ms)

    def _message(self, said: Said) -> Iterator[Row]:
        match said.role:
            case "user" | "custom" | "hookMessage":
                yield from self._asked(speech.user(said.content))
            case "bashExecution":
                yield from self._asked(speech.shell(said))
            case "assistant":
                yield from self._said(said)
            case "toolResult":
                yield from self._result(said)
            case _:
                self.sums.left_out += 1

    def _note(self, message: Message | None) -> Iterator[Row]:
        """A summary is no part of any turn, so that it stays when a turn is left out of prompts."""
        yield from self._end()
        if message is not None:
            yield self._counted(Row(_text(message), f"import-{new_id()}", self._time))

    def _asked(self, message: Message | None) -> Iterator[Row]:
        if message is None:
            self.sums.left_out += 1
            return
        if self._answered or self._last is not None:
            yield from self._end()
        self._begin()
        yield self._counted(Row(_text(message), self._run, self._time))

    def _begin(self) -> None:
        if not self._open:
            self._open, self._run = True, f"import-{new_id()}"

    def _said(self, said: Said) -> Iterator[Row]:
        self._begin()
        message = speech.assistant(said, self._ids)
        self._count(said)
        if self._last is not None:
            before, known, time = self._last
            if message is None and before is not None:
                # It ended so, and what it said last stays its last word.
                self._last = (before, _ending(known, said), time)
                return
            if before is not None and known.ended not in speech.FAILED:
                yield from self._give(before, _meta(known), time)
            self._let_go()
        self._last = (message, said, self._time)

    def _result(self, said: Said) -> Iterator[Row]:
        message = speech.result(said, self._ids)
        if message is None:
            self.sums.left_out += 1
            return
        row = Row(_text(message), self._run, self._time)
        if self._last is not None:
            self._results.append(row)
            self._held += len(row.body)
            if self._held > MOST_HELD:
                raise Unfit(f"the results of one message's calls are larger than {MOST_HELD >> 20} MB")
        else:
            self._begin()
            yield self._counted(row)

    def _give(self, message: Message, meta: EntryMeta, time: int) -> Iterator[Row]:
        self._answered = True
        yield self._counted(Row(_text(message), self._run, time, meta))
        yield from map(self._counted, self._results)
        self._let_go()

    def _let_go(self) -> None:
        self._results.clear()
        self._held = 0

    def _end(self) -> Iterator[Row]:
        """The turn is over: its last message tells how."""
        if self._last is not None:
            message, known, time = self._last
            meta = _meta(known, last=True)
            self.sums.turns += 1
            if (by := self._by(known)) is not None:
                runs, turns, usage = self.sums.used[by]
                self.sums.used[by] = (runs + 1, turns, usage)
            if message is not None:
                yield from self._give(message, meta, time)
            elif not self._answered:
                yield self._counted(Row(NO_TEXT, self._run, time, meta))
        self._last, self._answered, self._open = None, False, False
        self._let_go()

    def _count(self, said: Said) -> None:
        usage = usage_of(said.usage)
        self.sums.usage = self.sums.usage.plus(usage)
        if (by := self._by(said)) is not None:
            runs, turns, sofar = self.sums.used.get(by, (0, 0, Usage()))
            self.sums.used[by] = (runs, turns + 1, sofar.plus(usage))

    def _by(self, said: Said) -> UsedBy | None:
        provider, model = speech.name(said.provider), speech.name(said.model)
        if provider is None or model is None or model in _GATEWAY:
            return None
        time = speech.moment(said.timestamp)
        if time is None:
            return None
        by = day_of(min(time, self._now_ms)), provider, model
        return by if by in self.sums.used or len(self.sums.used) < MOST_USED else None

    def _counted(self, row: Row) -> Row:
        self.sums.messages += 1
        if self.sums.first_ms is None:
            self.sums.first_ms = row.created_ms
        return row


def _check(data: bytes) -> None:
    """Whether the line is UTF-8: what is taken over as it stands is not looked into later. Raises UnicodeDecodeError."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for at in range(0, len(data), _PIECE):
        decoder.decode(data[at : at + _PIECE])
    decoder.decode(b"", True)


def _text(message: Message) -> str:
    return bytes(pack(message)).decode()


def _ending(known: Said, said: Said) -> Said:
    return msgspec.structs.replace(known, stop_reason=said.ended)


def _meta(said: Said, last: bool = False) -> EntryMeta:
    """What is kept beside a message of a model; beside the `last` one of a turn also how it ended."""
    provider, model, usage = speech.name(said.provider), speech.name(said.model), usage_of(said.usage)
    origin = "inject" if model in _GATEWAY else None
    if not last:
        return EntryMeta(usage=usage, provider=provider, model=model, origin=origin)
    outcome = _OUTCOMES.get(said.ended or "", "ok")
    reason = _REASONS.get(said.ended or "stop") if outcome == "ok" else None
    return EntryMeta(outcome, reason, usage, provider, model, origin=origin)
