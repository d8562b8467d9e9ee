"""Tokens of single persons and programs: which there are, what each may do, whose a secret is. In memory, and through the store on disk before
anybody is told.

A secret is shown once, when it is made; what is kept is its SHA-256, which is also how it is found, so that the time it takes tells nothing of
it. Names are never given twice: a token's name is the name of its sessions. Imports mayros.core and mayros.errors.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec
from msgspec.structs import replace
from twisted.logger import Logger

from mayros.core.audit import Act, done
from mayros.core.auth import OPERATOR_SCOPES, secret_digest
from mayros.core.device_tokens import aside
from mayros.core.keys import normalise_agent_id, valid_agent_id
from mayros.core.ports import Principal
from mayros.core.reach import KIND
from mayros.core.token_ports import PREFIX, ApiToken, ApiTokenStore, Audience, Held, Silence
from mayros.errors import InvalidRequest, Unavailable

log = Logger()

#: What tokens may be narrowed to, and what they may do where nothing is said.
ENDPOINTS = ("chat", "models", "ws", "responses", "embeddings", "tools", "metrics")
DEFAULT_SCOPES = ("operator.read", "operator.write")
ADMIN = "operator.admin"
MAX_TOKENS = 20_000
MAX_AGENTS = 1_000
#: How old the time of a token's last use may be on disk.
REFRESH_MS = 60_000
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
_SHOWN = 64


class Wanted(msgspec.Struct, frozen=True):
    """A token that somebody wants. None: not narrowed, no limit, no end. `expires_ms`: epoch milliseconds."""

    name: str
    scopes: tuple[str, ...] = DEFAULT_SCOPES
    agents: tuple[str, ...] | None = None
    endpoints: tuple[str, ...] | None = None
    rpm: int | None = None
    tokens_per_day: int | None = None
    expires_ms: int | None = None


def principal_of(token: ApiToken) -> Principal:
    """Who has the token. Without `operator.admin` it is narrowed: its sessions are a space of their own."""
    name = f"{KIND}:{token.name}"
    return Principal(
        id=name,
        scopes=frozenset(token.scopes),
        agents=None if token.agents is None else frozenset(token.agents),
        endpoints=None if token.endpoints is None else frozenset(token.endpoints),
        space=None if ADMIN in token.scopes else name,
        rpm=token.rpm,
        day_tokens=token.tokens_per_day,
    )


class ApiTokens:
    """The register. `restore` it first. `now_ms` is the wall clock in epoch milliseconds.

    Coroutines raise StorageUnavailable, and must not be cancelled: whoever may lose interest shields them.
    The row of an `act` goes with what it does.
    """

    def __init__(self, store: ApiTokenStore, now_ms: Callable[[], int]) -> None:
        self._store, self.now_ms = store, now_ms
        self._tokens: dict[str, ApiToken] = {}
        self._secrets: dict[bytes, Held] = {}
        self._noted: dict[str, int] = {}
        self.audience: Audience = Silence()

    def restore(self, tokens: Iterable[ApiToken]) -> None:
        """Begin with what the store has."""
        self._tokens.clear()
        self._secrets.clear()
        for token in tokens:
            self._put(token)

    # What there is

    def list(self) -> Sequence[ApiToken]:
        """By name, also those that were revoked."""
        return sorted(self._tokens.values(), key=lambda token: token.name)

    def find(self, digest: bytes) -> Held | None:
        """Whose secret has this SHA-256; None: nobody's. It may be over: see `problem`."""
        return self._secrets.get(digest)

    def problem(self, held: Held) -> str | None:
        """Why the secret is not good any more; None: it is."""
        if held.over is not None:
            return "This token was revoked."
        if held.until_ms is not None and held.until_ms <= self.now_ms():
            return "This token is over: it expired, or was replaced by another."
        return None

    def used(self, held: Held) -> None:
        """The secret was used now. On disk once a minute, and nobody waits for that."""
        name, now = held.principal.id.partition(":")[2], self.now_ms()
        if now - self._noted.get(name, -REFRESH_MS) < REFRESH_MS or name not in self._tokens:
            return
        self._noted[name] = now
        self._tokens[name] = token = replace(self._tokens[name], last_used_ms=now)
        aside(self._store.save(token), "the use of a token")

    # What changes

    async def create(self, wanted: Wanted, agents: Collection[str], act: Act | None = None) -> tuple[str, ApiToken]:
        """A new token, and its secret. `agents` are the ids of those there are. Raises InvalidRequest, Unavailable."""
        token = self._checked(wanted, agents)
        if token.name in self._tokens:
            gone = " It is revoked, but its sessions and what it used keep the name." if self._tokens[token.name].revoked_ms is not None else ""
            raise InvalidRequest(f'there is a token "{token.name}" already; choose another name, or rotate it.{gone}', param="name")
        if len(self._tokens) >= MAX_TOKENS:
            raise Unavailable(f"There are {MAX_TOKENS} tokens already.")
        secret, token = _secret(token)
        self._put(token)
        try:
            await self._store.save(token, done(act))
        except BaseException:
            self._drop(token)
            raise
        log.info("token {name} was made", name=token.name)
        return secret, token

    async def revoke(self, name: str, act: Act | None = None) -> ApiToken:
        """Its secrets are good for nothing any more, and what it has going on ends; the same again changes nothing. Raises InvalidRequest.

        Where it fails with StorageUnavailable, the token would be back after a restart: try again.
        """
        before = self._known(name)
        token = before
        if before.revoked_ms is None:
            token = replace(before, revoked_ms=self.now_ms(), previous_hash=None, previous_until_ms=None)
        self._drop(before)
        self._put(token)
        try:
            await self._store.save(token, done(act))
        finally:
            self.audience.ended(principal_of(token).id, None, None)
        log.info("token {name} was revoked", name=name)
        return token

    async def rotate(self, name: str, grace_ms: int = 0, expires_ms: int | None = None, act: Act | None = None) -> tuple[str, ApiToken]:
        """A new secret in the place of the old one, which stays good for `grace_ms`. `expires_ms`: a new end; None: as before.

        Raises InvalidRequest. Where it fails with StorageUnavailable, the old secret is back after a restart.
        """
        before, now = self._live(name), self.now_ms()
        until = before.expires_ms if expires_ms is None else _future(expires_ms, now)
        if until is not None and until <= now:
            raise InvalidRequest(f'the token "{name}" has expired: give it a new end (expires)', param="expires")
        secret, token = _secret(replace(before, rotated_ms=now, expires_ms=until, previous_hash=None, previous_until_ms=None))
        if grace_ms > 0:
            end = now + grace_ms if before.expires_ms is None else min(now + grace_ms, before.expires_ms)
            token = replace(token, previous_hash=before.token_hash, previous_until_ms=end)
        self._drop(before)
        self._put(token)
        try:
            await self._store.save(token, done(act))
        finally:
            for digest in (before.token_hash, before.previous_hash):
                if digest is not None:
                    kept = token.previous_until_ms if digest == token.previous_hash else None
                    self.audience.ended(principal_of(token).id, digest, kept)
        log.info("token {name} has a new secret", name=name)
        return secret, token

    # Inside

    def _known(self, name: str) -> ApiToken:
        token = self._tokens.get(name)
        if token is None:
            raise InvalidRequest(f'there is no token "{name[:_SHOWN]}"', param="name")
        return token

    def _live(self, name: str) -> ApiToken:
        token = self._known(name)
        if token.revoked_ms is not None:
            raise InvalidRequest(f'the token "{name}" is revoked; make one with another name', param="name")
        return token

    def _put(self, token: ApiToken) -> None:
        principal = principal_of(token)
        self._tokens[token.name] = token
        self._secrets[token.token_hash] = Held(principal, token.token_hash, token.expires_ms, None if token.revoked_ms is None else "revoked")
        if token.previous_hash is not None:
            self._secrets[token.previous_hash] = Held(principal, token.previous_hash, token.previous_until_ms)

    def _drop(self, token: ApiToken) -> None:
        del self._tokens[token.name]
        for digest in (token.token_hash, token.previous_hash):
            if digest is not None:
                self._secrets.pop(digest, None)

    def _checked(self, wanted: Wanted, agents: Collection[str]) -> ApiToken:
        """What is wanted as it would be kept, still without a secret. Raises InvalidRequest."""
        if not _NAME.fullmatch(wanted.name):
            raise InvalidRequest("name: 1 to 64 small letters, digits, '.', '_' and '-', and a letter or digit first", param="name")
        now, scopes = self.now_ms(), _words("scopes", wanted.scopes, sorted(OPERATOR_SCOPES))
        if "operator.pairing" in scopes and ADMIN not in scopes:
            raise InvalidRequest(
                "scopes: operator.pairing lets in devices that are not narrowed, so it goes with operator.admin only", param="scopes"
            )
        if ADMIN in scopes and wanted.agents is not None:
            raise InvalidRequest("agents: an administrator may change the configuration, so it cannot be narrowed to agents", param="agents")
        return ApiToken(
            name=wanted.name,
            token_hash=b"",
            scopes=scopes,
            agents=None if wanted.agents is None else _agents(wanted.agents, agents),
            endpoints=None if wanted.endpoints is None else _words("endpoints", wanted.endpoints, ENDPOINTS),
            rpm=wanted.rpm,
            tokens_per_day=wanted.tokens_per_day,
            created_ms=now,
            expires_ms=None if wanted.expires_ms is None else _future(wanted.expires_ms, now),
        )


