"""Opening the ports: which endpoints, and whether what was really opened may be served. Nothing is accepted before the reactor runs.

`loopback` is 127.0.0.1 and, where it exists, ::1, never wider. Every address is judged after it is bound, also those of `--listen` and of adopted
sockets: one that is not loopback needs authentication. Imports config and errors.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Sequence
from glob import escape as glob_escape
from glob import glob
from ipaddress import ip_address
from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, TCP4ServerEndpoint, TCP6ServerEndpoint, serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.internet.unix import Port as UnixPort
from twisted.python.failure import Failure
from zope.interface import implementer

from mayros.config.gateway import Gateway
from mayros.errors import StartError
from mayros.ops.systemd import Passed

BACKLOG = 1024
#: What the kernel holds for a client besides what is on its way to it. Left alone it takes up to 4 MB before it says that a client is slow.
UNSENT_BYTES = 128 << 10
#: Of sockets that are passed to us.
_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
#: An endpoint string that says a mode or a backlog of its own.
_MODE = re.compile(r"(?<!\\):mode=")
_BACKLOG = re.compile(r"(?<!\\):backlog=")


def parse_endpoint(reactor: Any, text: str) -> IStreamServerEndpoint:
    """The endpoint of an operator's string; a unix socket gets mode 600 and a listener our backlog unless it says another."""
    kind = text.removeprefix("haproxy:").partition(":")[0]  # haproxy: wraps the endpoint that follows it
    if kind == "unix" and not _MODE.search(text):
        text += ":mode=600"
    if kind in ("tcp", "tcp6", "unix", "ssl") and not _BACKLOG.search(text):
        text += f":backlog={BACKLOG}"
    if kind == "tls":
        _check_certificates(text)
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, text)
    except Exception as error:
        raise StartError(f"--listen {text.partition(':')[0]}:...: not a usable server endpoint ({type(error).__name__}: {error}).") from error
    return endpoint


def _check_certificates(text: str) -> None:
    """Twisted takes a folder without certificates for one that will be filled later; the gateway would be deaf meanwhile."""
    folder = re.split(r"(?<!\\):", text.removeprefix("haproxy:"))[1:2]
    path = folder[0].replace("\\:", ":").removeprefix("path=") if folder else ""
    if not glob(os.path.join(glob_escape(path), "*.pem")):
        raise StartError(f"--listen tls:...: there is no *.pem file (certificate and key) in {path!r}.")


def configured(reactor: Any, gateway: Gateway, port: int) -> list[IStreamServerEndpoint]:
    """The endpoints of `gateway.bind`; ::1 is tried after 127.0.0.1 by `Listeners`."""
    if gateway.bind == "loopback":
        return [TCP4ServerEndpoint(reactor, port, backlog=BACKLOG, interface="127.0.0.1")]
    host = "0.0.0.0" if gateway.bind == "lan" else (gateway.custom_bind_host or "")  # noqa: S104  the operator asked for it
    try:
        kind = TCP6ServerEndpoint if ip_address(host).version == 6 else TCP4ServerEndpoint
    except ValueError:
        raise StartError("gateway.customBindHost must be an IP address of this machine.") from None
    return [kind(reactor, port, backlog=BACKLOG, interface=host)]


@implementer(IStreamServerEndpoint)
class HeldUnix:
    """A listening unix socket that somebody else made and goes on holding, under the descriptor `fd`.

    Twisted's own endpoint for such a one sets its mode to 666, makes its backlog 50 and removes it at the end, none of which is ours to do.
    """

    def __init__(self, reactor: Any, fd: int) -> None:
        self._reactor, self._fd = reactor, fd

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """See IStreamServerEndpoint."""
        port: Any = UnixPort._fromListeningDescriptor(self._reactor, self._fd, factory)
        # Without a path it leaves the file alone; and the socket itself must go on listening, for the next process.
        port._bindPath, port.backlog, port._shouldShutdown = b"\0", BACKLOG, False
        port.startListening()
        os.close(self._fd)
        return succeed(port)


