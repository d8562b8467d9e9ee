"""Autobahn, as far as we use it: the only module that imports it. See docs/decisions/0009.

What Autobahn can do without (`cbor2` for WAMP, `click` for colours; it says so itself) is kept away from it while it is imported, unless somebody has
loaded it already: both together are 2 MB of a daemon that may have 85. Of `cffi` it gets the part that runs its C helpers, and not the one that would
build them, a parser for C, which is another 1.3 MB.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


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


@contextmanager
def _built() -> Iterator[None]:
    """Meanwhile `cffi` builds nothing, for modules that also declare what they were built of; where it is loaded, or lacks its own core, it stays."""
    try:
        from _cffi_backend import FFI, __version__
    except ImportError:
        FFI = None
    if FFI is None or "cffi" in sys.modules:
        yield
        return

    class Runs(FFI):  # type: ignore[misc]
        def cdef(self, *args: object, **kw: object) -> None:
            """The compiled module knows."""

        def set_source(self, *args: object, **kw: object) -> None:
            """It is compiled."""

    module = ModuleType("cffi")
    module.FFI, module.__version__ = Runs, __version__  # type: ignore[attr-defined]
    sys.modules["cffi"] = module
    try:
        yield
    finally:
        del sys.modules["cffi"]


with _absent("cbor2", "click"), _built():
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
