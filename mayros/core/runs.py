"""Live runs: each is a task of its own, from its submission to the commit of its turn. The local implementation of the port `Runs`.

A run waits for its session's lane and for a slot, thinks, commits, and only then is said to have ended. It ends in exactly one of ok, error,
aborted, timeout. Cancelling is Twisted's: the task is cancelled, the generators close, the provider's socket closes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Container
from contextlib import aclosing
from itertools import islice
from typing import Protocol

import msgspec
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from mayros.core.account import Account
from mayros.core.acting import Host
from mayros.core.allowance import Allowance
from mayros.core.claim_ports import Idempotency
from mayros.core.liverun import LiveRun
from mayros.core.pending import settled
from mayros.core.ports import DOORS, Clock, Door, History, Lanes, Lease, OnLost, Owner, Principal, RunResult, Slots, Turn, TurnStore, Watcher
from mayros.core.spending import LimitReached, Spending
from mayros.errors import BudgetExceeded, GatewayError, InvalidRequest, RunAborted, RunTimeout, ServerShutdown, Stopping, Unavailable, bare
from mayros.events import Event, Outcome, RunEnded, RunStarted

log = Logger()

#: How long, and how many, ended runs can still be asked about.
KEEP_SECONDS, KEEP_RUNS = 600.0, 1000


class Thinker(Protocol):
    """core/agent.py's loop."""

    def think(self, turn: Turn, history: History, host: Host) -> AsyncGenerator[list[Event], None]: ...


