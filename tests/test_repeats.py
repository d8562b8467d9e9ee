"""Loop detection: which repetitions are warned of, and which are blocked."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mayros.core.repeats import BLOCK, BREAK, HISTORY, WARN, Finding, Repeats, key_of


class RepeatsCase(SynchronousTestCase):
    """One run's calls."""

    def setUp(self) -> None:
        self.repeats = Repeats()

    def call(self, name: str, outcome: str, **arguments: object) -> Finding | None:
        """What is found before a call; unless it is blocked, it is made and ends with `outcome`."""
        key = key_of(name, dict(arguments))
        found = self.repeats.judge(name, dict(arguments), key)
        if found is None or found.level == "warn":
            self.repeats.ended(key, outcome)
        return found

    def levels(self, count: int, name: str, outcome: str = "same", **arguments: object) -> list[str]:
        found = [self.call(name, outcome, **arguments) for _ in range(count)]
        return ["" if one is None else one.level for one in found]


class Repetition(RepeatsCase):
    """The same call again."""

    def test_a_repeated_call_is_warned_of_and_blocked_in_the_end(self) -> None:
        """The first ten pass in silence, the next ones with a warning, the thirty-first is blocked."""
        levels = self.levels(BREAK + 1, "read", path="a")
        self.assertEqual(levels, [""] * WARN + ["warn"] * (BREAK - WARN) + ["block"])

    def test_a_warning_is_new_once_for_each_call(self) -> None:
        """So that the log has one line, while the model reads it each time."""
        found = [one for one in (self.call("read", "same", path="a") for _ in range(WARN + 3)) if one]
        self.assertEqual([one.first for one in found], [True, False, False])
        self.assertIn("10 calls of read with identical arguments", found[0].text)

    def test_a_call_whose_result_changes_is_never_blocked(self) -> None:
        """There is progress, though a warning that it is often."""
        found = [self.call("read", f"text {number}", path="a") for number in range(3 * HISTORY)]
        self.assertEqual({one.level for one in found if one}, {"warn"})

    def test_the_order_of_arguments_does_not_matter(self) -> None:
        """A key is the tool with its arguments, however they were written."""
        self.assertEqual(key_of("edit", {"a": 1, "b": {"x": 1, "y": 2}}), key_of("edit", {"b": {"y": 2, "x": 1}, "a": 1}))
        self.assertNotEqual(key_of("edit", {"a": 1}), key_of("read", {"a": 1}))

    def test_different_calls_are_nobodys_business(self) -> None:
        """Reading thirty files is work."""
        self.assertEqual([self.call("read", "same", path=str(number)) for number in range(3 * HISTORY)], [None] * 3 * HISTORY)


class Polls(RepeatsCase):
    """Waiting for a background process."""

    def test_polls_without_news_are_blocked_from_twenty(self) -> None:
        """Sooner than other calls: nothing happens."""
        levels = self.levels(BLOCK + 1, "process", action="poll", sessionId="1")
        self.assertEqual(levels, [""] * WARN + ["warn"] * (BLOCK - WARN) + ["block"])

    def test_news_begin_the_count_anew(self) -> None:
        """A process that says something is making progress."""
        self.levels(BLOCK - 1, "process", action="poll", sessionId="1")
        self.call("process", "more output", action="poll", sessionId="1")
        self.assertEqual(self.levels(WARN - 2, "process", "more output", action="poll", sessionId="1"), [""] * (WARN - 2))


class BackAndForth(RepeatsCase):
    """Two calls in turns."""

    def test_two_calls_in_turns_are_blocked_from_twenty(self) -> None:
        """Neither is repeated in a row, and neither gets anywhere."""
        levels = [level for _ in range(BLOCK // 2 + 1) for level in (self.levels(1, "read", path="a")[0], self.levels(1, "read", path="b")[0])]
        self.assertEqual(levels[:WARN], [""] * WARN)
        self.assertEqual(levels[WARN:BLOCK], ["warn"] * (BLOCK - WARN))
        self.assertEqual(levels[BLOCK], "block")

    def test_in_turns_with_changing_results_is_work(self) -> None:
        """Edit, test, edit, test: as long as something changes."""
        found = []
        for number in range(WARN - 1):
            found += [self.call("exec", f"failure {number}", command="make"), self.call("read", "same", path="b")]
        self.assertEqual(set(found), {None})
