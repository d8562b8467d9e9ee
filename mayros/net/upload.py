"""A large request on its way out: written piece by piece, as the socket takes it. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.interfaces import IPullProducer
from zope.interface import implementer

#: Requests of more bytes are worth it, and go out in pieces of so many.
LARGE, PIECE = 1 << 20, 256 << 10


@implementer(IPullProducer)
class Upload:
    """A large request on its way: the transport asks for the next piece when it has sent the one before, so that neither copies nor holds it all."""

    def __init__(self, transport: Any, parts: Iterable[bytes | memoryview]) -> None:
        self._transport, self._parts = transport, iter(parts)
        self._part: memoryview = memoryview(b"")
        self.done = False
        transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """Write the next piece."""
        if self.done:
            return
        pieces, left = [], PIECE
        while left > 0:
            if not self._part:
                following = next(self._parts, None)
                if following is None:
                    self.done = True
                    break
                self._part = memoryview(following)
                continue
            pieces.append(bytes(self._part[:left]))
            self._part = self._part[left:]
            left -= len(pieces[-1])
        self._transport.write(b"".join(pieces))
        if self.done:
            self._transport.unregisterProducer()

    def stopProducing(self) -> None:
        """The connection is lost."""
        self.done, self._part, self._parts = True, memoryview(b""), iter(())
