"""The HTTP client for providers: in memory with a clock, and a few promises on real loopback sockets."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet import defer, endpoints, protocol, reactor, ssl, task
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost, ConnectionRefusedError, DNSLookupError
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mayros.errors import ConfigError, QueueFull
from mayros.net import connection as limits
from mayros.net.http import (
    BadResponse,
    ConnectFailed,
    ConnectTimeout,
    FirstByteTimeout,
    IdleTimeout,
    Origin,
    TimedOut,
    header_lines,
    origin_for,
)
from mayros.net.upload import PIECE
from tests.upstream import Endpoint

HI = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class InMemory(SynchronousTestCase):
    """Base: a server in memory, a clock, and an origin with small limits."""

    def setUp(self) -> None:
        self.clock = task.Clock()
        self.server = Endpoint()
        self.origin = self.make()

    def make(self, **more: Any) -> Origin:
        settings = {"connect_timeout": 10.0, "first_byte_timeout": 60.0, "idle_timeout": 30.0, **more}
        return Origin(self.server, b"Host: x\r\n", self.clock, base=b"/v1", **settings)

    def start(self, coroutine: Any) -> Deferred[Any]:
        exchange = Deferred.fromCoroutine(coroutine)
        self.addCleanup(self.quit, exchange)
        return exchange

    @staticmethod
    def quit(exchange: Deferred[Any]) -> None:
        """Leave no exchange behind."""
        if not exchange.called:
            exchange.addErrback(lambda failure: failure.trap(CancelledError) and None)
            exchange.cancel()

    async def body(self, origin: Origin | None = None) -> bytes:
        """One whole exchange."""
        async with await (origin or self.origin).post(b"/chat", b"{}") as response:
            return b"".join([piece async for piece in response])

    def answer(self, reply: bytes, origin: Origin | None = None) -> bytes:
        """One whole exchange with this reply."""
        exchange = self.start(self.body(origin))
        self.server.say(reply)
        return self.successResultOf(exchange)

    def refuses(self, reply: bytes) -> str:
        """The reply is refused at once and its connection closed; gives the message."""
        exchange = self.start(self.body())
        self.server.say(reply)
        error = self.failureResultOf(exchange, BadResponse).value
        self.assertTrue(self.server.wires[-1].aborted)
        return str(error)


class Uploads(InMemory):
    """Requests of megabytes."""

    def test_in_pieces(self) -> None:
        """They go out as the socket takes them, whatever the parts; then the connection serves others."""
        parts = (b"a" * 700_000, memoryview(b"b" * 900_000), b"", b"c")
        exchange = self.start(self.origin.post(b"/chat", parts))
        (wire,) = self.server.wires
        wire.producer.resumeProducing()
        head, *pieces = wire.request.split(b"\r\n\r\n", 1)
        self.assertIn(b"Content-Length: 1600001", head)
        self.assertEqual(len(head + pieces[0]) + 4, PIECE)
        while wire.producer is not None:
            wire.producer.resumeProducing()
            pieces.append(wire.request)
        self.assertEqual(b"".join(pieces), b"".join(parts))
        self.assertLessEqual(max(map(len, pieces)), PIECE)
        self.server.say(HI)
        response = self.successResultOf(exchange)
        self.successResultOf(Deferred.fromCoroutine(response.read(2)))
        self.successResultOf(Deferred.fromCoroutine(response.__aexit__(None, None, None)))
        self.answer(HI)
        self.assertEqual(len(self.server.wires), 1)

    def test_small_ones(self) -> None:
        """Go out at once, also where a part is a view."""
        self.start(self.origin.post(b"/chat", (b"a", memoryview(b"bc")[1:])))
        self.assertTrue(self.server.wires[0].request.endswith(b"Content-Length: 2\r\n\r\nac"))

    def test_answered_before_its_end(self) -> None:
        """The answer counts; the connection is not used again, and the rest is not sent."""
        self.assertEqual(self.successResultOf(self.refused_early()), b"hi")
        (wire,) = self.server.wires
        self.assertTrue(wire.aborted)

    def refused_early(self) -> Deferred[bytes]:
        async def exchange() -> bytes:
            async with await self.origin.post(b"/chat", b"x" * 3_000_000) as response:
                return await response.read(10)

        made = self.start(exchange())
        self.server.say(HI)
        return made


class Exchanges(InMemory):
    """Requests and answers."""

    def test_what_is_sent(self) -> None:
        """One write: request line with base path, fixed head, own headers, length, body."""
        self.start(self.origin.post(b"/chat", b"{}", b"X-Request-Id: 7\r\n"))
        self.assertEqual(self.server.wires[0].request, b"POST /v1/chat HTTP/1.1\r\nHost: x\r\nX-Request-Id: 7\r\nContent-Length: 2\r\n\r\n{}")

    def test_keeps_the_connection(self) -> None:
        """Exchanges one after the other share a connection and its timer; that, and the pool's, are all that is left behind, and it does not last."""
        for _ in range(3):
            self.assertEqual(self.answer(HI), b"hi")
        self.assertEqual(len(self.server.wires), 1)
        self.assertEqual(len(self.clock.getDelayedCalls()), 2)
        self.clock.advance(min(self.origin.first_byte_timeout, self.origin.idle_timeout))
        self.assertTrue(self.server.wires[0].connected)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.assertEqual(self.answer(HI), b"hi")
        self.origin.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertFalse(self.server.wires[0].connected)

    def test_any_chunking_and_interim_answers(self) -> None:
        """1xx answers, chunk extensions and trailers, byte by byte."""
        reply = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\nh\r\n1\r\ni\r\n0\r\nT: z\r\n\r\n"
        exchange = self.start(self.body())
        for byte in reply:
            self.server.say(bytes([byte]))
        self.assertEqual(self.successResultOf(exchange), b"hi")
        self.assertEqual(self.answer(HI), b"hi")
        self.assertEqual(len(self.server.wires), 1)

    def test_one_piece_per_read(self) -> None:
        """Chunks that come in one read are one piece."""
        exchange = self.start(self.origin.post(b"/", b""))
        self.server.say(HEAD + b"1\r\na\r\n1\r\nb\r\n")
        response = self.successResultOf(exchange)
        self.assertEqual(self.successResultOf(response.__anext__()), b"ab")
        self.assertEqual((response.status, response.headers[b"transfer-encoding"]), (200, b"chunked"))

    def test_a_body_may_end_with_its_connection(self) -> None:
        """No length and no chunks: the end of the connection is the end of the body, when it is closed and not broken."""
        for reason, fine in ((None, True), (ConnectionLost(), False)):
            exchange = self.start(self.body())
            self.server.say(b"HTTP/1.1 200 OK\r\n\r\nhi")
            self.server.hang_up(reason)
            if fine:
                self.assertEqual(self.successResultOf(exchange), b"hi")
            else:
                self.failureResultOf(exchange, BadResponse)

    def test_not_kept_when_the_server_says_so(self) -> None:
        """`Connection: close` and HTTP/1.0."""
        for number, reply in enumerate((HI.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), HI.replace(b"1.1", b"1.0")), 1):
            self.assertEqual(self.answer(reply), b"hi")
            self.assertEqual(len(self.server.wires), number)
            self.assertFalse(self.server.wires[-1].connected)

    def test_reading_a_part(self) -> None:
        """`read` stops at its limit, and leaving then closes the socket (U14)."""

        async def part() -> bytes:
            async with await self.origin.post(b"/", b"") as response:
                return await response.read(64 * 1024)

        exchange = self.start(part())
        self.server.say(b"HTTP/1.1 500 Oops\r\nContent-Length: 100000000\r\n\r\n")
        self.assertNoResult(exchange)
        self.server.say(b"x" * 70_000)
        self.assertEqual(len(self.successResultOf(exchange)), 64 * 1024)
        self.assertTrue(self.server.wires[0].aborted)


