"""`usage.status`, `usage.cost` and `sessions.usage`: what runs have used and what it cost, and the limits on it. Imports mayros.core and mayros.wire.

Days are of UTC, written `YYYY-MM-DD`; costs are US dollars at the listed prices; tokens are disjoint counts, `output` with its `reasoning`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec

from mayros.core.session_ports import SessionQuery, SessionRow
from mayros.core.spending import DAY_MS, DOLLAR, Limit, Spent
from mayros.core.usage import daily, dollars, models, named, providers, totals
from mayros.core.usage_ports import Field, UsageQuery, UsageSum, day_of
from mayros.errors import InvalidRequest
from mayros.wire.frames import Request, Text, parse_params
from mayros.ws.methods.where import own_session

if TYPE_CHECKING:
    from mayros.ws.context import Gateway
    from mayros.ws.session import Session

#: How many days are looked at when nothing is said, and at most.
DEFAULT_DAYS, MOST_DAYS = 30, 3_660
DEFAULT_SESSIONS, MOST_SESSIONS = 50, 1_000
#: Sums without a session, one for each agent, that may be among those of sessions.
_NAMELESS = 100
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)

Days = Annotated[int, msgspec.Meta(ge=1, le=MOST_DAYS)]
Mode = Literal["utc", "gateway", "specific"]


class UsageStatusParams(msgspec.Struct, frozen=True):
    """None."""


class UsageCostParams(msgspec.Struct, frozen=True, rename="camel"):
    """The last `days`, or those from `startDate` to `endDate`. `mode` and `utcOffset` have no effect: days are of UTC."""

    days: Days | None = None
    start_date: str | None = None
    end_date: str | None = None
    mode: Mode | None = None
    utc_offset: str | None = None


class SessionsUsageParams(msgspec.Struct, frozen=True, rename="camel"):
    """`key`: of this session only. `limit`: sessions that are listed. `mode`, `utcOffset` and `includeContextWeight` have no effect."""

    key: Text | None = None
    days: Days | None = None
    start_date: str | None = None
    end_date: str | None = None
    mode: Mode | None = None
    utc_offset: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MOST_SESSIONS)] = DEFAULT_SESSIONS
    include_context_weight: bool | None = None


class Window(NamedTuple):
    """Days, both ends counted."""

    since: str
    until: str
    days: int


def window(params: UsageCostParams | SessionsUsageParams, now_ms: int, method: str) -> Window:
    """The days that are asked for. Raises InvalidRequest."""
    until = _date(params.end_date, "endDate", method) or date.fromisoformat(day_of(now_ms))
    since = _date(params.start_date, "startDate", method) or date.fromordinal(max(1, until.toordinal() - (params.days or DEFAULT_DAYS) + 1))
    days = until.toordinal() - since.toordinal() + 1
    if not 1 <= days <= MOST_DAYS:
        raise InvalidRequest(f"invalid {method} params: startDate must not be after endDate, nor more than {MOST_DAYS} days before it")
    return Window(since.isoformat(), until.isoformat(), days)


def _date(text: str | None, name: str, method: str) -> date | None:
    if text is None:
        return None
    try:
        if _DATE.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass  # told below, together with what has not even the form
    raise InvalidRequest(f"invalid {method} params: at /{name}: must be a date like 2026-01-31")


def usage_status(session: Session, request: Request) -> None:
    """`{updatedAt, providers: [{provider, displayName, windows: [], today}], limits: [{path, agentId?, unit, limit, used, usedPercent, resetAt}]}`.

    `limits` are those on a day that are configured. Vendors' own quotas are not asked for: there are no windows.
    """
    parse_params(UsageStatusParams, request.params, "usage.status")
    session.spawn(request.id, _status(session, request.id))


async def _status(session: Session, request_id: str) -> None:
    gateway = session.gateway
    now = gateway.now_ms()
    found = await gateway.usage.sums(("provider",), UsageQuery(day_of(now), day_of(now), principal=_whose(session)))
    asked = [{"provider": one.names[0], "displayName": one.names[0], "windows": [], "today": totals((one,))} for one in found]
    principal = session.principal
    agents = gateway.config.current.directory.agents.values()
    every = [limit for agent in agents for limit in gateway.spending.limits(agent, Spent(), now, principal)]
    limits = {limit.path + (limit.agent_id or ""): limit for limit in every if limit.day}
    # What others have used is not a narrowed token's to know.
    shown = [_limit(limit, now) for limit in limits.values() if principal.space is None or limit.path.endswith(f" of {principal.id}")]
    session.reply(request_id, {"updatedAt": now, "providers": asked, "limits": shown})


def _whose(session: Session) -> str | None:
    """Whose use the client is told of; None: everybody's."""
    principal = session.principal
    return None if principal.space is None else principal.id


