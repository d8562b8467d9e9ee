"""Who the client is: the rules A1 to A12 as tables, Host and Origin. (A13, where ports are opened, is the start's.)"""

from __future__ import annotations

import time
from collections.abc import Sequence

from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers as TwistedHeaders

from mayros.config.gateway import ControlUi, Cors, Gateway, Http
from mayros.core.address import MAX_HOPS, AddressRules, Headers
from mayros.core.hosts import parse_ip
from mayros.errors import ConfigError

HERE = ("Host", "127.0.0.1:18789")


def sent(*lines: tuple[str, str]) -> Headers:
    """The headers of a request, as Twisted hands them out."""
    headers = TwistedHeaders()
    for name, value in lines:
        headers.addRawHeader(name.encode(), value.encode("latin-1"))
    return headers.getRawHeaders


def rules(
    *proxies: str, bound: Sequence[str] = ("127.0.0.1", "::1"), real_ip: bool = False, hosts: Sequence[str] = (), ui: Sequence[str] = ()
) -> AddressRules:
    """Rules of a gateway with these trusted proxies, allowed hosts and control UI origins."""
    gateway = Gateway(
        trusted_proxies=proxies,
        allow_real_ip_fallback=real_ip,
        allowed_hosts=tuple(hosts),
        control_ui=ControlUi(allowed_origins=tuple(ui)),
    )
    return AddressRules.build(gateway, bound)


