"""What the decoders of all vendors have in common: the stream is cut into events, an error is kept back, and an answer may end too early. No I/O.

A vendor's decoder is a subclass with `feed`, `whole` and `_ending`. Imports errors, events, net.redact, wire.sse and, of providers, failures and
reading.
"""

from __future__ import annotations

from mayros.errors import GatewayError, UpstreamError
from mayros.events import Event, ModelAnswered
from mayros.net.redact import Redactor
from mayros.providers.failures import stream_failure
from mayros.providers.reading import TEXT_LIMIT
from mayros.wire.sse import EVENT_LIMIT, Decoder, TooLong

# What is said of answers that cannot be taken.
LONGER = f"its answer is longer than {TEXT_LIMIT >> 20} million characters"
NOT_OFFERED = "it called a tool, and was offered none"
NO_TEXT = "its answer has no text"


class AnswerDecoder:
    """The answer of one turn; see adapter.StreamDecoder. An error is kept back until the events before it are out: `close` raises it.

    `limit`: bytes of one event.
    """

    def __init__(self, provider: str, model: str, redact: Redactor, limit: int = EVENT_LIMIT) -> None:
        self._provider, self._model, self._redact = provider, model, redact
        self._sse = Decoder(limit)
        self._answered = False
        self._reason: str | None = None  # why the model stopped, once it said so
        self._size = 0  # characters
        self._error: GatewayError | None = None
        #: Nothing that follows matters: the end was seen, or an error.
        self.done = False

    @property
    def complete(self) -> bool:
        """Whether the end was there, or the model said that it was through, so that a stream which breaks off now has lost nothing."""
        return self._answered and self._error is None and (self.done or self._reason is not None)

    def close(self) -> list[Event]:
        """The stream has ended: the last events, unless `feed` gave them. Raises errors of mayros.errors."""
        events: list[Event] = []
        if not self.done:
            self.done = True
            events = self._last()
        return self._unless_failed(events)

    def _blocks(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """The events of one read, by name and data; none where nothing more matters."""
        if self.done:
            return []
        try:
            return self._sse.feed(data)
        except TooLong as error:
            self._fail(str(error))
            return []

    def _answer(self, events: list[Event]) -> None:
        """Something of the answer is there."""
        if not self._answered:
            self._answered = True
            events.append(ModelAnswered(self._provider, self._model))

    def _last(self, done: bool = False) -> list[Event]:
        """What is said at the end of the stream. `done`: the vendor's mark of it was there, so that the model need not have said why it stopped."""
        if not self._answered:
            self._fail("its answer cannot be understood")
        elif self._reason is None and not done:
            self._fail("its answer broke off")
        return self._ending() if self._error is None else []

    def _ending(self) -> list[Event]:
        """What is said last of an answer that is whole."""
        raise NotImplementedError

    def _unless_failed(self, events: list[Event]) -> list[Event]:
        if self._error is not None:
            raise self._error
        return events

    def _refuse(self, error: object) -> None:
        """An error in the vendor's form. What may follow it does not matter."""
        self._give_up(stream_failure(error, self._provider, self._redact))

    def _fail(self, why: str, kind: type[UpstreamError] = UpstreamError) -> None:
        self._give_up(kind(f"The provider {self._provider!r} failed: {why.rstrip('.')}."))

    def _give_up(self, error: GatewayError) -> None:
        """The first error is the one that counts."""
        self.done = True
        self._error = self._error or error
