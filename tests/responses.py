"""Events of OpenAI's Responses API as the vendor sends them, for tests."""

from __future__ import annotations

import json
from typing import Any

from mayros.events import Event, ModelAnswered, ReasoningDelta, TextDelta, ToolCallDelta, TurnFinished, Usage
from mayros.net.redact import Redactor
from mayros.providers.responses_decoder import ResponsesDecoder

KEY = "sk-live/0123456789+abcdef"
ANSWERED = ModelAnswered("acme", "m1")
NO_USAGE = Usage()
STOP = TurnFinished("stop", "completed")
CALLED = TurnFinished("tool_calls", "completed")


def said(kind: str, **fields: Any) -> bytes:
    """An event as OpenAI sends it: its type twice."""
    return b"event: %s\ndata: " % kind.encode() + json.dumps({"type": kind, "sequence_number": 1, **fields}).encode() + b"\n\n"


def added(place: int, kind: str, **fields: Any) -> bytes:
    """An item begins."""
    return said("response.output_item.added", output_index=place, item={"type": kind, "id": f"{kind[:2]}_{place}", **fields})


def ended(place: int, kind: str, **fields: Any) -> bytes:
    """An item as a whole."""
    return said("response.output_item.done", output_index=place, item={"type": kind, "id": f"{kind[:2]}_{place}", **fields})


def text_delta(text: str, place: int = 0, **more: Any) -> bytes:
    """A piece of a message."""
    return said("response.output_text.delta", item_id=f"me_{place}", output_index=place, content_index=0, delta=text, logprobs=[], **more)


def part_delta(text: str, place: int) -> bytes:
    """A piece of a call's arguments."""
    return said("response.function_call_arguments.delta", item_id=f"fu_{place}", output_index=place, delta=text)


def thought_delta(text: str, place: int = 0, part: int = 0) -> bytes:
    """A piece of a summary of reasoning."""
    return said("response.reasoning_summary_text.delta", item_id=f"re_{place}", output_index=place, summary_index=part, delta=text)


def completed(status: str = "completed", **response: Any) -> bytes:
    """The last event."""
    return said(f"response.{status}", response={"id": "resp_1", "object": "response", "status": status, "error": None, **response})


CREATED = said("response.created", response={"id": "resp_1", "status": "in_progress", "instructions": "Be brief.", "tools": []})
END = completed()


def content(*texts: str) -> list[dict[str, Any]]:
    """The content of a whole message."""
    return [{"type": "output_text", "text": text, "annotations": []} for text in texts]


def message(*texts: str, place: int = 0, **more: Any) -> bytes:
    """A message with all its events."""
    pieces = b"".join(text_delta(text, place) for text in texts)
    return added(place, "message", role="assistant", content=[]) + pieces + ended(place, "message", content=content("".join(texts)), **more)


def call(place: int, call_id: str, name: str, *pieces: str) -> bytes:
    """A call with all its events."""
    fields = {"call_id": call_id, "name": name}
    whole = "".join(pieces)
    parts = b"".join(part_delta(piece, place) for piece in pieces)
    parts += said("response.function_call_arguments.done", output_index=place, arguments=whole)
    return added(place, "function_call", arguments="", **fields) + parts + ended(place, "function_call", arguments=whole, **fields)


def thinking(place: int, text: str, secret: str | None = "gAAA") -> bytes:
    """Reasoning with its summary."""
    whole = {"summary": [{"type": "summary_text", "text": text}], "encrypted_content": secret, "status": None}
    return added(place, "reasoning", summary=[]) + thought_delta(text, place) + ended(place, "reasoning", **whole)


def decoder(tools: bool = True) -> ResponsesDecoder:
    """A decoder of a turn in which tools were offered."""
    return ResponsesDecoder("acme", "m1", Redactor([KEY]), tools)


def decode(*pieces: bytes) -> list[Event]:
    """All events of an answer; raises its error."""
    reading = decoder()
    return [event for piece in pieces for event in reading.feed(piece)] + reading.close()


def joined(events: list[Event]) -> list[Event]:
    """Neighbouring texts, and parts of one call, as one."""
    made: list[Any] = []
    for event in events:
        last: Any = made[-1] if made else None
        if type(event) is type(last) and type(event) in (TextDelta, ReasoningDelta):
            made[-1] = type(event)(last.text + event.text)  # type: ignore[attr-defined]
        elif type(event) is ToolCallDelta and type(last) is ToolCallDelta and event.id is None and event.index == last.index:
            made[-1] = ToolCallDelta(last.index, last.arguments + event.arguments, last.id, last.name)
        else:
            made.append(event)
    return made


def text(events: list[Event]) -> str:
    """The answer's text."""
    return "".join(event.text for event in events if type(event) is TextDelta)


WHOLE = (
    CREATED
    + thinking(0, "Look é😀 twice.")
    + message("Let me ", "look: é😀", place=1, phase="commentary")
    + added(2, "function_call", call_id="call_a", name="read", arguments="")
    + added(3, "function_call", call_id="call_b", name="look", arguments="")
    + part_delta('{"pa', 2)
    + part_delta('{"x":', 3)
    + part_delta('th":"é"}', 2)
    + part_delta("1}", 3)
    + ended(2, "function_call", call_id="call_a", name="read", arguments='{"path":"é"}')
    + ended(3, "function_call", call_id="call_b", name="look", arguments='{"x":1}')
    + completed(
        output=[],
        usage={
            "input_tokens": 100,
            "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
            "output_tokens": 50,
            "output_tokens_details": {"reasoning_tokens": 20},
            "total_tokens": 150,
        },
    )
)
