"""Which keys are in force as soon as they are changed, and which wait for a restart. Pure; imports schema and source.

Each key of schema.py stands here once, by itself or by the section that it is in; a test holds the two together. Of two entries the longer one
counts. What is not listed waits for a restart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from mayros.config.schema import Config
from mayros.config.source import below, join

#: Read from the configuration in force by each request and run at its start, or handed on to what has them (doors.py, runtime.py).
HOT = (
    frozenset(("agents", "models", "auth", "limits", "tools", "skills"))
    | below("gateway.", "trustedProxies allowRealIpFallback allowedHosts http limits controlUi.allowedOrigins shutdown remote reload")
    | below("gateway.auth.", "token password rateLimit trustedProxy localScopes")
    | below("session.", "scope mainKey stateless")
    | below("logging.", "level consoleLevel consoleStyle")
)
#: Ports, what opens the door at all, and the store are made once.
RESTART = (
    below("gateway.", "mode port bind customBindHost auth.mode tls controlUi.enabled controlUi.basePath")
    | frozenset(("gateway.metrics", "session.store", "logging.file", "logging.maxFileBytes"))
)  # fmt: skip
#: What goes with `gateway.auth.mode`: changed together with it, it waits with it.
WITH_MODE = below("gateway.", "auth trustedProxies")

_Section = TypeVar("_Section")


def is_hot(path: str) -> bool:
    """Whether a change at this key path (`a.b`, with anything behind it) is in force at once."""
    while path:
        if path in RESTART:
            return False
        if path in HOT:
            return True
        path = path.rpartition(".")[0]
    return False


def in_force(running: Config, wanted: Config, held: frozenset[str] = frozenset()) -> Config:
    """The wanted configuration, with what needs a restart as it is running. `held`: key paths that wait this time besides."""
    return _merged(running, wanted, "", held)


def _merged(running: _Section, wanted: _Section, path: str, held: frozenset[str]) -> _Section:
    if path in held or running == wanted:
        return running
    if isinstance(wanted, msgspec.Struct) and type(running) is type(wanted) and path not in HOT:
        names = zip(wanted.__struct_fields__, wanted.__struct_encode_fields__, strict=True)
        parts = {name: _merged(getattr(running, name), getattr(wanted, name), join(path, shown), held) for name, shown in names}
        return msgspec.structs.replace(wanted, **parts)
    return wanted if is_hot(path) else running


def differing(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """The key paths at which two configurations differ; a list counts as one value."""
    if old is new:
        return
    if isinstance(old, msgspec.Struct) and type(old) is type(new):
        for name, shown in zip(old.__struct_fields__, old.__struct_encode_fields__, strict=True):
            yield from differing(getattr(old, name), getattr(new, name), join(path, shown))
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from differing(old.get(key), new.get(key), join(path, key))
    elif old != new:
        yield path
