"""Audited methods over the WebSocket: one row for each call, whatever comes of it; and `audit.list`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mayros.config.schema import ToolsExec
from mayros.core.api_tokens import Wanted
from mayros.core.approvals import Question
from mayros.core.audit import Audit
from mayros.core.audit_ports import AuditEntry
from mayros.core.auth import secret_digest
from mayros.core.config_ports import Applied, InvalidConfig
from mayros.core.permission import ExecPermission
from mayros.errors import StorageUnavailable
from mayros.net.redact import Redactor
from mayros.ws.acts import AUDITED
from mayros.ws.session import Session
from tests.helpers import BASE, TOKEN
from tests.test_approvals import FakeContext, command
from tests.test_audit import FakeTrail
from tests.test_devices import Key
from tests.test_ws import ADMIN, READ, REMOTE, WRITE, FakeLink, World, ask, tell
from tests.test_ws_connect import DeviceWorld

APPROVALS, PAIRING = "operator.approvals", "operator.pairing"
KEY = "sk-a-key-of-a-provider-0123456789"


class AuditCase(SynchronousTestCase):
    """A gateway with a configuration file and a trail, into which the stores in memory write too."""

    def setUp(self) -> None:
        self.state = Path(self.mktemp()).absolute()
        (self.state / "home").mkdir(parents=True)
        (self.state / "mayros.json").write_text(json.dumps(BASE))
        self.watch(World(self, state_dir=str(self.state)))

    def watch(self, world: World) -> None:
        self.world, self.trail = world, FakeTrail()
        world.gateway.audit = Audit(self.trail, world.now_ms, Redactor([TOKEN, KEY]))
        world.approvals.audit = world.gateway.audit
        for store in (world.harness.token_store, world.devices, world.rules_store):
            store.audit = self.trail.entries  # type: ignore[attr-defined]

    def call(self, client: tuple[Session, FakeLink], method: str, **params: Any) -> Any:
        """The answer of a method; exactly one row is there since."""
        before = len(self.trail.entries)
        answer = ask(*client, method, params)
        self.assertEqual(len(self.trail.entries), before + 1, answer)
        return answer

    def row(self, number: int = -1) -> tuple[AuditEntry, dict[str, Any]]:
        entry = self.trail.entries[number]
        return entry, json.loads(entry.details)


class MethodTests(AuditCase):
    """Each method once."""

    def assertDone(self, method: str, target: str | None, **details: Any) -> None:
        """The newest row tells this."""
        entry, told = self.row()
        self.assertEqual((entry.action, entry.outcome, entry.target), (method, "done", target))
        self.assertEqual({name: told.get(name) for name in details}, details, told)
        self.assertEqual((entry.who, entry.label, entry.door, entry.address), ("owner", "cli/cli", "ws", "127.0.0.1"))
        self.assertEqual((entry.connection, entry.request, entry.at_ms), (self.admin[0].id, "1", self.world.now_ms()))

    def done(self, method: str, target: str | None, params: dict[str, Any], **details: Any) -> Any:
        """The answer of a call that succeeds, and whose row tells this."""
        answer = self.call(self.admin, method, **params)
        self.assertTrue(answer["ok"], answer)
        self.assertDone(method, target, **details)
        return answer["payload"]

    def test_each(self) -> None:
        """Who, from where, and what to what; of values only what names things. No secret is in any row."""
        self.admin = self.world.connect(ADMIN)
        secrets = [
            self.done("tokens.create", "ann", {"name": "ann", "rpm": 5}, rpm=5)["token"],
            self.done("tokens.rotate", "ann", {"name": "ann"})["token"],
        ]
        self.done("tokens.revoke", "ann", {"name": "ann"})
        self.done("sessions.patch", "trip", {"key": "trip", "label": "Trip", "execSecurity": "full"}, execSecurity="full", sent=["label"])
        self.done("sessions.reset", "trip", {"key": "trip"})
        self.done("sessions.delete", "trip", {"key": "trip"})
        self.done(
            "agents.create", "ops", {"name": "Ops", "workspace": str(self.state / "workspace-ops")}, workspace=str(self.state / "workspace-ops")
        )
        self.done("agents.update", "ops", {"agentId": "ops", "name": "The Ops"}, sent=["name"])
        self.done("agents.files.set", "ops", {"agentId": "ops", "name": "TOOLS.md", "content": KEY}, name="TOOLS.md")
        self.done("agents.delete", "ops", {"agentId": "ops"})
        provider = {"x": {"baseUrl": "http://h/v1", "apiKey": KEY}}
        changed = {"set": {"models.providers": {**BASE["models"]["providers"], **provider}}}  # type: ignore[dict-item]
        self.done("config.change", None, changed, paths=["models.providers.x.baseUrl", "models.providers.x.apiKey"])
        raw = {"raw": json.dumps({"agents": {"defaults": {"timeoutSeconds": 77}}}), "baseHash": self.hash()}
        self.done("config.patch", None, raw, paths=["agents.defaults.timeoutSeconds"])
        text = (self.state / "mayros.json").read_text()
        self.done("config.set", None, {"raw": text.replace("77", "78"), "baseHash": self.hash()}, paths=["agents.defaults.timeoutSeconds"])
        self.done("config.apply", None, {"raw": text.replace("77", "79"), "baseHash": self.hash()}, paths=["agents.defaults.timeoutSeconds"])
        rules = {"version": 1, "defaults": {"security": "full"}, "agents": {"main": {"allowlist": [{"pattern": "/usr/bin/git"}]}}}
        self.done("exec.approvals.set", None, {"file": rules}, added=["main: /usr/bin/git"], removed=[])
        self.assertIn('{"security":"full"}', self.row()[1]["policies"][0])
        approval = self.world.approvals.ask(_question(f"curl -H 'authorization: {KEY}' x"))
        self.done("exec.approval.resolve", approval.id, {"id": approval.id, "decision": "allow-once"}, decision="allow-once", agent="main")
        self.assertEqual(self.row()[1]["command"], "curl -H 'authorization: ***' x")
        self.devices()
        self.assertEqual({entry.action for entry in self.trail.entries} & set(AUDITED), set(AUDITED))
        everything = repr(self.trail.entries)
        for secret in (*secrets, KEY, TOKEN):
            self.assertNotIn(secret, everything)

    def devices(self) -> None:
        """Two devices that ask, and what becomes of them."""
        watched = self.trail
        self.watch(DeviceWorld(self))
        self.admin = self.world.connect(ADMIN)
        assert isinstance(self.world, DeviceWorld)
        asked = [self.world.come(Key(number), READ, address=REMOTE).error["details"]["requestId"] for number in (1, 2)]
        one, two = Key(1).id, Key(2).id
        paired = {"requestId": asked[0], "client": "gateway-client", "scopes": [READ], "roles": ["operator"], "address": REMOTE.client}
        self.done("device.pair.approve", one, {"requestId": asked[0]}, **paired)
        self.done("device.pair.reject", two, {"requestId": asked[1]}, requestId=asked[1])
        token = self.done("device.token.rotate", one, {"deviceId": one, "role": "operator"}, role="operator")["token"]
        self.done("device.token.revoke", one, {"deviceId": one, "role": "operator"}, role="operator")
        self.done("device.pair.remove", one, {"deviceId": one}, scopes=[READ])
        self.assertNotIn(token, repr(self.trail.entries))
        self.trail.entries[:0] = watched.entries

    def hash(self) -> str:
        found = ask(*self.world.connect(ADMIN), "config.get", {})["payload"]["hash"]
        assert isinstance(found, str)
        return found


class OutcomeTests(AuditCase):
    """What was not done, or not as it was asked."""

    def test_who_may_not(self) -> None:
        """Is written down as what he is, with why; methods that change nothing are not."""
        self.assertFalse(self.call(self.world.connect(READ, WRITE), "tokens.create", name="x", scopes=[ADMIN])["ok"])
        entry, details = self.row()
        self.assertEqual((entry.action, entry.outcome, entry.target), ("tokens.create", "refused", "x"))
        self.assertEqual(details, {"scopes": [ADMIN], "error": f"missing scope: {ADMIN}"})
        ask(*self.world.connect(READ), "tokens.list", {})
        ask(*self.world.connect(ADMIN), "tokens.list", {})
        self.assertEqual(len(self.trail.entries), 1)

    def test_what_makes_no_sense(self) -> None:
        """Wrong parameters of any kind are refused and told; what is told of them is bounded."""
        admin = self.world.connect(ADMIN)
        for params in ({"name": 5}, {"name": "x" * 100_000}, {"name": ["y"] * 9_000, "scopes": {"a": 1}}, {"no": 1}):
            self.assertFalse(self.call(admin, "tokens.revoke", **params)["ok"])
            entry, _ = self.row()
            self.assertEqual((entry.outcome, entry.target), ("refused", None))
        self.assertFalse(self.call(admin, "device.pair.approve", requestId="no-such")["ok"])
        self.assertEqual((self.row()[0].target, self.row()[1]["error"]), ("no-such", "unknown requestId"))

    def test_what_else_is_sent(self) -> None:
        """Hides nothing: not blanks between the parameters or in one, not a long one, not the same one twice."""
        admin = self.world.connect(ADMIN)

        def sent(method: str, params: str) -> tuple[AuditEntry, dict[str, Any]]:
            admin[0].received(f'{{"type":"req","id":"9","method":"{method}","params":{params}}}'.encode(), False)
            self.assertEqual((self.row()[0].action, self.row()[0].outcome), (method, "done"), self.row())
            return self.row()

        blanks = " " * 300_000
        entry, details = sent("tokens.create", f'{{{blanks}"name":"bob","name":"ann","scopes":["{ADMIN}"]}}')
        self.assertEqual((entry.target, details["scopes"]), ("ann", [ADMIN]))
        entry, details = sent("tokens.create", f'{{"name":"eve","scopes":[{" " * 9_000}"{ADMIN}"]}}')
        self.assertEqual(entry.target, "eve")
        self.assertRegex(details["scopes"], r"^\(\d+ bytes\)$")
        entry, details = sent("sessions.patch", f'{{"key":"trip",{blanks}"execSecurity":"full","label":"Trip"}}')
        self.assertEqual((entry.target, details["execSecurity"]), ("trip", "full"))
        self.assertRegex(details["sent"], r"^\(\d+ bytes\)$")

    def test_a_configuration_that_is_not_valid(self) -> None:
        """Where it is not, and nothing of what stands there."""
        admin = self.world.connect(ADMIN)
        self.assertFalse(self.call(admin, "config.change", set={"gateway.port": "hunter2hunter2"})["ok"])
        entry, details = self.row()
        self.assertEqual((entry.outcome, details["paths"]), ("refused", ["gateway.port"]))
        self.assertIn("invalid config at gateway.port", details["error"])
        self.assertNotIn("hunter2", entry.details)

    def test_what_broke(self) -> None:
        """A store that cannot be written: it failed."""
        self.world.harness.token_store.broken = True
        self.assertFalse(self.call(self.world.connect(ADMIN), "tokens.create", name="ann")["ok"])
        self.assertEqual(self.row()[0].outcome, "failed")

    def test_a_client_that_leaves(self) -> None:
        """What it has asked for is done to its end all the same, and told as what became of it; a call that only reads is cancelled."""
        session, link = self.world.connect(ADMIN)
        waiting: list[Deferred[None]] = []

        async def slow(key: Any) -> bool:
            waiting.append(Deferred())
            await waiting[-1]
            return True

        self.world.harness.sessions.delete = slow  # type: ignore[method-assign]
        for key in ("trip", "other"):
            tell(session, "sessions.delete", {"key": key})
        tell(session, "agent.wait", {"runId": "r", "timeoutMs": 60_000})
        self.assertEqual(len(session._calls), 3)
        session.closed()
        self.assertEqual(len(session._calls), 2)
        self.assertEqual(self.trail.entries, [])
        waiting[0].callback(None)
        waiting[1].errback(StorageUnavailable())
        self.assertEqual([(entry.target, entry.outcome) for entry in self.trail.entries], [("trip", "done"), ("other", "failed")])
        self.assertEqual((len(session._calls), session._calls._acts), (0, set()))
        self.assertEqual([frame for frame in link.take() if frame["type"] == "res"], [])


class ApprovalTests(AuditCase):
    """Questions and decisions."""

    def test_asked_and_decided(self) -> None:
        """The agent asks, for whom; somebody decides, by his own name. The values of the environment are not told."""
        permission = ExecPermission(self.world.exec_rules, self.world.approvals, self.world.harness.sessions)
        approver = self.world.connect(APPROVALS)
        context = FakeContext(ToolsExec())
        call = Deferred.fromCoroutine(permission.allow(command(env=(("A", "b-value"),)), context))
        entry, details = self.row()
        self.assertEqual((entry.action, entry.who, entry.label, entry.outcome), ("exec.approval.request", "agent:main", context.principal.id, "done"))
        self.assertEqual((details["command"], details["env"], details["session"]), ("git status", ["A"], "agent:main:main"))
        self.call(approver, "exec.approval.resolve", id=entry.target, decision="allow-always")
        self.assertIsNone(self.successResultOf(call))
        decided, details = self.row()
        self.assertEqual((decided.action, decided.target, decided.who), ("exec.approval.resolve", entry.target, "owner"))
        self.assertEqual((details["decision"], details["always"]), ("allow-always", ["/usr/bin/uptime"]))
        self.assertNotIn("b-value", repr(self.trail.entries))

    def test_nobody_decides(self) -> None:
        """A question that is over is told of too; one of a client is its own."""
        approver = self.world.connect(APPROVALS)
        tell(approver[0], "exec.approval.request", {"command": "rm x", "timeoutMs": 1_000})
        self.world.clock.advance(2)
        (asked, _), (over, details) = self.row(0), self.row(1)
        self.assertEqual((asked.action, asked.who, asked.connection), ("exec.approval.request", "owner", approver[0].id))
        self.assertEqual((over.action, over.who, over.target, details["command"]), ("exec.approval.expire", "gateway", asked.target, "rm x"))

    def test_no_command_without_a_row(self) -> None:
        """Where it cannot be written down who allows a command, it is not allowed, and can still be decided; to deny it needs no row."""
        approver = self.world.connect(APPROVALS)
        first, second = (self.world.approvals.ask(_question("rm x")) for _ in range(2))
        self.trail.broken = True
        for decision in ("allow-once", "allow-always"):
            answer = ask(*approver, "exec.approval.resolve", {"id": first.id, "decision": decision})
            self.assertEqual((answer["ok"], answer["error"]["code"]), (False, "UNAVAILABLE"))
        self.assertEqual((first.over, first.decision), (False, None))
        self.assertTrue(ask(*approver, "exec.approval.resolve", {"id": second.id, "decision": "deny"})["ok"])
        self.assertEqual(second.decision, "deny")
        self.trail.broken = False
        self.assertTrue(self.call(approver, "exec.approval.resolve", id=first.id, decision="allow-once")["ok"])
        self.assertEqual(first.decision, "allow-once")

    def test_too_late(self) -> None:
        """A decision that was overtaken while its row was written has a second row, which says so."""
        approver = self.world.connect(APPROVALS)
        approval = self.world.approvals.ask(_question("rm x"), 1_000)
        writing: Deferred[None] = Deferred()
        record = self.trail.record

        async def slow(entry: AuditEntry) -> None:
            if entry.action == "exec.approval.resolve" and entry.outcome == "done":
                await writing
            await record(entry)

        self.trail.record = slow  # type: ignore[method-assign]
        tell(approver[0], "exec.approval.resolve", {"id": approval.id, "decision": "allow-once"})
        self.world.clock.advance(2)
        writing.callback(None)
        self.assertEqual((approval.over, approval.decision), (True, None))
        self.assertEqual([entry.outcome for entry in self.trail.entries if entry.action == "exec.approval.resolve"], ["done", "refused"])

    def test_wrong_decisions(self) -> None:
        """Decide nothing, with and without a trail."""
        approver = self.world.connect(APPROVALS)
        approval = self.world.approvals.ask(_question("rm x"))
        self.assertEqual(self.call(approver, "exec.approval.resolve", id=approval.id, decision="maybe")["error"]["message"], "invalid decision")
        self.assertFalse(self.call(approver, "exec.approval.resolve", id="zz", decision="deny")["ok"])
        self.assertEqual([entry.outcome for entry in self.trail.entries], ["refused", "refused"])
        self.assertFalse(approval.over)


class WhoTests(AuditCase):
    """How clients are named."""

    def test_tokens(self) -> None:
        """Whoever has one of his own is that, whatever device he brings."""
        secret, _ = self.successResultOf(Deferred.fromCoroutine(self.world.gateway.api_tokens.create(Wanted("boss", (ADMIN,)), ("main",))))
        self.assertIsNotNone(self.world.gateway.api_tokens.find(secret_digest(secret)))
        client = self.world.connect(ADMIN, address=REMOTE, auth={"token": secret})
        self.call(client, "sessions.delete", key="x")
        self.assertEqual((self.row()[0].who, self.row()[0].address), ("token:boss", REMOTE.client))
        self.assertNotIn(secret, repr(self.trail.entries))

    def test_devices(self) -> None:
        """A device is its id, with the name that it gives itself; that it was paired by asking, on this machine, is an act."""
        self.watch(DeviceWorld(self))
        assert isinstance(self.world, DeviceWorld)
        key = Key(1)
        client = {"id": "gateway-client", "version": "1", "platform": "linux", "mode": "backend", "displayName": "Ann's \x1b[31m laptop"}
        answer = self.world.come(key, ADMIN, client=client)
        entry, details = self.row()
        self.assertEqual((entry.action, entry.who, entry.target, entry.outcome), ("device.pair.local", f"device:{key.id}", key.id, "done"))
        self.assertEqual((details["reason"], details["scopes"], entry.connection), ("not-paired", [ADMIN], answer.session.id))
        tell(answer.session, "sessions.delete", {"key": "x"})
        entry, _ = self.row()
        self.assertEqual((entry.action, entry.who, entry.label), ("sessions.delete", f"device:{key.id}", client["displayName"]))
        self.assertNotIn(answer.token, repr(self.trail.entries))


class ListTests(AuditCase):
    """`audit.list`."""

    def test_pages(self) -> None:
        """The newest first, with a cursor while there may be more; or what has come since."""
        admin = self.world.connect(ADMIN)
        for name in "abc":
            self.call(admin, "tokens.create", name=name)
        first = ask(*admin, "audit.list", {"limit": 2})["payload"]
        self.assertEqual([(row["id"], row["target"]) for row in first["entries"]], [(3, "c"), (2, "b")])
        row = first["entries"][0]
        self.assertEqual((row["who"], row["door"], row["outcome"], row["action"]), ("owner", "ws", "done", "tokens.create"))
        self.assertIsInstance(row["details"], dict)
        rest = ask(*admin, "audit.list", {"limit": 2, "before": first["cursor"]})["payload"]
        self.assertEqual(([row["id"] for row in rest["entries"]], rest["cursor"]), ([1], None))
        self.assertEqual([row["id"] for row in ask(*admin, "audit.list", {"after": 1})["payload"]["entries"]], [2, 3])
        self.assertEqual(len(self.trail.entries), 3)

    def test_limits(self) -> None:
        """Parameters without sense are refused by name; a trail that cannot be read can be asked for again."""
        admin = self.world.connect(ADMIN)
        for params in ({"limit": 0}, {"limit": 1_001}, {"before": -1}, {"sinceMs": "x"}, {"action": ""}, {"before": 1, "after": 1}):
            error = ask(*admin, "audit.list", params)["error"]
            self.assertEqual(error["code"], "INVALID_REQUEST")
            self.assertIn(next(iter(params)), error["message"])
        self.trail.broken = True
        self.assertTrue(ask(*admin, "audit.list", {})["error"]["retryable"])

    def test_for_administrators(self) -> None:
        """Nobody else reads it."""
        self.assertFalse(ask(*self.world.connect(READ, WRITE, APPROVALS, PAIRING), "audit.list", {})["ok"])
        secret, _ = self.successResultOf(Deferred.fromCoroutine(self.world.gateway.api_tokens.create(Wanted("ann"), ("main",))))
        self.assertFalse(ask(*self.world.connect(READ, address=REMOTE, auth={"token": secret}), "audit.list", {})["ok"])


class ReloadTests(AuditCase):
    """The configuration file, changed by somebody else."""

    def test_read_again(self) -> None:
        """What is another is told, and where one is not valid; nothing where it says the same, or where the gateway itself has changed it."""
        told: list[Applied | InvalidConfig] = []
        control = self.world.harness.config
        control.reread = told.append
        file = self.state / "mayros.json"
        file.write_text(file.read_text().replace('"contextWindow": 8192', '"contextWindow": 4096'))
        self.successResultOf(control.reload())
        self.successResultOf(control.reload())
        (applied,) = told
        assert isinstance(applied, Applied)
        self.assertEqual(applied.changed, ("models.providers.fake.models",))
        ask(*self.world.connect(ADMIN), "config.change", {"set": {"agents.defaults.timeoutSeconds": 5}})
        self.assertEqual(len(told), 1)
        file.write_text("{gateway: 5}")
        self.failureResultOf(control.reload(), InvalidConfig)
        assert isinstance(told[1], InvalidConfig)
        self.assertEqual(told[1].issue.path, "gateway")


def _question(text: str) -> Question:
    return Question(text, agent_id="main", session_key="agent:main:main")
