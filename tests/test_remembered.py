"""mayros.core.remembered."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mayros.core.remembered import Remembered


class RememberedTests(SynchronousTestCase):
    """Lists stand for objects that do not change."""

    def test_made_once_for_each_object(self) -> None:
        """An equal one is another one."""
        made: list[list[int]] = []

        def total(thing: list[int]) -> int:
            made.append(thing)
            return sum(thing)

        remembered = Remembered(total)
        one, same = [1, 2], [1, 2]
        self.assertEqual([remembered(one), remembered(one), remembered(same), remembered(one)], [3, 3, 3, 3])
        self.assertEqual([made[0] is one, made[1] is same, len(made)], [True, True, 2])

    def test_objects_that_are_gone_are_not_mixed_up(self) -> None:
        """An id is used again once its object is gone; those that are remembered are not."""
        remembered: Remembered[list[int], int] = Remembered(sum, 3)
        for number in range(100):
            self.assertEqual(remembered([number]), number)
            self.assertLessEqual(len(remembered._kept), 3)
