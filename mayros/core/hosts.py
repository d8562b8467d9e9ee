"""Addresses, networks, Host and Origin values, read from text that anybody may have written. Pure; imports nothing of ours.

Each reader gives one canonical form, or None (ValueError for the configuration's networks): what is not understood is never guessed at.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import msgspec

IP = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: Longest Host or Origin value that is looked at: 253 bytes of name, brackets, scheme and port.
MAX_NAME = 320

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_AUTHORITY = rf"(?P<name>(?:{_LABEL}\.)*{_LABEL}\.?|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{{0,5}}))?"
_HOST = re.compile(_AUTHORITY, re.IGNORECASE | re.ASCII)
_ORIGIN = re.compile(rf"(?P<scheme>https?)://{_AUTHORITY}", re.IGNORECASE | re.ASCII)
_PORTED_HOP = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?|([0-9.]+):[0-9]{1,5}", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_PRIVATE = tuple(
    ip_network(net) for net in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "::1/128", "fc00::/7", "fe80::/10")
)


class Host(msgspec.Struct, frozen=True):
    """A host as Host or Origin name it: canonical name (no brackets, no final dot), port if written, address if it is a literal.

    `local`: the name alone says that it is this machine (`localhost`, 127/8, `[::1]`).
    """

    name: str
    port: int | None
    literal: IP | None
    local: bool

    @property
    def private(self) -> bool:
        """A private address literal: no DNS is asked for it, so no page can make its own name stand for it."""
        literal = self.literal
        return literal is not None and any(literal in net for net in _PRIVATE)


def parse_ip(text: str) -> IP | None:
    """An address in canonical form: `::ffff:1.2.3.4` is `1.2.3.4`, a zone id is dropped. None when it is no address."""
    try:
        ip = ip_address(text.strip())
    except ValueError:
        return None
    # Through the number, because an address with a zone id is not equal to the same one without.
    return ip if isinstance(ip, IPv4Address) else ip.ipv4_mapped or IPv6Address(int(ip))


def parse_hop(text: str) -> IP | None:
    """One hop of X-Forwarded-For, with or without a port: `1.2.3.4`, `1.2.3.4:5`, `::1`, `[::1]`, `[::1]:5`."""
    text = text.strip()
    found = _PORTED_HOP.fullmatch(text)
    return parse_ip(text if found is None else found[1] or found[2])


def parse_network(text: str) -> Network:
    """An address or CIDR. ValueError when it is none, has host bits, or holds every address of its family."""
    net = ip_network(text.strip())
    mapped = net.network_address.ipv4_mapped if isinstance(net, IPv6Network) else None
    if mapped is not None and net.prefixlen >= 96:
        net = ip_network(f"{mapped}/{net.prefixlen - 96}")
    if net.prefixlen == 0:
        raise ValueError("a /0 would trust every address")
    return net


def group_key(ip: IP) -> str:
    """What one client's failures and connections are counted under: the address, for IPv6 its /64, which one client owns as a whole."""
    if isinstance(ip, IPv6Address) and not ip.is_loopback:
        return f"{IPv6Address(int(ip) >> 64 << 64)}/64"
    return str(ip)


def parse_host(text: str) -> Host | None:
    """The value of a Host header, `name[:port]`."""
    found = _HOST.fullmatch(text) if len(text) <= MAX_NAME else None
    return None if found is None else _authority(found, None)


def parse_origin(text: str) -> Host | None:
    """The host of an `http` or `https` origin; its port is filled in. Other schemes, paths and `null` are none."""
    found = _ORIGIN.fullmatch(text) if len(text) <= MAX_NAME else None
    return None if found is None else _authority(found, _DEFAULT_PORTS[found["scheme"].lower()])


def default_port(origin: str) -> int:
    """The port that a Host without one means to a page of this (parsable) origin."""
    return _DEFAULT_PORTS[origin.partition(":")[0].lower()]


def _authority(found: re.Match[str], default: int | None) -> Host | None:
    name, digits = found["name"].lower(), found["port"]
    port = int(digits) if digits else default
    if len(name) > 254 or (port is not None and port > 65535):
        return None
    if name.startswith("["):
        literal = parse_ip(name[1:-1]) if ":" in name else None
        return None if literal is None else Host(str(literal), port, literal, literal.is_loopback)
    literal = parse_ip(name)
    if literal is not None:
        return Host(name, port, literal, literal.is_loopback)
    name = name.removesuffix(".")
    return Host(name, port, None, name == "localhost")