def _limit(limit: Limit, now_ms: int) -> dict[str, object]:
    used: float = limit.amount - limit.left if not limit.dollars else dollars(round(limit.amount * DOLLAR) - limit.left)
    return {
        "path": limit.path,
        **({"agentId": limit.agent_id} if limit.agent_id is not None else {}),
        "unit": "dollars" if limit.dollars else "tokens",
        "limit": limit.amount,
        "used": used,
        "usedPercent": round(100 * used / limit.amount, 1) if limit.amount else 100.0,
        "resetAt": (now_ms // DAY_MS + 1) * DAY_MS,
    }


def usage_cost(session: Session, request: Request) -> None:
    """`{updatedAt, days, startDate, endDate, daily: [{date, ...}], totals}`; a day without any use is not in `daily`."""
    params = parse_params(UsageCostParams, request.params, "usage.cost")
    session.spawn(request.id, _cost(session, request.id, window(params, session.gateway.now_ms(), "usage.cost")))


async def _cost(session: Session, request_id: str, asked: Window) -> None:
    gateway = session.gateway
    found = await gateway.usage.sums(("day",), UsageQuery(asked.since, asked.until, principal=_whose(session)))
    answer = {"updatedAt": gateway.now_ms(), "days": asked.days, "startDate": asked.since, "endDate": asked.until}
    session.reply(request_id, {**answer, "daily": daily(found), "totals": totals(found)})


def sessions_usage(session: Session, request: Request) -> None:
    """`{updatedAt, startDate, endDate, sessions: [{key, agentId, label?, sessionId?, updatedAt?, usage}], totals, aggregates: {byModel, byProvider,
    byAgent, byPrincipal, daily, withoutSession}}`. With `key` the session's `usage` also has `modelUsage` and `dailyBreakdown`.
    """
    params = parse_params(SessionsUsageParams, request.params, "sessions.usage")
    gateway = session.gateway
    asked = window(params, gateway.now_ms(), "sessions.usage")
    key = None if params.key is None else str(own_session(session, params.key, "sessions.usage", "key"))
    query = UsageQuery(asked.since, asked.until, key, principal=_whose(session))
    session.spawn(request.id, _sessions(session, request.id, query, params.limit))


async def _sessions(session: Session, request_id: str, query: UsageQuery, limit: int) -> None:
    gateway = session.gateway

    async def sums(*by: Field, **changes: Any) -> Sequence[UsageSum]:
        return await gateway.usage.sums(by, msgspec.structs.replace(query, **changes))

    # What has no name, of every agent, is told apart.
    by_session = await sums("session", "agent", limit=limit + _NAMELESS)
    nameless = await sums(session="") if query.session is None else ()
    by_model, by_agent, by_principal, by_day = await sums("provider", "model"), await sums("agent"), await sums("principal"), await sums("day")
    details = await _details(gateway, query.session, session.principal.space)
    shown = [_session(one, details.get(one.names[0])) for one in by_session if one.names[0]][:limit]
    if query.session is not None and shown:
        more = {"modelUsage": models(by_model), "dailyBreakdown": daily(by_day)}
        shown = [{**one, "usage": {**totals(by_day), **more}} for one in shown]
    aggregates = {
        "byModel": models(by_model),
        "byProvider": providers(by_model),
        "byAgent": named("agentId", by_agent),
        "byPrincipal": named("principal", by_principal),
        "daily": daily(by_day),
        "withoutSession": totals(nameless),
    }
    answer = {"updatedAt": gateway.now_ms(), "startDate": query.since, "endDate": query.until, "sessions": shown}
    session.reply(request_id, {**answer, "totals": totals(by_day), "aggregates": aggregates})


async def _details(gateway: Gateway, key: str | None, space: str | None) -> dict[str, SessionRow]:
    """The sessions that are still there: the one that is asked for, or the newest."""
    if key is None:
        return {row.key: row for row in await gateway.sessions.list(SessionQuery(limit=MOST_SESSIONS, space=space))}
    row = await gateway.sessions.get(key)
    return {} if row is None else {key: row}


def _session(one: UsageSum, row: SessionRow | None) -> dict[str, object]:
    key, agent_id = one.names
    found: dict[str, object] = {"key": key, "agentId": agent_id}
    if row is not None:
        found |= {"sessionId": row.session_id, "updatedAt": row.updated_ms}
        if row.settings.label is not None:
            found["label"] = row.settings.label
    return {**found, "usage": totals((one,))}
