"""How the gateway is: whether it can take work, and the numbers behind the WebSocket method `health`. Imports core."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from mayros.core.ports import Clock
from mayros.core.routing import Settings

log = Logger()

REFRESH_SECONDS = 60.0
RECENT = 5


class AgentSessions(msgspec.Struct, frozen=True):
    """The sessions of one agent: how many, and the newest few as (key, updated_ms)."""

    count: int
    recent: Sequence[tuple[str, int]]


#: Sessions by agent id, from the store.
Overview = Callable[[], Awaitable[dict[str, AgentSessions]]]


class Health:
    """Keeps the payload of `health`, refreshed every minute. `now_ms` is the wall clock."""

    def __init__(self, settings: Settings, overview: Overview, clock: Clock, now_ms: Callable[[], int]) -> None:
        self._settings, self._overview, self._now_ms = settings, overview, now_ms
        self._sessions: dict[str, AgentSessions] = {}
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
        began = self._now_ms()
        self._sessions = await self._overview()
        self._taken_ms = self._now_ms()
        self._duration = self._taken_ms - began

    def payload(self) -> dict[str, Any]:
        """The result of the method `health`; all times in milliseconds."""
        directory, now = self._settings.directory, self._now_ms()
        agents = []
        for agent in directory.agents.values():
            mine = self._sessions.get(agent.id, AgentSessions(0, ()))
            entry: dict[str, Any] = {
                "agentId": agent.id,
                "isDefault": agent.id == directory.default_id,
                "heartbeat": {"enabled": False, "every": "0m", "everyMs": None},
                "sessions": self._listed([mine], now),
            }
            if agent.name:
                entry["name"] = agent.name
            agents.append(entry)
        return {
            "ok": True,
            "ts": self._taken_ms,
            "durationMs": self._duration,
            "channels": {},
            "channelOrder": [],
            "channelLabels": {},
            "heartbeatSeconds": 0,
            "defaultAgentId": directory.default_id,
            "agents": agents,
            "sessions": self._listed(self._sessions.values(), now),
        }

    def _listed(self, groups: Any, now: int) -> dict[str, Any]:
        groups = list(groups)
        recent = sorted((row for group in groups for row in group.recent), key=lambda row: -row[1])[:RECENT]
        return {
            "path": self._settings.state_dir,
            "count": sum(group.count for group in groups),
            "recent": [{"key": key, "updatedAt": updated, "age": max(0, now - updated)} for key, updated in recent],
        }
