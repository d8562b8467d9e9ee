"""TLS on the gateway's own port: both doors through it in memory, what a pinning client tells a wrong server, and a slow reader on a real socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor, ssl
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IReactorTCP
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock, deferLater
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.test import iosim
from twisted.trial.unittest import TestCase

from mayros.config.tls import TlsFiles
from mayros.errors import ConfigError
from mayros.net.certificates import Trust, with_colons
from mayros.net.pinned import Pinned
from mayros.ops.certificates import Certificates
from mayros.web.channel import HSTS
from mayros.web.request import LINGER_SECONDS
from mayros.ws.client import call
from mayros.ws.conversation import CallFailed
from mayros.ws.protocol import CLOSE_SECONDS
from mayros.ws.urls import where
from tests.certs import Authority, Pair, pair
from tests.helpers import TOKEN, Client, Harness, HarnessCase, Peer, chat, head, post
from tests.test_ws_client import MemoryEndpoint
from tests.test_ws_protocol import Doors

GET = head("GET", "/healthz", token=None) + b"\r\n"


class Given(Factory):
    """Makes this one protocol."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: Any) -> Protocol:
        return self._protocol


class Line:
    """A client of a factory in memory, both sides through TLS. `client` is the application's end, `tls` the layer below."""

    def __init__(self, factory: Any, creator: Any, clock: Clock, client: Protocol, peer: str = "127.0.0.1") -> None:
        self._clock, self.client = clock, client
        self.server = factory.buildProtocol(None)
        outside = TLSMemoryBIOFactory(creator, True, Given(client), clock)
        self.tls = outside.buildProtocol(None)  # type: ignore[arg-type]
        there = iosim.FakeTransport(self.server, isServer=True, peerAddress=Peer(peer))
        self.pump = client.pump = iosim.connect(  # type: ignore[attr-defined]
            self.server, there, self.tls, iosim.FakeTransport(self.tls, isServer=False)
        )
        self.settle()

    def settle(self) -> None:
        """Let everything arrive: each side writes with the next turn of its reactor."""
        for _ in range(8):
            self._clock.advance(0)
            self.pump.flush()

    def send(self, data: bytes) -> None:
        self.client.transport.write(data)  # type: ignore[union-attr]
        self.settle()


