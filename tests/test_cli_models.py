"""`mayros models` and `mayros setup --provider`: keys that never stand on a command line, the models that agents ask, and whether they answer."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

import mayros
from mayros.net.statedir import recognise_foreign
from tests.daemon import MAYROS, Upstream
from tests.forking import loader
from tests.test_cli import CommandLine

KEY = "sk-a-key-for-tests-0123"


class KeyTests(CommandLine):
    """`mayros setup --provider`."""

    def key_file(self, text: str = KEY + "\n") -> str:
        """A file with a key."""
        path = self.home / "key"
        path.write_text(text)
        return str(path)

    def test_a_key_from_a_file(self) -> None:
        """It is copied to where only its owner reads it, named in the configuration, and shown nowhere; its provider's model becomes the first."""
        result = self.mayros("setup", "--provider", "anthropic", "--api-key-file", self.key_file())
        self.assertEqual(result.exit_code, 0, result.output)
        kept = self.state / "keys" / "anthropic"
        self.assertEqual((kept.read_text(), stat.S_IMODE(kept.stat().st_mode)), (KEY + "\n", 0o600))
        self.assertNotIn(KEY, result.output + self.config.read_text())
        profiles = json.loads(self.mayros("config", "get", "auth.profiles").stdout)
        self.assertEqual(profiles, {"anthropic": {"provider": "anthropic", "keyFile": "keys/anthropic"}})
        self.assertEqual(self.mayros("config", "get", "agents.defaults.model.primary").stdout.strip(), "anthropic/claude-sonnet-4-6")
        rows = json.loads(self.mayros("models", "list", "--json").stdout)
        self.assertEqual((rows[0]["ref"], rows[0]["usable"], rows[0]["state"]), ("anthropic/claude-sonnet-4-6", True, "ready"))
        self.assertEqual(self.mayros("config", "validate", "--strict").exit_code, 0)

    def test_a_new_key_for_the_same_provider(self) -> None:
        """It takes the place of the old one; comments and models stay."""
        self.write("{ gateway: { mode: 'local' }, /* mine */ agents: { defaults: { model: 'groq/x' } } }")
        self.mayros("setup", "--provider", "groq", "--api-key-file", self.key_file("gsk-old-00000001"))
        os.chmod(self.state / "keys" / "groq", 0o644)
        result = self.mayros("setup", "--provider", "groq", "--api-key-file", self.key_file())
        self.assertEqual(result.exit_code, 0, result.output)
        kept = self.state / "keys" / "groq"
        self.assertEqual((kept.read_text(), stat.S_IMODE(kept.stat().st_mode)), (KEY + "\n", 0o600))
        self.assertIn("/* mine */", self.config.read_text())
        self.assertEqual(self.config.read_text().count("keys/groq"), 1)
        self.assertEqual(self.mayros("config", "get", "agents.defaults.model").stdout.strip(), "groq/x")

    def test_a_configuration_elsewhere(self) -> None:
        """A second key, and the gateway after it, find the state directory that the first one made; who is not asked yet is told how."""
        elsewhere = {"MAYROS_CONFIG_PATH": str(self.home / "elsewhere.json")}
        (self.home / "elsewhere.json").write_text(json.dumps({"gateway": {"mode": "local"}, "agents": {"defaults": {"model": "groq/x"}}}))
        first = self.mayros("setup", "--provider", "groq", "--api-key-file", self.key_file(), **elsewhere)
        self.assertNotIn("models set", first.output)
        second = self.mayros("setup", "--provider", "openai", "--api-key-file", self.key_file(), **elsewhere)
        self.assertEqual(second.exit_code, 0, second.output)
        self.assertIn("No agent asks a model of openai yet: `mayros models set openai/gpt-5-mini`", second.output)
        self.assertIsNone(recognise_foreign(str(self.state)))

    def test_what_is_no_key(self) -> None:
        """Refused before anything is written, and not repeated."""
        for text in ("", "two words", "ключ", "a\nb", "x" * 5000):
            self.assertRefused(self.mayros("setup", "--provider", "openai", "--api-key-file", self.key_file(text)), 1, "no API key")
        self.assertRefused(self.mayros("setup", "--provider", "nobody", "--api-key-file", self.key_file()), 2, "nobody", "anthropic")
        self.assertRefused(self.mayros("setup", "--api-key-file", self.key_file()), 2, "--provider")
        self.assertRefused(self.mayros("setup", "--provider", "openai", "--api-key-file", str(self.home / "none")), 1, "No such file")
        self.assertFalse(self.config.exists())

    def test_profiles_in_the_file(self) -> None:
        """What cannot be a key, or where it cannot be read, is named by its key path, never by its value."""
        profile = "auth.profiles.p"

        def refused(profiles: dict[str, Any], *words: str, **environ: str) -> None:
            self.write({"auth": profiles})
            result = self.mayros("config", "validate", **environ)
            self.assertRefused(result, 78, *words)
            self.assertNotIn(KEY, result.output)

        refused({"profiles": {"p": {"provider": "openai"}}}, profile, "exactly one")
        refused({"profiles": {"p": {"provider": "openai", "key": KEY, "keyFile": "x"}}}, profile, "exactly one")
        refused({"profiles": {"p": {"provider": "openai", "key": f"{KEY} {KEY}"}}}, f"{profile}.key")
        refused({"profiles": {"p": {"provider": "openai", "keyFile": "keys/none"}}}, f"{profile}.keyFile", "No such file")
        refused({"profiles": {"p": {"provider": "openai", "credential": "../x"}}}, f"{profile}.credential")
        refused({"profiles": {"p": {"provider": "openai", "credential": "x"}}}, f"{profile}.credential", "LoadCredential")
        refused({"profiles": {"p": {"provider": "a/b", "key": KEY}}}, f"{profile}.provider")
        refused({"profiles": {"p": {"provider": "openai", "key": KEY}}, "order": {"openai": ["q"]}}, "auth.order.openai", "q")
        refused({"profiles": {"p": {"provider": "openai", "key": KEY}}, "order": {"groq": ["p"]}}, "auth.order.groq")

    def test_a_key_from_the_service_manager(self) -> None:
        """A file of $CREDENTIALS_DIRECTORY, by its name."""
        (self.home / "model-key").write_text(KEY)
        self.write({"gateway": {"mode": "local"}, "auth": {"profiles": {"p": {"provider": "openai", "credential": "model-key"}}}})
        rows = json.loads(self.mayros("models", "list", "--json", CREDENTIALS_DIRECTORY=str(self.home)).stdout)
        self.assertEqual({row["state"] for row in rows if row["ref"].startswith("openai/")}, {"ready"})