class LocalRuns:
    """See ports.Runs. `now_ms` is the wall clock, for the record; `clock` is for waiting; `spending` knows what today's runs have used."""

    def __init__(
        self,
        thinker: Thinker,
        store: TurnStore,
        idempotency: Idempotency,
        lanes: Lanes,
        slots: Slots,
        clock: Clock,
        now_ms: Callable[[], int],
        spending: Spending | None = None,
    ) -> None:
        self._thinker, self._store, self._idempotency = thinker, store, idempotency
        self._lanes, self._slots, self._clock, self._now_ms = lanes, slots, clock, now_ms
        self.spending = spending or Spending()
        self._live: dict[str, LiveRun] = {}
        self._ended: dict[str, tuple[float, RunResult]] = {}
        self._watchers: list[Watcher] = []
        self._idle: list[Deferred[None]] = []
        self._refused: Container[Door] = ()

    def submit(self, turn: Turn, principal: Principal, owner: Owner | None = None, on_lost: OnLost = "cancel") -> LiveRun:
        """See ports.Runs."""
        self.check(turn, principal)
        account = Account(turn, self.spending, self._now_ms, principal)
        run = LiveRun(turn, principal, owner, on_lost, self._cancel, self._clock, account, self._now_ms())
        self._live[turn.run_id] = run
        run.task = Deferred.fromCoroutine(self._drive(run))
        run.task.addErrback(self._broken, run)
        return run

    def check(self, turn: Turn, principal: Principal | None = None) -> None:
        """See ports.Runs."""
        if turn.door in self._refused:
            raise Stopping
        if not turn.agent.models and turn.model is None:
            raise Unavailable(f'Agent "{turn.agent.id}" has no model: set agents.defaults.model.primary, or run `mayros setup`.')
        if turn.run_id in self._live:
            raise InvalidRequest(f"A run {turn.run_id} is live already.")
        self.spending.check(turn.agent, self._now_ms(), principal)

    def get(self, run_id: str) -> LiveRun | None:
        """A run that has not ended."""
        return self._live.get(run_id)

    def find(self, session: str) -> list[LiveRun]:
        """See ports.Runs."""
        return [run for run in self._live.values() if str(run.turn.session) == session]

    def of(self, principal_id: str) -> list[LiveRun]:
        """See ports.Runs."""
        return [run for run in self._live.values() if run.principal.id == principal_id]

    def ended(self, run_id: str) -> RunResult | None:
        """See ports.Runs."""
        kept = self._ended.get(run_id)
        return kept[1] if kept is not None and kept[0] > self._clock.seconds() else None

    def newest(self, most: int) -> list[LiveRun]:
        """The live runs that were submitted last, newest first."""
        return list(islice(reversed(self._live.values()), most))

    def live(self) -> int:
        """How many runs have not ended."""
        return len(self._live)

    def abort(self, run_id: str, why: Exception) -> bool:
        """See ports.Runs."""
        run = self._live.get(run_id)
        return run is not None and self._cancel(run, why)

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """See ports.Runs."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def drain(self, doors: Container[Door] = DOORS) -> None:
        """Take no more runs, or none of these doors."""
        self._refused = doors

    def abort_all(self) -> None:
        """The gateway stops: whatever is live ends as aborted."""
        for run in list(self._live.values()):
            self._cancel(run, ServerShutdown())

    def drained(self) -> Deferred[None]:
        """See ports.Runs."""
        if not self._live:
            return succeed(None)
        waiter: Deferred[None] = Deferred(self._idle.remove)
        self._idle.append(waiter)
        return waiter

    def _cancel(self, run: LiveRun, why: Exception) -> bool:
        if run.committing or run.result is not None:
            return False
        if run.why is None:
            run.why = why
            if run.allowance is not None:
                run.allowance.stop()
            # Not at once: the call may come from inside the task, which can only be cancelled while it waits.
            self._clock.callLater(0, self._cancel_task, run)
        return True

    def _cancel_task(self, run: LiveRun) -> None:
        if not run.committing and run.result is None and run.task is not None:
            run.task.cancel()

    async def _drive(self, run: LiveRun) -> None:
        turn = run.turn
        run.allowance = allowance = Allowance(self._clock, self._slots, turn.timeout_seconds, lambda: self._cancel(run, _timeout(turn)))
        lease: Lease | None = None
        history: History | None = None
        outcome: Outcome = "ok"
        try:
            try:
                session = str(turn.session)
                lease = await self._lanes.acquire(session)
                await self._slots.acquire()
                allowance.held = True
                self.spending.check(turn.agent, self._now_ms(), run.principal)  # those before it in the queue have used some
                history = self._store.fresh(turn.session) if turn.stateless else await self._store.history(turn.session)
                turn = run.turn = settled(turn, history)
                await self._tell(run, [RunStarted(turn.run_id, session, turn.agent.id, run.started_ms)])
                if (limit := await self._think(run, history)) is not None:
                    await self._tell(run, run.ends(limit))
            except CancelledError as cancelled:
                bare(cancelled)
                run.error = run.why or RunAborted()
                outcome = "timeout" if type(run.error) is RunTimeout else "aborted"
            except GatewayError as error:
                run.error, outcome = bare(error), "error"
            except Exception:  # noqa: BLE001  a defect must end its run, and no other
                log.failure("run {run_id} failed inside", run_id=turn.run_id)
                run.error, outcome = GatewayError(), "error"
            run.committing = True
            allowance.stop()
            said = run.close()
            if said and isinstance(run.error, GatewayError) and run.error.should_retry is None:
                run.error.should_retry = False  # it has acted; the same again might do the same twice
            result = self._result(run, outcome, history)
            if lease is not None and history is not None and (said or not isinstance(run.error, InvalidRequest | BudgetExceeded)):
                try:
                    await self._store.finish(turn, history, result, lease, said, run.principal.id)
                    run.recorded = True
                except GatewayError as error:
                    run.error, outcome = bare(error), "error"
                    result = self._result(run, outcome, history)
                    if not said:  # what it did besides talking must not be done twice: then the key's answer is this error
                        await self._release_claim(turn)
            else:
                await self._release_claim(turn)
            # Told before the lane is free: whoever watches hears of this end before the next begins.
            del self._live[turn.run_id]
            self._publish(run, [RunEnded(outcome, result.finish_reason, result.usage, result.ended_at_ms, run.error)])
            self._end(run, result)
        finally:
            self._live.pop(turn.run_id, None)
            allowance.end()
            run.allowance = None  # they know each other
            if lease is not None:
                self._lanes.release(lease)

    async def _think(self, run: LiveRun, history: History) -> str | None:
        """Let it think, and tell what it says. The sentence about the limit that ended it before it was done, if one did."""
        try:
            async with aclosing(self._thinker.think(run.turn, history, run)) as batches:
                async for batch in batches:
                    await self._tell(run, run.take(batch))
                    if run.account.passed is not None:
                        return run.account.passed.sentence
        except LimitReached as reached:
            if run.model is None and (refusal := reached.refusal(self._now_ms())) is not None:
                raise refusal from None
            return bare(reached).message
        return None

    async def _release_claim(self, turn: Turn) -> None:
        """Nothing was recorded, so the idempotency key is free again."""
        if turn.claim is not None:
            try:
                await self._idempotency.release(turn.claim)
            except GatewayError:
                log.failure("run {run_id}: its idempotency key could not be released; it expires by itself", run_id=turn.run_id)

    async def _tell(self, run: LiveRun, events: list[Event]) -> None:
        self._publish(run, events)
        if run.owner is not None:
            await run.owner.send(events)

    def _publish(self, run: LiveRun, events: list[Event]) -> None:
        for watcher in tuple(self._watchers):  # one may stop watching because of what it hears
            watcher(run, events)

    def _result(self, run: LiveRun, outcome: Outcome, history: History | None) -> RunResult:
        turn, model, error = run.turn, run.model, run.error
        return RunResult(
            run_id=turn.run_id,
            session_key=str(turn.session),
            session_id=history.session_id if history is not None else "",
            agent_id=turn.agent.id,
            outcome=outcome,
            text=run.text,
            started_at_ms=run.started_ms,
            # The wall clock may have been set meanwhile; how long it took is what it took.
            ended_at_ms=run.started_ms + round((self._clock.seconds() - run.began) * 1000),
            # A call that is not handed back is no reason that a client knows.
            finish_reason=("stop" if run.finish_reason == "tool_calls" and not run.calls else run.finish_reason) if outcome == "ok" else None,
            usage=run.account.usage,
            provider=model.provider if model is not None else None,
            model=model.model if model is not None else None,
            error_code=(error.code or "invalid_request") if isinstance(error, GatewayError) else None,
            error=error.message if isinstance(error, GatewayError) else None,
            turns=tuple(run.account.turns) if len(run.account.turns) > 1 else (),
            calls=run.calls if outcome == "ok" else (),
        )

    def _end(self, run: LiveRun, result: RunResult) -> None:
        if run.turn.door != "chat":
            self._keep(result)
        run.end(result)
        if not self._live:
            idle, self._idle = self._idle, []
            for waiter in idle:
                waiter.callback(None)

    def _keep(self, result: RunResult) -> None:
        """For whoever asks by the run's id a little later; HTTP clients never do."""
        now, ended = self._clock.seconds(), self._ended
        ended.pop(result.run_id, None)
        ended[result.run_id] = (now + KEEP_SECONDS, msgspec.structs.replace(result, text=""))
        while len(ended) > KEEP_RUNS or next(iter(ended.values()))[0] <= now:
            del ended[next(iter(ended))]

    def _broken(self, failure: Failure, run: LiveRun) -> None:
        """The task itself failed: a defect, but whoever waits must not wait for ever."""
        log.failure("run {run_id} could not be closed", failure=failure, run_id=run.turn.run_id)
        run.error = GatewayError()
        result = self._result(run, "error", None)
        self._publish(run, [RunEnded("error", None, result.usage, result.ended_at_ms, run.error)])
        self._end(run, result)


def _timeout(turn: Turn) -> RunTimeout:
    return RunTimeout(f"The run reached its limit of {turn.timeout_seconds:g} s.")
