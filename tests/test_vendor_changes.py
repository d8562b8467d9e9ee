"""One conversation that goes from vendor to vendor, between turns and between the rounds of one: each of their strict servers takes what comes.

No sockets: requests are built and looked at, answers are decoded, and what a model said becomes the message that the next one is sent.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.models import Provider
from mayros.core.ports import ModelRequest, Sampling
from mayros.core.reply import Reply
from mayros.messages import Message, ProviderState
from mayros.net.redact import Redactor
from mayros.providers.adapters import _adapter
from mayros.providers.chat_messages import REASONING
from tests import responses, vendor_cases
from tests.anthropic_server import Refused, Strict
from tests.test_google import Gemini
from tests.test_openai_responses import Vendor as OpenAI

settings.register_profile("changes", derandomize="CI" in os.environ, deadline=None, database=None, max_examples=60)
TOOLS = (vendor_cases.TOOL, msgspec.structs.replace(vendor_cases.TOOL, name="look"))


def event(kind: str, **fields: Any) -> bytes:
    """An event of Anthropic's."""
    return vendor_cases.event({"type": kind, **fields}, kind)


class Anthropic:
    """Thinks with a signature before everything."""

    def __init__(self) -> None:
        self.strict = Strict()

    def complaint(self, body: dict[str, Any]) -> str | None:
        """Why the vendor would refuse it."""
        try:
            self.strict.check(b"anthropic-version: 2023-06-01\r\n\r\n" + json.dumps(body).encode())
        except Refused as refused:
            return str(refused)
        return None

    def answer(self, number: int, calls: bool, body: dict[str, Any]) -> bytes:
        """The stream of an answer."""
        blocks: list[tuple[dict[str, Any], dict[str, Any]]] = [({"type": "text", "text": ""}, {"type": "text_delta", "text": f"said {number}"})]
        if "thinking" in body:
            thought = {"type": "thinking", "thinking": "hm", "signature": f"s{number}"}
            self.strict.thoughts.append(thought)
            blocks.insert(0, (thought, {"type": "text_delta", "text": ""}))
        for name in ("read", "look") if calls else ():
            part = {"type": "input_json_delta", "partial_json": "{}"}
            blocks.append(({"type": "tool_use", "id": f"toolu_{number}{name}", "name": name, "input": {}}, part))
        made = [event("message_start", message={})]
        for place, (block, delta) in enumerate(blocks):
            made += [event("content_block_start", index=place, content_block=block), event("content_block_delta", index=place, delta=delta)]
        return b"".join([*made, event("message_delta", delta={"stop_reason": "end_turn"}), event("message_stop")])


class Responses(OpenAI):
    """Thinks in secret, and wants it back together with the message that followed."""

    def answer(self, number: int, calls: bool, body: dict[str, Any]) -> bytes:
        """The stream of an answer."""
        whole = {"summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": f"e{number}"}
        items: list[dict[str, Any]] = [{"type": "reasoning", "id": f"rs_{number}", **whole}] if "include" in body else []
        items.append({"type": "message", "id": f"msg_{number}", "role": "assistant", "content": responses.content(f"said {number}")})
        for item in items[:-1]:
            self.issue(body["model"], item, f"msg_{number}")
        for name in ("read", "look") if calls else ():
            items.append({"type": "function_call", "id": f"fc_{number}{name}", "call_id": f"call_{number}{name}", "name": name, "arguments": "{}"})
        done = [responses.said("response.output_item.done", output_index=place, item=item) for place, item in enumerate(items)]
        return b"".join([responses.CREATED, *done, responses.END])


class Google(Gemini):
    """Signs the first of its calls."""

    def complaint(self, body: dict[str, Any]) -> str | None:
        """Why the vendor would refuse it."""
        return self.refuses(body)

    def answer(self, number: int, calls: bool, body: dict[str, Any]) -> bytes:
        """The stream of an answer."""
        parts: list[dict[str, Any]] = [{"text": f"said {number}"}]
        if calls:
            signed = {"functionCall": {"name": "read", "args": {}, "id": f"g{number}"}, "thoughtSignature": f"s{number}"}
            parts += [signed, {"functionCall": {"name": "look", "args": {}, "id": f"h{number}"}}]
            self.issued.append(parts)
        thought = {"text": "hm", "thought": True}
        return vendor_cases.event({"candidates": [{"content": {"parts": [thought, *parts]}, "finishReason": "STOP"}], "usageMetadata": {}})


