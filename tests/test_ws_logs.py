"""`logs.tail` and the gateway's part of `status`, as WebSocket clients see them."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mayros.core.log_ports import Tail, TailLog
from tests.test_ws import ADMIN, READ, World, tell


def log_of(*lines: str) -> TailLog:
    """A log with these lines, ten bytes each."""

    async def tail(cursor: int | None, limit: int, max_bytes: int) -> Tail:
        start = (cursor or 0) // 10
        return Tail("/logs/mayros.log", 10 * len(lines), 10 * len(lines), lines[start:][-limit:], limit < len(lines), False)

    return tail


class LogsTests(SynchronousTestCase):
    """`logs.tail`."""

    def setUp(self) -> None:
        self.world = World(self)
        self.world.gateway.tail = log_of("one", "two", "three")

    def ask(self, params: Any, *scopes: str) -> dict[str, Any]:
        session, link = self.world.connect(*(scopes or (READ,)))
        tell(session, "logs.tail", params)
        (answer,) = [frame for frame in link.take() if frame["type"] == "res"]
        return answer  # type: ignore[no-any-return]

    def test_the_end_and_what_follows(self) -> None:
        """The last lines, and behind the cursor of an answer what has come since."""
        answer = self.ask({"limit": 2})["payload"]
        self.assertEqual(answer, {"file": "/logs/mayros.log", "cursor": 30, "size": 30, "lines": ["two", "three"], "truncated": True, "reset": False})
        self.world.gateway.tail = log_of("one", "two", "three", "four")
        self.assertEqual(self.ask({"cursor": answer["cursor"]})["payload"]["lines"], ["four"])

    def test_limits(self) -> None:
        """What is no cursor, and too much at once, is refused by its name."""
        for params in ({"cursor": -1}, {"cursor": "x"}, {"limit": 0}, {"limit": 5001}, {"maxBytes": 1_000_001}, {"file": "/etc/passwd"}):
            answer = self.ask(params)
            self.assertEqual((answer["ok"], answer["error"]["code"]), (False, "INVALID_REQUEST"), params)
            self.assertIn(next(iter(params)), answer["error"]["message"])

    def test_there_may_be_none(self) -> None:
        """A log that is not there can be asked for again later; nobody without `operator.read` gets one."""
        world = World(self)
        session, link = world.connect(READ)
        tell(session, "logs.tail", {})
        error = link.take()[0]["error"]
        self.assertEqual((error["code"], error["retryable"]), ("UNAVAILABLE", True))
        self.assertFalse(self.ask({}, "operator.pairing")["ok"])


class OverviewTests(SynchronousTestCase):
    """`status`."""

    def test_how_the_gateway_is(self) -> None:
        """What the rest of the program tells is in the answer; details are for administrators."""
        world = World(self)
        world.gateway.overview = lambda details: {"version": "1.2.3", "details": details}
        for scope in (READ, ADMIN):
            session, link = world.connect(scope)
            tell(session, "status", {})
            (answer,) = [frame for frame in link.take() if frame["type"] == "res"]
            self.assertEqual(answer["payload"]["gateway"], {"version": "1.2.3", "details": scope == ADMIN})


class MeasureTests(SynchronousTestCase):
    """What is measured of requests."""

    def test_each_request_is_told_once(self) -> None:
        """Method, whether it went well, and for how long; unknown methods have no name of their own, refused clients are counted."""
        world = World(self)
        told: list[tuple[str, bool, float]] = []
        world.gateway.measure = lambda *one: told.append(one)
        session, _ = world.connect(READ, "operator.write")
        tell(session, "health", {})
        tell(session, "chat.abort", 5)
        tell(session, "no.such.method", {})
        tell(session, "agent", {"message": "hi", "idempotencyKey": "k"})
        world.clock.advance(2)
        self.assertEqual(told, [("health", True, 0.0), ("chat.abort", False, 0.0), ("other", False, 0.0)])
        world.provider.say("hello")
        world.provider.stop()
        world.clock.advance(0)
        self.assertEqual(told[3:], [("agent", True, 2.0)])
        self.assertEqual((world.gateway.traffic.received, world.gateway.traffic.answered), (5, 6))
        session, _ = world.dial()
        tell(session, "health", {})
        self.assertEqual(world.gateway.traffic.turned_away, {"INVALID_REQUEST": 1})
