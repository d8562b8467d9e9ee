"""What a model's failure means for what is asked next, and for how long its key rests. Pure; `now` is passed in. Imports errors and models.

| kind | who is asked next | the key rests |
|---|---|---|
| rate_limit | the provider's next key, then the next model | with this model: 1, 5, 25, 60 min, at least the provider's Retry-After |
| auth | the same | with all models: 1, 5, 25, 60 min |
| billing | the same | with all models: 5 h, doubling to 24 h |
| timeout, server, connect | the next model: the server is down for all keys | no, the breaker counts it (breaker.py) |
| model_not_found, format | the next model | no |
| refused, overflow | nobody | no |

The minutes and hours grow with the failures within 24 h, and a success ends them. Rate limits rest one model and not all, because vendors count by
model. docs/models/failover.md says what follows from a rest (core/course.py does it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from mayros.core.models import Credential, Model
from mayros.errors import GatewayError

Step = Literal["key", "model", "stop"]

#: Kinds that another key of the same provider may not have.
OF_THE_KEY = frozenset(("rate_limit", "billing", "auth"))
#: Kinds that the breaker of the provider counts. Rate limits only where it has one key and says no Retry-After, see core/health.py.
OF_THE_SERVER = frozenset(("timeout", "server", "connect"))

STEPS_SECONDS = (60.0, 300.0, 1500.0, 3600.0)
BILLING_SECONDS, BILLING_LONGEST = 5 * 3600.0, 24 * 3600.0
#: A failure counts for so long.
MEMORY_SECONDS = 24 * 3600.0
#: The longest rest of all, for whoever reads one from a store.
LONGEST_SECONDS = BILLING_LONGEST
#: Characters kept of what the provider said.
ERROR_CHARS = 300
#: Rests that are remembered; the one that failed longest ago goes first.
MOST = 1024


class Candidate(msgspec.Struct, frozen=True):
    """A model, and the key to ask it with; None where its provider has none."""

    model: Model
    credential: Credential | None

    @property
    def key_id(self) -> str:
        """The key's id; empty where there is no key."""
        return self.credential.id if self.credential is not None else ""


class CoolDown(msgspec.Struct, frozen=True):
    """A key that rests, or has rested and not answered since. `model` is empty where all models of the provider are meant. Times are seconds.

    `told_until` is what the provider itself said; a key that nothing can stand in for rests only until then.
    """

    provider: str
    credential: str
    model: str
    kind: str
    failures: int
    failed_at: float
    until: float
    told_until: float
    error: str


class CoolDowns:
    """The keys that rest. Only failures of the kinds in OF_THE_KEY belong here."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, str], CoolDown] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def all(self) -> Sequence[CoolDown]:
        """All of them, those too whose time is over."""
        return tuple(self._kept.values())

    def drop(self, gone: Callable[[CoolDown], bool]) -> list[CoolDown]:
        """Forget those for which `gone` is true; gives them."""
        found = [cool for cool in self._kept.values() if gone(cool)]
        for cool in found:
            del self._kept[cool.provider, cool.credential, cool.model]
        return found

    def put(self, cool: CoolDown) -> list[CoolDown]:
        """Remember one as it is; gives those that had to go for it."""
        place = cool.provider, cool.credential, cool.model
        self._kept.pop(place, None)
        self._kept[place] = cool
        gone: list[CoolDown] = []
        while len(self._kept) > MOST:
            gone.append(self._kept.pop(min(self._kept, key=lambda one: self._kept[one].failed_at)))
        return gone

    def of(self, candidate: Candidate, now: float) -> CoolDown | None:
        """What keeps the candidate from being asked now: of two the one that lasts longer."""
        provider, key_id = candidate.model.provider.id, candidate.key_id
        whole, one = self._kept.get((provider, key_id, "")), self._kept.get((provider, key_id, candidate.model.id))
        found = [cool for cool in (whole, one) if cool is not None and cool.until > now]
        return max(found, key=lambda cool: cool.until) if found else None

    def failed(self, candidate: Candidate, error: GatewayError, asked_at: float, now: float) -> CoolDown:
        """The rest that follows from a failure; not remembered yet, see `put`. Requests that were out together count as one failure."""
        kind = kind_of(error)
        provider, key_id, model = candidate.model.provider.id, candidate.key_id, candidate.model.id if kind == "rate_limit" else ""
        told = float(error.retry_after or 0) if kind == "rate_limit" else 0.0
        before = self._kept.get((provider, key_id, model))
        failures, until = 1, 0.0
        if before is not None and before.kind == kind and now - before.failed_at < MEMORY_SECONDS:
            together = asked_at < before.failed_at
            failures = before.failures + (not together)
            until = before.until if together else 0.0
        until = max(until, now + max(rest_seconds(kind, failures), told))
        return CoolDown(provider, key_id, model, kind, failures, now, until, now + told, error.message[:ERROR_CHARS])

    def answered(self, candidate: Candidate, asked_at: float) -> list[CoolDown]:
        """The key has answered: what is forgotten. A request that was made before the failure says nothing."""
        provider, key_id = candidate.model.provider.id, candidate.key_id
        gone = []
        for model in ("", candidate.model.id):
            cool = self._kept.get((provider, key_id, model))
            if cool is not None and asked_at >= cool.failed_at:
                del self._kept[provider, key_id, model]
                gone.append(cool)
        return gone


def kind_of(error: GatewayError) -> str:
    """The kind of a failure; one of no kind is the server's if another model may be tried, else a refusal."""
    return error.kind or ("server" if error.fallback else "refused")


def step_after(error: GatewayError) -> Step:
    """Who may be asked after this failure, as long as no delta has reached a client."""
    if error.kind in OF_THE_KEY:
        return "key"
    return "model" if error.fallback else "stop"


def rest_seconds(kind: str, failures: int) -> float:
    """How long a key rests after so many failures of a kind."""
    if kind == "billing":
        return min(BILLING_SECONDS * 2.0 ** min(failures - 1, 10), BILLING_LONGEST)
    return STEPS_SECONDS[min(failures, len(STEPS_SECONDS)) - 1]


def most_tries(candidates: Sequence[Candidate]) -> int:
    """How many tries of one run may fail: 24, and 8 more for each key, from 32 to 160."""
    keys = {(candidate.model.provider.id, candidate.key_id) for candidate in candidates}
    return min(max(24 + 8 * len(keys), 32), 160)
