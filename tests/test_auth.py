"""A credential becomes a principal: the four modes, and the limiter's worked table through both doors."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers as TwistedHeaders

from mayros.config.gateway import Auth, AuthMode, Cors, Gateway, Http, RateLimit, TrustedProxy
from mayros.core.address import Address, AddressRules, Headers
from mayros.core.auth import OPERATOR_SCOPES, Authenticator, make_limiter
from mayros.core.limits import FailureLimiter, retry_after
from mayros.core.ports import Principal
from mayros.errors import ConfigError, Forbidden, GatewayError, TooManyAuthFailures, Unauthorized

SECRET = "corrèct-horse-0123456789"
HERE = ("Host", "127.0.0.1:18789")
REMOTE = "203.0.113.9"


def sent(*lines: tuple[str, str]) -> Headers:
    """The headers of a request, as Twisted hands them out."""
    headers = TwistedHeaders()
    for name, value in lines:
        headers.addRawHeader(name.encode(), value.encode())
    return headers.getRawHeaders


def bearer(secret: str) -> tuple[str, str]:
    """The header that carries a secret."""
    return ("Authorization", f"Bearer {secret}")


class Door:
    """A gateway's authenticator with short ways to ask it."""

    def __init__(self, mode: AuthMode = "token", secret: str | None = SECRET, gateway: Gateway | None = None, auth: Auth | None = None) -> None:
        self.rules = AddressRules.build(gateway or Gateway(), ["127.0.0.1", "::1"])
        auth = auth or Auth()
        self.auth = Authenticator(mode, secret, auth, self.rules, make_limiter(auth.rate_limit))

    def address(self, peer: str | None, *lines: tuple[str, str]) -> Address:
        """Who the sender of a request is."""
        return self.rules.of(peer, sent(*lines))

    def http(self, *lines: tuple[str, str], peer: str | None = REMOTE, now: float = 0.0) -> Principal:
        """Ask the HTTP door."""
        return self.auth.http(sent(*lines), self.address(peer, *lines), now)

    def status(self, *lines: tuple[str, str], peer: str | None = REMOTE, now: float = 0.0) -> int | tuple[int, int | None]:
        """200, 401, 403, or (429, Retry-After)."""
        try:
            self.http(*lines, peer=peer, now=now)
        except TooManyAuthFailures as error:
            return error.status, error.retry_after
        except GatewayError as error:
            return error.status
        return 200

    def socket(self, presented: str | None, *lines: tuple[str, str], peer: str | None = REMOTE, now: float = 0.0) -> bool | tuple[int, int | None]:
        """Ask as the WebSocket door does: right or wrong, or (429, Retry-After)."""
        address = self.address(peer, *(lines or (HERE,)))
        left = self.auth.lockout(address, now)
        if left > 0:
            return 429, retry_after(left)
        if presented is None:
            return False
        right = self.auth.matches(presented)
        self.auth.count(address, now, right)
        return right


