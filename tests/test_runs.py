"""Runs: from submission to commit."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.keys import SessionKey
from mayros.core.ports import Claim, Principal, Run, Turn
from mayros.core.runs import KEEP_RUNS
from mayros.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    QueueFull,
    RunAborted,
    ServerShutdown,
    StorageUnavailable,
    Unavailable,
    UpstreamError,
    UpstreamRefused,
)
from mayros.events import Event, ModelAnswered, RunEnded, RunStarted, TextDelta, Usage
from mayros.messages import Message, pack
from tests.helpers import Harness

OWNER = Principal("owner", frozenset({"operator.admin"}))


class Listener:
    """An owner, or a watcher, that remembers; `pause` makes it slow."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.slow: Deferred[None] | None = None

    async def send(self, events: list[Event]) -> None:
        self.events += events
        if self.slow is not None:
            await self.slow

    def watch(self, run: Run, events: list[Event]) -> None:
        self.events += events

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


class Base(SynchronousTestCase):
    """LocalRuns with the agent loop, over fakes."""

    def setUp(self) -> None:
        self.use(None)

    def use(self, changes: dict[str, Any] | None) -> None:
        self.gateway = Harness(self, changes)
        self.runs, self.provider, self.store, self.clock = (
            self.gateway.runs, self.gateway.provider, self.gateway.store, self.gateway.clock,
        )  # fmt: skip
        self.count = 0

    def turn(self, text: str = "hi", session: str | None = "s", **fields: Any) -> Turn:
        self.count += 1
        agent = self.gateway.settings.directory.agents["main"]
        values: dict[str, Any] = {
            "run_id": f"run{self.count}", "agent": agent, "stateless": session is None,
            "session": SessionKey("main", session or f"only-{self.count}"),
            "messages": (pack(Message("user", text)),), "door": "chat",
        }  # fmt: skip
        return Turn(**{**values, **fields})

    def submit(self, turn: Turn | None = None, owner: Any = None, on_lost: Any = "cancel") -> Any:
        return self.runs.submit(turn or self.turn(), OWNER, owner, on_lost)


