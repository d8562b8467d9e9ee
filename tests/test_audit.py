"""The audit trail: what becomes of an act on its way into it, its rows, and how they go."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

import mayros
from mayros.core.address import AddressRules
from mayros.core.api_tokens import ApiTokens, Wanted
from mayros.core.audit import ALL, EACH, MAX_DETAILS, MAX_TARGET, Audit
from mayros.core.audit_ports import GATEWAY, Actor, AuditEntry, AuditQuery, AuditRow
from mayros.core.auth import Authenticator
from mayros.core.limits import FailureLimiter
from mayros.errors import InvalidRequest, StorageUnavailable
from mayros.net.redact import Redactor
from mayros.storage import audit as rows
from mayros.storage import migrate
from mayros.storage.api_tokens import SqlApiTokens
from mayros.storage.audit import SqlAudit
from mayros.storage.engine import make_engine, parse_url
from mayros.storage.maintenance import Maintenance
from mayros.storage.migrate import open_engine
from mayros.ws.acts import AUDITED
from mayros.ws.methods.table import METHODS, NARROWED
from tests.helpers import settings as settings_of
from tests.sources import tree
from tests.test_storage import NOW, StoreTestCase
from tests.test_ws import REMOTE

SECRET = "the-key-of-a-provider-0123456789"
ANN = Actor("token:ann", "ws", "Ann's laptop", "203.0.113.9", "c-1")
PACKAGE = Path(mayros.__file__).parent


class FakeTrail:
    """Rows in memory. `broken` makes everything fail."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []
        self.broken = False

    async def record(self, entry: AuditEntry) -> None:
        if self.broken:
            raise StorageUnavailable
        self.entries.append(entry)

    async def list(self, query: AuditQuery) -> Sequence[AuditRow]:
        if self.broken:
            raise StorageUnavailable
        found = [AuditRow(number, entry) for number, entry in enumerate(self.entries, 1)]
        if query.after is not None:
            return [row for row in found if row.id > query.after][: query.limit]
        return [row for row in reversed(found) if query.before is None or row.id < query.before][: query.limit]


