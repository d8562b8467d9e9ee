"""`mayros audit log`, and the rows of commands that change something without a gateway; one real gateway with all of it."""

from __future__ import annotations

import json
import os
import pwd
import sqlite3
import stat
import time
from typing import Any

from click.testing import CliRunner
from twisted.internet.defer import Deferred

from mayros.cli import audit
from mayros.core.audit_ports import AuditEntry, AuditQuery
from mayros.net.statedir import StateDir
from mayros.storage.audit import DirectAudit
from mayros.storage.engine import default_url
from mayros.storage.migrate import open_engine
from mayros.ws.conversation import CallFailed
from tests.daemon import TOKEN
from tests.test_cli_gateway import GatewayCase
from tests.test_process import ProcessCase, wait_for
from tests.test_process_reload import save

ME = f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
ROW = {
    "id": 7, "atMs": 1_700_000_000_000, "action": "tokens.create", "who": "device:0123456789abcdef", "label": "the \x1b[31mred\x1b[0m\none\u202e",
    "door": "ws", "address": "203.0.113.9", "target": "ann", "outcome": "refused", "details": {"scopes": ["operator.read"], "error": "no\x07"},
}  # fmt: skip


class AuditCase(GatewayCase):
    """A store, and what is in its trail."""

    def store(self) -> None:
        """Make one."""
        StateDir.open(str(self.state))
        open_engine(default_url(str(self.state))).dispose()

    def rows(self) -> list[AuditEntry]:
        """The oldest first."""
        engine = open_engine(default_url(str(self.state)))
        try:
            found = self.successResultOf(DirectAudit(engine).list(AuditQuery(100)))
        finally:
            engine.dispose()
        return [row.entry for row in reversed(found)]

    def add(self, *entries: AuditEntry) -> None:
        engine = open_engine(default_url(str(self.state)))
        try:
            for entry in entries:
                self.successResultOf(DirectAudit(engine).record(entry))
        finally:
            engine.dispose()


class LogTests(AuditCase):
    """Reading."""

    def test_table(self) -> None:
        """One line for each row, the newest last; nothing that a terminal would obey."""
        self.gateway.final = {"ts": 1, "entries": [{**ROW, "id": 8, "target": "bob"}, ROW], "cursor": None}
        head, first, second = self.good("audit", "log").stdout.splitlines()
        self.assertEqual(head.split(), ["time", "action", "who", "from", "target", "outcome", "details"])
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1_700_000_000))
        self.assertEqual(
            first.split(),
            f"{when} tokens.create device:0123456789ab (the [31mred[0m one) ws 203.0.113.9 ann refused scopes=operator.read error=no".split(),
        )
        self.assertIn(" bob ", second)
        self.assertEqual(self.asked(), ("audit.list", {"limit": 50}))
        self.gateway.final = {"entries": []}
        self.assertEqual(self.good("audit", "log").stdout, "There is nothing in the audit trail.\n")

    def test_what_is_asked(self) -> None:
        """Since a time or a date, by action and by name."""
        self.gateway.final = {"entries": []}
        self.good("audit", "log", "--since", "2h", "--action", "tokens", "--who", "ann", "--limit", "9")
        _, asked = self.asked()
        self.assertLess(abs(asked.pop("sinceMs") - (time.time() - 7_200) * 1000), 60_000)
        self.assertEqual(asked, {"limit": 9, "action": "tokens", "who": "ann"})
        self.good("audit", "log", "--since", "2026-01-02T03:04+00:00")
        self.assertEqual(self.asked()[1]["sinceMs"], 1_767_323_040_000)
        for text in ("soon", "-1h", "2026-13-01"):
            self.assertRefused(self.mayros("audit", "log", "--since", text), 2, "--since")

    def test_json(self) -> None:
        """One object a line, control characters as escapes."""
        self.gateway.final = {"entries": [ROW]}
        (line,) = self.good("audit", "log", "--json").stdout.splitlines()
        self.assertIn("\\u202e", line)
        self.assertEqual(json.loads(line), ROW)

    def test_strange_rows(self) -> None:
        """What a gateway of another kind sends is shown as far as it can be."""
        self.gateway.final = {"entries": [{"atMs": 1e300, "who": None, "details": 5}, 7, {}]}
        self.assertEqual(len(self.good("audit", "log").stdout.splitlines()), 3)

    def test_follow(self) -> None:
        """What comes is printed behind what there was, each once."""
        answers = [{"entries": [ROW]}, {"entries": [{**ROW, "id": 8, "target": "bob"}]}, CallFailed("INVALID_REQUEST", "enough")]
        asked: list[Any] = []

        class Connected:
            async def request(self, method: str, params: Any, *, timeout: float) -> Any:
                asked.append(params)
                answer = answers.pop(0)
                if isinstance(answer, Exception):
                    raise answer
                return answer

        class Following:
            json, timeout, paused = False, 5.0, 0

            async def pause(self, seconds: float) -> None:
                self.paused += 1

        self.patch(audit, "MOST_FAILURES", 1)
        remote: Any = Following()
        connection: Any = Connected()
        with CliRunner().isolation() as (out, *_):
            self.failureResultOf(Deferred.fromCoroutine(audit._log(remote, connection, {}, 50, True)), CallFailed)
            printed = out.getvalue().decode().splitlines()
        self.assertEqual(asked, [{"limit": 50}, {"after": 7, "limit": 200}, {"after": 8, "limit": 200}])
        self.assertEqual((len(printed), remote.paused), (3, 2))
        self.assertIn("  bob  ", printed[2])

    def test_without_a_gateway(self) -> None:
        """The store of this machine is read, and nothing is written to it; without one the reason is told."""
        self.gateway.final = CallFailed("UNAVAILABLE", "Cannot reach ws://127.0.0.1:4444/")
        self.assertRefused(self.mayros("audit", "log"), 1, "Cannot reach")
        self.store()
        self.add(
            AuditEntry(1_700_000_000_000, "tokens.create", "token:ann", "ws", "done", target="x\x1b[31m"),
            AuditEntry(1_700_000_001_000, "config.set", "owner", "ws", "done"),
        )
        result = self.good("audit", "log")
        self.assertIn("this is what its store has", result.stderr)
        self.assertNotIn(".;", result.stderr)
        self.assertEqual([line.split()[2] for line in result.stdout.splitlines()[1:]], ["tokens.create", "config.set"])
        self.assertNotIn("\x1b", result.stdout)
        found = [json.loads(line) for line in self.good("audit", "log", "--json", "--action", "config").stdout.splitlines()]
        self.assertEqual(
            found, [{"id": 2, "atMs": 1_700_000_001_000, "action": "config.set", "who": "owner", "door": "ws", "outcome": "done", "details": {}}]
        )
        self.assertIn("Only the newest 1 are shown", self.good("audit", "log", "--limit", "1", "--since", "2020-01-01").stderr)
        self.assertNotIn("are shown", self.good("audit", "log", "--limit", "3", "--since", "2020-01-01").stderr)
        self.assertEqual(len(self.rows()), 2)
        self.assertRefused(self.mayros("audit", "log", "--url", "ws://far.example", MAYROS_GATEWAY_TOKEN="x"), 1, "Cannot reach")


