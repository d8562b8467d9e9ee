"""How the providers and their keys do: breakers and cool-downs of the whole gateway, asked before each request and told of its end.

Costs next to nothing as long as nothing has failed. `now` is passed in (a clock that never jumps); the wall clock is used for what is kept and shown.
Imports breaker, failover and health_ports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mayros.core.breaker import Breaker
from mayros.core.failover import LONGEST_SECONDS, MEMORY_SECONDS, OF_THE_KEY, OF_THE_SERVER, Candidate, CoolDown, CoolDowns, kind_of
from mayros.core.health_ports import CoolDownStore, KeptCoolDown
from mayros.core.models import Credential, Provider
from mayros.errors import GatewayError

log = Logger()

#: A primary whose cool-down has no more than this left is asked once in a while, if there is nobody else.
LAST_SECONDS, ONCE_SECONDS = 120.0, 30.0


class Try(msgspec.Struct, frozen=True):
    """A request that may be made. Its end is told by exactly one of `finished`, `failed` and `dropped`; `answered` comes before `finished`."""

    candidate: Candidate
    asked_at: float
    probe: bool = False


class Block(msgspec.Struct, frozen=True):
    """Why a candidate is not asked: its key rests, or its provider's breaker is open (`cool` None). `left`: seconds."""

    candidate: Candidate
    cool: CoolDown | None
    left: float
    kind: str


