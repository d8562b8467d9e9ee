"""Tokens of persons and programs at both doors: who is let in, what each may do there, and what ends when a token does."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.api_tokens import Wanted
from mayros.core.auth import secret_digest
from mayros.core.ports import Principal
from mayros.core.spending import DAY_MS, Spent
from mayros.events import Usage
from mayros.ws.methods.table import METHODS, NARROWED
from tests.helpers import TOKEN, Answer, chat, head, post
from tests.test_devices import Key
from tests.test_ws import ADMIN, READ, REMOTE, WRITE, FakeLink, World, agent_params, ask, connect_params, tell
from tests.test_ws_connect import DeviceWorld

RATE = {"gateway": {"auth": {"rateLimit": {"maxAttempts": 3, "windowMs": 60_000, "lockoutMs": 300_000}}}}
BOTH = ("operator.read", "operator.write")


class DoorCase(SynchronousTestCase):
    """A gateway with both doors."""

    changes: dict[str, Any] = {}
    #: What a run over HTTP uses.
    usage = Usage(input=7, output=3)

    def setUp(self) -> None:
        self.use(self.changes)

    def use(self, changes: dict[str, Any]) -> None:
        """Begin anew with this configuration."""
        self.world = World(self, changes)
        self.harness, self.tokens = self.world.harness, self.world.harness.api_tokens

    def create(self, name: str = "ann", **wanted: Any) -> str:
        """A token's secret."""
        agents = self.harness.settings.directory.agents
        return self.successResultOf(Deferred.fromCoroutine(self.tokens.create(Wanted(name, **wanted), agents)))[0]

    def http(self, secret: str | None, *lines: str, body: dict[str, Any] | None = None, peer: str = "127.0.0.1") -> Answer:
        """A chat request, answered by the model where it gets so far."""
        asked = len(self.harness.provider.requests)
        client = self.harness.dial(post(chat() if body is None else body, *lines, token=secret), peer)
        if len(self.harness.provider.requests) > asked:
            self.harness.provider.say("ok")
            self.harness.provider.stop(usage=self.usage)
            self.harness.settle(client)
        return client.answer()

    def get(self, secret: str, path: str = "/v1/models") -> Answer:
        return self.harness.dial(head("GET", path, token=secret) + b"\r\n").answer()

    def ws(self, secret: str, *scopes: str, **params: Any) -> FakeLink:
        """A connect, answered or refused."""
        _, link = self.open(secret, *scopes, **params)
        return link

    def open(self, secret: str, *scopes: str, **params: Any) -> Any:
        address = params.pop("address", REMOTE)
        session, link = self.world.dial(address)
        link.take()
        tell(session, "connect", connect_params(*(scopes or BOTH), **{"auth": {"token": secret}, **params}))
        return session, link

    def member(self, secret: str, *scopes: str, **params: Any) -> Any:
        """A client that has said hello."""
        session, link = self.open(secret, *scopes, **params)
        self.assertIsNone(link.closed, link.frames)
        link.take()
        return session, link


