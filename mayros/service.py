"""The composition root: makes every part, knows both doors, and starts and stops them in order. Nobody else constructs services.

The agent run with its store and providers is `runtime.Core`; `Gateway` adds the doors.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, cast

import msgspec
from twisted.application.service import MultiService
from twisted.internet.defer import maybeDeferred
from twisted.logger import ILogObserver, Logger

from mayros.config.secret import AuthSecret, resolve
from mayros.config.tls import handed_over, tls_files
from mayros.core.address import Address
from mayros.core.audit_ports import GATEWAY, Actor
from mayros.core.limits import Budget, ConnectionCounter
from mayros.core.quota import Quotas
from mayros.core.routing import Settings
from mayros.doors import Doors
from mayros.errors import StartError
from mayros.inforce import InForce
from mayros.net.fetch import Fetcher
from mayros.net.pdf import PdfTexts
from mayros.net.redact import Redactor
from mayros.net.statedir import StateDir, raise_open_files
from mayros.net.version import program_version
from mayros.ops.health import Health
from mayros.ops.listen import Listeners, configured, parse_endpoint
from mayros.ops.logs import console
from mayros.ops.systemd import Heartbeat, Manager
from mayros.runtime import Core, known_secrets, wall_ms
from mayros.seeing import Parts, Seeing
from mayros.stopping import Stopping
from mayros.storage.overview import overview
from mayros.web.app import Api, Root
from mayros.web.inputs import Inputs
from mayros.web.request import GatewayRequest
from mayros.web.site import GatewaySite
from mayros.web.sse import Ticker
from mayros.ws.context import Gateway as Conversations
from mayros.ws.protocol import ControlFactory, ControlResource

if TYPE_CHECKING:
    from twisted.internet.interfaces import IProtocolFactory

    from mayros.ops.certificates import Certificates

log = Logger()

#: Descriptors kept for files, the store and the model.
RESERVED_FILES = 128


def connections_for(files: int, runs: int) -> int:
    """How many clients may be connected with so many open files. Of what is left beside the reserve each run needs one for its provider."""
    left = files - RESERVED_FILES
    return max(64, left - min(runs, left // 2))


class Start(msgspec.Struct, frozen=True):
    """What the operator said at the start. `began`: `time.perf_counter()` when the process came to us."""

    port: int | None
    listen: tuple[str, ...]
    allow_unconfigured: bool
    began: float
    manager: Manager = msgspec.field(default_factory=Manager)


class Gateway(MultiService):
    """The whole daemon as one Twisted service. `on_start_error` says the line and ends the process."""

    def __init__(self, settings: Settings, start: Start, reactor: Any, on_start_error: Callable[[StartError], NoReturn]) -> None:
        super().__init__()
        self._settings, self._start, self._reactor, self._on_start_error = settings, start, reactor, on_start_error
        config = settings.config
        if config.gateway.mode != "local" and not start.allow_unconfigured:
            raise StartError(
                f"gateway.mode is not local in {settings.config_path}: run `mayros setup`, or start with --allow-unconfigured."
                if config.gateway.mode is None
                else "gateway.mode is remote: this configuration is for talking to another gateway. Set it to local to run one here."
            )
        self._endpoints = [parse_endpoint(reactor, text) for text in start.listen]
        self._port = self._chosen_port()
        self._listeners = Listeners()
        self._redact = Redactor(known_secrets(settings))
        logging = config.logging
        self.observer = console(logging.level, logging.console_style, self._redact, console_level=logging.console_level)
        self.stopping = False

    def _chosen_port(self) -> int:
        if self._start.port is not None:
            return self._start.port
        text = self._settings.environ.get("MAYROS_GATEWAY_PORT", "").strip()
        if not text:
            return self._settings.config.gateway.port
        if not text.isascii() or not text.isdigit() or int(text) > 65535:
            raise StartError("MAYROS_GATEWAY_PORT must be a port number.")
        return int(text)

    def setServiceParent(self, parent: Any) -> None:
        """Under twistd: our observer instead of its own, so that nothing is logged unredacted."""
        super().setServiceParent(parent)
        if hasattr(parent, "setComponent"):
            parent.setComponent(ILogObserver, self.observer)

    def privilegedStartService(self) -> None:
        """Everything that can go wrong: state directory, store, guards, ports. The reactor does not run yet."""
        super().privilegedStartService()
        try:
            self._open()
        except StartError as error:
            self._listeners.close()
            self._on_start_error(error)

    def _open(self) -> None:
        settings, reactor, config = self._settings, self._reactor, self._settings.config
        self._seeing = Seeing(settings, self.observer, reactor, self._redact, program_version())
        for warning in settings.warnings:
            log.warn("{warning}", warning=warning)
        self.state = StateDir.open(settings.state_dir)
        self.state.lock()
        for warning in self.state.warnings:
            log.warn("{warning}", warning=warning)
        files = raise_open_files()
        secret = self._secret()
        self._settings = settings = msgspec.structs.replace(settings, secret=secret)
        self._redact.know(secret.value)
        self.core = Core(settings, self.state, reactor, settings.environ, self._redact)
        self._certificates = self._find_certificates()
        self._in_force = InForce(
            settings, self.core, self.state, self._redact, self.observer, self._start.manager, reactor, self.status, self._certificates
        )
        self.control = self._in_force.control
        self.core.current = lambda: self.control.current
        self.core.open()
        self._build_doors(files)
        self._listen(secret)
        self._seeing.look_at(self._parts)
        self._seeing.start()
        self.health.start()
        self._in_force.start()
        self.heartbeat = Heartbeat(self._start.manager, reactor, lambda: self.core.database.stalled_seconds, self.status)
        reactor.callWhenRunning(self.heartbeat.start)
        reactor.callWhenRunning(self.core.audit.note, GATEWAY, "gateway.start", program_version(), pid=os.getpid(), auth=secret.mode)
        log.info("listening on {urls}", urls=", ".join(self._listeners.urls))
        log.info(
            "{version} ready in {seconds:.2f} s: agents {agents}, authentication {mode}, state in {state}",
            version=program_version(),
            seconds=time.perf_counter() - self._start.began,
            agents=", ".join(settings.directory.agents),
            mode=secret.mode,
            state=self.state.path,
        )
        if not config.gateway.http.endpoints.chat_completions.enabled:
            log.info("POST /v1/chat/completions is disabled: set gateway.http.endpoints.chatCompletions.enabled to true")
        # What lives until the end is not looked at by the collector again. The rest is looked at seldom, but not so seldom that the cycles which
        # ended connections leave (Twisted's and Autobahn's) grow beyond some 30 MB.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 5, 5)

    def _secret(self) -> AuthSecret:
        config, environ = self._settings.config, self._settings.environ
        secret = resolve(config, environ, self.state.token())
        if secret.mode == "token" and not secret.value:
            self.state.make_token()
            secret = resolve(config, environ, self.state.token())
            log.info("a new token was written to {path}", path=self.state.join("gateway-token"))
        return secret

    def _find_certificates(self) -> Certificates | None:
        """What the gateway's own port shows; None: it speaks no TLS. Raises ConfigError."""
        tls, environ = self._settings.config.gateway.tls, self._settings.environ
        if not tls.enabled:
            return None
        if self._endpoints:
            log.warn("gateway.tls is on, and has no effect on the endpoints of --listen: each speaks what it says (tls:... speaks TLS)")
            return None
        from mayros.ops.certificates import Certificates

        return Certificates(tls_files(tls, self.state.path), self.core.in_thread, wall_ms, handed_over(environ))

    def _build_doors(self, files: int) -> None:
        settings, reactor, config, core = self._settings, self._reactor, self._settings.config, self.core
        limits = config.gateway.limits
        self.health = Health(lambda: self.control.current, lambda: overview(core.database), reactor, wall_ms)
        bodies = Budget(limits.body_budget)
        control = self.control
        inputs = Inputs(core.in_thread, Fetcher(reactor), PdfTexts(reactor, settings.environ))
        ticker = Ticker(reactor)
        api = Api(control, core.runs, bodies, ticker, self.not_ready, inputs, core.idempotency)
        quotas = Quotas(core.spending, wall_ms)
        self._doors = self._in_force.doors = Doors(
            settings, core.api_tokens, quotas, lambda settings: connections_for(files, settings.config.agents.defaults.max_concurrent)
        )
        self._doors.locked = self._locked
        self._conversations = Conversations(
            config=control,
            authenticator=self._doors.authenticator,
            runs=core.runs,
            idempotency=core.idempotency,
            sessions=core.sessions,
            devices=core.devices,
            approvals=core.approvals,
            exec_rules=core.exec_rules,
            usage=core.usage,
            spending=core.spending,
            api_tokens=core.api_tokens,
            quotas=quotas,
            lanes=core.lanes,
            agent_files=core.agent_files,
            clock=reactor,
            now_ms=wall_ms,
            monotonic=reactor.seconds,
            health=self.health.payload,
            version=program_version(),
            host=socket.gethostname(),
            started_ms=wall_ms(),
            toolbox=core.toolbox,
            model_health=core.model_health,
            audit=core.audit,
            restart=self._in_force.restart_soon,
        )
        self._sockets = ControlFactory(self._conversations, reactor)
        doors = ControlResource(
            self._sockets,
            address_of=lambda request: cast(GatewayRequest, request).address,
            origin_ok=self._doors.origin_ok,
            released=lambda request: cast(GatewayRequest, request).channel.hand_over(),
        )
        self.site = GatewaySite(
            Root(api, doors),
            self._doors.gate,
            bodies,
            ConnectionCounter(self._doors.max_connections, limits.max_connections_per_address),
            reactor,
            self._seeing.record,
            time.time,
            body_seconds=limits.body_timeout_ms / 1000,
            head_seconds=limits.header_timeout_ms / 1000,
            hsts=self._certificates is not None and config.gateway.tls.hsts,
        )
        self._parts = Parts(
            core,
            control,
            self._conversations,
            self._sockets,
            self.site,
            ticker,
            self._doors,
            api,
            self._listeners,
            self.not_ready,
            self._certificates,
        )

    def _listen(self, secret: AuthSecret) -> None:
        secure = self._certificates is not None
        factory: IProtocolFactory = self.site if self._certificates is None else self._certificates.wrap(self.site, self._reactor)
        if self._endpoints:
            for endpoint, text in zip(self._endpoints, self._start.listen, strict=True):
                kind = text.partition(":")[0]
                self._listeners.open(endpoint, self.site, f"the {kind} endpoint of --listen", secure=kind in ("tls", "ssl"))
        elif sockets := self._start.manager.sockets:
            self._listeners.adopt(self._reactor, self.site, sockets, over_tls=factory if secure else None)
            if self._port not in self._listeners.tcp_ports:
                log.warn("the service manager holds the port; {port} of the configuration is not listened on", port=self._port)
        else:
            gateway = self._settings.config.gateway
            for endpoint in configured(self._reactor, gateway, self._port):
                opened: Any = self._listeners.open(endpoint, factory, f"port {self._port}", secure)
                if gateway.bind == "loopback":
                    self._listeners.open_ipv6_loopback(self._reactor, factory, opened.getHost().port, secure)
        self._listeners.judge(secret.mode)
        self._doors.opened(self._listeners.hosts, self.site, self._conversations)

    def _locked(self, address: Address, what: str) -> None:
        """A client has sent so many wrong credentials that it is not heard for a while."""
        limiter = self._doors.limiter
        seconds = None if limiter is None else limiter.lockout_seconds
        self.core.audit.note(Actor("nobody", "gateway", address=address.client), "auth.lockout", address.limiter_key, what=what, seconds=seconds)

    def not_ready(self) -> str | None:
        """Why the gateway cannot take work, or None."""
        if self.stopping:
            return "stopping"
        if not self.core.database.writable:
            return "the store cannot be written"
        local = self.core.providers.local
        agents = self.control.current.directory.agents.values()
        only_local = all(model.provider.api == "local" for agent in agents for model in agent.models)
        if local is not None and only_local and not local.ready():
            return "the embedded model is not installed, or is being restarted"
        return None

    def status(self) -> str:
        """What goes on, in one line, for the service manager."""
        sockets, sessions = self._sockets.open, self.health.payload()["sessions"]["count"]
        said = f"{self.core.runs.live()} live runs, {len(self.site.channels)} HTTP and {sockets} WebSocket connections, {sessions} sessions"
        problem = self.control.state.problem
        if problem is not None:
            said += f"; the configuration cannot be used: {problem}"
        problem = None if self._certificates is None else self._certificates.current.problem
        return said if problem is None else f"{said}; the certificate cannot be used: {problem}"

    async def stopService(self) -> None:
        """Stop in order: the doors (stopping.py), then commands and the model, then the store. A second signal cuts it short."""
        if self.stopping:
            return
        self.stopping = True
        self._in_force.stop()
        stopping = Stopping(
            self.site,
            self.core.runs,
            self._conversations.broadcaster,
            self._listeners.close,
            self._sockets.emptied,
            self._reactor,
            self.control.current.config.gateway.shutdown.grace_ms / 1000,
            self._start.manager.stopping,
            self._start.manager.again_seconds if self._in_force.restarting else None,
        )
        signals = 0

        def hurry(number: int, _frame: object) -> None:
            nonlocal signals
            signals += 1
            if signals > 1:
                os._exit(128 + number)  # whoever sends a third one wants no order any more; what was acknowledged is on disk
            self._reactor.callFromThread(stopping.hurry)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, hurry)
        self.heartbeat.quiet()
        await stopping.run()
        self.health.stop()
        self.heartbeat.stop()
        self.core.audit.note(GATEWAY, "gateway.stop", program_version(), pid=os.getpid())
        await self.core.close()
        await self._seeing.stop()
        self.state.unlock()
        await maybeDeferred(super().stopService)
        log.info("stopped")
