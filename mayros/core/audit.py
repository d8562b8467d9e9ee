"""What becomes of an act on its way into the audit trail: its secrets hidden, its texts cut, its outcome told once. Imports core and errors.

    act = audit.begin(actor, "tokens.revoke", target="ann")
    await store.save(token, act.done())      # in the transaction of what is done, or
    audit.settle(act, error)                 # when it is over; does nothing where the transaction has it

What is refused, and what agents may ask for as often as they like, is kept up to so many an hour, so that nobody can push the rest out of the trail.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from twisted.logger import Logger

from mayros.core.audit_ports import Actor, AuditEntry, AuditTrail, NoTrail, Outcome
from mayros.core.device_tokens import aside
from mayros.errors import GatewayError

log = Logger()

#: Acts that are noise when there are many, beside all that are not `done`.
NOISY = frozenset(("exec.approval.request", "exec.approval.expire", "auth.lockout"))
#: Such rows in an hour, of one actor and of all.
EACH, ALL = 120, 600
#: Bytes of the details, characters of a text in them, of a target, and of names.
MAX_DETAILS, MAX_TEXT, MAX_TARGET, MAX_NAME = 4096, 300, 300, 128
#: A longer text is not looked through for secrets, and not shown at all.
_MAX_SEEN = 65_536
_MAX_KEYS = 24
_HOUR_MS = 3_600_000
_encode = msgspec.json.Encoder().encode


class Act:
    """One act that goes on. `target` and `details` may be told until it is over."""

    def __init__(self, audit: Audit, actor: Actor, action: str, target: str | None, request: str | None, details: dict[str, Any]) -> None:
        self._audit, self.actor, self.action, self.target, self.request, self.details = audit, actor, action, target, request, details
        #: Its row is written, or goes with the transaction of what it does.
        self.taken = False

    def tell(self, target: str | None = None, /, **details: object) -> None:
        """More of what it is about. A detail that is None is left out."""
        self.target = target if target is not None else self.target
        self.details.update(details)

    def done(self) -> AuditEntry:
        """The row that says it was done, for whoever writes it together with what is done."""
        self.taken = True
        return self._audit.entry(self, "done")

    async def record(self) -> None:
        """Write that it is done, before it is. Raises StorageUnavailable: then it must not be done."""
        await self._audit.trail.record(self._audit.entry(self, "done"))
        self.taken = True


class Audit:
    """The way in. `now_ms` is the wall clock in epoch milliseconds; `redact` hides the secrets that the program knows, and what looks like one."""

    def __init__(self, trail: AuditTrail | None = None, now_ms: Callable[[], int] = lambda: 0, redact: Callable[[str], str] = str) -> None:
        self.trail: AuditTrail = NoTrail() if trail is None else trail
        self._now_ms, self._redact = now_ms, redact
        self._hour = -1
        self._counts: dict[str, int] = {}
        self._left_out = 0

    def begin(self, actor: Actor, action: str, target: str | None = None, request: str | None = None, /, **details: object) -> Act:
        """An act that goes on: `settle` it. `target` is what it is done to; `details` are texts, numbers, lists of them."""
        return Act(self, actor, action, target, request, details)

    def settle(self, act: Act, error: BaseException | None = None, outcome: Outcome | None = None) -> None:
        """It is over: done, or why not. Nobody waits for the row; that it could not be written is logged."""
        if error is None and outcome is None and act.taken:
            return
        found = outcome or outcome_of(error)
        if isinstance(error, GatewayError) and "error" not in act.details:
            act.details["error"] = error.message
        if (found != "done" or act.action in NOISY) and not self._room(act):
            return
        aside(self.trail.record(self.entry(act, found)), f"the audit row of {act.action}")

    def note(self, actor: Actor, action: str, target: str | None = None, outcome: Outcome = "done", /, **details: object) -> None:
        """An act that is over."""
        self.settle(self.begin(actor, action, target, None, **details), None, outcome)

    def entry(self, act: Act, outcome: Outcome) -> AuditEntry:
        """The row of an act."""
        actor = act.actor
        return AuditEntry(
            at_ms=self._now_ms(),
            action=act.action,
            who=self._text(actor.who, MAX_NAME),
            door=actor.door,
            outcome=outcome,
            label=self._optional(actor.label, MAX_NAME),
            address=self._optional(actor.address, MAX_NAME),
            connection=self._optional(actor.connection, MAX_NAME),
            request=self._optional(act.request, MAX_NAME),
            target=self._optional(act.target, MAX_TARGET),
            details=self._details(act.details),
        )

    # Inside

    def _room(self, act: Act) -> bool:
        """Whether one more row of this kind may be kept in this hour."""
        hour, who = self._now_ms() // _HOUR_MS, act.actor.who[:MAX_NAME]
        if hour != self._hour:
            self._hour = hour
            self._counts.clear()
        count, total = self._counts.get(who, 0), self._counts.get("", 0)
        if count >= EACH or total >= ALL:
            if not self._left_out:
                log.warn("so much is asked for and refused ({action} by {who}) that the audit trail leaves out some", action=act.action, who=who)
            self._left_out += 1
            return False
        self._counts[who], self._counts[""] = count + 1, total + 1
        if self._left_out:
            act.details["leftOut"], self._left_out = self._left_out, 0
        return True

    def _optional(self, text: str | None, most: int) -> str | None:
        return None if text is None else self._text(text, most)

    def _text(self, text: str, most: int) -> str:
        if len(text) > _MAX_SEEN:
            return f"({len(text)} characters)"
        shown = self._redact(text.encode("utf-8", "replace").decode())
        return shown if len(shown) <= most else f"{shown[: most - 3]}..."

    def _details(self, details: Mapping[str, object]) -> str:
        """The JSON of the details, with fewer items of lists, and in the end none, where that is too long."""
        given = {name[:MAX_NAME]: value for name, value in list(details.items())[:_MAX_KEYS] if value is not None}
        for most in (32, 8, 2):
            text = _encode({self._text(name, MAX_NAME): self._shown(value, most) for name, value in given.items()})
            if len(text) <= MAX_DETAILS:
                return text.decode()
        return _encode({"cut": True}).decode()

    def _shown(self, value: object, most: int) -> object:
        if isinstance(value, str):
            return self._text(value, MAX_TEXT)
        if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
            return value
        if isinstance(value, list | tuple | set | frozenset):
            some = [self._shown(one, 0) for one in list(value)[:most]]
            return some if len(value) <= most else [*some, f"({len(value) - most} more)"]
        return f"({type(value).__name__})"


def done(act: Act | None) -> AuditEntry | None:
    """The row of an act that is written together with what is done; None where nobody asks for one."""
    return None if act is None else act.done()


def outcome_of(error: BaseException | None) -> Outcome:
    """Whether an error says that something was not to be done, or that it broke."""
    if error is None:
        return "done"
    return "refused" if isinstance(error, GatewayError) and error.status < 500 else "failed"
