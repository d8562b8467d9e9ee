"""Tokens of persons and programs: which there are, whose a secret is, what each reaches, and how often it may ask. Pure."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.api_tokens import ApiTokens, Wanted, principal_of, shown
from mayros.core.auth import secret_digest
from mayros.core.keys import SessionKey
from mayros.core.ports import Principal
from mayros.core.quota import Quota, Quotas, TooManyRequests, quota_headers, span
from mayros.core.reach import check_agent, default_agent, own_key, sees, space_of
from mayros.core.spending import DAY_MS, Spending
from mayros.core.token_ports import ApiToken
from mayros.errors import Forbidden, InvalidRequest, StorageUnavailable
from tests.helpers import FakeTokenStore

AGENTS = ("main", "beta")
OWNER = Principal("owner", frozenset(("operator.admin",)))


def narrowed(name: str = "ann", **changes: Any) -> Principal:
    """A token without operator.admin."""
    return msgspec.structs.replace(Principal(f"token:{name}", frozenset(("operator.write",)), space=f"token:{name}"), **changes)


class RegisterTests(SynchronousTestCase):
    """The register."""

    def setUp(self) -> None:
        self.now = 1_764_000_000_000
        self.store, self.ends = FakeTokenStore(), []
        self.tokens = self.register()

    def register(self) -> ApiTokens:
        """One that has read the store."""
        tokens = ApiTokens(self.store, lambda: self.now)
        tokens.restore(self.store.kept.values())
        tokens.audience = self
        return tokens

    def ended(self, principal_id: str, digest: bytes | None, until_ms: int | None) -> None:
        self.ends.append((principal_id, digest, until_ms))

    def create(self, name: str = "ann", **wanted: Any) -> tuple[str, ApiToken]:
        return self.successResultOf(Deferred.fromCoroutine(self.tokens.create(Wanted(name, **wanted), AGENTS)))

    def rotate(self, name: str = "ann", **how: Any) -> str:
        return self.successResultOf(Deferred.fromCoroutine(self.tokens.rotate(name, **how)))[0]

    def refused(self, work: Any) -> str:
        return str(self.failureResultOf(Deferred.fromCoroutine(work), InvalidRequest).value)

    def whose(self, secret: str, tokens: ApiTokens | None = None) -> str | None:
        """The principal id, the problem, or None."""
        tokens = tokens or self.tokens
        held = tokens.find(secret_digest(secret))
        return None if held is None else tokens.problem(held) or held.principal.id

    def test_a_secret(self) -> None:
        """`mgt_` and 32 random bytes; what is kept is its hash."""
        secret, token = self.create()
        self.assertRegex(secret, r"^mgt_[A-Za-z0-9_-]{43}$")
        self.assertNotEqual(secret, self.create("bob")[0])
        self.assertEqual(token.token_hash, sha256(secret.encode()).digest())
        self.assertEqual(self.store.kept["ann"], token)
        self.assertNotIn(secret, repr(self.store.kept))

    def test_whose_it_is(self) -> None:
        """Also after a restart; anything else is nobody's."""
        secret, _ = self.create()
        self.assertEqual(self.whose(secret), "token:ann")
        self.assertEqual(self.whose(secret, self.register()), "token:ann")
        for other in ("", "mgt_", secret[:-1], secret + "x", secret.upper()):
            self.assertIsNone(self.whose(other))

    def test_who_that_is(self) -> None:
        """What the doors ask: scopes, agents, endpoints, limits, and a space of its own unless it is an administrator."""
        _, plain = self.create()
        self.assertEqual(principal_of(plain), Principal("token:ann", frozenset(("operator.read", "operator.write")), space="token:ann"))
        _, chosen = self.create("bob", agents=("beta",), endpoints=("chat", "ws"), scopes=("operator.read",), rpm=5, tokens_per_day=9)
        self.assertEqual(
            principal_of(chosen),
            Principal("token:bob", frozenset(("operator.read",)), frozenset(("beta",)), frozenset(("chat", "ws")), "token:bob", 5, 9),
        )
        _, admin = self.create("root", scopes=("operator.admin",))
        self.assertIsNone(principal_of(admin).space)

    def test_what_is_refused(self) -> None:
        """Each with the parameter that is wrong."""
        self.create()
        for wanted, words in {
            Wanted("ann"): "already",
            Wanted("Ann"): "small letters",
            Wanted("a:b"): "small letters",
            Wanted("-a"): "small letters",
            Wanted("a" * 65): "small letters",
            Wanted(""): "small letters",
            Wanted("x", scopes=("read",)): "scopes",
            Wanted("x", scopes=()): "scopes",
            Wanted("x", agents=("gone",)): "agents",
            Wanted("x", agents=()): "agents",
            Wanted("x", endpoints=("all",)): "endpoints",
            Wanted("x", expires_ms=1): "past",
            Wanted("x", scopes=("operator.read", "operator.pairing")): "operator.pairing",
            Wanted("x", scopes=("operator.admin",), agents=("main",)): "agents",
        }.items():
            self.assertIn(words, self.refused(self.tokens.create(wanted, AGENTS)), wanted)
        self.assertEqual(list(self.store.kept), ["ann"])

    def test_expiry(self) -> None:
        """At its end it is over, and says so to who has it."""
        secret, _ = self.create(expires_ms=self.now + 10)
        self.now += 9
        self.assertEqual(self.whose(secret), "token:ann")
        self.now += 1
        self.assertIn("expired", str(self.whose(secret)))
        self.assertEqual(shown(self.tokens.list()[0], self.now)["state"], "expired")
        self.assertIn("has expired", self.refused(self.tokens.rotate("ann")))
        again = self.rotate(expires_ms=self.now + 5)
        self.assertEqual(self.whose(again), "token:ann")

    def test_revoke(self) -> None:
        """Refused at once and after a restart; whoever uses it hears; its name is not given to another."""
        secret, _ = self.create()
        self.successResultOf(Deferred.fromCoroutine(self.tokens.revoke("ann")))
        for tokens in (self.tokens, self.register()):
            self.assertIn("revoked", str(self.whose(secret, tokens)))
        self.assertEqual(self.ends, [("token:ann", None, None)])
        self.assertIn("revoked", self.refused(self.tokens.rotate("ann")))
        self.assertIn("keep the name", self.refused(self.tokens.create(Wanted("ann"), AGENTS)))
        self.assertIn("no token", self.refused(self.tokens.revoke("bob")))

    def test_rotate(self) -> None:
        """The old secret is over at once; what the token may do stays."""
        first, before = self.create(rpm=5)
        second = self.rotate()
        self.assertEqual((self.whose(first), self.whose(second)), (None, "token:ann"))
        after = self.tokens.list()[0]
        self.assertEqual((after.rpm, after.rotated_ms, after.created_ms), (5, self.now, before.created_ms))
        self.assertEqual(self.ends, [("token:ann", before.token_hash, None)])

    def test_rotate_with_grace(self) -> None:
        """Both are good for a while, also over a restart; with another rotation the oldest is over."""
        first, before = self.create(expires_ms=self.now + 10_000)
        second = self.rotate(grace_ms=1_000)
        self.assertEqual(self.ends, [("token:ann", before.token_hash, self.now + 1_000)])
        for tokens in (self.tokens, self.register()):
            self.assertEqual([self.whose(secret, tokens) for secret in (first, second)], ["token:ann"] * 2)
        self.now += 1_000
        self.assertIn("replaced", str(self.whose(first)))
        self.assertEqual(self.whose(second), "token:ann")
        third = self.rotate(grace_ms=60_000)
        self.assertIsNone(self.whose(first))
        self.assertEqual(self.whose(second), "token:ann")
        self.now += 9_000
        self.assertIn("over", str(self.whose(second)))
        self.assertIn("expired", str(self.whose(third)))

    def test_a_store_that_cannot_be_written(self) -> None:
        """A token that is not on disk is none; one that was to go is gone for this process at least."""
        self.store.broken = True
        self.failureResultOf(Deferred.fromCoroutine(self.tokens.create(Wanted("bob"), AGENTS)), StorageUnavailable)
        self.assertEqual(self.tokens.list(), [])
        self.store.broken = False
        secret, _ = self.create()
        self.store.broken = True
        self.failureResultOf(Deferred.fromCoroutine(self.tokens.revoke("ann")), StorageUnavailable)
        self.assertIn("revoked", str(self.whose(secret)))
        self.assertEqual(self.ends, [("token:ann", None, None)])
        self.assertIsNone(self.store.kept["ann"].revoked_ms)
        self.store.broken = False
        self.now += 5
        again = self.successResultOf(Deferred.fromCoroutine(self.tokens.revoke("ann")))
        self.assertEqual((again, again.revoked_ms), (self.store.kept["ann"], self.now - 5))

    def test_use(self) -> None:
        """When it was used last, on disk once a minute; a revoked one is not brought back by that."""
        secret, _ = self.create()
        held = self.tokens.find(secret_digest(secret))
        assert held is not None
        for later in (0, 59_999, 1, 5):
            self.now += later
            self.tokens.used(held)
        self.assertEqual(self.store.kept["ann"].last_used_ms, 1_764_000_060_000)
        self.successResultOf(Deferred.fromCoroutine(self.tokens.revoke("ann")))
        self.now += 60_000
        self.tokens.used(held)
        self.assertIsNotNone(self.store.kept["ann"].revoked_ms)


