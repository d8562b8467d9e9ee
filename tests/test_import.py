"""`mayros import`: sessions of the original's state directories, written as it writes them, on real stores in temporary folders."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import Any

import msgspec

from mayros.core.ports import SessionSettings
from mayros.core.repair import LOST
from mayros.core.usage_ports import UsageQuery
from mayros.events import Usage
from mayros.providers.anthropic_messages import turns_of
from mayros.storage.engine import default_url
from mayros.storage.export import open_to_read
from mayros.storage.listing import find, transcript
from mayros.storage.turns import wall_ms
from mayros.storage.usage import spent, sums
from mayros.ws.methods.history import messages
from tests.helpers import settings
from tests.original import BEGAN, STAMP, UPDATED, Lines, Original, call, thought
from tests.test_cli import CommandLine

MAIN, SID = "agent:main:main", "0b3c6a0e-1111-4222-8333-444455556666"


def conversation(session_id: str = SID) -> Lines:
    """Two turns, the first with a tool."""
    lines = Lines(session_id)
    lines.add("model_change", None, provider="anthropic", modelId="claude-opus-4-6")
    lines.add("thinking_level_change", thinkingLevel="high")
    lines.user("What is in a.txt?")
    lines.assistant(thought("I should look.", "sig1"), "I look.", call("toolu_1", path="a.txt"))
    lines.result("toolu_1", "hello")
    lines.add("custom", customType="model-snapshot", data={"x": 1})
    lines.assistant("It says hello.")
    lines.user("And this?", "", {"type": "image", "data": "iVBORw0KGgo=", "mimeType": "image/png"})
    lines.assistant("A picture.")
    return lines


SAID = ["What is in a.txt?", "I look.", "hello", "It says hello.", "And this?", "A picture."]


class ImportCase(CommandLine):
    """A state directory of the original, and a home without one of ours."""

    def setUp(self) -> None:
        super().setUp()
        self.original = Original(self.home / "old")
        self.url = default_url(str(self.state))

    def imports(self, *options: str, status: int = 0) -> dict[str, Any]:
        """Import, and what it says as JSON."""
        done = self.mayros("import", str(self.original.folder), "--json", *options)
        self.assertEqual(done.exit_code, status, done.output)
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def exported(self, key: str = MAIN, *options: str) -> list[dict[str, Any]]:
        """The lines of `mayros export`."""
        done = self.mayros("export", key, *options)
        self.assertEqual(done.exit_code, 0, done.output)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def texts(self, key: str = MAIN, *options: str) -> list[str]:
        """What was said."""
        found = []
        for line in self.exported(key, *options)[1:]:
            content = line["message"].get("content")
            found.append("\n".join(part.get("text", "") for part in content).strip() if isinstance(content, list) else content)
        return found

    def one(self, lines: Lines, **entry: Any) -> list[dict[str, Any]]:
        """Import one session; its messages here, with what is known of them."""
        self.original.session(MAIN, lines, SID, **entry)
        self.imports()
        return self.exported()[1:]

    def contents(self) -> dict[str, Any]:
        """Everything in the original's directory, and when it was changed."""
        return {
            str(path): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() and not path.is_symlink() else None)
            for path in self.original.folder.rglob("*")
        }


