"""Events for all: who gets them, how they are numbered, what runs say in them, and what becomes of clients that do not read."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mayros.core.keys import SessionKey
from mayros.core.ports import Principal, Turn
from mayros.errors import RunAborted, UpstreamError
from mayros.events import ReasoningDelta, TextDelta
from mayros.messages import Message, pack
from mayros.ws import broadcast, streams
from mayros.ws.broadcast import SLOW_BYTES, Broadcaster
from mayros.ws.outbox import Outbox, SendBudget
from mayros.ws.presence import Presence
from tests.helpers import Harness, chat, post
from tests.test_ws import ADMIN, READ, FakeLink

PAIRING = "operator.pairing"
OMITTED = "[omitted: message too large]"
TRUNCATED = {"truncated": True, "reason": "oversized"}


class Listener:
    """A connection that has said hello and read its first health event."""

    def __init__(self, hall: Hall, scopes: tuple[str, ...], protocol: int) -> None:
        self.hall, self.scopes, self.protocol, self.link = hall, scopes, protocol, FakeLink()
        self.principal = Principal("owner", frozenset(scopes))
        hall.broadcaster.opened(self)
        hall.broadcaster.admitted(self)
        self.welcome = self.link.take()

    def may(self, scope: str) -> bool:
        return scope in self.scopes or ADMIN in self.scopes

    def end(self, code: int, reason: str) -> None:
        self.hall.broadcaster.lost(self)
        self.link.close(code, reason)

    def take(self, event: str | None = None) -> list[Any]:
        """The frames since the last look, of one kind or all."""
        return [frame for frame in self.link.take() if event in (None, frame["event"])]

    def told(self, event: str) -> list[Any]:
        """The payloads of one kind of event since the last look."""
        return [frame["payload"] for frame in self.take(event)]

    def texts(self) -> list[tuple[str, str, str]]:
        """Stream, whole text and new text of the `agent` events since the last look."""
        payloads = [payload for payload in self.told("agent") if payload["stream"] != "lifecycle"]
        return [(payload["stream"], payload["data"]["text"], payload["data"]["delta"]) for payload in payloads]


class Hall:
    """Everybody who listens, and runs to listen to."""

    def __init__(self, test: SynchronousTestCase) -> None:
        self.harness = Harness(test)
        self.clock, self.model, self.runs = self.harness.clock, self.harness.provider, self.harness.runs
        self.presence = Presence("box", "1.2.3")
        self.broadcaster = Broadcaster(self.runs, self.clock, self.now_ms, lambda: {"ok": True}, self.presence)

    def now_ms(self) -> int:
        return int(self.clock.seconds() * 1000)

    def join(self, *scopes: str, protocol: int = 3) -> Listener:
        return Listener(self, scopes, protocol)

    def run(self, run_id: str = "r-1", seconds: float = 600.0) -> None:
        """A run that waits for its model."""
        agent = self.harness.settings.directory.agents["main"]
        messages = (pack(Message("user", "hello")),)
        turn = Turn(run_id, agent, SessionKey("main", run_id), False, messages, "ws", timeout_seconds=seconds)
        self.runs.submit(turn, Principal("owner", frozenset()), None, "keep")

    def say(self, *texts: str, after: float = 0.0) -> None:
        """A batch of text, and the end of the reactor's turn; then `after` seconds pass."""
        self.model.say(*texts)
        self.clock.advance(0)
        self.clock.advance(after)


class HallCase(SynchronousTestCase):
    """Tests with a hall."""

    def setUp(self) -> None:
        self.hall = Hall(self)


