"""The seams of the program: what the run needs from the outside and what the doors need from the run.

A port is two to four methods. The local implementation of each is in core/ or storage/; the fakes of the tests are in tests/helpers.py.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Literal, Protocol, get_args

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from mayros.core.keys import SessionKey
from mayros.core.models import Credential, Model
from mayros.core.routing import Agent
from mayros.core.tracing import Trace
from mayros.events import Event, FinishReason, Outcome, Usage
from mayros.messages import ToolCall

Door = Literal["chat", "ws", "cli"]
DOORS: tuple[Door, ...] = get_args(Door)
#: What becomes of a run whose clients are all gone: cancelled, cancelled unless one comes back within half a minute, or kept running.
OnLost = Literal["cancel", "grace", "keep"]


class Clock(Protocol):
    """Time for whatever waits: a reactor, or a test's clock."""

    def seconds(self) -> float: ...

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> IDelayedCall: ...


class Principal(msgspec.Struct, frozen=True):
    """Who asks, as the door found out. `id` is stable and holds no secret: `owner`, `user:<name>` behind a trusted proxy, or `token:<name>`."""

    id: str
    scopes: frozenset[str]
    #: The agents and the endpoints that it may use; None: all.
    agents: frozenset[str] | None = None
    endpoints: frozenset[str] | None = None
    #: The name space that its sessions are in, and no others of which it knows; None: it knows of all (core/reach.py).
    space: str | None = None
    #: Its limits: requests a minute that begin runs, and the models' tokens a day.
    rpm: int | None = None
    day_tokens: int | None = None


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
    #: How likely each token is, and so many others in its place.
    logprobs: bool | None = None
    top_logprobs: int | None = None
    #: How long a vendor's cache is asked to keep the prompt: `none`, `short` or `long`; None: as is usual there. The configuration's to say.
    cache_retention: str | None = None


class ToolSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a model is told of a tool. `parameters` is a JSON Schema of type object."""

    name: str
    description: str
    parameters: dict[str, Any]
    #: Whether the arguments must fit exactly; sent where the vendor knows it. None: nobody said.
    strict: bool | None = None


class CallerTool(ToolSpec, frozen=True, omit_defaults=True):
    """A tool that the caller runs: its calls are handed back to him, and he answers them with his next request."""


class ResponseFormat(msgspec.Struct, frozen=True):
    """The form of a run's answer. `schema` None: any JSON object; else what fits the JSON Schema, which has a `name` then."""

    schema: dict[str, Any] | None = None
    name: str = ""
    description: str | None = None
    strict: bool | None = None


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
    #: What the caller chose instead of the agent's models; used alone, without fallbacks.
    model: Model | None = None
    #: Tools that the caller runs himself, and whether the model must call one of them: `none`, `auto`, `required`, or `function:NAME` for that one.
    caller_tools: tuple[CallerTool, ...] = ()
    tool_choice: str = "auto"
    #: False: at most one of the calls of a model turn is handed back.
    parallel_calls: bool = True
    response_format: ResponseFormat | None = None
    #: Of which whole it is a part, as its caller said.
    trace: Trace | None = None


class ModelTurn(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one model turn of a run used. `place`: of its message among what the run said (`TurnStore.finish`); -1: it has none of its own."""

    provider: str
    model: str
    usage: Usage = Usage()
    place: int = -1


class RunResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a run ended, for whoever asks later; also the stored answer of an idempotency key. `text` may be partial.

    `usage` is the sum over its model turns; `turns` has them, in order, where there was more than one.
    """

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
    turns: tuple[ModelTurn, ...] = ()
    #: Calls of the caller's own tools, which he has to answer.
    calls: tuple[ToolCall, ...] = ()


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
    #: How many characters of `system`, from its start, are the same in all of the agent's runs; 0: all of it.
    system_stable: int = 0
    #: Whether a tool must be called: `auto`, `none`, `required`, or `function:NAME` for that one.
    tool_choice: str = "auto"
    #: False: one call at a time.
    parallel_calls: bool = True
    #: The form of the answer, where the model gives one and calls nothing.
    response_format: ResponseFormat | None = None
    #: No more tokens than this, thinking included, even where thinking is a budget of its own; None: no such limit.
    most_tokens: int | None = None
    #: Told to providers that are allowed to know it.
    trace: Trace | None = None


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


class Journal(Protocol):
    """What a stream has said, encoded and numbered from 1, so that it can be read again; bounded, the oldest events go first."""

    #: The number of the newest event; 0: none yet.
    last: int

    def append(self, events: Sequence[bytes]) -> None:
        """Keep more events."""
        ...

    def holds(self, after: int) -> bool:
        """Whether all that came after an event can be read; 0: everything."""
        ...

    def read(self, after: int, limit: int) -> tuple[bytes, int] | None:
        """What came after an event, whole events of at most `limit` bytes but at least one, and the number of the last of them; None: not kept."""
        ...

    def close(self) -> None:
        """Nothing more will be appended; it may be dropped where there is no room."""
        ...

    def drop(self) -> None:
        """It is of no use any more."""
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
    #: Whether its turn, and with it the answer of its idempotency key, is on disk.
    recorded: bool
    #: When it was submitted, in milliseconds of the wall clock, and in seconds of the clock that never jumps.
    started_ms: int
    began: float

    @property
    def logprobs(self) -> Sequence[bytes]:
        """How likely the tokens of the answer were, as `TextDelta` has it; none where nobody asked, the model did not tell, or a tool has run."""
        ...

    @property
    def text(self) -> str:
        """The answer so far."""
        ...

    def ended(self) -> Deferred[RunResult]:
        """Fires when the run has ended and its turn is committed; a new Deferred for each caller, which may cancel it. Never fails."""
        ...

    def attach(self) -> None:
        """One more client waits for it, besides the one that it was submitted for; each is to be told as lost, or to wait for the end."""
        ...

    def lost(self) -> None:
        """A client is gone. With the last one the run is cancelled, or not, as it was submitted (OnLost)."""
        ...


class Runs(Protocol):
    """Drives every run as a task of its own. Doors submit, attach and wait; they never drive."""

    def submit(self, turn: Turn, principal: Principal, owner: Owner | None = None, on_lost: OnLost = "cancel") -> Run:
        """Start (or queue) a run. Raises QueueFull, Unavailable (no model) or ServerShutdown at once, before anything is recorded."""
        ...

    def check(self, turn: Turn, principal: Principal | None = None) -> None:
        """Raise what `submit` would raise, and start nothing: for whoever must answer before the run's first event."""
        ...

    def get(self, run_id: str) -> Run | None:
        """A run that has not ended."""
        ...

    def find(self, session: str) -> Sequence[Run]:
        """The live runs of a session, in order of submission: the first one thinks, the others wait."""
        ...

    def of(self, principal_id: str) -> Sequence[Run]:
        """The live runs that somebody asked for, in order of submission."""
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

    def finish(
        self, turn: Turn, history: History, result: RunResult, lease: Lease, said: Sequence[msgspec.Raw] = (), principal: str = ""
    ) -> Deferred[None]:
        """Record the turn, what it used, and the answer of its claim, in one transaction; fires when it is on disk.

        `said`: the canonical messages that the run made, in order, where there is more than one (calls, results, the final text); else the
        result's text is the one. `principal`: the id of who asked, for the sums of what was used.

        Cancelling the Deferred only stops the waiting. Fails with StorageUnavailable.
        """
        ...

    def recover(self) -> None:
        """At start: runs that were live when the process died are closed as aborted."""
        ...
