"""Getting what an address of somebody else's choice gives, so that nothing inside can be reached through us. Imports net.addresses, net.connection.

One GET: no credentials, no cookies, no compression, no proxy. A name is resolved once; where any of its addresses is not public nothing is asked, and
the connection is made to an address that was judged (the name cannot mean something else by then). Redirects are followed by hand, and each
address on the way is judged anew. Time and size are limited. `Fetcher` is the local implementation of core's port `Fetch`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, ip_address
from typing import Any, NamedTuple, NoReturn, cast
from urllib.parse import quote, urljoin, urlsplit

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.error import TimeoutError as ConnectTimedOut
from twisted.internet.interfaces import IResolutionReceiver, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.ssl import optionsForClientTLS, platformTrust
from zope.interface import implementer

from mayros.errors import InputFailed
from mayros.net.addresses import IP, is_public, listed, literal
from mayros.net.connection import BadResponse, Connection, TimedOut

#: Fetches of the whole process at a time; the others wait, which counts to their time.
AT_ONCE = 16
#: Addresses of a name that are tried.
TRIED = 3
CONNECT_SECONDS = 4
MAX_URL = 2048

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
#: Ports below 1024 that speak HTTP; what else listens there might take a request for its own protocol.
_LOW_PORTS = frozenset((80, 443))
_NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.?", re.ASCII)
_SAFE = "!$%&'()*+,/:;=?@~[]"


class Fetched(NamedTuple):
    """See core.input_ports."""

    kind: str
    data: bytes


class Place(NamedTuple):
    """A URL, taken apart: `host` without brackets, as it goes to TLS and DNS; `shown` as it goes into the Host header."""

    secure: bool
    host: str
    port: int
    shown: str
    target: str


class Fetcher:
    """See core.input_ports.Fetch. For tests: `endpoint` makes the way to an address that was judged, `public` judges it, `trust` are certificates."""

    def __init__(
        self,
        reactor: Any,
        endpoint: Callable[[IP, int], IStreamClientEndpoint] | None = None,
        public: Callable[[IP], bool] = is_public,
        trust: Any = None,
    ) -> None:
        self._reactor, self._endpoint, self._public, self._trust = reactor, endpoint or self._tcp, public, trust
        self._places = DeferredSemaphore(AT_ONCE)

    async def __call__(
        self, url: str, *, hosts: Sequence[str], kinds: Sequence[str], redirects: int, seconds: float, take: Callable[[int], None]
    ) -> Fetched:
        """See core.input_ports.Fetch."""

        def too_late(_: object, limit: float) -> NoReturn:
            raise InputFailed(f"it took longer than {limit:g} s")

        work = Deferred.fromCoroutine(self._follow(url, tuple(hosts), frozenset(kinds), redirects, take))
        work.addTimeout(seconds, self._reactor, too_late)
        return await work

    async def _follow(self, url: str, hosts: tuple[str, ...], kinds: frozenset[str], redirects: int, take: Callable[[int], None]) -> Fetched:
        await self._places.acquire()
        try:
            for _ in range(redirects + 1):
                place = place_of(url)
                if hosts and not listed(place.host, hosts):
                    raise InputFailed(f"the host {place.host!r} is not in the list of allowed hosts")
                found = await self._get(place, kinds, take)
                if isinstance(found, Fetched):
                    return found
                url = urljoin(url, found)
            raise InputFailed(f"it was redirected more than {redirects} times")
        finally:
            self._places.release()

    async def _get(self, place: Place, kinds: frozenset[str], take: Callable[[int], None]) -> Fetched | str:
        """What one address gives, or where it says to look."""
        connection = await self._connect(place)
        async with connection:
            connection.send(
                f"GET {place.target} HTTP/1.1\r\nHost: {place.shown}\r\nAccept: {', '.join(sorted(kinds))}\r\nAccept-Encoding: identity\r\n"
                "User-Agent: mayros-gateway\r\nConnection: close\r\n\r\n".encode("ascii")
            )
            try:
                await connection.head()
                if connection.status in _REDIRECTS and (location := connection.headers.get(b"location")):
                    return quote(location[: MAX_URL + 1].decode("latin-1"), _SAFE)
                if connection.status != 200:
                    raise InputFailed(f"its server answered with the status {connection.status}")
                kind = connection.headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
                if kind not in kinds:
                    raise InputFailed(f"it is of the type {kind[:40]!r}, not one of {', '.join(sorted(kinds))}")
                length = connection.headers.get(b"content-length", b"")
                if length.isdigit() and len(length) < 20:
                    take_all = int(length)
                    take(take_all)
                else:
                    take_all = 0
                pieces, size = [], 0
                async for piece in connection:
                    size += len(piece)
                    if size > take_all:
                        take(size - take_all)
                        take_all = size
                    pieces.append(piece)
            except TimedOut:
                raise InputFailed("its server is too slow") from None
            except BadResponse as error:
                raise InputFailed(f"its server's answer could not be used: {str(error).rstrip('.')}") from None
        return Fetched(kind, b"".join(pieces))

    async def _connect(self, place: Place) -> Connection:
        addresses = await self._resolve(place)
        if not addresses:
            raise InputFailed("its host was not found")
        if not all(map(self._public, addresses)):
            raise InputFailed("its host is not on the public network")
        for ip in addresses[:TRIED]:
            endpoint = self._endpoint(ip, place.port)
            try:
                if place.secure:
                    endpoint = wrapClientTLS(optionsForClientTLS(place.host.rstrip("."), trustRoot=self._trust or platformTrust()), endpoint)
                connection = cast(Connection, await endpoint.connect(_factory(self._reactor)))
            except ConnectingCancelledError:
                raise CancelledError from None
            except ValueError:
                raise InputFailed("its address cannot be used: the name of its host cannot be in a certificate") from None
            except (ConnectError, ConnectTimedOut, OSError):
                continue
            if _is_own(connection):
                connection.drop()
                raise InputFailed("its host is not on the public network")
            return connection
        raise InputFailed("no connection could be made to its host")

    async def _resolve(self, place: Place) -> list[IP]:
        ip = literal(place.host)
        if ip is not None:
            return [ip]
        answer = _Answer()
        self._reactor.nameResolver.resolveHostName(answer, place.host, place.port)
        return await answer.done

    def _tcp(self, ip: IP, port: int) -> IStreamClientEndpoint:
        kind = TCP4ClientEndpoint if isinstance(ip, IPv4Address) else TCP6ClientEndpoint
        return kind(self._reactor, str(ip), port, timeout=CONNECT_SECONDS)


def place_of(url: str) -> Place:
    """A URL, taken apart. Raises InputFailed for what is not http(s) to a host and a usual port, without a user."""
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise InputFailed("its address cannot be used: it must be a URL of ASCII characters, without blanks")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise InputFailed("its address cannot be used: it is not a URL") from None
    if parts.scheme not in ("http", "https"):
        raise InputFailed("its address cannot be used: only http and https are")
    if parts.username is not None or parts.password is not None:
        raise InputFailed("its address cannot be used: it holds a user or a password")
    ip = literal(host)
    if ip is None and (not _NAME.fullmatch(host) or len(host) > 253):
        raise InputFailed("its address cannot be used: the name of its host is none")
    usual = 443 if parts.scheme == "https" else 80
    port = usual if port is None else port
    if not 0 < port <= 65535 or (port < 1024 and port not in _LOW_PORTS):
        raise InputFailed(f"its address cannot be used: port {port} is not asked")
    shown = f"[{host}]" if ":" in host else host
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Place(parts.scheme == "https", host, port, shown if port == usual else f"{shown}:{port}", target)


class _Pool:
    """Keeps no connection: each is used once."""

    first_byte_timeout = idle_timeout = 3600.0  # the fetch has its own limit

    def __init__(self, clock: Any) -> None:
        self.clock = clock

    def keep(self, connection: Connection) -> None:
        connection.drop()

    def forget(self, connection: Connection) -> None:
        pass

    def release(self) -> None:
        pass


def _factory(clock: Any) -> Factory[Any]:
    pool = _Pool(clock)
    factory: Factory[Any] = Factory.forProtocol(lambda: Connection(pool))
    factory.noisy = False
    return factory


def _is_own(connection: Connection) -> bool:
    """Whether the other end is this machine, under an address that is public: both ends are the same then."""
    ours, theirs = connection.transport.getHost(), connection.transport.getPeer()
    return getattr(ours, "host", None) is not None and getattr(ours, "host", None) == getattr(theirs, "host", None)


@implementer(IResolutionReceiver)
class _Answer:
    """Hears the addresses of a name. `done` may be cancelled; the question itself cannot."""

    def __init__(self) -> None:
        self.done: Deferred[list[IP]] = Deferred(lambda _: None)
        self._found: list[IP] = []

    def resolutionBegan(self, resolutionInProgress: Any) -> None:
        """See IResolutionReceiver."""

    def addressResolved(self, address: Any) -> None:
        """See IResolutionReceiver."""
        self._found.append(ip_address(address.host))

    def resolutionComplete(self) -> None:
        """See IResolutionReceiver."""
        if not self.done.called:
            self.done.callback(self._found)