class RoundTrips(ImportCase):
    """What was said there is said here."""

    def test_both_names(self) -> None:
        """A directory of either program is imported, with times, counts and settings; nothing in it is changed."""
        for name in ("mayros.json", "openclaw.json"):
            self.original = Original(self.home / name, name)
            self.environ["MAYROS_STATE_DIR"] = str(self.home / f"state-of-{name}")
            entry = {"thinkingLevel": "high", "verboseLevel": "loud", "label": "Files", "providerOverride": "openai", "modelOverride": "gpt-5"}
            self.original.session(MAIN, conversation(), SID, **entry)
            before = self.contents()
            told = self.imports()
            self.assertEqual((told["imported"], told["messages"], told["broken"], told["badLines"]), (1, 6, [], []))
            self.assertEqual(self.contents(), before)
            head, *rest = self.exported()
            self.assertEqual((head["sessionId"], head["label"], head["turns"]), (SID, "Files", 2))
            self.assertEqual((head["inputTokens"], head["outputTokens"]), (3 * 117, 15))
            self.assertEqual((head["createdAt"], head["updatedAt"]), ("2026-02-20T10:00:01.000Z", "2026-02-22T11:33:20.000Z"))
            self.assertEqual(self.texts(), SAID)
            self.assertEqual(rest[0]["timestamp"], "2026-02-20T10:00:01.000Z")
            self.assertEqual([one["parentId"] for one in rest], [None, *(one["id"] for one in rest[:-1])])
            runs = [one["runId"] for one in rest]
            self.assertEqual((len(set(runs[:4])), len(set(runs[4:])), len(set(runs))), (1, 1, 2))

    def test_rows(self) -> None:
        """The list and the settings of a session are those that it had; a word that is none here is not taken."""
        entry = {"thinkingLevel": "high", "verboseLevel": "loud", "execSecurity": "deny", "execHost": "sandbox", "sendPolicy": "deny"}
        self.original.session(MAIN, conversation(), SID, displayName=f"Chat\x1b[31m {'long' * 30}", modelOverride="a/b", **entry)
        self.imports()
        engine = open_to_read(self.url)
        self.addCleanup(engine.dispose)
        with engine.connect() as connection:
            row = find(connection, MAIN)
        assert row is not None
        self.assertEqual((row.created_ms, row.updated_ms, row.stateless, row.last_outcome), (BEGAN, UPDATED, False, "ok"))
        self.assertEqual((row.last_model, row.last_usage), ("claude-opus-4-6", Usage(10, 5, 100, 7, 0, 250_000_000)))
        label = f"Chat[31m {'long' * 30}"[:64]
        kept = SessionSettings(thinking_level="high", label=label, exec_security="deny", send_policy="deny", model="a/b")
        self.assertEqual(row.settings, kept)

    def test_history(self) -> None:
        """`chat.history` shows it as it shows what was said here: texts without what was put before them, calls, kinds of images."""
        self.original.session(MAIN, conversation(), SID)
        self.imports()
        engine = open_to_read(self.url)
        self.addCleanup(engine.dispose)
        with engine.connect() as connection:
            found = transcript(connection, MAIN, 100)
        assert found is not None
        shown = [json.loads(bytes(raw)) for raw in messages(settings(), found.entries)]
        self.assertEqual([one["role"] for one in shown], ["user", "assistant", "toolResult", "assistant", "user", "assistant"])
        self.assertEqual(shown[0]["content"], [{"type": "text", "text": "What is in a.txt?"}])
        self.assertEqual(shown[1]["content"][1], {"type": "toolCall", "id": "toolu_1", "name": "read", "arguments": '{"path":"a.txt"}'})
        self.assertEqual((shown[2]["toolCallId"], shown[1]["stopReason"], shown[3]["stopReason"]), ("toolu_1", "stop", "stop"))
        self.assertEqual((shown[3]["provider"], shown[3]["model"]), ("anthropic", "claude-opus-4-6"))
        self.assertEqual(shown[4]["content"][1], {"type": "image", "mimeType": "image/png", "omitted": True, "bytes": 8})
        self.assertEqual(shown[0]["timestamp"], BEGAN)
        self.assertNotIn(b"iVBOR", (self.state / "mayros.db").read_bytes())

    def test_again(self) -> None:
        """A second import adds nothing, and a session that is here already stays as it is."""
        self.original.session(MAIN, conversation(), SID)
        self.imports()
        longer = conversation()
        longer.user("More.")
        self.original.session(MAIN, longer, SID)
        self.original.session("agent:main:other", conversation("other"), "other")
        told = self.imports()
        self.assertEqual((told["imported"], told["existing"]), (1, 1))
        self.assertEqual((self.texts(), self.texts("other")), (SAID, SAID))
        told = self.imports()
        self.assertEqual((told["imported"], told["existing"], told["messages"]), (0, 2, 0))
        with closing(sqlite3.connect(self.state / "mayros.db")) as connection:
            rows = connection.execute("SELECT target, outcome FROM audit WHERE action = 'import'").fetchall()
        self.assertEqual(rows, [(str(self.original.folder), "done")] * 3)

    def test_usage(self) -> None:
        """What was used counts on its days and for its session, and not against the limits of today."""
        lines = conversation()
        lines.user("Now.")
        lines.time = now = wall_ms()
        lines.assistant("Yes.")
        self.one(lines)
        engine = open_to_read(self.url)
        self.addCleanup(engine.dispose)
        with engine.connect() as connection:
            self.assertEqual(spent(connection, now), {})
            (day,) = sums(connection, ("day", "principal", "session", "model"), UsageQuery("2000-01-01", "2100-01-01"))
        self.assertEqual(day.names, ("2026-02-20", "imported", MAIN, "claude-opus-4-6"))
        self.assertEqual((day.runs, day.turns, day.usage), (2, 3, Usage(30, 15, 300, 21, 0, 750_000_000)))
        self.assertEqual(self.exported()[0]["outputTokens"], 20)

    def test_dry_run(self) -> None:
        """Everything is read and told, nothing is written; the import does what was told."""
        self.original.session(MAIN, conversation(), SID)
        self.original.session("agent:main:bad", conversation("bad"), "bad", sessionFile="/etc/passwd")
        planned = self.imports("--dry-run", status=1)
        self.assertFalse(self.state.exists())
        text = self.mayros("import", str(self.original.folder), "--dry-run").stdout
        self.assertRegex(text, rf"{MAIN} +6 +2\n")
        self.assertIn("Would import: 1 sessions with 6 messages.", text)
        done = self.imports(status=1)
        for same in ("imported", "messages", "broken", "badLines", "sessions"):
            self.assertEqual(done[same], planned[same], same)
        again = self.imports("--dry-run", status=1)
        self.assertEqual((again["imported"], again["existing"]), (0, 1))


