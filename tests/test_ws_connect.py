"""The WebSocket door for clients with a device: proofs, pairing, tokens, and what the methods about devices say; scripts of frames."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings, strategies
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.address import Address
from mayros.core.auth import PROXY_SCOPES, Authenticator
from mayros.core.devices import Applicant
from mayros.core.identity import Signed, Version, encode
from mayros.core.ports import Principal
from mayros.errors import Unauthorized
from mayros.ws.session import Session
from tests.helpers import TOKEN, chat, post
from tests.test_devices import Key
from tests.test_ws import ADMIN, LOCAL, READ, REMOTE, WRITE, FakeLink, World, ask, connect_params, tell

PAIRING, APPROVALS = "operator.pairing", "operator.approvals"
BACKEND = {"id": "gateway-client", "version": "1", "platform": " Linux ", "mode": "backend", "deviceFamily": "Server"}
LIMITED = {"gateway": {"auth": {"rateLimit": {"maxAttempts": 3}}}}


class Answer:
    """What came of a connect."""

    def __init__(self, session: Session, link: FakeLink) -> None:
        self.session, self.link = session, link
        frames = [frame for frame in link.take() if frame["type"] == "res"]
        self.hello: Any = frames[0].get("payload") if frames else None
        self.error: Any = frames[0].get("error") if frames else None

    @property
    def token(self) -> str:
        """The device token of hello-ok."""
        token = self.hello["auth"]["deviceToken"]
        assert isinstance(token, str)
        return token

    @property
    def outcome(self) -> str:
        """`ok`, or the message of the refusal; the socket must have been closed with it."""
        if self.error is None:
            return "ok"
        assert self.link.closed == (1008, self.error["message"][:120]), self.link.closed
        return str(self.error["message"])


class DeviceWorld(World):
    """A gateway and clients with devices."""

    def __init__(self, test: SynchronousTestCase, changes: dict[str, Any] | None = None) -> None:
        super().__init__(test, changes)
        self.clock.advance(1_790_000_000)

    def come(
        self,
        key: Key,
        *scopes: str,
        version: Version = "v2",
        address: Address = LOCAL,
        auth: dict[str, str] | None = None,
        role: str = "operator",
        client: dict[str, Any] | None = None,
        device: dict[str, Any] | None = None,
        signed: dict[str, Any] | None = None,
        nonce: bool = True,
        origin: str | None = None,
        user: Principal | Unauthorized | None = None,
        **params: Any,
    ) -> Answer:
        """Connect with a device. `device` changes what is sent of it, `signed` what is signed."""
        session, link = self.dial(address, origin, user)
        challenge = link.take()[0]["payload"]
        auth = {"token": TOKEN} if auth is None else auth
        client = client or BACKEND
        fields: dict[str, Any] = {
            "device_id": key.id,
            "client_id": client["id"],
            "client_mode": client["mode"],
            "role": role,
            "scopes": scopes,
            "signed_at_ms": challenge["ts"],
            "token": auth.get("token", ""),
            "nonce": challenge["nonce"] if nonce else "",
            "platform": client["platform"],
            "device_family": client.get("deviceFamily", ""),
            **(signed or {}),
        }
        proof = {
            "id": key.id,
            "publicKey": key.text,
            "signature": key.sign(Signed(**fields).line(version)),
            "signedAt": fields["signed_at_ms"],
            **({"nonce": challenge["nonce"]} if nonce else {}),
            **(device or {}),
        }
        tell(session, "connect", connect_params(*scopes, role=role, auth=auth, client=client, device=proof, **params))
        return Answer(session, link)

    def admin(self, *scopes: str, protocol: int = 3) -> tuple[Session, FakeLink]:
        """A local client without a device that has these scopes."""
        return self.connect(*(scopes or (ADMIN,)), protocol=protocol)

    def refused_by(self, session: Session, link: FakeLink, method: str, params: Any) -> str:
        """The message of a request that fails."""
        return str(ask(session, link, method, params)["error"]["message"])


class ProofTests(SynchronousTestCase):
    """Is the client the device that it says it is?"""

    def setUp(self) -> None:
        self.world = DeviceWorld(self)
        self.key = Key(1)

    def test_the_three_dialects(self) -> None:
        """v3 and v2 from anywhere, v1 without a nonce and only on this machine."""
        self.world.come(self.key, READ)
        for version in ("v3", "v2"):
            for address in (LOCAL, REMOTE):
                self.assertEqual("ok", self.world.come(self.key, READ, version=version, address=address).outcome)  # type: ignore[arg-type]
        self.assertEqual("ok", self.world.come(self.key, READ, version="v1", nonce=False).outcome)
        self.assertEqual("device nonce required", self.world.come(self.key, READ, version="v1", nonce=False, address=REMOTE).outcome)
        self.assertEqual("device signature invalid", self.world.come(self.key, READ, version="v1").outcome)
        self.assertEqual("device signature invalid", self.world.come(self.key, READ, version="v1", address=REMOTE).outcome)

    def test_forms_of_keys_and_signatures(self) -> None:
        """PEM and padded base64 are read as well; the register has one form."""
        self.assertEqual("ok", self.world.come(self.key, READ, device={"publicKey": self.key.pem}).outcome)
        self.assertEqual("ok", self.world.come(self.key, READ, device={"publicKey": self.key.text + "="}).outcome)
        self.assertEqual([self.key.text], [record.public_key for record in self.world.devices.devices.values()])

    def test_a_signature_of_another_connection(self) -> None:
        """Its nonce is not this connection's, and a new nonce does not fit the signature (W26)."""
        _, link = self.world.dial()
        nonce = link.take()[0]["payload"]["nonce"]
        for address in (LOCAL, REMOTE):
            replayed = self.world.come(self.key, READ, device={"nonce": nonce}, signed={"nonce": nonce}, address=address)
            self.assertEqual("device nonce mismatch", replayed.outcome)
            self.assertEqual("DEVICE_AUTH_NONCE_MISMATCH", replayed.error["details"]["code"])
            self.assertEqual("device signature invalid", self.world.come(self.key, READ, signed={"nonce": nonce}, address=address).outcome)

    def test_old_and_early_signatures(self) -> None:
        """Ten minutes either way are taken, eleven are not (W27)."""
        now = self.world.now_ms()
        for minutes, outcome in ((0, "ok"), (-10, "ok"), (10, "ok"), (-11, "device signature expired"), (11, "device signature expired")):
            self.assertEqual(outcome, self.world.come(self.key, READ, signed={"signed_at_ms": now + minutes * 60_000}).outcome, minutes)
        self.assertEqual("device signature expired", self.world.come(self.key, READ, signed={"signed_at_ms": 10**18}).outcome)

    def test_remote_clients_need_the_nonce(self) -> None:
        """Only a direct client on this machine may do without (W28)."""
        proxied = Address("127.0.0.1", "127.0.0.1", "127.0.0.1", direct_local=False, exempt=False, trusted_peer=False)
        for address in (REMOTE, proxied):
            refused = self.world.come(self.key, READ, nonce=False, address=address)
            self.assertEqual(("device nonce required", "DEVICE_AUTH_NONCE_REQUIRED"), (refused.outcome, refused.error["details"]["code"]))

    def test_wrong_keys(self) -> None:
        """Another key, an id that is not its hash, a flipped bit, nothing, too much: refused, and nothing is logged as a defect (W29)."""
        other = Key(2)
        bad = [
            ({"publicKey": other.text}, "device identity mismatch"),
            ({"id": other.id}, "device identity mismatch"),
            ({"id": self.key.id.upper()}, "device identity mismatch"),
            ({"publicKey": encode(bytes([self.key.raw[0] ^ 1]) + self.key.raw[1:])}, "device identity mismatch"),
            ({"publicKey": other.text, "id": other.id}, "device signature invalid"),
            ({"publicKey": "A" * 10_240}, "device public key invalid"),
            ({"publicKey": "-----BEGIN PUBLIC KEY-----\n" + "A" * 10_240}, "device public key invalid"),
            ({"publicKey": "="}, "device public key invalid"),
            ({"publicKey": ""}, "invalid connect params: at /device/publicKey: must NOT have fewer than 1 characters"),
            ({"signature": "A" * 10_240}, "device signature invalid"),
            ({"signature": "?"}, "device signature invalid"),
            ({"signature": ""}, "invalid connect params: at /device/signature: must NOT have fewer than 1 characters"),
            ({"signature": other.sign(b"x")}, "device signature invalid"),
            ({"id": "", "publicKey": self.key.text}, "invalid connect params: at /device/id: must NOT have fewer than 1 characters"),
        ]
        for change, outcome in bad:
            refused = self.world.come(self.key, READ, device=change)
            self.assertEqual((outcome, "INVALID_REQUEST"), (refused.outcome, refused.error["code"]))
        self.assertEqual({}, self.world.devices.devices)
        self.assertEqual([], self.flushLoggedErrors())

    def test_what_is_changed_after_signing(self) -> None:
        """More scopes, another order of them, another role, token, client, time: the signature does not fit (W30)."""
        for name, value in (
            ("scopes", (READ,)),
            ("scopes", ()),
            ("scopes", (ADMIN, READ)),
            ("role", "node"),
            ("token", ""),
            ("client_id", "cli"),
            ("client_mode", "cli"),
            ("device_id", Key(2).id),
        ):
            refused = self.world.come(self.key, READ, ADMIN, signed={name: value})
            self.assertEqual(("device signature invalid", "DEVICE_AUTH_SIGNATURE_INVALID"), (refused.outcome, refused.error["details"]["code"]))
        self.assertEqual("device signature invalid", self.world.come(self.key, READ, version="v3", signed={"platform": "windows"}).outcome)
        self.assertEqual("ok", self.world.come(self.key, READ, version="v3", signed={"platform": "LINUX", "device_family": "server"}).outcome)
        self.assertEqual("ok", self.world.come(self.key).outcome)

    def test_the_proof_comes_before_the_secret(self) -> None:
        """A bad proof is told whatever the secret is; a good proof without the right secret is not enough."""
        for auth in ({"token": TOKEN}, {"token": "wrong"}, {}):
            self.assertEqual("device signature invalid", self.world.come(self.key, READ, auth=auth, signed={"role": "node"}).outcome)
        refused = self.world.come(self.key, READ, auth={})
        self.assertEqual(
            ("unauthorized: gateway token missing (provide gateway auth token)", "INVALID_REQUEST"), (refused.outcome, refused.error["code"])
        )
        self.assertEqual("AUTH_TOKEN_MISSING", refused.error["details"]["code"])
        self.assertEqual("update_auth_configuration", refused.error["details"]["recommendedNextStep"])

    def test_the_control_page(self) -> None:
        """It needs a device, under either name, and with one it is like any other client."""
        for name in ("mayros-control-ui", "openclaw-control-ui"):
            page = {**BACKEND, "id": name, "mode": "webchat"}
            session, link = self.world.dial(LOCAL, "http://127.0.0.1:18789")
            link.take()
            tell(session, "connect", connect_params(READ, client=page))
            refused = Answer(session, link)
            self.assertEqual("control ui requires device identity (use HTTPS or localhost secure context)", refused.outcome)
            self.assertEqual("CONTROL_UI_DEVICE_IDENTITY_REQUIRED", refused.error["details"]["code"])
            self.assertEqual("ok", self.world.come(self.key, READ, client=page, origin="http://127.0.0.1:18789").outcome)
            wrong = self.world.come(Key(2), READ, client=page, auth={})
            self.assertIn("(open the dashboard URL and paste the token in Control UI settings)", wrong.outcome)

    @settings(max_examples=40, deadline=None)
    @given(
        strategies.fixed_dictionaries(
            {},
            optional={
                name: strategies.one_of(
                    strategies.text(max_size=60), strategies.integers(), strategies.none(), strategies.lists(strategies.text(), max_size=2)
                )
                for name in ("id", "publicKey", "signature", "signedAt", "nonce")
            },
        )
    )
    def test_any_device_is_answered(self, change: dict[str, Any]) -> None:
        """Whatever is sent as a device: hello-ok or an error with 1008, never a defect (W21)."""
        answer = self.world.come(Key(4), READ, device=change)
        self.assertIsNotNone(answer.hello or answer.outcome)
        self.assertEqual([], self.flushLoggedErrors())


