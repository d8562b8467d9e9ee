"""What keeps a hostile or busy outside bounded: failed credentials, a byte budget, connections. Pure; time is passed in.

Imports mayros.errors only.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from mayros.errors import ConfigError


def retry_after(left_seconds: float) -> int:
    """Value of `Retry-After`: whole seconds, rounded up, at least 1."""
    return max(1, math.ceil(left_seconds))


class FailureLimiter:
    """Locks a key out for `lockout_seconds` after `max_attempts` failures within `window_seconds`.

    `now` is in seconds of a clock that never steps back. Nothing is recorded while a key is locked, so a lockout is not prolonged, and its
    end leaves a clean slate. At most `max_keys` keys are kept: when that is not enough, expired ones go first, else the one whose last failure is
    longest ago, locked or not. (N addresses get N times the attempts in any scheme, so forgetting gives nothing away; refusing unseen addresses
    would lock everybody out.) All values must be at least 1, else ConfigError.
    """

    def __init__(self, max_attempts: int, window_seconds: float, lockout_seconds: float, max_keys: int = 16_384) -> None:
        for name, value in (("maxAttempts", max_attempts), ("windowMs", window_seconds * 1000), ("lockoutMs", lockout_seconds * 1000)):
            if value < 1:
                raise ConfigError(f"gateway.auth.rateLimit.{name} must be at least 1.")
        if max_keys < 1:
            raise ValueError("max_keys must be at least 1")
        self.max_attempts = max_attempts
        self.window_seconds = window_seconds
        self.lockout_seconds = lockout_seconds
        self._max_keys = max_keys
        #: How many lockouts there have been.
        self.lockouts = 0
        # Each in the order of the last failure, so that in both the first key is the first to expire.
        self._failures: OrderedDict[str, list[float]] = OrderedDict()
        self._locked: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._failures) + len(self._locked)

    def check(self, key: str, now: float) -> float:
        """Seconds until the key may try again; 0 when it may."""
        since = self._locked.get(key)
        if since is None:
            return 0.0
        left = since + self.lockout_seconds - now
        if left > 0:
            return left
        del self._locked[key]
        return 0.0

    def failed(self, key: str, now: float) -> bool:
        """Count a wrong credential; whether the key is locked from now on, and was not before."""
        if self.check(key, now) > 0:
            return False
        times = self._failures.get(key)
        if times is None:
            if len(self) >= self._max_keys:
                self._make_room(now)
            times = self._failures[key] = []
        else:
            self._failures.move_to_end(key)
            times[:] = [then for then in times if now - then < self.window_seconds]
        times.append(now)
        if len(times) >= self.max_attempts:
            del self._failures[key]
            self._locked[key] = now
            self.lockouts += 1
            return True
        return False

    def succeeded(self, key: str) -> None:
        """Forget the key's failures. A lockout stays: nobody may succeed meanwhile."""
        self._failures.pop(key, None)

    def _make_room(self, now: float) -> None:
        before = len(self)
        while self._failures and now - next(iter(self._failures.values()))[-1] >= self.window_seconds:
            self._failures.popitem(last=False)
        while self._locked and now - next(iter(self._locked.values())) >= self.lockout_seconds:
            self._locked.popitem(last=False)
        if len(self) < before:
            return
        failed = next(iter(self._failures.values()))[-1] if self._failures else math.inf
        locked = next(iter(self._locked.values())) if self._locked else math.inf
        (self._failures if failed <= locked else self._locked).popitem(last=False)


class Budget:
    """Bytes that all of the process may hold together for one purpose."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._taken = 0

    @property
    def free(self) -> int:
        """Bytes left."""
        return self.total - self._taken

    def take(self, n: int) -> bool:
        """Set `n` bytes aside; False, and nothing changes, when they are not there."""
        if n < 0:
            raise ValueError("a share of a budget is not negative")
        if self._taken + n > self.total:
            return False
        self._taken += n
        return True

    def give(self, n: int) -> None:
        """Return `n` bytes. ValueError when more comes back than was taken: somebody counts wrongly."""
        if not 0 <= n <= self._taken:
            raise ValueError("more was given back than was taken")
        self._taken -= n


class ConnectionCounter:
    """Open connections: at most `total`, and at most `per_key` of each key; the key None counts to the total only."""

    def __init__(self, total: int, per_key: int) -> None:
        self.total = total
        self.per_key = per_key
        self._open = 0
        self._keys: dict[str, int] = {}

    @property
    def open(self) -> int:
        """How many connections are open."""
        return self._open

    def enter(self, key: str | None) -> bool:
        """Count a new connection; False when it is one too many (then do not `leave`)."""
        if self._open >= self.total:
            return False
        if key is not None:
            count = self._keys.get(key, 0)
            if count >= self.per_key:
                return False
            self._keys[key] = count + 1
        self._open += 1
        return True

    def leave(self, key: str | None) -> None:
        """A connection that entered is gone."""
        if self._open < 1 or (key is not None and key not in self._keys):
            raise ValueError("a connection left that never entered")
        self._open -= 1
        if key is not None:
            if self._keys[key] == 1:
                del self._keys[key]
            else:
                self._keys[key] -= 1
