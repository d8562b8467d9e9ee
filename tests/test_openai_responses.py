"""The provider of OpenAI's Responses API: requests and round trips against a server as strict as the vendor's, and faults (U01-U24)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.models import Limits, Model, Provider
from mayros.core.ports import ModelRequest, Sampling, ToolSpec
from mayros.core.reply import Reply
from mayros.errors import UpstreamError, UpstreamRefused
from mayros.events import Event, TextDelta
from mayros.messages import Function, ImagePart, ImageUrl, Message, ProviderState, TextPart, ToolCall, pack
from mayros.providers.adapters import _adapter
from mayros.providers.openai_responses import OpenAIResponses, responses_request
from tests import vendor_cases
from tests.responses import (
    ANSWERED,
    CREATED,
    END,
    KEY,
    NO_USAGE,
    STOP,
    WHOLE,
    added,
    call,
    completed,
    content,
    decode,
    message,
    text,
    text_delta,
    thinking,
)  # fmt: skip
from tests.vendor_cases import SSE, reply

TOOLS = [ToolSpec("read", "Read a file.", {"type": "object"}), ToolSpec("look", "Look.", {"type": "object", "additionalProperties": False})]


def provider(**more: Any) -> Provider:
    """A provider with a key."""
    usual = {"api": "openai-responses", "base_url": "https://api.openai.com/v1", "headers": {}, "auth_header": True, "max_connections": 4}
    return Provider(**{"id": "acme", "key": KEY, "limits": Limits(10.0, 60.0, 30.0), **usual, **more})


def request(*messages: Message, sampling: Sampling | None = None, of: Provider | None = None, **more: Any) -> ModelRequest:
    """A turn, of one user message where none are given."""
    turn = {name: more.pop(name) for name in ("tools", "session") if name in more}
    usual = {"id": "m1", "context_window": 8192, "max_tokens": 1024, "input": ("text", "image"), "tools": True, "reasoning": False, "compat": {}}
    model = Model(of or provider(), **{"name": "M", **usual, **more})
    packed = [pack(message) for message in messages or (Message("user", "Hé"),)]
    return ModelRequest(model, "Be brief.", packed, sampling or Sampling(), "run-7", **turn)


def body_of(asked: ModelRequest, *dropped: str) -> dict[str, Any]:
    """The body of a request, read back and found good by the strict server."""
    made: dict[str, Any] = json.loads(b"".join(responses_request(asked, frozenset(dropped))))
    complaint = Vendor().complaint(made)
    assert complaint is None, complaint
    return made


class Vendor:
    """What OpenAI's server refuses, as far as it is known. `issued` are the reasoning items it gave out, with the items that followed them."""

    FIELDS = frozenset(
        (
            *("model", "input", "instructions", "stream", "store", "tools", "include", "reasoning", "prompt_cache_key", "max_output_tokens"),
            *("temperature", "top_p", "stream_options", "text", "service_tier", "safety_identifier", "prompt_cache_retention"),
        )
    )

    def __init__(self) -> None:
        self.issued: dict[str, tuple[str, dict[str, Any], str]] = {}

    def issue(self, model: str, reasoning: dict[str, Any], following: str) -> None:
        """Remember reasoning that is given out; `following`: the id of the item that followed it."""
        self.issued[reasoning["id"]] = (model, reasoning, following)

    def complaint(self, body: dict[str, Any]) -> str | None:
        """What is wrong with a request; None: nothing."""
        if unknown := body.keys() - self.FIELDS:
            return f"Unknown parameter: '{unknown.pop()}'."
        if body["stream"] is not True or body["store"] is not False or len(body.get("prompt_cache_key", "")) > 64:
            return "Invalid value."
        if body.get("max_output_tokens", 16) < 16:
            return "Invalid 'max_output_tokens': integer below minimum value."
        if body.get("reasoning", {}).keys() - {"effort", "summary"}:
            return "Unknown parameter: 'reasoning'."
        for tool in body.get("tools", ()):
            if tool.keys() != {"type", "name", "description", "parameters", "strict"}:
                return "Invalid 'tools'."
        return self._items(body["input"], body["model"])

    def _items(self, items: list[dict[str, Any]], model: str) -> str | None:
        called: list[str] = []
        answered: list[str] = []
        for place, item in enumerate(items):
            kind = item.get("type", "message")
            allowed = {
                "message": {"type", "role", "content", "phase", "id", "status"},
                "function_call": {"type", "id", "call_id", "name", "arguments"},
                "function_call_output": {"type", "call_id", "output"},
                "reasoning": {"type", "id", "summary", "content", "encrypted_content"},
            }[kind]
            if unknown := item.keys() - allowed:
                return f"Unknown parameter: 'input[{place}].{unknown.pop()}'."
            following = items[place + 1] if place + 1 < len(items) else {}
            if kind == "reasoning":
                owner, issued, needed = self.issued.get(item["id"], ("", {}, ""))
                if owner != model or {**issued, "status": 0} != {**item, "status": 0}:
                    return f"The encrypted content of item {item['id']} could not be verified."
                if following.get("id") != needed:
                    return f"Item '{item['id']}' of type 'reasoning' was provided without its required following item."
            elif kind in ("function_call", "message") and (before := self._needs(item)) not in (None, items[place - 1].get("id") if place else ""):
                return f"Item '{item['id']}' of type '{kind}' was provided without its required 'reasoning' item: '{before}'."
            elif kind == "function_call":
                if not 0 < len(item["call_id"]) <= 64 or item["call_id"] in called or type(item["arguments"]) is not str:
                    return f"Invalid 'input[{place}].call_id'."
                called.append(item["call_id"])
            elif kind == "function_call_output":
                if item["call_id"] not in called:
                    return f"No tool call found for function call output with call_id {item['call_id']}."
                answered.append(item["call_id"])
            elif (problem := self._message(item)) is not None:
                return problem
        if missing := [name for name in called if name not in answered]:
            return f"No tool output found for function call {missing[0]}."
        return None

    def _needs(self, item: dict[str, Any]) -> str | None:
        return next((name for name, (_, _, following) in self.issued.items() if following == item.get("id")), None)

    @staticmethod
    def _message(item: dict[str, Any]) -> str | None:
        if "id" in item:
            (part,) = item["content"]
            whole = item["status"] == "completed" and item["type"] == "message" and part.keys() == {"type", "text", "annotations"}
            return None if whole and part["type"] == "output_text" else "Invalid value: 'content'."
        if isinstance(item["content"], str):
            return None
        for part in item["content"]:
            if part.keys() not in ({"type", "text"}, {"type", "image_url", "detail"}) or item["role"] == "assistant":
                return "Invalid value: 'content'."
            if part["type"] == "input_image" and not part["image_url"].startswith("data:image/"):
                return "Invalid 'image_url'."
        return None