class ActTests(SynchronousTestCase):
    """From the act to the entry."""

    def setUp(self) -> None:
        self.trail, self.now = FakeTrail(), NOW
        self.audit = Audit(self.trail, lambda: self.now, Redactor([SECRET]))

    def newest(self) -> tuple[AuditEntry, dict[str, Any]]:
        entry = self.trail.entries[-1]
        return entry, json.loads(entry.details)

    def test_who_where_what(self) -> None:
        """All of it is in the entry, with what was told on the way; what is None is not."""
        act = self.audit.begin(ANN, "tokens.rotate", None, "r-1", graceMs=0, more=None)
        act.tell("bob", scopes=("operator.read",))
        self.now += 5
        self.audit.settle(act)
        entry, details = self.newest()
        self.assertEqual((entry.at_ms, entry.action, entry.target, entry.outcome), (NOW + 5, "tokens.rotate", "bob", "done"))
        self.assertEqual((entry.who, entry.label, entry.door, entry.address), ("token:ann", "Ann's laptop", "ws", "203.0.113.9"))
        self.assertEqual((entry.connection, entry.request, details), ("c-1", "r-1", {"graceMs": 0, "scopes": ["operator.read"]}))

    def test_outcomes(self) -> None:
        """Whoever asks wrongly is refused; what breaks has failed; a defect tells nothing of itself."""
        for error, outcome, told in (
            (InvalidRequest("no such token"), "refused", {"error": "no such token"}),
            (StorageUnavailable("the disk is full"), "failed", {"error": "the disk is full"}),
            (RuntimeError("inside"), "failed", {}),
        ):
            self.audit.settle(self.audit.begin(ANN, "tokens.revoke"), error)
            entry, details = self.newest()
            self.assertEqual((entry.outcome, details), (outcome, told))

    def test_written_with_what_is_done(self) -> None:
        """Its row is not written again; that it failed after all is."""
        act = self.audit.begin(ANN, "tokens.revoke", "bob")
        self.assertEqual(act.done().outcome, "done")
        self.audit.settle(act)
        self.assertEqual(self.trail.entries, [])
        self.audit.settle(act, StorageUnavailable())
        self.assertEqual(self.newest()[0].outcome, "failed")

    def test_a_trail_that_cannot_be_written(self) -> None:
        """What is done is done; the log tells that its row is missing. Whoever asks before he acts is told."""
        self.trail.broken = True
        self.audit.note(GATEWAY, "gateway.stop")
        self.failureResultOf(Deferred.fromCoroutine(self.audit.begin(ANN, "exec.approval.resolve").record()), StorageUnavailable)
        self.assertEqual(self.trail.entries, [])

    def test_floods(self) -> None:
        """So many refusals of one actor in an hour are kept, and so many of all; then it is told how many were not. What is done always is."""
        for _ in range(EACH + 7):
            self.audit.note(ANN, "tokens.create", "x", "refused")
        self.assertEqual(len(self.trail.entries), EACH)
        self.audit.note(ANN, "tokens.create", "x")
        self.assertEqual((len(self.trail.entries), self.newest()[1]), (EACH + 1, {}))
        self.audit.note(replace(ANN, who="token:bob"), "tokens.create", "x", "refused")
        self.assertEqual(self.newest()[1], {"leftOut": 7})
        for number in range(2 * ALL):
            self.audit.note(replace(ANN, who=f"device:{number}"), "auth.lockout")
        self.assertEqual(len(self.trail.entries), ALL + 1)
        self.now += 3_600_000
        self.audit.note(ANN, "auth.lockout")
        self.assertEqual(self.newest()[1], {"leftOut": 2 * ALL - (ALL - EACH - 1)})

    @settings(max_examples=40, deadline=None)
    @given(
        st.dictionaries(
            st.text(max_size=200),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
            ),
            max_size=40,
        ),
        st.text(max_size=2_000),
        st.sampled_from(["{}", "x {} y", "\ud800{}", "token={}", "{}" * 40]),
    )
    def test_bounded_and_without_secrets(self, details: dict[str, Any], filler: str, around: str) -> None:
        """Whatever is told, a row has its bounds, is JSON, and holds no secret that is known, in no place."""
        text = around.replace("{}", SECRET)
        actor = Actor(text, "ws", filler + text, text, text)
        act = self.audit.begin(actor, "config.set", filler + text, text)
        act.details.update(details, text=filler + text, listed=[text, {"hidden": text}] * 50, nested={text: text})
        act.details[text] = 1
        entry = self.audit.entry(act, "done")
        self.assertLessEqual(len(entry.details.encode()), MAX_DETAILS)
        self.assertIsInstance(json.loads(entry.details), dict)
        self.assertLessEqual(len(entry.target or ""), MAX_TARGET)
        self.assertNotIn(SECRET, repr(entry))

    def test_long_commands_are_cut(self) -> None:
        """A secret at the place of the cut is hidden before that; a text that is too long to be looked through is not shown."""
        act = self.audit.begin(ANN, "exec.approval.request", command=f"{'x' * 290} curl -H {SECRET}")
        command = json.loads(self.audit.entry(act, "done").details)["command"]
        self.assertTrue(command.endswith("..."))
        self.assertNotIn(SECRET[:6], command)
        act.tell(command="x" * 100_000)
        self.assertEqual(json.loads(self.audit.entry(act, "done").details), {"command": "(100000 characters)"})


class LockoutTests(SynchronousTestCase):
    """Failed authentication."""

    def test_once_for_each_lockout(self) -> None:
        """Not for each failure, not while it lasts, and again for the next one."""
        told: list[tuple[str | None, str]] = []
        auth = settings_of({"gateway": {"auth": {"rateLimit": {"maxAttempts": 3}}}}).config.gateway.auth
        rules = AddressRules.build(settings_of().config.gateway, [])
        judge = Authenticator("token", "the-secret", auth, rules, FailureLimiter(3, 60, 60))
        judge.locked = lambda address, what: told.append((address.client, what))
        for now in (0, 1, 2, 3, 4):
            judge.count(REMOTE, now, right=False)
        self.assertEqual(told, [("203.0.113.9", "shared-secret")])
        for now in (100, 101, 102, 103):
            judge.count(REMOTE, now, right=False, what="device-token")
            judge.count(REMOTE, now, right=False)
        self.assertEqual(told[1:], [("203.0.113.9", "device-token"), ("203.0.113.9", "shared-secret")])


