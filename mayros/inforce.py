"""The configuration of a running gateway: what reads it again, what must agree with a new one, and who is told of it. Imports what it is given.

The order is fixed: redaction first, so that a new secret is hidden before anything can log it; then runs and providers; then the doors.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from mayros.config.schema import Config
from mayros.config.secret import AuthSecret, resolve
from mayros.config.tls import handed_over, tls_files
from mayros.core.audit_ports import GATEWAY
from mayros.core.config_ports import Applied, InvalidConfig
from mayros.core.routing import Settings
from mayros.doors import Doors
from mayros.net.redact import Redactor
from mayros.net.statedir import StateDir
from mayros.ops.control import ConfigFile
from mayros.ops.logs import LineObserver
from mayros.ops.reload import Reloader
from mayros.ops.systemd import Manager
from mayros.runtime import Core, known_secrets, wall_ms

if TYPE_CHECKING:
    from mayros.ops.certificates import Certificates

log = Logger()


class InForce:
    """`doors` are given as soon as there are some. `status` is the line for the service manager. `settings` have their secret.

    `certificates` are read again with the configuration; None: there is no TLS.
    """

    doors: Doors

    def __init__(
        self,
        settings: Settings,
        core: Core,
        state: StateDir,
        redact: Redactor,
        observer: LineObserver,
        manager: Manager,
        reactor: Any,
        status: Callable[[], str],
        certificates: Certificates | None = None,
    ) -> None:
        self._core, self._state, self._redact, self._observer = core, state, redact, observer
        self._manager, self._reactor, self._status = manager, reactor, status
        self._stopping = False
        #: It stops in order to be started anew.
        self.restarting = False
        self.control = ConfigFile(settings, core.in_thread, wall_ms, self._accept, redact, self._find_secret)
        self.control.changed(self._use)
        self.control.reread = self._reread
        self._reloader = Reloader(self.control, reactor, self._restart, self._reading, certificates)

    def start(self) -> None:
        """Heed SIGHUP and changes of the files from now on."""
        self._reloader.start()
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._reloader.hangup))

    def stop(self) -> None:
        """The gateway stops: nothing is read any more."""
        self._stopping = True
        self._reloader.stop()

    def restart_soon(self, why: str, seconds: float) -> bool:
        """See ws.context.Gateway."""
        if not self._manager.address:
            return False
        self._reloader.restart_after(seconds, why)
        return True

    def _find_secret(self, config: Config, environ: Mapping[str, str]) -> AuthSecret:
        """See ops.control.FindSecret. Raises ConfigError too where `gateway.tls` is another one, with files that cannot be used."""
        tls = config.gateway.tls
        if tls.enabled and tls != self.control.current.config.gateway.tls:
            from mayros.ops.certificates import load

            # It waits for a restart, which would be the gateway's last with files that cannot be used.
            load(tls_files(tls, self._state.path), handed_over(environ))
        secret = resolve(config, environ, self._state.token())
        self._state.warnings.clear()  # told of at the start
        return secret

    def _accept(self, settings: Settings) -> None:
        """Raise ConfigError where these settings could not be in force."""
        self._core.providers.check(settings)
        self.doors.check(settings)

    def _use(self, settings: Settings) -> None:
        """These settings are in force from now on."""
        self._redact.know(*known_secrets(settings), settings.secret.value if settings.secret is not None else None)
        logging = settings.config.logging
        self._observer.use(logging.level, logging.console_style, logging.console_level)
        self._core.use(settings)
        self.doors.use(settings)

    def _reread(self, found: Applied | InvalidConfig) -> None:
        """The file was changed by somebody else: by hand, or by a command that could not ask."""
        audit, path = self._core.audit, self.control.current.config_path
        if isinstance(found, Applied):
            audit.note(GATEWAY, "config.reload", path, paths=found.changed)
        else:
            audit.note(GATEWAY, "config.reload", path, "failed", error=f"invalid config at {found.issue.path or 'the file as a whole'}")

    def _reading(self, reading: bool) -> None:
        """Tell the service manager that the configuration is being read again, or has been."""
        if self._stopping:
            return
        if reading:
            self._manager.reloading()
        else:
            self._manager.ready(self._status())

    def _restart(self, why: str) -> bool:
        """Stop, so that the service manager starts the gateway anew; False: none has started it, so nobody would."""
        if not self._manager.address or self._stopping:
            return self._stopping
        log.info("{why}: the gateway stops, to be started anew", why=why)
        self.restarting = True
        self._reactor.stop()
        return True
