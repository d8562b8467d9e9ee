"""`mayros import` in processes of its own: beside a gateway that runs, killed in the middle, and what a model gets of what was imported."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from contextlib import closing
from typing import Any

from tests.daemon import MAYROS, python_path
from tests.original import UPDATED, Lines, Original
from tests.test_import import SAID, SID, conversation
from tests.test_process import ProcessCase, wait_for

#: Sessions that are imported while the import is killed, and turns of each.
MANY, TURNS = 400, 10


class ProcessTests(ProcessCase):
    """A gateway and a directory of the original beside it."""

    def setUp(self) -> None:
        super().setUp()
        self.gateway = self.daemon()
        self.original = Original(self.gateway.folder / "old")

    def imports(self) -> subprocess.CompletedProcess[str]:
        return self.gateway.mayros("import", str(self.original.folder), "--no-config", "--json")

    def test_going_on(self) -> None:
        """Refused while the gateway runs; then a conversation goes on where it was: its next prompt holds all of it."""
        daemon = self.gateway
        self.original.session("agent:main:main", conversation(), SID)
        daemon.start()
        refused = self.imports()
        assert daemon.process is not None
        self.assertEqual(refused.returncode, 1)
        self.assertIn(f"in use by another gateway (process {daemon.process.pid}): stop it first", refused.stderr)
        daemon.stop()
        done = self.imports()
        self.assertEqual((done.returncode, json.loads(done.stdout)["imported"]), (0, 1), done.stderr)
        daemon.start()
        body = {"model": "mayros", "messages": [{"role": "user", "content": "And now?"}]}
        status, answer = daemon.request("POST", "/v1/chat/completions", body, **{"x-mayros-session-key": "agent:main:main"})
        self.assertEqual(status, 200, answer)
        sent = [one for one in self.upstream.asked[-1]["messages"] if one["role"] not in ("system", "developer")]
        self.assertEqual([one["role"] for one in sent], ["user", "assistant", "tool", "assistant", "user", "assistant", "user"])
        texts = [one["content"] if isinstance(one["content"], str) else one["content"][0]["text"] for one in sent]
        self.assertEqual([*texts[:4], texts[5], texts[6]], [*SAID[:4], SAID[5], "And now?"])
        self.assertIn("[an image (image/png, 8 bytes) was shown here]", texts[4])
        self.assertEqual(sent[1]["tool_calls"][0]["id"], sent[2]["tool_call_id"])
        self.assertNotIn("sig1", json.dumps(sent))
        exported = daemon.mayros("export", "main")
        self.assertEqual([json.loads(line)["message"]["content"] for line in exported.stdout.splitlines()[-2:]], ["And now?", "one two three"])

    def test_killed(self) -> None:
        """After `kill -9` there are whole sessions and nothing else; the next import brings the rest."""
        daemon = self.gateway
        for number in range(MANY):
            lines = Lines(f"s{number}")
            for turn in range(TURNS):
                lines.user(f"Question {turn}.")
                lines.assistant(f"Answer {turn}.")
            folder = self.original.sessions()
            (folder / f"s{number}.jsonl").write_bytes(lines.data)
        index: dict[str, Any] = {f"agent:main:s{number}": {"sessionId": f"s{number}", "updatedAt": UPDATED} for number in range(MANY)}
        (self.original.sessions() / "sessions.json").write_text(json.dumps(index))
        command = [*MAYROS, "import", str(self.original.folder), "--no-config"]
        with subprocess.Popen(command, env=daemon.environ | python_path(), stdout=subprocess.DEVNULL) as process:
            wait_for(lambda: self.count("sessions") >= 10 or process.poll() is not None, 60)
            process.kill()
        found = self.count("sessions")
        self.assertTrue(10 <= found < MANY, found)
        self.assertEqual(self.count("entries"), found * TURNS * 2)
        done = self.imports()
        self.assertEqual(done.returncode, 0, done.stderr)
        told = json.loads(done.stdout)
        self.assertEqual((told["existing"], told["imported"]), (found, MANY - found))
        self.assertEqual((self.count("sessions"), self.count("entries")), (MANY, MANY * TURNS * 2))

    def count(self, table: str) -> int:
        """The rows of a table, as another program sees them; none where there is no store yet."""
        path = self.gateway.state / "mayros.db"
        if not path.exists():
            return 0
        with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=10)) as connection:
            return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