class RowTests(StoreTestCase):
    """Rows on a real SQLite file."""

    def setUp(self) -> None:
        super().setUp()
        self.trail = SqlAudit(self.database)

    async def add(self, *entries: AuditEntry) -> None:
        for entry in entries:
            await self.trail.record(entry)

    async def found(self, limit: int = 100, **query: Any) -> list[tuple[int, str]]:
        return [(row.id, row.entry.action) for row in await self.trail.list(AuditQuery(limit, **query))]

    async def test_rows(self) -> None:
        """All fields come back after a restart; the newest is first."""
        whole = AuditEntry(NOW, "tokens.create", "token:ann", "ws", "refused", "Ann", "::1", "c", "r", "bob", '{"a":1}')
        bare = AuditEntry(NOW + 1, "gateway.stop", "gateway", "gateway", "done")
        await self.add(whole, bare)
        again = SqlAudit(self.open().database)  # type: ignore[attr-defined]
        self.assertEqual([row.entry for row in await again.list(AuditQuery(5))], [bare, whole])

    async def test_queries(self) -> None:
        """By what it is called, by whom, since when; page by page, or what has come since. Letters that are patterns elsewhere are letters."""
        actors = ("token:ann", "owner", "cli:root", "device:ff")
        for number, (action, who) in enumerate(zip(("tokens.create", "config.set", "tokens_x", "exec.approvals.set"), actors, strict=True)):
            await self.add(AuditEntry(NOW + number, action, who, "ws", "done", label="A%nn's" if who == "owner" else None))
        self.assertEqual(await self.found(action="tokens."), [(1, "tokens.create")])
        self.assertEqual(await self.found(action="tokens_"), [(3, "tokens_x")])
        self.assertEqual(await self.found(who="ANN"), [(1, "tokens.create")])
        self.assertEqual(await self.found(who="a%N"), [(2, "config.set")])
        self.assertEqual([number for number, _ in await self.found(since_ms=NOW + 1, until_ms=NOW + 3)], [3, 2])
        self.assertEqual([number for number, _ in await self.found(2)], [4, 3])
        self.assertEqual([number for number, _ in await self.found(2, before=3)], [2, 1])
        self.assertEqual([number for number, _ in await self.found(2, after=1)], [2, 3])

    async def test_with_the_act_or_not_at_all(self) -> None:
        """A token and its row are one transaction: where one of them cannot be written, neither is."""
        register = ApiTokens(SqlApiTokens(self.database), lambda: NOW)
        audit = Audit(self.trail, lambda: NOW)
        secret, _ = await register.create(Wanted("ann"), ("main",), audit.begin(ANN, "tokens.create", "ann"))
        (row,) = await self.trail.list(AuditQuery(5))
        self.assertEqual((row.entry.action, row.entry.outcome, row.entry.target), ("tokens.create", "done", "ann"))
        self.assertNotIn(secret.encode(), b"".join(path.read_bytes() for path in Path(self.folder).glob("mayros.db*")))
        await self.database.call(lambda connection: connection.exec_driver_sql("ALTER TABLE audit RENAME TO away"))
        with self.assertRaises(StorageUnavailable):
            await register.create(Wanted("bob"), ("main",), audit.begin(ANN, "tokens.create", "bob"))
        self.assertEqual([token.name for token in SqlApiTokens(self.database).load()], ["ann"])

    async def test_nobody_pushes_out_others(self) -> None:
        """Of too many, those go of whoever has the most: what a client is allowed to do it may do without end."""
        self.patch(rows, "MAX_ROWS", 50)

        def many(connection: sa.Connection) -> None:
            for number in range(100):
                who = "owner" if number < 10 else "token:loud"
                rows.add(connection, AuditEntry(NOW, f"exec.approval.resolve.{number}", who, "ws", "done"))

        await self.database.call(many)
        policy = settings_of().config.session.stateless
        await Maintenance(self.database, reactor, lambda: policy, lambda: NOW).sweep()  # type: ignore[arg-type]
        left = await self.found(1_000)
        self.assertEqual(len(left), 50)
        self.assertEqual([number for number, _ in left][-10:], [*range(10, 0, -1)])

    async def test_pruning(self) -> None:
        """After a year a row goes. Of too many the oldest go, those first that were refused or only asked for."""
        self.patch(rows, "MAX_ROWS", 150)
        self.patch(rows, "MAX_NOISE", 20)

        def many(connection: sa.Connection) -> None:
            for number in range(400):
                kind = ("tokens.create", "refused") if number < 100 else ("auth.lockout", "done") if number < 130 else ("config.set", "done")
                at_ms = NOW - rows.KEEP_MS - 1 if number in (0, 1, 2, 399) else NOW
                rows.add(connection, AuditEntry(at_ms, kind[0], "x", "ws", kind[1]))  # type: ignore[arg-type]

        await self.database.call(many)
        policy = settings_of().config.session.stateless
        await Maintenance(self.database, reactor, lambda: policy, lambda: NOW).sweep()  # type: ignore[arg-type]
        left = await self.found(1_000)
        self.assertEqual(len(left), 150)
        self.assertEqual({action for _, action in left}, {"config.set"})
        self.assertEqual((left[0][0], left[-1][0]), (400, 251))

    async def test_once_an_hour(self) -> None:
        """A sweep that comes sooner lets the trail alone."""
        policy = settings_of().config.session.stateless
        maintenance = Maintenance(self.database, reactor, lambda: policy, lambda: self.now)  # type: ignore[arg-type]
        await maintenance.sweep()
        await self.add(AuditEntry(1, "config.set", "x", "ws", "done"))
        await maintenance.sweep()
        self.assertEqual(len(await self.found()), 1)
        self.now += 3_600_000
        await maintenance.sweep()
        self.assertEqual(await self.found(), [])


