"""Retries and resuming: chat requests with an Idempotency-Key, and streams that go on behind the last event that their client has."""

from __future__ import annotations

import itertools
import json
import os
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.journal import Journals
from mayros.core.liverun import GRACE_SECONDS
from mayros.core.ports import RunResult
from mayros.errors import RunAborted, UpstreamError
from mayros.events import TextDelta
from mayros.web.shared import KEPT_SECONDS, KEPT_STREAMS
from mayros.web.sse import START_SECONDS
from tests.helpers import Answer, Client, FakeTool, Harness, HarnessCase, SlowIdempotency, chat, post
from tests.test_ws import World, agent_params, ask, tell

settings.register_profile("keys", derandomize="CI" in os.environ, deadline=None, database=None)
SETTINGS = settings.get_profile("keys")

KEY = "Idempotency-Key: k-1"
EVENT = re.compile(r"(?:id: (?P<id>\S+)\n)?(?:event: (?P<name>\S+)\n)?data: (?P<data>.*)")


def events(client: Client) -> list[tuple[str | None, str]]:
    """Id and data of the events that have come."""
    blocks = client.stream().body.decode().split("\n\n")
    return [(found["id"], found["data"]) for block in blocks if (found := EVENT.fullmatch(block)) is not None]


def ids(client: Client) -> list[str]:
    """The ids alone."""
    return [event_id or "" for event_id, _ in events(client)]


class KeyedCase(HarnessCase):
    """One gateway, and short ways to ask with a key."""

    def setUp(self) -> None:
        super().setUp()
        self.one = self.gateway()

    def dial(self, *lines: str, key: str | None = KEY, **fields: Any) -> Client:
        """A request with the key."""
        return self.one.dial(post(chat(**fields), *([key] if key is not None else ()), *lines))

    def says(self, *texts: str, to: Client | None = None) -> None:
        """The model says something."""
        for text in texts:
            self.one.provider.say(text)
        self.one.settle(*(client for client in self.one.clients if not client.lost))

    def ends(self) -> None:
        """The model is done."""
        self.one.provider.stop()
        self.one.settle(*(client for client in self.one.clients if not client.lost))

    def asked(self) -> int:
        """How often the model was asked."""
        return len(self.one.provider.requests)


