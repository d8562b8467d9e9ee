"""`agent`: run an agent. Answered twice under one id: accepted, then how the run ended. Imports mayros.core and mayros.wire."""

from __future__ import annotations

import re
from collections.abc import Coroutine
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mayros import errors
from mayros.core.keys import SessionKey
from mayros.core.ports import Claim, Conflict, Done, New, Principal, Run, RunResult, Turn
from mayros.core.routing import Agent, Directory
from mayros.errors import AgentNotFound, GatewayError, IdempotencyConflict, InvalidRequest, Unavailable
from mayros.messages import Message, pack
from mayros.wire.frames import Count, ErrorShape, Request, Text, canonical, error_shape, parse_params

if TYPE_CHECKING:
    from mayros.ws.context import Gateway
    from mayros.ws.session import Session

log = Logger()
Value = TypeVar("Value")

LONGEST_SECONDS = KEEP_SECONDS = 86_400.0
_CLAIM_ATTEMPTS = 3
_KEY = re.compile(r"[A-Za-z0-9._:-]{1,128}")
#: The only values of `channel` that mean something without channels.
_CHANNELS = ("webchat", "last")


class AgentParams(msgspec.Struct, frozen=True, rename="camel"):
    """What clients may send. Of these, `thinking`, `lane`, `label` and what tells where an answer goes have no effect yet."""

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
    digest = sha256(canonical(request.params)).digest()
    session.spawn(request.id, _run(session, request.id, turn, session.principal, digest))


def _invalid(text: str) -> InvalidRequest:
    return InvalidRequest(f"invalid agent params: {text}")


def _turn(directory: Directory, params: AgentParams) -> Turn:
    """The submission that the parameters ask for. Raises InvalidRequest."""
    if not _KEY.fullmatch(params.idempotency_key):
        raise _invalid("at /idempotencyKey: must be 1 to 128 letters, digits, '.', '_', ':' or '-'")
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
        timeout_seconds=timeout,
    )


def _where(directory: Directory, params: AgentParams) -> tuple[Agent, SessionKey]:
    """Agent and session. Without a session key it is the agent's main session."""
    agent_id = (params.agent_id or "").strip() or None
    text = (params.session_key or "").strip()
    chosen = None if agent_id is None else _known(directory, agent_id)
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
    return chosen or _known(directory, key.agent_id), key


def _known(directory: Directory, agent_id: str) -> Agent:
    try:
        return directory.agent(agent_id, "agentId")
    except AgentNotFound:
        raise _invalid(f'unknown agent id "{agent_id[:64]}"') from None


async def _run(session: Session, request_id: str, turn: Turn, principal: Principal, digest: bytes) -> None:
    gateway = session.gateway
    found = await _obtain(gateway, turn, principal, digest)
    if not isinstance(found, RunResult):
        session.reply(request_id, {"runId": turn.run_id, "status": "accepted", "acceptedAt": gateway.now_ms()})
        found = await found.ended()
    if found.outcome == "ok":
        session.reply(request_id, {"runId": found.run_id, "status": "ok", "summary": "completed", "result": _result(found)})
    else:
        session.refuse(request_id, _error(found), _failed(found))


async def _obtain(gateway: Gateway, turn: Turn, principal: Principal, digest: bytes) -> Run | RunResult:
    """The one run of this key: started now, still going, or how it ended.

    Cancelling only stops the waiting: a claim that is under way is brought to its end, or a key would be held by no run.
    """
    scope = f"ws:agent:{principal.id}"
    name = f"{scope}:{turn.run_id}"
    while (waiting := gateway.claiming.get(name)) is not None:
        turn_over: Deferred[None] = Deferred(waiting.remove)
        waiting.append(turn_over)
        await turn_over
    gateway.claiming[name] = waiting = []

    async def claim() -> Run | RunResult:
        try:
            return await _claim(gateway, turn, principal, scope, digest)
        finally:
            del gateway.claiming[name]
            for waiter in tuple(waiting):
                waiter.callback(None)

    return await _shielded(claim())


async def _claim(gateway: Gateway, turn: Turn, principal: Principal, scope: str, digest: bytes) -> Run | RunResult:
    for _ in range(_CLAIM_ATTEMPTS):
        answer = await gateway.idempotency.begin(scope, turn.run_id, digest, turn.run_id, KEEP_SECONDS)
        if isinstance(answer, New):
            return await _submit(gateway, turn, principal, answer.claim)
        if isinstance(answer, Done):
            return answer.result
        if isinstance(answer, Conflict):
            raise IdempotencyConflict
        run = gateway.runs.get(answer.run_id)
        if run is not None:
            return run
        # It ended in the moment between; the store knows how by now.
    raise Unavailable("The run of this idempotency key was lost. Try again with another key.")


async def _submit(gateway: Gateway, turn: Turn, principal: Principal, claim: Claim) -> Run:
    try:
        return gateway.runs.submit(msgspec.structs.replace(turn, claim=claim), principal, None, "keep")
    except Exception:
        try:
            await gateway.idempotency.release(claim)
        except GatewayError:
            log.failure("the idempotency key of run {run_id} could not be released; it expires by itself", run_id=turn.run_id)
        raise


async def _shielded(work: Coroutine[Deferred[object], object, Value]) -> Value:
    """Wait for something that goes on when the waiting is cancelled."""
    waiter: Deferred[Value] = Deferred()
    cancelled = False

    def over(outcome: Value | Failure) -> None:
        if not cancelled:
            waiter.callback(outcome)
        elif isinstance(outcome, Failure) and not outcome.check(GatewayError):
            log.failure("a run could not be started after its client had left", failure=outcome)

    Deferred.fromCoroutine(work).addBoth(over)
    try:
        return await waiter
    except CancelledError:
        cancelled = True
        raise


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
    about = {"sessionId": result.session_id, "provider": result.provider, "model": result.model, "usage": counts, "promptTokens": prompt}
    return {
        "payloads": [{"text": result.text, "mediaUrl": None}] if result.text else [],
        "meta": {
            "durationMs": max(0, result.ended_at_ms - result.started_at_ms),
            "agentMeta": about,
            "aborted": result.outcome in ("aborted", "timeout"),
            "stopReason": result.finish_reason,
        },
    }


def _failed(result: RunResult) -> dict[str, object]:
    """The payload beside the error: the partial answer is not lost."""
    status = "timeout" if result.outcome == "timeout" else "error"
    summary = result.error or result.outcome
    return {"runId": result.run_id, "status": status, "summary": summary, "outcome": result.outcome, "result": _result(result)}


_CLASSES = {kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, GatewayError) and kind.code}


def _error(result: RunResult) -> ErrorShape:
    """The error of a run that did not end well."""
    code = result.error_code or "internal_error"
    kind = InvalidRequest if code == "invalid_request" else _CLASSES.get(code, GatewayError)
    return error_shape(kind(result.error, code=code))
