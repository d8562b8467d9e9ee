"""`mayros backup`, `restore` and `export`, and the copy that is kept before a migration: on real stores in temporary folders."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from mayros.cli.place import Place
from mayros.cli.restoring import Restoring
from mayros.errors import StartError
from mayros.net.statedir import StateDir
from mayros.storage import migrate
from mayros.storage.archive import MANIFEST, STORE, Manifest, Packer, files_below, unpack
from mayros.storage.backup import copy_store, damage, revision
from mayros.storage.engine import default_url, make_engine, parse_url
from mayros.storage.migrate import HEAD, open_engine
from tests.test_cli import CommandLine

KEY = "agent:main:alice"
SAID = (
    ("s1", 1, '{"role":"user","content":"Before the reset."}', None),
    ("s2", 2, '{"role":"user","content":"What is in a.txt?"}', None),
    (
        "s2",
        3,
        '{"role":"assistant","content":null,"tool_calls":[{"id":"c1","function":{"name":"read","arguments":"{\\"path\\":\\"a.txt\\"}"},"type":"function"}]}',
        None,
    ),
    ("s2", 4, '{"role":"tool","content":"```\\nnot the end","tool_call_id":"c1"}', None),
    ("s2", 5, '{"role":"assistant","content":"It says so."}', '{"outcome":"ok","model":"m"}'),
)


def fill(path: str, label: str = "") -> None:
    """One conversation, which was reset once."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "INSERT INTO sessions (key, agent_id, session_id, stateless, created_ms, updated_ms, turns, input_tokens, output_tokens, label)"
            " VALUES (?, 'main', 's2', 0, 1700000000000, 1700000005000, 2, 3, 4, ?)",
            (KEY, label or None),
        )
        connection.execute("INSERT INTO session_history VALUES (?, 's1')", (KEY,))
        connection.executemany(
            "INSERT INTO entries (id, session_id, parent_id, run_id, kind, body, meta, created_ms) VALUES (?, ?, NULL, 'r', 'message', ?, ?, ?)",
            [(id_, session, body, meta, 1700000000000 + id_) for session, id_, body, meta in SAID],
        )


def texts(path: str) -> list[str]:
    """What the entries of a store say, oldest first."""
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT body FROM entries ORDER BY id")]


class StoreFolder(SynchronousTestCase):
    """A folder with a migrated store in it."""

    made: str | None = None

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.path = str(self.folder / "mayros.db")
        empty_store(self.path)


def empty_store(path: str) -> None:
    """A store without anything in it. Migrating anew for each test would take most of the time."""
    if StoreFolder.made is None:
        folder = os.path.abspath("an-empty-store")
        os.makedirs(folder, exist_ok=True)
        open_engine(default_url(folder)).dispose()
        StoreFolder.made = os.path.join(folder, "mayros.db")
    shutil.copy(StoreFolder.made, path)


