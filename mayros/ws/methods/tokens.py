"""`tokens.create`, `tokens.list`, `tokens.revoke` and `tokens.rotate`: tokens of persons and programs. Imports mayros.core and mayros.wire.

Nobody gives away more than he has: these need `operator.admin`. A secret is told once, in the answer that makes it.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Annotated

import msgspec
from twisted.internet.defer import Deferred

from mayros.core.api_tokens import DEFAULT_SCOPES, MAX_AGENTS, Wanted, shown
from mayros.core.claims import shielded
from mayros.wire.frames import Request, Text, parse_params

if TYPE_CHECKING:
    from mayros.ws.session import Session

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Names = Annotated[tuple[Text, ...], msgspec.Meta(min_length=1, max_length=MAX_AGENTS)]
#: Epoch milliseconds.
Time = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_999)]
#: A month.
Grace = Annotated[int, msgspec.Meta(ge=0, le=31 * 86_400_000)]


class CreateParams(msgspec.Struct, frozen=True, rename="camel"):
    """What is left out is not narrowed, not limited, and does not end."""

    name: Name
    scopes: Names = DEFAULT_SCOPES
    agents: Names | None = None
    endpoints: Names | None = None
    rpm: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    tokens_per_day: Annotated[int, msgspec.Meta(ge=1, le=10**15)] | None = None
    expires_at_ms: Time | None = None


class ListParams(msgspec.Struct, frozen=True):
    """None."""


class RevokeParams(msgspec.Struct, frozen=True):
    """Which."""

    name: Name


class RotateParams(msgspec.Struct, frozen=True, rename="camel"):
    """`grace_ms`: for so long the old secret stays good. `expires_at_ms`: a new end; left out: as before."""

    name: Name
    grace_ms: Grace = 0
    expires_at_ms: Time | None = None


def tokens_create(session: Session, request: Request) -> None:
    """`{token, entry}`: the secret, which is told only now, and what is kept."""
    params = parse_params(CreateParams, request.params, "tokens.create")
    wanted = Wanted(
        params.name, params.scopes, params.agents, params.endpoints, params.rpm, params.tokens_per_day, params.expires_at_ms
    )  # fmt: skip
    gateway, act = session.gateway, session.acting

    async def work() -> Mapping[str, object]:
        secret, token = await gateway.api_tokens.create(wanted, gateway.config.current.directory.agents, act)
        return {"token": secret, "entry": shown(token, gateway.now_ms())}

    _answer(session, request, work())


def tokens_list(session: Session, request: Request) -> None:
    """`{ts, tokens: [entry]}`, by name, without secrets."""
    parse_params(ListParams, request.params, "tokens.list")
    gateway = session.gateway
    now = gateway.now_ms()
    session.reply(request.id, {"ts": now, "tokens": [shown(token, now) for token in gateway.api_tokens.list()]})


def tokens_revoke(session: Session, request: Request) -> None:
    """`{entry}`. Its sockets are closed and its runs end."""
    params = parse_params(RevokeParams, request.params, "tokens.revoke")
    gateway, act = session.gateway, session.acting

    async def work() -> Mapping[str, object]:
        return {"entry": shown(await gateway.api_tokens.revoke(params.name, act), gateway.now_ms())}

    _answer(session, request, work())


def tokens_rotate(session: Session, request: Request) -> None:
    """`{token, entry}`. Sockets of the old secret are closed when it ends."""
    params = parse_params(RotateParams, request.params, "tokens.rotate")
    gateway, act = session.gateway, session.acting

    async def work() -> Mapping[str, object]:
        secret, token = await gateway.api_tokens.rotate(params.name, params.grace_ms, params.expires_at_ms, act)
        return {"token": secret, "entry": shown(token, gateway.now_ms())}

    _answer(session, request, work())


def _answer(session: Session, request: Request, work: Coroutine[Deferred[object], object, Mapping[str, object]]) -> None:
    """Do it to its end, whatever becomes of the client."""

    async def answered() -> None:
        session.reply(request.id, await shielded(work))

    session.spawn(request.id, answered())