class Chat:
    """Chat completions; `ids`: how ids must look, `named`: results name their tool, `thoughts`: turns with calls come back with what was thought."""

    FIELDS: ClassVar = {"model", "messages", "stream", "stream_options", "tools", "max_tokens", "reasoning_effort"}

    def __init__(self, ids: str = r".{1,64}", named: bool = False, thoughts: bool = False) -> None:
        self.ids, self.named, self.thoughts = ids, named, thoughts
        self.given: dict[str, str] = {}

    def complaint(self, body: dict[str, Any]) -> str | None:
        """Why the server would refuse it."""
        if unknown := body.keys() - self.FIELDS:
            return f"unknown parameters {unknown}"
        waiting: list[tuple[str, str]] = []
        for said in body["messages"]:
            role = said["role"]
            known = {"role", "content"} | {"tool": {"tool_call_id", "name"}, "assistant": {"tool_calls", REASONING}}.get(role, set())
            if unknown := said.keys() - known:
                return f"unknown fields of a message: {unknown}"
            if role == "tool":
                if not waiting or not isinstance(said["content"], str):
                    return f"a result that nobody asked for: {said}"
                call_id, name = waiting.pop(0)
                if said["tool_call_id"] != call_id or (self.named and said.get("name") != name):
                    return f"a result of another call: {said}"
            elif waiting:
                return f"calls without results: {waiting}"
            calls = said.get("tool_calls") or ()
            waiting = [(call["id"], call["function"]["name"]) for call in calls] or waiting
            if not all(re.fullmatch(self.ids, call_id) for call_id, _ in waiting) or len(dict(waiting)) != len(waiting):
                return f"ids: {waiting}"
            if self.thoughts and role == "assistant" and said.get(REASONING) != (self.given.get(said["content"], "") if calls else ""):
                return f"reasoning_content: {said}"
        return f"calls without results: {waiting}" if waiting else None

    def answer(self, number: int, calls: bool, body: dict[str, Any]) -> bytes:
        """The stream of an answer, the parts of its calls mixed."""
        self.given[f"said {number}"] = f"thought {number}"
        delta: dict[str, Any] = {"content": f"said {number}", "reasoning_content": f"thought {number}"}
        if calls:
            made_ids = {"read": f"functions.read:{number}", "look": f"functions.look:{number}"} if self.ids == ".{1,64}" else {
                name: f"{name}{number:05}" for name in ("read", "look")
            }  # fmt: skip
            named = enumerate(made_ids.items())
            delta["tool_calls"] = [{"index": at, "id": call_id, "function": {"name": name, "arguments": "{"}} for at, (name, call_id) in named]
        rest = {"tool_calls": [{"index": at, "function": {"arguments": "}"}} for at in (1, 0)]} if calls else {}
        chunks = [{"choices": [{"index": 0, "delta": delta}]}, {"choices": [{"index": 0, "delta": rest, "finish_reason": "stop"}]}]
        return b"".join(map(vendor_cases.event, chunks)) + b"data: [DONE]\n\n"


#: Name -> wire format, address, model, and its strict server.
VENDORS: dict[str, tuple[str, str, str, Callable[[], Any]]] = {
    "anthropic": ("anthropic-messages", "http://127.0.0.1", "claude-sonnet-4-5", Anthropic),
    "anthropic-new": ("anthropic-messages", "http://127.0.0.1", "claude-opus-4-7", Anthropic),
    "openai": ("openai-responses", "http://127.0.0.1", "gpt-5", Responses),
    "gemini": ("google-generative-ai", "http://127.0.0.1", "gemini-3-flash", Google),
    "gemini-old": ("google-generative-ai", "http://127.0.0.1", "gemini-2.5-flash", lambda: Google(strict=False)),
    "shed": ("openai-completions", "http://127.0.0.1", "qwen3", Chat),
    "mistral": ("openai-completions", "https://api.mistral.ai/v1", "magistral", lambda: Chat("[A-Za-z0-9]{9}", named=True)),
    "deepseek": ("openai-completions", "https://api.deepseek.com/v1", "deepseek-reasoner", lambda: Chat(thoughts=True)),
}


