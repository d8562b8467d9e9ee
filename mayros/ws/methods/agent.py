"""`agent`: run an agent. Answered twice under one id: accepted, then how the run ended. Imports mayros.core and mayros.wire."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from mayros import errors
from mayros.core.keys import SessionKey
from mayros.core.ports import Claim, Run, RunResult, Sampling, Turn
from mayros.core.routing import Agent, Directory
from mayros.errors import GatewayError, InvalidRequest
from mayros.messages import Message, pack
from mayros.wire.frames import Count, ErrorShape, Request, Text, canonical, error_shape, parse_params
from mayros.ws.methods import commands
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
    attachments: tuple[msgspec.Raw, ...] | None = None
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
    params = parse_params(AgentParams, request.params, "agent")
    turn = _turn(session.gateway.config.current.directory, params)
    command = commands.parse(params.message)
    renewal = command if command is not None and command.renews else None
    session.spawn(request.id, _run(session, request.id, turn, renewal, sha256(canonical(request.params)).digest()))


def _invalid(text: str) -> InvalidRequest:
    return InvalidRequest(f"invalid agent params: {text}")


def _turn(directory: Directory, params: AgentParams) -> Turn:
    """The submission that the parameters ask for. Raises InvalidRequest."""
    check_key(params.idempotency_key, "agent")
    if params.attachments:
        raise _invalid("attachments are not supported by this gateway yet")
    if params.deliver:
        raise _invalid("deliver: this gateway has no channels to deliver to")
    for channel in (params.channel, params.reply_channel):
        if channel and channel.strip().lower() not in _CHANNELS:
            raise _invalid(f"unknown channel: {channel[:64]}")
    chosen, session = _where(directory, params)
    timeout = chosen.timeout_seconds if params.timeout is None else float(min(params.timeout or LONGEST_SECONDS, LONGEST_SECONDS))
    return Turn(
        run_id=params.idempotency_key,
        agent=chosen,
        session=session,
        stateless=False,
        messages=(pack(Message("user", params.message)),),
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


async def _run(session: Session, request_id: str, turn: Turn, renewal: Command | None, digest: bytes) -> None:
    gateway, principal = session.gateway, session.principal

    def accepted() -> None:
        session.reply(request_id, {"runId": turn.run_id, "status": "accepted", "acceptedAt": gateway.now_ms()})

    async def start(claim: Claim) -> Run | RunResult:
        if renewal is not None:
            return await commands.run(gateway, renewal, turn, principal, claim, accepted)
        return submit(gateway, turn, principal, claim, accepted)

    work, fresh = await obtain(gateway, f"ws:agent:{principal.id}", turn.run_id, str(turn.session), digest, start)
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
    usage = result.usage
    prompt = usage.input + usage.cache_read + usage.cache_write
    counts = {
        "input": usage.input,
        "output": usage.output,
        "cacheRead": usage.cache_read,
        "cacheWrite": usage.cache_write,
        "total": prompt + usage.output,
    }
    about = {
        "sessionId": result.session_id,
        "provider": result.provider,
        "model": result.model,
        "usage": counts,
        "lastCallUsage": counts,
        "promptTokens": prompt,
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


def failed(result: RunResult) -> dict[str, object]:
    """The payload beside the error of a run that did not end well."""
    status = "timeout" if result.outcome == "timeout" else "error"
    return {"runId": result.run_id, "status": status, "summary": result.error or result.outcome, "outcome": result.outcome}


_CLASSES = {kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, GatewayError) and kind.code}


def error_class(code: str) -> type[GatewayError]:
    """The class of a recorded error code."""
    return InvalidRequest if code == "invalid_request" else _CLASSES.get(code, GatewayError)


def run_error(result: RunResult) -> ErrorShape:
    """The error of a run that did not end well."""
    code = result.error_code or "internal_error"
    return error_shape(error_class(code)(result.error, code=code))
