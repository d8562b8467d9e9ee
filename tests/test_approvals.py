"""Whether a command may run: the rules, the list of allowed programs, and questions to a person. One clock, a store in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, get_args

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mayros.config.schema import ToolsExec
from mayros.core.approvals import KEEP_SECONDS, MAX_PENDING, Approval, Approvals, Question, digest
from mayros.core.audit_ports import AuditEntry
from mayros.core.exec_ports import AllowedExec, ExecAsk, ExecPolicy, ExecRequest, ExecSecurity
from mayros.core.exec_rules import ANY_AGENT, DEFAULTS, ExecRules, Layer, matches, strictest, verdict
from mayros.core.keys import SessionKey
from mayros.core.permission import ExecPermission
from mayros.core.ports import Principal, SessionSettings, Turn
from mayros.core.routing import Agent
from mayros.core.session_ports import SessionRow
from mayros.errors import InvalidRequest, StorageUnavailable, ToolFailed, Unavailable

GIT, RM, PYTHON = "/usr/bin/uptime", "/usr/bin/rm", "/usr/bin/python3.11"
ORDER = ("allow", "ask", "refuse")
layers = st.builds(Layer, st.sampled_from(get_args(ExecSecurity)), st.sampled_from(get_args(ExecAsk)))


class FakeRulesStore:
    """The kept rules in memory. `broken` makes everything fail."""

    def __init__(self) -> None:
        self.entries: dict[str, AllowedExec] = {}
        self.policies: dict[str, ExecPolicy] = {}
        self.audit: list[AuditEntry] = []
        self.broken = False

    def _check(self) -> None:
        if self.broken:
            raise StorageUnavailable

    async def load(self) -> tuple[Sequence[AllowedExec], Mapping[str, ExecPolicy]]:
        self._check()
        return list(self.entries.values()), dict(self.policies)

    async def save(self, entry: AllowedExec) -> None:
        self._check()
        self.entries[entry.id] = entry

    async def replace(self, entries: Sequence[AllowedExec], policies: Mapping[str, ExecPolicy], audit: AuditEntry | None = None) -> None:
        self._check()
        if audit is not None:
            self.audit.append(audit)
        self.entries, self.policies = {entry.id: entry for entry in entries}, dict(policies)


class FakeAudience:
    """People who are there, or not."""

    def __init__(self) -> None:
        self.there = True
        self.asked: list[Approval] = []
        self.told: list[tuple[str, str | None]] = []

    def present(self, session: str) -> bool:
        return self.there

    def requested(self, approval: Approval) -> None:
        self.asked.append(approval)

    def resolved(self, approval: Approval, now_ms: int) -> None:
        self.told.append((approval.id, approval.decision))


class FakeSessions:
    """What clients have set for the one session."""

    def __init__(self) -> None:
        self.settings = SessionSettings()

    async def get(self, key: str) -> SessionRow:
        return SessionRow(key, "main", "s", 0, 0, 0, False, self.settings, 0, 0)


class FakeContext:
    """The run that a call belongs to. `paused` is how many of its waits are going on."""

    def __init__(self, rules: ToolsExec, stateless: bool = False) -> None:
        agent = Agent("main", None, None, "/ws", (), "", {}, 600.0, 20_000, 150_000, None, None, exec=rules)
        self.turn = Turn("r-1", agent, SessionKey("main", "main"), stateless, (), "chat")
        self.principal = Principal("owner", frozenset())
        self.call_id, self.images = "call-1", False
        self.said: list[str] = []
        self.paused = 0

    def update(self, text: str) -> None:
        self.said.append(text)

    async def waiting(self, answer: Awaitable[Any]) -> Any:
        self.paused += 1
        try:
            return await answer
        finally:
            self.paused -= 1


def command(text: str = "git status", resolved: tuple[str, ...] = (GIT,), **changes: Any) -> ExecRequest:
    """A command that the tool understood."""
    values: dict[str, Any] = {"cwd": "/ws", "env": (), "agent_id": "main", "session": "agent:main:main", "analysed": True, **changes}
    return ExecRequest(text, resolved=resolved, **values)


class PermissionTests(SynchronousTestCase):
    """The port, as the exec tool uses it."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000)
        self.store, self.people, self.sessions = FakeRulesStore(), FakeAudience(), FakeSessions()
        self.start()

    def start(self) -> None:
        """A gateway that has just started on what is in the store."""
        self.approvals = Approvals(self.clock, self.now_ms)
        self.approvals.audience = self.people
        self.rules = ExecRules(self.store, self.now_ms)
        self.rules.fixed = lambda path: not path.startswith(("/ws/", "/home/"))
        self.permission = ExecPermission(self.rules, self.approvals, self.sessions)  # type: ignore[arg-type]

    def now_ms(self) -> int:
        return int(self.clock.seconds() * 1000)

    def call(self, request: ExecRequest, stateless: bool = False, **rules: Any) -> Deferred[None]:
        """Ask whether a command may run."""
        self.context = FakeContext(ToolsExec(**rules), stateless)
        return Deferred.fromCoroutine(self.permission.allow(request, self.context))

    def refused(self, call: Deferred[None]) -> str:
        """Why a command may not run, as the model is told."""
        return str(self.failureResultOf(call, ToolFailed).value)

    def answer(self, decision: str) -> None:
        """A person decides on what was asked last."""
        self.approvals.resolve(self.people.asked[-1].id, decision, "Ann")

    def allow_listed(self, *patterns: str, agent_id: str = "main") -> None:
        """Put patterns on a list, by hand."""
        entries = [AllowedExec(f"e{number}", agent_id, pattern) for number, pattern in enumerate(patterns)]
        self.successResultOf(Deferred.fromCoroutine(self.rules.replace(entries, {})))

    def test_a_person_allows_once(self) -> None:
        """The call waits inside the run, which is paused meanwhile; the same command asks again the next time."""
        call = self.call(command())
        self.assertNoResult(call)
        self.assertEqual(1, self.context.paused)
        (approval,) = self.people.asked
        self.assertIn(approval.id, self.context.said[0])
        asked = approval.question
        self.assertEqual(
            ("git status", "/ws", "main", "agent:main:main", GIT), (asked.command, asked.cwd, asked.agent_id, asked.session_key, asked.resolved_path)
        )
        self.answer("allow-once")
        self.successResultOf(call)
        self.assertEqual(0, self.context.paused)
        self.assertNoResult(self.call(command()))
        self.assertEqual(2, len(self.people.asked))

    def test_a_person_denies(self) -> None:
        """The model is told not to try another way."""
        call = self.call(command())
        self.answer("deny")
        self.assertIn("denied", self.refused(call))

    def test_always_is_kept(self) -> None:
        """Allowed for ever: the program is on the agent's list, also after a restart, and for no other agent."""
        call = self.call(command())
        self.assertEqual((GIT,), self.people.asked[0].question.always)
        self.answer("allow-always")
        self.successResultOf(call)
        self.start()
        self.successResultOf(self.call(command("git push", cwd="/elsewhere")))
        (entry,) = self.store.entries.values()
        self.assertEqual(("main", GIT, "git push", GIT), (entry.agent_id, entry.pattern, entry.last_command, entry.last_resolved))
        self.assertNoResult(self.call(command(agent_id="other")))
        self.assertNoResult(self.call(command("git gc | rm x", (GIT, RM))))

    def test_always_is_not_for_what_runs_anything(self) -> None:
        """Interpreters, and programs that an agent could change, are allowed this once; the person sees that beforehand."""
        for path in (PYTHON, "/bin/sh", "/usr/bin/env", "/usr/bin/find", "/usr/bin/git", "/bin/tar", "/ws/build", "/home/a/x", "/opt/odd*name"):
            call = self.call(command("x", (path,)))
            self.assertEqual((), self.people.asked[-1].question.always, path)
            self.answer("allow-always")
            self.successResultOf(call)
        self.assertEqual({}, self.store.entries)

    def test_always_without_a_store(self) -> None:
        """What cannot be kept may run all the same, now."""
        call = self.call(command())
        self.store.broken = True
        self.answer("allow-always")
        self.successResultOf(call)
        self.assertEqual((), self.rules.entries)

    def test_nobody_answers(self) -> None:
        """After two minutes the fallback decides; the question is over."""
        for fallback, fine in (("deny", False), ("allowlist", False), ("full", True)):
            call = self.call(command(), ask_fallback=fallback)
            self.clock.advance(119)
            self.assertNoResult(call)
            self.clock.advance(1)
            if fine:
                self.successResultOf(call)
            else:
                self.assertIn("in time", self.refused(call))
            self.assertEqual((self.people.asked[-1].id, None), self.people.told[-1])
            self.assertRaises(InvalidRequest, self.answer, "allow-once")

    def test_nobody_is_there(self) -> None:
        """The fallback decides at once, and nothing is asked."""
        self.people.there = False
        self.assertIn("nobody is connected", self.refused(self.call(command())))
        self.successResultOf(self.call(command(), ask_fallback="full"))
        self.assertIn("nobody is connected", self.refused(self.call(command(), ask_fallback="allowlist", ask="always")))
        self.allow_listed(GIT)
        self.successResultOf(self.call(command(), ask_fallback="allowlist", ask="always"))
        self.assertEqual([], self.people.asked)

    def test_a_cancelled_run_withdraws_its_question(self) -> None:
        """Who would answer hears of it, and an answer comes too late."""
        call = self.call(command())
        call.cancel()
        self.failureResultOf(call, CancelledError)
        self.assertEqual([(self.people.asked[0].id, None)], self.people.told)
        self.assertEqual((), self.approvals.pending())
        self.assertRaises(InvalidRequest, self.answer, "allow-once")
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_the_list(self) -> None:
        """Every program of a command must be on it, or be a safe binary (which the tool leaves out)."""
        self.allow_listed(GIT, "/opt/*/bin/**")
        for paths in ((GIT,), (GIT, "/opt/a/bin/x/y"), ()):
            self.successResultOf(self.call(command("x", paths), ask="off"))
        for request in (command("x", (GIT, RM)), command("x", (), analysed=False), command("x", (GIT,), analysed=False)):
            self.assertIn("listed", self.refused(self.call(request, ask="off")))
        self.assertEqual([], self.people.asked)

    def test_a_list_for_all(self) -> None:
        """The agent `*` stands for each."""
        self.allow_listed(GIT, agent_id=ANY_AGENT)
        self.successResultOf(self.call(command(agent_id="other"), ask="off"))

    def test_settings(self) -> None:
        """What each combination does with a command that is not listed."""
        for security, ask, outcome in (
            ("deny", "always", "refuse"), ("deny", "off", "refuse"), ("allowlist", "off", "refuse"), ("allowlist", "on-miss", "ask"),
            ("allowlist", "always", "ask"), ("full", "off", "allow"), ("full", "on-miss", "allow"), ("full", "always", "ask"),
        ):  # fmt: skip
            call = self.call(command(), security=security, ask=ask)
            if outcome == "ask":
                self.assertNoResult(call)
                self.answer("allow-once")
            if outcome == "refuse":
                self.refused(call)
            else:
                self.successResultOf(call)

    def test_a_call_can_only_be_stricter(self) -> None:
        """A model that asks for more freedom does not get it, for less it does."""
        for own in ({"security": "full"}, {"ask": "off"}, {"security": "full", "ask": "off"}, {"ask": "on-miss"}):
            self.refused(self.call(command(**own), ask="off"))
            self.refused(self.call(command(**own), security="deny"))
        self.assertNoResult(self.call(command(ask="always"), security="full"))
        self.refused(self.call(command(security="deny"), security="full", ask="off"))
        self.assertNoResult(self.call(command(security="allowlist"), security="full"))

    def test_a_session_can_only_be_stricter(self) -> None:
        """What clients have set for it holds for its runs, but not for those of requests without a session."""
        self.sessions.settings = SessionSettings(exec_security="full", exec_ask="off")
        self.refused(self.call(command(), ask="off"))
        self.sessions.settings = SessionSettings(exec_security="deny")
        self.refused(self.call(command(), security="full"))
        self.successResultOf(self.call(command(), stateless=True, security="full"))

    def test_what_is_kept_can_only_be_stricter(self) -> None:
        """Of the configuration and the kept rules the stricter one holds; an agent's own come before those for all."""
        self.store.policies = {DEFAULTS: ExecPolicy(security="deny"), "main": ExecPolicy(security="full", ask="off", ask_fallback="full")}
        self.refused(self.call(command(), ask="off"))
        self.refused(self.call(command(agent_id="other"), security="full"))
        self.successResultOf(self.call(command(), security="full"))
        self.people.there = False
        self.refused(self.call(command()))

    def test_rules_that_change_meanwhile(self) -> None:
        """An approval does not help against what was forbidden before it came."""
        call = self.call(command())
        self.successResultOf(Deferred.fromCoroutine(self.rules.replace([], {"main": ExecPolicy(security="deny")})))
        self.answer("allow-once")
        self.assertIn("not allowed", self.refused(call))

    def test_a_store_that_fails(self) -> None:
        """Without the rules nothing runs; the next call looks again."""
        self.store.broken = True
        self.assertIn("cannot be read", self.refused(self.call(command(), security="full")))
        self.store.broken = False
        self.successResultOf(self.call(command(), security="full"))

    def test_a_command_too_long_to_judge(self) -> None:
        """Nobody is asked to approve what nobody will read."""
        self.assertIn("characters", self.refused(self.call(command("x" * 20_001))))

    def test_too_many_questions(self) -> None:
        """One more than can wait is refused, not queued."""
        calls = [self.call(command()) for _ in range(MAX_PENDING)]
        self.assertIn("waiting", self.refused(self.call(command())))
        self.answer("allow-once")
        self.successResultOf(calls[-1])
        self.assertNoResult(self.call(command()))

    def test_calls_side_by_side(self) -> None:
        """Two equal commands are two questions: one answer lets one of them run."""
        first, second = self.call(command()), self.call(command())
        self.approvals.resolve(self.people.asked[0].id, "allow-once", None)
        self.successResultOf(first)
        self.assertNoResult(second)