def turn_of(events: list[Event], ref: str) -> Message:
    """The canonical message that the loop makes of a model turn with calls."""
    reply = Reply()
    reply.take(events)
    state = ProviderState(ref, msgspec.Raw(reply.state)) if reply.state is not None else None
    return Message("assistant", reply.text or None, tool_calls=tuple(reply.calls()), provider_state=state)


class Requests(SynchronousTestCase):
    """What is asked."""

    def test_the_usual_request(self) -> None:
        """Always a stream, never stored; messages of plain text go as the bytes they are."""
        self.assertEqual(
            {
                "model": "m1",
                "instructions": "Be brief.",
                "stream": True,
                "store": False,
                "input": [{"role": "user", "content": "Hé"}],
                "stream_options": {"include_obfuscation": False},
            },
            body_of(request()),
        )
        for name in ("acme", "openai"):
            other = provider(id=name, base_url="http://127.0.0.1:8000/v1")
            self.assertNotIn("stream_options", body_of(request(of=other)))
        self.assertIs(OpenAIResponses, _adapter("openai-responses"))

    def test_sampling(self) -> None:
        """What this API knows, under its names; a limit below its least one is raised to it."""
        extra = {"verbosity": "low", "service_tier": "flex", "prediction": {}, "logit_bias": {}}
        sampling = Sampling(0.0, 0.5, 100, ("a",), 7, 0.1, -0.1, "low", extra)
        body = body_of(request(sampling=sampling))
        usual = {"model", "input", "instructions", "stream", "store", "stream_options"}
        expected = {"temperature": 0.0, "top_p": 0.5, "max_output_tokens": 100, "text": {"verbosity": "low"}, "service_tier": "flex"}
        self.assertEqual(expected, {name: body[name] for name in body.keys() - usual})
        self.assertEqual(16, body_of(request(sampling=Sampling(max_tokens=1)))["max_output_tokens"])
        self.assertNotIn("service_tier", body_of(request(sampling=sampling, of=provider(base_url="http://127.0.0.1:8000/v1"))))

    def test_reasoning(self) -> None:
        """Asked of models that reason: encrypted, with a summary; the level as the model knows it."""
        self.assertNotIn("reasoning", body_of(request(sampling=Sampling(reasoning_effort="high"))))
        body = body_of(request(reasoning=True))
        self.assertEqual((["reasoning.encrypted_content"], {"summary": "auto"}), (body["include"], body["reasoning"]))
        local = provider(base_url="http://127.0.0.1:8000/v1")
        for model, of, levels in (
            ("o3", None, ("low", "low", "low", "medium", "high", "high")),
            ("o4-mini", None, ("low", "low", "low", "medium", "high", "high")),
            ("gpt-5", None, ("minimal", "minimal", "low", "medium", "high", "high")),
            ("gpt-5-mini-2025-08-07", None, ("minimal", "minimal", "low", "medium", "high", "high")),
            ("gpt-5-pro", None, ("high",) * 6),
            ("gpt-5.1", None, ("none", "low", "low", "medium", "high", "high")),
            ("gpt-5.1-codex-max", None, ("low", "low", "low", "medium", "high", "xhigh")),
            ("gpt-5.2", None, ("none", "low", "low", "medium", "high", "xhigh")),
            ("gpt-6-astra", None, ("none", "low", "low", "medium", "high", "xhigh")),
            ("something-new", None, ("none", "minimal", "low", "medium", "high", "xhigh")),
            ("openai/gpt-oss-120b", local, ("low", "low", "low", "medium", "high", "high")),
            ("some-local-model", local, (None, "low", "low", "medium", "high", "high")),
        ):
            for level, expected in zip(("none", "minimal", "low", "medium", "high", "xhigh"), levels, strict=True):
                asked = request(sampling=Sampling(reasoning_effort=level), reasoning=True, id=model, of=of)
                self.assertEqual(expected, body_of(asked)["reasoning"].get("effort"), (model, level))

    def test_dropped(self) -> None:
        """Each parameter that a server may not know can be left out."""
        sampling = Sampling(1.0, 1.0, 50, reasoning_effort="high", extra={"verbosity": "low", "service_tier": "flex", "safety_identifier": "u"})
        asked = request(sampling=sampling, reasoning=True, session="s1")
        for name in OpenAIResponses(provider(), None).optional(asked):  # type: ignore[arg-type]
            written = json.dumps(body_of(asked, name)) if name != "store" else json.dumps({})
            shown = {"reasoning.effort": '"effort"', "reasoning.summary": '"summary"', "text.verbosity": '"verbosity"'}.get(name, f'"{name}"')
            self.assertNotIn(shown, written, name)
        both = body_of(asked, "reasoning.effort", "reasoning.summary")
        self.assertNotIn("reasoning", both)

    def test_the_cache_key(self) -> None:
        """The conversation's name, or the caller's own; a long one is shortened to something stable."""
        self.assertEqual("s1", body_of(request(session="s1"))["prompt_cache_key"])
        self.assertEqual("own", body_of(request(session="s1", sampling=Sampling(extra={"prompt_cache_key": "own"})))["prompt_cache_key"])
        self.assertEqual(64, len(body_of(request(session="x" * 100))["prompt_cache_key"]))
        self.assertNotIn("prompt_cache_key", body_of(request(session="s1", of=provider(base_url="http://127.0.0.1:8000/v1"))))

    def test_tools(self) -> None:
        """Flat, and not strict."""
        expected = {"type": "function", "name": "read", "description": "Read a file.", "parameters": {"type": "object"}, "strict": False}
        self.assertEqual(expected, body_of(request(tools=TOOLS))["tools"][0])

    def test_a_conversation(self) -> None:
        """Texts, images, calls, results with and without images; names are left out."""
        image = ImagePart(ImageUrl("data:image/png;base64,AA=="))
        shown = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "auto"}
        read = Function("read", '{"path":"a"}')
        body = body_of(
            request(
                Message("system", "More rules."),
                Message("user", (TextPart("see"), image)),
                Message("user", "hi", name="ann"),
                Message("assistant", "Let me.", tool_calls=(ToolCall("c1", read), ToolCall("c2", Function("look", "")))),
                Message("tool", "text", tool_call_id="c1"),
                Message("tool", (TextPart("a.png"), image), tool_call_id="c2"),
                Message("assistant", "Done."),
                Message("user", "so?"),
            )
        )
        self.assertEqual(
            [
                {"role": "system", "content": "More rules."},
                {"role": "user", "content": [{"type": "input_text", "text": "see"}, shown]},
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "Let me."},
                {"type": "function_call", "call_id": "c1", "name": "read", "arguments": '{"path":"a"}'},
                {"type": "function_call", "call_id": "c2", "name": "look", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "text"},
                {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "a.png"}, shown]},
                {"role": "assistant", "content": "Done."},
                {"role": "user", "content": "so?"},
            ],
            body["input"],
        )

    def test_a_conversation_begun_elsewhere(self) -> None:
        """Another vendor's ids are rewritten alike in calls and results, its state and its reasoning are left out."""
        strange = "toolu:" + "x" * 90
        kept = ProviderState("anthropic/claude", msgspec.Raw(b'{"blocks":[{"type":"thinking","thinking":"hm","signature":"s"}]}'))
        made = Message("assistant", None, tool_calls=(ToolCall(strange, Function("read", "{}")),), provider_state=kept)
        _, called, result, _ = body_of(
            request(Message("user", "go"), made, Message("tool", "text", tool_call_id=strange), Message("user", "so?"), reasoning=True)
        )["input"]
        self.assertRegex(called["call_id"], r"^call_[0-9a-f]{32}$")
        self.assertEqual(called["call_id"], result["call_id"])

    def test_state_that_does_not_fit(self) -> None:
        """Changed, damaged or another model's: the turn goes back without it."""
        turn = turn_of(decode(WHOLE), "acme/m1")
        results = [Message("tool", "x", tool_call_id=name) for name in ("call_a", "call_b")]
        assert turn.tool_calls is not None

        def changed(state: bytes) -> Message:
            return msgspec.structs.replace(turn, provider_state=ProviderState("acme/m1", msgspec.Raw(state)))

        for name, made, model in (
            ("another model", turn, "m2"),
            ("calls in another order", msgspec.structs.replace(turn, tool_calls=turn.tool_calls[::-1]), "m1"),
            ("a call is missing", msgspec.structs.replace(turn, tool_calls=turn.tool_calls[:1]), "m1"),
            ("no object", changed(b"5"), "m1"),
            ("another object", changed(b'{"items":[{"call":5}]}'), "m1"),
            ("a text that was changed", msgspec.structs.replace(turn, content="Let me"), "m1"),
            ("a text that it does not know", changed(b'{"items":[{"call":"call_a"},{"call":"call_b"}]}'), "m1"),
        ):
            answers = results[: len(made.tool_calls or ())]
            items = body_of(request(Message("user", "go"), made, *answers, id=model, reasoning=True))["input"]
            self.assertEqual({"role": "assistant", "content": made.content}, items[1], name)
            self.assertFalse([item for item in items if item.get("type") == "reasoning" or "id" in item], name)


