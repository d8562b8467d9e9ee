"""The embedded model: a child process, started on first use, watched, restarted with back-off, spoken to like any other provider.

A native crash, a hang or the kernel's out-of-memory killer ends one process that is not the gateway. It answers one request at a time; the
others wait here, in order, where waiting counts to their run's limit only. Imports core, net and providers.
"""

from __future__ import annotations

import math
import os
import secrets
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from mayros.core.lanes import LocalSlots
from mayros.core.models import EMBEDDED, Provider
from mayros.core.ports import ModelRequest
from mayros.errors import ServerShutdown, Unavailable, UpstreamError, UpstreamTimeout
from mayros.events import Event, ModelAnswered
from mayros.net.process import Child, Spawn, scrubbed
from mayros.providers.embedded import installed, model_path, runtime_installed
from mayros.providers.loopback import Loopback, Upstream

log = Logger()

QUEUE_LIMIT = 1024  # requests that wait for the model
START_SECONDS = 60.0  # from the child's start to its first sign of health
PROBE_SECONDS = 0.25  # between two looks at a child that is starting
PULSE_SECONDS = 10.0  # between two looks at a child that is answering
LONGEST_DELAY = 60.0  # of the back-off, which begins with a second and doubles
CONTEXT_TOKENS, ANSWER_TOKENS = 8192, 2048
MODEL_ID = EMBEDDED.partition("/")[2]

#: The child may not look into the working directory, so in a checkout it is told where `mayros` is. Where it is installed, it is found, and
#: naming the directory would put all that is installed before the standard library.
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_PATHS = {} if os.path.basename(_ROOT) in ("site-packages", "dist-packages") else {"PYTHONPATH": _ROOT}


class ModelUnavailable(Unavailable):
    """The embedded model cannot answer now. Try again shortly."""

    fallback = True


class Ready(msgspec.Struct, frozen=True):
    """What the child says when its server listens."""

    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


