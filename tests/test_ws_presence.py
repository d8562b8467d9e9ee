"""Who is here: the list, what is told of a client in it, and for how long."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from mayros.wire import frames
from mayros.wire.frames import Client
from mayros.ws.presence import KEEP_MS, MAX_ENTRIES, Presence
from tests.test_ws import READ, REMOTE, World, ask, connect_params, tell

PAGE = Client("webchat-ui", "1.0", "linux", "webchat")


class PresenceTests(SynchronousTestCase):
    """The list by itself; times are milliseconds."""

    def setUp(self) -> None:
        self.presence = Presence("box", "1.2.3")

    def come(self, connection_id: str, client: Client = PAGE, now_ms: int = 0, device_id: str | None = None, scopes: tuple[str, ...] = ()) -> str:
        """A client comes; its key."""
        key = self.presence.connected(client, "operator", scopes, connection_id=connection_id, device_id=device_id, ip="203.0.113.9", now_ms=now_ms)
        assert key is not None
        return key

    def entries(self, now_ms: int = 0) -> list[Any]:
        """The clients' entries as on the wire."""
        return json.loads(msgspec.json.encode(self.presence.entries(now_ms)))[1:]

    def test_the_gateway_comes_first(self) -> None:
        """It is always here, now."""
        (entry,) = json.loads(msgspec.json.encode(self.presence.entries(5)))
        self.assertEqual(("box", "1.2.3", "gateway", "self", 5), tuple(entry[name] for name in ("host", "version", "mode", "reason", "ts")))
        self.assertEqual("Gateway: box · app 1.2.3 · mode gateway · reason self", entry["text"])

    def test_a_client(self) -> None:
        """What it says about itself; what it does not say is left out."""
        self.come("c-1", now_ms=7)
        expected = {
            "host": "webchat-ui",
            "ip": "203.0.113.9",
            "version": "1.0",
            "platform": "linux",
            "mode": "webchat",
            "roles": ["operator"],
            "reason": "connect",
            "ts": 7,
            "text": "Node: webchat-ui · mode webchat",
        }
        self.assertEqual([expected], self.entries(7))

    def test_a_device(self) -> None:
        """It has one entry whatever it calls itself, in which roles and scopes add up."""
        client = Client("mayros-macos", "1.0", "macos", "ui", display_name="Desk", device_family="Mac", model_identifier="M1", instance_id="i")
        self.come("c-1", client, 1, "D1", ("operator.read",))
        self.come("c-2", PAGE, 2, "D1", ("operator.write",))
        self.presence.connected(client, "node", (), connection_id="c-3", device_id="D1", ip=None, now_ms=3)
        (entry,) = self.entries(3)
        self.assertEqual((["node", "operator"], ["operator.read", "operator.write"]), (entry["roles"], entry["scopes"]))
        self.assertEqual(
            ("Desk", "D1", "D1", "Mac", "M1"), tuple(entry[n] for n in ("host", "deviceId", "instanceId", "deviceFamily", "modelIdentifier"))
        )
        self.assertNotIn("ip", entry)

    def test_names(self) -> None:
        """By device, else by instance, else by connection; an instance that is called like a device is not that device."""
        named = Client("test", "1", "linux", "test", instance_id="D1")
        self.assertEqual(self.come("c-1", named), self.come("c-2", Client("test", "1", "linux", "test", instance_id="d1")))
        self.assertNotEqual(self.come("c-3", named), self.come("c-4", named, device_id="D1"))
        self.assertNotEqual(self.come("c-5"), self.come("c-6"))

    def test_command_line_tools_are_not_listed(self) -> None:
        """They come and go."""
        before = self.presence.version
        client = Client("cli", "1", "linux", "cli")
        self.assertIsNone(self.presence.connected(client, "operator", (), connection_id="c", device_id=None, ip=None, now_ms=0))
        self.assertEqual(([], before), (self.entries(), self.presence.version))

    def test_leaving(self) -> None:
        """The entry says so for five minutes; each change is a new version."""
        key = self.come("c-1", now_ms=1)
        version = self.presence.version
        self.assertTrue(self.presence.disconnected(key, 10))
        self.assertEqual(version + 1, self.presence.version)
        self.assertEqual([("disconnect", 10)], [(entry["reason"], entry["ts"]) for entry in self.entries(10 + KEEP_MS - 1)])
        self.assertEqual([], self.entries(10 + KEEP_MS))

    def test_who_is_here_stays(self) -> None:
        """A connected client is listed however long it is silent, also when another connection of it has ended."""
        key = self.come("c-1", device_id="D1")
        self.come("c-2", device_id="D1")
        self.presence.disconnected(key, 10)
        self.assertEqual(["disconnect"], [entry["reason"] for entry in self.entries(100 * KEEP_MS)])
        self.presence.disconnected(key, 20)
        self.assertEqual([], self.entries(100 * KEEP_MS))

    def test_the_newest_change_comes_first(self) -> None:
        """Whoever came or left last."""
        keys = [self.come(f"c-{number}", Client(f"mayros-{number}", "1", "linux", "ui"), number) for number in range(3)]
        self.presence.disconnected(keys[1], 5)
        self.assertEqual(["mayros-1", "mayros-2", "mayros-0"], [entry["host"] for entry in self.entries()])

    def test_the_list_is_bounded(self) -> None:
        """Those who left are forgotten first; then those who came first, whose leaving is no news."""
        gone = self.come("gone", now_ms=1)
        here = self.come("here", now_ms=2)
        self.presence.disconnected(gone, 3)
        for number in range(MAX_ENTRIES - 1):
            self.come(f"c-{number}", now_ms=4)
        self.assertEqual((MAX_ENTRIES, 2), (len(self.entries()), self.entries()[-1]["ts"]))
        self.come("one more", now_ms=5)
        self.assertEqual((MAX_ENTRIES, 4), (len(self.entries()), self.entries()[-1]["ts"]))
        self.assertFalse(self.presence.disconnected(here, 6))

    def test_long_names_are_cut(self) -> None:
        """What a client says about itself is sent to all others."""
        self.come("c-1", Client("test", "v" * 5_000, "p" * 5_000, "test", display_name="n" * 5_000))
        self.assertLess(len(json.dumps(self.entries())), 1_000)


