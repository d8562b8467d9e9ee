"""response_format: what the provider is asked for, and what becomes of an answer that does not fit, table 1.6 of the facts."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.callers import misfit
from mayros.core.ports import ModelRequest, ResponseFormat
from mayros.core.schema_check import problems
from tests.helpers import Answer, FakeTool, Harness, HarnessCase, chat, post

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}
OBJECT = {"type": "json_object"}


_KEYWORDS = (
    *("type", "nullable", "enum", "const", "properties", "required", "additionalProperties", "dependentRequired", "items", "prefixItems", "contains"),
    *("minItems", "maxItems", "uniqueItems", "minimum", "maximum", "exclusiveMinimum", "multipleOf", "minLength", "minProperties", "anyOf", "oneOf"),
    *("allOf", "not", "if", "then", "else", "$ref", "$defs", "patternProperties"),
)


def _schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(_KEYWORDS), inner | st.sampled_from(["object", "array", "#", "#/properties/a", "a"]), max_size=4)


def schema(of: dict[str, Any] = POINT, **more: Any) -> dict[str, Any]:
    """A response format with a JSON Schema."""
    return {"type": "json_schema", "json_schema": {"name": "point", "schema": of, **more}}


class FormatCase(HarnessCase):
    """Short ways to ask."""

    def use(self, *tools: Any) -> None:
        """A gateway whose agent has these tools."""
        self.one = Harness(self, None, tools=tools)
        self.gateways.append(self.one)
        self.provider = self.one.provider

    def setUp(self) -> None:
        super().setUp()
        self.use()

    def ask(self, form: Any, *texts: str, reason: str = "stop", **fields: Any) -> Answer:
        """A request with this format, whose model says these texts."""
        client = self.one.dial(post(chat(response_format=form, **fields)))
        if texts:
            self.provider.say(*texts)
        self.provider.stop(reason)
        self.one.settle(client)
        return client.answer()

    @property
    def asked(self) -> ModelRequest:
        """What the model was asked last."""
        return self.provider.requests[-1]


class Passed(FormatCase):
    """What fits, and what is not looked at."""

    def test_the_provider_is_told(self) -> None:
        """With everything that was said of the schema; nothing where plain text is wanted."""
        self.ask({"type": "text"}, "hi")
        self.assertIsNone(self.asked.response_format)
        self.ask(OBJECT, "{}")
        self.assertEqual(self.asked.response_format, ResponseFormat())
        self.ask(schema(strict=True, description="A point."), '{"x":1,"y":2}')
        self.assertEqual(self.asked.response_format, ResponseFormat(POINT, "point", "A point.", True))

    def test_an_answer_that_fits(self) -> None:
        """Is handed on as it is, blanks and all."""
        for form, text in ((OBJECT, '{"a":[1]}'), (schema(), ' {"x": 1, "y": 2}\n')):
            answer = self.ask(form, text)
            self.assertEqual((answer.status, answer.json["choices"][0]["message"]["content"]), (200, text))

    def test_an_answer_that_was_cut_short(self) -> None:
        """Is no mismatch: finish_reason says why it is not whole."""
        for reason in ("length", "content_filter"):
            answer = self.ask(schema(), '{"x":', reason=reason)
            self.assertEqual((answer.status, answer.json["choices"][0]["finish_reason"]), (200, reason))

    def test_a_refusal(self) -> None:
        """Is no mismatch either: what the model says instead is handed on (content_filter)."""
        answer = self.ask(schema(), "I cannot help with that.", reason="content_filter")
        self.assertEqual(answer.json["choices"][0]["message"]["content"], "I cannot help with that.")

    def test_calls_are_no_answer(self) -> None:
        """A model that calls a function of the caller's has not answered yet."""
        tool = {"type": "function", "function": {"name": "f"}}
        client = self.one.dial(post(chat(response_format=schema(), tools=[tool])))
        self.provider.call(("f", {}), text="Let me see.")
        self.one.settle(client)
        self.assertEqual(client.answer().json["choices"][0]["finish_reason"], "tool_calls")


class Refused(FormatCase):
    """What does not fit."""

    def test_plain(self) -> None:
        """502, which a client must not repeat by itself; the message says what is wrong, and the turn is recorded as failed."""
        for form, text, word in (
            (OBJECT, "Sure: {}", "not valid JSON"),
            (OBJECT, "[]", "not a JSON object"),
            (schema(), "", "not valid JSON"),
            (schema(), '{"x":1}', "y is missing"),
            (schema(), '{"x":1,"y":"2"}', "y must be an integer"),
            (schema(), '```json\n{"x":1,"y":2}\n```', "not valid JSON"),
        ):
            answer = self.ask(form, text)
            self.assertEqual((answer.status, answer.error["type"], answer.error["code"]), (502, "api_error", "response_format_unsatisfied"))
            self.assertEqual(answer.headers["x-should-retry"], "false")
            self.assertIn(word, answer.error["message"])
            self.assertEqual(self.one.store.turns[-1][1].outcome, "error")

    def test_streamed(self) -> None:
        """The text comes as the model makes it; a mismatch shows at the end, as an error event without DONE."""
        for text, fits in (('{"x":1,"y":2}', True), ('{"x":1}', False)):
            client = self.one.dial(post(chat(response_format=schema(), stream=True)))
            self.provider.say(text[:3])
            self.one.settle(client)
            self.assertEqual(client.text(), text[:3])
            self.provider.say(text[3:])
            self.provider.stop()
            self.one.settle(client)
            self.assertEqual(client.events()[-1] == "[DONE]", fits)
            if not fits:
                self.assertEqual(json.loads(client.events()[-1])["error"]["code"], "response_format_unsatisfied")
            self.assertEqual("".join(self.texts(client.events()[:-1])), text)

    @staticmethod
    def texts(events: list[str]) -> list[str]:
        chunks = [json.loads(event) for event in events]
        return [choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]]


