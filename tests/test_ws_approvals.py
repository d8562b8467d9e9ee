"""Approvals over the WebSocket: who is asked, who answers, what is kept; and `mayros approvals`."""

from __future__ import annotations

from typing import Any

import click
from click.testing import CliRunner
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mayros.cli.agent import Reply
from mayros.config.schema import ToolsExec
from mayros.core.exec_ports import AllowedExec, ExecPolicy
from mayros.core.permission import ExecPermission
from mayros.core.tool_ports import ToolContext
from mayros.errors import ToolFailed
from mayros.storage.approvals import SqlExecRules
from tests.helpers import FakeTool, chat, post
from tests.test_approvals import GIT, RM, FakeContext, command
from tests.test_cli import CommandLine
from tests.test_storage import StoreTestCase
from tests.test_ws import ADMIN, READ, WRITE, FakeLink, World, agent_params, ask, tell

APPROVALS = "operator.approvals"


class WholeRunTests(SynchronousTestCase):
    """A model calls a tool that needs an approval; the run is one run for whoever started it."""

    def setUp(self) -> None:
        self.tool = FakeTool("exec", lambda arguments, context: self.work(arguments["command"], context), read_only=False)
        self.world = World(self, {"agents": {"defaults": {"timeoutSeconds": 30, "maxConcurrent": 1}}}, tools=[self.tool])
        self.permission = ExecPermission(self.world.exec_rules, self.world.approvals, self.world.harness.sessions)
        self.done: list[str] = []
        self.approver, self.link = self.world.connect(APPROVALS)

    async def work(self, text: str, context: ToolContext) -> str:
        """What stands for the command: it is done when the permission is there."""
        await self.permission.allow(command(text, session=str(context.turn.session)), context)
        self.done.append(text)
        return f"{text} is done"

    def decide(self, decision: str) -> None:
        """The approver answers what he was asked."""
        approval_id = self.link.events("exec.approval.requested")[0]["payload"]["id"]
        tell(self.approver, "exec.approval.resolve", {"id": approval_id, "decision": decision})

    def result(self) -> str:
        """What the model was told of its call."""
        return str(self.world.provider.seen[-1]["content"])

    def test_asked_by_one_and_granted_by_another(self) -> None:
        """The caller has one run and one answer; what the person needs is not counted as the run's time."""
        caller, answers = self.world.connect(READ, WRITE)
        tell(caller, "agent", agent_params(), id="a")
        self.world.provider.call(("exec", {"command": "git status"}))
        self.world.clock.advance(100)
        self.assertEqual([], self.done)
        self.decide("allow-once")
        self.assertEqual(["git status"], self.done)
        self.assertIn("git status is done", self.result())
        self.world.provider.say("All clean.")
        self.world.provider.stop()
        final = [frame for frame in answers.take() if frame.get("id") == "a"][-1]
        self.assertEqual("All clean.", final["payload"]["result"]["payloads"][0]["text"])

    def test_others_go_on_meanwhile(self) -> None:
        """A run that waits for a person has given its slot to the next one."""
        caller, answers = self.world.connect(READ, WRITE)
        tell(caller, "agent", agent_params(sessionKey="agent:main:a"))
        self.world.provider.call(("exec", {"command": "git status"}))
        tell(caller, "agent", agent_params(sessionKey="agent:main:b", idempotencyKey="k-2"), id="b")
        self.world.provider.say("Quick.")
        self.world.provider.stop()
        self.assertTrue([frame for frame in answers.take() if frame.get("id") == "b"][-1]["ok"])
        self.decide("deny")
        self.assertIn("denied", self.result())
        self.assertEqual([], self.done)

    def test_an_http_client_sees_one_run(self) -> None:
        """It waits for its answer and hears nothing of the approval; when it leaves, the question is withdrawn."""
        harness = self.world.harness
        client = harness.dial(post(chat()))
        self.world.provider.call(("exec", {"command": "git status"}))
        harness.settle(client)
        self.decide("allow-once")
        self.world.provider.say("Done.")
        self.world.provider.stop()
        harness.settle(client)
        answer = client.answer()
        self.assertEqual((200, "Done."), (answer.status, answer.json["choices"][0]["message"]["content"]))
        leaving = harness.dial(post(chat()))
        self.world.provider.call(("exec", {"command": "git status"}))
        harness.settle(leaving)
        self.assertEqual(1, len(self.world.approvals.pending()))
        leaving.leave()
        harness.settle()
        self.assertEqual((), self.world.approvals.pending())
        self.assertEqual(1, len(self.done))

    def test_abort(self) -> None:
        """A run that is aborted while it waits withdraws its question and ends at once."""
        caller, answers = self.world.connect(READ, WRITE)
        tell(caller, "agent", agent_params(), id="a")
        self.world.provider.call(("exec", {"command": "git status"}))
        self.assertEqual(1, len(self.link.events("exec.approval.requested")))
        tell(caller, "chat.abort", {"sessionKey": "agent:main:main"}, id="x")
        self.world.clock.advance(0)
        self.assertEqual([None], [frame["payload"]["decision"] for frame in self.link.events("exec.approval.resolved")])
        self.assertFalse([frame for frame in answers.take() if frame.get("id") == "a"][-1]["ok"])
        self.assertEqual([], self.done)


