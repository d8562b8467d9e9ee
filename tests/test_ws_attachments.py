"""Images that come with `chat.send` and `agent`: from base64 to the model, and what is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mayros.core.limits import Budget
from mayros.errors import UpstreamError
from mayros.ws.methods.attachments import MAX_BYTES, Attachment, images
from tests.test_ws import READ, WRITE, World, agent_params, ask, tell
from tests.test_ws_chat import send_params

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"
DATA = base64.b64encode(PNG).decode()
CAT = {"type": "image", "mimeType": "image/png", "fileName": "cat.png", "content": DATA}
SHOWN = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}}
SIGHTED = {"id": "one", "contextWindow": 8192, "input": ["text", "image"]}


def models(*listed: dict[str, Any], fallbacks: tuple[str, ...] = ()) -> dict[str, Any]:
    """A configuration with these models; the first is asked."""
    return {
        "agents": {"defaults": {"model": {"primary": f"fake/{listed[0]['id']}", "fallbacks": list(fallbacks)}}},
        "models": {"providers": {"fake": {"models": list(listed)}}},
    }


class Base(SynchronousTestCase):
    """One client that may read and write; its agent's model sees images."""

    def setUp(self) -> None:
        self.use(models(SIGHTED, {"id": "two"}))

    def use(self, changes: dict[str, Any] | None) -> None:
        self.world = World(self, changes)
        self.session, self.link = self.world.connect(READ, WRITE)

    def send(self, message: str = "what is this?", *attachments: Any, **changes: Any) -> Any:
        """The answer of a chat.send."""
        return ask(self.session, self.link, "chat.send", send_params(message, attachments=list(attachments), **changes))

    def refused(self, *attachments: Any, message: str = "see") -> str:
        """The error of a chat.send."""
        return str(self.send(message, *attachments)["error"]["message"])

    def say(self, text: str) -> None:
        """The model answers."""
        self.world.provider.say(text)
        self.world.provider.stop()
        self.world.clock.advance(0)

    def history(self) -> Any:
        return ask(self.session, self.link, "chat.history", {"sessionKey": "main"})["payload"]["messages"]


class ShownTests(Base):
    """Images that reach the model."""

    def test_chat_send(self) -> None:
        """The model gets text and image, in this turn and in the next one."""
        self.assertEqual("started", self.send("what is this?", CAT)["payload"]["status"])
        said = {"role": "user", "content": [{"type": "text", "text": "what is this?"}, SHOWN]}
        self.assertEqual([said], self.world.provider.seen)
        self.say("A cat.")
        self.send("what colour?", idempotencyKey="k-2")
        self.assertEqual(said, self.world.provider.seen[0])

    def test_agent(self) -> None:
        """The same by the method `agent`."""
        tell(self.session, "agent", agent_params(attachments=[CAT]))
        self.assertEqual([{"type": "text", "text": "hello there"}, SHOWN], self.world.provider.seen[0]["content"])

    def test_only_an_image(self) -> None:
        """No text is needed beside it; nothing at all is refused."""
        self.send("", CAT)
        self.assertEqual([SHOWN], self.world.provider.seen[0]["content"])
        self.assertEqual("message or attachment required", self.refused({"content": ""}, message=" "))

    def test_data_urls(self) -> None:
        """As pages make them, whatever they call the image: its bytes tell what it is."""
        self.send("see", {"content": f"data:image/jpeg;name=x;base64,{DATA}", "somethingElse": [1]})
        self.assertEqual(SHOWN, self.world.provider.seen[0]["content"][1])

    def test_a_new_session_with_an_image(self) -> None:
        """What follows `/new` is the first message, with its image; the image alone is one, too."""
        self.send("/new what is this?", CAT)
        self.assertEqual([{"type": "text", "text": "what is this?"}, SHOWN], self.world.provider.seen[0]["content"])
        self.say("A cat.")
        self.send("/new", CAT, idempotencyKey="k-2")
        self.assertEqual([SHOWN], self.world.provider.seen[0]["content"])

    def test_history(self) -> None:
        """Kind and size of the image, not its data; the preview shows the text."""
        self.send("what is this?", CAT)
        self.say("A cat.")
        image = {"type": "image", "mimeType": "image/png", "omitted": True, "bytes": len(PNG)}
        self.assertEqual([{"type": "text", "text": "what is this?"}, image], self.history()[0]["content"])
        (preview,) = ask(self.session, self.link, "sessions.preview", {"keys": ["main"]})["payload"]["previews"]
        self.assertEqual([{"role": "user", "text": "what is this?"}, {"role": "assistant", "text": "A cat."}], preview["items"])

    def test_what_is_no_image_is_left_out(self) -> None:
        """As other gateways of this protocol do; a picture that no model takes is refused, because somebody waits for it to be seen."""
        pdf = {"fileName": "a.pdf", "mimeType": "application/pdf", "content": base64.b64encode(b"%PDF-1.7 and so on").decode()}
        self.send("see", pdf, CAT, {"type": "file"})
        self.assertEqual([{"type": "text", "text": "see"}, SHOWN], self.world.provider.seen[0]["content"])
        svg = {**pdf, "fileName": "a.svg", "mimeType": "image/svg+xml"}
        self.assertEqual("attachment a.svg: is no PNG, JPEG, GIF or WebP image", self.refused(svg))

    def test_a_large_one(self) -> None:
        """Much more than any other parameter may have."""
        large = base64.b64encode(PNG + bytes(3_000_000)).decode()
        self.send("see", {"content": large})
        self.assertEqual(len(large), len(self.world.provider.seen[0]["content"][1]["image_url"]["url"]) - len("data:image/png;base64,"))