class TlsCase(HarnessCase):
    """A certificate, and gateways that show it."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.mktemp()).absolute()
        self.pair = pair(self.folder)
        self.ca: str | None = None

    def certificates(self) -> Certificates:
        return Certificates(TlsFiles(str(self.pair.certificate), str(self.pair.key), self.ca), maybeDeferred, lambda: 1_764_000_000_000)

    def trusting(self, made: Pair | None = None, **more: Any) -> Any:
        """A client that takes the certificate by its authority, which it is itself."""
        root = ssl.Certificate.loadPEM((made or self.pair).certificate.read_bytes())
        return ssl.optionsForClientTLS("localhost", trustRoot=root, **more)

    def pinning(self, fingerprint: str | None = None, shown: Pair | None = None) -> Pinned:
        return Pinned(Trust(fingerprint or self.pair.fingerprint, (str(shown.certificate), str(shown.key)) if shown else None), "localhost")

    def served(self, changes: dict[str, Any] | None = None) -> Harness:
        gateway = self.gateway(changes)
        self.shown = self.certificates()
        return gateway

    def dial(self, gateway: Harness, creator: Any = None, data: bytes = b"", peer: str = "127.0.0.1") -> Line:
        client = Client()
        line = Line(self.shown.wrap(gateway.site, gateway.clock), creator or self.trusting(), gateway.clock, client, peer)
        client.leave = lambda: (client.transport.loseConnection(), line.settle())  # type: ignore[method-assign, union-attr, assignment]
        gateway.clients.append(client)
        if data:
            line.send(data)
        return line


class HttpsTests(TlsCase):
    """The HTTP door."""

    def test_requests(self) -> None:
        """Several on one connection, with the address of the client; a whole answer and a stream; the usual headers and no HSTS."""
        gateway = self.served()
        line = self.dial(gateway, data=GET)
        answer = line.client.answer()
        self.assertEqual((200, "mayros", False), (answer.status, answer.headers["server"], "strict-transport-security" in answer.headers))
        line.send(post(chat(stream=True)))
        gateway.provider.say("one", " two")
        line.settle()
        self.assertEqual("one two", line.client.text())
        gateway.provider.stop()
        line.settle()
        self.assertIn("[DONE]", line.client.events())
        line.client.answer()
        line.send(head("GET", "/v1/models", token="wrong") + b"\r\n")
        self.assertEqual(401, line.client.answer().status)
        self.assertFalse(line.client.lost)
        self.assertEqual(["127.0.0.1", "127.0.0.1"], [one.remote for one in gateway.access])

    def test_versions_and_protocols(self) -> None:
        """TLS 1.2 and 1.3, with HTTP/1.1 by ALPN where it is offered; older ones, and clients of HTTP/2 alone, get nothing."""
        gateway = self.served()
        for version, name in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
            limits = {"lowerMaximumSecurityTo": version} if version is ssl.TLSVersion.TLSv1_2 else {"raiseMinimumTo": version}
            line = self.dial(gateway, self.trusting(acceptableProtocols=[b"h2", b"http/1.1"], extraCertificateOptions=limits), GET)
            self.assertEqual((200, name), (line.client.answer().status, line.tls._tlsConnection.get_protocol_version_name()))
            self.assertEqual(b"http/1.1", line.tls.negotiatedProtocol)
        with_old = {"insecurelyLowerMinimumTo": ssl.TLSVersion.TLSv1_0, "lowerMaximumSecurityTo": ssl.TLSVersion.TLSv1_1}
        for creator in (self.trusting(extraCertificateOptions=with_old), self.trusting(acceptableProtocols=[b"h2"])):
            line = self.dial(gateway, creator, GET)
            self.assertEqual((True, b""), (line.client.lost, line.client.received))

    def test_hsts(self) -> None:
        """Only where it is asked for, in each answer over TLS, refusals too, and never without TLS."""
        gateway = self.served()
        gateway.site.hsts = True
        line = self.dial(gateway, data=GET)
        self.assertEqual("max-age=31536000", line.client.answer().headers["strict-transport-security"])
        line.send(b"nonsense\r\n\r\n")
        self.assertIn(HSTS, line.client.received)
        self.assertNotIn("strict-transport-security", gateway.dial(GET).answer().headers)

    def test_h41_a_stalled_handshake(self) -> None:
        """H41: it falls under the limit on headers, also when it trickles on, and so does silence after it."""
        gateway = self.served({"gateway": {"limits": {"headerTimeoutMs": 20_000}}})
        hello = SSL.Connection(ssl.CertificateOptions().getContext(), None)
        hello.set_connect_state()
        self.assertRaises(SSL.WantReadError, hello.do_handshake)
        data = hello.bio_read(4096)
        raw = Client()
        server = self.shown.wrap(gateway.site, gateway.clock).buildProtocol(None)  # type: ignore[arg-type]
        pump = iosim.connect(server, iosim.FakeTransport(server, isServer=True), raw, iosim.FakeTransport(raw, isServer=False))
        silent = self.dial(gateway)
        for byte in data[:19]:
            raw.transport.write(bytes([byte]))  # type: ignore[union-attr]
            pump.flush()
            gateway.clock.advance(1)
        self.assertEqual((2, False), (gateway.connections.open, raw.lost))
        gateway.clock.advance(1)
        pump.flush()
        silent.settle()
        self.assertEqual((True, True, 0), (raw.lost, silent.client.lost, gateway.connections.open))

    def test_one_connection_too_many(self) -> None:
        """Costs no handshake and is not kept waiting for one: it is cut off at once, uncounted."""
        gateway = self.served({"gateway": {"limits": {"maxConnections": 1}}})
        first = self.dial(gateway, data=GET)
        second = self.dial(gateway, data=GET)
        self.assertEqual((True, b"", 1), (second.client.lost, second.client.received, gateway.connections.open))
        self.assertEqual(200, first.client.answer().status)

    def test_a_client_that_does_not_say_goodbye(self) -> None:
        """After `Connection: close` it is waited for no longer than without TLS."""
        gateway = self.served()
        line = self.dial(gateway)
        line.client.transport.write(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))  # type: ignore[union-attr]
        gateway.clock.advance(0)
        sent = line.tls.transport.getOutBuffer()
        line.server.dataReceived(sent)
        gateway.clock.advance(60)
        self.assertFalse(line.server.transport.disconnecting)
        gateway.clock.advance(LINGER_SECONDS)
        self.assertTrue(line.server.transport.disconnecting)
        line.settle()
        self.assertEqual(200, line.client.answer().status)

    def test_bytes_that_are_no_tls(self) -> None:
        """HTTP in the clear, another protocol, noise: closed, and the next client is served."""
        gateway = self.served()
        for data in (GET, b"SSH-2.0-OpenSSH_9.9\r\n", b"\x16\x03\x01" + bytes(range(256)) * 40, b"\0" * 100_000):
            raw = Client()
            server = self.shown.wrap(gateway.site, gateway.clock).buildProtocol(None)  # type: ignore[arg-type]
            raw.pump = iosim.connect(server, iosim.FakeTransport(server, isServer=True), raw, iosim.FakeTransport(raw, isServer=False))
            raw.send(data)
            self.assertEqual((True, 0), (raw.lost, gateway.connections.open), data[:20])
            self.assertNotIn(b"HTTP", raw.received)
        self.assertEqual(200, self.dial(gateway, data=GET).client.answer().status)

    def test_renewal_under_use(self) -> None:
        """New connections get the new certificate, also through the same port; open ones and their streams go on."""
        gateway = self.served()
        old = self.trusting()
        port = self.shown.wrap(gateway.site, gateway.clock)
        line = self.dial(gateway, old, post(chat(stream=True)))
        gateway.provider.say("one")
        line.settle()
        before = self.pair.fingerprint
        self.pair = pair(self.folder)
        self.shown.reload()
        self.assertNotEqual(before, self.shown.current.about.fingerprint)
        fresh = Client()
        there = Line(port, self.pinning(), gateway.clock, fresh)
        there.send(GET)
        self.assertEqual(200, fresh.answer().status)
        fresh.transport.loseConnection()  # type: ignore[union-attr]
        there.settle()
        self.assertTrue(self.dial(gateway, old, GET).client.lost)
        gateway.provider.say(" two")
        gateway.provider.stop()
        line.settle()
        self.assertEqual("one two", line.client.text())


class ClientCertificateTests(TlsCase):
    """`caPath`."""

    def test_who_is_let_in(self) -> None:
        """Who has a certificate of the authority, or the gateway's own (the commands on this machine); nobody else gets a byte."""
        authority, other = Authority(self.folder), Authority(self.folder, "stranger")
        good, foreign = authority.sign("client"), other.sign("guest")
        self.ca = str(authority.path)
        gateway = self.served()
        for shown in (good, self.pair):
            self.assertEqual(200, self.dial(gateway, self.pinning(shown=shown), GET).client.answer().status)
        for shown in (None, foreign, pair(self.folder, name="made-up-")):
            line = self.dial(gateway, self.pinning(shown=shown), GET)
            self.assertEqual((True, b""), (line.client.lost, line.client.received), shown)
        self.assertEqual(0, len([one for one in gateway.access if one.code != 200]))

    def test_the_gateways_own_is_no_authority(self) -> None:
        """What its key has signed is a stranger's. Without the key its certificate is worth nothing."""
        authority = Authority(self.folder)
        self.pair = authority.sign("gw", server=True)
        self.ca = str(Authority(self.folder, "clients").path)
        gateway = self.served()
        self.assertEqual(200, self.dial(gateway, self.pinning(shown=self.pair), GET).client.answer().status)
        sibling = authority.sign("sibling")
        self.assertTrue(self.dial(gateway, self.pinning(shown=sibling), GET).client.lost)
        stolen = Pair(self.pair.certificate, sibling.key)
        self.assertRaises(ConfigError, self.pinning, shown=stolen)

    def test_what_cannot_be_shown(self) -> None:
        """Is said with its path."""
        for missing in (self.pair.key, self.pair.certificate):
            missing.unlink()
            error = self.assertRaises(ConfigError, self.pinning, HEX, self.pair)
            self.assertIn(str(missing), str(error))