class Transcripts(ImportCase):
    """What of a transcript is the conversation."""

    def test_branch(self) -> None:
        """Of a conversation that was edited, the branch of its last entry."""
        lines = Lines(SID)
        first = lines.user("First.")
        lines.assistant("Yes.")
        lines.user("Wrong way.")
        lines.assistant("Oh.")
        lines.add("branch_summary", first, fromId="x", summary="It went wrong.")
        lines.user("Right way.")
        lines.assistant("Good.")
        self.one(lines)
        said = self.texts()
        self.assertEqual((said[0], said[2:]), ("First.", ["Right way.", "Good."]))
        self.assertIn("<summary>\nIt went wrong.\n</summary>", said[1])

    def test_compaction(self) -> None:
        """The summary stands for what was before, what it kept follows it, and what is only in it can still be read."""
        lines = Lines(SID)
        for number in range(3):
            lines.user(f"Question {number}.")
            lines.assistant(f"Answer {number}.")
        lines.add("compaction", summary="Old.", firstKeptEntryId="00000004", tokensBefore=10)
        lines.user("Question 3.")
        kept = lines.leaf
        lines.assistant("Answer 3.")
        lines.add("compaction", summary="They counted to 3.", firstKeptEntryId=kept, tokensBefore=10)
        lines.user("Question 4.")
        self.one(lines)
        said = self.texts()
        self.assertIn("<summary>\nThey counted to 3.\n</summary>", said[0])
        self.assertEqual(said[1:], ["Question 3.", "Answer 3.", "Question 4."])
        whole = self.texts(MAIN, "--earlier")
        self.assertEqual(whole[:6], ["Question 0.", "Answer 0.", "Question 1.", "Answer 1.", "Question 2.", "Answer 2."])
        self.assertEqual(whole[6:], said)

    def test_compaction_of_everything(self) -> None:
        """Where nothing was kept, or what was kept is not there, the summary is followed by what came after it."""
        for first in ({}, {"firstKeptEntryId": "ffffffff"}, {"firstKeptEntryId": 7}):
            self.environ["MAYROS_STATE_DIR"] = str(self.home / f"state{len(first)}{first.get('firstKeptEntryId')}")
            lines = Lines(SID)
            lines.user("Before.")
            lines.add("compaction", summary="Short.", **first)
            lines.user("After.")
            self.original.session(MAIN, lines, SID)
            self.mayros("import", str(self.original.folder))
            self.assertEqual([text for text in self.texts() if "summary" not in text], ["After."])

    def test_first_version(self) -> None:
        """Entries without ids follow one another."""
        lines = Lines(SID, version=1)
        lines.user("One.")
        lines.assistant("Two.")
        lines.all = [json.dumps({key: value for key, value in json.loads(line).items() if key not in ("id", "parentId")}) for line in lines.all]
        self.one(lines)
        self.assertEqual(self.texts(), ["One.", "Two."])

    def test_outcomes(self) -> None:
        """How a turn ended stands beside its last message; one without text is kept and stays out of prompts; another try replaces the first."""
        lines = Lines(SID)
        lines.user("Stopped.")
        lines.assistant("Half an", call("toolu_1"), stopReason="aborted")
        lines.result("toolu_1", "skipped")
        lines.user("Failed.")
        lines.assistant(stopReason="error", errorMessage="429 sk-secret")
        lines.user("Failed, then answered.")
        lines.assistant("Bro", stopReason="error", errorMessage="overloaded")
        lines.assistant("Whole.", stopReason="length")
        lines.user("Stopped by the gateway.")
        lines.assistant("Part", stopReason="aborted")
        injected = {"provider": "mayros", "model": "gateway-injected", "api": "openai-responses", "usage": {}}
        lines.assistant("Part", **injected, mayrosAbort={"aborted": True, "origin": "rpc", "runId": "r1"})
        found = self.one(lines)
        told = [
            (one["message"]["content"], one.get("meta", {}).get("outcome"), one.get("meta", {}).get("finish_reason"))
            for one in found
            if one["message"]["role"] == "assistant"
        ]
        self.assertEqual(told, [("Half an", "aborted", None), ("", "error", None), ("Whole.", "ok", "length"), ("Part", "aborted", None)])
        self.assertEqual(found[-1]["meta"]["origin"], "inject")
        self.assertNotIn("sk-secret", self.mayros("export", "main").stdout)
        self.assertEqual(self.texts()[-2:], ["Stopped by the gateway.", "Part"])

    def test_calls(self) -> None:
        """Each call has an id of its own and its own result; results of no call go, and a call at the end that has none gets one that says so."""
        lines = Lines(SID)
        lines.result("toolu_0", "of nothing")
        for number in range(2):
            lines.user(f"Look {number}.")
            lines.assistant(call("call_1|fc_9", n=number), call("no id here!", "list"))
            lines.result("call_1|fc_9", f"result {number}")
            lines.result("no id here!", f"list {number}")
        lines.result("call_1|fc_9", "again")
        lines.assistant({"type": "toolCall", "id": "text", "name": "read", "arguments": "[broken"}, {"type": "toolCall", "id": "", "name": "nothing"})
        found = [one["message"] for one in self.one(lines)]
        calls = [made for one in found for made in one.get("tool_calls", ())]
        results = [(one["tool_call_id"], one["content"]) for one in found if one["role"] == "tool"]
        ids = [one["id"] for one in calls]
        self.assertEqual(len(set(ids)), 5)
        self.assertEqual(results, list(zip(ids, ["result 0", "list 0", "result 1", "list 1", LOST], strict=True)))
        self.assertEqual([one["function"]["arguments"] for one in calls], ['{"n":0}', "{}", '{"n":1}', "{}", "[broken"])

    def test_thinking(self) -> None:
        """Signed thinking goes back to the model that thought it, in its place, and to no other."""
        lines = Lines(SID)
        lines.user("Look.")
        redacted = {"type": "thinking", "thinking": "[Reasoning redacted]", "thinkingSignature": "cipher", "redacted": True}
        lines.assistant(thought("A", "sig1"), "One.", redacted, call("toolu_1"), "Two.", {"type": "thinking", "thinking": "unsigned"})
        lines.result("toolu_1", "x")
        raw = [msgspec.Raw(json.dumps(one["message"]).encode()) for one in self.one(lines)]
        said = turns_of(raw, "anthropic/claude-opus-4-6", False)[1]["content"]
        self.assertEqual(said[0], {"type": "thinking", "thinking": "A", "signature": "sig1"})
        self.assertEqual(said[2], {"type": "redacted_thinking", "data": "cipher"})
        self.assertEqual([one["type"] for one in said], ["thinking", "text", "redacted_thinking", "tool_use", "text"])
        self.assertEqual([one["text"].strip() for one in said if one["type"] == "text"], ["One.", "Two."])
        self.assertEqual([one["type"] for one in turns_of(raw, "anthropic/other", False)[1]["content"]], ["text", "tool_use"])
        other = Lines("other")
        other.assistant(thought("A", "sig1"), call("c"), api="openai-responses", provider="openai", model="gpt-5")
        self.original.session("agent:main:other", other, "other")
        self.imports()
        self.assertNotIn("sig1", self.mayros("export", "other").stdout)

    def test_what_users_say(self) -> None:
        """Only what was put before a text goes; what looks like it further on stays; other kinds of entries are what the user said."""
        block = "Sender (untrusted metadata):\n```json\n{}\n```\n\n"
        lines = Lines(SID)
        mine = "Conversation info (untrusted metadata): mine"
        for text in (block + block + STAMP + "hi", f"{STAMP}{STAMP}hi", f"hi {STAMP}.", mine, "[Fri] hi", block):
            lines.message("user", text)
        lines.add("custom_message", customType="note", content=[{"type": "text", "text": "A note."}], display=False)
        lines.add("label", targetId="x", label="y")
        lines.message("bashExecution", None, command="ls", output="a.txt", exitCode=0)
        lines.message("bashExecution", None, command="env", output="secret", excludeFromContext=True)
        lines.message("nobody", "what is this")
        self.one(lines)
        expected = ["hi", f"{STAMP}hi", f"hi {STAMP}.", mine, "[Fri] hi", "A note.", "I ran `ls`:\n\na.txt"]
        self.assertEqual(self.texts(), expected)


