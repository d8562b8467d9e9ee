"""The commands that ask a gateway: what they ask, what they print, and how they sign. In memory, against a gateway that is a coroutine."""

from __future__ import annotations

import json
import os
from io import StringIO
from typing import Any

from click.testing import Result

from mayros.cli import show
from mayros.ws.conversation import CallFailed
from mayros.ws.identity import OWN, Identity
from tests.test_cli import CommandLine

ROW = {
    "key": "agent:main:work",
    "kind": "direct",
    "label": "the \x1b[31mred\x1b[0m\none",
    "updatedAt": 1,
    "sessionId": "s",
    "model": "m",
    "totalTokens": 500,
    "contextTokens": 1000,
}


class GatewayCase(CommandLine):
    """A configured gateway with a token."""

    def setUp(self) -> None:
        super().setUp()
        self.write({"gateway": {"mode": "local", "port": 4444, "auth": {"token": "a-token-of-the-file"}}})

    def good(self, *args: str, **environ: str) -> Result:
        """A command that succeeds."""
        result = self.mayros(*args, **environ)
        self.assertEqual(result.exit_code, 0, result.output)
        return result

    def asked(self) -> Any:
        """The newest request."""
        return self.gateway.methods()[-1]


class CallTests(GatewayCase):
    """`mayros gateway call`."""

    def test_call(self) -> None:
        """The answer as JSON; parameters as JSON; with --json on one line."""
        self.gateway.final = {"models": [{"id": "x"}]}
        result = self.good("gateway", "call", "models.list")
        self.assertEqual(json.loads(result.stdout), self.gateway.final)
        self.assertGreater(len(result.stdout.splitlines()), 3)
        self.assertEqual(self.asked(), ("models.list", {}))
        self.assertEqual(self.good("gateway", "call", "agent.wait", "--params", '{"runId": "r"}', "--json").stdout, '{"models": [{"id": "x"}]}\n')
        self.assertEqual(self.asked(), ("agent.wait", {"runId": "r"}))

    def test_final(self) -> None:
        """--expect-final waits for the second answer, as long as --timeout says."""
        self.good("gateway", "call", "agent", "--expect-final", "--timeout", "90")
        self.good("gateway", "call", "agent")
        self.assertEqual([(call["expect_final"], call["timeout"]) for call in self.gateway.calls], [(True, 90.0), (False, 30.0)])

    def test_bad_parameters(self) -> None:
        """What is no JSON object is wrong usage."""
        for text in ("{", "[]", "5", "[" * 100_000):
            self.assertRefused(self.mayros("gateway", "call", "health", "--params", text), 2, "--params")

    def test_refused(self) -> None:
        """The gateway's words in one line; the payload that came along is printed."""
        self.gateway.finals["agent"] = CallFailed("UNAVAILABLE", "no\nmodel", payload={"status": "error"})
        result = self.mayros("gateway", "call", "agent", "--json")
        self.assertRefused(result, 1, "no model")
        self.assertEqual(json.loads(result.stdout), {"status": "error"})