class SharedSecretTests(SynchronousTestCase):
    """Modes `token` and `password`."""

    def test_the_right_secret_makes_the_owner(self) -> None:
        """In both modes, with all the operator's scopes; the scheme's case does not matter."""
        modes: tuple[AuthMode, ...] = ("token", "password")
        for mode in modes:
            door = Door(mode)
            for scheme in ("Bearer", "bearer", "BEARER"):
                principal = door.http(HERE, ("Authorization", f"{scheme} {SECRET}"))
                self.assertEqual(principal.id, "owner")
                self.assertEqual(principal.scopes, OPERATOR_SCOPES)
        self.assertEqual(OPERATOR_SCOPES, {"operator.read", "operator.write", "operator.admin", "operator.approvals", "operator.pairing"})

    def test_anything_else_is_401(self) -> None:
        """H70: no header, other schemes, no or padded token, non-ASCII, very long, a part, two lines."""
        door = Door()
        for lines in (
            (),
            (("Authorization", ""),),
            (("Authorization", "Bearer"),),
            (("Authorization", f"Bearer  {SECRET}"),),
            (("Authorization", f"Basic {SECRET}"),),
            (("Authorization", SECRET),),
            (bearer(SECRET[:-1]),),
            (bearer(SECRET + "x"),),
            (bearer(SECRET.upper()),),
            (bearer("é" * 9),),
            (bearer("x" * 10_240),),
            (bearer(SECRET), bearer(SECRET)),
            (bearer("x"), bearer(SECRET)),
            (("X-Api-Key", SECRET),),
        ):
            self.assertRaises(Unauthorized, door.http, HERE, *lines)
        self.assertRaises(
            Unauthorized, door.auth.http, lambda name: [b"Bearer \xff\xfe"] if name == b"authorization" else None, door.address(REMOTE), 0
        )

    def test_websocket_secret(self) -> None:
        """Right, wrong, empty, none, and text that no UTF-8 can hold."""
        door = Door("password")
        self.assertEqual([door.socket(text) for text in (SECRET, "x", "", None, "\ud800", SECRET + " ")], [True, False, False, False, False, False])

    def test_pages_do_not_matter_to_a_right_secret(self) -> None:
        """The secret is the authority, so Host, Origin and fetch metadata are not asked."""
        foreign = (("Host", "gw.example"), ("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site"))
        self.assertEqual(Door().status(bearer(SECRET), *foreign), 200)

    def test_a_mode_without_its_secret_cannot_start(self) -> None:
        """A blank secret would let everybody in; the message names the key and holds no secret."""
        for secret in (None, "", "  "):
            self.assertIn("gateway.auth.token", str(self.assertRaises(ConfigError, Door, "token", secret)))
        self.assertIn("gateway.auth.password", str(self.assertRaises(ConfigError, Door, "password", None)))

    def test_the_secret_is_not_shown(self) -> None:
        """Neither by the authenticator, nor by the configuration, nor by an error."""
        door = Door()
        error = self.assertRaises(Unauthorized, door.http, HERE, bearer("hunter2-hunter2"))
        for text in (
            repr(door.auth),
            str(vars(door.auth)),
            repr(Auth(token=SECRET, password=SECRET)),
            repr(Gateway(auth=Auth(token=SECRET))),
            error.message,
        ):
            self.assertNotIn(SECRET, text)
            self.assertNotIn("hunter2", text)


