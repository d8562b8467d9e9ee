"""`chat.send`, `chat.abort` and `chat.inject`: a session as chat pages use it. Imports mayros.core and mayros.wire.

`chat.send` is answered at once; what becomes of the message is told in `chat` and `agent` events. Messages of a busy session wait in its lane,
each under its own run id.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import msgspec

from mayros.core.claims import shielded
from mayros.core.images import Image, user_message
from mayros.core.keys import SessionKey, new_id
from mayros.core.ports import Claim, Run, RunResult, Sampling, Turn
from mayros.core.reach import sees
from mayros.core.session_ports import EntryMeta
from mayros.errors import GatewayError, InvalidRequest
from mayros.messages import Message, pack
from mayros.wire.frames import Count, Request, Text, parse_params
from mayros.ws.methods import commands
from mayros.ws.methods.agent import LONGEST_SECONDS, failed, run_error
from mayros.ws.methods.attachments import ATTACHMENTS, Attachment, digest, images, within_budget
from mayros.ws.methods.claims import check_key, obtain, submit
from mayros.ws.methods.commands import GATEWAY_MODEL, GATEWAY_PROVIDER, Command
from mayros.ws.methods.quiet import abort, abort_session, quiet
from mayros.ws.methods.where import effort, known_agent, own_session, session_key

if TYPE_CHECKING:
    from mayros.ws.context import Gateway
    from mayros.ws.session import Session

#: Longest message that may be put into a transcript by hand, in characters.
MAX_INJECTED = 200_000
_CONTROL = re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]")


class SendParams(msgspec.Struct, frozen=True, rename="camel"):
    """`deliver` has no effect. `message` may be empty where there is an image."""

    session_key: Text
    message: str
    idempotency_key: Text
    thinking: str | None = None
    deliver: bool | None = None
    attachments: tuple[Attachment, ...] | None = None
    timeout_ms: Count | None = None


class AbortParams(msgspec.Struct, frozen=True, rename="camel"):
    """Without `run_id`: all runs of the session."""

    session_key: Text
    run_id: Text | None = None


class InjectParams(msgspec.Struct, frozen=True, rename="camel"):
    """`label` is put before the message."""

    session_key: Text
    message: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_INJECTED)]
    label: Annotated[str, msgspec.Meta(max_length=100)] | None = None


def chat_send(session: Session, request: Request) -> None:
    """Checks what can be checked at once; a stop word aborts, anything else claims its key and runs."""
    params = parse_params(SendParams, request.params, "chat.send", large=(ATTACHMENTS,))
    text = clean(params.message)
    directory = session.gateway.config.current.directory
    key = own_session(session, params.session_key, "chat.send")
    if commands.stops(text):
        _answer_abort(session, request.id, abort_session(session.gateway, key, "stop", "The run was stopped."))
        return
    check_key(params.idempotency_key, "chat.send")
    shown = images(params.attachments)
    if not text.strip() and not shown:
        raise InvalidRequest("message or attachment required")
    agent = known_agent(directory, key.agent_id, "chat.send")
    asked = params.timeout_ms
    turn = Turn(
        run_id=params.idempotency_key,
        agent=agent,
        session=key,
        stateless=False,
        messages=(user_message(text, shown),),
        door="ws",
        sampling=Sampling(reasoning_effort=effort(params.thinking)),
        timeout_seconds=agent.timeout_seconds if asked is None else min((asked / 1000) or LONGEST_SECONDS, LONGEST_SECONDS),
    )
    session.count_run()
    session.spawn(request.id, _send(session, request.id, turn, shown, commands.parse(text), digest(request, shown)))


def clean(message: str) -> str:
    """The text in normal form C, without control characters. Raises InvalidRequest."""
    text = unicodedata.normalize("NFC", message)
    if "\x00" in text:
        raise InvalidRequest("message must not contain null bytes")
    return _CONTROL.sub("", text)


async def _send(session: Session, request_id: str, turn: Turn, shown: Sequence[Image], command: Command | None, digest: bytes) -> None:
    gateway, principal = session.gateway, session.principal
    begun = False

    def started() -> None:
        nonlocal begun
        begun = True
        session.reply(request_id, {"runId": turn.run_id, "status": "started"})

    async def start(claim: Claim) -> Run | RunResult:
        row = await gateway.sessions.get(str(turn.session))
        if row is not None and row.settings.send_policy == "deny":
            raise InvalidRequest("send blocked by session policy")
        if command is None:
            return submit(gateway, turn, principal, claim, started)
        try:
            return await commands.run(gateway, command, turn, principal, claim, started)
        except GatewayError as error:
            if begun:
                _tell_failure(gateway, turn, error)
            raise

    begin = partial(within_budget, gateway, turn, shown, start)
    try:
        work, fresh = await obtain(gateway, f"ws:chat:{principal.id}", turn.run_id, str(turn.session), digest, begin)
    except GatewayError:
        if begun:
            return  # it was answered; the failure was told in an event
        raise
    if not isinstance(work, RunResult):
        session.started(work)
    if fresh:
        return
    if not isinstance(work, RunResult):
        session.reply(request_id, {"runId": turn.run_id, "status": "in_flight"})
    elif work.outcome == "ok":
        session.reply(request_id, {"runId": turn.run_id, "status": "ok"})
    else:
        session.refuse(request_id, run_error(work), failed(work))


def _tell_failure(gateway: Gateway, turn: Turn, error: GatewayError) -> None:
    payload = {"runId": turn.run_id, "sessionKey": str(turn.session), "seq": 0, "state": "error", "errorMessage": error.message}
    gateway.broadcaster.publish("chat", payload, "operator.read", session=str(turn.session))


def chat_abort(session: Session, request: Request) -> None:
    """Runs of every kind that the session has, the waiting ones too."""
    params = parse_params(AbortParams, request.params, "chat.abort")
    gateway = session.gateway
    key = own_session(session, params.session_key, "chat.abort")
    if params.run_id is None:
        _answer_abort(session, request.id, abort_session(gateway, key, "rpc"))
        return
    run = gateway.runs.get(params.run_id)
    if run is not None and not sees(session.principal, str(run.turn.session)):
        run = None
    if run is not None and run.turn.session != key:
        raise InvalidRequest("runId does not match sessionKey")
    _answer_abort(session, request.id, [params.run_id] if run is not None and abort(gateway, run, "rpc") else [])


def _answer_abort(session: Session, request_id: str, run_ids: list[str]) -> None:
    session.reply(request_id, {"ok": True, "aborted": bool(run_ids), "runIds": run_ids})


def chat_inject(session: Session, request: Request) -> None:
    """A message of the assistant that no model wrote."""
    params = parse_params(InjectParams, request.params, "chat.inject")
    key = session_key(session.gateway.config.current.directory, params.session_key, "chat.inject")
    text = clean(f"[{label}]\n\n{params.message}" if (label := (params.label or "").strip()) else params.message)
    session.spawn(request.id, _inject(session, request.id, key, text))


async def _inject(session: Session, request_id: str, key: SessionKey, text: str) -> None:
    message_id = await shielded(_injected(session.gateway, key, text))
    session.reply(request_id, {"ok": True, "messageId": message_id})


async def _injected(gateway: Gateway, key: SessionKey, text: str) -> str:
    message_id = new_id()
    async with quiet(gateway, key):
        if await gateway.sessions.get(str(key)) is None:
            raise InvalidRequest("session not found")
        meta = EntryMeta(provider=GATEWAY_PROVIDER, model=GATEWAY_MODEL, origin="inject")
        await gateway.sessions.append(key, pack(Message("assistant", text)), f"inject-{message_id}", meta)
    gateway.broadcaster.chat_final(f"inject-{message_id}", str(key), text, gateway.now_ms())
    return message_id