class RunTests(SynchronousTestCase):
    """A run asks; connections answer."""

    def setUp(self) -> None:
        self.world = World(self)
        self.permission = ExecPermission(self.world.exec_rules, self.world.approvals, self.world.harness.sessions)

    def call(self, **rules: Any) -> Deferred[None]:
        """The tool of a run asks whether its command may run."""
        return Deferred.fromCoroutine(self.permission.allow(command(env=(("A", "1"),)), FakeContext(ToolsExec(**rules))))

    def test_asked_here_and_answered_there(self) -> None:
        """All who may answer are asked; one of them does, and all of them hear of it. Who may not, hears nothing."""
        talker, talks = self.world.connect(READ, WRITE)
        _, hears = self.world.connect(APPROVALS, protocol=4)
        approver, answers = self.world.connect(APPROVALS)
        call = self.call()
        (asked,) = answers.events("exec.approval.requested")
        request = {
            "command": "git status", "cwd": "/ws", "host": "gateway", "security": "allowlist", "ask": "on-miss", "agentId": "main",
            "resolvedPath": GIT, "sessionKey": "agent:main:main", "env": {"A": "1"}, "always": [GIT],
        }  # fmt: skip
        approval_id = asked["payload"]["id"]
        self.assertEqual({"id": approval_id, "request": request, "createdAtMs": 1_000_000, "expiresAtMs": 1_120_000}, asked["payload"])
        self.assertEqual([asked["payload"]], ask(approver, answers, "exec.approval.list")["payload"])
        refused = ask(talker, talks, "exec.approval.resolve", {"id": approval_id, "decision": "allow-once"})
        self.assertEqual("missing scope: operator.approvals", refused["error"]["message"])
        self.assertNoResult(call)
        answers.take()
        tell(approver, "exec.approval.resolve", {"id": approval_id, "decision": "allow-once"})
        self.successResultOf(call)
        told = {"id": approval_id, "decision": "allow-once", "resolvedBy": "cli", "ts": 1_000_000}
        event, answer = answers.take()
        self.assertEqual(told, event["payload"])
        self.assertEqual({"ok": True}, answer["payload"])
        self.assertEqual(["exec.approval.requested", "exec.approval.resolved"], [frame["event"] for frame in hears.take()])
        self.assertEqual([], talks.events("exec.approval.resolved"))
        self.assertEqual([], ask(approver, answers, "exec.approval.list")["payload"])

    def test_always(self) -> None:
        """The answer says what is on the list now, and the list has it."""
        admin, link = self.world.connect(ADMIN)
        call = self.call()
        approval_id = link.events("exec.approval.requested")[0]["payload"]["id"]
        self.assertEqual(
            {"ok": True, "added": [GIT]}, ask(admin, link, "exec.approval.resolve", {"id": approval_id, "decision": "allow-always"})["payload"]
        )
        self.successResultOf(call)
        (entry,) = ask(admin, link, "exec.approvals.get")["payload"]["file"]["agents"]["main"]["allowlist"]
        self.assertEqual((GIT, "git status"), (entry["pattern"], entry["lastUsedCommand"]))
        self.successResultOf(self.call())

    def test_nobody_who_may_answer(self) -> None:
        """A connection without the scope, or one that has left, cannot answer: the fallback decides at once."""
        self.world.connect(READ, WRITE)
        approver, _ = self.world.connect(APPROVALS)
        approver.closed()
        self.assertIn("nobody is connected", str(self.failureResultOf(self.call(), ToolFailed).value))

    def test_too_late(self) -> None:
        """A question that expired, or whose run was cancelled, is told of as resolved without a decision."""
        approver, link = self.world.connect(APPROVALS)
        for end in (lambda call: self.world.clock.advance(120), lambda call: call.cancel()):
            call = self.call()
            approval_id = link.events("exec.approval.requested")[0]["payload"]["id"]
            end(call)
            self.failureResultOf(call)
            (told,) = link.events("exec.approval.resolved")
            self.assertEqual((approval_id, None, None), tuple(told["payload"][name] for name in ("id", "decision", "resolvedBy")))
            error = ask(approver, link, "exec.approval.resolve", {"id": approval_id, "decision": "allow-once"})["error"]
            self.assertEqual(("INVALID_REQUEST", "unknown approval id"), (error["code"], error["message"]))

    def test_the_slow_miss_it(self) -> None:
        """A client that does not keep up is not sent more; it finds what waits in the list."""
        approver, link = self.world.connect(APPROVALS)
        link.buffered = 1 << 20
        self.assertNoResult(self.call())
        self.assertEqual([], link.take())
        link.buffered = 0
        self.assertEqual(1, len(ask(approver, link, "exec.approval.list")["payload"]))