class CopyTests(StoreFolder):
    """storage/backup.py."""

    def test_copy_while_it_is_written(self) -> None:
        """A copy has what was committed, also what is in the log only, and nothing of a transaction that goes on; nobody waits for it."""
        with closing(sqlite3.connect(self.path)) as writer:
            writer.execute("PRAGMA journal_mode=WAL")
            writer.execute("INSERT INTO deleted_sessions VALUES ('committed')")
            writer.commit()
            writer.execute("INSERT INTO deleted_sessions VALUES ('not yet')")
            target = str(self.folder / "copy.db")
            copy_store(self.path, target)
            writer.commit()
        with closing(sqlite3.connect(target)) as copy:
            self.assertEqual(copy.execute("SELECT session_id FROM deleted_sessions").fetchall(), [("committed",)])
            self.assertEqual(copy.execute("PRAGMA journal_mode").fetchone(), ("delete",))
        self.assertEqual(os.stat(target).st_mode & 0o777, 0o600)
        self.assertEqual(damage(target), [])
        self.assertEqual(revision(target), HEAD)

    def test_copy_of_one_moment(self) -> None:
        """What is committed while the copy is on its way is not in it, however many steps it takes, and does not make it begin anew."""
        fill(self.path)
        steps: list[int] = []
        with closing(sqlite3.connect(self.path)) as writer:
            writer.execute("PRAGMA journal_mode=WAL")

            def stepped(_status: int, remaining: int, _total: int) -> None:
                steps.append(remaining)
                with writer:
                    writer.execute("DELETE FROM entries")
                    writer.execute("INSERT INTO deleted_sessions VALUES (?)", (str(remaining),))

            target = str(self.folder / "copy.db")
            copy_store(self.path, target, pages=1, stepped=stepped)
        self.assertGreater(len(steps), 5)
        self.assertEqual(steps, sorted(steps, reverse=True))
        self.assertEqual(texts(target), [said[2] for said in SAID])
        self.assertEqual(texts(self.path), [])

    def test_refused(self) -> None:
        """No copy over a file, none of what is no store; nothing is left behind."""
        taken = self.folder / "taken"
        taken.write_text("mine")
        self.assertIn("exists", str(self.assertRaises(StartError, copy_store, self.path, str(taken))))
        self.assertEqual(taken.read_text(), "mine")
        for source, content in (("missing", None), ("text", b"no store " * 500)):
            if content is not None:
                (self.folder / source).write_bytes(content)
            self.assertRaises(StartError, copy_store, str(self.folder / source), str(self.folder / "new"))
        self.assertEqual(sorted(os.listdir(self.folder)), ["mayros.db", "taken", "text"])

    def test_damage(self) -> None:
        """The full check finds an overwritten page, an empty file and a missing one."""
        fill(self.path)
        self.assertEqual(damage(self.path), [])
        with open(self.path, "r+b") as file:
            file.seek(8192)
            file.write(b"\xff" * 8192)
        self.assertNotEqual(damage(self.path), [])
        open(self.path, "wb").close()
        self.assertEqual(damage(self.path), ["it is empty (0 bytes)"])
        self.assertEqual(len(damage(str(self.folder / "none.db"))), 1)


class MigrationTests(SynchronousTestCase):
    """What is kept before a migration."""

    def setUp(self) -> None:
        self.folder = os.path.abspath(self.mktemp())
        os.mkdir(self.folder)
        self.path = os.path.join(self.folder, "mayros.db")
        open(self.path, "wb").close()
        old = make_engine(parse_url(default_url(self.folder)))
        migrate._upgrade(old, "0003")
        old.dispose()

    def test_copy_before(self) -> None:
        """An older store is copied before it is migrated: the version of before can open the copy. One at the newest revision is left alone."""
        folder, path = self.folder, self.path
        open(f"{path}.before-0003.new", "wb").close()  # of an attempt that was killed
        open_engine(default_url(folder)).dispose()
        self.assertEqual((revision(path), revision(f"{path}.before-0003"), damage(f"{path}.before-0003")), (HEAD, "0003", []))
        open_engine(default_url(folder)).dispose()
        self.assertEqual(sorted(os.listdir(folder)), ["mayros.db", "mayros.db.before-0003"])

    def test_no_copy_no_migration(self) -> None:
        """Where the copy cannot be made the store stays as it was."""
        os.mkdir(f"{self.path}.before-0003")
        self.assertRaises(StartError, open_engine, default_url(self.folder))
        self.assertEqual(revision(self.path), "0003")


class DaemonTests(SynchronousTestCase):
    """These are commands."""

    def test_the_daemon_does_not_load_them(self) -> None:
        """Neither at its start nor with a store that is at the newest revision: the idle daemon has no memory to spare."""
        script = (
            "import sys, mayros.service, mayros.storage.migrate\n"
            "print(sorted(sys.modules.keys() & {'tarfile', 'mayros.storage.backup', 'mayros.storage.archive', 'mayros.storage.export',"
            " 'mayros.ops.doctor', 'mayros.ops.subject', 'mayros.ops.checks'}))"
        )
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}, check=False)
        self.assertEqual((done.stdout.strip(), done.returncode), ("[]", 0), done.stderr)


