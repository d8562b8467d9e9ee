"""Property: whatever JSON is sent, and whatever stands in our headers, the answer is a 2xx or OpenAI's error object; never a 500, never a hang."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mayros.wire.chat import _Request
from tests.helpers import Harness, HarnessCase, chat, post

TEXTS = st.text(max_size=12) | st.sampled_from(
    ["", "user", "assistant", "tool", "system", "text", "function", "auto", "required", "json_schema", "x" * 600]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12)
PARTS = st.fixed_dictionaries({"type": TEXTS}, optional={"text": VALUES, "image_url": VALUES, "file": VALUES, "refusal": VALUES}) | VALUES
CALLS = st.fixed_dictionaries(
    {}, optional={"id": TEXTS, "type": TEXTS, "function": st.fixed_dictionaries({}, optional={"name": TEXTS, "arguments": VALUES}) | VALUES}
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "user", "assistant", "tool", "system", "developer", "function"]) | VALUES},
    optional={
        "content": TEXTS | st.lists(PARTS, max_size=3) | VALUES,
        "tool_calls": st.lists(CALLS, max_size=3) | VALUES,
        "tool_call_id": TEXTS,
        "name": TEXTS,
    },
)
TOOLS = st.lists(
    st.fixed_dictionaries(
        {"type": st.just("function") | TEXTS},
        optional={
            "function": st.fixed_dictionaries({"name": TEXTS}, optional={"parameters": VALUES, "strict": VALUES, "description": VALUES}) | VALUES
        },
    ),
    max_size=3,
)
#: Good requests with one or two fields of any value, any messages, and anything at all.
FIELDS = st.dictionaries(st.sampled_from(_Request.__struct_fields__) | TEXTS, VALUES, max_size=2)
BODIES = (
    FIELDS.map(lambda fields: {**chat(), **fields})
    | st.lists(MESSAGES, max_size=4).map(lambda messages: {"messages": messages})
    | st.fixed_dictionaries({"tools": TOOLS}, optional={"tool_choice": VALUES | TEXTS, "response_format": VALUES, "user": TEXTS}).map(
        lambda fields: {**chat(), **fields}
    )
    | VALUES
)
NAMES = (
    "x-mayros-agent-id", "x-mayros-session-key", "x-mayros-model", "idempotency-key", "last-event-id", "x-request-id", "origin",
)  # fmt: skip
HEADERS = st.dictionaries(
    st.sampled_from(NAMES),
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20)
    | st.sampled_from(["main", "agent:beta:x", "fake/two", "fake/", "cron:x"]),
    max_size=2,
)


class AnyRequestTests(HarnessCase):
    """One gateway, which has seen them all."""

    def setUp(self) -> None:
        super().setUp()
        self.one = self.gateway()

    def ask(self, gateway: Harness, body: Any, headers: dict[str, str]) -> None:
        """Send it; the model, where it is asked, says something and stops. The answer is complete then."""
        asked = len(gateway.provider.requests)
        client = gateway.dial(post(body, *(f"{name}: {value}" for name, value in headers.items())))
        if len(gateway.provider.requests) > asked:
            gateway.provider.say("ok")
            gateway.provider.stop()
        gateway.settle(client)
        answer = client.answer()
        self.assertEqual((gateway.runs.live(), client.received), (0, b""))
        client.leave()
        gateway.settle()
        gateway.clients.clear()
        if answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream"):
            self.assertTrue(answer.body.endswith(b"data: [DONE]\n\n") or b"\n\nevent: error\ndata: " in answer.body)
        elif answer.status == 200:
            self.assertEqual(answer.json["object"], "chat.completion")
        else:
            self.assertTrue(400 <= answer.status < 500 or answer.status == 502, answer.body)
            self.assertEqual(set(answer.json), {"error"})
            self.assertEqual(set(answer.error), {"message", "type", "param", "code"})
            self.assertIsInstance(answer.error["message"], str)
            self.assertLess(len(answer.body), 2_000)

    @settings(max_examples=80, deadline=None)
    @given(BODIES)
    def test_any_body(self, body: Any) -> None:
        """Any JSON, most of it nearly a request."""
        self.ask(self.one, body, {})

    @settings(max_examples=50, deadline=None)
    @given(BODIES.filter(lambda body: isinstance(body, dict)) | st.just(chat()), HEADERS)
    def test_any_headers(self, body: Any, headers: dict[str, str]) -> None:
        """With any values of the headers that choose."""
        self.ask(self.one, body, headers)

    @settings(max_examples=50, deadline=None)
    @given(
        st.binary(max_size=40) | BODIES.map(lambda body: json.dumps(body).encode()[:-1]) | BODIES.map(lambda body: json.dumps(body).encode() + b"x")
    )
    def test_any_bytes(self, body: bytes) -> None:
        """What is no JSON at all, or was."""
        self.ask(self.one, body, {})