class MethodTests(SynchronousTestCase):
    """Programs that ask for approvals themselves."""

    def setUp(self) -> None:
        self.world = World(self)
        self.session, self.link = self.world.connect(APPROVALS)

    def payloads(self, link: FakeLink | None = None) -> list[Any]:
        return [frame["payload"] for frame in (link or self.link).take() if frame["type"] == "res"]

    def test_two_phases(self) -> None:
        """First that it was asked, then the decision, under the same id; another client may wait for it too."""
        times = {"createdAtMs": 1_000_000, "expiresAtMs": 1_005_000}
        tell(self.session, "exec.approval.request", {"command": "ls", "id": "mine", "timeoutMs": 5_000, "twoPhase": True})
        self.assertEqual([{"status": "accepted", "id": "mine", **times}], self.payloads())
        other, link = self.world.connect(APPROVALS)
        tell(other, "exec.approval.waitDecision", {"id": "mine"})
        self.assertEqual([], self.payloads(link))
        tell(other, "exec.approval.resolve", {"id": "mine", "decision": "deny"})
        for answers in (self.payloads(), self.payloads(link)):
            self.assertIn({"id": "mine", "decision": "deny", **times}, answers)
        self.world.clock.advance(14)
        self.assertEqual("deny", ask(self.session, self.link, "exec.approval.waitDecision", {"id": "mine"})["payload"]["decision"])
        self.world.clock.advance(1)
        self.assertEqual("unknown approval id", ask(self.session, self.link, "exec.approval.waitDecision", {"id": "mine"})["error"]["message"])

    def test_one_phase_and_no_answer(self) -> None:
        """One answer, without a decision when the time is up. It does not end when the one who asked leaves."""
        tell(self.session, "exec.approval.request", {"command": "ls"})
        self.assertEqual([], self.payloads())
        self.world.clock.advance(120)
        (answer,) = self.payloads()
        self.assertIsNone(answer["decision"])
        tell(self.session, "exec.approval.request", {"command": "ls"})
        self.session.closed()
        self.assertEqual(1, len(self.world.approvals.pending()))

    def test_refusals(self) -> None:
        """In the words that clients know."""
        tell(self.session, "exec.approval.request", {"command": "ls", "id": "mine"})
        self.link.take()
        for method, params, text in (
            ("exec.approval.request", {"command": "ls", "id": "mine"}, "approval id already pending"),
            ("exec.approval.resolve", {"id": "mine", "decision": "perhaps"}, "invalid decision"),
            ("exec.approval.resolve", {"id": "other", "decision": "deny"}, "unknown approval id"),
            ("exec.approval.request", {}, "invalid exec.approval.request params: must have required property 'command'"),
            ("exec.approval.request", {"command": "x" * 20_001}, "must NOT have more than 20000 characters"),
            ("exec.approval.request", {"command": "ls", "timeoutMs": 0}, "at /timeoutMs: must be >= 1"),
            ("exec.approvals.get", {}, "missing scope: operator.admin"),
        ):
            self.assertIn(text, ask(self.session, self.link, method, params)["error"]["message"])


