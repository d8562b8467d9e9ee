"""The seams of the program: what the run needs from the outside and what the doors need from the run.

A port is two to four methods. The local implementation of each is in core/ or storage/; the fakes of the tests are in tests/helpers.py.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Literal, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from mayros.core.keys import SessionKey
from mayros.core.models import Credential, Model
from mayros.core.routing import Agent
from mayros.events import Event, FinishReason, Outcome, Usage

Door = Literal["chat", "ws", "cli"]
#: What becomes of a run whose owner is lost: cancelled, or kept running.
OnLost = Literal["cancel", "keep"]


class Clock(Protocol):
    """Time for whatever waits: a reactor, or a test's clock."""

    def seconds(self) -> float: ...

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> IDelayedCall: ...


class Principal(msgspec.Struct, frozen=True):
    """Who asks, as the door found out. `id` is stable and holds no secret: `owner`, or `user:<name>` behind a trusted proxy."""

    id: str
    scopes: frozenset[str]


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the caller asks of the model, under OpenAI's names; `extra` goes to providers of OpenAI's own kind only."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    reasoning_effort: str | None = None
    extra: dict[str, Any] | None = None


class Claim(msgspec.Struct, frozen=True):
    """An idempotency key that this run holds; its answer is committed together with the turn."""

    scope: str
    key: str


class Turn(msgspec.Struct, frozen=True):
    """One submission. `messages` are canonical (messages.py) and new to the session; of a stateless turn they are the whole history."""

    run_id: str
    agent: Agent
    session: SessionKey
    stateless: bool
    messages: tuple[msgspec.Raw, ...]
    door: Door
    extra_system: str = ""
    sampling: Sampling = Sampling()
    timeout_seconds: float = 600.0
    metadata: dict[str, str] | None = None
    claim: Claim | None = None
    #: Whether the agent's tools are offered, as far as the door decides that.
    tools: Literal["agent", "none"] = "agent"


class RunResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a run ended, for whoever asks later; also the stored answer of an idempotency key. `text` may be partial."""

    run_id: str
    session_key: str
    session_id: str
    agent_id: str
    outcome: Outcome
    text: str
    started_at_ms: int
    ended_at_ms: int
    finish_reason: FinishReason | None = None
    usage: Usage = Usage()
    provider: str | None = None
    model: str | None = None
    error_code: str | None = None
    error: str | None = None


class SessionSettings(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What clients have set for a session; field names as on the wire (`sessions.patch`). None: not set."""

    label: str | None = None
    thinking_level: str | None = None
    verbose_level: str | None = None
    reasoning_level: str | None = None
    response_usage: str | None = None
    elevated_level: str | None = None
    exec_host: str | None = None
    exec_security: str | None = None
    exec_ask: str | None = None
    exec_node: str | None = None
    #: `provider/model`; the session's runs use it alone, without fallbacks.
    model: str | None = None
    spawned_by: str | None = None
    spawn_depth: int | None = None
    send_policy: str | None = None
    group_activation: str | None = None


class History(msgspec.Struct, frozen=True):
    """What a session holds: its current session id, the entry a new turn follows, and the messages a prompt gets."""

    session_id: str
    leaf: int | None
    messages: tuple[msgspec.Raw, ...]
    settings: SessionSettings = SessionSettings()


class ToolSpec(msgspec.Struct, frozen=True):
    """What a model is told of a tool. `parameters` is a JSON Schema of type object."""

    name: str
    description: str
    parameters: dict[str, Any]


class ModelRequest(msgspec.Struct, frozen=True):
    """One model turn. `messages` are canonical; `system` comes before them; `tools` may be called."""

    model: Model
    system: str
    messages: Sequence[msgspec.Raw]
    sampling: Sampling
    run_id: str
    tools: Sequence[ToolSpec] = ()
    #: The key to use; None: the provider's only one, or none.
    credential: Credential | None = None
    #: A stable name of the conversation, without a secret in it, for prompt caches; empty: none.
    session: str = ""


