"""`system-presence` and `last-heartbeat`: who is here, and when an agent last woke up by itself. Imports mayros.wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from mayros.wire.frames import Request, parse_params

if TYPE_CHECKING:
    from mayros.ws.session import Session


class NoParams(msgspec.Struct, frozen=True):
    """The method has no parameters."""


def system_presence(session: Session, request: Request) -> None:
    """The list itself, not an object around it; the gateway comes first."""
    parse_params(NoParams, request.params, "system-presence")
    gateway = session.gateway
    session.reply(request.id, gateway.presence.shown(gateway.now_ms(), session.principal.space is None))


def last_heartbeat(session: Session, request: Request) -> None:
    """`null`: this gateway has no heartbeats yet."""
    parse_params(NoParams, request.params, "last-heartbeat")
    session.reply(request.id, None)
