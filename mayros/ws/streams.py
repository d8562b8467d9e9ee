"""What one run has said, as the payloads of its events: `agent` (new text, and where the run stands) and `chat` (the same for chat pages).

Pure: it keeps text and numbers and builds JSON; who gets which event, and when, is feed.py's. Imports mayros.core and
mayros.wire.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from twisted.internet.interfaces import IDelayedCall

from mayros.core.reach import space_of
from mayros.errors import GatewayError
from mayros.events import ModelFailed, RunEnded, ToolFinished, ToolStarted, ToolUpdate
from mayros.wire.frames import MAX_PAYLOAD

#: Largest text in a payload: the rest of its frame is less than what is left of the largest message.
MAX_TEXT = MAX_PAYLOAD - 8_192
#: Stands for a text that cannot be sent; beside it the payload says so to programs.
OMITTED = b"[omitted: message too large]"
OVERSIZED = b'"__mayros":{"truncated":true,"reason":"oversized"}'
#: A model that answers with this word alone has nothing to say to people.
_SILENT = "NO_REPLY"

_encode = msgspec.json.Encoder().encode
_check = msgspec.json.Decoder(msgspec.Raw).decode


def speaks(text: str) -> bool:
    """Whether there is something to read in a whole answer."""
    return text.strip() not in ("", _SILENT)


class Track:
    """One growing text of a run, as the inside of a JSON string, and the number of its newest event."""

    def __init__(self, stream: bytes, before: str) -> None:
        self.stream, self.seq = stream, 0
        self.text = bytearray(_encode(before)[1:-1])
        #: What has come since the last event.
        self.new: list[str] = []


class RunStream:
    """A run that is being watched: its two texts, its own count of events, and how far its chat has been told."""

    def __init__(self, run_id: str, session: str, before: str) -> None:
        self.run_id = run_id
        #: The name space of its session, of which not all may know.
        self.space = space_of(session)
        self.seq = 0
        self.started_ms: int | None = None
        self.assistant, self.thinking = Track(b"assistant", before), Track(b"thinking", "")
        #: The texts that have grown since the last event, in order.
        self.grown: list[Track] = []
        #: Of the chat: bytes of the text that have been told, when that was (seconds), and the timer of what is held back.
        self.told, self.told_at = 0, float("-inf")
        self.timer: IDelayedCall | None = None
        self._opening: str | None = ""
        self._hear(before)
        self._ids = b'{"runId":%b,' % _encode(run_id)
        self._session = b'"sessionKey":%b,"seq":' % _encode(session)

    def add(self, track: Track, text: str) -> None:
        """More text, to be told with the next event."""
        if not track.new:
            self.grown.append(track)
        track.new.append(text)

    def lengths(self) -> tuple[int, int]:
        """How long the two texts are."""
        return len(self.assistant.text), len(self.thinking.text)

    def grow(self, track: Track) -> int:
        """Take in what has come, under the next number; gives where it begins."""
        start, new = len(track.text), "".join(track.new)
        track.new.clear()
        track.text += _encode(new)[1:-1]
        self.seq += 1
        track.seq = self.seq
        if track is self.assistant:
            self._hear(new)
        return start

    @property
    def untold(self) -> bool:
        """Whether the chat has something to tell: new text, and some of it all to be read."""
        return self._opening is None and len(self.assistant.text) > self.told

    def _hear(self, text: str) -> None:
        """Nothing is told of blanks, nor of what may become the silent word."""
        if self._opening is not None:
            self._opening += text
            if not _SILENT.startswith(self._opening.strip()):
                self._opening = None

    def delta(self, track: Track, start: int, now_ms: int) -> bytes:
        """`agent`: what a text has gained since it was `start` bytes long."""
        text, new = track.text, track.text[start:]
        if len(text) + len(new) <= MAX_TEXT:
            return self._agent(track.stream, (b'{"text":"', text, b'","delta":"', new, b'"}'), track.seq, now_ms)
        if len(new) > MAX_TEXT:
            return self._agent(track.stream, (b'{"text":"', OMITTED, b'",', OVERSIZED, b"}"), track.seq, now_ms)
        return self._agent(track.stream, (b'{"text":"', OMITTED, b'","delta":"', new, b'",', OVERSIZED, b"}"), track.seq, now_ms)

    def started(self, started_ms: int, now_ms: int) -> bytes:
        """`agent`: the run has begun."""
        self.started_ms = started_ms
        return self._lifecycle({"phase": "start", "startedAt": started_ms}, now_ms)

    def fallback(self, event: ModelFailed, now_ms: int) -> bytes:
        """`agent`: a model, or a key, could not answer, and another one is asked."""
        data: dict[str, object] = {
            "phase": "fallback",
            "from": f"{event.provider}/{event.model}",
            "to": f"{event.next_provider}/{event.next_model}",
            "reason": event.kind,
            "error": event.error,
        }
        for name, key in (("fromKey", event.credential), ("toKey", event.next_credential)):
            if key:
                data[name] = key
        return self._lifecycle(data, now_ms)

    def ended(self, event: RunEnded, now_ms: int) -> bytes:
        """`agent`: the run has ended."""
        data: dict[str, object] = {"phase": "error" if event.outcome == "error" else "end", "outcome": event.outcome, "endedAt": event.ended_at_ms}
        if self.started_ms is not None:
            data["startedAt"] = self.started_ms
        if event.outcome in ("aborted", "timeout"):
            data["aborted"] = True
        if event.error is not None:
            data["error"] = _message(event.error)
        return self._lifecycle(data, now_ms)

    def tool(self, event: ToolStarted | ToolUpdate | ToolFinished, full: bool, now_ms: int) -> bytes:
        """`agent`: a tool begins, goes on or has ended. `full`: what it put out is told too."""
        self.seq += 1
        about = b'"name":%b,"toolCallId":%b' % (_encode(event.name), _encode(event.call_id))
        data: tuple[bytes, ...]
        if isinstance(event, ToolStarted):
            arguments = _json_of(event.arguments)
            shown: tuple[bytes, ...] = (arguments,) if len(arguments) <= MAX_TEXT else (b"{},", OVERSIZED)
            data = (b'{"phase":"start",', about, b',"args":', *shown, b"}")
        elif isinstance(event, ToolUpdate):
            data = (b'{"phase":"update",', about, *(_output(b"partialResult", event.text) if full else ()), b"}")
        else:
            error = b',"isError":true' if event.is_error else b',"isError":false'
            data = (b'{"phase":"result",', about, error, *(_output(b"result", event.text) if full else ()), b"}")
        return self._agent(b"tool", data, self.seq, now_ms)

    def _lifecycle(self, data: dict[str, object], now_ms: int) -> bytes:
        self.seq += 1
        return self._agent(b"lifecycle", (_encode(data),), self.seq, now_ms)

    def _agent(self, stream: bytes, data: Sequence[bytes | bytearray], seq: int, now_ms: int) -> bytes:
        return b"".join((self._ids, b'"stream":"', stream, b'","data":', *data, b",", self._session, b'%d,"ts":%d}' % (seq, now_ms)))

    def chat_delta(self, start: int, replace: bool, now_ms: int) -> bytes:
        """`chat`: the text so far, and what is new since it was `start` bytes long. `replace`: the client may have missed some before that."""
        text: bytes | bytearray = self.assistant.text
        new = text[start:]
        told: tuple[bytes | bytearray, ...] = (b',"deltaText":"', new, b'"')
        if len(text) + len(new) > MAX_TEXT:
            text = OMITTED
            told = (b",", OVERSIZED) if len(new) > MAX_TEXT else (*told, b",", OVERSIZED)
        elif replace:
            told = (*told, b',"replace":true')
        return self._chat(b"delta", self.assistant.seq, (b",", *_message_of(text, now_ms), *told))

    def chat_end(self, event: RunEnded, text: str, reason: str, now_ms: int) -> bytes:
        """`chat`: the end. With the whole text, if there is something to read; `reason` is why it was aborted."""
        if event.outcome == "error":
            error = _encode(_message(event.error) if event.error is not None else GatewayError().message)
            return self._chat(b"error", self.seq, (b',"errorMessage":', error))
        message = _said(text.strip(), now_ms) if speaks(text) else ()
        if event.outcome == "ok":
            return self._chat(b"final", self.seq, message)
        return self._chat(b"aborted", self.seq, (*message, b',"stopReason":', _encode(reason)))

    def _chat(self, state: bytes, seq: int, rest: Sequence[bytes | bytearray]) -> bytes:
        return b"".join((self._ids, self._session, b'%d,"state":"%b"' % (seq, state), *rest, b"}"))


def _json_of(arguments: str) -> bytes:
    """A call's arguments; as a string where they are no JSON."""
    try:
        return bytes(_check(arguments or "{}"))
    except (msgspec.DecodeError, RecursionError):
        return _encode(arguments)


