"""What was used, on a real SQLite file: counted with the turns, summed by day, and kept without names for good."""

import os
from typing import Any

from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from twisted.internet.defer import gatherResults
from twisted.trial.unittest import SynchronousTestCase

from mayros.config.schema import Stateless
from mayros.config.section import Milliseconds
from mayros.core.keys import SessionKey
from mayros.core.ports import Lease, ModelTurn, RunResult, Turn
from mayros.core.spending import DAY_MS, Spent
from mayros.core.usage_ports import Field, UsageQuery, UsageSum, day_of
from mayros.errors import StorageUnavailable
from mayros.events import Usage
from mayros.storage.engine import default_url
from mayros.storage.maintenance import Maintenance
from mayros.storage.migrate import open_engine
from mayros.storage.sessions import SqlSessions
from mayros.storage.statements import Statements, Used, summed
from mayros.storage.usage import KEEP_DAYS, SqlUsage, sums, used
from tests.test_storage import AGENT, ALICE, NOW, StoreTestCase, said

TODAY = day_of(NOW)
BOB = SessionKey("main", "bob")
ALL = UsageQuery("0000-01-01", "9999-12-31")


class UsageCase(StoreTestCase):
    """A store with its sums."""

    def setUp(self) -> None:
        super().setUp()
        self.usage = SqlUsage(self.database)

    async def sums(self, *by: Field, **query: Any) -> dict[tuple[str, ...], tuple[int, int, int, Usage]]:
        """Names to runs, turns, turns without a cost, and counts."""
        found = await self.usage.sums(by, UsageQuery(**{"since": ALL.since, "until": ALL.until, **query}))
        return {one.names: (one.runs, one.turns, one.unpriced, one.usage) for one in found}

    async def stateless(self, name: str, **more: Any) -> None:
        key = SessionKey("main", f"openai:{name}")
        await self.finish(self.turn("hi", session=key, stateless=True), self.store.fresh(key), "ho", **more)


class CountingTests(UsageCase):
    """A turn adds to the sums of its day."""

    async def test_a_turn(self) -> None:
        """All counts, by day, agent, who asked, session, provider and model; the session has its own."""
        usage = Usage(12, 7, cache_read=3, cache_write=2, reasoning=4, cost_nano=1_234)
        turn, history = self.turn("one"), self.store.fresh(ALICE)
        await self.store.finish(turn, history, self.result(turn, history, "first", usage=usage), Lease("", 1), (), "user:alice")
        await self.say("two", "second", usage=usage)
        found = await self.sums("day", "agent", "principal", "session", "provider", "model")
        one = (1, 1, 0, usage)
        self.assertEqual(
            found,
            {
                (TODAY, "main", "user:alice", "agent:main:alice", "mock", "m"): one,
                (TODAY, "main", "", "agent:main:alice", "mock", "m"): one,
            },
        )
        self.assertEqual(await self.sums(principal="user:alice"), {(): one})
        self.assertEqual(await self.sums(principal="user:bob"), {})
        self.assertEqual(self.open().spent(self.now, "principal"), {"": Spent(24, 1_234), "user:alice": Spent(24, 1_234)})
        row = await SqlSessions(self.database, self.store, lambda: self.now).get("agent:main:alice")
        assert row is not None
        self.assertEqual((row.input_tokens, row.output_tokens), (34, 14))
        self.assertEqual((row.cache_read_tokens, row.cache_write_tokens, row.cost_nano), (6, 4, 2_468))

    async def test_days(self) -> None:
        """A turn counts for the day on which it ended; days can be asked for by their ends, both counted."""
        for _ in range(3):
            await self.say("a", "b", usage=Usage(1))
            self.now += DAY_MS
        days = [day_of(NOW + n * DAY_MS) for n in range(3)]
        self.assertEqual([names for names, *_ in (await self.sums("day")).items()], [(day,) for day in days])
        self.assertEqual(list(await self.sums("day", since=days[1])), [(days[1],), (days[2],)])
        self.assertEqual(list(await self.sums("day", since=days[1], until=days[1])), [(days[1],)])
        self.assertEqual((await self.sums())[()], (3, 3, 3, Usage(3)))
        self.assertEqual(await self.sums(since="2090-01-01"), {})

    async def test_the_dearest_first(self) -> None:
        """Then the largest; as many as are asked for."""
        for key, usage in ((ALICE, Usage(5, cost_nano=1)), (BOB, Usage(1, cost_nano=9)), (SessionKey("main", "carol"), Usage(9, cost_nano=1))):
            await self.say("a", "b", session=key, usage=usage)
        self.assertEqual(list(await self.sums("session")), [("agent:main:bob",), ("agent:main:carol",), ("agent:main:alice",)])
        self.assertEqual(list(await self.sums("session", limit=1)), [("agent:main:bob",)])
        self.assertEqual(await self.sums(session="agent:main:carol"), {(): (1, 1, 0, Usage(9, cost_nano=1))})

    async def test_stateless(self) -> None:
        """Requests without a session have none here either: one row for all of them."""
        for number in range(3):
            await self.stateless(str(number))
        self.assertEqual(self.rows("SELECT session_key, runs, input FROM usage_days"), [("", 3, 36)])
        self.assertEqual(await self.sums(session=""), {(): (3, 3, 3, Usage(36, 21))})

    async def test_a_batch_is_one_row(self) -> None:
        """A hundred turns that end together change one row, once."""
        changes = await self.database.call(lambda connection: connection.exec_driver_sql("SELECT total_changes()").scalar())
        await gatherResults([self._stateless(n) for n in range(100)])
        after = await self.database.call(lambda connection: connection.exec_driver_sql("SELECT total_changes()").scalar())
        # A session and two entries for each turn.
        self.assertEqual(after - changes, 301)
        self.assertEqual(self.rows("SELECT runs, turns, input, output FROM usage_days"), [(100, 100, 1_200, 700)])

    def _stateless(self, number: int) -> Any:
        key = SessionKey("main", f"openai:{number}")
        return self.finish(self.turn("hi", session=key, stateless=True), self.store.fresh(key), "ho")

    async def test_a_run_with_several_model_turns(self) -> None:
        """Counts for each model; as a run for the last one. Each message of a model has its own turn's usage beside it."""
        made = [said("assistant", "calls"), said("tool", "result"), said("assistant", "done")]
        turns = (ModelTurn("mock", "m", Usage(10, 1, cost_nano=5), 0), ModelTurn("other", "n", Usage(20, 2), 2))
        turn, history = self.turn("one"), self.store.fresh(ALICE)
        result = self.result(turn, history, "done", usage=Usage(30, 3, cost_nano=5), provider="other", model="n", turns=turns)
        await self.store.finish(turn, history, result, Lease("", 1), made)
        self.assertEqual(
            await self.sums("provider", "model"),
            {("mock", "m"): (0, 1, 0, Usage(10, 1, cost_nano=5)), ("other", "n"): (1, 1, 1, Usage(20, 2))},
        )
        sessions = SqlSessions(self.database, self.store, lambda: self.now)
        found = await sessions.transcript("agent:main:alice", 10)
        assert found is not None
        metas = [entry.meta for entry in found.entries]
        self.assertEqual([meta is None for meta in metas], [True, False, True, False])
        self.assertEqual([(meta.model, meta.usage, meta.outcome) for meta in metas if meta], [("m", turns[0].usage, None), ("n", Usage(20, 2), "ok")])
        # What the newest prompt took, not the sum of all of the run's.
        self.assertEqual((found.row.last_usage, found.row.input_tokens), (Usage(20, 2), 30))

    async def test_a_run_without_a_model(self) -> None:
        """Nobody answered: there is nothing to count."""
        await self.say("one", "", "error", provider=None, model=None, usage=Usage())
        self.assertEqual(self.rows("SELECT * FROM usage_days"), [])

    async def test_a_turn_that_is_not_recorded(self) -> None:
        """Is not counted in the store; those beside it are."""
        await self.say("one", "first")
        await self.assertFailure(self.finish(self.turn("two"), await self.store.history(ALICE), "2", usage=Usage(10**30)), StorageUnavailable)
        self.assertEqual((await self.sums())[()][:2], (1, 1))


