"""Taking a command line apart: what it starts, or why that cannot be known."""

from __future__ import annotations

import os
import subprocess

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.tools.command import Analysis, analyse, split
from mayros.tools.safebins import DEFAULT, harmless

PATH = "/usr/bin:/bin"


def look(text: str, cwd: str = "/", path: str = PATH) -> Analysis:
    return analyse(text, cwd, path)


class AnalyseTests(SynchronousTestCase):
    """analyse()"""

    def test_each_part_is_resolved_to_a_real_path(self) -> None:
        """`&&`, `||`, `;`, `|` and line ends separate parts, each with its own program."""
        found = look("ls -l | wc -l && cat x || head; tail\nsort")
        self.assertIsNone(found.why_not)
        self.assertEqual([os.path.basename(path) for path in found.resolved], ["ls", "wc", "cat", "head", "tail", "sort"])
        self.assertTrue(all(path == os.path.realpath(path) for path in found.resolved))

    def test_what_could_run_something_else_is_refused(self) -> None:
        """Redirections, substitutions, groups, background, assignments, words of the shell, and what shells read in different ways."""
        for text, why in {
            "ls > x": "redirects",
            "ls 2>&1": "redirects",
            "wc < x": "redirects",
            "cat <<E\nx\nE": "redirects",
            "echo $(id)": "$(...)",
            'echo "$(id)"': "$(...)",
            "echo $((1+1))": "$(...)",
            "echo `id`": "backticks",
            'echo "`id`"': "backticks",
            "ls & id": "background",
            "ls |& id": "background",
            "(id)": "groups",
            "ls() { id; }": "groups",
            "PATH=/tmp ls": "sets a variable",
            "cd / && ls": "word of the shell",
            "eval ls": "word of the shell",
            "time ls": "word of the shell",
            "! ls": "word of the shell",
            "$X ls": "depends on an expansion",
            "l? x": "depends on an expansion",
            "~/ls": "depends on an expansion",
            "echo ${x@P}": "more than a variable",
            "echo ${x:-y}": "more than a variable",
            "echo $'a'": "more than a variable",
            "echo $[1]": "more than a variable",
            "test -v 'a[$(id)]'": "more than plain words",
            "printf $x y": "more than plain words",
            "ls # x": "comment",
            "ls \\\n x": "backslash",
            "ls 'x": "not closed",
            'ls "x': "not closed",
            "ls\0x": "control character",
            "ls\rid": "control character",
            "ls |": "missing",
            "ls && && ls": "missing",
            "; ls": "missing",
            "": "missing",
            "no-such-program-here": "no program",
        }.items():
            found = look(text)
            self.assertEqual(found.segments, (), text)
            self.assertIn(why, found.why_not or "", text)

    def test_quotes_and_escapes_hide_what_they_should(self) -> None:
        """Inside single quotes nothing counts; inside double ones the dollar does."""
        self.assertEqual([word.text for word in split("a '$(x) ; `y`' \"b; c\" d\\;e \\$f")[0]], ["a", "$(x) ; `y`", "b; c", "d;e", "$f"])
        self.assertEqual([word.literal for word in split("a '*' \"$HOME\" * \\* 'x'y")[0]], [True, True, False, False, True, True])

    def test_programs_of_the_folder_are_found_there_and_links_followed(self) -> None:
        """The path that is judged is the file that runs, whatever name leads to it."""
        folder = os.path.realpath(self.mktemp())
        os.makedirs(folder)
        os.symlink(os.path.realpath("/usr/bin/env"), os.path.join(folder, "wc"))
        self.assertEqual(look("./wc", folder).resolved, (os.path.realpath("/usr/bin/env"),))
        shadowed = look("wc", "/", f"{folder}:{PATH}")
        self.assertEqual((shadowed.resolved, shadowed.safe), ((os.path.realpath("/usr/bin/env"),), False))

    @given(st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12), min_size=1, max_size=4))
    @hypothesis_settings(max_examples=15, deadline=None)
    def test_words_are_read_as_the_shell_reads_them(self, words: list[str]) -> None:
        """Whatever the words, where the line is understood and literal the shell makes the same words of it."""
        for line in (" ".join(words), " ".join("'" + word.replace("'", "'\\''") + "'" for word in words), '"' + '" "'.join(words) + '"'):
            found = analyse("printf '%s\\0' " + line, "/", PATH)
            if not found.segments or len(found.segments) > 1 or not all(word.literal for word in found.segments[0].words):
                continue
            shown = subprocess.run(["/bin/sh", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=False, timeout=10).stdout
            expected = [word.text for word in found.segments[0].words[2:]] or [""]
            self.assertEqual(shown.decode().split("\0")[:-1], expected)


class SafeBinTests(SynchronousTestCase):
    """Programs that only work on their input."""

    def test_filters_are_safe(self) -> None:
        """With options that take no file, and no operand but their own."""
        for text in ("cut -d, -f1", "head -n 5", "head -5", "tail -c +10", "tr -d x", "tr a-z A-Z", "wc -lw", "uniq -c", "cut -f 1 | uniq | wc -l"):
            self.assertTrue(look(text).safe, text)
        self.assertTrue(harmless("jq", ["-r", "--arg", "a", "b", ".x"]))

    def test_files_and_expansions_are_not(self) -> None:
        """No operand, option or expansion may name a file."""
        for text in (
            "wc /etc/passwd",
            "head -n 1 x",
            "uniq in out",
            "wc --files0-from=x",
            "tail -f",
            "wc *",
            "wc $X",
            "cut -f1 ~",
            "ls",
            "/usr/bin/wc",
            "wc && ls",
        ):
            self.assertFalse(look(text).safe, text)
        for words in ([".", "x"], ["-f", "x"], ["-L", "x", "."], ["--slurpfile", "a", "b", "."], ['include "x"; .'], ["--arg", "a"], ["-rf"]):
            self.assertFalse(harmless("jq", words), words)

    def test_a_program_without_a_known_form_takes_no_words(self) -> None:
        """Putting a name on the list of safe ones does not make its options safe."""
        self.assertTrue(analyse("sort", "/", PATH, (*DEFAULT, "sort")).safe)
        self.assertFalse(analyse("sort -o x", "/", PATH, (*DEFAULT, "sort")).safe)