def _whole(text: str) -> tuple[bytes, tuple[bytes, ...]]:
    """A text that is told at once, as the inside of a JSON string, and what the payload says beside it."""
    inside = _encode(text)[1:-1]
    return (inside, ()) if len(inside) <= MAX_TEXT else (OMITTED, (b",", OVERSIZED))


def _output(key: bytes, text: str) -> tuple[bytes, ...]:
    """What a tool put out, as one more key."""
    shown, marker = _whole(text)
    return b',"%b":{"content":[{"type":"text","text":"' % key, shown, b'"}]}', *marker


def _message_of(text: bytes | bytearray, now_ms: int) -> tuple[bytes | bytearray, ...]:
    """The text (the inside of a JSON string) as a chat message."""
    return b'"message":{"role":"assistant","content":[{"type":"text","text":"', text, b'"}],"timestamp":%d}' % now_ms


def _said(text: str, now_ms: int) -> tuple[bytes | bytearray, ...]:
    """A whole answer as a chat message, as one more key."""
    shown, marker = _whole(text)
    return (b",", *_message_of(shown, now_ms), *marker)


def chat_final(run_id: str, session: str, text: str | None, now_ms: int) -> bytes:
    """`chat`: the answer of something that was no run of a model. No text: no message."""
    message = _said(text, now_ms) if text else ()
    return b"".join((b'{"runId":%b,"sessionKey":%b,"seq":0,"state":"final"' % (_encode(run_id), _encode(session)), *message, b"}"))


def _message(error: Exception) -> str:
    return error.message if isinstance(error, GatewayError) else GatewayError().message