class Keys(KeyedCase):
    """Which keys there are, and what one means."""

    def test_form(self) -> None:
        """One line of 1 to 255 visible ASCII characters; anything else is refused, naming the header, before anything happens."""
        for lines in (
            ["Idempotency-Key:"], ["Idempotency-Key: a b"], ["Idempotency-Key: \xe9"], ["Idempotency-Key: " + "k" * 256],
            ["Idempotency-Key: a", "Idempotency-Key: a"],
        ):  # fmt: skip
            error = self.dial(*lines, key=None).answer()
            self.assertEqual((error.status, error.error["param"]), (400, "Idempotency-Key"), lines)
        self.assertEqual((self.asked(), self.one.idempotency.kept), (0, {}))
        for key in ("k", "!" * 255, "~:/\\'\""):
            client = self.dial(key=f"Idempotency-Key: {key}")
            self.says("ok")
            self.ends()
            self.assertEqual(client.answer().status, 200, key)

    def test_a_request_without_a_key_is_no_other_than_before(self) -> None:
        """Nothing of all this is even loaded for it."""
        self.one.serve()
        self.one.serve(stream=True)
        self.assertIsNone(self.one.api._keyed)
        self.assertEqual(self.one.idempotency.kept, {})

    def test_claimed_before_the_run(self) -> None:
        """The key is on disk before the model is asked, under the caller and the route."""
        slow = self.one.api._keys = SlowIdempotency()
        client = self.dial()
        self.assertEqual((self.asked(), len(slow.waiting)), (0, 1))
        slow.go()
        self.assertEqual((self.asked(), list(slow.kept)), (1, [("http:chat:owner", "k-1")]))
        client.leave()
        self.one.advance(GRACE_SECONDS)

    def test_both_addresses_are_one_route(self) -> None:
        """Also without /v1 and with a final slash."""
        self.dial()
        self.says("once")
        self.ends()
        for path in ("/chat/completions", "/v1/chat/completions/"):
            again = self.one.dial(post(chat(), KEY, path=path)).answer()
            self.assertEqual((again.status, again.headers["idempotent-replayed"]), (200, "true"))
        self.assertEqual(self.asked(), 1)

    def test_another_request(self) -> None:
        """The same key with another body, or for another agent, session or model, is refused, live and afterwards; nobody is to try that again."""
        first = self.dial()
        for ended in (False, True):
            if ended:
                self.says("ok")
                self.ends()
                self.assertEqual(first.answer().status, 200)
            for client in (
                self.one.dial(post(chat("something else"), KEY)),
                self.one.dial(post(chat(stream=True), KEY)),
                self.dial("x-mayros-agent-id: beta"),
                self.dial("x-mayros-session-key: s"),
                self.dial("x-mayros-model: fake/two"),
            ):
                error = client.answer()
                self.assertEqual((error.status, error.error["code"]), (422, "idempotency_key_reused"))
                self.assertNotIn("idempotent-replayed", error.headers)
        self.assertEqual(self.asked(), 1)

    def test_large_bodies_too(self) -> None:
        """A body is told from another one by its last byte; it is hashed in slices, between which others have their turn."""
        text = "x" * (9 << 20)
        first = self.one.dial(post(chat(text), KEY))
        for _ in range(3):
            self.one.settle(first)
        self.assertEqual(first.answer().error["code"], "context_length_exceeded")  # which gives the key back
        again = self.one.dial(post(chat(text), KEY))
        again.leave()
        self.assertEqual(self.one.leftovers(), {})

    def test_refused_requests_give_the_key_back(self) -> None:
        """What was refused before it began may be sent again, in any form."""
        self.one = self.gateway({"gateway": {"limits": {"maxQueuedPerSession": 1}}})
        self.assertEqual(self.dial(temperature=9).answer().status, 400)
        self.assertEqual(self.one.dial(post(chat("word " * 20_000), KEY)).answer().error["code"], "context_length_exceeded")
        self.one.runs.drain()
        self.assertEqual(self.dial().answer().error["code"], "unavailable")
        self.one.runs.drain(())
        busy = [self.dial(user="u", key=None) for _ in range(2)]
        full = self.dial(user="u").answer()
        self.assertEqual((full.status, full.error["code"], full.headers.get("x-should-retry")), (429, "queue_full", None))
        self.assertEqual(self.one.idempotency.kept, {})
        for client in busy:
            self.says("ok")
            self.ends()
            self.assertEqual(client.answer().status, 200)
        last = self.dial(user="u")
        self.says("now")
        self.ends()
        self.assertEqual(last.answer().json["choices"][0]["message"]["content"], "now")

    def test_two_callers(self) -> None:
        """A key is its caller's own."""
        gateway = {"trustedProxies": ["10.0.0.1"], "auth": {"mode": "trusted-proxy", "trustedProxy": {"userHeader": "X-User"}}}
        self.one = self.gateway({"gateway": gateway})
        for name in ("ann", "bob"):
            client = self.one.dial(post(chat(), KEY, f"X-User: {name}"), "10.0.0.1")
            self.says(name)
            self.ends()
            self.assertEqual(client.answer().json["choices"][0]["message"]["content"], name)


class WhileClaiming(KeyedCase):
    """The key is on its way to the disk."""

    def setUp(self) -> None:
        super().setUp()
        self.keys = self.one.api._keys = self.one.runs._idempotency = self.one.store.keys = SlowIdempotency()

    def test_a_repeat_meanwhile(self) -> None:
        """There is one run, and both get its answer."""
        clients = [self.dial() for _ in range(3)]
        self.assertEqual(len(self.keys.waiting), 1)
        while self.keys.waiting:
            self.keys.go()
        self.says("once")
        self.ends()
        answers = [client.answer() for client in clients]
        self.assertEqual([answer.headers.get("idempotent-replayed") for answer in answers], [None, "true", "true"])
        self.assertEqual({answer.body for answer in answers}, {answers[0].body})
        self.assertEqual(self.asked(), 1)

    def test_the_client_leaves(self) -> None:
        """Then nothing is begun, and the key is free; who has the same key is served."""
        first, second = self.dial(), self.dial()
        first.leave()
        self.keys.go()
        self.assertEqual(self.keys.kept, {})
        self.assertEqual(self.asked(), 0)
        self.keys.go()
        self.assertEqual(self.asked(), 1)
        self.says("yours")
        self.ends()
        self.assertNotIn("idempotent-replayed", second.answer().headers)

    def test_the_store_cannot_be_written(self) -> None:
        """503 before anything is begun."""
        self.keys.broken = True
        client = self.dial()
        self.keys.go()
        self.one.settle(client)
        self.assertEqual(client.answer().error["code"], "storage_unavailable")
        self.assertEqual(self.asked(), 0)


