"""Events for all: who gets them, how they are numbered, and what becomes of clients that do not read."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mayros.events import ReasoningDelta, TextDelta
from mayros.ws.broadcast import SLOW_BYTES
from mayros.ws.outbox import Outbox, SendBudget
from mayros.ws.session import Session
from tests.test_ws import READ, WRITE, World, agent_params, tell


class BroadcastTests(SynchronousTestCase):
    """Events for all."""

    def setUp(self) -> None:
        self.world = World(self)

    def start(self, key: str = "k-1") -> Session:
        """A run that waits for its model."""
        session, _ = self.world.connect(WRITE)
        tell(session, "agent", agent_params(idempotencyKey=key, sessionKey=key))
        return session

    def test_content_is_for_readers(self) -> None:
        """Clients without operator.read get ticks and health, and nothing of what runs say."""
        _, none = self.world.connect()
        _, reader = self.world.connect(READ)
        self.start()
        self.world.provider.say("secret")
        self.assertEqual([], none.events("agent"))
        self.assertEqual(2, len(reader.events("agent")))

    def test_runs_are_watched_only_for_somebody(self) -> None:
        """Without a reader no frame is built; the last one to leave ends the watching."""
        runs = self.world.harness.runs
        self.world.connect()
        self.assertEqual([], runs._watchers)
        first, _ = self.world.connect(READ)
        second, _ = self.world.connect(READ)
        self.assertEqual(1, len(runs._watchers))
        first.closed()
        self.assertEqual(1, len(runs._watchers))
        second.closed()
        self.assertEqual([], runs._watchers)

    def test_numbers(self) -> None:
        """On protocol 3 one count for all, the same for all; on protocol 4 each connection has its own."""
        _, old = self.world.connect(READ, protocol=3)
        self.world.clock.advance(30)
        _, new = self.world.connect(READ, protocol=4)
        _, other = self.world.connect(READ, protocol=3)
        self.start()
        self.world.provider.say("a")
        self.world.provider.say("b")
        self.assertEqual([1, 2, 3, 4], [frame["seq"] for frame in old.take()])
        self.assertEqual([1, 2, 3], [frame["seq"] for frame in new.take()])
        self.assertEqual([2, 3, 4], [frame["seq"] for frame in other.take()])

    def test_deltas_of_one_batch_are_one_event(self) -> None:
        """What one read of the provider brought leaves in one frame; reasoning is a stream of its own."""
        _, link = self.world.connect(READ)
        self.start()
        link.take()
        self.world.provider.push([ReasoningDelta("hm"), ReasoningDelta("m"), TextDelta("a"), TextDelta('"\n')])
        self.world.provider.say("é")
        self.assertEqual(
            [("thinking", "hmm", "hmm"), ("assistant", 'a"\n', 'a"\n'), ("assistant", 'a"\né', "é")],
            [(f["payload"]["stream"], f["payload"]["data"]["text"], f["payload"]["data"]["delta"]) for f in link.take()],
        )

    def test_watching_begins_in_the_middle_of_a_run(self) -> None:
        """The text of the first event is whole although its delta is not."""
        starter = self.start()
        self.world.provider.say("one ")
        starter.closed()
        self.world.provider.say("two ")
        _, link = self.world.connect(READ)
        self.world.provider.say("three")
        (event,) = link.take()
        self.assertEqual({"text": "one two three", "delta": "three"}, event["payload"]["data"])

    def test_a_slow_client_gets_merged_deltas(self) -> None:
        """While much waits for it, deltas are joined; when it has caught up it gets them as one, and nobody else notices."""
        session, slow = self.world.connect(READ)
        _, quick = self.world.connect(READ, protocol=4)
        self.start()
        slow.take()
        quick.take()
        self.world.provider.say("a")
        slow.buffered = SLOW_BYTES + 1
        self.world.provider.say("b")
        self.world.provider.push([ReasoningDelta("hm")])
        slow.buffered = 1_000
        self.world.provider.say("c")
        self.assertEqual(["a"], [frame["payload"]["data"]["delta"] for frame in slow.take()])
        self.assertEqual(["a", "b", "hm", "c"], [frame["payload"]["data"]["delta"] for frame in quick.take()])
        slow.buffered = 0
        session.drained()
        frames = slow.take()
        self.assertEqual([("hm", "hm"), ("abc", "bc")], [(f["payload"]["data"]["text"], f["payload"]["data"]["delta"]) for f in frames])
        self.assertEqual([4, 5], [frame["payload"]["seq"] for frame in frames])
        self.world.provider.say("d")
        self.assertEqual(["d"], [frame["payload"]["data"]["delta"] for frame in slow.take()])

    def test_the_end_is_never_merged(self) -> None:
        """A slow client gets what was merged for it, then the end of the run."""
        _, slow = self.world.connect(READ)
        self.start()
        slow.take()
        slow.buffered = SLOW_BYTES + 1
        self.world.provider.say("a")
        self.world.provider.say("b")
        self.assertEqual([], slow.take())
        self.world.provider.stop()
        text, end = slow.take()
        self.assertEqual(("ab", "end"), (text["payload"]["data"]["delta"], end["payload"]["data"]["phase"]))

    def test_ticks_and_health(self) -> None:
        """A tick every 30 s, not for the slow; health every 60 s, with a growing version. Without clients no timer runs."""
        session, link = self.world.connect()
        other, slow = self.world.connect()
        slow.buffered = SLOW_BYTES + 1
        self.world.clock.advance(30)
        self.assertEqual(([{"ts": 1_030_000}], []), ([frame["payload"] for frame in link.take()], slow.take()))
        self.world.clock.advance(30)
        tick, health = link.take()
        self.assertEqual(("tick", "health", {"presence": 1, "health": 2}), (tick["event"], health["event"], health["stateVersion"]))
        self.assertEqual([tick["seq"] + 1], [health["seq"]])
        self.assertEqual(["health"], [frame["event"] for frame in slow.take()])
        session.closed()
        other.closed()
        self.assertEqual([], self.world.clock.getDelayedCalls())

    def test_a_new_client_is_no_news_for_the_others(self) -> None:
        """Its health event goes to it alone."""
        _, link = self.world.connect()
        self.world.connect()
        self.assertEqual([], link.take())

    def test_shutdown(self) -> None:
        """Everybody is told, then closed with 1012, those who have not said hello as well."""
        _, link = self.world.connect()
        _, early = self.world.dial()
        early.take()
        self.world.gateway.broadcaster.shutdown("update", 1_500)
        (event,) = link.take()
        self.assertEqual(("shutdown", {"reason": "update", "restartExpectedMs": 1_500}), (event["event"], event["payload"]))
        self.assertEqual([(1012, "service restart")] * 2, [link.closed, early.closed])
        self.assertEqual([], early.take())
        self.assertEqual([], self.world.clock.getDelayedCalls())

    def test_a_client_that_is_given_up_in_the_middle(self) -> None:
        """The last reader is closed by the very event it gets; nothing breaks."""
        session, link = self.world.connect(READ)

        def give_up(frame: bytes) -> None:
            session.end(1008, "slow consumer")

        self.start().closed()
        self.world.provider.say("a")
        link.send_frame = give_up  # type: ignore[method-assign]
        self.world.provider.say("b")
        self.world.provider.stop()
        self.assertEqual((1008, "slow consumer"), link.closed)
        self.assertEqual([], self.flushLoggedErrors())


class OutboxTests(SynchronousTestCase):
    """What waits for slow clients."""

    def setUp(self) -> None:
        self.log: list[str] = []

    def outbox(self, budget: SendBudget, name: str = "") -> tuple[Outbox, list[bytes]]:
        """An outbox and what its transport got; the transport says stop after each frame that starts with `!`."""
        written: list[bytes] = []

        def write(data: bytes) -> None:
            written.append(data)
            if data.startswith(b"!"):
                outbox.pauseProducing()

        outbox = Outbox(write, budget, lambda: self.log.append(f"{name} given up"), lambda: self.log.append(f"{name} drained"))
        return outbox, written

    def test_nothing_waits_for_a_quick_client(self) -> None:
        """Frames go straight to the transport."""
        budget = SendBudget(1_000, 100)
        outbox, written = self.outbox(budget)
        outbox.send(b"a" * 500)
        self.assertEqual((1, 0, 0), (len(written), outbox.buffered, budget.held))

    def test_frames_wait_in_order(self) -> None:
        """After a stop they wait and are counted, with the one that filled the transport; then they leave until the next stop."""
        budget = SendBudget(1_000, 100)
        outbox, written = self.outbox(budget)
        for frame in (b"!1", b"2", b"!3", b"4"):
            outbox.send(frame)
        self.assertEqual(([b"!1"], 6, 6), (written, outbox.buffered, budget.held))
        outbox.resumeProducing()
        self.assertEqual(([b"!1", b"2", b"!3"], 3, []), (written, outbox.buffered, self.log))
        outbox.resumeProducing()
        self.assertEqual(([b"!1", b"2", b"!3", b"4"], 0, 0, [" drained"]), (written, outbox.buffered, budget.held, self.log))

    def test_one_client_has_its_limit(self) -> None:
        """Over it, it is given up and holds nothing."""
        budget = SendBudget(1_000, 100)
        outbox, written = self.outbox(budget)
        for frame in (b"!", b"x" * 99, b"y"):
            outbox.send(frame)
        self.assertEqual(([" given up"], 0, 0), (self.log, outbox.buffered, budget.held))
        outbox.send(b"more")
        outbox.resumeProducing()
        self.assertEqual([b"!"], written)

    def test_all_clients_have_a_budget(self) -> None:
        """Over it, the one with most is given up, and the others stay."""
        budget = SendBudget(150, 100)
        first, _ = self.outbox(budget, "first")
        second, _ = self.outbox(budget, "second")
        for outbox, size in ((first, 80), (second, 50), (second, 10)):
            outbox.send(b"!")
            outbox.send(b"x" * size)
        self.assertEqual([], self.log)
        second.send(b"x" * 10)
        self.assertEqual((["first given up"], second.buffered), (self.log, budget.held))

    def test_the_end(self) -> None:
        """finish writes what waits before the close frame; a lost connection forgets it."""
        budget = SendBudget(1_000, 100)
        outbox, written = self.outbox(budget)
        for frame in (b"!1", b"2"):
            outbox.send(frame)
        outbox.finish()
        self.assertEqual(([b"!1", b"2"], 0), (written, budget.held))
        lost, _ = self.outbox(budget)
        lost.send(b"!1")
        lost.stopProducing()
        self.assertEqual(0, budget.held)