HEX = "ab" * 32


class PinnedTests(TlsCase):
    """A client that knows a server by its fingerprint."""

    def connect(self, made: Pair, fingerprint: str) -> tuple[Client, Client]:
        """Client and server of one connection, on which the client has a secret to say; the server's end keeps what it was told."""
        clock, server = Clock(), Client()
        shown = Certificates(TlsFiles(str(made.certificate), str(made.key)), maybeDeferred, lambda: 0)
        factory = shown.wrap(Factory.forProtocol(lambda: server), clock)
        client = Client()
        reasons: list[Any] = []
        client.connectionLost = lambda reason=None: (reasons.append(reason.value), setattr(client, "lost", True))  # type: ignore[method-assign, assignment]
        client.connectionMade = lambda: client.transport.write(b"the token")  # type: ignore[method-assign, union-attr, assignment]
        line = Line(factory, Pinned(Trust(fingerprint), "localhost"), clock, client)
        client.reasons = reasons  # type: ignore[attr-defined]
        line.settle()
        return client, server

    def test_the_right_one(self) -> None:
        """Whoever has signed it, for whatever host and time; however the fingerprint is written."""
        chain = Authority(self.folder).sign("gw", server=True)
        expired = pair(self.folder, days=-1, names=("elsewhere.example",), name="old-")
        for made in (self.pair, chain, expired):
            for fingerprint in (made.fingerprint, with_colons(made.fingerprint)):
                _, server = self.connect(made, fingerprint)
                self.assertEqual(b"the token", server.received)

    def test_the_wrong_one(self) -> None:
        """Hears nothing, and the error names both fingerprints; the authority's own is not the server's."""
        authority = Authority(self.folder)
        chain = authority.sign("gw", server=True)
        above = Pair(authority.path, chain.key).fingerprint
        for made, expected in ((self.pair, HEX), (chain, above), (chain, self.pair.fingerprint)):
            client, server = self.connect(made, expected)
            self.assertEqual((True, b""), (client.lost, server.received))
            said = str(client.reasons[0])  # type: ignore[attr-defined]
            self.assertIn(with_colons(made.fingerprint), said)
            self.assertIn(with_colons(expected), said)

    def test_what_is_no_fingerprint(self) -> None:
        """Is refused before anything is connected, and so is one for a URL without TLS."""
        self.assertRaises(ValueError, Pinned, Trust("ab"), "localhost")
        for url in ("ws://gw/", "unix:/run/gw", "/run/gw"):
            self.assertRaises(ValueError, where, Clock(), url, 5.0, Trust(HEX))


