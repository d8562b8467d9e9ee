"""A client's connection to a gateway: requests with time limits, events to iterate over, a new socket when one is lost.

It knows conversations and no sockets: `dial` makes those. Imports mayros.ws.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Self

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from mayros.ws.conversation import CallFailed, Conversation
from mayros.ws.inbox import Event, Inbox, Missed

log = Logger()

REQUEST_SECONDS = 30.0
CLOSE_SECONDS = 3.0
#: Pauses before attempts to connect again: each twice as long as the one before it, and up to half of it shorter by chance.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
#: A connection that lasted this long begins with the shortest pause again.
STEADY_SECONDS = 30.0

#: Connects a socket, introduces the client, and gives the conversation with its hello. Raises CallFailed.
Dial = Callable[[Callable[[Event, int], None], Callable[[Exception], None]], Awaitable[tuple[Conversation, dict[str, Any]]]]


class Connection:
    """Made by `client.connect`. `async with` closes it; leaving by cancellation cuts it.

    With `reconnect` a lost connection is made anew, with pauses from 0.5 s to 30 s, until the gateway refuses for a reason that does not pass.
    Requests that were waiting for an answer fail: whether they were carried out is not known. New ones wait for the connection, within their limit.
    """

    def __init__(
        self,
        clock: IReactorTime,
        dial: Dial,
        *,
        reconnect: bool = False,
        on_event: Callable[[str, Any], None] | None = None,
        random: Callable[[], float],
    ) -> None:
        #: The payload of the newest `hello-ok`.
        self.hello: dict[str, Any] = {}
        self._clock, self._dial, self._reconnect, self._on_event, self._random = clock, dial, reconnect, on_event, random
        self._conversation: Conversation | None = None
        self._since = 0.0
        self._pause = FIRST_PAUSE
        self._again: Deferred[None] | None = None
        self._waiting: list[Deferred[None]] = []
        self._inboxes: set[Inbox] = set()
        self._ended: CallFailed | None = None

    @property
    def open(self) -> bool:
        """Whether there is a connection at the moment."""
        return self._conversation is not None

    async def start(self) -> None:
        """Connect, once. Raises CallFailed, or what `on_event` raised already."""
        conversation, self.hello = await self._dial(self._heard, self._lost)
        if conversation.over is not None:
            raise conversation.over
        self._conversation, self._since = conversation, self._clock.seconds()

    async def request(self, method: str, params: object = None, *, timeout: float | None = REQUEST_SECONDS, expect_final: bool = False) -> Any:
        """The payload of a method's answer; with `expect_final` of the first one that is not just "accepted".

        `timeout` in seconds (None: no limit) includes the wait for a connection. Raises CallFailed. Cancelling forgets the request.
        """
        work: Deferred[Any] = Deferred.fromCoroutine(self._request(method, params, expect_final))
        if timeout is not None:
            work.addTimeout(timeout, self._clock)
        try:
            return await work
        except TimeoutError:
            raise CallFailed("UNAVAILABLE", f"The gateway gave no answer within {timeout or 0:g} s.", passing=True) from None

    def events(self, **bounds: int) -> Inbox:
        """An iterator over the events from now on, which outlives a lost connection that is made anew. See Inbox; `bounds` are its."""
        inbox = Inbox(self._inboxes.discard, **bounds)
        if self._ended is not None:
            inbox.end(None)
        else:
            self._inboxes.add(inbox)
        return inbox

    async def close(self) -> None:
        """Say goodbye and wait until the socket is gone, at most a few seconds. What waits fails; iterations end."""
        conversation = self._stop()
        if conversation is not None:
            conversation.link.close(1000, "")
            gone = conversation.closed().addTimeout(CLOSE_SECONDS, self._clock)
            try:
                await gone
            except TimeoutError:
                conversation.link.abort()

    def abort(self) -> None:
        """Cut the connection."""
        conversation = self._stop()
        if conversation is not None:
            conversation.link.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, CancelledError | GeneratorExit):
            self.abort()
        else:
            await self.close()

    async def _request(self, method: str, params: object, final: bool) -> Any:
        while self._conversation is None:
            if self._ended is not None:
                error = self._ended
                raise CallFailed(error.code, error.message, error.details, passing=error.passing)
            waiter: Deferred[None] = Deferred(self._waiting.remove)
            self._waiting.append(waiter)
            await waiter
        return await self._conversation.ask(method, params, final=final)

    def _heard(self, event: Event, size: int) -> None:
        if self._on_event is not None:
            self._on_event(event.name, event.payload)
        for inbox in tuple(self._inboxes):
            inbox.put(event, size)

    def _lost(self, error: Exception) -> None:
        """The conversation has ended by itself."""
        if self._conversation is None:
            return
        self._conversation = None
        passing = isinstance(error, CallFailed) and error.passing
        if not self._reconnect or not passing:
            self._end(error)
            return
        log.info("the connection to the gateway was lost: {reason}", reason=str(error))
        if self._clock.seconds() - self._since >= STEADY_SECONDS:
            self._pause = FIRST_PAUSE
        for inbox in self._inboxes:
            inbox.put(Missed(None))
        self._again = Deferred.fromCoroutine(self._connect_again())
        self._again.addErrback(self._gave_up)

    async def _connect_again(self) -> None:
        """Until it succeeds or makes no sense any more; raises what then is the end."""
        at_least = 0.0
        while True:
            pause = self._pause * (1 - self._random() / 2)
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
            await deferLater(self._clock, max(pause, at_least))
            try:
                await self.start()
            except CallFailed as error:
                if not error.passing:
                    raise
                log.debug("still no connection to the gateway: {reason}", reason=error.message)
                at_least = min(error.retry_after or 0.0, 3600.0)
            else:
                self._wake()
                return

    def _gave_up(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._end(failure.value if isinstance(failure.value, Exception) else None)

    def _stop(self) -> Conversation | None:
        """Nothing more is done after this; the conversation that is left to be closed."""
        conversation, self._conversation = self._conversation, None
        self._end(None)
        if self._again is not None and not self._again.called:
            self._again.cancel()
        return conversation

    def _end(self, error: Exception | None) -> None:
        if self._ended is not None:
            return
        closed = CallFailed("UNAVAILABLE", "The connection to the gateway is closed.")
        self._ended = error if isinstance(error, CallFailed) else closed
        for inbox in tuple(self._inboxes):
            inbox.end(error)
        self._inboxes.clear()
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)