class WithTools(FormatCase):
    """An agent with tools of its own says things between its calls; they are no part of the answer."""

    def test_only_the_answer_is_told(self) -> None:
        """Plain and streamed; the record has all of it."""
        for stream in (False, True):
            self.use(FakeTool("look", "a map"))
            client = self.one.dial(post(chat(response_format=schema(), stream=stream, user="ann")))
            self.provider.call(("look", {}), text="Let me look.")
            self.provider.say('{"x":1,')
            self.provider.say('"y":2}')
            self.provider.stop()
            self.one.settle(client)
            told = client.text() if stream else client.answer().json["choices"][0]["message"]["content"]
            self.assertEqual(told, '{"x":1,"y":2}')
            kept = [json.loads(bytes(raw))["content"] for raw in self.one.store.sessions["agent:main:openai-user:ann"]]
            self.assertEqual(kept, ["hi", "Let me look.", "a map", '{"x":1,"y":2}'])

    def test_a_mismatch_after_calls(self) -> None:
        """The run has acted, and still its answer does not fit."""
        self.use(FakeTool("look", "a map"))
        client = self.one.dial(post(chat(response_format=schema())))
        self.provider.call(("look", {}))
        self.provider.say("Done.")
        self.provider.stop()
        self.one.settle(client)
        self.assertEqual(client.answer().error["code"], "response_format_unsatisfied")

    def test_text_beside_calls_of_the_callers(self) -> None:
        """Is told with them."""
        self.use(FakeTool("look", "a map"))
        tool = {"type": "function", "function": {"name": "f"}}
        client = self.one.dial(post(chat(response_format=schema(), tools=[tool])))
        self.provider.call(("look", {}), text="First.")
        self.provider.call(("f", {}), text="Now you.")
        self.one.settle(client)
        (choice,) = client.answer().json["choices"]
        self.assertEqual((choice["finish_reason"], choice["message"]["content"]), ("tool_calls", "Now you."))

    def test_logprobs_are_not_invented(self) -> None:
        """Asked for, there are none."""
        answer = self.ask({"type": "text"}, "hi", logprobs=True, top_logprobs=3)
        self.assertIsNone(answer.json["choices"][0]["logprobs"])