class PresenceMethodTests(SynchronousTestCase):
    """The list as clients meet it."""

    def setUp(self) -> None:
        self.world = World(self)

    def page(self, **changes: Any) -> dict[str, Any]:
        """Parameters of a client that is listed."""
        return {"client": {"id": "mayros-macos", "version": "1", "platform": "macos", "mode": "ui", **changes}}

    def test_system_presence(self) -> None:
        """A bare array: the gateway, then the clients; who asks is among them unless it is a command-line tool."""
        session, link = self.world.connect(READ)
        self.world.connect(address=REMOTE, **self.page())
        payload = ask(session, link, "system-presence", {})["payload"]
        self.assertEqual([("gateway", None), ("ui", "203.0.113.9")], [(entry["mode"], entry.get("ip")) for entry in payload])
        error = ask(session, link, "system-presence", {"all": True})["error"]
        self.assertEqual("invalid system-presence params: at root: unexpected property 'all'", error["message"])

    def test_last_heartbeat(self) -> None:
        """There are none."""
        session, link = self.world.connect(READ)
        answer = ask(session, link, "last-heartbeat")
        self.assertEqual((True, None), (answer["ok"], answer["payload"]))
        self.assertIn("payload", answer)

    def test_a_scope_is_needed(self) -> None:
        """Both are for readers."""
        session, link = self.world.connect()
        for method in ("system-presence", "last-heartbeat"):
            self.assertEqual("missing scope: operator.read", ask(session, link, method)["error"]["message"])

    def test_coming_and_leaving(self) -> None:
        """A client finds itself in its hello-ok, of version and all; the others are told when it leaves, not when it comes."""
        _, other = self.world.connect()
        session, link = self.world.dial()
        link.take()
        tell(session, "connect", connect_params(**self.page(displayName="Desk")))
        hello, health = link.take()
        snapshot = hello["payload"]["snapshot"]
        self.assertEqual(["self", "connect"], [entry["reason"] for entry in snapshot["presence"]])
        self.assertEqual([2, 2], [snapshot["stateVersion"]["presence"], health["stateVersion"]["presence"]])
        self.world.clock.advance(1)
        self.assertEqual([], other.take())
        session.closed()
        self.world.clock.advance(0)
        (event,) = other.take()
        self.assertEqual(("presence", {"presence": 3, "health": 1}), (event["event"], event["stateVersion"]))
        self.assertEqual([("self", "box"), ("disconnect", "Desk")], [(e["reason"], e["host"]) for e in event["payload"]["presence"]])

    def test_an_answer_that_is_too_large(self) -> None:
        """It becomes an error that says how large it was."""
        session, link = self.world.connect(READ)
        self.patch(frames, "MAX_PAYLOAD", 200)
        error = ask(session, link, "system-presence")["error"]
        self.assertEqual(("UNAVAILABLE", "PAYLOAD_TOO_LARGE"), (error["code"], error["details"]["code"]))