class Talk:
    """One conversation, with all vendors at hand."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.servers = {name: make() for name, (_, _, _, make) in VENDORS.items()}
        self.count = 0

    def ask(self, name: str, calls: bool = False) -> dict[str, Any]:
        """A model turn; what was sent. Raises AssertionError with what the server complained of."""
        api, url, model, _ = VENDORS[name]
        of = vendor_cases.provider(api, id=name, base_url=url)
        asked = vendor_cases.request(of, Sampling(reasoning_effort="medium"), self.messages, id=model, reasoning=True, max_tokens=32_000)
        asked = msgspec.structs.replace(asked, tools=TOOLS)
        body, reply = self._sent(of, asked), Reply()
        complaint = self.servers[name].complaint(body)
        assert complaint is None, f"{name}: {complaint}"
        self.count += 1
        kind = _adapter(api)
        assert kind is not None
        decoder = kind.decoder(self._bare(kind, of), asked)
        reply.take(decoder.feed(self.servers[name].answer(self.count, calls, body)) + decoder.close())
        state = ProviderState(asked.model.ref, msgspec.Raw(reply.state)) if reply.state is not None else None
        made = tuple(reply.calls())
        self.messages.append(Message("assistant", reply.text or None, tool_calls=made or None, provider_state=state))
        self.messages += [Message("tool", f"result {self.count}", tool_call_id=call.id) for call in made]
        return body

    def _sent(self, of: Provider, asked: ModelRequest) -> dict[str, Any]:
        kind = _adapter(of.api)
        assert kind is not None
        body = kind.body(self._bare(kind, of), asked, frozenset())
        return dict(json.loads(body if isinstance(body, bytes) else b"".join(body)))

    @staticmethod
    def _bare(kind: Any, of: Provider) -> Any:
        """An adapter without connections."""
        adapter = kind.__new__(kind)
        adapter._provider, adapter._redact = of, Redactor(())
        return adapter


class Changes(SynchronousTestCase):
    """See the module."""

    def test_each_to_each(self) -> None:
        """A turn of two calls with one vendor, its results with another, the next turn with the first again."""
        for first in VENDORS:
            for second in VENDORS:
                talk = Talk()
                talk.messages.append(Message("user", "Look."))
                talk.ask(first, calls=True)
                talk.ask(second, calls=True)
                talk.ask(second)
                talk.messages.append(Message("user", "And now?"))
                talk.ask(first, calls=True)
                talk.ask(first)
                self.assertEqual([one.role for one in talk.messages].count("tool"), 6)

    @given(st.lists(st.tuples(st.sampled_from(sorted(VENDORS)), st.booleans()), min_size=2, max_size=12))
    @settings(settings.get_profile("changes"))
    def test_any_order(self, turns: list[tuple[str, bool]]) -> None:
        """However often it changes."""
        talk = Talk()
        for name, calls in turns:
            if not talk.messages or talk.messages[-1].role == "assistant":
                talk.messages.append(Message("user", "Go on."))
            talk.ask(name, calls)

    def test_thoughts_stay_at_home(self) -> None:
        """What one vendor signed or kept secret reaches no other, and comes back to itself."""
        talk = Talk()
        talk.messages.append(Message("user", "Look."))
        talk.ask("anthropic", calls=True)
        for name in ("openai", "gemini", "deepseek", "anthropic-new"):
            sent = json.dumps(talk.ask(name, calls=True))
            self.assertNotIn('"s1"', sent)
            self.assertNotIn("hm", sent)
        talk.ask("anthropic", calls=False)
        talk.messages.append(Message("user", "Look again."))
        self.assertIn('"signature": "s1"', json.dumps(talk.ask("anthropic")))
