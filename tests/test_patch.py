"""Changing texts: one passage (edit), and patches. Pure functions, so the tests are texts in and texts out."""

import difflib
import os

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.errors import ToolFailed
from mayros.tools.edits import decode, encode, replace_once
from mayros.tools.patch import MAX_FILES, MAX_HUNKS, MAX_PATCH, Change, Hunk, apply, parse

FIXED = settings(derandomize=bool(os.environ.get("CI")), database=None, deadline=None, max_examples=60)
LINE = st.text(st.sampled_from("ab \t'\u2019-\u2013\u00a0\u00e9+@*"), max_size=6)
TEXT = st.lists(LINE, max_size=8).map(lambda lines: "".join(line + "\n" for line in lines))


def patch_for(path: str, before: str, after: str, context: int) -> str:
    """A patch from one text to another, both of whole lines."""
    old, new = before.split("\n")[:-1], after.split("\n")[:-1]
    lines = ["*** Begin Patch", f"*** Update File: {path}"]
    for group in difflib.SequenceMatcher(None, old, new, autojunk=False).get_grouped_opcodes(context):
        lines.append("@@")
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                lines += [" " + line for line in old[i1:i2]]
            else:
                lines += ["-" + line for line in old[i1:i2]] + ["+" + line for line in new[j1:j2]]
    return "\n".join([*lines, "*** End Patch"])


def patched(before: str, *body: str) -> str:
    """A text after a patch of one file."""
    (change,) = parse("\n".join(["*** Begin Patch", "*** Update File: f", *body, "*** End Patch"]))
    return apply(before, change.hunks)


class EditTests(SynchronousTestCase):
    """`replace_once`."""

    def edit(self, text: str, old: str, new: str) -> str:
        return replace_once(text, old, new).text

    def refused(self, text: str, old: str, new: str = "new") -> str:
        return str(self.assertRaises(ToolFailed, replace_once, text, old, new))

    def test_one_place(self) -> None:
        """The passage is replaced, whether a part of a line or several lines."""
        self.assertEqual(self.edit("one two three", "two", "2"), "one 2 three")
        self.assertEqual(self.edit("a\nb\nc\n", "a\nb\n", ""), "c\n")
        self.assertEqual(self.edit("a\nb", "b", "b\nc"), "a\nb\nc")

    def test_not_exactly_one_place(self) -> None:
        """A passage that is missing, or there twice (overlapping too), changes nothing and says what to do."""
        self.assertIn("Read the file again", self.refused("text", "other"))
        self.assertIn("more than once", self.refused("a b a", "a"))
        self.assertIn("more than once", self.refused("aaa", "aa"))
        self.assertIn("more than once", self.refused("\u2018a\u2019 'a'  \u201ca", "a"))
        self.assertIn("empty", self.refused("text", ""))
        self.assertIn("Nothing would change", self.refused("text", "text", "text"))

    def test_line_ends(self) -> None:
        """A file keeps its line ends, whichever the model writes; also a file that has both kinds."""
        for old, new in (("b\nc", "x\ny"), ("b\r\nc", "x\r\ny")):
            self.assertEqual(self.edit("a\r\nb\r\nc\r\n", old, new), "a\r\nx\r\ny\r\n")
        self.assertEqual(self.edit("a\nb\r\nc\nd", "b\nc", "x"), "a\nx\nd")

    def test_bom(self) -> None:
        """A byte order mark stays, and is no part of the passage."""
        self.assertEqual(self.edit("\ufeffone\n", "one", "two"), "\ufefftwo\n")
        self.assertEqual(self.edit("\ufeffone\n", "\ufeffone", "two"), "\ufefftwo\n")

    def test_what_looks_alike(self) -> None:
        """Quotes, dashes, odd spaces and blanks at line ends may differ; the rest of the file stays to the byte."""
        before = "\u201ckeep\u201d  \n say \u2018hi\u2019 \u2013\u00a0now \t\nnext\u2019\n"
        self.assertEqual(self.edit(before, " say 'hi' - now\nnext", "bye"), "\u201ckeep\u201d  \nbye\u2019\n")
        self.assertEqual(self.edit("a\r\nb  \r\nc\r\n", "a\nb\nc", "d"), "d\r\n")

    def test_exact_comes_first(self) -> None:
        """What fits exactly is meant, though something else looks alike."""
        self.assertEqual(self.edit("\u2018a\u2019 and 'a'", "'a'", "b"), "\u2018a\u2019 and b")

    def test_indentation_counts(self) -> None:
        """Blanks at the beginning of a line are no matter of taste."""
        self.assertIn("not found", self.refused("  if a:\n\tb\n", "if a:\n    b"))

    def test_diff(self) -> None:
        """The result shows what changed, with some lines around it."""
        text = "".join(f"{number}\n" for number in range(1, 10))
        self.assertEqual(replace_once(text, "5\n6", "five").diff, "@@ -2,8 +2,7 @@\n 2\n 3\n 4\n-5\n-6\n+five\n 7\n 8\n 9")
        self.assertEqual(replace_once("a\nb\n", "a\n", "").diff, "@@ -1,2 +1,1 @@\n-a\n b")
        self.assertEqual(replace_once("a", "a", "b").diff, "@@ -1,1 +1,1 @@\n-a\n+b")

    def test_what_is_no_text(self) -> None:
        """What an edit would damage is refused."""
        self.assertIn("binary", str(self.assertRaises(ToolFailed, decode, b"a\0b")))
        self.assertIn("byte 1", str(self.assertRaises(ToolFailed, decode, b"a\xff")))
        self.assertIn("surrogate", str(self.assertRaises(ToolFailed, encode, "\ud800")))

    @FIXED
    @given(st.text(), st.text(), st.text(min_size=1), st.text())
    def test_round_trip(self, before: str, after: str, old: str, new: str) -> None:
        """An edit that is done replaces that and nothing else, and can be undone by the opposite one."""
        before, after, old, new = (text.replace("\r", "").replace("\ufeff", "") for text in (before, after, old, new))
        text = before + old + after
        assume(old and old != new and text.find(old) == text.rfind(old))
        done = self.edit(text, old, new)
        self.assertEqual(done, before + new + after)
        if new and done.find(new) == done.rfind(new):
            self.assertEqual(self.edit(done, new, old), text)

    @FIXED
    @given(TEXT, st.data())
    def test_the_rest_stays(self, text: str, data: st.DataObject) -> None:
        """Whatever is found by likeness, before and after it every byte is as it was."""
        text = text.replace("\n", data.draw(st.sampled_from(["\n", "\r\n"])))
        begin = data.draw(st.integers(0, len(text)))
        old = text[begin : data.draw(st.integers(begin, len(text)))]
        for fancy, simple in ("\u2019'", "\u2013-", "\u00a0 "):
            old = old.replace(fancy, simple)
        try:
            done = replace_once(text, old, "NEW").text
        except ToolFailed:
            return
        head, _, tail = done.partition("NEW")
        self.assertTrue(text.startswith(head) and text.endswith(tail))
        self.assertLessEqual(len(head) + len(tail), len(text))


