"""Tools in a real gateway process: files and commands on a disk, over real sockets, with a model server that follows a script."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

from tests.daemon import TOKEN, Daemon, Quick
from tests.test_process import HELLO, Frames, ProcessCase, wait_for

ANYTHING = {"security": "full", "ask": "off"}


class ToolsCase(ProcessCase):
    """A gateway whose agent has a workspace."""

    def start(self, exec_rules: dict[str, Any], kind: type[Daemon] = Quick) -> Daemon:
        """A running gateway with these rules for commands."""
        daemon = self.daemon(kind=kind)
        self.workspace = daemon.folder / "workspace"
        self.workspace.mkdir()
        daemon.config["agents"]["defaults"]["workspace"] = str(self.workspace)
        daemon.config["tools"] = {"exec": exec_rules}
        daemon.start()
        return daemon

    def results(self) -> list[str]:
        """The results that the model server was sent last."""
        return [message["content"] for message in self.upstream.asked[-1]["messages"] if message["role"] == "tool"]


class FileAndCommandTests(ToolsCase):
    """A run that acts."""

    def test_an_http_client_sees_only_text(self) -> None:
        """The run reads a file, writes one and runs a command; its caller gets one answer, streamed or not, without a word of tools."""
        daemon = self.start(ANYTHING)
        (self.workspace / "question.txt").write_text("How much is six times seven?\n")
        for stream in (False, True):
            self.upstream.script = [
                [("read", {"path": "question.txt"})],
                [("write", {"path": "notes/answer.txt", "content": "42\n"}), ("exec", {"command": "echo it is $(cat notes/answer.txt)"})],
                "Forty-two.",
            ]
            status, body = daemon.request("POST", "/v1/chat/completions", {**HELLO, "stream": stream})
            self.assertEqual(status, 200, body)
            self.assertIn(b"Forty-two.", body)
            self.assertIn(b'"finish_reason":"stop"', body)
            self.assertNotIn(b"tool", body)
            self.assertEqual((self.workspace / "notes/answer.txt").read_text(), "42\n")
            read, written, said = self.results()
            self.assertIn("six times seven", read)
            self.assertIn("notes/answer.txt", written)
            self.assertEqual(said, "it is 42")

    def test_what_a_command_may_not_know(self) -> None:
        """Neither the gateway's token nor a provider's key is in its environment; should it print a secret, the model does not see it."""
        daemon = self.start(ANYTHING, Daemon)
        config = (daemon.folder / "mayros.json").as_posix()
        self.upstream.script = [[("exec", {"command": "env"})], [("exec", {"command": f"grep token {config}; cat /proc/$PPID/environ"})], "Done."]
        self.assertEqual(daemon.request("POST", "/v1/chat/completions", HELLO)[0], 200)
        environ, secret = self.results()
        names = {line.partition("=")[0] for line in environ.splitlines()}
        self.assertEqual({name for name in names if name.startswith("MAYROS_")}, {"MAYROS_EXEC_ID"})
        self.assertIn('"auth"', secret)
        self.assertNotIn(TOKEN, environ + secret)


class WorkspaceTests(ToolsCase):
    """What an agent begins with."""

    def test_the_start_makes_workspaces(self) -> None:
        """With starter files, without `mayros setup`; a folder that holds anything stays as it is, and so does one that was made before."""
        daemon = self.daemon()
        mine = daemon.folder / "mine"
        mine.mkdir()
        (mine / "letter.txt").write_text("Dear Ann")
        daemon.config["agents"]["list"] = [{"id": "main"}, {"id": "beta", "workspace": str(mine)}]
        daemon.start()
        made = daemon.state / "workspace"
        self.assertLessEqual({"AGENTS.md", "BOOTSTRAP.md", "USER.md"}, {path.name for path in made.iterdir()})
        self.assertEqual([path.name for path in mine.iterdir()], ["letter.txt"])
        daemon.request("POST", "/v1/chat/completions", HELLO)
        self.assertIn("This workspace is new", self.upstream.asked[-1]["messages"][0]["content"])
        daemon.stop()
        for path in made.glob("*.md"):
            path.unlink()
        daemon.config["agents"]["defaults"].update(skipBootstrap=True)
        daemon.start()
        self.assertEqual([path.name for path in made.iterdir()], [".mayros"])


class CancelTests(ToolsCase):
    """A run that is ended while a command runs."""

    def test_a_client_that_leaves_ends_the_command(self) -> None:
        """Of `sleep`, and of a pipeline with grandchildren, nothing is there after a second; each call has a result. So with an abort."""
        daemon = self.start(ANYTHING)
        for command in ("exec sleep 61.25", "sleep 61.25 | (sleep 61.25 & sleep 61.25) | cat"):
            self.upstream.script = [[("exec", {"command": command})]]
            connection = daemon.stream({**HELLO, "user": "leaver"})
            wait_for(lambda: running("61.25"))
            connection.close()
            wait_for(lambda: not running("61.25"), 1.0)
        status, _ = daemon.request("POST", "/v1/chat/completions", {**HELLO, "user": "leaver"})
        self.assertEqual(status, 200)
        self.assertEqual([text[:9] for text in self.results()], ["[Aborted:", "[Aborted:"])
        self.upstream.script = [[("exec", {"command": "sleep 61.75"})]]
        with connect(f"ws://127.0.0.1:{daemon.port}/") as client:
            frames = Frames(client)
            frames.connect()
            frames.call("chat.send", {"sessionKey": "agent:main:one", "message": "sleep", "idempotencyKey": "r1"})
            wait_for(lambda: running("61.75"))
            self.assertTrue(frames.call("chat.abort", {"sessionKey": "agent:main:one", "runId": "r1"})["aborted"])
            wait_for(lambda: not running("61.75"), 1.0)

    def test_the_stop_of_the_gateway_ends_commands(self) -> None:
        """Also one that was put into the background."""
        daemon = self.start(ANYTHING)
        self.upstream.script = [[("exec", {"command": "sleep 62.25", "background": True})], "It runs."]
        self.assertEqual(daemon.request("POST", "/v1/chat/completions", HELLO)[0], 200)
        self.assertTrue(running("62.25"))
        daemon.stop()
        wait_for(lambda: not running("62.25"), 1.0)

    def test_the_next_start_ends_what_a_killed_gateway_left(self) -> None:
        """A command that ran in the background while the gateway was killed."""
        daemon = self.start(ANYTHING)
        self.upstream.script = [[("exec", {"command": "sleep 62.75; sleep 62.75", "background": True})], "It runs."]
        self.assertEqual(daemon.request("POST", "/v1/chat/completions", HELLO)[0], 200)
        self.assertTrue(running("62.75"))
        daemon.kill()
        daemon.start()
        wait_for(lambda: not running("62.75"))


class ApprovalTests(ToolsCase):
    """A person is asked."""

    def test_asked_by_one_and_granted_by_another(self) -> None:
        """The run of one connection waits for the decision of another; an HTTP caller sees one run."""
        daemon = self.start({"ask": "always"})
        command = [[("exec", {"command": "echo allowed"})], "It was."]
        with connect(f"ws://127.0.0.1:{daemon.port}/") as asking, connect(f"ws://127.0.0.1:{daemon.port}/") as answering:
            asker, person = Frames(asking), Frames(answering)
            asker.connect()
            person.connect("operator.read", "operator.approvals")
            self.upstream.script = [*command]
            asker.call("agent", {"message": "do it", "idempotencyKey": "r1"})
            asked = person.event("exec.approval.requested")
            self.assertEqual((asked["request"]["command"], asked["request"]["cwd"]), ("echo allowed", str(self.workspace)))
            self.assertEqual(len(self.upstream.asked), 1)
            self.assertTrue(person.call("exec.approval.resolve", {"id": asked["id"], "decision": "allow-once"})["ok"])
            self.assertEqual(asker.answer()["result"]["payloads"][0]["text"], "It was.")
            self.assertEqual(self.results(), ["allowed"])

            self.upstream.script = [*command]
            answers: list[tuple[int, bytes]] = []
            caller = threading.Thread(target=lambda: answers.append(daemon.request("POST", "/v1/chat/completions", HELLO)))
            caller.start()
            asked = person.event("exec.approval.requested")
            person.call("exec.approval.resolve", {"id": asked["id"], "decision": "deny"})
            caller.join(10)
            self.assertEqual([(status, json.loads(body)["choices"][0]["message"]["content"]) for status, body in answers], [(200, "It was.")])
            self.assertNotIn("allowed", self.results())

        # Nobody is there any more: nothing runs, and the model is told.
        self.upstream.script = [[("exec", {"command": "touch ran"})], "No."]
        self.assertEqual(daemon.request("POST", "/v1/chat/completions", HELLO)[0], 200)
        self.assertEqual(len(self.results()), 1)
        self.assertFalse((self.workspace / "ran").exists())

    def test_a_caller_that_leaves_withdraws_the_question(self) -> None:
        """The list is empty again."""
        daemon = self.start({"ask": "always"})
        with connect(f"ws://127.0.0.1:{daemon.port}/") as answering:
            person = Frames(answering)
            person.connect("operator.read", "operator.approvals")
            self.upstream.script = [[("exec", {"command": "touch ran"})]]
            connection = daemon.stream(HELLO)
            asked = person.event("exec.approval.requested")
            connection.close()
            self.assertIsNone(person.event("exec.approval.resolved")["decision"])
            refusal = person.call("exec.approval.resolve", {"id": asked["id"], "decision": "allow-once"}, failed=True)
            self.assertIn("unknown approval id", refusal["error"]["message"])
        self.assertFalse((self.workspace / "ran").exists())


def running(word: str) -> bool:
    """Whether a process has this word among its arguments and is not a mere zombie."""
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with contextlib.suppress(OSError):
                if word.encode() in (place / "cmdline").read_bytes():
                    return True
    return False