class ReachTests(SynchronousTestCase):
    """Which sessions and agents a caller can name."""

    def test_its_own_space(self) -> None:
        """Whatever a token names is in its space; whole keys that the gateway told are taken as they are."""
        ann = narrowed()
        for rest, own in {
            "main": "token:ann:main",
            "openai-user:x": "token:ann:openai-user:x",
            "token:bob:x": "token:ann:token:bob:x",
            "token:ann": "token:ann:token:ann",
            "token:annie:x": "token:ann:token:annie:x",
            "TOKEN:ann:x": "token:ann:TOKEN:ann:x",
            "token:ann:x": "token:ann:x",
        }.items():
            self.assertEqual(own_key(ann, SessionKey("main", rest), "key").rest, own)
        self.assertEqual(own_key(OWNER, SessionKey("main", "token:bob:x"), "key").rest, "token:bob:x")

    def test_what_cannot_be_named(self) -> None:
        """Names of the gateway's own spaces, keys that become too long, agents that are not for it."""
        ann = narrowed(agents=frozenset(("beta",)))
        for rest in ("cron:x", "subagent:y", "x" * 492):
            self.assertRaises(InvalidRequest, own_key, ann, SessionKey("beta", rest), "key")
        self.assertIn("beta", str(self.assertRaises(Forbidden, own_key, ann, SessionKey("main", "x"), "key")))
        self.assertRaises(Forbidden, check_agent, ann, "main")
        self.assertEqual([default_agent(who, "main", AGENTS) for who in (ann, OWNER, narrowed())], ["beta", "main", "main"])

    def test_the_space_of_a_key(self) -> None:
        """Found in its place only."""
        for key, space in {
            "agent:main:token:ann:x": "token:ann",
            "agent:main:token:ann:token:bob:x": "token:ann",
            "agent:main:main": None,
            "agent:main:token:ann": None,
            "agent:main:x:token:ann:y": None,
            "agent:main:agent:main:token:ann:y": None,
            "": None,
        }.items():
            self.assertEqual(space_of(key), space, key)

    @given(
        st.sampled_from(("ann", "an", "a.n", "bob")), st.sampled_from(("ann", "an", "a.n", "bob", None)),
        st.lists(st.sampled_from(("agent", "token", "ann", "bob", "a.n", "main", "x", ":", "")), min_size=1, max_size=7),
    )  # fmt: skip
    def test_nothing_leads_out(self, one: str, other: str | None, parts: list[str]) -> None:
        """However a key is written, it is in the caller's space, no other token sees it, and it is the same when it is sent again."""
        rest = ":".join(parts).strip()
        if not rest:
            return
        ann = narrowed(one)
        key = own_key(ann, SessionKey("main", rest), "key")
        self.assertTrue(sees(ann, str(key)))
        self.assertEqual(own_key(ann, key, "key"), key)
        if other is not None and other != one:
            self.assertFalse(sees(narrowed(other), str(key)))