class ParsingTests(SynchronousTestCase):
    """`parse`."""

    def refused(self, *lines: str) -> str:
        return str(self.assertRaises(ToolFailed, parse, "\n".join(lines)))

    def test_a_patch(self) -> None:
        """All that a patch can say."""
        patch = """
*** Begin Patch
*** Add File: new.txt
+one
+
*** Delete File: old.txt

*** Update File: code.py
*** Move to: src/code.py
@@ class A:
@@ def f(self):
 kept
-old
+new

@@ -1,2 +3,4 @@ def g():
+last
*** End of File
*** End Patch
"""
        self.assertEqual(
            parse(patch),
            [
                Change("add", "new.txt", text="one\n\n"),
                Change("delete", "old.txt"),
                Change(
                    "update",
                    "code.py",
                    "src/code.py",
                    hunks=(
                        Hunk(("class A:", "def f(self):"), ((" ", "kept"), ("-", "old"), ("+", "new"), (" ", ""))),
                        Hunk((), (("+", "last"),), True),
                    ),
                ),
            ],
        )

    def test_mistakes(self) -> None:
        """A patch that is wrong is refused with the line and what should be there."""
        begin, end = "*** Begin Patch", "*** End Patch"
        self.assertIn("first line", self.refused("*** Add File: f", "+x", end))
        self.assertIn("last one", self.refused(begin, "*** Add File: f", "+x"))
        self.assertIn("names no file", self.refused(begin, end))
        self.assertIn("Line 3 of the patch: a file begins with", self.refused(begin, "*** Add File: f", "x", end))
        self.assertIn("Line 4 of the patch: a line of a hunk", self.refused(begin, "*** Update File: f", "@@", "x", end))
        self.assertIn("has no hunk", self.refused(begin, "*** Update File: f", end))
        self.assertIn("has no lines", self.refused(begin, "*** Update File: f", "@@ def f", end))
        self.assertIn("Line 2", self.refused(begin, "@@garbage", end))

    def test_limits(self) -> None:
        """A patch is only so long."""
        self.assertIn("too long", self.refused("x" * (MAX_PATCH + 1)))
        self.assertIn("too long", self.refused("*** Begin Patch", *(f"*** Delete File: {n}" for n in range(MAX_FILES + 1)), "*** End Patch"))
        hunks = ["@@", "+x"] * (MAX_HUNKS + 1)
        self.assertIn("too long", self.refused("*** Begin Patch", "*** Update File: f", *hunks, "*** End Patch"))

    @FIXED
    @given(
        st.lists(st.sampled_from(["*** Add File: f", "*** Update File: f", "*** Move to: g", "@@", "@@ x", "+a", "-a", " a", "", "*** End of File"]))
    )
    def test_anything(self, lines: list[str]) -> None:
        """Whatever a model writes is a patch or a refusal, and it ends."""
        try:
            changes = parse("\n".join(["*** Begin Patch", *lines, "*** End Patch"]))
            for change in changes:
                apply("a\nx\na\n", change.hunks)
        except ToolFailed:
            pass


