"""The harness of the in-memory tests: the real site and the real runs over fakes of the ports, one clock, no sockets.

gateway = Harness(self)                       # or Harness(self, {"gateway": {...}})
client = gateway.dial(post({"model": "mayros", "messages": [...]}))
gateway.provider.say("Hello")                 # the model speaks
gateway.provider.stop()
client.answer()                               # status, headers, body
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.test import iosim
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource

from mayros.config.schema import Config
from mayros.core.address import AddressRules
from mayros.core.agent import AgentLoop
from mayros.core.api_tokens import ApiTokens
from mayros.core.audit_ports import AuditEntry
from mayros.core.auth import Authenticator
from mayros.core.claim_ports import Conflict, Done, Live, New
from mayros.core.health import ModelHealth
from mayros.core.keys import SessionKey
from mayros.core.lanes import LocalLanes, LocalSlots
from mayros.core.limits import Budget, ConnectionCounter, FailureLimiter
from mayros.core.liverun import GRACE_SECONDS
from mayros.core.models import Model
from mayros.core.ports import Claim, History, Lease, ModelRequest, ModelTurn, RunResult, SessionSettings, ToolSpec, Turn
from mayros.core.quota import Quotas
from mayros.core.reach import space_of
from mayros.core.routing import Agent, Settings
from mayros.core.runs import LocalRuns
from mayros.core.session_ports import Entry, EntryMeta, SessionQuery, SessionRow, Transcript
from mayros.core.spending import tokens_of
from mayros.core.token_ports import ApiToken
from mayros.core.tool_ports import Tool, Toolbox, ToolContext, ToolResult
from mayros.core.usage_ports import Field, UsageQuery, UsageSum, day_of
from mayros.core.workspace_ports import WorkspaceFile
from mayros.errors import InvalidRequest, StorageUnavailable
from mayros.events import Event, ModelAnswered, TextDelta, ToolCallDelta, TurnFinished, Usage
from mayros.messages import Message, pack, unpack
from mayros.net.fetch import Fetched
from mayros.net.pdf import PdfText
from mayros.net.redact import Redactor
from mayros.ops.control import ConfigFile
from mayros.storage.agent_files import LocalAgentFiles
from mayros.web.app import ROUTES, Api, Root
from mayros.web.gate import Gate
from mayros.web.inputs import Inputs
from mayros.web.site import Access, GatewaySite
from mayros.web.sse import Ticker

TOKEN = "test-token-0123456789"
#: What the loop hides in what tools say, and `config.get` wherever it stands.
SECRET = "a-secret-that-nobody-may-see"
BASE = {
    "gateway": {"mode": "local", "auth": {"token": TOKEN}, "http": {"endpoints": {"chatCompletions": {"enabled": True}}}},
    "agents": {"defaults": {"model": "fake/one"}, "list": [{"id": "main"}, {"id": "beta"}]},
    "models": {"providers": {"fake": {"baseUrl": "http://127.0.0.1:1/v1", "models": [{"id": "one", "contextWindow": 8192}, {"id": "two"}]}}},
}


def merged(under: Any, over: Any) -> Any:
    """`over` laid over `under`; objects are merged, all else replaced."""
    if isinstance(under, dict) and isinstance(over, dict):
        return {key: merged(under.get(key), over[key]) if key in over else under[key] for key in {**under, **over}}
    return over


def settings(changes: dict[str, Any] | None = None, state_dir: str = "/nonexistent") -> Settings:
    """BASE with changes, as the daemon would have read it."""
    config = msgspec.convert(merged(BASE, changes or {}), Config, dec_hook=lambda kind, value: kind(value))
    return Settings.build(config, state_dir=state_dir, config_path=f"{state_dir}/mayros.json", environ={}, now_ms=1_000)


class FakeProvider:
    """A model that says what the test tells it to. `requests` are what it was asked, `closed` how many streams were closed early."""

    def __init__(self) -> None:
        self.requests: list[ModelRequest] = []
        self.closed = 0
        self._queue: list[list[Event] | Exception | None] = []
        self._waiting: dict[int, Deferred[None]] = {}

    def push(self, item: list[Event] | Exception | None) -> None:
        """One batch, an error, or None: the end of the stream. It goes to the oldest stream that waits."""
        self._queue.append(item)
        if self._waiting:
            self._waiting.pop(min(self._waiting)).callback(None)

    def say(self, *texts: str) -> None:
        """One batch of text."""
        self.push([TextDelta(text) for text in texts])

    def call(self, *calls: tuple[str, Any], text: str = "", usage: Usage = Usage(input=7, output=3)) -> None:  # noqa: B008
        """One whole model turn that says `text` and makes calls: name and arguments each (a dict, or text as it stands)."""
        parts = [
            ToolCallDelta(index, arguments if isinstance(arguments, str) else json.dumps(arguments), f"call{len(self.requests)}{index}", name)
            for index, (name, arguments) in enumerate(calls)
        ]
        self.push([*([TextDelta(text)] if text else ()), *parts])
        self.stop("tool_calls", usage)

    def answer(self) -> None:
        """The first sign of life, without text."""
        self.push([ModelAnswered("fake", "one")])

    def stop(self, reason: str = "stop", usage: Usage = Usage(input=7, output=3)) -> None:  # noqa: B008
        """The model is done."""
        self.push([usage, TurnFinished(reason)])  # type: ignore[arg-type]
        self.push(None)

    def fail(self, error: Exception) -> None:
        """The stream breaks."""
        self.push(error)

    async def stream(self, request: ModelRequest) -> AsyncGenerator[list[Event], None]:
        """See ports.ModelProvider."""
        self.requests.append(request)
        number, first = len(self.requests), True
        try:
            while True:
                while not self._queue:
                    self._waiting[number] = waiting = Deferred()
                    await waiting
                item = self._queue.pop(0)
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    return
                if first and type(item[0]) is not ModelAnswered:
                    item = [ModelAnswered(request.model.provider.id, request.model.id), *item]
                first = False
                yield item
        except (CancelledError, GeneratorExit):
            self.closed += 1
            self._waiting.pop(number, None)
            raise

    @property
    def unread(self) -> int:
        """How many batches nobody has taken yet."""
        return len(self._queue)

    @property
    def seen(self) -> list[dict[str, Any]]:
        """The messages of the last request, the system prompt left out."""
        return [json.loads(bytes(raw)) for raw in self.requests[-1].messages]


class FakeStore:
    """Turns in memory. `hold()` makes commits wait for `commit()`; `broken` makes them fail."""

    def __init__(self) -> None:
        self.turns: list[tuple[Turn, RunResult]] = []
        self.sessions: dict[str, list[msgspec.Raw]] = {}
        #: What `FakeSessions` knows of them.
        self.rows: dict[str, SessionRow] = {}
        self.entries: dict[str, list[Entry]] = {}
        #: What the recorded runs used: the values of UsageQuery's fields by name, whether a run ended there, and the counts of a model turn.
        self.used: list[tuple[dict[str, str], int, Usage]] = []
        self.broken = False
        #: Where the answers of idempotency keys are kept.
        self.keys: FakeIdempotency | None = None
        self._held: list[Deferred[None]] | None = None

    def fresh(self, session: SessionKey) -> History:
        return History("s-fresh", None, ())

    def history(self, session: SessionKey) -> Deferred[History]:
        row = self.rows.get(str(session))
        session_id, settings = (f"s-{session}", SessionSettings()) if row is None else (row.session_id, row.settings)
        return succeed(History(session_id, None, tuple(self.sessions.get(str(session), ())), settings))

    def finish(
        self, turn: Turn, history: History, result: RunResult, lease: Lease, said: Sequence[msgspec.Raw] = (), principal: str = ""
    ) -> Deferred[None]:
        done: Deferred[None] = Deferred(lambda _: None)
        if self.broken:
            done.errback(StorageUnavailable())
            return done
        self.turns.append((turn, result))
        self._count(turn, result, principal)
        made = said or (pack(Message("assistant", result.text)),)
        self._list(turn, history, result, made)
        if not turn.stateless and (said or result.text):
            self.sessions.setdefault(str(turn.session), []).extend([*turn.messages, *made])
        if turn.claim is not None and self.keys is not None:
            claim, keys = turn.claim, self.keys
            done.addCallback(lambda _: keys.answer(claim, result))
        if self._held is None:
            done.callback(None)
        else:
            self._held.append(done)
        return done

    def _count(self, turn: Turn, result: RunResult, principal: str) -> None:
        if result.provider is not None and result.model is not None:
            whose = {
                "day": day_of(result.ended_at_ms), "agent": turn.agent.id, "principal": principal,
                "session": "" if turn.stateless else str(turn.session),
            }  # fmt: skip
            turns = result.turns or (ModelTurn(result.provider, result.model, result.usage),)
            for one in turns:
                self.used.append(({**whose, "provider": one.provider, "model": one.model}, int(one is turns[-1]), one.usage))

    def _list(self, turn: Turn, history: History, result: RunResult, made: Sequence[msgspec.Raw]) -> None:
        key, usage = str(turn.session), result.usage
        row = self.rows.get(key) or SessionRow(
            key, turn.agent.id, history.session_id, result.started_at_ms, 0, 0, turn.stateless, SessionSettings(), 0, 0
        )
        self.rows[key] = msgspec.structs.replace(
            row, updated_ms=result.ended_at_ms, turns=row.turns + 1, input_tokens=row.input_tokens + usage.input,
            output_tokens=row.output_tokens + usage.output, last_outcome=result.outcome, last_model=result.model, last_usage=usage,
        )  # fmt: skip
        meta = EntryMeta(result.outcome, result.finish_reason, usage, result.provider, result.model, turn.door, error_code=result.error_code)
        for message in turn.messages:
            self.add(key, message, result.run_id, result.started_at_ms, None)
        last = max(place for place, message in enumerate(made) if unpack(message).role == "assistant")
        for place, message in enumerate(made):
            self.add(key, message, result.run_id, result.ended_at_ms, meta if place == last else None)

    def add(self, key: str, message: msgspec.Raw, run_id: str, now_ms: int, meta: EntryMeta | None) -> Entry:
        """One more entry of a session."""
        entries = self.entries.setdefault(key, [])
        entries.append(Entry(len(entries) + 1, run_id, message, now_ms, meta))
        return entries[-1]

    def recover(self) -> None: ...

    def hold(self) -> None:
        self._held = []

    def commit(self) -> None:
        held, self._held = self._held or [], None
        for done in held:
            done.callback(None)


class FakeUsage:
    """Sums over what the runs of a FakeStore used."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def sums(self, by: Sequence[Field], query: UsageQuery) -> list[UsageSum]:
        found: dict[tuple[str, ...], UsageSum] = {}
        for whose, runs, usage in self._store.used:
            mine = query.session in (None, whose["session"]) and query.principal in (None, whose["principal"])
            if query.since <= whose["day"] <= query.until and mine:
                names = tuple(whose[field] for field in by)
                old = found.get(names, UsageSum(names, 0, 0, 0, Usage()))
                found[names] = UsageSum(
                    names, old.runs + runs, old.turns + 1, old.unpriced + (usage.cost_nano == 0), old.usage.plus(usage)
                )  # fmt: skip
        dearest = sorted(found.values(), key=lambda one: (-one.usage.cost_nano, -tokens_of(one.usage), one.names))
        return dearest[: query.limit]


