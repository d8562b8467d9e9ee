"""`mayros doctor` and `mayros security audit`: every check with both outcomes, on a real state directory and a machine that is told what to say."""

from __future__ import annotations

import datetime
import json
import os
import re
import sqlite3
import stat
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
from click.testing import Result
from twisted.trial.unittest import SynchronousTestCase

from mayros.cli.doctor import subject_of
from mayros.cli.host import Done, Host
from mayros.cli.place import Place
from mayros.core.models import EMBEDDED
from mayros.errors import StartError
from mayros.net.certificates import Trust
from mayros.net.statedir import StateDir
from mayros.ops import doctor
from mayros.ops.checks import agents, doors, files, machine, store
from mayros.ops.subject import Check, Finding, Installed, Subject
from mayros.storage.backup import copy_store
from mayros.storage.migrate import HEAD
from tests.helpers import merged
from tests.test_backup import empty_store
from tests.test_cli import CommandLine

TOKEN = "kT9-wQ2xLr7_bV4mNz8sHd3fGp6jYc1aEu5iOq0R"
GOOD: dict[str, Any] = {
    "gateway": {"mode": "local", "port": 18789, "auth": {"mode": "token", "token": TOKEN}},
    "agents": {"defaults": {"model": "near/big-70b"}},
    "models": {"providers": {"near": {"baseUrl": "http://127.0.0.1:9/v1", "models": [{"id": "big-70b"}, {"id": "tiny-3b"}]}}},
}
DAY_MS = 86_400_000


class FakeMachine:
    """Implements ops.subject.Machine: says what it is told to."""

    def __init__(self) -> None:
        self.uid, self.booted = os.getuid(), False
        self.says: dict[str, str] = {}
        self.answer: int | OSError = 200
        self.listening = False
        self.free = 100 << 30
        self.asked: list[tuple[Any, ...]] = []

    def run(self, argv: Sequence[str], /) -> Done:
        return Done(0, self.says[argv[0]]) if argv[0] in self.says else Done(127, "")

    def get(self, host: str, port: int, path: str, trust: Trust | None, /) -> int:
        self.asked.append((host, port, path))
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer

    def taken(self, host: str, port: int) -> bool:
        self.asked.append((host, port))
        return self.listening

    def free_bytes(self, path: str) -> int:
        return self.free


class CheckCase(CommandLine):
    """A gateway with which nothing is wrong."""

    def setUp(self) -> None:
        super().setUp()
        self.machine = FakeMachine()
        self.put()
        self.db = str(self.state / "mayros.db")
        empty_store(self.db)
        os.chmod(self.db, 0o600)

    def put(self, changes: dict[str, Any] | None = None) -> None:
        """The good configuration with changes."""
        self.write(merged(GOOD, changes or {}))
        self.config.chmod(0o600)

    def subject(self, **changes: Any) -> Subject:
        """What the checks look at."""
        found = subject_of(Place(self.environ, host=Host(booted=False)))
        return msgspec.structs.replace(found, machine=self.machine, **changes)

    def found(self, check: Check, changes: dict[str, Any] | None = None, **subject: Any) -> list[Finding]:
        """What a check finds with these changes."""
        if changes is not None:
            self.put(changes)
        return list(check(self.subject(**subject)))

    def assertFinds(self, check: Check, id: str, level: str, *words: str, changes: dict[str, Any] | None = None, **subject: Any) -> Finding:
        """It finds one thing, which says these words and no secret."""
        found = self.found(check, changes, **subject)
        self.assertEqual([(one.id, one.level) for one in found], [(id, level)])
        for word in words:
            self.assertIn(word, found[0].text + found[0].remedy)
        self.assertNotIn(TOKEN, found[0].text + found[0].remedy)
        return found[0]

    def assertFine(self, check: Check, changes: dict[str, Any] | None = None, **subject: Any) -> None:
        """It finds nothing."""
        self.assertEqual([one.text for one in self.found(check, changes, **subject)], [])

    def mended(self, check: Check, path: Path | str, mode: int) -> None:
        """What it finds can be repaired; then it finds nothing, and the mode is that."""
        for finding in self.found(check):
            assert finding.repair is not None
            self.assertIn(str(path), finding.repair())
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), mode)
        self.assertFine(check)


