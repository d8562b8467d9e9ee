"""The seams of the program: what the run needs from the outside and what the doors need from the run.

A port is two to four methods. The local implementation of each is in core/ or storage/; the fakes of the tests are in tests/helpers.py.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from mayros.core.keys import SessionKey
from mayros.core.models import Model
from mayros.core.routing import Agent, Settings
from mayros.events import Event, FinishReason, Outcome, Usage

T = TypeVar("T")

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


class ModelProvider(Protocol):
    """An outbound adapter."""

    def stream(self, request: ModelRequest) -> AsyncGenerator[list[Event], None]:
        """Batches of ModelAnswered (first, by itself or with more), TextDelta, ReasoningDelta, ToolCallDelta (only where the request has tools),
        Usage and, once, TurnFinished.

        One batch per read of the socket. Closing the iterator stops the model and closes its socket. Raises errors of mayros.errors; those
        with `fallback` set let another model be tried.
        """
        ...


class ToolImage(msgspec.Struct, frozen=True):
    """An image that a tool gives to the model; `data` is base64."""

    media_type: str
    data: str


class ToolResult(msgspec.Struct, frozen=True):
    """What a call came to. `text` goes to the model, bounded and redacted by the loop; `untrusted`: it comes from outside and is marked so."""

    text: str
    is_error: bool = False
    images: tuple[ToolImage, ...] = ()
    untrusted: bool = False


class ToolContext(Protocol):
    """The run that a call belongs to, as its tool sees it."""

    turn: Turn
    principal: Principal
    call_id: str
    #: Whether the model takes images.
    images: bool

    def update(self, text: str) -> None:
        """Tell watchers what there is so far; called as often as one likes, told a few times in a second."""
        ...

    async def waiting(self, answer: Awaitable[T]) -> T:
        """Wait for a person (or for another session): meanwhile the run's clock stops and its slot is given back."""
        ...


class Tool(Protocol):
    """One tool. `read_only`: it changes nothing, so that several calls may run side by side."""

    spec: ToolSpec
    read_only: bool

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """Do it. `arguments` fit the schema. Raises ToolFailed with what the model should do; cancelled, it ends what it started within a second."""
        ...


#: What may run at all: nothing, what is on a list, anything.
ExecSecurity = Literal["deny", "allowlist", "full"]
#: When a person is asked: never, when the list does not have it, every time.
ExecAsk = Literal["off", "on-miss", "always"]


class ExecRequest(msgspec.Struct, frozen=True):
    """A command that a model wants to run, exactly as it would run: whoever allows it allows this and nothing else.

    `cwd` is a real path; `env` is what the call adds to the environment, sorted by name. `security` and `ask` are what the call asks for (None:
    nothing), and may only make the configured rules stricter. `analysed`: the command line was understood as parts that start one executable each.
    `resolved` are then the real paths of those executables that must be on the list: parts that only use safe binaries are not among them.
    """

    command: str
    cwd: str
    env: tuple[tuple[str, str], ...]
    agent_id: str
    session: str
    pty: bool = False
    background: bool = False
    security: ExecSecurity | None = None
    ask: ExecAsk | None = None
    resolved: tuple[str, ...] = ()
    analysed: bool = False