class Repeats(KeyedCase):
    """The same request once more."""

    def answer(self, *lines: str, **fields: Any) -> Answer:
        """Of a repeat that is answered at once."""
        return self.dial(*lines, **fields).answer()

    def test_after_the_end(self) -> None:
        """The first answer, byte for byte, under the first run's id."""
        first = self.dial(user="ann")
        self.says("Hel", "lo")
        self.ends()
        said = first.answer()
        self.assertNotIn("idempotent-replayed", said.headers)
        for later in (0, 3_600):
            self.one.advance(later)
            again = self.answer(user="ann")
            self.assertEqual((again.status, again.body, again.headers["idempotent-replayed"]), (200, said.body, "true"))
            for name in ("x-mayros-run-id", "x-mayros-agent-id", "x-mayros-session-key", "x-mayros-model"):
                self.assertEqual(again.headers[name], said.headers[name])
        self.assertEqual(self.asked(), 1)

    def test_while_it_goes_on(self) -> None:
        """All wait for the one run; when the first one leaves, the others get the answer."""
        clients = [self.dial() for _ in range(3)]
        clients[0].leave()
        self.one.advance(GRACE_SECONDS + 1)
        self.says("for two")
        self.ends()
        bodies = [client.answer().body for client in clients[1:]]
        self.assertEqual(bodies[0], bodies[1])
        self.assertEqual((self.asked(), len(self.one.store.turns)), (1, 1))

    def test_a_stored_error(self) -> None:
        """An error that was recorded is the answer of its key, too: an SDK need not ask for it again, neither after the first nor after a repeat."""
        for fields in ({}, {"stream": True}):
            key = f"Idempotency-Key: {len(fields)}"
            client = self.dial(key=key, **fields)
            self.one.provider.fail(UpstreamError("It is broken."))
            self.one.settle(client)
            first = client.answer()
            for later in (0, KEPT_SECONDS):
                self.one.advance(later)
                again = self.answer(key=key, **fields)
                self.assertEqual((again.status, again.error, again.headers["idempotent-replayed"]), (502, first.error, "true"))
                self.assertEqual((first.headers["x-should-retry"], again.headers["x-should-retry"]), ("false", "false"))
        self.assertEqual(self.asked(), 2)

    def test_aborted(self) -> None:
        """chat.abort ends a keyed run for all who wait for it, with 422, and so it is answered ever after."""
        clients = [self.dial() for _ in range(2)]
        (run,) = self.one.runs._live.values()
        self.one.runs.abort(run.turn.run_id, RunAborted())
        self.one.settle(*clients)
        for answer in (*(client.answer() for client in clients), self.answer()):
            self.assertEqual((answer.status, answer.error["code"]), (422, "run_aborted"))

    def test_after_a_crash(self) -> None:
        """The store has closed the run, of which nothing but its id is known: the key answers with that, and starts no second run."""
        client = self.dial()
        (scope_key,) = self.one.idempotency.kept
        digest, run_id, _ = self.one.idempotency.kept[scope_key]
        gone = RunResult(run_id, "", "", "", "aborted", "", 0, 0, error_code="server_shutdown", error="The gateway stopped during this run.")
        self.one = self.gateway()
        self.one.idempotency.kept[scope_key] = digest, run_id, gone
        for _ in range(2):
            again = self.answer()
            self.assertEqual((again.status, again.error["code"], again.headers["x-should-retry"]), (503, "server_shutdown", "false"))
            self.assertEqual((again.headers["x-mayros-run-id"], "retry-after" in again.headers), (run_id, False))
        self.assertEqual(self.asked(), 0)
        client.leave()
        self.gateways[0].advance(GRACE_SECONDS)

    def test_what_a_tool_did_is_not_done_twice(self) -> None:
        """A turn that acted and could not be recorded keeps its key; one that only talked gives it back."""
        self.one = Harness(self, tools=[FakeTool("look", "seen")])
        self.gateways.append(self.one)
        self.one.store.broken = True
        acting = self.dial()
        self.one.provider.call(("look", {}))
        self.says("done")
        self.ends()
        self.assertEqual(acting.answer().error["code"], "storage_unavailable")
        self.assertEqual(list(self.one.idempotency.kept), [("http:chat:owner", "k-1")])
        talking = self.dial(key="Idempotency-Key: k-2")
        self.says("only talk")
        self.ends()
        self.assertEqual(talking.answer().error["code"], "storage_unavailable")
        self.assertEqual(list(self.one.idempotency.kept), [("http:chat:owner", "k-1")])

    def test_the_doors_do_not_share_keys(self) -> None:
        """What was done under a key on the WebSocket is nothing to HTTP, and the other way round."""
        world = World(self)
        self.one = world.harness
        self.gateways.append(self.one)
        client = self.dial()
        self.says("http")
        self.ends()
        self.assertEqual(client.answer().status, 200)
        session, link = world.connect("operator.write")
        self.assertEqual(ask(session, link, "agent", agent_params(idempotencyKey="k-1"))["payload"]["status"], "accepted")
        self.says("socket")
        self.ends()
        self.assertEqual(self.answer().json["choices"][0]["message"]["content"], "http")
        tell(session, "chat.send", {"sessionKey": "main", "message": "hi", "idempotencyKey": "k-1"})
        self.says("chat")
        self.ends()
        self.assertEqual(self.asked(), 3)
        session.closed()