class EveryCheck(CheckCase):
    """What holds for all of them."""

    def test_nothing_wrong(self) -> None:
        """A good gateway has no finding, of any check."""
        subject = self.subject()
        found = doctor.examine(subject, doctor.checks(subject, True)).findings
        # Tests may be run by root, whose gateway it then is.
        self.assertEqual([one.text for one in found if one.id != "host.root"], [])

    def test_all_are_listed(self) -> None:
        """No check is written and forgotten."""
        listed = {*doctor.SECURITY, *doctor.SECURITY_CONFIGURED, *doctor.HEALTH, *doctor.HEALTH_CONFIGURED}
        helpers = {files.configuration_files, files.secret_files, files.store_files, agents.parameters}
        for module in (agents, doors, files, machine, store):
            for name, one in vars(module).items():
                if callable(one) and getattr(one, "__module__", "") == module.__name__ and not name.startswith("_") and one not in helpers:
                    self.assertIn(one, listed, name)

    def test_ids_are_documented(self) -> None:
        """docs/operations.md has the ids that there are, and no others."""
        folder = Path(agents.__file__).parent
        sources = [path.read_text() for path in (*folder.glob("*.py"), folder.parent / "doctor.py")]
        made = {one for source in sources for one in re.findall(r'Finding\(\s*"([\w.-]+)"', source)}
        text = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()
        table = text.partition("## What is wrong")[2].partition("| it looks at | ids |")[2].partition("\n## ")[0]
        said = {
            one for line in table.splitlines() if line.startswith("| ") for one in re.findall(r"`([a-zA-Z]+\.[\w.-]+)`", line.rpartition(" | ")[2])
        }
        self.assertEqual(said, made)
        self.assertGreater(len(made), 45)

    def test_one_that_fails(self) -> None:
        """A check that cannot be made is a finding, and the others are made."""

        def broken(_subject: Subject) -> list[Finding]:
            raise PermissionError(13, "Permission denied")

        report = doctor.examine(self.subject(), [broken, machine.disk_free])
        self.assertEqual([(one.id, one.text) for one in report.findings], [("doctor.unchecked", "broken: could not be checked (Permission denied)")])

    def test_no_configuration(self) -> None:
        """What cannot be read is told of, and what needs no configuration is still looked at."""
        self.config.write_text("{")
        self.state.chmod(0o755)
        subject = self.subject()
        report = doctor.examine(subject, doctor.checks(subject, True))
        self.assertEqual({one.id for one in report.findings} - {"host.root"}, {"config.invalid", "state.open"})
        self.assertEqual(report.findings[0].level, "critical")


