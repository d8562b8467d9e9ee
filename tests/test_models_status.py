"""How failover is told: the event of a run, the method `models.status`, and `mayros models status`."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mayros.errors import RateLimited, UpstreamError
from tests.test_cli_gateway import GatewayCase
from tests.test_ws import READ, WRITE, World, agent_params, ask, tell

FALLBACK = {"agents": {"defaults": {"model": {"primary": "fake/one", "fallbacks": ["fake/two"]}}}}


class Events(SynchronousTestCase):
    """What watchers are told."""

    def test_a_fallback(self) -> None:
        """A lifecycle event in the run's own order: what failed, how, and what is asked instead."""
        world = World(self, FALLBACK)
        session, link = world.connect(READ, WRITE)
        tell(session, "agent", agent_params())
        world.clock.advance(0)
        world.provider.fail(RateLimited("slow down"))
        world.provider.say("from two")
        world.provider.stop()
        world.clock.advance(0)
        told = [frame["payload"] for frame in link.events("agent")]
        self.assertEqual([(one["stream"], one["data"].get("phase")) for one in told], [
            ("lifecycle", "start"), ("lifecycle", "fallback"), ("assistant", None), ("lifecycle", "end"),
        ])  # fmt: skip
        self.assertEqual(told[1]["data"], {"phase": "fallback", "from": "fake/one", "to": "fake/two", "reason": "rate_limit", "error": "slow down"})
        self.assertEqual([one["seq"] for one in told], [1, 2, 3, 4])


class Method(SynchronousTestCase):
    """`models.status`."""

    def setUp(self) -> None:
        self.world = World(self, FALLBACK)
        self.session, self.link = self.world.connect(READ, WRITE)

    def status(self) -> Any:
        """What it says of the provider `fake`."""
        payload = ask(self.session, self.link, "models.status", {})["payload"]
        self.assertEqual(payload["ts"], 1_000_000)
        return next(one for one in payload["providers"] if one["id"] == "fake")

    def test_all_is_well(self) -> None:
        """Nothing rests."""
        self.assertEqual(
            self.status(),
            {
                "id": "fake",
                "api": "openai-completions",
                "breaker": {"state": "closed", "failures": 0},
                "keys": [{"id": "", "state": "ready", "rests": []}],
            },
        )

    def test_after_failures(self) -> None:
        """Who rests until when, and why."""
        tell(self.session, "agent", agent_params())
        self.world.clock.advance(0)
        self.world.provider.fail(RateLimited("slow down", retry_after=90))
        self.world.provider.fail(UpstreamError("down"))
        self.world.clock.advance(0)
        self.link.take()
        status = self.status()
        rest = {"model": "one", "kind": "rate_limit", "failures": 1, "since": 1_000_000, "until": 1_090_000, "error": "slow down"}
        self.assertEqual(status["keys"], [{"id": "", "state": "cooling", "rests": [rest]}])
        self.assertEqual(status["breaker"], {"state": "closed", "failures": 1, "lastKind": "server"})

    def test_who_may_ask(self) -> None:
        """Readers."""
        self.assertIn("missing scope", ask(*self.world.connect(), "models.status", {})["error"]["message"])
        self.assertIn("unexpected property", ask(self.session, self.link, "models.status", {"x": 1})["error"]["message"])


class Command(GatewayCase):
    """`mayros models status`."""

    answer = {
        "ts": 1_000_000,
        "providers": [
            {
                "id": "acme",
                "api": "openai-completions",
                "breaker": {"state": "open", "failures": 5, "lastKind": "connect", "openUntil": 1_014_200},
                "keys": [
                    {"id": "profile:work", "state": "cooling", "rests": [
                        {"kind": "billing", "failures": 1, "since": 0, "until": 19_000_000, "error": "pay\x1b[2J first"},
                        {"model": "large", "kind": "rate_limit", "failures": 3, "since": 0, "until": 900_000, "error": "slow down"},
                    ]},
                    {"id": "env:ACME_API_KEY", "state": "ready", "rests": []},
                ],
            },
            {"id": "local", "api": "local", "breaker": {"state": "closed", "failures": 0}, "keys": [{"id": "", "state": "ready", "rests": []}]},
        ],
    }  # fmt: skip

    def test_table(self) -> None:
        """A line for each provider that is not asked, and for each key."""
        self.gateway.final = self.answer
        lines = self.good("models", "status").stdout.splitlines()
        self.assertEqual(self.asked(), ("models.status", None))
        self.assertEqual(
            [line.split("  ") for line in ("  ".join(filter(None, map(str.strip, line.split("  ")))) for line in lines[1:])],
            [
                ["acme", "open", "connect", "15s"],
                ["acme", "profile:work", "cooling", "billing", "5h 00m", "pay[2J first"],
                ["acme", "profile:work", "ready for large", "rate_limit", "slow down"],
                ["acme", "env:ACME_API_KEY", "ready"],
                ["local", "(no key)", "ready"],
            ],
        )

    def test_json(self) -> None:
        """As it came."""
        self.gateway.final = self.answer
        self.assertEqual(json.loads(self.good("models", "status", "--json").stdout), self.answer)
