"""What the conversations of the WebSocket door need from the rest of the program, and what they need from their socket.

`Gateway` is made once, by the composition root; a `Link` is one socket. Imports mayros.core, mayros.wire and mayros.ws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from twisted.internet.defer import Deferred, DeferredLock

from mayros.config.gateway import AuthMode
from mayros.core.address import Address, Headers
from mayros.core.api_tokens import ApiTokens
from mayros.core.approvals import Approvals
from mayros.core.audit import Audit
from mayros.core.claim_ports import Idempotency
from mayros.core.claims import Claims
from mayros.core.config_ports import ConfigControl
from mayros.core.devices import Devices
from mayros.core.exec_rules import ExecRules
from mayros.core.health import ModelHealth
from mayros.core.limits import Budget
from mayros.core.log_ports import TailLog, no_log
from mayros.core.ports import Clock, Lanes, Principal, Run, RunResult, Runs
from mayros.core.quota import Quotas
from mayros.core.session_ports import Sessions
from mayros.core.spending import Spending
from mayros.core.token_ports import Held
from mayros.core.toolbox import LocalToolbox
from mayros.core.usage_ports import UsageStore
from mayros.core.workspace_ports import AgentFiles
from mayros.errors import Unauthorized
from mayros.wire.frames import MAX_BUFFERED
from mayros.ws.approvals import Approvers
from mayros.ws.broadcast import Broadcaster
from mayros.ws.config_writes import ConfigWrites
from mayros.ws.let_in import LetIn
from mayros.ws.methods.health import health_payload
from mayros.ws.outbox import SendBudget
from mayros.ws.pairing import DeviceConnections
from mayros.ws.presence import Presence
from mayros.ws.token_sockets import TokenSockets

#: What the images of all live runs may have together, waiting ones included.
IMAGE_BYTES = 256 << 20


class Judge(Protocol):
    """Who knows the shared secret and counts failures: core.auth.Authenticator. `now` is monotonic seconds."""

    mode: AuthMode

    def proxied(self, headers: Headers, address: Address) -> Principal | Unauthorized | None:
        """The user that a trusted proxy names, or why there is none; None in other modes than `trusted-proxy`. Raises Forbidden."""
        ...

    def matches(self, presented: str) -> bool:
        """Whether this is the shared secret; not counted."""
        ...

    def held(self, presented: str) -> Held | None:
        """The token of a person or program whose secret this is; None: none. Not counted. Raises Unauthorized for one that is over."""
        ...

    def lockout(self, address: Address, now: float, what: str) -> float:
        """Seconds for which this client is locked out; 0 when it is not."""
        ...

    def count(self, address: Address, now: float, right: bool, what: str) -> None:
        """A credential was right, or wrong. `what`: the kind of credential (core.auth)."""
        ...


class Link(Protocol):
    """One socket, as its conversation sees it. After `close` nothing is sent and nothing raises."""

    @property
    def buffered(self) -> int:
        """Bytes that the client has not taken yet (0 while there are few)."""
        ...

    def send(self, payload: bytes) -> None:
        """Send a text message."""
        ...

    def send_frame(self, frame: bytes) -> None:
        """Send a message whose frame is built already (wire.frames.text_frame)."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Say goodbye: a close frame after all that was sent, and the end of the connection soon, whatever the client does."""
        ...

    def admitted(self) -> None:
        """The client has said hello: from now on it may send large messages."""
        ...


class Traffic:
    """Messages and refusals of all clients since the start, counted."""

    __slots__ = ("answered", "received", "sent", "turned_away")

    def __init__(self) -> None:
        self.received = self.sent = self.answered = 0
        #: Clients that were not let in, by the code of the error.
        self.turned_away: dict[str, int] = {}


