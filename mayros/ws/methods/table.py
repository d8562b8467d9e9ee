"""The methods there are: who may call each, and who answers. `hello-ok` advertises exactly these. Imports mayros.ws.methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from mayros.wire.frames import Request
from mayros.ws.methods.agent import agent
from mayros.ws.methods.health import health

if TYPE_CHECKING:
    from mayros.ws.session import Session

#: Answers through the session: at once, or later from a coroutine given to `Session.spawn`. Raises GatewayError.
Handler = Callable[["Session", Request], None]


class Method(NamedTuple):
    """`scope` None: every client may call it."""

    scope: str | None
    handler: Handler


METHODS: Mapping[str, Method] = {
    "health": Method(None, health),
    "agent": Method("operator.write", agent),
}
