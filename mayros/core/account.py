"""What one run uses: its model turns one by one, and whether it may go on. Imports core ports, bounds, spending and tokens.

A model turn counts as the provider reports it. Where it is cut off before that, by whoever, it was paid for all the same: it counts by estimate, a
token for four characters of the prompt and of what came. A server that reports nothing for a whole turn is believed to have used nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from mayros.core.bounds import size
from mayros.core.cost import priced
from mayros.core.ports import ModelRequest, ModelTurn, Principal, Turn
from mayros.core.spending import Cap, Limit, LimitReached, Spending, Spent, limited, tokens_of
from mayros.core.tokens import estimate, quarters
from mayros.events import ModelAnswered, TurnFinished, Usage

_NOTHING = Usage()


class Account:
    """The account of one run. `now_ms`: the wall clock, for the day that it counts to. `principal`: who asked, where he has a limit of his own."""

    __slots__ = (
        *("_agent", "_before", "_current", "_finished", "_length", "_lowered", "_model", "_now_ms", "_place", "_reported", "_requests", "_spending"),
        *("_limited", "_principal", "cap", "passed", "turns", "usage"),
    )

    def __init__(self, turn: Turn, spending: Spending, now_ms: Callable[[], int], principal: Principal | None = None) -> None:
        self._agent, self._spending, self._now_ms = turn.agent, spending, now_ms
        self._principal = principal if principal is not None and principal.day_tokens is not None else None
        self._limited = limited(turn.agent, principal)
        #: What it has used in all.
        self.usage = _NOTHING
        #: Its model turns that are over, in order.
        self.turns: list[ModelTurn] = []
        #: The limit on the length of the answer that is being written, and what there is of it, in quarters of a token.
        self.cap: Cap | None = None
        self._length = 0
        #: The limit that the answer has passed; the run is ended then.
        self.passed: Limit | None = None
        #: What was asked last: two where a hedge asks beside the first.
        self._requests: tuple[ModelRequest, ...] = ()
        self._model: ModelAnswered | None = None
        self._before = self._current = _NOTHING
        self._reported = self._finished = self._lowered = False
        self._place = -1

    def asking(self, request: ModelRequest) -> ModelRequest:
        """See acting.Host. Raises LimitReached where the prompt alone would be too much, by estimate."""
        model = request.model
        self._requests = (*self._requests[-1:], request)
        if not self._limited:
            return request
        used = Spent(tokens_of(self.usage), self.usage.cost_nano)
        cap = self._spending.cap(self._agent, used, _prompt(request), model.cost, self._now_ms(), self._principal)
        if cap is not None and cap.tokens < 1:
            raise LimitReached(cap.limit)
        self.cap, self._length = cap, 0
        self._lowered = cap is not None and cap.tokens < (request.sampling.max_tokens or model.max_tokens)
        if cap is None:
            return request
        sampling = replace(request.sampling, max_tokens=cap.tokens) if self._lowered else request.sampling
        return replace(request, sampling=sampling, most_tokens=cap.tokens)

    def answered(self, event: ModelAnswered) -> None:
        """A model turn begins."""
        if self._model is not None:
            self.close(())
        self._model = event

    def used(self, reported: Usage) -> None:
        """The provider's count of the model turn that goes on; the last one holds."""
        self._reported = True
        self._count(reported)

    def _count(self, usage: Usage) -> None:
        tokens, nano = tokens_of(usage), usage.cost_nano
        if self._current is not _NOTHING:
            tokens, nano = tokens - tokens_of(self._current), nano - self._current.cost_nano
        self._current = usage
        self.usage = usage if self._before is _NOTHING else self._before.plus(usage)
        self._spending.add(self._agent.id, tokens, nano, self._now_ms(), self._principal)

    def said(self, text: str) -> None:
        """More of the answer; only asked where there is a cap."""
        self._length += quarters(text)
        if self.cap is not None and self._length > 4 * self.cap.tokens:
            self.passed = self.cap.limit

    def finished(self, event: TurnFinished) -> str | None:
        """A model turn is over; why, where a limit made it short."""
        self._finished, self.passed = True, None
        return self.cap.limit.sentence if self._lowered and event.reason == "length" and self.cap is not None else None

    def acted(self, place: int) -> None:
        """The calls of the newest model turn were made, so it is over: its message has this place among what the run said."""
        self.recorded(place)
        self._finished, self.cap, self.passed = True, None, None

    def recorded(self, place: int) -> None:
        """The message of the newest model turn has this place among what the run said."""
        if self._place < 0:
            self._place = place

    def exceeded(self) -> str | None:
        """See acting.Host."""
        if not self._limited:
            return None
        limit = self._spending.reached(self._agent, Spent(tokens_of(self.usage), self.usage.cost_nano), self._now_ms(), self._principal)
        return limit.sentence if limit is not None else None

    def close(self, texts: Sequence[str], cancelled: bool = False) -> None:
        """The model turn is over, and so is the run where `texts` are given: what was said in it, for a turn that was cut off."""
        model = self._model
        if model is None:
            return
        if not self._finished and (cancelled or any(texts)):
            self._count(self._estimate(model, texts))
        self.turns.append(ModelTurn(model.provider, model.model, self._current, self._place))
        self._model, self._before, self._current = None, self.usage, _NOTHING
        self._reported, self._finished, self._place = False, False, -1

    def _estimate(self, model: ModelAnswered, texts: Sequence[str]) -> Usage:
        """What it used so far: as far as it was reported, and else by estimate."""
        said, known = max(estimate("".join(texts)), self._length // 4, self._current.output), self._current
        request = next((one for one in self._requests if (one.model.provider.id, one.model.id) == (model.provider, model.model)), None)
        if request is None:
            return replace(known, output=said)
        counted = replace(known, output=said, cost_nano=0) if self._reported else Usage(input=_prompt(request), output=said)
        return priced(counted, request.model.cost)

    def forget(self) -> None:
        """The run has ended: nothing is asked any more."""
        self._requests = ()


def _prompt(request: ModelRequest) -> int:
    """Tokens of a prompt, by estimate; without its tools."""
    return estimate(request.system) + sum(map(size, request.messages))
