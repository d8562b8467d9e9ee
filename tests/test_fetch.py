"""Fetching from an address that a caller chose: which are refused, what is asked of the others, what is read; and PDF files, in a process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from twisted.internet import defer, endpoints, protocol, reactor, ssl, task
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mayros.errors import InputFailed
from mayros.net.addresses import IP, is_public, listed
from mayros.net.fetch import AT_ONCE, Fetched, Fetcher, place_of
from mayros.net.pdf import PdfText, PdfTexts
from tests.test_proxy import certificate
from tests.upstream import Endpoint, Wire

PUBLIC, OTHER, PUBLIC6 = "93.184.215.14", "198.41.0.4", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
KINDS = ("image/png", "image/jpeg")
PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.8.8.8",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::2",
    "::127.0.0.1",
    "::93.184.215.14",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2002:7f00:1::1",
    "2002:a9fe:a9fe::1",
    "2002:c0a8:1::1",
    "2001::1",
    "2001:db8::1",
    "3fff::1",
    "100::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "5f00::1",
    "2606:2800::1%eth0",
]


class AddressTests(SynchronousTestCase):
    """Which addresses are public."""

    def test_not_public(self) -> None:
        """Loopback, private, link-local, carriers', metadata, multicast, documentation, reserved; also inside of IPv6 addresses."""
        for text in PRIVATE:
            self.assertFalse(is_public(ip_address(text)), text)

    def test_public(self) -> None:
        """The rest."""
        for text in (
            PUBLIC,
            OTHER,
            PUBLIC6,
            "8.8.8.8",
            "1.1.1.1",
            "172.32.0.1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2002:808:808::1",
            "2a00:1450::1",
        ):
            self.assertTrue(is_public(ip_address(text)), text)

    def test_listed(self) -> None:
        """A name is itself; `*.` and a domain is all below it, not the domain."""
        for host, hosts, is_in in (
            ("example.com", ["example.com"], True),
            ("EXAMPLE.com.", ["Example.COM"], True),
            ("a.example.com", ["example.com"], False),
            ("a.example.com", ["*.example.com"], True),
            ("b.a.example.com", ["*.example.com"], True),
            ("example.com", ["*.example.com"], False),
            ("evilexample.com", ["*.example.com"], False),
            ("example.com.evil.org", ["*.example.com", "example.com"], False),
            (".example.com", ["*.example.com"], False),
            ("example.com", ["*", "*."], False),
            (PUBLIC, [PUBLIC], True),
        ):
            self.assertEqual(listed(host, hosts), is_in, (host, hosts))


class Names:
    """A resolver in memory. A name's addresses are taken from `known`, one list for each question; without any, nothing is answered yet."""

    def __init__(self) -> None:
        self.known: dict[str, list[Sequence[str]]] = {}
        self.asked: list[str] = []

    def resolveHostName(self, receiver: Any, host: str, port: int = 0, *_: Any) -> None:
        self.asked.append(host)
        receiver.resolutionBegan(None)
        if answers := self.known.get(host):
            for text in answers.pop(0):
                receiver.addressResolved((IPv6Address if ":" in text else IPv4Address)("TCP", text, port))
            receiver.resolutionComplete()


class Reactor(task.Clock):
    """Time, and names."""

    def __init__(self) -> None:
        super().__init__()
        self.nameResolver = Names()


class FetchCase(SynchronousTestCase):
    """Servers in memory, one for each address."""

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.names = self.reactor.nameResolver
        self.servers: dict[tuple[str, int], Endpoint] = {}
        self.fetcher = Fetcher(self.reactor, self.endpoint)
        self.taken = 0

    def endpoint(self, ip: IP, port: int) -> Any:
        return self.servers.setdefault((str(ip), port), Endpoint())

    def take(self, count: int) -> None:
        self.taken += count
        if self.taken > 1000:
            raise InputFailed("it is too large")

    def fetch(self, url: str, hosts: Sequence[str] = (), redirects: int = 3) -> Deferred[Fetched]:
        work = self.fetcher(url, hosts=hosts, kinds=KINDS, redirects=redirects, seconds=10.0, take=self.take)
        exchange = Deferred.fromCoroutine(work)
        self.addCleanup(self.quit, exchange)
        return exchange

    @staticmethod
    def quit(exchange: Deferred[Fetched]) -> None:
        """Leave no fetch behind."""
        if not exchange.called:
            exchange.addErrback(lambda failure: failure.trap(CancelledError) and None)
            exchange.cancel()

    def wire(self, ip: str = PUBLIC, port: int = 80) -> Wire:
        """The last connection to an address."""
        return self.servers[ip, port].wires[-1]

    def say(self, data: bytes, ip: str = PUBLIC, port: int = 80) -> None:
        self.servers[ip, port].say(data)

    def refused(self, exchange: Deferred[Fetched], words: str) -> None:
        self.assertIn(words, str(self.failureResultOf(exchange, InputFailed).value))
        self.assertTrue(all(wire.aborted for server in self.servers.values() for wire in server.wires))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    @staticmethod
    def image(data: bytes = b"png", kind: bytes = b"image/png", *lines: bytes) -> bytes:
        head = (b"HTTP/1.1 200 OK", b"Content-Type: " + kind, b"Content-Length: %d" % len(data), *lines)
        return b"\r\n".join(head) + b"\r\n\r\n" + data

    @staticmethod
    def moved(to: bytes, status: bytes = b"302 Found") -> bytes:
        return b"HTTP/1.1 " + status + b"\r\nLocation: " + to + b"\r\nContent-Length: 0\r\nSet-Cookie: a=b\r\n\r\n"