@dataclass
class Gateway:
    """The gateway as its WebSocket clients meet it.

    `authenticator` may be replaced when the configuration changes. `clock` is for waiting, `now_ms` is the wall clock in epoch milliseconds,
    `monotonic` is in seconds and never jumps. `health` gives what this package cannot know of the answer of `health`; its keys win over those
    made here. `started_ms` is when the process began, in epoch milliseconds.
    """

    config: ConfigControl
    authenticator: Judge
    runs: Runs
    idempotency: Idempotency
    sessions: Sessions
    lanes: Lanes
    agent_files: AgentFiles
    devices: Devices
    approvals: Approvals
    exec_rules: ExecRules
    usage: UsageStore
    spending: Spending
    api_tokens: ApiTokens
    quotas: Quotas
    clock: Clock
    now_ms: Callable[[], int]
    monotonic: Callable[[], float]
    health: Callable[[], Mapping[str, object]]
    version: str
    host: str
    started_ms: int
    audit: Audit = field(default_factory=Audit)
    toolbox: LocalToolbox = field(default_factory=lambda: LocalToolbox(()))
    model_health: ModelHealth = field(default_factory=ModelHealth)
    #: Stops the gateway after so many seconds, for this reason, so that it is started anew; False: nobody would do that.
    restart: Callable[[str, float], bool] = lambda why, seconds: False
    tail: TailLog = no_log
    #: What this package cannot know of `status`, with all details or without.
    overview: Callable[[bool], Mapping[str, object]] = lambda details: {}
    #: Hears of each answered request: method, whether it went well, seconds.
    measure: Callable[[str, bool, float], None] | None = None
    traffic: Traffic = field(init=False, default_factory=Traffic)
    presence: Presence = field(init=False)
    broadcaster: Broadcaster = field(init=False)
    budget: SendBudget = field(init=False)
    device_connections: DeviceConnections = field(init=False)
    token_sockets: TokenSockets = field(init=False)
    let_in: LetIn = field(init=False)
    #: Base64 of the images that came with the messages of live runs.
    image_budget: Budget = field(init=False, default_factory=lambda: Budget(IMAGE_BYTES))
    claims: Claims = field(init=False, default_factory=Claims)
    config_writes: ConfigWrites = field(init=False, default_factory=ConfigWrites)
    #: Sessions in which something is being started, so that it is started in order.
    starting: dict[str, DeferredLock] = field(init=False, default_factory=dict)
    #: Who waits for a run that is not there yet, by its id.
    awaited: dict[str, list[Deferred[Run | RunResult]]] = field(init=False, default_factory=dict)
    #: What was answered without a run (commands), by run id, newest last; bounded.
    answered: dict[str, RunResult] = field(init=False, default_factory=dict)

    _began: float = field(init=False)
    _health_made: float = field(init=False, default=-1e9)
    _health_json: msgspec.Raw = field(init=False, default_factory=msgspec.Raw)

    def __post_init__(self) -> None:
        self._began = self.monotonic() - (self.now_ms() - self.started_ms) / 1000
        self.presence = Presence(self.host, self.version)
        self.broadcaster = Broadcaster(self.runs, self.clock, self.now_ms, self.health_payload, self.presence, self._verbose)
        self.devices.audience = self.device_connections = DeviceConnections(self.broadcaster, self.clock)
        self.api_tokens.audience = self.token_sockets = TokenSockets(self.runs, self.clock, self.now_ms)
        self.let_in = LetIn(self.clock)
        self.approvals.audience = Approvers(self.broadcaster)
        self.budget = SendBudget(self.config.current.config.gateway.limits.send_budget, MAX_BUFFERED)

    async def _verbose(self, session: str) -> str | None:
        """How much clients have asked to hear of what the session's tools do."""
        row = await self.sessions.get(session)
        return None if row is None else row.settings.verbose_level

    def uptime_ms(self) -> int:
        """For how long the process has run, whatever became of the date."""
        return round((self.monotonic() - self._began) * 1000)

    def health_payload(self) -> dict[str, object]:
        """The answer of `health`, made now."""
        return health_payload(self.config.current, self.health(), self.now_ms())

    def health_answer(self) -> msgspec.Raw:
        """The answer of `health` as JSON, at most a second old: monitors ask often, and its numbers change once a minute."""
        now = self.monotonic()
        if not self._health_made <= now < self._health_made + 1.0:
            self._health_made, self._health_json = now, msgspec.Raw(msgspec.json.encode(self.health_payload()))
        return self._health_json
