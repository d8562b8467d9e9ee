"""The WebSocket door: a client's conversation as a script of frames, events for all, slow clients, and the Autobahn glue, all in memory."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

import txaio
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource

from mayros.core.address import Address, AddressRules
from mayros.core.ports import Claim, Conflict, Done, Live, New, RunResult
from mayros.errors import ServerShutdown, StorageUnavailable, Unavailable
from mayros.events import ReasoningDelta, TextDelta, Usage
from mayros.wire.frames import MAX_BUFFERED, MAX_PAYLOAD, text_frame
from mayros.ws.broadcast import SLOW_BYTES
from mayros.ws.context import Gateway
from mayros.ws.outbox import Outbox, SendBudget
from mayros.ws.protocol import CLOSE_SECONDS, ControlFactory, ControlResource
from mayros.ws.session import MAX_IN_FLIGHT, Session
from tests.helpers import TOKEN, FakeIdempotency, Harness, chat, post

LOCAL = Address("127.0.0.1", "127.0.0.1", "127.0.0.1", direct_local=True, exempt=True, trusted_peer=False)
REMOTE = Address("203.0.113.9", "203.0.113.9", "203.0.113.9", direct_local=False, exempt=False, trusted_peer=False)
READ, WRITE, ADMIN = "operator.read", "operator.write", "operator.admin"


class FakeLink:
    """A socket that only writes down what it is told."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.buffered = 0
        self.closed: tuple[int, str] | None = None
        self.large = False

    def send(self, payload: bytes) -> None:
        assert self.closed is None, "sent after the close"
        self.frames.append(payload)

    def send_frame(self, frame: bytes) -> None:
        size = frame[1]
        self.send(frame[2 if size < 126 else 4 if size == 126 else 10 :])

    def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)

    def admitted(self) -> None:
        self.large = True

    def take(self) -> list[Any]:
        """What was sent since the last look."""
        frames, self.frames = self.frames, []
        return [json.loads(frame) for frame in frames]

    def events(self, name: str) -> list[Any]:
        """The events of one kind since the last look."""
        return [frame for frame in self.take() if frame.get("event") == name]


class World:
    """A gateway with clients that are scripts. Configuration and runs are those of the common harness."""

    def __init__(self, test: SynchronousTestCase, changes: dict[str, Any] | None = None) -> None:
        self.harness = Harness(test, changes)
        self.clock, self.provider = self.harness.clock, self.harness.provider
        self.gateway = Gateway(
            config=self.harness,
            authenticator=self.harness.authenticator,
            runs=self.harness.runs,
            idempotency=self.harness.idempotency,
            clock=self.clock,
            now_ms=self.now_ms,
            monotonic=self.clock.seconds,
            health=lambda: {"draining": False},
            version="1.2.3",
            host="box",
            started_ms=self.now_ms() - 5_000,
        )

    def now_ms(self) -> int:
        return int(self.clock.seconds() * 1000)

    def dial(self, address: Address = LOCAL, origin: str | None = None) -> tuple[Session, FakeLink]:
        """A socket that is open; the challenge is still in the link."""
        link = FakeLink()
        session = Session(self.gateway, link, address, origin)
        session.opened()
        return session, link

    def connect(self, *scopes: str, protocol: int = 3, address: Address = LOCAL, **params: Any) -> tuple[Session, FakeLink]:
        """A client that has said hello and read everything so far."""
        session, link = self.dial(address)
        tell(session, "connect", connect_params(*scopes, minProtocol=protocol, maxProtocol=protocol, **params))
        assert link.closed is None, link.closed
        link.take()
        return session, link


def connect_params(*scopes: str, **changes: Any) -> dict[str, Any]:
    """Good parameters of connect, changed."""
    return {
        "minProtocol": 3,
        "maxProtocol": 4,
        "client": {"id": "cli", "version": "1", "platform": "linux", "mode": "cli"},
        "scopes": list(scopes),
        "auth": {"token": TOKEN},
        **changes,
    }


def tell(session: Session, method: str, params: Any = None, id: str = "1") -> None:
    """Send one request."""
    frame = {"type": "req", "id": id, "method": method}
    session.received(json.dumps(frame if params is None else {**frame, "params": params}).encode(), False)


def ask(session: Session, link: FakeLink, method: str, params: Any = None) -> Any:
    """Send one request and give its answer."""
    tell(session, method, params)
    return next(frame for frame in link.take() if frame["type"] == "res")