class ProbeTests(GatewayCase):
    """`mayros gateway probe` and `health`."""

    def test_probe(self) -> None:
        """What answers there, as lines or JSON."""
        self.gateway.final = {"ok": True}
        self.gateway.hello |= {"server": {"version": "9.9", "host": "h"}, "auth": {"role": "operator", "scopes": ["operator.read"]}}
        self.assertIn("version: 9.9\n", self.good("gateway", "probe").stdout)
        found = json.loads(self.good("gateway", "probe", "--json").stdout)
        self.assertEqual((found["ok"], found["protocol"], found["scopes"]), (True, 4, ["operator.read"]))

    def test_refused_probe(self) -> None:
        """Status 1; as JSON with the error's code."""
        self.gateway.final = CallFailed("NOT_PAIRED", "pairing required", {"requestId": "r-1"})
        result = self.mayros("gateway", "probe", "--json")
        self.assertRefused(result, 1, "pairing required", "mayros devices approve r-1")
        self.assertEqual(json.loads(result.stdout)["error"]["code"], "NOT_PAIRED")

    def test_a_strange_gateway(self) -> None:
        """A hello and a health of other shapes are no reason to fall over."""
        self.gateway.hello = {"server": 5, "features": {"methods": None}}
        self.gateway.final = []
        self.assertRefused(self.mayros("gateway", "probe"), 1, "not healthy")

    def test_health_needs_no_device(self) -> None:
        """A check of health leaves no trace: no device is made where there is a secret, no scope asked for."""
        self.gateway.final = {"ok": True}
        self.good("gateway", "health")
        self.assertEqual((self.gateway.calls[0]["identity"], self.gateway.calls[0]["scopes"]), (None, ()))
        self.assertFalse((self.state / "identity").exists())
        self.good("gateway", "health", "--url", "ws://far.example")
        self.assertIsNotNone(self.gateway.calls[1]["identity"])


class SecretTests(GatewayCase):
    """Which secret and which identity are sent where."""

    def test_signed(self) -> None:
        """Commands sign as this machine's device, made on first use for its owner only, and ask for an operator's scopes."""
        self.good("gateway", "call", "status")
        call = self.gateway.calls[0]
        self.assertEqual((call["token"], call["gateway"]), ("a-token-of-the-file", OWN))
        self.assertIn("operator.admin", call["scopes"])
        self.assertEqual(call["identity"].device_id, json.loads((self.state / "identity" / "device.json").read_text())["deviceId"])
        self.assertEqual((self.state / "identity").stat().st_mode & 0o077, 0)

    def test_elsewhere(self) -> None:
        """The device token of another gateway is kept under its URL."""
        self.good("gateway", "call", "status", "--url", "wss://far.example/")
        self.assertEqual((self.gateway.calls[0]["gateway"], self.gateway.calls[0]["token"]), ("wss://far.example", None))

    def test_secrets_on_the_command_line(self) -> None:
        """They work, and one line warns of them."""
        for given, secrets in (("--token t", ("t", None)), ("--password p", (None, "p")), ("--token t --password p", ("t", "p"))):
            for url in ((), ("--url", "ws://far.example")):
                result = self.good("gateway", "call", "status", *given.split(), *url)
                self.assertEqual(len(result.stderr.splitlines()), 1)
                self.assertIn("--token-file", result.stderr)
                self.assertEqual((self.gateway.calls[-1]["token"], self.gateway.calls[-1]["password"]), secrets)

    def test_no_place_for_a_device(self) -> None:
        """Where the state directory belongs to another program, nothing is written there and nothing signed."""
        (self.state / "devices").mkdir()
        (self.state / "devices" / "paired.json").write_text("{}")
        self.good("gateway", "call", "status")
        self.assertIsNone(self.gateway.calls[0]["identity"])
        self.assertFalse((self.state / "identity").exists())

    def test_a_damaged_device(self) -> None:
        """It is said, and not replaced."""
        self.good("gateway", "call", "status")
        (self.state / "identity" / "device.json").write_text("{}")
        self.assertRefused(self.mayros("gateway", "call", "status"), 78, "device.json")

    def test_hints(self) -> None:
        """What to do stands behind the gateway's words."""
        self.gateway.final = CallFailed("UNAVAILABLE", "Cannot reach a gateway at ws://x: refused")
        self.assertRefused(self.mayros("gateway", "call", "status"), 1, "mayros gateway run")
        self.gateway.final = CallFailed("INVALID_REQUEST", "unauthorized: gateway token missing (...)")
        self.assertRefused(self.mayros("gateway", "call", "status", "--url", "ws://far.example"), 1, "--token-file")
        self.gateway.final = CallFailed("INVALID_REQUEST", "unauthorized: device token mismatch (rotate/reissue device token)")
        self.assertRefused(self.mayros("gateway", "call", "status"), 1, "neither the gateway's secret")
        self.gateway.final = CallFailed("NOT_PAIRED", "pairing required", {"requestId": "r-1"})
        self.assertRefused(self.mayros("sessions", "list"), 1, "mayros devices approve r-1")


