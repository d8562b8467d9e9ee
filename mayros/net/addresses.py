"""Which addresses are public: those that somebody else may name for us to connect to. Pure; imports nothing of ours.

The tables are our own: what `ipaddress` calls global differs between versions of Python. Source: IANA's special-purpose registries, 2025.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

IP = IPv4Address | IPv6Address

_NOT_V4 = [
    ip_network(net)
    for net in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carriers' own; also where some clouds answer questions about a machine
        "127.0.0.0/8",
        "168.63.129.16/32",  # the same, of another cloud
        "169.254.0.0/16",  # link-local, with the address of most clouds for that
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",
    )
]
#: Only this is in use for single hosts of the public network ...
_V6 = ip_network("2000::/3")
#: ... without these.
_NOT_V6 = [
    ip_network(net)
    for net in (
        "2001::/23",  # protocols' own, with Teredo
        "2001:db8::/32",  # documentation
        "2620:4f:8000::/48",
        "3fff::/20",  # documentation
        "3ffe::/16",
    )
]
_NAT64, _6TO4 = ip_network("64:ff9b::/96"), ip_network("2002::/16")


def is_public(ip: IP) -> bool:
    """Whether an address is one host's on the public network. An IPv4 address inside of an IPv6 one is judged as itself."""
    if isinstance(ip, IPv4Address):
        return not any(ip in net for net in _NOT_V4)
    if ip.scope_id is not None:
        return False
    inside = _embedded(ip)
    if inside is not None:
        return is_public(inside)
    return ip in _V6 and not any(ip in net for net in _NOT_V6)


def _embedded(ip: IPv6Address) -> IPv4Address | None:
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    if ip in _6TO4:
        return IPv4Address(int(ip) >> 80 & 0xFFFFFFFF)
    return None


def literal(host: str) -> IP | None:
    """The address that a host of a URL is, also in the forms that only C libraries know (`2130706433`, `0x7f.1`, `017700000001`); None: a name."""
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host)) if host.isascii() and not any(map(str.isspace, host)) else None
    except OSError:
        return None


def listed(host: str, hosts: tuple[str, ...] | list[str]) -> bool:
    """Whether a host is in a list of names. `*.example.com` stands for all below that domain, and not for it itself."""
    host = host.lower().removesuffix(".")
    for one in hosts:
        one = one.strip().lower().removesuffix(".")
        if host == one or (one.startswith("*.") and len(one) > 2 and host.endswith(one[1:]) and len(host) > len(one) - 1):
            return True
    return False
