"""The agent run with its store, providers and tools, put together: enough for `mayros agent --local`; service.py adds the doors."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from mayros.config.show import secrets_of
from mayros.core.agent import AgentLoop
from mayros.core.approvals import Approvals
from mayros.core.devices import Devices
from mayros.core.exec_rules import ExecRules
from mayros.core.lanes import LocalLanes, LocalSlots
from mayros.core.permission import ExecPermission
from mayros.core.routing import Settings
from mayros.core.runs import LocalRuns
from mayros.core.toolbox import LocalToolbox
from mayros.net.spawn import Spawner
from mayros.net.statedir import StateDir
from mayros.ops.logs import Redactor
from mayros.providers.adapters import Adapters
from mayros.storage.agent_files import LocalAgentFiles
from mayros.storage.approvals import SqlExecRules
from mayros.storage.database import Database
from mayros.storage.devices import SqlDevices
from mayros.storage.engine import describe, parse_url
from mayros.storage.idempotency import SqlIdempotency
from mayros.storage.maintenance import Maintenance
from mayros.storage.results import FileResults
from mayros.storage.sessions import SqlSessions
from mayros.storage.skills import FileSkills
from mayros.storage.turns import SqlTurnStore
from mayros.storage.workspace import FileWorkspace
from mayros.tools.access import protected_paths
from mayros.tools.exec import tools as exec_tools
from mayros.tools.files import tools as file_tools
from mayros.tools.status import tools as status_tools

log = Logger()


def wall_ms() -> int:
    """Milliseconds of the wall clock."""
    return time.time_ns() // 1_000_000


def known_secrets(settings: Settings) -> list[str | None]:
    """Everything that is never to be shown: providers' keys, what the configuration holds under a secret's name, and such variables."""
    named = [value for name, value in settings.environ.items() if _SECRET_NAME.search(name)]
    return [
        *(provider.key for provider in settings.catalogue.providers.values()),
        *secrets_of(msgspec.to_builtins(settings.config, enc_hook=int)),
        *named,
    ]


_SECRET_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$")


class Core:
    """Runs, their store and their providers."""

    def __init__(self, settings: Settings, state: StateDir, reactor: Any, environ: Mapping[str, str]) -> None:
        self.settings, self._state, self._reactor, self._environ = settings, state, reactor, environ
        config = settings.config
        self.database = Database(config.session.store or f"sqlite:///{state.join('mayros.db')}", reactor)
        self.store = SqlTurnStore(self.database)
        self.sessions = SqlSessions(self.database, self.store, wall_ms)
        self.idempotency = SqlIdempotency(self.database, wall_ms)
        self.devices = Devices(SqlDevices(self.database), wall_ms)
        self.approvals = Approvals(reactor, wall_ms)
        place = describe(parse_url(self.database.url))
        self.exec_rules = ExecRules(SqlExecRules(self.database), wall_ms, os.path.realpath, os.path.expanduser("~"), place)
        self.exec_rules.redact = lambda text: self.redact(text)
        self.permission = ExecPermission(self.exec_rules, self.approvals, self.sessions)
        self.maintenance = Maintenance(self.database, reactor, lambda: config.session.stateless, wall_ms)
        self.workspace = FileWorkspace(reactor, self.in_thread)
        self.agent_files = LocalAgentFiles(state.path, os.path.expanduser("~"), self.in_thread, wall_ms)
        self.providers = Adapters(settings, state.path, reactor)
        #: The configuration in force, and what hides secrets: of the start, until the daemon has its own.
        self.current: Callable[[], Settings] = lambda: settings
        self.redact: Callable[[str], str] = Redactor(known_secrets(settings))
        home = os.path.expanduser("~")
        self.results = FileResults(state.join("results"), self.in_thread, time.time)
        self.skills = FileSkills(config.skills, state.path, home, environ, reactor, self.in_thread)
        self.spawner = Spawner(reactor, environ, state.path)
        self.toolbox = LocalToolbox(
            [
                *file_tools(self.in_thread, self.results.open, protected_paths(state.path, settings.config_path, home), self.skills.folders),
                *exec_tools(self.spawner, reactor, self.permission),
                *status_tools(self.sessions, lambda: self.current(), wall_ms),
            ]
        )
        limits = config.gateway.limits
        self.lanes = LocalLanes(limits.max_queued_per_session, limits.max_queued_runs)
        self.runs = LocalRuns(
            AgentLoop(
                self.providers,
                self.workspace,
                settings.catalogue.find,
                self.toolbox,
                self.results,
                lambda text: self.redact(text),
                self.skills,
            ),
            self.store,
            self.idempotency,
            self.lanes,
            LocalSlots(config.agents.defaults.max_concurrent, limits.max_queued_runs),
            reactor,
            wall_ms,
        )

    def in_thread(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Run a function off the reactor."""
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function, *args)

    def open(self) -> None:
        """Open the store and close what a crash left open. Raises StartError; blocks, so before the reactor runs."""
        self.store.open()
        self.store.recover()
        for agent in self.settings.directory.agents.values():
            # Commands run in it; one that cannot be made is for its own runs to complain about.
            try:
                os.makedirs(agent.workspace, mode=0o700, exist_ok=True)
            except OSError as error:
                log.warn("workspace {path} cannot be made: {why}", path=agent.workspace, why=error.strerror)
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