class ApprovalsTests(SynchronousTestCase):
    """Questions and decisions."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.approvals = Approvals(self.clock, lambda: int(self.clock.seconds() * 1000))
        self.approvals.audience = self.people = FakeAudience()

    def wait(self, approval: Approval) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.approvals.decision(approval))

    def test_a_decision_is_bound(self) -> None:
        """It is good for exactly the command, directory, environment and session it was given for, and once."""
        asked = command(env=(("A", "1"),))
        changed = {
            "command": "git status -v", "cwd": "/ws2", "env": (("A", "2"),), "session": "agent:main:other", "agent_id": "other", "pty": True,
            "background": True,
        }  # fmt: skip
        question = Question(asked.command, asked.cwd, agent_id=asked.agent_id, session_key=asked.session, env=asked.env)
        approval = self.approvals.ask(question)
        self.assertIsNone(self.approvals.use(approval, digest(asked)))
        self.approvals.resolve(approval.id, "allow-once", None)
        for name, value in changed.items():
            other = msgspec.structs.replace(asked, **{name: value})
            self.assertIsNone(self.approvals.use(approval, digest(other)), name)
        self.assertEqual("allow-once", self.approvals.use(approval, digest(asked)))
        self.assertIsNone(self.approvals.use(approval, digest(asked)))

    def test_all_who_wait_hear_of_it(self) -> None:
        """Also somebody who comes a little later, for 15 s; one who stops waiting harms nobody."""
        approval = self.approvals.ask(Question("ls"))
        waiting, gone = self.wait(approval), self.wait(approval)
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.approvals.resolve(approval.id, "deny", "Ann")
        self.assertEqual("deny", self.successResultOf(waiting))
        self.clock.advance(KEEP_SECONDS - 1)
        self.assertEqual("deny", self.successResultOf(self.wait(self.approvals.get(approval.id))))
        self.clock.advance(1)
        self.assertRaises(InvalidRequest, self.approvals.get, approval.id)

    def test_wrong_answers(self) -> None:
        """A word that is no decision, an id that is not known, a second answer."""
        approval = self.approvals.ask(Question("ls"))
        for name, word, text in ((approval.id, "yes", "invalid decision"), ("x", "deny", "unknown approval id")):
            self.assertEqual(text, self.assertRaises(InvalidRequest, self.approvals.resolve, name, word, None).message)
        self.approvals.resolve(approval.id, "deny", None)
        self.assertRaises(InvalidRequest, self.approvals.resolve, approval.id, "allow-once", None)
        self.assertEqual("deny", approval.decision)

    def test_ids(self) -> None:
        """Short ones that people can type; one's own must not be in use."""
        self.assertEqual(8, len(self.approvals.ask(Question("ls")).id))
        self.approvals.ask(Question("ls"), approval_id="mine")
        error = self.assertRaises(InvalidRequest, self.approvals.ask, Question("rm"), 1, "mine")
        self.assertEqual("approval id already pending", error.message)

    def test_nothing_is_left(self) -> None:
        """However many there were: no timers, no memory of more than the newest."""
        for _ in range(2 * MAX_PENDING):
            self.approvals.resolve(self.approvals.ask(Question("ls")).id, "deny", None)
        self.assertEqual([], self.clock.getDelayedCalls())
        self.assertEqual((), self.approvals.pending())
        self.assertRaises(InvalidRequest, self.approvals.get, self.people.asked[0].id)
        for _ in range(MAX_PENDING):
            self.approvals.ask(Question("ls"))
        self.assertRaises(Unavailable, self.approvals.ask, Question("ls"))