class QuotaTests(SynchronousTestCase):
    """How often a caller may ask, and what it is told."""

    def setUp(self) -> None:
        self.now_ms = 20_000 * DAY_MS + 3_600_000
        self.spending = Spending()
        self.quotas = Quotas(self.spending, lambda: self.now_ms)

    def test_a_minute(self) -> None:
        """As many as are allowed at once, then one each time that one has come back; the answer says when that is."""
        ann = narrowed(rpm=3)
        self.assertEqual([self.quotas.take(ann, 100.0) for _ in range(3)], [Quota(3, left, 60.0 - 20 * left) for left in (2, 1, 0)])
        refused = self.assertRaises(TooManyRequests, self.quotas.take, ann, 100.5)
        self.assertEqual((refused.retry_after, refused.status, refused.code), (20, 429, "rate_limit_exceeded"))
        self.assertEqual((refused.quota.requests, refused.quota.requests_left), (3, 0))
        self.assertRaises(TooManyRequests, self.quotas.take, ann, 119.9)
        self.assertEqual(self.quotas.take(ann, 120.0), Quota(3, 0, 60.0))
        self.assertEqual(self.quotas.take(ann, 1_000.0), Quota(3, 2, 20.0))
        self.assertEqual(self.quotas.take(narrowed("bob", rpm=1), 100.0), Quota(1, 0, 60.0))

    def test_no_limit(self) -> None:
        """Nothing to tell, nothing to keep."""
        self.assertIsNone(self.quotas.take(OWNER, 1.0))
        self.assertIsNone(self.quotas.look(narrowed(), 1.0))

    def test_tokens_of_a_day(self) -> None:
        """Told of with what is left until midnight."""
        ann = narrowed(day_tokens=1_000)
        self.spending.load({}, self.now_ms, {})
        self.spending.add("main", 300, 0, self.now_ms, ann)
        self.spending.add("main", 9_999, 0, self.now_ms, narrowed("bob"))
        self.assertEqual(self.quotas.take(ann, 1.0), Quota(tokens=1_000, tokens_left=700, tokens_reset=23 * 3_600.0))
        self.spending.add("main", 900, 0, self.now_ms, ann)
        self.assertEqual(self.quotas.look(ann, 1.0), Quota(tokens=1_000, tokens_left=0, tokens_reset=23 * 3_600.0))
        self.now_ms += DAY_MS
        quota = self.quotas.look(ann, 1.0)
        assert quota is not None
        self.assertEqual(quota.tokens_left, 1_000)

    def test_headers(self) -> None:
        """OpenAI's names and its way to write times."""
        self.assertEqual([span(s) for s in (0, 0.12, 0.9999, 1, 59.2, 90, 47_222)], ["0ms", "120ms", "1000ms", "1s", "1m0s", "1m30s", "13h7m2s"])
        self.assertEqual(quota_headers(Quota()), [])
        self.assertEqual(
            quota_headers(Quota(5, 4, 12.0)),
            [("x-ratelimit-limit-requests", "5"), ("x-ratelimit-remaining-requests", "4"), ("x-ratelimit-reset-requests", "12s")],
        )
        self.assertEqual(
            [name for name, _ in quota_headers(Quota(5, 4, 12.0, 9, 9, 1.0))][3:],
            [f"x-ratelimit-{w}-tokens" for w in ("limit", "remaining", "reset")],
        )
