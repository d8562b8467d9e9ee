"""`mayros import` of what is damaged, hostile, or in the way: nothing is lost silently, nothing is followed elsewhere, no half session is left."""

from __future__ import annotations

import io
import json
import os
import sqlite3
from contextlib import closing
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.repair import LOST, repair
from mayros.messages import text_of, unpack
from mayros.net.statedir import StateDir
from mayros.storage.original import folder as folder_module
from mayros.storage.original import index as index_module
from mayros.storage.original import lines as lines_module
from mayros.storage.original import speech as speech_module
from mayros.storage.original import turns as turns_module
from mayros.storage.original.folder import Folder
from mayros.storage.original.lines import Transcript, Unfit
from mayros.storage.original.turns import Conversation
from tests.original import UPDATED, Lines, call
from tests.test_import import MAIN, SAID, SID, ImportCase, conversation

GOOD = conversation().data.splitlines(keepends=True)
NOW = UPDATED + 1_000


def read(data: bytes) -> tuple[Transcript, list[bytes]]:
    """The messages of a transcript, earlier ones first."""
    found = Transcript(io.BytesIO(data))
    before, compaction, after = found.divided()
    rows = [*Conversation(found, NOW).rows(before), *Conversation(found, NOW).rows(after, compaction)]
    return found, [row.body.encode() for row in rows]


class Files(ImportCase):
    """Where transcripts may be, and what they may be."""

    def test_elsewhere(self) -> None:
        """No path, link, folder or device leads out of the agent's own folder; the other sessions are imported, and the status is 1."""
        secret = self.home / "secret.jsonl"
        lines = Lines("secret")
        lines.user("Secret.")
        secret.write_bytes(lines.data)
        folder = self.original.sessions()
        self.original.session(MAIN, conversation(), SID)
        (folder / "link.jsonl").symlink_to(secret)
        (folder / "near.jsonl").symlink_to(f"{SID}.jsonl")
        (folder / "folder.jsonl").mkdir()
        os.mkfifo(folder / "pipe.jsonl")
        bad = {
            "absolute": {"sessionFile": str(secret)},
            "climbing": {"sessionFile": "../../../../secret.jsonl"},
            "tricky": {"sessionFile": f"{folder}/../../../../secret.jsonl"},
            "dots": {"sessionFile": f"/x/../agents/main/sessions/{SID}.jsonl"},
            "neighbour": {"sessionFile": "/home/u/.openclaw/agents/other/sessions/x.jsonl"},
            "number": {"sessionFile": 7},
            "control": {"sessionFile": "a\nb.jsonl"},
            "long": {"sessionFile": "x" * 300},
            "id": {"sessionId": "../../secret", "sessionFile": ...},
            "noid": {"sessionId": None},
            "link": {"sessionFile": "link.jsonl"},
            "near": {"sessionFile": "near.jsonl"},
            "folder": {"sessionFile": "folder.jsonl"},
            "pipe": {"sessionFile": "pipe.jsonl"},
            "\u2028key": {},
        }
        for name, entry in bad.items():
            self.original.session(f"agent:main:{name}", None, "x", **entry)
        told = self.imports(status=1)
        self.assertEqual(told["imported"], 1)
        self.assertEqual(len(told["broken"]), len(bad), told["broken"])
        self.assertTrue(all(one.startswith("agents/main/sessions/sessions.json: agent:main:") for one in told["broken"]))
        self.assertNotIn("Secret.", self.mayros("sessions").stdout + "".join(told["broken"]))
        self.assertNotIn(b"Secret.", (self.state / "mayros.db").read_bytes())
        self.assertEqual(self.texts(), SAID)

    def test_folders_that_are_links(self) -> None:
        """A folder of sessions that leads out of DIR is refused; one that stays in it is read."""
        self.original.session(MAIN, conversation(), SID)
        outside = self.home / "outside"
        (self.original.folder / "agents/main/sessions").rename(outside)
        (self.original.folder / "agents/main/sessions").symlink_to(outside)
        told = self.imports(status=1)
        self.assertEqual((told["imported"], len(told["broken"])), (0, 1))
        self.assertIn("symlink", told["broken"][0])
        (self.original.folder / "agents/main/sessions").unlink()
        outside.rename(self.original.folder / "kept")
        (self.original.folder / "agents/main/sessions").symlink_to("../../kept")
        self.assertEqual(self.imports()["imported"], 1)

    def test_moved(self) -> None:
        """The directory may have come from another machine: the end of a path tells whose folder is meant."""
        self.original.session(MAIN, conversation(), SID, sessionFile=f"/home/someone/.mayros/agents/main/sessions/{SID}.jsonl")
        self.assertEqual(self.imports()["messages"], 6)

    def test_index(self) -> None:
        """A sessions.json that is none, or has entries that are none, is told; the transcripts can be imported by themselves."""
        self.original.session(MAIN, conversation(), SID)
        index = self.original.sessions() / "sessions.json"
        for text in ("[1]", "{", '{"a": ' + "[" * 100_000, "", "\xff"):
            index.write_bytes(text.encode("latin-1"))
            told = self.imports(status=1)
            self.assertEqual(told["broken"], ["agents/main/sessions/sessions.json: it is no JSON object of sessions"], text[:10])
            self.assertEqual(told["orphans"], 1)
        index.write_text('{"agent:main:a": 7, "agent:main:b": {"sessionId": [1]}, "": {"sessionId": "x"}, "agent::": {"sessionId": "y"}}')
        told = self.imports("--orphans", status=1)
        self.assertEqual((told["imported"], len(told["broken"])), (1, 4), told["broken"])