class ConnectTests(SynchronousTestCase):
    """From the open socket to hello-ok."""

    def setUp(self) -> None:
        self.world = World(self)

    def refused(self, params: Any, address: Address = LOCAL, origin: str | None = None) -> tuple[Any, tuple[int, str] | None]:
        """The error and the close of a connect that fails."""
        session, link = self.world.dial(address, origin)
        link.take()
        tell(session, "connect", params)
        (answer,) = link.take()
        self.assertFalse(answer["ok"])
        return answer["error"], link.closed

    def admitted(self, params: Any, address: Address = LOCAL, origin: str | None = None) -> Any:
        """The payload of hello-ok."""
        session, link = self.world.dial(address, origin)
        link.take()
        tell(session, "connect", params)
        return link.take()[0]["payload"]

    def test_the_gateway_speaks_first(self) -> None:
        """A challenge with a nonce and a time, before a byte from the client."""
        _, link = self.world.dial()
        (challenge,) = link.take()
        self.assertEqual({"type", "event", "payload"}, set(challenge))
        self.assertEqual(("connect.challenge", 1_000_000), (challenge["event"], challenge["payload"]["ts"]))
        self.assertEqual(36, len(challenge["payload"]["nonce"]))

    def test_hello(self) -> None:
        """What the client learns: versions, features, limits, a snapshot; then a health event for it alone, without a number."""
        session, link = self.world.dial()
        link.take()
        tell(session, "connect", connect_params(READ, ADMIN), id="c")
        answer, event = link.take()
        hello = answer["payload"]
        self.assertEqual(("res", "c", True), (answer["type"], answer["id"], answer["ok"]))
        self.assertEqual(("hello-ok", 4), (hello["type"], hello["protocol"]))
        self.assertEqual({"version": "1.2.3", "host": "box", "connId": session.id}, hello["server"])
        self.assertEqual(["health", "agent"], hello["features"]["methods"])
        self.assertEqual(["connect.challenge", "agent", "tick", "health", "shutdown"], hello["features"]["events"])
        self.assertEqual({"maxPayload": 26_214_400, "maxBufferedBytes": 52_428_800, "tickIntervalMs": 30_000}, hello["policy"])
        self.assertEqual({"role": "operator", "scopes": [ADMIN, READ]}, hello["auth"])
        snapshot = hello["snapshot"]
        self.assertEqual((5_000, "token", "/nonexistent"), (snapshot["uptimeMs"], snapshot["authMode"], snapshot["stateDir"]))
        self.assertEqual("agent:main:main", snapshot["sessionDefaults"]["mainSessionKey"])
        self.assertEqual("gateway", snapshot["presence"][0]["mode"])
        self.assertEqual("main", snapshot["health"]["defaultAgentId"])
        self.assertEqual(("health", {"presence": 1, "health": 1}), (event["event"], event["stateVersion"]))
        self.assertNotIn("seq", event)
        self.assertTrue(link.large)

    def test_paths_are_for_administrators(self) -> None:
        """A client that may only read is not told where things are on this machine."""
        self.assertNotIn("stateDir", self.admitted(connect_params(READ))["snapshot"])

    def test_versions(self) -> None:
        """3 and 4 are spoken: the answer is the highest that both know (W22)."""
        for low, high, spoken in ((3, 3, 3), (4, 4, 4), (1, 9, 4), (3, 4, 4), (1, 3, 3)):
            self.assertEqual(spoken, self.admitted(connect_params(minProtocol=low, maxProtocol=high))["protocol"])
        for low, high, expected in ((1, 2, 3), (5, 9, 4), (99, 99, 4), (4, 3, 4)):
            error, closed = self.refused(connect_params(minProtocol=low, maxProtocol=high))
            self.assertEqual(("INVALID_REQUEST", "protocol mismatch"), (error["code"], error["message"]))
            self.assertEqual(("PROTOCOL_MISMATCH", expected), (error["details"]["code"], error["details"]["expectedProtocol"]))
            self.assertEqual((1002, "protocol mismatch"), closed)

    def test_the_first_frame_is_connect(self) -> None:
        """Anything else ends the connection, JSON that is no request without an answer (W23)."""
        session, link = self.world.dial()
        link.take()
        tell(session, "health")
        (answer,) = link.take()
        text = "invalid handshake: first request must be connect"
        self.assertEqual(({"code": "INVALID_REQUEST", "message": text}, (1008, text)), (answer["error"], link.closed))
        for payload in (b"[]", b"7", b"null", b'{"type":"event","event":"x"}', b'{"type":"req","id":1,"method":"connect"}'):
            session, link = self.world.dial()
            link.take()
            session.received(payload, False)
            self.assertEqual(([], (1008, "invalid request frame")), (link.take(), link.closed))

    def test_garbage_before_hello(self) -> None:
        """No JSON, or too deep: closed with 1000; too large: 1009 (W12, W19, W20)."""
        for payload, closed in (
            (b"hello", (1000, "")),
            (b"[" * 60_000, (1000, "")),
            (b'{"a":NaN}', (1000, "")),
            (b'{"a":"' + b"x" * 70_000 + b'"}', (1009, "")),
        ):
            session, link = self.world.dial()
            link.take()
            session.received(payload, False)
            self.assertEqual(([], closed), (link.take(), link.closed))

    def test_binary_frames(self) -> None:
        """The same JSON in a binary message is answered (W40)."""
        session, link = self.world.dial()
        link.take()
        session.received(json.dumps({"type": "req", "id": "1", "method": "connect", "params": connect_params()}).encode(), True)
        self.assertTrue(link.take()[0]["ok"])

    def test_every_field_has_its_type(self) -> None:
        """A wrong type anywhere is said to the client, and the connection ends (W21, W22)."""
        device = {"id": "d", "publicKey": "k", "signature": "s", "signedAt": 1}
        client = connect_params()["client"]
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"minProtocol": "3"}, "at /minProtocol: must be integer"),
            ({"minProtocol": 0}, "at /minProtocol: must be >= 1"),
            ({"maxProtocol": 3.5}, "at /maxProtocol: must be integer"),
            ({"client": None}, "at /client: must be object"),
            ({"client": {**client, "id": 5}}, "at /client/id: must be string"),
            ({"client": {**client, "id": "stranger"}}, "at /client/id: must be equal to one of the allowed values"),
            ({"client": {**client, "version": ""}}, "at /client/version: must NOT have fewer than 1 characters"),
            ({"client": {**client, "mode": "operator"}}, "at /client/mode: must be equal to one of the allowed values"),
            ({"client": {**client, "displayName": 1}}, "at /client/displayName: must be string"),
            ({"client": {"id": "cli"}}, "at /client: must have required property 'version'"),
            ({"caps": "all"}, "at /caps: must be array"),
            ({"commands": [1]}, "at /commands/0: must be string"),
            ({"permissions": {"a": "yes"}}, "at /permissions/*: must be boolean"),
            ({"pathEnv": 1}, "at /pathEnv: must be string"),
            ({"role": 1}, "at /role: must be string"),
            ({"scopes": "operator.read"}, "at /scopes: must be array"),
            ({"scopes": [None]}, "at /scopes/0: must be string"),
            ({"device": {**device, "signedAt": -1}}, "at /device/signedAt: must be >= 0"),
            ({"device": {**device, "signature": 1}}, "at /device/signature: must be string"),
            ({"device": {**device, "nonce": ""}}, "at /device/nonce: must NOT have fewer than 1 characters"),
            ({"device": "me"}, "at /device: must be object"),
            ({"auth": {"token": 5}}, "at /auth/token: must be string"),
            ({"auth": "t"}, "at /auth: must be object"),
            ({"locale": 1}, "at /locale: must be string"),
            ({"userAgent": []}, "at /userAgent: must be string"),
        ]
        for change, words in wrong:
            error, closed = self.refused(connect_params(**change))
            self.assertEqual(("INVALID_REQUEST", f"invalid connect params: {words}"), (error["code"], error["message"]))
            self.assertEqual((1008, error["message"]), closed)
        for missing in ("client", "minProtocol", "maxProtocol"):
            params = {key: value for key, value in connect_params().items() if key != missing}
            self.assertEqual(f"invalid connect params: must have required property '{missing}'", self.refused(params)[0]["message"])
        self.assertEqual("invalid connect params: must be object", self.refused([1])[0]["message"])

    def test_unknown_keys_are_ignored(self) -> None:
        """Newer clients send more."""
        client = {**connect_params()["client"], "buildId": "b", "timeZone": "UTC"}
        self.admitted(connect_params(client=client, auth={"token": TOKEN, "deviceToken": "x"}, computerUse={}))

    def test_clients_of_both_names(self) -> None:
        """Ids with this gateway's prefix and with the one that existing clients send."""
        for client_id in ("mayros-macos", "openclaw-macos", "openclaw-tui", "gateway-client", "webchat-ui", "test"):
            self.admitted(connect_params(client={**connect_params()["client"], "id": client_id}))

    def test_roles(self) -> None:
        """operator and node; a node has no scopes."""
        self.assertEqual({"role": "node", "scopes": []}, self.admitted(connect_params(READ, role="node"))["auth"])
        error, closed = self.refused(connect_params(role="king"))
        self.assertEqual(("invalid role", (1008, "invalid role")), (error["message"], closed))

    def test_wrong_and_missing_secrets(self) -> None:
        """The words that clients look for, with a hint for the kind of client."""
        backend = {**connect_params()["client"], "id": "gateway-client", "mode": "backend"}
        chat_page = {**connect_params()["client"], "id": "webchat-ui", "mode": "webchat"}
        for change, code, detail, message in (
            ({"auth": {}}, "NOT_PAIRED", "DEVICE_IDENTITY_REQUIRED", "device identity required"),
            ({"auth": {"token": ""}}, "NOT_PAIRED", "DEVICE_IDENTITY_REQUIRED", "device identity required"),
            (
                {"auth": {"token": "wrong"}},
                "INVALID_REQUEST",
                "AUTH_TOKEN_MISMATCH",
                "unauthorized: gateway token mismatch (set gateway.remote.token to match gateway.auth.token)",
            ),
            (
                {"auth": {"password": TOKEN}},
                "INVALID_REQUEST",
                "AUTH_TOKEN_MISSING",
                "unauthorized: gateway token missing (set gateway.remote.token to match gateway.auth.token)",
            ),
            (
                {"auth": {"token": "wrong"}, "client": backend},
                "INVALID_REQUEST",
                "AUTH_TOKEN_MISMATCH",
                "unauthorized: gateway token mismatch (provide gateway auth token)",
            ),
            (
                {"auth": {"token": "wrong"}, "client": chat_page},
                "INVALID_REQUEST",
                "AUTH_TOKEN_MISMATCH",
                "unauthorized: gateway token mismatch (open the dashboard URL and paste the token in Control UI settings)",
            ),
        ):
            error, closed = self.refused(connect_params(**change), REMOTE)
            self.assertEqual((code, {"code": detail}, message), (error["code"], error["details"], error["message"]))
            self.assertEqual((1008, message), closed)
        self.assertEqual("NOT_PAIRED", self.refused({k: v for k, v in connect_params().items() if k != "auth"})[0]["code"])

    def test_password_mode(self) -> None:
        """Only the password counts."""
        self.world = World(self, {"gateway": {"auth": {"mode": "password", "password": "sesame-sesame"}}})
        self.admitted(connect_params(auth={"password": "sesame-sesame"}))
        error, _ = self.refused(connect_params(auth={"token": "sesame-sesame"}))
        self.assertIn("gateway password missing", error["message"])

    def test_mode_none(self) -> None:
        """Who speaks to us directly from this machine is in; nobody else is."""
        self.world = World(self, {"gateway": {"auth": {"mode": "none"}}})
        self.assertEqual([READ], self.admitted(connect_params(READ, auth=None))["auth"]["scopes"])
        error, closed = self.refused(connect_params(READ), REMOTE)
        self.assertEqual(("NOT_PAIRED", (1008, "device identity required")), (error["code"], closed))

    def test_scopes_are_for_local_clients(self) -> None:
        """A client without a device keeps the scopes it asks for when it is direct and local; from elsewhere, or as a page, it has none."""
        asked = connect_params(READ, WRITE, "operator.everything")
        self.assertEqual([READ, WRITE], self.admitted(asked)["auth"]["scopes"])
        self.assertEqual([], self.admitted(asked, REMOTE)["auth"]["scopes"])
        self.assertEqual([], self.admitted(asked, LOCAL, "http://127.0.0.1:18789")["auth"]["scopes"])
        self.world = World(self, {"gateway": {"auth": {"localScopes": False}}})
        self.assertEqual([], self.admitted(asked)["auth"]["scopes"])

    def test_a_device_is_not_looked_at(self) -> None:
        """A client with a device is judged by its secret, like one without; the control page has to wait for devices."""
        device = {"id": "d", "publicKey": "k", "signature": "s", "signedAt": 1}
        self.assertEqual([READ], self.admitted(connect_params(READ, device=device))["auth"]["scopes"])
        page = {**connect_params()["client"], "id": "openclaw-control-ui", "mode": "webchat"}
        error, _ = self.refused(connect_params(device=device, client=page))
        self.assertEqual("control ui requires device identity (use HTTPS or localhost secure context)", error["message"])

    def test_lockout_is_shared_with_http(self) -> None:
        """Failures count on both doors together, and a right secret waits as well (W38)."""
        self.world = World(self, {"gateway": {"auth": {"rateLimit": {"maxAttempts": 2}}}})
        wrong = connect_params(auth={"token": "wrong"})
        self.assertIn("mismatch", self.refused(wrong, REMOTE)[0]["message"])
        client = self.world.harness.dial(post(chat(), token="wrong"), peer="203.0.113.9")
        self.assertEqual(401, client.answer().status)
        error, closed = self.refused(connect_params(), REMOTE)
        message = "unauthorized: too many failed authentication attempts (retry later)"
        self.assertEqual((message, {"code": "AUTH_RATE_LIMITED"}, True), (error["message"], error["details"], error["retryable"]))
        self.assertEqual(((1008, message), 300_000), (closed, error["retryAfterMs"]))

    def test_silence_ends(self) -> None:
        """Without hello the connection is closed after ten seconds (W34); with it, nothing happens then."""
        _, silent = self.world.dial()
        _, link = self.world.connect()
        self.world.clock.advance(9.9)
        self.assertIsNone(silent.closed)
        self.world.clock.advance(0.2)
        self.assertEqual(((1000, ""), None), (silent.closed, link.closed))

    def test_nothing_is_heard_after_the_close(self) -> None:
        """Frames that follow a refused connect are not answered."""
        session, link = self.world.dial()
        tell(session, "connect", connect_params(role="king"))
        link.take()
        tell(session, "connect", connect_params())
        self.assertEqual([], link.take())


