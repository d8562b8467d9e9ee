"""Where to listen, as `HOST:PORT` or `unix:/path`. Pure; imports nothing of ours."""

from __future__ import annotations

import ipaddress

_WANTED = "must be an address and a port such as 127.0.0.1:9464 or [::1]:9464, or unix: and a path"


def place(text: str) -> tuple[str, int] | str:
    """Address and port, or the path of a unix socket. Raises ValueError."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or not path.isprintable() or len(path.encode()) > 107:
            raise ValueError("must be unix: and an absolute path of at most 107 bytes")
        return path
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address("127.0.0.1" if bare == "localhost" else bare)
    except ValueError:
        raise ValueError(_WANTED) from None
    if not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535 or (address.version == 6) != (bare != host):
        raise ValueError(_WANTED)
    return str(address), int(port)
