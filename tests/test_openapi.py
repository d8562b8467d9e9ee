"""docs/openapi.json is a valid OpenAPI 3.1 document, and what the HTTP door does."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import msgspec
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from twisted.trial.unittest import SynchronousTestCase

import mayros
from mayros.web.app import ROUTES
from mayros.web.cors import EXPOSED
from mayros.web.openapi import CHAT_REQUEST, COMMON_HEADERS, FIELDS, REQUEST_HEADERS, RUN_HEADERS, document, text
from mayros.web.shapes import SHAPES
from mayros.wire import chat as wire
from tests.helpers import Answer, HarnessCase, chat, head, post
from tests.sources import tree

FILE = Path(__file__).parent.parent / "docs" / "openapi.json"


def schema(name: str) -> Draft202012Validator:
    """One of the document's schemas, with all it refers to."""
    parts = json.loads(document())["components"]
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": parts})


class DocumentTests(SynchronousTestCase):
    """The document by itself, and against the routes."""

    def setUp(self) -> None:
        self.document: dict[str, Any] = json.loads(document())

    def test_it_is_fresh(self) -> None:
        """Whoever changes a type, a route or an error runs `make docs`."""
        self.assertTrue(FILE.read_text(encoding="utf-8") == text(), "docs/openapi.json is out of date: run `make docs`")

    def test_it_is_valid(self) -> None:
        """By the rules of OpenAPI 3.1."""
        self.assertEqual(self.document["openapi"], "3.1.0")
        self.assertEqual([str(error) for error in OpenAPIV31SpecValidator(self.document).iter_errors()], [])

    def test_every_route_is_in_it(self) -> None:
        """And no other; what needs no credential says so. HEAD and OPTIONS are told of once, for all."""
        there = {path.replace("{model}", "*").encode(): operations for path, operations in self.document["paths"].items()}
        self.assertEqual(set(there), set(ROUTES))
        for path, route in ROUTES.items():
            self.assertEqual({method.decode().lower() for method in route.methods if method != b"HEAD"}, set(there[path]), path)
            for operation in there[path].values():
                self.assertEqual(operation.get("security") == [], route.open, path)
                self.assertIn("200", operation["responses"])
                if not route.open:
                    self.assertLessEqual({"401", "404"}, set(operation["responses"]))

    def test_every_error_is_in_it(self) -> None:
        """Each code, under its status, with the words that explain it."""
        responses = self.document["components"]["responses"]
        for status, code in (
            ("429", "queue_full"),
            ("422", "run_aborted"),
            ("404", "model_not_found"),
            ("503", "storage_unavailable"),
            ("400", "invalid_value"),
        ):
            self.assertIn(f"- `{code}`: ", responses[status]["description"])
        asked = self.document["paths"]["/v1/chat/completions"]["post"]["responses"]
        self.assertEqual(set(responses), set(asked) - {"200"} | {"405"})

    def test_the_fields_of_a_request(self) -> None:
        """Those that are read, with their limits; not those that are only there to be refused."""
        request = self.document["components"]["schemas"][CHAT_REQUEST]
        fields = set(request["properties"])
        self.assertLessEqual(set(FIELDS), fields)
        self.assertEqual(set(wire._Request.__struct_fields__) - fields, {"functions", "function_call", "audio", "web_search_options", "moderation"})
        self.assertEqual(request["required"], ["messages"])
        self.assertIn({"type": "number", "minimum": 0, "maximum": 2}, request["properties"]["temperature"]["anyOf"])

    def test_no_name_of_ours_is_private(self) -> None:
        """Programs that are made from it have names that read well."""
        self.assertFalse([name for name in self.document["components"]["schemas"] if name.startswith("_")])
        self.assertNotIn('"_', document().decode())

    def test_it_costs_nothing_until_it_is_asked_for(self) -> None:
        """No module imports it, or its types, when the daemon starts."""
        for path in Path(mayros.__file__).parent.rglob("*.py"):
            for node in tree(path).body:
                if isinstance(node, ast.ImportFrom) and node.module in ("mayros.web.openapi", "mayros.web.shapes"):
                    self.assertEqual(path.name, "openapi.py")