class SessionsTests(GatewayCase):
    """`mayros sessions`."""

    def test_list(self) -> None:
        """A row for each session, without anything that a terminal would obey."""
        self.gateway.final = {"count": 1, "sessions": [ROW]}
        result = self.good("sessions", "list")
        heading, row = result.stdout.splitlines()
        self.assertTrue(heading.startswith("key"), heading)
        self.assertIn("agent:main:work  the [31mred[0m one  ", row)
        self.assertIn("500 of 1,000 (50%)", row)
        self.assertEqual(self.asked(), ("sessions.list", {"limit": 50}))

    def test_filters(self) -> None:
        """Options become parameters; JSON is the whole answer."""
        self.gateway.final = {"count": 0, "sessions": []}
        self.assertEqual(json.loads(self.good("sessions", "list", "--json").stdout), self.gateway.final)
        self.assertIn("no sessions", self.good("sessions", "list", "--agent", "b", "--search", "x", "--active", "5", "--limit", "9").stdout)
        self.assertEqual(self.asked()[1], {"limit": 9, "agentId": "b", "search": "x", "activeMinutes": 5})

    def test_show(self) -> None:
        """The messages, oldest first."""
        messages = [
            {"role": "user", "content": [{"type": "text", "text": "hi\x07\nthere"}], "timestamp": 1_700_000_000_000},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "toolCall", "name": "ls"}], "timestamp": 1e300},
            {"role": "assistant", "content": "done"},
        ]
        self.gateway.final = {"sessionKey": "work", "sessionId": "s", "messages": messages}
        text = self.good("sessions", "show", "work", "--limit", "7").stdout
        self.assertIn("  hi\n  there\n", text)
        self.assertIn("[toolCall ls]", text)
        self.assertIn("  done\n", text)
        self.assertNotIn("hm", text)
        self.assertEqual(self.asked(), ("chat.history", {"sessionKey": "work", "limit": 7}))

    def test_reset_and_delete(self) -> None:
        """Without a terminal there is nobody to ask."""
        self.gateway.final = {"ok": True, "key": "agent:main:work", "deleted": True, "archived": []}
        self.assertIn("agent:main:work begins anew", self.good("sessions", "reset", "work").stdout)
        self.assertIn("agent:main:work is deleted", self.good("sessions", "delete", "work").stdout)
        self.assertEqual(self.gateway.methods(), [("sessions.reset", {"key": "work"}), ("sessions.delete", {"key": "work"})])

    def test_unknown(self) -> None:
        """A session that does not exist is an error, also where the protocol has none."""
        self.gateway.final = {"sessionKey": "work", "messages": []}
        self.assertRefused(self.mayros("sessions", "show", "work"), 1, "no session")
        self.gateway.final = {"ok": True, "key": "agent:main:work", "deleted": False}
        self.assertRefused(self.mayros("sessions", "delete", "work"), 1, "no session")


