"""`agent`: run an agent. Answered twice under one id: accepted, then how the run ended. Imports mayros.core and mayros.wire."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from mayros.core.images import Image, user_message
from mayros.core.keys import SessionKey
from mayros.core.ports import Claim, Run, RunResult, Sampling, Turn
from mayros.core.reach import own_key
from mayros.core.routing import Agent, Directory
from mayros.core.spending import tokens_of
from mayros.core.usage import dollars
from mayros.errors import InvalidRequest, class_of
from mayros.events import Usage
from mayros.wire.frames import Count, ErrorShape, Request, Text, error_shape, parse_params
from mayros.ws.methods import commands
from mayros.ws.methods.attachments import ATTACHMENTS, Attachment, digest, images, within_budget
from mayros.ws.methods.claims import check_key, obtain, submit
from mayros.ws.methods.commands import Command
from mayros.ws.methods.where import effort, known_agent

if TYPE_CHECKING:
    from mayros.ws.session import Session

LONGEST_SECONDS = 86_400.0
#: The only values of `channel` that mean something without channels.
_CHANNELS = ("webchat", "last")


class AgentParams(msgspec.Struct, frozen=True, rename="camel"):
    """What clients may send. Of these, `lane`, `label` and what tells where an answer goes have no effect yet."""

    message: Text
    idempotency_key: Text
    agent_id: str | None = None
    session_key: str | None = None
    session_id: str | None = None
    timeout: Count | None = None
    extra_system_prompt: str | None = None
    attachments: tuple[Attachment, ...] | None = None
    deliver: bool | None = None
    channel: str | None = None
    reply_channel: str | None = None
    to: str | None = None
    reply_to: str | None = None
    thinking: str | None = None
    account_id: str | None = None
    reply_account_id: str | None = None
    thread_id: str | int | None = None
    group_id: str | None = None
    group_channel: str | None = None
    group_space: str | None = None
    lane: str | None = None
    input_provenance: dict[str, Any] | None = None
    label: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    spawned_by: str | None = None


def agent(session: Session, request: Request) -> None:
    """Checks what can be checked at once, then claims the key and runs."""
    params = parse_params(AgentParams, request.params, "agent", large=(ATTACHMENTS,))
    shown = images(params.attachments)
    turn = _turn(session, params, shown)
    command = commands.parse(params.message)
    renewal = command if command is not None and command.renews else None
    session.count_run()
    session.spawn(request.id, _run(session, request.id, turn, shown, renewal, digest(request, shown)))


def _invalid(text: str) -> InvalidRequest:
    return InvalidRequest(f"invalid agent params: {text}")


def _turn(session: Session, params: AgentParams, shown: Sequence[Image]) -> Turn:
    """The submission that the parameters ask for. Raises InvalidRequest."""
    check_key(params.idempotency_key, "agent")
    if params.deliver:
        raise _invalid("deliver: this gateway has no channels to deliver to")
    for channel in (params.channel, params.reply_channel):
        if channel and channel.strip().lower() not in _CHANNELS:
            raise _invalid(f"unknown channel: {channel[:64]}")
    chosen, key = _where(session.gateway.config.current.directory, params)
    timeout = chosen.timeout_seconds if params.timeout is None else float(min(params.timeout or LONGEST_SECONDS, LONGEST_SECONDS))
    return Turn(
        run_id=params.idempotency_key,
        agent=chosen,
        session=own_key(session.principal, key, "sessionKey"),
        stateless=False,
        messages=(user_message(params.message, shown),),
        door="ws",
        extra_system=params.extra_system_prompt or "",
        sampling=Sampling(reasoning_effort=effort(params.thinking)),
        timeout_seconds=timeout,
    )


def _where(directory: Directory, params: AgentParams) -> tuple[Agent, SessionKey]:
    """Agent and session. Without a session key it is the agent's main session."""
    agent_id = (params.agent_id or "").strip() or None
    text = (params.session_key or "").strip()
    chosen = None if agent_id is None else known_agent(directory, agent_id, "agent")
    if not text:
        if params.session_id:
            raise _invalid("sessionId alone cannot choose a session here: send sessionKey")
        chosen = chosen or directory.agents[directory.default_id]
        return chosen, directory.main_session(chosen.id)
    full = text[:6].lower() == "agent:"
    try:
        key = SessionKey.parse(text, None if full or chosen is None else chosen.id, directory.default_id, directory.main_key, param="sessionKey")
    except InvalidRequest as error:
        raise _invalid(f"malformed session key: {error.message}") from None
    if chosen is not None and key.agent_id != chosen.id:
        raise _invalid(f'agent "{chosen.id}" does not match session key agent "{key.agent_id}"')
    return chosen or known_agent(directory, key.agent_id, "agent"), key


async def _run(session: Session, request_id: str, turn: Turn, shown: Sequence[Image], renewal: Command | None, digest: bytes) -> None:
    gateway, principal = session.gateway, session.principal

    def accepted() -> None:
        session.reply(request_id, {"runId": turn.run_id, "status": "accepted", "acceptedAt": gateway.now_ms()})

    async def start(claim: Claim) -> Run | RunResult:
        if renewal is not None:
            return await commands.run(gateway, renewal, turn, principal, claim, accepted)
        return submit(gateway, turn, principal, claim, accepted)

    begin = partial(within_budget, gateway, turn, shown, start)
    work, fresh = await obtain(gateway, f"ws:agent:{principal.id}", turn.run_id, str(turn.session), digest, begin)
    if not isinstance(work, RunResult):
        session.started(work)
        if not fresh:
            accepted()
        work = await work.ended()
    if work.outcome == "ok":
        session.reply(request_id, {"runId": work.run_id, "status": "ok", "summary": "completed", "result": _result(work)})
    else:
        session.refuse(request_id, run_error(work), {**failed(work), "result": _result(work)})


def _result(result: RunResult) -> dict[str, object]:
    """What a run said, and what it took. `payloads` is empty when there is no text."""
    last = result.turns[-1].usage if result.turns else result.usage
    about = {
        "sessionId": result.session_id,
        "provider": result.provider,
        "model": result.model,
        "usage": _counts(result.usage),
        "lastCallUsage": _counts(last),
        "promptTokens": last.input + last.cache_read + last.cache_write,
    }
    return {
        "payloads": [{"text": result.text, "mediaUrl": None}] if result.text else [],
        "meta": {
            "durationMs": max(0, result.ended_at_ms - result.started_at_ms),
            "agentMeta": about,
            "aborted": result.outcome in ("aborted", "timeout"),
            "stopReason": result.finish_reason,
        },
    }


def _counts(usage: Usage) -> dict[str, object]:
    """Tokens by kind; and dollars, where the models have a price."""
    counts: dict[str, object] = {
        "input": usage.input,
        "output": usage.output,
        "cacheRead": usage.cache_read,
        "cacheWrite": usage.cache_write,
        "total": tokens_of(usage),
    }
    return {**counts, "cost": {"total": dollars(usage.cost_nano)}} if usage.cost_nano else counts


def failed(result: RunResult) -> dict[str, object]:
    """The payload beside the error of a run that did not end well."""
    status = "timeout" if result.outcome == "timeout" else "error"
    return {"runId": result.run_id, "status": status, "summary": result.error or result.outcome, "outcome": result.outcome}


def run_error(result: RunResult) -> ErrorShape:
    """The error of a run that did not end well."""
    code = result.error_code or "internal_error"
    return error_shape(class_of(code)(result.error, code=code))