class RulesTests(SynchronousTestCase):
    """exec.approvals.get and set."""

    def setUp(self) -> None:
        self.world = World(self)
        self.session, self.link = self.world.connect(ADMIN)

    def get(self) -> Any:
        return ask(self.session, self.link, "exec.approvals.get")["payload"]

    def set(self, file: Any, **more: Any) -> Any:
        return ask(self.session, self.link, "exec.approvals.set", {"file": {"version": 1, **file}, **more})

    def test_there_and_back(self) -> None:
        """What was set is what is got, in the shape of other gateways of this protocol, and holds."""
        empty = self.get()
        self.assertEqual((False, {"version": 1, "defaults": {}, "agents": {}}), (empty["exists"], empty["file"]))
        self.assertEqual("/nonexistent/mayros.db", empty["path"])
        file = {
            "defaults": {"security": "allowlist", "askFallback": "deny", "autoAllowSkills": True},
            "agents": {
                "*": {"ask": "always"},
                "main": {"security": "full", "allowlist": [{"id": "e1", "pattern": GIT, "lastUsedAt": 5}, {"pattern": "~/bin/*"}]},
            },
        }
        answer = self.set({**file, "socket": {"path": "/x"}})["payload"]
        got = self.get()
        self.assertEqual(answer, got)
        self.assertTrue(got["exists"])
        allowlist = got["file"]["agents"]["main"]["allowlist"]
        self.assertEqual({"id": "e1", "pattern": GIT, "lastUsedAt": 5}, allowlist[0])
        self.assertEqual(36, len(allowlist[1].pop("id")))
        self.assertEqual({"version": 1, **file}, got["file"])
        self.assertEqual(ExecPolicy("full", "always", "deny", True), self.world.exec_rules.policy("main"))

    def test_two_editors(self) -> None:
        """Whoever read an older state must read again; the first write needs no hash."""
        first = self.set({"agents": {"main": {"ask": "always"}}})["payload"]["hash"]
        self.assertIn("base hash required", self.set({})["error"]["message"])
        second = self.set({"agents": {"main": {"ask": "off"}}}, baseHash=first)["payload"]["hash"]
        self.assertIn("changed since last load", self.set({}, baseHash=first)["error"]["message"])
        self.assertEqual(second, self.get()["hash"])
        self.assertFalse(self.set({}, baseHash=second)["payload"]["exists"])

    def test_refusals(self) -> None:
        """What cannot be meant is refused by name, and nothing is changed."""
        for file, text in (
            ({"version": 2}, "/file/version"),
            ({"agents": {"../x": {}}}, "is no agent id"),
            ({"agents": {"main": {}, "MAIN": {}}}, "twice"),
            ({"agents": {"main": {"securty": "deny"}}}, "unexpected property 'securty'"),
            ({"agents": {"main": {"security": "none"}}}, "allowed values"),
            ({"agents": {"main": {"allowlist": [{"pattern": "git"}]}}}, "absolute path"),
            ({"agents": {"main": {"allowlist": [{"id": "a", "pattern": "/a"}, {"id": "a", "pattern": "/b"}]}}}, "two allowlist entries"),
            ({"agents": {"main": {"allowlist": [{"pattern": "/a"}] * 1_001}}}, "at most 1000"),
            ({"defaults": {"allowlist": []}}, "unexpected property 'allowlist'"),
        ):
            self.assertIn(text, self.set(file)["error"]["message"])
        self.assertFalse(self.get()["exists"])

    def test_a_store_that_fails(self) -> None:
        """The client is told, and the rules are as before."""
        self.get()
        self.world.rules_store.broken = True
        error = self.set({"agents": {"main": {"security": "full"}}})["error"]
        self.assertEqual(("UNAVAILABLE", True), (error["code"], error["retryable"]))
        self.assertFalse(self.get()["exists"])


