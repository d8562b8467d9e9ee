"""The mock upstream's answers in the other vendors' streams: the same tokens as bench.upstream's chat completions. Imports bench.wire."""

from __future__ import annotations

import functools
import json
from typing import Any

from bench.wire import token

_HEAD = b"HTTP/1.1 200 OK\r\nServer: mock\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
#: By what a request's path begins with.
PATHS = {b"/v1/messages": "anthropic", b"/v1/responses": "responses", b"/v1beta/models/": "google"}


def vendor(target: bytes) -> str | None:
    """Whose stream is asked for at an address; None: none of these."""
    return next((name for prefix, name in PATHS.items() if target.startswith(prefix)), None)


def model_of(name: str, target: bytes, question: dict[str, Any]) -> str:
    """The model that a request names: Google's is in the address."""
    if name == "google":
        return target.removeprefix(b"/v1beta/models/").partition(b":")[0].decode()
    return str(question["model"])


@functools.lru_cache(maxsize=32)
def stream(name: str, tokens: int) -> bytes:
    """The whole streamed answer, each event an HTTP chunk of its own."""
    return _HEAD + b"".join({"anthropic": _anthropic, "responses": _responses, "google": _google}[name](tokens)) + b"0\r\n\r\n"


def _event(payload: dict[str, Any], named: bool, end: bytes = b"\n") -> bytes:
    data = json.dumps(payload, separators=(",", ":")).encode()
    event = (b"event: " + payload["type"].encode() + end if named else b"") + b"data: " + data + end + end
    return b"%x\r\n%b\r\n" % (len(event), event)


def _anthropic(tokens: int) -> list[bytes]:
    usage = {"input_tokens": 31, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 1}
    message = {"id": "msg_mock", "type": "message", "role": "assistant", "model": "mock", "content": [], "stop_reason": None, "usage": usage}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": token(number)}} for number in range(tokens)),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": tokens}},
        {"type": "message_stop"},
    ]
    return [_event(event, named=True) for event in events]


def _responses(tokens: int) -> list[bytes]:
    text = "".join(map(token, range(tokens)))
    item = {"id": "msg_mock", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    part = {"type": "output_text", "text": text, "annotations": []}
    done = {**item, "status": "completed", "content": [part]}
    usage = {
        "input_tokens": 31,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    whole = {
        "id": "resp_mock",
        "object": "response",
        "model": "mock",
        "status": "completed",
        "output": [done],
        "usage": {**usage, "total_tokens": 31 + tokens},
    }
    at = {"item_id": "msg_mock", "output_index": 0, "content_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {"id": "resp_mock", "object": "response", "status": "in_progress", "output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **at, "part": {**part, "text": ""}},
        *({"type": "response.output_text.delta", **at, "delta": token(number), "logprobs": [], "obfuscation": "x3Kd9"} for number in range(tokens)),
        {"type": "response.output_text.done", **at, "text": text, "logprobs": []},
        {"type": "response.content_part.done", **at, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": done},
        {"type": "response.completed", "response": whole},
    ]
    return [_event({**event, "sequence_number": number}, named=True) for number, event in enumerate(events)]


def _google(tokens: int) -> list[bytes]:
    made = []
    for number in range(tokens):
        candidate: dict[str, Any] = {"content": {"parts": [{"text": token(number)}], "role": "model"}, "index": 0}
        if number == tokens - 1:
            candidate["finishReason"] = "STOP"
        usage = {"promptTokenCount": 31, "candidatesTokenCount": number + 1, "totalTokenCount": 32 + number}
        chunk = {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "mock", "responseId": "mock"}
        made.append(_event(chunk, named=False, end=b"\r\n"))
    return made