class SecureEndpoint(MemoryEndpoint):
    """Connects to a site in memory through TLS."""

    def __init__(self, doors: Doors, certificates: Certificates, creator: Any) -> None:
        super().__init__(doors)
        self._certificates, self._creator = certificates, creator

    def connect(self, factory: Any) -> Deferred[Any]:
        clock = self.doors.world.clock
        self.client = factory.buildProtocol(None)
        self.line = Line(self._certificates.wrap(self.doors.world.harness.site, clock), self._creator, clock, self.client)
        self.pump = self.line.pump
        done: Deferred[Any] = Deferred()
        done.callback(self.client)
        return done


class WssTests(TlsCase):
    """The WebSocket door, by our own client."""

    def call(self, creator: Any) -> tuple[Deferred[Any], Doors, SecureEndpoint]:
        doors = Doors(self)
        self.shown = self.certificates()
        endpoint = SecureEndpoint(doors, self.shown, creator)
        work = Deferred.fromCoroutine(call(doors.world.clock, "wss://localhost:18789/", "health", {}, token=TOKEN, endpoint=endpoint))
        endpoint.line.settle()
        return work, doors, endpoint

    def test_a_call(self) -> None:
        """A whole conversation and a proper end; nothing is left."""
        work, doors, endpoint = self.call(self.pinning())
        self.assertEqual("main", self.successResultOf(work)["defaultAgentId"])
        endpoint.line.settle()
        self.assertEqual((0, 1), (doors.factory.open, doors.released))

    def test_the_wrong_certificate(self) -> None:
        """Is said with both fingerprints, is no passing failure, and no token was sent."""
        work, doors, _ = self.call(self.pinning(HEX))
        error = self.failureResultOf(work, CallFailed).value
        self.assertFalse(error.passing)
        self.assertIn("Cannot speak to a gateway at wss://localhost:18789/", error.message)
        for fingerprint in (HEX, self.pair.fingerprint):
            self.assertIn(with_colons(fingerprint), error.message)
        self.assertEqual(0, doors.factory.open)
        self.assertEqual([], doors.world.harness.access)

    def test_an_authority_that_nobody_knows(self) -> None:
        """The reason is in the error."""
        work, _, _ = self.call(ssl.optionsForClientTLS("localhost"))
        self.assertIn("certificate verify failed", self.failureResultOf(work, CallFailed).value.message)

    def test_a_client_that_stays_after_its_goodbye(self) -> None:
        """A WebSocket that was closed properly and whose TLS was not is cut off soon, and given back."""
        work, doors, endpoint = self.call(self.pinning())
        line = endpoint.line
        self.successResultOf(work)
        clock = doors.world.clock
        again = Client()
        other = Line(self.shown.wrap(doors.world.harness.site, clock), self.pinning(), clock, again)
        key = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        other.send(head("GET", "/", token=None) + key)
        self.assertEqual(1, doors.factory.open)
        again.transport.write(b"\x88\x82\0\0\0\0\x03\xe8")  # type: ignore[union-attr]
        clock.advance(0)
        data = other.tls.transport.getOutBuffer()
        other.server.dataReceived(data)
        clock.advance(CLOSE_SECONDS - 0.1)
        self.assertFalse(other.server.transport.disconnecting)
        clock.advance(0.1)
        self.assertTrue(other.server.transport.disconnecting)
        other.settle()
        line.settle()
        self.assertEqual(0, doors.factory.open)