class RefusedTests(Base):
    """What is answered with an error before anything runs."""

    def tearDown(self) -> None:
        self.assertEqual([], self.world.provider.requests)

    def test_bad_content(self) -> None:
        """Each says which attachment it is."""
        for attachment, words in (
            ({"content": DATA[:-1], "fileName": "cat.png"}, "attachment cat.png: invalid base64 content"),
            ({"content": "a*bc", "type": "image"}, "attachment image: invalid base64 content"),
            ({"content": "=AAA"}, "attachment attachment-1: invalid base64 content"),
            ({"content": "AA==AAAA"}, "attachment attachment-1: invalid base64 content"),
            ({"content": "äöüß"}, "attachment attachment-1: invalid base64 content"),
            ({"content": 7}, "invalid chat.send params: at /attachments/0/content: must be string"),
            ("x", "invalid chat.send params: at /attachments/0: must be object"),
        ):
            self.assertEqual(words, self.refused(attachment), attachment)

    def test_too_much(self) -> None:
        """Nine images; one of more than 5 MB; more attachments than anybody sends."""
        self.assertEqual("a message may have at most 8 images", self.refused(*[CAT] * 9))
        self.assertIn("at most 64 are looked at", self.refused(*[{"content": "AAAA"}] * 65))
        large = Attachment(content=base64.b64encode(PNG + bytes(MAX_BYTES)).decode())
        error = self.assertRaises(Exception, images, [large])
        self.assertEqual(f"attachment attachment-1: exceeds size limit ({MAX_BYTES + 14} > {MAX_BYTES} bytes)", str(error))

    def test_a_million_small_values(self) -> None:
        """Are no attachments, and are not built."""
        self.assertEqual("invalid chat.send params: at /attachments/0: must be object", self.refused(*[1] * 500_000))

    def test_a_model_that_takes_none(self) -> None:
        """Said at once, and the key is free again; so it is for the model that was chosen for the session."""
        self.use(models({"id": "one"}))
        self.assertEqual("The model fake/one takes no images. Send the message without them, or choose another model.", self.refused(CAT))
        answer = ask(self.session, self.link, "agent", agent_params(attachments=[CAT]))
        self.assertEqual(("INVALID_REQUEST", False), (answer["error"]["code"], answer["ok"]))
        self.assertEqual({}, self.world.harness.idempotency.kept)
        self.use(models(SIGHTED, {"id": "two"}))
        admin, link = self.world.connect("operator.admin")
        ask(admin, link, "sessions.patch", {"key": "main", "model": "fake/two"})
        self.assertIn("fake/two takes no images", self.refused(CAT))

    def test_no_room(self) -> None:
        """What the images of all runs may hold together is bounded, those that wait included."""
        self.world.gateway.image_budget = Budget(len(DATA) - 1)
        answer = self.send("see", CAT)
        self.assertEqual(("UNAVAILABLE", True), (answer["error"]["code"], answer["error"]["retryable"]))


class RunTests(Base):
    """Keys, budgets and fallbacks."""

    def test_the_key_stands_for_the_image_too(self) -> None:
        """The same message with another image is another request; a repeat is not, however its keys are ordered."""
        self.send("see", CAT)
        self.assertEqual("in_flight", self.send("see", dict(reversed(CAT.items())))["payload"]["status"])
        other = {**CAT, "content": base64.b64encode(PNG + b"more").decode()}
        self.assertEqual("idempotency_key_reused", self.send("see", other)["error"]["details"]["code"])

    def test_the_budget_is_given_back(self) -> None:
        """When the run has ended, however it did, and when it is refused."""
        budget = self.world.gateway.image_budget
        self.send("see", CAT)
        self.assertEqual(len(DATA), budget.total - budget.free)
        self.say("A cat.")
        self.assertEqual(budget.total, budget.free)
        self.world.harness.runs.drain()
        self.assertIn("stopping", self.send("see", CAT, idempotencyKey="k-2")["error"]["message"])
        self.assertEqual(budget.total, budget.free)

    def test_fallbacks(self) -> None:
        """A model that takes no images is not asked about one, and the first failure is what is told."""
        self.use(models(SIGHTED, {"id": "two"}, {**SIGHTED, "id": "three"}, fallbacks=("fake/two", "fake/three")))
        self.send("see", CAT)
        self.world.provider.fail(UpstreamError("down"))
        self.world.clock.advance(0)
        self.assertEqual(["one", "three"], [request.model.id for request in self.world.provider.requests])

    def test_a_conversation_goes_on_without_eyes(self) -> None:
        """Where the session gets a model that takes no images, a note stands for those of earlier turns."""
        self.send("see", CAT)
        self.say("A cat.")
        self.use_model("fake/two")
        self.send("sure?", idempotencyKey="k-2")
        self.assertIn("[an image (image/png, 14 bytes) was shown here]", json.dumps(self.world.provider.seen[0]))
        self.assertNotIn(DATA, json.dumps(self.world.provider.seen))

    def use_model(self, ref: str) -> None:
        admin, link = self.world.connect("operator.admin")
        self.world.harness.runs._thinker._find_model = self.world.harness.settings.catalogue.find  # type: ignore[attr-defined]
        ask(admin, link, "sessions.patch", {"key": "main", "model": ref})
