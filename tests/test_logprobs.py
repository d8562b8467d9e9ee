"""How likely the tokens of an answer were: asked of the provider, read from its stream, and handed on, plain and streamed; never invented."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mayros.core.ports import Sampling
from mayros.events import Event, TextDelta
from mayros.net.redact import Redactor
from mayros.providers.chat_decoder import ChatDecoder
from tests.helpers import HarnessCase, chat, post
from tests.test_openai_chat import chat_request, chunk, event, provider, request
from tests.test_openai_shapes import ASK, SdkCase


def token(text: str, logprob: float = -0.5, *others: str, **more: Any) -> dict[str, Any]:
    """A token as OpenAI writes it."""
    top = [{"token": other, "logprob": -1.5, "bytes": list(other.encode())} for other in others]
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": top, **more}


def likely(content: str | None, *tokens: Any) -> bytes:
    """A chunk with logprobs."""
    delta = {} if content is None else {"content": content}
    return event({"choices": [{"index": 0, "delta": delta, "logprobs": {"content": tokens, "refusal": None}, "finish_reason": None}]})


END = chunk(None, "stop") + b"data: [DONE]\n\n"


def told(*pieces: bytes, asked: bool = True, think_tags: bool = False) -> list[tuple[str, list[str] | None]]:
    """The texts of an answer, each with its tokens."""
    decoder = ChatDecoder("acme", "m1", Redactor([]), think_tags=think_tags, logprobs=asked)
    events: list[Event] = [one for piece in pieces for one in decoder.feed(piece)] + decoder.close()
    return [
        (one.text, [each["token"] for each in json.loads(one.logprobs)] if one.logprobs is not None else None)
        for one in events
        if type(one) is TextDelta
    ]


class Providers(SynchronousTestCase):
    """What a provider is asked, and what it says."""

    def body(self, sampling: Sampling, *dropped: str) -> dict[str, Any]:
        """The request."""
        body: dict[str, Any] = json.loads(b"".join(chat_request(request(provider(), sampling), frozenset(dropped))))
        return {name: value for name, value in body.items() if "logprobs" in name}

    def test_asked(self) -> None:
        """As the caller asked; where the server refuses the one, the other makes no sense either."""
        self.assertEqual(self.body(Sampling()), {})
        self.assertEqual(self.body(Sampling(logprobs=True)), {"logprobs": True})
        self.assertEqual(self.body(Sampling(logprobs=True, top_logprobs=3)), {"logprobs": True, "top_logprobs": 3})
        self.assertEqual(self.body(Sampling(logprobs=True, top_logprobs=3), "top_logprobs"), {"logprobs": True})
        self.assertEqual(self.body(Sampling(logprobs=True, top_logprobs=3), "logprobs"), {})

    def test_told(self) -> None:
        """With the text that they are of. Tokens that make no whole character yet are told with the text that follows."""
        self.assertEqual(told(likely("Hel", token("Hel")) + likely("lo", token("l"), token("o")), END), [("Hel", ["Hel"]), ("lo", ["l", "o"])])
        self.assertEqual(told(likely("", token("\\xf0")), likely("\U0001f600", token("\\x9f")), END), [("\U0001f600", ["\\xf0", "\\x9f"])])

    def test_not_told(self) -> None:
        """Nobody asked, or the server has none, or a form of its own: the text is the same."""
        self.assertEqual(told(likely("a", token("a")), END, asked=False), [("a", None)])
        self.assertEqual(told(chunk("a"), END), [("a", None)])
        for odd in ({"tokens": ["a"]}, {"content": [{"token": 1}]}, {"content": "x"}, [], "x"):
            self.assertEqual(told(event({"choices": [{"delta": {"content": "a"}, "logprobs": odd}]}), END), [("a", None)], odd)

    def test_reasoning_in_the_text(self) -> None:
        """Its tokens would stand among those of the answer: none are told then, even of reasoning that is empty."""
        self.assertEqual(told(likely("<", token("<")), likely("b>", token("b>")), END, think_tags=True), [("<b>", ["<", "b>"])])
        for thought in ("hm", ""):
            pieces = [likely(piece, token(piece)) for piece in ("<think>", thought, "</think>", "so", " on") if piece]
            self.assertEqual(told(*pieces, END, think_tags=True), [("so", None), (" on", None)])


class Answers(SdkCase):
    """What the caller gets, by the SDK's types."""

    def say(self, *texts: str) -> None:
        """The model says this, each text with a token."""
        provider_ = self.one.provider
        for text in texts:
            provider_.push([TextDelta(text, json.dumps([token(text, -0.25, "other")]).encode())])
        provider_.stop()

    def test_plain_and_streamed(self) -> None:
        """All of them in order, and the same in both; the model was asked."""
        self.script = lambda _: self.say("Hi", " you")
        made = self.sdk.chat.completions.create(model="mayros", messages=ASK, logprobs=True, top_logprobs=1)
        plain = made.choices[0].logprobs
        assert plain is not None
        assert plain.content is not None
        self.assertEqual(
            [(one.token, one.logprob, one.top_logprobs[0].token) for one in plain.content], [("Hi", -0.25, "other"), (" you", -0.25, "other")]
        )
        asked = self.one.provider.requests[-1].sampling
        self.assertEqual((asked.logprobs, asked.top_logprobs), (True, 1))
        chunks = list(self.sdk.chat.completions.create(model="mayros", messages=ASK, logprobs=True, stream=True))
        pieces = [one.choices[0].logprobs for one in chunks]
        self.assertEqual([[each.token for each in one.content or ()] if one else None for one in pieces], [None, ["Hi"], [" you"], None])

    def test_after_tools(self) -> None:
        """The answer has several texts, and there are none; the model is not asked again."""
        provider_ = self.one.provider

        def script(_: Any) -> None:
            provider_.push([TextDelta("Let me see.", json.dumps([token("Let me see.")]).encode())])
            provider_.call(("look", {}))
            provider_.say("Found.")
            provider_.stop()

        self.script = script
        made = self.sdk.chat.completions.create(model="mayros", messages=ASK, logprobs=True)
        self.assertEqual((made.choices[0].message.content, made.choices[0].logprobs), ("Let me see.\n\nFound.", None))
        self.assertEqual([one.sampling.logprobs for one in provider_.requests], [True, None])

    def test_an_answer_with_a_form(self) -> None:
        """Where the text waits until it is clear that it is the answer, so do they."""
        self.script = lambda _: self.say('{"a"', ":1}")
        made = self.sdk.chat.completions.create(model="mayros", messages=ASK, logprobs=True, response_format={"type": "json_object"})
        found = made.choices[0].logprobs
        assert found is not None
        self.assertEqual([one.token for one in found.content or ()], ['{"a"', ":1}"])


class Bounds(HarnessCase):
    """What is kept of them."""

    def test_too_many(self) -> None:
        """Of an answer with more than is kept, none are told; the answer is."""
        gateway = self.gateway()
        client = gateway.dial(post(chat(logprobs=True)))
        array = json.dumps([token("x" * 200_000)]).encode()
        for _ in range((16 << 20) // len(array) + 1):
            gateway.provider.push([TextDelta("x", array)])
        gateway.provider.stop()
        gateway.settle(client)
        self.assertIsNone(client.answer().json["choices"][0]["logprobs"])