class Turns(vendor_cases.WithServer):
    """Whole turns."""

    def setUp(self) -> None:
        super().setUp()
        self.make(OpenAIResponses, provider())

    def start(self, asked: ModelRequest | None = None) -> Deferred[Any]:
        """Start a turn."""
        return self.ask(asked or request(tools=TOOLS))

    def sent(self) -> tuple[list[str], dict[str, Any]]:
        """Head and body of the request that waits for its answer."""
        head, _, body = self.server.wires[-1].request.partition(b"\r\n\r\n")
        return head.decode().split("\r\n"), json.loads(body)

    @staticmethod
    def refusal(message: str, param: str | None = None, code: str | None = "unsupported_parameter") -> bytes:
        """A 400 as OpenAI writes it."""
        return reply(400, {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}})

    def test_what_is_sent(self) -> None:
        """Path, key, the run's id for their support."""
        self.start()
        head, body = self.sent()
        self.assertEqual("POST /v1/responses HTTP/1.1", head[0])
        for line in (f"Authorization: Bearer {KEY}", "Content-Type: application/json", "Accept: text/event-stream", "X-Request-Id: run-7"):
            self.assertIn(line, head)
        self.assertEqual(body_of(request(tools=TOOLS)), body)

    def test_a_round_trip(self) -> None:
        """Thinking, text and two calls; both results; the answer. The server takes back what it gave, unchanged and whole."""
        vendor = Vendor()
        reasoning = {"type": "reasoning", "id": "re_0", "summary": [{"type": "summary_text", "text": "Look é😀 twice."}], "encrypted_content": "gAAA"}
        vendor.issue("m1", reasoning, "fu_1")
        vendor.issue("m1", {**reasoning, "id": "re_2", "encrypted_content": "gBBB"}, "me_3")
        stream = (
            CREATED
            + thinking(0, "Look é😀 twice.")
            + call(1, "call_a", "read", "{}")
            + thinking(2, "Look é😀 twice.", "gBBB")
            + message("And say so.", place=3, phase="commentary")
            + call(4, "call_b", "look", '{"x"', ":1}")
            + END
        )
        turn = self.start(request(tools=TOOLS, reasoning=True))
        self.assertIsNone(vendor.complaint(self.sent()[1]))
        for piece in (SSE, stream[:700], stream[700:]):
            self.server.say(piece)
        self.successResultOf(turn)
        made = turn_of(self.events, "acme/m1")
        assert made.tool_calls is not None
        self.assertEqual(["read", "look"], [one.function.name for one in made.tool_calls])
        history = [Message("user", "Hé"), made, *(Message("tool", "x", tool_call_id=one.id) for one in made.tool_calls)]
        turn = self.start(request(*history, tools=TOOLS, reasoning=True))
        body = self.sent()[1]
        self.assertIsNone(vendor.complaint(body))
        kinds = ["reasoning", "function_call", "reasoning", "message", "function_call", "function_call_output", "function_call_output"]
        self.assertEqual(kinds, [item.get("type") for item in body["input"][1:]])
        part = {"type": "output_text", "text": "And say so.", "annotations": []}
        back = {"type": "message", "id": "me_3", "role": "assistant", "status": "completed", "content": [part], "phase": "commentary"}
        self.assertEqual(back, body["input"][4])
        self.server.say(SSE + message("Done.") + END)
        self.successResultOf(turn)
        self.assertEqual("Done.", text(self.events))

        # What the server would refuse, so that the above means something.
        items = body["input"]
        for broken, why in (
            ([*items[:1], *items[2:]], "without its required 'reasoning'"),
            ([*items[:2], *items[3:]], "without its required following"),
            (items[:-1], "No tool output found"),
            ([*items[:1], {**items[1], "encrypted_content": "gXXX"}, *items[2:]], "could not be verified"),
            ([*items[:1], {**items[1], "status": None}, *items[2:]], "Unknown parameter"),
        ):
            self.assertIn(why, str(vendor.complaint({**body, "input": broken})))
        self.assertIn("could not be verified", str(vendor.complaint({**body, "model": "m2"})))

        # Another model of the same server gets the conversation without reasoning and without ids.
        body = json.loads(b"".join(responses_request(request(*history, tools=TOOLS, reasoning=True, id="m2"))))
        self.assertIsNone(vendor.complaint(body))
        self.assertEqual([None, "function_call", "function_call", *kinds[5:]], [item.get("type") for item in body["input"][1:]])

    def test_one_batch_per_read(self) -> None:
        """What one read brings leaves in one list."""
        turn = self.start()
        self.server.say(SSE)
        self.server.say(CREATED)
        self.server.say(text_delta("a") + text_delta("b") + text_delta("c")[:20])
        self.server.say(text_delta("c")[20:] + END)
        self.successResultOf(turn)
        self.assertEqual([[ANSWERED, TextDelta("a"), TextDelta("b")], [TextDelta("c"), NO_USAGE, STOP]], self.batches)

    def test_the_connection_is_kept(self) -> None:
        """Also when the end of the body comes in a read of its own."""
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        body = message("a") + END
        for _ in range(3):
            turn = self.start()
            self.server.say(head + b"%x\r\n%s\r\n" % (len(body), body))
            self.successResultOf(turn)
            self.server.say(b"0\r\n\r\n")
        self.assertEqual(1, len(self.server.wires))
        self.adapter.close()
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_a_json_answer(self) -> None:
        """A server that ignores `stream`."""
        turn = self.start()
        answer = {"status": "completed", "output": [{"type": "message", "content": content("hi")}]}
        self.server.say(reply(200, answer, "Content-Type: application/json"))
        self.successResultOf(turn)
        self.assertEqual([[ANSWERED, TextDelta("hi"), NO_USAGE, STOP]], self.batches)

    def test_parameters_refused(self) -> None:
        """Each is left out once it was refused, and from then on; what the model cannot do without is an error."""
        asked = request(tools=TOOLS, reasoning=True, session="s", sampling=Sampling(0.5, reasoning_effort="high"))
        verify = "Your organization must be verified to generate reasoning summaries. Please go to the settings."
        turn = self.start(asked)
        for message_, param, code, gone in (
            ("Unsupported parameter: 'temperature' is not supported with this model.", "temperature", "unsupported_parameter", "temperature"),
            (verify, "reasoning.summary", "unsupported_value", "summary"),
            ("Encrypted content is not supported with this model.", "include", None, "include"),
            ("Unknown parameter: 'prompt_cache_key'.", "prompt_cache_key", "unknown_parameter", "prompt_cache_key"),
        ):
            self.assertIn(f'"{gone}"', json.dumps(self.sent()[1]))
            self.server.say(self.refusal(message_, param, code))
        last = json.dumps(self.sent()[1])
        self.assertFalse([name for name in ("temperature", "summary", "include", "prompt_cache_key") if f'"{name}"' in last])
        self.server.say(SSE + message("a") + END)
        self.successResultOf(turn)
        self.start(asked)
        self.assertNotIn("temperature", self.sent()[1])
        self.make(OpenAIResponses, provider())
        for message_, param in (("Unknown parameter: 'tools'.", "tools"), ("Missing required parameter: 'model'.", "model"), ("Invalid value", None)):
            turn = self.start(asked)
            self.server.say(self.refusal(message_, param))
            self.assertIs(UpstreamRefused, type(self.failureResultOf(turn).value))

    def test_a_level_refused(self) -> None:
        """A level that the server does not have becomes the nearest of those it names, from then on."""
        asked = request(reasoning=True, sampling=Sampling(reasoning_effort="xhigh"))
        turn = self.start(asked)
        self.assertEqual("xhigh", self.sent()[1]["reasoning"]["effort"])
        says = "Unsupported value: 'xhigh' is not supported with the 'm1' model. Supported values are: 'low', 'medium', and 'high'."
        self.server.say(self.refusal(says, "reasoning.effort", "unsupported_value"))
        self.assertEqual("high", self.sent()[1]["reasoning"]["effort"])
        self.server.say(SSE + message("a") + END)
        self.successResultOf(turn)
        self.start(asked)
        self.assertEqual("high", self.sent()[1]["reasoning"]["effort"])
        self.start(request(reasoning=True, sampling=Sampling(reasoning_effort="low")))
        self.assertEqual("low", self.sent()[1]["reasoning"]["effort"])
        self.make(OpenAIResponses, provider())
        turn = self.start(asked)
        self.sent()
        self.server.say(self.refusal("Unsupported parameter: 'reasoning.effort' is not supported with this model.", "reasoning.effort"))
        self.assertEqual({"summary": "auto"}, self.sent()[1]["reasoning"])

    def test_closing_stops_the_model(self) -> None:
        """Cancelling a run closes the socket at once, before the head and while text comes."""
        for begun in (b"", SSE + text_delta("a")):
            turn = self.start()
            self.server.say(begun) if begun else None
            turn.cancel()
            self.failureResultOf(turn, CancelledError)
            self.assertTrue(self.server.wires[-1].aborted)
            self.assertEqual(self.origin._free, 4)