class PairingTests(SynchronousTestCase):
    """Is the device known here, and for what?"""

    def setUp(self) -> None:
        self.world = DeviceWorld(self)
        self.key = Key(1)

    def test_on_this_machine(self) -> None:
        """A device is paired by coming with the secret, and for more scopes by asking for them; hello says all about it."""
        _, link = self.world.admin()
        first = self.world.come(self.key, WRITE, READ)
        auth = first.hello["auth"]
        self.assertEqual({"deviceToken", "role", "scopes", "issuedAtMs"}, set(auth))
        self.assertEqual(("operator", [READ, WRITE], self.world.now_ms()), (auth["role"], auth["scopes"], auth["issuedAtMs"]))
        (told,) = link.events("device.pair.resolved")
        self.assertEqual({"requestId", "deviceId", "decision", "ts"}, set(told["payload"]))
        self.assertEqual((self.key.id, "approved"), (told["payload"]["deviceId"], told["payload"]["decision"]))
        self.assertEqual([ADMIN], self.world.come(self.key, ADMIN).hello["auth"]["scopes"])
        self.assertEqual([APPROVALS, PAIRING, READ, WRITE], self.world.come(self.key, READ, WRITE, APPROVALS, PAIRING).hello["auth"]["scopes"])
        self.assertEqual(1, len(link.events("device.pair.resolved")))

    def test_from_elsewhere(self) -> None:
        """The client is told to wait, with the id of its one request; once approved it comes in."""
        session, link = self.world.admin()
        first = self.world.come(self.key, READ, address=REMOTE)
        self.assertEqual(("NOT_PAIRED", "pairing required"), (first.error["code"], first.outcome))
        request_id = first.error["details"]["requestId"]
        self.assertEqual({"code": "PAIRING_REQUIRED", "requestId": request_id, "reason": "not-paired"}, first.error["details"])
        (told,) = link.events("device.pair.requested")
        self.assertEqual(
            (request_id, self.key.id, [READ], "203.0.113.9"), tuple(told["payload"][k] for k in ("requestId", "deviceId", "scopes", "remoteIp"))
        )
        again = self.world.come(self.key, WRITE, address=REMOTE)
        self.assertEqual(request_id, again.error["details"]["requestId"])
        self.assertEqual([], link.events("device.pair.requested"))
        listed = ask(session, link, "device.pair.list", {})["payload"]
        self.assertEqual([], listed["paired"])
        (waiting,) = listed["pending"]
        self.assertEqual(
            {
                "requestId": request_id,
                "deviceId": self.key.id,
                "publicKey": self.key.text,
                "platform": "Linux",
                "clientId": "gateway-client",
                "clientMode": "backend",
                "role": "operator",
                "roles": ["operator"],
                "scopes": [READ, WRITE],
                "remoteIp": "203.0.113.9",
                "silent": False,
                "isRepair": False,
                "ts": self.world.now_ms(),
            },
            {**waiting, "platform": waiting["platform"].strip()},
        )
        tell(session, "device.pair.approve", {"requestId": request_id})
        event, answer = link.take()
        self.assertEqual(("device.pair.resolved", "approved"), (event["event"], event["payload"]["decision"]))
        self.assertEqual({"requestId", "device"}, set(answer["payload"]))
        self.assertEqual((self.key.id, []), (answer["payload"]["device"]["deviceId"], answer["payload"]["device"]["tokens"]))
        self.assertEqual([WRITE], self.world.come(self.key, WRITE, address=REMOTE).hello["auth"]["scopes"])

    def test_upgrades_from_elsewhere(self) -> None:
        """More scopes and another role need approval there; fewer do not, and admin holds all."""
        self.world.come(self.key, READ)
        self.assertEqual("ok", self.world.come(self.key, READ, address=REMOTE).outcome)
        self.assertEqual("ok", self.world.come(self.key, address=REMOTE).outcome)
        refused = self.world.come(self.key, READ, WRITE, address=REMOTE)
        self.assertEqual(("pairing required", "scope-upgrade"), (refused.outcome, refused.error["details"]["reason"]))
        node = self.world.come(self.key, role="node", address=REMOTE)
        self.assertEqual(("pairing required", "role-upgrade"), (node.outcome, node.error["details"]["reason"]))
        self.assertEqual(refused.error["details"]["requestId"], node.error["details"]["requestId"])
        self.assertEqual("pairing required", self.world.come(self.key, role="node").outcome)
        self.world.come(self.key, ADMIN)
        for scopes in ((WRITE,), (READ, PAIRING, APPROVALS), (ADMIN, WRITE)):
            self.assertEqual("ok", self.world.come(self.key, *scopes, address=REMOTE).outcome)

    def test_pairing_comes_after_the_secret(self) -> None:
        """Who has no secret leaves no request."""
        self.assertIn("unauthorized", self.world.come(self.key, READ, auth={"token": "wrong"}, address=REMOTE).outcome)
        self.assertEqual({}, self.world.devices.requests)

    def test_requests_expire(self) -> None:
        """After five minutes the id is unknown, and the device gets another."""
        session, link = self.world.admin()
        first = self.world.come(self.key, READ, address=REMOTE).error["details"]["requestId"]
        self.world.clock.advance(301)
        self.assertEqual("unknown requestId", self.world.refused_by(session, link, "device.pair.approve", {"requestId": first}))
        self.assertNotEqual(first, self.world.come(self.key, READ, address=REMOTE).error["details"]["requestId"])

    def test_rejected(self) -> None:
        """The request is gone, and everybody who may pair hears of it."""
        session, link = self.world.admin()
        request_id = self.world.come(self.key, READ, address=REMOTE).error["details"]["requestId"]
        tell(session, "device.pair.reject", {"requestId": request_id})
        self.assertEqual("device.pair.requested", link.take()[0]["event"])
        tell(session, "device.pair.reject", {"requestId": request_id})
        self.assertEqual("unknown requestId", link.take()[0]["error"]["message"])

    def test_who_hears_of_pairing(self) -> None:
        """Connections with operator.pairing or admin; not others, and not nodes."""
        links = [self.world.admin(scope)[1] for scope in (PAIRING, ADMIN, READ, WRITE)] + [self.world.connect(ADMIN, role="node")[1]]
        self.world.come(self.key, READ, address=REMOTE)
        self.assertEqual([1, 1, 0, 0, 0], [len(link.events("device.pair.requested")) for link in links])

    def test_mode_none(self) -> None:
        """A device on this machine needs nothing else; one from elsewhere is let in when it was approved."""
        self.world = DeviceWorld(self, {"gateway": {"auth": {"mode": "none"}}})
        self.assertEqual([READ], self.world.come(self.key, READ, auth={}).hello["auth"]["scopes"])
        self.assertEqual("pairing required", self.world.come(Key(2), READ, auth={}, address=REMOTE).outcome)
        token = self.world.come(self.key, READ, auth={}).token
        self.assertEqual(token, self.world.come(self.key, READ, auth={"token": token}).token)

    def test_a_defect_costs_one_connection(self) -> None:
        """It is logged, and the client is told only that there is one."""

        async def broken() -> None:
            raise RuntimeError("secret detail")

        self.patch(self.world.gateway.devices, "ready", broken)
        answer = self.world.come(self.key, READ)
        self.assertEqual((None, (1011, "internal error")), (answer.error, answer.link.closed))
        self.assertEqual(1, len(self.flushLoggedErrors(RuntimeError)))

    def test_the_store_fails(self) -> None:
        """The client may come again later (1013), and nothing is left of it."""
        self.world.devices.failing = True
        answer = self.world.come(self.key, READ)
        self.assertEqual(("UNAVAILABLE", True, 1013), (answer.error["code"], answer.error["retryable"], (answer.link.closed or (0, ""))[0]))
        self.world.devices.failing = False
        self.assertEqual("ok", self.world.come(self.key, READ).outcome)

    def test_what_comes_while_the_store_writes(self) -> None:
        """Requests wait for hello; a client that leaves meanwhile is not missed, and too much is too much."""
        self.world.devices.hold = True
        waiting, gone, rude = (self.world.come(Key(seed), READ) for seed in (1, 2, 3))
        tell(waiting.session, "health", id="h")
        gone.session.closed()
        rude.session.received(b"x" * 70_000, False)
        self.assertEqual((None, (1009, "")), (waiting.link.closed, rude.link.closed))
        while self.world.devices._held:
            self.world.devices.let_go()
        hello, health, event = waiting.link.take()
        self.assertEqual(("hello-ok", "h"), (hello["payload"]["type"], health["id"] if "id" in health else event["id"]))
        self.assertEqual([], gone.link.take() + rude.link.take())

    def test_what_lets_in_changes_while_the_store_writes(self) -> None:
        """Whoever came by the secret of before does not come in."""
        self.world.devices.hold = True
        waiting = self.world.come(self.key, READ)
        harness = self.world.harness
        rules, auth = harness.site.gate.rules, harness.settings.config.gateway.auth
        self.world.gateway.authenticator = Authenticator("token", "another-secret-0123", auth, rules, None)
        while self.world.devices._held:
            self.world.devices.let_go()
        self.assertEqual(((1008, "the configuration changed; connect again"), []), (waiting.link.closed, waiting.link.take()))

    def test_the_handshake_limit_holds(self) -> None:
        """A store that hangs does not keep sockets open without a hello."""
        self.world.devices.hold = True
        waiting = self.world.come(self.key, READ)
        self.world.clock.advance(10.1)
        self.assertEqual((1000, ""), waiting.link.closed)
        while self.world.devices._held:
            self.world.devices.let_go()
        self.assertEqual([], waiting.link.take())


