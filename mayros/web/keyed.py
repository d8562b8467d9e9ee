"""Chat requests with an `Idempotency-Key`: one run for each key, and one answer, however often it is asked for (docs/http-api.md, "Retries").

A repeat of a live run waits for it, or follows its stream from the start (shared.py); afterwards it gets the stored answer, for a day. A stream can
be resumed behind any of its events by `Last-Event-ID` while its run lives and a few minutes after that. Imports core, wire and config.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import NamedTuple

from msgspec.structs import replace
from twisted.internet.defer import CancelledError

from mayros.core.address import Headers
from mayros.core.claim_ports import Idempotency
from mayros.core.claims import Asked, Claims, Found, shielded
from mayros.core.config_ports import ConfigControl
from mayros.core.limits import Budget
from mayros.core.pause import pause
from mayros.core.ports import Claim, Principal, Run, RunResult, Runs, Turn
from mayros.errors import GatewayError, InvalidRequest, RunAborted, StreamNotKept, class_of
from mayros.events import CallerCallDelta, Event, TextDelta
from mayros.web.answers import final_error, say_model, stream_headers
from mayros.web.inputs import Inputs
from mayros.web.request import GatewayRequest, reply, reserve
from mayros.web.shared import Follower, SharedStream, SharedStreams
from mayros.web.sse import Ticker
from mayros.web.turns import turn_of
from mayros.wire.chat_answers import Stream, completion

KEY, RESUME = "Idempotency-Key", "Last-Event-ID"
#: So much of a body is hashed at once, in a few milliseconds.
SLICE = 4 << 20

_VISIBLE = re.compile(rb"[\x21-\x7e]{1,255}")
_EVENT = re.compile(rb"([A-Za-z0-9_-]{1,64}):([0-9]{1,15})")
#: What else than the body decides what the run does.
_DECIDES = (b"x-mayros-agent-id", b"x-mayros-agent", b"x-mayros-session-key", b"x-mayros-model")
_REPLAYED = b"Idempotent-Replayed: true"


class Place(NamedTuple):
    """An event of a stream, by the id that a client has of it."""

    run_id: str
    number: int


class _Answer(NamedTuple):
    """What a request found, and how it wants its answer; the request itself is not needed any more."""

    found: Found
    model: str
    stream: bool
    include_usage: bool


def key_of(header: Headers) -> str | None:
    """The idempotency key of a request. Raises InvalidRequest."""
    lines = header(b"idempotency-key")
    if lines is None:
        return None
    if len(lines) != 1 or not _VISIBLE.fullmatch(lines[0]):
        raise InvalidRequest(f"{KEY} must be sent once, and be 1 to 255 visible ASCII characters.", param=KEY)
    return lines[0].decode("ascii")


def place_of(header: Headers) -> Place | None:
    """Where a request wants to resume its stream. Raises InvalidRequest."""
    lines = header(b"last-event-id")
    if lines is None:
        return None
    event = _EVENT.fullmatch(lines[0]) if len(lines) == 1 else None
    if event is None:
        raise _unknown_event()
    return Place(event[1].decode(), int(event[2]))


def _unknown_event() -> InvalidRequest:
    return InvalidRequest(f"{RESUME} must be the id of an event of the stream that this {KEY} and body started.", param=RESUME)


class Keyed:
    """Answers them. One for the process."""

    def __init__(self, settings: ConfigControl, runs: Runs, keys: Idempotency, inputs: Inputs, bodies: Budget, ticker: Ticker) -> None:
        self._settings, self._runs, self._keys, self._inputs = settings, runs, keys, inputs
        self._bodies, self._ticker, self._claims = bodies, ticker, Claims()
        self.streams = SharedStreams(ticker.clock)

    async def chat(self, request: GatewayRequest, principal: Principal) -> None:
        """One request."""
        key, place = key_of(request.header), place_of(request.header)
        if key is None:
            raise InvalidRequest(f"{RESUME} resumes the stream of a request with an {KEY}: send that, too.", param=RESUME)
        answer = await self._obtain(request, principal, key, place)
        work = answer.found.work
        if not answer.found.fresh:
            request.lines = (*request.lines, _REPLAYED)
        _of_run(request, work)
        if not answer.stream:
            await self._plain(request, answer)
            return
        shared = self.streams.get(_run_id(work))
        at = 0 if place is None else self._known(place, work, shared)
        result = work if isinstance(work, RunResult) else work.result
        if shared is not None and shared.journal.holds(at):
            await self._follow(request, shared, answer, at)
        elif result is None:
            raise StreamNotKept(f"The run goes on, but its stream is not kept from there on. Ask again, without {RESUME}, when it has ended.")
        elif place is not None and result.outcome == "ok":
            raise StreamNotKept(f"The stream is not kept from there on. Repeat the request without {RESUME} for the whole answer.")
        else:
            self._whole(request, result, answer)

    async def _obtain(self, request: GatewayRequest, principal: Principal, key: str, place: Place | None) -> _Answer:
        """The work of the key: found, or started now."""
        settings, header = self._settings.current, request.header
        endpoint = settings.config.gateway.http.endpoints.chat_completions
        body, request.body = request.body, b""
        digest = await self._digest(body, header)
        asked = await self._inputs.read(body, endpoint)
        del body
        if place is not None and not asked.stream:
            raise InvalidRequest(f"{RESUME} resumes streams: this request asks for none.", param=RESUME)
        turn = turn_of(header, asked, settings, principal, request.trace)
        share, left, started = request.take_share(), False, False

        def take(count: int) -> None:
            nonlocal share
            reserve(self._bodies, count)
            share += count

        async def start(claim: Claim) -> Run:
            nonlocal started
            if place is not None:
                raise _unknown_event()
            whole = await self._inputs.complete(turn, asked, endpoint, take)
            if left:
                raise RunAborted("The client went away.")
            run = self._start(replace(whole, claim=claim), principal, asked.model, asked.stream, asked.include_usage)
            started = True
            run.ended().addCallback(lambda _: self._bodies.give(share))
            return run

        async def work() -> Found:
            try:
                return await self._claims.obtain(self._keys, self._runs, Asked(f"http:chat:{principal.id}", key, digest, turn.run_id), start)
            finally:
                if not started:
                    self._bodies.give(share)

        try:
            found = await shielded(work())
        except CancelledError:
            left = True
            raise
        return _Answer(found, asked.model, asked.stream, asked.include_usage)

    async def _digest(self, body: bytes | bytearray, header: Headers) -> bytes:
        """What makes a request the same as another: its body as it is, and the headers that decide what the run does."""
        digest = sha256()
        for name in _DECIDES:
            for line in header(name) or ():
                digest.update(b"%b: %d %b\n" % (name, len(line), line))
        digest.update(b"\n")
        with memoryview(body) as view:
            for start in range(0, len(view), SLICE):
                if start:
                    await pause(self._ticker.clock, 0)  # others have their turn
                digest.update(view[start : start + SLICE])
        return digest.digest()

    def _start(self, turn: Turn, principal: Principal, model: str, stream: bool, include_usage: bool) -> Run:
        """Raises what Runs.submit raises."""
        if not stream:
            return self._runs.submit(turn, principal, None, "grace")
        shared = self.streams.open(turn.run_id, model)
        try:
            run = self._runs.submit(turn, principal, shared, "grace")
        except BaseException:
            self.streams.forget(turn.run_id)
            raise
        shared.started_ms = run.started_ms
        run.ended().addCallback(self._ended, run, shared, include_usage)
        return run

    def _ended(self, result: RunResult, run: Run, shared: SharedStream, include_usage: bool) -> None:
        """All has been said: tell the clients."""
        if result.outcome == "ok":
            shared.finish(result, include_usage)
        else:
            shared.fail(_error_of(run, bool(result.text or shared.journal.last)))
        self.streams.ended(result.run_id)

    def _known(self, place: Place, work: Run | RunResult, shared: SharedStream | None) -> int:
        """The number of the event behind which the stream is resumed. Raises InvalidRequest where there is no such event."""
        if place.run_id != _run_id(work) or (shared is not None and not 0 < place.number <= shared.journal.last):
            raise _unknown_event()
        return place.number

    async def _plain(self, request: GatewayRequest, answer: _Answer) -> None:
        work = answer.found.work
        logprobs: tuple[bytes, ...] = ()  # which are not stored
        if isinstance(work, RunResult):
            result, error = work, None
        else:
            if not answer.found.fresh:
                work.attach()
            try:
                result = await work.ended()
            except CancelledError:
                work.lost()
                raise
            error = _error_of(work, bool(result.text)) if result.outcome != "ok" else None
            logprobs = tuple(work.logprobs)
        say_model(request, result)
        if result.outcome != "ok":
            raise error or _stored_error(result)
        created = result.started_at_ms // 1000
        reply(request, completion(result.run_id, created, answer.model, result.text, result.finish_reason, result.usage, result.calls, logprobs))

    async def _follow(self, request: GatewayRequest, shared: SharedStream, answer: _Answer, at: int) -> None:
        work = answer.found.work
        run = None if isinstance(work, RunResult) else work
        if run is not None and not answer.found.fresh:
            run.attach()
        follower = Follower(request, shared, at, self._ticker, stream_headers)
        try:
            written = await follower.done
        except CancelledError:
            follower.abandon()
            if run is not None:
                run.lost()
            raise
        if not written and shared.error is not None:
            raise shared.error

    @staticmethod
    def _whole(request: GatewayRequest, result: RunResult, answer: _Answer) -> None:
        """The stored answer as a stream. Its events have no ids: it is not a stream that can be resumed, but can be asked for again."""
        say_model(request, result)
        if result.outcome != "ok":
            raise _stored_error(result)
        frames = Stream(result.run_id, result.started_at_ms // 1000, answer.model)
        said: list[Event] = [TextDelta(result.text)] if result.text else []
        said += [CallerCallDelta(place, call.function.arguments, call.id, call.function.name) for place, call in enumerate(result.calls)]
        stream_headers(request)
        end = frames.end(result.finish_reason, result.usage if answer.include_usage else None)
        request.end(frames.role() + frames.deltas(said) + end)


def _run_id(work: Run | RunResult) -> str:
    return work.run_id if isinstance(work, RunResult) else work.turn.run_id


def _of_run(request: GatewayRequest, work: Run | RunResult) -> None:
    """Say whose answer it is. A run that a crash ended is known by its id alone."""
    if not isinstance(work, RunResult):
        request.of_run(work.turn.run_id, work.turn.agent.id, str(work.turn.session))
    elif work.session_key:
        request.of_run(work.run_id, work.agent_id, work.session_key)
    else:
        request.run_id = work.run_id
        request.lines = (*request.lines, b"X-Mayros-Run-Id: " + work.run_id.encode("ascii"))


def _error_of(run: Run, spoken: bool) -> GatewayError:
    """The error of an ended run. What was recorded is the answer of its key from now on, so that the same request would only get it again."""
    return final_error(run.error, spoken or run.recorded)


def _stored_error(result: RunResult) -> GatewayError:
    """The recorded error of a run that ended earlier; it is final."""
    kind = class_of(result.error_code or "internal_error")
    error = kind(result.error, code=result.error_code if kind.code else None, should_retry=False)
    error.retry_after = None
    return error
