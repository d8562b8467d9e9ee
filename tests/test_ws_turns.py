"""Clients take turns: who sends much at once does not keep the others waiting. The same with sockets is in test_ws_cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mayros.ws.turns import TURN_SECONDS, Turns


class Reactor:
    """Time that passes while something is done, and turns that come one by one."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[Callable[[], object]] = []

    def seconds(self) -> float:
        return self.now

    def callLater(self, delay: float, function: Callable[[], object]) -> Any:
        self.calls.append(function)

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


class Slow:
    """Takes some time for each of its shares, and writes down when it was its turn."""

    def __init__(self, clock: Reactor, told: list[str], name: str, shares: int, seconds: float = 0.0) -> None:
        self.clock, self.told, self.name, self.shares, self.seconds = clock, told, name, shares, seconds

    def read_share(self) -> bool:
        self.told.append(self.name)
        self.clock.now += self.seconds
        self.shares -= 1
        return self.shares > 0


class TurnsTests(SynchronousTestCase):
    """The ring alone."""

    def setUp(self) -> None:
        self.clock = Reactor()
        self.turns, self.told = Turns(self.clock), list[str]()  # type: ignore[arg-type]

    def join(self, name: str, shares: int, seconds: float = 0.0) -> None:
        self.turns.join(Slow(self.clock, self.told, name, shares, seconds))

    def test_one_after_the_other(self) -> None:
        """A share each, until nobody has more; then nothing is scheduled."""
        self.join("a", 3)
        self.join("b", 1)
        self.join("c", 2)
        self.assertEqual([], self.told)
        self.clock.turn()
        self.assertEqual("abcaca", "".join(self.told))
        self.assertEqual([], self.clock.calls)

    def test_the_reactor_gets_its_turn(self) -> None:
        """After a few milliseconds; whoever is next goes on where it stopped."""
        self.join("a", 2, TURN_SECONDS)
        self.join("b", 2, TURN_SECONDS / 2)
        for so_far in ("a", "aba", "abab"):
            self.clock.turn()
            self.assertEqual(so_far, "".join(self.told))

    def test_many_turns(self) -> None:
        """It comes again and again, as often as it must."""
        self.join("a", 50, 1.0)
        for _ in range(50):
            self.clock.turn()
        self.assertEqual(50, len(self.told))
        self.assertEqual([], self.clock.calls)