class LocalModel:
    """`ModelProvider` of the embedded model. `reach` makes the way to a child, given a provider with its address and key.

    `crashes` counts children that ended without being told to.
    """

    def __init__(
        self,
        provider: Provider,
        state_dir: str,
        clock: IReactorTime,
        spawn: Spawn,
        reach: Callable[[Provider], Upstream],
        *,
        environ: Mapping[str, str] = os.environ,
        runtime: Callable[[], bool] = runtime_installed,
    ) -> None:
        self.crashes = 0
        self._provider, self._state_dir, self._clock, self._spawn, self._reach = provider, state_dir, clock, spawn, reach
        self._environ, self._runtime = environ, runtime
        self._queue = LocalSlots(1, QUEUE_LIMIT)
        self._child: Child | None = None
        self._upstream: Upstream | None = None  # of a child that is healthy
        self._heard = False  # where the child listens
        self._probe: Deferred[None] | None = None
        self._start_limit: IDelayedCall | None = None
        self._starting: Deferred[Upstream] | None = None  # of the one request that waits for the child
        self._why = ""  # the child was killed
        self._delay = self._retry_at = 0.0
        self._stopped = False

    @classmethod
    def connect(cls, provider: Provider, state_dir: str, reactor: Any) -> LocalModel:
        """The real thing: children of this process, reached over loopback."""
        return cls(provider, state_dir, reactor, reactor.spawnProcess, lambda address: Loopback(address, reactor))

    def use(self, provider: Provider) -> None:
        """Other limits of waiting, from the next request on."""
        self._provider = provider

    @property
    def up(self) -> bool:
        """Whether a healthy child is running."""
        return self._upstream is not None

    def ready(self) -> bool:
        """Whether a request would be tried: the model is installed and not in back-off. It need not be running yet."""
        return not self._stopped and self._obstacle() is None

    async def stream(self, request: ModelRequest) -> AsyncGenerator[list[Event], None]:
        """As ModelProvider says. Raises QueueFull, Unavailable or ServerShutdown, and what the child's own provider raises."""
        if request.model.id != MODEL_ID:
            raise ModelUnavailable(f"There is no embedded model {request.model.id!r}; there is {EMBEDDED}.", should_retry=False)
        await self._queue.acquire()
        try:
            upstream = await self._running()
            async with aclosing(self._ask(upstream, request)) as batches:
                async for batch in batches:
                    yield batch
        finally:
            # Later, so that a row of failures does not pile up on the stack.
            self._clock.callLater(0, self._queue.release)

    def stop(self) -> Deferred[None]:
        """End the child for good: SIGTERM, SIGKILL after 3 s. Fires when it is gone. Requests are refused from now on."""
        self._stopped = True
        child = self._child
        self._let_go(ServerShutdown())
        return child.stop() if child is not None else succeed(None)

    # A request.

    async def _ask(self, upstream: Upstream, request: ModelRequest) -> AsyncGenerator[list[Event], None]:
        exchange = Exchange(self._provider.limits.first_byte, self._clock.seconds())
        pulse = Deferred.fromCoroutine(self._pulse(upstream, exchange))
        pulse.addErrback(_unless_cancelled)
        try:
            async with aclosing(upstream.stream(request)) as batches:
                async for batch in batches:
                    exchange.since = None
                    if any(type(event) is not ModelAnswered for event in batch):
                        exchange.limit = self._provider.limits.idle
                    yield batch
                    exchange.since = self._clock.seconds()
            self._delay = 0.0
        except UpstreamTimeout:
            self._hung(upstream, "did not answer in time")
            raise
        except UpstreamError as error:
            if self._why and self._upstream is not upstream:
                raise UpstreamTimeout(f"The embedded model {self._why} and was stopped.") from error
            raise
        finally:
            pulse.cancel()

    async def _pulse(self, upstream: Upstream, exchange: Exchange) -> None:
        """Look at the child every few seconds while it should be answering."""
        missed = 0
        while missed < 2:
            await deferLater(self._clock, PULSE_SECONDS)
            if exchange.since is not None and self._clock.seconds() - exchange.since >= exchange.limit:
                self._hung(upstream, f"gave nothing for {exchange.limit:g} s")
                return
            missed = 0 if await upstream.healthy() else missed + 1
        self._hung(upstream, "does not react")

    # The child.

    def _obstacle(self) -> ModelUnavailable | None:
        """Why no child may be started, if so."""
        if not installed(self._state_dir):
            return ModelUnavailable("The embedded model is not installed; run: mayros models install smollm2", should_retry=False)
        if not self._runtime():
            return ModelUnavailable(
                "The library that runs the embedded model is not installed; run: pip install 'mayros-gateway[local]'", should_retry=False
            )
        left = self._retry_at - self._clock.seconds()
        if left > 0:
            seconds = math.ceil(left)
            return ModelUnavailable(f"The embedded model ended unexpectedly. It can be used again in {seconds} s.", retry_after=seconds)
        return None

    def _running(self) -> Deferred[Upstream]:
        """A healthy child, started where there is none. Fails with Unavailable or ServerShutdown."""
        if self._stopped:
            raise ServerShutdown
        if self._upstream is not None:
            return succeed(self._upstream)
        obstacle = self._obstacle() if self._child is None else None
        if obstacle is not None:
            raise obstacle
        # Who gives up waiting does not stop the start: the next request wants the model too.
        waiter: Deferred[Upstream] = Deferred(self._nobody_waits)
        self._starting = waiter
        if self._child is None:
            self._start()
        return waiter

    def _start(self) -> None:
        key = secrets.token_urlsafe(32)
        child = self._child = Child(self._clock, lambda line: self._said(line, key), lambda how: self._gone(how, key))
        self._why, self._heard = "", False
        self._start_limit = self._clock.callLater(START_SECONDS, self._kill, f"did not start within {START_SECONDS:g} s")
        settings = {
            "parent": os.getpid(),
            "model": os.path.abspath(model_path(self._state_dir)),
            "alias": MODEL_ID,
            "api_key": key,
            "context": CONTEXT_TOKENS,
            "max_tokens": ANSWER_TOKENS,
        }
        argv = [sys.executable, "-P", "-m", "mayros.providers.llama_child"]
        try:
            child.start(self._spawn, argv, scrubbed(self._environ, **_PATHS))
        except OSError as error:
            self._gone(f"it could not be started: {error.strerror}", key)
        else:
            child.write(msgspec.json.encode(settings) + b"\n")

    def _said(self, line: bytes, key: str) -> None:
        """The child's one line."""
        if self._heard or self._stopped:
            return
        self._heard = True
        try:
            ready = msgspec.json.decode(line, type=Ready)
        except msgspec.DecodeError:
            self._kill("said something unexpected")
            return
        address = msgspec.structs.replace(
            self._provider,
            api="openai-completions",
            base_url=f"http://127.0.0.1:{ready.port}/v1",
            key=key,
            headers={},
            auth_header=True,
            ca_path=None,
        )
        self._probe = Deferred.fromCoroutine(self._until_healthy(self._reach(address)))
        self._probe.addErrback(_unless_cancelled)

    async def _until_healthy(self, upstream: Upstream) -> None:
        try:
            while not await upstream.healthy():
                await deferLater(self._clock, PROBE_SECONDS)
        except CancelledError:
            upstream.close()
            raise
        self._end_start_limit()
        self._probe = None
        self._upstream = upstream
        waiter, self._starting = self._starting, None
        if waiter is not None:
            waiter.callback(upstream)

    def _hung(self, upstream: Upstream, why: str) -> None:
        """A child that was healthy is not any more, unless it is gone already."""
        if self._upstream is upstream:
            self._kill(why)

    def _kill(self, why: str) -> None:
        self._why = why
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None
        if self._child is not None:
            self._child.kill()

    def _gone(self, how: str, key: str) -> None:
        """The child has ended."""
        child, self._child = self._child, None
        if self._stopped or child is None:
            return
        self.crashes += 1
        self._delay = min(max(1.0, 2 * self._delay), LONGEST_DELAY)
        self._retry_at = self._clock.seconds() + self._delay
        log.error(
            "embedded model: {why} ({how}); it may be started again in {delay:g} s. Its last words: {words}",
            why=self._why or "ended unexpectedly",
            how=how,
            delay=self._delay,
            words=child.last_words.replace(key, "***") or "none",
        )
        self._let_go(self._obstacle() or ModelUnavailable())

    def _let_go(self, error: Exception) -> None:
        """Forget all that hung on the child; who waited for it to start gets the error."""
        self._end_start_limit()
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.cancel()
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None
        waiter, self._starting = self._starting, None
        if waiter is not None:
            waiter.errback(error)

    def _nobody_waits(self, _: object) -> None:
        self._starting = None

    def _end_start_limit(self) -> None:
        if self._start_limit is not None and self._start_limit.active():
            self._start_limit.cancel()
        self._start_limit = None


class Exchange:
    """How long the model has been silent: `since` is None while the one who asked is busy with what came."""

    def __init__(self, limit: float, since: float) -> None:
        self.limit = limit
        self.since: float | None = since


def _unless_cancelled(failure: Failure) -> None:
    if failure.check(CancelledError) is None:
        log.failure("the watch over the embedded model failed", failure)