class ModelTests(CommandLine):
    """`mayros models list` and `set`."""

    def test_what_cannot_be_used_is_left_out(self) -> None:
        """Built-in models of vendors without a key; `--all` shows them, with what to do."""
        self.write({"gateway": {"mode": "local"}})
        short = self.mayros("models", "list", OPENAI_API_KEY=KEY)
        self.assertIn("openai/gpt-5-mini", short.stdout)
        self.assertNotIn("anthropic/", short.stdout)
        full = self.mayros("models", "list", "--all", OPENAI_API_KEY=KEY)
        self.assertRegex(
            full.stdout, r"anthropic/claude-haiku-4-5 .* \$1/\$5 .*images thinks tools .*ANTHROPIC_API_KEY.*mayros setup --provider anthropic"
        )

    def test_set(self) -> None:
        """The primary model of all agents or of one; fallbacks stay unless they are given; comments stay."""
        self.write(
            "{ gateway: {mode: 'local'}, agents: { /* why */ defaults: { model: { primary: 'a/b', fallbacks: ['groq/f'] } }, list: [{id: 'Ops'}] } }"
        )
        environ = {"OPENAI_API_KEY": KEY, "GROQ_API_KEY": KEY}
        result = self.mayros("models", "set", "openai/gpt-5-mini", **environ)
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertIn("openai/gpt-5-mini is the model of all agents without a model of their own, then groq/f.", result.output)
        self.assertEqual(
            json.loads(self.mayros("config", "get", "agents.defaults.model").stdout), {"primary": "openai/gpt-5-mini", "fallbacks": ["groq/f"]}
        )
        result = self.mayros("models", "set", "openai/gpt-5", "--fallback", "groq/x", "--fallback", EMBEDDED, "--agent", "ops", **environ)
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertEqual(
            json.loads(self.mayros("config", "get", "agents.list[0].model").stdout), {"primary": "openai/gpt-5", "fallbacks": ["groq/x", EMBEDDED]}
        )
        self.assertIn("/* why */", self.config.read_text())

    def test_set_refuses_what_could_not_answer(self) -> None:
        """An unknown provider, a vendor without a key, an agent that is not there; the file stays."""
        self.write({"gateway": {"mode": "local"}})
        before = self.config.read_text()
        self.assertRefused(self.mayros("models", "set", "nowhere/x"), 1, "nowhere/x", "anthropic")
        self.assertRefused(self.mayros("models", "set", "anthropic/x"), 1, "ANTHROPIC_API_KEY")
        self.assertRefused(self.mayros("models", "set", "openai/x", "--agent", "nobody", OPENAI_API_KEY=KEY), 1, "nobody")
        self.assertEqual(self.config.read_text(), before)