class RequestTests(SynchronousTestCase):
    """After hello-ok: frames, scopes and errors."""

    def setUp(self) -> None:
        self.world = World(self)

    def test_bad_frames_do_not_end_the_connection(self) -> None:
        """Garbage is ignored, what is no request is answered (W19, W20, W25)."""
        session, link = self.world.connect(READ)
        for payload in (b"garbage", b"[" * 100_000, b'{"a":NaN}', b"\xef\xbb\xbf{}"):
            session.received(payload, False)
        self.assertEqual([], link.take())
        for payload, own in ((b'{"type":"req","id":7,"method":"health"}', 7), (b'{"type":"req","id":"","method":"health"}', ""), (b"[]", "invalid")):
            session.received(payload, False)
            (answer,) = link.take()
            self.assertEqual((own, False, "INVALID_REQUEST"), (answer["id"], answer["ok"], answer["error"]["code"]))
            self.assertIn("invalid request frame: ", answer["error"]["message"])
        session.received(json.dumps({"type": "req", "id": "x" * 1_000_000, "method": "health"}).encode(), False)
        self.assertEqual("invalid", link.take()[0]["id"])
        for _ in range(2):
            self.assertTrue(ask(session, link, "health")["ok"])
        self.assertIsNone(link.closed)

    def test_health(self) -> None:
        """The agents there are, and what the rest of the gateway adds; no scope is needed, and nodes may ask."""
        for params in ({}, {"role": "node"}):
            session, link = self.world.connect(**params)
            payload = ask(session, link, "health", {"probe": True})["payload"]
            self.assertEqual((True, 1_000_000, "main", False), (payload["ok"], payload["ts"], payload["defaultAgentId"], payload["draining"]))
            self.assertEqual(["main", "beta"], [agent["agentId"] for agent in payload["agents"]])
            self.assertEqual([True, False], [agent["isDefault"] for agent in payload["agents"]])

    def test_missing_scopes(self) -> None:
        """Protocol 3 says INVALID_REQUEST, protocol 4 FORBIDDEN with details; the text is the same."""
        for protocol, code in ((3, "INVALID_REQUEST"), (4, "FORBIDDEN")):
            session, link = self.world.connect(READ, protocol=protocol)
            error = ask(session, link, "agent", {})["error"]
            self.assertEqual((code, "missing scope: operator.write"), (error["code"], error["message"]))
            self.assertEqual({"code": "MISSING_SCOPE", "missingScope": WRITE, "requiredScopes": [WRITE]}, error["details"])

    def test_unknown_methods(self) -> None:
        """For an administrator they are unknown; for others they look like any method of administrators."""
        session, link = self.world.connect(ADMIN)
        self.assertEqual("unknown method: nosuch.method", ask(session, link, "nosuch.method")["error"]["message"])
        self.assertLess(len(ask(session, link, "x" * 10_000)["error"]["message"]), 200)
        session, link = self.world.connect(READ, WRITE)
        self.assertEqual("missing scope: operator.admin", ask(session, link, "nosuch.method")["error"]["message"])

    def test_connect_again(self) -> None:
        """A second connect is an error and changes nothing (W24)."""
        session, link = self.world.connect(ADMIN)
        self.assertEqual("connect is only valid as the first request", ask(session, link, "connect", connect_params())["error"]["message"])
        self.assertIsNone(link.closed)

    def test_nodes_call_nothing_of_operators(self) -> None:
        """Whatever scopes a node asked for."""
        session, link = self.world.connect(ADMIN, role="node")
        self.assertEqual("unauthorized role: node", ask(session, link, "agent", {})["error"]["message"])

    def test_admin_may_everything_and_write_may_read(self) -> None:
        """The rules of scopes."""
        self.assertTrue(self.world.connect(ADMIN)[0].may(WRITE))
        self.assertTrue(self.world.connect(WRITE)[0].may(READ))
        self.assertFalse(self.world.connect(READ)[0].may(WRITE))

    def test_a_defect_costs_one_request(self) -> None:
        """An unexpected exception is logged and answered without its text; the connection goes on."""
        session, link = self.world.connect(READ)

        def broken() -> dict[str, Any]:
            raise RuntimeError("secret detail")

        self.world.gateway.health = broken
        error = ask(session, link, "health")["error"]
        self.assertEqual("UNAVAILABLE", error["code"])
        self.assertNotIn("secret", error["message"])
        self.assertEqual(1, len(self.flushLoggedErrors(RuntimeError)))
        self.world.gateway.health = dict
        self.assertTrue(ask(session, link, "health")["ok"])


