"""Who the client is, behind proxies and behind pages: peer, forwarding headers, Host, Origin. Pure.

The rules are A1 to A13 of the security notes: locality is never inferred from the peer's address alone, forwarding headers are read only
from trusted proxies, and whatever cannot be read makes the client unknown, never local. (A13, that `loopback` never widens, is kept where
ports are opened.) Imports mayros.config, mayros.core.hosts and mayros.errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import msgspec

from mayros.config.gateway import Gateway
from mayros.core.hosts import IP, MAX_NAME, Host, Network, default_port, group_key, parse_hop, parse_host, parse_ip, parse_network, parse_origin
from mayros.errors import ConfigError

#: All lines of one request header, or None: `getRawHeaders` of a Twisted request.
Headers = Callable[[bytes], Sequence[bytes] | None]

#: A request that carries one of these came through a proxy. Headers are asked for by name, each costs a quarter of a microsecond per
#: request, so of the families `X-Forwarded-*` and `Tailscale-*` these are the ones that proxies send.
FORWARDING = (
    b"x-forwarded-for",
    b"forwarded",
    b"x-real-ip",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-forwarded-port",
    b"x-forwarded-server",
    b"x-forwarded-scheme",
    b"tailscale-user-login",
    b"tailscale-headers-info",
)
#: Hops of X-Forwarded-For that are walked; a longer chain makes the client unknown.
MAX_HOPS = 32
UNIX_KEY = "unix"


class Address(msgspec.Struct, frozen=True):
    """What is known of a client.

    `peer` is the other end of the connection (None: a unix socket), `client` whom it speaks for (None: unknown), `limiter_key` what failures
    are counted under. `direct_local`: a program on this machine that talks to us itself. `exempt`: may have the limiter's loopback
    exemption. `trusted_peer`: the peer is one of `gateway.trustedProxies`.
    """

    peer: str | None
    client: str | None
    limiter_key: str
    direct_local: bool
    exempt: bool
    trusted_peer: bool


class _Peer(msgspec.Struct, frozen=True):
    """What an address alone says, worked out once. `plain` is the answer when neither locality nor trust can change it."""

    text: str | None
    key: str
    loopback: bool
    trusted: bool
    plain: Address
    local: Address


def _listed(origins: Sequence[str]) -> frozenset[str]:
    return frozenset(origin.strip().lower().rstrip("/") for origin in origins) - {""}


class AddressRules:
    """The rules with one configuration's values put in. Build one per configuration; `of` runs on every request."""

    def __init__(
        self,
        proxies: Sequence[Network],
        names: Sequence[str],
        ui_origins: Sequence[str],
        cors_origins: Sequence[str],
        real_ip: bool,
        on_warning: Callable[[str], None] | None = None,
    ) -> None:
        self._proxies = tuple(proxies)
        self._names = frozenset(names)
        #: `gateway.http.cors.allowedOrigins`: the pages that may call the HTTP doors.
        self.cors_origins = tuple(cors_origins)
        self._origins = (*ui_origins, *cors_origins)
        self._real_ip = real_ip
        self._on_warning = on_warning
        # Bounded: what comes from outside must not grow the process. The values cached are at most MAX_NAME bytes long.
        self._known = lru_cache(4096)(self._know)
        self._hosts = lru_cache(1024)(self._read_host)

    @classmethod
    def build(cls, gateway: Gateway, bound_hosts: Sequence[str], on_warning: Callable[[str], None] | None = None) -> AddressRules:
        """From `gateway`, and the addresses or names really listened on (wildcards say nothing and are skipped).

        `on_warning` hears, once, that a program on this machine forwards requests without being a trusted proxy. Raises ConfigError.
        """
        proxies = []
        for number, entry in enumerate(gateway.trusted_proxies):
            try:
                proxies.append(parse_network(entry))
            except ValueError as error:
                raise ConfigError(f"gateway.trustedProxies[{number}]: {entry!r} cannot be used: {error}.") from None
        names = []
        for bound in bound_hosts:
            ip = parse_ip(bound.strip("[]"))
            if ip is None:
                names.append(bound.strip().lower().removesuffix("."))
            elif not ip.is_unspecified:
                names.append(str(ip))
        for number, entry in enumerate(gateway.allowed_hosts):
            text = entry.strip()
            host = parse_host(f"[{text}]" if text.count(":") > 1 and not text.startswith("[") else text)
            if host is None:
                raise ConfigError(f"gateway.allowedHosts[{number}]: {entry!r} is not a host name or an address.")
            names.append(host.name)
        return cls(proxies, names, gateway.control_ui.allowed_origins, gateway.http.cors.allowed_origins, gateway.allow_real_ip_fallback, on_warning)

    def of(self, peer: str | None, headers: Headers, proxied: bool = False) -> Address:
        """The client behind `peer` (the address of the connection, None for a unix socket).

        `proxied`: the peer's address was told by a PROXY protocol header (which must be believed only from a `trusts` peer or on a unix
        socket); such a client is never local (A12).
        """
        known = self._known(peer)
        if known.trusted:
            return self._forwarded(known, headers)
        if not known.loopback or proxied:
            return known.plain
        if any(map(headers, FORWARDING)):
            if self._on_warning is not None:
                warn, self._on_warning = self._on_warning, None
                warn("A program on this machine forwards requests; they count as remote. List it in gateway.trustedProxies if it is your proxy.")
            return known.plain
        if not self.host_ok(headers):
            return known.plain
        origins = headers(b"origin")
        if not origins:
            return known.local
        local = len(origins) == 1 and self._origin_ok(origins[0].decode("latin-1"), headers, True, self._origins)
        return msgspec.structs.replace(known.plain, direct_local=local)

    @property
    def remembered(self) -> int:
        """How many peers and Host values are remembered; bounded."""
        return self._known.cache_info().currsize + self._hosts.cache_info().currsize

    @property
    def has_proxies(self) -> bool:
        """Whether `gateway.trustedProxies` holds anything."""
        return bool(self._proxies)

    def is_loopback(self, peer: str | None) -> bool:
        """Whether the peer is on this machine: a loopback address or a unix socket."""
        return self._known(peer).loopback

    def trusts(self, peer: str | None) -> bool:
        """Whether the peer is one of `gateway.trustedProxies`."""
        return self._known(peer).trusted

    def connection_key(self, peer: str | None) -> str | None:
        """What a peer's connections are counted under; None: not capped (loopback, unix sockets, trusted proxies)."""
        known = self._known(peer)
        return None if known.loopback or known.trusted else known.key

    def host_ok(self, headers: Headers) -> bool:
        """Whether the one Host header names this machine: local, bound, or in `gateway.allowedHosts`."""
        host = self._host_of(headers)
        return host is not None and host[1]

    def valid_host_header(self, headers: Headers, http11: bool) -> bool:
        """Whether there is exactly one Host header, well formed; HTTP/1.0 may leave it out."""
        return self._host_of(headers) is not None or (not http11 and not headers(b"host"))

    def origin_ok(self, origin: str, headers: Headers, address: Address, allowed: Sequence[str]) -> bool:
        """Whether a page of this origin may talk to us.

        It is listed in `allowed` (exactly; `null` and schemes other than http only so), or is the very host and port of a Host header that
        names this machine or is a private address literal, or both are loopback and the client is direct and local.
        """
        return self._origin_ok(origin, headers, address.direct_local, allowed)

    def origin_listed(self, origin: str, allowed: Sequence[str]) -> bool:
        """Whether the origin is in `allowed`, exactly but for case and a final slash."""
        return origin.lower() in _listed(allowed)

    def _origin_ok(self, origin: str, headers: Headers, local: bool, allowed: Sequence[str]) -> bool:
        if len(origin) > MAX_NAME:
            return False
        if self.origin_listed(origin, allowed):
            return True
        page, seen = parse_origin(origin), self._host_of(headers)
        if page is None or seen is None:
            return False
        host, ours = seen
        if local and page.local and host.local:
            return True
        same = page.name == host.name and page.port == (host.port or default_port(origin))
        return same and (ours or host.private)

    def _host_of(self, headers: Headers) -> tuple[Host, bool] | None:
        """The one Host of a request, and whether it names this machine."""
        lines = headers(b"host")
        if not lines or len(lines) != 1 or len(lines[0]) > MAX_NAME:
            return None
        return self._hosts(lines[0])

    def _read_host(self, value: bytes) -> tuple[Host, bool] | None:
        host = parse_host(value.decode("latin-1"))
        return None if host is None else (host, host.local or host.name in self._names)

    def _know(self, peer: str | None) -> _Peer:
        ip = None if peer is None else parse_ip(peer)
        text = peer if ip is None else str(ip)
        loopback = peer is None or (ip is not None and ip.is_loopback)
        trusted = ip is not None and any(ip in net for net in self._proxies)
        key = UNIX_KEY if peer is None else group_key(ip) if ip is not None else "unknown"
        plain = Address(text, text if ip is not None else None, key, direct_local=False, exempt=False, trusted_peer=trusted)
        return _Peer(text, key, loopback, trusted, plain, msgspec.structs.replace(plain, direct_local=True, exempt=True))

    def _forwarded(self, known: _Peer, headers: Headers) -> Address:
        """The client that a trusted proxy speaks for. Unknown: counted under the proxy's address, never local, never exempt (A7)."""
        ip: IP | None = None
        chain = headers(b"x-forwarded-for")
        if chain:
            ip = self._walk(chain)
        elif self._real_ip:
            lines = headers(b"x-real-ip")
            if lines and len(lines) == 1 and len(lines[0]) <= MAX_NAME:
                ip = parse_hop(lines[0].decode("latin-1"))
        if ip is None or ip.is_loopback:
            return msgspec.structs.replace(known.plain, client=None)
        return msgspec.structs.replace(known.plain, client=str(ip), limiter_key=group_key(ip))

    def _walk(self, lines: Sequence[bytes]) -> IP | None:
        """From the right: trusted hops are skipped, the first other one is the client. What is not an address ends the walk.

        A chain of nothing but trusted hops has no client either.
        """
        hops = b",".join(lines).decode("latin-1").rsplit(",", MAX_HOPS)
        for number, text in enumerate(reversed(hops)):
            ip = parse_hop(text) if number < MAX_HOPS else None
            if ip is None or not any(ip in net for net in self._proxies):
                return ip
        return None