class NoteTests(AuditCase):
    """Writing: commands that change something by themselves."""

    def newest(self) -> tuple[str, str | None, dict[str, Any]]:
        entry = self.rows()[-1]
        self.assertEqual((entry.who, entry.door, entry.outcome, entry.address), (ME, "cli", "done", None))
        return entry.action, entry.target, json.loads(entry.details)

    def test_the_configuration_file(self) -> None:
        """Which key paths, never the values; nothing where nothing is another."""
        self.store()
        self.good("config", "set", "logging.level", "debug")
        self.assertEqual(self.newest(), ("config.write", str(self.config), {"command": "config set", "paths": ["logging.level"]}))
        self.good("config", "set", "logging.level", "debug")
        self.assertEqual(len(self.rows()), 1)
        self.good("config", "unset", "logging.level")
        self.assertEqual(self.newest()[2]["command"], "config unset")
        secret = self.home / "secret"
        secret.write_text("sk-a-key-of-a-provider-0123456789")
        self.good("config", "set", "models.providers.x", "--value-file", str(self.provider()))
        self.good("config", "set", "models.providers.x.apiKey", "--value-file", str(secret))
        self.assertEqual(self.newest()[2]["paths"], ["models.providers.x.apiKey"])
        self.good("models", "set", "x/y")
        self.assertEqual(self.newest()[2], {"command": "models set", "paths": ["agents.defaults.model"]})
        self.assertNotIn("sk-a-key", repr(self.rows()))

    def provider(self) -> Any:
        file = self.home / "provider"
        file.write_text('{"baseUrl": "http://127.0.0.1:1/v1", "models": [{"id": "y"}]}')
        return file

    def test_an_editor(self) -> None:
        """What it changed."""
        self.store()
        editor = self.home / "editor"
        editor.write_text('#!/bin/sh\nsed -i s/4444/4445/ "$1"\n')
        editor.chmod(stat.S_IRWXU)
        self.patch(os, "environ", {**os.environ, "VISUAL": str(editor)})
        self.good("config", "edit")
        self.assertEqual(self.newest()[2], {"command": "config edit", "paths": ["gateway.port"]})

    def test_tokens(self) -> None:
        """With the token, and where it is refused; no secret is in it."""
        secret = self.good("tokens", "create", "ann", "--rpm", "5").stdout.strip()
        self.assertEqual(self.newest(), ("tokens.create", "ann", {"rpm": 5}))
        self.assertRefused(self.mayros("tokens", "create", "ann"), 1, "already")
        self.assertEqual((self.rows()[-1].outcome, "already" in self.rows()[-1].details), ("refused", True))
        again = self.good("tokens", "rotate", "ann").stdout.strip()
        self.assertEqual(self.newest()[:2], ("tokens.rotate", "ann"))
        self.good("tokens", "revoke", "ann")
        self.assertEqual(self.newest()[:2], ("tokens.revoke", "ann"))
        self.good("tokens", "list")
        self.assertEqual(len(self.rows()), 4)
        for one in (secret, again):
            self.assertNotIn(one, repr(self.rows()))

    def test_backup_and_restore(self) -> None:
        """A backup is told of in the store; a restoring in the one that is there since."""
        self.store()
        file = str(self.home / "b.tar.gz")
        self.good("backup", file)
        self.assertEqual(self.newest()[:2], ("backup", file))
        self.good("restore", file, "--yes", "--store-only")
        self.assertEqual([entry.action for entry in self.rows()], ["restore"])
        self.assertEqual(self.newest()[2]["storeOnly"], True)

    def test_a_certificate(self) -> None:
        """Who made the one that clients are to trust."""
        self.store()
        self.good("gateway", "cert")
        action, target, details = self.newest()
        self.assertEqual((action, target), ("gateway.cert", str(self.state / "tls" / "cert.pem")))
        self.assertEqual(len(details["fingerprint"].replace(":", "")), 64)

    def test_no_store(self) -> None:
        """There is none yet: the command does its work, makes none, and says nothing."""
        result = self.good("config", "set", "logging.level", "debug")
        self.assertEqual(result.stderr, "")
        self.assertEqual([path.name for path in self.state.glob("mayros.db*")], [])

    def test_a_store_that_cannot_be_written(self) -> None:
        """The command does its work and says that its row is missing."""
        self.store()
        db = sqlite3.connect(self.state / "mayros.db")
        db.execute("UPDATE alembic_version SET version_num = '9999'")
        db.commit()
        db.close()
        result = self.good("config", "set", "logging.level", "debug")
        self.assertIn("not in the audit trail", result.stderr)
        self.assertIn('"debug"', self.config.read_text())