class WhoTests(HallCase):
    """Who gets an event, and under which number."""

    def test_content_is_for_readers(self) -> None:
        """Clients without operator.read get nothing of what runs say."""
        nobody, reader = self.hall.join(), self.hall.join(READ)
        self.hall.run()
        self.hall.say("secret")
        self.assertEqual([], nobody.take())
        self.assertEqual(["agent", "agent", "chat"], [frame["event"] for frame in reader.take()])

    def test_runs_are_watched_only_for_somebody(self) -> None:
        """Without a reader no frame is built; the last one to leave ends the watching, and nothing waits any more."""
        self.hall.join()
        self.assertEqual([], self.hall.runs._watchers)
        first, second = self.hall.join(READ), self.hall.join(READ)
        self.hall.run()
        self.hall.say("a")
        self.hall.model.say("b")
        first.end(1000, "")
        self.assertEqual(1, len(self.hall.runs._watchers))
        second.end(1000, "")
        self.assertEqual([], self.hall.runs._watchers)
        self.hall.clock.advance(1)
        self.assertEqual([], self.flushLoggedErrors())

    def test_scopes(self) -> None:
        """An event with a scope is for those who have it, and for administrators."""
        nobody, pairing, admin = self.hall.join(READ), self.hall.join(PAIRING), self.hall.join(ADMIN)
        self.hall.broadcaster.publish("device.pair.requested", {"requestId": "q"}, PAIRING)
        self.assertEqual([[], [{"requestId": "q"}], [{"requestId": "q"}]], [one.told("device.pair.requested") for one in (nobody, pairing, admin)])

    def test_numbers(self) -> None:
        """On protocol 3 one count for all, which also counts what one does not get; on protocol 4 each connection has its own."""
        old = self.hall.join(READ)
        self.hall.clock.advance(30)
        new, other, deaf = self.hall.join(READ, protocol=4), self.hall.join(READ), self.hall.join()
        self.hall.run()
        self.hall.say("a", after=0.15)
        self.hall.say("b")
        self.hall.broadcaster.publish("news", {})
        self.assertEqual([1, 2, 3, 4, 5, 6, 7], [frame["seq"] for frame in old.take()])
        self.assertEqual([1, 2, 3, 4, 5, 6], [frame["seq"] for frame in new.take()])
        self.assertEqual([2, 3, 4, 5, 6, 7], [frame["seq"] for frame in other.take()])
        self.assertEqual([7], [frame["seq"] for frame in deaf.take()])

    def test_long_numbers(self) -> None:
        """Frames stay well formed when the number gets another digit."""
        old, new = self.hall.join(READ), self.hall.join(READ, protocol=4)
        for count in range(12):
            self.hall.broadcaster.publish("news", {"count": count, "text": "x" * 92})
        for one in (old, new):
            self.assertEqual([(count, count + 1) for count in range(12)], [(f["payload"]["count"], f["seq"]) for f in one.take()])

    def test_a_new_client_is_no_news_for_the_others(self) -> None:
        """Its health event goes to it alone, without a number."""
        first = self.hall.join()
        second = self.hall.join()
        self.assertEqual([], first.take())
        (health,) = second.welcome
        self.assertEqual({"type", "event", "payload", "stateVersion"}, set(health))
        self.assertEqual({"presence": 1, "health": 1}, health["stateVersion"])

    def test_ticks_and_health(self) -> None:
        """A tick every 30 s, not for the slow; health every 60 s, with a growing version. Without clients no timer runs."""
        one, slow = self.hall.join(), self.hall.join()
        slow.link.buffered = SLOW_BYTES + 1
        self.hall.clock.advance(30)
        self.assertEqual(([{"ts": 1_030_000}], []), (one.told("tick"), slow.take()))
        self.hall.clock.advance(30)
        tick, health = one.take()
        self.assertEqual(("tick", "health", {"presence": 1, "health": 2}), (tick["event"], health["event"], health["stateVersion"]))
        self.assertEqual([tick["seq"] + 1], [health["seq"]])
        self.assertNotIn("stateVersion", tick)
        self.assertEqual(["health"], [frame["event"] for frame in slow.take()])
        one.end(1000, "")
        slow.end(1000, "")
        self.assertEqual([], self.hall.clock.getDelayedCalls())

    def test_droppable_events(self) -> None:
        """A slow client misses what may be missed, and gets the rest."""
        slow = self.hall.join()
        slow.link.buffered = SLOW_BYTES + 1
        self.hall.broadcaster.publish("minor", {}, droppable=True)
        self.hall.broadcaster.publish("major", {})
        self.assertEqual([("major", 2)], [(frame["event"], frame["seq"]) for frame in slow.take()])

    def test_shutdown(self) -> None:
        """Everybody is told, then closed with 1012, those who have not said hello as well."""
        one = self.hall.join()
        early = Listener.__new__(Listener)
        early.hall, early.link = self.hall, FakeLink()
        self.hall.broadcaster.opened(early)
        self.hall.broadcaster.shutdown("update", 1_500)
        self.assertEqual([{"reason": "update", "restartExpectedMs": 1_500}], one.told("shutdown"))
        self.assertEqual([(1012, "service restart")] * 2, [one.link.closed, early.link.closed])
        self.assertEqual([], early.take())
        self.assertEqual([], self.hall.clock.getDelayedCalls())

    def test_a_client_that_is_given_up_in_the_middle(self) -> None:
        """The last reader is closed by the very event it gets; nothing breaks."""
        one = self.hall.join(READ)
        self.hall.run()
        self.hall.say("a")
        peer = self.hall.broadcaster._peers[one]
        peer.send = lambda frame: one.end(1008, "slow consumer")
        self.hall.say("b")
        self.hall.model.stop()
        self.assertEqual((1008, "slow consumer"), one.link.closed)
        self.assertEqual([], self.flushLoggedErrors())

    def test_a_client_that_is_given_up_by_its_hello(self) -> None:
        """It is not kept among those who get events."""
        one = Listener.__new__(Listener)
        one.hall, one.scopes, one.protocol, one.link = self.hall, (READ,), 3, FakeLink()
        self.hall.broadcaster.opened(one)
        one.end(1008, "slow consumer")
        self.hall.broadcaster.admitted(one)
        self.assertEqual(([], []), (one.take(), self.hall.clock.getDelayedCalls()))


