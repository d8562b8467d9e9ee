"""Slash commands: what a person types into a chat and no model answers. Imports mayros.core.

`/stop` (and a message that is only a word like it) aborts; `/new` and `/reset` begin a new session, and what follows them is its first message;
`/status` and `/help` tell. The replies are kept in the transcript.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mayros.core.images import pictured, retold
from mayros.core.keys import SessionKey
from mayros.core.ports import Claim, Principal, Run, RunResult, Turn
from mayros.core.session_ports import EntryMeta, SessionRow
from mayros.errors import GatewayError
from mayros.messages import Message, pack
from mayros.ws.methods.claims import conclude, submit
from mayros.ws.methods.quiet import quiet
from mayros.ws.methods.rows import chosen, context_used

if TYPE_CHECKING:
    from mayros.ws.context import Gateway

log = Logger()

_STOP = frozenset(("/stop", "/abort", "stop", "esc", "abort", "wait", "exit", "interrupt"))
_COMMAND = re.compile(r"/([A-Za-z][A-Za-z0-9_-]{0,31})(?::|(?=\s)|$)(.*)", re.DOTALL)
#: Who wrote the messages that no model did, as clients know it.
GATEWAY_PROVIDER, GATEWAY_MODEL = "mayros", "gateway-injected"
_RENEWED = "New session started."
_HELP = """Commands:
/new or /reset: begin a new session; what follows is its first message
/stop: abort what runs in this session
/status: this session and its model
/help: this list"""


class Command(NamedTuple):
    """`name` is in lower case and without the slash; `rest` is what follows."""

    name: str
    rest: str

    @property
    def renews(self) -> bool:
        """Whether it begins a new session."""
        return self.name in ("new", "reset")


def stops(text: str) -> bool:
    """Whether a message means: abort what runs."""
    return text.strip().lower().removesuffix(":") in _STOP


def parse(text: str) -> Command | None:
    """The command that a message is, or None. A path (`/usr/bin`) is none."""
    found = _COMMAND.fullmatch(text.strip())
    return Command(found[1].lower(), found[2].strip()) if found is not None else None


async def run(gateway: Gateway, command: Command, turn: Turn, principal: Principal, claim: Claim, begun: Callable[[], None]) -> Run | RunResult:
    """Do what the command says: its answer, or the run of what follows it. `begun` is called when it is certain to be tried.

    Raises GatewayError, also after `begun`: the session stays active, the store cannot be written.
    """
    key, started_ms = turn.session, gateway.now_ms()
    if command.renews and (command.rest or pictured(turn.messages)):
        turn = msgspec.structs.replace(turn, messages=(retold(turn.messages[0], command.rest),))
        gateway.runs.check(turn, principal)
        begun()
        await renew(gateway, key)
        return submit(gateway, turn, principal, claim, lambda: None)
    begun()
    if command.renews:
        row: SessionRow | None = await renew(gateway, key)
        text = _RENEWED
    else:
        row = await gateway.sessions.get(str(key))
        text = _told(gateway, command, turn, row)
    recorded = _record(gateway, key, text, turn.run_id)
    if gateway.runs.find(str(key)):
        # Answered at once; it goes into the transcript when the session's lane is free.
        Deferred.fromCoroutine(recorded).addErrback(_not_recorded, turn.run_id)
    else:
        await recorded
    result = RunResult(
        run_id=turn.run_id,
        session_key=str(key),
        session_id=row.session_id if row is not None else "",
        agent_id=turn.agent.id,
        outcome="ok",
        text=text,
        started_at_ms=started_ms,
        ended_at_ms=gateway.now_ms(),
        finish_reason="stop",
        provider=GATEWAY_PROVIDER,
        model=GATEWAY_MODEL,
    )
    await conclude(gateway, claim, result)
    gateway.broadcaster.chat_final(turn.run_id, str(key), text, result.ended_at_ms)
    return result


async def renew(gateway: Gateway, key: SessionKey) -> SessionRow:
    """Abort what runs in the session, then give it a new id."""
    async with quiet(gateway, key, "The session was reset."):
        return await gateway.sessions.reset(key)


async def _record(gateway: Gateway, key: SessionKey, text: str, run_id: str) -> None:
    lease = await gateway.lanes.acquire(str(key))
    try:
        meta = EntryMeta(provider=GATEWAY_PROVIDER, model=GATEWAY_MODEL, origin="command")
        await gateway.sessions.append(key, pack(Message("assistant", text)), run_id, meta)
    finally:
        gateway.lanes.release(lease)


def _not_recorded(failure: Failure, run_id: str) -> None:
    if isinstance(failure.value, GatewayError):
        log.warn("the reply of command {run_id} is not in its transcript: {reason}", run_id=run_id, reason=failure.value.message)
    else:
        log.failure("the reply of command {run_id} could not be recorded", failure=failure, run_id=run_id)


def _told(gateway: Gateway, command: Command, turn: Turn, row: SessionRow | None) -> str:
    if command.name in ("help", "commands"):
        return _HELP
    if command.name == "status":
        return _status(gateway, turn, row)
    return f"The command /{command.name} is not available yet. /help lists those that are."


def _status(gateway: Gateway, turn: Turn, row: SessionRow | None) -> str:
    """For a person; no path and no secret."""
    settings, runs = gateway.config.current, len(gateway.runs.find(str(turn.session)))
    model = chosen(settings, turn.agent.id, row)
    used = context_used(row)
    lines = [
        f"Mayros {gateway.version}",
        f"Session: {turn.session}" + (f", {row.turns} turns, id {row.session_id}" if row is not None else ", new"),
        f"Agent: {turn.agent.id}",
        f"Model: {model.ref or 'none'}",
    ]
    if model.context_tokens:
        share = "" if used is None else f"{used:,} of "
        lines.append(f"Context: {share}{model.context_tokens:,} tokens")
    lines.append(f"Thinking: {row.settings.thinking_level or 'default' if row is not None else 'default'}")
    lines.append(f"Runs: {runs}" + (" (one thinks, the others wait)" if runs > 1 else ""))
    return "\n".join(lines)