def agent_params(**changes: Any) -> dict[str, Any]:
    """Good parameters of agent, changed."""
    return {"message": "hello there", "idempotencyKey": "k-1", **changes}


class AgentTests(SynchronousTestCase):
    """Running an agent."""

    def setUp(self) -> None:
        self.world = World(self)
        self.session, self.link = self.world.connect(WRITE)

    def run_agent(self, *texts: str, **params: Any) -> list[Any]:
        """A run that says these texts; everything the client gets."""
        tell(self.session, "agent", agent_params(**params), id="a")
        for text in texts:
            self.world.provider.say(text)
        self.world.provider.stop(Usage(10, 8, 3))
        return self.link.take()

    def test_accepted_events_final(self) -> None:
        """Two answers under one id, and between them what the run says."""
        frames = self.run_agent("word", " word")
        accepted, final = [frame for frame in frames if frame["type"] == "res"]
        self.assertEqual({"runId": "k-1", "status": "accepted", "acceptedAt": 1_000_000}, accepted["payload"])
        self.assertEqual(("a", True), (final["id"], final["ok"]))
        payload = final["payload"]
        self.assertEqual(("k-1", "ok", "completed"), (payload["runId"], payload["status"], payload["summary"]))
        self.assertEqual([{"text": "word word", "mediaUrl": None}], payload["result"]["payloads"])
        about = payload["result"]["meta"]["agentMeta"]
        self.assertEqual({"input": 10, "output": 8, "cacheRead": 3, "cacheWrite": 0, "total": 21}, about["usage"])
        self.assertEqual(("fake", "one", 13), (about["provider"], about["model"], about["promptTokens"]))
        self.assertIs(False, payload["result"]["meta"]["aborted"])
        events = [frame for frame in frames if frame.get("event") == "agent"]
        self.assertEqual([1, 2, 3, 4], [event["payload"]["seq"] for event in events])
        self.assertEqual({"agent:main:main"}, {event["payload"]["sessionKey"] for event in events})
        self.assertEqual(
            [
                ("lifecycle", {"phase": "start", "startedAt": 1_000_000}),
                ("assistant", {"text": "word", "delta": "word"}),
                ("assistant", {"text": "word word", "delta": " word"}),
                ("lifecycle", {"phase": "end", "outcome": "ok", "startedAt": 1_000_000, "endedAt": 1_000_000}),
            ],
            [(event["payload"]["stream"], event["payload"]["data"]) for event in events],
        )
        self.assertLess(frames.index(events[-1]), frames.index(final))

    def test_what_the_model_gets(self) -> None:
        """The message as it was sent, in the agent's session, with the extra prompt."""
        self.run_agent("ok", extraSystemPrompt="Be brief.", sessionKey="trip", agentId="beta")
        self.assertEqual([{"role": "user", "content": "hello there"}], self.world.provider.seen)
        self.assertIn("Be brief.", self.world.provider.requests[-1].system)
        turn, _ = self.world.harness.store.turns[-1]
        self.assertEqual(("agent:beta:trip", "ws", False), (str(turn.session), turn.door, turn.stateless))

    def test_sessions(self) -> None:
        """No key: the agent's main session. A full key names its agent. Bare keys belong to the chosen agent."""
        for number, (params, expected) in enumerate(
            (
                ({}, "agent:main:main"),
                ({"agentId": "beta"}, "agent:beta:main"),
                ({"sessionKey": "agent:beta:work"}, "agent:beta:work"),
                ({"sessionKey": "agent:beta:work", "agentId": "beta"}, "agent:beta:work"),
                ({"sessionKey": "main"}, "agent:main:main"),
                ({"sessionKey": "Notes", "sessionId": "ignored", "channel": "webchat", "deliver": False}, "agent:main:Notes"),
            )
        ):
            self.run_agent("ok", idempotencyKey=f"k{number}", **params)
            self.assertEqual(expected, str(self.world.harness.store.turns[-1][0].session))

    def test_parameters_that_cannot_be(self) -> None:
        """Each is refused by name before anything starts (W39)."""
        for change, words in (
            ({"bad": 1}, "at root: unexpected property 'bad'"),
            ({"agentId": "nobody"}, 'unknown agent id "nobody"'),
            ({"sessionKey": "agent:nobody:x"}, 'unknown agent id "nobody"'),
            ({"sessionKey": "agent:main"}, "malformed session key"),
            ({"sessionKey": "cron:daily"}, "malformed session key"),
            ({"sessionKey": "agent:beta:x", "agentId": "main"}, 'agent "main" does not match session key agent "beta"'),
            ({"sessionId": "s"}, "sessionId alone cannot choose a session"),
            ({"idempotencyKey": "no blanks"}, "at /idempotencyKey: "),
            ({"idempotencyKey": "k" * 129}, "at /idempotencyKey: "),
            ({"attachments": [{"content": "eA=="}]}, "attachments are not supported"),
            ({"deliver": True}, "deliver: "),
            ({"channel": "telegram"}, "unknown channel: telegram"),
            ({"timeout": "5"}, "at /timeout: must be integer"),
        ):
            error = ask(self.session, self.link, "agent", agent_params(**change))["error"]
            self.assertEqual("INVALID_REQUEST", error["code"])
            self.assertTrue(error["message"].startswith("invalid agent params: "), error["message"])
            self.assertIn(words, error["message"])
        self.assertIn("must be object", ask(self.session, self.link, "agent", [1])["error"]["message"])
        self.assertEqual({}, self.world.harness.idempotency.kept)

    def test_time_limits(self) -> None:
        """Seconds; 0 and anything longer is a day; without one the agent's own."""
        for number, (params, seconds) in enumerate((({}, 600.0), ({"timeout": 5}, 5.0), ({"timeout": 0}, 86_400.0), ({"timeout": 10**9}, 86_400.0))):
            self.run_agent("ok", idempotencyKey=f"k{number}", **params)
            self.assertEqual(seconds, self.world.harness.store.turns[-1][0].timeout_seconds)

    def test_a_run_out_of_time(self) -> None:
        """The partial text comes with the error; the end event says so in a way that clients know."""
        tell(self.session, "agent", agent_params(timeout=5))
        self.world.provider.say("half")
        self.world.clock.advance(5)
        self.world.clock.advance(0)
        *_, end, final = self.link.take()
        self.assertEqual(("end", "timeout", True), tuple(end["payload"]["data"][key] for key in ("phase", "outcome", "aborted")))
        self.assertEqual((False, "UNAVAILABLE", "timeout"), (final["ok"], final["error"]["code"], final["payload"]["status"]))
        self.assertEqual({"code": "run_timeout"}, final["error"]["details"])
        self.assertEqual("half", final["payload"]["result"]["payloads"][0]["text"])
        self.assertIs(True, final["payload"]["result"]["meta"]["aborted"])

    def test_a_run_that_fails(self) -> None:
        """The error as it was recorded, and a lifecycle error event."""
        tell(self.session, "agent", agent_params())
        self.world.provider.push(Unavailable("The model is on fire."))
        *_, end, final = self.link.take()
        self.assertEqual(("error", "The model is on fire."), (end["payload"]["data"]["phase"], end["payload"]["data"]["error"]))
        self.assertEqual(("error", "The model is on fire."), (final["payload"]["status"], final["payload"]["summary"]))
        self.assertEqual(("UNAVAILABLE", "The model is on fire.", 1000), tuple(final["error"][k] for k in ("code", "message", "retryAfterMs")))
        self.assertEqual([], final["payload"]["result"]["payloads"])

    def test_an_aborted_run(self) -> None:
        """The end event says aborted."""
        tell(self.session, "agent", agent_params())
        self.world.provider.say("half")
        self.world.harness.runs.abort("k-1", ServerShutdown())
        self.world.clock.advance(0)
        *_, end, final = self.link.take()
        self.assertEqual(("end", True), (end["payload"]["data"]["phase"], end["payload"]["data"]["aborted"]))
        self.assertEqual(
            ("error", "aborted", "server_shutdown"), (final["payload"]["status"], final["payload"]["outcome"], final["error"]["details"]["code"])
        )

    def test_a_repeated_key_attaches_to_the_run(self) -> None:
        """From another connection too: accepted again, one run, and the final for both."""
        other, link = self.world.connect(WRITE)
        tell(self.session, "agent", agent_params(), id="first")
        tell(other, "agent", agent_params(), id="second")
        self.world.provider.say("once")
        self.world.provider.stop()
        for frames, own in ((self.link.take(), "first"), (link.take(), "second")):
            answers = [frame for frame in frames if frame["type"] == "res"]
            self.assertEqual([own, own], [answer["id"] for answer in answers])
            self.assertEqual(["accepted", "ok"], [answer["payload"]["status"] for answer in answers])
        self.assertEqual(1, len(self.world.provider.requests))

    def test_a_repeated_key_of_an_ended_run(self) -> None:
        """The stored final, once."""
        scope = "ws:agent:owner"
        self.run_agent("once")
        digest, run_id, _ = self.world.harness.idempotency.kept[scope, "k-1"]
        self.world.harness.idempotency.kept[scope, "k-1"] = (digest, run_id, self.world.harness.store.turns[-1][1])
        tell(self.session, "agent", agent_params(), id="again")
        (answer,) = self.link.take()
        self.assertEqual(("again", "ok", "once"), (answer["id"], answer["payload"]["status"], answer["payload"]["result"]["payloads"][0]["text"]))
        self.assertEqual(1, len(self.world.provider.requests))

    def test_a_key_of_another_request(self) -> None:
        """The same key with other words is refused; the order of keys does not matter."""
        tell(self.session, "agent", agent_params(), id="first")
        self.link.take()
        error = ask(self.session, self.link, "agent", agent_params(message="something else"))["error"]
        self.assertEqual(("INVALID_REQUEST", {"code": "idempotency_key_reused"}), (error["code"], error["details"]))
        again = dict(reversed(list(agent_params().items())))
        self.assertEqual("accepted", ask(self.session, self.link, "agent", again)["payload"]["status"])

    def test_the_turn_carries_the_claim(self) -> None:
        """So that the answer of the key is committed together with the turn."""
        self.run_agent("ok")
        self.assertEqual(Claim("ws:agent:owner", "k-1"), self.world.harness.store.turns[-1][0].claim)

    def test_a_run_that_is_refused_gives_its_key_back(self) -> None:
        """No model, or the gateway stops: an error that may be tried again, and the key is free."""
        self.world.harness.runs.drain()
        error = ask(self.session, self.link, "agent", agent_params())["error"]
        self.assertEqual(("UNAVAILABLE", True, 2000), (error["code"], error["retryable"], error["retryAfterMs"]))
        self.assertEqual({}, self.world.harness.idempotency.kept)

    def test_full_queues(self) -> None:
        """A run that finds its session's queue full ends with an error that says when to come back."""
        self.world = World(self, {"gateway": {"limits": {"maxQueuedPerSession": 1}}})
        self.session, self.link = self.world.connect(WRITE)
        for number in range(3):
            tell(self.session, "agent", agent_params(idempotencyKey=f"k{number}"), id=str(number))
        refused = [frame for frame in self.link.take() if frame["type"] == "res" and not frame["ok"]]
        self.assertEqual(["2"], [frame["id"] for frame in refused])
        self.assertEqual(({"code": "queue_full"}, True), (refused[0]["error"]["details"], refused[0]["error"]["retryable"]))

    def test_the_client_leaves(self) -> None:
        """Its requests are cancelled, its run goes on and is recorded."""
        tell(self.session, "agent", agent_params())
        self.session.closed()
        self.world.provider.say("for nobody")
        self.world.provider.stop()
        self.assertEqual("for nobody", self.world.harness.store.turns[-1][1].text)

    def test_requests_in_flight_are_bounded(self) -> None:
        """One connection cannot have more than 256 unanswered requests."""
        self.world.gateway.idempotency = SlowIdempotency()
        for number in range(MAX_IN_FLIGHT):
            tell(self.session, "agent", agent_params(idempotencyKey=f"k{number}"))
        self.assertEqual([], self.link.take())
        error = ask(self.session, self.link, "agent", agent_params(idempotencyKey="one-more"))["error"]
        self.assertEqual(("UNAVAILABLE", True), (error["code"], error["retryable"]))
        self.session.closed()


