"""`mayros config set`, `unset` and `edit`: through the gateway that runs, else in the file."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from mayros.net.statedir import StateDir
from mayros.ws.conversation import CallFailed
from tests.test_cli import CommandLine

FILE = """\
// ours
{
  gateway: { mode: "local", port: 4444, auth: { token: "the-token-of-it" } }, // the door
  agents: { list: [{ id: "main" }] },
}
"""
APPLIED = {"ok": True, "path": "/there/mayros.json", "hash": "abc", "hot": ["agents.list"], "restartRequired": ["gateway.port"], "config": {}}


class ConfigCase(CommandLine):
    """A file with remarks."""

    def setUp(self) -> None:
        super().setUp()
        self.write(FILE)

    def running(self, answer: Any = APPLIED) -> None:
        """A gateway has the state directory, and answers so."""
        state = StateDir.open(str(self.state))
        state.lock()
        self.addCleanup(state.unlock)
        self.gateway.final = answer


class SetTests(ConfigCase):
    """`set` and `unset`."""

    def test_without_a_gateway(self) -> None:
        """The file is changed, remarks stay, and it is checked as at a start."""
        result = self.mayros("config", "set", "agents.list[0].name", "My Agent")
        self.assertEqual((0, 1), (result.exit_code, result.stdout.count("was changed")), result.output)
        self.mayros("config", "set", "gateway.limits.maxQueuedRuns", "7")
        self.mayros("config", "set", "gateway.http", '{"endpoints": {"chatCompletions": {"enabled": true}}}')
        text = self.config.read_text()
        self.assertTrue(text.startswith("// ours\n"))
        self.assertIn("// the door", text)
        for path, value in (
            ("agents.list[0].name", "My Agent"),
            ("gateway.limits.maxQueuedRuns", "7"),
            ("gateway.http.endpoints.chatCompletions.enabled", "true"),
        ):
            self.assertEqual(value, self.mayros("config", "get", path).stdout.strip())
        self.assertEqual(0, self.mayros("config", "unset", "gateway.limits.maxQueuedRuns", "agents.list[0].name").exit_code)
        self.assertEqual("1024", self.mayros("config", "get", "gateway.limits.maxQueuedRuns").stdout.strip())
        self.assertEqual([], self.gateway.calls)

    def test_what_is_refused(self) -> None:
        """One line, and the file as it was."""
        for status, words, *arguments in (
            (78, "gateway.port", "set", "gateway.port", "x"),
            (78, "gateway.auth.tokn", "set", "gateway.auth.tokn", "${TOKEN}"),
            (1, "the list has 1 items", "set", "agents.list[5].id", "x"),
            (1, "session.mainKey is not set", "unset", "session.mainKey"),
        ):
            self.assertRefused(self.mayros("config", *arguments), status, words)
            self.assertEqual(FILE, self.config.read_text())
        for arguments in (["set", "gateway.port"], ["set", "gateway..port", "1"], ["set", "gateway.port", "1", "--value-file", "x"], ["unset"]):
            self.assertEqual(2, self.mayros("config", *arguments).exit_code, arguments)

    def test_secrets(self) -> None:
        """Are not taken from the command line, wherever they stand in a value; from a file they are, as they are there."""
        for path, value in (
            ("gateway.auth.token", "a-secret"),
            ("models.providers.openai.apiKey", "sk-1"),
            ("models.providers.openai", '{"apiKey": "sk-1"}'),
            ("models.providers.x.headers", '{"x-any": "sk-1"}'),
            ("env.MINE", "sk-1"),
        ):
            result = self.mayros("config", "set", path, value)
            self.assertEqual((2, True), (result.exit_code, "--value-file" in result.stderr), path)
        self.assertEqual(FILE, self.config.read_text())
        secret = self.home / "secret"
        secret.write_text("a-${X}-secret\n")
        self.assertEqual(0, self.mayros("config", "set", "gateway.auth.token", "--value-file", str(secret)).exit_code)
        self.assertIn('token: "a-$${X}-secret"', self.config.read_text())
        self.assertEqual(0, self.mayros("config", "set", "gateway.auth.token", "${MINE}", MINE="from-outside").exit_code)
        self.assertIn('token: "${MINE}"', self.config.read_text())

    def test_a_file_that_cannot_be_read(self) -> None:
        """Can be mended where it is a value that is wrong."""
        self.write('{gateway: {mode: "local", port: "x"}}')
        self.assertEqual(0, self.mayros("config", "set", "gateway.port", "4444").exit_code)
        self.assertEqual("4444", self.mayros("config", "get", "gateway.port").stdout.strip())

    def test_with_a_gateway(self) -> None:
        """It makes the change, and says what is in force and what waits."""
        self.running()
        result = self.mayros("config", "set", "agents.list[0].name", "X")
        self.assertEqual("/there/mayros.json: in force now: agents.list\nAfter a restart of the gateway: gateway.port\n", result.stdout)
        self.assertEqual(("config.change", {"set": {"agents.list[0].name": "X"}}), (self.gateway.calls[0]["method"], self.gateway.calls[0]["params"]))
        self.mayros("config", "unset", "a.b", "c.d")
        self.assertEqual({"unset": ["a.b", "c.d"]}, self.gateway.calls[1]["params"])
        told = json.loads(self.mayros("config", "set", "a.b", "1", "--json").stdout)
        self.assertEqual({"ok", "path", "hash", "hot", "restartRequired"}, set(told))
        self.assertEqual(FILE, self.config.read_text())

    def test_a_gateway_that_does_not_let_us_in(self) -> None:
        """As one whose port is about to be another: its file is changed, which it notices. Another machine's is not ours to write."""
        self.running(CallFailed("UNAVAILABLE", "Cannot reach a gateway at ws://127.0.0.1:4444/: refused"))
        result = self.mayros("config", "set", "gateway.port", "5555")
        self.assertEqual((0, True), (result.exit_code, "could not be asked" in result.stderr), result.output)
        self.assertIn("port: 5555", self.config.read_text())
        self.assertRefused(self.mayros("config", "set", "gateway.port", "1", "--url", "ws://elsewhere:1/"), 1, "Cannot reach")
        self.gateway.final = CallFailed("INVALID_REQUEST", "invalid config: gateway.port: is too large")
        self.assertRefused(self.mayros("config", "set", "gateway.port", "99999"), 1, "invalid config")