class RestartTests(UsageCase):
    """The day's spending survives."""

    async def test_today(self) -> None:
        """A gateway that starts anew knows what was spent today, by agent, and nothing of yesterday."""
        await self.say("one", "first", usage=Usage(1_000, cost_nano=1_000))
        self.now += DAY_MS
        await self.say("two", "second", usage=Usage(10, 5, cache_read=2, cache_write=1, cost_nano=7))
        await self.stateless("x", usage=Usage(1))
        self.assertEqual(self.open().spent(self.now), {"main": Spent(19, 7)})
        self.assertEqual(self.open().spent(self.now + DAY_MS), {})


class ForgettingTests(UsageCase):
    """Names go, sums stay."""

    def setUp(self) -> None:
        super().setUp()
        self.sessions = SqlSessions(self.database, self.store, lambda: self.now)

    async def test_a_deleted_session(self) -> None:
        """What it used stays, without its name."""
        await self.say("a", "b", usage=Usage(5, cost_nano=3))
        await self.stateless("x", usage=Usage(1, cost_nano=1))
        await self.say("a", "b", session=BOB, usage=Usage(12, 7, cost_nano=2))
        before = await self.sums("day", "agent", "model")
        self.assertEqual(before, {(TODAY, "main", "m"): (3, 3, 0, Usage(18, 7, cost_nano=6))})
        await self.sessions.delete(ALICE)
        self.assertEqual(
            await self.sums("session"), {("",): (2, 2, 0, Usage(6, cost_nano=4)), ("agent:main:bob",): (1, 1, 0, Usage(12, 7, cost_nano=2))}
        )
        self.assertEqual(await self.sums("day", "agent", "model"), before)

    async def test_a_reset_session(self) -> None:
        """Begins to count anew, but the sums of its key go on."""
        await self.say("a", "b", usage=Usage(5, cache_read=2, cost_nano=3))
        row = await self.sessions.reset(ALICE)
        self.assertEqual((row.input_tokens, row.cache_read_tokens, row.cost_nano), (0, 0, 0))
        await self.say("a", "b", usage=Usage(5, cost_nano=3))
        self.assertEqual((await self.sums("session"))[("agent:main:alice",)][:2], (2, 2))

    async def test_long_ago(self) -> None:
        """After ninety days it is not kept which session it was; one look a day."""
        await self.say("a", "b")
        await self.say("a", "b", session=BOB)
        self.now += DAY_MS
        await self.say("a", "b")
        maintenance = Maintenance(self.database, None, _nothing_to_prune, lambda: self.now)  # type: ignore[arg-type]
        self.now = NOW + KEEP_DAYS * DAY_MS
        await maintenance.sweep()
        self.assertEqual(len(self.rows("SELECT * FROM usage_days")), 3)
        self.now += DAY_MS
        await maintenance.sweep()
        self.assertEqual(
            self.rows("SELECT day, session_key, runs FROM usage_days ORDER BY day"),
            [(TODAY, "", 2), (day_of(NOW + DAY_MS), "agent:main:alice", 1)],
        )
        await self.database.call(lambda connection: connection.exec_driver_sql("UPDATE usage_days SET session_key = 'x'"))
        await maintenance.sweep()
        self.assertEqual(len(self.rows("SELECT * FROM usage_days WHERE session_key = 'x'")), 2)