class TokenTests(SynchronousTestCase):
    """Coming back with a device token, and its end."""

    def setUp(self) -> None:
        self.world = DeviceWorld(self)
        self.key = Key(1)
        self.first = self.world.come(self.key, READ, WRITE)
        self.token = self.first.token

    def back(self, token: str, *scopes: str, **how: Any) -> Answer:
        """Connect with the device token in the place of the secret."""
        return self.world.come(self.key, *(scopes or (READ,)), auth={"token": token}, **how)

    def test_the_token_comes_back(self) -> None:
        """As `auth.token`, as older clients send it, or as `auth.deviceToken`: the same one is in hello-ok, and no new one is made."""
        self.assertEqual(43, len(self.token))
        for address in (LOCAL, REMOTE):
            answer = self.back(self.token, READ, address=address)
            self.assertEqual(
                (self.token, [READ], self.first.hello["auth"]["issuedAtMs"]),
                tuple(answer.hello["auth"][k] for k in ("deviceToken", "scopes", "issuedAtMs")),
            )
            signed = {"token": ""}
            self.assertEqual(self.token, self.world.come(self.key, READ, auth={"deviceToken": self.token}, signed=signed, address=address).token)
            signed = {"token": self.token}
            self.assertEqual(self.token, self.world.come(self.key, READ, auth={"deviceToken": self.token}, signed=signed, address=address).token)
        self.assertEqual(1, len(self.world.devices.tokens))

    def test_password_mode(self) -> None:
        """There, `auth.token` can only be a device's."""
        self.world = DeviceWorld(self, {"gateway": {"auth": {"mode": "password", "password": "sesame-sesame"}}})
        token = self.world.come(self.key, READ, auth={"password": "sesame-sesame"}).token
        self.assertEqual(token, self.back(token).token)
        self.assertIn("gateway password mismatch", self.world.come(self.key, READ, auth={"password": "wrong"}).outcome)

    def test_wrong_tokens(self) -> None:
        """Another device's, another role's, for more scopes, or none at all: the words at which clients forget their token."""
        other = self.world.come(Key(2), READ).token
        for refused in (self.back(other), self.back("junk"), self.back(self.token, READ, PAIRING), self.back(self.token + "=")):
            self.assertEqual("unauthorized: device token mismatch (rotate/reissue device token)", refused.outcome)
            self.assertEqual(("INVALID_REQUEST", "AUTH_DEVICE_TOKEN_MISMATCH"), (refused.error["code"], refused.error["details"]["code"]))
        self.assertIn("device token mismatch", self.world.come(self.key, auth={"token": self.token}, role="node").outcome)

    def test_a_token_alone_is_nothing(self) -> None:
        """Without the device's proof it is a wrong secret."""
        session, link = self.world.dial()
        link.take()
        tell(session, "connect", connect_params(READ, auth={"token": self.token}))
        self.assertIn("gateway token mismatch", Answer(session, link).outcome)

    def test_the_secret_makes_new_tokens(self) -> None:
        """The last four are good, so that four copies of a program live side by side."""
        tokens = [self.token, *(self.world.come(self.key, READ).token for _ in range(5))]
        self.assertEqual(6, len(set(tokens)))
        self.assertEqual(["device"] * 2 + ["ok"] * 4, [self.back(token).outcome.removeprefix("unauthorized: ").split()[0] for token in tokens])

    def test_revoke(self) -> None:
        """The device's connections are closed at once, its tokens are void; the secret makes a new one."""
        session, link = self.world.admin(PAIRING)
        second, other = self.back(self.token), self.world.come(Key(2), READ)
        answer = ask(session, link, "device.token.revoke", {"deviceId": self.key.id, "role": "operator"})["payload"]
        self.assertEqual({"deviceId": self.key.id, "role": "operator", "revokedAtMs": self.world.now_ms()}, answer)
        self.world.clock.advance(0)
        self.assertEqual([(1008, "device token revoked")] * 2, [self.first.link.closed, second.link.closed])
        self.assertIsNone(other.link.closed)
        self.assertIn("device token mismatch", self.back(self.token).outcome)
        listed = ask(session, link, "device.pair.list")["payload"]["paired"]
        (token,) = next(device for device in listed if device["deviceId"] == self.key.id)["tokens"]
        self.assertEqual(self.world.now_ms(), token["revokedAtMs"])
        self.assertEqual("ok", self.back(self.world.come(self.key, READ).token).outcome)
        for device, role in (("x", "operator"), (self.key.id, "node")):
            text = self.world.refused_by(session, link, "device.token.revoke", {"deviceId": device, "role": role})
            self.assertEqual("unknown deviceId/role", text)

    def test_rotate(self) -> None:
        """The new token is in the answer and nowhere else; all earlier ones and their connections end, the asking one after its answer."""
        own = self.world.come(Key(3), ADMIN)
        answer = ask(own.session, own.link, "device.token.rotate", {"deviceId": self.key.id, "role": "operator"})["payload"]
        self.assertEqual({"deviceId", "role", "token", "scopes", "rotatedAtMs"}, set(answer))
        self.assertEqual([READ, WRITE], answer["scopes"])
        self.world.clock.advance(0)
        self.assertEqual(((1008, "device token revoked"), None), (self.first.link.closed, own.link.closed))
        self.assertIn("device token mismatch", self.back(self.token).outcome)
        self.assertEqual("ok", self.back(answer["token"], WRITE).outcome)
        tell(own.session, "device.token.rotate", {"deviceId": Key(3).id, "role": "operator", "scopes": [READ]})
        self.assertEqual([READ], own.link.take()[-1]["payload"]["scopes"])
        self.world.clock.advance(0)
        self.assertEqual((1008, "device token revoked"), own.link.closed)

    def test_remove(self) -> None:
        """The device is unknown, its connections end; it may ask again."""
        session, link = self.world.admin(PAIRING)
        self.assertEqual({"deviceId": self.key.id}, ask(session, link, "device.pair.remove", {"deviceId": self.key.id})["payload"])
        self.world.clock.advance(0)
        self.assertEqual((1008, "device token revoked"), self.first.link.closed)
        self.assertEqual("unknown deviceId", self.world.refused_by(session, link, "device.pair.remove", {"deviceId": self.key.id}))
        self.assertIn("device token mismatch", self.back(self.token).outcome)
        self.assertEqual("pairing required", self.world.come(self.key, READ, address=REMOTE).outcome)
        self.assertEqual("ok", self.world.come(self.key, READ).outcome)

    def test_removed_while_it_connects(self) -> None:
        """A connection that was being admitted when its device was removed does not come in."""
        session, _ = self.world.admin(PAIRING)
        self.world.devices.hold = True
        waiting = self.world.come(self.key, READ)
        tell(session, "device.pair.remove", {"deviceId": self.key.id})
        while self.world.devices._held:
            self.world.devices.let_go()
        self.assertIn("device token mismatch", Answer(waiting.session, waiting.link).outcome)

    def test_a_client_that_leaves_after_asking(self) -> None:
        """What it asked for is done all the same."""
        session, _ = self.world.admin(PAIRING)
        self.world.devices.hold = True
        tell(session, "device.token.revoke", {"deviceId": self.key.id, "role": "operator"})
        session.closed()
        while self.world.devices._held:
            self.world.devices.let_go()
        self.world.clock.advance(0)
        self.assertIsNotNone(self.first.link.closed)
        self.assertEqual([], self.flushLoggedErrors())

    def test_nothing_is_kept_of_closed_connections(self) -> None:
        """The books of connections are empty when all have left."""
        self.first.session.closed()
        self.back(self.token).session.closed()
        self.assertEqual({}, self.world.gateway.device_connections._open)


