"""The way to an https origin through an HTTP proxy (CONNECT), where HTTPS_PROXY and NO_PROXY say so. Imports errors.

The environment is the one of the settings, never the process's own. TLS is spoken with the origin itself, inside the tunnel, and checked as
without a proxy: the proxy sees the name of the host and nothing else. http origins are always connected to directly.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.internet.error import TimeoutError as ConnectTimedOut
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mayros.errors import ConfigError

HEAD_LIMIT = 16 * 1024  # bytes of a proxy's answer

_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: |\r\n)")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,255}|[0-9A-Fa-f:.]{2,64}")


class Proxy(msgspec.Struct, frozen=True):
    """A proxy. `secure`: it is spoken to with TLS itself. `credential`: the value of Proxy-Authorization, a secret; empty: none."""

    host: str
    port: int
    secure: bool
    credential: str = ""

    def __repr__(self) -> str:
        return f"<Proxy {self.host}:{self.port}>"


class TunnelFailed(ConnectError):
    """The proxy did not make the connection. The text says why, in our words."""

    def __init__(self, why: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.why = why

    def __str__(self) -> str:
        return self.why


def proxy_for(host: str, port: int, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy for an https origin; None where it is connected to directly. Raises ConfigError for a proxy that cannot be used."""
    said = _variable(environ, "HTTPS_PROXY")
    if not said or _is_local(host) or is_direct(host, port, _variable(environ, "NO_PROXY")):
        return None
    try:
        url = urlsplit(said if "://" in said else f"http://{said}")
        name, number = url.hostname or "", url.port
    except ValueError:
        raise ConfigError("HTTPS_PROXY cannot be used: it is no URL") from None
    if url.scheme not in ("http", "https"):
        raise ConfigError(f"HTTPS_PROXY cannot be used: {url.scheme!r} is not supported, http:// and https:// are")
    if not _HOST.fullmatch(name) or url.path not in ("", "/") or url.query or url.fragment:
        raise ConfigError("HTTPS_PROXY cannot be used: it must be http:// or https://, perhaps a name and password with @, a host and a port")
    secure = url.scheme == "https"
    credential = ""
    if url.username is not None:
        pair = f"{unquote(url.username)}:{unquote(url.password or '')}"
        credential = "Basic " + b64encode(pair.encode()).decode("ascii")
    return Proxy(name, number or (443 if secure else 80), secure, credential)


def is_direct(host: str, port: int, rules: str) -> bool:
    """Whether NO_PROXY names an origin. Rules stand between commas or blanks; what is no rule names nothing.

    `*`; a host name (it and everything below it; `.name` and `*.name` mean the same); an address; a network like `10.0.0.0/8`; any but the last with
    `:port`. Names are not looked up: networks are for origins that are written as addresses.
    """
    host = host.lower().rstrip(".")
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    for rule in re.split(r"[,\s]+", rules.lower()):
        if not rule:
            continue
        if rule == "*":
            return True
        if "/" in rule:
            try:
                network = ip_network(rule, strict=False)
            except ValueError:
                continue
            if address is not None and address in network:
                return True
            continue
        name, number = _split(rule)
        if number not in ("", str(port)):
            continue
        if address is not None:
            try:
                if ip_address(name) == address:
                    return True
            except ValueError:
                pass  # a name: it names no address
            continue
        name = name.removeprefix("*").strip(".")
        if name and (host == name or host.endswith(f".{name}")):
            return True
    return False


def _split(rule: str) -> tuple[str, str]:
    """Host and port of a rule; an IPv6 address has brackets where there is a port."""
    if rule.startswith("["):
        name, _, rest = rule[1:].partition("]")
        return name, rest.removeprefix(":")
    if rule.count(":") == 1:
        name, _, number = rule.partition(":")
        return name, number
    return rule, ""


def _variable(environ: Mapping[str, str], name: str) -> str:
    """A variable in small letters, else in capitals: what curl and its like do."""
    return environ.get(name.lower(), "").strip() or environ.get(name, "").strip()


def _is_local(host: str) -> bool:
    """This machine: a proxy elsewhere would reach another one."""
    name = host.lower().rstrip(".")
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


