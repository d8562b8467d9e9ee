"""How the gateway is: whether it can take work, and the numbers behind the WebSocket method `health`. Imports core and storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from mayros.core.ports import Clock
from mayros.core.routing import Settings
from mayros.storage.overview import Overview

log = Logger()

REFRESH_SECONDS = 60.0


class Health:
    """Keeps the payload of `health`, refreshed every minute. `settings` gives those in force, `now_ms` is the wall clock."""

    def __init__(self, settings: Callable[[], Settings], overview: Callable[[], Deferred[Overview]], clock: Clock, now_ms: Callable[[], int]) -> None:
        self._settings, self._overview, self._now_ms, self._clock = settings, overview, now_ms, clock
        self._sessions: Overview = {}
        self._duration = 0
        self._taken_ms = now_ms()
        self._refreshing = LoopingCall(self._refresh)
        self._refreshing.clock = clock  # type: ignore[assignment]

    def start(self) -> None:
        """Refresh now and every minute."""
        self._refreshing.start(REFRESH_SECONDS)

    def stop(self) -> None:
        """No more refreshing."""
        if self._refreshing.running:
            self._refreshing.stop()

    def _refresh(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.refresh()).addErrback(lambda failure: log.failure("the sessions could not be counted", failure=failure))

    async def refresh(self) -> None:
        """Count the sessions again."""
        began = self._clock.seconds()
        self._sessions = await self._overview()
        self._taken_ms = self._now_ms()
        self._duration = round((self._clock.seconds() - began) * 1000)

    def payload(self) -> dict[str, Any]:
        """The numbers in the result of the method `health`; all times in milliseconds.

        Every client gets them, also one without any scope: so no session is named, and no path of this machine.
        """
        directory = self._settings().directory
        agents = []
        for agent in directory.agents.values():
            entry: dict[str, Any] = {
                "agentId": agent.id,
                "isDefault": agent.id == directory.default_id,
                "heartbeat": {"enabled": False, "every": "0m", "everyMs": None, "prompt": "", "target": "none", "ackMaxChars": 300},
                "sessions": _counted(self._sessions.get(agent.id, 0)),
            }
            if agent.name:
                entry["name"] = agent.name
            agents.append(entry)
        sessions = _counted(sum(self._sessions.values()))
        return {"ts": self._taken_ms, "durationMs": self._duration, "agents": agents, "sessions": sessions}


def _counted(count: int) -> dict[str, Any]:
    return {"path": "[redacted]", "count": count, "recent": []}
