"""What a long conversation costs before it leaves for the provider: in this process, without a server. CPU time, from body to body."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import msgspec

from bench.measure import Effort, Failures, Row, own
from bench.rig import Rig
from mayros.config.schema import Config
from mayros.core.agent import NoTools
from mayros.core.asking import Asked, Asking
from mayros.core.failover import Candidate
from mayros.core.pending import settled
from mayros.core.ports import History, ModelRequest, Principal
from mayros.core.prompt import Prompter
from mayros.core.routing import Settings
from mayros.providers.anthropic import messages_request
from mayros.providers.google import google_request
from mayros.providers.openai_chat import chat_request
from mayros.providers.openai_responses import responses_request
from mayros.web.turns import turn_of
from mayros.wire.chat import decode_request

MESSAGES, BYTES, REPEATS = 200, 400_000, 40
_TEXT = 'She said: "It is the third na\u00efve try \u2014 and it works."\nThen she left, and nobody knew where she had gone. '
_FORMATS: dict[str, Callable[[ModelRequest], object]] = {
    "chat completions": chat_request, "Anthropic": messages_request, "Google": google_request, "Responses": responses_request,
}  # fmt: skip


def body() -> bytes:
    """A conversation of 200 messages, with calls of the caller's own tools in it, of 400 KB."""
    each = _TEXT * ((BYTES // MESSAGES - 80) // len(_TEXT.encode()))
    messages: list[dict[str, object]] = []
    while len(messages) < MESSAGES:
        number = len(messages)
        call = {"id": f"call_{number}", "type": "function", "function": {"name": "look", "arguments": json.dumps({"text": each})}}
        messages += [
            {"role": "user", "content": f"{number}. {each}"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": each},
            {"role": "assistant", "content": each},
        ]
    messages[-1] = {"role": "user", "content": each}
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}}
    return json.dumps({"model": "mayros", "messages": messages, "tools": [tool], "stream": True}, ensure_ascii=False).encode()


class _Host:
    """A run without limits."""

    def asking(self, request: ModelRequest) -> ModelRequest:
        return request


def large(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """Each round 40 times each way; the median of a round counts."""
    config = {
        "agents": {"defaults": {"model": "mock/m"}},
        "models": {"providers": {"mock": {"baseUrl": "http://127.0.0.1:1/v1"}}},
    }
    settings = Settings.build(msgspec.convert(config, Config), state_dir="/nonexistent", config_path="/nonexistent/x", environ={}, now_ms=1_000)
    model = settings.directory.agents["main"].models[0]
    sent, principal, prompter, none = body(), Principal("owner", frozenset({"operator.admin"})), Prompter(), NoTools()

    def once(write: Callable[[ModelRequest], object]) -> float:
        began = time.process_time()
        turn = turn_of(lambda _: None, decode_request(sent), settings, principal)
        history = History("s", None, ())
        asking = Asking(settled(turn, history), history, (), _Host(), prompter, none, None)
        try:
            asking.request(Candidate(model, None)).send(None)
        except StopIteration as done:
            asked = done.value
        assert isinstance(asked, Asked)
        write(asked.request)
        return (time.process_time() - began) * 1e3

    found: dict[str, list[float]] = {name: [] for name in _FORMATS}
    for _ in range(effort.rounds + 1):
        for name, write in _FORMATS.items():
            found[name].append(sorted(once(write) for _ in range(REPEATS))[REPEATS // 2])
    # Other formats than the one in which messages are kept read each of them once more.
    return [
        own(f"{MESSAGES} messages, {len(sent) // 1000} KB, to {name}: CPU, ms", times[1:], "{:.2f}", 3.0 if write is chat_request else 4.0)
        for (name, write), times in zip(_FORMATS.items(), found.values(), strict=True)
    ]


MEASURES: dict[str, Callable[[Rig, Failures, Effort], list[Row]]] = {"large": large}