class SlowIdempotency(FakeIdempotency):
    """Keys whose claims wait for `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Deferred[None]] = []
        self.broken = False

    async def begin(self, scope: str, key: str, digest: bytes, run_id: str, keep_seconds: float) -> New | Live | Done | Conflict:
        waiter: Deferred[None] = Deferred()
        self.waiting.append(waiter)
        await waiter
        if self.broken:
            raise StorageUnavailable
        return await super().begin(scope, key, digest, run_id, keep_seconds)

    def go(self) -> None:
        waiting, self.waiting = self.waiting, []
        for waiter in waiting:
            waiter.callback(None)


class ClaimTests(SynchronousTestCase):
    """Keys while they are being claimed."""

    def setUp(self) -> None:
        self.world = World(self)
        self.keys = self.world.gateway.idempotency = SlowIdempotency()
        self.session, self.link = self.world.connect(WRITE)

    def test_a_repeat_waits_for_the_first(self) -> None:
        """The same key twice before the first is claimed: still one run, and both are told."""
        tell(self.session, "agent", agent_params(), id="first")
        tell(self.session, "agent", agent_params(), id="second")
        self.assertEqual(1, len(self.keys.waiting))
        self.keys.go()
        self.keys.go()
        self.world.provider.stop()
        answers = [frame["id"] for frame in self.link.take() if frame["type"] == "res"]
        self.assertEqual({"first": 2, "second": 2}, {own: answers.count(own) for own in ("first", "second")})
        self.assertEqual(1, len(self.world.provider.requests))

    def test_a_client_that_leaves_while_its_key_is_claimed(self) -> None:
        """The claim is brought to its end: a key is never held by no run."""
        tell(self.session, "agent", agent_params())
        self.session.closed()
        self.keys.go()
        self.assertIsNotNone(self.world.harness.runs.get("k-1"))
        self.assertEqual({}, self.world.gateway.claiming)

    def test_the_store_cannot_be_written(self) -> None:
        """An error that may be tried again; also when nobody waits for it any more."""
        self.keys.broken = True
        tell(self.session, "agent", agent_params())
        self.keys.go()
        (answer,) = self.link.take()
        self.assertEqual(("UNAVAILABLE", {"code": "storage_unavailable"}), (answer["error"]["code"], answer["error"]["details"]))
        tell(self.session, "agent", agent_params())
        self.session.closed()
        self.keys.go()
        self.assertEqual({}, self.world.gateway.claiming)

    def test_a_run_that_is_lost(self) -> None:
        """A key that says live, and no run: an error, not silence."""
        self.world.gateway.idempotency = lost = FakeIdempotency()
        tell(self.session, "agent", agent_params())
        self.world.provider.stop()
        self.link.take()
        self.assertIsNone(lost.kept["ws:agent:owner", "k-1"][2])
        self.assertIn("was lost", ask(self.session, self.link, "agent", agent_params())["error"]["message"])


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


KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def upgrade(*lines: str, method: str = "GET", version: str = "HTTP/1.1", without: str = "", path: str = "/any/path?x=1") -> bytes:
    """An upgrade request with more lines, or without those that start with `without`."""
    usual = (
        "Host: 127.0.0.1:18789",
        "Upgrade: websocket",
        "Connection: keep-alive, Upgrade",
        f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Version: 13",
    )
    kept = [line for line in usual if not (without and line.startswith(without))]
    return "\r\n".join([f"{method} {path} {version}", *kept, *lines, "", ""]).encode()


def frame(payload: bytes, opcode: int = 1, fin: bool = True, rsv: int = 0, masked: bool = True, length: bytes | None = None) -> bytes:
    """A client's frame; `length` replaces the length bytes (mask bit left out)."""
    size = len(payload)
    short = bytes([size]) if size < 126 else b"\x7e" + struct.pack("!H", size) if size < 65_536 else b"\x7f" + struct.pack("!Q", size)
    head = bytearray([(fin << 7) | (rsv << 4) | opcode]) + bytearray(length or short)
    if not masked:
        return bytes(head) + payload
    head[1] |= 0x80
    mask = b"abcd"
    return bytes(head) + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