class Reader(Protocol):
    """A client on a real socket that stops reading and goes on."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.received = bytearray()
        self.ended: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(self._request)  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Any = None) -> None:
        self.ended.callback(None)


class SlowReaderTests(TestCase):
    """Back-pressure through TLS."""

    timeout = 60

    async def test_a_stream_that_nobody_reads(self) -> None:
        """The run is suspended after what the system holds for the client, and goes on when it reads again; not a character is lost."""
        folder = Path(self.mktemp()).absolute()
        made = pair(folder)
        gateway = Harness(self)
        shown = Certificates(TlsFiles(str(made.certificate), str(made.key)), maybeDeferred, lambda: 0)
        real: Any = IReactorTCP(reactor)
        port = real.listenTCP(0, shown.wrap(gateway.site, reactor), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        reader = Reader(post(chat(stream=True), "Connection: close"))
        endpoint = wrapClientTLS(Pinned(Trust(made.fingerprint), "localhost"), TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port))
        await endpoint.connect(Factory.forProtocol(lambda: reader))
        piece, said = "x" * 60_000, 0
        while b"x" not in reader.received:
            if not said:
                gateway.provider.say(piece)
                said += 1
            await deferLater(reactor, 0.005, gateway.clock.advance, 0)
        reader.transport.pauseProducing()  # type: ignore[union-attr]
        while not gateway.ticker.paused and said < 500:
            gateway.provider.say(piece)
            said += 1
            await deferLater(reactor, 0.001, gateway.clock.advance, 0)
        for _ in range(20):
            await deferLater(reactor, 0.001, gateway.clock.advance, 0)
        self.assertEqual(1, gateway.ticker.paused)
        # What comes after that, and after the next batch, waits at the model, where nobody asks for it.
        gateway.provider.say(piece)
        said += 1
        waiting = len(gateway.provider._queue)
        for _ in range(20):
            gateway.provider.say(piece)
            await deferLater(reactor, 0.001, gateway.clock.advance, 0)
        self.assertEqual((waiting + 20, 1), (len(gateway.provider._queue), gateway.ticker.paused))
        gateway.provider.stop()
        reader.transport.resumeProducing()  # type: ignore[union-attr]
        for _ in range(5_000):
            if reader.ended.called and not gateway.connections.open:
                break
            gateway.store.commit()
            await deferLater(reactor, 0.001, gateway.clock.advance, 0)
        await reader.ended
        self.assertEqual((said + 20) * len(piece), bytes(reader.received).count(b"x" * 60_000) * len(piece))
        self.assertIn(b"data: [DONE]", reader.received)
        self.assertEqual(0, gateway.connections.open)


class TokenTests(TlsCase):
    """That TLS is on changes nothing about who is who."""

    def test_who_is_local(self) -> None:
        """Who is counted by address, and who is not, is told through TLS as without."""
        gateway = self.served({"gateway": {"limits": {"maxConnectionsPerAddress": 1}}})
        near = [self.dial(gateway, data=GET) for _ in range(3)]
        self.assertEqual([200] * 3, [line.client.answer().status for line in near])
        far = [self.dial(gateway, data=GET, peer="203.0.113.9") for _ in range(2)]
        self.assertEqual([False, True], [line.client.lost for line in far])
        self.assertEqual({"ok": True}, json.loads(far[0].client.answer().body))