class ModelProvider(Protocol):
    """An outbound adapter."""

    def stream(self, request: ModelRequest) -> AsyncGenerator[list[Event], None]:
        """Batches of ModelAnswered (first, by itself or with more), TextDelta, ReasoningDelta, ToolCallDelta (only where the request has tools),
        ProviderState (before the end), Usage (the last one counts; at the end, also of a turn that is cut off where it is known) and, once,
        TurnFinished.

        One batch per read of the socket. Closing the iterator stops the model and closes its socket. Raises errors of mayros.errors; those
        with `fallback` set let another model be tried.
        """
        ...


class Owner(Protocol):
    """Whom a run belongs to: the SSE stream of one request, say."""

    async def send(self, events: list[Event]) -> None:
        """Take events. Suspends while the client is slow: the model's socket is paused meanwhile. Must not raise."""
        ...


#: Called with each batch of each run while registered; must not block and must not raise.
Watcher = Callable[["Run", list[Event]], None]


class Run(Protocol):
    """A live (or just ended) run."""

    turn: Turn
    principal: Principal

    result: RunResult | None
    #: What ended it, unless it ended well; set together with `result`.
    error: Exception | None

    @property
    def text(self) -> str:
        """The answer so far."""
        ...

    def ended(self) -> Deferred[RunResult]:
        """Fires when the run has ended and its turn is committed; a new Deferred for each caller, which may cancel it. Never fails."""
        ...

    def lost(self) -> None:
        """Its owner is gone: the run is cancelled, or goes on, as it was submitted."""
        ...


class Runs(Protocol):
    """Drives every run as a task of its own. Doors submit, attach and wait; they never drive."""

    def submit(self, turn: Turn, principal: Principal, owner: Owner | None = None, on_lost: OnLost = "cancel") -> Run:
        """Start (or queue) a run. Raises QueueFull, Unavailable (no model) or ServerShutdown at once, before anything is recorded."""
        ...

    def check(self, turn: Turn) -> None:
        """Raise what `submit` would raise, and start nothing: for whoever must answer before the run's first event."""
        ...

    def get(self, run_id: str) -> Run | None:
        """A run that has not ended."""
        ...

    def find(self, session: str) -> Sequence[Run]:
        """The live runs of a session, in order of submission: the first one thinks, the others wait."""
        ...

    def ended(self, run_id: str) -> RunResult | None:
        """How a run ended, for ten minutes after (bounded)."""
        ...

    def live(self) -> int:
        """How many runs have not ended."""
        ...

    def abort(self, run_id: str, why: Exception) -> bool:
        """Cancel a live run; `why` becomes its error. False when there is none, or its turn is being committed already."""
        ...

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Hear of every run's events; call the result to stop."""
        ...

    def drained(self) -> Deferred[None]:
        """Fires when no run is live."""
        ...


class Lease(msgspec.Struct, frozen=True):
    """The right to write to a session; `fence` grows with each lease of the process."""

    session: str
    fence: int


class Lanes(Protocol):
    """Runs of one session are strictly serial, in order of arrival."""

    def acquire(self, session: str) -> Deferred[Lease]:
        """Raises QueueFull at once when the lane or all lanes together are full. Cancelling the Deferred leaves the queue."""
        ...

    def release(self, lease: Lease) -> None: ...


class Slots(Protocol):
    """The limit on runs that think at the same time."""

    def acquire(self) -> Deferred[None]: ...

    def release(self) -> None: ...


class TurnStore(Protocol):
    """Conversations, durable."""

    def fresh(self, session: SessionKey) -> History:
        """The history of a session that is made for one request: nothing, under a new session id."""
        ...

    def history(self, session: SessionKey) -> Awaitable[History]:
        """What the session holds, turns without text left out. A session that does not exist yet has a fresh id and no messages."""
        ...

    def finish(self, turn: Turn, history: History, result: RunResult, lease: Lease, said: Sequence[msgspec.Raw] = ()) -> Deferred[None]:
        """Record the turn, and the answer of its claim, in one transaction; fires when it is on disk.

        `said`: the canonical messages that the run made, in order, where there is more than one (calls, results, the final text); else the
        result's text is the one.

        Cancelling the Deferred only stops the waiting. Fails with StorageUnavailable.
        """
        ...

    def recover(self) -> None:
        """At start: runs that were live when the process died are closed as aborted."""
        ...


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