class MethodTests(SynchronousTestCase):
    """Who may ask what about devices."""

    def setUp(self) -> None:
        self.world = DeviceWorld(self)

    def test_list(self) -> None:
        """All that is known, without what makes a token one; the newest first."""
        first = self.world.come(Key(1), READ, WRITE, client={**BACKEND, "displayName": "Bot"})
        self.world.clock.advance(1)
        self.world.come(Key(2), ADMIN)
        session, link = self.world.admin(PAIRING)
        payload = ask(session, link, "device.pair.list", {})["payload"]
        self.assertEqual([Key(2).id, Key(1).id], [device["deviceId"] for device in payload["paired"]])
        device = payload["paired"][1]
        at = self.world.now_ms() - 1000
        self.assertEqual(
            {
                "deviceId": Key(1).id,
                "publicKey": Key(1).text,
                "displayName": "Bot",
                "platform": " Linux ",
                "clientId": "gateway-client",
                "clientMode": "backend",
                "role": "operator",
                "roles": ["operator"],
                "scopes": [READ, WRITE],
                "createdAtMs": at,
                "approvedAtMs": at,
                "tokens": [{"role": "operator", "scopes": [READ, WRITE], "createdAtMs": at}],
            },
            device,
        )
        self.assertNotIn(first.token, json.dumps(payload))

    def test_scopes(self) -> None:
        """operator.pairing is needed for all of them."""
        for method in (
            "device.pair.list",
            "device.pair.approve",
            "device.pair.reject",
            "device.pair.remove",
            "device.token.rotate",
            "device.token.revoke",
        ):
            session, link = self.world.admin(READ, WRITE, APPROVALS)
            self.assertEqual("missing scope: operator.pairing", self.world.refused_by(session, link, method, {}))

    def test_parameters(self) -> None:
        """What is missing and what is unknown is named (W39)."""
        session, link = self.world.admin(PAIRING)
        for method, params, words in (
            ("device.pair.list", {"x": 1}, "at root: unexpected property 'x'"),
            ("device.pair.approve", {}, "must have required property 'requestId'"),
            ("device.pair.reject", {"requestId": ""}, "at /requestId: must NOT have fewer than 1 characters"),
            ("device.pair.remove", {"deviceId": 5}, "at /deviceId: must be string"),
            ("device.token.rotate", {"deviceId": "d", "role": "operator", "scopes": "all"}, "at /scopes: must be array"),
            (
                "device.token.revoke",
                {"deviceId": "d", "__proto__": {}},
                "must have required property 'role'; at root: unexpected property '__proto__'",
            ),
        ):
            self.assertEqual(f"invalid {method} params: {words}", self.world.refused_by(session, link, method, params))

    def test_nobody_gives_away_what_he_has_not(self) -> None:
        """Whoever may pair, but is no administrator, can neither approve one nor take an administrator's token."""
        request_id = self.world.come(Key(1), ADMIN, address=REMOTE).error["details"]["requestId"]
        self.world.come(Key(2), ADMIN)
        for protocol, code in ((3, "INVALID_REQUEST"), (4, "FORBIDDEN")):
            session, link = self.world.admin(PAIRING, WRITE, protocol=protocol)
            for method, params in (
                ("device.pair.approve", {"requestId": request_id}),
                ("device.token.rotate", {"deviceId": Key(2).id, "role": "operator"}),
            ):
                error = ask(session, link, method, params)["error"]
                self.assertEqual((code, "missing scope: operator.admin"), (error["code"], error["message"]))
        session, link = self.world.admin(PAIRING, READ)
        request_id = self.world.come(Key(3), READ, address=REMOTE).error["details"]["requestId"]
        self.assertTrue(ask(session, link, "device.pair.approve", {"requestId": request_id})["ok"])
        params = {"deviceId": Key(2).id, "role": "operator", "scopes": [READ]}
        self.assertEqual([READ], ask(session, link, "device.token.rotate", params)["payload"]["scopes"])
        params["scopes"] = ["operator.everything"]
        self.assertIn("missing scope: operator.everything", self.world.refused_by(session, link, "device.token.rotate", params))

    def test_nodes(self) -> None:
        """A node has no scopes, and may call nothing but health; there are no methods of nodes."""
        node = self.world.come(Key(1), ADMIN, role="node")
        self.assertEqual(("node", []), (node.hello["auth"]["role"], node.hello["auth"]["scopes"]))
        self.assertTrue(ask(node.session, node.link, "health")["ok"])
        for method in ("node.invoke.result", "node.event", "status", "device.pair.list", "connect"):
            self.assertEqual("unauthorized role: node", self.world.refused_by(node.session, node.link, method, {}))

    def test_presence_names_the_device(self) -> None:
        """A client with a device is listed under it."""
        client = self.world.come(Key(1), READ)
        listed = ask(client.session, client.link, "system-presence", {})["payload"]
        self.assertEqual([None, Key(1).id], [entry.get("deviceId") for entry in listed])


