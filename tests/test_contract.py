"""docs/protocol.schema.json is what the gateway does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from mayros.wire import frames
from mayros.ws.config_writes import ConfigWrites
from mayros.ws.contract import PARAMS, Anything, EventFrame, Response, contract, text
from mayros.ws.methods.table import METHODS
from tests.test_ws import ADMIN, World, agent_params, ask, tell

FILE = Path(__file__).parent.parent / "docs" / "protocol.schema.json"


class ContractTests(SynchronousTestCase):
    """The document against the code."""

    def test_it_is_fresh(self) -> None:
        """Whoever changes a type runs `make docs`."""
        self.assertTrue(FILE.read_text(encoding="utf-8") == text(), "docs/protocol.schema.json is out of date: run `make docs`")

    def test_every_method_is_in_it(self) -> None:
        """With its scope, and no other."""
        self.assertEqual(set(METHODS), set(PARAMS))
        document = contract()
        self.assertTrue(all(callable(method.handler) for method in METHODS.values()))
        self.assertEqual({name: method.scope for name, method in METHODS.items()}, {name: one["scope"] for name, one in document["methods"].items()})

    def test_the_parameters_are_those_that_are_checked(self) -> None:
        """Each method asks for what its schema requires, refuses what it does not have, and takes no key that is not there."""
        session, link = World(self).connect(ADMIN, "operator.pairing")
        for name, method in contract()["methods"].items():
            if PARAMS[name] is Anything:
                continue
            schema = method["params"]
            session.gateway.config_writes = ConfigWrites()  # some may be called three times a minute
            message = ask(session, link, name, {"no such key": 1})["error"]["message"]
            self.assertIn("unexpected property 'no such key'", message)
            self.assertEqual(set(schema["required"]), set(re.findall(r"required property '(\w+)'", message)), name)
            self.assertIs(False, schema["additionalProperties"])
            # Unknown keys are told before wrong types, so that any value will do.
            message = ask(session, link, name, {**dict.fromkeys(schema["properties"]), "no such key": 1})["error"]["message"]
            self.assertNotIn("required", message)
            self.assertEqual(1, message.count("unexpected property"), f"{name}: {message}")

    def test_answers_and_events_are_as_described(self) -> None:
        """What a run sends can be read with the types that the document is made of."""
        world = World(self)
        session, link = world.connect(ADMIN)
        tell(session, "agent", agent_params())
        world.provider.say("word")
        world.provider.stop()
        tell(session, "nonsense")
        for frame in link.take():
            kind: Any = Response if frame["type"] == "res" else EventFrame
            decoded = msgspec.json.decode(json.dumps(frame), type=kind)
            self.assertLessEqual(set(frame), set(kind.__struct_encode_fields__), frame)
            self.assertEqual(frame["type"], decoded.type)

    def test_it_needs_no_other_document(self) -> None:
        """No references; the limits are in it."""
        self.assertNotIn("$ref", text())
        self.assertEqual({"min": 3, "max": 4, "maxPayload": frames.MAX_PAYLOAD}, contract()["protocol"])
