"""mayros.net.sending: what goes out at once, and what waits for the reactor."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from mayros.net.sending import send


class Server(Protocol):
    """The end that sends."""

    def __init__(self) -> None:
        self.made: Deferred[None] = Deferred()
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.made.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


class SendTests(TestCase):
    """Sockets on loopback; the other end is read by hand, so that the reactor need not turn."""

    timeout = 20

    @inlineCallbacks
    def setUp(self) -> Any:
        self.server = Server()
        factory = Factory.forProtocol(lambda: self.server)  # type: ignore[arg-type]
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        self.client = socket.create_connection(("127.0.0.1", port.getHost().port))
        self.addCleanup(self.client.close)
        yield self.server.made
        self.transport: Any = self.server.transport

    def arrived(self) -> bytes:
        self.client.setblocking(False)
        return self.client.recv(1 << 20)

    async def test_what_the_socket_takes_is_sent_at_once(self) -> None:
        """Without a turn of the reactor, and the reactor is not asked to watch the socket."""
        send(self.transport, b"one")
        self.assertEqual(self.arrived(), b"one")
        self.assertNotIn(self.transport, reactor.getWriters())  # type: ignore[attr-defined]
        self.transport.loseConnection()
        await self.server.lost

    async def test_what_it_does_not_take_follows_in_order(self) -> None:
        """The rest of a large one, and what is sent behind it, goes through the reactor; a producer is paused meanwhile."""
        paused: list[str] = []

        class Producer:
            def pauseProducing(self) -> None:
                paused.append("pause")

            def resumeProducing(self) -> None:
                paused.append("resume")

            def stopProducing(self) -> None:
                paused.append("stop")

        self.transport.registerProducer(Producer(), True)
        whole = os.urandom(16 << 20)
        send(self.transport, whole)
        self.assertEqual(paused, ["pause"])
        send(self.transport, b"the end")
        self.client.setblocking(True)
        self.client.settimeout(10)
        wanted = whole + b"the end"

        def read() -> bytes:
            data = bytearray()
            while len(data) < len(wanted):
                data += self.client.recv(1 << 20)
            return bytes(data)

        self.assertEqual(await deferToThread(read), wanted)
        self.assertEqual((paused[0], paused[-1]), ("pause", "resume"))
        self.transport.unregisterProducer()
        self.transport.loseConnection()
        await self.server.lost

    async def test_who_is_gone_is_noticed_by_the_reactor(self) -> None:
        """Nothing is raised where it is sent; the protocol is told afterwards."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.client.close()
        send(self.transport, b"one")
        self.assertFalse(self.server.lost.called)
        await self.server.lost
        send(self.transport, b"two")

    async def test_nothing_is_sent_behind_a_goodbye(self) -> None:
        """As with `write`."""
        self.transport.write(b"one")
        self.transport.loseConnection()
        send(self.transport, b"two")
        await self.server.lost
        self.assertEqual(self.arrived(), b"onetwo")

    async def test_other_transports_are_written_to(self) -> None:
        """TLS, and what tests use."""
        transport = StringTransport()
        send(transport, b"one")
        self.assertEqual(transport.value(), b"one")
        self.transport.abortConnection()
        await self.server.lost