class AdmissionTests(DoorCase):
    """Who is let in."""

    def test_both_doors(self) -> None:
        """A token is good at both, from anywhere, without a device, and is known by its name."""
        secret = self.create()
        self.assertEqual(self.http(secret, peer="203.0.113.9").status, 200)
        self.assertEqual((self.harness.access[-1].principal, self.harness.store.used[-1][0]["principal"]), ("token:ann", "token:ann"))
        (hello, _) = self.ws(secret, READ, WRITE).take()
        self.assertEqual(hello["payload"]["auth"], {"role": "operator", "scopes": [READ, WRITE]})
        self.assertNotIn(secret, repr(self.harness.access))

    def test_a_wrong_one(self) -> None:
        """Is refused as any wrong secret is, whatever it begins with, and counted as one."""
        self.use(RATE)
        secret = self.create()
        for number, wrong in enumerate((secret[:-1] + "!", "mgt_", "nothing")):
            answer = self.http(wrong, peer=f"203.0.113.{number}")
            self.assertEqual((answer.status, answer.error["code"]), (401, "invalid_api_key"))
            self.assertEqual(answer.json, self.http("x", peer=f"198.51.100.{number}").json)
        statuses = [self.http(wrong, peer="192.0.2.7").status for wrong in ("mgt_" + "x" * 43, "y", "mgt_z", secret)]
        self.assertEqual(statuses, [401, 401, 401, 429])

    def test_a_right_one_forgives_nothing(self) -> None:
        """Otherwise its owner could try the gateway's secret as often as he likes."""
        self.use(RATE)
        secret = self.create()
        statuses = [self.http(one, peer="192.0.2.7").status for one in ("a", "b", secret, "c", secret, TOKEN)]
        self.assertEqual(statuses, [401, 401, 200, 401, 429, 429])

    def test_one_that_is_over(self) -> None:
        """Says so, and is not a guess."""
        self.use(RATE)
        secret = self.create(expires_ms=self.world.now_ms() + 5_000)
        self.assertEqual(self.http(secret).status, 200)
        self.world.clock.advance(5)
        for _ in range(5):
            answer = self.http(secret, peer="192.0.2.7")
            self.assertEqual((answer.status, answer.error["code"]), (401, "invalid_api_key"))
        self.assertIn("expired", answer.error["message"])
        link = self.ws(secret)
        self.assertEqual(link.take()[0]["error"]["details"]["code"], "AUTH_TOKEN_MISMATCH")
        assert link.closed is not None
        self.assertEqual(link.closed[0], 1008)

    def test_in_other_modes(self) -> None:
        """With a password, without any secret, behind a proxy: a token says who it is; one that is not good is refused, not taken for nobody's."""
        proxy = {"trustedProxies": ["10.0.0.1"], "auth": {"mode": "trusted-proxy", "trustedProxy": {"userHeader": "X-User"}}}
        for gateway in ({"auth": {"mode": "password", "password": "open sesame"}}, {"auth": {"mode": "none"}}, proxy):
            self.use({"gateway": gateway})
            secret = self.create()
            self.assertEqual(self.http(secret, peer="203.0.113.9").status, 200, gateway)
            self.assertEqual(self.harness.access[-1].principal, "token:ann")
            self.assertEqual(self.http("mgt_" + "x" * 43).status, 401, gateway)
            self.assertEqual(self.ws(secret).take()[0]["payload"]["auth"]["scopes"], [READ, WRITE], gateway)
            refused = self.ws("mgt_" + "x" * 43)
            kind = "PASSWORD" if gateway.get("auth", {}).get("mode") == "password" else "TOKEN"
            self.assertIn(refused.take()[0]["error"]["details"]["code"], (f"AUTH_{kind}_MISMATCH", f"AUTH_{kind}_MISSING"), gateway)

    def test_scopes_on_the_socket(self) -> None:
        """What the client asks for, as far as the token has it."""
        for own, asked, given in (
            (BOTH, (READ, WRITE, ADMIN, "operator.approvals", "operator.pairing"), [READ, WRITE]),
            (("operator.read",), (READ, WRITE), [READ]),
            (("operator.write",), (READ,), [READ]),
            (BOTH, (READ,), [READ]),
            ((ADMIN,), (READ, ADMIN), [ADMIN, READ]),
        ):
            secret = self.create(f"t{len(self.tokens.list())}", scopes=own)
            self.assertEqual(self.ws(secret, *asked).take()[0]["payload"]["auth"]["scopes"], given)

    def test_with_a_device(self) -> None:
        """It must prove its key here too; but it is not paired for that, and gets no token of its own."""
        self.world = world = DeviceWorld(self)
        self.harness, self.tokens = world.harness, world.harness.api_tokens
        secret, key = self.create(), Key(1)
        come = world.come(key, READ, ADMIN, address=REMOTE, auth={"token": secret})
        self.assertEqual(come.hello["auth"], {"role": "operator", "scopes": [READ]})
        self.assertEqual(world.gateway.devices.paired(), [])
        forged = world.come(key, READ, address=REMOTE, auth={"token": secret}, signed={"scopes": (ADMIN,)})
        self.assertEqual(forged.outcome, "device signature invalid")

    def test_no_node(self) -> None:
        """A token is an operator's."""
        link = self.ws(self.create(), role="node")
        self.assertEqual((link.take()[0]["ok"], link.closed is not None), (False, True))