class Damage(ImportCase):
    """Lines that cannot be read."""

    def test_told(self) -> None:
        """Each is told with file and line, and without what it says; what is left is imported. A line cut at the end of the file is none of them."""
        data = [*GOOD, b'{"type":"message","id":"q","message":{"role":"us']
        data[3] = b"\0\0\0\0 sk-secret\n"
        data[7] = b'{"type":"message","id":"x","message":{"role":"assistant","content":7,"note":"sk-secret"}}\n'
        self.original.session(MAIN, b"".join(data), SID)
        told = self.imports(status=1)
        name = f"agents/main/sessions/{SID}.jsonl"
        self.assertEqual(told["badLines"], [f"{name}:4: it is no JSON", f"{name}:8: it is no message of a transcript"])
        self.assertEqual((told["imported"], told["broken"]), (1, []))
        self.assertEqual(self.texts(), ["I look.", "hello", "And this?", "A picture."])
        self.assertNotIn("sk-secret", json.dumps(told))
        self.assertEqual(self.imports()["badLines"], [])

    def test_half_characters(self) -> None:
        """A text that was cut inside a character, as JavaScript writes it, keeps the rest of it."""
        lines = Lines(SID)
        lines.user("ok")
        data = lines.data.replace(b"ok", b"a \\ud83d b \\\\ud83d \\ud83d\\ude00")
        self.original.session(MAIN, data, SID)
        self.imports()
        self.assertEqual(self.texts(), ["a ? b \\ud83d \N{GRINNING FACE}"])

    def test_bounds(self) -> None:
        """A line, a file and the number of entries have bounds: the line is told, the session is not taken."""
        for name, value in (("MOST_LINE", 2_000), ("MOST_ENTRIES", 20), ("MOST_BYTES", 8_000)):
            self.patch(lines_module, name, value)
        long = conversation("long")
        long.user("x" * 3_000)
        long.assistant("After it.")
        self.original.session("agent:main:long", long, "long")
        many, large = Lines("many"), Lines("large")
        for number in range(21):
            many.user(str(number))
        for _ in range(10):
            large.user("y" * 1_000)
        self.original.session("agent:main:many", many, "many")
        self.original.session("agent:main:large", large, "large")
        told = self.imports(status=1)
        self.assertEqual(told["badLines"], [f"agents/main/sessions/long.jsonl:{len(long.all) - 1}: it is too long"])
        self.assertEqual(self.texts("long"), [*SAID, "After it."])
        self.assertEqual(len(told["broken"]), 2)
        self.assertIn("more than 20 entries", " ".join(told["broken"]))
        self.patch(lines_module, "MOST_LINES", 10)
        self.original.session("agent:main:blank", b"\n" * 11, "blank")
        self.assertIn("more than 10 lines", " ".join(self.imports(status=1)["broken"]))

    def test_index_bounds(self) -> None:
        """A sessions.json has bounds: how many sessions there are, how much is kept of them, and how deep it goes."""
        for number in range(6):
            self.original.session(f"agent:main:{number}", conversation(f"s{number}"), f"s{number}", label="x" * 50)
        place = "agents/main/sessions/sessions.json: "
        bounds = (
            (folder_module, "MOST_SESSIONS", 5, "more than 5 sessions"),
            (folder_module, "MOST_KEPT", 900, "larger than"),
            (index_module, "MOST_BRACKETS", 20, "brackets"),
        )
        for module, name, value, words in bounds:
            patched = self.patch(module, name, value)
            (broken,) = self.imports(status=1)["broken"]
            self.assertTrue(broken.startswith(place) and words in broken, broken)
            patched.restore()
        self.assertEqual(self.imports()["imported"], 6)

    def test_values_of_an_entry(self) -> None:
        """Only texts and numbers of a sane size are kept of an entry, however large the others are; keys may hold what JSON can say."""
        key = 'agent:main:a"}{,:\\'
        entry = {"label": [[]] * 9_000, "displayName": "x" * 9_000, "thinkingLevel": {"a": "}"}, "spawnDepth": 10**400, "other": ['"]}', {"{": ","}]}
        self.original.session(key, conversation(), SID, **entry)
        (one,) = Folder(str(self.original.folder)).sessions("main")
        self.assertEqual((one.key, one.entry.session_id if one.entry else None), (key, SID))
        assert one.entry is not None
        self.assertEqual((one.entry.label, one.entry.display_name, one.entry.thinking_level), (False, False, False))
        self.assertEqual(self.imports()["imported"], 1)

    def test_long_lines(self) -> None:
        """Images may make a line long; a long text, or very many parts, are what is passed over. What is read of it is a few times its size."""
        for name, value in (("MOST_TEXT", 2_000), ("_SMALL", 1_000), ("MOST_OBJECTS", 20)):
            self.patch(lines_module, name, value)
        lines = Lines(SID)
        lines.user("Seen.", "", {"type": "image", "data": "x" * 9_000, "mimeType": "image/png"})
        lines.user("y" * 2_500)
        lines.assistant(*[{"type": "text", "text": "part " * 6}] * 21)
        lines.user("cut HALF", "", {"type": "image", "data": "x" * 9_000, "mimeType": "image/png"})
        found, messages = read(lines.data.replace(b"HALF", b"\\ud83d"))
        self.assertEqual(found.problems, [(3, "it is too long"), (4, "it is too long")])
        self.assertEqual([text_of(unpack(raw)).splitlines()[0] for raw in messages], ["Seen.", "cut ?"])

    def test_calls_and_results(self) -> None:
        """Calls of a session, and results that wait for the end of their turn, have bounds. That all have one id takes no longer."""
        self.patch(speech_module, "MOST_CALLS", 3_000)
        lines = Lines(SID)
        lines.assistant(*[call("one")] * 3_000)
        _, messages = read(lines.data)
        self.assertEqual(len(messages), 2)
        self.assertEqual(len({made.id for made in unpack(messages[0]).tool_calls or ()}), 3_000)
        lines.assistant(call("two"))
        with self.assertRaisesRegex(Unfit, "more than 3,000 calls"):
            read(lines.data)
        self.patch(turns_module, "MOST_HELD", 1_000)
        lines = Lines(SID)
        lines.assistant(call("a"), call("b"))
        lines.result("a", "x" * 600)
        lines.assistant(call("c"))
        lines.result("c", "x" * 600)
        self.assertEqual(len(read(lines.data)[1]), 5)
        lines.result("b", "x" * 600)
        with self.assertRaisesRegex(Unfit, "results"):
            read(lines.data)

    def test_a_line_without_end(self) -> None:
        """Of a file with holes, which costs nothing and is as large as one likes, no more is read than a transcript may have."""
        self.patch(lines_module, "MOST_LINE", 1_000)
        self.patch(lines_module, "MOST_BYTES", 4 << 20)
        path = self.home / "holes"
        with path.open("wb") as file:
            file.truncate(64 << 20)
        with path.open("rb") as file:
            with self.assertRaisesRegex(Unfit, "larger than"):
                Transcript(file)
            self.assertLess(file.tell(), 8 << 20)

    def test_values_that_make_no_sense(self) -> None:
        """Times, counts and names are checked or left out; the message stays."""
        lines = Lines(SID)
        for number, usage in enumerate(({"input": -5, "output": 1e300}, {"input": "many"}, [], "x", {"cost": {"total": 1e300}}, {"cost": 7}, None)):
            lines.user(f"{number}")
            lines.assistant("Yes.", usage=usage, provider="p" * 5_000, model="\x1b[31m", timestamp=[1, 1e300, "soon", -1, None, {}, True][number])
        found = self.one(lines, updatedAt=1e300, spawnDepth=10**9, label=["x"], thinkingLevel={"a": 1})
        self.assertEqual([one["message"]["content"] for one in found], [text for number in range(7) for text in (str(number), "Yes.")])
        self.assertEqual({(one["meta"].get("provider"), one["meta"].get("model")) for one in found if "meta" in one}, {(None, None)})

    def test_nested(self) -> None:
        """A line nested too deep is a bad line, whether it is read as a whole or only a part of it is."""
        for value in (b"[" * 50_000 + b"]" * 50_000, b'{"a":' * 50_000 + b"1" + b"}" * 50_000):
            arguments = (
                b'{"type":"message","message":{"role":"assistant","content":[{"type":"toolCall","id":"a","name":"b","arguments":' + value + b"}]}}\n"
            )
            found, messages = read(GOOD[0] + GOOD[3] + arguments + value + b"\n")
            self.assertEqual((found.bad, len(messages)), (2, 1))


