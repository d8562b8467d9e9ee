"""The circuit breaker of one provider: after a row of failures it is not asked for a while, then by one request alone. Pure; imports nothing.

    closed -- 5 failures within 30 s --> open -- after 15 s --> one probe -- it answers --> closed
                                          ^------ it fails: open again, twice as long (at most 5 min) ------|

Each success takes one failure back, so that a provider which fails now and then under much load stays in use. Times are seconds of a clock that
never jumps, passed in as `now`.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

FAILURES, WINDOW_SECONDS = 5, 30.0
FIRST_SECONDS, LONGEST_SECONDS = 15.0, 300.0
#: How soon to come back while a probe is out, whose end nobody knows.
PROBE_SECONDS = 1.0

State = Literal["closed", "open", "probing"]


class Breaker:
    """Ask `admit` before each request, and tell each one's end by exactly one of `succeeded`, `failed` and `dropped`, with what `admit` said."""

    __slots__ = ("_failures", "_pause", "_probing", "_until", "kind")

    def __init__(self) -> None:
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._until: float | None = None
        self._pause, self._probing = FIRST_SECONDS, False
        #: The kind of the last failure (core/failover.py).
        self.kind = ""

    def admit(self, now: float) -> Literal["yes", "probe", "no"]:
        """Whether a request may be made now; a `probe` is the only one until its end is told."""
        if self._until is None:
            return "yes"
        if self._probing or now < self._until:
            return "no"
        self._probing = True
        return "probe"

    def left(self, now: float) -> float:
        """Seconds until a request may be made; 0: now."""
        if self._until is None:
            return 0.0
        return PROBE_SECONDS if self._probing else max(0.0, self._until - now)

    def state(self) -> State:
        """Where it stands; `open` also when its time is over and nobody has asked since."""
        return "closed" if self._until is None else "probing" if self._probing else "open"

    def failures(self, now: float) -> int:
        """How many failures count at the moment."""
        while self._failures and self._failures[0] <= now - WINDOW_SECONDS:
            self._failures.popleft()
        return len(self._failures)

    def succeeded(self, probe: bool) -> None:
        """A request was answered. One that was made before the breaker opened does not close it."""
        if probe:
            self._until, self._pause, self._probing = None, FIRST_SECONDS, False
            self._failures.clear()
        elif self._until is None and self._failures:
            self._failures.popleft()

    def failed(self, now: float, probe: bool, kind: str) -> bool:
        """A request failed. Whether this opened it. One that was made before it opened makes it no longer."""
        if self._until is not None:
            if probe:
                self._pause = min(self._pause * 2, LONGEST_SECONDS)
                self._until, self._probing, self.kind = now + self._pause, False, kind
            return probe
        self.kind = kind
        count = self.failures(now)
        self._failures.append(now)
        if count + 1 < FAILURES:
            return False
        self._until = now + self._pause
        return True

    def dropped(self, probe: bool) -> None:
        """A request ended without a verdict: its run was cancelled. The next one may be the probe."""
        if probe:
            self._probing = False

    def idle(self, now: float) -> bool:
        """Whether there is nothing to remember."""
        return self._until is None and not self.failures(now)