class WithoutDeviceTests(SynchronousTestCase):
    """Clients that have only the secret."""

    def setUp(self) -> None:
        self.world = DeviceWorld(self)

    def scopes(self, client_id: str, mode: str, address: Address = LOCAL, origin: str | None = None, **params: Any) -> Any:
        """The scopes that such a client gets."""
        session, link = self.world.dial(address, origin)
        link.take()
        client = {"id": client_id, "version": "1", "platform": "linux", "mode": mode}
        tell(session, "connect", connect_params(READ, ADMIN, client=client, **params))
        return Answer(session, link).hello["auth"]["scopes"]

    def test_programs_of_this_machine(self) -> None:
        """cli/cli and gateway-client/backend keep what they ask for, directly and without an Origin; nobody else does."""
        for mode in ("token", "none"):
            self.world = DeviceWorld(self, {"gateway": {"auth": {"mode": mode}}})
            self.assertEqual([ADMIN, READ], self.scopes("cli", "cli"))
            self.assertEqual([ADMIN, READ], self.scopes("gateway-client", "backend"))
            for client_id, kind in (
                ("cli", "backend"),
                ("gateway-client", "ui"),
                ("webchat-ui", "webchat"),
                ("test", "test"),
                ("mayros-macos", "ui"),
            ):
                self.assertEqual([], self.scopes(client_id, kind))
            self.assertEqual([], self.scopes("cli", "cli", LOCAL, "http://localhost:18789"))
        self.world = DeviceWorld(self)
        self.assertEqual([], self.scopes("cli", "cli", REMOTE))
        self.assertEqual([], self.scopes("cli", "cli", role="node"))
        self.world = DeviceWorld(self, {"gateway": {"auth": {"localScopes": False}}})
        self.assertEqual([], self.scopes("cli", "cli"))

    def test_no_token_of_a_device(self) -> None:
        """There is none in hello-ok."""
        session, link = self.world.dial()
        link.take()
        tell(session, "connect", connect_params(READ))
        self.assertEqual({"role", "scopes"}, set(Answer(session, link).hello["auth"]))


