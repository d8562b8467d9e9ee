"""`twistd mayros`: options, and the service that twistd runs. Besides the command line, the only module that touches the global reactor."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from typing import Any, NoReturn

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.logger import globalLogBeginner
from twisted.python import usage

from mayros.config.load import config_path, load, refuse_unsupported, state_dir
from mayros.config.secret import take_environment
from mayros.core.routing import Settings
from mayros.errors import StartError
from mayros.net.hidden import hide
from mayros.ops.systemd import Manager, close_on_exec, scrub
from mayros.service import Gateway, Start


class Options(usage.Options):
    """What the operator says at the start."""

    synopsis = "[--config FILE] [--port N] [--listen ENDPOINT]... [--allow-unconfigured]"
    longdesc = "Mayros Gateway: OpenAI chat completions and WebSocket clients on one port. Configuration: ~/.mayros/mayros.json."
    optParameters = [
        ["config", "c", None, "The configuration file (default: $MAYROS_CONFIG_PATH, else mayros.json in the state directory)."],
        ["port", "p", None, "The port (default: $MAYROS_GATEWAY_PORT, else gateway.port, else 18789).", int],
    ]
    optFlags = [["allow-unconfigured", None, "Start although gateway.mode is not local."]]

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []

    def opt_listen(self, endpoint: str) -> None:
        """A Twisted server endpoint to listen on instead, such as tcp:18789:interface=127.0.0.1 or unix:/run/mayros.sock; repeatable."""
        self["listen"].append(endpoint)

    def postOptions(self) -> None:
        """Check what the parser could not."""
        port = self["port"]
        if port is not None and not 0 <= port <= 65535:
            raise usage.UsageError("--port must be between 0 and 65535.")


def makeService(options: Options) -> Gateway:
    """The gateway as a service. Ends the process with one line and status 78 where the configuration cannot work."""
    from twisted.internet import reactor  # noqa: TID251

    try:
        return _gateway(options, reactor)
    except StartError as error:
        _exit(error)


def run(options: Options) -> int:
    """Run the gateway in this process until a signal stops it; gives the exit status."""
    from twisted.internet import reactor  # noqa: TID251

    gateway: Gateway
    try:
        gateway = _gateway(options, reactor)
        globalLogBeginner.beginLoggingTo([gateway.observer], redirectStandardIO=False, discardBuffer=True)
        IService(gateway).privilegedStartService()
    except StartError as error:
        _exit(error)
    gateway.startService()
    reactor.addSystemEventTrigger("before", "shutdown", lambda: Deferred.fromCoroutine(gateway.stopService()))
    reactor.run()
    return 0


def _gateway(options: Options, reactor: Any) -> Gateway:
    began = time.perf_counter()
    if not reactor.getDelayedCalls():
        # Twisted counts by the time of day; a step of that clock must not move timers, limits and lockouts.
        reactor.seconds = time.monotonic
    signal.signal(signal.SIGHUP, _not_yet)
    manager = Manager.of(os.environ, os.getpid())
    environ = take_environment(os.environ)
    scrub(os.environ)
    hide()
    close_on_exec(manager.sockets)
    if manager.watchdog_seconds is not None and sys.__stderr__ is not None:
        # It ends what is stuck by SIGABRT: then each thread says where it is.
        faulthandler.enable(sys.__stderr__)
    directory = state_dir(environ)
    path = options["config"] or config_path(environ)
    loaded = load(path, environ, state_dir=directory, cwd=os.getcwd())
    refuse_unsupported(loaded.config, loaded.raw)
    settings = Settings.build(
        loaded.config,
        state_dir=directory,
        config_path=path,
        environ=loaded.environ,
        now_ms=int(time.time() * 1000),
        warnings=loaded.warnings,
        keys=loaded.keys,
        files=loaded.stamps,
        variables=loaded.raw.get("env"),
    )
    start = Start(options["port"], tuple(options["listen"]), bool(options["allow-unconfigured"]), began, manager)
    return Gateway(settings, start, reactor, on_start_error=_exit)


def _not_yet(*_: object) -> None:
    """SIGHUP before there is anything to reload. Without a handler it would end the process; ignored, it would be ignored by every child too."""


def _exit(error: StartError) -> NoReturn:
    # Not sys.stderr: twistd has made that part of the log.
    print(f"mayros: {error}", file=sys.__stderr__, flush=True)
    raise SystemExit(error.status)
