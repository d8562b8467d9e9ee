"""Makes the calls of one model turn: side by side where all of them only read, else in order. Imports net.redact; of core ports, calls, bounds.

A call always comes to a result, unless it is the caller's to make. What a tool does wrong, how long it takes and that the run is cancelled never keep
a call from having one, so that what is recorded is a transcript that every model takes.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import msgspec
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from mayros.core.bounds import KEPT_CHARS, UNTRUSTED_REFERENCE, cut, room, tool_message, wrapped
from mayros.core.calls import Call, spoken
from mayros.core.images import described
from mayros.core.pause import pause
from mayros.core.ports import Clock, ModelRequest, Principal, Turn
from mayros.core.repeats import Repeats
from mayros.core.tool_ports import ResultStore, Tool, ToolResult
from mayros.errors import GatewayError, ToolFailed, bare
from mayros.events import Event, ToolFinished, ToolStarted, ToolUpdate
from mayros.messages import ProviderState, ToolCall
from mayros.net.redact import Redactor

log = Logger()

T = TypeVar("T")

#: How long one call may take; a tool has its own, shorter limits.
CALL_SECONDS = 3_600.0
#: How long the tools of a run that is being ended may take to end what they started.
ABORT_SECONDS = 1.0
#: Characters of a text that are searched for secrets in one go: some milliseconds.
PIECE_CHARS = 32_768
#: The least time between two updates of one call, and the characters of one.
UPDATE_SECONDS, UPDATE_CHARS = 0.25, 8_000

ABORTED = "[Aborted: the run was ended before this call was finished. It may or may not have had its effect.]"
NOT_MADE = "[Aborted: the run was ended before this call was made.]"


class Host(Protocol):
    """The run, as its calls see it."""

    principal: Principal
    clock: Clock

    def record(self, messages: Sequence[msgspec.Raw]) -> None:
        """These messages were made by the run: a model turn with its calls, and a result for each that is not the caller's."""
        ...

    def hand_back(self, calls: Sequence[ToolCall]) -> None:
        """The run ends with these calls, which its caller has to answer."""
        ...

    async def waiting(self, answer: Awaitable[T]) -> T:
        """See tool_ports.ToolContext."""
        ...

    def asking(self, request: ModelRequest) -> ModelRequest:
        """A model is about to be asked, each time before it is: the request as it may be made, with as many tokens as the run may still use.

        Raises spending.LimitReached, which ends the run well, where there is no room for the prompt.
        """
        ...

    def exceeded(self) -> str | None:
        """Which limit on spending the run has reached, as a sentence for its reader; None: it may go on."""
        ...


class Surroundings(msgspec.Struct, frozen=True):
    """What is the same for all calls of a run. `window`: of the model in use, in tokens."""

    turn: Turn
    host: Host
    redact: Redactor
    results: ResultStore | None
    repeats: Repeats | None
    window: int
    images: bool
    call_seconds: float = CALL_SECONDS


class _Context:
    """See tool_ports.ToolContext."""

    def __init__(self, around: Surroundings, call: Call, told: Callable[[ToolUpdate], None], expired: Callable[[], None]) -> None:
        self.turn, self.principal, self.call_id, self.images = around.turn, around.host.principal, call.id, around.images
        self._around, self._call, self._told, self._expired = around, call, told, expired
        self._clock = around.host.clock
        self._limit: IDelayedCall | None = self._clock.callLater(around.call_seconds, expired)
        self._held: str | None = None
        self._next: IDelayedCall | None = None
        self._ended = False

    def update(self, text: str) -> None:
        """See tool_ports.ToolContext."""
        if self._ended:
            return
        self._held = text[-UPDATE_CHARS - self._around.redact.reach :]
        if self._next is None:
            self._tell()

    def _tell(self) -> None:
        held, self._held, self._next = self._held, None, None
        if held is not None:
            self._next = self._clock.callLater(UPDATE_SECONDS, self._tell)
            shown = self._around.redact.window(held, max(0, len(held) - UPDATE_CHARS), len(held), ended=False)
            self._told(ToolUpdate(self._call.id, self._call.name, _clean(shown)))

    async def waiting(self, answer: Awaitable[T]) -> T:
        """See tool_ports.ToolContext."""
        left = self._stop()
        try:
            return await self._around.host.waiting(answer)
        finally:
            if left is not None and not self._ended:
                self._limit = self._clock.callLater(left, self._expired)

    def _stop(self) -> float | None:
        limit, self._limit = self._limit, None
        if limit is None or not limit.active():
            return None
        left = limit.getTime() - self._clock.seconds()
        limit.cancel()
        return max(0.0, left)

    def end(self) -> None:
        self._ended = True
        self._stop()
        if self._next is not None:
            self._next.cancel()
            self._next = None