class LimiterTests(SynchronousTestCase):
    """Failures are counted, whatever they come with."""

    def setUp(self) -> None:
        self.world = DeviceWorld(self, LIMITED)
        self.key = Key(1)

    def test_guessing_the_secret_with_a_device(self) -> None:
        """Counts like guessing it without one, on both doors; then even the right secret has to wait (W38)."""
        for _ in range(3):
            self.assertIn("mismatch", self.world.come(self.key, READ, auth={"token": "wrong"}, address=REMOTE).outcome)
        locked = self.world.come(self.key, READ, address=REMOTE)
        self.assertEqual("unauthorized: too many failed authentication attempts (retry later)", locked.outcome)
        self.assertEqual(("AUTH_RATE_LIMITED", "wait_then_retry"), (locked.error["details"]["code"], locked.error["details"]["recommendedNextStep"]))
        self.assertEqual((True, 300_000), (locked.error["retryable"], locked.error["retryAfterMs"]))
        self.assertEqual(429, self.world.harness.dial(post(chat()), peer="203.0.113.9").answer().status)
        self.world.clock.advance(301)
        self.assertEqual("pairing required", self.world.come(self.key, READ, address=REMOTE).outcome)

    def test_device_tokens_in_the_place_of_the_secret(self) -> None:
        """A good one is no failure of anything, however often it comes, and comes in while the secret is locked."""
        token = self.world.come(self.key, READ).token
        for _ in range(10):
            self.assertEqual("ok", self.world.come(self.key, READ, auth={"token": token}, address=REMOTE).outcome)
        for _ in range(3):
            session, _ = self.world.dial(REMOTE)
            tell(session, "connect", connect_params(auth={"token": "wrong"}))
        self.assertIn("retry later", self.world.come(self.key, READ, address=REMOTE).outcome)
        self.assertEqual("ok", self.world.come(self.key, READ, auth={"token": token}, address=REMOTE).outcome)

    def test_guessing_device_tokens(self) -> None:
        """Counts for itself: the secret is still taken, a device token is not."""
        self.world = DeviceWorld(self, {"gateway": {"auth": {"mode": "password", "password": "sesame-sesame", "rateLimit": {"maxAttempts": 3}}}})
        right = {"password": "sesame-sesame"}
        token = self.world.come(self.key, READ, auth=right).token
        for _ in range(3):
            self.assertIn("mismatch", self.world.come(self.key, READ, auth={"token": "junk"}, address=REMOTE).outcome)
        self.assertIn("retry later", self.world.come(self.key, READ, auth={"token": token}, address=REMOTE).outcome)
        self.assertEqual("ok", self.world.come(self.key, READ, auth=right, address=REMOTE).outcome)
        # Guesses of the secret count although the answer is about something else.
        for _ in range(3):
            guess = {"password": "guess", "token": "junk"}
            self.assertIn("retry later", self.world.come(self.key, READ, auth=guess, address=REMOTE).outcome)
        self.assertIn("retry later", self.world.come(self.key, READ, auth=right, address=REMOTE).outcome)

    def test_nothing_sent_is_no_failure(self) -> None:
        """A client without a secret is not guessing."""
        for _ in range(5):
            self.assertIn("missing", self.world.come(self.key, READ, auth={}, address=REMOTE).outcome)
        self.assertEqual("pairing required", self.world.come(self.key, READ, address=REMOTE).outcome)

    def test_this_machine_is_exempt(self) -> None:
        """As on the other door."""
        for _ in range(5):
            self.assertIn("mismatch", self.world.come(self.key, READ, auth={"token": "wrong"}).outcome)
        self.assertEqual("ok", self.world.come(self.key, READ).outcome)


