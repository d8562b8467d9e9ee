"""Which ports are opened, and which are refused."""

from __future__ import annotations

import os
import socket
import stat
from typing import Any

from twisted.internet import reactor
from twisted.internet.protocol import Factory
from twisted.trial.unittest import TestCase

from mayros.config.gateway import Gateway
from mayros.errors import StartError
from mayros.ops.listen import Listeners, configured, parse_endpoint
from mayros.ops.systemd import Passed


class ListenTests(TestCase):
    """Listeners, on real sockets of this machine."""

    def setUp(self) -> None:
        self.listeners = Listeners()
        self.addCleanup(self.listeners.close)

    def open(self, text: str) -> Any:
        return self.listeners.open(parse_endpoint(reactor, text), Factory(), "it")

    def test_a_unix_socket_has_mode_600(self) -> None:
        """Unless its endpoint says another; behind a PROXY wrapper too."""
        for number, (text, mode) in enumerate((("unix:{}", 0o600), ("haproxy:unix:{}", 0o600), ("unix:{}:mode=660", 0o660))):
            path = os.path.relpath(self.mktemp() + str(number))
            self.open(text.format(path))
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), mode, text)

    def test_loopback_is_both_families_on_one_port(self) -> None:
        """127.0.0.1, and ::1 where this machine has it; nothing wider."""
        port: Any = self.listeners.open(configured(reactor, Gateway(), 0)[0], Factory(), "it")
        self.listeners.open_ipv6_loopback(reactor, Factory(), port.getHost().port)
        self.assertEqual(self.listeners.hosts[0], "127.0.0.1")
        self.assertLessEqual(set(self.listeners.hosts), {"127.0.0.1", "::1"})
        self.assertEqual(len({opened.getHost().port for opened in self.listeners.ports}), 1)

    def test_a_port_in_use(self) -> None:
        """Status 1, with a line that says what to do; on ::1 as well."""
        port = self.open("tcp:0:interface=127.0.0.1").getHost().port
        for attempt in (lambda: self.open(f"tcp:{port}:interface=127.0.0.1"),):
            error = self.assertRaises(StartError, attempt)
            self.assertEqual(error.status, 1)
            self.assertIn("in use", str(error))
        if socket.has_ipv6 and os.path.exists("/proc/net/if_inet6"):
            taken = self.open("tcp6:0:interface=\\:\\:1").getHost().port
            self.assertEqual(self.assertRaises(StartError, self.listeners.open_ipv6_loopback, reactor, Factory(), taken).status, 1)

    def test_wide_addresses_need_authentication(self) -> None:
        """Whatever way they came."""
        self.open("tcp:0:interface=127.0.0.1")
        self.listeners.judge("none")
        self.open("tcp:0")
        self.listeners.judge("token")
        self.assertEqual(self.assertRaises(StartError, self.listeners.judge, "none").status, 78)

    def test_bad_endpoints(self) -> None:
        """Status 78, whatever the parser raised; no secret of the text is repeated."""
        for text in ("", "tcp", "tcp:x", "nonsense:1", "systemd:domain=INET:index=3", "ssl:0:privateKey=/nonexistent"):
            error = self.assertRaises(StartError, parse_endpoint, reactor, text)
            self.assertEqual(error.status, 78, text)
        self.assertRaises(StartError, configured, reactor, Gateway(bind="custom", custom_bind_host="not an address"), 0)

    def test_certificates_that_are_not_there(self) -> None:
        """An endpoint that parses and cannot listen is refused too; the daemon never runs on deaf."""
        self.assertRaises(StartError, self.open, "tls:/nonexistent:port=0:interface=127.0.0.1")

    def test_urls(self) -> None:
        """What is logged at the start."""
        port = self.open("tcp:0:interface=127.0.0.1").getHost().port
        path = os.path.relpath(self.mktemp() + "s")
        self.open(f"unix:{path}")
        self.assertEqual(self.listeners.urls, [f"http://127.0.0.1:{port}", f"unix:{path}"])

    def test_urls_with_tls(self) -> None:
        """On both loopback addresses, and on sockets that somebody else holds; a unix socket among them is given the plain factory."""
        endpoint = configured(reactor, Gateway(), 0)[0]
        port: Any = self.listeners.open(endpoint, Factory(), "it", secure=True)
        self.listeners.open_ipv6_loopback(reactor, Factory(), port.getHost().port, True)
        self.assertEqual({"https"}, {url.partition(":")[0] for url in self.listeners.urls})
        path = os.path.relpath(self.mktemp() + "s")
        held, plain, over_tls = Listeners(), Factory(), Factory()
        self.addCleanup(held.close)
        with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
            unix.bind(path)
            unix.listen()
            number = tcp.getsockname()[1]
            held.adopt(reactor, plain, [Passed(os.dup(one.fileno()), "") for one in (tcp, unix)], over_tls)
        self.assertEqual([f"https://127.0.0.1:{number}", f"unix:{path}"], held.urls)
        opened: list[Any] = held.ports
        self.assertEqual([over_tls, plain], [one.factory for one in opened])
