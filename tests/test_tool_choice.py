"""How each vendor is told that a tool must be called, and in which form to answer; and what happens where its server knows neither."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.ports import CallerTool, ModelRequest, ResponseFormat, Sampling, ToolSpec
from mayros.providers.anthropic import messages_request
from mayros.providers.formats import sentence
from mayros.providers.google import GoogleAI, google_request
from mayros.providers.openai_chat import OpenAIChat, chat_request
from mayros.providers.openai_responses import OpenAIResponses, responses_request
from tests import vendor_cases
from tests.vendor_cases import TOOL, reply

WEATHER = CallerTool("weather", "W.", {"type": "object", "properties": {}}, True)
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
POINT, ANY = ResponseFormat(SCHEMA, "point", "P.", True), ResponseFormat()
APIS: dict[str, Callable[..., tuple[bytes, ...]]] = {
    "openai-completions": chat_request, "openai-responses": responses_request, "anthropic-messages": messages_request,
    "google-generative-ai": google_request,
}  # fmt: skip


def request(api: str, base_url: str = "http://127.0.0.1/v1", model: dict[str, Any] | None = None, **fields: Any) -> ModelRequest:
    """A turn with two tools, the second one the caller's; `fields` of the request."""
    made = vendor_cases.request(vendor_cases.provider(api, base_url=base_url), fields.pop("sampling", None), **(model or {}))
    return replace(made, **{"tools": [TOOL, WEATHER], **fields})


def body(api: str, dropped: frozenset[str] = frozenset(), **fields: Any) -> dict[str, Any]:
    """What is sent."""
    made: dict[str, Any] = json.loads(b"".join(APIS[api](request(api, **fields), dropped)))
    return made


class Choices(SynchronousTestCase):
    """tool_choice and parallel_tool_calls."""

    def test_each_vendors_words(self) -> None:
        """Nothing where it is the usual, which old servers take too."""
        function = {"type": "function", "function": {"name": "weather"}}
        flat = {"type": "function", "name": "weather"}
        one, only = {"disable_parallel_tool_use": True}, {"allowedFunctionNames": ["weather"]}
        for choice, parallel, chat, responses, anthropic, google in (
            ("auto", True, None, None, None, None),
            ("none", True, "none", "none", {"type": "none"}, {"mode": "NONE"}),
            ("required", True, "required", "required", {"type": "any"}, {"mode": "ANY"}),
            ("function:weather", True, function, flat, {"type": "tool", "name": "weather"}, {"mode": "ANY", **only}),
            ("auto", False, None, None, {"type": "auto", **one}, None),
            ("required", False, "required", "required", {"type": "any", **one}, {"mode": "ANY"}),
            ("function:weather", False, function, flat, {"type": "tool", "name": "weather", **one}, {"mode": "ANY", **only}),
        ):
            asked: dict[str, Any] = {"tool_choice": choice, "parallel_calls": parallel}
            for api, said in (("openai-completions", chat), ("openai-responses", responses), ("anthropic-messages", anthropic)):
                sent = body(api, **asked)
                self.assertEqual(sent.get("tool_choice"), said, (api, asked))
                if api.startswith("openai"):
                    self.assertEqual(sent.get("parallel_tool_calls"), None if parallel else False)
            self.assertEqual(body("google-generative-ai", **asked).get("toolConfig"), {"functionCallingConfig": google} if google else None)

    def test_nothing_without_tools(self) -> None:
        """A choice among nothing is refused by all."""
        for api in APIS:
            sent = body(api, tools=(), tool_choice="required", parallel_calls=False)
            self.assertFalse({"tool_choice", "parallel_tool_calls", "toolConfig"} & set(sent), api)

    def test_who_must_call_does_not_think(self) -> None:
        """Anthropic refuses both together."""
        for model_id in ("claude-sonnet-4-5", "claude-opus-4-8"):
            asked: dict[str, Any] = {"model": {"id": model_id, "reasoning": True}, "sampling": Sampling(reasoning_effort="high")}
            self.assertIn("thinking", body("anthropic-messages", **asked))
            self.assertFalse({"thinking", "output_config"} & set(body("anthropic-messages", tool_choice="required", **asked)))

    def test_strict(self) -> None:
        """As the caller said, where the vendor knows it; a server that refuses the word gets none."""
        openai = "https://api.openai.com/v1"
        self.assertEqual([tool["function"].get("strict") for tool in body("openai-completions")["tools"]], [None, True])
        told = body("openai-completions", base_url=openai, model={"compat": {"supportsStrictMode": True}})
        self.assertEqual([tool["function"]["strict"] for tool in told["tools"]], [False, True])
        self.assertNotIn('"strict"', json.dumps(body("openai-completions", frozenset({"strict"}))))
        self.assertEqual([tool["strict"] for tool in body("openai-responses")["tools"]], [False, True])
        for api in ("anthropic-messages", "google-generative-ai"):
            self.assertNotIn('"strict"', json.dumps(body(api)))

    def test_a_callers_tools_are_not_remembered(self) -> None:
        """They are his request's own, however like another's they are."""
        for api in APIS:
            for text in ("first", "second"):
                self.assertIn(text, json.dumps(body(api, tools=[TOOL, CallerTool("weather", text, {"type": "object"})])["tools"]))
            plain = json.dumps(body(api, tools=[TOOL, ToolSpec("weather", "third", {"type": "object"})]))
            self.assertIn("third", plain)