class Streams(KeyedCase):
    """Streamed answers."""

    def open(self, *lines: str, **fields: Any) -> Client:
        """A streamed request."""
        return self.dial(*lines, stream=True, stream_options={"include_usage": True}, **fields)

    def resume(self, event_id: str) -> Client:
        """The same request, behind an event."""
        return self.open(f"Last-Event-ID: {event_id}")

    def body(self, client: Client) -> bytes:
        return client.stream().body

    def test_ids(self) -> None:
        """Each event has the run's id and its number; without a key there are none."""
        client = self.open()
        self.says("a", "b")
        self.ends()
        run_id = client.stream().headers["x-mayros-run-id"]
        self.assertEqual(ids(client), [f"{run_id}:{number}" for number in range(1, 7)])
        self.assertEqual((client.text(), client.events()[-1]), ("ab", "[DONE]"))
        plain = self.dial(key=None, stream=True)
        self.says("a")
        self.ends()
        self.assertEqual(set(ids(plain)), {""})

    def test_a_repeat_follows_the_live_run(self) -> None:
        """From the start, then live, to the same end."""
        first = self.open()
        self.says("one", " two")
        second = self.open()
        self.one.settle(second)
        self.assertEqual((self.body(second), second.text()), (self.body(first), "one two"))
        self.assertEqual(second.stream().headers["idempotent-replayed"], "true")
        self.says(" three")
        self.assertEqual(second.text(), "one two three")
        self.ends()
        self.assertEqual((self.body(second), second.events()[-1]), (self.body(first), "[DONE]"))
        self.assertEqual(self.asked(), 1)

    def test_before_the_first_word(self) -> None:
        """Clients of a run that has said nothing wait for their head, and get the failure as a status; after a while the stream begins for all."""
        clients = [self.open(), self.open()]
        self.one.provider.fail(UpstreamError())
        self.one.settle(*clients)
        self.assertEqual([client.answer().status for client in clients], [502, 502])
        clients = [self.open(key="Idempotency-Key: k-2")]
        self.one.advance(START_SECONDS - 1, *clients)
        clients.append(self.open(key="Idempotency-Key: k-2"))
        self.one.advance(2, *clients)
        self.assertEqual([len(ids(client)) for client in clients], [1, 1])
        self.one.provider.fail(UpstreamError("Late."))
        self.one.settle(*clients)
        for client in clients:
            self.assertIn("Late.", client.events()[-1])
            self.assertEqual((client.stream().status, self.body(client)), (200, self.body(clients[0])))

    def test_repeats_after_the_end(self) -> None:
        """The same events for five minutes; then the stored answer in one chunk."""
        first = self.open()
        self.says("Hel", "lo")
        self.ends()
        self.one.advance(KEPT_SECONDS - 1)
        again = self.open()
        self.one.settle(again)
        self.assertEqual((self.body(again), again.stream().headers["idempotent-replayed"]), (self.body(first), "true"))
        self.one.advance(1)
        stored = self.open()
        head, text, finish, usage, done = stored.events()
        self.assertEqual((json.loads(text)["choices"][0]["delta"], done), ({"content": "Hello"}, "[DONE]"))
        for mine, theirs in ((head, 0), (finish, -3), (usage, -2)):
            self.assertEqual(mine, first.events()[theirs])
        self.assertEqual((set(ids(stored)), stored.answer().headers["x-mayros-model"]), ({""}, "fake/one"))
        self.assertEqual(self.asked(), 1)

    def test_calls_of_the_callers_tools(self) -> None:
        """They are a part of the answer like its text: in the same fragments for five minutes, then each in one."""
        tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
        first = self.open(tools=tools)
        self.one.provider.call(("weather", {"at": "home"}), text="Let me see.")
        self.one.settle(first)
        again = self.open(tools=tools)
        self.assertEqual(self.body(again), self.body(first))
        self.one.advance(KEPT_SECONDS)
        for client in (first, self.open(tools=tools)):
            chunks = [json.loads(data) for data in client.events()[:-1]]
            parts = [part for chunk in chunks for choice in chunk["choices"] for part in choice["delta"].get("tool_calls", ())]
            arguments = "".join(part["function"].get("arguments", "") for part in parts)
            self.assertEqual((client.text(), parts[0]["function"]["name"], json.loads(arguments)), ("Let me see.", "weather", {"at": "home"}))
            self.assertEqual([choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]][-1], "tool_calls")
        self.assertEqual(self.asked(), 1)

    def test_an_error_after_the_first_word(self) -> None:
        """It is the last event, for those who were there and for those who come later."""
        first = self.open()
        self.says("half")
        self.one.provider.fail(UpstreamError("It broke."))
        self.one.settle(first)
        again = self.open()
        self.one.settle(again)
        self.assertEqual(self.body(again), self.body(first))
        last_id, last = events(again)[-1]
        self.assertEqual((json.loads(last)["error"]["message"], last_id), ("It broke.", f"{again.stream().headers['x-mayros-run-id']}:3"))
        self.one.advance(KEPT_SECONDS)
        self.assertEqual(self.open().answer().error["message"], "It broke.")

    def test_aborted(self) -> None:
        """chat.abort ends the stream at once, for all who follow it."""
        clients = [self.open(), self.open()]
        self.says("half")
        (run,) = self.one.runs._live.values()
        self.one.runs.abort(run.turn.run_id, RunAborted())
        self.one.settle(*clients)
        for client in clients:
            self.assertEqual(json.loads(client.events()[-1])["error"]["code"], "run_aborted")
            self.assertNotIn("[DONE]", client.events())

    def test_resume(self) -> None:
        """Behind any event: what follows, once, and in the same bytes, while the run lives and afterwards."""
        first = self.open()
        self.says("a", "b")
        seen = ids(first)
        second = self.resume(seen[1])
        self.one.settle(second)
        self.assertEqual((second.text(), ids(second)), ("b", seen[2:]))
        self.says("c")
        self.ends()
        self.assertEqual((first.text(), second.text()), ("abc", "bc"))
        whole = events(first)
        for place, (event_id, _) in enumerate(whole):
            later = self.resume(event_id or "")
            self.one.settle(later)
            self.assertEqual(events(later), whole[place + 1 :])
            self.assertTrue(later.received.endswith(b"0\r\n\r\n"))
        self.one.advance(KEPT_SECONDS)
        error = self.resume(seen[1]).answer()
        self.assertEqual((error.status, error.error["code"]), (422, "stream_not_kept"))
        self.assertEqual(self.asked(), 1)

    @given(st.lists(st.lists(st.text(max_size=4), max_size=3), max_size=6), st.data())
    @settings(SETTINGS, max_examples=25)
    def test_whatever_is_lost(self, batches: list[list[str]], data: st.DataObject) -> None:
        """A client that loses its connection again and again, at any place, has the whole stream in the end, no event twice."""
        self.one = self.gateway()
        client, had = self.open(), []
        for texts in batches:
            self.one.provider.push([TextDelta(text) for text in texts] or [TextDelta("")])
            self.one.settle(client)
            if data.draw(st.booleans()) and b"\r\n\r\n" in client.received:
                got = events(client)
                had += got[: data.draw(st.integers(0, len(got)))]
                client.leave()
                client = self.resume(had[-1][0] or "") if had else self.open()
                self.one.settle(client)
        self.ends()
        had += events(client)
        run_id = client.stream().headers["x-mayros-run-id"]
        self.assertEqual([event_id for event_id, _ in had], [f"{run_id}:{number}" for number in range(1, len(had) + 1)])
        chunks = [json.loads(data) for _, data in had[:-1]]
        text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
        self.assertEqual((text, had[-1][1], self.asked()), ("".join(itertools.chain(*batches)), "[DONE]", 1))
        self.assertEqual(self.one.leftovers(), {})

    def test_places_that_are_none(self) -> None:
        """What is no event of this key's stream is refused, naming the header, and starts nothing."""
        for value in ("", "x", "a:b", "a:1:2", f"{'a' * 24}:1"):
            error = self.resume(value).answer()
            self.assertEqual((error.status, error.error["param"]), (400, "Last-Event-ID"), value)
        error = self.open("Last-Event-ID: a:1", key=None).answer()
        self.assertEqual((error.status, error.error["param"]), (400, "Last-Event-ID"))
        self.assertEqual((self.asked(), self.one.idempotency.kept), (0, {}))
        first = self.open()
        self.says("a")
        run_id = first.stream().headers["x-mayros-run-id"]
        for value in (f"{run_id}:0", f"{run_id}:3", f"{run_id}:{10**14}", f"{run_id[:-1]}:1", run_id):
            error = self.resume(value).answer()
            self.assertEqual((error.status, error.error["param"]), (400, "Last-Event-ID"), value)
        plain = self.dial(f"Last-Event-ID: {run_id}:1").answer()
        self.assertEqual((plain.status, plain.error["param"]), (400, "Last-Event-ID"))
        self.ends()

    def test_bounds(self) -> None:
        """Of a stream that is longer than what is kept, the end can be resumed; the beginning cannot, and the whole answer can when there is one."""
        self.one.api.keyed.streams.journals = Journals(events=3)
        first = self.open()
        self.says(*"abcdef")
        seen = ids(first)
        for client in (self.open(), self.resume(seen[2])):
            error = client.answer()
            self.assertEqual((error.status, error.error["code"]), (422, "stream_not_kept"))
        near = self.resume(seen[-2])
        self.one.settle(near)
        self.assertEqual(near.text(), "f")
        self.ends()
        self.assertEqual((first.text(), near.events()[-1]), ("abcdef", "[DONE]"))
        whole = self.open()
        self.assertEqual((whole.text(), whole.events()[-1]), ("abcdef", "[DONE]"))

    def test_only_so_many_are_kept(self) -> None:
        """Of streams that have ended the newest."""
        streams = self.one.api.keyed.streams
        client = self.open()
        self.says("a")
        self.ends()
        run_id = client.stream().headers["x-mayros-run-id"]
        for number in range(KEPT_STREAMS):
            streams._streams[str(number)] = streams._streams[run_id]
            streams._kept[str(number)] = self.one.clock.seconds() + KEPT_SECONDS
        self.open(key="Idempotency-Key: k-2")
        self.says("b")
        self.ends()
        self.assertNotIn(run_id, streams._streams)