class ModelHealth:
    """See the module. `store` None: nothing is kept."""

    def __init__(self, store: CoolDownStore | None = None, wall_ms: Callable[[], int] = lambda: 0) -> None:
        self._store, self.wall_ms = store, wall_ms
        #: Hears of the end of each request; the error of one that has failed, and whether nobody waited for its end.
        self.heard: Callable[[Try, GatewayError | None, bool], None] | None = None
        self._cool = CoolDowns()
        self._breakers: dict[str, Breaker] = {}
        #: When the primary of a list whose keys all rest was asked last, by provider, key and model.
        self._probed: dict[tuple[str, str, str], float] = {}

    @property
    def quiet(self) -> bool:
        """Whether nothing has failed lately."""
        return not self._breakers and not len(self._cool)

    # Before a request.

    def admit(self, candidate: Candidate, now: float, insist: bool = False) -> Try | Block:
        """Leave to ask the candidate, or what is against it. `insist`: there is nobody else, so only what the provider itself said holds it back."""
        if self.quiet:
            return Try(candidate, now)
        cool = self._cool.of(candidate, now)
        if cool is not None and (not insist or cool.told_until > now):
            return Block(candidate, cool, (cool.told_until if insist else cool.until) - now, cool.kind)
        breaker = self._breakers.get(candidate.model.provider.id)
        if breaker is None:
            return Try(candidate, now)
        admitted = breaker.admit(now)
        if admitted == "no":
            return Block(candidate, None, breaker.left(now), breaker.kind)
        return Try(candidate, now, admitted == "probe")

    def probe(self, candidate: Candidate, now: float) -> Try | float:
        """Leave to ask a primary whose key rests, because everybody's does: in its last two minutes, every 30 s. Else the seconds until then."""
        cool = self._cool.of(candidate, now)
        if cool is None:
            return 0.0
        place = candidate.model.provider.id, candidate.key_id, candidate.model.id
        due = max(
            cool.until - LAST_SECONDS, cool.told_until, cool.failed_at + ONCE_SECONDS, self._probed.get(place, now - ONCE_SECONDS) + ONCE_SECONDS
        )
        if due > now:
            return min(due, cool.until) - now
        breaker = self._breakers.get(candidate.model.provider.id)
        admitted = "yes" if breaker is None else breaker.admit(now)
        if breaker is not None and admitted == "no":
            return breaker.left(now)
        self._probed[place] = now
        return Try(candidate, now, admitted == "probe")

    # After it.

    def answered(self, tried: Try) -> None:
        """The first sign of life: the key works, and so does the provider that was being probed."""
        if self.quiet:
            return
        candidate = tried.candidate
        for gone in self._cool.answered(candidate, tried.asked_at):
            self._probed.pop((gone.provider, gone.credential, candidate.model.id), None)
            self._delete(gone)
            log.info("{provider}: {key} works again", provider=gone.provider, key=_called(gone))
        if tried.probe and (breaker := self._breakers.pop(candidate.model.provider.id, None)) is not None:
            breaker.succeeded(True)
            log.info("{provider} answers again", provider=candidate.model.provider.id)

    def finished(self, tried: Try) -> None:
        """The answer is complete."""
        if self.heard is not None:
            self.heard(tried, None, False)
        breaker = self._breakers.get(tried.candidate.model.provider.id) if self._breakers else None
        if breaker is not None:
            self._served(breaker, tried)

    def failed(self, tried: Try, error: GatewayError, now: float) -> None:
        """The request has failed; whether before or after its first word does not matter here."""
        candidate, kind = tried.candidate, kind_of(error)
        provider = candidate.model.provider
        if error.kind is None and not error.fallback:
            self._given_back(tried)  # something of ours kept it from being asked
            return
        if self.heard is not None:
            self.heard(tried, error, False)
        if kind in OF_THE_KEY:
            before = self._cool.of(candidate, now)
            cool = self._cool.failed(candidate, error, tried.asked_at, now)
            for gone in self._cool.put(cool):
                self._delete(gone)
            self._save(cool, candidate.credential)
            if before is None or cool.failures > before.failures:
                log.warn(
                    "{provider}: {key} rests for {seconds:.0f} s where there is another to ask ({kind}, failure {failures} of a day)",
                    provider=provider.id, key=_called(cool), seconds=cool.until - now, failures=cool.failures, kind=kind,
                )  # fmt: skip
        if provider.api == "local":
            return  # which has a back-off of its own, and says why
        # Of several keys each has a limit of its own, and a provider that says when to come back is all right.
        limited = kind == "rate_limit" and not error.retry_after and len(provider.credentials) < 2
        counts = kind in OF_THE_SERVER or limited
        breaker = self._breakers.get(provider.id)
        if not counts:
            if breaker is not None:
                self._served(breaker, tried)  # whoever refuses is there
            return
        if breaker is None:
            breaker = self._breakers[provider.id] = Breaker()
        if breaker.failed(now, tried.probe, kind):
            log.warn(
                "{provider} keeps failing ({kind}); it is not asked for {seconds:.0f} s", provider=provider.id, kind=kind, seconds=breaker.left(now)
            )

    def dropped(self, tried: Try) -> None:
        """The request ended without a verdict."""
        if self.heard is not None:
            self.heard(tried, None, True)
        self._given_back(tried)

    def _given_back(self, tried: Try) -> None:
        if tried.probe and (breaker := self._breakers.get(tried.candidate.model.provider.id)) is not None:
            breaker.dropped(True)

    def _served(self, breaker: Breaker, tried: Try) -> None:
        breaker.succeeded(tried.probe)
        if breaker.idle(tried.asked_at):
            del self._breakers[tried.candidate.model.provider.id]

    def changed(self, before: Mapping[str, Provider], now: Mapping[str, Provider]) -> None:
        """The configuration is another one: what was learnt of a server that is at another address now, and of keys that are others, is forgotten."""

        def gone(cool: CoolDown) -> bool:
            old, new = before.get(cool.provider), now.get(cool.provider)
            if old is None or new is None or old.base_url != new.base_url:
                return old is not new
            return fingerprint(_key(old, cool.credential)) != fingerprint(_key(new, cool.credential))

        for cool in self._cool.drop(gone):
            self._probed.pop((cool.provider, cool.credential, cool.model), None)
            self._delete(cool)
        for provider_id in tuple(self._breakers):
            old, new = before.get(provider_id), now.get(provider_id)
            if new is None or old is None or old.base_url != new.base_url:
                del self._breakers[provider_id]

    # What is shown.

    def status(self, providers: Iterable[Provider], now: float) -> list[dict[str, object]]:
        """How these providers do, for `models.status`: `{id, api, breaker: {state, failures, lastKind?, openUntil?}, keys: [{id, state, rests}]}`.

        Each of `rests` is `{model?, kind, failures, since, until, error}`, its times milliseconds of the wall clock; one whose time is over still
        counts its failures. `model` is left out where the key rests for all models.
        """
        wall = self.wall_ms()
        kept: dict[str, list[CoolDown]] = {}
        for cool in self._cool.all():
            if cool.until > now or now - cool.failed_at < MEMORY_SECONDS:
                kept.setdefault(cool.provider, []).append(cool)
        return [self._shown(provider, kept.get(provider.id, ()), now, wall) for provider in providers]

    def _shown(self, provider: Provider, rests: Iterable[CoolDown], now: float, wall: int) -> dict[str, object]:
        breaker = self._breakers.get(provider.id)
        shown: dict[str, object] = {"state": "closed", "failures": 0}
        if breaker is not None:
            shown = {"state": breaker.state(), "failures": breaker.failures(now), "lastKind": breaker.kind}
            if breaker.state() != "closed":
                shown["openUntil"] = wall + round(breaker.left(now) * 1000)
        by_key: dict[str, list[CoolDown]] = {one.id: [] for one in provider.credentials} or {"": []}
        for cool in rests:
            if cool.credential in by_key:
                by_key[cool.credential].append(cool)
        keys = [
            {
                "id": key_id,
                "state": "cooling" if any(cool.until > now for cool in found) else "ready",
                "rests": [
                    {
                        **({"model": cool.model} if cool.model else {}),
                        "kind": cool.kind,
                        "failures": cool.failures,
                        "since": wall + round((cool.failed_at - now) * 1000),
                        "until": wall + round((cool.until - now) * 1000),
                        "error": cool.error,
                    }
                    for cool in found
                ],
            }
            for key_id, found in by_key.items()
        ]
        return {"id": provider.id, "api": provider.api, "breaker": shown, "keys": keys}

    # What is kept.

    def restore(self, kept: Iterable[KeptCoolDown], providers: Mapping[str, Provider], now: float) -> None:
        """What was kept before a restart, of keys that are the same still. What is too old is forgotten, also in the store."""
        wall = self.wall_ms()
        for row in kept:
            provider = providers.get(row.provider)
            key = _key(provider, row.credential) if provider is not None else None
            failed_at = now - max(0.0, (wall - row.failed_ms) / 1000)
            # The wall clock may have been set meanwhile: no rest is longer than the longest.
            until, told = (now + min((ms - wall) / 1000, LONGEST_SECONDS) for ms in (row.until_ms, row.told_until_ms))
            cool = CoolDown(row.provider, row.credential, row.model, row.kind, row.failures, failed_at, until, told, row.error)
            same = provider is not None and (key is not None or not row.credential) and fingerprint(key) == row.fingerprint
            if not same or (until <= now and now - failed_at >= MEMORY_SECONDS):
                self._delete(cool)
                continue
            for gone in self._cool.put(cool):
                self._delete(gone)

    def _save(self, cool: CoolDown, key: Credential | None) -> None:
        if self._store is None:
            return
        wall, now = self.wall_ms(), cool.failed_at
        until, told = (wall + round((moment - now) * 1000) for moment in (cool.until, cool.told_until))
        row = KeptCoolDown(cool.provider, cool.credential, cool.model, cool.kind, cool.failures, wall, until, told, cool.error, fingerprint(key))
        _unwatched(self._store.save(row))

    def _delete(self, cool: CoolDown) -> None:
        if self._store is not None:
            _unwatched(self._store.delete(cool.provider, cool.credential, cool.model))


def _key(provider: Provider, key_id: str) -> Credential | None:
    return next((one for one in provider.credentials if one.id == key_id), None)


def fingerprint(key: Credential | None) -> str:
    """Tells whether a key is the one of before; the key cannot be had from it."""
    return "" if key is None else blake2b(key.key.encode(), digest_size=8, person=b"mayros-key").hexdigest()


def _called(cool: CoolDown) -> str:
    return (f"the key {cool.credential}" if cool.credential else "access without a key") + (f" for {cool.model}" if cool.model else "")


def _unwatched(written: object) -> None:
    """Nobody waits for it; that it could not be kept is logged."""

    async def wait() -> None:
        await written  # type: ignore[misc]

    Deferred.fromCoroutine(wait()).addErrback(lambda failure: log.error("a key's rest could not be kept: {why}", why=failure.getErrorMessage()))
