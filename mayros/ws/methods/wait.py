"""`agent.wait`: how a run ended, or wait for that; and `agent.identity.get`: how an agent presents itself. Imports mayros.core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from twisted.internet.defer import Deferred, TimeoutError

from mayros.core.keys import normalise_agent_id
from mayros.core.ports import Run, RunResult
from mayros.core.reach import default_agent, sees
from mayros.errors import GatewayError, InvalidRequest
from mayros.wire.frames import Count, Request, parse_params
from mayros.ws.methods.where import known_agent, own_session

if TYPE_CHECKING:
    from mayros.ws.context import Gateway
    from mayros.ws.session import Session

_DEFAULT_MS, _LONGEST_MS = 30_000, 86_400_000
_NAME, _AVATAR = "Assistant", "A"


class WaitParams(msgspec.Struct, frozen=True, rename="camel"):
    """`timeout_ms` 0: do not wait."""

    run_id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    timeout_ms: Count = _DEFAULT_MS


def agent_wait(session: Session, request: Request) -> None:
    """A run that is not known yet is waited for as well: its request may be on the way."""
    params = parse_params(WaitParams, request.params, "agent.wait")
    gateway, run_id = session.gateway, params.run_id
    known = gateway.runs.ended(run_id) or gateway.answered.get(run_id)
    if known is not None and sees(session.principal, known.session_key):
        session.reply(request.id, _ended(run_id, known))
    elif not params.timeout_ms:
        session.reply(request.id, {"runId": run_id, "status": "timeout"})
    else:
        session.spawn(request.id, _wait(session, request.id, run_id, min(params.timeout_ms, _LONGEST_MS) / 1000))


async def _wait(session: Session, request_id: str, run_id: str, seconds: float) -> None:
    gateway = session.gateway
    clock: Any = gateway.clock
    until = clock.seconds() + seconds
    try:
        work: Run | RunResult | None = gateway.runs.get(run_id)
        while work is None or not sees(session.principal, _session_of(work)):
            work = await _appearance(gateway, run_id).addTimeout(max(0.0, until - clock.seconds()), clock)
        if not isinstance(work, RunResult):
            work = await work.ended().addTimeout(max(0.0, until - clock.seconds()), clock)
    except TimeoutError:
        session.reply(request_id, {"runId": run_id, "status": "timeout"})
    else:
        session.reply(request_id, _ended(run_id, work))


def _session_of(work: Run | RunResult) -> str:
    return work.session_key if isinstance(work, RunResult) else str(work.turn.session)


def _appearance(gateway: Gateway, run_id: str) -> Deferred[Run | RunResult]:
    """Fires when a run of this id is submitted."""

    def leave(waiter: Deferred[Run | RunResult]) -> None:
        waiting = gateway.awaited.get(run_id)
        if waiting is not None and waiter in waiting:
            waiting.remove(waiter)
            if not waiting:
                del gateway.awaited[run_id]

    waiter: Deferred[Run | RunResult] = Deferred(leave)
    gateway.awaited.setdefault(run_id, []).append(waiter)
    return waiter


def _ended(run_id: str, result: RunResult) -> dict[str, object]:
    """A run that was aborted is an error at once: `timeout` would mean to ask again. One that reached its own limit is a timeout, with its times."""
    status = {"ok": "ok", "timeout": "timeout"}.get(result.outcome, "error")
    found: dict[str, object] = {"runId": run_id, "status": status, "startedAt": result.started_at_ms, "endedAt": result.ended_at_ms}
    if result.outcome != "ok":
        found["error"] = result.error or GatewayError().message
    if result.outcome in ("aborted", "timeout"):
        found["aborted"] = True
    return found


class IdentityParams(msgspec.Struct, frozen=True, rename="camel"):
    """Default: the default agent."""

    agent_id: str | None = None
    session_key: str | None = None


def agent_identity_get(session: Session, request: Request) -> None:
    """By agent, or by a session of it."""
    method = "agent.identity.get"
    params = parse_params(IdentityParams, request.params, method)
    settings = session.gateway.config.current
    directory = settings.directory
    agent_id = (params.agent_id or "").strip()
    principal = session.principal
    agent = known_agent(directory, agent_id, method, principal) if agent_id else None
    if params.session_key is not None and params.session_key.strip():
        key = own_session(session, params.session_key, method)
        if agent is not None and key.agent_id != agent.id:
            raise InvalidRequest(f'invalid {method} params: agent "{agent.id}" does not match session key agent "{key.agent_id}"')
        agent = agent or known_agent(directory, key.agent_id, method)
    agent = agent or directory.agents[default_agent(principal, directory.default_id, directory.agents)]
    avatar = next((entry.identity.avatar for entry in settings.config.agents.list if normalise_agent_id(entry.id) == agent.id), None)
    identity = {"agentId": agent.id, "name": agent.name or _NAME, "avatar": avatar or _AVATAR}
    session.reply(request.id, {**identity, "emoji": agent.emoji} if agent.emoji else identity)