class ApplyingTests(SynchronousTestCase):
    """`apply`."""

    def test_headers(self) -> None:
        """A hunk is looked for after the lines that `@@` quotes, one after the other."""
        before = "class A:\n  def f():\n    x\nclass B:\n  def f():\n    x\n"
        self.assertEqual(patched(before, "@@ class B:", "@@   def f():", "-    x", "+    y"), before[: -len("    x\n")] + "    y\n")
        self.assertEqual(patched(before, "@@ class B:", "+  z = 1"), before.replace("class B:\n", "class B:\n  z = 1\n"))

    def test_order(self) -> None:
        """Hunks are looked for one after the other, so equal lines are told apart."""
        self.assertEqual(patched("a\na\na\n", "-a", "+1", "@@", "-a", "+2"), "1\n2\na\n")

    def test_ends(self) -> None:
        """The end of a file can be named; lines that are only added go there."""
        self.assertEqual(patched("a\nb\na\n", "-a", "+c", "*** End of File"), "a\nb\nc\n")
        self.assertEqual(patched("a\n", "+b"), "a\nb\n")
        self.assertEqual(patched("", "+a"), "a\n")
        self.assertEqual(patched("a\n", "-a"), "")

    def test_line_ends(self) -> None:
        """Line ends, the byte order mark, and a last line without an end stay as they are."""
        self.assertEqual(patched("\ufeffa\r\nb\r\n", " a", "-b", "+c", "+d"), "\ufeffa\r\nc\r\nd\r\n")
        self.assertEqual(patched("a\nb", "-b", "+c"), "a\nc")
        self.assertEqual(patched("a\r\nb", " b", "+c"), "a\r\nb\r\nc")

    def test_what_looks_alike(self) -> None:
        """Lines that differ in blanks and quotes are found, and those that are kept stay as the file has them."""
        self.assertEqual(patched("\tsay(\u201chi\u201d)  \n\tb\n", ' say("hi")', "-b", "+\tc"), "\tsay(\u201chi\u201d)  \n\tc\n")

    def test_space_between_sections(self) -> None:
        """Empty lines after a hunk are not asked of the file."""
        self.assertEqual(patched("a\nb\n", "@@", "-a", "+c", "", "", "@@", "-b", "+d", ""), "c\nd\n")

    def test_lines_that_are_not_there(self) -> None:
        """The refusal names the hunk and shows what was looked for."""
        error = str(self.assertRaises(ToolFailed, patched, "a\nb\n", "-a", "+c", "@@", "-a", "+d"))
        self.assertIn("Hunk 2: its lines were not found below line 1", error)
        self.assertIn("\na", error)
        self.assertIn("'@@' was not found", str(self.assertRaises(ToolFailed, patched, "a\n", "@@ zzz", "-a")))

    @FIXED
    @given(TEXT, TEXT, st.sampled_from(["\n", "\r\n"]), st.sampled_from(["", "\ufeff"]))
    def test_the_difference_applied(self, before: str, after: str, end: str, bom: str) -> None:
        """The difference of any two texts, applied to the first, gives the second."""
        assume(before != after)
        (change,) = parse(patch_for("f", before, after, 100))
        # An empty text says nothing of line ends.
        assume(before or end == "\n")
        self.assertEqual(apply(bom + before.replace("\n", end), change.hunks), bom + after.replace("\n", end))

    @FIXED
    @given(st.lists(st.integers(0, 60), max_size=60, unique=True), st.data())
    def test_several_hunks_applied(self, numbers: list[int], data: st.DataObject) -> None:
        """So does one in several hunks with little around them, where lines are not alike."""
        after_lines = [str(n) for n in numbers]
        for at in data.draw(st.lists(st.integers(0, len(numbers)), max_size=5)):
            after_lines[at : at + data.draw(st.integers(0, 2))] = [f"new {at}"] * data.draw(st.integers(0, 2))
        before = "".join(f"{n}\n" for n in numbers)
        after = "".join(f"{line}\n" for line in after_lines)
        assume(before != after and before)
        (change,) = parse(patch_for("f", before, after, 3))
        self.assertEqual(apply(before, change.hunks), after)