class FileChecks(CheckCase):
    """checks/files.py."""

    def test_state_directory(self) -> None:
        """Missing, of another user, open to others, or no directory."""
        self.assertFine(files.state_directory)
        self.state.chmod(0o750)
        self.assertFinds(files.state_directory, "state.open", "warn", "750")
        self.mended(files.state_directory, self.state, 0o700)
        self.state.chmod(0o777)
        self.assertFinds(files.state_directory, "state.world-writable", "critical")
        self.mended(files.state_directory, self.state, 0o700)
        subject = self.subject()
        self.machine.uid += 1
        self.assertFinds(files.state_directory, "state.owner", "critical", "belongs to user")
        for path, id in ((str(self.home / "none"), "state.missing"), (str(self.config), "state.no-directory")):
            found = list(files.state_directory(msgspec.structs.replace(subject, state_dir=path)))
            self.assertEqual([one.id for one in found], [id])

    def test_written_by_others(self) -> None:
        """The configuration, what it includes, .env and the store are the owner's to write; so is the folder of the configuration."""
        (self.state / "more.json").write_text("{}")
        (self.state / ".env").write_text("")
        self.put({"logging": {"$include": "more.json"}})
        for path in (self.config, self.state / "more.json", self.state / ".env", Path(self.db)):
            path.chmod(0o600)
        self.assertFine(files.written_by_others)
        for path in (self.config, self.state / "more.json", self.state / ".env", Path(self.db)):
            path.chmod(0o620)
            self.assertFinds(files.written_by_others, "file.writable-by-others", "critical", path.name)
            self.mended(files.written_by_others, path, 0o600)
        folder = self.home / "etc"
        folder.mkdir()
        os.rename(self.config, folder / "mayros.json")
        os.rename(self.state / "more.json", folder / "more.json")
        self.environ["MAYROS_CONFIG_PATH"] = str(folder / "mayros.json")
        self.assertFine(files.written_by_others)
        folder.chmod(0o777)
        self.assertFinds(files.written_by_others, "config.folder-writable", "critical")
        self.mended(files.written_by_others, folder, 0o775)
        folder.chmod(0o1777)
        self.assertFine(files.written_by_others)

    def test_secrets_read_by_others(self) -> None:
        """Files with secrets are the owner's to read; of root's also a group's, which is the service's."""
        key = self.state / "keys" / "x"
        elsewhere = self.home / "key"
        token = self.state / "gateway-token"
        key.parent.mkdir()
        for path in (key, elsewhere, token):
            path.write_text("a-key-of-a-provider")
            path.chmod(0o600)
        self.put({"auth": {"profiles": {"p": {"provider": "near", "keyFile": str(elsewhere)}}}})
        self.assertFine(files.secrets_read_by_others)
        for path in (self.config, key, elsewhere, token):
            path.chmod(0o604)
            self.assertFinds(files.secrets_read_by_others, "secret.readable-by-others", "critical", str(path))
            self.mended(files.secrets_read_by_others, path, 0o600)
        self.config.chmod(0o640)
        if os.getuid() == 0:
            self.assertFine(files.secrets_read_by_others)
        else:
            self.assertFinds(files.secrets_read_by_others, "secret.readable-by-others", "warn", "the group")

    def test_store_read_by_others(self) -> None:
        """So is the store, and its log."""
        self.assertFine(files.store_read_by_others)
        Path(self.db + "-wal").write_bytes(b"")
        Path(self.db + "-wal").chmod(0o644)
        self.assertFinds(files.store_read_by_others, "store.readable-by-others", "warn", "-wal")
        self.mended(files.store_read_by_others, self.db + "-wal", 0o600)

    def test_several_at_once(self) -> None:
        """Two findings about one file are mended one after the other."""
        self.config.chmod(0o666)
        report = doctor.examine(self.subject(), [files.written_by_others, files.secrets_read_by_others])
        self.assertEqual(len(report.findings), 2)
        doctor.mend(report)
        self.assertEqual(self.config.stat().st_mode & 0o007, 0)
        self.assertFine(files.written_by_others)
        self.assertFine(files.secrets_read_by_others)

    def certificate(self, days: float) -> None:
        """A certificate that is good for so many days, and its key."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gateway")])
        now = datetime.datetime.now(datetime.UTC)
        made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - datetime.timedelta(900), now + datetime.timedelta(days))
        (self.state / "cert.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (self.state / "key.pem").write_bytes(private)
        (self.state / "key.pem").chmod(0o600)

    def test_certificate(self) -> None:
        """It is to be renewed two weeks before its end."""
        tls = {"gateway": {"tls": {"enabled": True, "certPath": str(self.state / "cert.pem"), "keyPath": str(self.state / "key.pem")}}}
        self.certificate(20)
        self.assertFine(files.certificate_valid, tls)
        for days, level, words in ((13.5, "warn", "expires in 13 days"), (-1, "critical", "has expired")):
            self.certificate(days)
            self.assertFinds(files.certificate_valid, "tls.certificate-expires", level, words)
        (self.state / "cert.pem").write_text("nothing")
        self.assertFinds(files.certificate_valid, "tls.certificate-unusable", "critical", "PEM")
        os.unlink(self.state / "cert.pem")
        self.assertFinds(files.certificate_valid, "tls.certificate-unusable", "critical", "No such file")
        self.assertFine(files.certificate_valid, {})

    def test_key(self) -> None:
        """The key is its owner's."""
        self.certificate(20)
        self.assertFine(
            files.tls_key_private, {"gateway": {"tls": {"enabled": True, "certPath": "cert.pem", "keyPath": str(self.state / "key.pem")}}}
        )
        (self.state / "key.pem").chmod(0o640)
        self.assertFinds(files.tls_key_private, "tls.key-readable-by-others", "critical", "key.pem")
        self.mended(files.tls_key_private, self.state / "key.pem", 0o600)

    def test_elsewhere(self) -> None:
        """A link, and folders that are copied to other machines."""
        self.assertFine(files.configuration_elsewhere)
        os.rename(self.config, self.home / "real.json")
        os.symlink(self.home / "real.json", self.config)
        self.assertFinds(files.configuration_elsewhere, "config.link", "warn", "real.json")
        found = self.found(files.configuration_elsewhere, state_dir="/home/a/Dropbox/mayros", config_path="/home/a/OneDrive - Work/mayros.json")
        self.assertEqual([one.id for one in found], ["state.synchronised"] * 2)