class PeerTests(SynchronousTestCase):
    """A1, A2, A8, A11: what the connection's own address says."""

    def test_a1_peer_is_normalised(self) -> None:
        """One spelling for each address: mapped IPv4, zone ids and upper case are gone."""
        for peer, expected in (
            ("203.0.113.9", "203.0.113.9"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("::FFFF:CB00:7109", "203.0.113.9"),
            ("fe80::1%eth0", "fe80::1"),
            ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ):
            self.assertEqual(rules().of(peer, sent(HERE)).peer, expected, peer)

    def test_a1_what_is_no_address_is_no_client(self) -> None:
        """A peer that cannot be read is unknown, counted, and has no privilege."""
        address = rules().of("localhost", sent(HERE))
        self.assertIsNone(address.client)
        self.assertFalse(address.direct_local or address.exempt or address.trusted_peer)

    def test_a2_forwarding_headers_of_strangers_are_not_read(self) -> None:
        """Whoever is not a trusted proxy is its own client, whatever it writes."""
        for name in ("X-Forwarded-For", "X-Real-IP", "Forwarded"):
            address = rules("10.0.0.1", real_ip=True).of("203.0.113.9", sent(HERE, (name, "198.51.100.7")))
            self.assertEqual((address.client, address.limiter_key, address.trusted_peer), ("203.0.113.9", "203.0.113.9", False), name)

    def test_a8_proxies_are_addresses_or_networks_of_both_families(self) -> None:
        """Each way to write a trusted proxy matches the peers it means, and no others."""
        for entry, inside, outside in (
            ("10.0.0.1", "10.0.0.1", "10.0.0.2"),
            ("10.0.0.0/8", "10.9.9.9", "11.0.0.1"),
            ("2001:db8::/32", "2001:db8:1::5", "2001:db9::5"),
            ("fd00::1", "fd00::1", "fd00::2"),
            ("::ffff:10.0.0.1", "10.0.0.1", "10.0.0.2"),
            ("::ffff:10.0.0.0/104", "10.2.3.4", "11.2.3.4"),
        ):
            self.assertTrue(rules(entry).trusts(inside), entry)
            self.assertFalse(rules(entry).trusts(outside), entry)
            self.assertFalse(rules(entry).trusts(None), entry)

    def test_a8_a_bad_proxy_entry_is_a_configuration_error(self) -> None:
        """Entries that would match nothing, or everything, name their place in the file."""
        for entry in ("", "proxy.example", "10.0.0.1/33", "10.0.0.1/8", "0.0.0.0/0", "::/0", "::ffff:0:0/96", "*"):
            error = self.assertRaises(ConfigError, rules, "10.0.0.1", entry)
            self.assertIn("gateway.trustedProxies[1]", str(error), entry)

    def test_a11_ipv6_clients_are_grouped_by_their_network(self) -> None:
        """One /64 is one client, for failures and for connections; IPv4 addresses stand alone."""
        book = rules()
        keys = {book.of(f"2001:db8::{n}", sent(HERE)).limiter_key for n in (1, 2, 9)}
        self.assertEqual(keys, {"2001:db8::/64"})
        self.assertEqual(book.connection_key("2001:db8::5"), "2001:db8::/64")
        self.assertEqual(book.connection_key("2001:db8:0:1::5"), "2001:db8:0:1::/64")
        self.assertEqual(book.connection_key("203.0.113.9"), "203.0.113.9")

    def test_local_and_trusted_connections_are_not_capped(self) -> None:
        """Loopback, unix sockets and trusted proxies have no connection key."""
        book = rules("10.0.0.0/8")
        for peer in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", None, "10.1.1.1"):
            self.assertIsNone(book.connection_key(peer), peer)


class ForwardedTests(SynchronousTestCase):
    """A3 to A7: the client behind a trusted proxy."""

    def client(self, *lines: tuple[str, str], real_ip: bool = False) -> str | None:
        """Who the client is when the trusted proxy 10.0.0.1 sends these headers."""
        address = rules("10.0.0.0/24", "fd00::/8", real_ip=real_ip).of("10.0.0.1", sent(HERE, *lines))
        self.assertTrue(address.trusted_peer)
        self.assertFalse(address.direct_local or address.exempt)
        if address.client is None:
            self.assertEqual(address.limiter_key, "10.0.0.1", "an unknown client is counted under its proxy (A7)")
        return address.client

    def test_a3_the_first_hop_from_the_right_that_is_not_trusted(self) -> None:
        """All lines are joined, trusted hops skipped, ports stripped."""
        for lines, expected in (
            (["203.0.113.9"], "203.0.113.9"),
            (["6.6.6.6, 203.0.113.9"], "203.0.113.9"),
            (["6.6.6.6", "203.0.113.9, 10.0.0.2"], "203.0.113.9"),
            (["203.0.113.9", "10.0.0.7"], "203.0.113.9"),
            (["203.0.113.9:5123"], "203.0.113.9"),
            (["[2001:db8::1]:5123"], "2001:db8::1"),
            (["[2001:db8::1], [fd00::2]:80"], "2001:db8::1"),
            (["2001:DB8::1"], "2001:db8::1"),
            (["::ffff:203.0.113.9"], "203.0.113.9"),
        ):
            self.assertEqual(self.client(*(("X-Forwarded-For", line) for line in lines)), expected, lines)

    def test_a4_what_is_not_an_address_stops_the_walk(self) -> None:
        """Behind an unreadable hop stands text that the client wrote: nobody is known."""
        for line in (
            "203.0.113.9, unknown",
            "203.0.113.9, unix:",
            "203.0.113.9, 999.1.1.1, 10.0.0.2",
            "203.0.113.9,",
            "",
            "203.0.113.9, 1.2.3.4:99999999",
            "203.0.113.9, [::1",
            "203.0.113.9, 127.1",
            "203.0.113.9, \xb2.2.2.2",
        ):
            self.assertIsNone(self.client(("X-Forwarded-For", line)), line)

    def test_a5_a_loopback_hop_makes_nobody_local(self) -> None:
        """Neither alone nor behind others, nor in IPv6 or mapped form."""
        for line in ("127.0.0.1", "6.6.6.6, 127.0.0.1", "::1", "[::1]:80", "::ffff:127.0.0.1", "127.0.0.1, 10.0.0.2"):
            self.assertIsNone(self.client(("X-Forwarded-For", line)), line)

    def test_a6_real_ip_counts_only_when_allowed_single_and_sound(self) -> None:
        """X-Real-IP is a fallback for a missing X-Forwarded-For and nothing more."""
        real = ("X-Real-IP", "203.0.113.9")
        self.assertIsNone(self.client(real))
        self.assertEqual(self.client(real, real_ip=True), "203.0.113.9")
        self.assertIsNone(self.client(real, real, real_ip=True))
        self.assertIsNone(self.client(("X-Real-IP", "127.0.0.1"), real_ip=True))
        self.assertIsNone(self.client(("X-Real-IP", "1.2.3.4, 5.6.7.8"), real_ip=True))
        self.assertIsNone(self.client(("X-Real-IP", "x"), real_ip=True))
        self.assertIsNone(self.client(real, ("X-Forwarded-For", "unknown"), real_ip=True))

    def test_a7_an_unknown_client_is_never_local(self) -> None:
        """A trusted proxy on this machine that names nobody lends its address, not its privileges."""
        book = rules("127.0.0.1")
        for lines in ((), (("X-Forwarded-For", "unknown"),), (("X-Forwarded-For", "127.0.0.1"),)):
            address = book.of("127.0.0.1", sent(HERE, *lines))
            self.assertEqual((address.client, address.limiter_key), (None, "127.0.0.1"), lines)
            self.assertFalse(address.direct_local or address.exempt, lines)

    def test_a_long_chain_is_not_walked_to_its_end(self) -> None:
        """Work for one request is bounded: more trusted hops than any real set-up has leave the client unknown."""
        self.assertEqual(self.client(("X-Forwarded-For", "203.0.113.9" + ", 10.0.0.2" * (MAX_HOPS - 1))), "203.0.113.9")
        self.assertIsNone(self.client(("X-Forwarded-For", "203.0.113.9" + ", 10.0.0.2" * MAX_HOPS)))
        self.assertIsNone(self.client(("X-Forwarded-For", "10.0.0.2, " * 1000 + "10.0.0.2")))

    def test_behind_a_proxy_ipv6_clients_are_grouped_too(self) -> None:
        """The limiter's key is the client's network, not the proxy."""
        address = rules("10.0.0.1").of("10.0.0.1", sent(HERE, ("X-Forwarded-For", "2001:db8::77")))
        self.assertEqual((address.client, address.limiter_key), ("2001:db8::77", "2001:db8::/64"))


class DirectLocalTests(SynchronousTestCase):
    """A9, A10, A12: who is a program on this machine that talks to us itself."""

    def test_a9_loopback_with_a_local_host_and_nothing_else(self) -> None:
        """The plain case, in all its spellings, is local and exempt."""
        for peer in ("127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"):
            for host in ("localhost", "LOCALHOST:18789", "localhost.", "127.0.0.1:18789", "127.8.8.8", "[::1]", "[::1]:18789"):
                address = rules().of(peer, sent(("Host", host)))
                self.assertTrue(address.direct_local and address.exempt, (peer, host))

    def test_a9_a_remote_peer_is_never_local(self) -> None:
        """A Host header does not make anybody local."""
        address = rules().of("192.168.1.7", sent(("Host", "localhost")))
        self.assertFalse(address.direct_local or address.exempt)

    def test_a9_any_other_host_name_loses_the_privilege(self) -> None:
        """A page that points its own name at 127.0.0.1 is not local, nor is a request with no or two Hosts."""
        for lines in (
            (("Host", "evil.example:18789"),),
            (("Host", "x.ts.net"),),
            (("Host", "127.0.0.1.evil.example"),),
            (("Host", "localhost.evil.example"),),
            (("Host", "0.0.0.0:18789"),),
            (("Host", "10.0.0.5"),),
            (),
            (HERE, HERE),
        ):
            address = rules().of("127.0.0.1", sent(*lines))
            self.assertFalse(address.direct_local or address.exempt, lines)
            self.assertEqual(address.client, "127.0.0.1")

    def test_a9_names_that_are_bound_or_listed_count_as_this_host(self) -> None:
        """An address we listen on and `gateway.allowedHosts` keep the privilege; a wildcard bind says nothing."""
        book = rules(bound=("192.168.1.5", "0.0.0.0", "::"), hosts=["gw.example", "fd00::5", "10.0.0.9:8443"])
        for host, expected in (
            ("192.168.1.5:18789", True),
            ("GW.example", True),
            ("[fd00::5]:18789", True),
            ("10.0.0.9", True),
            ("0.0.0.0", False),
            ("[::]", False),
            ("other.example", False),
        ):
            self.assertEqual(book.host_ok(sent(("Host", host))), expected, host)
            self.assertEqual(book.of("127.0.0.1", sent(("Host", host))).direct_local, expected, host)

    def test_a_bad_allowed_host_is_a_configuration_error(self) -> None:
        """Patterns and URLs are refused where they are written."""
        for entry in ("", "*", "*.example", "http://gw.example", "a b"):
            error = self.assertRaises(ConfigError, rules, hosts=["ok.example", entry])
            self.assertIn("gateway.allowedHosts[1]", str(error))

    def test_a10_forwarding_headers_without_trust_make_a_loopback_peer_remote(self) -> None:
        """A proxy on this machine that is not listed serves remote clients: no privilege, no exemption, one warning."""
        warnings: list[str] = []
        book = AddressRules.build(Gateway(), ["127.0.0.1"], warnings.append)
        for name in ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Tailscale-User-Login"):
            address = book.of("127.0.0.1", sent(HERE, (name, "203.0.113.9")))
            self.assertEqual((address.client, address.limiter_key), ("127.0.0.1", "127.0.0.1"), name)
            self.assertFalse(address.direct_local or address.exempt, name)
        self.assertEqual(len(warnings), 1)
        self.assertIn("gateway.trustedProxies", warnings[0])

    def test_a9_a_foreign_origin_is_not_local(self) -> None:
        """A page served by this machine keeps locality, one of another site does not; no page is exempt from the limiter."""
        for origin, local in (
            ("http://127.0.0.1:18789", True),
            ("http://localhost:3000", True),
            ("https://ui.example", True),
            ("https://evil.example", False),
            ("null", False),
            ("http://localhost.evil.example", False),
            ("junk", False),
        ):
            address = rules(ui=["https://ui.example"]).of("127.0.0.1", sent(HERE, ("Origin", origin)))
            self.assertEqual((address.direct_local, address.exempt), (local, False), origin)

    def test_two_origins_are_foreign(self) -> None:
        """No browser sends two Origin lines."""
        address = rules().of("127.0.0.1", sent(HERE, ("Origin", "http://localhost"), ("Origin", "http://localhost")))
        self.assertFalse(address.direct_local or address.exempt)

    def test_a12_a_unix_socket_is_local_unless_a_proxy_stands_behind_it(self) -> None:
        """The file mode guards the socket; forwarded requests through it are as remote as on loopback."""
        address = rules().of(None, sent(("Host", "localhost")))
        self.assertEqual((address.peer, address.limiter_key, address.direct_local, address.exempt), (None, "unix", True, True))
        address = rules().of(None, sent(("Host", "localhost"), ("X-Forwarded-For", "203.0.113.9")))
        self.assertEqual((address.client, address.direct_local, address.exempt), (None, False, False))

    def test_a12_a_client_told_by_the_proxy_protocol_is_never_local(self) -> None:
        """An address from a PROXY header is a client like any other, even when it is loopback."""
        address = rules().of("127.0.0.1", sent(HERE), proxied=True)
        self.assertFalse(address.direct_local or address.exempt)
        address = rules().of("203.0.113.9", sent(HERE), proxied=True)
        self.assertEqual((address.client, address.direct_local), ("203.0.113.9", False))


class HostHeaderTests(SynchronousTestCase):
    """H05 to H07: one well-formed Host on HTTP/1.1."""

    def test_well_formed_hosts(self) -> None:
        """Names, addresses and ports as clients send them."""
        for host in (
            "localhost",
            "a.b-c.example:80",
            "my_host",
            "xn--bcher-kva.example",
            "127.0.0.1:1",
            "[::1]:18789",
            "[2001:db8::1]",
            "host:",
            "a" * 63 + ".example",
        ):
            self.assertTrue(rules().valid_host_header(sent(("Host", host)), True), host)

    def test_malformed_hosts(self) -> None:
        """Anything else is for a 400."""
        for host in (
            "",
            "a b",
            "a/b",
            "a..b",
            ".a",
            "a" * 64,
            "a" * 300,
            ".".join(["a" * 60] * 5),
            "a:99999",
            "a:b",
            "a:1:2",
            "::1",
            "[::1",
            "[zz]",
            "[1.2.3.4]",
            "[fe80::1%25eth0]",
            "user@a",
            "b\xfccher.example",
            "http://a",
            "-a",
            "a-",
            "a\x00b",
            "x" * 20_000,
        ):
            self.assertFalse(rules().valid_host_header(sent(("Host", host)), True), host)

    def test_exactly_one(self) -> None:
        """HTTP/1.1 needs it, HTTP/1.0 may leave it out, nobody may send two."""
        book = rules()
        self.assertFalse(book.valid_host_header(sent(), True))
        self.assertTrue(book.valid_host_header(sent(), False))
        for http11 in (True, False):
            self.assertFalse(book.valid_host_header(sent(HERE, HERE), http11))
            self.assertFalse(book.valid_host_header(sent(("Host", "a b")), http11))
            self.assertTrue(book.valid_host_header(sent(HERE), http11))


class OriginTests(SynchronousTestCase):
    """Which pages may open a WebSocket."""

    def ok(self, origin: str, host: str, *allowed: str, peer: str = "127.0.0.1") -> bool:
        """Whether a page of `origin` passes, coming from `peer` to `host`."""
        book = rules(bound=("127.0.0.1", "192.168.1.5"), hosts=["gw.example"])
        headers = sent(("Host", host), ("Origin", origin))
        return book.origin_ok(origin, headers, book.of(peer, headers), allowed)

    def test_listed_origins(self) -> None:
        """The list is compared exactly, but for case and a final slash; a star is no wildcard."""
        self.assertTrue(self.ok("https://ui.example", "evil.example", "https://UI.example/", peer="8.8.8.8"))
        self.assertTrue(self.ok("null", "127.0.0.1:18789", "null"))
        self.assertTrue(self.ok("app://desk", "127.0.0.1:18789", "app://desk"))
        for origin, listed in (
            ("https://ui.example:444", "https://ui.example"),
            ("http://ui.example", "https://ui.example"),
            ("https://a.ui.example", "https://ui.example"),
            ("https://evil.example", "*"),
        ):
            self.assertFalse(self.ok(origin, "127.0.0.1:18789", listed), origin)

    def test_the_same_host_and_port(self) -> None:
        """A page that we served ourselves: a local, bound or listed name, or a private address that no DNS can forge."""
        for origin, host, expected in (
            ("http://192.168.1.9:18789", "192.168.1.9:18789", True),
            ("http://[fd00::9]:18789", "[fd00::9]:18789", True),
            ("https://gw.example", "gw.example", True),
            ("https://gw.example", "gw.example:443", True),
            ("http://gw.example:80", "GW.example", True),
            ("http://gw.example", "gw.example:443", False),
            ("http://192.168.1.9:18789", "192.168.1.9:18790", False),
            ("http://192.168.1.9:18789", "192.168.1.8:18789", False),
            ("http://evil.example:18789", "evil.example:18789", False),
            ("http://8.8.8.8:18789", "8.8.8.8:18789", False),
            ("http://0.0.0.0:18789", "0.0.0.0:18789", False),
        ):
            self.assertEqual(self.ok(origin, host, peer="192.168.1.77"), expected, (origin, host))

    def test_both_loopback_only_for_a_direct_local_client(self) -> None:
        """A page of another port of this machine passes from this machine, not through a proxy or from elsewhere."""
        self.assertTrue(self.ok("http://localhost:3000", "127.0.0.1:18789"))
        self.assertTrue(self.ok("http://[::1]:3000", "localhost:18789"))
        self.assertFalse(self.ok("http://localhost:3000", "127.0.0.1:18789", peer="8.8.8.8"))
        book = rules()
        headers = sent(HERE, ("Origin", "http://localhost:3000"), ("X-Forwarded-For", "8.8.8.8"))
        self.assertFalse(book.origin_ok("http://localhost:3000", headers, book.of("127.0.0.1", headers), ()))

    def test_whatever_is_no_origin(self) -> None:
        """Junk never passes, whatever its length."""
        for origin in (
            "null",
            "",
            "localhost",
            "//localhost",
            "http://localhost/",
            "http://localhost@evil.example",
            "http://a b",
            "file://",
            "chrome-extension://abcdef",
            "ftp://localhost",
            "http://localhost#",
            "http://local\u212ahost",
            "http://" + "a" * 5000,
        ):
            headers = sent(HERE)
            book = rules()
            self.assertFalse(book.origin_ok(origin, headers, book.of("127.0.0.1", headers), ()), origin)

    def test_no_host_no_same_origin(self) -> None:
        """Without one sound Host header there is nothing to be the same as."""
        for lines in ((), (HERE, HERE), (("Host", "a b"),)):
            book = rules()
            self.assertFalse(book.origin_ok("http://127.0.0.1:18789", sent(*lines), book.of("127.0.0.1", sent(HERE)), ()), lines)


class BoundsTests(SynchronousTestCase):
    """It runs on every request, for whoever comes."""

    def test_many_peers_and_hosts_do_not_grow_the_process(self) -> None:
        """What is remembered of peers and Host values is bounded, and right after eviction."""
        book = rules()
        for n in range(10_000):
            book.of(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", sent(("Host", f"h{n}.example")))
            book.host_ok(sent(("Host", f"h{n}.example")))
        self.assertLessEqual(book.remembered, 8192)
        self.assertEqual(book.of("10.0.0.0", sent(HERE)).client, "10.0.0.0")

    def test_it_is_cheap(self) -> None:
        """A few microseconds a request; the bound is wide, for slow machines."""
        book, headers = rules(), sent(HERE, ("Authorization", "Bearer x"))
        begin = time.perf_counter()
        for _ in range(2000):
            book.of("127.0.0.1", headers)
            book.of("8.8.8.8", headers)
        self.assertLess((time.perf_counter() - begin) / 2000, 100e-6)

    def test_parse_ip_refuses_what_only_looks_like_an_address(self) -> None:
        """Short, octal and padded forms are no addresses: other programs read them differently."""
        for text in ("127.1", "0x7f.0.0.1", "0177.0.0.1", "1.2.3.4%eth0", "1.2.3", "", ":::", "1.2.3.4.5"):
            self.assertIsNone(parse_ip(text), text)


class CorsOriginTests(SynchronousTestCase):
    """The HTTP doors' list is another one than the control UI's."""

    def test_listed_for_http_keeps_locality(self) -> None:
        """A page listed in gateway.http.cors.allowedOrigins is not foreign."""
        gateway = Gateway(http=Http(cors=Cors(allowed_origins=("https://app.example",))))
        book = AddressRules.build(gateway, ["127.0.0.1"])
        self.assertEqual(book.cors_origins, ("https://app.example",))
        self.assertTrue(book.of("127.0.0.1", sent(HERE, ("Origin", "https://app.example"))).direct_local)