class StoreTests(StoreTestCase):
    """The rules on a real SQLite file."""

    async def test_there_and_back(self) -> None:
        """What was written is there after a restart, lists in their order."""
        rules = SqlExecRules(self.database)
        first, second = AllowedExec("b", "main", GIT), AllowedExec("a", "*", "~/bin/*", 5, "x", "/home/x")
        await rules.replace([first, second], {"": ExecPolicy(security="deny"), "main": ExecPolicy(ask_fallback="full", auto_allow_skills=True)})
        third, used = AllowedExec("c", "main", RM), AllowedExec("b", "main", GIT, 9, "git", GIT)
        await rules.save(third)
        await rules.save(used)
        entries, policies = await SqlExecRules(self.open().database).load()  # type: ignore[attr-defined]
        self.assertEqual(([used, second, third], ["", "main"]), (list(entries), list(policies)))
        self.assertEqual(ExecPolicy(None, None, "full", True), policies["main"])
        await rules.replace([], {})
        self.assertEqual(([], {}), await rules.load())


class CommandTests(CommandLine):
    """mayros approvals."""

    def asked(self, **changes: Any) -> dict[str, Any]:
        request = {"command": "git status", "cwd": "/ws", "agentId": "main", "sessionKey": "agent:main:main", "env": {"A": "1"}, **changes}
        return {"id": "1a2b3c4d", "request": request, "createdAtMs": 1, "expiresAtMs": 2}

    def test_list(self) -> None:
        """All that is needed to judge a command."""
        self.gateway.finals["exec.approval.list"] = [self.asked()]
        result = self.mayros("approvals", "list")
        self.assertEqual(0, result.exit_code, result.output)
        for text in ("1a2b3c4d", "main", "agent:main:main", "/ws", "git status", "A=1", "0s"):
            self.assertIn(text, result.output)
        self.gateway.finals["exec.approval.list"] = []
        self.assertEqual("No command waits for an approval.\n", self.mayros("approvals", "list").output)

    def test_nothing_is_hidden(self) -> None:
        """What a terminal would obey, or would not show, is written out: a command is judged by what it says."""
        self.gateway.finals["exec.approval.list"] = [self.asked(command="ls\n\x1b[2Krm   -rf \u202e/ \\n")]
        self.assertIn("ls\\n\\x1b[2Krm\\x20\\x20 -rf \\u202e/ \\\\n", self.mayros("approvals", "list").output)

    def test_allow(self) -> None:
        """Once, or always; then one is told what that means."""
        self.gateway.final = {"ok": True}
        self.assertEqual("The command 1a2b3c4d may run.\n", self.mayros("approvals", "allow", "1a2b3c4d").output)
        self.gateway.final = {"ok": True, "added": [GIT]}
        self.assertIn(GIT, self.mayros("approvals", "allow", "1a2b3c4d", "--always").output)
        self.gateway.final = {"ok": True, "added": []}
        self.assertIn("Nothing was put on", self.mayros("approvals", "allow", "1a2b3c4d", "--always").output)
        decisions = [params["decision"] for _, params in self.gateway.methods()]
        self.assertEqual(["allow-once", "allow-always", "allow-always"], decisions)

    def test_who_started_the_run_is_told(self) -> None:
        """`mayros agent` says what is waited for, and how to answer; not for other conversations."""
        events: list[tuple[str, Any]] = []
        for session in ("agent:main:main", "agent:main:b"):
            events.append(("agent", {"runId": "r", "sessionKey": "agent:main:main", "stream": "lifecycle", "data": {}}))
            events.append(("exec.approval.requested", self.asked(sessionKey=session, command=f"git {session}\n")))
        runner = CliRunner()

        @click.command()
        def watching() -> None:
            heard = Reply(True, False).watch("r")
            for name, payload in events:
                heard(name, payload)

        said = runner.invoke(watching).stderr
        self.assertIn("git agent:main:main\\n", said)
        self.assertIn("mayros approvals allow 1a2b3c4d", said)
        self.assertNotIn("agent:main:b", said)

    def test_deny(self) -> None:
        """As text, or as JSON."""
        self.gateway.final = {"ok": True}
        self.assertEqual("The command x is denied.\n", self.mayros("approvals", "deny", "x").output)
        self.assertEqual('{"ok": true}\n', self.mayros("approvals", "deny", "x", "--json").output)
        self.assertEqual(("exec.approval.resolve", {"id": "x", "decision": "deny"}), self.gateway.methods()[0])
