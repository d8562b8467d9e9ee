"""What an operator sees of the gateway: its log files, its overview in `status`, and its metrics where they are on. Made by service.py.

Nothing here does any work of the gateway's; each part is looked at from outside. Imports config, core, ops, web, ws and the runtime.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger, LogLevel

from mayros.core.log_ports import Tail
from mayros.core.routing import Settings
from mayros.ops.control import ConfigFile
from mayros.ops.listen import Listeners
from mayros.ops.logfiles import AccessLog, LogFile
from mayros.ops.logs import LineObserver
from mayros.ops.tail import current, log_files, read
from mayros.runtime import Core
from mayros.web.app import METRICS_TYPE, ROUTES, Api
from mayros.web.gate import route_of, split_path
from mayros.web.site import Access, GatewaySite
from mayros.web.sse import Ticker
from mayros.ws.context import Gateway as Conversations
from mayros.ws.protocol import ControlFactory

if TYPE_CHECKING:
    from mayros.doors import Doors
    from mayros.ops.certificates import Certificates
    from mayros.ops.metrics import Metrics

log = Logger()

#: How often what was left out of the log is summed up.
SUM_UP_SECONDS = 10.0
#: Live runs that the overview names.
MOST_RUNS = 20
#: Paths whose routes are remembered.
_MOST_PATHS = 256


@dataclass
class Parts:
    """What is looked at. `ready` gives None, or why the gateway cannot take work; `certificates` are None where there is no TLS."""

    core: Core
    control: ConfigFile
    conversations: Conversations
    sockets: ControlFactory
    site: GatewaySite
    ticker: Ticker
    doors: Doors
    api: Api
    listeners: Listeners
    ready: Callable[[], str | None]
    certificates: Certificates | None = None


class Seeing:
    """See the module. `record` takes a line of the access log."""

    def __init__(self, settings: Settings, observer: LineObserver, reactor: Any, redact: Callable[[str], str], version: str) -> None:
        logging, self._metrics_config = settings.config.logging, settings.config.gateway.metrics
        self._observer, self._reactor, self._version = observer, reactor, version
        self._access = AccessLog(os.path.join(settings.state_dir, "logs"), reactor, time.time, redact, logging.max_file_bytes)
        self._files = log_files(logging.file, settings.state_dir, logging.max_file_bytes)
        self._file = LogFile(self._files, reactor, time.time)
        observer.keep(self._file)
        self._summing = LoopingCall(lambda: observer.tick(time.time()))
        self._summing.clock = reactor
        self.record: Callable[[Access], None] = self._access.record
        self.metrics: Metrics | None = None
        self._scraped: Listeners | None = None
        self._parts: Parts | None = None
        self._paths: dict[str, str] = {}
        self._known: tuple[Settings | None, frozenset[str]] = (None, frozenset())
        if self._metrics_config.enabled:
            from mayros.ops.metrics import Metrics

            self.metrics = Metrics(reactor, self._route, self._model, self._tool, version)
            self.record = self._measured

    def _measured(self, entry: Access) -> None:
        assert self.metrics is not None
        self.metrics.http(entry)
        self._access.record(entry)

    def look_at(self, parts: Parts) -> None:
        """Everything is made; see it from now on. Raises StartError where the metrics' own listener cannot be opened."""
        self._parts = parts
        parts.conversations.tail = self._tail
        parts.conversations.overview = self.overview
        metrics = self.metrics
        if metrics is None:
            return
        from mayros.measure import measure

        measure(metrics, parts)
        if (listen := self._metrics_config.listen) is None:
            parts.api.metrics = metrics.text
        else:
            from mayros.ops.scrape import serve

            self._scraped = serve(listen, metrics.text, METRICS_TYPE, self._reactor)
            if self._scraped.exposed_hosts:
                log.warn("gateway.metrics.listen: everybody who reaches {listen} can read the metrics", listen=listen)
            log.info("metrics on {urls}", urls=", ".join(f"{url}/metrics" for url in self._scraped.urls))

    def start(self) -> None:
        """Write files from now on."""
        self._access.start()
        self._file.start()
        self._summing.start(SUM_UP_SECONDS, now=False)
        if self.metrics is not None:
            self.metrics.start()

    async def stop(self) -> None:
        """Write what is left; the log goes to standard output alone from now on."""
        if self._summing.running:
            self._summing.stop()
        if self.metrics is not None:
            self.metrics.stop()
        if self._scraped is not None:
            await self._scraped.close()
        self._access.stop()
        self._observer.close(time.time())
        self._file.stop()
        self._observer.keep(None)

    # What the log says.

    async def _tail(self, cursor: int | None, limit: int, max_bytes: int) -> Tail:
        """See core.log_ports.TailLog."""
        assert self._parts is not None
        self._file.flush()
        found: Tail = await self._parts.core.in_thread(_read, self._files, cursor, limit, max_bytes)
        return found

    # What labels may say.

    def _route(self, path: str) -> str:
        """The template of a path, or `other`."""
        found = self._paths.get(path)
        if found is None:
            raw = path.encode("utf-8", "replace")
            raw = raw[:-1] if len(raw) > 1 and raw[-1:] == b"/" else raw
            if route_of(ROUTES, raw) is None:
                return "other"
            found = raw.decode() if raw in ROUTES else f"{split_path(raw)[0].decode()}*"
            if len(self._paths) < _MOST_PATHS:
                self._paths[path] = found
        return found

    def _model(self, provider: str, model: str) -> tuple[str, str]:
        """Provider and model, `other` where they are not configured."""
        assert self._parts is not None
        settings = self._parts.control.current
        if self._known[0] is not settings:
            agents = settings.directory.agents.values()
            self._known = settings, frozenset((*settings.catalogue.models, *(one.ref for agent in agents for one in agent.models)))
        if f"{provider}/{model}" in self._known[1]:
            return provider, model
        return (provider, "other") if provider in settings.catalogue.providers else ("other", "other")

    def _tool(self, name: str) -> str:
        assert self._parts is not None
        return name if name in self._parts.core.toolbox.names else "other"

    # What goes on.

    def overview(self, details: bool) -> Mapping[str, object]:
        """What `status` tells of the gateway as a whole; times are milliseconds of the wall clock. `details`: name runs and errors."""
        parts = self._parts
        assert parts is not None
        core, stats = parts.core, parts.core.database.stats
        return {
            "version": self._version,
            "startedAtMs": parts.conversations.started_ms,
            "uptimeMs": parts.conversations.uptime_ms(),
            "notReady": parts.ready(),
            "doors": {
                "urls": list(parts.listeners.urls),
                "httpConnections": len(parts.site.channels),
                "streams": len(parts.ticker),
                "webSockets": parts.sockets.open,
                "tls": None if parts.certificates is None else _certificate(parts.certificates, details),
            },
            "runs": {
                "live": core.runs.live(),
                "waitingForSession": core.lanes.waiting,
                "waitingForSlot": core.slots.waiting,
                "newest": self._live_runs(core) if details else [],
            },
            "store": {
                "kind": core.database.url.partition(":")[0],
                "writable": core.database.writable,
                "waiting": core.database.waiting,
                "written": stats.written,
                "failed": stats.failed,
            },
            "lastErrors": [
                {
                    "ts": round(line.at * 1000),
                    "level": "error" if line.level >= LogLevel.error else "warn",
                    "logger": line.where,
                    "message": line.text,
                }
                for line in (reversed(self._observer.problems) if details else ())
            ],
        }

    @staticmethod
    def _live_runs(core: Core) -> Sequence[Mapping[str, object]]:
        return [
            {
                "runId": run.turn.run_id,
                "agentId": run.turn.agent.id,
                "sessionKey": str(run.turn.session),
                "door": run.turn.door,
                "startedAtMs": run.started_ms,
                "model": None if run.model is None else f"{run.model.provider}/{run.model.model}",
            }
            for run in core.runs.newest(MOST_RUNS)
        ]


def _certificate(certificates: Certificates, details: bool) -> Mapping[str, object]:
    """The certificate that is shown, and, with `details`, why its files as they are now are not."""
    about, problem = certificates.current.about, certificates.current.problem
    shown: dict[str, object] = {"fingerprint": about.fingerprint, "names": list(about.names), "expiresAtMs": about.ends_ms}
    if problem is not None and details:
        shown["error"] = problem
    return shown


def _read(files: Any, cursor: int | None, limit: int, max_bytes: int) -> Tail:
    return read(current(files, time.time()), cursor, limit, max_bytes)
