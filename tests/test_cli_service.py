"""`mayros gateway install` and its like: what is written, what systemctl is told, and whether systemd would take the units."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from unittest import SkipTest

from click.testing import CliRunner, Result

from mayros.cli.host import Done, Host
from mayros.cli.main import main
from mayros.cli.place import Place
from mayros.config.gateway import Gateway
from mayros.errors import StartError
from mayros.net.certificates import Trust
from mayros.ops.units import Plan, addresses, listened_on, sysusers
from tests.test_cli import CommandLine

SERVICE, SOCKET = "mayros-gateway.service", "mayros-gateway.socket"
FAILED = "Job for mayros-gateway.service failed because the control process exited with error code."


class Machine:
    """Stands for the programs of the system: keeps what they were told. `fails`: words of a call that fails, and what it says then."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.fails: dict[str, str] = {}
        self.shows: dict[str, str] = {}
        self.units = ""
        self.answers = 200

    def run(self, argv: Sequence[str]) -> Done:
        line = " ".join(argv)
        self.told.append(line)
        for words, error in self.fails.items():
            if words in line:
                return Done(1, "", error)
        if " show " in line:
            return Done(0, "".join(f"{name}={value}\n" for name, value in self.shows.items()))
        return Done(0, self.units if "list-units" in line else "no\n" if "Linger" in line else "")

    def get(self, host: str, port: int, path: str, trust: Trust | None) -> int:
        self.told.append(f"GET {host} {port} {path}")
        if not self.answers:
            raise ConnectionRefusedError(111, "Connection refused")
        return self.answers


