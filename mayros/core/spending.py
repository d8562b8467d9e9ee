"""What runs have spent today, and what they may still spend. Pure: the time is passed in. Imports config, core.cost, ports and routing.

A day is one of UTC. Two sets of limits hold for a run: `limits`, for all agents together, and its agent's own; who asks may have a limit of his own
besides (`day_tokens`). Of each kind the one with less left decides. What runs use counts at once, also while they go on, so that all of them see it;
a restart loads the day's sums from the store. Dollars are counted in nano (10^-9): exact sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mayros.config.schema import Cost, SpendingLimits
from mayros.core.cost import NANO
from mayros.core.ports import Principal
from mayros.core.routing import Agent
from mayros.errors import BudgetExceeded, GatewayError
from mayros.events import Usage

DAY_MS = 86_400_000
DOLLAR = 1_000_000_000


def tokens_of(usage: Usage) -> int:
    """Tokens of all kinds."""
    return usage.input + usage.output + usage.cache_read + usage.cache_write


class Spent(NamedTuple):
    """Tokens of all kinds, and US dollars / 10^9."""

    tokens: int = 0
    nano: int = 0


class Limit(NamedTuple):
    """One limit that is set, and what is left below it: nano dollars, or tokens. `day`: it is the day's, and not the run's."""

    left: int
    amount: float
    dollars: bool
    day: bool
    path: str
    agent_id: str | None = None

    @property
    def what(self) -> str:
        """How a person reads it: `limit of 1,000 tokens (limits.runTokens)`."""
        whom = f" for the agent {self.agent_id}" if self.agent_id else ""
        amount = (
            f"${self.amount:,.2f}" if self.dollars and self.amount >= 0.01 else f"${self.amount:g}" if self.dollars else f"{self.amount:,} tokens"
        )
        return f"limit of {amount}{whom} ({self.path})"

    @property
    def sentence(self) -> str:
        """Why a run that goes on is ended, for its reader."""
        return f"[This run ends here: {'today' if self.day else 'it'} has reached {'the' if self.day else 'its'} {self.what}.]"

    @property
    def unasked(self) -> str:
        """The same where its next prompt would be too much, so that no model is asked."""
        whose = "today's" if self.day else "its"
        return f"[This run ends here: the next prompt does not fit into {whose} {self.what}.]"


class Cap(NamedTuple):
    """How many tokens the next answer may have, none or less where the prompt is too much already, and the limit that says so."""

    tokens: int
    limit: Limit


class LimitReached(GatewayError):
    """A model cannot be asked within a limit: the prompt alone would be too much."""

    code = "budget_exceeded"

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit.unasked)
        self.limit = limit

    def refusal(self, now_ms: int) -> BudgetExceeded | None:
        """How a run that has asked nobody yet is refused, where it is the day's limit; a limit on runs ends it well."""
        if not self.limit.day:
            return None
        text = f"Today's {self.limit.what} has no room left for this prompt. It begins anew at midnight, UTC."
        return BudgetExceeded(text, retry_after=until_midnight(now_ms))


