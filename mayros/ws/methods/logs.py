"""`logs.tail`: the end of the gateway's log, or what has come since. Imports mayros.wire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from mayros.wire.frames import Request, parse_params

if TYPE_CHECKING:
    from mayros.ws.session import Session

LINES, MAX_LINES = 500, 5_000
BYTES, MAX_BYTES = 250_000, 1_000_000


class TailParams(msgspec.Struct, frozen=True, rename="camel"):
    """`cursor`: the one of an earlier answer; what follows it is given. Without it the last lines."""

    cursor: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_LINES)] = LINES
    max_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_BYTES)] = BYTES


def logs_tail(session: Session, request: Request) -> None:
    """`{file, cursor, size, lines, truncated, reset}`; see core.log_ports.Tail."""
    params = parse_params(TailParams, request.params, "logs.tail")
    session.spawn(request.id, _tail(session, request.id, params))


async def _tail(session: Session, request_id: str, params: TailParams) -> None:
    session.reply(request_id, await session.gateway.tail(params.cursor, params.limit, params.max_bytes))