class ServiceCase(CommandLine):
    """A home, a root directory, and the `mayros` of a folder that is in PATH."""

    def setUp(self) -> None:
        super().setUp()
        self.machine = Machine()
        self.root = self.home / "root"
        self.root.mkdir()
        programs = self.home / "bin"
        programs.mkdir()
        self.program = programs / "mayros"
        self.program.write_text("#!/bin/sh\n")
        self.program.chmod(0o755)
        self.patch(os, "environ", {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"})
        self.environ["PATH"] = f"{programs}:relative:/nonexistent"
        self.patch(os.sys, "executable", "/usr/bin/python3-of-nobody")  # type: ignore[attr-defined]
        self.patch(os.sys, "argv", ["trial"])  # type: ignore[attr-defined]
        self.uid, self.booted = 1000, True

    def mayros(self, *args: str, **environ: str) -> Result:
        host = Host(str(self.root), self.machine.run, self.machine.get, self.uid, self.booted)
        result = CliRunner().invoke(main, args, obj=Place({**self.environ, **environ}, host=host))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def good(self, *args: str) -> str:
        """A command of `mayros gateway` that succeeds; what it prints."""
        result = self.mayros("gateway", *args)
        self.assertEqual(result.exit_code, 0, result.output)
        return result.output

    @property
    def user_units(self) -> Path:
        return self.home / ".config/systemd/user"

    @property
    def system_units(self) -> Path:
        return self.root / "etc/systemd/system"


class UserTests(ServiceCase):
    """The service of a user."""

    def test_install(self) -> None:
        """From nothing: a configuration, the units, and a gateway that runs; how to let it outlive the login is said."""
        said = self.good("install")
        self.assertEqual(
            self.machine.told[:5],
            [
                "systemctl --user daemon-reload",
                f"systemctl --user enable {SOCKET} {SERVICE}",
                f"systemctl --user stop {SERVICE}",
                f"systemctl --user restart {SOCKET}",
                f"systemctl --user start {SERVICE}",
            ],
        )
        text = (self.user_units / SERVICE).read_text()
        for line in (
            f'ExecStart="{self.program}" gateway run',
            f'Environment="MAYROS_CONFIG_PATH={self.config}"',
            f'Environment="MAYROS_STATE_DIR={self.state}"',
            f'Environment="PATH={self.program.parent}"',
            "RestartPreventExitStatus=78",
            "Type=notify",
        ):
            self.assertIn(line + "\n", text)
        token = json.loads(self.mayros("config", "get", "gateway.auth.mode", "--json").stdout)
        self.assertEqual(token, "token")
        for word in (str(self.user_units / SERVICE), "enable-linger", "Running: mayros-gateway.service on 127.0.0.1:18789", "setup --provider"):
            self.assertIn(word, said)
        self.assertNotIn("@", (self.user_units / SOCKET).read_text())

    def test_no_secret_is_in_a_unit(self) -> None:
        """Whatever is in the environment or the configuration of who installs it."""
        result = self.mayros("gateway", "install", OPENAI_API_KEY="sk-very-secret-0123456789", MAYROS_GATEWAY_TOKEN="token-of-the-shell-0123456789")
        self.assertEqual(result.exit_code, 0, result.output)
        for path in self.user_units.iterdir():
            self.assertNotIn("sk-very", path.read_text())
            self.assertNotIn("token-of", path.read_text())

    def test_again(self) -> None:
        """The port stays open where it is the same, and nothing is written; a unit that was changed is not replaced unless --force says so."""
        self.good("install")
        del self.machine.told[:]
        said = self.good("install")
        self.assertNotIn("Written", said)
        self.assertEqual(self.machine.told[2:4], [f"systemctl --user start {SOCKET}", f"systemctl --user restart {SERVICE}"])
        (self.user_units / SERVICE).write_text("mine")
        self.assertRefused(self.mayros("gateway", "install"), 1, SERVICE, "--force")
        self.assertEqual((self.user_units / SERVICE).read_text(), "mine")
        self.assertIn("Written", self.good("install", "--force"))

    def test_port(self) -> None:
        """Is written into the configuration, whose comments stay, and into the socket."""
        self.write('{ gateway: { mode: "local", /* why */ auth: { token: "abcdefghijklmnopqrstuvwxyz" } } }')
        self.assertIn("Port: 19000", self.good("install", "--port", "19000"))
        self.assertIn("/* why */", self.config.read_text())
        self.assertEqual(self.good("token"), "abcdefghijklmnopqrstuvwxyz\n")
        self.assertEqual(listened_on((self.user_units / SOCKET).read_text())[0], ("127.0.0.1", 19000))

    def test_dry_run(self) -> None:
        """Prints all and does nothing, also without systemd."""
        self.booted = False
        said = self.good("install", "--dry-run", "--port", "19000")
        for word in ("ListenStream=127.0.0.1:19000", "ExecStart=", "systemctl --user enable", "gateway.port would be 19000"):
            self.assertIn(word, said)
        self.assertEqual((self.machine.told, self.user_units.exists(), self.state.exists()), ([], False, False))

    def test_without_systemd(self) -> None:
        """Says what to run instead, and fails."""
        self.booted = False
        result = self.mayros("gateway", "install")
        self.assertEqual(result.exit_code, 1)
        for word in (f"MAYROS_STATE_DIR={self.state} {self.program} gateway run", "SIGTERM", "78"):
            self.assertIn(word, result.stdout)
        self.assertFalse(self.user_units.exists())
        self.assertRefused(self.mayros("gateway", "start"), 1, "systemd does not run this machine")

    def test_without_a_manager_of_the_user(self) -> None:
        """As with su: a hint."""
        self.machine.fails["--user"] = "Failed to connect to bus: No medium found"
        result = self.mayros("gateway", "install")
        self.assertEqual(result.exit_code, 1)
        self.assertIn("not with su or sudo", result.stderr)

    def test_a_start_that_fails(self) -> None:
        """Names where to look."""
        self.machine.fails["start " + SERVICE] = FAILED
        result = self.mayros("gateway", "install")
        self.assertEqual(result.exit_code, 1)
        self.assertIn(f"journalctl --user -e -u {SERVICE}", result.stderr)

    def test_commands(self) -> None:
        """Stop closes the port too; start forgets earlier failures; restart leaves the port open; uninstall keeps configuration and state."""
        self.assertRefused(self.mayros("gateway", "stop"), 1, "not installed", "mayros gateway install")
        self.good("install")
        for command, expected in (
            ("stop", [f"stop {SOCKET} {SERVICE}"]),
            ("start", [f"reset-failed {SOCKET} {SERVICE}", f"start {SOCKET} {SERVICE}"]),
            ("restart", [f"reset-failed {SOCKET} {SERVICE}", f"restart {SERVICE}"]),
            ("uninstall", [f"disable --now {SOCKET} {SERVICE}", "daemon-reload"]),
        ):
            del self.machine.told[:]
            self.good(command)
            self.assertEqual(self.machine.told, [f"systemctl --user {words}" for words in expected])
        self.assertEqual(list(self.user_units.iterdir()), [])
        self.assertTrue(self.config.exists())
        self.assertRefused(self.mayros("gateway", "uninstall"), 1, "not installed")

    def test_instances(self) -> None:
        """Each with its own state, configuration and port; the template goes with the last one."""
        for name, port in (("blue", "19001"), ("green", "19002")):
            self.good("install", "--instance", name, "--port", port)
            self.assertTrue((self.home / f".mayros-{name}/mayros.json").exists())
        text = (self.user_units / "mayros-gateway@.service").read_text()
        self.assertIn('"MAYROS_STATE_DIR=%h/.mayros-%i"', text)
        self.assertNotIn("blue", text)
        self.assertIn("127.0.0.1:19002", (self.user_units / "mayros-gateway@green.socket").read_text())
        self.good("uninstall", "--instance", "blue")
        self.assertEqual(sorted(os.listdir(self.user_units)), ["mayros-gateway@.service", "mayros-gateway@green.socket"])
        self.good("uninstall", "--instance", "green")
        self.assertEqual(os.listdir(self.user_units), [])
        for name in ("", "../x", "a b", "A", "x" * 40):
            self.assertEqual(self.mayros("gateway", "install", "--instance", name).exit_code, 2, name)


class SystemTests(ServiceCase):
    """The service of the system, under another root directory."""

    def setUp(self) -> None:
        super().setUp()
        self.uid = 0

    def test_install(self) -> None:
        """A user, a token that only root reads, a configuration that the service reads and cannot change, the units."""
        said = self.good("install")
        self.assertEqual([line.split()[0] for line in self.machine.told[:2]], ["systemd-sysusers", "chown"])
        self.assertEqual(self.machine.told[2:4], ["systemctl daemon-reload", f"systemctl enable {SOCKET} {SERVICE}"])
        token, config = self.root / "etc/mayros/credentials/gateway-token", self.root / "etc/mayros/mayros.json"
        self.assertEqual([stat.S_IMODE(path.stat().st_mode) for path in (token.parent, token, config)], [0o700, 0o600, 0o640])
        self.assertNotIn(token.read_text().strip(), said + config.read_text() + (self.system_units / SERVICE).read_text())
        self.assertGreater(len(token.read_text().strip()), 40)
        self.assertIn("LoadCredential=gateway-token:/etc/mayros/credentials/gateway-token\n", (self.system_units / SERVICE).read_text())
        self.assertEqual((self.root / "etc/sysusers.d/mayros.conf").read_text(), sysusers())
        self.assertNotIn("linger", said)
        kept = token.read_text()
        self.assertIn("kept as it is", self.good("install"))
        self.assertEqual(token.read_text(), kept)

    def test_root_only(self) -> None:
        """Others are told so, before anything is done."""
        self.uid = 1000
        self.assertRefused(self.mayros("gateway", "install", "--system"), 1, "sudo")
        self.assertFalse(self.system_units.exists())

    def test_instance(self) -> None:
        """Its configuration, token and state bear its name."""
        self.good("install", "--instance", "blue", "--port", "19001")
        self.assertTrue((self.root / "etc/mayros/blue.json").exists())
        self.assertTrue((self.root / "etc/mayros/credentials/blue-token").exists())
        self.assertIn("/var/lib/mayros-blue/workspace", (self.root / "etc/mayros/blue.json").read_text())

    def test_which_is_meant(self) -> None:
        """Of root the system's, unless only one of his own is there."""
        self.good("install", "--user")
        self.good("stop")
        self.assertEqual(self.machine.told[-1], f"systemctl --user stop {SOCKET} {SERVICE}")
        self.good("install", "--system")
        self.good("stop")
        self.assertEqual(self.machine.told[-1], f"systemctl stop {SOCKET} {SERVICE}")


class StatusTests(ServiceCase):
    """`mayros gateway status`."""

    def status(self, *args: str) -> tuple[int, dict[str, object]]:
        result = self.mayros("gateway", "status", "--json", *args)
        return result.exit_code, json.loads(result.stdout)

    def test_ready(self) -> None:
        """Status 0, and what the gateway says of itself."""
        self.good("install")
        self.machine.shows = {"ActiveState": "active", "SubState": "running", "MainPID": "77", "StatusText": "2 live runs", "NRestarts": "0"}
        code, found = self.status()
        self.assertEqual((code, found["active"], found["pid"], found["says"], found["probe"]["ready"]), (0, "active", 77, "2 live runs", True))  # type: ignore[index]
        self.assertEqual(self.machine.told[-1], "GET 127.0.0.1 18789 /readyz")
        said = self.good("status")
        self.assertIn("Answers:", said)
        self.assertIn("2 live runs", said)

    def test_unreachable(self) -> None:
        """Status 1, with why; also where it answers and is not ready."""
        self.good("install")
        self.machine.shows = {"ActiveState": "active"}
        for answers, why in ((0, "Connection refused"), (503, "it answers 503; `mayros status` says why")):
            self.machine.answers = answers
            code, found = self.status()
            self.assertEqual((code, found["probe"]["why"]), (1, why))  # type: ignore[index]

    def test_stopped(self) -> None:
        """Status 3, and what it ended with; nobody connects to it."""
        self.good("install")
        self.machine.shows = {"ActiveState": "failed", "ExecMainStatus": "78", "Result": "exit-code", "NRestarts": "0"}
        self.machine.answers = 0
        code, found = self.status("--no-probe")
        self.assertEqual((code, found["exitStatus"]), (3, 78))

    def test_not_installed(self) -> None:
        """Status 3; one that somebody runs in the foreground is found all the same."""
        self.machine.answers = 0
        self.assertEqual(self.status()[0], 3)
        self.machine.answers = 200
        code, found = self.status()
        self.assertEqual((code, found["installed"]), (0, False))
        self.assertIn("mayros gateway install", self.good("status"))

    def test_deep(self) -> None:
        """Units that are no longer what would be written, and all services of both managers."""
        self.good("install")
        self.machine.shows = {"ActiveState": "active"}
        self.machine.units = "mayros-gateway@blue.service loaded active running Mayros Gateway (blue)\n"
        (self.user_units / SERVICE).write_text("old")
        _, found = self.status("--deep")
        self.assertEqual(found["outdated"], [SERVICE])
        self.assertEqual([(one["scope"], one["active"]) for one in found["others"]], [("system", "active"), ("user", "active")])  # type: ignore[attr-defined]


class UnitTests(ServiceCase):
    """The texts, and what systemd's own checker says about them."""

    def write_units(self, system: bool, instance: str | None = None) -> tuple[Path, str]:
        """The units as they are installed, in a folder of their own; the folder and the name of the service."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        plan = Plan(system, str(self.program), ("127.0.0.1:18789", "[::1]:18789"), str(self.config), str(self.state), os.environ["PATH"], instance)
        for name, text in plan.texts().items():
            (folder / name).write_text(text)
        return folder, plan.service

    def analyze(self, *args: str) -> str:
        program = shutil.which("systemd-analyze")
        if program is None:
            raise SkipTest("there is no systemd-analyze")
        environ = {**os.environ, "XDG_RUNTIME_DIR": str(self.home)}  # a user's manager is not needed, but where it would be
        done = subprocess.run([program, *args], capture_output=True, text=True, timeout=60, check=False, env=environ)
        self.assertEqual(done.returncode, 0, done.stdout[-2000:] + done.stderr)
        return done.stdout + done.stderr

    def test_verify(self) -> None:
        """systemd has nothing to say about any of them. What it says about others that this machine has is not ours."""
        for system in (True, False):
            for instance in (None, "blue"):
                folder, service = self.write_units(system, instance)
                units = [str(folder / service), str(folder / service.replace(".service", ".socket"))]
                said = self.analyze("verify", *([] if system else ["--user"]), *units).splitlines()
                self.assertEqual([line for line in said if "mayros" in line], [], (system, instance))

    def test_exposure(self) -> None:
        """At most 1.3 for services of the system."""
        for instance in (None, "blue"):
            folder, service = self.write_units(True, instance)
            self.analyze("security", "--offline=true", "--threshold=13", str(folder / service))

    def test_an_instance_differs_by_its_name_only(self) -> None:
        """All that is said about one service holds for an instance too."""
        for system in (True, False):
            texts = []
            for instance in (None, "i"):
                plan = Plan(system, "/opt/mayros/bin/mayros", ("127.0.0.1:1",), "/c", "/s", "/bin", instance)
                texts.append(next(iter(plan.texts().values())).splitlines())
            different = [one for one, other in zip(*texts, strict=True) if one != other]
            self.assertLessEqual(len(different), 14, different)
            for line in different:
                self.assertFalse(line.startswith(("Protect", "Restrict", "System", "Restart", "Type")), line)

    def test_paths(self) -> None:
        """A percent sign is doubled, blanks are between quotes; what cannot stand there is refused."""
        text = Plan(False, "/opt/my prog/100%/mayros", (), "/c", "/s", "/bin").texts()[SERVICE]
        self.assertIn('ExecStart="/opt/my prog/100%%/mayros" gateway run\n', text)
        for path in ('/a"b', "/a\\b", "/a$b", "/a\nExecStartPre=/bin/sh"):
            self.assertRaises(StartError, Plan(False, path, (), "/c", "/s", "/bin").texts)

    def test_addresses(self) -> None:
        """By gateway.bind; read back from the unit."""
        for gateway, expected in (
            (Gateway(), ("127.0.0.1:5", "[::1]:5")),
            (Gateway(bind="lan"), ("0.0.0.0:5",)),
            (Gateway(bind="custom", custom_bind_host="192.0.2.1"), ("192.0.2.1:5",)),
            (Gateway(bind="custom", custom_bind_host="2001:db8::1"), ("[2001:db8::1]:5",)),
        ):
            self.assertEqual(addresses(gateway, 5, True), expected)
        self.assertEqual(addresses(Gateway(), 5, False), ("127.0.0.1:5",))
        self.assertEqual(listened_on("[Socket]\nListenStream=[::1]:5\nListenStream=/run/x\n"), [("::1", 5)])
        self.assertRaises(StartError, addresses, Gateway(bind="tailnet"), 5, True)
        self.assertRaises(StartError, addresses, Gateway(bind="custom", custom_bind_host="x"), 5, True)