class GatewayTests(ProcessCase):
    """A real gateway."""

    def test_life(self) -> None:
        """From its start to its stop: what clients and hands have changed is told while it runs, and read from the store afterwards."""
        daemon = self.daemon(reload={"mode": "hot"}, auth={"token": TOKEN, "rateLimit": {"maxAttempts": 2, "exemptLoopback": False}})
        daemon.start()
        token = daemon.mayros("tokens", "create", "ann").stdout.strip()
        save(daemon, limits={"maxQueuedRuns": 77})

        def rows(*args: str, reloads: bool = False) -> list[dict[str, Any]]:
            done = daemon.mayros("audit", "log", "--json", *args)
            if reloads and "connect again" in done.stderr:  # the command came while the configuration changed
                return []
            self.assertEqual(done.returncode, 0, done.stderr)
            return [json.loads(line) for line in done.stdout.splitlines()]

        wait_for(lambda: any(row["action"] == "config.reload" for row in rows(reloads=True)))
        for _ in range(4):
            daemon.request("GET", "/v1/models", Authorization="Bearer wrong")
        daemon.stop()
        found = {row["action"]: row for row in rows()}
        expected = ["gateway.start", "device.pair.local", "tokens.create", "config.reload", "auth.lockout", "gateway.stop"]
        self.assertEqual(list(found), expected)
        self.assertEqual(found["config.reload"]["details"]["paths"], ["gateway.limits.maxQueuedRuns"])
        self.assertTrue(found["tokens.create"]["who"].startswith("device:"))
        self.assertEqual((found["auth.lockout"]["who"], found["auth.lockout"]["address"]), ("nobody", "127.0.0.1"))
        self.assertEqual(found["gateway.stop"]["target"], found["gateway.start"]["target"])
        self.assertEqual([row["action"] for row in rows("--limit", "2")], expected[-2:])
        self.assertNotIn(token.encode(), b"".join(path.read_bytes() for path in daemon.folder.rglob("mayros.db*")))