class AskTests(FetchCase):
    """What is asked, and of whom."""

    def test_one_request(self) -> None:
        """A GET with nothing of ours in it, to the address that the name had; then the connection is closed."""
        self.names.known["cats.example.com"] = [[PUBLIC]]
        exchange = self.fetch("http://CATS.example.com/a%20cat.png?size=1#top")
        self.assertEqual(
            self.wire().request,
            b"GET /a%20cat.png?size=1 HTTP/1.1\r\nHost: cats.example.com\r\nAccept: image/jpeg, image/png\r\nAccept-Encoding: identity\r\n"
            b"User-Agent: mayros-gateway\r\nConnection: close\r\n\r\n",
        )
        self.say(self.image(b"png", b"Image/PNG; q=1"))
        self.assertEqual(self.successResultOf(exchange), ("image/png", b"png"))
        self.assertEqual((self.wire().aborted, self.taken, self.reactor.getDelayedCalls()), (True, 3, []))

    def test_what_is_no_address(self) -> None:
        """Is refused before any name is looked up."""
        for url, words in (
            ("ftp://example.com/a", "only http and https"),
            ("file:///etc/passwd", "only http and https"),
            ("//example.com/a", "only http and https"),
            ("http://", "the name of its host"),
            ("http://user@example.com/", "user or a password"),
            ("http://:pass@example.com/", "user or a password"),
            ("http://example.com:22/", "port 22"),
            ("http://example.com:0/", "port 0"),
            ("http://example.com:99999/", "not a URL"),
            ("http://exa mple.com/", "blanks"),
            ("http://example.com/a\r\nHost: x", "blanks"),
            ("http://example.com\\@127.0.0.1/", "blanks"),
            ("http://b\u00fccher.example/", "ASCII"),
            ("http://a..b/", "the name of its host"),
            ("http://[::1", "not a URL"),
            ("http://" + "a" * 64 + ".com/", "the name of its host"),
            ("http://example.com/" + "a" * 2048, "ASCII"),
        ):
            self.refused(self.fetch(url), words)
        self.assertEqual(self.names.asked, [])

    def test_addresses_in_the_url(self) -> None:
        """In all the ways in which they can be written; nobody is asked."""
        hosts = [f"[{text}]" if ":" in text else text for text in PRIVATE if "%" not in text]
        for host in (*hosts, "2130706433", "0x7f.1", "017700000001", "127.1", "0", "0x7f000001", "[::ffff:7f00:1]", "[fe80::1%25eth0]"):
            self.refused(self.fetch(f"http://{host}/"), "not on the public network")
        self.assertEqual((self.names.asked, self.servers), ([], {}))
        self.fetch(f"http://[{PUBLIC6}]:8080/")
        self.assertIn(f"Host: [{PUBLIC6}]:8080\r\n".encode(), self.wire(PUBLIC6, 8080).request)

    def test_names_of_private_addresses(self) -> None:
        """Are refused, also where only one of their addresses is."""
        for number, text in enumerate(text for text in PRIVATE if "%" not in text):
            self.names.known[f"a{number}.example"] = [[text]]
            self.names.known[f"b{number}.example"] = [[PUBLIC, text]]
            self.refused(self.fetch(f"http://a{number}.example/"), "not on the public network")
            self.refused(self.fetch(f"http://b{number}.example/"), "not on the public network")
        self.names.known["localhost"] = self.names.known["localhost."] = [["127.0.0.1"]]
        self.refused(self.fetch("http://localhost/"), "not on the public network")
        self.assertEqual(self.servers, {})

    def test_no_second_look(self) -> None:
        """A name that means something else a moment later is of no use: the connection is made to the address that was judged."""
        self.names.known["rebound.example"] = [[PUBLIC], ["127.0.0.1"]]
        exchange = self.fetch("http://rebound.example/")
        self.say(self.image())
        self.successResultOf(exchange)
        self.assertEqual((self.names.asked, list(self.servers)), (["rebound.example"], [(PUBLIC, 80)]))

    def test_this_machine(self) -> None:
        """Under its public address it is still this machine: nothing is asked of it."""
        self.names.known["self.example"] = [[PUBLIC]]
        server = self.endpoint(ip_address(PUBLIC), 80)
        server.hold = True
        exchange = self.fetch("http://self.example/")
        self.patch(Wire, "getHost", lambda _: IPv4Address("TCP", PUBLIC, 5))
        self.patch(Wire, "getPeer", lambda _: IPv4Address("TCP", PUBLIC, 80))
        server.attempts[0].callback(None)
        self.refused(exchange, "not on the public network")
        self.assertEqual(self.wire().request, b"")

    def test_the_list_of_hosts(self) -> None:
        """Others are not even looked up, wherever they come from."""
        self.names.known["cats.example.com"] = [[PUBLIC]]
        for url in ("http://example.com/", "http://evil.example/", f"http://{PUBLIC}/"):
            self.refused(self.fetch(url, ["*.example.com"]), "not in the list of allowed hosts")
        self.assertEqual(self.names.asked, [])
        exchange = self.fetch("http://cats.example.com/", ["*.example.com"])
        self.say(self.moved(b"http://evil.example/"))
        self.refused(exchange, "'evil.example' is not in the list")

    def test_other_addresses_of_the_name(self) -> None:
        """Are tried where the first one does not answer."""
        self.names.known["two.example"] = [[OTHER, PUBLIC]]
        self.endpoint(ip_address(OTHER), 80).error = ConnectionRefusedError()
        exchange = self.fetch("http://two.example/")
        self.say(self.image())
        self.assertEqual(self.successResultOf(exchange).data, b"png")
        self.names.known["two.example"] = [[OTHER]]
        self.refused(self.fetch("http://two.example/"), "no connection could be made")
        self.names.known["none.example"] = [[]]
        self.refused(self.fetch("http://none.example/"), "not found")


