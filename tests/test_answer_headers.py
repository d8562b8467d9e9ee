"""What the head of every answer says of the request, its run and its model; and the model that a caller chooses by a header."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from mayros.core.auth import PROXY_SCOPES
from mayros.core.ports import Principal
from mayros.errors import UpstreamError
from mayros.events import ModelAnswered, TextDelta
from mayros.web.turns import turn_of
from mayros.wire.chat import decode_request
from tests.helpers import Answer, HarnessCase, chat, head, post, settings
from tests.test_ws import ADMIN, World, tell
from tests.test_ws_protocol import Doors, upgrade

RUN = ("x-mayros-run-id", "x-mayros-agent-id", "x-mayros-session-key")


class HeaderCase(HarnessCase):
    """A gateway."""

    def setUp(self) -> None:
        super().setUp()
        self.one = self.gateway()

    def get(self, path: str, method: str = "GET", *lines: str) -> Answer:
        """Ask for something without a body."""
        return self.one.dial(head(method, path, *lines) + b"\r\n").answer()


class EveryAnswerTests(HeaderCase):
    """Which request, and how long it took."""

    def test_all_kinds(self) -> None:
        """Plain answers, errors of the gate, of the handler, before and after the body, 204 and the refusals of upgrades: all of them."""
        one = Doors(self).world.harness
        for data in (
            head("GET", "/healthz") + b"\r\n",
            head("HEAD", "/healthz") + b"\r\n",
            head("OPTIONS", "/v1/models") + b"\r\n",
            head("GET", "/v1/models") + b"\r\n",
            head("GET", "/nowhere") + b"\r\n",
            upgrade(method="POST"),
            upgrade(without="Connection"),
            post({}),
            post(chat(), token="wrong"),
            post(chat(), token="wrong")[:-5],
            b"nonsense\r\n\r\n",
        ):
            answer = Answer.parse(one.dial(data).received, partial=True)[0]
            with self.subTest(data=data):
                self.assertRegex(answer.headers["x-request-id"], r"^[A-Za-z0-9._-]{1,128}$")
                self.assertRegex(answer.headers["openai-processing-ms"], r"^\d+$")

    def test_one_that_is_too_many(self) -> None:
        """Also a connection that is refused as a whole."""
        gateway = self.gateway({"gateway": {"limits": {"maxConnectionsPerAddress": 1}}})
        gateway.dial(peer="192.0.2.1")
        answer = gateway.dial(peer="192.0.2.1").answer()
        self.assertEqual((answer.status, "x-request-id" in answer.headers, answer.headers["openai-processing-ms"]), (503, True, "0"))

    def test_the_callers_id(self) -> None:
        """1 to 128 of the letters that ids are made of are taken over; anything else is replaced."""
        for good in ("a", "trace-1.2_3", "x" * 128):
            self.assertEqual(self.get("/v1/models", "GET", f"X-Request-Id: {good}").headers["x-request-id"], good)
        for bad in ("", "x" * 129, "a b", "a,b", "\u00e9", "a/b"):
            self.assertNotEqual(self.get("/v1/models", "GET", f"X-Request-Id: {bad}").headers["x-request-id"], bad)
        twice = self.get("/v1/models", "GET", "X-Request-Id: a", "X-Request-Id: b").headers["x-request-id"]
        self.assertNotIn(twice, ("a", "b"))

    def test_the_time(self) -> None:
        """Milliseconds from the head of the request to the head of the answer: of a stream, to its first event."""
        plain = self.one.dial(post(chat()))
        self.one.advance(1.5, plain)
        self.one.provider.say("x")
        self.one.provider.stop()
        self.one.settle(plain)
        self.assertEqual(plain.answer().headers["openai-processing-ms"], "1500")
        stream = self.one.dial(post(chat(stream=True)))
        self.one.advance(0.25, stream)
        self.one.provider.say("x")
        self.one.advance(5, stream)
        self.one.provider.stop()
        self.one.settle(stream)
        self.assertEqual(stream.answer().headers["openai-processing-ms"], "250")

    def test_keeping_answers(self) -> None:
        """Nothing is to be stored by anybody; a stream is not to be changed or held back on its way either."""
        for answer in (self.get("/healthz"), self.get("/v1/models"), self.get("/nowhere"), self.one.serve()):
            self.assertEqual(answer.headers["cache-control"], "no-store")
        stream = self.one.serve(stream=True).headers
        self.assertEqual((stream["cache-control"], stream["x-accel-buffering"]), ("no-store, no-transform", "no"))
        self.assertEqual(stream["content-type"], "text/event-stream; charset=utf-8")

    def test_on_one_connection(self) -> None:
        """Each answer has its own: nothing stays from the one before."""
        client = self.one.dial(post(chat(), "X-Request-Id: first") + head("GET", "/v1/models", "X-Request-Id: second") + b"\r\n")
        self.one.provider.say("x")
        self.one.provider.stop()
        self.one.settle(client)
        first, second = client.answer().headers, client.answer().headers
        self.assertEqual((first["x-request-id"], second["x-request-id"]), ("first", "second"))
        self.assertEqual(([name in first for name in RUN], [name in second for name in RUN]), ([True] * 3, [False] * 3))


class RunTests(HeaderCase):
    """Which run, agent, session and model."""

    def test_plain_and_streamed(self) -> None:
        """All four, on both."""
        for stream in (False, True):
            headers = self.one.serve("x-mayros-agent-id: beta", stream=stream, user="ann").headers
            turn = self.one.store.turns[-1][0]
            self.assertEqual([headers[name] for name in RUN], [turn.run_id, "beta", "agent:beta:openai-user:ann"])
            self.assertEqual(headers["x-mayros-model"], "fake/one")

    def test_the_session_key_is_encoded(self) -> None:
        """A header holds ASCII only; what is decoded is the key, and sent back it is the same session."""
        for user in ("J\u00f6rg", "\U0001f600 x", "100%", 'a"b;c'):
            sent = self.one.serve(user=user).headers["x-mayros-session-key"]
            self.assertTrue(sent.isascii())
            self.assertNotIn(" ", sent)
            self.assertEqual(unquote(sent), f"agent:main:openai-user:{user}")

    def test_errors_of_a_run(self) -> None:
        """An error says which run it was, and the model once one has answered; an error before there is a run does not."""
        for say, model in (([], None), ([ModelAnswered("fake", "one"), TextDelta("x")], "fake/one")):
            client = self.one.dial(post(chat()))
            if say:
                self.one.provider.push(say)
            self.one.provider.fail(UpstreamError())
            self.one.settle(client)
            answer = client.answer()
            self.assertEqual((answer.status, answer.headers["x-mayros-agent-id"], answer.headers.get("x-mayros-model")), (502, "main", model))
        refused = self.one.dial(post(chat(temperature=9))).answer()
        self.assertEqual([name in refused.headers for name in RUN], [False] * 3)

    def test_after_a_fallback(self) -> None:
        """The model that answered, not the one that was asked first."""
        one = self.gateway({"agents": {"defaults": {"model": {"primary": "fake/one", "fallbacks": ["fake/two"]}}}})
        for stream in (False, True):
            client = one.dial(post(chat(stream=stream)))
            one.provider.fail(UpstreamError())
            one.settle(client)
            one.provider.say("x")
            one.provider.stop()
            one.settle(client)
            self.assertEqual(client.answer().headers["x-mayros-model"], "fake/two", stream)

    def test_a_stream_that_starts_in_silence(self) -> None:
        """After ten seconds the head leaves without a model: none has answered."""
        client = self.one.dial(post(chat(stream=True)))
        for _ in range(11):
            self.one.advance(1, client)
        headers = client.stream().headers
        self.assertEqual(("x-mayros-model" in headers, "x-mayros-run-id" in headers), (False, True))


class ModelOverrideTests(HeaderCase):
    """x-mayros-model."""

    def ask(self, ref: str, **changes: Any) -> tuple[Answer, str | None]:
        """One request with that header: the answer, and the model that was asked."""
        gateway = self.gateway(changes) if changes else self.one
        client = gateway.dial(post(chat(), f"x-mayros-model: {ref}"))
        requests = gateway.provider.requests
        if gateway.runs.live():
            gateway.provider.say("x")
            gateway.provider.stop()
            gateway.settle(client)
            return client.answer(), requests[-1].model.ref
        return client.answer(), None

    def test_it_is_asked(self) -> None:
        """Instead of the agent's model: by its name, by an alias, listed or not; blank is not given. The answer says so; `model` stays as sent."""
        alias = {"agents": {"defaults": {"models": {"fake/two": {"alias": "Second"}}}}}
        for ref, changes, wanted in (
            ("fake/two", {}, "fake/two"),
            ("second", alias, "fake/two"),
            ("fake/not/listed", {}, "fake/not/listed"),
            (" ", {}, "fake/one"),
        ):
            answer, asked = self.ask(ref, **changes)
            self.assertEqual((answer.status, asked, answer.headers["x-mayros-model"]), (200, wanted, wanted))
            self.assertEqual(answer.json["model"], "mayros")

    def test_alone(self) -> None:
        """An explicit choice has no fallbacks, and needs no model of the agent's own."""
        changes = {"agents": {"defaults": {"model": {"primary": "fake/one", "fallbacks": ["fake/two"]}}}}
        one = self.gateway(changes)
        client = one.dial(post(chat(), "x-mayros-model: fake/two"))
        one.provider.fail(UpstreamError())
        one.settle(client)
        self.assertEqual((client.answer().status, len(one.provider.requests)), (502, 1))
        answer, asked = self.ask("fake/two", agents={"defaults": {"model": None}})
        self.assertEqual((answer.status, asked), (200, "fake/two"))

    def test_for_one_request(self) -> None:
        """The session's next turn is the agent's model again."""
        for lines, wanted in ((("x-mayros-model: fake/two",), "fake/two"), ((), "fake/one")):
            self.one.serve(*lines, user="ann")
            self.assertEqual(self.one.provider.requests[-1].model.ref, wanted)

    def test_what_is_refused(self) -> None:
        """No reference at all is 400, one to nothing 404; both name the header, and do not repeat all that was sent."""
        for ref, status, code in (
            ("nonsense", 400, None),
            ("/x", 400, None),
            ("fake/", 400, None),
            ("fake/\u00ad", 400, None),
            ("fake/" + "x" * 300, 400, None),
            ("nobody/x", 404, "model_not_found"),
        ):
            answer, _ = self.ask(ref.encode().decode("latin-1"))
            self.assertEqual((answer.status, answer.error["code"], answer.error["param"]), (status, code, "x-mayros-model"), ref)
            self.assertLess(len(answer.body), 400)
        twice = self.one.dial(post(chat(), "x-mayros-model: fake/one", "x-mayros-model: fake/two")).answer()
        self.assertEqual((twice.status, twice.error["param"]), (400, "x-mayros-model"))

    def test_who_may(self) -> None:
        """Administrators; others where the agent's configuration lets them. They learn nothing of which models there are."""
        asked = decode_request(b'{"messages":[{"role":"user","content":"hi"}]}')
        user = Principal("user:ann", PROXY_SCOPES)
        proxy = {"trustedProxies": ["10.0.0.1"], "auth": {"mode": "trusted-proxy", "trustedProxy": {"userHeader": "X-User"}}}
        one = self.gateway({"gateway": proxy})
        client = one.dial(post(chat(), "X-User: ann", "x-mayros-model: nobody/x"), "10.0.0.1")
        answer = client.answer()
        self.assertEqual((answer.status, answer.error["type"], answer.error["code"]), (403, "permission_error", "missing_scope"))
        self.assertEqual(answer.error["param"], "x-mayros-model")
        open_to_all = settings({"agents": {"list": [{"id": "main", "allowModelOverride": True}, {"id": "beta"}]}})
        turn = turn_of({b"x-mayros-model": [b"fake/two"]}.get, asked, open_to_all, user)
        self.assertEqual(turn.model and turn.model.ref, "fake/two")