class PresenceEventTests(HallCase):
    """Telling who left."""

    def test_somebody_left(self) -> None:
        """Everybody gets the list, with its version."""
        one = self.hall.join()
        self.hall.broadcaster.presence_changed()
        self.hall.clock.advance(0)
        (event,) = one.take("presence")
        self.assertEqual(["self"], [entry["reason"] for entry in event["payload"]["presence"]])
        self.assertEqual({"presence": 1, "health": 1}, event["stateVersion"])

    def test_many_leave(self) -> None:
        """Then the list is told once a second, the last change included."""
        one = self.hall.join()
        for _ in range(20):
            self.hall.broadcaster.presence_changed()
            self.hall.clock.advance(0.1)
        self.assertEqual(2, len(one.take("presence")))
        self.hall.clock.advance(1)
        self.assertEqual(1, len(one.take("presence")))
        self.hall.clock.advance(5)
        self.assertEqual([], one.take("presence"))

    def test_when_the_gateway_stops(self) -> None:
        """Nobody is told of each client that is closed, and no timer is left."""
        one = self.hall.join()
        self.hall.broadcaster.announce("stop", None)
        self.hall.broadcaster.presence_changed()
        self.hall.clock.advance(1)
        self.assertEqual([], one.take("presence"))


class AgentEventTests(HallCase):
    """`agent`: all that a run says."""

    def test_deltas_of_one_batch_are_one_event(self) -> None:
        """What one read of the provider brought leaves in one frame; reasoning is a stream of its own."""
        one = self.hall.join(READ)
        self.hall.run()
        self.hall.model.push([ReasoningDelta("hm"), ReasoningDelta("m"), TextDelta("a"), TextDelta('"\n')])
        self.hall.clock.advance(0)
        self.hall.say("é")
        self.assertEqual([("thinking", "hmm", "hmm"), ("assistant", 'a"\n', 'a"\n'), ("assistant", 'a"\né', "é")], one.texts())

    def test_batches_of_one_turn_are_one_event(self) -> None:
        """Several reads in one turn of the reactor leave in one frame, each run's in its own."""
        one = self.hall.join(READ)
        self.hall.run("r-1")
        for text in ("a", "b", "c"):
            self.hall.model.say(text)
        self.assertEqual([], one.texts())
        self.hall.clock.advance(0)
        self.assertEqual([("assistant", "abc", "abc")], one.texts())

    def test_the_life_of_a_run(self) -> None:
        """Start, text and end, numbered from 1; text that waits for the end of the turn is told before the end of the run."""
        one = self.hall.join(READ)
        self.hall.run()
        self.hall.model.say("hi")
        self.hall.model.stop()
        events = one.told("agent")
        self.assertEqual([1, 2, 3], [event["seq"] for event in events])
        self.assertEqual([{"r-1"}, {"agent:main:r-1"}], [{event[name] for event in events} for name in ("runId", "sessionKey")])
        start, text, end = (event["data"] for event in events)
        self.assertEqual({"phase": "start", "startedAt": 1_000_000}, start)
        self.assertEqual({"text": "hi", "delta": "hi"}, text)
        self.assertEqual({"phase": "end", "outcome": "ok", "startedAt": 1_000_000, "endedAt": 1_000_000}, end)

    def test_an_aborted_run(self) -> None:
        """Its end is told like any other, and says so."""
        one = self.hall.join(READ)
        self.hall.run()
        self.hall.runs.abort("r-1", RunAborted())
        self.hall.clock.advance(0)
        end = one.told("agent")[-1]["data"]
        self.assertEqual(("end", "aborted", True), (end["phase"], end["outcome"], end["aborted"]))

    def test_watching_begins_in_the_middle_of_a_run(self) -> None:
        """The text of the first event is whole although its delta is not."""
        self.hall.run()
        self.hall.say("one ")
        self.hall.say("two ")
        one = self.hall.join(READ)
        self.hall.say("three")
        self.assertEqual([("assistant", "one two three", "three")], one.texts())

    def test_a_slow_client_gets_merged_deltas(self) -> None:
        """While much waits for it, deltas are joined; when it has caught up it gets them as one, and nobody else notices."""
        slow, quick = self.hall.join(READ), self.hall.join(READ, protocol=4)
        self.hall.run()
        self.hall.say("a")
        slow.link.buffered = SLOW_BYTES + 1
        self.hall.say("b")
        self.hall.model.push([ReasoningDelta("hm")])
        self.hall.clock.advance(0)
        slow.link.buffered = 1_000
        self.hall.say("c")
        self.assertEqual(["a"], [delta for _, _, delta in slow.texts()])
        self.assertEqual(["a", "b", "hm", "c"], [delta for _, _, delta in quick.texts()])
        slow.link.buffered = 0
        self.hall.broadcaster.drained(slow)
        events = slow.told("agent")
        self.assertEqual([("thinking", 4, "hm"), ("assistant", 5, "bc")], [(e["stream"], e["seq"], e["data"]["delta"]) for e in events])
        self.hall.say("d")
        self.assertEqual([("assistant", "abcd", "d")], slow.texts())

    def test_the_end_is_never_merged(self) -> None:
        """A slow client gets what was merged for it, then the end of the run."""
        slow = self.hall.join(READ)
        self.hall.run()
        slow.take()
        slow.link.buffered = SLOW_BYTES + 1
        self.hall.say("a")
        self.hall.say("b")
        self.assertEqual([], slow.take())
        self.hall.model.stop()
        text, end = slow.told("agent")
        self.assertEqual(("ab", "end"), (text["data"]["delta"], end["data"]["phase"]))

    def test_text_that_is_too_large(self) -> None:
        """It is replaced by a marker, for people and for programs; what is new still comes as long as it fits."""
        self.patch(streams, "MAX_TEXT", 100)
        one = self.hall.join(READ)
        self.hall.run()
        for text in ("x" * 60, "y" * 60, "z" * 200):
            self.hall.say(text)
        texts = [event["data"] for event in one.told("agent")[1:]]
        self.assertEqual({"text": OMITTED, "delta": "y" * 60, "__mayros": TRUNCATED}, texts[1])
        self.assertEqual({"text": OMITTED, "__mayros": TRUNCATED}, texts[2])

    def test_an_event_that_is_too_large(self) -> None:
        """Any other payload becomes a marker as a whole."""
        self.patch(broadcast, "MAX_PAYLOAD", 2_000)
        one = self.hall.join()
        self.hall.broadcaster.publish("news", {"text": "x" * 2_000})
        self.assertEqual([{"__mayros": {**TRUNCATED, "bytes": 2_011}}], one.told("news"))
        self.assertEqual([], one.take())