class Leaving(KeyedCase):
    """Clients that go away."""

    def open(self, *lines: str, **fields: Any) -> Client:
        return self.dial(*lines, stream=True, **fields)

    def outcome(self) -> str:
        return self.one.store.turns[-1][1].outcome

    def test_the_run_waits_for_a_client(self) -> None:
        """Half a minute; then it is cancelled, and recorded with what was said. The repeat hears of that."""
        for fields in ({}, {"stream": True}):
            key = f"Idempotency-Key: {len(fields)}"
            client = self.dial(key=key, **fields)
            self.says("half")
            client.leave()
            self.one.advance(GRACE_SECONDS - 1)
            self.assertEqual(self.one.runs.live(), 1)
            self.one.advance(1)
            self.one.settle()
            self.assertEqual((self.one.runs.live(), self.outcome(), self.one.store.turns[-1][1].text), (0, "aborted", "half"))
            again = self.dial(key=key, **fields)
            self.one.settle(again)
            self.assertIn("run_aborted", again.received.decode())

    def test_it_comes_back(self) -> None:
        """Each time the half minute begins anew, and with a client there it does not count."""
        client = self.open()
        self.says("a")
        for _ in range(3):
            client.leave()
            self.one.advance(GRACE_SECONDS - 1)
            client = self.open()
            self.one.advance(2 * GRACE_SECONDS, client)
        self.says("b")
        self.ends()
        self.assertEqual((client.text(), self.outcome()), ("ab", "ok"))

    def test_it_comes_back_after_the_end(self) -> None:
        """What was said meanwhile is there."""
        client = self.open()
        self.says("a")
        client.leave()
        self.says("b")
        self.ends()
        client = self.open()
        self.one.settle(client)
        self.assertEqual((client.text(), self.outcome(), self.one.access[0].code), ("ab", "ok", 499))

    def test_in_the_queue(self) -> None:
        """A run that waits for its lane waits for its client, too; cancelled there it did nothing, and gives its key back."""
        self.dial(user="u", key=None)
        waiting = self.dial(user="u")
        waiting.leave()
        self.one.advance(GRACE_SECONDS)
        self.one.settle()
        self.assertEqual((self.one.runs.live(), self.one.idempotency.kept), (1, {}))
        self.ends()

    def test_shutdown(self) -> None:
        """A run that waits for its client is live: the gateway waits for it, and in the end aborts it."""
        client = self.open()
        self.says("a")
        client.leave()
        self.one.runs.drain()
        drained = self.one.runs.drained()
        self.assertNoResult(drained)
        back = self.open()
        self.says("b")
        self.assertEqual(back.text(), "ab")
        back.leave()
        self.one.runs.abort_all()
        self.one.settle()
        self.successResultOf(drained)
        again = self.open()
        self.one.settle(again)
        self.assertEqual(json.loads(again.events()[-1])["error"]["code"], "server_shutdown")

    def test_the_body_budget(self) -> None:
        """The body of the first request is kept as long as its run, those of repeats no longer than until they are recognised."""
        large = chat("x" * 20_000, stream=True)
        first = self.one.dial(post(large, KEY))
        taken = self.one.bodies.total - self.one.bodies.free
        self.assertGreater(taken, 20_000)
        self.one.dial(post(large, KEY))
        self.assertEqual(self.one.bodies.total - self.one.bodies.free, taken)
        first.leave()
        self.assertEqual(self.one.bodies.total - self.one.bodies.free, taken)
        self.ends()
        self.assertEqual(self.one.bodies.free, self.one.bodies.total)