class ArchiveTests(SynchronousTestCase):
    """storage/archive.py: what is written, and what is taken."""

    manifest = Manifest(format=1, version="1", created_ms=5, schema=None, config=None, state_dir="/s", config_path="/c")

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.path = str(self.folder / "a.tar.gz")

    def out(self) -> str:
        """An empty folder."""
        folder = self.folder / f"out{len(os.listdir(self.folder))}"
        folder.mkdir()
        return str(folder)

    def test_there_and_back(self) -> None:
        """What goes in comes out, for its owner only; links and pipes do not go in."""
        (self.folder / "run.sh").write_text("#!/bin/sh\n")
        (self.folder / "run.sh").chmod(0o755)
        os.symlink("run.sh", self.folder / "link")
        os.mkfifo(self.folder / "pipe")
        packer = Packer(self.path, self.manifest)
        self.assertFalse(os.path.exists(self.path))
        self.assertEqual([packer.add(f"state/{name}", str(self.folder / name)) for name in ("run.sh", "link", "pipe", "none")], [True] + [False] * 3)
        self.assertEqual(packer.finish(), os.path.getsize(self.path))
        out = self.out()
        self.assertEqual(unpack(self.path, out), self.manifest)
        self.assertEqual(list(files_below(out)), ["state/run.sh"])
        self.assertEqual((os.stat(self.path).st_mode & 0o777, os.stat(f"{out}/state/run.sh").st_mode & 0o777), (0o600, 0o700))

    def test_abandoned(self) -> None:
        """An archive that is not finished leaves nothing."""
        Packer(self.path, self.manifest).abandon()
        self.assertEqual(os.listdir(self.folder), [])

    def made(self, *entries: tarfile.TarInfo, manifest: bytes | None = None) -> None:
        """An archive by somebody else."""
        with tarfile.open(self.path, "w:gz") as tar:
            first = tarfile.TarInfo(MANIFEST)
            data = msgspec.json.encode(self.manifest) if manifest is None else manifest
            first.size = len(data)
            tar.addfile(first, io.BytesIO(data))
            for entry in entries:
                tar.addfile(entry, io.BytesIO(b"x" * entry.size))

    def test_hostile_names(self) -> None:
        """Nothing is written outside of the folder, no link is made, no name comes twice."""
        for name in (
            "../x",
            "/etc/x",
            "state/../../x",
            "state//x",
            "state/",
            "other/x",
            "store/x",
            "state",
            "state/./x",
            "config/" + "a/" * 200 + "x",
        ):
            self.made(tarfile.TarInfo(name))
            self.assertRaises(StartError, unpack, self.path, self.out())
        link = tarfile.TarInfo("state/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        for entries in (
            (link,),
            (tarfile.TarInfo("state/a"), tarfile.TarInfo("state/a")),
            (tarfile.TarInfo("state/a"), tarfile.TarInfo("state/a/b")),
        ):
            self.made(*entries)
            self.assertRaises(StartError, unpack, self.path, self.out())
        self.assertFalse(os.path.exists(self.folder / "x"))

    def test_damaged(self) -> None:
        """A cut or changed archive, one of a newer program, and what is no archive at all are one line each."""
        entry = tarfile.TarInfo(STORE)
        entry.size = 100_000
        self.made(entry)
        whole = Path(self.path).read_bytes()
        changed = whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:]
        newer = msgspec.json.encode(msgspec.structs.replace(self.manifest, format=2))
        for data in (whole[: len(whole) // 2], changed, b"", b"text", gzip.compress(b""), gzip.compress(b"text" * 1000)):
            Path(self.path).write_bytes(data)
            self.assertIn(self.path, str(self.assertRaises(StartError, unpack, self.path, self.out())))
        for manifest, words in ((newer, "newer version"), (b"{}", "manifest")):
            self.made(manifest=manifest)
            self.assertIn(words, str(self.assertRaises(StartError, unpack, self.path, self.out())))
        self.assertRaises(StartError, unpack, str(self.folder / "missing"), self.out())


class Gateway(CommandLine):
    """A machine with a configured gateway that has a store and a workspace."""

    def setUp(self) -> None:
        super().setUp()
        self.write({"gateway": {"mode": "local", "auth": {"token": "a-token-of-the-file"}}, "logging": {"$include": "logging.json5"}})
        (self.state / "logging.json5").write_text("{ level: 'warn' } // a comment")
        self.db = str(self.state / "mayros.db")
        empty_store(self.db)
        fill(self.db)
        (self.state / "workspace" / "notes").mkdir(parents=True)
        (self.state / "workspace" / "notes" / "a.txt").write_text("a note")
        os.symlink("/etc/passwd", self.state / "workspace" / "link")
        (self.state / ".env").write_text("OPENAI_API_KEY=sk-secret\n")
        (self.state / "logs").mkdir()
        (self.state / "logs" / "mayros.log").write_text("a line\n")
        self.file = str(self.home / "backup.tar.gz")

    def backup(self, *options: str) -> dict[str, Any]:
        """`mayros backup`, and what it says."""
        result = self.mayros("backup", self.file, "--json", *options)
        self.assertEqual(result.exit_code, 0, result.output)
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    def names(self) -> set[str]:
        """What is in the archive."""
        with tarfile.open(self.file) as tar:
            return set(tar.getnames())


class BackupTests(Gateway):
    """`mayros backup`."""

    def test_all(self) -> None:
        """The store, the configuration with its includes, secrets and workspaces; no logs, no links. Also while a gateway runs."""
        state = StateDir.open(str(self.state))
        state.lock()
        self.addCleanup(state.unlock)
        told = self.backup()
        self.assertEqual(
            self.names(),
            {MANIFEST, STORE, "config/mayros.json", "config/logging.json5", "state/.env", "state/workspace/notes/a.txt"},
        )
        self.assertEqual((told["files"], told["schema"], os.stat(self.file).st_mode & 0o777), (6, HEAD, 0o600))
        self.assertEqual(told["leftOut"], [f"{self.state}/workspace/link, which is no regular file"])
        self.assertEqual([name for name in os.listdir(self.home) if name.startswith(".")], [])

    def test_store_only(self) -> None:
        """Nothing secret but the store itself."""
        self.backup("--store-only")
        self.assertEqual(self.names(), {MANIFEST, STORE})

    def test_left_out(self) -> None:
        """Workspaces elsewhere are named."""
        (self.home / "project").mkdir()
        self.write({"gateway": {"mode": "local"}, "agents": {"defaults": {"workspace": str(self.home / "project")}}})
        self.assertEqual(self.backup()["leftOut"][0], f"the workspace of main, {self.home / 'project'}")

    def test_refused(self) -> None:
        """No file is overwritten without --force; without a store there is nothing to back up."""
        self.backup()
        self.assertRefused(self.mayros("backup", self.file), 1, "--force")
        self.assertIn("Written: ", self.mayros("backup", self.file, "--force").stdout)
        os.unlink(self.db)
        self.assertRefused(self.mayros("backup", str(self.home / "other")), 1, "no store")
        self.assertEqual(sorted(name for name in os.listdir(self.home) if name != "state"), ["backup.tar.gz"])

    def test_postgresql(self) -> None:
        """Its store is not ours to copy; the rest is backed up, and the store is named."""
        self.write({"gateway": {"mode": "local"}, "session": {"store": "postgresql+psycopg://db/mayros"}})
        self.assertIn("pg_dump", self.backup()["leftOut"][-2])
        self.assertRefused(self.mayros("backup", "x", "--store-only"), 1, "pg_dump")


class RestoreTests(Gateway):
    """`mayros restore`."""

    def test_there_and_back(self) -> None:
        """Everything is as it was; what was in the way is kept beside, a store with its log; what is not in the archive stays."""
        self.backup()
        with closing(sqlite3.connect(self.db)) as connection:
            connection.execute("DELETE FROM entries")
            connection.commit()
        Path(self.db + "-wal").write_bytes(b"of the newer store")
        (self.state / "workspace" / "notes" / "a.txt").write_text("changed")
        self.write({"gateway": {"mode": "local", "port": 5}})
        result = self.mayros("restore", self.file)
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertEqual(texts(self.db), [said[2] for said in SAID])
        self.assertEqual((self.state / "workspace" / "notes" / "a.txt").read_text(), "a note")
        self.assertEqual((self.state / "logging.json5").read_text(), "{ level: 'warn' } // a comment")
        self.assertEqual(json.loads(self.config.read_text())["gateway"]["auth"]["token"], "a-token-of-the-file")
        self.assertEqual((self.state / "logs" / "mayros.log").read_text(), "a line\n")
        kept = sorted(name.partition(".before-restore-")[0] for name in os.listdir(self.state) if ".before-restore-" in name)
        self.assertEqual(kept, [".env", "logging.json5", "mayros.db", "mayros.db", "mayros.json", "workspace"])
        self.assertIn(f"Kept: {self.state}/mayros.db.before-restore-", result.stdout)
        self.assertFalse(os.path.exists(self.db + "-wal"))
        self.assertEqual([name for name in os.listdir(self.state) if name.startswith(".restore")], [])

    def test_what_was_set_aside_is_not_backed_up(self) -> None:
        """A workspace of before a restore is no workspace."""
        self.backup()
        self.assertEqual(self.mayros("restore", self.file).exit_code, 0)
        before = self.names()
        self.backup("--force")
        self.assertEqual(self.names(), before)

    def test_store_only(self) -> None:
        """Only the store is replaced."""
        self.backup()
        self.write({"gateway": {"mode": "local", "port": 5}})
        os.unlink(self.db)
        result = self.mayros("restore", self.file, "--store-only", "--json")
        self.assertEqual(json.loads(result.stdout)["restored"], [self.db])
        self.assertEqual(json.loads(self.config.read_text())["gateway"]["port"], 5)

    def test_another_machine(self) -> None:
        """Into a home without anything: the gateway moves with its store and its token."""
        self.backup()
        shutil.rmtree(self.state)
        self.assertEqual(self.mayros("restore", self.file).exit_code, 0)
        self.assertEqual(len(texts(self.db)), len(SAID))
        self.assertEqual((self.state.stat().st_mode & 0o777, self.config.stat().st_mode & 0o777), (0o700, 0o600))

    def test_refused_while_a_gateway_runs(self) -> None:
        """One line with what to do; nothing is touched."""
        self.backup()
        state = StateDir.open(str(self.state))
        state.lock()
        self.addCleanup(state.unlock)
        before = sorted(os.listdir(self.state))
        self.assertRefused(self.mayros("restore", self.file), 1, "in use by another gateway", "stop it first")
        self.assertEqual(sorted(os.listdir(self.state)), before)

    def refused(self, *words: str) -> None:
        """It is refused with these words, and everything is as before."""
        before = sorted(os.listdir(self.state))
        self.assertRefused(self.mayros("restore", self.file), 1, *words)
        self.assertEqual(
            sorted(name for name in os.listdir(self.state) if name != "gateway.lock"), [name for name in before if name != "gateway.lock"]
        )

    def packed(self, *parts: tuple[str, str], config: str | None = None) -> None:
        """An archive with these files."""
        manifest = msgspec.structs.replace(ArchiveTests.manifest, config=config)
        packer = Packer(self.file, manifest)
        for name, path in parts:
            self.assertTrue(packer.add(name, path))
        packer.finish()

    def test_stores_that_cannot_be_used(self) -> None:
        """Damaged, of another program, of a newer version: refused before anything is touched."""
        other = str(self.home / "other.db")
        with closing(sqlite3.connect(other)) as connection:
            connection.execute("CREATE TABLE x (y)")
        self.packed((STORE, other))
        self.refused("none of this program")
        shutil.copy(self.db, other)
        with closing(sqlite3.connect(other)) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
        self.packed((STORE, other))
        self.refused("newer version", "9999", HEAD)
        Path(other).write_text("no store")
        self.packed((STORE, other))
        self.refused("damaged")
        self.packed()
        self.refused("nothing in it")

    def test_configuration_that_cannot_be_used(self) -> None:
        """One that needs what is not here is refused; --store-only restores the store all the same."""
        self.config.write_text('{"models": {"providers": {"x": {"apiKey": "${NOT_HERE}"}}}}')
        self.packed((STORE, self.db), ("config/mayros.json", str(self.config)), config="mayros.json")
        self.write({"gateway": {"mode": "local"}})
        self.refused("NOT_HERE", "--store-only")
        self.assertEqual(self.mayros("restore", self.file, "--store-only").exit_code, 0)

    def test_foreign_files(self) -> None:
        """An archive cannot put other files into the state directory."""
        self.packed((STORE, self.db), ("state/gateway.lock", self.db))
        self.refused("gateway.lock")

    def test_files_beside_the_configuration(self) -> None:
        """Only what the configuration includes is put beside it, and its name leads nowhere else."""
        self.packed(("config/mayros.json", str(self.config)), ("config/logging.json5", str(self.state / "logging.json5")), config="mayros.json")
        self.assertEqual(self.mayros("restore", self.file).exit_code, 0)
        parts = [(f"config/{name}", str(self.state / name)) for name in ("mayros.json", "logging.json5")]
        self.packed(*parts, ("config/.bashrc", self.db), config="mayros.json")
        self.refused("'.bashrc' does not belong")
        for name in ("../config/mayros.json", "other.json"):
            self.packed(*parts, config=name)
            self.refused("has not the configuration")

    def test_asks(self) -> None:
        """What would be replaced can be read before, whatever the manifest says."""
        (self.home / "staged").mkdir()
        self.backup()
        place = Place(self.environ)
        work = Restoring(place, self.file, str(self.home / "staged"), False)
        self.assertIn(f"\n  {self.db}", work.describe())
        work.manifest = msgspec.structs.replace(work.manifest, created_ms=1 << 80, version="9\x1b[31m")
        self.assertIn("at an unknown time by version 9[31m;", work.describe())


class ExportTests(Gateway):
    """`mayros export`."""

    def export(self, *args: str) -> str:
        """What a command that succeeds writes."""
        result = self.mayros("export", *args)
        self.assertEqual(result.exit_code, 0, result.output)
        return result.stdout

    def test_lines(self) -> None:
        """A line about the session, one for each message with its run; with --earlier also what was said before a reset."""
        head, *messages = map(json.loads, self.export("alice").splitlines())
        self.assertEqual((head["type"], head["key"], head["sessionId"], head["createdAt"]), ("session", KEY, "s2", "2023-11-14T22:13:20.000Z"))
        self.assertEqual([entry["message"] for entry in messages], [json.loads(said[2]) for said in SAID[1:]])
        self.assertEqual((messages[-1]["id"], messages[-1]["meta"]["model"], messages[0].get("meta")), ("5", "m", None))
        self.assertEqual(len(self.export("alice", "--earlier").splitlines()), 1 + len(SAID))

    def test_markdown(self) -> None:
        """To be read; no text of a tool can end its block."""
        text = self.export(KEY, "--format", "markdown", "--earlier")
        self.assertIn("# agent:main:alice\n", text)
        self.assertIn("\n## User, 2023-11-14T22:13:20.002Z\n\nWhat is in a.txt?\n", text)
        self.assertIn('Calls `read`:\n\n```json\n{"path":"a.txt"}\n```\n', text)
        self.assertIn("````\n```\nnot the end\n````\n", text)
        self.assertIn("The session began anew.", text)

    def test_into_a_file(self) -> None:
        """A new one, for its owner only."""
        path = self.home / "out.jsonl"
        self.assertEqual(self.export("alice", "--output", str(path)), "")
        self.assertEqual((len(path.read_text().splitlines()), path.stat().st_mode & 0o777), (len(SAID), 0o600))
        self.assertRefused(self.mayros("export", "alice", "--output", str(path)), 1, "exists already")

    def test_refused(self) -> None:
        """No such session, no store, and a store of another version, which is left as it is."""
        self.assertRefused(self.mayros("export", "bob"), 1, "there is no session 'agent:main:bob'")
        for found, words in (("0001", "older version"), ("9999", "newer version")):
            with closing(sqlite3.connect(self.db)) as connection, connection:
                connection.execute("UPDATE alembic_version SET version_num = ?", (found,))
            result = self.mayros("export", "alice")
            self.assertIn(words, result.stderr)
            self.assertEqual(revision(self.db), found)
        os.unlink(self.db)
        self.assertRefused(self.mayros("export", "alice"), 1, "There is no store")
        self.assertFalse(os.path.exists(self.db))