class Formats(SynchronousTestCase):
    """response_format."""

    def test_vendors_that_know_it(self) -> None:
        """OpenAI's two interfaces, and Google's: before Gemini 3 without tools only."""
        said = {"name": "point", "schema": SCHEMA, "description": "P.", "strict": True}
        self.assertEqual(body("openai-completions", response_format=POINT)["response_format"], {"type": "json_schema", "json_schema": said})
        self.assertEqual(body("openai-responses", response_format=POINT)["text"], {"format": {"type": "json_schema", **said}})
        for model_id, tools, native in (("gemini-2.5-pro", (), True), ("gemini-2.5-pro", (TOOL,), False), ("gemini-3-pro", (TOOL,), True)):
            sent = body("google-generative-ai", response_format=POINT, tools=tools, model={"id": model_id})
            form = {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA} if native else {}
            self.assertEqual({name: value for name, value in sent.get("generationConfig", {}).items() if name.startswith("response")}, form)
            self.assertEqual(sentence(POINT) in sent["systemInstruction"]["parts"][0]["text"], not native)

    def test_vendors_that_do_not(self) -> None:
        """A sentence at the end of the system prompt, after what is cached."""
        system = body("anthropic-messages", response_format=POINT)["system"]
        self.assertEqual([block["text"] for block in system], ["Be brief.", sentence(POINT)])
        self.assertEqual(body("anthropic-messages", response_format=POINT, system="")["system"][0]["text"], sentence(POINT))
        cached = body("anthropic-messages", response_format=POINT, base_url="https://api.anthropic.com")["system"]
        self.assertEqual(["cache_control" in block for block in cached], [True, False])

    def test_any_object(self) -> None:
        """What is wanted is said in words too: OpenAI refuses it where nothing speaks of JSON."""
        self.assertEqual(body("openai-completions", response_format=ANY)["response_format"], {"type": "json_object"})
        self.assertEqual(body("openai-responses", response_format=ANY)["text"], {"format": {"type": "json_object"}})
        google = body("google-generative-ai", response_format=ANY, tools=())
        self.assertEqual(google["generationConfig"], {"responseMimeType": "application/json"})
        for sent in (body(api, response_format=ANY) for api in APIS):
            self.assertIn("JSON", json.dumps(sent))

    def test_verbosity_stays(self) -> None:
        """OpenAI's Responses API has both in one place."""
        sampling = Sampling(extra={"verbosity": "low"})
        sent = body("openai-responses", base_url="https://api.openai.com/v1", response_format=POINT, sampling=sampling)
        self.assertEqual((sent["text"]["verbosity"], sent["text"]["format"]["name"]), ("low", "point"))


class Refusals(vendor_cases.WithServer):
    """Servers that do not know a word: it is left out from then on."""

    def refused(self, adapter: Any, api: str, message: str, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """What was sent at first, and after the refusal."""
        self.make(adapter, vendor_cases.provider(api))
        asked = request(api, **fields)
        self.ask(replace(asked, model=replace(asked.model, provider=self.of)))
        first = self.sent()
        self.server.say(reply(400, {"error": {"message": message}}))
        return first, self.sent()

    def sent(self) -> dict[str, Any]:
        """The body of the last request."""
        made: dict[str, Any] = json.loads(self.server.wires[-1].request.partition(b"\r\n\r\n")[2])
        return made

    def test_a_form(self) -> None:
        """Becomes a sentence, whatever words a server has for that."""
        for message in (
            "Unrecognized request argument supplied: response_format",
            "This response_format type is unavailable now",
            "This model does not support response format `json_schema`. See supported models.",
            "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.",
            "response_format.type must be one of: text, json_object",
        ):
            first, then = self.refused(OpenAIChat, "openai-completions", message, response_format=POINT)
            self.assertIn("response_format", first)
            self.assertNotIn("response_format", then)
            self.assertIn(sentence(POINT), then["messages"][0]["content"])
        first, then = self.refused(OpenAIResponses, "openai-responses", "'text.format' json_schema is not supported", response_format=POINT)
        self.assertEqual(("text" in first, "text" in then, sentence(POINT) in then["instructions"]), (True, False, True))

    def test_googles(self) -> None:
        """Step by step: the schema first, then the form."""
        first, then = self.refused(
            GoogleAI, "google-generative-ai", "Unknown name \"responseJsonSchema\" at 'generation_config'", response_format=POINT, tools=()
        )
        self.assertIn("responseJsonSchema", first["generationConfig"])
        self.assertEqual(then["generationConfig"], {"responseMimeType": "application/json"})
        self.assertIn(sentence(POINT), then["systemInstruction"]["parts"][0]["text"])
        self.server.say(reply(400, {"error": {"message": "Function calling with a response mime type: 'application/json' is unsupported"}}))
        self.assertNotIn("generationConfig", self.sent())

    def test_a_schema_that_the_server_does_not_like(self) -> None:
        """Is the caller's to mend, and no reason to do without from then on."""
        message = "Invalid schema for response_format 'point': In context=(), 'additionalProperties' is required to be supplied and to be false."
        self.make(OpenAIChat, vendor_cases.provider("openai-completions"))
        asked = request("openai-completions", response_format=POINT)
        turn = self.ask(replace(asked, model=replace(asked.model, provider=self.of)))
        self.server.say(reply(400, {"error": {"message": message}}))
        self.assertIn("additionalProperties", self.failureResultOf(turn).value.message)

    def test_a_choice(self) -> None:
        """Is left out where it is unknown; whether it was obeyed shows in the answer."""
        for name in ("tool_choice", "parallel_tool_calls"):
            first, then = self.refused(
                OpenAIChat, "openai-completions", f"Unsupported parameter: '{name}'.", tool_choice="required", parallel_calls=False
            )
            self.assertEqual((name in first, name in then), (True, False))
