"""`mayros agent --local`: the gateway's own run in this process, on the same store and configuration.

Imports service (the composition root), config, net and core types. It holds the state directory's lock, so no gateway may be running.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mayros.cli.place import Place
from mayros.config.load import refuse_unsupported
from mayros.core.keys import SessionKey, new_id
from mayros.core.ports import Principal, Turn
from mayros.core.routing import Settings
from mayros.errors import GatewayError, StartError
from mayros.events import Event, TextDelta
from mayros.messages import Message, pack
from mayros.net.statedir import StateDir
from mayros.runtime import Core

SCOPES = frozenset({"operator.admin", "operator.read", "operator.write", "operator.approvals", "operator.pairing"})


class Printer:
    """Owns the run: hands on its text."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show

    async def send(self, events: list[Event]) -> None:
        """Show the text among the events."""
        for event in events:
            if type(event) is TextDelta:
                self._show(event.text)


async def run(
    reactor: Any, place: Place, message: str, agent_id: str | None, session_key: str | None, timeout: int | None, show: Callable[[str], None]
) -> dict[str, Any]:
    """One run to its end; the payload that the gateway's method `agent` would give. Raises StartError, GatewayError, or what ended the run."""
    loaded = place.load()
    refuse_unsupported(loaded.config, loaded.raw)
    state = StateDir.open(place.state_dir)
    try:
        state.lock()
    except StartError as failure:
        raise StartError(f"{failure}; leave out --local to use the gateway that is running", failure.status) from failure
    settings = place.settings(loaded)
    core = Core(settings, state, reactor, loaded.environ)
    core.open()
    try:
        run = core.runs.submit(_turn(settings, message, agent_id, session_key, timeout), Principal("owner", SCOPES), Printer(show))
        try:
            result = await run.ended()
        except BaseException:
            # Interrupted: the run is recorded as aborted before the store closes.
            run.lost()
            await run.ended()
            raise
    finally:
        await core.close()
    if result.outcome != "ok":
        raise GatewayError(result.error or f"the run ended: {result.outcome}")
    return {
        "runId": result.run_id,
        "status": "ok",
        "summary": "completed",
        "result": {
            "payloads": [{"text": result.text, "mediaUrl": None}],
            "meta": {
                "durationMs": result.ended_at_ms - result.started_at_ms,
                "agentMeta": {
                    "sessionId": result.session_id,
                    "provider": result.provider,
                    "model": result.model,
                    "usage": {
                        "input": result.usage.input,
                        "output": result.usage.output,
                        "total": result.usage.input + result.usage.output + result.usage.cache_read + result.usage.cache_write,
                    },
                },
                "aborted": False,
            },
        },
    }


def _turn(settings: Settings, message: str, agent_id: str | None, session_key: str | None, timeout: int | None) -> Turn:
    directory = settings.directory
    chosen = directory.agent(agent_id, "agent") if agent_id is not None else None
    if session_key is not None:
        key = SessionKey.parse(session_key, chosen.id if chosen else None, directory.default_id, directory.main_key, param="session key")
    else:
        key = directory.main_session(chosen.id if chosen else directory.default_id)
    agent = directory.agent(key.agent_id, "agent")
    return Turn(
        run_id=new_id(),
        agent=agent,
        session=key,
        stateless=False,
        messages=(pack(Message(role="user", content=message)),),
        door="cli",
        timeout_seconds=float(timeout) if timeout is not None else agent.timeout_seconds,
    )
