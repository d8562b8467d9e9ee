"""docs/cli.md says what the commands say, on every machine; and they all say something."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
from twisted.trial.unittest import SynchronousTestCase

from mayros.cli.main import COMMANDS, main
from mayros.cli.reference import commands, options, text
from tests.daemon import python_path

FILE = Path(__file__).parent.parent / "docs" / "cli.md"


class ReferenceTests(SynchronousTestCase):
    """The document and the commands."""

    def test_it_is_fresh(self) -> None:
        """Whoever changes a command runs `make docs`."""
        self.assertTrue(FILE.read_text(encoding="utf-8") == text(), "docs/cli.md is out of date: run `make docs`")

    def test_everything_is_in_it(self) -> None:
        """Each command with its arguments and options."""
        parts = dict(re.findall(r"^##+ (mayros .+)\n((?:(?!##).*\n)+)", text(), re.MULTILINE))
        found = list(commands(main, ("mayros",)))
        self.assertEqual(list(parts), [" ".join(words) for words, _ in found])
        self.assertLessEqual(set(COMMANDS), {words[1] for words, _ in found})
        for words, command in found:
            part = parts[" ".join(words)]
            for option in options(command):
                for name in (*option.opts, *option.secondary_opts):
                    self.assertIn(f"`{name}`", part)
            for argument in command.params:
                if isinstance(argument, click.Argument):
                    self.assertIn((argument.metavar or (argument.name or "").upper()).strip("[]."), part.partition("```\n\n")[0], words)

    def test_everything_has_a_help_text(self) -> None:
        """Sentences, not notes; what a command takes is in its text."""
        for words, command in commands(main, ("mayros",)):
            self.assertRegex((command.help or "").strip(), r"(?s)\A[A-Z].*\.\Z", words)
            for option in options(command):
                self.assertRegex(option.help or "", r"(?s)\A[A-Z].*\.\Z", (words, option.opts))
            for argument in command.params:
                if isinstance(argument, click.Argument):
                    name = (argument.metavar or (argument.name or "").upper()).strip("[].")
                    self.assertRegex(command.help or "", rf"\b{name}\b", words)

    def test_it_is_the_same_everywhere(self) -> None:
        """In a narrow terminal, another home, another language."""
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": self.mktemp(),
            "COLUMNS": "20",
            "LC_ALL": "C",
            "LANGUAGE": "de",
            "TERM": "dumb",
        } | python_path()
        script = "import sys; from mayros.cli.reference import text; sys.stdout.buffer.write(text().encode())"
        done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, timeout=30, check=True)
        self.assertEqual(done.stdout.decode(), text())
        self.assertNotIn(str(Path.home()), text().replace("~/", ""))