class LimiterTests(SynchronousTestCase):
    """Section 3 of the security notes."""

    def door(self, exempt: bool = True, **values: int) -> Door:
        """A gateway with maxAttempts 3, windowMs 60000, lockoutMs 300000."""
        limit = RateLimit(max_attempts=3, exempt_loopback=exempt, **values)  # type: ignore[arg-type]
        return Door(auth=Auth(rate_limit=limit), gateway=Gateway(trusted_proxies=("10.0.0.1",)))

    def test_the_worked_table(self) -> None:
        """Every row, in its order, through both doors."""
        door = self.door()
        wrong, right = bearer("wrong"), bearer(SECRET)
        missing: tuple[tuple[str, str], ...] = ()
        for now, lines, expected in (
            (0, (wrong,), 401),
            (1, missing, 401),
            (2, (wrong,), 401),
            (3, (right,), 200),
            (4, (wrong,), 401),
            (30, (wrong,), 401),
            (63, (wrong,), 401),
            (63.2, (right,), (429, 300)),
            (70, missing, (429, 293)),
            (362.5, (right,), (429, 1)),
            (363, (wrong,), 401),
            (364, (wrong,), 401),
            (423, (wrong,), 401),
            (423.5, (right,), 200),
        ):
            if now == 70:
                self.assertEqual(door.status(HERE, right, peer="198.51.100.7", now=63.2), 200, "client B is not client A")
            self.assertEqual(door.status(HERE, *lines, now=now), expected, f"client A at {now}")
        for host, expected in (("1", 401), ("2", 401), ("3", 401), ("9", (429, 300))):
            self.assertEqual(door.status(HERE, wrong, peer=f"2001:db8::{host}", now=424), expected, "one /64 is one client")
        for _ in range(50):
            self.assertEqual(door.status(HERE, wrong, peer="127.0.0.1", now=425), 401, "direct loopback is exempt")
        self.assertEqual(door.status(HERE, right, peer="127.0.0.1", now=425), 200)
        for extra in (("Origin", "http://127.0.0.1:18789"), ("X-Forwarded-For", "127.0.0.1")):
            fresh = self.door()
            answers = [fresh.status(HERE, extra, wrong, peer="127.0.0.1", now=425) for _ in range(4)]
            self.assertEqual(answers, [401, 401, 401, (429, 300)], f"with {extra[0]} it is not")
            self.assertEqual(fresh.status(HERE, right, peer="127.0.0.1", now=425), 200, "and what it does locks no program of this machine out")
        self.assertEqual([door.socket("wrong", peer="192.0.2.3", now=426) for _ in range(3)], [False, False, False])
        self.assertEqual(door.status(HERE, right, peer="192.0.2.3", now=426), (429, 300), "the doors share the count of client C")
        self.assertEqual(door.socket(SECRET, peer="192.0.2.3", now=426), (429, 300))

    def test_malformed_counts_and_missing_does_not(self) -> None:
        """A header that cannot be right is a guess; none at all is a probe."""
        door = self.door()
        for _ in range(20):
            self.assertEqual(door.status(HERE), 401)
            self.assertFalse(door.socket(None))
        answers = [
            door.status(HERE, *lines)
            for lines in ((("Authorization", "Basic eDp5"),), (bearer(SECRET), bearer(SECRET)), (("Authorization", "Bearer"),))
        ]
        self.assertEqual(answers, [401, 401, 401])
        self.assertEqual(door.status(HERE, bearer(SECRET)), (429, 300))
        self.assertEqual(door.auth.lockout(door.address(REMOTE), 100), 200)

    def test_a_lockout_tells_clients_not_to_retry_by_themselves(self) -> None:
        """`x-should-retry: false`, for SDKs sleep as long as they are told."""
        door = self.door()
        for _ in range(3):
            door.status(HERE, bearer("x"))
        error = self.assertRaises(TooManyAuthFailures, door.http, HERE, bearer(SECRET), now=0.5)
        self.assertEqual((error.status, error.retry_after, error.should_retry), (429, 300, False))

    def test_loopback_is_not_exempt_when_told_so(self) -> None:
        """`exemptLoopback: false`."""
        door = self.door(exempt=False)
        answers = [door.status(HERE, bearer("x"), peer="127.0.0.1") for _ in range(4)]
        self.assertEqual(answers, [401, 401, 401, (429, 300)])

    def test_behind_a_trusted_proxy_each_client_has_its_own_count(self) -> None:
        """The named client is locked, not the proxy; clients that are not named share the proxy's count."""
        door = self.door()

        def status(secret: str, *lines: tuple[str, str]) -> object:
            return door.status(HERE, bearer(secret), *lines, peer="10.0.0.1")

        one, two = ("X-Forwarded-For", "203.0.113.1"), ("X-Forwarded-For", "203.0.113.2")
        self.assertEqual([status("x", one) for _ in range(4)], [401, 401, 401, (429, 300)])
        self.assertEqual(status(SECRET, two), 200)
        self.assertEqual([status("x", ("X-Forwarded-For", "unknown")), status("x"), status("x")], [401, 401, 401])
        self.assertEqual(status(SECRET), (429, 300))

    def test_without_a_limit_nobody_is_locked_out(self) -> None:
        """`rateLimit` is off unless set."""
        door = Door()
        self.assertEqual({door.status(HERE, bearer("x")) for _ in range(100)}, {401})
        self.assertEqual(door.auth.lockout(door.address(REMOTE), 0), 0)

    def test_a_new_configuration_keeps_the_counts(self) -> None:
        """The limiter is handed on; a reload is no way out of a lockout."""
        limiter = FailureLimiter(1, 60, 300)
        rules = AddressRules.build(Gateway(), [])
        address = rules.of(REMOTE, sent(HERE))
        old, new = (Authenticator("token", secret, Auth(), rules, limiter) for secret in ("old", "new"))
        old.count(address, 0, old.matches("x"))
        self.assertEqual(299, new.lockout(address, 1))


