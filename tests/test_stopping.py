"""The order of a stop, by a clock: who is served, who is refused, who is told."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed

from mayros.core.keys import SessionKey
from mayros.core.ports import Principal, Turn
from mayros.errors import Unavailable
from mayros.stopping import FIRST_REQUEST_SECONDS, LAST_READ_SECONDS, Stopping
from tests.helpers import HarnessCase, chat, head, post

GET = head("GET", "/healthz") + b"\r\n"


class Sockets:
    """The WebSocket clients: what they hear, and that they close when they are told to."""

    def __init__(self, heard: list[str]) -> None:
        self.heard = heard

    def announce(self, reason: str, restart_expected_ms: int | None) -> None:
        self.heard.append(f"shutdown: {reason}")
        self.expected_ms = restart_expected_ms

    def close_all(self) -> None:
        self.heard.append("1012")


class StoppingTests(HarnessCase):
    """Stopping with the real site and the real runs."""

    def setUp(self) -> None:
        super().setUp()
        self.one = self.gateway()
        self.heard: list[str] = []
        self.sockets = Sockets(self.heard)
        self.stopping = self.made(None)

    def made(self, again: float | None) -> Stopping:
        one = self.one
        return Stopping(one.site, one.runs, self.sockets, self.close_ports, lambda: succeed(None), one.clock, 20.0, self.tell, again)

    def close_ports(self) -> Deferred[Any]:
        self.heard.append("ports closed")
        return succeed(None)

    def tell(self, text: str, seconds: float) -> None:
        self.heard.append(f"told: {text}")
        self.seconds = seconds

    def stop(self, *clients: Any) -> Deferred[None]:
        """Begin to stop, and let what has come at the last moment be read."""
        stopping = Deferred.fromCoroutine(self.stopping.run())
        self.one.advance(LAST_READ_SECONDS, *clients)
        self.one.settle(*clients)
        return stopping

    def wait(self, seconds: float, *clients: Any) -> None:
        """Let time pass in the steps in which it is looked whether all is done."""
        for _ in range(round(seconds / 0.02)):
            self.one.advance(0.02, *clients)

    def test_nobody_there(self) -> None:
        """It is over at once; the manager hears first, and hears how long it may take."""
        stopping = self.stop()
        self.successResultOf(stopping)
        self.assertEqual(self.heard, ["told: stopping: 0 runs are live, they may take 20 s", "ports closed", "shutdown: service restart", "1012"])
        self.assertGreater(self.seconds, 20 + 10)
        self.assertIsNone(self.sockets.expected_ms)

    def test_a_restart_of_its_own(self) -> None:
        """Clients hear when to try again; runs that are live may take the grace before."""
        self.stopping = self.made(3.25)
        self.successResultOf(self.stop())
        self.assertEqual(self.sockets.expected_ms, 3_250)
        self.one = self.gateway()
        self.stopping = self.made(3.25)
        live = self.one.dial(post(chat("hello")))
        self.stop(live)
        self.assertEqual(self.sockets.expected_ms, 23_250)
        self.one.provider.stop()
        self.wait(0.2, live)

    def test_a_connection_that_has_not_asked_yet(self) -> None:
        """Its first request is served, also where it is a run, with `Connection: close`; there is no second one."""
        early, chatty = self.one.dial(), self.one.dial()
        stopping = self.stop(early, chatty)
        self.assertFalse(early.lost)
        early.send(GET + GET)
        answer = early.answer()
        self.assertEqual((answer.status, answer.headers["connection"], early.received, early.lost), (200, "close", b"", True))
        chatty.send(post(chat("hello")))
        self.one.provider.say("hi")
        self.one.provider.stop()
        self.wait(0.1, chatty)
        answer = chatty.answer()
        self.assertEqual((answer.status, answer.headers["connection"]), (200, "close"))
        self.wait(0.1)
        self.successResultOf(stopping)

    def test_a_connection_that_never_asks(self) -> None:
        """Is waited for a little, not for the grace."""
        silent = self.one.dial()
        stopping = self.stop(silent)
        self.wait(FIRST_REQUEST_SECONDS - 0.2, silent)
        self.assertNoResult(stopping)
        self.wait(0.4, silent)
        self.assertTrue(silent.lost)
        self.successResultOf(stopping)

    def test_a_later_request(self) -> None:
        """One that has been answered before is refused, where it still can be; otherwise its connection is closed between requests."""
        asked, idle = self.one.dial(GET), self.one.dial(GET)
        stopping = Deferred.fromCoroutine(self.stopping.run())
        self.assertEqual(asked.answer().status, 200)
        asked.send(GET)
        answer = asked.answer()
        self.assertEqual((answer.status, answer.headers["retry-after"], answer.headers["connection"]), (503, "2", "close"))
        self.wait(0.2, asked, idle)
        self.assertEqual((idle.statuses(), idle.lost, asked.lost), ([200], True, True))
        self.successResultOf(stopping)

    def test_an_upgrade(self) -> None:
        """Is refused, also as a first request: it would be closed again."""
        client = self.one.dial()
        stopping = self.stop(client)
        key = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
        client.send(head("GET", "/", *key) + b"\r\n")
        self.assertEqual(client.statuses(), [503])
        self.wait(0.2, client)
        self.successResultOf(stopping)

    def test_runs_of_websocket_clients(self) -> None:
        """New ones are refused, to be tried again; those of a first HTTP request are not."""
        directory = self.one.settings.directory
        turn = Turn("r", directory.agents[directory.default_id], SessionKey("main", "s"), False, (), "ws")
        early = self.one.dial()
        stopping = self.stop(early)
        self.assertRaises(Unavailable, self.one.runs.check, turn, Principal("owner", frozenset()))
        early.send(post(chat("hello")))
        self.assertEqual(self.one.runs.live(), 1)
        self.one.provider.stop()
        self.wait(0.2, early)
        self.successResultOf(stopping)

    def test_the_grace(self) -> None:
        """A stream that is over within it is whole; one that is not is aborted, recorded, and told so without DONE."""
        quick, slow = self.one.dial(post(chat("one", stream=True))), self.one.dial(post(chat("two", stream=True)))
        self.one.provider.say("half")
        self.one.settle(quick, slow)
        stopping = self.stop(quick, slow)
        self.wait(10, quick, slow)
        self.assertNoResult(stopping)
        self.wait(11, quick, slow)
        self.assertIn(b"server_shutdown", slow.received)
        self.assertNotIn(b"[DONE]", slow.received)
        self.successResultOf(stopping)
        self.assertEqual({result.outcome for _, result in self.one.store.turns}, {"aborted"})
        self.assertEqual(self.heard[-1], "1012")

    def test_hurry(self) -> None:
        """A second signal ends the grace."""
        client = self.one.dial(post(chat("one", stream=True)))
        self.one.provider.say("half")
        self.one.settle(client)
        stopping = self.stop(client)
        self.wait(1, client)
        self.assertNoResult(stopping)
        self.stopping.hurry()
        self.wait(0.2, client)
        self.assertIn(b"server_shutdown", client.received)
        self.successResultOf(stopping)
