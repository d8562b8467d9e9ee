"""The tokens of devices: a device that once came with the shared secret comes back with one of these. Imports mayros.core and mayros.errors.

A token is 32 random bytes as base64url, known here and on disk by its SHA-256 only. Each device has up to KEEP live ones for each role, since a
program may run twice; a rotation or a revocation ends them all, and leaves one record of itself.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from hmac import compare_digest

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mayros.core.audit_ports import AuditEntry
from mayros.core.auth import lacking, secret_digest
from mayros.core.device_ports import DeviceStore, DeviceToken
from mayros.errors import GatewayError

log = Logger()

#: Live tokens of one device and role.
KEEP = 4
#: How old the time of last use may be on disk, in milliseconds.
USED_MS = 60_000
#: Longer texts are no tokens.
MAX_TOKEN = 1024


class Grant(msgspec.Struct, frozen=True):
    """A token as its device gets it, once. `issued_ms` is epoch milliseconds."""

    token: str
    scopes: tuple[str, ...]
    issued_ms: int

    def __repr__(self) -> str:
        return "<Grant>"


def aside(work: Awaitable[None], what: str) -> None:
    """Write something that nobody waits for; a failure is logged."""

    async def write() -> None:
        try:
            await work
        except GatewayError as error:
            log.warn("{what} was not recorded: {reason}", what=what, reason=error.message)

    Deferred.fromCoroutine(write()).addErrback(lambda failure: log.failure("{what} was not recorded", failure=failure, what=what))


class Tokens:
    """All of them, in memory and through `store` on disk. `now_ms` is the wall clock."""

    def __init__(self, store: DeviceStore, now_ms: Callable[[], int]) -> None:
        self._store, self._now_ms = store, now_ms
        # Oldest first; another list means that those before have ended. A revoked one is alone in its list.
        self._rings: dict[tuple[str, str], list[DeviceToken]] = {}

    def fill(self, tokens: Iterable[DeviceToken]) -> None:
        """What the store had, oldest first."""
        for token in tokens:
            self._rings.setdefault((token.device_id, token.role), []).append(token)
        for ring in self._rings.values():
            # A crash may have left some of those that a rotation or a revocation ended.
            ends = [place for place, token in enumerate(ring) if token.rotated_ms is not None or token.revoked_ms is not None]
            self._trim(ring, ends[-1] if ends else 0)

    def check(self, device_id: str, role: str, scopes: Iterable[str], text: str) -> Grant | None:
        """The token, if it is a live one of this device and role that gives these scopes."""
        if len(text) > MAX_TOKEN:
            return None
        ring, digest = self._rings.get((device_id, role), []), secret_digest(text)
        for place, token in enumerate(ring):
            if token.revoked_ms is None and compare_digest(token.token_hash, digest):
                if lacking(token.scopes, scopes) is not None:
                    return None
                now = self._now_ms()
                if token.last_used_ms is None or now - token.last_used_ms >= USED_MS:
                    ring[place] = msgspec.structs.replace(token, last_used_ms=now)
                    aside(self._store.save_token(ring[place]), "the use of a device token")
                return Grant(text, token.scopes, token.rotated_ms or token.created_ms)
        return None

    async def issue(self, device_id: str, role: str, scopes: Iterable[str]) -> Grant | None:
        """A new token, durable, beside those that live. It keeps the scopes of the newest of them, or a client that asks for less each time would
        in the end have a token for nothing. None: the device's tokens were ended meanwhile. Raises StorageUnavailable.
        """
        ring = self._rings.setdefault((device_id, role), [])
        newest = ring[-1].scopes if ring and ring[-1].revoked_ms is None else ()
        token, grant = self._make(device_id, role, {*scopes, *newest}, rotated=False)
        ring.append(token)
        try:
            await self._store.save_token(token)
        except BaseException:
            ring[:] = [one for one in ring if one.token_hash != token.token_hash]
            raise
        if self._rings.get((device_id, role)) is not ring:
            return None
        self._trim(ring)
        return grant

    async def rotate(self, device_id: str, role: str, scopes: Iterable[str], audit: AuditEntry | None = None) -> Grant:
        """End all tokens of the role and make a new one. Raises StorageUnavailable: then the old ones may be back after a restart."""
        token, grant = self._make(device_id, role, set(scopes), rotated=True)
        before = self._rings.get((device_id, role), [])
        self._rings[device_id, role] = [token]
        await self._store.save_token(token, audit)
        await self._delete(before)
        return grant

    async def revoke(self, device_id: str, role: str, audit: AuditEntry | None = None) -> int:
        """End all tokens of the role, of which there must be one (`latest`); gives the time. Raises StorageUnavailable as `rotate` does."""
        before, now = self._rings[device_id, role], self._now_ms()
        last = msgspec.structs.replace(before[-1], revoked_ms=now)
        self._rings[device_id, role] = [last]
        await self._store.save_token(last, audit)
        await self._delete(before[:-1])
        return now

    def forget(self, device_id: str, roles: Iterable[str]) -> None:
        """The device is gone; the store drops its tokens with it."""
        for role in roles:
            self._rings.pop((device_id, role), None)

    def latest(self, device_id: str, role: str) -> DeviceToken | None:
        """The newest token of the role, with the latest use of any of them; it may be revoked."""
        ring = self._rings.get((device_id, role))
        if not ring:
            return None
        return msgspec.structs.replace(ring[-1], last_used_ms=max((token.last_used_ms or 0 for token in ring), default=0) or None)

    def _make(self, device_id: str, role: str, scopes: set[str], rotated: bool) -> tuple[DeviceToken, Grant]:
        text, now, wanted = secrets.token_urlsafe(32), self._now_ms(), tuple(sorted(scopes))
        token = DeviceToken(secret_digest(text), device_id, role, wanted, now, rotated_ms=now if rotated else None)
        return token, Grant(text, wanted, now)

    def _trim(self, ring: list[DeviceToken], start: int = 0) -> None:
        """Keep the newest of those from `start`; a revoked one only while it is the newest."""
        kept = [token for token in ring[start:-1] if token.revoked_ms is None][1 - KEEP :] + ring[-1:]
        for token in ring:
            if token not in kept:
                aside(self._store.delete_token(token.token_hash), "the end of a device token")
        ring[:] = kept

    async def _delete(self, tokens: Sequence[DeviceToken]) -> None:
        for token in tokens:
            await self._store.delete_token(token.token_hash)
