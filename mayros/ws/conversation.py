"""The client's side of the Gateway protocol on one socket. No I/O: it is told what arrived and speaks through its link.

    challenge -> connect -> hello-ok -> requests and their answers, events

A gateway from which nothing has come for two of its ticks is given up. Imports mayros.wire.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from mayros.wire.frames import MAX_PAYLOAD, TICK_MS, ErrorShape
from mayros.ws.inbox import Event

#: Requests of one connection that may wait for their answers; the gateway takes fewer.
MAX_PENDING = 1024
GAVE_UP = 4000
_TICK_RANGE_MS = (1_000, 3_600_000)


class CallFailed(Exception):
    """It did not succeed. `code` is the protocol's; UNAVAILABLE also when there is no gateway or no answer.

    `payload` is what came with the error. `passing`: the same may succeed later, `retry_after` in seconds where the gateway said when.
    """

    def __init__(
        self,
        code: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        payload: object = None,
        *,
        passing: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.details, self.payload = code, message, details, payload
        self.passing, self.retry_after = passing, retry_after


class Link(Protocol):
    """The socket."""

    def send(self, payload: bytes) -> None:
        """Send a text message."""

    def close(self, code: int, reason: str) -> None:
        """Say goodbye; `Conversation.lost` follows, soon."""

    def abort(self) -> None:
        """Cut the connection."""


class _Frame(msgspec.Struct, frozen=True):
    type: str
    id: str | float | None = None
    event: str = ""
    ok: bool = False
    payload: msgspec.Raw = msgspec.Raw(b"null")
    error: ErrorShape = ErrorShape("UNAVAILABLE", "The gateway gave no reason.")
    seq: int | None = None


class _Asked(msgspec.Struct):
    answer: Deferred[Any]
    final: bool


_frame = msgspec.json.Decoder(_Frame).decode
_encode = msgspec.json.Encoder().encode


class Conversation:
    """One socket's. The glue sets `link` and calls `received` and `lost`.

    `introduce(nonce, ts_ms)` gives the parameters of `connect`; `ts_ms` is the gateway's time, None where it told none. `heard(event, size)`
    hears the events after `hello-ok`. `ready` fires with the payload of `hello-ok`, or fails with what prevented it; `gone` is called once
    when a conversation that was ready has ended.
    """

    link: Link

    def __init__(
        self,
        clock: IReactorTime,
        introduce: Callable[[str, int | None], Mapping[str, object]],
        heard: Callable[[Event, int], None],
        gone: Callable[[Exception], None],
    ) -> None:
        self.ready: Deferred[dict[str, Any]] = Deferred()
        self._clock, self._introduce, self._heard, self._gone = clock, introduce, heard, gone
        self._asked: dict[str, _Asked] = {}
        self._count = 0
        self._introduced = self._open = self._closed = False
        #: What ended it.
        self.over: Exception | None = None
        self._last_heard = 0.0
        self._watch: IDelayedCall | None = None
        self._leaving: list[Deferred[None]] = []

    def received(self, payload: bytes) -> None:
        """A message arrived. What makes no sense ends the conversation."""
        if self.over is not None:
            return
        try:
            frame = _frame(payload)
            value = msgspec.json.decode(frame.payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.end(CallFailed("UNAVAILABLE", "The gateway sent a frame that cannot be read."), "unreadable frame")
            return
        self._last_heard = self._clock.seconds()
        if frame.type == "event":
            self._event(Event(frame.event, value, frame.seq), len(payload))
        elif frame.type == "res" and isinstance(frame.id, str):
            self._answered(frame, value)

    def ask(self, method: str, params: object = None, *, final: bool = False) -> Deferred[Any]:
        """Send a request. Fires with the payload of the answer (`final`: of the first that is not just "accepted") or fails with CallFailed.

        Cancelling forgets the request; what it started at the gateway goes on.
        """
        if self.over is not None:
            raise self.over
        if len(self._asked) >= MAX_PENDING:
            raise CallFailed("UNAVAILABLE", f"{MAX_PENDING} requests wait for their answers already.", passing=True)
        self._count += 1
        request_id = str(self._count)
        message = _encode({"type": "req", "id": request_id, "method": method, "params": {} if params is None else params})
        if len(message) > MAX_PAYLOAD:
            raise CallFailed("INVALID_REQUEST", f"The request is larger than {MAX_PAYLOAD} bytes.")
        asked = _Asked(Deferred(lambda _: self._forget(request_id)), final)
        self._asked[request_id] = asked
        self.link.send(message)
        return asked.answer

    def end(self, error: Exception, reason: str = "") -> None:
        """Give up: everything that waits fails with `error`, and the socket is closed."""
        if self.over is None:
            self._finish(error)
            self.link.close(GAVE_UP, reason)

    def lost(self, error: Exception) -> None:
        """The socket is gone."""
        self._finish(error)
        self._closed = True
        leaving, self._leaving = self._leaving, []
        for waiter in leaving:
            waiter.callback(None)

    def closed(self) -> Deferred[None]:
        """Fires when the socket is gone."""
        if self._closed:
            return succeed(None)
        waiter: Deferred[None] = Deferred(self._leaving.remove)
        self._leaving.append(waiter)
        return waiter

    def _finish(self, error: Exception) -> None:
        if self.over is not None:
            return
        self.over = error
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if not self.ready.called:
            self.ready.errback(error)
        asked, self._asked = self._asked, {}
        for one in asked.values():
            if not one.answer.called:
                one.answer.errback(error)
        if self._open:
            self._gone(error)

    def _event(self, event: Event, size: int) -> None:
        if event.name == "connect.challenge":
            if not self._introduced:
                self._introduced = True
                self._connect(event.payload if isinstance(event.payload, dict) else {})
        elif self._open:
            self._heard(event, size)

    def _connect(self, challenge: Mapping[str, Any]) -> None:
        nonce, ts = challenge.get("nonce"), challenge.get("ts")
        told = ts if isinstance(ts, int) and not isinstance(ts, bool) and ts >= 0 else None
        answer = self.ask("connect", self._introduce(nonce if isinstance(nonce, str) else "", told))
        answer.addCallbacks(self._welcomed, lambda failure: self._finish(failure.value))

    def _welcomed(self, hello: Any) -> None:
        if not isinstance(hello, dict):
            self.end(CallFailed("UNAVAILABLE", "The gateway's hello makes no sense."), "unreadable hello")
            return
        self._open = True
        policy = hello.get("policy")
        tick_ms = policy.get("tickIntervalMs") if isinstance(policy, dict) else None
        low, high = _TICK_RANGE_MS
        tick = (min(max(tick_ms, low), high) if isinstance(tick_ms, int) else TICK_MS) / 1000
        self._watch = self._clock.callLater(tick, self._look, tick)
        if not self.ready.called:
            self.ready.callback(hello)

    def _look(self, tick: float) -> None:
        """A busy gateway leaves ticks out for a client that has much to read, so anything it sends will do."""
        self._watch = None
        silent = self._clock.seconds() - self._last_heard
        if silent >= 2 * tick:
            self.end(CallFailed("UNAVAILABLE", f"Nothing has come from the gateway for {silent:.0f} s.", passing=True), "tick timeout")
        else:
            self._watch = self._clock.callLater(tick, self._look, tick)

    def _answered(self, frame: _Frame, payload: Any) -> None:
        asked = self._asked.get(str(frame.id))
        if asked is None or (frame.ok and asked.final and isinstance(payload, dict) and payload.get("status") == "accepted"):
            return
        self._forget(str(frame.id))
        if frame.ok:
            asked.answer.callback(payload)
        else:
            asked.answer.errback(_refusal(frame.error, payload))

    def _forget(self, request_id: str) -> None:
        self._asked.pop(request_id, None)


def _refusal(error: ErrorShape, payload: object) -> CallFailed:
    passing = bool(error.retryable) if error.retryable is not None else error.code == "UNAVAILABLE"
    after = None if error.retry_after_ms is None else max(0, error.retry_after_ms) / 1000
    return CallFailed(error.code, error.message, error.details, payload, passing=passing, retry_after=after)