class RunTests(Base):
    """From submission to the end."""

    def test_a_run_says_what_happens_and_ends_after_its_commit(self) -> None:
        """Started, answered, text; the end is told when the turn is on disk, and not before."""
        self.store.hold()
        owner, watcher = Listener(), Listener()
        self.runs.watch(watcher.watch)
        run = self.submit(owner=owner)
        ended = run.ended()
        self.provider.say("Hel", "lo")
        self.provider.stop()
        self.assertNoResult(ended)
        self.assertEqual(watcher.kinds(), ["RunStarted", "ModelAnswered", "TextDelta", "TextDelta", "Usage", "TurnFinished"])
        self.store.commit()
        result = self.successResultOf(ended)
        self.assertEqual((result.outcome, result.text, result.finish_reason, result.usage), ("ok", "Hello", "stop", Usage(7, 3)))
        self.assertEqual((result.provider, result.model, result.session_key), ("fake", "one", "agent:main:s"))
        self.assertEqual(watcher.kinds()[-1], "RunEnded")
        self.assertEqual(owner.kinds(), watcher.kinds()[:-1])
        self.assertEqual((self.runs.live(), self.runs.get("run1")), (0, None))

    def test_everybody_who_waits_is_told(self) -> None:
        """Each waiter has a Deferred of its own, cancels it alone, and late ones get the result at once."""
        run = self.submit()
        first, second = run.ended(), run.ended()
        first.addErrback(lambda _: None)
        first.cancel()
        self.provider.say("x")
        self.provider.stop()
        self.assertEqual(self.successResultOf(second).text, "x")
        self.assertEqual(self.successResultOf(run.ended()).text, "x")

    def test_runs_of_one_session_are_serial(self) -> None:
        """The second begins when the first is committed, and sees its turn."""
        self.store.hold()
        self.submit(self.turn("one"))
        second = self.submit(self.turn("two"))
        self.provider.say("first answer")
        self.provider.stop()
        self.assertEqual(len(self.provider.requests), 1)
        self.store.commit()
        self.assertEqual([message["content"] for message in self.provider.seen], ["one", "first answer", "two"])
        self.provider.say("second answer")
        self.provider.stop()
        self.assertEqual(self.successResultOf(second.ended()).text, "second answer")

    def test_a_full_queue_refuses(self) -> None:
        """The run ends with QueueFull and is not recorded."""
        self.use({"gateway": {"limits": {"maxQueuedPerSession": 1}}})
        self.submit()
        self.submit()
        third = self.submit()
        self.assertEqual(self.successResultOf(third.ended()).error_code, "queue_full")
        self.assertIsInstance(third.error, QueueFull)
        self.assertEqual(self.store.turns, [])

    def test_a_lost_owner_cancels(self) -> None:
        """The provider's stream is closed, the partial text recorded as aborted, the lane free."""
        run = self.submit()
        self.provider.say("partial")
        run.lost()
        self.clock.advance(0)
        result = self.successResultOf(run.ended())
        self.assertEqual((result.outcome, result.text, result.error_code), ("aborted", "partial", "run_aborted"))
        self.assertEqual(self.provider.closed, 1)
        self.assertEqual(self.store.turns[0][1], result)
        next_run = self.submit()
        self.provider.say("y")
        self.provider.stop()
        self.assertEqual(self.successResultOf(next_run.ended()).text, "y")

    def test_keep_goes_on_without_an_owner(self) -> None:
        """A run that is meant to outlive its connection does."""
        run = self.submit(on_lost="keep")
        run.lost()
        self.clock.advance(0)
        self.provider.say("x")
        self.provider.stop()
        self.assertEqual(self.successResultOf(run.ended()).outcome, "ok")

    def test_cancelled_while_waiting_for_the_lane(self) -> None:
        """Leaves the queue, is not recorded, and the one behind it gets the lane."""
        first, second, third = self.submit(), self.submit(), self.submit()
        second.lost()
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(second.ended()).outcome, "aborted")
        for _run in (first, third):
            self.provider.say("x")
            self.provider.stop()
        self.assertEqual(self.successResultOf(third.ended()).outcome, "ok")
        self.assertEqual(len(self.store.turns), 2)

    def test_a_cancel_during_the_commit_is_too_late(self) -> None:
        """The turn is ok."""
        self.store.hold()
        run = self.submit()
        self.provider.say("x")
        self.provider.stop()
        self.assertFalse(self.runs.abort("run1", RunAborted()))
        run.lost()
        self.clock.advance(0)
        self.store.commit()
        self.assertEqual(self.successResultOf(run.ended()).outcome, "ok")

    def test_abort_says_why(self) -> None:
        """The error that was given is the run's; unknown runs are not aborted."""
        run = self.submit()
        self.assertTrue(self.runs.abort("run1", RunAborted("Stopped by /stop.")))
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(run.ended()).error, "Stopped by /stop.")
        self.assertFalse(self.runs.abort("nobody", RunAborted()))

    def test_the_time_limit(self) -> None:
        """Ends the run as timeout, with what it had said; no timer is left."""
        run = self.submit(self.turn(timeout_seconds=5.0))
        self.provider.say("some")
        self.clock.advance(5)
        self.clock.advance(0)
        result = self.successResultOf(run.ended())
        self.assertEqual((result.outcome, result.text, result.error_code), ("timeout", "some", "run_timeout"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_slow_owner_holds_the_model_back(self) -> None:
        """Nothing more is taken from the provider until the owner has caught up; a cancel gets through meanwhile."""
        owner = Listener()
        run = self.submit(owner=owner)
        self.provider.answer()
        owner.slow = Deferred()
        self.provider.say("a")
        self.provider.say("b")
        self.assertEqual(run.text, "a")
        owner.slow.callback(None)
        self.assertEqual(run.text, "ab")
        owner.slow = Deferred(lambda _: None)
        self.provider.say("c")
        run.lost()
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(run.ended()).outcome, "aborted")

    def test_an_owner_may_be_lost_while_it_is_told(self) -> None:
        """The loss comes from inside the run's own task; it is cancelled when it waits."""

        class Leaving(Listener):
            async def send(self, events: list[Event]) -> None:
                if any(type(event) is TextDelta for event in events):
                    run.lost()

        run = self.submit(owner=Leaving())
        self.provider.say("x")
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(run.ended()).outcome, "aborted")

    def test_a_failed_commit_is_the_runs_error(self) -> None:
        """Never told ok what is not on disk."""
        self.store.broken = True
        run = self.submit()
        self.provider.say("x")
        self.provider.stop()
        result = self.successResultOf(run.ended())
        self.assertEqual((result.outcome, result.error_code, result.text), ("error", "storage_unavailable", "x"))
        self.assertIsInstance(run.error, StorageUnavailable)

    def test_a_defect_ends_its_run_only(self) -> None:
        """An exception that nobody foresaw is logged, and told without details."""
        run = self.submit()
        self.provider.fail(RuntimeError("secret detail"))
        result = self.successResultOf(run.ended())
        self.assertEqual((result.outcome, result.error_code), ("error", "internal_error"))
        self.assertNotIn("secret detail", result.error or "")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_unrecorded_runs_give_their_idempotency_key_back(self) -> None:
        """A refused run can be tried again with the same key."""
        claim = Claim("chat", "k")
        self.gateway.idempotency.kept["chat", "k"] = (b"d", "run1", None)
        run = self.submit(self.turn("word " * 50_000, claim=claim))
        self.assertIsInstance(run.error, ContextLengthExceeded)
        self.assertEqual(self.gateway.idempotency.kept, {})

    def test_shutdown(self) -> None:
        """No new runs; live ones are aborted as the gateway's doing; drained fires when the last is recorded."""
        run = self.submit()
        self.provider.say("half")
        self.runs.drain()
        self.assertRaises(Unavailable, self.submit)
        drained = self.runs.drained()
        self.assertNoResult(drained)
        self.runs.abort_all()
        self.clock.advance(0)
        self.successResultOf(drained)
        self.assertEqual(self.successResultOf(run.ended()).error_code, "server_shutdown")
        self.assertIsInstance(run.error, ServerShutdown)
        self.successResultOf(self.runs.drained())

    def test_one_id_one_live_run(self) -> None:
        """The id of a live run cannot be used again."""
        self.submit(self.turn(run_id="same"))
        self.assertRaises(InvalidRequest, self.submit, self.turn(run_id="same"))

    def test_the_runs_of_a_session(self) -> None:
        """In order of submission, as long as they live."""
        first, second = self.submit(), self.submit()
        self.submit(self.turn(session="other"))
        self.assertEqual([first, second], self.runs.find("agent:main:s"))
        self.provider.say("x")
        self.provider.stop()
        self.assertEqual([second], self.runs.find("agent:main:s"))
        self.assertEqual([], self.runs.find("agent:main:nothing"))

    def test_how_a_run_ended_is_known_for_a_while(self) -> None:
        """For ten minutes, without its text; not of HTTP requests, whose clients never ask."""
        self.submit(self.turn(door="ws"))
        self.assertIsNone(self.runs.ended("run1"))
        self.provider.say("x")
        self.provider.stop()
        kept = self.runs.ended("run1")
        assert kept is not None
        self.assertEqual(("ok", ""), (kept.outcome, kept.text))
        self.clock.advance(600)
        self.assertIsNone(self.runs.ended("run1"))
        self.submit(self.turn(door="chat"))
        self.provider.stop()
        self.assertIsNone(self.runs.ended("run2"))

    def test_ended_runs_are_bounded(self) -> None:
        """The newest thousand."""
        for _ in range(KEEP_RUNS + 2):
            self.submit(self.turn(session=None, door="ws"))
            self.provider.stop()
        self.assertEqual([True, True, False, False], [self.runs.ended(f"run{number}") is None for number in (1, 2, 3, KEEP_RUNS)])

    def test_check_starts_nothing(self) -> None:
        """It raises what submitting would."""
        turn = self.turn(run_id="same")
        self.runs.check(turn)
        self.assertEqual(0, self.runs.live())
        self.submit(turn)
        self.assertRaises(InvalidRequest, self.runs.check, turn)
        self.runs.drain()
        self.assertRaises(Unavailable, self.runs.check, self.turn())

    def test_watchers_hear_of_all_runs_until_they_stop(self) -> None:
        """A watcher that stopped hears nothing more."""
        watcher = Listener()
        stop = self.runs.watch(watcher.watch)
        self.submit()
        self.submit(self.turn(session="other"))
        self.assertEqual(watcher.kinds(), ["RunStarted", "RunStarted"])
        started = watcher.events[0]
        assert isinstance(started, RunStarted)
        self.assertEqual((started.run_id, started.session_key, started.agent_id), ("run1", "agent:main:s", "main"))
        stop()
        self.provider.say("x")
        self.assertEqual(len(watcher.events), 2)

    def test_the_end_event_says_the_outcome(self) -> None:
        """One of four words, with the error."""
        watcher = Listener()
        self.runs.watch(watcher.watch)
        self.submit()
        self.provider.fail(UpstreamRefused("no"))
        end = watcher.events[-1]
        assert isinstance(end, RunEnded)
        self.assertEqual((end.outcome, str(end.error)), ("error", "no"))


