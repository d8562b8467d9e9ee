"""The command line against a real gateway process."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess

from tests.daemon import MAYROS, TOKEN, python_path
from tests.forking import loader
from tests.test_process import ProcessCase, wait_for


class CommandTests(ProcessCase):
    """A gateway, and commands of the same user."""

    def setUp(self) -> None:
        super().setUp()
        self.gateway = self.daemon()
        self.gateway.start()

    def mayros(self, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return loader().run([*MAYROS, *args], self.gateway.environ | python_path() | environ, self.gateway.folder, 30)

    def good(self, *args: str, **environ: str) -> str:
        """What a command that succeeds prints."""
        done = self.mayros(*args, **environ)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        return done.stdout

    def test_commands(self) -> None:
        """An agent is added and answers at once; its conversation is listed, shown and deleted; the gateway tells how it is, and then is gone."""
        self.assertEqual(json.loads(self.good("agents", "add", "Beta", "--json"))["agentId"], "beta")
        self.assertEqual(self.good("agent", "--message", "hello", "--agent", "beta", "--session-key", "work"), "one two three\n")
        self.assertIn("agent:beta:work", self.good("sessions", "list"))
        self.assertRegex(self.good("sessions", "show", "agent:beta:work"), r"(?s)user, .*hello.*assistant, .*one two three")
        self.good("sessions", "delete", "agent:beta:work")
        self.assertIn("sessions", json.loads(self.good("gateway", "call", "status")))
        found = json.loads(self.good("gateway", "probe", "--json"))
        self.assertEqual((found["ok"], found["protocol"], "operator.admin" in found["scopes"]), (True, 4, True))
        self.gateway.stop()
        refused = self.mayros("gateway", "health")
        self.assertEqual((refused.returncode, refused.stderr.count("\n"), "mayros gateway run" in refused.stderr), (1, 1, True), refused.stderr)

    def test_the_device(self) -> None:
        """The first command makes and pairs this machine's device; its token is enough when no secret is sent, until it is revoked."""
        url = f"ws://127.0.0.1:{self.gateway.port}"
        found = json.loads(self.good("devices", "list", "--json", "--url", url, MAYROS_GATEWAY_TOKEN=TOKEN))
        self.assertEqual([device["clientId"] for device in found["paired"]], ["cli"])
        device = found["paired"][0]["deviceId"]
        files = sorted((self.gateway.state / "identity").iterdir())
        self.assertEqual([(file.name, stat.S_IMODE(file.stat().st_mode)) for file in files], [("device-auth.json", 0o600), ("device.json", 0o600)])
        self.good("devices", "rotate", device, "--url", url)
        self.assertIn(device, self.good("devices", "list", "--url", url))
        self.good("devices", "revoke", device)
        refused = self.mayros("devices", "list", "--url", url)
        self.assertEqual((refused.returncode, "unauthorized" in refused.stderr), (1, True), refused.stderr)
        self.assertEqual(json.loads((self.gateway.state / "identity" / "device-auth.json").read_text())["gateways"][url], {})

    def test_ctrl_c_aborts_the_run(self) -> None:
        """The model's connection is closed before the command ends."""
        self.upstream.hold()
        environ = self.gateway.environ | python_path() | {"PYTHONUNBUFFERED": "1"}
        command = subprocess.Popen(
            [*MAYROS, "agent", "--message", "hi"], env=environ, cwd=self.gateway.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.addCleanup(command.communicate)
        assert command.stdout is not None
        self.assertEqual(os.read(command.stdout.fileno(), 3), b"one")
        command.send_signal(signal.SIGINT)
        said, complained = command.communicate(timeout=15)
        self.assertEqual((command.returncode, complained.strip()), (130, b""), said)
        wait_for(self.upstream.closed.is_set, 2)