@implementer(IStreamClientEndpoint)
class TunnelEndpoint:
    """Connects to `host:port` through a proxy, to which `endpoint` leads. The time limit is the caller's, who cancels."""

    def __init__(self, endpoint: IStreamClientEndpoint, proxy: Proxy, host: str, port: int) -> None:
        self._endpoint = endpoint
        self._target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {self._target} HTTP/1.1", f"Host: {self._target}", "User-Agent: mayros-gateway"]
        if proxy.credential:
            lines.append(f"Proxy-Authorization: {proxy.credential}")
        self._request = "\r\n".join([*lines, "", ""]).encode("ascii")

    def __repr__(self) -> str:
        return f"<TunnelEndpoint to {self._target}>"

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See IStreamClientEndpoint. Fails with TunnelFailed, or as connecting to the proxy fails by time."""

        def stop(_: object) -> None:
            tunnel.abort()
            connecting.cancel()

        def failed(failure: Failure) -> None:
            if made.called:
                return
            if failure.check(ConnectError, OSError) and not failure.check(ConnectTimedOut):
                failure = Failure(TunnelFailed(f"the proxy could not be reached: {str(failure.value).rstrip('.')}"))
            made.errback(failure)

        made: Deferred[IProtocol] = Deferred(stop)
        tunnel = _Tunnel(self._request, self._target, protocolFactory, made)
        connecting = self._endpoint.connect(_Only(tunnel))
        connecting.addErrback(failed)
        return made


class _Only(Factory):
    """For one connection: `connectProtocol` makes a class for each, which is a cycle of references."""

    noisy = False

    def __init__(self, tunnel: _Tunnel) -> None:
        self._tunnel = tunnel

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return self._tunnel


class _Tunnel(Protocol):
    """The connection to the proxy: first what is said with it, then all bytes belong to the protocol inside."""

    transport: Any  # made by the endpoint: also aborts

    def __init__(self, request: bytes, target: str, factory: IProtocolFactory, made: Deferred[IProtocol]) -> None:
        self._request, self._target, self._factory = request, target, factory
        self._made: Deferred[IProtocol] | None = made  # until it is known what comes of it
        self._head = b""
        self._inside: IProtocol | None = None

    def connectionMade(self) -> None:
        if self._made is None:
            self.transport.abortConnection()
        else:
            self.transport.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        if self._inside is not None:
            self._inside.dataReceived(data)
            return
        if self._made is None:
            return
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end:
            if len(self._head) > HEAD_LIMIT:
                self._fail(f"the proxy's answer is longer than {HEAD_LIMIT // 1024} KiB")
            return
        status = _STATUS.match(head + b"\r\n")
        if status is None or len(head) > HEAD_LIMIT:
            self._fail("the proxy's answer is not valid HTTP")
        elif status[1] == b"407":
            self._fail("the proxy refused the credentials in HTTPS_PROXY, or wants some (HTTP 407)")
        elif status[1][:1] != b"2":
            self._fail(f"the proxy did not connect to {self._target} (HTTP {status[1].decode()})")
        else:
            self._open(rest)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        inside, self._inside = self._inside, None  # they refer to each other
        if inside is not None:
            inside.connectionLost(reason)
        elif (made := self._done()) is not None:
            made.errback(TunnelFailed("the proxy closed the connection"))

    def abort(self) -> None:
        """Nobody waits any more."""
        self._made = None
        if self.transport is not None:
            self.transport.abortConnection()

    def _open(self, rest: bytes) -> None:
        self._head = b""
        inside = self._factory.buildProtocol(self.transport.getPeer())
        if inside is None:
            self._fail("nobody is there to take the connection")
            return
        self._inside = inside
        inside.makeConnection(self.transport)
        if (made := self._done()) is not None:
            made.callback(inside)
        if rest and self._inside is not None:
            self._inside.dataReceived(rest)

    def _fail(self, why: str) -> None:
        made = self._done()
        self.abort()
        if made is not None:
            made.errback(TunnelFailed(why))

    def _done(self) -> Deferred[IProtocol] | None:
        """What to tell, once: they refer to each other."""
        made, self._made = self._made, None
        return made