def text_of(payload: Any) -> Any:
    """The text of a chat event's message; None: it has no message."""
    message = payload.get("message")
    if message is None:
        return None
    assert (message["role"], [part["type"] for part in message["content"]]) == ("assistant", ["text"])
    return message["content"][0]["text"]


class ChatEventTests(HallCase):
    """`chat`: what pages show of a run."""

    def setUp(self) -> None:
        super().setUp()
        self.page = self.hall.join(READ)

    def told(self) -> list[tuple[str, Any, Any]]:
        """State, text so far, new text."""
        return [(payload["state"], text_of(payload), payload.get("deltaText")) for payload in self.page.told("chat")]

    def test_a_delta(self) -> None:
        """It has the text so far as a message, what is new, and the number of the run's event."""
        self.hall.run()
        self.hall.say("word")
        (payload,) = self.page.told("chat")
        message = {"role": "assistant", "content": [{"type": "text", "text": "word"}], "timestamp": 1_000_000}
        expected = {"runId": "r-1", "sessionKey": "agent:main:r-1", "seq": 2, "state": "delta", "message": message, "deltaText": "word"}
        self.assertEqual(expected, payload)

    def test_deltas_keep_their_distance(self) -> None:
        """The first at once, then one each 150 ms, the last one too: nothing stays untold while the model is silent."""
        self.hall.run()
        for text in "abcdefgh":
            self.hall.say(text, after=0.06)
        self.assertEqual([("delta", "a", "a"), ("delta", "abc", "bc"), ("delta", "abcdef", "def")], self.told())
        self.hall.clock.advance(0.05)
        self.assertEqual([("delta", "abcdefgh", "gh")], self.told())
        self.hall.clock.advance(10)
        self.assertEqual([], self.told())

    def test_the_end(self) -> None:
        """The whole text without the blanks around it; what was held back is in it."""
        self.hall.run()
        self.hall.say("\n Hello")
        self.hall.say(" there \n")
        self.page.take()
        self.hall.model.stop()
        (payload,) = self.page.told("chat")
        self.assertEqual(("final", "Hello there", 4), (payload["state"], text_of(payload), payload["seq"]))
        self.assertEqual({"runId", "sessionKey", "seq", "state", "message"}, set(payload))
        self.hall.clock.advance(1)
        self.assertEqual([], self.page.take())

    def test_nothing_to_show(self) -> None:
        """Blanks and the silent word are not shown, and the end has no message."""
        for number, texts in enumerate((["\n", " "], ["NO", "_REPLY"], [])):
            self.hall.run(f"r-{number}")
            for text in texts:
                self.hall.say(text, after=1)
            self.hall.model.stop()
            self.assertEqual([("final", None, None)], self.told())
        self.hall.run()
        self.hall.say("NO", after=1)
        self.hall.say(" way", after=1)
        self.assertEqual([("delta", "NO way", "NO way")], self.told())

    def test_a_run_that_fails(self) -> None:
        """All text is told before the error, which has none."""
        self.hall.run()
        self.hall.say("a")
        self.hall.say("b")
        self.hall.model.fail(UpstreamError("the model is gone"))
        self.assertEqual([("delta", "a", "a"), ("delta", "ab", "b"), ("error", None, None)], self.told())
        self.hall.run("r-2")
        self.hall.model.fail(UpstreamError("the model is gone"))
        (payload,) = self.page.told("chat")
        self.assertEqual("the model is gone", payload["errorMessage"])
        self.hall.clock.advance(1)
        self.assertEqual([], self.page.take())

    def aborted(self, text: str) -> tuple[str, Any, str]:
        """The end of a run that was aborted when it had said so much."""
        if text:
            self.hall.say(text)
        self.page.take()
        self.hall.clock.advance(5)
        payload = self.page.told("chat")[-1]
        return payload["state"], text_of(payload), payload["stopReason"]

    def test_aborted_by_a_method(self) -> None:
        """The partial text is kept."""
        self.hall.run()
        self.hall.runs.abort("r-1", RunAborted())
        self.assertEqual(("aborted", None, "rpc"), self.aborted(""))
        self.hall.run("r-2")
        self.hall.say("so far ")
        self.hall.runs.abort("r-2", RunAborted())
        self.assertEqual(("aborted", "so far", "rpc"), self.aborted(""))

    def test_aborted_by_a_word(self) -> None:
        """Whoever aborts a run says why; a word for one run is not taken for another."""
        self.hall.broadcaster.aborting("r-2", "stop")
        self.hall.run("r-1")
        self.hall.broadcaster.aborting("r-1", "stop")
        self.hall.runs.abort("r-1", RunAborted())
        self.assertEqual(("aborted", None, "stop"), self.aborted(""))
        self.hall.run("r-2")
        self.hall.runs.abort("r-2", RunAborted())
        self.assertEqual(("aborted", None, "rpc"), self.aborted(""))

    def test_out_of_time(self) -> None:
        """A time limit is an abort of its own kind."""
        self.hall.run(seconds=3)
        self.assertEqual(("aborted", "so far", "timeout"), self.aborted("so far"))

    def test_a_page_that_opens_in_the_middle(self) -> None:
        """Its first delta replaces whatever it shows; the others' does not."""
        self.hall.run()
        self.hall.say("one ", after=1)
        late = self.hall.join(READ, protocol=4)
        self.page.take()
        self.hall.say("two", after=1)
        self.assertEqual([("delta", "one two", "two")], self.told())
        (payload,) = late.told("chat")
        self.assertEqual(("one two", "one two", True), (text_of(payload), payload["deltaText"], payload["replace"]))
        self.hall.say("!")
        (payload,) = late.told("chat")
        self.assertEqual(("one two!", "!"), (text_of(payload), payload["deltaText"]))
        self.assertNotIn("replace", payload)

    def test_a_slow_page(self) -> None:
        """It misses deltas, not the end; when it has caught up, one delta replaces what it missed."""
        self.hall.run()
        self.hall.say("a", after=1)
        self.page.take()
        self.page.link.buffered = SLOW_BYTES + 1
        self.hall.say("b", after=1)
        self.hall.say("c", after=1)
        self.assertEqual([], self.page.take())
        self.page.link.buffered = 0
        self.hall.broadcaster.drained(self.page)
        text, delta = self.page.take()
        self.assertEqual(("agent", "bc"), (text["event"], text["payload"]["data"]["delta"]))
        self.assertEqual(("chat", "abc", True), (delta["event"], delta["payload"]["deltaText"], delta["payload"]["replace"]))
        self.page.link.buffered = SLOW_BYTES + 1
        self.hall.say("d", after=1)
        self.hall.model.stop()
        self.assertEqual([("final", "abcd", None)], self.told())

    def test_runs_of_the_other_door(self) -> None:
        """A page sees what HTTP clients start as well."""
        self.hall.harness.dial(post(chat("hello", user="bob")))
        self.hall.say("hi")
        self.hall.model.stop()
        payloads = self.page.told("chat")
        self.assertEqual(["delta", "final"], [payload["state"] for payload in payloads])
        self.assertEqual({"agent:main:openai-user:bob"}, {payload["sessionKey"] for payload in payloads})

    def test_an_answer_without_a_run(self) -> None:
        """Commands and injected messages are told as an end, to readers only."""
        nobody = self.hall.join()
        self.hall.broadcaster.chat_final("inject-1", "agent:main:main", "told", 5)
        message = {"role": "assistant", "content": [{"type": "text", "text": "told"}], "timestamp": 5}
        expected = {"runId": "inject-1", "sessionKey": "agent:main:main", "seq": 0, "state": "final", "message": message}
        self.assertEqual(([expected], []), (self.page.told("chat"), nobody.take()))
        self.hall.broadcaster.chat_final("k-1", "main", None, 5)
        self.assertEqual([{"runId": "k-1", "sessionKey": "main", "seq": 0, "state": "final"}], self.page.told("chat"))

    def test_text_that_is_too_large(self) -> None:
        """It is replaced by a marker, in deltas and at the end."""
        self.patch(streams, "MAX_TEXT", 100)
        self.hall.run()
        self.hall.say("x" * 60, after=1)
        self.hall.say("y" * 60, after=1)
        self.hall.say("z" * 200, after=1)
        self.hall.model.stop()
        self.hall.broadcaster.chat_final("inject-1", "main", "x" * 101, 5)
        payloads = self.page.told("chat")
        self.assertEqual([OMITTED] * 4, [text_of(payload) for payload in payloads[1:]])
        self.assertEqual([TRUNCATED] * 4, [payload["__mayros"] for payload in payloads[1:]])
        self.assertEqual(["x" * 60, "y" * 60, None, None, None], [payload.get("deltaText") for payload in payloads])


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
