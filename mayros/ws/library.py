"""Autobahn, as far as we use it: the only module that imports it. See docs/decisions/0009.

What Autobahn can do without (`cbor2` for WAMP, `click` for colours; it says so itself) is kept away from it while it is imported, unless somebody has
loaded it already: both together are 2 MB of a daemon that may have 85.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _absent(*names: str) -> Iterator[None]:
    """Importing these raises ImportError meanwhile, as where they are not installed."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


with _absent("cbor2", "click"):
    from autobahn.twisted.resource import WebSocketResource
    from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol, WebSocketServerFactory, WebSocketServerProtocol
    from autobahn.websocket.types import ConnectingRequest

__all__ = [
    "ConnectingRequest",
    "WebSocketClientFactory",
    "WebSocketClientProtocol",
    "WebSocketResource",
    "WebSocketServerFactory",
    "WebSocketServerProtocol",
]
