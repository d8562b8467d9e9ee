"""Outbound proxies: the rules of NO_PROXY, the tunnel in memory, and TLS through a real one on loopback sockets."""

from __future__ import annotations

import datetime
import gc
import weakref
from base64 import b64encode
from contextlib import aclosing
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet import defer, endpoints, protocol, reactor, ssl, task
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost, ConnectionRefusedError, DNSLookupError
from twisted.internet.error import TimeoutError as ConnectTimedOut
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mayros.config.schema import Config, Models, ProviderEntry
from mayros.core.routing import Settings
from mayros.errors import ConfigError
from mayros.net.http import BadResponse, ConnectFailed, ConnectTimeout, Origin, origin_for
from mayros.net.proxy import HEAD_LIMIT, Proxy, TunnelEndpoint, TunnelFailed, is_direct, proxy_for
from mayros.providers.adapter import HttpAdapter
from mayros.providers.adapters import Adapters
from tests import vendor_cases
from tests.upstream import Endpoint

HI = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
TARGET = "models.example"
PASSWORD = "s3cret/0123456789"


class Rules(SynchronousTestCase):
    """Which way an origin is reached."""

    def test_no_proxy(self) -> None:
        """Names with all that is below them, addresses, networks, ports, `*`; what is no rule names nothing."""
        for rules, host, port, direct in (
            ("", "a.example", 443, False),
            ("*", "a.example", 443, True),
            ("example", "example", 443, True),
            ("example", "a.example", 443, True),
            ("example", "notexample", 443, False),
            (".example", "a.example", 443, True),
            (".example", "example", 443, True),
            ("*.example", "a.b.example", 443, True),
            ("EXAMPLE", "A.Example.", 443, True),
            ("other, example", "a.example", 443, True),
            ("other example", "a.example", 443, True),
            ("example:443", "a.example", 443, True),
            ("example:8443", "a.example", 443, False),
            ("10.0.0.0/8", "10.1.2.3", 443, True),
            ("10.0.0.1/8", "11.1.2.3", 443, False),
            ("10.0.0.0/8", "10.example", 443, False),
            ("10.1.2.3", "10.1.2.3", 443, True),
            ("10.1.2.3:8443", "10.1.2.3", 8443, True),
            ("10.1.2.3:8443", "10.1.2.3", 443, False),
            ("2.3", "10.1.2.3", 443, False),
            ("fd00::/8", "fd00::1", 443, True),
            ("fd00::0:1", "fd00::1", 443, True),
            ("[fd00::1]:443", "fd00::1", 443, True),
            ("[fd00::1]:80", "fd00::1", 443, False),
            ("fd00::/8", "10.0.0.1", 443, False),
            ("/8, 10/x, :443, ., *., [, ,,", "a.example", 443, False),
        ):
            self.assertEqual(direct, is_direct(host, port, rules), (rules, host, port))

    def test_proxies(self) -> None:
        """HTTPS_PROXY in capitals or small letters, with or without a scheme, a port, a name and password."""
        basic = "Basic " + b64encode(b"me:a@b").decode()
        for value, proxy in (
            ("http://proxy.lan:3128", Proxy("proxy.lan", 3128, False)),
            ("http://proxy.lan:3128/", Proxy("proxy.lan", 3128, False)),
            ("proxy.lan:3128", Proxy("proxy.lan", 3128, False)),
            ("http://proxy.lan", Proxy("proxy.lan", 80, False)),
            ("https://proxy.lan", Proxy("proxy.lan", 443, True)),
            ("http://me:a%40b@[fd00::1]:8080", Proxy("fd00::1", 8080, False, basic)),
            ("", None),
            ("  ", None),
        ):
            for name in ("HTTPS_PROXY", "https_proxy"):
                self.assertEqual(proxy, proxy_for("api.example", 443, {name: value}), value)
        both = {"HTTPS_PROXY": "http://a:1", "https_proxy": "http://b:2"}
        self.assertEqual(Proxy("b", 2, False), proxy_for("api.example", 443, both))
        self.assertIsNone(proxy_for("api.example", 443, {**both, "no_proxy": "example"}))
        self.assertIsNone(proxy_for("api.example", 443, {"HTTP_PROXY": "http://a:1"}))

    def test_this_machine(self) -> None:
        """Is never asked of a proxy, which would reach itself."""
        for host, direct in (("localhost", True), ("a.localhost", True), ("127.0.0.5", True), ("::1", True), ("localhost.example", False)):
            self.assertEqual(direct, proxy_for(host, 443, {"HTTPS_PROXY": "http://a:1"}) is None, host)

    def test_proxies_that_are_none(self) -> None:
        """One line that names the variable, without what is secret in it."""
        for value in (
            f"socks5://me:{PASSWORD}@proxy.lan",
            "http://:3128",
            f"http://me:{PASSWORD}@proxy.lan",  # the slash ends the host: the port is no number
            "http://proxy.lan:0x50",
            "http://proxy.lan:99999",
            "http://proxy.lan/path",
            "http://proxy.lan?x",
            "http://a b",
            "http://a\r\nX: y",
            "http://[::1",
        ):
            error = self.assertRaises(ConfigError, proxy_for, "api.example", 443, {"HTTPS_PROXY": value})
            self.assertIn("HTTPS_PROXY", str(error))
            self.assertNotIn("s3cret", str(error))
        self.assertNotIn("bWU6", repr(proxy_for("api.example", 443, {"HTTPS_PROXY": "http://me:secret123@a:1"})))

    def test_http_is_direct(self) -> None:
        """And so is everything without an environment."""
        environ = {"HTTPS_PROXY": "socks5://x"}
        origin_for("http://api.example/v1", {}, task.Clock(), environ=environ)
        origin_for("https://api.example/v1", {}, task.Clock())
        self.assertRaises(ConfigError, origin_for, "https://api.example/v1", {}, task.Clock(), environ=environ)


