"""The agent run with its store, providers and tools, put together: enough for `mayros agent --local`; service.py adds the doors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from mayros.config.show import secrets_of
from mayros.core.agent import AgentLoop
from mayros.core.api_tokens import ApiTokens
from mayros.core.approvals import Approvals
from mayros.core.audit import Audit
from mayros.core.devices import Devices
from mayros.core.exec_rules import ExecRules
from mayros.core.health import ModelHealth
from mayros.core.lanes import LocalLanes, LocalSlots
from mayros.core.permission import ExecPermission
from mayros.core.routing import Settings
from mayros.core.runs import LocalRuns
from mayros.core.spending import Spending
from mayros.core.toolbox import LocalToolbox
from mayros.net.redact import Redactor, secret_values
from mayros.net.spawn import Spawner
from mayros.net.statedir import StateDir
from mayros.providers.adapters import Adapters
from mayros.storage.agent_files import LocalAgentFiles
from mayros.storage.api_tokens import SqlApiTokens
from mayros.storage.approvals import SqlExecRules
from mayros.storage.audit import SqlAudit
from mayros.storage.cooldowns import SqlCoolDowns
from mayros.storage.database import Database
from mayros.storage.devices import SqlDevices
from mayros.storage.engine import describe, parse_url
from mayros.storage.idempotency import SqlIdempotency
from mayros.storage.maintenance import Maintenance
from mayros.storage.results import FileResults
from mayros.storage.sessions import SqlSessions
from mayros.storage.skills import FileSkills
from mayros.storage.turns import SqlTurnStore
from mayros.storage.usage import SqlUsage
from mayros.storage.workspace import FileWorkspace, make_workspace
from mayros.tools.access import protected_paths
from mayros.tools.exec import tools as exec_tools
from mayros.tools.files import tools as file_tools
from mayros.tools.fixed import fixed
from mayros.tools.status import tools as status_tools

log = Logger()


def wall_ms() -> int:
    """Milliseconds of the wall clock."""
    return time.time_ns() // 1_000_000


def known_secrets(settings: Settings) -> list[str | None]:
    """Everything that is never to be shown: providers' keys, what the configuration holds under a secret's name, and such variables."""
    return [
        *(one.key for provider in settings.catalogue.providers.values() for one in provider.credentials),
        *secrets_of(msgspec.to_builtins(settings.config, enc_hook=int)),
        *secret_values(settings.environ),
    ]


class Core:
    """Runs, their store and their providers."""

    def __init__(self, settings: Settings, state: StateDir, reactor: Any, environ: Mapping[str, str], redact: Redactor | None = None) -> None:
        redact = redact or Redactor(known_secrets(settings))
        self.settings, self._state, self._reactor, self._environ = settings, state, reactor, environ
        self._used = settings
        config = settings.config
        self.database = Database(config.session.store or f"sqlite:///{state.join('mayros.db')}", reactor)
        self.store = SqlTurnStore(self.database)
        self.sessions = SqlSessions(self.database, self.store, wall_ms)
        self.idempotency = SqlIdempotency(self.database, wall_ms)
        self.usage, self.spending = SqlUsage(self.database), Spending()
        self.devices = Devices(SqlDevices(self.database), wall_ms)
        self._api_tokens = SqlApiTokens(self.database)
        self.api_tokens = ApiTokens(self._api_tokens, wall_ms)
        self.audit = Audit(SqlAudit(self.database), wall_ms, redact)
        self.approvals = Approvals(reactor, wall_ms, self.audit)
        place = describe(parse_url(self.database.url))
        self.exec_rules = ExecRules(SqlExecRules(self.database), wall_ms, os.path.realpath, os.path.expanduser("~"), place)
        self.exec_rules.redact = redact
        self.exec_rules.fixed = lambda path: fixed(path, self.current().directory.agents.values())
        self.permission = ExecPermission(self.exec_rules, self.approvals, self.sessions)
        self.maintenance = Maintenance(self.database, reactor, lambda: self.current().config.session.stateless, wall_ms)
        self.workspace = FileWorkspace(reactor, self.in_thread)
        self.agent_files = LocalAgentFiles(state.path, os.path.expanduser("~"), self.in_thread, wall_ms)
        self.providers = Adapters(settings, state.path, reactor)
        self._cooldowns = SqlCoolDowns(self.database)
        self.model_health = ModelHealth(self._cooldowns, wall_ms)
        #: The configuration in force: of the start, until the daemon has its own.
        self.current: Callable[[], Settings] = lambda: settings
        home = os.path.expanduser("~")
        self.results = FileResults(state.join("results"), self.in_thread, time.time)
        self.skills = FileSkills(config.skills, state.path, home, environ, reactor, self.in_thread, self._workspaces)
        self.spawner = Spawner(reactor, environ, state.path)
        self.toolbox = LocalToolbox(
            [
                *file_tools(self.in_thread, self.results.open, protected_paths(state.path, settings.config_path, home), redact, self.skills.folders),
                *exec_tools(self.spawner, reactor, self.permission, redact),
                *status_tools(self.sessions, lambda: self.current(), wall_ms),
            ]
        )
        limits = config.gateway.limits
        self.lanes = LocalLanes(limits.max_queued_per_session, limits.max_queued_runs)
        self.slots = LocalSlots(config.agents.defaults.max_concurrent, limits.max_queued_runs)
        self.runs = LocalRuns(
            AgentLoop(
                self.providers,
                self.workspace,
                lambda ref: self.current().catalogue.find(ref),
                self.toolbox,
                self.results,
                redact,
                self.skills,
                self.model_health,
            ),
            self.store,
            self.idempotency,
            self.lanes,
            self.slots,
            reactor,
            wall_ms,
            self.spending,
        )

    def _workspaces(self) -> list[str]:
        return [agent.workspace for agent in self.current().directory.agents.values()]

    def use(self, settings: Settings) -> None:
        """These settings are in force from now on; runs that are live go on with what they began with."""
        before, self._used = self._used, settings
        limits = settings.config.gateway.limits
        self.lanes.limit(limits.max_queued_per_session, limits.max_queued_runs)
        self.slots.limit(settings.config.agents.defaults.max_concurrent, limits.max_queued_runs)
        self.providers.use(settings)
        self.model_health.changed(before.catalogue.providers, settings.catalogue.providers)
        if settings.config.skills != before.config.skills:
            self.skills.use(settings.config.skills)
        known = {agent.workspace for agent in before.directory.agents.values()}
        fresh = [agent.workspace for agent in settings.directory.agents.values() if agent.workspace not in known]
        if fresh:
            made = self.in_thread(_make_workspaces, fresh, not settings.config.agents.defaults.skip_bootstrap)
            made.addErrback(lambda failure: log.failure("making workspaces", failure))

    def in_thread(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Run a function off the reactor."""
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function, *args)

    def open(self) -> None:
        """Open the store and close what a crash left open. Raises StartError; blocks, so before the reactor runs."""
        self.store.open()
        self.store.recover()
        now_ms = wall_ms()
        self.spending.load(self.store.spent(now_ms), now_ms, self.store.spent(now_ms, "principal"))
        self.api_tokens.restore(self._api_tokens.load())
        self.model_health.restore(self._cooldowns.load(), self.settings.catalogue.providers, self._reactor.seconds())
        _make_workspaces(self._workspaces(), not self.settings.config.agents.defaults.skip_bootstrap)
        self.maintenance.start()
        self._reactor.callWhenRunning(self._sweep)

    def _sweep(self) -> None:
        """End what commands of a gateway that died left running; the state directory is locked, so no other one lives."""

        def swept(count: int) -> None:
            if count:
                log.info("{count} processes that an earlier gateway's commands left behind were ended", count=count)

        sweeping = Deferred.fromCoroutine(self.spawner.sweep())
        sweeping.addCallbacks(swept, lambda failure: log.failure("what earlier commands left behind could not be ended", failure))

    async def close(self) -> None:
        """The commands, the model's process, then the connections, then the store. No run may be live."""
        self.maintenance.stop()
        await self.spawner.stop()
        await self.providers.close()
        await self.database.close()


def _make_workspaces(paths: Iterable[str], starter: bool) -> None:
    """The folders that agents' commands run in; one that cannot be made is for its own runs to complain about. Blocks."""
    for path in paths:
        try:
            if make_workspace(path, starter):
                log.info("workspace {path} was made, with starter files", path=path)
        except OSError as error:
            log.warn("workspace {path} cannot be made: {why}", path=path, why=error.strerror)
