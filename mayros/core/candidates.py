"""Whom a run may ask, in order: the models of its agent, each with the keys of its provider. Pure; built once for each list of models.

A session keeps its key as long as that key may be asked, so that the provider's prompt cache stays warm; sessions are spread over the keys, unless
the configuration orders them (`auth.order`). Imports failover and models.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from mayros.core.failover import Candidate
from mayros.core.keys import SessionKey
from mayros.core.models import Credential, Model

#: Lists of models that are remembered; there is one for each agent.
MOST = 256


def session_name(key: SessionKey) -> str:
    """A stable name of a session for providers, without anything of its key in it."""
    return blake2b(str(key).encode(), digest_size=12, person=b"mayros-session").hexdigest()


class Plans:
    """Makes the lists. One for the whole gateway."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[tuple[Model, ...], tuple[Candidate, ...], bool]] = {}

    def candidates(self, models: tuple[Model, ...], session: str, keep: bool = True) -> tuple[Candidate, ...]:
        """The candidates for a session, by its `session_name`. `keep`: this very tuple, an agent's own, will come again."""
        known = self._known.get(id(models))
        if known is None or known[0] is not models:
            known = self._build(models, keep)
        _, found, spread = known
        if not spread:
            return found
        made: list[Candidate] = []
        for model in models:
            provider = model.provider
            keys: Sequence[Credential] = provider.credentials
            if len(keys) > 1 and not provider.ordered:
                keys = _spread(keys, session)
            made += [Candidate(model, key) for key in keys] or [Candidate(model, None)]
        return tuple(made)

    def _build(self, models: tuple[Model, ...], keep: bool) -> tuple[tuple[Model, ...], tuple[Candidate, ...], bool]:
        found = tuple([Candidate(model, key) for model in models for key in model.provider.credentials or (None,)])
        spread = any(len(model.provider.credentials) > 1 and not model.provider.ordered for model in models)
        known = models, found, spread
        if keep:
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[id(models)] = known
        return known


def _spread(keys: Sequence[Credential], session: str) -> list[Credential]:
    """The keys in the order of this session: where one rests, only its own sessions move, each to the next in its own order."""
    return sorted(keys, key=lambda key: blake2b(f"{session} {key.id}".encode(), digest_size=8).digest())