class AnyDamage(SynchronousTestCase):
    """Whatever happens to a transcript."""

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_valid_part(self, data: Any) -> None:
        """Nothing is raised, and what is left is a valid conversation: every call has its result, right after it."""
        whole = [*GOOD, *_another()]
        most = 4 * len(whole)
        for _ in range(data.draw(st.integers(0, 4))):
            at = data.draw(st.integers(0, len(whole) - 1))
            how = data.draw(st.sampled_from(("cut", "drop", "twice", "swap", "bytes", "join")))
            line = whole[at]
            if how == "cut":
                whole[at] = line[: data.draw(st.integers(0, len(line)))]
            elif how == "drop":
                whole[at] = b""
            elif how == "twice":
                whole[at] = line + line
            elif how == "swap":
                whole[at], whole[0] = whole[0], line
            elif how == "join":
                whole[at] = line.rstrip(b"\n")
            else:
                place = data.draw(st.integers(0, len(line)))
                whole[at] = line[:place] + data.draw(st.binary(max_size=8)) + line[place + data.draw(st.integers(0, 8)) :]
        try:
            _, messages = read(b"".join(whole))
        except Unfit:
            return
        self.assertLessEqual(len(messages), most)
        valid(self, messages)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.one_of(st.binary(max_size=200), st.sampled_from(GOOD)), max_size=30))
    def test_any_lines(self, chosen: list[bytes]) -> None:
        """Lines in any order, any number of times, among anything else."""
        _, messages = read(b"\n".join(chosen))
        valid(self, messages)

    def test_one_line(self) -> None:
        """Whichever line is lost, all others are there."""
        _, whole = read(b"".join(GOOD))
        texts = [text_of(unpack(raw)) for raw in whole]
        self.assertEqual(texts, SAID)
        for at, line in enumerate(GOOD):
            found, messages = read(b"".join([*GOOD[:at], b"{damaged}\n", *GOOD[at + 1 :]]))
            left = {text_of(unpack(raw)) for raw in messages} - {LOST}
            # A call that is lost takes its result with it.
            lost = {text for text in texts if json.dumps(text)[1:].encode() in line} | ({"hello"} if b"toolCall" in line else set())
            self.assertEqual((left, found.bad), (set(texts) - lost, 1), line)
            valid(self, messages)

    def test_parents(self) -> None:
        """Entries that are their own parents, or each other's, end all the same."""
        loop = b'{"type":"message","id":"a","parentId":"%s","message":{"role":"user","content":"x"}}\n'
        _, messages = read(loop % b"a" + loop % b"b" + loop.replace(b'"id":"a"', b'"id":"b"') % b"a")
        self.assertEqual(len(messages), 3)


