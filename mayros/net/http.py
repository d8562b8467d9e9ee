"""A small HTTP/1.1 client for one origin: POST only, the answer piece by piece, a pool of kept connections, a bound on those in use.

Half the CPU of Twisted's Agent, and stricter: bounded everywhere, no redirect, no cookie, no compression, a time limit on every wait.
Cancelling, wherever it comes, closes the socket at once. Imports net.connection and errors.

    origin = origin_for("https://api.example.com/v1", {"Accept": "text/event-stream"}, reactor)
    async with await origin.post(b"/chat/completions", body) as response:
        if response.status == 200:
            async for piece in response:
                ...
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.error import TimeoutError as ConnectTimedOut
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.ssl import Certificate, optionsForClientTLS, platformTrust, trustRootFromCertificates

from mayros.errors import ConfigError, QueueFull
from mayros.net.certificates import pem_blocks
from mayros.net.connection import BadResponse, ConnectFailed, Connection, ConnectTimeout, Failed, FirstByteTimeout, IdleTimeout, TimedOut

__all__ = [
    "BadResponse",
    "ConnectFailed",
    "ConnectTimeout",
    "Connection",
    "Failed",
    "FirstByteTimeout",
    "IdleTimeout",
    "Origin",
    "TimedOut",
    "header_lines",
    "origin_for",
]

QUEUE_LIMIT = 1024  # exchanges that wait for a connection
KEEP_SECONDS = 45.0  # below the 60 s for which most servers keep one

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\x20-\x7e\t]*")
_TARGET = re.compile(r"[\x21-\x7e]*")
#: Headers that are the client's own business.
_OURS = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "expect", "te", "upgrade"})


class Origin:
    """The connections to one scheme://host:port. Make one per provider, with `origin_for`, when the configuration is read.

    `head` is what every request's head holds besides its length, `base` and `query` stand around the path of each request; limits in seconds.
    """

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        head: bytes,
        clock: IReactorTime,
        *,
        base: bytes = b"",
        query: bytes = b"",
        connect_timeout: float = 10.0,
        first_byte_timeout: float = 60.0,
        idle_timeout: float = 60.0,
        max_connections: int = 1024,
        keep: int = 256,
    ) -> None:
        self.clock = clock
        self.first_byte_timeout = first_byte_timeout
        self.idle_timeout = idle_timeout
        self._endpoint = endpoint
        self._before = b"POST " + base
        self._after = query + b" HTTP/1.1\r\n" + head
        self._connect_timeout = connect_timeout
        self._free = max_connections
        self._keep = keep
        self._closed = False
        self._kept: list[Connection] = []  # the longest kept first
        self._sweeper: IDelayedCall | None = None
        self._queue: deque[Deferred[None]] = deque()
        self._serving = False
        self._factory = Factory.forProtocol(lambda: Connection(self))
        self._factory.noisy = False

    async def post(self, path: bytes, body: bytes | tuple[bytes | memoryview, ...], headers: bytes = b"") -> Connection:
        """Send a request and wait for status and headers of its answer; use the result in `async with` at once.

        `body` may come in parts, which are put together only when they are sent. `path` comes after the origin's base path; `headers` are more
        header lines, each with its CRLF. Waiting for a free connection counts to
        no limit of ours. Raises QueueFull, ConnectFailed, ConnectTimeout, FirstByteTimeout or BadResponse. A kept connection that the server
        had closed meanwhile is replaced once, if not a byte was answered.
        """
        parts = (body,) if isinstance(body, bytes) else body
        head = b"%s%s%s%sContent-Length: %d\r\n\r\n" % (self._before, path, self._after, headers, sum(map(len, parts)))
        await self._acquire()
        try:
            connection = self._kept.pop() if self._kept else await self._connect()
            while True:
                connection.send(head, *parts)
                try:
                    await connection.head()
                except BaseException as error:
                    connection.drop()
                    if not (connection.stale and isinstance(error, BadResponse)):
                        raise
                else:
                    return connection
                connection = await self._connect()
        except BaseException:
            self.release()
            raise

    def close(self) -> None:
        """Close the kept connections, and from now on keep none. Exchanges under way go on."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        while self._kept:
            self._kept.pop().retire()

    # The pool, as its connections see it.

    def keep(self, connection: Connection) -> None:
        """Take a clean connection back."""
        if self._closed or len(self._kept) >= self._keep:
            connection.retire()
            return
        connection.kept_since = self.clock.seconds()
        self._kept.append(connection)
        if self._sweeper is None:  # one timer for all of them
            self._sweeper = self.clock.callLater(KEEP_SECONDS, self._sweep)

    def forget(self, connection: Connection) -> None:
        """Never use it again."""
        if connection in self._kept:
            self._kept.remove(connection)

    def release(self) -> None:
        """An exchange is over: the ones that wait are next, in order. Never nested, so that a row of failures does not pile up."""
        self._free += 1
        if self._serving:
            return
        self._serving = True
        try:
            while self._free > 0 and self._queue:
                self._free -= 1
                self._queue.popleft().callback(None)
        finally:
            self._serving = False

    # Inside.

    async def _acquire(self) -> None:
        if self._free > 0 and not self._queue:
            self._free -= 1
            return
        if len(self._queue) >= QUEUE_LIMIT:
            raise QueueFull("Too many requests are waiting for this model's provider. Try again shortly.")
        turn: Deferred[None] = Deferred(self._queue.remove)
        self._queue.append(turn)
        await turn

    async def _connect(self) -> Connection:
        connecting: Deferred[Any] = self._endpoint.connect(self._factory)

        def too_late(_: object, limit: float) -> None:
            raise ConnectTimeout(f"No connection was made within {limit:g} s.")

        connecting.addTimeout(self._connect_timeout, self.clock, too_late)
        try:
            connection: Connection = await connecting
        except ConnectingCancelledError:
            raise CancelledError from None  # endpoints have their own word for it
        except ConnectTimedOut:
            raise ConnectTimeout("No connection was made in time.") from None
        except (ConnectError, OSError) as error:
            raise ConnectFailed(f"No connection could be made: {str(error).rstrip('.')}.") from error
        return connection

    def _sweep(self) -> None:
        self._sweeper = None
        limit = self.clock.seconds() - KEEP_SECONDS
        while self._kept and self._kept[0].kept_since <= limit:
            self._kept.pop(0).retire()
        if self._kept:
            self._sweeper = self.clock.callLater(self._kept[0].kept_since - limit, self._sweep)