class ExecPolicy(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Rules for commands that are kept in the store, for one agent or for all; None: not set. `auto_allow_skills` is kept and has no effect."""

    security: ExecSecurity | None = None
    ask: ExecAsk | None = None
    ask_fallback: ExecSecurity | None = None
    auto_allow_skills: bool | None = None


class AllowedExec(msgspec.Struct, frozen=True):
    """One pattern of an agent's list of allowed programs, and when it was last of use."""

    id: str
    agent_id: str
    pattern: str
    last_used_ms: int | None = None
    last_command: str | None = None
    last_resolved: str | None = None


class ExecRulesStore(Protocol):
    """Rules for commands on disk, durable when the Awaitable is done. All raise StorageUnavailable; nothing here decides anything."""

    def load(self) -> Awaitable[tuple[Sequence[AllowedExec], Mapping[str, ExecPolicy]]]:
        """All lists, and the policies by agent id."""
        ...

    def save(self, entry: AllowedExec) -> Awaitable[None]:
        """One entry: new, or in the place of the one with its id."""
        ...

    def replace(self, entries: Sequence[AllowedExec], policies: Mapping[str, ExecPolicy]) -> Awaitable[None]:
        """Everything anew, in one transaction."""
        ...


class Permission(Protocol):
    """Whether a command may run."""

    async def allow(self, request: ExecRequest, context: ToolContext) -> None:
        """Return where it may, after a person was asked if need be. Raises ToolFailed: why not, and what the model can do."""
        ...


class ResultStore(Protocol):
    """The whole texts of results that were too long for the model; for a day, each for its agent."""

    def keep(self, agent_id: str, text: str, untrusted: bool) -> Awaitable[str | None]:
        """A reference (`result://...`) that `open` takes, and in which `untrusted` shows; None where the text cannot be kept. Raises nothing."""
        ...

    def open(self, reference: str, agent_id: str) -> str | None:
        """The text; None where there is none for this agent (any more). Blocks: call it off the reactor."""
        ...


class Toolbox(Protocol):
    """Which tools a run has: the registry after policy."""

    def offered(self, turn: Turn, model: Model) -> Mapping[str, Tool]:
        """By exact name; empty where the model takes no tools or its door has none."""
        ...

    def why_not(self, turn: Turn, model: Model, name: str) -> str | None:
        """Why a tool that exists is not offered (the rule that decided); None where there is no tool of that name."""
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


class SessionRow(msgspec.Struct, frozen=True):
    """One session as lists show it. Tokens are sums over its current session id's turns; `last_*` are of its newest turn."""

    key: str
    agent_id: str
    session_id: str
    created_ms: int
    updated_ms: int
    turns: int
    stateless: bool
    settings: SessionSettings
    input_tokens: int
    output_tokens: int
    last_outcome: Outcome | None = None
    last_model: str | None = None
    last_usage: Usage | None = None
    #: The first user message and the newest message, cut; only where the query asked.
    title: str | None = None
    preview: str | None = None


class SessionQuery(msgspec.Struct, frozen=True):
    """What `Sessions.list` gives: newest first, at most `limit` (1-1000)."""

    limit: int = 200
    active_since_ms: int | None = None
    agent_id: str | None = None
    label: str | None = None
    spawned_by: str | None = None
    session_id: str | None = None
    search: str | None = None
    titles: bool = False
    previews: bool = False


class EntryMeta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is kept beside an assistant message; only what is set."""

    outcome: Outcome | None = None
    finish_reason: FinishReason | None = None
    usage: Usage = Usage()
    provider: str | None = None
    model: str | None = None
    door: str | None = None
    metadata: dict[str, str] | None = None
    error_code: str | None = None
    #: Written by the gateway and not by a model: `inject`, `command`.
    origin: str | None = None


class Entry(msgspec.Struct, frozen=True):
    """One message of a transcript, oldest first; `message` is canonical."""

    id: int
    run_id: str
    message: msgspec.Raw
    created_ms: int
    meta: EntryMeta | None = None


class Transcript(msgspec.Struct, frozen=True):
    """The newest entries of a session, oldest first; everything that was recorded, also what prompts leave out."""

    row: SessionRow
    entries: tuple[Entry, ...]


class Sessions(Protocol):
    """The sessions there are. Whoever changes one that may have live runs holds its lane. All raise StorageUnavailable."""

    def list(self, query: SessionQuery) -> Awaitable[Sequence[SessionRow]]: ...

    def count(self) -> Awaitable[int]: ...

    def get(self, key: str) -> Awaitable[SessionRow | None]: ...

    def transcript(self, key: str, limit: int) -> Awaitable[Transcript | None]:
        """The newest `limit` entries; None where there is no such session."""
        ...

    def patch(self, key: SessionKey, changes: Mapping[str, object]) -> Awaitable[SessionRow]:
        """Set settings by their Python field names; None clears. Makes the session where it is missing. Raises InvalidRequest: label in use."""
        ...

    def reset(self, key: SessionKey) -> Awaitable[SessionRow]:
        """A new session id under the same key; settings stay, counters begin anew, the old entries stay in the store."""
        ...

    def delete(self, key: SessionKey) -> Awaitable[bool]:
        """The session and all its entries; False where there was none."""
        ...

    def append(self, key: SessionKey, message: msgspec.Raw, run_id: str, meta: EntryMeta) -> Awaitable[Entry]:
        """Add a message that no run made. The session is made where it is missing."""
        ...


class DeviceRecord(msgspec.Struct, frozen=True):
    """A paired device. `public_key`: base64url of the raw Ed25519 key, as the device sent it; `device_id`: hexadecimal SHA-256 of that key."""

    device_id: str
    public_key: str
    display_name: str | None
    platform: str | None
    client_id: str | None
    client_mode: str | None
    roles: tuple[str, ...]
    scopes: tuple[str, ...]
    remote_ip: str | None
    created_ms: int
    approved_ms: int


class DeviceToken(msgspec.Struct, frozen=True):
    """A device's token for one role, known by its hash only."""

    token_hash: bytes
    device_id: str
    role: str
    scopes: tuple[str, ...]
    created_ms: int
    rotated_ms: int | None = None
    revoked_ms: int | None = None
    last_used_ms: int | None = None


class PairingRequest(msgspec.Struct, frozen=True):
    """A device that waits for somebody's approval; one for each device."""

    request_id: str
    device_id: str
    public_key: str
    display_name: str | None
    platform: str | None
    client_id: str | None
    client_mode: str | None
    roles: tuple[str, ...]
    scopes: tuple[str, ...]
    remote_ip: str | None
    silent: bool
    is_repair: bool
    created_ms: int


class DeviceStore(Protocol):
    """Devices on disk: a change is durable when its Awaitable is done. All raise StorageUnavailable; nothing here decides anything."""

    def load(self) -> Awaitable[tuple[Sequence[DeviceRecord], Sequence[DeviceToken], Sequence[PairingRequest]]]:
        """All there are, oldest first."""
        ...

    def save_device(self, record: DeviceRecord) -> Awaitable[None]: ...

    def delete_device(self, device_id: str) -> Awaitable[None]:
        """The device with its tokens and its request."""
        ...

    def save_token(self, token: DeviceToken) -> Awaitable[None]: ...

    def delete_token(self, token_hash: bytes) -> Awaitable[None]: ...

    def save_request(self, request: PairingRequest) -> Awaitable[None]:
        """Replaces the device's earlier request."""
        ...

    def delete_request(self, request_id: str) -> Awaitable[None]: ...


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


class Workspace(Protocol):
    """The agents' own files, for the prompt."""

    def files(self, agent: Agent) -> Awaitable[Sequence[WorkspaceFile]]:
        """The texts in prompt order; read off the reactor, at most a second old. Raises nothing: what cannot be read is missing."""
        ...


class WorkspaceFile(msgspec.Struct, frozen=True):
    """One workspace file. `text` None: it is missing. At most 2 MiB are read."""

    name: str
    path: str
    text: str | None


class Skill(msgspec.Struct, frozen=True):
    """A folder with instructions for one kind of task; `path` is that of its SKILL.md."""

    name: str
    description: str
    path: str


class Skills(Protocol):
    """What the agents know how to do, for the prompt."""

    def skills(self, agent: Agent) -> Awaitable[Sequence[Skill]]:
        """The skills that the agent may use, by name; looked for off the reactor, a few seconds old. Raises nothing."""
        ...


class Applied(msgspec.Struct, frozen=True):
    """What a write to the configuration did: key paths in force now, and those that wait for a restart."""

    hash: str
    hot: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


class ConfigSource(msgspec.Struct, frozen=True):
    """The configuration file as it is: its text (None: there is no file) and the SHA-256 of that text, in hexadecimal."""

    path: str
    text: str | None
    hash: str


class ConfigIssue(msgspec.Struct, frozen=True):
    """What is wrong with the configuration, or ignored; `path` is the key path, empty where it is the file as a whole."""

    path: str
    message: str


class ConfigView(msgspec.Struct, frozen=True):
    """The configuration file as clients may see it: no secret is in it.

    `raw` is the text (None: there is none, or it cannot be read as JSON5), `parsed` what it says, `resolved` the same with includes and substitution,
    `config` with all defaults. Empty where it is not `valid`.
    """

    path: str
    exists: bool
    hash: str
    raw: str | None
    parsed: dict[str, Any]
    resolved: dict[str, Any]
    config: dict[str, Any]
    valid: bool
    issues: tuple[ConfigIssue, ...]
    warnings: tuple[ConfigIssue, ...]


class NotInFile(Exception):
    """Raised by an edit: the value at these keys is not in the file itself. `ConfigControl.write` then says where it comes from."""

    def __init__(self, *keys: str) -> None:
        super().__init__(".".join(keys))
        self.keys = keys


class ConfigControl(Protocol):
    """The configuration in force. A request or a run reads `current` once, at its start."""

    @property
    def current(self) -> Settings: ...

    def source(self) -> Awaitable[ConfigSource]:
        """The file, read off the reactor. Raises InvalidRequest where it cannot be read."""
        ...

    def view(self) -> Awaitable[ConfigView]:
        """The file for clients, read off the reactor."""
        ...

    def write(self, edit: Callable[[dict[str, Any]], None], base_hash: str | None = None) -> Awaitable[Applied]:
        """Change the file: `edit` changes the tree as the file itself has it (without includes and substitution), what it leaves alone keeps its
        text and comments. Checked as at the start before it is written; a change of `agents` is in force at once. Writes are serial.

        Raises InvalidRequest: the file changed since `base_hash`, the result is not valid, or the change is in an included file; what `edit`
        raises; StorageUnavailable: it cannot be written. File and settings are then as they were. Cancelling only stops the waiting.
        """
        ...

    def changed(self, callback: Callable[[Settings], None]) -> Callable[[], None]:
        """Hear of each new reading; call the result to stop."""
        ...


class AgentFile(msgspec.Struct, frozen=True):
    """A file of an agent's workspace, by name. `size` is in bytes; `text` only where it was asked for."""

    name: str
    path: str
    missing: bool
    size: int | None = None
    updated_ms: int | None = None
    text: str | None = None


class AgentFiles(Protocol):
    """The agents' workspaces, for clients that look after them. Nothing is read or written outside of a workspace, also not by symlinks.

    All raise InvalidRequest for what cannot be that, and StorageUnavailable where the disk fails.
    """

    def list(self, workspace: str, names: Sequence[str]) -> Awaitable[Sequence[AgentFile]]:
        """Which of these there are."""
        ...

    def read(self, workspace: str, name: str) -> Awaitable[AgentFile]:
        """One file with its text; `missing` where there is none."""
        ...

    def write(self, workspace: str, name: str, text: str) -> Awaitable[AgentFile]:
        """Replace one file, durably and as a whole, mode 0600."""
        ...

    def make(self, workspace: str, starter: bool, identity: str) -> Awaitable[str]:
        """Make a folder as a workspace, with starter files where it has none and they are wanted, and `identity` as IDENTITY.md of these.

        The absolute path. A folder that must not be one (the home directory, the gateway's own state, `/`) is refused.
        """
        ...

    def discard(self, workspace: str, others: Sequence[str]) -> Awaitable[str | None]:
        """Move a workspace aside, to `<workspace>.deleted.<milliseconds>`; the new path.

        None where there is nothing to move, or one of `others`, the workspaces that stay, is the same folder, in it, or around it.
        """
        ...
