"""This machine, as far as `mayros gateway install` and its like touch it: files of the system, systemctl, a look at a port.

Imports net.certificates when a gateway with TLS is looked at.

Tests give a `Host` of their own: another root, and programs that are functions.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from http.client import HTTPConnection

    from mayros.net.certificates import Trust

#: For each call of a program of the system. Starting a service waits until it is ready, which the unit allows ten minutes for.
SECONDS = 660


class Done(NamedTuple):
    """A program that has ended: its status, and what it wrote."""

    status: int
    out: str
    error: str = ""


def _run(argv: Sequence[str]) -> Done:
    try:
        done = subprocess.run(  # noqa: S603  programs of the system, with words of ours
            argv, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Done(127, "", str(error))
    return Done(done.returncode, done.stdout, done.stderr)


def _get(host: str, port: int, path: str, trust: Trust | None = None) -> int:
    """The status of a GET, over TLS with `trust`. Raises OSError."""
    from http.client import HTTPConnection, HTTPException

    connection = HTTPConnection(host, port, timeout=10) if trust is None else _secure(host, port, trust)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except HTTPException as error:
        raise OSError(f"it does not answer as a gateway does ({type(error).__name__})") from error
    finally:
        connection.close()


def _secure(host: str, port: int, trust: Trust) -> HTTPConnection:
    """A connection to who has the trusted certificate. Raises OSError."""
    import ssl
    from http.client import HTTPSConnection

    from mayros.net.certificates import check_fingerprint

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # No authority and no name counts: the one certificate does, before anything is sent.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if trust.shown is not None:
        # Without a word for a locked key, OpenSSL would ask for one at the terminal.
        context.load_cert_chain(*trust.shown, password="")
    connection = HTTPSConnection(host, port, timeout=10, context=context)
    try:
        connection.connect()
        assert isinstance(connection.sock, ssl.SSLSocket)
        check_fingerprint(trust.fingerprint, connection.sock.getpeercert(binary_form=True))
    except BaseException:
        connection.close()
        raise
    return connection


class Host:
    """Implements ops.subject.Machine too. `root` stands before the paths of the system. `booted`: whether systemd runs it; None: look."""

    def __init__(
        self,
        root: str = "/",
        run: Callable[[Sequence[str]], Done] = _run,
        get: Callable[[str, int, str, Trust | None], int] = _get,
        uid: int | None = None,
        booted: bool | None = None,
    ) -> None:
        self.root, self.run, self.get = root, run, get
        self.uid = os.getuid() if uid is None else uid
        self.booted = os.path.isdir("/run/systemd/system") and shutil.which("systemctl") is not None if booted is None else booted

    def path(self, path: str) -> str:
        """Where a path of the system is."""
        return os.path.join(self.root, path.lstrip("/"))

    def manager(self, system: bool, *arguments: str) -> Done:
        """What became of a call of systemctl, for the system's manager or this user's."""
        return self.run(["systemctl", *([] if system else ["--user"]), *arguments])

    def systemctl(self, system: bool, *arguments: str) -> str:
        """What systemctl says; raises ClickException with its words where it fails."""
        done = self.manager(system, *arguments)
        if done.status == 0:
            return done.out
        said = " ".join((done.error or done.out).split()) or f"status {done.status}"
        hint = ""
        if "connect to bus" in said or "XDG_RUNTIME_DIR" in said:
            hint = " This user has no service manager here: log in as the user (ssh, a console, machinectl shell), not with su or sudo."
        elif arguments[0] in ("start", "restart") and "journalctl" not in said:
            hint = f" Its log: journalctl {'' if system else '--user '}-e -u {arguments[-1]}"
        raise click.ClickException(f"systemctl {' '.join(arguments)}: {said}{hint}")

    def properties(self, system: bool, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit; none where there is no manager to ask."""
        done = self.manager(system, "show", "-p", ",".join(names), unit)
        return dict(line.split("=", 1) for line in done.out.splitlines() if "=" in line) if done.status == 0 else {}

    def user(self, environ: Mapping[str, str]) -> str:
        """The name of this user, or the number where no variable tells it."""
        return environ.get("USER") or environ.get("LOGNAME") or str(self.uid)

    def lingers(self, user: str) -> bool | None:
        """Whether a user's services go on after the last logout; None where nobody can tell."""
        done = self.run(["loginctl", "show-user", user, "-p", "Linger", "--value"])
        return done.out.strip() == "yes" if done.status == 0 else None

    def taken(self, host: str, port: int) -> bool:
        """Whether somebody listens there; without connecting, which would wake a socket of systemd."""
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
            # Connections that were closed a moment ago are nobody who listens.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((host, port))
            except OSError:
                return True
        return False

    def free_bytes(self, path: str) -> int:
        """What this user can still write to the file system of a path. Raises OSError."""
        return shutil.disk_usage(path).free

    def has_ipv6_loopback(self) -> bool:
        """Whether ::1 can be listened on."""
        try:
            with socket.socket(socket.AF_INET6) as one:
                one.bind(("::1", 0))
        except OSError:
            return False
        return True


def program() -> str:
    """The `mayros` that was called, as a service can call it. Raises ClickException."""
    for path in (os.path.join(os.path.dirname(sys.executable), "mayros"), os.path.abspath(sys.argv[0])):
        if os.path.basename(path) == "mayros" and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    found = shutil.which("mayros")
    if found is None:
        raise click.ClickException("there is no program `mayros` to run as a service: install the package (pip install mayros-gateway)")
    return os.path.abspath(found)
