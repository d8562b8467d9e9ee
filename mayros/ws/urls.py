"""Where a gateway's URL leads: the endpoint to connect to, and what the upgrade request says. Imports net.certificates and net.pinned."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import urlsplit

from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint

from mayros.net.certificates import Trust

_PORTS = {"ws": 80, "wss": 443}


class Where(NamedTuple):
    """`address`: the WebSocket URL without credentials; `host`: as the Host header writes it; `shown`: for messages, without a query too."""

    endpoint: IStreamClientEndpoint
    address: str
    host: str
    shown: str


def where(reactor: Any, url: str, timeout: float, trust: Trust | None = None) -> Where:
    """How to reach `ws://host:port/`, `wss://...`, `unix:/path` or a bare path, within `timeout` seconds. ValueError for anything else.

    `trust`: whose certificate is taken, for `wss://` alone; None: one that the system's authorities vouch for.
    """
    if trust is not None and not url.lower().startswith("wss:"):
        raise ValueError("A fingerprint needs a wss:// URL: without TLS there is no certificate.")
    if url.startswith(("unix:", "/")):
        return Where(UNIXClientEndpoint(reactor, "/" + url.removeprefix("unix:").lstrip("/"), timeout=timeout), "ws://localhost/", "localhost", url)
    parts = urlsplit(url)
    host, scheme = parts.hostname, parts.scheme
    if scheme not in _PORTS or not host:
        raise ValueError("A gateway's URL is ws://host:port/, wss://host:port/ or unix:/path.")
    port = parts.port or _PORTS[scheme]
    endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, host, port, timeout=timeout)
    if scheme == "wss":
        # pyOpenSSL costs a tenth of a second, which the usual call has no use for.
        from twisted.internet.ssl import optionsForClientTLS

        from mayros.net.pinned import Pinned

        endpoint = wrapClientTLS(optionsForClientTLS(host) if trust is None else Pinned(trust, host), endpoint)
    written = f"[{host}]" if ":" in host else host
    shown = f"{scheme}://{written}:{port}{parts.path or '/'}"
    return Where(endpoint, f"{shown}{'?' if parts.query else ''}{parts.query}", written, shown)