class NarrowingTests(DoorCase):
    """What a token may use."""

    def test_agents(self) -> None:
        """Others are refused, however they are named; models lists its own only."""
        secret = self.create(agents=("beta",))
        self.assertEqual(self.http(secret, body=chat(model="mayros/beta")).status, 200)
        self.assertEqual(str(self.harness.store.turns[-1][0].agent.id), "beta")
        for body, line in (
            (chat(), ""),
            (chat(model="mayros/main"), ""),
            (chat(model="mayros/beta"), "x-mayros-agent-id: main"),
            (chat(model="x"), "x-mayros-session-key: agent:main:token:ann:x"),
        ):
            answer = self.http(secret, *([line] if line else []), body=body)
            self.assertEqual((answer.status, answer.error["code"], answer.error["type"]), (403, "missing_scope", "permission_error"), line)
            self.assertIn("beta", answer.error["message"])
        self.assertEqual([one["id"] for one in self.get(secret).json["data"]], ["mayros/beta"])
        self.assertEqual(self.get(secret, "/v1/models/mayros%2Fmain").status, 404)

    def test_agents_on_the_socket(self) -> None:
        """The same there."""
        session, link = self.member(self.create(agents=("beta",)))
        for method, params in {
            "chat.send": {"sessionKey": "main", "message": "hi", "idempotencyKey": "1"},
            "agent": agent_params(),
            "chat.history": {"sessionKey": "agent:main:x"},
            "agent.identity.get": {"agentId": "main"},
            "tools.catalog": {"agentId": "main"},
        }.items():
            answer = ask(session, link, method, params)
            self.assertIn('may not use the agent "main"', answer["error"]["message"], method)
        self.assertEqual(ask(session, link, "agent.identity.get", {})["payload"]["agentId"], "beta")
        listed = ask(session, link, "agents.list", {})["payload"]
        self.assertEqual((listed["defaultId"], [one["id"] for one in listed["agents"]]), ("beta", ["beta"]))
        self.assertEqual([one["agentId"] for one in ask(session, link, "status", {})["payload"]["sessions"]["byAgent"]], ["beta"])
        self.assertEqual(ask(session, link, "agent", agent_params(agentId="beta"))["payload"]["status"], "accepted")

    def test_endpoints(self) -> None:
        """Each is its own permission."""
        chatting, listing, talking = (self.create(name, endpoints=(name,)) for name in ("chat", "models", "ws"))
        self.assertEqual([self.http(secret).status for secret in (chatting, listing, talking)], [200, 403, 403])
        self.assertEqual([self.get(secret).status for secret in (chatting, listing, talking)], [403, 200, 403])
        self.assertEqual(self.http(listing).error["code"], "missing_scope")
        refused = self.ws(chatting)
        self.assertEqual(refused.take()[0]["error"]["details"]["code"], "AUTH_ENDPOINT_NOT_ALLOWED")
        self.assertIsNone(self.ws(talking).closed)

    def test_scopes(self) -> None:
        """Who may only read starts no run."""
        secret = self.create(scopes=("operator.read",))
        answer = self.http(secret)
        self.assertEqual((answer.status, answer.error["code"], answer.error["message"]), (403, "missing_scope", "missing scope: operator.write"))
        self.assertEqual(self.get(secret).status, 200)
        session, link = self.member(secret)
        self.assertEqual(ask(session, link, "agent", agent_params())["error"]["message"], "missing scope: operator.write")

    def test_methods(self) -> None:
        """What could tell of others is not for narrowed tokens, also where their scopes would do; an administrator's token is not narrowed."""
        session, link = self.member(self.create(scopes=(*BOTH, "operator.approvals")), *BOTH, "operator.approvals")
        for name, method in METHODS.items():
            tell(session, name, {}, id=name)
            answer = next(frame for frame in link.take() if frame.get("id") == name)
            if name not in NARROWED:
                self.assertIn("operator.", answer["error"]["message"], name)
            else:
                self.assertNotIn(method.scope, (ADMIN, "operator.pairing"), name)
        session, link = self.member(self.create("root", scopes=(ADMIN,)), ADMIN)
        self.assertTrue(ask(session, link, "config.get", {})["ok"])


