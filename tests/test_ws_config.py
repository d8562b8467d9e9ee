"""The methods config.get and config.schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mayros.config.check import REDACTED
from mayros.config.describe import json_schema
from mayros.config.known import LATER
from mayros.config.schema import Config
from mayros.config.show import effective
from mayros.config.source import parse
from tests.helpers import BASE, SECRET, TOKEN
from tests.test_ws import ADMIN, READ, World, ask


class ConfigTests(SynchronousTestCase):
    """Reading the configuration."""

    def setUp(self) -> None:
        self.state = Path(self.mktemp()).absolute()
        self.state.mkdir()
        (self.state / "mayros.json").write_text("// ours\n" + json.dumps(BASE))
        self.world = World(self, state_dir=str(self.state))

    def test_get(self) -> None:
        """For every reader, with the keys of the protocol and without a secret."""
        answer = ask(*self.world.connect(READ), "config.get", {})
        payload = answer["payload"]
        expected = {"path", "exists", "raw", "parsed", "resolved", "valid", "config", "hash", "issues", "warnings", "legacyIssues"}
        self.assertEqual(expected, set(payload))
        self.assertEqual((True, True, [], []), (payload["exists"], payload["valid"], payload["issues"], payload["legacyIssues"]))
        self.assertTrue(payload["raw"].startswith("// ours\n{"))
        self.assertNotIn(TOKEN, json.dumps(answer))
        self.assertEqual(64, len(payload["hash"]))

    def shown(self, text: str) -> tuple[str, Any]:
        """What `config.get` gives of a file, as text and as it is; no secret is in it anywhere."""
        (self.state / "mayros.json").write_text(text)
        payload = ask(*self.world.connect(READ), "config.get")["payload"]
        return json.dumps(payload), payload

    def test_secrets_elsewhere(self) -> None:
        """What the gateway knows as a secret is hidden wherever it stands: in a value, as a key, a number, with escapes, in comments."""
        told, payload = self.shown(
            """{
              // try SECRET
              gateway: {mode: "local", auth: {token: "the-token-of-it"}},
              agents: {defaults: {contextTokens: 12345678}, list: [{id: "main", name: "about SECRET", identity: {name: 'the-token-of-it'}}]},
              models: {providers: {"SECRET": {baseUrl: "http://h/v1", apiKey: "12345678"}}},
              session: {mainKey: "\\u0061-secret-that-nobody-may-see"},
            }""".replace("SECRET", SECRET)
        )
        for secret in (SECRET, "-secret-that-nobody", "the-token-of-it", "12345678"):
            self.assertNotIn(secret, told)
        for tree in (payload["parsed"], payload["resolved"], payload["config"]):
            agent = tree["agents"]["list"][0]
            self.assertEqual(("main", REDACTED, REDACTED), (agent["id"], agent["name"], agent["identity"]["name"]))
            self.assertEqual({REDACTED}, set(tree["models"]["providers"]))
            self.assertEqual((REDACTED, REDACTED), (tree["session"]["mainKey"], tree["agents"]["defaults"]["contextTokens"]))
        self.assertIn('id: "main"', payload["raw"])
        self.assertEqual(parse(payload["raw"].encode(), "raw"), payload["parsed"])

    def test_misspelt_keys_of_the_secret(self) -> None:
        """What is no key of `gateway.auth` may be the secret under another name; the file is not valid, but shown."""
        told, payload = self.shown(
            '{gateway: {mode: "local", auth: {tokn: "abcdefgh", mode: "token", rateLimit: {maxAttempts: 3, key: "ijklmnop"}}}}'
        )
        self.assertFalse(payload["valid"])
        self.assertNotIn("abcdefgh", told)
        self.assertNotIn("ijklmnop", told)
        auth = {"tokn": REDACTED, "mode": "token", "rateLimit": {"maxAttempts": 3, "key": REDACTED}}
        self.assertEqual(auth, payload["parsed"]["gateway"]["auth"])
        self.assertEqual(auth, parse(payload["raw"].encode(), "raw")["gateway"]["auth"])
        told, payload = self.shown('{gateway: {mode: "local", auth: "abcdefgh"}}')
        self.assertNotIn("abcdefgh", told)

    def test_get_of_a_broken_file(self) -> None:
        """An answer, not an error: the client shows what is wrong."""
        (self.state / "mayros.json").write_text('{"gateway": {"port": true}}')
        payload = ask(*self.world.connect(READ), "config.get")["payload"]
        self.assertFalse(payload["valid"])
        self.assertEqual("gateway.port", payload["issues"][0]["path"])
        self.assertEqual({"path", "message"}, set(payload["issues"][0]))

    def change(self, method: str, **params: Any) -> Any:
        """The answer to an administrator."""
        return ask(*self.world.connect(ADMIN), method, params)

    @property
    def hash(self) -> str:
        return str(ask(*self.world.connect(READ), "config.get")["payload"]["hash"])

    def test_set(self) -> None:
        """The whole file, with what was hidden put back; what is in force and what waits is told, and no secret is in the answer."""
        raw = ask(*self.world.connect(READ), "config.get")["payload"]["raw"]
        base_hash = self.hash
        answer = self.change("config.set", raw=raw.replace("// ours", "// theirs").replace('"main"', '"chief"'), baseHash=base_hash)
        payload = answer["payload"]
        self.assertEqual({"ok", "path", "hash", "config", "hot", "restartRequired"}, set(payload))
        self.assertEqual((True, ["agents.list"], []), (payload["ok"], payload["hot"], payload["restartRequired"]))
        self.assertEqual(self.hash, payload["hash"])
        self.assertNotIn(TOKEN, json.dumps(answer))
        text = (self.state / "mayros.json").read_text()
        self.assertTrue(text.startswith("// theirs\n"))
        self.assertIn(TOKEN, text)
        self.assertIn("chief", self.world.gateway.config.current.directory.agents)
        error = self.change("config.set", raw=raw, baseHash=base_hash)["error"]
        self.assertEqual("config changed since last load; re-run config.get and retry", error["message"])
        self.assertEqual("config base hash required; re-run config.get and retry", self.change("config.set", raw=raw)["error"]["message"])

    def test_set_of_the_first_file(self) -> None:
        """Where there is none, no hash is needed."""
        (self.state / "mayros.json").unlink()
        self.assertTrue(self.change("config.set", raw="{agents: {list: [{id: 'first'}]}}")["ok"])
        self.assertIn("first", self.world.gateway.config.current.directory.agents)

    def test_patch(self) -> None:
        """An object is laid over the file; what needs a restart is told."""
        raw = '{gateway: {port: 4711}, agents: {list: [{id: "beta", name: "Beta"}, {id: "gamma"}]}}'
        payload = self.change("config.patch", raw=raw, baseHash=self.hash, note="because", sessionKey="main")["payload"]
        self.assertEqual((["agents.list"], ["gateway.port"]), (payload["hot"], payload["restartRequired"]))
        self.assertEqual(["main", "beta", "gamma"], list(self.world.gateway.config.current.directory.agents))
        self.assertEqual(4711, payload["config"]["gateway"]["port"])
        status = ask(*self.world.connect(ADMIN), "status")["payload"]["config"]
        self.assertEqual(["gateway.port"], status["restartRequired"])
        self.assertNotIn("config", ask(*self.world.connect(READ), "status")["payload"])

    def test_what_is_not_valid(self) -> None:
        """An error with the place, and the file as it was."""
        before = (self.state / "mayros.json").read_text()
        error = self.change("config.patch", raw='{gateway: {prot: 1, auth: {tokn: "abcdefgh"}}}', baseHash=self.hash)["error"]
        self.assertEqual("INVALID_REQUEST", error["code"])
        self.assertTrue(error["message"].startswith("invalid config: "))
        self.assertEqual(["gateway.auth.tokn"], [issue["path"] for issue in error["details"]["issues"]])
        self.assertNotIn("abcdefgh", json.dumps(error))
        self.assertEqual(before, (self.state / "mayros.json").read_text())

    def test_apply(self) -> None:
        """As set, and the gateway restarts where something waits and somebody starts it again."""
        asked: list[tuple[str, float]] = []
        self.world.gateway.restart = lambda why, seconds: asked.append((why, seconds)) or True  # type: ignore[func-returns-value]
        raw = json.dumps(BASE)
        self.assertFalse(self.change("config.apply", raw=raw, baseHash=self.hash)["payload"]["restart"]["ok"])
        changed = {**BASE, "gateway": {**BASE["gateway"], "port": 4711}}  # type: ignore[dict-item]
        restart = self.change("config.apply", raw=json.dumps(changed), baseHash=self.hash, restartDelayMs=500)["payload"]["restart"]
        self.assertEqual((True, 500, [("config.apply: gateway.port", 0.5)]), (restart["ok"], restart["delayMs"], asked))
        self.world.gateway.restart = lambda why, seconds: False
        restart = self.change("config.apply", raw=json.dumps(changed), baseHash=self.hash)["payload"]["restart"]
        self.assertEqual((False, True), (restart["ok"], "by hand" in restart["reason"]))

    def test_three_a_minute(self) -> None:
        """Are config.patch and config.apply of one client, wrong ones too; then it is told when to come again. Others are not limited."""
        for _ in range(3):
            self.assertIn("invalid config.patch params", self.change("config.patch")["error"]["message"])
        error = self.change("config.apply", raw="{}")["error"]
        self.assertEqual(("UNAVAILABLE", "rate limit exceeded for config.apply; retry after 60s"), (error["code"], error["message"]))
        self.assertEqual((True, 60_000), (error["retryable"], error["retryAfterMs"]))
        self.assertEqual({"method": "config.apply", "limit": "3 per 60s"}, error["details"])
        self.assertTrue(self.change("config.change", set={"session.mainKey": "x"})["ok"])
        self.world.clock.advance(60)
        self.assertIn("params", self.change("config.apply")["error"]["message"])

    def test_change(self) -> None:
        """Single values by their paths, without a hash; comments stay."""
        payload = self.change(
            "config.change", set={"agents.list[1].name": "Beta", "gateway.limits.maxQueuedRuns": 7}, unset=["agents.defaults.model"]
        )
        self.assertEqual({"agents.defaults.model", "agents.list", "gateway.limits.maxQueuedRuns"}, set(payload["payload"]["hot"]))
        text = (self.state / "mayros.json").read_text()
        self.assertTrue(text.startswith("// ours\n"))
        self.assertEqual("Beta", self.world.gateway.config.current.directory.agents["beta"].name)
        for params, words in (
            ({"unset": ["agents.defaults.model"]}, "agents.defaults.model is not set in the file"),
            ({"set": {"agents..x": 1}}, "not a path"),
            ({"set": {"agents.list[9].id": "x"}}, "the list has 2 items"),
            ({}, "neither set nor unset"),
            ({"set": {"gateway.port": 1}, "baseHash": "0" * 64}, "config changed since last load"),
            ({"set": {"gateway.port": "x"}}, "gateway.port: Expected int"),
        ):
            self.assertIn(words, self.change("config.change", **params)["error"]["message"])
        self.assertEqual(text, (self.state / "mayros.json").read_text())

    def test_who_may_change_it(self) -> None:
        """Administrators."""
        for method in ("config.set", "config.patch", "config.apply", "config.change"):
            self.assertEqual("missing scope: operator.admin", ask(*self.world.connect(READ, "operator.write"), method, {})["error"]["message"])

    def test_strict_parameters_and_scopes(self) -> None:
        """Nobody without scopes; no parameters."""
        self.assertEqual("missing scope: operator.read", ask(*self.world.connect(), "config.get")["error"]["message"])
        self.assertEqual("missing scope: operator.admin", ask(*self.world.connect(READ), "config.schema")["error"]["message"])
        for method in ("config.get", "config.schema"):
            self.assertIn("unexpected property 'x'", ask(*self.world.connect(ADMIN), method, {"x": 1})["error"]["message"])

    def test_schema(self) -> None:
        """JSON Schema of the whole file, without references, with all its keys and defaults."""
        payload = ask(*self.world.connect(ADMIN), "config.schema", {})["payload"]
        self.assertEqual({"schema", "uiHints", "version", "generatedAt"}, set(payload))
        self.assertEqual(({}, "1.2.3", "1970-01-01T00:16:35.000Z"), (payload["uiHints"], payload["version"], payload["generatedAt"]))
        schema = payload["schema"]
        self.assertNotIn("$ref", json.dumps(schema))
        self.assertEqual("object", schema["type"])
        tls = schema["properties"]["gateway"]["properties"]["tls"]
        self.assertEqual("boolean", tls["properties"]["enabled"]["type"])
        limits = schema["properties"]["gateway"]["properties"]["limits"]["properties"]
        self.assertEqual(256 << 20, limits["bodyBudget"]["default"])

    def test_the_schema_knows_every_key(self) -> None:
        """Each key that may stand in the file is in it."""

        def keys(tree: object, schema: object) -> None:
            if isinstance(tree, dict) and isinstance(schema, dict) and "properties" in schema:
                self.assertEqual(set(tree), set(schema["properties"]))
                for key, value in tree.items():
                    keys(value, schema["properties"][key])

        keys(effective(Config()), json_schema())
        self.assertFalse({name for name in LATER if "." not in name} & set(json_schema()["properties"]))
