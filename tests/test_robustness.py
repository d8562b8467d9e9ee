"""What a hostile or unlucky day must not do to the gateway: keep memory, flood the log, stall others, or outlive its operator's wish."""

from __future__ import annotations

import gc
import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.protocol import Factory
from twisted.logger import Logger, LogPublisher
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from mayros.core.runs import LiveRun
from mayros.errors import InvalidRequest, RequestTooLarge, UpstreamError, bare
from mayros.ops.listen import UNSENT_BYTES, Listeners, parse_endpoint
from mayros.ops.logs import LineObserver, console
from mayros.service import RESERVED_FILES, connections_for
from mayros.web.request import GatewayRequest
from mayros.wire.chat import MAX_BESIDES, decode_request
from tests.daemon import Daemon, Quick, Upstream, read_until
from tests.helpers import Client, Harness, HarnessCase, chat, head, post

HELLO = {"model": "mayros", "messages": [{"role": "user", "content": "hello"}]}


class KeptTests(HarnessCase):
    """What is over is freed at once. The collector looks seldom, and a request in a circle of references keeps its body of up to 32 MB."""

    def setUp(self) -> None:
        super().setUp()
        self.one = self.gateway()
        gc.disable()
        self.addCleanup(gc.enable)
        gc.freeze()  # what is there of other tests is not looked at
        self.addCleanup(gc.unfreeze)

    def made(self, *kinds: type) -> list[Any]:
        """What this test made of these kinds and is still there."""
        return [found for found in gc.get_objects() if isinstance(found, kinds)]

    def nothing_kept(self, case: Callable[[Harness], Client], *kinds: type) -> None:
        """Run a case, end its connection, and look for what is left of it."""
        client = case(self.one)
        client.leave()
        self.one.advance(1)
        del client
        self.assertEqual(self.made(*kinds), [])

    def test_answered(self) -> None:
        """Plain and streamed."""
        for stream in (False, True):

            def case(gateway: Harness, stream: bool = stream) -> Client:
                client = gateway.dial(post(chat("hi", stream=stream)))
                gateway.provider.say("hello")
                gateway.provider.stop()
                gateway.settle(client)
                return client

            self.nothing_kept(case, LiveRun, GatewayRequest)

    def test_failed(self) -> None:
        """Before the first byte, in the middle of a stream, and for the length of the prompt."""

        def upstream(gateway: Harness) -> Client:
            client = gateway.dial(post(chat("hi")))
            gateway.provider.fail(UpstreamError("no"))
            gateway.settle(client)
            return client

        def midway(gateway: Harness) -> Client:
            client = gateway.dial(post(chat("hi", stream=True)))
            gateway.provider.say("hello")
            gateway.settle(client)
            gateway.provider.fail(UpstreamError("no"))
            gateway.settle(client)
            return client

        for case in (upstream, midway, lambda gateway: gateway.dial(post(chat("y" * 100_000)))):
            self.nothing_kept(case, LiveRun, GatewayRequest)

    def test_left(self) -> None:
        """Before the first byte, in the middle of a stream, in the queue of its session, and in the middle of the body."""

        def midway(gateway: Harness) -> Client:
            client = gateway.dial(post(chat("hi", stream=True)))
            gateway.provider.say("hello")
            gateway.settle(client)
            return client

        def queued(gateway: Harness) -> Client:
            first, second = gateway.dial(post(chat("hi", user="q"))), gateway.dial(post(chat("hi", user="q")))
            second.leave()
            gateway.settle(first, second)
            return first

        for case in (lambda gateway: gateway.dial(post(chat("hi"))), lambda gateway: gateway.dial(post(chat("hi", stream=True))), midway, queued):
            self.nothing_kept(case, LiveRun)  # the connection in memory keeps the request

    def test_refused(self) -> None:
        """By the gate, and for what its body says."""
        for data in (head("GET", "/nowhere") + b"\r\n", head("GET") + b"\r\n", post({"messages": 5}), post(chat("hi", n=2))):

            def case(gateway: Harness, data: bytes = data) -> Client:
                return gateway.dial(data)

            self.nothing_kept(case, GatewayRequest)

    def test_a_body_that_stops_in_the_middle(self) -> None:
        """Its bytes are not kept, whatever Twisted's parser keeps."""
        client = self.one.dial(post(chat("hello " * 10_000))[:-5])
        client.leave()
        self.one.advance(1)
        self.assertEqual([len(request.body) for request in self.made(GatewayRequest) if request.body], [])


class BareTests(SynchronousTestCase):
    """errors.bare."""

    def test_frames_go_and_causes_stay(self) -> None:
        """Of the error and of all that led to it."""
        try:
            try:
                raise ValueError("why")
            except ValueError as error:
                raise InvalidRequest("what") from error
        except InvalidRequest as error:
            kept = bare(error)
        self.assertEqual((kept.__traceback__, str(kept.__cause__)), (None, "why"))
        assert kept.__cause__ is not None
        self.assertIsNone(kept.__cause__.__traceback__)