class DoorChecks(CheckCase):
    """checks/doors.py, and what the configuration itself refuses."""

    def gateway_with(self, **keys: Any) -> dict[str, Any]:
        return {"gateway": keys}

    def test_without_authentication(self) -> None:
        """Mode none goes with loopback, without HTTP endpoints and without proxies."""
        none = {"auth": {"mode": "none", "token": None}}
        for check, changes, id in (
            (doors.open_without_authentication, {"bind": "lan"}, "gateway.bind.no-auth"),
            (doors.http_without_authentication, {"http": {"endpoints": {"chatCompletions": {"enabled": True}}}}, "gateway.http.no-auth"),
            (doors.proxies_without_authentication, {"trustedProxies": ["10.0.0.1"]}, "gateway.trustedProxies.no-auth"),
        ):
            self.assertFine(check, self.gateway_with(**none))
            self.assertFine(check, self.gateway_with(**changes))
            self.assertFinds(check, id, "critical", changes=self.gateway_with(**none, **changes))

    def test_secret(self) -> None:
        """Placeholders and short secrets."""
        self.assertFine(doors.secret_strong)
        for text in ("changeme", "<token>", "your-gateway-token-here", "xxxxxxxxxxxxxxxx", "REPLACE_ME", "password123", "secret", "my_secret_token"):
            self.assertFinds(doors.secret_strong, "gateway.auth.placeholder", "critical", changes=self.gateway_with(auth={"token": text}))
        self.assertFinds(doors.secret_strong, "gateway.auth.short", "warn", "31 characters", changes=self.gateway_with(auth={"token": TOKEN[:31]}))
        self.assertFine(doors.secret_strong, self.gateway_with(auth={"token": TOKEN[:32]}))
        password = {"mode": "password", "token": None}
        for length in (23, 24):
            changes = self.gateway_with(auth={**password, "password": TOKEN[:length]})
            self.assertEqual(len(self.found(doors.secret_strong, changes)), length == 23)
        self.assertFine(doors.secret_strong, self.gateway_with(auth={"mode": "none", "token": None}))

    def test_off_loopback(self) -> None:
        """Guessing is limited, and nobody can listen on the way."""
        for check, id, better in (
            (doors.failures_limited, "gateway.auth.no-rate-limit", {"auth": {"rateLimit": {}}}),
            (doors.encrypted_off_loopback, "gateway.tls.off", {"trustedProxies": ["10.0.0.1"]}),
            (doors.encrypted_off_loopback, "gateway.tls.off", {"tls": {"enabled": True, "certPath": "c", "keyPath": "k"}}),
        ):
            self.assertFine(check, {})
            self.assertFine(check, self.gateway_with(bind="custom", customBindHost="127.0.0.2"))
            self.assertFinds(check, id, "warn", "lan", changes=self.gateway_with(bind="lan"))
            self.assertFinds(check, id, "warn", changes=self.gateway_with(bind="custom", customBindHost="192.168.1.2"))
            self.assertFine(check, self.gateway_with(bind="lan", **better))

    def test_proxies(self) -> None:
        """Users of a proxy are listed, and no address is believed that it did not write."""
        proxy: dict[str, Any] = {"trustedProxies": ["10.0.0.1"], "auth": {"mode": "trusted-proxy", "trustedProxy": {"userHeader": "x-user"}}}
        self.assertFinds(doors.proxy_users_listed, "gateway.auth.trustedProxy.all-users", "warn", changes=self.gateway_with(**proxy))
        proxy["auth"]["trustedProxy"]["allowUsers"] = ["ann"]
        self.assertFine(doors.proxy_users_listed, self.gateway_with(**proxy))
        self.assertFine(doors.real_ip_not_believed)
        self.assertFinds(doors.real_ip_not_believed, "gateway.real-ip", "warn", changes=self.gateway_with(allowRealIpFallback=True))

    def test_keys_of_others(self) -> None:
        """Keys of the original that would open a gateway which honours them."""
        for check, tree, id, level in (
            (
                doors.devices_authenticated,
                {"gateway": {"controlUi": {"dangerouslyDisableDeviceAuth": True}}},
                "gateway.controlUi.insecure",
                "critical",
            ),
            (doors.hooks_apart, {"hooks": {"token": TOKEN}}, "hooks.shared-secret", "critical"),
            (doors.hooks_apart, {"hooks": {"token": "own", "allowRequestSessionKey": True}}, "hooks.session-key", "warn"),
            (doors.strong_tools_over_http, {"gateway": {"tools": {"allow": ["read", "bash"]}}}, "gateway.tools.strong", "critical"),
            (doors.log_discreet, {"logging": {"redactSensitive": "off"}}, "logging.redaction", "warn"),
        ):
            self.assertFine(check, {})
            self.assertFinds(check, id, level, changes=tree)
        self.assertFine(doors.devices_authenticated, {"gateway": {"controlUi": {"dangerouslyDisableDeviceAuth": False}}})
        self.assertFine(doors.hooks_apart, {"hooks": {"token": "own"}})
        self.assertFine(doors.strong_tools_over_http, {"gateway": {"tools": {"allow": ["read"], "deny": ["exec"]}}})

    def test_debug(self) -> None:
        """A log at debug."""
        self.assertFine(doors.log_discreet, {"logging": {"level": "warn"}})
        for key in ("level", "consoleLevel"):
            self.assertFinds(doors.log_discreet, "logging.debug", "warn", changes={"logging": {key: "debug"}})

    def test_secrets_in_the_file(self) -> None:
        """Keys that are written out are named by their paths; variables, and the token that setup makes, are fine."""
        self.environ["NEAR_KEY"] = "a-key-of-a-provider"
        self.assertFine(doors.secrets_in_the_file, {"models": {"providers": {"near": {"apiKey": "${NEAR_KEY}"}}}})
        changes = {"models": {"providers": {"near": {"apiKey": "a-key-of-a-provider", "headers": {"x-key": "another"}}}}}
        found = self.assertFinds(
            doors.secrets_in_the_file, "config.secrets", "info", "models.providers.near.apiKey", "headers.x-key", changes=changes
        )
        self.assertNotIn("a-key-of-a-provider", found.text)

    def test_what_the_configuration_refuses(self) -> None:
        """These never come as far as the checks: a configuration with them is critical as it is."""
        for changes, words in (
            (self.gateway_with(auth={"token": "undefined"}), "gateway.auth.token"),
            (self.gateway_with(auth={"token": " "}), "gateway.auth.token"),
            (self.gateway_with(auth={"mode": "trusted-proxy", "trustedProxy": {"userHeader": "x-user"}}), "gateway.trustedProxies"),
            (self.gateway_with(auth={"mode": "trusted-proxy"}, trustedProxies=["10.0.0.1"]), "userHeader"),
            (self.gateway_with(trustedProxies=["0.0.0.0/0"]), "/0"),
            (self.gateway_with(http={"cors": {"allowedOrigins": ["*"]}}), "allowedOrigins"),
            (self.gateway_with(controlUi={"allowedOrigins": ["*"]}), "allowedOrigins"),
        ):
            self.assertFinds(machine.configuration_good, "config.invalid", "critical", words, changes=changes)


