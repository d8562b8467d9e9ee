"""The WebSocket door, one client's conversation as a script of frames: connect, requests, errors. Also the fakes of its other tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mayros.core.address import Address
from mayros.core.approvals import Approvals
from mayros.core.devices import Devices
from mayros.core.exec_rules import ExecRules
from mayros.core.ports import Principal
from mayros.core.tool_ports import Tool
from mayros.errors import Unauthorized
from mayros.ws.broadcast import EVENTS
from mayros.ws.context import Gateway
from mayros.ws.methods.table import METHODS
from mayros.ws.session import Session
from tests.helpers import TOKEN, Harness, chat, post
from tests.test_approvals import FakeRulesStore
from tests.test_devices import FakeDeviceStore

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

    def __init__(
        self, test: SynchronousTestCase, changes: dict[str, Any] | None = None, state_dir: str = "/nonexistent", tools: Sequence[Tool] = ()
    ) -> None:
        self.harness = Harness(test, changes, state_dir=state_dir, tools=tools)
        self.clock, self.provider = self.harness.clock, self.harness.provider
        self.devices = FakeDeviceStore()
        self.approvals = Approvals(self.clock, self.now_ms)
        self.rules_store = FakeRulesStore()
        self.exec_rules = ExecRules(self.rules_store, self.now_ms, place="/nonexistent/mayros.db")
        self.exec_rules.fixed = lambda path: path.startswith("/usr/bin/")
        self.gateway = Gateway(
            config=self.harness.config,
            authenticator=self.harness.authenticator,
            runs=self.harness.runs,
            idempotency=self.harness.idempotency,
            sessions=self.harness.sessions,
            devices=Devices(self.devices, self.now_ms),
            approvals=self.approvals,
            exec_rules=self.exec_rules,
            usage=self.harness.usage,
            spending=self.harness.runs.spending,
            api_tokens=self.harness.api_tokens,
            quotas=self.harness.quotas,
            lanes=self.harness.lanes,
            agent_files=self.harness.agent_files,
            clock=self.clock,
            now_ms=self.now_ms,
            monotonic=self.clock.seconds,
            health=lambda: {"draining": False},
            version="1.2.3",
            host="box",
            started_ms=self.now_ms() - 5_000,
            model_health=self.harness.health,
        )

    def now_ms(self) -> int:
        return int(self.clock.seconds() * 1000)

    def dial(self, address: Address = LOCAL, origin: str | None = None, user: Principal | Unauthorized | None = None) -> tuple[Session, FakeLink]:
        """A socket that is open; the challenge is still in the link. `user`: what a trusted proxy says."""
        link = FakeLink()
        session = Session(self.gateway, link, address, origin, user)
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


def agent_params(**changes: Any) -> dict[str, Any]:
    """Good parameters of agent, changed."""
    return {"message": "hello there", "idempotencyKey": "k-1", **changes}


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
        self.assertEqual(list(METHODS), hello["features"]["methods"])
        self.assertEqual(list(EVENTS), hello["features"]["events"])
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

    def test_how_long_it_has_been_up(self) -> None:
        """Is not a matter of the date, which may be set back meanwhile."""
        self.world.gateway.now_ms = lambda: 1
        self.assertEqual(5_000, self.admitted(connect_params(READ))["snapshot"]["uptimeMs"])
        self.world.clock.advance(2)
        self.assertEqual(7_000, self.admitted(connect_params(READ))["snapshot"]["uptimeMs"])

    def test_the_scope_of_sessions(self) -> None:
        """Is the configured one, here as in `agents.list`."""
        for scope in ("per-sender", "global"):
            self.world = World(self, {"session": {"scope": scope}})
            self.assertEqual(scope, self.admitted(connect_params())["snapshot"]["sessionDefaults"]["scope"])
            self.assertEqual(scope, ask(*self.world.connect(READ), "agents.list")["payload"]["scope"])

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
            (
                {"client": {"id": "cli", "version": "1"}},
                "at /client: must have required property 'platform'; at /client: must have required property 'mode'",
            ),
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
        names = "; ".join(f"must have required property '{name}'" for name in ("minProtocol", "maxProtocol", "client"))
        self.assertEqual(f"invalid connect params: {names}", self.refused({})[0]["message"])
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
            self.assertEqual((code, detail, message), (error["code"], error["details"]["code"], error["message"]))
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

    def test_lockout_is_shared_with_http(self) -> None:
        """Failures count on both doors together, and a right secret waits as well (W38)."""
        self.world = World(self, {"gateway": {"auth": {"rateLimit": {"maxAttempts": 2}}}})
        wrong = connect_params(auth={"token": "wrong"})
        self.assertIn("mismatch", self.refused(wrong, REMOTE)[0]["message"])
        client = self.world.harness.dial(post(chat(), token="wrong"), peer="203.0.113.9")
        self.assertEqual(401, client.answer().status)
        error, closed = self.refused(connect_params(), REMOTE)
        message = "unauthorized: too many failed authentication attempts (retry later)"
        self.assertEqual((message, "AUTH_RATE_LIMITED", True), (error["message"], error["details"]["code"], error["retryable"]))
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