class Kept(InMemory):
    """Connections between exchanges."""

    def test_retried_when_the_server_had_closed_it(self) -> None:
        """A kept connection that turns out dead is replaced, once, because not a byte was answered (U02)."""
        self.answer(HI)
        exchange = self.start(self.body())
        self.server.hang_up()
        self.server.say(HI)
        self.assertEqual(self.successResultOf(exchange), b"hi")
        self.assertEqual(len(self.server.wires), 2)

    def test_a_second_closing_is_an_error(self) -> None:
        """The replacement is closed as well: no third try."""
        self.answer(HI)
        exchange = self.start(self.body())
        self.server.hang_up()
        self.server.hang_up()
        self.assertIn("the server closed it", str(self.failureResultOf(exchange, BadResponse).value))
        self.assertEqual(len(self.server.wires), 2)

    def test_never_retried_after_a_byte(self) -> None:
        """Once anything was answered the request may have been carried out."""
        self.answer(HI)
        exchange = self.start(self.body())
        self.server.say(b"H")
        self.server.hang_up()
        self.failureResultOf(exchange, BadResponse)
        self.assertEqual(len(self.server.wires), 1)

    def test_never_retried_on_a_fresh_connection(self) -> None:
        """A server that accepts and closes at once is an error (U02)."""
        exchange = self.start(self.body())
        self.server.hang_up()
        self.failureResultOf(exchange, BadResponse)
        self.assertEqual(len(self.server.wires), 1)

    def test_data_that_nobody_asked_for(self) -> None:
        """Bytes between exchanges, or after an answer, are no answer to the next request."""
        self.answer(HI)
        self.server.say(HI)
        self.assertTrue(self.server.wires[0].aborted)
        self.assertEqual(self.answer(HI + HI.replace(b"hi", b"no")), b"hi")
        self.assertTrue(self.server.wires[1].aborted)
        self.assertEqual(self.answer(HI), b"hi")
        self.assertEqual(len(self.server.wires), 3)

    def test_closed_when_nobody_used_it_for_a_while(self) -> None:
        """After 45 s, before the server's own limit closes it; one timer serves them all."""
        first, second = self.start(self.body()), self.start(self.body())
        self.server.say(HI, 0)
        self.clock.advance(10)
        self.server.say(HI, 1)
        self.successResultOf(first), self.successResultOf(second)
        self.clock.advance(35)
        self.assertEqual([wire.connected for wire in self.server.wires], [False, True])
        self.clock.advance(10)
        self.assertFalse(self.server.wires[1].connected)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_server_that_does_not_say_goodbye(self) -> None:
        """A connection being closed politely is cut after a second."""
        self.answer(HI)
        self.patch(self.server.wires[0], "loseConnection", lambda: None)
        self.origin.close()
        self.assertFalse(self.server.wires[0].aborted)
        self.clock.advance(1)
        self.assertTrue(self.server.wires[0].aborted)

    def test_after_close_nothing_is_kept(self) -> None:
        """An exchange under way at the shutdown ends well and its connection is closed."""
        exchange = self.start(self.body())
        self.origin.close()
        self.server.say(HI)
        self.assertEqual(self.successResultOf(exchange), b"hi")
        self.assertFalse(self.server.wires[0].connected)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_settled(self) -> None:
        """Who has read all that matters may leave; the connection is kept when the answer ends soon, and its slot is free then."""
        origin = self.make(max_connections=1)

        async def enough() -> bytes:
            async with await origin.post(b"/", b"") as response:
                async for piece in response:
                    response.settle()
                    return piece
            raise AssertionError

        for ending, closed in ((b"0\r\n\r\n", False), (b"", True), (b"fffff\r\n" + b"x" * 70_000, True)):
            exchange = self.start(enough())
            self.server.say(HEAD + b"6\r\n[DONE]\r\n")
            self.assertEqual(self.successResultOf(exchange), b"[DONE]")
            if ending:
                self.server.say(ending)
            else:
                self.clock.advance(1)
            self.assertEqual(self.server.wires[-1].aborted, closed)
        exchange = self.start(enough())
        self.server.say(HEAD + b"6\r\n[DONE]\r\n")
        self.server.hang_up(ConnectionLost())
        self.assertEqual(self.successResultOf(exchange), b"[DONE]")
        self.assertEqual(len(self.server.wires), 3)
        self.assertEqual(self.answer(HI, origin), b"hi")
        origin.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Hostile(InMemory):
    """Answers that are refused (U16, U23, U24)."""

    def test_not_http(self) -> None:
        """Other protocols, broken lines, other versions."""
        for reply in (
            b"220 smtp ready\r\n",
            b"HTTP/1.1 banana\r\n\r\n",
            b"HTTP/9.9 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            HEAD + b"zz\r\n",
            HEAD + b"ffffffffffffffffffff\r\n",
        ):
            self.assertIn("not valid HTTP", self.refuses(reply), reply)

    def test_upgrade(self) -> None:
        """Nobody asked for another protocol."""
        self.refuses(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")

    def test_lengths_that_contradict_each_other(self) -> None:
        """Two lengths, or a length beside chunks, hide a second answer."""
        self.refuses(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi")
        self.refuses(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")

    def test_compressed(self) -> None:
        """Nothing is ever inflated."""
        for header in (b"Content-Encoding: gzip", b"Content-Encoding: br", b"Transfer-Encoding: gzip, chunked"):
            self.refuses(b"HTTP/1.1 200 OK\r\n" + header + b"\r\n\r\n")
        self.assertEqual(self.answer(HI.replace(b"\r\n\r\n", b"\r\nContent-Encoding: identity\r\n\r\n")), b"hi")

    def test_heads_are_bounded(self) -> None:
        """Endless headers, one endless header, endless interim answers, chunk extensions and trailers: 64 KiB and no more."""
        for start, more in (
            (b"HTTP/1.1 200 OK\r\n", b"X: " + b"a" * 4000 + b"\r\n"),
            (b"HTTP/1.1 200 OK\r\nX: ", b"a" * 4000),
            (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
            (HEAD + b"1;", b"a" * 4000),
            (HEAD + b"0\r\n", b"X: " + b"a" * 4000 + b"\r\n"),
        ):
            exchange = self.start(self.body())
            self.server.say(start)
            sent = 0
            while not self.server.wires[-1].aborted:
                self.server.say(more)
                sent += len(more)
                self.assertLess(sent, limits.HEAD_LIMIT + 4096)
            self.failureResultOf(exchange, BadResponse)

    def test_a_redirect_is_an_answer_like_any_other(self) -> None:
        """Nobody follows it."""
        exchange = self.start(self.origin.post(b"/", b""))
        self.server.say(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual(self.successResultOf(exchange).status, 302)
        self.assertEqual(len(self.server.wires), 1)

    def test_broken_off(self) -> None:
        """What came before is read, then the error is raised (U05)."""
        exchange = self.start(self.origin.post(b"/", b""))
        self.server.say(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi")
        self.server.hang_up(ConnectionLost())
        response = self.successResultOf(exchange)
        self.assertEqual(self.successResultOf(response.__anext__()), b"hi")
        self.assertIn("it broke off", str(self.failureResultOf(response.__anext__(), BadResponse).value))

    def test_a_slow_consumer_pauses_the_server(self) -> None:
        """At most 256 KiB and one read are held for a consumer that does not come."""
        exchange = self.start(self.origin.post(b"/", b""))
        self.server.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        response = self.successResultOf(exchange)
        wire, sent = self.server.wires[0], 0
        while not wire.paused:
            self.server.say(b"x" * 65_536)
            sent += 65_536
        self.assertLessEqual(sent, limits.UNREAD_LIMIT + 65_536)
        self.assertEqual(len(self.successResultOf(response.__anext__())), sent)
        self.assertFalse(wire.paused)


class Limits(InMemory):
    """Every wait ends."""

    def test_refused_or_unknown(self) -> None:
        """No connection, no such host (U01)."""
        for error in (ConnectionRefusedError(), DNSLookupError("no such host")):
            self.server.error = error
            self.failureResultOf(self.start(self.body()), ConnectFailed)

    def test_connecting(self) -> None:
        """A server that does not take the connection; the attempt is given up."""
        self.server.hold = True
        exchange = self.start(self.body())
        self.clock.advance(9.9)
        self.assertNoResult(exchange)
        self.clock.advance(0.1)
        self.failureResultOf(exchange, ConnectTimeout)
        self.assertEqual(self.server.cancelled, 1)

    def test_first_byte(self) -> None:
        """Silence before the head, also when the head only trickles (U03)."""
        for trickle in (False, True):
            exchange = self.start(self.body())
            for _ in range(59):
                self.clock.advance(1)
                if trickle:
                    self.server.say(b"HTTP/1.1 200 OK\r\nX: " if _ == 0 else b"x")
            self.assertNoResult(exchange)
            self.clock.advance(1)
            self.failureResultOf(exchange, FirstByteTimeout)
            self.assertTrue(self.server.wires[-1].aborted)

    def test_idle(self) -> None:
        """Silence inside the body: the limit counts from the last read (U04)."""
        exchange = self.start(self.body())
        self.clock.advance(59)
        self.server.say(HEAD)
        for _ in range(5):
            self.clock.advance(29)
            self.server.say(b"1\r\nx\r\n")
            self.assertNoResult(exchange)
        self.clock.advance(29.9)
        self.assertNoResult(exchange)
        self.clock.advance(0.1)
        self.failureResultOf(exchange, IdleTimeout)
        self.assertTrue(issubclass(IdleTimeout, TimedOut))
        self.assertTrue(self.server.wires[0].aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_slow_consumer_is_not_a_silent_server(self) -> None:
        """While the consumer is away, for whatever reason, the server is not idle; when it comes back the limit starts anew."""
        exchange = self.start(self.origin.post(b"/", b""))
        self.server.say(HEAD + b"1\r\nx\r\n")
        response = self.successResultOf(exchange)
        self.clock.pump([10] * 30)
        self.assertEqual(self.successResultOf(response.__anext__()), b"x")
        more = self.start(response.__anext__())
        self.clock.pump([1] * 29)
        self.assertNoResult(more)
        self.clock.advance(1)
        self.failureResultOf(more, IdleTimeout)

    def test_one_byte_per_second(self) -> None:
        """Slow is not silent (U15)."""
        exchange = self.start(self.body())
        for byte in HI:
            self.clock.advance(1)
            self.server.say(bytes([byte]))
        self.assertEqual(self.successResultOf(exchange), b"hi")


class Cancelling(InMemory):
    """A cancel closes the socket at once, wherever it comes, and gives the place to the next."""

    def setUp(self) -> None:
        super().setUp()
        self.origin = self.make(max_connections=1)

    def cancel(self, exchange: Deferred[Any]) -> None:
        exchange.cancel()
        self.failureResultOf(exchange, CancelledError)
        self.assertEqual(self.answer_afterwards(), b"hi")

    def answer_afterwards(self) -> bytes:
        self.server.hold = False
        return self.answer(HI)

    def test_while_connecting(self) -> None:
        """The attempt is given up."""
        self.server.hold = True
        exchange = self.start(self.body())
        self.cancel(exchange)
        self.assertEqual(self.server.cancelled, 1)

    def test_while_waiting_for_the_head(self) -> None:
        """Nothing lingers."""
        exchange = self.start(self.body())
        self.cancel(exchange)
        self.assertTrue(self.server.wires[0].aborted)

    def test_while_reading(self) -> None:
        """Also while the body comes."""
        exchange = self.start(self.body())
        self.server.say(HEAD + b"1\r\nx\r\n")
        self.cancel(exchange)
        self.assertTrue(self.server.wires[0].aborted)

    def test_while_paused(self) -> None:
        """Also while nothing is read because the consumer waits for something else."""
        elsewhere: Deferred[None] = Deferred()

        async def slow() -> None:
            async with await self.origin.post(b"/", b"") as response:
                async for _ in response:
                    await elsewhere

        exchange = self.start(slow())
        self.server.say(HEAD + b"fffff\r\n" + b"x" * 300_000)
        self.server.say(b"x" * 300_000)
        self.assertTrue(self.server.wires[0].paused)
        self.cancel(exchange)
        self.assertTrue(self.server.wires[0].aborted)

    def test_while_queued(self) -> None:
        """Who leaves the queue is not served."""
        first, second, third = (self.start(self.body()) for _ in range(3))
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.server.say(HI)
        self.assertEqual(self.successResultOf(first), b"hi")
        self.server.say(HI)
        self.assertEqual(self.successResultOf(third), b"hi")


class Queue(InMemory):
    """A bound on connections in use."""

    def test_in_order_and_without_a_time_limit(self) -> None:
        """Those that wait are served in order of arrival; their waiting is no provider's fault, however long it takes."""
        origin = self.make(max_connections=2)
        exchanges = [self.start(self.body(origin)) for _ in range(4)]
        self.server.say(HEAD, 0)
        self.server.say(HEAD, 1)
        for _ in range(20):
            self.clock.advance(20)
            self.server.say(b"1\r\nx\r\n", 0)
            self.server.say(b"1\r\nx\r\n", 1)
        self.assertEqual(len(self.server.wires), 2)
        self.server.say(b"0\r\n\r\n", 1)
        self.assertEqual(self.server.wires[1].value().count(b"POST"), 2)
        self.server.say(HI, 1)
        self.assertEqual(self.successResultOf(exchanges[2]), b"hi")
        self.server.say(HI, 1)
        self.assertEqual(self.successResultOf(exchanges[3]), b"hi")
        self.assertNoResult(exchanges[0])

    def test_the_queue_is_bounded(self) -> None:
        """1,024 wait, the next is refused; a row of failures empties it without a deep stack."""
        origin = self.make(max_connections=1)
        waiting = [self.start(self.body(origin)) for _ in range(1025)]
        self.failureResultOf(self.start(self.body(origin)), QueueFull)
        self.server.error = ConnectionRefusedError()
        self.server.hang_up()
        self.failureResultOf(waiting[0], BadResponse)
        for exchange in waiting[1:]:
            self.failureResultOf(exchange, ConnectFailed)
        self.server.error = None
        self.assertEqual(self.answer(HI, origin), b"hi")


class Addresses(SynchronousTestCase):
    """From a URL of the configuration to an origin."""

    def head(self, url: str, headers: dict[str, str] | None = None) -> bytes:
        origin = origin_for(url, headers or {}, task.Clock())
        return origin._before + b"|" + origin._after

    def test_base_url(self) -> None:
        """Path and query stand around each request's path; the host is named as the URL names it."""
        self.assertEqual(
            self.head("http://127.0.0.1:11434/v1/", {"X-A": " b "}),
            b"POST /v1| HTTP/1.1\r\nHost: 127.0.0.1:11434\r\nAccept-Encoding: identity\r\nUser-Agent: mayros-gateway\r\nX-A: b\r\n",
        )
        self.assertIn(b"POST /a| ", self.head("http://[::1]:80/a"))
        self.assertIn(b"Host: [::1]\r\n", self.head("http://[::1]:80/a"))
        self.assertIn(b"|?api-version=2 HTTP/1.1\r\n", self.head("http://127.0.0.1/v1?api-version=2"))
        self.assertNotIn(b"mayros", self.head("http://127.0.0.1", {"user-agent": "me"}))

    def test_urls_that_cannot_be_used(self) -> None:
        """Refused with the reason; a password in one is not shown."""
        for url in ("ftp://x", "http://", "x", "http://x:99999", "http://x/a b", "http://x/#y", "http://a..b/", "http://x/\r\nEvil: 1"):
            self.assertRaises(ConfigError, self.head, url)
        error = self.assertRaises(ConfigError, self.head, "http://me:hunter2@x/v1")
        self.assertNotIn("hunter2", str(error))

    def test_headers_that_cannot_be_sent(self) -> None:
        """No header may break the head apart or take over the client's own; the value, perhaps a secret, is not shown."""
        for name, value in (("A", "x\r\nB: y"), ("A", "\x00"), ("A", "é"), ("A b", "x"), ("", "x"), ("Content-Length", "1"), ("Host", "y")):
            error = self.assertRaises(ConfigError, header_lines, {name: value})
            self.assertNotIn(repr(value), str(error))

    def test_certificates_that_cannot_be_read(self) -> None:
        """A wrong `caPath` is found at the start."""
        empty = Path(self.mktemp())
        empty.write_text("no certificate")
        for path in ("/does/not/exist", str(empty)):
            self.assertRaises(ConfigError, origin_for, "https://127.0.0.1", {}, task.Clock(), ca_path=path)


class Upstream(protocol.Protocol):
    """A server on a real socket that answers each request by calling `script(self, number of the request)`."""

    def connectionMade(self) -> None:
        self.factory.connections.append(self)
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.factory.requests += data.count(b"POST ")
        self.factory.script(self, self.factory.requests)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        self.lost.callback(None)


class Counting(Upstream):
    """Answers when five megabytes are there; reads nothing more after the first piece while its factory is `deaf`."""

    def dataReceived(self, data: bytes) -> None:
        self.factory.received += len(data)
        if self.factory.received > 5_000_000:
            self.transport.write(HI)
        if self.factory.deaf:
            self.transport.pauseProducing()


class Sockets(TestCase):
    """What only a real socket shows."""

    timeout = 20

    async def serve(self, script: Callable[[Upstream, int], object], **more: Any) -> Origin:
        self.server = protocol.Factory.forProtocol(Upstream)
        self.server.connections, self.server.requests, self.server.script = [], 0, script
        tls = more.pop("tls", None)
        server = endpoints.SSL4ServerEndpoint(reactor, 0, tls, interface="127.0.0.1") if tls else None
        port = await (server or endpoints.TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")).listen(self.server)
        self.addCleanup(port.stopListening)
        host = more.pop("host", "127.0.0.1")
        origin = origin_for(f"{'https' if tls else 'http'}://{host}:{port.getHost().port}/v1", {}, reactor, **more)
        self.addCleanup(lambda: defer.gatherResults([self.hang_up(c) for c in self.server.connections]))
        self.addCleanup(origin.close)
        return origin

    def hang_up(self, connection: Upstream) -> Deferred[None]:
        if not connection.lost.called:
            connection.transport.abortConnection()
        return connection.lost

    async def body(self, origin: Origin) -> bytes:
        async with await origin.post(b"/", b"{}") as response:
            return b"".join([data async for data in response])

    async def test_by_name(self) -> None:
        """`localhost` is looked up, and the connection is kept."""
        origin = await self.serve(lambda peer, n: peer.transport.write(HI), host="localhost")
        self.assertEqual([await self.body(origin) for _ in range(3)], [b"hi"] * 3)
        self.assertEqual(len(self.server.connections), 1)

    async def test_refused(self) -> None:
        """Nobody listens there."""
        origin = await self.serve(lambda peer, n: None)
        port = endpoints.TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        closed = await port.listen(self.server)
        number = closed.getHost().port
        await defer.maybeDeferred(closed.stopListening)
        origin = origin_for(f"http://127.0.0.1:{number}", {}, reactor)
        await self.assertFailure(defer.ensureDeferred(self.body(origin)), ConnectFailed)

    async def test_cancelling_closes_the_socket(self) -> None:
        """The server sees the end at once."""
        origin = await self.serve(lambda peer, n: peer.transport.write(HEAD + b"2\r\nhi\r\n"))
        got: Deferred[bytes] = Deferred()

        async def read() -> None:
            async with await origin.post(b"/", b"{}") as response:
                async for piece in response:
                    got.callback(piece)

        reading = Deferred.fromCoroutine(read())
        self.assertEqual(await got, b"hi")
        await task.deferLater(reactor, 0)  # a coroutine that is running cannot be cancelled
        reading.cancel()
        await self.assertFailure(reading, CancelledError)
        await self.server.connections[0].lost.addTimeout(1, reactor)

    async def test_a_large_body_to_a_slow_consumer(self) -> None:
        """Back-pressure, then all of it."""
        size = 8_000_000

        def script(peer: Upstream, number: int) -> None:
            peer.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)

        origin = await self.serve(script)
        async with await origin.post(b"/", b"{}") as response:
            held = []
            for _ in range(20):
                await task.deferLater(reactor, 0.002)
                held.append(response._unread)
            self.assertLess(max(held), limits.UNREAD_LIMIT + 70_000)
            self.assertEqual(sum([len(data) async for data in response]), size)

    async def test_uploads(self) -> None:
        """Megabytes arrive whole, also over TLS; with a cancel in the middle of one its socket is closed."""
        pem, certificate = self.certificate()
        for more in ({}, {"tls": certificate.options(), "host": "localhost", "ca_path": pem}):
            origin = await self.serve(lambda peer, n: None, **more)
            self.server.protocol, self.server.received, self.server.deaf = Counting, 0, False
            async with await origin.post(b"/", (b"x" * 2_000_000, b"y" * 3_000_000)) as response:
                self.assertEqual(await response.read(10), b"hi")
            self.assertTrue(5_000_000 < self.server.received < 5_000_300)
            self.server.deaf, self.server.received = True, 0
            sending = Deferred.fromCoroutine(origin.post(b"/", b"x" * 20_000_000))
            await task.deferLater(reactor, 0.1)
            sending.cancel()
            await self.assertFailure(sending, CancelledError)
            connection, self.server.deaf = self.server.connections[-1], False
            connection.transport.resumeProducing()
            await connection.lost.addTimeout(5, reactor)
            self.assertLess(self.server.received, 20_000_000)

    async def test_tls(self) -> None:
        """A certificate that is trusted is used, one that is not is refused and named as the reason; a cancel closes the socket here too."""
        pem, certificate = self.certificate()
        origin = await self.serve(lambda peer, n: peer.transport.write(HI), tls=certificate.options(), host="localhost", ca_path=pem)
        self.assertEqual([await self.body(origin) for _ in range(2)], [b"hi"] * 2)
        self.assertEqual(len(self.server.connections), 1)
        port = self.server.connections[0].transport.getHost().port
        doubtful = origin_for(f"https://localhost:{port}/v1", {}, reactor)
        error = await self.assertFailure(defer.ensureDeferred(self.body(doubtful)), BadResponse)
        self.assertIn("certificate verify failed", str(error))

        asked: Deferred[None] = Deferred()
        self.server.script = lambda peer, n: asked.callback(None)
        reading = Deferred.fromCoroutine(self.body(origin))
        await asked
        reading.cancel()
        await self.assertFailure(reading, CancelledError)
        await self.server.connections[0].lost.addTimeout(1, reactor)

    def certificate(self) -> tuple[str, ssl.PrivateCertificate]:
        """A self-signed certificate for localhost: the path of its PEM, and what a server needs."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(key, hashes.SHA256())
        )
        pem = made.public_bytes(serialization.Encoding.PEM)
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        path = Path(self.mktemp())
        path.write_bytes(pem)
        return str(path), ssl.PrivateCertificate.loadPEM(pem + private)
