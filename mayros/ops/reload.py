"""When the configuration is read again: its files have changed, or SIGHUP came. `gateway.reload.mode` says what follows. Imports core and config.

Files are looked at twice a second (stat: 2 us each; it works on any file system, and through links that are swapped), the included ones and those of
keys too. What has changed is read when it has stayed as it is for `gateway.reload.debounceMs`. A main file that is missing is waited for.

`off`: nothing is read. `hot`: what can be is in force, the rest waits for a restart. `hybrid`: the same, and where something waits the gateway
restarts, also after a change by a program. `restart`: it restarts for any change of a file. To restart is to stop as for SIGTERM, which a service
manager follows with a start; where there is none, it is only said. Certificates (ops/certificates.py) are looked at and read along, in each mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from mayros.config.gateway import Reload
from mayros.config.stamps import Stamp, stamps
from mayros.core.config_ports import Applied, ConfigState, InvalidConfig
from mayros.core.ports import Clock
from mayros.core.routing import Settings

log = Logger()

POLL_SECONDS = 0.5
#: Between two readings that signals ask for.
SIGNAL_SECONDS = 1.0
#: From the change to the restart.
RESTART_SECONDS = 1.0


class Control(Protocol):
    """What is used of ops.control.ConfigFile."""

    current: Settings
    state: ConfigState
    files: Mapping[str, Stamp]
    applied: Callable[[Applied], None]

    def reload(self, *, hold: bool = False) -> Deferred[Applied]: ...


class Certificates(Protocol):
    """What is used of ops.certificates.Certificates."""

    def look(self) -> None: ...

    def reload(self) -> None: ...


class Reloader:
    """See the module. `restart` stops the gateway so that it is started again; False: there is nobody to do that.

    `telling` is called with True before a reading and with False after it, whatever came of it. `certificates`: None where there is no TLS.
    """

    def __init__(
        self,
        control: Control,
        clock: Clock,
        restart: Callable[[str], bool] = lambda why: False,
        telling: Callable[[bool], None] = lambda reading: None,
        certificates: Certificates | None = None,
    ) -> None:
        self._control, self._clock, self._restart, self._telling, self._certificates = control, clock, restart, telling, certificates
        self._timer: IDelayedCall | None = None
        self._signal: IDelayedCall | None = None
        self._leaving: IDelayedCall | None = None
        self._read_at = float("-inf")
        self._reading = self._stopped = False
        #: What was found while nothing is read, or nobody restarts: told of once.
        self._ignored: Mapping[str, Stamp] = {}
        self._waiting: tuple[str, ...] = ()

    @property
    def _mode(self) -> str:
        return self._reload.mode

    @property
    def _reload(self) -> Reload:
        return self._control.current.config.gateway.reload

    def start(self) -> None:
        """Look at the files from now on."""
        self._control.applied = self._applied
        self._timer = self._clock.callLater(POLL_SECONDS, self._look)

    def stop(self) -> None:
        """No more."""
        self._stopped = True
        for timer in (self._timer, self._signal, self._leaving):
            if timer is not None and timer.active():
                timer.cancel()

    def hangup(self) -> None:
        """SIGHUP: read at once, whether anything has changed or not; many signals are one, and at most one reading a second follows from them."""
        if self._stopped or (self._signal is not None and self._signal.active()):
            return
        left = self._read_at + SIGNAL_SECONDS - self._clock.seconds()
        if self._reading or left > 0:
            self._signal = self._clock.callLater(max(left, POLL_SECONDS), self.hangup_now)
        else:
            self.hangup_now()

    def hangup_now(self) -> None:
        """SIGHUP has waited long enough."""
        self._signal = None
        if self._reading:
            self.hangup()
            return
        self._read_at = self._clock.seconds()
        if self._certificates is not None:
            self._certificates.reload()
        if self._mode == "off":
            log.warn("SIGHUP: gateway.reload.mode is off, so nothing is read")
        else:
            log.info("SIGHUP: reading the configuration again")
            self._read()

    def _look(self, found: Mapping[str, Stamp] | None = None) -> None:
        """Whether a file is another one than was read; `found`: what there was the last time, and was."""
        if self._certificates is not None:
            self._certificates.look()
        known = self._control.files
        now = stamps(known)
        gone = now.get(self._control.current.config_path) is None
        if not self._reading and now != known and not (gone and known.get(self._control.current.config_path) is not None):
            if self._mode == "off":
                self._say_off(now)
            elif now == found:
                self._read()
            else:
                self._timer = self._clock.callLater(max(self._reload.debounce_ms / 1000, 0.01), self._look, now)
                return
        self._timer = self._clock.callLater(POLL_SECONDS, self._look)

    def _say_off(self, now: Mapping[str, Stamp]) -> None:
        if now != self._ignored:
            self._ignored = now
            log.warn("{path}: the files of the configuration have changed; gateway.reload.mode is off", path=self._control.current.config_path)

    def _read(self) -> None:
        self._reading, self._read_at = True, self._clock.seconds()
        self._telling(True)
        self._control.reload(hold=self._mode == "restart").addErrback(self._failed).addBoth(self._over)

    def _applied(self, applied: Applied) -> None:
        waiting, said = applied.restart, self._waiting
        self._waiting = waiting
        if waiting and waiting != said and self._mode in ("restart", "hybrid") and self._leaving is None and not self._stopped:
            # Later, so that whoever has asked for the change gets the answer.
            self.restart_after(RESTART_SECONDS, f"the configuration has changed: {', '.join(waiting)}")

    def restart_after(self, seconds: float, why: str) -> None:
        """Restart then, if there is somebody who starts the gateway again; instead of a restart that is on its way already."""
        if self._leaving is not None:
            self._leaving.cancel()
        self._leaving = self._clock.callLater(seconds, self._leave, why)

    def _leave(self, why: str) -> None:
        self._leaving = None
        if not self._restart(why):
            log.warn("{why}: it is in force when the gateway is restarted", why=why)

    def _failed(self, failure: Failure) -> None:
        failure.trap(InvalidConfig)  # which was told of already

    def _over(self, result: object) -> None:
        self._reading = False
        if isinstance(result, Failure):
            log.failure("the configuration could not be read again", failure=result)
        self._telling(False)
