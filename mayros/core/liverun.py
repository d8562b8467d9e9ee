"""One live run: what it has said and what of that is recorded, what it uses, who owns it, who waits for its end. Imports core ports and account."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall

from mayros.core.account import Account
from mayros.core.allowance import Allowance
from mayros.core.ports import Clock, ModelRequest, OnLost, Owner, Principal, RunResult, Turn
from mayros.core.reply import APART
from mayros.errors import RunAborted
from mayros.events import Event, FinishReason, ModelAnswered, ReasoningDelta, TextDelta, ToolStarted, TurnFinished, Usage
from mayros.messages import Message, ToolCall, pack

T = TypeVar("T")

#: How long a run waits for a client to come back.
GRACE_SECONDS = 30.0
#: Bytes of what is kept of how likely an answer's tokens are; of a longer one nothing is.
MOST_LOGPROBS = 16 << 20


class LiveRun:
    """One run; see ports.Run."""

    __slots__ = (
        *("_abort", "_before", "_clients", "_grace", "_logprobs", "_logprobs_size", "_mark", "_on_lost", "_parts", "_recorded", "_waiters"),
        *("account", "allowance", "began", "calls", "clock", "committing", "error", "finish_reason", "model", "principal", "recorded", "result"),
        *("owner", "started_ms", "task", "turn", "why", "__weakref__"),
    )

    def __init__(
        self,
        turn: Turn,
        principal: Principal,
        owner: Owner | None,
        on_lost: OnLost,
        abort: Callable[[LiveRun, Exception], bool],
        clock: Clock,
        account: Account,
        started_ms: int = 0,
    ) -> None:
        self.turn, self.principal, self.clock, self.account = turn, principal, clock, account
        self.result: RunResult | None = None
        self.error: Exception | None = None
        self._on_lost, self._abort = on_lost, abort
        #: Whose stream the run writes, and waits for where its client is slow.
        self.owner = owner
        self._parts: list[str] = []
        self._logprobs: list[bytes] | None = []
        self._logprobs_size = 0
        self._recorded: list[msgspec.Raw] = []
        #: How many of the parts are in what was recorded, and how many came before the newest model turn.
        self._mark = self._before = 0
        self.allowance: Allowance | None = None
        self._waiters: list[Deferred[RunResult]] = []
        self.model, self.finish_reason = None, None
        self.task: Deferred[None] | None = None
        self.why: Exception | None = None
        self.committing = self.recorded = False
        self.started_ms, self.began = started_ms, clock.seconds()
        #: Clients that wait for it, and the end of its waiting for one.
        self._clients = 1
        self._grace: IDelayedCall | None = None
        #: What its caller has to answer.
        self.calls: tuple[ToolCall, ...] = ()

    model: ModelAnswered | None
    finish_reason: FinishReason | None

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._parts)

    def take(self, events: list[Event]) -> list[Event]:
        """Remember what the run will be recorded with, and what it uses. The events as they are told."""
        account, short = self.account, None
        for event in events:
            kind = type(event)
            if kind is TextDelta:
                self._parts.append(event.text)  # type: ignore[attr-defined]
                if event.logprobs is not None:  # type: ignore[attr-defined]
                    self._odds(event.logprobs)  # type: ignore[attr-defined]
                if account.cap is not None:
                    account.said(event.text)  # type: ignore[attr-defined]
            elif kind is ReasoningDelta:
                if account.cap is not None:
                    account.said(event.text)  # type: ignore[attr-defined]
            elif kind is Usage:
                account.used(event)  # type: ignore[arg-type]
            elif kind is ModelAnswered:
                account.answered(event)  # type: ignore[arg-type]
                self.model, self._before = event, len(self._parts)  # type: ignore[assignment]
            elif kind is ToolStarted:
                self._logprobs = None
            elif kind is TurnFinished:
                self.finish_reason = event.reason  # type: ignore[attr-defined]
                short = account.finished(event)  # type: ignore[arg-type]
        if short is not None:
            return [*(event for event in events if type(event) is not TurnFinished), *self.ends(short)]
        return events

    @property
    def logprobs(self) -> Sequence[bytes]:
        """See ports.Run."""
        return self._logprobs or ()

    def _odds(self, array: bytes) -> None:
        self._logprobs_size += len(array)
        if self._logprobs_size > MOST_LOGPROBS:
            self._logprobs = None
        if self._logprobs is not None:
            self._logprobs.append(array)

    def ends(self, why: str) -> list[Event]:
        """The run ends because of a limit: what its reader is told."""
        told = TextDelta(f"{APART}{why}" if self._parts else why)
        self._parts.append(told.text)
        self.finish_reason = "length"
        return [told, TurnFinished("length")]

    def close(self) -> Sequence[msgspec.Raw]:
        """All has been said, and the account is complete. What is recorded of it."""
        said = self.said
        if said:
            self.account.recorded(len(said) - 1)
        self.account.close(self._parts[self._before :], self.why is not None)
        return said

    def record(self, messages: Sequence[msgspec.Raw]) -> None:
        """See acting.Host."""
        self.account.acted(len(self._recorded))
        self._recorded += messages
        self._mark = len(self._parts)

    def hand_back(self, calls: Sequence[ToolCall]) -> None:
        """See acting.Host."""
        self.calls = tuple(calls)

    async def waiting(self, answer: Awaitable[T]) -> T:
        """See tool_ports.ToolContext."""
        return await answer if self.allowance is None else await self.allowance.waiting(answer)

    def asking(self, request: ModelRequest) -> ModelRequest:
        """See acting.Host."""
        return self.account.asking(request)

    def exceeded(self) -> str | None:
        """See acting.Host."""
        return self.account.exceeded()

    @property
    def said(self) -> Sequence[msgspec.Raw]:
        """What the run has made where that is more than one text: its model turns with calls, their results, and the text after them."""
        rest = "".join(self._parts[self._mark :]).removeprefix(APART) if self._recorded else ""
        return (*self._recorded, pack(Message("assistant", rest))) if rest else self._recorded

    def ended(self) -> Deferred[RunResult]:
        """See ports.Run."""
        if self.result is not None:
            return succeed(self.result)
        waiter: Deferred[RunResult] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        return waiter

    def attach(self) -> None:
        """See ports.Run."""
        self._clients += 1
        self._come_back()

    def lost(self) -> None:
        """See ports.Run."""
        self._clients -= 1
        if self._clients or self.result is not None:
            return
        if self._on_lost == "grace":
            self._grace = self.clock.callLater(GRACE_SECONDS, self._abort, self, RunAborted("The client went away and did not come back."))
            return
        self.owner = None
        if self._on_lost == "cancel":
            self._abort(self, RunAborted("The client went away."))

    def _come_back(self) -> None:
        grace, self._grace = self._grace, None
        if grace is not None and grace.active():
            grace.cancel()

    def end(self, result: RunResult) -> None:
        """Tell everybody who waits."""
        self.result, self.owner = result, None
        self._come_back()
        self.account.forget()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(result)