def header_lines(headers: Mapping[str, str]) -> bytes:
    """Header lines of a request. Raises ConfigError, which names the header and not its value, for what could not be sent as it is."""
    lines = []
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name) or name.lower() in _OURS:
            raise ConfigError(f"header {name!r} cannot be set for a provider")
        if not _VALUE.fullmatch(value.strip()):
            raise ConfigError(f"the value of header {name!r} is not plain ASCII text in one line")
        lines.append(f"{name}: {value.strip()}\r\n")
    return "".join(lines).encode("ascii")


def origin_for(
    base_url: str,
    headers: Mapping[str, str],
    reactor: Any,
    *,
    connect_timeout: float = 10.0,
    first_byte_timeout: float = 60.0,
    idle_timeout: float = 60.0,
    max_connections: int = 1024,
    keep: int = 256,
    ca_path: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Origin:
    """The origin of an `http:` or `https:` URL, whose path is put before that of each request.

    `ca_path`: a file of PEM certificates, trusted instead of the system's. `environ`: where HTTPS_PROXY and NO_PROXY are looked up; None: no proxy.
    Raises ConfigError for a URL, header, file or proxy that cannot be used.
    """
    try:
        url = urlsplit(base_url)
        host, port = url.hostname or "", url.port
        name = host if ":" in host else host.encode("idna").decode("ascii")
    except ValueError as error:
        raise ConfigError(f"the URL {base_url!r} cannot be used: {error}") from error
    if url.scheme not in ("http", "https") or not name or url.username is not None or url.fragment:
        raise ConfigError(f"the URL {_without_user(base_url)!r} cannot be used: it must be http:// or https://, a host, and perhaps a path")
    if not _TARGET.fullmatch(url.path + url.query):
        raise ConfigError(f"the URL {base_url!r} cannot be used: its path has characters that must be escaped")
    secure = url.scheme == "https"
    usual = 443 if secure else 80
    endpoint = _way(reactor, name, port or usual, connect_timeout, ca_path, environ) if secure and environ else None
    endpoint = endpoint or _endpoint(reactor, name, port or usual, connect_timeout)
    if secure:
        endpoint = _tls(name, ca_path, endpoint)
    shown = f"[{name}]" if ":" in name else name
    fixed = b"Host: %s\r\nAccept-Encoding: identity\r\n" % (shown if port in (None, usual) else f"{shown}:{port}").encode("ascii")
    if "user-agent" not in {header.lower() for header in headers}:
        fixed += b"User-Agent: mayros-gateway\r\n"
    return Origin(
        endpoint,
        fixed + header_lines(headers),
        reactor,
        base=url.path.rstrip("/").encode("ascii"),
        query=f"?{url.query}".encode("ascii") if url.query else b"",
        connect_timeout=connect_timeout,
        first_byte_timeout=first_byte_timeout,
        idle_timeout=idle_timeout,
        max_connections=max_connections,
        keep=keep,
    )


def _without_user(url: str) -> str:
    """A URL without the name and password that may be in it."""
    return re.sub(r"//[^/?#]*@", "//***@", url)


def _way(reactor: Any, host: str, port: int, timeout: float, ca_path: str | None, environ: Mapping[str, str]) -> IStreamClientEndpoint | None:
    """The way through the proxy that the environment names for an https origin, if it does."""
    from mayros.net.proxy import TunnelEndpoint, proxy_for

    proxy = proxy_for(host, port, environ)
    if proxy is None:
        return None
    endpoint = _endpoint(reactor, proxy.host, proxy.port, timeout)
    return TunnelEndpoint(_tls(proxy.host, ca_path, endpoint) if proxy.secure else endpoint, proxy, host, port)


def _endpoint(reactor: Any, host: str, port: int, timeout: float) -> IStreamClientEndpoint:
    try:
        version = ip_address(host).version
    except ValueError:
        return HostnameEndpoint(reactor, host.encode("ascii"), port, timeout=timeout)
    return (TCP4ClientEndpoint if version == 4 else TCP6ClientEndpoint)(reactor, host, port, timeout=timeout)


def _tls(host: str, ca_path: str | None, endpoint: IStreamClientEndpoint) -> IStreamClientEndpoint:
    if ca_path is None:
        return wrapClientTLS(optionsForClientTLS(host, trustRoot=platformTrust()), endpoint)
    try:
        blocks = pem_blocks(Path(ca_path).read_bytes())
        trusted = trustRootFromCertificates([Certificate.loadPEM(block) for block in blocks])
    except (OSError, ValueError) as error:
        raise ConfigError(f"the certificates in {ca_path!r} cannot be read: {error}") from error
    if not blocks:
        raise ConfigError(f"there are no PEM certificates in {ca_path!r}")
    return wrapClientTLS(optionsForClientTLS(host, trustRoot=trusted), endpoint)