class LogTests(SynchronousTestCase):
    """The log stays readable, and nobody has to read it."""

    def test_twisted_does_not_repeat_itself(self) -> None:
        """While descriptors are short it has a remark for each connection: one of each kind a minute is enough. Ours are all written."""
        out = io.StringIO()
        publisher = LogPublisher(LineObserver(out, "info", "pretty", str, journal=False))
        twisted, own = Logger("twisted.internet.tcp.Port", observer=publisher), Logger("mayros.x", observer=publisher)
        for number in range(100):
            twisted.info("EMFILE recovery: Closed socket from {address}", address=number)
            own.info("client {number}", number=number)
        twisted.info("Re-reserving EMFILE recovery file descriptor.")
        lines = out.getvalue().splitlines()
        self.assertEqual((sum("EMFILE" in line for line in lines), sum("client" in line for line in lines)), (2, 100))

    def test_a_minute_later_it_is_said_again(self) -> None:
        """By the time of the events."""
        out = io.StringIO()
        observer = LineObserver(out, "info", "pretty", str, journal=False)
        for now in (1000.0, 1059.0, 1060.0):
            observer({"log_namespace": "twisted.internet.tcp.Port", "log_format": "again", "log_time": now})
        self.assertEqual(out.getvalue().count("again"), 2)

    def test_no_standard_output(self) -> None:
        """A process started with it closed has none in Python."""
        self.patch(sys, "stdout", None)
        Logger("test", observer=LogPublisher(console("info", "pretty", str))).info("hello")


class SocketTests(TestCase):
    """What is asked of the operating system."""

    def test_the_kernel_does_not_hoard_for_slow_clients(self) -> None:
        """A connection takes little that it cannot send, so that a client that stops reading is noticed early."""
        option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
        if option is None:
            raise SkipTest("this system has no such option")
        listeners = Listeners()
        self.addCleanup(listeners.close)
        for text in ("tcp:0:interface=127.0.0.1", f"unix:{os.path.relpath(self.mktemp())}"):
            listeners.open(parse_endpoint(reactor, text), Factory(), "it")
        port = listeners.ports[0]
        with closing(socket.create_connection(("127.0.0.1", port.getHost().port))):  # type: ignore[attr-defined]
            accepted, _ = port.socket.accept()  # type: ignore[attr-defined]
            with closing(accepted):
                self.assertEqual(accepted.getsockopt(socket.IPPROTO_TCP, option), UNSENT_BYTES)

    def test_runs_have_descriptors_too(self) -> None:
        """Clients get what runs, and the reserve, leave over; where there is little, half."""
        self.assertEqual(connections_for(20_000, 1024), 20_000 - RESERVED_FILES - 1024)
        self.assertEqual(connections_for(1_024, 1024), (1_024 - RESERVED_FILES) // 2)
        self.assertEqual(connections_for(100, 1024), 64)


class StallTests(SynchronousTestCase):
    """One request does not keep the others waiting."""

    def test_all_but_the_messages_is_small(self) -> None:
        """Millions of tiny values take seconds to read; they are refused before they are, also where a name comes twice or is unknown."""
        messages = b'"messages":[{"role":"user","content":"hi"}]'
        many = b"{" + b",".join(b'"%d":1' % number for number in range(MAX_BESIDES // 8)) + b"}"
        for field in (b'"logit_bias":' + many, b'"whatever":' + many, b'"messages":[' + many + b"]", b'"prediction":' + many + b',"prediction":null'):
            self.assertRaises(RequestTooLarge, decode_request, b"{" + field + b"," + messages + b"}")
        text = b"x" * (2 * MAX_BESIDES)
        self.assertEqual(len(decode_request(b'{"messages":[{"role":"user","content":"' + text + b'"}]}').messages), 1)
        self.assertRaises(InvalidRequest, decode_request, b'{"messages":' + text)


class SignalTests(SynchronousTestCase):
    """A real gateway and its operator."""

    timeout = 60

    def setUp(self) -> None:
        self.upstream = Upstream()
        self.addCleanup(self.upstream.close)
        self.daemon = self.made(Quick)

    def made(self, kind: type[Daemon]) -> Daemon:
        daemon = kind(Path(self.mktemp()), self.upstream, {"shutdown": {"graceMs": 60_000}})
        self.addCleanup(daemon.kill)
        return daemon

    def test_a_second_signal_ends_the_grace(self) -> None:
        """The live run is aborted, its client told so, and the process ends, in order and without a traceback."""
        self.daemon.start()
        self.upstream.hold()
        with self.daemon.stream(HELLO) as client:
            read_until(client, b'"one"')
            process = self.daemon.process
            assert process is not None
            process.send_signal(signal.SIGTERM)
            with self.assertRaises(subprocess.TimeoutExpired):
                process.wait(0.5)
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(10), -signal.SIGTERM)
            self.assertIn(b'"code":"server_shutdown"', read_until(client, b"0\r\n\r\n"))
        self.assertNotIn("Traceback", self.daemon.log.read_text())

    def test_closed_output(self) -> None:
        """It starts and serves where standard output and error are closed."""
        daemon = self.made(Daemon)
        closed = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *daemon.command()]
        daemon.command = lambda *options, cli=False: closed  # type: ignore[method-assign]
        daemon.start()
        self.assertEqual(daemon.request("POST", "/v1/chat/completions", HELLO)[0], 200)
        self.assertEqual(daemon.stop(), -signal.SIGTERM)