class FakeTokenStore:
    """Tokens in memory, as they would be on disk. `broken` makes writing fail."""

    def __init__(self) -> None:
        self.kept: dict[str, ApiToken] = {}
        self.audit: list[AuditEntry] = []
        self.broken = False

    async def save(self, token: ApiToken, audit: AuditEntry | None = None) -> None:
        if self.broken:
            raise StorageUnavailable
        self.kept[token.name] = token
        if audit is not None:
            self.audit.append(audit)


class FakeIdempotency:
    """Idempotency keys in memory."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], tuple[bytes, str, RunResult | None]] = {}

    async def begin(self, scope: str, key: str, digest: bytes, run_id: str, keep_seconds: float) -> New | Live | Done | Conflict:
        known = self.kept.get((scope, key))
        if known is None:
            self.kept[scope, key] = (digest, run_id, None)
            return New(Claim(scope, key))
        if known[0] != digest:
            return Conflict()
        return Live(known[1]) if known[2] is None else Done(known[2])

    async def finish(self, claim: Claim, result: RunResult) -> None:
        self.answer(claim, result)

    def answer(self, claim: Claim, result: RunResult) -> None:
        """What the store does together with the turn. A key that is not held is not answered."""
        digest, run_id, _ = self.kept.get((claim.scope, claim.key), (b"", None, None))
        if run_id == result.run_id:
            self.kept[claim.scope, claim.key] = (digest, run_id, result)

    async def release(self, claim: Claim) -> None:
        del self.kept[claim.scope, claim.key]


class SlowIdempotency(FakeIdempotency):
    """Keys whose claims wait for `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Deferred[None]] = []
        self.broken = False

    async def begin(self, scope: str, key: str, digest: bytes, run_id: str, keep_seconds: float) -> New | Live | Done | Conflict:
        waiter: Deferred[None] = Deferred()
        self.waiting.append(waiter)
        await waiter
        if self.broken:
            raise StorageUnavailable
        return await super().begin(scope, key, digest, run_id, keep_seconds)

    def go(self) -> None:
        waiting, self.waiting = self.waiting, []
        for waiter in waiting:
            waiter.callback(None)


class FakeTool:
    """A tool that does what the test says. `answer`: a text, a ToolResult, an error, or a function of arguments and context that gives one of these
    (or a coroutine of one); None: it works until `end` or a cancel. `calls` are the arguments it was called with, `cancelled` how many calls were."""

    def __init__(self, name: str = "look", answer: Any = "", read_only: bool = True, parameters: dict[str, Any] | None = None) -> None:
        self.spec = ToolSpec(name, f"The tool {name}.", parameters or {"type": "object", "properties": {}})
        self.answer, self.read_only = answer, read_only
        self.calls: list[dict[str, Any]] = []
        self.contexts: list[ToolContext] = []
        self.cancelled = 0
        self._working: list[Deferred[Any]] = []

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """See ports.Tool."""
        self.calls.append(arguments)
        self.contexts.append(context)
        answer = self.answer(arguments, context) if callable(self.answer) else self.answer
        if answer is None:
            work: Deferred[Any] = Deferred()
            self._working.append(work)
            try:
                answer = await work
            except CancelledError:
                self.cancelled += 1
                raise
        if hasattr(answer, "__await__"):
            answer = await answer
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, ToolResult) else ToolResult(answer)

    def end(self, answer: Any = "done") -> None:
        """The oldest call that works is done."""
        self._working.pop(0).callback(answer)


class FakeToolbox:
    """Offers these tools to every run; `denied` are names with the reason why they are not."""

    def __init__(self, *tools: Tool, denied: Mapping[str, str] | None = None) -> None:
        self.tools, self.denied = {tool.spec.name: tool for tool in tools}, dict(denied or {})

    def offered(self, turn: Turn, model: Model) -> Mapping[str, Tool]:
        return self.tools

    def why_not(self, turn: Turn, model: Model, name: str) -> str | None:
        return self.denied.get(name)


class FakeResults:
    """Whole results in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    async def keep(self, agent_id: str, text: str, untrusted: bool) -> str | None:
        reference = f"result://{'u' if untrusted else 't'}{len(self.kept)}"
        self.kept[reference] = text
        return reference

    def open(self, reference: str, agent_id: str) -> str | None:
        return self.kept.get(reference)


class FakeSessions:
    """Sessions in memory: those of a FakeStore. `broken` makes everything fail."""

    def __init__(self, store: FakeStore, now_ms: Callable[[], int]) -> None:
        self._store, self._now_ms = store, now_ms
        self._count = 0
        self.broken = False

    def _check(self) -> None:
        if self.broken:
            raise StorageUnavailable

    async def list(self, query: SessionQuery) -> list[SessionRow]:
        self._check()
        needle = (query.search or "").lower()
        found = [
            row
            for row in self._store.rows.values()
            if query.agent_id in (None, row.agent_id)
            and query.label in (None, row.settings.label)
            and query.spawned_by in (None, row.settings.spawned_by)
            and query.session_id in (None, row.session_id)
            and query.space in (None, space_of(row.key))
            and (query.active_since_ms or 0) <= row.updated_ms
            and (needle in row.key.lower() or needle in (row.settings.label or "").lower())
        ]
        found.sort(key=lambda row: (-row.updated_ms, row.key))
        return [self._with_texts(row, query) for row in found[: query.limit]]

    def _with_texts(self, row: SessionRow, query: SessionQuery) -> SessionRow:
        said = [unpack(entry.message) for entry in self._store.entries.get(row.key, ())]
        title = next((message.content for message in said if message.role == "user"), None)
        preview = next((message.content for message in reversed(said) if message.content), None)
        return msgspec.structs.replace(row, title=title if query.titles else None, preview=preview if query.previews else None)

    async def count(self) -> int:
        self._check()
        return len(self._store.rows)

    async def get(self, key: str) -> SessionRow | None:
        self._check()
        return self._store.rows.get(key)

    async def transcript(self, key: str, limit: int) -> Transcript | None:
        self._check()
        row = self._store.rows.get(key)
        return Transcript(row, tuple(self._store.entries.get(key, ())[-limit:])) if row is not None else None

    def _made(self, key: SessionKey) -> SessionRow:
        self._check()
        now = self._now_ms()
        known = self._store.rows.get(str(key))
        row = known or SessionRow(str(key), key.agent_id, f"s-{key}", now, now, 0, False, SessionSettings(), 0, 0)
        self._store.rows[row.key] = row = msgspec.structs.replace(row, updated_ms=now)
        return row

    async def patch(self, key: SessionKey, changes: Mapping[str, Any]) -> SessionRow:
        row = self._made(key)
        label = changes.get("label")
        if label is not None and any(other.settings.label == label for other in self._store.rows.values() if other.key != row.key):
            raise InvalidRequest(f"label already in use: {label}", param="label")
        self._store.rows[row.key] = row = msgspec.structs.replace(row, settings=msgspec.structs.replace(row.settings, **changes))
        return row

    async def reset(self, key: SessionKey) -> SessionRow:
        row = self._made(key)
        self._count += 1
        self._store.rows[row.key] = row = msgspec.structs.replace(
            row, session_id=f"s-new-{self._count}", turns=0, input_tokens=0, output_tokens=0, last_outcome=None, last_usage=None
        )
        self._store.sessions.pop(row.key, None)
        self._store.entries.pop(row.key, None)
        return row

    async def delete(self, key: SessionKey) -> bool:
        self._check()
        self._store.sessions.pop(str(key), None)
        self._store.entries.pop(str(key), None)
        return self._store.rows.pop(str(key), None) is not None

    async def append(self, key: SessionKey, message: msgspec.Raw, run_id: str, meta: EntryMeta) -> Entry:
        row = self._made(key)
        self._store.sessions.setdefault(row.key, []).append(message)
        return self._store.add(row.key, message, run_id, self._now_ms(), meta)


class FakeFetch:
    """See core.input_ports.Fetch: gives what `answers` has for a URL (kind and data, or an error); where there is nothing, it waits for ever.

    `asked` are the URLs, `rules` what else it was called with, `cancelled` how many fetches were.
    """

    def __init__(self) -> None:
        self.answers: dict[str, tuple[str, bytes] | Exception] = {}
        self.asked: list[str] = []
        self.rules: list[dict[str, Any]] = []
        self.cancelled = 0

    async def __call__(self, url: str, *, take: Callable[[int], None], **rules: Any) -> Fetched:
        self.asked.append(url)
        self.rules.append(rules)
        answer = self.answers.get(url)
        if answer is None:
            try:
                await Deferred()
            except CancelledError:
                self.cancelled += 1
                raise
        if isinstance(answer, Exception):
            raise answer
        assert answer is not None
        take(len(answer[1]))
        return Fetched(*answer)


class FakePdf:
    """See core.input_ports.PdfReader: every PDF says `answer`, or fails with it; None: reading it never ends."""

    def __init__(self) -> None:
        self.answer: PdfText | Exception | None = PdfText("The text of a PDF.", 1, 1, False)
        self.cancelled = 0

    async def __call__(self, data: bytes, *, max_pages: int, max_chars: int) -> PdfText:
        if self.answer is None:
            try:
                await Deferred()
            except CancelledError:
                self.cancelled += 1
                raise
        if isinstance(self.answer, Exception):
            raise self.answer
        assert self.answer is not None
        return self.answer


class FakeWorkspace:
    """Workspace files as the test sets them."""

    def __init__(self, files: Sequence[WorkspaceFile] = ()) -> None:
        self.texts: Sequence[WorkspaceFile] = tuple(files)

    def files(self, agent: Agent) -> Deferred[Sequence[WorkspaceFile]]:
        return succeed(self.texts)


class Client(Protocol):
    """The other end of a connection: collects what comes."""

    def __init__(self) -> None:
        self.received = b""
        self.lost = False
        self.pump: Any = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True

    def send(self, data: bytes) -> None:
        """Write, and let both sides settle."""
        self.transport.write(data)  # type: ignore[union-attr]
        self.pump.flush()

    def leave(self) -> None:
        """Close the connection."""
        self.transport.loseConnection()  # type: ignore[union-attr]
        self.pump.flush()

    def answer(self) -> Answer:
        """The first complete answer; takes it off what was received."""
        answer, self.received = Answer.parse(self.received)
        return answer

    def statuses(self) -> list[int]:
        """The statuses of all answers so far; takes them off what was received. Fails on anything that is no answer."""
        found = []
        while self.received:
            found.append(self.answer().status)
        return found

    def stream(self) -> Answer:
        """Head and body so far of an answer that may still go on."""
        return Answer.parse(self.received, partial=True)[0]

    def events(self) -> list[str]:
        """The data of the SSE events so far."""
        body = self.stream().body
        return [block.partition("data: ")[2] for block in body.decode().split("\n\n") if "data: " in block]

    def text(self) -> str:
        """The content deltas so far, joined."""
        texts = []
        for data in self.events():
            chunk = {} if data == "[DONE]" else json.loads(data)
            texts += [choice["delta"].get("content", "") for choice in chunk.get("choices", ())]
        return "".join(texts)


class Answer:
    """One HTTP answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]  # type: ignore[no-any-return]

    @classmethod
    def parse(cls, data: bytes, partial: bool = False) -> tuple[Answer, bytes]:
        """The first answer in `data` and what follows it; `partial` takes what there is of a chunked body."""
        head, found, rest = data.partition(b"\r\n\r\n")
        if not found:
            raise AssertionError(f"no answer in {data!r}")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        if int(status.split()[1]) == 100:
            return cls.parse(rest, partial)
        if headers.get("transfer-encoding") == "chunked":
            body, complete = b"", False
            while rest:
                size, found, after = rest.partition(b"\r\n")
                length = int(size, 16)
                if length == 0:
                    complete, rest = True, after[2:]
                    break
                if len(after) < length + 2:
                    break
                body, rest = body + after[:length], after[length + 2 :]
            if not complete and not partial:
                raise AssertionError(f"the answer is not complete: {body!r}")
            return cls(int(status.split()[1]), headers, body), rest
        length = 0 if " 204 " in status else int(headers.get("content-length", len(rest)))
        return cls(int(status.split()[1]), headers, rest[:length]), rest[length:]


class Harness:
    """A gateway in memory. `changes` are laid over BASE. Its configuration file and workspaces are in `state_dir`, where a test gives one."""

    def __init__(
        self, test: Any, changes: dict[str, Any] | None = None, control: Resource | None = None, state_dir: str = "/nonexistent",
        tools: Toolbox | Sequence[Tool] = (),
    ) -> None:  # fmt: skip
        self.clock = Clock()
        self.clock.advance(1_000)
        test.addCleanup(self.close)
        self.settings = settings(changes, state_dir)
        self.config = ConfigFile(
            self.settings, maybeDeferred, lambda: int(self.clock.seconds() * 1000), redact=lambda text: text.replace(SECRET, "***")
        )
        self.agent_files = LocalAgentFiles(state_dir, f"{state_dir}/home", maybeDeferred, lambda: int(self.clock.seconds() * 1000))
        self.provider, self.store, self.workspace = FakeProvider(), FakeStore(), FakeWorkspace()
        #: The adapters by provider id; a test may add to them.
        self.providers = {"fake": self.provider}
        self.health = ModelHealth(wall_ms=lambda: int(self.clock.seconds() * 1000))
        self.idempotency, self.results = FakeIdempotency(), FakeResults()
        self.store.keys = self.idempotency
        self.usage = FakeUsage(self.store)
        self.sessions = FakeSessions(self.store, lambda: int(self.clock.seconds() * 1000))
        self.clients: list[Client] = []
        self.access: list[Access] = []
        self.not_ready: str | None = None
        config = self.settings.config
        limits, rate = config.gateway.limits, config.gateway.auth.rate_limit
        self.limiter = FailureLimiter(rate.max_attempts, rate.window_ms / 1000, rate.lockout_ms / 1000) if rate else None
        rules = AddressRules.build(config.gateway, ["127.0.0.1"])
        auth = config.gateway.auth
        mode = auth.mode or "token"
        self.token_store = FakeTokenStore()
        self.api_tokens = ApiTokens(self.token_store, lambda: int(self.clock.seconds() * 1000))
        secret = auth.password if mode == "password" else auth.token
        self.authenticator = Authenticator(mode, secret, auth, rules, self.limiter, self.api_tokens)
        self.lanes = LocalLanes(limits.max_queued_per_session, limits.max_queued_runs)
        self.slots = LocalSlots(config.agents.defaults.max_concurrent, limits.max_queued_runs)
        self.runs = LocalRuns(
            AgentLoop(
                self.providers,
                self.workspace,
                toolbox=FakeToolbox(*tools) if isinstance(tools, Sequence) else tools,
                results=self.results,
                redact=Redactor([SECRET]),
                health=self.health,
            ),
            self.store,
            self.idempotency,
            self.lanes,
            self.slots,
            self.clock,
            lambda: int(self.clock.seconds() * 1000),
        )
        self.quotas = Quotas(self.runs.spending, lambda: int(self.clock.seconds() * 1000))
        self.bodies = Budget(limits.body_budget)
        self.ticker = Ticker(self.clock)
        self.fetch, self.pdf = FakeFetch(), FakePdf()
        inputs = Inputs(maybeDeferred, self.fetch, self.pdf)
        self.api = api = Api(self.config, self.runs, self.bodies, self.ticker, lambda: self.not_ready, inputs, self.idempotency)
        self.connections = ConnectionCounter(limits.max_connections or 1000, limits.max_connections_per_address)
        self.site = GatewaySite(
            Root(api, control or Resource()),
            Gate(self.settings, rules, self.authenticator, ROUTES, self.quotas),
            self.bodies,
            self.connections,
            self.clock,
            self.access.append,
            lambda: 1_764_000_000.0 + self.clock.seconds(),
            body_seconds=limits.body_timeout_ms / 1000,
            head_seconds=limits.header_timeout_ms / 1000,
        )

    def close(self) -> None:
        """End what the test left running."""
        self.store.commit()
        self.runs.abort_all()
        self.clock.advance(0)

    def dial(self, data: bytes = b"", peer: str = "127.0.0.1") -> Client:
        """Connect from `peer`, send `data`, let both sides settle."""
        client, server = Client(), self.site.buildProtocol(None)
        there = iosim.FakeTransport(server, isServer=True, peerAddress=Peer(peer))
        client.pump = iosim.connect(server, there, client, iosim.FakeTransport(client, isServer=False))
        client.server = server  # type: ignore[attr-defined]
        self.clients.append(client)
        if data:
            client.send(data)
        return client

    def serve(self, *lines: str, text: str = "ok", **fields: Any) -> Answer:
        """One whole chat request on a connection of its own: the model says `text`."""
        client = self.dial(post(chat(**fields), *lines))
        self.provider.say(text)
        self.provider.stop()
        self.settle(client)
        answer = client.answer()
        client.leave()
        self.settle()
        return answer

    def leftovers(self) -> dict[str, Any]:
        """What is still held once every client has left; empty when nothing leaks."""
        for client in self.clients:
            if not client.lost:
                client.leave()
        self.settle()
        if self.idempotency.kept:
            self.advance(GRACE_SECONDS)  # keyed runs wait for their clients
            self.settle()
        self.api.forget()
        held: dict[str, Any] = {
            "live runs": self.runs.live(),
            "body budget": self.bodies.total - self.bodies.free,
            "connections": self.connections.open,
            "channels": len(self.site.channels),
            "streams": len(self.ticker),
            "lanes": len(self.lanes._lanes),
            "slots": self.settings.config.agents.defaults.max_concurrent - self.slots._free,
            "timers": [str(call) for call in self.clock.getDelayedCalls()],
        }
        return {name: value for name, value in held.items() if value}

    def advance(self, seconds: float, *clients: Client) -> None:
        """Let time pass, then let the clients' connections settle."""
        self.clock.advance(seconds)
        for client in clients:
            client.pump.flush()

    def settle(self, *clients: Client) -> None:
        """Deliver what is under way."""
        self.advance(0, *clients)


class HarnessCase(SynchronousTestCase):
    """Tests of one or more gateways in memory. At its end nothing may be left: no run, no byte of the body budget, no connection, no timer."""

    def setUp(self) -> None:
        self.gateways: list[Harness] = []

    def gateway(self, changes: dict[str, Any] | None = None, control: Resource | None = None) -> Harness:
        """A gateway with `changes` laid over BASE."""
        gateway = Harness(self, changes, control)
        self.gateways.append(gateway)
        return gateway

    def tearDown(self) -> None:
        for gateway in self.gateways:
            self.assertEqual(gateway.leftovers(), {})


class Peer:
    """An address as transports give it."""

    def __init__(self, host: str) -> None:
        self.host, self.port, self.type = host, 40_000, "TCP"


def head(method: str = "POST", path: str = "/v1/chat/completions", *lines: str, token: str | None = TOKEN, host: str = "127.0.0.1") -> bytes:
    """Request line and headers, without the empty line."""
    auth = (f"Authorization: Bearer {token}",) if token is not None else ()
    return "\r\n".join((f"{method} {path} HTTP/1.1", f"Host: {host}", *auth, *lines)).encode("latin-1") + b"\r\n"


def post(body: Any, *lines: str, path: str = "/v1/chat/completions", token: str | None = TOKEN, content_type: str = "application/json") -> bytes:
    """A POST; a body that is not bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    extra = (f"Content-Type: {content_type}",) if content_type else ()
    return head("POST", path, *extra, f"Content-Length: {len(data)}", *lines, token=token) + b"\r\n" + data


def chat(*texts: str, **fields: Any) -> dict[str, Any]:
    """A request body with user messages."""
    return {"model": "mayros", "messages": [{"role": "user", "content": text} for text in texts or ("hi",)], **fields}


__all__ = [
    "SECRET",
    "TOKEN",
    "Answer",
    "Callable",
    "Client",
    "FakeProvider",
    "FakeResults",
    "FakeStore",
    "FakeTool",
    "FakeToolbox",
    "FakeWorkspace",
    "Harness",
    "HarnessCase",
    "chat",
    "head",
    "merged",
    "post",
    "settings",
]