class AgentChecks(CheckCase):
    """checks/agents.py."""

    def test_commands(self) -> None:
        """Off loopback somebody is asked before a command runs."""
        full = {"exec": {"security": "full", "ask": "off"}}
        lan = {"gateway": {"bind": "lan"}}
        self.assertFine(agents.commands_asked_for, {"tools": full})
        self.assertFine(agents.commands_asked_for, lan)
        self.assertFine(agents.commands_asked_for, {**lan, "tools": {**full, "deny": ["exec"]}})
        self.assertFine(agents.commands_asked_for, {**lan, "tools": {"exec": {"security": "full", "ask": "always"}}})
        self.assertFinds(agents.commands_asked_for, "tools.exec.unasked", "critical", "main", changes={**lan, "tools": full})

    def test_workspaces(self) -> None:
        """Not the disk, not the home, nothing with the state directory in it; below it is where they belong."""
        self.assertFine(agents.workspaces_narrow)
        (self.home / "link").symlink_to(self.state)
        for path in ("/", str(self.home), str(self.state), str(self.home / "link"), str(self.home.parent)):
            changes = {"agents": {"defaults": {"workspace": path}}}
            self.assertFinds(agents.workspaces_narrow, "agents.workspace.wide", "critical", "main", changes=changes)
        self.assertFine(agents.workspaces_narrow, {"agents": {"defaults": {"workspace": str(self.home / "project")}}})

    def test_small_models(self) -> None:
        """A small model has not both commands and the web."""
        tiny = {"agents": {"defaults": {"model": "near/tiny-3b"}}, "tools": {"exec": {"security": "full"}}}
        self.assertFine(agents.small_models_weak, {"tools": tiny["tools"]})
        self.assertFinds(agents.small_models_weak, "agents.small-model.strong-tools", "warn", "near/tiny-3b", changes=tiny)
        self.assertFine(agents.small_models_weak, {**tiny, "tools": {"exec": {"security": "full"}, "deny": ["exec"]}})
        self.assertFine(agents.small_models_weak, {**tiny, "tools": {"exec": {"security": "deny"}}})

    def test_sizes(self) -> None:
        """The size is read from the name."""
        directory = self.subject().settings
        assert directory is not None
        model = directory.directory.agents["main"].models[0]
        sizes = {"big-70b": 70, "tiny-1.5B-instruct": 1.5, "smollm2-135m-instruct": 0.135, "gpt-5": None, "claude-4b2": None}
        for name, size in sizes.items():
            self.assertEqual(agents.parameters(msgspec.structs.replace(model, id=name)), size, name)

    def test_models(self) -> None:
        """Somebody can answer: nearby, with a key, or embedded and installed."""
        far: dict[str, Any] = {"models": {"providers": {"far": {"baseUrl": "https://far.example/v1", "models": [{"id": "m"}]}}}}
        self.assertFine(agents.models_usable)
        alone = {**far, "agents": {"defaults": {"model": "far/m"}}}
        self.assertFinds(agents.models_usable, "models.unusable", "critical", "no key for far/m", changes=alone)
        both = {**far, "agents": {"defaults": {"model": {"primary": "far/m", "fallbacks": ["near/big-70b"]}}}}
        self.assertFinds(agents.models_usable, "models.unusable", "warn", "far/m", changes=both)
        self.environ["FAR_API_KEY"] = "a-key"
        self.assertFine(agents.models_usable, alone)
        embedded = {"agents": {"defaults": {"model": EMBEDDED}}}
        self.assertFinds(agents.models_usable, "models.unusable", "critical", "not installed", changes=embedded)
        self.assertFine(agents.models_usable, embedded, embedded=True)
        self.assertFinds(agents.models_usable, "models.none", "critical", changes={"agents": {"defaults": {"model": None}}})