def _another() -> list[bytes]:
    lines = Lines("x")
    lines.leaf = "00000009"
    lines.user("More?")
    lines.assistant("Two calls.", call("toolu_1"), call("toolu_2"))
    lines.result("toolu_2", "second")
    lines.result("toolu_1", "first")
    lines.add("compaction", summary="In short.", firstKeptEntryId="00000008")
    lines.assistant("Done.")
    return [
        line.replace(b'"id":"0', b'"id":"1').replace(b'"parentId":"0000000', b'"parentId":"1000000')
        for line in lines.data.splitlines(keepends=True)[1:]
    ]


def valid(test: SynchronousTestCase, messages: list[bytes]) -> None:
    """What a prompt gets of these rows is one that a model takes."""
    open_calls: list[str] = []
    seen: set[str] = set()
    for raw in repair(map(msgspec.Raw, messages)):
        message = unpack(raw)
        if message.role == "tool":
            test.assertIn(message.tool_call_id, open_calls)
            open_calls.remove(message.tool_call_id or "")
            continue
        test.assertEqual(open_calls, [])
        open_calls = [made.id for made in message.tool_calls or ()]
        test.assertFalse(seen & set(open_calls))
        seen.update(open_calls)


class InTheWay(ImportCase):
    """What keeps an import from being done."""

    def test_refused(self) -> None:
        """One line that says what to do; nothing is written."""
        old = str(self.original.folder)
        self.assertRefused(self.mayros("import", str(self.home / "nowhere")), 1, "no such directory")
        (self.home / "empty").mkdir()
        self.assertRefused(self.mayros("import", str(self.home / "empty")), 1, "no state directory of Mayros or OpenClaw")
        for state in (old, f"{old}/below", str(self.home)):
            self.assertRefused(self.mayros("import", old, MAYROS_STATE_DIR=state), 1, "MAYROS_STATE_DIR")
        other = self.home / "foreign"
        other.mkdir()
        (other / "openclaw.json").touch()
        self.assertRefused(self.mayros("import", old, MAYROS_STATE_DIR=str(other)), 1, "belongs to another program", "Nothing was imported")
        self.assertRefused(self.mayros("import", old, "--without", "x"), 2, "--without needs --config")
        self.assertEqual(sorted(os.listdir(self.original.folder)), ["openclaw.json"])
        self.assertFalse(self.state.exists())

    def test_running(self) -> None:
        """Refused while a gateway has the state directory, with the words of `mayros restore`; a dry run is not."""
        self.original.session(MAIN, conversation(), SID)
        state = StateDir.open(str(self.state))
        state.lock()
        self.addCleanup(state.unlock)
        words = ("in use by another gateway", f"process {os.getpid()}", "stop it first (mayros gateway stop)")
        self.assertRefused(self.mayros("import", str(self.original.folder)), 1, *words)
        self.assertEqual(self.imports("--dry-run")["imported"], 1)
        self.assertFalse((self.state / "mayros.db").exists())

    def test_store_that_fails(self) -> None:
        """What cannot be written is told; there are whole sessions only, and the next import brings the rest."""
        self.imports()
        for number in range(4):
            self.original.session(f"agent:main:s{number}", conversation(f"s{number}"), f"s{number}", updatedAt=UPDATED - number)
        with closing(sqlite3.connect(self.state / "mayros.db")) as connection, connection:
            # In the middle of the third session.
            connection.execute(
                "CREATE TRIGGER full AFTER INSERT ON entries WHEN (SELECT count(*) FROM entries) > 14 BEGIN SELECT RAISE(FAIL, 'disk full'); END"
            )
        self.assertRefused(self.mayros("import", str(self.original.folder)), 1, "cannot be written", "disk full", "2 sessions were imported before")
        with closing(sqlite3.connect(self.state / "mayros.db")) as connection, connection:
            kept = connection.execute("SELECT session_id, count(*) FROM entries GROUP BY session_id").fetchall()
            self.assertEqual(kept, [("s0", 6), ("s1", 6)])
            self.assertEqual(connection.execute("SELECT count(*) FROM sessions").fetchone(), (2,))
            connection.execute("DROP TRIGGER full")
        told = self.imports()
        self.assertEqual((told["imported"], told["existing"]), (2, 2))
        self.assertEqual([self.texts(f"s{number}") for number in range(4)], [SAID] * 4)
