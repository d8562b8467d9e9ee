"""Questions to a person: may this command run? From the question to the decision; who may answer, the door knows.

    asked --resolve(decision)--> decided --15 s--> forgotten
      |----its time is up, or its run is cancelled--> over, without a decision --15 s--> forgotten

A decision is bound to exactly what was asked (`digest`) and is used once. Imports mayros.core.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, get_args

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from mayros.core.audit import Audit
from mayros.core.audit_ports import GATEWAY
from mayros.core.exec_ports import ExecAsk, ExecRequest, ExecSecurity
from mayros.core.ports import Clock
from mayros.errors import InvalidRequest, Unavailable

log = Logger()

Decision = Literal["allow-once", "allow-always", "deny"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)

DEFAULT_MS, LONGEST_MS = 120_000, 3_600_000
MAX_PENDING = 256
#: Longest command that a person is asked to judge, in characters.
MAX_COMMAND = 20_000
#: How long, and how many, decided ones can still be asked about.
KEEP_SECONDS, KEEP = 15.0, 256


class Question(msgspec.Struct, frozen=True):
    """What a person is asked, and shown. `env`: what the call adds to the environment. `always`: the programs that "always" puts on the list;
    None where the one who asks keeps a list of his own."""

    command: str
    cwd: str | None = None
    host: str | None = None
    security: ExecSecurity | None = None
    ask: ExecAsk | None = None
    agent_id: str | None = None
    resolved_path: str | None = None
    session_key: str | None = None
    env: tuple[tuple[str, str], ...] = ()
    pty: bool = False
    background: bool = False
    always: tuple[str, ...] | None = None


def digest(request: ExecRequest | Question) -> bytes:
    """What an approval is bound to: the command, its directory, what is added to its environment, how it runs, agent and session."""
    session = request.session if isinstance(request, ExecRequest) else request.session_key
    bound = (request.command, request.cwd, request.env, request.agent_id, session, request.pty, request.background)
    return hashlib.sha256(msgspec.json.encode(bound)).digest()


def about(question: Question) -> dict[str, object]:
    """What the audit trail tells of a question: the names of what is added to the environment, not the values."""
    return {
        "command": question.command,
        "agent": question.agent_id,
        "session": question.session_key,
        "cwd": question.cwd,
        "env": [name for name, _ in question.env] or None,
    }


class Approval:
    """One question and what became of it. Times are epoch milliseconds. `decision` None while `over`: nobody decided."""

    def __init__(self, id: str, question: Question, created_ms: int, expires_ms: int) -> None:
        self.id, self.question, self.created_ms, self.expires_ms = id, question, created_ms, expires_ms
        self.digest = digest(question)
        self.decision: Decision | None = None
        self.resolved_by: str | None = None
        self.over = self.used = False
        self.timer: IDelayedCall | None = None
        self.waiters: list[Deferred[None]] = []


class Audience(Protocol):
    """Whoever can answer."""

    def present(self, session: str) -> bool:
        """Whether anybody who may answer for this session is connected."""
        ...

    def requested(self, approval: Approval) -> None:
        """A new question."""
        ...

    def resolved(self, approval: Approval, now_ms: int) -> None:
        """It needs no answer any more: decided, or (`decision` None) expired or withdrawn."""
        ...


class Nobody:
    """There is no door through which an answer could come."""

    def present(self, session: str) -> bool:
        return False

    def requested(self, approval: Approval) -> None: ...

    def resolved(self, approval: Approval, now_ms: int) -> None: ...


class Approvals:
    """All questions there are, at most MAX_PENDING at a time. `clock` is for waiting, `now_ms` for what clients read."""

    def __init__(self, clock: Clock, now_ms: Callable[[], int], audit: Audit | None = None) -> None:
        self._clock, self._now_ms, self.audit = clock, now_ms, audit or Audit()
        self._pending: dict[str, Approval] = {}
        # With the time at which each is forgotten, oldest first.
        self._over: dict[str, tuple[float, Approval]] = {}
        self.audience: Audience = Nobody()

    def pending(self) -> Sequence[Approval]:
        """Those that wait for an answer, the oldest first."""
        return tuple(self._pending.values())

    def get(self, approval_id: str) -> Approval:
        """One that waits, or was decided a moment ago. Raises InvalidRequest."""
        self._forget()
        approval = self._pending.get(approval_id) or self._over.get(approval_id, (0.0, None))[1]
        if approval is None:
            raise InvalidRequest("unknown approval id")
        return approval

    def ask(self, question: Question, timeout_ms: int = DEFAULT_MS, approval_id: str | None = None) -> Approval:
        """Ask. Raises InvalidRequest: the id is taken; Unavailable: too many questions wait."""
        self._forget()
        if approval_id is not None and (approval_id in self._pending or approval_id in self._over):
            raise InvalidRequest("approval id already pending")
        if len(self._pending) >= MAX_PENDING:
            raise Unavailable(f"{MAX_PENDING} approvals are waiting for an answer already. Try again later.")
        now = self._now_ms()
        approval = Approval(approval_id or self._new_id(), question, now, now + timeout_ms)
        self._pending[approval.id] = approval
        approval.timer = self._clock.callLater(timeout_ms / 1000, self._end, approval, None, None)
        self.audience.requested(approval)
        return approval

    async def decision(self, approval: Approval) -> Decision | None:
        """Wait for it. None: nobody answered in time, or the question was withdrawn. Cancelling only stops the waiting."""
        if not approval.over:
            waiter: Deferred[None] = Deferred()
            approval.waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in approval.waiters:
                    approval.waiters.remove(waiter)
        return approval.decision

    def resolve(self, approval_id: str, decision: str, by: str | None) -> Approval:
        """Answer. `by` names who did, for the log and for clients. Raises InvalidRequest: no such question waits, or that is no decision."""
        known = next((one for one in DECISIONS if one == decision), None)
        if known is None:
            raise InvalidRequest("invalid decision")
        approval = self._pending.get(approval_id)
        if approval is None:
            raise InvalidRequest("unknown approval id")
        agent = approval.question.agent_id
        log.info("approval {id} for agent {agent}: {decision} by {by}", id=approval_id, agent=agent, decision=known, by=by or "a client")
        self._end(approval, known, by)
        return approval

    def withdraw(self, approval: Approval) -> None:
        """Nobody needs the answer any more."""
        self._end(approval, None, None)

    def use(self, approval: Approval, bound: bytes) -> Decision | None:
        """The decision, for whoever does what was asked: once, and only for exactly that. None: there is none for this."""
        if not approval.over or approval.used or approval.digest != bound:
            return None
        approval.used = True
        return approval.decision

    def _end(self, approval: Approval, decision: Decision | None, by: str | None) -> None:
        if approval.over:
            return
        approval.over, approval.decision, approval.resolved_by = True, decision, by
        if approval.timer is not None and approval.timer.active():
            approval.timer.cancel()
        del self._pending[approval.id]
        if decision is None:
            self.audit.note(GATEWAY, "exec.approval.expire", approval.id, **about(approval.question))
        self._forget()
        self._over[approval.id] = (self._clock.seconds() + KEEP_SECONDS, approval)
        if len(self._over) > KEEP:
            del self._over[next(iter(self._over))]
        self.audience.resolved(approval, self._now_ms())
        waiters, approval.waiters = approval.waiters, []
        for waiter in waiters:
            if not waiter.called:  # what one of them does may end another
                waiter.callback(None)

    def _forget(self) -> None:
        now = self._clock.seconds()
        while self._over and next(iter(self._over.values()))[0] <= now:
            del self._over[next(iter(self._over))]

    def _new_id(self) -> str:
        """Short, because people type it."""
        while (fresh := secrets.token_hex(4)) in self._pending or fresh in self._over:
            pass
        return fresh