class Tunnel(SynchronousTestCase):
    """In memory: what is said with the proxy. Inside the tunnel there is plain HTTP here."""

    def setUp(self) -> None:
        self.clock = task.Clock()
        self.proxy = Endpoint()
        self.make()

    def make(self, host: str = TARGET, credential: str = "") -> None:
        """An origin behind the proxy."""
        endpoint = TunnelEndpoint(self.proxy, Proxy("proxy.lan", 3128, False, credential), host, 443)
        self.assertNotIn("Basic", repr(endpoint))
        self.origin = Origin(endpoint, b"Host: x\r\n", self.clock, connect_timeout=10.0, first_byte_timeout=60.0)

    def ask(self) -> Deferred[bytes]:
        """One exchange."""

        async def body() -> bytes:
            async with await self.origin.post(b"/chat", b"{}") as response:
                return b"".join([piece async for piece in response])

        asked = Deferred.fromCoroutine(body())
        self.addCleanup(lambda: asked.called or (asked.addErrback(lambda failure: failure.trap(CancelledError) and None), asked.cancel()))
        return asked

    def test_what_is_said(self) -> None:
        """CONNECT with the target and the credential; then the request itself; the answer's border may be anywhere."""
        for cut in range(1, 40):
            self.make(credential="Basic bWU6cHc=")
            asked = self.ask()
            request = self.proxy.wires[-1].request.decode()
            self.assertTrue(request.startswith(f"CONNECT {TARGET}:443 HTTP/1.1\r\nHost: {TARGET}:443\r\n"))
            self.assertIn("\r\nProxy-Authorization: Basic bWU6cHc=\r\n", request)
            said = b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n"
            self.proxy.say(said[:cut])
            self.assertEqual(b"", self.proxy.wires[-1].request)
            self.proxy.say(said[cut:])
            self.assertIn(b"POST /chat HTTP/1.1\r\n", self.proxy.wires[-1].request)
            self.proxy.say(HI)
            self.assertEqual(b"hi", self.successResultOf(asked))
        self.assertEqual(b"hi", self.again())
        self.origin.close()

    def again(self) -> bytes:
        """Another exchange, over the tunnel that was kept."""
        number = len(self.proxy.wires)
        asked = self.ask()
        self.assertEqual(number, len(self.proxy.wires))
        self.proxy.say(HI)
        return self.successResultOf(asked)

    def test_addresses(self) -> None:
        """An IPv6 address stands in brackets; no credential, no header."""
        self.make("fd00::1")
        self.ask()
        request = self.proxy.wires[-1].request
        self.assertIn(b"CONNECT [fd00::1]:443 HTTP/1.1\r\nHost: [fd00::1]:443\r\n", request)
        self.assertNotIn(b"Authorization", request)

    def test_what_comes_with_the_answer(self) -> None:
        """Bytes after the proxy's head are the target's."""
        asked = self.ask()
        self.proxy.say(b"HTTP/1.1 200 OK\r\n\r\n" + HI)
        self.assertEqual(b"hi", self.successResultOf(asked))

    def test_refusals(self) -> None:
        """Its socket is closed, the status is said and the proxy's own words are not."""
        for said, words in (
            (b"HTTP/1.1 407 s3cret words\r\nProxy-Authenticate: Basic\r\n\r\n<html>", "HTTP 407"),
            (b"HTTP/1.1 403 s3cret\r\n\r\n", f"did not connect to {TARGET}:443 (HTTP 403)"),
            (b"HTTP/1.1 502\r\n\r\n", "HTTP 502"),
            (b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n", "HTTP 302"),
            (b"HTTP/1.1 100 Continue\r\n\r\n", "HTTP 100"),
            (b"SSH-2.0-OpenSSH\r\n\r\n", "not valid HTTP"),
            (b"HTTP/1.1 2000 x\r\n\r\n", "not valid HTTP"),
            (b"HTTP/2 200\r\n\r\n", "not valid HTTP"),
            (b"\r\n\r\n", "not valid HTTP"),
            (b"HTTP/1.1 200 OK\r\n" + b"x" * HEAD_LIMIT, "16 KiB"),
            (b"HTTP/1.1 200 OK\r\nX: " + b"x" * HEAD_LIMIT + b"\r\n\r\n", "not valid HTTP"),
        ):
            asked = self.ask()
            self.proxy.say(said)
            error = self.failureResultOf(asked, ConnectFailed).value
            self.assertIn(words, str(error))
            self.assertNotIn("s3cret", str(error))
            self.assertTrue(self.proxy.wires[-1].aborted)

    def test_it_hangs_up(self) -> None:
        """Before its answer, politely or not; and later, which is the target's connection then."""
        for reason in (None, ConnectionLost()):
            asked = self.ask()
            self.proxy.hang_up(reason)
            self.assertIn("the proxy closed the connection", str(self.failureResultOf(asked, ConnectFailed).value))
        asked = self.ask()
        self.proxy.say(b"HTTP/1.1 200 OK\r\n\r\n")
        self.proxy.hang_up()
        self.failureResultOf(asked, BadResponse)

    def test_it_cannot_be_reached(self) -> None:
        """It is the proxy of which this is said."""
        for error in (ConnectionRefusedError(), DNSLookupError("no address")):
            self.proxy.error = error
            self.assertIn("the proxy could not be reached", str(self.failureResultOf(self.ask(), ConnectFailed).value))
        self.proxy.error = ConnectTimedOut()
        self.failureResultOf(self.ask(), ConnectTimeout)

    def test_its_time(self) -> None:
        """The limit on connecting holds for all of it: reaching the proxy, and its answer, however slowly it drips."""
        asked = self.ask()
        for _ in range(9):
            self.clock.advance(1)
            self.proxy.say(b"H")
        self.assertNoResult(asked)
        self.clock.advance(1)
        self.failureResultOf(asked, ConnectTimeout)
        self.assertTrue(self.proxy.wires[-1].aborted)
        self.proxy.hold = True
        asked = self.ask()
        self.clock.advance(10)
        self.failureResultOf(asked, ConnectTimeout)
        self.assertEqual(1, self.proxy.cancelled)

    def test_cancelling(self) -> None:
        """A run that is cancelled closes the socket at once, before the answer, and is told nothing else."""
        for hold in (False, True):
            self.proxy.hold = hold
            asked = self.ask()
            asked.cancel()
            self.failureResultOf(asked, CancelledError)
        self.assertTrue(self.proxy.wires[-1].aborted)
        self.assertEqual(1, self.proxy.cancelled)
        self.assertEqual(1024, self.origin._free)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_nothing_is_left_behind(self) -> None:
        """A closed tunnel goes without the garbage collector: nothing refers to itself."""
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        asked = self.ask()
        self.proxy.say(b"HTTP/1.1 200 OK\r\n\r\n")
        self.proxy.say(HI.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        self.assertEqual(b"hi", self.successResultOf(asked))
        tunnel = weakref.ref(self.proxy.wires[-1].protocol)
        self.proxy.wires[-1].protocol = None  # as a real transport does
        self.proxy.wires.clear()
        self.proxy.attempts.clear()
        self.assertIsNone(tunnel())

    def test_a_factory_that_makes_nothing(self) -> None:
        """Is an error like the others."""

        class Nothing(protocol.Factory):
            def buildProtocol(self, addr: object) -> None:
                return None

        made = TunnelEndpoint(self.proxy, Proxy("proxy.lan", 3128, False), TARGET, 443).connect(Nothing())
        self.proxy.say(b"HTTP/1.1 200 OK\r\n\r\n")
        self.failureResultOf(made, TunnelFailed)


class ProxyServer(protocol.Protocol):
    """A CONNECT proxy: every target is the one port of the factory."""

    def connectionMade(self) -> None:
        self.factory.connections.append(self)
        self.head, self.peer = b"", None
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        if self.peer is not None:
            self.peer.transport.write(data)
            return
        self.head += data
        if b"\r\n\r\n" in self.head:
            self.factory.heads.append(self.head.decode())
            self.transport.pauseProducing()
            way = endpoints.TCP4ClientEndpoint(reactor, "127.0.0.1", self.factory.port)
            endpoints.connectProtocol(way, Beyond(self)).addErrback(lambda _: self.transport.abortConnection())

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        self.lost.callback(None)
        if self.peer is not None:
            self.peer.transport.abortConnection()


class Beyond(protocol.Protocol):
    """The proxy's connection to the target."""

    def __init__(self, client: ProxyServer) -> None:
        self.client = client

    def connectionMade(self) -> None:
        self.client.peer = self
        self.client.transport.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.client.transport.registerProducer(self.transport, True)
        self.client.transport.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
        self.client.transport.write(data)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        if not self.client.lost.called:
            self.client.transport.unregisterProducer()
            self.client.transport.loseConnection()


class TargetServer(protocol.Protocol):
    """The origin: TLS, and `reply` to each request."""

    def connectionMade(self) -> None:
        self.factory.connections.append(self)
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.factory.requests.append(data)
        if self.factory.reply is not None:
            self.transport.write(self.factory.reply)
        if self.factory.asked is not None:
            asked, self.factory.asked = self.factory.asked, None
            asked.callback(None)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        self.lost.callback(None)


class Sockets(TestCase):
    """TLS through a proxy, both real. The target's name exists nowhere: nobody but the proxy may look it up."""

    timeout = 20

    async def setUp(self) -> None:
        self.pem, options = certificate(Path(self.mktemp()), TARGET, "127.0.0.1")
        self.target = protocol.Factory.forProtocol(TargetServer)
        self.target.connections, self.target.requests, self.target.reply, self.target.asked = [], [], HI, None
        port = await self.listen(endpoints.SSL4ServerEndpoint(reactor, 0, options, interface="127.0.0.1"), self.target)
        self.proxy = protocol.Factory.forProtocol(ProxyServer)
        self.proxy.connections, self.proxy.heads, self.proxy.port = [], [], port
        self.proxy_port = await self.listen(endpoints.TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"), self.proxy)
        self.secure_port = await self.listen(endpoints.SSL4ServerEndpoint(reactor, 0, options, interface="127.0.0.1"), self.proxy)
        self.addCleanup(lambda: defer.gatherResults([self.hang_up(c) for c in (*self.proxy.connections, *self.target.connections)]))

    async def listen(self, endpoint: Any, factory: protocol.Factory) -> int:
        port = await endpoint.listen(factory)
        self.addCleanup(port.stopListening)
        number: int = port.getHost().port
        return number

    def hang_up(self, connection: Any) -> Deferred[None]:
        if not connection.lost.called:
            connection.transport.abortConnection()
        return connection.lost  # type: ignore[no-any-return]

    def origin(self, scheme: str = "http", user: str = "", **more: Any) -> Origin:
        """The target behind the proxy."""
        port = self.secure_port if scheme == "https" else self.proxy_port
        environ = {"HTTPS_PROXY": f"{scheme}://{user}127.0.0.1:{port}"}
        origin = origin_for(f"https://{TARGET}/v1", {}, reactor, environ=environ, **{"ca_path": self.pem, **more})
        self.addCleanup(origin.close)
        return origin

    async def body(self, origin: Origin) -> bytes:
        async with await origin.post(b"/", b"{}") as response:
            return b"".join([data async for data in response])

    async def test_through_the_proxy(self) -> None:
        """The target's certificate is checked, the tunnel is kept for the next request, the password is sent to the proxy only."""
        origin = self.origin(user="me:pass%2Fword@")
        self.assertEqual([await self.body(origin) for _ in range(3)], [b"hi"] * 3)
        (head,) = self.proxy.heads
        self.assertTrue(head.startswith(f"CONNECT {TARGET}:443 HTTP/1.1\r\n"))
        self.assertIn("Proxy-Authorization: Basic " + b64encode(b"me:pass/word").decode(), head)
        self.assertIn(b"POST /v1/ HTTP/1.1\r\nHost: models.example\r\n", self.target.requests[0])
        self.assertNotIn(b"Proxy-Authorization", b"".join(self.target.requests))

    async def test_a_proxy_that_speaks_tls(self) -> None:
        """TLS to the proxy, and TLS to the target inside of it."""
        origin = self.origin("https")
        self.assertEqual([await self.body(origin) for _ in range(2)], [b"hi"] * 2)
        self.assertEqual(1, len(self.proxy.heads))

    async def test_certificates_that_are_not_trusted(self) -> None:
        """A proxy changes nothing about that; nor does a certificate of another name."""
        error = await self.assertFailure(defer.ensureDeferred(self.body(self.origin(ca_path=None))), BadResponse)
        self.assertIn("certificate verify failed", str(error))
        environ = {"HTTPS_PROXY": f"http://127.0.0.1:{self.proxy_port}"}
        other = origin_for("https://other.example/v1", {}, reactor, environ=environ, ca_path=self.pem)
        error = await self.assertFailure(defer.ensureDeferred(self.body(other)), BadResponse)
        self.assertIn("another host", str(error))
        self.assertEqual([], self.target.requests)

    async def test_a_large_answer(self) -> None:
        """Comes whole, however slowly it is taken: the target waits meanwhile."""
        size = 4_000_000
        self.target.reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
        async with await self.origin().post(b"/", b"{}") as response:
            for _ in range(10):
                await task.deferLater(reactor, 0.002)
            self.assertLess(response._unread, 400_000)
            self.assertEqual(size, sum([len(data) async for data in response]))

    async def test_cancelling_closes_the_socket(self) -> None:
        """The proxy sees the end at once, and so does the target."""
        self.target.reply, self.target.asked = None, Deferred()
        asked = self.target.asked
        reading = Deferred.fromCoroutine(self.body(self.origin()))
        await asked
        await task.deferLater(reactor, 0)
        reading.cancel()
        await self.assertFailure(reading, CancelledError)
        await self.proxy.connections[0].lost.addTimeout(1, reactor)
        await self.target.connections[0].lost.addTimeout(1, reactor)

    async def test_an_adapter(self) -> None:
        """A provider of the configuration with `caPath`, and the proxy of the settings' environment."""
        chunk = b'data: {"choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
        self.target.reply = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(chunk) + chunk
        entry = ProviderEntry(base_url=f"https://{TARGET}/v1", ca_path=self.pem, api_key=vendor_cases.KEY)
        environ = {"HTTPS_PROXY": f"http://127.0.0.1:{self.proxy_port}", "NO_PROXY": "other.example"}
        settings = Settings.build(
            Config(models=Models(providers={"acme": entry})), state_dir=self.mktemp(), config_path="mayros.json", environ=environ, now_ms=0
        )
        adapters = Adapters(settings, settings.state_dir, reactor)
        adapter = adapters.get("acme")
        assert isinstance(adapter, HttpAdapter)
        events = []
        async with aclosing(adapter.stream(vendor_cases.request(settings.catalogue.providers["acme"]))) as batches:
            async for batch in batches:
                events += batch
        await adapters.close()
        self.assertEqual("hi", vendor_cases.text(events))
        self.assertEqual(1, len(self.proxy.heads))
        self.assertIn(b"Bearer " + vendor_cases.KEY.encode(), self.target.requests[0])


def certificate(path: Path, name: str, address: str) -> tuple[str, ssl.CertificateOptions]:
    """A self-signed certificate for a name and an address: the path of its PEM, and what a server needs."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ip_address(address))])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(pem)
    return str(path), ssl.PrivateCertificate.loadPEM(pem + private).options()