class PatienceTests(HeaderCase):
    """OpenAI's SDKs say how long they wait: a run that ends a little before is a proper error, which they do not answer by running it again."""

    def limit(self, *lines: str, **fields: Any) -> float:
        """The time limit of a request's run, where the agent's is 600 seconds."""
        self.one.serve(*lines, **fields)
        return self.one.store.turns[-1][0].timeout_seconds

    def test_limits(self) -> None:
        """The shorter of both holds; Python's SDK and Node's each have a header; what is no time is nothing."""
        for line, limit in (
            ("x-stainless-read-timeout: 600", 599),
            ("x-stainless-read-timeout: 20.0", 19),
            ("x-stainless-timeout: 30", 29),
            ("x-stainless-timeout: 2", 1.8),
            ("x-stainless-read-timeout: 0.5", 0.45),
            ("x-stainless-read-timeout: 100000", 600),
            ("x-stainless-read-timeout: 0", 600),
            ("x-stainless-read-timeout: -5", 600),
            ("x-stainless-read-timeout: NaN", 600),
            ("x-stainless-read-timeout: 1e9", 600),
            ("x-stainless-read-timeout: None", 600),
            ("x-other: 5", 600),
        ):
            self.assertEqual(self.limit(line), limit, line)

    def test_a_stream_has_its_own_time(self) -> None:
        """Its client hears of it all the time; and who has a key asks again for the same run."""
        self.assertEqual(self.limit("x-stainless-read-timeout: 20", stream=True), 600)
        self.assertEqual(self.limit("x-stainless-read-timeout: 20", "Idempotency-Key: k"), 600)

    def test_the_error(self) -> None:
        """504 before the client gives up."""
        client = self.one.dial(post(chat(), "x-stainless-read-timeout: 20"))
        self.one.advance(19, client)
        self.one.settle(client)
        answer = client.answer()
        self.assertEqual((answer.status, answer.error["code"], answer.headers["x-should-retry"]), (504, "run_timeout", "false"))