class Batch:
    """The calls of one model turn. Iterate `events` to make them; then, and also where it was closed early, `messages` has the results.

    A call that the caller has to make has none, unless the run was ended before he got it.
    """

    def __init__(self, around: Surroundings, said: str, calls: Sequence[Call], kept: ProviderState | None = None) -> None:
        self._around, self._said, self._calls, self._kept = around, said, calls, kept
        self._events: list[Event] = []
        self._updates: dict[str, ToolUpdate] = {}
        self._wake: Deferred[None] | None = None
        self._done = self._stopping = False
        #: The model turn and its results, for the next prompt.
        self.messages: list[msgspec.Raw] = []

    async def events(self) -> AsyncGenerator[list[Event], None]:
        """What happens, until all calls have ended."""
        work = Deferred.fromCoroutine(self._make())
        work.addBoth(self._ended)
        try:
            while True:
                batch, self._events = [*self._events, *self._updates.values()], []
                self._updates.clear()
                if batch:
                    yield batch
                elif self._done:
                    break
                else:
                    self._wake = Deferred()
                    await self._wake
        finally:
            if not self._done:
                await self._stop(work)
            self._record()

    def _ended(self, result: object) -> None:
        if isinstance(result, Failure):
            log.failure("run {run_id}: making its calls failed inside", failure=result, run_id=self._around.turn.run_id)
        self._done = True
        self._notice()

    def _notice(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None and not wake.called:
            wake.callback(None)

    async def _stop(self, work: Deferred[None]) -> None:
        """The run is being ended: so are its calls, which may take a second for it."""
        self._stopping = True
        patience: Deferred[None] = Deferred()
        patience.addCallback(lambda _: self._notice())
        timer = self._around.host.clock.callLater(ABORT_SECONDS, patience.callback, None)
        work.cancel()
        while not self._done and not patience.called:
            self._wake = Deferred()
            await self._wake
        if timer.active():
            timer.cancel()
        if not self._done:
            names = ", ".join(call.name for call in self._calls if call.begun and call.result is None)
            log.warn("run {run_id}: {names} did not end within a second", run_id=self._around.turn.run_id, names=names)

    def _record(self) -> None:
        for call in self._calls:
            if call.result is None and (call.handed is None or self._stopping):
                call.result = tool_message(call.id, ABORTED if call.begun else NOT_MADE)
        results = [call.result for call in self._calls if call.result is not None]
        self.messages = [spoken(self._said, self._calls, kept=self._kept), *results]
        written = spoken(self._said, self._calls, self._redacted, self._kept)
        self._around.host.record([written, *described(results)])

    def _redacted(self, written: str) -> str:
        """Arguments as they are shown and recorded: still JSON."""
        shown = _clean(self._around.redact(written))
        if shown != written:
            try:
                msgspec.json.decode(shown)
            except msgspec.DecodeError:
                return '{"redacted":true}'
        return shown

    async def _make(self) -> None:
        calls = [call for call in self._calls if call.handed is None]
        if all(call.error is not None or (call.tool is not None and call.tool.read_only) for call in calls):
            await DeferredList([Deferred.fromCoroutine(self._one(call)) for call in calls], consumeErrors=True)
        else:
            for call in calls:
                if not self._stopping:  # a tool may keep the cancel to itself
                    await self._one(call)

    async def _one(self, call: Call) -> None:
        """One call to its result, or to nothing where the run is being ended.

        Neither this nor `_attempt` ever fails: a Deferred that has failed and the frames that it failed in keep each other, and the run with them.
        """
        call.begun = call.error is None
        self._tell(ToolStarted(call.id, call.name, self._redacted(call.written)))
        try:
            result = await self._called(call)
            if result is None and self._stopping:
                return
            result = result or ToolResult(f"{call.name} was cancelled.", is_error=True)
            text, is_error = await self._shaped(call, result), result.is_error
            images = [(image.media_type, image.data) for image in result.images] if self._around.images else []
            call.result = tool_message(call.id, text, images)
        except CancelledError as cancelled:
            bare(cancelled)
            return
        except Exception:  # noqa: BLE001  as below
            log.failure("run {run_id}: the result of {name} could not be used", run_id=self._around.turn.run_id, name=call.name)
            text, is_error = f"Error: the result of {call.name} could not be used. The gateway's log has the details.", True
            call.result = tool_message(call.id, text)
        self._updates.pop(call.id, None)
        self._tell(ToolFinished(call.id, call.name, is_error, text))

    async def _called(self, call: Call) -> ToolResult | None:
        if call.error is not None or call.tool is None:
            return ToolResult(call.error or "", is_error=True)
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            work.cancel()

        context = _Context(self._around, call, self._update, expire)
        work = Deferred.fromCoroutine(self._attempt(call, call.tool, context))
        try:
            result = await work
        finally:
            context.end()
        if result is None and expired:
            seconds = self._around.call_seconds
            return ToolResult(f"{call.name} was stopped after {seconds:g} s, the limit of one call. Do it in smaller steps.", is_error=True)
        return result

    async def _attempt(self, call: Call, tool: Tool, context: _Context) -> ToolResult | None:
        """What the tool gives, or what is wrong; None: it was cancelled."""
        try:
            return await tool.call(call.arguments, context)
        except ToolFailed as failed:
            return ToolResult(str(bare(failed)), is_error=True)
        except TimeoutError as late:
            bare(late)
            return ToolResult(f"{call.name} did not end in time and was stopped. Do it in smaller steps.", is_error=True)
        except CancelledError as cancelled:
            bare(cancelled)
            return None
        except GatewayError as error:
            return ToolResult(bare(error).message, is_error=True)
        except Exception:  # noqa: BLE001  a defect in a tool must not end the run
            log.failure("run {run_id}: the tool {name} failed inside", run_id=self._around.turn.run_id, name=call.name)
            return ToolResult(f"{call.name} failed inside; the gateway's log has the details. Do without it.", is_error=True)

    async def _shaped(self, call: Call, result: ToolResult) -> str:
        """The result's text as the model gets it."""
        around = self._around
        text = (await self._hidden(_clean(result.text[: KEPT_CHARS + around.redact.reach])))[:KEPT_CHARS]
        if around.repeats is not None:
            around.repeats.ended(call.key, text)
        # What was kept of a result from outside is still from outside when it is read back.
        untrusted = result.untrusted or any(isinstance(value, str) and value.startswith(UNTRUSTED_REFERENCE) for value in call.arguments.values())
        limit = room(around.window, text, len(self._calls))
        if len(text) > limit:
            kept = await around.results.keep(around.turn.agent.id, text, untrusted) if around.results is not None else None
            text = cut(text, limit, kept)
        if untrusted:
            text = wrapped(text, secrets.token_hex(8))
        if result.is_error and not text.lower().startswith("error"):
            text = f"Error: {text}"
        if call.warning:
            text = f"{text}\n\n{call.warning}"
        return text or "(nothing)"

    async def _hidden(self, text: str) -> str:
        """The text without secrets. A long one is gone through in pieces, between which others have their turn; a thread would hold them up."""
        stream = self._around.redact.stream()
        pieces = [stream.feed(text[:PIECE_CHARS])]
        for start in range(PIECE_CHARS, len(text), PIECE_CHARS):
            await pause(self._around.host.clock, 0)
            pieces.append(stream.feed(text[start : start + PIECE_CHARS]))
        return "".join([*pieces, stream.end()])

    def _update(self, update: ToolUpdate) -> None:
        self._updates[update.call_id] = update
        self._notice()

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        self._notice()


def _clean(text: str) -> str:
    """The text without what cannot be written down: halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