class StoreChecks(CheckCase):
    """checks/store.py."""

    def test_damage(self) -> None:
        """A whole store, a damaged one, none, and a log without its store."""
        self.assertFine(store.store_whole)
        with open(self.db, "r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 4096)
        self.assertFinds(store.store_whole, "store.damaged", "critical", self.db, "restore")
        os.unlink(self.db)
        self.assertFine(store.store_whole)
        Path(self.db + "-wal").write_bytes(b"x")
        self.assertFinds(store.store_whole, "store.missing", "critical", "-wal")

    def set_revision(self, text: str) -> None:
        with closing(sqlite3.connect(self.db)) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", (text,))

    def test_version(self) -> None:
        """Of this version, an older one, a newer one, or of another program."""
        self.assertFine(store.store_of_this_version)
        self.set_revision("0001")
        self.assertFinds(store.store_of_this_version, "store.older", "info", "0001")
        self.set_revision("9999")
        self.assertFinds(store.store_of_this_version, "store.newer", "critical", "9999", HEAD)
        with closing(sqlite3.connect(self.db)) as connection, connection:
            connection.execute("DROP TABLE alembic_version")
        self.assertFinds(store.store_of_this_version, "store.foreign", "critical")
        os.unlink(self.db)
        self.assertFine(store.store_of_this_version)

    def test_devices(self) -> None:
        """Those that may do everything, and were not used for 90 days."""
        now = self.subject().now_ms
        with closing(sqlite3.connect(self.db)) as connection, connection:
            for name, scope, approved, used in (
                ("idle", "operator.admin", 200, 95),
                ("busy", "operator.admin", 200, 5),
                ("young", "operator.admin", 5, None),
                ("reader", "operator.read", 200, None),
            ):
                scopes = json.dumps([scope])
                connection.execute(
                    "INSERT INTO devices (device_id, public_key, display_name, roles, scopes, created_ms, approved_ms)"
                    " VALUES (?, 'k', ?, '[]', ?, 0, ?)",
                    (name, f"the {name} one", scopes, now - approved * DAY_MS),
                )
                if used is not None:
                    connection.execute(
                        "INSERT INTO device_tokens (token_hash, device_id, role, scopes, created_ms, last_used_ms)"
                        " VALUES (?, ?, 'operator', ?, 0, ?)",
                        (name.encode(), name, scopes, now - used * DAY_MS),
                    )
        self.assertFinds(
            store.administrators_used, "devices.unused-admin", "info", "idle (the idle one)", "95 days", "devices remove idle", now_ms=now
        )
        self.assertFine(store.administrators_used, now_ms=now - 10 * DAY_MS)

    def test_copies(self) -> None:
        """What migrations and restores have kept."""
        self.assertFine(store.no_old_copies)
        copy_store(self.db, self.db + ".before-0003")
        self.assertFinds(store.no_old_copies, "store.old-copies", "info", ".before-0003")


class MachineChecks(CheckCase):
    """checks/machine.py."""

    def test_configuration(self) -> None:
        """A file that is there, can be read, and asks for nothing that this version cannot do."""
        check = machine.configuration_good
        self.assertFine(check)
        self.assertFinds(check, "config.unsupported", "critical", "gateway.bind", changes={"gateway": {"bind": "tailnet"}})
        self.assertFinds(check, "config.mode", "critical", changes={"gateway": {"mode": None}})
        self.assertFinds(check, "config.warning", "warn", "chanels", changes={"chanels": {}})
        self.assertFinds(check, "config.secret", "critical", "is password", changes={"gateway": {"auth": {"mode": "password"}}})
        os.unlink(self.config)
        self.assertFinds(check, "config.missing", "critical", "mayros setup")

    def test_root(self) -> None:
        """Whose the state directory is tells who the gateway is."""
        if os.getuid() == 0:
            self.assertFinds(machine.not_root, "host.root", "warn")
            os.chown(self.state, 12345, 12345)
            self.addCleanup(os.chown, self.state, 0, 0)
            self.assertFine(machine.not_root)
        else:
            self.assertFine(machine.not_root)
            self.assertFinds(machine.not_root, "host.root", "warn", state_dir="/")

    def test_lock(self) -> None:
        """A lock whose holder is gone; one that is held, or was given back, is fine."""
        self.assertFine(machine.lock_clean)
        state = StateDir(str(self.state))
        state.lock()
        self.assertFine(machine.lock_clean)
        state.unlock()
        self.assertFine(machine.lock_clean)
        (self.state / "gateway.lock").write_text("4194305\n")
        finding = self.assertFinds(machine.lock_clean, "host.stale-lock", "warn", "4194305")
        assert finding.repair is not None
        finding.repair()
        self.assertFine(machine.lock_clean)

    def test_port_of_a_running_gateway(self) -> None:
        """It answers, is silent, or somebody else does."""
        state = StateDir(str(self.state))
        state.lock()
        self.addCleanup(state.unlock)
        self.assertFine(machine.port_answers)
        self.assertEqual(self.machine.asked, [("127.0.0.1", 18789, "/healthz")])
        self.machine.answer = ConnectionRefusedError(111, "Connection refused")
        self.assertFinds(machine.port_answers, "gateway.silent", "warn", str(os.getpid()), "Connection refused")
        self.machine.answer = 404
        self.assertFinds(machine.port_answers, "gateway.port-of-another", "warn", "404")

    def test_port_without_a_gateway(self) -> None:
        """Nobody has it; a socket of systemd that waits is not touched."""
        self.assertFine(machine.port_answers)
        self.machine.listening = True
        self.assertFinds(machine.port_answers, "gateway.port-taken", "warn", "18789")
        self.machine.asked.clear()
        self.assertFine(machine.port_answers, service=Installed("mayros-gateway.service", True))
        self.assertEqual(self.machine.asked, [])

    def test_disk(self) -> None:
        """A gigabyte is free."""
        self.assertFine(machine.disk_free)
        self.machine.free = (1 << 30) - 1
        self.assertFinds(machine.disk_free, "host.disk-full", "warn", "1023 MB")

    def test_clock(self) -> None:
        """Synchronised, not, or nobody knows."""
        self.assertFine(machine.clock_right)
        for said, count in (("yes\n", 0), ("no\n", 1)):
            self.machine.says["timedatectl"] = said
            self.assertEqual(len(self.found(machine.clock_right)), count)

    def test_service(self) -> None:
        """None, an old one, one that does not start by itself or ends at the logout, and a good one."""
        check = machine.service_good
        self.assertFine(check)
        self.machine.booted = True
        self.assertFinds(check, "service.none", "info", "mayros gateway install")
        good = Installed("mayros-gateway.service", True)
        self.assertFine(check, service=good)
        for changes, id, words in (
            ({"outdated": ("mayros-gateway.socket",)}, "service.outdated", "install --system --force"),
            ({"starts": False}, "service.disabled", "systemctl enable"),
            ({"lingers": False}, "service.no-linger", "enable-linger"),
        ):
            self.assertFinds(check, id, "warn", words, service=msgspec.structs.replace(good, **changes))
        self.assertFinds(check, "service.not-hardened", "info", service=msgspec.structs.replace(good, system=False, lingers=True))


class Commands(CheckCase):
    """`mayros doctor` and `mayros security audit`."""

    def run_on(self, *args: str, host: Host | None = None) -> Result:
        """A command on a machine without systemd whose port is free."""
        from click.testing import CliRunner

        from mayros.cli.main import main

        place = Place(self.environ, host=host or Host(booted=False, run=lambda argv: Done(127, "")))
        result = CliRunner().invoke(main, args, obj=place)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def test_status(self) -> None:
        """1 where something is critical, with --strict also for warnings, else 0."""
        self.put({"gateway": {"port": 0}})
        self.assertEqual(self.run_on("doctor").exit_code, 0)
        self.put({"gateway": {"port": 0}, "logging": {"level": "debug"}})
        for command in (("doctor",), ("security", "audit")):
            self.assertEqual(self.run_on(*command).exit_code, 0)
            result = self.run_on(*command, "--strict")
            self.assertEqual(result.exit_code, 1)
            self.assertIn("warn: the log is at debug", result.stdout)
            self.assertIn("[logging.debug]\n    mayros config set logging.level info\n", result.stdout)
        self.put({"gateway": {"port": 0, "auth": {"token": "changeme"}}})
        self.assertEqual(self.run_on("security", "audit").exit_code, 1)

    def test_audit_is_of_security_only(self) -> None:
        """The doctor looks at more."""
        self.put({"gateway": {"port": 0}, "agents": {"defaults": {"model": None}}})
        self.assertNotIn("models.none", self.run_on("security", "audit").stdout)
        self.assertIn("models.none", self.run_on("doctor").stdout)

    def test_json(self) -> None:
        """For programs: counts, and each finding with its remedy."""
        self.config.chmod(0o604)
        result = self.run_on("security", "audit", "--json")
        found = json.loads(result.stdout)
        self.assertEqual((found["ok"], found["critical"], result.exit_code), (False, 1, 1))
        first = found["findings"][0]
        self.assertEqual((first["id"], first["level"], first["fixable"]), ("secret.readable-by-others", "critical", True))
        self.assertIn("chmod", first["remedy"])

    def test_fix(self) -> None:
        """What can be mended is, and what is left is told; without --fix nothing is changed."""
        self.state.chmod(0o755)
        self.config.chmod(0o606)
        self.run_on("security", "audit")
        self.assertEqual((self.state.stat().st_mode & 0o777, self.config.stat().st_mode & 0o777), (0o755, 0o606))
        result = self.run_on("security", "audit", "--fix")
        self.assertEqual((self.state.stat().st_mode & 0o777, self.config.stat().st_mode & 0o777), (0o700, 0o600))
        self.assertEqual((result.exit_code, result.stdout.count("fixed: chmod")), (0, 3))
        self.assertNotIn("critical:", result.stdout)

    def test_what_cannot_be_fixed(self) -> None:
        """A repair that fails is told of with its remedy."""

        def fails() -> str:
            raise PermissionError(1, "Operation not permitted")

        def refused() -> str:
            raise StartError("in use by another gateway", 1)

        repairs: list[Callable[[], str] | None] = [fails, refused, None]
        report = doctor.Report(tuple(Finding("x.y", "warn", "text", "chmod it", repair) for repair in repairs))
        done, failed = doctor.mend(report)
        self.assertEqual(done, [])
        self.assertEqual(failed, ["x.y: Operation not permitted (chmod it)", "x.y: in use by another gateway (chmod it)"])

    def test_service_is_found(self) -> None:
        """The unit of this user's gateway, what is old about it, and whether it goes on after a logout."""
        units = self.home / ".config" / "systemd" / "user"
        units.mkdir(parents=True)
        (units / "mayros-gateway.service").write_text("[Service]\n# an old one\n")
        (units / "mayros-gateway.socket").write_text("[Socket]\n")
        program = self.home / "bin" / "mayros"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)

        def run(argv: Sequence[str]) -> Done:
            return Done(0, {"loginctl": "no\n", "systemctl": "UnitFileState=disabled\n"}.get(argv[0], ""))

        found = subject_of(Place(self.environ, host=Host(root=str(self.home / "root"), booted=True, run=run)))
        self.assertIsNotNone(found.service)
        assert found.service is not None
        self.assertEqual(
            (found.service.unit, found.service.system, found.service.starts, found.service.lingers), ("mayros-gateway.service", False, False, False)
        )
        self.assertEqual(subject_of(Place(self.environ, host=Host(booted=False))).service, None)


class LooksTests(SynchronousTestCase):
    """The real machine, as far as a test may look at it."""

    def test_taken(self) -> None:
        """A port that somebody listens on; nobody connects to it."""
        import socket

        looks = Host(booted=False)
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            one.listen()
            one.setblocking(False)
            self.assertTrue(looks.taken("127.0.0.1", port))
            self.assertRaises(BlockingIOError, one.accept)
        self.assertFalse(looks.taken("127.0.0.1", port))
        self.assertGreater(looks.free_bytes("/"), 0)
