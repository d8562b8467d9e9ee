"""The gate by itself: a request's head, an address and the time go in; an admission or an error comes out."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from mayros.core.address import AddressRules
from mayros.core.auth import Authenticator
from mayros.core.limits import FailureLimiter
from mayros.errors import (
    EndpointDisabled,
    Forbidden,
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    RequestTooLarge,
    TooManyAuthFailures,
    Unauthorized,
    UnknownUrl,
    UnsupportedMediaType,
)
from mayros.web.app import ROUTES
from mayros.web.gate import Admit, Gate, Head, UnsupportedVersion
from tests.helpers import TOKEN, settings

CHAT = b"/v1/chat/completions"


class GateTests(SynchronousTestCase):
    """Gate.check, in the order in which it judges."""

    def setUp(self) -> None:
        self.build()

    def build(self, changes: dict[str, Any] | None = None, limiter: FailureLimiter | None = None) -> None:
        """A gate by this configuration."""
        read = settings(changes)
        gateway = read.config.gateway
        self.rules = AddressRules.build(gateway, ["127.0.0.1"])
        mode = gateway.auth.mode or "token"
        self.gate = Gate(read, self.rules, Authenticator(mode, gateway.auth.token, gateway.auth, self.rules, limiter), ROUTES)

    def check(
        self,
        method: bytes = b"POST",
        path: bytes = CHAT,
        version: bytes = b"HTTP/1.1",
        length: int | None = 10,
        peer: str = "127.0.0.1",
        now: float = 0.0,
        **headers: str | list[str] | None,
    ) -> Admit:
        """Judge a POST of ten bytes of JSON with the right token, changed; header names with `_` for `-`, None leaves one out."""
        given: dict[str, Any] = {"host": "127.0.0.1", "authorization": f"Bearer {TOKEN}", "content_type": "application/json", **headers}
        raw = Headers({name.replace("_", "-"): value if isinstance(value, list) else [value] for name, value in given.items() if value is not None})
        return self.gate.check(Head(method, path, version, raw.getRawHeaders, length), self.rules.of(peer, raw.getRawHeaders), now)

    def refused(self, kind: type[GatewayError], **how: Any) -> GatewayError:
        """It must raise this."""
        return self.assertRaises(kind, self.check, **how)

    def test_admitted(self) -> None:
        """The owner, and how large the body may be; a chunked one too."""
        for length in (0, 10, None):
            admit = self.check(length=length)
            self.assertEqual((admit.principal.id, admit.max_body, admit.upgrade), ("owner", 32 << 20, False))

    def test_versions(self) -> None:
        """HTTP/1.1, and 1.0 without transfer encodings."""
        self.check(version=b"HTTP/1.0", host=None)
        self.refused(UnsupportedVersion, version=b"HTTP/2.0")
        self.refused(InvalidRequest, version=b"HTTP/1.0", length=None, transfer_encoding="chunked")

    def test_hosts(self) -> None:
        """Exactly one that is well formed; judged before anything else."""
        for host in (None, ["a", "b"], "a b", "", "a..b", "[::1"):
            self.refused(InvalidRequest, host=host, path=b"/nowhere", authorization=None)
        for host in ("localhost", "example.com:80", "[::1]:18789", "EXAMPLE.com."):
            self.check(host=host)

    def test_methods(self) -> None:
        """One that nobody knows is refused everywhere, one that the route does not take there."""
        self.assertIn("GET", self.refused(MethodNotAllowed, method=b"BREW", path=b"/nowhere").allow)
        self.assertEqual(self.refused(MethodNotAllowed, method=b"GET", length=0).allow, "POST, OPTIONS")
        self.assertEqual(self.refused(MethodNotAllowed, path=b"/healthz").allow, "GET, HEAD, OPTIONS")

    def test_routes(self) -> None:
        """An unknown address is told before anybody asks for a credential; one final slash is forgiven."""
        error = self.refused(UnknownUrl, path=b"/v1/" + b"x" * 5_000 + b"\xff", authorization=None)
        self.assertLess(len(error.message), 200)
        self.assertEqual(self.check(path=CHAT + b"/"), self.check())
        self.refused(UnknownUrl, path=CHAT + b"//")
        self.refused(UnknownUrl, path=b"*", method=b"OPTIONS", length=0)

    def test_switched_off(self) -> None:
        """404 that names the switch, with or without a credential."""
        self.build({"gateway": {"http": {"endpoints": {"chatCompletions": {"enabled": False}}}}})
        for authorization in (f"Bearer {TOKEN}", None):
            self.assertIn("chatCompletions.enabled", self.refused(EndpointDisabled, authorization=authorization).message)

    def test_open_routes(self) -> None:
        """Health and the front page need no credential; they take no body."""
        for path in (b"/", b"/healthz", b"/readyz", b"/healthz/"):
            for method in (b"GET", b"HEAD"):
                self.assertEqual(self.check(method=method, path=path, length=0, authorization=None), Admit(None, 0))
                self.refused(InvalidRequest, method=method, path=path, length=5)
                self.refused(InvalidRequest, method=method, path=path, length=None)

    def test_options(self) -> None:
        """Open, and without a body, so that nobody gets a share of the body budget for nothing."""
        self.assertEqual(self.check(method=b"OPTIONS", length=0, authorization=None), Admit(None, 0))
        self.refused(InvalidRequest, method=b"OPTIONS", length=1 << 30, authorization=None)
        self.refused(InvalidRequest, method=b"OPTIONS", length=None, authorization=None)

    def test_credentials_come_before_the_body_is_judged(self) -> None:
        """Who has none learns nothing of limits and types."""
        for more in ({"length": 1 << 40}, {"content_type": "text/plain"}):
            self.refused(Unauthorized, authorization=None, **more)
            self.refused(Unauthorized, authorization="Bearer wrong", **more)
        self.refused(Unauthorized, authorization=[f"Bearer {TOKEN}", f"Bearer {TOKEN}"])

    def test_lockout(self) -> None:
        """Wrong ones count, until the lockout's own error says when to come back; time is what the caller says."""
        self.build({"gateway": {"auth": {"rateLimit": {"maxAttempts": 2}}}}, FailureLimiter(2, 60, 300))
        for now in (0.0, 1.0):
            self.refused(Unauthorized, peer="192.0.2.1", authorization="Bearer wrong", now=now)
        self.assertEqual(self.refused(TooManyAuthFailures, peer="192.0.2.1", now=1.5).retry_after, 300)
        self.check(peer="192.0.2.2", now=1.5)
        self.check(peer="192.0.2.1", now=301.0)

    def test_mode_none(self) -> None:
        """Host and Origin stand in for the credential."""
        self.build({"gateway": {"auth": {"mode": "none"}}})
        self.assertEqual(self.check(authorization=None).principal.id, "owner")
        for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"sec_fetch_site": "cross-site"}):
            self.refused(Forbidden, authorization=None, **headers)
        self.assertEqual(self.check(method=b"GET", path=b"/healthz", length=0, host="evil.example"), Admit(None, 0))

    def test_content_types(self) -> None:
        """JSON in UTF-8, said once."""
        for kind in ("application/json", "application/json; charset=utf-8", 'APPLICATION/JSON ; Charset="utf-8"', "application/json;"):
            self.check(content_type=kind)
        bad = (
            None,
            "",
            "text/plain",
            "application/jsonx",
            "application/json; charset=latin-1",
            "application/json, text/plain",
            ["application/json"] * 2,
        )
        for kind in bad:
            self.refused(UnsupportedMediaType, content_type=kind)

    def test_content_encodings(self) -> None:
        """None, or identity."""
        for coding in ("identity", "", "IDENTITY "):
            self.check(content_encoding=coding)
        for coding in ("gzip", "br", ["identity", "gzip"]):
            self.refused(UnsupportedMediaType, content_encoding=coding)

    def test_sizes(self) -> None:
        """Up to the limit, by Content-Length; beyond it the message has the figures, unless one is absurd."""
        self.build({"gateway": {"http": {"maxBodyBytes": 100}}})
        self.assertEqual(self.check(length=100).max_body, 100)
        self.assertIn("101", self.refused(RequestTooLarge, length=101).message)
        self.assertLess(len(self.refused(RequestTooLarge, length=10**4_000).message), 200)

    def test_upgrades(self) -> None:
        """A WebSocket upgrade is a GET of HTTP/1.1 without a body, on any address; its own door judges who asks."""
        admit = self.check(method=b"GET", path=b"/anything", length=0, authorization=None, upgrade="WebSocket")
        self.assertEqual(admit, Admit(None, 0, upgrade=True))
        for how in (
            {"method": b"POST", "length": 0},
            {"version": b"HTTP/1.0", "length": 0},
            {"length": 5},
            {"length": None},
            {"host": None, "length": 0},
        ):
            self.refused(InvalidRequest, **{"method": b"GET", "upgrade": "websocket", **how})
        self.assertFalse(self.check(upgrade="h2c").upgrade)
