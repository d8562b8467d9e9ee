"""`mayros tokens`: through a gateway that is a coroutine, and in a store without one."""

from __future__ import annotations

import json
import time
from hashlib import sha256
from typing import Any

from click.testing import Result

from mayros.core.token_ports import ApiToken
from mayros.net.statedir import StateDir
from mayros.storage.api_tokens import load
from mayros.storage.engine import default_url
from mayros.storage.migrate import open_engine
from tests.test_cli_gateway import GatewayCase

SECRET = "mgt_" + "a" * 43
ENTRY = {"name": "ann", "state": "live", "scopes": ["operator.read"], "createdAtMs": 1, "expiresAtMs": 1_798_761_600_000, "rpm": 5}


class RemoteTests(GatewayCase):
    """While a gateway runs, it is asked."""

    def setUp(self) -> None:
        super().setUp()
        self.gateway.final = {"token": SECRET, "entry": ENTRY}
        state = StateDir.open(str(self.state))
        state.lock()
        self.addCleanup(state.unlock)

    def test_create(self) -> None:
        """The secret alone on standard output, for a pipe; what it is on the other."""
        result = self.good("tokens", "create", "ann")
        self.assertEqual((result.stdout, self.asked()), (f"{SECRET}\n", ("tokens.create", {"name": "ann"})))
        self.assertIn("shown only now", result.stderr)

    def test_what_it_is_narrowed_to(self) -> None:
        """Lists with commas; scopes by their short names; a time, or the end of a day."""
        now = time.time_ns() // 1_000_000
        self.good(
            "tokens", "create", "ann", "--agents", "main, beta", "--endpoints", "chat,ws", "--scopes", "read,operator.write", "--rpm", "5",
            "--tokens-per-day", "1000", "--expires", "30d",
        )  # fmt: skip
        _, asked = self.asked()
        self.assertLess(abs(asked.pop("expiresAtMs") - now - 30 * 86_400_000), 60_000)
        limits = {"rpm": 5, "tokensPerDay": 1000, "scopes": ["operator.read", "operator.write"]}
        self.assertEqual(asked, {"name": "ann", "agents": ["main", "beta"], "endpoints": ["chat", "ws"], **limits})
        self.good("tokens", "create", "ann", "--expires", "2996-12-31")
        self.assertEqual(self.asked()[1]["expiresAtMs"], 32_409_072_000_000)

    def test_what_makes_no_sense(self) -> None:
        """Wrong usage, before anybody is asked."""
        for option, value in (("--expires", "tomorrow"), ("--expires", "2020-01-01"), ("--expires", "0d"), ("--rpm", "0"), ("--agents", " , ")):
            self.assertRefused(self.mayros("tokens", "create", "ann", option, value), 2, option)
        self.assertRefused(self.mayros("tokens", "rotate", "ann", "--grace", "soon"), 2, "--grace")
        self.assertEqual(self.gateway.calls, [])

    def test_list(self) -> None:
        """One line for each, and nothing that makes a token."""
        self.gateway.final = {"ts": 5, "tokens": [ENTRY, {"name": "b\x1b[31mob", "state": "revoked", "agents": ["main"]}]}
        lines = self.good("tokens", "list").stdout.splitlines()
        self.assertEqual(lines[0].split(), ["name", "state", "scopes", "agents", "endpoints", "a", "minute", "a", "day", "until", "made", "used"])
        self.assertEqual(lines[1].split()[:7], ["ann", "live", "read", "all", "all", "5", "-"])
        self.assertIn("2027-01-01 00:00", lines[1])
        self.assertTrue(lines[2].startswith("b[31mob"), lines[2])
        self.gateway.final = {"ts": 5, "tokens": []}
        self.assertEqual(self.good("tokens", "list").stdout, "There are no tokens.\n")

    def test_revoke_and_rotate(self) -> None:
        """By name; the old one stays good where that is said."""
        self.assertIn("ann is revoked", self.good("tokens", "revoke", "ann").stdout)
        self.assertEqual(self.asked(), ("tokens.revoke", {"name": "ann"}))
        self.assertEqual(self.good("tokens", "rotate", "ann", "--grace", "1h").stdout, f"{SECRET}\n")
        self.assertEqual(self.asked(), ("tokens.rotate", {"name": "ann", "graceMs": 3_600_000}))
        self.assertEqual(json.loads(self.good("tokens", "rotate", "ann", "--json").stdout)["token"], SECRET)

    def test_no_token(self) -> None:
        """An answer of another shape is a failure."""
        self.gateway.final = []
        self.assertRefused(self.mayros("tokens", "create", "ann"), 1, "no token")


class StoreTests(GatewayCase):
    """Without a gateway: in the store itself."""

    def kept(self) -> dict[str, ApiToken]:
        engine = open_engine(default_url(str(self.state)))
        try:
            return {token.name: token for token in load(engine)}
        finally:
            engine.dispose()

    def create(self, *args: str) -> str:
        return self.good("tokens", "create", *args).stdout.strip()

    def refused(self, *args: str) -> Result:
        return self.mayros("tokens", *args)

    def test_life(self) -> None:
        """Made, listed, replaced, taken back. The store knows no secret."""
        first = self.create("ann", "--rpm", "7", "--agents", "main")
        self.assertRegex(first, r"^mgt_[A-Za-z0-9_-]{43}$")
        token = self.kept()["ann"]
        self.assertEqual((token.token_hash, token.rpm, token.agents), (sha256(first.encode()).digest(), 7, ("main",)))
        self.assertNotIn(first.encode(), b"".join(path.read_bytes() for path in self.state.glob("mayros.db*")))
        second = self.create("bob")
        found: Any = json.loads(self.good("tokens", "list", "--json").stdout)
        self.assertEqual([(one["name"], one["state"]) for one in found["tokens"]], [("ann", "live"), ("bob", "live")])
        self.assertNotIn(second, json.dumps(found))
        third = self.good("tokens", "rotate", "ann", "--grace", "10m").stdout.strip()
        token = self.kept()["ann"]
        self.assertEqual((token.token_hash, token.previous_hash), tuple(sha256(one.encode()).digest() for one in (third, first)))
        self.good("tokens", "revoke", "ann")
        self.assertEqual(json.loads(self.good("tokens", "list", "--json").stdout)["tokens"][0]["state"], "revoked")
        self.assertEqual(self.gateway.calls, [])

    def test_what_is_refused(self) -> None:
        """With what to do instead."""
        self.create("ann")
        for words, args in {
            "choose another name": ("create", "ann"),
            "small letters": ("create", "Ann"),
            "'operator.fly' is none of": ("create", "x", "--scopes", "fly"),
            "'nothing' is none of chat": ("create", "x", "--endpoints", "nothing"),
            "agents: name some of main": ("create", "x", "--agents", "nobody"),
            "there is no token": ("revoke", "x"),
            "cannot be narrowed to agents": ("create", "x", "--scopes", "admin", "--agents", "main"),
            "goes with operator.admin only": ("create", "x", "--scopes", "read,pairing"),
        }.items():
            self.assertRefused(self.refused(*args), 1, words)
        self.good("tokens", "revoke", "ann")
        self.assertRefused(self.refused("create", "ann"), 1, "It is revoked")
        self.assertRefused(self.refused("rotate", "ann"), 1, "is revoked")

    def test_another_gateway(self) -> None:
        """An option that names one means that one, whatever runs here."""
        self.gateway.final = {"ts": 1, "tokens": []}
        self.good("tokens", "list", "--url", "ws://far.example", MAYROS_GATEWAY_TOKEN="x")
        self.assertEqual(self.gateway.methods(), [("tokens.list", {})])