class ProxyTests(SynchronousTestCase):
    """Mode `trusted-proxy`: there is no secret, the proxy has named the user at the upgrade, or has not."""

    ANN = Principal("user:ann", PROXY_SCOPES)

    def setUp(self) -> None:
        auth = {"mode": "trusted-proxy", "trustedProxy": {"userHeader": "x-user"}, **LIMITED["gateway"]["auth"]}
        self.world = DeviceWorld(self, {"gateway": {"auth": auth, "trustedProxies": ["10.0.0.1"]}})
        self.key = Key(1)

    def connect(self, *scopes: str, user: Principal | Unauthorized | None = ANN, **params: Any) -> Answer:
        """Connect without a device."""
        session, link = self.world.dial(REMOTE, None, user)
        link.take()
        tell(session, "connect", connect_params(*scopes, auth={}, **params))
        return Answer(session, link)

    def test_a_user(self) -> None:
        """Comes in without secret, device and pairing, as the one whom HTTP knows, with the scopes that HTTP gives."""
        answer = self.connect(READ, WRITE, ADMIN)
        self.assertEqual([READ, WRITE], answer.hello["auth"]["scopes"])
        self.assertEqual("trusted-proxy", answer.hello["snapshot"]["authMode"])
        self.assertEqual("user:ann", answer.session.principal.id)
        self.assertEqual([READ], self.connect(READ).hello["auth"]["scopes"])

    def test_nobody_was_named(self) -> None:
        """Then it is as without a secret, and the reason is told to whoever proves a device."""
        nobody = Unauthorized("The proxy did not name exactly one user.")
        self.assertEqual("device identity required", self.connect(READ, user=nobody).outcome)
        error = self.world.come(self.key, READ, auth={}, user=nobody).error
        self.assertEqual(("unauthorized", nobody.message), (error["message"], error["details"]["reason"]))

    def test_a_device_adds_nothing(self) -> None:
        """It proves its key, but needs no approval, waits for none and gets no token: its user has what he has without it."""
        answer = self.world.come(self.key, READ, ADMIN, auth={}, user=self.ANN, address=REMOTE)
        self.assertEqual({"role": "operator", "scopes": [READ]}, answer.hello["auth"])
        self.assertEqual(({}, {}), (self.world.devices.devices, self.world.devices.requests))
        wrong = self.world.come(self.key, READ, auth={}, user=self.ANN, address=REMOTE, signed={"scopes": (ADMIN,)})
        self.assertEqual("device signature invalid", wrong.outcome)

    def test_a_device_token(self) -> None:
        """Gives what the device is paired for, with a proxy's user and without one."""
        applicant = Applicant(self.key.id, self.key.text, "operator", (ADMIN,), None, None, None, None, None)
        self.successResultOf(Deferred.fromCoroutine(self.world.gateway.devices.ready()))
        self.successResultOf(Deferred.fromCoroutine(self.world.gateway.devices.pair(applicant)))
        grant = self.successResultOf(Deferred.fromCoroutine(self.world.gateway.devices.issue(self.key.id, "operator", (ADMIN,))))
        for user, name in ((self.ANN, "user:ann"), (None, "owner")):
            answer = self.world.come(self.key, ADMIN, auth={"token": grant.token}, user=user, address=REMOTE)
            self.assertEqual(([ADMIN], name), (answer.hello["auth"]["scopes"], answer.session.principal.id))
        without = self.world.come(self.key, ADMIN, auth={}, user=self.ANN, address=REMOTE)
        self.assertEqual([], without.hello["auth"]["scopes"])

    def test_guessing_device_tokens(self) -> None:
        """Is limited as in the other modes."""
        for _ in range(3):
            self.assertIn("device token mismatch", self.world.come(self.key, READ, address=REMOTE).outcome)
        self.assertIn("too many failed", self.world.come(self.key, READ, address=REMOTE).outcome)

    def test_no_nodes_and_no_control_page(self) -> None:
        """A user is no node; the control page needs a device here, too."""
        self.assertEqual("unauthorized", self.connect(role="node").outcome)
        self.assertEqual("unauthorized", self.world.come(self.key, role="node", auth={}, user=self.ANN, address=REMOTE).outcome)
        page = {"id": "mayros-control-ui", "version": "1", "platform": "web", "mode": "ui"}
        self.assertIn("control ui requires device identity", self.connect(READ, client=page).outcome)
