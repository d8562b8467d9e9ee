"""`audit.list`: who did what, from where, and how it ended. Imports mayros.core and mayros.wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import msgspec

from mayros.core.audit_ports import AuditQuery, AuditRow
from mayros.errors import InvalidRequest
from mayros.wire.frames import Request, parse_params

if TYPE_CHECKING:
    from mayros.ws.session import Session

ROWS, MAX_ROWS = 100, 1_000
Id = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
#: Epoch milliseconds.
Time = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_999)]
Words = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class AuditListParams(msgspec.Struct, frozen=True, rename="camel"):
    """`before`: the `cursor` of an earlier answer. `after`: an id; what follows it comes, the oldest first. `action`: how it begins."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_ROWS)] = ROWS
    before: Id | None = None
    after: Id | None = None
    since_ms: Time | None = None
    until_ms: Time | None = None
    action: Words | None = None
    who: Words | None = None


def audit_list(session: Session, request: Request) -> None:
    """`{ts, entries, cursor}`: the newest first. `cursor`: for `before`, where there may be more; else null."""
    params = parse_params(AuditListParams, request.params, "audit.list")
    if params.before is not None and params.after is not None:
        raise InvalidRequest("invalid audit.list params: either before or after")
    query = AuditQuery(params.limit, params.before, params.after, params.since_ms, params.until_ms, params.action, params.who)
    session.spawn(request.id, _list(session, request.id, query))


async def _list(session: Session, request_id: str, query: AuditQuery) -> None:
    rows = await session.gateway.audit.trail.list(query)
    more = rows[-1].id if query.after is None and len(rows) == query.limit else None
    session.reply(request_id, {"ts": session.gateway.now_ms(), "entries": [shown(row) for row in rows], "cursor": more})


def shown(row: AuditRow) -> Mapping[str, object]:
    """A row on the wire; only what is set."""
    entry = row.entry
    told = {
        "id": row.id,
        "atMs": entry.at_ms,
        "action": entry.action,
        "who": entry.who,
        "door": entry.door,
        "outcome": entry.outcome,
        "label": entry.label,
        "address": entry.address,
        "connection": entry.connection,
        "request": entry.request,
        "target": entry.target,
        "details": msgspec.Raw(entry.details.encode()),
    }
    return {name: value for name, value in told.items() if value is not None}