class Spending:
    """The sums of the day. `now_ms` of all methods: the wall clock; `principal`: who asks, where he has a limit of his own."""

    def __init__(self) -> None:
        self._day = 0
        self._tokens = self._nano = 0
        self._agents: dict[str, list[int]] = {}
        self._principals: dict[str, int] = {}

    def load(self, agents: Mapping[str, Spent], now_ms: int, principals: Mapping[str, Spent] | None = None) -> None:
        """Begin with what the store has of today, by agent and by who asked."""
        self._begin(now_ms // DAY_MS)
        self._principals = {name: spent.tokens for name, spent in (principals or {}).items()}
        for agent_id, spent in agents.items():
            self.add(agent_id, spent.tokens, spent.nano, now_ms)

    def add(self, agent_id: str, tokens: int, nano: int, now_ms: int, principal: Principal | None = None) -> None:
        """A run of this agent has used so much more: tokens of all kinds, and US dollars / 10^9."""
        self._turn(now_ms)
        self._tokens += tokens
        self._nano += nano
        sums = self._agents.get(agent_id)
        if sums is None:
            self._agents[agent_id] = [tokens, nano]
        else:
            sums[0] += tokens
            sums[1] += nano
        if principal is not None:
            self._principals[principal.id] = self._principals.get(principal.id, 0) + tokens

    def today(self, now_ms: int) -> tuple[Spent, Mapping[str, Spent]]:
        """In all, and by agent."""
        self._turn(now_ms)
        return Spent(self._tokens, self._nano), {agent_id: Spent(*sums) for agent_id, sums in self._agents.items()}

    def tokens_by(self, principal_id: str, now_ms: int) -> int:
        """The tokens that the runs of one who asked have used today."""
        self._turn(now_ms)
        return self._principals.get(principal_id, 0)

    def check(self, agent: Agent, now_ms: int, principal: Principal | None = None) -> None:
        """Raise BudgetExceeded where a run of this agent may not begin: the day's limit is reached."""
        if not limited(agent, principal):
            return
        for limit in self.limits(agent, Spent(), now_ms, principal):
            if limit.day and limit.left <= 0:
                raise BudgetExceeded(f"Today's {limit.what} is reached. It begins anew at midnight, UTC.", retry_after=until_midnight(now_ms))

    def reached(self, agent: Agent, used: Spent, now_ms: int, principal: Principal | None = None) -> Limit | None:
        """The limit that a run has reached that has used so much; None: it may go on."""
        return next((limit for limit in self.limits(agent, used, now_ms, principal) if limit.left <= 0), None)

    def cap(self, agent: Agent, used: Spent, prompt: int, cost: Cost, now_ms: int, principal: Principal | None = None) -> Cap | None:
        """How long the next answer may be, after a prompt of so many tokens; None: no limit is set that can be counted.

        A prompt may be in the provider's cache, and is cheaper then. The low price is assumed: a limit in dollars ends nothing that is below it.
        """
        least: Cap | None = None
        for limit in self.limits(agent, used, now_ms, principal):
            left = limit.left - prompt
            if limit.dollars:
                if not cost.output:
                    continue
                left = int((limit.left - prompt * (cost.cache_read or cost.input) * NANO) / (cost.output * NANO))
            if least is None or left < least.tokens:
                least = Cap(left, limit)
        return least

    def limits(self, agent: Agent, used: Spent, now_ms: int, principal: Principal | None = None) -> Iterator[Limit]:
        """The limits that hold for a run of this agent, with what is left after it has used so much."""
        if principal is not None and principal.day_tokens is not None:
            left = principal.day_tokens - self.tokens_by(principal.id, now_ms)
            yield Limit(left, principal.day_tokens, False, True, f"tokensPerDay of {principal.id}", None)
        if not agent.limited:
            return
        whole, agents = self.today(now_ms)
        yield from _set(agent.own_limits, "agents.list[].limits", used, agents.get(agent.id, Spent()), agent.id)
        yield from _set(agent.limits, "limits", used, whole, None)

    def _turn(self, now_ms: int) -> None:
        """Begin anew where the day is another one."""
        day = now_ms // DAY_MS
        if day != self._day:
            self._begin(day)

    def _begin(self, day: int) -> None:
        self._day, self._tokens, self._nano, self._agents, self._principals = day, 0, 0, {}, {}


def limited(agent: Agent, principal: Principal | None) -> bool:
    """Whether any limit is set for a run of this agent that `principal` asks for."""
    return agent.limited or (principal is not None and principal.day_tokens is not None)


def _set(limits: SpendingLimits, path: str, used: Spent, today: Spent, agent_id: str | None) -> Iterator[Limit]:
    if limits.run_tokens is not None:
        yield Limit(limits.run_tokens - used.tokens, limits.run_tokens, False, False, f"{path}.runTokens", agent_id)
    if limits.run_cost is not None:
        yield Limit(round(limits.run_cost * DOLLAR) - used.nano, limits.run_cost, True, False, f"{path}.runCost", agent_id)
    if limits.day_tokens is not None:
        yield Limit(limits.day_tokens - today.tokens, limits.day_tokens, False, True, f"{path}.dayTokens", agent_id)
    if limits.day_cost is not None:
        yield Limit(round(limits.day_cost * DOLLAR) - today.nano, limits.day_cost, True, True, f"{path}.dayCost", agent_id)


def until_midnight(now_ms: int) -> int:
    """Whole seconds until the next day of UTC begins, at least one."""
    return -(-(DAY_MS - now_ms % DAY_MS) // 1000)