class DevicesTests(GatewayCase):
    """`mayros devices`."""

    def test_list(self) -> None:
        """Who waits, and who may connect."""
        phone = {"deviceId": "d1", "displayName": "Phone", "roles": ["operator"], "scopes": ["operator.read"]}
        pending = {"requestId": "r-1", "remoteIp": "203.0.113.9", **phone}
        tokens = [{"role": "operator", "createdAtMs": 1}, {"role": "operator", "revokedAtMs": 2}]
        paired = {"deviceId": "d2", "clientId": "cli", "role": "operator", "scopes": [], "tokens": tokens, "approvedAtMs": 1}
        self.gateway.final = {"pending": [pending], "paired": [paired]}
        text = self.good("devices", "list").stdout
        self.assertRegex(text, r"Waiting for approval:\nrequest .*\nr-1 +d1 +Phone +operator +operator.read +203.0.113.9")
        self.assertRegex(text, r"Approved:\ndevice .*\nd2 +cli +operator +1 ")
        self.gateway.final = {"pending": [], "paired": []}
        self.assertIn("no devices", self.good("devices", "list").stdout)

    def test_decisions(self) -> None:
        """Each has its method, and a line that says what happened."""
        self.gateway.final = {"requestId": "r", "deviceId": "d", "device": {"deviceId": "d", "scopes": ["operator.read"]}}
        self.assertIn("d is approved, with the scopes: operator.read.", self.good("devices", "approve", "r").stdout)
        for args in (("reject", "r"), ("remove", "d"), ("revoke", "d"), ("revoke", "d", "--role", "node")):
            self.good("devices", *args)
        self.assertEqual(
            self.gateway.methods(),
            [
                ("device.pair.approve", {"requestId": "r"}),
                ("device.pair.reject", {"requestId": "r"}),
                ("device.pair.remove", {"deviceId": "d"}),
                ("device.token.revoke", {"deviceId": "d", "role": "operator"}),
                ("device.token.revoke", {"deviceId": "d", "role": "node"}),
            ],
        )

    def test_rotate(self) -> None:
        """The new token is printed, and kept where it is this machine's own device."""
        self.gateway.final = {"deviceId": "d", "role": "operator", "token": "new-token", "scopes": ["operator.read"], "rotatedAtMs": 1}
        self.assertEqual(self.good("devices", "rotate", "d", "--scope", "operator.read").stdout, "new-token\n")
        self.assertEqual(self.asked(), ("device.token.rotate", {"deviceId": "d", "role": "operator", "scopes": ["operator.read"]}))
        identity = Identity.open(str(self.state / "identity"), 1)
        self.assertIsNone(identity.token(OWN, "operator"))
        self.good("devices", "rotate", identity.device_id)
        kept = identity.token(OWN, "operator")
        assert kept is not None
        self.assertEqual((kept.token, kept.scopes), ("new-token", ("operator.read",)))

    def test_no_token(self) -> None:
        """An answer without one is an error."""
        self.gateway.final = {}
        self.assertRefused(self.mayros("devices", "rotate", "d"), 1, "no token")


class AgentsTests(GatewayCase):
    """`mayros agents`."""

    def test_list(self) -> None:
        """The default one is marked."""
        agents = [{"id": "main"}, {"id": "beta", "name": "b", "identity": {"name": "Beta", "emoji": "B"}}]
        self.gateway.final = {"defaultId": "main", "mainKey": "main", "scope": "per-sender", "agents": agents}
        lines = self.good("agents", "list").stdout.splitlines()
        self.assertRegex(lines[1], "^main +default$")
        self.assertRegex(lines[2], "^beta +Beta +B$")

    def test_add(self) -> None:
        """Its folder is beside the gateway's own where nothing else is said; a model is set afterwards."""
        self.gateway.final = {"ok": True, "agentId": "my-agent", "name": "My Agent", "workspace": "/srv/state/workspace-my-agent"}
        self.assertIn("my-agent is there", self.good("agents", "add", "My Agent", "--emoji", "M", "--model", "mock/m").stdout)
        self.good("agents", "add", "other", "--workspace", "here")
        self.assertEqual(
            self.gateway.methods(),
            [
                ("agents.create", {"name": "My Agent", "workspace": "/srv/state/workspace-my-agent", "emoji": "M"}),
                ("agents.update", {"agentId": "my-agent", "model": "mock/m"}),
                ("agents.create", {"name": "other", "workspace": os.path.abspath("here")}),
            ],
        )

    def test_a_gateway_that_tells_no_folder(self) -> None:
        """Then the folder must be given."""
        self.gateway.hello = {}
        self.assertRefused(self.mayros("agents", "add", "beta"), 2, "--workspace")

    def test_set_and_remove(self) -> None:
        """What is given is changed; the files stay with --keep-files."""
        self.good("agents", "set", "beta", "--name", "Beta", "--model", "mock/m")
        self.assertRefused(self.mayros("agents", "set", "beta"), 2, "nothing to change")
        self.good("agents", "remove", "beta")
        self.good("agents", "remove", "beta", "--keep-files")
        self.assertEqual(
            self.gateway.methods(),
            [
                ("agents.update", {"agentId": "beta", "name": "Beta", "model": "mock/m"}),
                ("agents.delete", {"agentId": "beta", "deleteFiles": True}),
                ("agents.delete", {"agentId": "beta", "deleteFiles": False}),
            ],
        )


