"""Stands for systemd: holds a gateway's listening sockets, passes them on, and hears what the gateway tells its service manager."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.daemon import Daemon, Upstream, python_path

#: Run in the child: LISTEN_PID is known there only, and the sockets must be the descriptors from 3 on.
_PASS = """
import fcntl, os, sys
count = int(sys.argv[1])
fds = [int(text) for text in sys.argv[2 : 2 + count]]
high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds]
for number, fd in enumerate(high):
    os.dup2(fd, 3 + number)
    os.close(fd)
for fd in fds:
    if fd >= 3 + count:
        os.close(fd)
os.environ.update(LISTEN_FDS=str(count), LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[2 + count], sys.argv[2 + count :])
"""


class Manager:
    """The socket that `$NOTIFY_SOCKET` names, in a folder of its own or, with `abstract`, without a path."""

    def __init__(self, abstract: bool = False) -> None:
        self._folder = tempfile.mkdtemp()  # short: the path of a unix socket has at most 107 bytes
        self.address = f"@mayros-test-{os.getpid()}-{os.urandom(4).hex()}" if abstract else f"{self._folder}/notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + self.address[1:] if abstract else self.address)
        self.messages: list[dict[str, str]] = []

    def close(self) -> None:
        """It is gone; what is told from now on is told to nobody."""
        self._socket.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def hear(self) -> dict[str, str] | None:
        """The next message that is here already, as its fields."""
        try:
            text = self._socket.recv(65_536, socket.MSG_DONTWAIT).decode()
        except BlockingIOError:
            return None
        message = dict(line.split("=", 1) for line in text.split("\n"))
        self.messages.append(message)
        return message

    def wait(self, name: str, seconds: float = 20, lives: Callable[[], bool] = lambda: True) -> dict[str, str]:
        """The next message that has this field; those before it are in `messages`. Raises AssertionError after the time, or when nobody `lives`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and lives():
            select.select([self._socket], [], [], 0.1)
            message = self.hear()
            if message is not None and name in message:
                return message
        raise AssertionError(f"nobody said {name}; heard: {self.messages}")


class HeldDaemon(Daemon):
    """A gateway whose port a launcher opens and holds over its life. Its configuration names another port, which nobody listens on."""

    def __init__(self, folder: Path, upstream: Upstream | None = None, changes: dict[str, Any] | None = None) -> None:
        super().__init__(folder, upstream, changes)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.sockets = {"http": self.listener}
        self.port = self.listener.getsockname()[1]
        self.manager = Manager()
        self.more: dict[str, str] = {}

    def spawn(self, *options: str, cli: bool = True) -> subprocess.Popen[bytes]:
        (self.folder / "mayros.json").write_text(json.dumps(self.config))
        (self.folder / "mayros.json").chmod(0o600)
        fds = [one.fileno() for one in self.sockets.values()]
        argv = [sys.executable, "-ISc", _PASS, str(len(fds)), *map(str, fds), *self.command(*options, cli=cli)]
        told = {"NOTIFY_SOCKET": self.manager.address, "LISTEN_FDNAMES": ":".join(self.sockets)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv, cwd=self.folder, env=self.environ | python_path() | told | self.more, pass_fds=fds, stdout=log, stderr=log
            )
        return self.process

    def start(self, *options: str, cli: bool = True) -> None:
        """Start it and wait for READY."""
        process = self.spawn(*options, cli=cli)
        try:
            self.manager.wait("READY", lives=lambda: process.poll() is None)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log.read_text(errors='replace')}") from None

    def close(self) -> None:
        """End everything."""
        self.kill()
        self.manager.close()
        for one in self.sockets.values():
            one.close()