class Faults(vendor_cases.Faults):
    """Table 4c."""

    vendor = vendor_cases.Vendor(
        adapter=OpenAIResponses,
        api="openai-responses",
        begin=CREATED + added(0, "message", role="assistant", content=[]),
        text=lambda text: vendor_cases.event(b'{"type":"response.output_text.delta","item_id":"me_0","output_index":0,"delta":"%s"}' % text),
        reason=lambda usage: completed(usage=usage),
        end=b"",
        error=lambda message: completed("failed", error={"code": "server_error", "message": message}),
        call=lambda number, arguments: call(number + 1, f"call_{number}", "read", arguments),
        whole=[b'{"output": []}', b'{"output": [{"type": "message", "content": null}], "status": "completed"}', b'{"error": {"message": "x"}}'],
        too_long=[
            (400, {"error": {"code": "context_length_exceeded", "message": "x"}}),
            (400, {"error": {"message": "Your input exceeds the context window of this model. Please adjust your input and try again."}}),
        ],
        refused=lambda message: {"error": {"message": message, "type": "x", "param": None, "code": None}},
        usage={"input_tokens": 10, "output_tokens": 5},
    )

    def test_a_line_without_end(self) -> None:
        """U09: the socket is closed when one event is over 4 MiB; the last event, which repeats all that was said, may be larger than elsewhere."""
        turn = self.turn()
        self.server.say(SSE)
        for _ in range(65):
            if not turn.called:
                self.server.say(b"x" * 65_536)
        self.assertIn("4 MiB", self.failureResultOf(turn, UpstreamError).value.message)
        self.assertTrue(self.server.wires[-1].aborted)
        large = completed(output=[{"type": "message", "content": content("x" * 2_000_000)}], usage={})
        turn = self.turn()
        self.server.say(SSE + text_delta("a") + large)
        self.successResultOf(turn)