class AbortTests(HarnessCase):
    """A run that somebody else ends while its HTTP caller waits."""

    def test_by_a_websocket_client(self) -> None:
        """`chat.abort` and `/stop` end it: 422, which no client repeats by itself, or an error event and no DONE. The text so far is kept."""
        for stop in (
            ("chat.abort", {"sessionKey": "agent:main:openai-user:ann"}),
            ("chat.send", {"sessionKey": "agent:main:openai-user:ann", "message": "/stop", "idempotencyKey": "k"}),
        ):
            for stream in (False, True):
                world = World(self)
                session, _ = world.connect(ADMIN)
                client = world.harness.dial(post(chat(stream=stream, user="ann")))
                world.provider.say("half")
                world.harness.settle(client)
                tell(session, *stop)
                world.harness.settle(client)
                with self.subTest(stop=stop[0], stream=stream):
                    answer = client.answer()
                    if stream:
                        self.assertEqual(answer.status, 200)
                        last = answer.body.decode().rstrip().rpartition("\n\n")[2]
                        self.assertTrue(last.startswith("event: error\ndata: "), last)
                        self.assertIn('"code":"run_aborted"', last)
                        self.assertNotIn("[DONE]", answer.body.decode())
                    else:
                        self.assertEqual((answer.status, answer.error["type"], answer.error["code"]), (422, "invalid_request_error", "run_aborted"))
                        self.assertEqual(answer.headers["x-should-retry"], "false")
                    ((_, result),) = world.harness.store.turns
                    self.assertEqual((result.outcome, result.text, world.provider.closed), ("aborted", "half", 1))
                    client.leave()
                    self.assertEqual(world.harness.leftovers().get("live runs"), None)

    def test_before_anything_was_said(self) -> None:
        """Also a stream whose head has not been sent is a proper 422."""
        world = World(self)
        session, _ = world.connect(ADMIN)
        client = world.harness.dial(post(chat(stream=True, user="ann")))
        tell(session, "chat.abort", {"sessionKey": "agent:main:openai-user:ann"})
        world.harness.settle(client)
        answer = client.answer()
        self.assertEqual((answer.status, answer.error["code"]), (422, "run_aborted"))