def _nothing_to_prune() -> Stateless:
    return Stateless(ttl=Milliseconds(10**15), max_entries=10**9)


_counts = st.integers(0, 10**6)
_usages = st.builds(Usage, _counts, _counts, _counts, _counts, _counts, st.integers(0, 10**12))
_model = st.sampled_from([("mock", "m"), ("mock", "n"), ("other", "m")])
_runs = st.tuples(
    st.sampled_from(["alice", "bob", None]), st.sampled_from(["owner", "user:x"]), st.integers(0, 2), st.lists(st.tuples(_model, _usages), min_size=1)
)


class SumsTests(SynchronousTestCase):
    """The table against the runs."""

    def setUp(self) -> None:
        self.folder = os.path.abspath(self.mktemp())
        os.mkdir(self.folder)
        self.engine = open_engine(default_url(self.folder))
        self.addCleanup(self.engine.dispose)
        self.upsert = Statements(self.engine.dialect).upsert_usage

    @hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(st.lists(_runs, max_size=12), st.data())
    def test_sums_are_those_of_the_runs(self, runs: list[Any], data: st.DataObject) -> None:
        """However the runs fall into batches, each sum of the table is the sum over the runs."""
        rows = [used(*self.run_(*run)) for run in runs]
        with self.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM usage_days")
            while rows:
                size = data.draw(st.integers(1, len(rows)))
                batch, rows = rows[:size], rows[size:]
                connection.exec_driver_sql(self.upsert, summed([row for one in batch for row in one]))
            whole = sums(connection, (), ALL)
            by_model = sums(connection, ("model", "provider"), ALL)
            by_session = sums(connection, ("session",), ALL)
        expected = Usage()
        for _, _, _, turns in runs:
            for _, usage in turns:
                expected = expected.plus(usage)
        for found in (whole, by_model, by_session):
            self.assertEqual(self.added(found), (len(runs), sum(len(run[3]) for run in runs), expected))

    def run_(self, name: str | None, principal: str, day: int, turns: list[tuple[tuple[str, str], Usage]]) -> tuple[Turn, RunResult, str]:
        usage = Usage()
        for _, one in turns:
            usage = usage.plus(one)
        session = SessionKey("main", name or "openai:1")
        turn = Turn("r", AGENT, session, name is None, (), "ws")
        each = tuple(ModelTurn(provider, model, one) for (provider, model), one in turns) if len(turns) > 1 else ()
        (provider, model), _ = turns[-1]
        ended = NOW + day * DAY_MS
        result = RunResult("r", str(session), "s", "main", "ok", "", ended, ended, usage=usage, provider=provider, model=model, turns=each)
        return turn, result, principal

    def added(self, found: Any) -> tuple[int, int, Usage]:
        whole = UsageSum((), 0, 0, 0, Usage())
        for one in found:
            whole = UsageSum((), whole.runs + one.runs, whole.turns + one.turns, 0, whole.usage.plus(one.usage))
        return whole.runs, whole.turns, whole.usage

    def test_nothing(self) -> None:
        """A store that has counted nothing has no sums."""
        with self.engine.connect() as connection:
            self.assertEqual(sums(connection, (), ALL), [])

    def test_a_batch(self) -> None:
        """One row for each key, whoever is in it."""
        made: list[Used] = [(("d", "a", "p", "s", "v", m), (1, 1, 5, 0, 0, 0, 0, 0)) for m in ("m", "n", "m")]
        rows = [("d", "a", "p", "s", "v", "m", 2, 2, 10, 0, 0, 0, 0, 0), ("d", "a", "p", "s", "v", "n", 1, 1, 5, 0, 0, 0, 0, 0)]
        self.assertEqual(summed(made), rows)
        self.assertEqual(summed([]), [])