class LimitTests(DoorCase):
    """How often, and how much."""

    usage = Usage(input=2_000, output=1_000)

    def test_requests_a_minute(self) -> None:
        """Told in headers of every answer; 429 with the right Retry-After, after which it is let in."""
        secret = self.create(rpm=2)
        first = self.http(secret)
        told = {name.removeprefix("x-ratelimit-"): value for name, value in first.headers.items() if name.startswith("x-ratelimit-")}
        self.assertEqual(told, {"limit-requests": "2", "remaining-requests": "1", "reset-requests": "30s"})
        self.assertEqual(self.http(secret, body={}).headers["x-ratelimit-remaining-requests"], "0")
        refused = self.http(secret)
        self.assertEqual((refused.status, refused.error["type"], refused.error["code"]), (429, "rate_limit_error", "rate_limit_exceeded"))
        self.assertEqual((refused.headers["retry-after"], refused.headers["x-ratelimit-remaining-requests"]), ("30", "0"))
        self.assertNotIn("x-should-retry", refused.headers)
        self.assertEqual(self.get(secret).headers["x-ratelimit-remaining-requests"], "0")
        self.harness.advance(30)
        self.assertEqual(self.http(secret).status, 200)
        self.assertNotIn("x-ratelimit-limit-requests", self.http(TOKEN).headers)

    def test_a_stream_tells_too(self) -> None:
        """In its head."""
        client = self.harness.dial(post(chat(stream=True), token=self.create(rpm=5, tokens_per_day=100)))
        self.harness.provider.say("x")
        self.harness.settle(client)
        headers = client.stream().headers
        self.assertEqual((headers["x-ratelimit-remaining-requests"], headers["x-ratelimit-limit-tokens"]), ("4", "100"))
        self.harness.provider.stop()
        self.harness.settle(client)

    def test_one_bucket_for_both_doors(self) -> None:
        """A run is a run."""
        secret = self.create(rpm=2)
        session, link = self.member(secret)
        self.assertEqual(self.http(secret).status, 200)
        self.assertEqual(ask(session, link, "agent", agent_params(sessionKey="x"))["payload"]["status"], "accepted")
        error = ask(session, link, "chat.send", {"sessionKey": "y", "message": "hi", "idempotencyKey": "2"})["error"]
        self.assertEqual((error["code"], error["retryable"], error["retryAfterMs"]), ("UNAVAILABLE", True, 30_000))

    def test_tokens_a_day(self) -> None:
        """Once they are used up: 429 until midnight, UTC, at both doors; other callers go on."""
        secret = self.create(tokens_per_day=5_000)
        answer = self.http(secret)
        self.assertEqual((answer.status, answer.headers["x-ratelimit-remaining-tokens"]), (200, "5000"))
        self.assertEqual(self.http(secret).headers["x-ratelimit-remaining-tokens"], "2000")
        refused = self.http(secret)
        self.assertEqual((refused.status, refused.error["code"], refused.headers["x-should-retry"]), (429, "budget_exceeded", "false"))
        left = -(-(DAY_MS - self.world.now_ms() % DAY_MS) // 1000)
        self.assertEqual((refused.headers["retry-after"], refused.headers["x-ratelimit-remaining-tokens"]), (str(left), "0"))
        self.assertIn("token:ann", refused.error["message"])
        session, link = self.member(secret)
        self.assertIn("is reached", ask(session, link, "agent", agent_params())["error"]["message"])
        self.assertEqual(ask(session, link, "usage.status", {})["payload"]["limits"][0]["used"], 6_000)
        self.assertEqual(self.http(TOKEN).status, 200)
        self.harness.advance(left)
        self.assertEqual(self.http(secret).status, 200)

    def test_a_run_that_would_use_more(self) -> None:
        """The answer is no longer than the day's rest."""
        secret = self.create(tokens_per_day=100_000)
        self.http(secret)
        self.assertLessEqual(self.harness.provider.requests[-1].sampling.max_tokens or 0, 100_000)
        self.world.gateway.spending.add("main", 96_000, 0, self.world.now_ms(), self.principal(secret))
        self.http(secret)
        self.assertLess(self.harness.provider.requests[-1].sampling.max_tokens or 10**9, 1_000)

    def test_after_a_restart(self) -> None:
        """What the day has used is known."""
        secret = self.create(tokens_per_day=5_000)
        self.http(secret)
        self.http(secret)
        spent = {"token:ann": (sum(one.input + one.output for _, _, one in self.harness.store.used), 0)}
        kept = self.harness.token_store.kept.values()
        self.use(self.changes)
        self.tokens.restore(kept)
        self.harness.runs.spending.load({}, self.world.now_ms(), {name: Spent(*sums) for name, sums in spent.items()})
        refused = self.http(secret)
        self.assertEqual((refused.status, refused.headers["x-ratelimit-remaining-tokens"]), (429, "0"))

    def principal(self, secret: str) -> Principal:
        held = self.tokens.find(secret_digest(secret))
        assert held is not None
        return held.principal


class EndTests(DoorCase):
    """What ends when a token does."""

    def do(self, work: Any) -> Any:
        found = self.successResultOf(Deferred.fromCoroutine(work))
        self.world.clock.advance(0)
        return found

    def test_revoke(self) -> None:
        """Sockets are closed, runs end, the next request is refused; nobody else is touched."""
        secret, other = self.create(), self.create("bob")
        _, mine = self.member(secret)
        _, theirs = self.member(other)
        waiting = self.harness.dial(post(chat(), token=secret))
        going = self.harness.dial(post(chat(), token=other))
        self.do(self.tokens.revoke("ann"))
        self.assertEqual(mine.closed, (1008, "token revoked or expired"))
        self.assertIsNone(theirs.closed)
        self.harness.settle(waiting, going)
        answer = waiting.answer()
        self.assertEqual((answer.status, answer.error["code"]), (422, "run_aborted"))
        self.assertEqual(going.received, b"")
        self.assertEqual((self.http(secret).status, self.ws(secret).closed is not None), (401, True))

    def test_whoever_revokes_his_own(self) -> None:
        """Gets his answer first."""
        session, link = self.member(self.create("root", scopes=(ADMIN,)), ADMIN)
        self.assertEqual(ask(session, link, "tokens.revoke", {"name": "root"})["payload"]["entry"]["state"], "revoked")
        self.world.clock.advance(0)
        self.assertIsNotNone(link.closed)

    def test_rotate(self) -> None:
        """Sockets of the old secret end with it: at once, or when the grace is over. Runs go on."""
        secret = self.create()
        _, first = self.member(secret)
        fresh, _ = self.do(self.tokens.rotate("ann", 60_000))
        _, second = self.member(fresh)
        _, late = self.member(secret)
        self.world.clock.advance(59)
        self.assertEqual([link.closed for link in (first, second, late)], [None] * 3)
        self.world.clock.advance(1)
        self.assertEqual([link.closed is not None for link in (first, second, late)], [True, False, True])
        self.assertEqual((self.http(secret).status, self.http(fresh).status), (401, 200))
        self.do(self.tokens.rotate("ann"))
        self.assertIsNotNone(second.closed)

    def test_expiry(self) -> None:
        """A socket does not outlive its token, however long that is."""
        _, link = self.member(self.create(expires_ms=self.world.now_ms() + 90 * DAY_MS))
        for _ in range(90 * 24 - 1):
            self.world.clock.advance(3_600)
        self.assertIsNone(link.closed)
        self.world.clock.advance(3_600)
        self.assertIsNotNone(link.closed)

    def test_nothing_is_left(self) -> None:
        """Of sockets that are gone."""
        session, _ = self.member(self.create(expires_ms=self.world.now_ms() + DAY_MS))
        session.closed()
        self.assertEqual(self.world.gateway.token_sockets._open, {})
        self.assertEqual(self.harness.clock.getDelayedCalls(), [])


class MethodTests(DoorCase):
    """`tokens.*`."""

    def setUp(self) -> None:
        super().setUp()
        self.session, self.link = self.world.connect(ADMIN)

    def ask(self, method: str, **params: Any) -> Any:
        return ask(self.session, self.link, f"tokens.{method}", params)

    def test_life(self) -> None:
        """Made, used, listed, replaced, revoked; the secret is told once."""
        made = self.ask("create", name="ann", agents=["beta"], endpoints=["chat"], rpm=5, tokensPerDay=9_000, expiresAtMs=self.world.now_ms() + 9_000)
        secret, entry = made["payload"]["token"], made["payload"]["entry"]
        limits = {"agents": ["beta"], "endpoints": ["chat"], "rpm": 5, "tokensPerDay": 9_000, "expiresAtMs": 1_009_000}
        self.assertEqual(entry, {"name": "ann", "state": "live", "scopes": list(BOTH), "createdAtMs": 1_000_000, **limits})
        self.assertEqual(self.http(secret, body=chat(model="mayros/beta")).status, 200)
        listed = self.ask("list")["payload"]
        self.assertEqual((listed["ts"], listed["tokens"]), (1_000_000, [{**entry, "lastUsedAtMs": 1_000_000}]))
        rotated = self.ask("rotate", name="ann", graceMs=5_000)["payload"]
        self.assertEqual((rotated["entry"]["rotatedAtMs"], rotated["entry"]["previousUntilMs"]), (1_000_000, 1_005_000))
        self.assertEqual(self.ask("revoke", name="ann")["payload"]["entry"]["revokedAtMs"], 1_000_000)
        self.assertEqual([self.http(one).status for one in (secret, rotated["token"])], [401, 401])

    def test_bad_parameters(self) -> None:
        """Each is named."""
        for params, words in (
            ({}, "name"),
            ({"name": "A"}, "small letters"),
            ({"name": "a", "rpm": 0}, "rpm"),
            ({"name": "a", "tokensPerDay": -1}, "tokensPerDay"),
            ({"name": "a", "agents": []}, "agents"),
            ({"name": "a", "agents": ["gone"]}, "agents"),
            ({"name": "a", "scopes": ["fly"]}, "scopes"),
            ({"name": "a", "expiresAtMs": 5}, "past"),
            ({"name": "a", "secret": "x"}, "secret"),
        ):
            self.assertIn(words, self.ask("create", **params)["error"]["message"], params)
        self.assertIn("no token", self.ask("revoke", name="gone")["error"]["message"])

    def test_who_may(self) -> None:
        """Administrators only."""
        session, link = self.world.connect(READ, WRITE)
        for method in ("create", "list", "revoke", "rotate"):
            self.assertIn("missing scope: operator.admin", ask(session, link, f"tokens.{method}", {"name": "x"})["error"]["message"])