class RulesTests(SynchronousTestCase):
    """Layers and lists."""

    @given(st.lists(layers, min_size=1, max_size=4), st.booleans())
    def test_no_layer_is_made_looser(self, given_layers: list[Layer], listed: bool) -> None:
        """All layers together are never looser than one of them."""
        together = ORDER.index(strictest(given_layers, listed))
        self.assertEqual(max(ORDER.index(verdict(layer, listed)) for layer in given_layers), together)

    @given(layers, layers, layers, layers)
    def test_nothing_makes_a_permission_looser(self, configured: Layer, stored: Layer, session: Layer, call: Layer) -> None:
        """The same through the whole permission: whatever is kept, set or asked for, what the configuration alone refuses or asks stays so."""

        def outcome(policies: dict[str, ExecPolicy], settings: SessionSettings, request: ExecRequest) -> str:
            store, people, sessions, clock = FakeRulesStore(), FakeAudience(), FakeSessions(), Clock()
            store.policies, sessions.settings = policies, settings
            approvals = Approvals(clock, lambda: 0)
            approvals.audience = people
            permission = ExecPermission(ExecRules(store, lambda: 0), approvals, sessions)  # type: ignore[arg-type]
            context = FakeContext(ToolsExec(security=configured.security, ask=configured.ask))
            ended: list[Any] = []
            Deferred.fromCoroutine(permission.allow(request, context)).addBoth(ended.append)
            return "ask" if people.asked else "allow" if ended == [None] else "refuse"

        alone = outcome({}, SessionSettings(), command())
        together = outcome(
            {"main": ExecPolicy(security=stored.security, ask=stored.ask)},
            SessionSettings(exec_security=session.security, exec_ask=session.ask),
            command(security=call.security, ask=call.ask),
        )
        self.assertEqual(verdict(configured, False), alone)
        for layer in (configured, stored, session, call):
            self.assertGreaterEqual(ORDER.index(together), ORDER.index(verdict(layer, False)))

    def test_globs(self) -> None:
        """Within a name and over whole names; what looks like another pattern language is meant literally."""
        for pattern, path, fits in (
            ("/usr/bin/git", "/usr/bin/git", True), ("/usr/bin/git", "/usr/bin/gitk", False), ("/usr/bin/GIT", "/usr/bin/git", False),
            ("/usr/bin/*", "/usr/bin/git", True), ("/usr/bin/*", "/usr/bin/x/git", False), ("/usr/bin/g?t", "/usr/bin/get", True),
            ("/opt/**", "/opt/a/b", True), ("/opt/**", "/optical", False), ("/opt/**/run", "/opt/run", True), ("/opt/**/run", "/opt/a/b/run", True),
            ("/opt/**/b/**/d", "/opt/b/a/b/c/d", True), ("/opt/**/b/**/d", "/opt/b/c/e", False), ("/a[bc]", "/ab", False), ("/a[bc]", "/a[bc]", True),
            ("/**", "/x/y", True), ("git", "/usr/bin/git", False), ("/usr/bin/git/**", "/usr/bin/git", True),
        ):  # fmt: skip
            self.assertIs(fits, matches(pattern, path), (pattern, path))

    def test_a_glob_that_is_expensive_elsewhere(self) -> None:
        """Many wildcards cost no more than the lengths say."""
        self.assertFalse(matches("/**/a" * 100 + "/b", "/a" * 2_000))
        self.assertFalse(matches("/" + "*a" * 500 + "b", "/" + "a" * 2_000))

    def test_patterns_name_a_place(self) -> None:
        """A bare name would be whatever PATH has first; `~` and symlinks are resolved."""
        rules = ExecRules(FakeRulesStore(), lambda: 0, lambda path: path.replace("/usr/bin/py", PYTHON), "/home/ann")
        for pattern in ("git", "./git", "", "bin/*", "/x\0", "/" + "x" * 5_000):
            failure = self.failureResultOf(Deferred.fromCoroutine(rules.replace([AllowedExec("", "main", pattern)], {})))
            self.assertIsInstance(failure.value, InvalidRequest, pattern)
        kept = [AllowedExec("", "main", "~/bin/*"), AllowedExec("", "main", "/usr/bin/py")]
        self.successResultOf(Deferred.fromCoroutine(rules.replace(kept, {})))
        for path in ("/home/ann/bin/x", PYTHON):
            self.assertIsNotNone(rules.find("main", [path]), path)
        self.assertIsNone(rules.find("main", ["/home/ann/x"]))

    def test_a_failed_change_is_undone(self) -> None:
        """What is not on disk does not hold."""
        store = FakeRulesStore()
        rules = ExecRules(store, lambda: 0)
        self.successResultOf(Deferred.fromCoroutine(rules.replace([AllowedExec("a", "main", GIT)], {"main": ExecPolicy(ask="always")})))
        before = rules.hash
        store.broken = True
        self.failureResultOf(Deferred.fromCoroutine(rules.replace([AllowedExec("b", "main", RM)], {})), StorageUnavailable)
        self.failureResultOf(Deferred.fromCoroutine(rules.allow("main", "/bin/ls", "ls")), StorageUnavailable)
        self.assertEqual((before, None, "always"), (rules.hash, rules.find("main", [RM]), rules.policy("main").ask))
        self.assertIsNone(rules.find("main", ["/bin/ls"]))
        self.assertIsNotNone(rules.find("main", [GIT]))

    def test_use_is_no_change(self) -> None:
        """A person who edits the rules is not disturbed by commands that run, and does not make their last use unknown."""
        rules = ExecRules(FakeRulesStore(), lambda: 7)
        entry = AllowedExec("a", "main", GIT)
        self.successResultOf(Deferred.fromCoroutine(rules.replace([entry], {})))
        before = rules.hash
        found = rules.find("main", [GIT])
        assert found is not None
        rules.used(found, [GIT], "git log")
        self.assertEqual(before, rules.hash)
        self.successResultOf(Deferred.fromCoroutine(rules.replace([entry], {})))
        self.assertEqual((7, "git log"), (rules.entries[0].last_used_ms, rules.entries[0].last_command))