class Schemas(SynchronousTestCase):
    """The keywords of JSON Schema that answers and arguments are held against."""

    def fits(self, schema_: Any, *values: Any) -> None:
        for value in values:
            self.assertEqual(problems(value, schema_, "it"), [], value)

    def differs(self, schema_: Any, *values: Any) -> str:
        found = [problems(value, schema_, "it") for value in values]
        self.assertTrue(all(found), found)
        return found[0][0]

    def test_types(self) -> None:
        """One or several; null where it is allowed; true is no number."""
        for kind, good, bad in (
            ("object", {}, []), ("array", [], {}), ("string", "", 1), ("integer", 2.0, 1.5), ("number", 1, "1"), ("boolean", True, 1),
            ("null", None, 0),
        ):  # fmt: skip
            self.fits({"type": kind}, good)
            self.differs({"type": kind}, bad)
        self.fits({"type": ["string", "null"]}, "a", None)
        self.differs({"type": ["string", "null"]}, 5)
        self.fits({"type": "string", "nullable": True}, None)
        self.differs({"type": "number"}, True)

    def test_values(self) -> None:
        """enum and const."""
        self.fits({"enum": ["a", 1, None]}, "a", 1, None)
        self.assertIn('must be one of "a", 1, null', self.differs({"enum": ["a", 1, None]}, "b", True))
        self.fits({"const": {"a": 1}}, {"a": 1})
        self.differs({"const": 1}, True, 2)

    def test_objects(self) -> None:
        """What is missing, what is too much, what depends on what."""
        self.assertEqual(self.differs(POINT, {"x": 1}), "y is missing")
        self.assertIn("z is not known", self.differs(POINT, {"x": 1, "y": 1, "z": 1}))
        self.fits({"additionalProperties": {"type": "integer"}}, {"a": 1})
        self.differs({"additionalProperties": {"type": "integer"}}, {"a": "1"})
        self.fits({"additionalProperties": False, "patternProperties": {"^a": {}}}, {"ab": 1})
        self.differs({"minProperties": 1}, {})
        self.differs({"maxProperties": 1}, {"a": 1, "b": 1})
        self.differs({"dependentRequired": {"a": ["b"]}}, {"a": 1})

    def test_arrays(self) -> None:
        """Items, also by place; how many; none twice; one of a kind."""
        self.assertIn("[1] must be", self.differs({"items": {"type": "integer"}}, [1, "2"]))
        self.differs({"prefixItems": [{"type": "string"}], "items": False}, [1], ["a", 2])
        self.fits({"prefixItems": [{"type": "string"}], "items": {"type": "integer"}}, ["a", 1], [])
        self.differs({"minItems": 1}, [])
        self.differs({"maxItems": 1}, [1, 2])
        self.differs({"uniqueItems": True}, [{"a": 1, "b": 2}, {"b": 2, "a": 1}])
        self.fits({"uniqueItems": True}, [1, True, "1"])
        self.differs({"contains": {"const": 1}}, [2])

    def test_numbers_and_texts(self) -> None:
        """Bounds, both kinds of them, and steps."""
        for schema_, good, bad in (
            ({"minimum": 1}, 1, 0), ({"maximum": 1}, 1, 2), ({"exclusiveMinimum": 1}, 1.1, 1), ({"exclusiveMaximum": 1}, 0, 1),
            ({"multipleOf": 0.1}, 0.3, 0.25), ({"minLength": 2}, "ab", "a"), ({"maxLength": 2}, "ab", "abc"),
        ):  # fmt: skip
            self.fits(schema_, good)
            self.differs(schema_, bad)

    def test_combinations(self) -> None:
        """All, any, exactly one, none, one or the other."""
        either = [{"type": "string"}, {"type": "integer", "minimum": 5}]
        self.fits({"anyOf": either}, "a", 5)
        self.assertIn("none of the alternatives", self.differs({"anyOf": either}, None, []))
        self.assertIn("at least 5", self.differs({"anyOf": either}, 4))
        self.fits({"oneOf": [{"minimum": 1}, {"maximum": -1}]}, 1, -1)
        self.differs({"oneOf": [{"minimum": 1}, {"maximum": -1}]}, 0)
        self.assertIn("exactly one", self.differs({"oneOf": [{"minimum": 1}, {"minimum": 2}]}, 2))
        self.differs({"allOf": [{"minimum": 1}, {"maximum": 3}]}, 0, 4)
        self.fits({"not": {"type": "null"}}, 1)
        self.differs({"not": {"type": "null"}}, None)
        when = {"if": {"type": "string"}, "then": {"minLength": 2}, "else": {"type": "null"}}
        self.fits(when, "ab", None)
        self.differs(when, "a", 5)
        self.differs({"properties": {"a": False}}, {"a": 1})

    def test_references(self) -> None:
        """Within the schema, also to itself; anything fits one that leads nowhere."""
        tree = {
            "$ref": "#/$defs/node",
            "$defs": {"node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}},
        }
        self.fits(tree, {"next": {"next": None}}, {})
        self.differs(tree, {"next": {"next": 5}}, [])
        self.fits({"$ref": "#/$defs/nowhere"}, 1)
        self.fits({"$ref": "https://example.org/schema"}, 1)
        self.fits({"properties": {"a/b": {"type": "null"}, "c": {"$ref": "#/properties/a~1b"}}}, {"c": None})

    def test_what_never_ends(self) -> None:
        """A schema that only names itself is too deep; one whose ways multiply is not gone through to its end, and then anything fits."""
        self.differs({"$ref": "#"}, 1)
        self.fits({"not": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}}, 1)
        wide: dict[str, Any] = {"type": "integer"}
        for _ in range(40):
            wide = {"anyOf": [wide, wide, {"allOf": [wide, wide]}]}
        self.fits(wide, "x")

    @settings(deadline=None, max_examples=80)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3), lambda inner: _schemas(inner) | st.lists(inner, max_size=3)
        )
    )
    def test_no_schema_breaks_the_check(self, schema_: Any) -> None:
        """Whatever a caller sends as a schema: a keyword that makes no sense does not count."""
        for value in ({"a": [1, "x", None]}, [], "x", 5, 1.5, True, None):
            for one in (schema_, {"items": schema_, "properties": {"a": schema_}}):
                if isinstance(one, dict):
                    problems(value, one, "it")

    def test_no_regular_expression_is_run(self) -> None:
        """One that takes for ever would hold everybody up."""
        self.fits({"pattern": "^(a+)+$"}, "a" * 5_000 + "b")

    def test_misfits(self) -> None:
        """Text that is no JSON at all."""
        for text in ("", "{", "nope", "\ud800", "[" * 100_000):
            self.assertIsNotNone(misfit(text, ResponseFormat()), text[:10])
        self.assertIsNone(misfit("[1]", ResponseFormat({"type": "array"}, "n")))