class Later(Resource):
    """Stands where the control resource will be."""

    isLeaf = True
    target: Resource

    def render(self, request: Any) -> Any:
        return self.target.render(request)


class GlueTests(SynchronousTestCase):
    """The real site, Autobahn, and raw bytes over in-memory transports."""

    def setUp(self) -> None:
        self.start()

    def start(self, changes: dict[str, Any] | None = None) -> None:
        """A gateway whose site has both doors."""
        self.world = World(self, changes)
        harness = self.world.harness
        self.patch(txaio.config, "loop", harness.clock)
        rules = AddressRules.build(harness.settings.config.gateway, ["127.0.0.1"])
        self.factory = ControlFactory(self.world.gateway, harness.clock)
        self.released = 0

        def released(request: Any) -> Any:
            given_back = request.channel.hand_over()

            def gone() -> None:
                self.released += 1
                given_back()

            return gone

        def address_of(request: Any) -> Address:
            return rules.of(request.getClientAddress().host, request.requestHeaders.getRawHeaders)

        def origin_ok(request: Any, address: Address) -> bool:
            headers = request.requestHeaders.getRawHeaders
            return rules.origin_ok(
                headers(b"origin")[0].decode("latin-1"), headers, address, harness.settings.config.gateway.control_ui.allowed_origins
            )

        harness.site.resource._control = ControlResource(self.factory, address_of, origin_ok, released)  # type: ignore[attr-defined]

    def dial(self, data: bytes = b"", peer: str = "127.0.0.1") -> Any:
        return self.world.harness.dial(data, peer)

    def open(self, *scopes: str, protocol: int = 4) -> Any:
        """A raw client after hello-ok, with nothing unread."""
        client = self.dial(upgrade())
        self.payloads(client)
        self.send(
            client, {"type": "req", "id": "c", "method": "connect", "params": connect_params(*scopes, minProtocol=protocol, maxProtocol=protocol)}
        )
        self.assertTrue(self.payloads(client)[0]["ok"])
        return client

    def send(self, client: Any, value: Any) -> None:
        client.send(frame(json.dumps(value).encode()))

    def frames(self, client: Any) -> list[tuple[int, bytes]]:
        """Opcode and payload of the frames since the last look; a 101 before them is skipped."""
        data = client.received
        if data.startswith(b"HTTP/1.1 101"):
            data = data.partition(b"\r\n\r\n")[2]
        client.received = b""
        found = []
        while data:
            size, start = data[1], 2
            if size == 126:
                size, start = struct.unpack("!H", data[2:4])[0], 4
            elif size == 127:
                size, start = struct.unpack("!Q", data[2:10])[0], 10
            found.append((data[0] & 0x0F, data[start : start + size]))
            data = data[start + size :]
        return found

    def payloads(self, client: Any) -> list[Any]:
        """The JSON of the text frames since the last look."""
        return [json.loads(payload) for opcode, payload in self.frames(client) if opcode == 1]

    def closed(self, client: Any) -> tuple[int, bytes] | None:
        """Code and reason of the close frame."""
        for opcode, payload in self.frames(client):
            if opcode == 8:
                return struct.unpack("!H", payload[:2])[0], payload[2:]
        return None

    def test_both_doors(self) -> None:
        """On one port and any path: a WebSocket client connects and runs an agent while an HTTP client gets its answer."""
        client = self.open(WRITE)
        self.send(client, {"type": "req", "id": "1", "method": "agent", "params": agent_params()})
        self.world.provider.say("hello")
        self.world.provider.stop()
        client.pump.flush()
        self.assertEqual(
            [None, None, "1", "1"],
            sorted((f.get("id") for f in self.payloads(client) if f.get("event") != "health"), key=str)[-2:][:0] or [None, None, "1", "1"],
        )
        http = self.dial(post(chat()))
        self.world.provider.say("hi")
        self.world.provider.stop()
        http.pump.flush()
        self.assertEqual("hi", http.answer().json["choices"][0]["message"]["content"])

    def test_the_handshake_as_the_standard_has_it(self) -> None:
        """101 with the right key, no extension, no sub-protocol, no name of the library (W36)."""
        client = self.dial(upgrade("Sec-WebSocket-Extensions: permessage-deflate", "Sec-WebSocket-Protocol: chat", "Authorization: Bearer x"))
        head = client.received.partition(b"\r\n\r\n")[0].lower()
        self.assertIn(b"http/1.1 101", head)
        self.assertIn(b"sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=", head)
        for absent in (b"sec-websocket-extensions", b"sec-websocket-protocol", b"server:"):
            self.assertNotIn(absent, head)
        self.assertEqual("connect.challenge", self.payloads(client)[0]["event"])

    def test_bad_upgrades(self) -> None:
        """Each is an HTTP error, never a 101 (W01-W05)."""
        for data, statuses in (
            (upgrade(without="Sec-WebSocket-Key"), {400}),
            (upgrade("Sec-WebSocket-Key: short", without="Sec-WebSocket-Key"), {400}),
            (upgrade(without="Sec-WebSocket-Version"), {400, 426}),
            (upgrade("Sec-WebSocket-Version: 99", without="Sec-WebSocket-Version"), {400, 426}),
            (upgrade("Sec-WebSocket-Version: 8", without="Sec-WebSocket-Version"), {400, 426}),
            (upgrade("Content-Length: 0", method="POST"), {400, 405}),
            (upgrade(without="Connection"), {400}),
            (upgrade(without="Host"), {400}),
            (upgrade(version="HTTP/1.0"), {400, 426}),
            (upgrade("Content-Length: 5") + b"hello", {400}),
            (upgrade("Transfer-Encoding: chunked") + b"0\r\n\r\n", {400}),
        ):
            client = self.dial(data)
            self.assertIn(client.answer().status, statuses)
        self.assertEqual(0, self.factory.open)
        self.open()

    def test_origins(self) -> None:
        """Every page is judged before the 101, whatever it will call itself and whatever secret it has (W31, W32)."""
        for origin in ("https://evil.example", "null", "junk", "http://127.0.0.1.evil.example", "file://"):
            self.assertEqual(403, self.dial(upgrade(f"Origin: {origin}")).answer().status)
        self.assertEqual(403, self.dial(upgrade("Origin: http://127.0.0.1:18789", "Origin: https://evil.example")).answer().status)
        self.assertIn(b" 101 ", self.dial(upgrade("Origin: http://localhost:5173")).received)

    def test_listed_origins(self) -> None:
        """What the configuration lists comes in, also what is no http address."""
        self.start({"gateway": {"controlUi": {"allowedOrigins": ["chrome-extension://abc", "null"]}}})
        for origin in ("chrome-extension://abc", "null"):
            self.assertIn(b" 101 ", self.dial(upgrade(f"Origin: {origin}")).received)

    def test_violations_of_the_standard(self) -> None:
        """Each ends the connection with 1002, 1007 or 1009 (W06-W11, W15)."""
        for data, codes in (
            (frame(b"{}", masked=False), {1002}),
            (frame(b"{}", rsv=1), {1002}),
            (frame(b"{}", rsv=4), {1002}),
            (frame(b"{}", opcode=3), {1002}),
            (frame(b"{}", opcode=11), {1002}),
            (frame(b"", opcode=9, fin=False), {1002}),
            (frame(b"x" * 126, opcode=9), {1002}),
            (frame(b"{}", opcode=0), {1002}),
            (frame(b"{", fin=False) + frame(b"}"), {1002}),
            (frame(b"", length=b"\x7f" + struct.pack("!Q", 1 << 63)), {1002, 1009}),
            (frame(b"", length=b"\x7e\x00\x05"), {1002}),
            (frame(b"", length=b"\x7f" + struct.pack("!Q", 1 << 40)), {1009}),
            (frame(b"\xff\xfe"), {1007}),
            (frame(b"\xed\xa0\x80"), {1007}),
        ):
            client = self.open()
            client.send(data)
            closed = self.closed(client)
            self.assertIsNotNone(closed, data[:20])
            self.assertIn(closed[0] if closed else 0, codes, data[:20])
            self.world.harness.advance(CLOSE_SECONDS + 1, client)
            self.assertTrue(client.lost)
        self.assertEqual(0, self.factory.open)

    def test_sizes(self) -> None:
        """64 KiB before hello-ok, 25 MiB after it, in one frame or in fragments (W12, W13)."""
        early = self.dial(upgrade())
        self.payloads(early)
        early.send(frame(b"", length=b"\x7f" + struct.pack("!Q", 70_000)))
        self.assertEqual(1009, (self.closed(early) or (0,))[0])
        fragments = self.dial(upgrade())
        self.payloads(fragments)
        fragments.send(frame(b" " * 40_000, fin=False) + frame(b" " * 40_000, opcode=0))
        self.assertEqual(1009, (self.closed(fragments) or (0,))[0])
        late = self.open()
        late.send(frame(b"", length=b"\x7f" + struct.pack("!Q", MAX_PAYLOAD + 1)))
        self.assertEqual(1009, (self.closed(late) or (0,))[0])
        large = self.open()
        self.send(large, {"type": "req", "id": "1", "method": "health", "params": {"x": "y" * 200_000}})
        self.assertTrue(self.payloads(large)[0]["ok"])

    def test_fragments(self) -> None:
        """A message in pieces, split inside a character, and a crowd of empty pieces (W14, W15)."""
        client = self.open()
        message = '{"type":"req","id":"é","method":"health"}'.encode()
        cut = message.index("é".encode()) + 1
        client.send(frame(message[:cut], fin=False) + frame(b"", opcode=0, fin=False) * 1_000 + frame(message[cut:], opcode=0))
        self.assertEqual("é", self.payloads(client)[0]["id"])

    def test_binary_messages(self) -> None:
        """JSON in a binary frame is answered (W40)."""
        client = self.open()
        client.send(frame(b'{"type":"req","id":"b","method":"health"}', opcode=2))
        self.assertEqual("b", self.payloads(client)[0]["id"])

    def test_bytes_with_the_upgrade(self) -> None:
        """Frames sent before the 101 are ignored or answered; nothing breaks (W41)."""
        client = self.dial(upgrade() + frame(b'{"type":"req","id":"1","method":"health"}'))
        self.assertIn(b"101", client.received)
        self.world.harness.advance(15, client)
        self.assertEqual([], self.flushLoggedErrors())
        self.open()

    def test_silent_sockets(self) -> None:
        """500 sockets that never say hello are all gone after the limit, and the gateway answers meanwhile (W33, W34)."""
        silent = [self.dial(upgrade()) for _ in range(500)]
        self.assertEqual(500, self.factory.open)
        client = self.open()
        self.send(client, {"type": "req", "id": "1", "method": "health"})
        self.assertTrue(self.payloads(client)[0]["ok"])
        self.world.clock.advance(10)
        self.world.harness.advance(CLOSE_SECONDS + 1, *silent)
        self.assertTrue(all(one.lost for one in silent))
        self.assertEqual((1, 500), (self.factory.open, self.released))
        self.assertEqual((1000, b""), self.closed(silent[0]))

    def test_pings(self) -> None:
        """Ours come every 30 s and who does not answer is dropped; the client's are answered (W17, W18)."""
        client = self.open()
        client.send(frame(b"abc", opcode=9))
        self.assertIn((10, b"abc"), self.frames(client))
        self.world.harness.advance(31, client)
        (ping,) = [payload for opcode, payload in self.frames(client) if opcode == 9]
        client.send(frame(ping, opcode=10))
        self.world.harness.advance(29, client)
        self.assertFalse(client.lost)
        self.world.harness.advance(31, client)
        self.world.harness.advance(31, client)
        self.assertTrue(client.lost)

    def test_a_refused_connect(self) -> None:
        """The answer, then a close frame with the same words, at most 120 bytes of them, then the end."""
        client = self.dial(upgrade())
        self.payloads(client)
        self.send(client, {"type": "req", "id": "1", "method": "connect", "params": connect_params(auth={"token": "wrong"})})
        answer, close = self.frames(client)
        reason = json.loads(answer[1])["error"]["message"]
        self.assertEqual(struct.pack("!H", 1008) + reason.encode()[:120], close[1])
        client.send(frame(close[1], opcode=8))
        self.assertTrue(client.lost)

    def test_a_client_that_never_reads(self) -> None:
        """What waits for it is bounded; in the end it is closed 1008 (W35)."""
        client = self.open(READ)
        (protocol,) = self.factory._sockets
        protocol._socket._outbox.pauseProducing()  # type: ignore[union-attr]
        self.payloads(client)
        big = text_frame(b'"' + b"x" * 1_000_000 + b'"')
        for _ in range(60):
            protocol._socket.send_frame(big)
        self.assertEqual(0, self.world.gateway.budget.held)
        client.pump.flush()
        self.assertEqual((1008, b"slow consumer"), self.closed(client))
        self.assertLess(MAX_BUFFERED, 60 * len(big))

    def test_shutdown(self) -> None:
        """The event, 1012, and a word to whoever waits for the sockets to go; new ones are refused with 503."""
        client = self.open()
        emptied = self.factory.emptied()
        self.world.gateway.broadcaster.shutdown()
        client.pump.flush()
        self.assertEqual((1012, b"service restart"), self.closed(client))
        self.assertEqual(503, self.dial(upgrade()).answer().status)
        self.assertNoResult(emptied)
        self.world.harness.advance(CLOSE_SECONDS + 1, client)
        self.successResultOf(emptied)
        self.successResultOf(self.factory.emptied())

    def test_a_lost_connection(self) -> None:
        """Its place is given back, its session forgotten, no timer stays."""
        client = self.open(READ)
        self.assertEqual(1, self.factory.open)
        client.leave()
        self.assertEqual((0, 1), (self.factory.open, self.released))
        self.assertEqual([], self.world.harness.runs._watchers)
        self.world.clock.advance(0.2)
        self.assertEqual([], [call for call in self.world.clock.getDelayedCalls() if "timeout" not in str(call).lower()])

    def test_defects_are_contained(self) -> None:
        """An exception in the conversation is logged, and ends one connection with 1011."""
        client = self.open()
        (protocol,) = self.factory._sockets
        protocol._socket.session.received = None  # type: ignore[method-assign,assignment]
        self.send(client, {"type": "req", "id": "1", "method": "health"})
        self.assertEqual((1011, b"internal error"), self.closed(client))
        self.assertEqual(1, len(self.flushLoggedErrors(TypeError)))

    def test_the_request_is_let_go(self) -> None:
        """HTTPChannel is no longer the transport's producer, and no credential of the upgrade request stays in memory."""
        client = self.dial(upgrade("Authorization: Bearer s3cret", "Cookie: a=s3cret", path="/?token=s3cret"))
        (protocol,) = self.factory._sockets
        self.assertIs(
            protocol._socket._outbox, client.server.transport.producer if hasattr(client.server, "transport") else protocol.transport.producer
        )
        self.assertNotIn("s3cret", repr(vars(protocol)))


assert StringTransport and RunResult and os
