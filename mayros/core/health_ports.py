"""Where the rests of keys are kept over a restart. The local implementation is storage/cooldowns.py."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

import msgspec


class KeptCoolDown(msgspec.Struct, frozen=True):
    """A failover.CoolDown as it is kept: times are milliseconds of the wall clock. `fingerprint` is that of the key that failed (health.py)."""

    provider: str
    credential: str
    model: str
    kind: str
    failures: int
    failed_ms: int
    until_ms: int
    told_until_ms: int
    error: str
    fingerprint: str


class CoolDownStore(Protocol):
    """Rows by provider, credential and model."""

    def save(self, cool: KeptCoolDown) -> Awaitable[None]:
        """Keep it, in the place of an older one. Raises StorageUnavailable."""
        ...

    def delete(self, provider: str, credential: str, model: str) -> Awaitable[None]:
        """Forget it, if there is one. Raises StorageUnavailable."""
        ...
