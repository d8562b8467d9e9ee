"""How the gateway is: whether it can take work, and the numbers behind the WebSocket method `health`. Imports core and storage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from mayros.core.ports import Clock
from mayros.core.routing import Settings
from mayros.storage.overview import RECENT, Overview

log = Logger()

REFRESH_SECONDS = 60.0


class Health:
    """Keeps the payload of `health`, refreshed every minute. `settings` gives those in force, `now_ms` is the wall clock."""

    def __init__(self, settings: Callable[[], Settings], overview: Callable[[], Deferred[Overview]], clock: Clock, now_ms: Callable[[], int]) -> None:
        self._settings, self._overview, self._now_ms = settings, overview, now_ms
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
        began = self._now_ms()
        self._sessions = await self._overview()
        self._taken_ms = self._now_ms()
        self._duration = self._taken_ms - began

    def payload(self) -> dict[str, Any]:
        """The numbers in the result of the method `health`; all times in milliseconds."""
        directory, now = self._settings().directory, self._now_ms()
        agents = []
        for agent in directory.agents.values():
            entry: dict[str, Any] = {
                "agentId": agent.id,
                "isDefault": agent.id == directory.default_id,
                "heartbeat": {"enabled": False, "every": "0m", "everyMs": None, "prompt": "", "target": "none", "ackMaxChars": 300},
                "sessions": self._listed([self._sessions.get(agent.id, (0, []))], now),
            }
            if agent.name:
                entry["name"] = agent.name
            agents.append(entry)
        sessions = self._listed(self._sessions.values(), now)
        return {"ts": self._taken_ms, "durationMs": self._duration, "agents": agents, "sessions": sessions}

    def _listed(self, groups: Iterable[tuple[int, list[tuple[str, int]]]], now: int) -> dict[str, Any]:
        groups = list(groups)
        recent = sorted((row for _, rows in groups for row in rows), key=lambda row: -row[1])[:RECENT]
        return {
            "path": self._settings().state_dir,
            "count": sum(count for count, _ in groups),
            "recent": [{"key": key, "updatedAt": updated, "age": max(0, now - updated)} for key, updated in recent],
        }
