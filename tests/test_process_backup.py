"""A backup of a real gateway that is writing, and back: nothing that was acknowledged before it is missing, and nothing is half there."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from contextlib import closing

from tests.test_process import ProcessCase


class BackupTests(ProcessCase):
    """One gateway."""

    def setUp(self) -> None:
        super().setUp()
        self.gateway = self.daemon()

    def say(self, session: str, text: str) -> None:
        """One turn, acknowledged when this returns."""
        body = {"model": "mayros", "messages": [{"role": "user", "content": text}]}
        status, answer = self.gateway.request("POST", "/v1/chat/completions", body, **{"x-mayros-session-key": session})
        self.assertEqual(status, 200, answer)

    def said(self, session: str) -> list[str]:
        """What the store has of a session, by `mayros export`."""
        done = self.gateway.mayros("export", session)
        self.assertEqual(done.returncode, 0, done.stderr)
        return [json.loads(line)["message"]["content"] for line in done.stdout.splitlines()[1:]]

    def test_backup_under_load(self) -> None:
        """Backup while turns are written, restore refused while it runs and done after it, and the gateway goes on from there."""
        daemon = self.gateway
        daemon.start()
        for number in range(3):
            self.say("alice", f"before {number}")
        begun, stop, failed = threading.Event(), threading.Event(), []

        def load() -> None:
            try:
                number = 0
                while not stop.is_set():
                    self.say("bob", f"during {number}")
                    number += 1
                    begun.set()
            except (AssertionError, OSError) as error:
                failed.append(error)

        worker = threading.Thread(target=load, daemon=True)
        worker.start()
        self.assertTrue(begun.wait(20), failed)
        archive = str(daemon.folder / "backup.tar.gz")
        made = self.gateway.mayros("backup", archive, "--json")
        stop.set()
        worker.join(30)
        self.assertEqual((made.returncode, failed), (0, []), made.stderr)
        self.say("alice", "after the backup")
        self.assertEqual(self.said("alice")[-2:], ["after the backup", "one two three"])

        refused = self.gateway.mayros("restore", archive, "--yes")
        assert daemon.process is not None
        self.assertEqual(refused.returncode, 1)
        self.assertIn(f"in use by another gateway (process {daemon.process.pid})", refused.stderr)
        daemon.stop()

        done = self.gateway.mayros("restore", archive, "--yes")
        self.assertEqual(done.returncode, 0, done.stderr)
        whole = ["before 0", "one two three", "before 1", "one two three", "before 2", "one two three"]
        self.assertEqual(self.said("alice"), whole)
        during = self.said("bob")
        # Each turn whole: what was said, and the answer.
        self.assertEqual(during, [text for number in range(len(during) // 2) for text in (f"during {number}", "one two three")])
        kept = [name for name in os.listdir(daemon.state) if name.startswith("mayros.db.before-restore-")]
        self.assertIn(f"Kept: {daemon.state}/{kept[0]}", done.stdout)
        daemon.start()
        self.say("alice", "and on")
        self.assertEqual(self.said("alice"), [*whole, "and on", "one two three"])
        doctor = self.gateway.mayros("doctor", "--json")
        found = {one["id"] for one in json.loads(doctor.stdout)["findings"]}
        self.assertTrue(
            found <= {"secret.readable-by-others", "store.old-copies", "gateway.auth.short", "config.secrets", "host.root", "service.none"}, found
        )
        self.assertEqual(daemon.stop() in (0, -15), True)

    def test_newer_store(self) -> None:
        """A store of a newer version: status 78 and one line, for twistd and for `mayros gateway run`; it is left as it is."""
        daemon = self.gateway
        daemon.start()
        daemon.stop()
        with closing(sqlite3.connect(daemon.state / "mayros.db")) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
        for cli in (False, True):
            status, text = daemon.refused(cli=cli)
            self.assertEqual(status, 78, text)
            self.assertIn("was written by a newer version (schema 9999", text)
            self.assertIn("restore a backup", text)
            self.assertNotIn("Traceback", text)
        with closing(sqlite3.connect(daemon.state / "mayros.db")) as connection:
            self.assertEqual(connection.execute("SELECT version_num FROM alembic_version").fetchall(), [("9999",)])
        self.assertIn("store.newer", self.gateway.mayros("doctor").stdout)
