"""One run's way through its candidates: whom it asks next, what became of those before, and the events that tell of it.

    course = Course(health, candidates)
    while True:
        tried = course.next(now)                # raises what the run ends with where nobody is left
        ... ask tried.candidate; course.answered() with its first event ...
        course.failed(error, spoken, now)       # False: the run ends with this error
        ... or course.finished(), and for the next model turn the same candidate goes on
    course.end(run_id)                          # in any case

Imports events, errors, failover and health.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from math import ceil

import msgspec
from twisted.logger import Logger

from mayros.core.failover import Candidate, kind_of, most_tries, step_after
from mayros.core.health import Block, ModelHealth, Try
from mayros.errors import GatewayError, InsufficientQuota, RateLimited, Unavailable, bare
from mayros.events import Event, ModelFailed

log = Logger()

#: Kinds of ModelFailed that are no failures: the key rests, the breaker is open, the model was slow and another one faster (hedge.py).
COOLING, OPEN, SLOW = "cooling_down", "breaker_open", "slow"
#: Clients wait as long as Retry-After says, whatever it says; beyond this they are told not to wait at all.
LONGEST_WAIT = 60
#: How many candidates an error names.
_NAMED = 4


class _Gone(msgspec.Struct, frozen=True):
    """Who will not answer, and why; to be told with the one that is asked instead."""

    candidate: Candidate
    kind: str
    error: str


class Course:
    """See the module."""

    __slots__ = ("_answered_once", "_candidates", "_failures", "_gone", "_health", "_place", "_refused", "_spent", "_told", "_tried", "_untold")

    def __init__(self, health: ModelHealth, candidates: Sequence[Candidate]) -> None:
        self._health, self._candidates = health, candidates
        self._place = self._failures = 0
        self._tried: Try | None = None
        #: Whether the end of what is being asked has been told; and whether anybody has answered this run.
        self._told, self._answered_once = True, False
        self._refused: GatewayError | None = None
        self._untold: list[_Gone] = []
        #: Keys that are of no use to this run, and places that were asked out of order.
        self._spent: set[tuple[str, str]] | None = None
        self._gone: set[int] | None = None

    # Whom to ask.

    def next(self, now: float) -> Try:
        """Whom to ask now. Raises the last failure where nobody is left, Unavailable where there never was anybody, and where all of them rest
        RateLimited, InsufficientQuota or Unavailable, which say until when."""
        blocks: list[Block] = []
        first = self._place
        while self._place < len(self._candidates):
            found = self._admitted(self._place, now)
            if type(found) is Try:
                self._untold += [_gone_of(block) for block in blocks]
                return self._ask(found)
            if type(found) is Block:
                blocks.append(found)
            self._place += 1
        if self._refused is not None:
            raise self._refused
        if not blocks:
            raise Unavailable("There is no model to ask: set agents.defaults.model.primary, or run `mayros setup`.")
        return self._ask(self._last_resort(blocks, first, now))

    @property
    def has_other(self) -> bool:
        """Whether a model stands behind the one that is being asked."""
        last = self._candidates[-1].model
        return self._tried is not None and last is not self._tried.candidate.model

    def other(self, now: float) -> Try | None:
        """One with another model to ask beside the one that is being asked, for a hedge: `overtaken`, `succeeded_by` or `beaten` tells its end."""
        assert self._tried is not None
        for place in range(self._place + 1, len(self._candidates)):
            if self._candidates[place].model is not self._tried.candidate.model:
                found = self._admitted(place, now)
                if type(found) is Try:
                    return found
        return None

    def _admitted(self, place: int, now: float) -> Try | Block | None:
        candidate = self._candidates[place]
        if self._gone is not None and place in self._gone:
            return None
        if self._spent is not None and _key(candidate) in self._spent:
            return None
        return self._health.admit(candidate, now)

    def _ask(self, tried: Try) -> Try:
        self._tried, self._told = tried, False
        return tried

    def _last_resort(self, blocks: list[Block], first: int, now: float) -> Try:
        """All rest. Where one rest covers them all there is nothing that could stand in, and a run that is going on is not to die of another's
        failure: then only what the provider itself said holds. Else the primary is asked in its last two minutes."""
        health, primary = self._health, blocks[0].candidate
        only = blocks[0].cool is not None and all(block.cool is blocks[0].cool for block in blocks)
        wait = min(block.left for block in blocks)
        found: Try | Block | float
        if only or self._answered_once:
            found = health.admit(primary, now, insist=True)
            wait = found.left if type(found) is Block else wait
        else:
            found = health.probe(primary, now) if blocks[0].cool is not None else wait
            wait = min(wait, found) if isinstance(found, float) else wait
        if type(found) is Try:
            self._place = next(place for place in range(first, len(self._candidates)) if self._candidates[place] is primary)
            return found
        raise _resting([found] if only and type(found) is Block else blocks, wait, health.wall_ms())

    # What became of it.

    def answered(self) -> None:
        """The first event has come."""
        tried, self._answered_once = self._tried, True
        assert tried is not None
        self._health.answered(tried)
        if tried.probe:
            self._tried = Try(tried.candidate, tried.asked_at)

    def finished(self) -> None:
        """The model turn is complete. The next `next` gives the same candidate, if it may still be asked."""
        self._told = True
        if self._tried is not None:
            self._health.finished(self._tried)
        self._refused = None

    def failed(self, error: GatewayError, spoken: bool, now: float) -> bool:
        """It has failed. Whether another one may be asked: not once something was `spoken`."""
        candidate, step = self._note(error, now), step_after(error)
        if spoken or step == "stop":
            return False
        self._refused = bare(error)
        if step == "key":
            self._place += 1
        else:
            self._pass_model(candidate)
        return self._failures < most_tries(self._candidates) and self._place < len(self._candidates)

    def _note(self, error: GatewayError, now: float) -> Candidate:
        """What is asked has failed; which that is."""
        tried, self._told = self._tried, True
        assert tried is not None
        self._health.failed(tried, error, now)
        self._failures += 1
        self._untold.append(_Gone(tried.candidate, kind_of(error), error.message))
        if error.kind in ("auth", "billing"):
            self._spent = {_key(tried.candidate), *(self._spent or ())}
        return tried.candidate

    def unfit(self, error: GatewayError, kept: bool = False) -> None:
        """It was not asked after all: its model cannot take this request. `kept`: an earlier reason is the better one to end with."""
        self.release()
        if self._refused is None or not kept:
            self._refused = error
        if self._tried is not None:
            self._pass_model(self._tried.candidate)

    def end(self, run_id: str) -> None:
        """The run is over, however it came to that: what was admitted is given back, and a failure after which nobody was asked is in the log."""
        self.release()
        for one in self._untold:
            level = log.debug if one.kind in (COOLING, OPEN) else log.info if one.kind == "overflow" else log.warn
            level(
                "run {run_id}: {model} {key} failed ({kind}: {error}); nobody else is asked",
                run_id=run_id, model=one.candidate.model.ref, key=_named(one.candidate), kind=one.kind, error=one.error,
            )  # fmt: skip
        self._untold = []

    def release(self) -> None:
        """Whatever happens, what was admitted is given back; nothing where its end was told."""
        if not self._told and self._tried is not None:
            self._told = True
            self._health.dropped(self._tried)

    def _pass_model(self, candidate: Candidate) -> None:
        while self._place < len(self._candidates) and self._candidates[self._place].model is candidate.model:
            self._place += 1

    # A hedge: two are asked at once.

    def overtaken(self, other: Try, after_ms: float) -> None:
        """The other one was faster; the first is not asked any more."""
        assert self._tried is not None
        self._untold.append(_Gone(self._tried.candidate, SLOW, f"No event within {after_ms:.0f} ms; the next model was faster."))
        self.release()
        self._takes_over(other)

    def succeeded_by(self, other: Try, error: GatewayError, now: float) -> None:
        """The first one has failed, in whatever way, while the other one was being asked, which is the one now."""
        self._note(error, now)
        self._takes_over(other)

    def beaten(self, other: Try, error: GatewayError | None, now: float) -> None:
        """The other one has failed, or was slower (`error` None): the first goes on, and the other is not asked again if it has failed."""
        if error is None:
            self._health.dropped(other)
            return
        self._health.failed(other, error, now)
        self._untold.append(_Gone(other.candidate, kind_of(error), error.message))
        self._gone = {place for place, one in enumerate(self._candidates) if one.model is other.candidate.model} | (self._gone or set())

    def _takes_over(self, other: Try) -> None:
        self._place = next(place for place, one in enumerate(self._candidates) if one is other.candidate)
        self._ask(other)

    # What is told.

    @property
    def untold(self) -> bool:
        """Whether `tell` has something to say."""
        return bool(self._untold)

    def tell(self, run_id: str) -> list[Event]:
        """What became of those before the one that is asked now: events, and a line each in the log."""
        assert self._tried is not None
        now, gone, self._untold = self._tried.candidate, self._untold, []
        for one in gone:
            level = log.debug if one.kind in (COOLING, OPEN) else log.warn
            level(
                "run {run_id}: {model} {key} did not answer ({kind}: {error}); asking {next_model} {next_key}",
                run_id=run_id, model=one.candidate.model.ref, key=_named(one.candidate), kind=one.kind, error=one.error,
                next_model=now.model.ref, next_key=_named(now),
            )  # fmt: skip
        return [
            ModelFailed(
                one.candidate.model.provider.id,
                one.candidate.model.id,
                one.candidate.key_id,
                one.kind,
                one.error,
                now.model.provider.id,
                now.model.id,
                now.key_id,
            )
            for one in gone
        ]


def _key(candidate: Candidate) -> tuple[str, str]:
    return candidate.model.provider.id, candidate.key_id


def _named(candidate: Candidate) -> str:
    return f"({candidate.key_id})" if candidate.credential is not None else "(without a key)"


def _gone_of(block: Block) -> _Gone:
    if block.cool is not None:
        return _Gone(block.candidate, COOLING, f"Rests for another {ceil(block.left)} s ({block.kind}).")
    return _Gone(block.candidate, OPEN, f"Has failed again and again ({block.kind}); not asked for another {ceil(block.left)} s.")


_ERRORS = {"rate_limit": RateLimited, "billing": InsufficientQuota}


def _resting(blocks: Sequence[Block], wait: float, wall_ms: int) -> GatewayError:
    """The error that says who rests until when. Keys are not named: it is for clients."""
    seconds = max(1, ceil(wait))
    said: dict[str, str] = {}
    for block in blocks:
        until = datetime.fromtimestamp(wall_ms / 1000 + block.left, UTC).strftime("%H:%M:%S UTC")
        why = "cools down" if block.cool is not None else "has failed again and again and is not asked"
        said.setdefault(
            block.candidate.model.ref, f"{block.candidate.model.ref} {why} ({block.kind}) for another {ceil(block.left)} s, until {until}"
        )
    more = f"; and {len(said) - _NAMED} more" if len(said) > _NAMED else ""
    message = f"No model can be asked at the moment: {'; '.join(list(said.values())[:_NAMED])}{more}."
    primary = blocks[0]
    kind = _ERRORS.get(primary.kind, Unavailable) if primary.cool is not None else Unavailable
    return kind(message, retry_after=seconds, should_retry=False if seconds > LONGEST_WAIT else None)