class ServedTests(HarnessCase):
    """The document against what is asked and answered."""

    def setUp(self) -> None:
        super().setUp()
        self.one = self.gateway()

    def assert_fits(self, name: str, value: Any) -> None:
        """By the document's schema, and by the type it is made of, which forbids what it does not know."""
        schema(name).validate(value)
        kind = next((kind for kind in SHAPES if kind.__name__ == name), None)
        if kind is not None:
            msgspec.convert(value, kind)

    def get(self, path: str) -> Answer:
        """Without a credential."""
        return self.one.dial(head("GET", path, token=None) + b"\r\n").answer()

    def test_it_is_open(self) -> None:
        """Like the health checks: at GET and HEAD, without a credential, with one final slash."""
        answer = self.get("/openapi.json")
        self.assertEqual((answer.status, answer.headers["content-type"], answer.body), (200, "application/json", document()))
        self.assertEqual(self.get("/openapi.json/").json, json.loads(text()))
        self.assertTrue(self.one.dial(head("HEAD", "/openapi.json", token=None) + b"\r\n").received.endswith(b"\r\n\r\n"))
        self.assertIn(b"/openapi.json", self.get("/").body)

    def test_answers_are_as_described(self) -> None:
        """Each kind of answer."""
        self.assert_fits("ChatCompletion", self.one.serve().json)
        self.assert_fits("Health", self.get("/healthz").json)
        self.assert_fits("Ready", self.get("/readyz").json)
        self.assert_fits("ErrorResponse", self.get("/nowhere").json)
        self.assert_fits("ErrorResponse", self.get("/v1/models").json)
        models = self.one.dial(head("GET", "/v1/models") + b"\r\n").answer().json
        self.assert_fits("ModelList", models)
        self.assert_fits("ModelObject", models["data"][0])

    def test_events_are_as_described(self) -> None:
        """Each chunk of a stream, and its error."""
        client = self.one.dial(post(chat(stream=True, stream_options={"include_usage": True})))
        self.one.provider.say("a", "b")
        self.one.provider.stop("length")
        self.one.settle(client)
        *chunks, done = client.events()
        self.assertEqual((len(chunks), done), (5, "[DONE]"))
        tools = [{"type": "function", "function": {"name": "weather"}}]
        calling = self.one.dial(post(chat(stream=True, tools=tools)))
        self.one.provider.call(("weather", {"city": "Oslo"}), text="Let me ask.")
        self.one.settle(calling)
        calls = calling.events()[:-1]
        self.assertIn("weather", "".join(calls))
        for chunk in (*chunks, *calls):
            self.assert_fits("ChatCompletionChunk", json.loads(chunk))
        plain = self.one.dial(post(chat(tools=tools)))
        self.one.provider.call(("weather", {"city": "Oslo"}))
        self.one.settle(plain)
        self.assert_fits("ChatCompletion", plain.answer().json)

    def test_requests_are_as_described(self) -> None:
        """What is served fits; what is refused because of a type or a limit does not."""
        for good in (
            chat(),
            chat(stream=True, user="ann", temperature=1.5, stop=["a"], metadata={"a": "b"}, n=None, seed=-1),
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
        ):
            self.assertTrue(schema(CHAT_REQUEST).is_valid(good), good)
            self.assertEqual(self.one.serve(**good).status, 200)
        for bad in ({}, {"messages": 5}, chat(temperature=3), chat(stream="yes"), chat(max_tokens=0), chat(reasoning_effort="much"), [], 5):
            self.assertFalse(schema(CHAT_REQUEST).is_valid(bad), bad)
            self.assertEqual(self.one.dial(post(bad)).answer().status, 400, bad)

    def test_headers_are_as_described(self) -> None:
        """Every header that answers to these requests have is in it, but for those that HTTP itself is made of."""
        served = json.loads(document())
        usual = {
            "server",
            "date",
            "content-type",
            "content-length",
            "transfer-encoding",
            "cache-control",
            "x-accel-buffering",
            "x-content-type-options",
            "referrer-policy",
        }
        for stream in (False, True):
            found = set(self.one.serve(stream=stream).headers) - usual
            self.assertEqual(found, set(COMMON_HEADERS) | set(RUN_HEADERS))
            self.assertLessEqual(found, set(served["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["headers"]))
        for name in EXPOSED:
            self.assertIn(name, {*served["components"]["headers"], "retry-after-ms"})
        self.assertEqual(set(served["components"]["parameters"]), set(REQUEST_HEADERS))
