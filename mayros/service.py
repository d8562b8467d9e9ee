"""The composition root: makes every part, knows both doors, and starts and stops them in order. Nobody else constructs services.

The agent run with its store and providers is `runtime.Core`; `Gateway` adds the doors.
"""

from __future__ import annotations

import gc
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn, cast

import msgspec
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, TimeoutError, maybeDeferred
from twisted.logger import ILogObserver, Logger
from twisted.web.server import Request

from mayros.config.secret import AuthSecret, resolve
from mayros.core.address import Address, AddressRules
from mayros.core.auth import Authenticator, make_limiter
from mayros.core.limits import Budget, ConnectionCounter
from mayros.core.routing import Settings
from mayros.errors import StartError
from mayros.net.statedir import StateDir, raise_open_files
from mayros.ops.control import ConfigFile
from mayros.ops.health import Health
from mayros.ops.listen import Listeners, configured, parse_endpoint
from mayros.ops.logs import AccessLog, Redactor, console
from mayros.runtime import Core, known_secrets, wall_ms
from mayros.storage.overview import overview
from mayros.web.app import ROUTES, Api, Root
from mayros.web.gate import Gate
from mayros.web.request import GatewayRequest
from mayros.web.site import GatewaySite
from mayros.web.sse import Ticker
from mayros.ws.context import Gateway as Conversations
from mayros.ws.protocol import ControlFactory, ControlResource

log = Logger()

#: Descriptors kept for files, the store and the model.
RESERVED_FILES = 128
#: After the grace: for aborted runs to be recorded and their last bytes to leave.
ABORT_SECONDS = 5.0
LINGER_SECONDS = 1.0


