"""The seam between the doors and the store of idempotency keys. Implemented by storage/idempotency.py; claims.py is what the doors use."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

import msgspec

from mayros.core.ports import Claim, RunResult


class New(msgspec.Struct, frozen=True):
    """The key was not in use; it is now, durably."""

    claim: Claim


class Live(msgspec.Struct, frozen=True):
    """The key's run has not ended."""

    run_id: str


class Done(msgspec.Struct, frozen=True):
    """The key's run has ended like this."""

    result: RunResult


class Conflict(msgspec.Struct, frozen=True):
    """The key was used for a different request."""


class Idempotency(Protocol):
    """Keys that never start two runs, across restarts; one store for both doors."""

    def begin(self, scope: str, key: str, digest: bytes, run_id: str, keep_seconds: float) -> Awaitable[New | Live | Done | Conflict]:
        """Claim the key. New is durable before it is returned. Raises StorageUnavailable."""
        ...

    def finish(self, claim: Claim, result: RunResult) -> Awaitable[None]:
        """Keep the answer of what was done without a turn: a command. Durable when done. Raises StorageUnavailable."""
        ...

    def release(self, claim: Claim) -> Awaitable[None]:
        """Give the key back: its run was refused before it began."""
        ...