class EditTests(ConfigCase):
    """`edit`."""

    def editor(self, *texts: tuple[str, str]) -> dict[str, str]:
        """An editor that replaces the first text by the second, one pair for each time that it is started."""
        script = self.home / "editor.py"
        script.write_text(
            "import json, pathlib, sys\n"
            f"steps = pathlib.Path({str(self.home / 'steps')!r})\n"
            "step, *rest = json.loads(steps.read_text())\n"
            "steps.write_text(json.dumps(rest))\n"
            "file = pathlib.Path(sys.argv[1])\n"
            "text = file.read_text()\n"
            "assert step[0] in text, text\n"
            "file.write_text(text.replace(*step))\n"
        )
        (self.home / "steps").write_text(json.dumps(texts))
        return {"VISUAL": f"{shlex.quote(sys.executable)} {shlex.quote(str(script))}"}

    def edit(self, *texts: tuple[str, str], arguments: tuple[str, ...] = (), answers: str = "") -> Any:
        import os

        from click.testing import CliRunner

        from mayros.cli.main import main
        from mayros.cli.place import Place

        self.patch(os, "environ", {**os.environ, **self.editor(*texts)})
        place = Place(self.environ, connects=lambda: self.gateway.connect, drive=self.drive)
        return CliRunner().invoke(main, ["config", "edit", *arguments], obj=place, input=answers)

    def test_without_a_gateway(self) -> None:
        """What is saved is the file, byte for byte."""
        result = self.edit(("4444", "5555"))
        self.assertEqual(0, result.exit_code, result.output)
        self.assertEqual(FILE.replace("4444", "5555"), self.config.read_text())

    def test_a_mistake(self) -> None:
        """Is told, and can be mended, or given up."""
        result = self.edit(("4444", '"x"'), ('"x"', "5555"), answers="y\n")
        self.assertEqual(0, result.exit_code, result.output)
        self.assertIn("Not saved: ", result.stderr)
        self.assertIn("port: 5555", self.config.read_text())
        result = self.edit(("5555", '"x"'), answers="n\n")
        self.assertEqual(1, result.exit_code)
        self.assertIn("port: 5555", self.config.read_text())

    def test_nothing_changed(self) -> None:
        """Is said."""
        self.assertIn("Nothing was changed", self.edit(("4444", "4444")).stdout)

    def test_with_a_gateway(self) -> None:
        """It gets the whole text, with the hash of the file as it was."""
        self.running()
        self.gateway.finals = {"config.get": {"path": str(self.config), "exists": True, "hash": "base", "raw": "hidden"}}
        result = self.edit(("4444", "5555"))
        self.assertEqual(0, result.exit_code, result.output)
        self.assertEqual({"raw": FILE.replace("4444", "5555"), "baseHash": "base"}, self.gateway.calls[1]["params"])
        self.assertIn("After a restart of the gateway: gateway.port", result.stdout)

    def test_of_another_gateway(self) -> None:
        """Its text comes with the secrets hidden, and goes back so."""
        self.gateway.finals = {"config.get": {"path": "/there/x", "exists": True, "hash": "base", "raw": '{ gateway: { port: 1, auth: "__" } }\n'}}
        self.gateway.final = APPLIED
        result = self.edit(("port: 1", "port: 2"), arguments=("--url", "ws://elsewhere:1/"))
        self.assertEqual(0, result.exit_code, result.output)
        self.assertEqual({"raw": '{ gateway: { port: 2, auth: "__" } }\n', "baseHash": "base"}, self.gateway.calls[1]["params"])
        self.assertEqual(FILE, Path(self.config).read_text())