class MigrationTests(SynchronousTestCase):
    """A store of the version before."""

    def test_from_the_schema_before(self) -> None:
        """It is copied, keeps what it has, and gets a trail that can be written."""
        folder = os.path.abspath(self.mktemp())
        os.mkdir(folder)
        path = os.path.join(folder, "mayros.db")
        open(path, "wb").close()
        url = f"sqlite:///{path}"
        old = make_engine(parse_url(url))
        migrate._upgrade(old, "0006")
        with old.begin() as connection:
            connection.exec_driver_sql("INSERT INTO api_tokens (name, token_hash, scopes, created_ms) VALUES ('ann', x'00', '[]', 5)")
        old.dispose()
        engine = open_engine(url)
        self.addCleanup(engine.dispose)
        self.assertTrue(os.path.exists(f"{path}.before-0006"))
        with engine.begin() as connection:
            self.assertEqual(connection.exec_driver_sql("SELECT name FROM api_tokens").scalar(), "ann")
            rows.add(connection, AuditEntry(1, "gateway.start", "gateway", "gateway", "done"))
            self.assertEqual([row.id for row in rows.found(connection, AuditQuery(5))], [1])


class TableTests(SynchronousTestCase):
    """What stands elsewhere."""

    def test_methods(self) -> None:
        """Each method that is marked has what is told of it, and no other; none of them, and not the trail, is for narrowed tokens."""
        self.assertEqual({name for name, method in METHODS.items() if method.audited}, set(AUDITED))
        self.assertEqual(METHODS["audit.list"].scope, "operator.admin")
        self.assertEqual(NARROWED & {*AUDITED, "audit.list"}, {"exec.approval.resolve"})

    def test_every_change_is_audited(self) -> None:
        """A method for administrators that changes something is marked; those that are not are known to read, or to speak in a session."""
        plain = {name for name, method in METHODS.items() if method.scope in ("operator.admin", "operator.pairing") and not method.audited}
        self.assertEqual(plain, {"chat.inject", "config.schema", "device.pair.list", "exec.approvals.get", "tokens.list", "audit.list"})

    def test_documented(self) -> None:
        """docs/operations.md has the actions that there are, and no others."""
        text = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()
        section = text.partition("### Who changed what")[2].partition("\n## ")[0].partition("\n### ")[0]
        told = {name for row in section.splitlines() if row.startswith("| `") for name in re.findall(r"`([a-z.]+)`", row.split("|")[1])}
        noted = set(AUDITED).union(*(_noted(path) for path in PACKAGE.rglob("*.py")))
        self.assertEqual(told, noted)


def _noted(path: Path) -> set[str]:
    """The actions that a module notes by itself: the argument behind the actor, or the place, of `note` and `begin`."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            called = [getattr(one, "attr", getattr(one, "id", "")) for one in (node.func, *node.args[:1])]
            behind = node.args[1:2] if called[0] in ("note", "begin") else node.args[2:3] if called[-1] == "note" else []
            found |= {one.value for one in behind if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    return found
