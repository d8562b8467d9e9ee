"""What waits for slow clients: one queue per socket, in front of its transport, and one budget for all. Imports mayros.ws nothing.

The transport takes frames while it has little to send (Twisted pauses a producer at 64 KiB); the rest waits here, where it is counted.
A client that lets too much wait is given up: the one over its own limit, or, when all together are over the budget, the one with most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer


class SendBudget:
    """Bytes that may wait for all clients together (`total`) and for one of them (`each`)."""

    def __init__(self, total: int, each: int) -> None:
        self.held = 0
        self.limit(total, each)
        #: How many clients were given up.
        self.given_up = 0
        self._slow: set[Outbox] = set()

    def limit(self, total: int, each: int) -> None:
        """Hold these limits from now on."""
        self.total, self.each = total, min(each, total)

    def grew(self, outbox: Outbox, size: int) -> None:
        """Count `size` more bytes; gives up whom it must."""
        self.held += size
        self._slow.add(outbox)
        if outbox.buffered > self.each:
            outbox.give_up()
        while self.held > self.total and self._slow:
            max(self._slow, key=_buffered).give_up()

    def shrank(self, outbox: Outbox, size: int) -> None:
        """Count `size` fewer bytes."""
        self.held -= size
        if not outbox.buffered:
            self._slow.discard(outbox)


@implementer(IPushProducer)
class Outbox:
    """The frames of one socket, in order. Register it with the transport as a streaming producer.

    `overflow` is called when the client is given up (nothing waits any more by then), `drained` each time everything has left.
    """

    def __init__(self, write: Callable[[bytes], object], budget: SendBudget, overflow: Callable[[], None], drained: Callable[[], None]) -> None:
        self._write, self._budget, self._overflow, self._drained = write, budget, overflow, drained
        self._queue: deque[bytes] = deque()
        self._paused = self._closed = False
        #: Bytes in the queue and the size of the frame on which the transport said stop.
        self.buffered = 0
        self._stuck = 0

    def send(self, frame: bytes) -> None:
        """Send now, or when the client has taken what came before."""
        if self._closed:
            return
        if not self._paused:
            self._write(frame)
            if not self._paused:
                return
            self._stuck = len(frame)
        else:
            self._queue.append(frame)
        self.buffered += len(frame)
        self._budget.grew(self, len(frame))

    def pauseProducing(self) -> None:
        """The transport has enough."""
        self._paused = True

    def resumeProducing(self) -> None:
        """The transport has sent all it had."""
        if self._closed:
            return
        self._paused = False
        self._left(self._stuck)
        self._stuck = 0
        while self._queue and not self._paused:
            frame = self._queue.popleft()
            self._write(frame)
            if self._paused:
                self._stuck = len(frame)
            else:
                self._left(len(frame))
        if not self._paused:
            self._drained()

    def stopProducing(self) -> None:
        """The connection is lost."""
        self.discard()

    def finish(self) -> None:
        """Hand everything to the transport and take no more: the close frame comes next."""
        if not self._closed:
            for frame in self._queue:
                self._write(frame)
            self.discard()

    def discard(self) -> None:
        """Forget what waits and take no more."""
        self._closed = True
        self._queue.clear()
        self._left(self.buffered)

    def give_up(self) -> None:
        """The client is too slow."""
        self._budget.given_up += 1
        self.discard()
        self._overflow()

    def _left(self, size: int) -> None:
        self.buffered -= size
        if size:
            self._budget.shrank(self, size)


def _buffered(outbox: Outbox) -> int:
    return outbox.buffered