class NoneModeTests(SynchronousTestCase):
    """Mode `none`: whoever reaches this machine is the owner, so a page must not act in its name."""

    def setUp(self) -> None:
        gateway = Gateway(allowed_hosts=("gw.example",), http=Http(cors=Cors(allowed_origins=("https://app.example",))))
        self.door = Door("none", None, gateway)

    def test_programs_are_served(self) -> None:
        """A local, bound or listed Host and no Origin; a credential is not looked at."""
        for host in ("127.0.0.1:18789", "localhost:18789", "[::1]:18789", "gw.example"):
            self.assertEqual(self.door.http(("Host", host), peer="127.0.0.1"), Principal("owner", OPERATOR_SCOPES))
        self.assertEqual(self.door.status(HERE, bearer("anything"), peer="127.0.0.1"), 200)
        self.assertEqual(self.door.status(("Host", "localhost"), peer=None), 200)

    def test_fewer_scopes_are_declared(self) -> None:
        """`x-mayros-scopes` takes from the owner, and gives a proxy's user nothing. Whoever sends a secret is judged by that alone."""
        proxied = TrustedProxyTests().make()
        user = ("X-User", "zoë")
        for declared, owner, others in (
            ("operator.read", {"operator.read"}, {"operator.read"}),
            (" operator.read ,operator.admin", {"operator.read", "operator.admin"}, {"operator.read"}),
            ("operator.pairing,nonsense", {"operator.pairing"}, set()),
            ("", set(), set()),
        ):
            line = ("X-Mayros-Scopes", declared)
            self.assertEqual(self.door.http(HERE, line, peer="127.0.0.1"), Principal("owner", frozenset(owner)), declared)
            self.assertEqual(proxied.http(HERE, user, line, peer="10.0.0.1"), Principal("user:zoë", frozenset(others)), declared)
            self.assertEqual(Door().http(HERE, bearer(SECRET), line).scopes, OPERATOR_SCOPES)

    def test_foreign_hosts_are_403(self) -> None:
        """DNS rebinding brings its own name."""
        for lines in ((("Host", "evil.example:18789"),), (), (HERE, HERE)):
            self.assertRaises(Forbidden, self.door.http, *lines, peer="127.0.0.1")

    def test_pages(self) -> None:
        """Our own, this machine's and listed pages pass; foreign ones do not, with or without an Origin."""
        site = "Sec-Fetch-Site"
        for lines, expected in (
            ([("Origin", "http://127.0.0.1:18789"), (site, "same-origin")], 200),
            ([("Origin", "http://localhost:3000")], 200),
            ([("Origin", "https://app.example"), (site, "cross-site")], 200),
            ([("Origin", "https://evil.example")], 403),
            ([("Origin", "null")], 403),
            ([("Origin", "https://app.example"), ("Origin", "https://app.example")], 403),
            ([(site, "cross-site")], 403),
            ([(site, "Cross-Site")], 403),
            ([(site, "none")], 200),
            ([(site, "same-origin")], 200),
        ):
            self.assertEqual(self.door.status(HERE, *lines, peer="127.0.0.1"), expected, lines)

    def test_no_secret_is_right(self) -> None:
        """There is none to present, and nothing to lock out."""
        self.assertFalse(self.door.socket(""))
        self.assertFalse(self.door.socket("x", peer="127.0.0.1"))
        self.assertEqual(self.door.auth.mode, "none")


