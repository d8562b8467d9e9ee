"""The seam of the audit trail: who did what, from where, and how it ended. Rows are added, read, and dropped when they are old; never changed."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Literal, Protocol

import msgspec

#: `refused`: it was not allowed, or made no sense. `failed`: something broke, so that it was not done, or not to its end.
Outcome = Literal["done", "refused", "failed"]
#: Through what it came; `gateway`: it did it by itself.
Door = Literal["ws", "http", "cli", "gateway"]


class Actor(msgspec.Struct, frozen=True):
    """By whom, and from where.

    `who`: `owner` (the shared secret), `token:<name>`, `user:<name>` of a trusted proxy, `device:<id>`, `agent:<id>`, `cli:<user of the system>`,
    `gateway`, or `nobody` (a client that was not let in). `label`: what a device or client calls itself. `connection`: its id, as in the log.
    """

    who: str
    door: Door
    label: str | None = None
    address: str | None = None
    connection: str | None = None


GATEWAY = Actor("gateway", "gateway")


class AuditEntry(msgspec.Struct, frozen=True):
    """One act, bounded and without secrets. `at_ms`: epoch milliseconds of its end; `request`: the client's id of it; `details`: a JSON object."""

    at_ms: int
    action: str
    who: str
    door: Door
    outcome: Outcome
    label: str | None = None
    address: str | None = None
    connection: str | None = None
    request: str | None = None
    target: str | None = None
    details: str = "{}"


class AuditRow(msgspec.Struct, frozen=True):
    """An entry as it is kept; ids grow."""

    id: int
    entry: AuditEntry


class AuditQuery(msgspec.Struct, frozen=True):
    """Which rows: the newest first, or with `after` the oldest first. `before` and `after` are ids, not included; times are epoch milliseconds.

    `action` is the beginning of one; `who` is somewhere in `who` or `label`, whatever the case.
    """

    limit: int
    before: int | None = None
    after: int | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    action: str | None = None
    who: str | None = None


class AuditTrail(Protocol):
    """The trail on disk. Decides nothing."""

    def record(self, entry: AuditEntry) -> Awaitable[None]:
        """Durable when done. Raises StorageUnavailable."""
        ...

    def list(self, query: AuditQuery) -> Awaitable[Sequence[AuditRow]]:
        """Raises StorageUnavailable."""
        ...


class NoTrail:
    """Nothing is kept."""

    async def record(self, entry: AuditEntry) -> None: ...

    async def list(self, query: AuditQuery) -> Sequence[AuditRow]:
        return ()
