"""What is kept of tools: turns with calls in the store, and the whole texts of long results."""

from __future__ import annotations

import os
import stat
import time

import msgspec
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.ports import Lease
from mayros.core.repair import LOST
from mayros.messages import unpack
from mayros.storage.results import KEEP_SECONDS, FileResults
from tests.test_repair import faults, result, says
from tests.test_storage import ALICE, StoreTestCase

SAID = (says("Let me look.", "a", "b"), result("a"), result("b"), says("Done."))


class TurnsWithCalls(StoreTestCase):
    """`TurnStore.finish` with `said`."""

    async def act(self, *said: msgspec.Raw, outcome: str = "ok") -> None:
        turn, history = self.turn("Hi."), await self.store.history(ALICE)
        await self.store.finish(turn, history, self.result(turn, history, "as streamed", outcome), Lease(str(turn.session), 1), said)

    async def test_memory_and_disk_agree(self) -> None:
        """Calls and results are in the history, in their order, also after a restart."""
        await self.act(*SAID)
        await self.say("And now?", "Nothing.")
        kept, read = await self.store.history(ALICE), await self.open().history(ALICE)
        self.assertEqual((kept.leaf, list(map(bytes, kept.messages))), (read.leaf, list(map(bytes, read.messages))))
        self.assertEqual([unpack(raw).role for raw in read.messages], ["user", "assistant", "tool", "tool", "assistant", "user", "assistant"])

    async def test_how_it_ended_is_beside_the_last_words_of_the_model(self) -> None:
        """Also where it was aborted among its calls; such a turn stays in prompts, for it has done something."""
        await self.act(*SAID)
        await self.act(*[says(None, "c"), result("c", "[Aborted]")], outcome="aborted")
        metas = [row[0] for row in self.rows("SELECT meta FROM entries ORDER BY id")]
        self.assertEqual([meta is not None for meta in metas], [False, False, False, False, True, False, True, False])
        self.assertEqual(len((await self.open().history(ALICE)).messages), 8)
        self.assertEqual([parent for (parent,) in self.rows("SELECT parent_id FROM entries ORDER BY id")][1:], [
            id_ for (id_,) in self.rows("SELECT id FROM entries ORDER BY id")
        ][:-1])  # fmt: skip

    async def test_a_damaged_transcript_is_repaired_on_load(self) -> None:
        """A row that was lost does not end the session."""
        await self.act(*SAID)
        with self.database.engine.begin() as connection:
            connection.exec_driver_sql("""DELETE FROM entries WHERE body LIKE '%"tool_call_id":"b"%'""")
        read = await self.open().history(ALICE)
        self.assertEqual(faults(read.messages), [])
        self.assertEqual(unpack(read.messages[3]).content, LOST)


class WholeResults(SynchronousTestCase):
    """FileResults."""

    def setUp(self) -> None:
        self.folder = os.path.join(self.mktemp(), "results")
        self.now = time.time()
        self.results = FileResults(self.folder, maybeDeferred, lambda: self.now, total_bytes=1_000)

    def keep(self, text: str, agent: str = "main", untrusted: bool = False) -> str | None:
        return self.successResultOf(Deferred.fromCoroutine(self.results.keep(agent, text, untrusted)))

    def files(self) -> list[str]:
        return [name for _, _, names in os.walk(self.folder) for name in names]

    def test_a_text_is_opened_by_its_reference(self) -> None:
        """By its own agent, and in a file that nobody else may read."""
        reference = self.keep("the whole text: ü")
        assert reference is not None
        self.assertEqual(self.results.open(reference, "main"), "the whole text: ü")
        self.assertIsNone(self.results.open(reference, "beta"))
        [name] = self.files()
        self.assertEqual(stat.S_IMODE(os.stat(os.path.join(self.folder, "main", name)).st_mode), 0o600)
        self.assertTrue((self.keep("x", untrusted=True) or "").startswith("result://u"))

    def test_nothing_else_is_opened(self) -> None:
        """A reference is no path."""
        self.keep("text")
        for reference in ("result://../main", "result://t" + "0" * 32, "/etc/passwd", "result://", "result://t/../../x"):
            self.assertIsNone(self.results.open(reference, "main"))
        self.assertIsNone(self.results.open("result://t" + "0" * 32, "../main"))

    def test_they_go_after_a_day_and_when_they_are_too_many(self) -> None:
        """The oldest first."""
        old = self.keep("a" * 400) or ""
        path = os.path.join(self.folder, "main", old.removeprefix("result://"))
        os.utime(path, (self.now - 60, self.now - 60))
        kept = [self.keep("b" * 400) or "" for _ in range(2)]
        self.results.prune()
        self.assertIsNone(self.results.open(old, "main"))
        self.assertEqual([len(self.results.open(one, "main") or "") for one in kept], [400, 400])
        self.now += KEEP_SECONDS + 1
        self.assertIsNone(self.results.open(kept[0], "main"))
        self.results.prune()
        self.assertEqual(self.files(), [])

    def test_a_disk_that_fails_costs_only_the_text(self) -> None:
        """The model hears that the middle was not kept."""
        os.makedirs(os.path.dirname(self.folder))
        with open(self.folder, "w"):
            self.assertIsNone(self.keep("text"))