class TrustedProxyTests(SynchronousTestCase):
    """Mode `trusted-proxy`: the proxy says who the user is."""

    def make(self, allow_users: tuple[str, ...] = (), required: tuple[str, ...] = (), loopback: bool = False, header: str = "X-User") -> Door:
        """A gateway behind 10.0.0.1 and 127.0.0.1."""
        auth = Auth(
            rate_limit=RateLimit(max_attempts=1),
            trusted_proxy=TrustedProxy(user_header=header, required_headers=required, allow_users=allow_users, allow_loopback=loopback),
        )
        gateway = Gateway(trusted_proxies=("10.0.0.1", "127.0.0.1"), http=Http(cors=Cors(allowed_origins=("https://app.example",))))
        return Door("trusted-proxy", None, gateway, auth)

    def test_the_named_user_is_the_principal(self) -> None:
        """With the scopes to read and to talk to agents, not to administer."""
        principal = self.make().http(("Host", "gw.example"), ("X-User", " zoë@example "), peer="10.0.0.1")
        self.assertEqual(principal, Principal("user:zoë@example", frozenset(("operator.read", "operator.write"))))

    def test_only_a_trusted_proxy_may_speak(self) -> None:
        """Whoever reaches the port around the proxy is nobody, also with a header, on a unix socket, or with a secret."""
        for peer in ("203.0.113.9", "10.0.0.2", None):
            self.assertEqual(self.make().status(HERE, ("X-User", "eve"), bearer(SECRET), peer=peer), 401)

    def test_a_proxy_on_this_machine_needs_leave(self) -> None:
        """Any local program could claim to be it: `allowLoopback` says that none does."""
        user = ("X-User", "zoe")
        self.assertEqual(self.make().status(HERE, user, peer="127.0.0.1"), 401)
        self.assertEqual(self.make(loopback=True).status(HERE, user, peer="127.0.0.1"), 200)

    def test_required_headers(self) -> None:
        """Each must be there and not blank."""
        door = self.make(required=("X-Forwarded-Proto", "X-Proxy"))
        user, proto = ("X-User", "zoe"), ("X-Forwarded-Proto", "https")
        for lines, expected in (((), 401), ((proto,), 401), ((proto, ("X-Proxy", " ")), 401), ((proto, ("X-Proxy", "1")), 200)):
            self.assertEqual(door.status(HERE, user, *lines, peer="10.0.0.1"), expected, lines)

    def test_the_user_header(self) -> None:
        """Exactly once, not blank, no control characters, no endless names, UTF-8."""
        door = self.make()
        for lines in (
            (),
            (("X-User", " "),),
            (("X-User", "a"), ("X-User", "b")),
            (("X-User", "a"), ("x-user", "a")),
            (("X-User", "a\x07b"),),
            (("X-User", "x" * 257),),
        ):
            self.assertEqual(door.status(HERE, *lines, peer="10.0.0.1"), 401, lines)
        address = door.address("10.0.0.1", HERE)
        self.assertRaises(Unauthorized, door.auth.http, lambda name: [b"\xff"] if name == b"x-user" else None, address, 0)

    def test_the_list_of_users(self) -> None:
        """Empty admits all; else a user who is not in it is 403."""
        door = self.make(allow_users=("zoe",))
        self.assertEqual(door.status(HERE, ("X-User", "zoe"), peer="10.0.0.1"), 200)
        self.assertEqual(door.status(HERE, ("X-User", "eve"), peer="10.0.0.1"), 403)

    def test_the_limiter_is_not_consulted(self) -> None:
        """A proxy that stumbles does not lock its users out."""
        door = self.make()
        for _ in range(5):
            self.assertEqual(door.status(HERE, peer="10.0.0.1"), 401)
        self.assertEqual(door.status(HERE, ("X-User", "zoe"), peer="10.0.0.1"), 200)

    def test_foreign_pages_are_403(self) -> None:
        """The proxy's cookie would let any page speak as the user."""
        user = ("X-User", "zoe")
        for lines, expected in (
            ([("Origin", "https://evil.example")], 403),
            ([("Sec-Fetch-Site", "cross-site")], 403),
            ([("Origin", "https://app.example"), ("Sec-Fetch-Site", "cross-site")], 200),
        ):
            self.assertEqual(self.make().status(("Host", "gw.example"), user, *lines, peer="10.0.0.1"), expected, lines)

    def test_it_cannot_start_without_a_proxy_or_a_header(self) -> None:
        """Nobody could come in, or nobody would be named."""
        self.assertIn("userHeader", str(self.assertRaises(ConfigError, self.make, header=" ")))
        auth = Auth(trusted_proxy=TrustedProxy(user_header="X-User"))
        self.assertIn("trustedProxies", str(self.assertRaises(ConfigError, Door, "trusted-proxy", None, Gateway(), auth)))