class Keys(ImportCase):
    """Which session here a session there is."""

    def test_names(self) -> None:
        """Agents by their folders, `main` as it is called here, anything else as it was."""
        self.write({"session": {"mainKey": "home"}, "agents": {"list": [{"id": "main"}]}})
        keys = ("main", "agent:beta:main", "global", "agent:main:cron:job", "agent:main:telegram:group:-1:topic:2")
        for number, key in enumerate(keys):
            self.original.session(key, conversation(f"s{number}"), f"s{number}", "My Agent!" if key == "main" else "main")
        told = self.imports()
        names = sorted(one["key"] for one in told["sessions"])
        expected = ("agent:beta:home", "agent:main:cron:job", "agent:main:global", "agent:main:telegram:group:-1:topic:2", "agent:my-agent:home")
        self.assertEqual(names, list(expected))
        self.assertEqual(sorted(note.partition(" is not")[0] for note in told["notes"]), ["the agent beta", "the agent my-agent"])

    def test_one_session_twice(self) -> None:
        """Of two entries for one session the newer is it; the other has its id for a key. Entries that share a transcript have a copy each."""
        self.original.session("agent:main:main", conversation("new"), "new", updatedAt=UPDATED + 5)
        older = Lines("older")
        older.user("Older.")
        self.original.session("main", older, "older", updatedAt=UPDATED)
        self.original.session("agent:main:cron:job:run:new", None, "new", updatedAt=UPDATED - 5)
        self.assertEqual(self.imports()["imported"], 3)
        self.assertEqual((self.texts(), self.texts("imported:older"), self.texts("cron:job:run:new")), (SAID, ["Older."], SAID))
        self.assertNotEqual(self.exported("main")[0]["sessionId"], self.exported("cron:job:run:new")[0]["sessionId"])
        self.assertEqual(self.imports()["existing"], 3)

    def test_labels(self) -> None:
        """A label names one session: the second goes without, and it is told."""
        for number in range(2):
            self.original.session(f"agent:main:s{number}", conversation(f"s{number}"), f"s{number}", label="Mine", updatedAt=UPDATED - number)
        told = self.imports()
        self.assertEqual(told["notes"], ["agent:main:s1: another session has its label 'Mine'"])
        self.assertEqual((self.exported("s0")[0]["label"], self.exported("s1")[0]["label"]), ("Mine", None))

    def test_empty(self) -> None:
        """A session without messages is imported for what was set for it, and else passed over; that is no failure."""
        self.original.session("agent:main:nothing", None, "gone")
        self.original.session("agent:main:blank", b"", "blank", sessionFile=...)
        self.original.session("agent:main:set", None, "gone2", thinkingLevel="low")
        told = self.imports()
        self.assertEqual((told["imported"], told["empty"]), (1, 2))
        self.assertEqual(self.exported("set")[0]["turns"], 0)

    def test_orphans(self) -> None:
        """Transcripts that no entry names are counted, and imported where that is asked; those that were reset or deleted are not."""
        self.original.session(MAIN, conversation(), SID)
        folder = self.original.sessions()
        for name in ("lost.jsonl", "old.jsonl.reset.2026-01-01", "gone.jsonl.deleted.2026", "sessions.json.bak.1", ".hidden.jsonl"):
            lines = Lines("lost")
            lines.user("Lost.")
            (folder / name).write_bytes(lines.data)
        self.assertEqual(self.imports()["orphans"], 1)
        told = self.imports("--orphans")
        self.assertEqual((told["imported"], told["existing"], told["orphans"]), (1, 1, 0))
        self.assertEqual(self.texts("imported:lost"), ["Lost."])
