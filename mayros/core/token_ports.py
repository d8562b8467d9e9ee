"""The seam of the tokens of persons and programs: what is kept of each, and who hears of their end."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Literal, Protocol

import msgspec

from mayros.core.audit_ports import AuditEntry
from mayros.core.ports import Principal

#: What every secret begins with.
PREFIX = "mgt_"


class ApiToken(msgspec.Struct, frozen=True):
    """A token, known by the SHA-256 of its secret only. Times are epoch milliseconds.

    `agents` and `endpoints` None: all. `rpm`: requests a minute that begin runs; `tokens_per_day`: of the models, by days of UTC. `previous_*`: the
    secret before the last rotation, where it is still good.
    """

    name: str
    token_hash: bytes
    scopes: tuple[str, ...]
    agents: tuple[str, ...] | None
    endpoints: tuple[str, ...] | None
    rpm: int | None
    tokens_per_day: int | None
    created_ms: int
    expires_ms: int | None = None
    rotated_ms: int | None = None
    revoked_ms: int | None = None
    last_used_ms: int | None = None
    previous_hash: bytes | None = None
    previous_until_ms: int | None = None


class Held(msgspec.Struct, frozen=True):
    """What a secret is good for: whose it is, and until when (epoch milliseconds; None: no end). `over`: why it is good for nothing any more.

    `digest` is the secret's SHA-256.
    """

    principal: Principal
    digest: bytes
    until_ms: int | None = None
    over: Literal["revoked"] | None = None


class Finder(Protocol):
    """Whoever knows the secrets: core.api_tokens.ApiTokens."""

    def find(self, digest: bytes) -> Held | None:
        """Whose secret has this SHA-256; None: nobody's."""
        ...

    def problem(self, held: Held) -> str | None:
        """Why the secret is not good any more; None: it is."""
        ...

    def used(self, held: Held) -> None:
        """The secret was used now."""
        ...


class ApiTokenStore(Protocol):
    """Tokens on disk. Decides nothing."""

    def save(self, token: ApiToken, audit: AuditEntry | None = None) -> Awaitable[None]:
        """In the place of the token of that name, with the row that tells of it; durable when done. Raises StorageUnavailable."""
        ...


class Audience(Protocol):
    """Who hears when secrets end; must not raise."""

    def ended(self, principal_id: str, digest: bytes | None, until_ms: int | None) -> None:
        """The secret with this digest is good until `until_ms` only, None: not any more. Digest None: all are over, and so is what goes on."""
        ...


class Silence:
    """Nobody listens."""

    def ended(self, principal_id: str, digest: bytes | None, until_ms: int | None) -> None: ...