class FallbackTests(Base):
    """The agent loop with more than one model."""

    def setUp(self) -> None:
        self.use({"agents": {"defaults": {"model": {"primary": "fake/one", "fallbacks": ["fake/two"]}}}})

    def asked(self) -> list[str]:
        return [request.model.id for request in self.provider.requests]

    def test_before_a_delta_the_next_model_is_tried(self) -> None:
        """Silently; the answer names the model that gave it."""
        owner = Listener()
        run = self.submit(owner=owner)
        self.provider.fail(UpstreamError())
        self.assertEqual(self.asked(), ["one", "two"])
        self.provider.say("ok")
        self.provider.stop()
        self.assertEqual(self.successResultOf(run.ended()).model, "two")
        self.assertEqual([event.model for event in owner.events if isinstance(event, ModelAnswered)], ["two"])

    def test_after_a_delta_never(self) -> None:
        """What has been said cannot be said again."""
        run = self.submit()
        self.provider.say("half")
        self.provider.fail(UpstreamError())
        self.assertEqual(self.asked(), ["one"])
        self.assertEqual((self.successResultOf(run.ended()).outcome, run.text), ("error", "half"))

    def test_a_refused_request_is_not_tried_elsewhere(self) -> None:
        """The next model would be asked the same wrong thing."""
        run = self.submit()
        self.provider.fail(UpstreamRefused("bad parameter"))
        self.assertEqual((self.asked(), self.successResultOf(run.ended()).outcome), (["one"], "error"))

    def test_the_last_error_is_told(self) -> None:
        """When every model failed."""
        run = self.submit()
        self.provider.fail(UpstreamError("first"))
        self.provider.fail(UpstreamError("second"))
        self.assertEqual(self.successResultOf(run.ended()).error, "second")

    def test_a_model_whose_window_is_too_small_is_passed_over(self) -> None:
        """one has 8,192 tokens, two has 200,000."""
        self.submit(self.turn("word " * 10_000))
        self.assertEqual(self.asked(), ["two"])
