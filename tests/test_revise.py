"""Ways to say what shall be another in a tree."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mayros.config.check import REDACTED
from mayros.config.revise import assign, patch, remove, restored, steps
from mayros.errors import InvalidRequest


class PathTests(SynchronousTestCase):
    """Values by their paths."""

    def test_assign(self) -> None:
        """Objects on the way are made; an index may be the next one."""
        for path, value, expected in (
            ("a.b", 1, {"a": {"b": 1, "c": 2}, "list": [{"id": "x"}]}),
            ("list[0].name", "X", {"a": {"c": 2}, "list": [{"id": "x", "name": "X"}]}),
            ("list[1].id", "y", {"a": {"c": 2}, "list": [{"id": "x"}, {"id": "y"}]}),
            ('new["b/c.d"].e', True, {"a": {"c": 2}, "list": [{"id": "x"}], "new": {"b/c.d": {"e": True}}}),
        ):
            tree: Any = {"a": {"c": 2}, "list": [{"id": "x"}]}
            assign(tree, path, value)
            self.assertEqual(expected, tree)

    def test_remove(self) -> None:
        """What is there goes; what is not there is said to be not there."""
        tree: Any = {"a": {"b": 1}, "list": [1, 2]}
        self.assertEqual([True, True, False, False], [remove(tree, path) for path in ("a.b", "list[0]", "a.b", "x.y")])
        self.assertEqual({"a": {}, "list": [2]}, tree)

    def test_what_is_no_path(self) -> None:
        """An error that shows how paths are written."""
        for path in ("", ".a", "a..b", "[0]", "a[x]", 'a["x', "a.b.", "a." * 40 + "b"):
            self.assertIn("not a path", str(self.assertRaises(InvalidRequest, steps, path)), path)
        for path in ("list[3]", "list.x", "a[0]", "a.c.d"):
            self.assertRaises(InvalidRequest, assign, {"a": {"c": 2}, "list": []}, path, 1)


class PatchTests(SynchronousTestCase):
    """A merge patch."""

    def test_objects_are_merged_and_null_deletes(self) -> None:
        """As RFC 7396 has it; what was given is not changed."""
        tree = {"a": {"b": 1, "c": 2}, "d": [1]}
        self.assertEqual({"a": {"c": 3, "e": {"f": 1}}}, patch(tree, {"a": {"b": None, "c": 3, "e": {"f": 1, "g": None}}, "d": None}))
        self.assertEqual({"a": {"b": 1, "c": 2}, "d": [1]}, tree)

    def test_lists_of_objects_with_ids(self) -> None:
        """Are merged by these; other lists are replaced."""
        tree = {"list": [{"id": "a", "x": 1}, {"id": "b"}], "names": ["x"]}
        changes = {"list": [{"id": "b", "y": 2}, {"id": "c"}], "names": ["y"]}
        self.assertEqual({"list": [{"id": "a", "x": 1}, {"id": "b", "y": 2}, {"id": "c"}], "names": ["y"]}, patch(tree, changes))
        self.assertEqual({"list": ["a"], "names": ["x"]}, patch(tree, {"list": ["a"]}))


class HiddenTests(SynchronousTestCase):
    """Values that were hidden from who sends them back."""

    old = {
        "auth": {"token": "secret"},
        "url": "http://me:pass@host/x",
        "list": [{"id": "a", "key": "one"}, {"id": "b", "key": "two"}],
        "n": [1, "three"],
    }

    def test_they_are_those_of_before(self) -> None:
        """Also in URLs, and in lists whose items have moved, by their ids."""
        sent = {
            "auth": {"token": REDACTED},
            "url": f"http://{REDACTED}@host/x",
            "list": [{"id": "b", "key": REDACTED}, {"id": "a", "key": REDACTED}],
            "n": [1, REDACTED],
        }
        self.assertEqual({**self.old, "list": self.old["list"][::-1]}, restored(sent, self.old))  # type: ignore[index]

    def test_where_there_is_none(self) -> None:
        """An error with the path; the mark is never written."""
        for sent, path in (
            ({"auth": {"password": REDACTED}}, "auth.password"),
            ({"url": f"http://{REDACTED}@other/x"}, "url"),
            ({"list": [{"id": "c", "key": REDACTED}]}, "list[0].key"),
            ({"n": [REDACTED]}, "n[0]"),
            ({"auth": {REDACTED: 1}}, "auth"),
        ):
            self.assertIn(f"{path}: ", str(self.assertRaises(InvalidRequest, restored, sent, self.old)))