class ShapeTests(GatewayCase):
    """Answers of other shapes, and helps."""

    def test_strange_answers(self) -> None:
        """None of them makes a command fall over."""
        for answer in (None, [], "text", {"sessions": 5, "pending": "x", "paired": [5], "agents": None, "messages": [1], "sessionId": "s"}):
            self.gateway.final = answer
            for command in ("sessions list", "sessions show k", "sessions reset k", "sessions delete k", "devices list", "devices approve r"):
                self.assertIn(self.mayros(*command.split()).exit_code, (0, 1), command)
            for command in ("devices rotate d", "agents list", "agents add x", "agents set x --name y", "agents remove x", "gateway health"):
                self.assertIn(self.mayros(*command.split()).exit_code, (0, 1), command)

    def test_json_everywhere(self) -> None:
        """Each of them prints the whole answer with --json."""
        self.gateway.final = {"token": "t", "sessionId": "s", "ok": True, "x": "\x9b1m\x7f"}
        commands = [f"sessions {rest}" for rest in ("list", "show k", "reset k", "delete k")]
        commands += [f"agents {rest}" for rest in ("list", "add x", "set x --name y", "remove x")]
        commands += [f"devices {rest}" for rest in ("list", "approve d", "reject d", "remove d", "revoke d", "rotate d")]
        for command in (*commands, "gateway health", "gateway call x"):
            text = self.good(*command.split(), "--json").stdout
            self.assertEqual((json.loads(text), text.count("\n"), "\x9b" in text), (self.gateway.final, 1, False), command)

    def test_help(self) -> None:
        """Each command says what it does and names its options."""
        for group, names in (
            ("sessions", ("list", "show", "reset", "delete")),
            ("devices", ("list", "approve", "reject", "revoke", "rotate", "remove")),
            ("agents", ("list", "add", "set", "remove")),
            ("gateway", ("call", "probe", "health")),
        ):
            listed = self.mayros(group, "--help").stdout
            for name in names:
                self.assertIn(f"  {name} ", listed)
                text = self.mayros(group, name, "--help").stdout
                for option in ("--url", "--token-file", "--token", "--password", "--json"):
                    self.assertIn(option, text)


class ShowTests(GatewayCase):
    """Tables."""

    def test_on_a_terminal(self) -> None:
        """Drawn, with nothing obeyed: neither markup nor escapes."""
        out = StringIO()
        self.patch(show.sys, "stdout", out)
        show.table(("key", "label"), [("k", "[bold]x[/bold]\x1b[31m")], terminal=True)
        self.assertIn("[bold]x[/bold][31m", out.getvalue())
        self.assertNotIn("\x1b", out.getvalue())

    def test_times(self) -> None:
        """Roughly how long ago."""
        now = 10_000_000_000
        for seconds, text in ((0, "now"), (59, "59s ago"), (3599, "59m ago"), (7200, "2h ago"), (200_000, "2d ago")):
            self.assertEqual(show.ago(now - seconds * 1000, now), text)
        self.assertEqual([show.ago(value, now) for value in (None, "x", True)], ["", "", ""])