def shown(token: ApiToken, now_ms: int) -> Mapping[str, object]:
    """A token as it is told of, without what makes it one; only what is set. `state`: `live`, `expired` or `revoked`."""
    expired = token.expires_ms is not None and token.expires_ms <= now_ms
    found = {
        "name": token.name,
        "state": "revoked" if token.revoked_ms is not None else "expired" if expired else "live",
        "scopes": token.scopes,
        "agents": token.agents,
        "endpoints": token.endpoints,
        "rpm": token.rpm,
        "tokensPerDay": token.tokens_per_day,
        "createdAtMs": token.created_ms,
        "expiresAtMs": token.expires_ms,
        "rotatedAtMs": token.rotated_ms,
        "revokedAtMs": token.revoked_ms,
        "lastUsedAtMs": token.last_used_ms,
        "previousUntilMs": token.previous_until_ms,
    }
    return {name: value for name, value in found.items() if value is not None}


def _secret(token: ApiToken) -> tuple[str, ApiToken]:
    text = PREFIX + secrets.token_urlsafe(32)
    return text, replace(token, token_hash=secret_digest(text))


def _words(param: str, words: Iterable[str], known: Collection[str]) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(words))
    unknown = next((word for word in found if word not in known), None)
    if unknown is not None:
        raise InvalidRequest(f"{param}: {unknown[:_SHOWN]!r} is none of {', '.join(known)}", param=param)
    if not found:
        raise InvalidRequest(f"{param}: at least one of {', '.join(known)}", param=param)
    return found


def _agents(named: Sequence[str], known: Collection[str]) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(normalise_agent_id(name) if valid_agent_id(name.strip()) else "" for name in named))
    if not found or len(found) > MAX_AGENTS or any(agent_id not in known for agent_id in found):
        raise InvalidRequest(f"agents: name some of {', '.join(sorted(known))}", param="agents")
    return found


def _future(expires_ms: int, now_ms: int) -> int:
    if expires_ms <= now_ms:
        raise InvalidRequest("expires: lies in the past", param="expires")
    return expires_ms
