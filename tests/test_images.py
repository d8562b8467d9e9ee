"""Images in messages: what a model gets, what the store keeps, what is told later."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.images import Image, about, described, media_type, pictured, remembered, retold, user_message
from mayros.core.ports import Lease, Turn
from mayros.core.repair import repair
from mayros.messages import ImagePart, Message, pack, unpack
from mayros.storage.listing import opening
from tests.test_storage import AGENT, ALICE, StoreTestCase

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"
CAT = Image("image/png", base64.b64encode(PNG).decode(), len(PNG))
NOTE = "[an image (image/png, 14 bytes) was shown here]"


def content(raw: msgspec.Raw) -> Any:
    """The content of a canonical message, as JSON."""
    return msgspec.json.decode(raw)["content"]


class ImageTests(SynchronousTestCase):
    """Messages, without a store."""

    def test_kinds(self) -> None:
        """By the first bytes: whatever it is called, it is what it begins with."""
        for data, kind in (
            (PNG, "image/png"),
            (b"\xff\xd8\xff\xe0", "image/jpeg"),
            (b"GIF89a", "image/gif"),
            (b"RIFF\x00\x00\x00\x00WEBP", "image/webp"),
            (b"RIFF\x00\x00\x00\x00WAVE", None),
            (b"<svg>", None),
            (b"", None),
        ):
            self.assertEqual(kind, media_type(data))

    def test_what_the_model_gets(self) -> None:
        """Text and images as parts, in the form of chat completions; without images a plain text."""
        shown = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{CAT.data}"}}
        self.assertEqual([{"type": "text", "text": "see"}, shown], content(user_message("see", [CAT])))
        self.assertEqual([shown], content(user_message("", [CAT])))
        self.assertEqual("see", content(user_message("see")))

    def test_what_is_remembered(self) -> None:
        """Kind and size, no data; what has no image stays the same bytes."""
        kept = remembered(user_message("see", [CAT]))
        self.assertEqual("omitted:image/png;bytes=14", content(kept)[1]["image_url"]["url"])
        plain = pack(Message("user", 'he said "image_url"'))
        self.assertIs(plain, remembered(plain))
        self.assertFalse(pictured([plain]))

    def test_size_and_kind(self) -> None:
        """The same of an image and of what is remembered of it, however it is padded."""
        for size in (12, 13, 14):
            image = Image("image/gif", base64.b64encode(b"x" * size).decode(), size)
            for raw in (user_message("", [image]), remembered(user_message("", [image]))):
                parts = unpack(raw).content
                assert isinstance(parts, tuple)
                self.assertEqual([("image/gif", size)], [about(part) for part in parts if isinstance(part, ImagePart)])

    def test_notes(self) -> None:
        """For a model that takes none, a note stands for each image; without images nothing changes."""
        messages = (pack(Message("user", "hi")), user_message("see", [CAT, CAT]), remembered(user_message("", [CAT])))
        self.assertEqual(["hi", f"see\n{NOTE}\n{NOTE}", NOTE], [content(raw) for raw in described(messages)])
        self.assertEqual(messages[:1], described(messages[:1]))

    def test_another_text(self) -> None:
        """The images stay: `/new what is this` with a picture."""
        self.assertEqual(content(user_message("what", [CAT])), content(retold(user_message("/new what", [CAT]), "what")))
        self.assertEqual("what", content(retold(user_message("/new what"), "what")))

    def test_a_list_shows_the_text(self) -> None:
        """As the title of its session; a message of images alone has none."""
        self.assertEqual("see this", opening(bytes(user_message("see this", [CAT])).decode(), 80))
        self.assertIsNone(opening(bytes(user_message("", [CAT])).decode(), 80))

    def test_repair_keeps_them(self) -> None:
        """A message of images alone says something."""
        messages = (remembered(user_message("", [CAT])),)
        self.assertEqual(messages, repair(messages))


class StoreTests(StoreTestCase):
    """The real store."""

    async def test_a_turn_with_an_image(self) -> None:
        """While the conversation is in memory the model sees the image again; the disk has only what it was, and so has who reads it back."""
        message, history = user_message("see", [CAT]), await self.store.history(ALICE)
        turn = Turn("run1", AGENT, ALICE, False, (message,), "ws")
        await self.store.finish(turn, history, self.result(turn, history, "A cat."), Lease(str(ALICE), 1))
        self.assertEqual(content(message), content((await self.store.history(ALICE)).messages[0]))
        (body,) = self.rows("select body from entries where body like '%\"user\"%'")[0]
        self.assertNotIn(CAT.data, body)
        again = await self.open().history(ALICE)
        self.assertEqual([f"see\n{NOTE}", "A cat."], [content(raw) for raw in again.messages])