def program_version() -> str:
    """The installed version."""
    try:
        return version("mayros-gateway")
    except PackageNotFoundError:
        return "dev"


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
        self.observer = console(config.logging.level, config.logging.console_style, lambda text: self._redact(text))
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
        signal.signal(signal.SIGHUP, self._hangup)
        for warning in settings.warnings:
            log.warn("{warning}", warning=warning)
        self.state = StateDir.open(settings.state_dir)
        self.state.lock()
        for warning in self.state.warnings:
            log.warn("{warning}", warning=warning)
        files = raise_open_files()
        secret = self._secret()
        self._redact = Redactor([*known_secrets(settings), secret.value])
        self.core = Core(settings, self.state, reactor, settings.environ)
        self.control = ConfigFile(settings, self.core.in_thread, wall_ms, self.core.providers.check)
        self.core.current, self.core.redact = lambda: self.control.current, self._redact
        self.core.open()
        self._build_doors(secret, files)
        self._listen(secret)
        self.access.start()
        self.health.start()
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
        if secret.mode == "password" and not secret.value:
            raise StartError("gateway.auth.mode is password, but no password is set: gateway.auth.password or MAYROS_GATEWAY_PASSWORD.")
        return secret

    def _build_doors(self, secret: AuthSecret, files: int) -> None:
        settings, reactor, config, core = self._settings, self._reactor, self._settings.config, self.core
        limits = config.gateway.limits
        self._limiter = make_limiter(limits_of) if (limits_of := config.gateway.auth.rate_limit) is not None else None
        self.access = AccessLog(self.state.join("logs"), reactor, time.time, lambda text: self._redact(text))
        self.health = Health(lambda: self.control.current, lambda: overview(core.database), reactor, wall_ms)
        bodies = Budget(limits.body_budget)
        control = self.control
        api = Api(control, core.runs, bodies, Ticker(reactor), self.not_ready)
        self._judge(secret, ())
        self._conversations = Conversations(
            config=control,
            authenticator=self._authenticator,
            runs=core.runs,
            idempotency=core.idempotency,
            sessions=core.sessions,
            devices=core.devices,
            approvals=core.approvals,
            exec_rules=core.exec_rules,
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
        )
        self._sockets = ControlFactory(self._conversations, reactor)
        doors = ControlResource(
            self._sockets,
            address_of=lambda request: cast(GatewayRequest, request).address,
            origin_ok=self._origin_ok,
            released=lambda request: cast(GatewayRequest, request).channel.hand_over(),
        )
        self.site = GatewaySite(
            Root(api, doors),
            Gate(settings, self._rules, self._authenticator, ROUTES),
            bodies,
            ConnectionCounter(
                limits.max_connections or connections_for(files, config.agents.defaults.max_concurrent), limits.max_connections_per_address
            ),
            reactor,
            self.access.record,
            time.time,
            body_seconds=limits.body_timeout_ms / 1000,
            head_seconds=limits.header_timeout_ms / 1000,
        )

    def _origin_ok(self, request: Request, address: Address) -> bool:
        """Whether the page that an upgrade comes from may talk to us; asked where there is exactly one Origin."""
        gateway, headers = self._settings.config.gateway, request.requestHeaders.getRawHeaders
        listed = (*gateway.control_ui.allowed_origins, *gateway.http.cors.allowed_origins)
        return self._rules.origin_ok((headers(b"origin") or [b""])[0].decode("latin-1"), headers, address, listed)

    def _judge(self, secret: AuthSecret, hosts: Any) -> None:
        """Who may come in, by the addresses that are really listened on."""
        self._rules = AddressRules.build(self._settings.config.gateway, hosts, lambda text: log.warn("{text}", text=text))
        self._authenticator = Authenticator(secret.mode, secret.value, self._settings.config.gateway.auth, self._rules, self._limiter)

    def _listen(self, secret: AuthSecret) -> None:
        if self._endpoints:
            for endpoint, text in zip(self._endpoints, self._start.listen, strict=True):
                kind = text.partition(":")[0]
                self._listeners.open(endpoint, self.site, f"the {kind} endpoint of --listen", secure=kind in ("tls", "ssl"))
        else:
            gateway = self._settings.config.gateway
            for endpoint in configured(self._reactor, gateway, self._port):
                opened: Any = self._listeners.open(endpoint, self.site, f"port {self._port}")
                if gateway.bind == "loopback":
                    self._listeners.open_ipv6_loopback(self._reactor, self.site, opened.getHost().port)
        self._listeners.judge(secret.mode)
        self._judge(secret, self._listeners.hosts)
        self.site.gate = Gate(self._settings, self._rules, self._authenticator, ROUTES)
        self._conversations.authenticator = self._authenticator

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

    def _hangup(self, *_: object) -> None:
        self._reactor.callFromThread(log.info, "SIGHUP: this version does not reload its configuration; restart to apply changes")

    def _hurry(self, *_: object) -> None:
        """A second signal while the gateway stops: no more grace."""
        self._reactor.callFromThread(self.core.runs.abort_all)

    async def stopService(self) -> None:
        """Stop in order: ports, then runs (with a grace), then clients, then the model, then the store."""
        if self.stopping:
            return
        self.stopping = True
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hurry)
        reactor, runs = self._reactor, self.core.runs
        grace = self._settings.config.gateway.shutdown.grace_ms / 1000
        log.info("stopping: {count} runs are live, they may take {grace:g} s", count=runs.live(), grace=grace)
        await self._listeners.close()
        self.site.drain()
        runs.drain()
        self._conversations.broadcaster.announce("service restart", None)
        with suppress(TimeoutError):
            await runs.drained().addTimeout(grace, reactor)
        if runs.live():
            log.info("aborting {count} runs", count=runs.live())
            runs.abort_all()
            with suppress(TimeoutError):
                await runs.drained().addTimeout(ABORT_SECONDS, reactor)
        self._conversations.broadcaster.close_all()
        with suppress(TimeoutError):
            await self._sockets.emptied().addTimeout(ABORT_SECONDS, reactor)
        await self._linger()
        self.health.stop()
        await self.core.close()
        self.access.stop()
        self.state.unlock()
        await maybeDeferred(super().stopService)
        log.info("stopped")

    async def _linger(self) -> None:
        """Give the last bytes a moment to leave, then cut what is left."""
        waited = 0.0
        while self.site.channels and waited < LINGER_SECONDS:
            pause: Deferred[None] = Deferred()
            reactor = self._reactor
            reactor.callLater(0.05, pause.callback, None)
            await pause
            waited += 0.05
        self.site.abort_all()
