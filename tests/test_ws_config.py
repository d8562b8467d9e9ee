"""The methods config.get and config.schema."""

from __future__ import annotations

import json
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mayros.config.describe import json_schema
from mayros.config.known import LATER
from mayros.config.schema import Config
from mayros.config.show import effective
from tests.helpers import BASE, TOKEN
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

    def test_get_of_a_broken_file(self) -> None:
        """An answer, not an error: the client shows what is wrong."""
        (self.state / "mayros.json").write_text('{"gateway": {"port": true}}')
        payload = ask(*self.world.connect(READ), "config.get")["payload"]
        self.assertFalse(payload["valid"])
        self.assertEqual("gateway.port", payload["issues"][0]["path"])
        self.assertEqual({"path", "message"}, set(payload["issues"][0]))

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
