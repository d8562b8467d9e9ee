"""What a run's tools do, for the connections that asked for it. Imports mayros.core, mayros.wire and mayros.ws.

Tool events are `agent` events of the stream `tool`, but not for every reader: a connection gets them that said so in `connect` (the cap
`tool-events`), of the runs it starts and of those that are live in the same session then. They are sent to it alone, so they have no number.
What a tool puts out goes only where the session's verbose level is `full`; the level is looked up when the first tool of a run begins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mayros.core.ports import Run, Runs
from mayros.errors import GatewayError
from mayros.events import ToolFinished, ToolStarted, ToolUpdate
from mayros.wire.frames import event_head, text_frame
from mayros.ws.streams import RunStream

if TYPE_CHECKING:
    from mayros.ws.broadcast import Peer

log = Logger()

#: What a client says in `connect` to get tool events.
TOOL_EVENTS = "tool-events"
#: The verbose level at which results are told.
FULL = "full"

#: Gives the verbose level of a session, by its key.
Verbose = Callable[[str], Awaitable[str | None]]
ToolEvent = ToolStarted | ToolUpdate | ToolFinished


class _Followed:
    """A live run: who follows its tools, whether results are told (None: not known yet), and what waits until that is known."""

    __slots__ = ("asked", "full", "open", "peers", "waiting")

    def __init__(self) -> None:
        self.peers: dict[Peer, None] = {}
        self.asked = False
        self.full: bool | None = None
        self.waiting: list[ToolEvent] = []
        #: Calls that have begun and not ended: their names by id.
        self.open: dict[str, str] = {}


class ToolFeed:
    """Tool events. `verbose` None: results are never told."""

    def __init__(self, runs: Runs, now_ms: Callable[[], int], verbose: Verbose | None) -> None:
        self._runs, self._now_ms, self._verbose = runs, now_ms, verbose
        self._followed: dict[str, _Followed] = {}

    def follow(self, peer: Peer, run: Run) -> None:
        """A connection has started a run: it follows its tools, and those of the other live runs of the session, until they end."""
        if self._runs.get(run.turn.run_id) is run:
            for live in self._runs.find(str(run.turn.session)):
                self._followed.setdefault(live.turn.run_id, _Followed()).peers[peer] = None

    def followed(self, run_id: str) -> bool:
        """Whether anybody follows the run's tools."""
        return run_id in self._followed

    def left(self, peer: Peer) -> None:
        """A connection is gone."""
        for run_id, followed in tuple(self._followed.items()):
            followed.peers.pop(peer, None)
            if not followed.peers:
                del self._followed[run_id]

    def tell(self, stream: RunStream, session: str, event: ToolEvent) -> None:
        """Something happened to a tool of a run of `session`."""
        followed = self._followed.get(stream.run_id)
        if followed is None:
            return
        if isinstance(event, ToolStarted):
            followed.open[event.call_id] = event.name
        elif isinstance(event, ToolFinished):
            followed.open.pop(event.call_id, None)
        if not followed.asked:
            followed.asked = True
            Deferred.fromCoroutine(self._look_up(followed, stream, session)).addErrback(self._broken, stream.run_id)
        if followed.full is not None or (isinstance(event, ToolStarted) and not followed.waiting):
            self._send(followed, stream, event)
        elif not isinstance(event, ToolUpdate):
            followed.waiting.append(event)

    def ended(self, stream: RunStream) -> None:
        """The run is over. What still waits for the level is told without results; calls that the end of the run cut off are closed."""
        followed = self._followed.pop(stream.run_id, None)
        if followed is not None:
            self._known(followed, stream, False)
            for call_id, name in followed.open.items():
                self._send(followed, stream, ToolFinished(call_id, name, True, "aborted"))

    async def _look_up(self, followed: _Followed, stream: RunStream, session: str) -> None:
        try:
            level = None if self._verbose is None else await self._verbose(session)
        except GatewayError as error:
            log.warn("run {run_id}: results of tools are not told: {error}", run_id=stream.run_id, error=error.message)
            level = None
        self._known(followed, stream, level == FULL)

    def _known(self, followed: _Followed, stream: RunStream, full: bool) -> None:
        if followed.full is None:
            followed.full = full
            waiting, followed.waiting = followed.waiting, []
            for event in waiting:
                self._send(followed, stream, event)

    def _send(self, followed: _Followed, stream: RunStream, event: ToolEvent) -> None:
        frame = text_frame(event_head("agent", stream.tool(event, followed.full is True, self._now_ms())), b"}")
        for peer in tuple(followed.peers):  # one may be given up because of it
            if not (isinstance(event, ToolUpdate) and peer.slow):
                peer.send(frame)

    @staticmethod
    def _broken(failure: Failure, run_id: str) -> None:
        log.failure("while telling of the tools of run {run_id}", failure=failure, run_id=run_id)