class Listeners:
    """The open ports."""

    def __init__(self) -> None:
        self.ports: list[IListeningPort] = []
        self._secure: list[IListeningPort] = []
        self._adopted: list[IListeningPort] = []

    def open(self, endpoint: IStreamServerEndpoint, factory: IProtocolFactory, what: str, secure: bool = False) -> IListeningPort:
        """Listen, or raise StartError: status 1 where the address is taken, else 78. `secure`: the endpoint speaks TLS."""
        outcome: list[Any] = []
        endpoint.listen(factory).addBoth(outcome.append)
        if not outcome:
            raise StartError(f"{what} cannot be opened at once; use a plain endpoint.")
        result = outcome[0]
        if isinstance(result, Failure):
            raise _refused(result, what)
        port: IListeningPort = result
        self._keep(port, secure)
        return port

    def open_ipv6_loopback(self, reactor: Any, factory: IProtocolFactory, port: int, secure: bool = False) -> None:
        """::1 beside 127.0.0.1, where this machine has it."""
        endpoint = TCP6ServerEndpoint(reactor, port, backlog=BACKLOG, interface="::1")
        outcome: list[Any] = []
        endpoint.listen(factory).addBoth(outcome.append)
        if not isinstance(outcome[0], Failure):
            self._keep(outcome[0], secure)
            return
        reason = getattr(getattr(outcome[0].value, "socketError", outcome[0].value), "errno", None)
        if reason not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENETUNREACH):
            raise _refused(outcome[0], f"port {port} on ::1")

    def adopt(self, reactor: Any, factory: IProtocolFactory, sockets: Sequence[Passed], over_tls: IProtocolFactory | None = None) -> None:
        """Listen on sockets that somebody else has opened and goes on holding. Raises StartError (78) for what is no listening socket.

        `over_tls`: the factory for TCP sockets, where these speak TLS. What comes by a unix socket does not leave this machine.
        """
        for fd, name in sockets:
            what = f"the socket {name or fd} of the service manager"
            try:
                # Only to look at it. The port makes a copy of its own, and the endpoint closes this one.
                with socket.socket(fileno=os.dup(fd)) as looked:
                    family, listens = looked.family, looked.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                    if not listens or looked.type != socket.SOCK_STREAM or family not in _FAMILIES:
                        raise StartError(f"{what} is no listening stream socket (TCP or unix).")
                    looked.setblocking(False)
            except OSError as error:
                raise StartError(f"{what} cannot be used: {error.strerror}.") from error
            if family == socket.AF_UNIX:
                opened = self.open(HeldUnix(reactor, fd), factory, what)
            else:
                held = AdoptedStreamServerEndpoint(reactor, fd, family)
                opened = self.open(held, over_tls or factory, what, secure=over_tls is not None)
            self._adopted.append(opened)

    def _keep(self, port: Any, secure: bool) -> None:
        """An open port. What is set on a TCP port here holds for each of its connections, at no cost to them."""
        self.ports.append(port)
        if secure:
            self._secure.append(port)
        option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
        if option is not None and not isinstance(port.getHost(), UNIXAddress):
            port.socket.setsockopt(socket.IPPROTO_TCP, option, UNSENT_BYTES)

    @property
    def hosts(self) -> Sequence[str]:
        """The addresses listened on, without those of unix sockets."""
        return [host for port in self.ports if (host := _host(port)) is not None]

    @property
    def exposed_hosts(self) -> Sequence[str]:
        """The addresses listened on that are not loopback."""
        return [host for host in self.hosts if not ip_address(host.partition("%")[0]).is_loopback]

    @property
    def tcp_ports(self) -> set[int]:
        """The TCP ports listened on."""
        addresses: list[Any] = [port.getHost() for port in self.ports]
        return {address.port for address in addresses if not isinstance(address, UNIXAddress)}

    @property
    def urls(self) -> Sequence[str]:
        """Where clients connect."""
        return [_url(port, "https" if port in self._secure else "http") for port in self.ports]

    def judge(self, auth_mode: str) -> None:
        """Refuse to serve beyond this machine without authentication."""
        if auth_mode != "none":
            return
        for host in self.exposed_hosts:
            raise StartError(f"Refusing to listen on {host} with gateway.auth.mode none: set a token or a password, or bind to loopback.")
        for path in self._open_to_others:
            raise StartError(f"Refusing to listen on {path}, which every user can connect to, with gateway.auth.mode none: give it SocketMode=0600.")

    @property
    def _open_to_others(self) -> list[str]:
        """Adopted unix sockets that every user can connect to: systemd gives them mode 666 unless their unit says another. Ours have 600."""
        addresses: list[Any] = [port.getHost() for port in self._adopted]
        paths = [os.fsdecode(address.name) for address in addresses if isinstance(address, UNIXAddress) and address.name]
        return [path for path in paths if path.startswith("\0") or os.stat(path).st_mode & 0o002]

    def close(self) -> Deferred[Any]:
        """Stop listening; fires when every port is closed."""
        ports, self.ports = self.ports, []
        return DeferredList([maybeDeferred(port.stopListening) for port in ports])


def _host(port: IListeningPort) -> str | None:
    address: Any = port.getHost()
    return None if isinstance(address, UNIXAddress) else address.host


def _url(port: IListeningPort, scheme: str) -> str:
    address: Any = port.getHost()
    if isinstance(address, UNIXAddress):
        return f"unix:{os.fsdecode(address.name or b'')}"
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{scheme}://{host}:{address.port}"


def _refused(failure: Failure, what: str) -> StartError:
    error: Any = failure.value
    reason = getattr(error, "socketError", error)
    if getattr(reason, "errno", None) == errno.EADDRINUSE:
        return StartError(f"Cannot listen on {what}: it is in use. Is another gateway running? Choose another with --port.", status=1)
    return StartError(f"Cannot listen on {what}: {reason}.", status=1 if isinstance(reason, OSError) else 78)