class Slow(KeyedCase):
    """Clients that do not read."""

    def open(self, *lines: str, **fields: Any) -> Client:
        return self.dial(*lines, stream=True, **fields)

    def pause(self, client: Client) -> None:
        client.server.pauseProducing()  # type: ignore[attr-defined]

    def go(self, client: Client) -> None:
        client.server.resumeProducing()  # type: ignore[attr-defined]
        self.one.settle(client)

    def test_the_only_client_holds_the_model_back(self) -> None:
        """As without a key; when it leaves, the run goes on."""
        client = self.open()
        self.says("a")
        self.pause(client)
        self.says(*"bcd")
        self.assertEqual(self.one.provider.unread, 2)
        self.go(client)
        self.assertEqual((self.one.provider.unread, client.text()), (0, "abcd"))
        self.pause(client)
        self.says("e", "f")
        self.assertEqual(self.one.provider.unread, 1)
        client.leave()
        self.one.settle()
        self.assertEqual(self.one.provider.unread, 0)
        again = self.open()
        self.ends()
        self.assertEqual(again.text(), "abcdef")

    def test_one_of_two(self) -> None:
        """The other one is served as fast as it reads, the slow one goes on where it was; both get all."""
        fast, slow = self.open(), self.open()
        self.says("a")
        self.pause(slow)
        self.says(*"bcd")
        self.assertEqual((fast.text(), slow.text(), self.one.provider.unread), ("abcd", "a", 0))
        self.ends()
        self.assertEqual((fast.events()[-1], slow.text()), ("[DONE]", "a"))
        self.go(slow)
        self.assertEqual((slow.text(), slow.events()[-1]), ("abcd", "[DONE]"))

    def test_both(self) -> None:
        """Then the model is held back, until one of them reads on, leaves, or a third one comes."""
        for freed in ("reads", "leaves", "third"):
            self.one = self.gateway()
            clients = [self.open(), self.open()]
            self.says("a")
            for client in clients:
                self.pause(client)
            self.says(*"bc")
            self.assertEqual(self.one.provider.unread, 1, freed)
            if freed == "reads":
                self.go(clients[0])
            elif freed == "leaves":
                clients[0].leave()
                self.assertEqual(self.one.provider.unread, 1)
                clients[1].leave()
                self.one.settle()
            else:
                third = self.open()
                self.one.settle(third)
                self.assertEqual(third.text(), "abc")
            self.assertEqual(self.one.provider.unread, 0, freed)
            self.ends()

    def test_too_far_behind(self) -> None:
        """A client that is behind what is kept is cut off: a clean end would pass for the whole answer."""
        self.one.api.keyed.streams.journals = Journals(events=2)
        fast, slow = self.open(), self.open()
        self.says("a")
        self.pause(slow)
        self.says(*"bcdef")
        slow.server.resumeProducing()  # type: ignore[attr-defined]
        self.one.settle(slow)
        self.assertTrue(slow.lost)
        self.assertNotIn(b"\r\n0\r\n", slow.received)
        self.ends()
        self.assertEqual((fast.text(), fast.events()[-1]), ("abcdef", "[DONE]"))

    def test_a_long_stream_is_replayed_as_it_is_read(self) -> None:
        """What a repeat gets at once does not pile up: it is written as far as the client takes it."""
        client = self.open()
        self.says(*("x" * 1_000 for _ in range(500)))
        again = self.dial(stream=True)
        before = len(again.received)
        self.pause(again)
        self.one.settle(again)
        self.go(again)
        self.ends()
        self.assertLessEqual(before, len(again.received))
        self.assertEqual((again.text(), again.stream().body), (client.text(), client.stream().body))


class Doors(SynchronousTestCase):
    """The other door."""

    def test_chat_abort(self) -> None:
        """`chat.abort` of the session ends the keyed run of its HTTP client at once."""
        world = World(self)
        one = world.harness
        clients = [one.dial(post(chat(user="ann", stream=stream), f"Idempotency-Key: {stream}")) for stream in (False, True)]
        one.settle(*clients)
        session, link = world.connect("operator.write")
        answer = ask(session, link, "chat.abort", {"sessionKey": "agent:main:openai-user:ann"})
        self.assertEqual(len(answer["payload"]["runIds"]), 2)
        one.settle(*clients)
        one.settle(*clients)
        self.assertEqual([client.answer().error["code"] for client in clients], ["run_aborted", "run_aborted"])
        session.closed()
        self.assertEqual(one.leftovers(), {})