class RedirectTests(FetchCase):
    """Addresses that send on to others."""

    def setUp(self) -> None:
        super().setUp()
        self.names.known["a.example"] = [[PUBLIC]] * 9
        self.names.known["b.example"] = [[OTHER]] * 9

    def test_followed(self) -> None:
        """Three times, also relative ones, with nothing taken along."""
        exchange = self.fetch("http://a.example/x/y")
        self.say(self.moved(b"../z?q=1", b"301 Moved"))
        self.assertTrue(self.wire().request.startswith(b"GET /z?q=1 HTTP/1.1\r\nHost: a.example\r\n"))
        self.say(self.moved(b"http://b.example:8080/1", b"307 Temporary Redirect"))
        request = self.wire(OTHER, 8080).request
        self.assertTrue(request.startswith(b"GET /1 HTTP/1.1\r\nHost: b.example:8080\r\n"))
        self.assertNotIn(b"Cookie", request)
        self.assertNotIn(b"Referer", request)
        self.say(self.moved(b"/2", b"308 Permanent Redirect"), OTHER, 8080)
        self.say(self.image(), OTHER, 8080)
        self.assertEqual(self.successResultOf(exchange).data, b"png")

    def test_too_often(self) -> None:
        """As often as is allowed, and no more."""
        for redirects in (3, 0):
            exchange = self.fetch("http://a.example/", redirects=redirects)
            for _ in range(redirects + 1):
                self.assertNoResult(exchange)
                self.say(self.moved(b"/again"))
            self.refused(exchange, f"more than {redirects} times")

    def test_judged_anew(self) -> None:
        """What they lead to is refused as if it had been asked for."""
        self.names.known["inside.example"] = [["10.0.0.1"]] * 9
        for to, words in (
            (b"http://127.0.0.1/", "not on the public network"),
            (b"http://169.254.169.254/latest/meta-data", "not on the public network"),
            (b"http://inside.example/", "not on the public network"),
            (b"//[::1]/", "not on the public network"),
            (b"file:///etc/passwd", "only http and https"),
            (b"http://me@b.example/", "user or a password"),
            (b"http://b.example:25/", "port 25"),
            (b"\xff\xfe", "status 404"),
        ):
            exchange = self.fetch("http://a.example/")
            self.say(self.moved(to))
            if not exchange.called:
                self.say(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            self.refused(exchange, words)
        self.assertEqual(list(self.servers), [(PUBLIC, 80)])

    def test_no_location(self) -> None:
        """Is an answer as any other."""
        exchange = self.fetch("http://a.example/")
        self.say(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n")
        self.refused(exchange, "status 302")


class AnswerTests(FetchCase):
    """What is read."""

    def setUp(self) -> None:
        super().setUp()
        self.names.known["a.example"] = [[PUBLIC]] * 99

    def test_what_is_refused(self) -> None:
        """Other types, other statuses, compression, what is not HTTP, and what ends too early."""
        for reply, words in (
            (self.image(kind=b"text/html"), "it is of the type 'text/html', not one of image/jpeg, image/png"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\npng", "it is of the type ''"),
            (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "status 404"),
            (b"HTTP/1.1 206 Partial\r\nContent-Type: image/png\r\nContent-Length: 1\r\n\r\nx", "status 206"),
            (self.image(b"x", b"image/png", b"Content-Encoding: gzip"), "could not be used"),
            (b"SSH-2.0-OpenSSH_9.6\r\n", "could not be used"),
        ):
            exchange = self.fetch("http://a.example/")
            self.say(reply)
            self.refused(exchange, words)
        exchange = self.fetch("http://a.example/")
        self.say(self.image(b"abc")[:-1])
        self.servers[PUBLIC, 80].hang_up()
        self.assertIn("could not be used", str(self.failureResultOf(exchange, InputFailed).value))

    def test_sizes(self) -> None:
        """Are counted by what the head says, before any of it is read, and while reading where it says nothing."""
        exchange = self.fetch("http://a.example/")
        self.say(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 10000000000\r\n\r\n")
        self.refused(exchange, "it is too large")
        self.taken = 0
        exchange = self.fetch("http://a.example/")
        self.say(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(10):
            self.say(b"64\r\n" + b"x" * 100 + b"\r\n")
            self.assertNoResult(exchange)
        self.say(b"1\r\nx\r\n")
        self.refused(exchange, "it is too large")

    def test_without_a_length(self) -> None:
        """The end of the connection is the end."""
        exchange = self.fetch("http://a.example/")
        self.say(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\npn")
        self.say(b"g")
        self.servers[PUBLIC, 80].hang_up()
        self.assertEqual((self.successResultOf(exchange).data, self.taken), (b"png", 3))

    def test_time(self) -> None:
        """All of it together: names, connections, redirects, and slow drips."""
        self.names.known["slow.example"] = []
        exchange = self.fetch("http://slow.example/")
        self.reactor.advance(10)
        self.refused(exchange, "longer than 10 s")
        exchange = self.fetch("http://a.example/")
        self.reactor.advance(6)
        self.say(self.moved(b"/again"))
        self.say(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n")
        for _ in range(3):
            self.reactor.advance(1)
            self.say(b"x")
        self.reactor.advance(1)
        self.refused(exchange, "longer than 10 s")

    def test_cancelled(self) -> None:
        """Wherever it is: at the name, while connecting, before the answer and in it."""
        held = self.endpoint(ip_address(OTHER), 80)
        held.hold = True
        for url, said in (
            ("http://slow.example/", b""),
            (f"http://{OTHER}/", b""),
            ("http://a.example/", b""),
            ("http://a.example/", self.image()[:-1]),
        ):
            exchange = self.fetch(url)
            if said:
                self.say(said)
            exchange.cancel()
            self.failureResultOf(exchange, CancelledError)
            self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(held.cancelled, 1)
        self.assertTrue(self.wire().aborted)

    def test_so_many_at_once(self) -> None:
        """The others wait for their turn."""
        work = [self.fetch("http://a.example/") for _ in range(AT_ONCE + 1)]
        server = self.servers[PUBLIC, 80]
        self.assertEqual(len(server.wires), AT_ONCE)
        server.say(self.image(), 0)
        self.assertEqual(len(server.wires), AT_ONCE + 1)
        server.say(self.image())
        self.assertEqual(self.successResultOf(work[-1]).data, b"png")


class TlsTests(TestCase):
    """Over real sockets."""

    async def test_https(self) -> None:
        """The certificate must be for the name that was asked for, whatever address it is at."""
        pem, options = certificate(Path(self.mktemp()), "cats.example.com", "127.0.0.1")

        class Server(protocol.Protocol):
            def dataReceived(self, data: bytes) -> None:
                self.transport.write(FetchCase.image())  # type: ignore[union-attr]

        port = await endpoints.SSL4ServerEndpoint(reactor, 0, options, interface="127.0.0.1").listen(protocol.Factory.forProtocol(Server))
        self.addCleanup(port.stopListening)
        number = port.getHost().port
        place = Reactor()
        place.callLater = reactor.callLater  # type: ignore[method-assign,attr-defined]
        place.nameResolver.known = {name: [["127.0.0.1"]] for name in ("cats.example.com", "dogs.example.com")}

        def endpoint(ip: IP, port: int) -> Any:
            return endpoints.TCP4ClientEndpoint(reactor, str(ip), port, bindAddress=("127.0.0.2", 0))

        fetch = Fetcher(place, endpoint, lambda _: True, ssl.trustRootFromCertificates([ssl.Certificate.loadPEM(Path(pem).read_bytes())]))
        rules: dict[str, Any] = {"hosts": (), "kinds": KINDS, "redirects": 0, "seconds": 30.0, "take": lambda _: None}
        self.assertEqual((await fetch(f"https://cats.example.com:{number}/", **rules)).data, b"png")
        with self.assertRaises(InputFailed) as raised:
            await fetch(f"https://dogs.example.com:{number}/", **rules)
        self.assertIn("certificate", str(raised.exception))


def pdf(*pages: str) -> bytes:
    """A PDF with these pages."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for page in pages:
        stream = b"BT /F1 12 Tf 72 700 Td (%b) Tj ET" % page.encode()
        objects.append(b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R /Resources << /Font << /F1 3 0 R >> >> >>" % len(objects)
        )
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Kids [%b] /Count %d >>" % (b" ".join(kids), len(kids))
    made, offsets = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        offsets.append(len(made))
        made += b"%d 0 obj\n%b\nendobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return made + b"xref\n0 %d\n0000000000 65535 f \n%btrailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
        len(objects) + 1, table, len(objects) + 1, len(made),
    )  # fmt: skip


class PdfTests(TestCase):
    """The process that reads PDF files."""

    def setUp(self) -> None:
        self.read = PdfTexts(reactor, {**os.environ, "SECRET_KEY": "x"})

    async def fails(self, data: bytes, words: str) -> None:
        with self.assertRaises(InputFailed) as raised:
            await self.read(data, max_pages=4, max_chars=1000)
        self.assertIn(words, str(raised.exception))

    async def test_the_text(self) -> None:
        """Of the first pages, up to a limit."""
        found = await self.read(pdf("Hello (page) one".replace("(", "\\(").replace(")", "\\)"), "two", "three"), max_pages=2, max_chars=1000)
        self.assertEqual(found, PdfText("Hello (page) one\n\ntwo", 3, 2, False))
        found = await self.read(pdf("Hello", "two"), max_pages=4, max_chars=7)
        self.assertEqual(found, PdfText("Hello\n\n", 2, 2, True))

    async def test_what_is_no_pdf(self) -> None:
        """Says so, whatever is wrong with it."""
        await self.fails(b"%PDF-1.4\nnothing", "it is no PDF that can be read")
        await self.fails(pdf("a")[:200], "it is no PDF that can be read")

    async def test_cancelled(self) -> None:
        """The process is killed, and its place is free."""
        children: list[Any] = []
        spawn = reactor.spawnProcess  # type: ignore[attr-defined]

        class Spy:
            callLater, seconds = reactor.callLater, reactor.seconds  # type: ignore[attr-defined]

            @staticmethod
            def spawnProcess(child: Any, *rest: Any, **more: Any) -> Any:
                children.append((child, spawn(child, *rest, **more), rest[2]))

        read = PdfTexts(Spy(), {"PATH": "/bin", "SECRET_KEY": "x"})
        work = [Deferred.fromCoroutine(read(pdf("a"), max_pages=4, max_chars=1000)) for _ in range(3)]
        self.assertEqual(len(children), 2)
        for one in work:
            one.cancel()
            with self.assertRaises(CancelledError):
                await one
        for child, _, environ in children:
            await child.stop()
            self.assertNotIn("SECRET_KEY", environ)
            self.assertIn("SIGKILL", child._how)
        self.assertEqual(read._places.tokens, 2)
        await self.settled(children)

    async def settled(self, children: list[Any]) -> None:
        """Let the processes' pipes close."""
        for child, _, _ in children:
            while not child._reported:
                pause: Deferred[None] = defer.Deferred()
                reactor.callLater(0.01, pause.callback, None)  # type: ignore[attr-defined]
                await pause

    def test_place_of(self) -> None:
        """What a URL says, taken apart."""
        self.assertEqual(place_of("https://A.example./x"), (True, "a.example.", 443, "a.example.", "/x"))
