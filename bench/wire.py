"""What the mock upstream says and what a client must get back: one place for both. Imports nothing of ours.

A model's name says how it answers: `mock-64` is 64 tokens at once, `mock-50x50ms` is 50 tokens, one each 50 ms. Only the digits
count, so `mayros:a64` (agent `a64` of the gateway, whose model is `mock-64`) means the same to the upstream, and one request serves
both roles unchanged. `mock-read4-8` calls the tool `read` in four turns and then says 8 tokens; `mock-exec1-8` calls `exec` in one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_SHAPE = re.compile(r"(\d+)(?:x(\d+)ms)?$")
_TOOL = re.compile(r"(read|exec)(\d+)-\d+$")
MAX_TOKENS = 100_000
#: The small file that `read` is called for, and what stands in it.
NOTES = ("notes.md", "The weather station in the mountains reports every hour: wind, rain, snow, and how far one can see.\n")
#: What `exec` is called for: so many bytes of output, and a last line.
OUTPUT_BYTES, LAST_LINE = 10_000_000, "that was all"
#: Of each tool: the arguments of the call, and what its result must hold.
TOOLS: dict[str, tuple[dict[str, Any], str]] = {
    "read": ({"path": NOTES[0]}, NOTES[1].strip()),
    # Not to be put into the background, however long it takes.
    "exec": ({"command": f"yes 'a line of some output' | head -c {OUTPUT_BYTES}; echo; echo {LAST_LINE}", "yieldMs": 120_000}, LAST_LINE),
}
#: The model that is no model: the upstream answers with the last bodies of requests for tools that it got.
RECORDED = "recorded"


def shape(model: str) -> tuple[int, float]:
    """Number of tokens and seconds between them that a model's name asks for; ValueError if it names none."""
    match = _SHAPE.search(model)
    if match is None or not 1 <= int(match[1]) <= MAX_TOKENS:
        raise ValueError(f"{model!r} does not end in a number of tokens")
    return int(match[1]), int(match[2] or 0) / 1000


def tool(model: str) -> tuple[str, int] | None:
    """Name of the tool that a model calls, and in how many turns; None if it calls none."""
    match = _TOOL.search(model)
    return (match[1], int(match[2])) if match else None


def token(number: int) -> str:
    """The text of one token. `tok` occurs once in each and nowhere else in an answer, so counting it counts tokens."""
    return f"tok{number} "


def request(model: str, stream: bool, secret: str) -> bytes:
    """A whole HTTP/1.1 request for a chat completion, as a client puts it on the wire."""
    question: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "system", "content": "You are a careful assistant. Answer briefly."},
            {"role": "user", "content": "Say what the weather is like in the mountains, in one short sentence."},
        ],
        "temperature": 0.2,
    }
    if stream:
        question |= {"stream": True, "stream_options": {"include_usage": True}}
    body = json.dumps(question).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\nUser-Agent: mayros-bench\r\n"
        f"Authorization: Bearer {secret}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def chunks(body: bytes) -> Iterator[bytes]:
    """The chunks of a chunked body; ValueError where it is cut short."""
    at = 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end].split(b";")[0], 16)
        if size == 0:
            return
        yield body[end + 2 : end + 2 + size]
        at = end + 2 + size + 2


def _events(text: str) -> list[Any]:
    """The JSON events of a stream; ValueError unless `[DONE]` is the last one."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    if not blocks or blocks[-1] != "data: [DONE]":
        raise ValueError("the stream does not end with [DONE]")
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]


def verify(head: bytes, body: bytes, tokens: int, stream: bool) -> str | None:
    """Read a whole response exactly. None if it is the answer that was asked for, else what is wrong with it."""
    status = head[9:12].decode("latin-1")
    if status != "200":
        return f"status {status}: {body[:300].decode('utf-8', 'replace')}"
    try:
        text = (b"".join(chunks(body)) if b"transfer-encoding: chunked" in head.lower() else body).decode()
        if stream:
            events = _events(text)
            choices = [event["choices"][0] for event in events if event["choices"]]
            said = [choice["delta"]["content"] for choice in choices if choice["delta"].get("content")]
            reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
            usages = [event["usage"] for event in events if event.get("usage")]
            if said != [token(number) for number in range(tokens)]:
                return f"{len(said)} content chunks instead of {tokens}, or other ones"
        else:
            answer = json.loads(text)
            choice = answer["choices"][0]
            reasons, usages = [choice["finish_reason"]], [answer["usage"]]
            if choice["message"]["content"] != "".join(map(token, range(tokens))):
                return f"other content: {choice['message']['content'][:200]!r}"
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return f"unreadable answer ({type(error).__name__}: {error}): {body[:300].decode('utf-8', 'replace')}"
    if reasons != ["stop"]:
        return f"finish reasons {reasons}"
    if len(usages) != 1 or usages[0]["completion_tokens"] != tokens:
        return f"usage {usages}"
    return None
