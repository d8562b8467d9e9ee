"""What another configuration does to the doors while clients are connected."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mayros.config.secret import AuthSecret
from mayros.core.api_tokens import Wanted
from mayros.core.ports import Principal
from mayros.core.routing import Settings
from mayros.doors import Doors
from mayros.errors import ConfigError
from mayros.ws.let_in import END_SECONDS
from tests.helpers import TOKEN, head, settings
from tests.test_ws import ADMIN, REMOTE, World, connect_params, tell


def configured(changes: dict[str, Any] | None = None, token: str = TOKEN, mode: Any = "token") -> Settings:
    """BASE with changes, and the secret that belongs to it."""
    secret = AuthSecret(mode, token if mode == "token" else None, "the test")
    return msgspec.structs.replace(settings(changes), secret=secret)


class DoorsTests(SynchronousTestCase):
    """The configuration in force is handed on to both doors."""

    def open(self, changes: dict[str, Any] | None = None, mode: Any = "token") -> None:
        """A gateway that serves by these settings."""
        self.world = World(self, changes)
        harness = self.harness = self.world.harness
        self.doors = Doors(configured(changes, mode=mode), harness.api_tokens, harness.quotas, lambda settings: 500)
        self.doors.opened(["127.0.0.1"], harness.site, self.world.gateway)

    def models(self, token: str = TOKEN, *lines: str) -> int:
        """The status of a small request."""
        client = self.harness.dial(head("GET", "/v1/models", *lines, token=token) + b"\r\n")
        status = client.answer().status
        client.leave()
        return status

    def test_another_secret(self) -> None:
        """The old one is refused at once at both doors; connections that came by it end, those of devices and tokens do not."""
        self.open()
        by_secret = self.world.connect(ADMIN)
        made = self.harness.api_tokens.create(Wanted("reader", ("operator.read",)), ["main"])
        secret, _ = self.successResultOf(Deferred.fromCoroutine(made))
        by_token = self.world.connect("operator.read", auth={"token": secret})
        self.doors.use(configured(token="another-secret-0123"))
        self.assertEqual((401, 200), (self.models(), self.models("another-secret-0123")))
        self.assertIsNone(by_secret[1].closed)
        self.world.clock.advance(END_SECONDS)
        self.assertEqual((1008, "gateway secret changed"), by_secret[1].closed)
        self.assertIsNone(by_token[1].closed)
        session, link = self.world.dial()
        tell(session, "connect", connect_params(ADMIN))
        self.assertEqual(1008, link.closed and link.closed[0])

    def test_the_same_secret(self) -> None:
        """Nobody has to go."""
        self.open()
        _, link = self.world.connect(ADMIN)
        self.doors.use(configured({"gateway": {"http": {"cors": {"allowedOrigins": ["https://a.example"]}}}}))
        self.world.clock.advance(END_SECONDS)
        self.assertIsNone(link.closed)

    def test_another_proxy(self) -> None:
        """Whom a proxy named has to be named by the rules of now."""
        auth = {"mode": "trusted-proxy", "trustedProxy": {"userHeader": "x-user"}}
        self.open({"gateway": {"trustedProxies": ["10.0.0.1"], "auth": auth}}, "trusted-proxy")
        session, link = self.world.dial(REMOTE, user=Principal("user:ann", frozenset(("operator.read",))))
        tell(session, "connect", connect_params("operator.read"))
        self.assertIsNone(link.closed)
        rules = {"mode": "trusted-proxy", "trustedProxy": {"userHeader": "x-user", "allowUsers": ["bob"]}}
        self.doors.use(configured({"gateway": {"trustedProxies": ["10.0.0.1"], "auth": rules}}, mode="trusted-proxy"))
        self.world.clock.advance(END_SECONDS)
        self.assertEqual((1008, "proxy rules changed"), link.closed)

    def test_switches_origins_and_limits(self) -> None:
        """Each holds from the next request on."""
        self.open()
        asking = head("GET", "/v1/models", "Origin: https://a.example") + b"\r\n"
        client = self.harness.dial(asking)
        self.assertNotIn("access-control-allow-origin", client.answer().headers)
        changes = {
            "gateway": {
                "http": {
                    "endpoints": {"chatCompletions": {"enabled": False}},
                    "cors": {"allowedOrigins": ["https://a.example"]},
                    "maxBodyBytes": 100,
                },
                "limits": {"maxConnections": 7, "maxConnectionsPerAddress": 3, "bodyBudget": 1000, "sendBudget": 2000, "bodyTimeoutMs": 5000},
            }
        }
        self.doors.use(configured(changes))
        client.send(asking)
        answer = client.answer()
        self.assertEqual((404, "https://a.example"), (answer.status, answer.headers["access-control-allow-origin"]))
        client.leave()
        site, gateway = self.harness.site, self.world.gateway
        self.assertEqual((7, 3, 1000, 5.0), (site.connections.total, site.connections.per_key, site.bodies.total, site.body_seconds))
        self.assertEqual((2000, 2000), (gateway.budget.total, gateway.budget.each))
        self.doors.use(configured())
        self.assertEqual((500, 256), (site.connections.total, site.connections.per_key))

    def test_a_lockout_goes_on(self) -> None:
        """Another limit of failures is no way out of it, and no way in."""
        limited = {"gateway": {"auth": {"rateLimit": {"maxAttempts": 2, "exemptLoopback": False}}}}
        self.open(limited)
        self.assertEqual([401, 401, 429], [self.models("wrong") for _ in range(3)])
        self.doors.use(configured({"gateway": {"auth": {"rateLimit": {"maxAttempts": 9, "exemptLoopback": False}}}}))
        self.assertEqual(429, self.models())
        self.doors.use(configured())
        self.assertEqual(200, self.models())

    def test_what_cannot_be(self) -> None:
        """Is refused before anything has changed."""
        self.open()
        bad = configured({"gateway": {"auth": {"mode": "trusted-proxy"}}}, mode="trusted-proxy")
        self.assertRaises(ConfigError, self.doors.check, bad)
        self.assertEqual(200, self.models())