EMBEDDED = "local/smollm2-135m-instruct"


class TrialTests(TestCase):
    """`mayros models test`, against a server, in a process of its own."""

    def setUp(self) -> None:
        self.upstream = Upstream()
        self.addCleanup(self.upstream.close)
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir(mode=0o700)
        providers = {
            "mock": {"baseUrl": f"http://127.0.0.1:{self.upstream.port}/v1", "models": [{"id": "m", "cost": {"input": 1000, "output": 1000}}]},
            "gone": {"baseUrl": "http://127.0.0.1:1/v1"},
        }
        config = {"gateway": {"mode": "local"}, "models": {"providers": providers}, "agents": {"defaults": {"model": "mock/m"}}}
        path = self.home / "mayros.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(config))

    def run_test(self, *args: str) -> tuple[int, list[dict[str, Any]]]:
        """Status and rows."""
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.home), "MAYROS_STATE_DIR": str(self.home)}
        environ["PYTHONPATH"] = str(Path(mayros.__file__).parent.parent)
        done = loader().run([*MAYROS, "models", "test", "--json", *args], environ, self.home, 60)
        self.assertEqual(done.stderr, "")
        return done.returncode, json.loads(done.stdout)

    def test_without_asking(self) -> None:
        """The agents' models; nothing is sent."""
        status, rows = self.run_test()
        self.assertEqual((status, [(row["ref"], row["ok"]) for row in rows]), (0, [("mock/m", True)]))
        self.assertEqual(self.upstream.asked, [])
        status, rows = self.run_test("anthropic/x")
        self.assertEqual(status, 1)
        self.assertIn("ANTHROPIC_API_KEY", rows[0]["detail"])
        status, rows = self.run_test(EMBEDDED)
        self.assertEqual((status, rows[0]["detail"]), (1, "not installed: mayros models install smollm2"))

    def test_live(self) -> None:
        """One word from each: how long it took and what it cost, or why it did not."""
        status, rows = self.run_test("--live", "mock/m", "gone/x")
        self.assertEqual(status, 1)
        self.assertEqual([row["ok"] for row in rows], [True, False])
        self.assertIn("one two three", rows[0]["detail"])
        self.assertGreater(rows[0]["costUsd"], 0)
        self.assertIn("could not be reached", rows[1]["detail"])
        self.assertEqual(len(self.upstream.asked), 1)
