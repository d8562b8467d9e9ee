"""The embedded model: its child process is played, its time is a clock. What a real one does is shown by .ci/embedded_answer.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, DeferredQueue
from twisted.internet.error import ConnectionRefusedError, ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mayros.config.schema import Models
from mayros.core.models import EMBEDDED, Catalogue, Model, Provider
from mayros.core.ports import ModelRequest, Sampling
from mayros.errors import GatewayError, QueueFull, ServerShutdown, Unavailable, UpstreamError, UpstreamTimeout
from mayros.events import Event, ModelAnswered, TextDelta, TurnFinished, Usage
from mayros.messages import Message, pack
from mayros.net.process import Child, scrubbed
from mayros.providers.embedded import SMOLLM2, model_path
from mayros.providers.llama_child import quota
from mayros.providers.local import LocalModel
from mayros.providers.loopback import Loopback

FOUND = Catalogue(Models(), {}).find(EMBEDDED)
assert FOUND is not None
MODEL: Model = FOUND
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(sys.modules[LocalModel.__module__].__file__ or ""))).removesuffix(os.sep + "mayros")
ANSWERED = ModelAnswered("local", MODEL.id)


class Process:
    """The transport of a played process: what it was given, and its end when the test says so (or at the signals it obeys)."""

    def __init__(self, protocol: ProcessProtocol, args: list[str], env: dict[str, str], pid: int) -> None:
        self.protocol, self.args, self.env, self.pid = protocol, args, env, pid
        self.written = b""
        self.signals: list[int] = []
        self.ended = False
        self.at_once = (signal.SIGKILL,)  # signals it ends at while the call is made

    def write(self, data: bytes) -> None:
        """Its standard input."""
        self.written += data

    def signalProcess(self, number: int) -> None:
        """Its end, where it obeys."""
        if self.ended:
            raise ProcessExitedAlready
        self.signals.append(number)
        if number in self.at_once:
            self.end(signal=number)

    def says(self, text: str) -> None:
        """A line on its standard output."""
        self.protocol.outReceived(text.encode() + b"\n")

    def end(self, status: int | None = None, signal: int | None = None) -> None:
        """The process is over and its pipes are empty."""
        self.ended = True
        reason = Failure(ProcessDone(0) if status == 0 else ProcessTerminated(status, signal))
        self.protocol.processExited(reason)
        self.protocol.processEnded(reason)


class Processes:
    """Plays `reactor.spawnProcess`."""

    def __init__(self) -> None:
        self.started: list[Process] = []
        self.refuse: OSError | None = None

    def __call__(self, processProtocol: ProcessProtocol, executable: str, args: list[str], env: dict[str, str]) -> Process:
        if self.refuse is not None:
            raise self.refuse
        process = Process(processProtocol, args, env, 1000 + len(self.started))
        self.started.append(process)
        processProtocol.makeConnection(process)  # type: ignore[arg-type]
        return process


class Way:
    """Plays the way to a child: each request is a queue of batches that the test fills; an exception ends it."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.requests: list[ModelRequest] = []
        self.batches: DeferredQueue[Any] = DeferredQueue()
        self.health: bool | Deferred[bool] = True
        self.looks = 0
        self.closed = False
        self.over: list[str] = []

    async def stream(self, request: ModelRequest) -> AsyncGenerator[list[Event], None]:
        self.requests.append(request)
        how = "closed"
        try:
            while True:
                batch = await self.batches.get()
                if isinstance(batch, Exception):
                    raise batch
                yield batch
                if any(isinstance(event, TurnFinished) for event in batch):
                    how = "finished"
                    return
        finally:
            self.over.append(how)

    async def healthy(self) -> bool:
        self.looks += 1
        return await self.health if isinstance(self.health, Deferred) else self.health

    def close(self) -> None:
        self.closed = True

    def answers(self, text: str) -> None:
        """A whole answer in one batch."""
        self.batches.put([ANSWERED, TextDelta(text), Usage(3, 1), TurnFinished("stop")])


class Asked:
    """One request on its way: its text so far, and its end."""

    def __init__(self, model: LocalModel, request: ModelRequest) -> None:
        self.text = ""
        self.error: Exception | None = None
        self.done = False
        self.hold: Deferred[None] | None = None  # while set, the one who asked is busy with what came
        self.task = Deferred.fromCoroutine(self._run(model, request))
        self.task.addErrback(self._failed)

    async def _run(self, model: LocalModel, request: ModelRequest) -> None:
        async with aclosing(model.stream(request)) as batches:
            async for batch in batches:
                self.text += "".join(event.text for event in batch if isinstance(event, TextDelta))
                if self.hold is not None:
                    await self.hold
        self.done = True

    def _failed(self, failure: Failure) -> None:
        assert isinstance(failure.value, Exception)
        self.error = failure.value


class LocalModelTests(SynchronousTestCase):
    """The provider `local`."""

    def setUp(self) -> None:
        self.state = self.mktemp()
        self.clock, self.processes = Clock(), Processes()
        self.ways: list[Way] = []
        self.runtime = True
        self.healthy = True
        os.makedirs(os.path.join(self.state, "models"))
        with open(model_path(self.state), "wb") as file:
            file.truncate(SMOLLM2.size)  # a hole: it takes no room
        self.model = LocalModel(
            MODEL.provider,
            self.state,
            self.clock,
            self.processes,
            self.reach,
            environ={"PATH": "/bin", "OPENAI_API_KEY": "sk-secret", "PYTHONPATH": "/elsewhere"},
            runtime=lambda: self.runtime,
        )

    def reach(self, provider: Provider) -> Way:
        """The way to a child that has said its port."""
        way = Way(provider)
        way.health = self.healthy
        self.ways.append(way)
        return way

    def ask(self, text: str = "Hi") -> Asked:
        """Send a request."""
        asked = Asked(self.model, ModelRequest(MODEL, "", [pack(Message(role="user", content=text))], Sampling(), "run-1"))
        self.addCleanup(asked.task.cancel)
        return asked

    def up(self) -> Process:
        """The newest child, having said its port."""
        child = self.processes.started[-1]
        child.says('{"port": 4711}')
        return child

    def answered(self, text: str = "Hello") -> Asked:
        """A request that was answered."""
        asked = self.ask()
        if not self.model.up:
            self.up()
        self.ways[-1].answers(text)
        self.clock.advance(0)
        self.assertTrue(asked.done, asked.error)
        return asked

    def error(self, asked: Asked, kind: type[GatewayError]) -> GatewayError:
        """The error that a request ended with."""
        assert isinstance(asked.error, kind), asked.error
        return asked.error

    def test_started_on_first_use(self) -> None:
        """No child before the first request; from then on one child for all."""
        self.assertEqual((self.processes.started, self.model.ready(), self.model.up), ([], True, False))
        self.assertEqual(self.answered("Hello").text, "Hello")
        self.assertEqual(self.answered("Again").text, "Again")
        self.assertEqual(len(self.processes.started), 1)
        self.assertTrue(self.model.up)

    def test_what_the_child_is_given(self) -> None:
        """The child gets model and key on its standard input: nothing secret in its arguments or environment, nothing of the user's PYTHONPATH."""
        self.answered()
        child = self.processes.started[0]
        settings = json.loads(child.written)
        self.assertEqual(settings["model"], os.path.abspath(model_path(self.state)))
        self.assertEqual((settings["parent"], settings["context"]), (os.getpid(), 8192))
        self.assertEqual(child.args, [sys.executable, "-P", "-m", "mayros.providers.llama_child"])
        self.assertEqual({**child.env, "PYTHONPATH": ROOT}, {"PATH": "/bin", "PYTHONPATH": ROOT})
        self.assertNotIn("elsewhere", child.env.get("PYTHONPATH", ""))
        self.assertGreaterEqual(len(settings["api_key"]), 40)

    def test_reached_with_its_own_key(self) -> None:
        """The child is spoken to at the port it said, with the key that only it has; a later child has another."""
        self.answered()
        provider = self.ways[0].provider
        self.assertEqual(provider.base_url, "http://127.0.0.1:4711/v1")
        self.assertEqual(provider.key, json.loads(self.processes.started[0].written)["api_key"])
        self.processes.started[0].end(signal=signal.SIGSEGV)
        self.clock.advance(1)
        self.answered()
        self.assertNotEqual(self.ways[1].provider.key, provider.key)

    def test_waits_until_it_is_healthy(self) -> None:
        """A child that listens but does not answer yet gets no request until it does."""
        self.healthy = False
        asked = self.ask()
        self.up()
        self.clock.advance(0.25)
        self.assertEqual((self.ways[0].looks, self.ways[0].requests, self.model.up), (2, [], False))
        self.ways[0].health = True
        self.clock.advance(0.25)
        self.ways[0].answers("Hello")
        self.assertEqual(asked.text, "Hello")

    def test_start_takes_too_long(self) -> None:
        """A child that is not healthy after 60 s is killed, and the request is refused with a time to come back."""
        self.healthy = False
        for speaks in (False, True):
            asked = self.ask()
            if speaks:
                self.up()
            self.clock.pump([0.25] * 239)
            self.assertIsNone(asked.error)
            self.clock.advance(0.25)
            self.assertEqual(self.processes.started[-1].signals, [signal.SIGKILL])
            self.assertIsNotNone(self.error(asked, Unavailable).retry_after)
            self.clock.advance(2)

    def test_exits_at_start(self) -> None:
        """A child that ends at once: 503 with Retry-After, another model may answer instead, and readyz says no until it may be tried again."""
        asked = self.ask()
        self.processes.started[0].end(status=1)
        error = self.error(asked, Unavailable)
        self.assertEqual((error.status, error.retry_after, error.fallback), (503, 1, True))
        self.assertFalse(self.model.ready())
        self.clock.advance(0)
        self.assertEqual(self.error(self.ask(), Unavailable).retry_after, 1)
        self.assertEqual(len(self.processes.started), 1)
        self.clock.advance(1)
        self.assertTrue(self.model.ready())
        self.answered()
        self.assertEqual(self.model.crashes, 1)

    def test_back_off(self) -> None:
        """The pauses double from 1 s to 60 s and begin anew after an answer."""
        pauses = []
        for _ in range(8):
            asked = self.ask()
            self.processes.started[-1].end(signal=signal.SIGKILL)
            pauses.append(self.error(asked, Unavailable).retry_after)
            self.clock.advance(pauses[-1] or 0)
        self.assertEqual(pauses, [1, 2, 4, 8, 16, 32, 60, 60])
        self.answered()
        self.processes.started[-1].end(signal=signal.SIGKILL)
        self.assertEqual(self.error(self.ask(), Unavailable).retry_after, 1)

    def test_healthy_is_not_enough_for_a_new_start(self) -> None:
        """A child that dies of each request comes back later and later, though it is healthy each time."""
        pauses = []
        for _ in range(3):
            asked = self.ask()
            self.up()
            self.ways[-1].batches.put(UpstreamError("broke off"))
            self.processes.started[-1].end(signal=signal.SIGKILL)
            self.error(asked, UpstreamError)
            self.clock.advance(0)
            pauses.append(self.error(self.ask(), Unavailable).retry_after)
            self.clock.advance(pauses[-1] or 0)
        self.assertEqual(pauses, [1, 2, 4])

    def test_dies_in_the_middle_of_an_answer(self) -> None:
        """The turn ends with the provider's error and its text so far; the gateway goes on, and so does the model after the pause."""
        asked = self.ask()
        child = self.up()
        self.ways[0].batches.put([ANSWERED, TextDelta("Hel")])
        child.end(signal=signal.SIGKILL)
        self.ways[0].batches.put(UpstreamError("The provider 'local' could not be reached or broke off."))
        self.assertEqual(asked.text, "Hel")
        self.assertEqual(self.error(asked, UpstreamError).status, 502)
        self.assertTrue(self.ways[0].closed)
        self.clock.advance(1)
        self.answered()

    def test_dies_while_idle(self) -> None:
        """A child that ends between two requests is replaced at the next one after the pause."""
        self.answered()
        self.processes.started[0].end(signal=signal.SIGKILL)
        self.assertEqual((self.model.up, self.model.ready()), (False, False))
        self.clock.advance(1)
        self.answered()
        self.assertEqual(len(self.processes.started), 2)

    def test_no_room_for_a_process(self) -> None:
        """Where the system cannot start a process, the request is refused and a later one tries again."""
        self.processes.refuse = OSError(11, "Resource temporarily unavailable")
        self.assertEqual(self.error(self.ask(), Unavailable).status, 503)
        self.processes.refuse = None
        self.clock.advance(1)
        self.answered()

    def test_one_at_a_time_in_order(self) -> None:
        """The model gets the next request when the one before is through, in order of arrival."""
        first = self.ask("one")
        self.up()
        second, third = self.ask("two"), self.ask("three")
        way = self.ways[0]
        self.assertEqual(len(way.requests), 1)
        way.answers("1")
        self.clock.advance(0)
        self.assertEqual((first.done, len(way.requests)), (True, 2))
        way.answers("2")
        self.clock.advance(0)
        way.answers("3")
        self.clock.advance(0)
        self.assertEqual([asked.text for asked in (first, second, third)], ["1", "2", "3"])

    def test_queue_is_bounded(self) -> None:
        """1,024 requests wait; the next one is refused with 429."""
        waiting = [self.ask() for _ in range(1025)]
        self.assertEqual([asked.error for asked in waiting], [None] * 1025)
        self.assertEqual(self.error(self.ask(), QueueFull).status, 429)

    def test_a_full_queue_fails_in_order(self) -> None:
        """When the child cannot start, all who wait are told, one after the other and not inside each other."""
        waiting = [self.ask() for _ in range(1025)]
        self.processes.started[0].end(status=1)
        self.clock.pump([0] * 1025)
        for asked in waiting:
            self.error(asked, Unavailable)
        self.assertEqual(len(self.processes.started), 1)

    def test_waiting_is_no_silence(self) -> None:
        """Time in the queue does not count to the limit on the model's silence."""
        self.ask("one")
        self.up()
        second = self.ask("two")
        way = self.ways[0]
        for _ in range(40):
            way.batches.put([ANSWERED, TextDelta(".")])
            self.clock.advance(10)
        way.answers("1")
        self.clock.advance(0)
        self.clock.pump([10] * 25)
        way.answers("2")
        self.assertEqual((second.text, self.processes.started[0].signals), ("2", []))

    def test_leaving_the_queue(self) -> None:
        """A request that is cancelled while it waits never reaches the model."""
        first = self.ask("one")
        self.up()
        second, third = self.ask("two"), self.ask("three")
        second.task.cancel()
        self.assertIsInstance(second.error, CancelledError)
        self.ways[0].answers("1")
        self.clock.advance(0)
        self.ways[0].answers("3")
        self.assertEqual((first.text, third.text, len(self.ways[0].requests)), ("1", "3", 2))

    def test_cancelled_while_it_answers(self) -> None:
        """A cancelled request closes its stream at once, which stops the model, and the next one gets it."""
        first = self.ask("one")
        self.up()
        second = self.ask("two")
        way = self.ways[0]
        way.batches.put([ANSWERED, TextDelta("Once upon")])
        first.task.cancel()
        self.assertEqual((first.text, way.over), ("Once upon", ["closed"]))
        self.clock.advance(0)
        way.answers("2")
        self.assertEqual((second.text, self.processes.started[0].signals), ("2", []))

    def test_cancelled_while_it_starts(self) -> None:
        """A request that is cancelled during the start does not stop it; the next one finds the child."""
        first = self.ask()
        first.task.cancel()
        self.clock.advance(0)
        self.up()
        self.assertTrue(self.model.up)
        self.answered()
        self.assertEqual(len(self.processes.started), 1)

    def test_silent_before_the_first_word(self) -> None:
        """A child that gives nothing for 300 s is killed and the turn times out; the role alone is not a word."""
        asked = self.ask()
        child = self.up()
        self.ways[0].batches.put([ANSWERED])
        self.clock.pump([10] * 29)
        self.assertEqual(child.signals, [])
        self.clock.advance(10)
        self.assertEqual(child.signals, [signal.SIGKILL])
        self.ways[0].batches.put(UpstreamError("the connection was lost"))
        error = self.error(asked, UpstreamTimeout)
        self.assertEqual((error.status, error.fallback), (504, True))
        self.clock.advance(1)
        self.answered()

    def test_silent_in_the_middle(self) -> None:
        """A child that stops in the middle of an answer is killed after 60 s, though it still reacts."""
        asked = self.ask()
        child = self.up()
        self.ways[0].batches.put([ANSWERED, TextDelta("Once")])
        self.clock.pump([10] * 5)
        self.assertEqual(child.signals, [])
        self.clock.advance(10)
        self.assertEqual(child.signals, [signal.SIGKILL])
        self.ways[0].batches.put(UpstreamError("the connection was lost"))
        self.error(asked, UpstreamTimeout)

    def test_a_slow_reader_is_no_silence(self) -> None:
        """While the one who asked is busy with what came, the model is not late."""
        asked = self.ask()
        asked.hold = Deferred()
        child = self.up()
        self.ways[0].batches.put([ANSWERED, TextDelta("Once")])
        self.clock.pump([10] * 60)
        self.assertEqual(child.signals, [])
        hold, asked.hold = asked.hold, None
        hold.callback(None)
        self.ways[0].answers(" upon")
        self.assertEqual((asked.text, asked.done), ("Once upon", True))

    def test_does_not_react(self) -> None:
        """A child that misses two looks in a row is killed; one is forgiven."""
        self.ask()
        child = self.up()
        self.ways[0].health = False
        self.clock.advance(10)
        self.ways[0].health = True
        self.clock.advance(10)
        self.ways[0].health = False
        self.clock.advance(10)
        self.assertEqual(child.signals, [])
        self.clock.advance(10)
        self.assertEqual(child.signals, [signal.SIGKILL])

    def test_no_looks_while_idle(self) -> None:
        """Nothing wakes the process up for a model that nobody uses."""
        self.answered()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_adapter_gave_up(self) -> None:
        """A time-out that the HTTP client sees also ends the child."""
        asked = self.ask()
        child = self.up()
        self.ways[0].batches.put(UpstreamTimeout("nothing came"))
        self.error(asked, UpstreamTimeout)
        self.assertEqual(child.signals, [signal.SIGKILL])

    def test_other_errors_leave_the_child(self) -> None:
        """An answer that is an error is the request's affair; the child goes on."""
        asked = self.ask()
        child = self.up()
        self.ways[0].batches.put(UpstreamError("its answer cannot be understood"))
        self.assertEqual(str(self.error(asked, UpstreamError)), "its answer cannot be understood")
        self.clock.advance(0)
        self.answered()
        self.assertEqual((child.signals, self.model.crashes), ([], 0))

    def test_not_installed(self) -> None:
        """Without the model's file: 503 that says which command installs it, no child, and readyz says no."""
        os.unlink(model_path(self.state))
        error = self.error(self.ask(), Unavailable)
        self.assertIn("mayros models install smollm2", str(error))
        self.assertEqual((error.should_retry, error.fallback, self.model.ready()), (False, True, False))
        self.assertEqual(self.processes.started, [])

    def test_runtime_not_installed(self) -> None:
        """Without the library: 503 that says what to install."""
        self.runtime = False
        self.assertIn("mayros-gateway[local]", str(self.error(self.ask(), Unavailable)))
        self.assertFalse(self.model.ready())

    def test_another_model(self) -> None:
        """Only the embedded model is here."""
        other = ModelRequest(msgspec.structs.replace(MODEL, id="other"), "", [], Sampling(), "run-1")
        self.assertIn("'other'", str(self.error(Asked(self.model, other), Unavailable)))

    def test_nonsense_from_the_child(self) -> None:
        """A child that says anything but its port is killed."""
        for line in ("hello", '{"port": 0}', '{"port": 70000}', "{}", "[]"):
            asked = self.ask()
            self.processes.started[-1].says(line)
            self.error(asked, Unavailable)
            self.assertEqual(self.processes.started[-1].signals, [signal.SIGKILL])
            self.clock.advance(60)

    def test_more_lines_are_ignored(self) -> None:
        """A second port is not believed."""
        asked = self.ask()
        self.up().says('{"port": 666}')
        self.assertEqual(len(self.ways), 1)
        self.ways[0].answers("Hello")
        self.assertTrue(asked.done)

    def test_the_key_is_not_logged(self) -> None:
        """The log tells how the child ended and its last words, without the key."""
        with capturedLogs() as events:
            asked = self.ask()
            child = self.processes.started[0]
            key = json.loads(child.written)["api_key"]
            child.protocol.errReceived(f"cannot load: {key}".encode())
            child.end(status=1)
        self.error(asked, Unavailable)
        (event,) = [event for event in events if event["log_namespace"] == "mayros.providers.local"]
        self.assertNotIn(key, str(event))
        self.assertEqual((event["how"], event["words"]), ("exit status 1", "cannot load: ***"))

    def test_stop(self) -> None:
        """The child gets SIGTERM, and SIGKILL after 3 s; that it ends is no crash; from then on requests are refused."""
        self.answered()
        child = self.processes.started[0]
        stopped = self.model.stop()
        self.assertEqual(child.signals, [signal.SIGTERM])
        self.assertTrue(self.ways[0].closed)
        self.clock.advance(2.9)
        self.assertNoResult(stopped)
        self.clock.advance(0.1)
        self.assertEqual(child.signals, [signal.SIGTERM, signal.SIGKILL])
        self.successResultOf(stopped)
        self.assertEqual((self.model.crashes, self.model.ready()), (0, False))
        self.error(self.ask(), ServerShutdown)
        self.successResultOf(self.model.stop())
        self.clock.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_while_it_starts(self) -> None:
        """Who waits for the start is told that the gateway stops, and nothing goes on looking at the child."""
        self.healthy = False
        asked = self.ask()
        child = self.up()
        child.at_once = (signal.SIGTERM,)
        self.successResultOf(self.model.stop())
        self.error(asked, ServerShutdown)
        self.clock.advance(0)
        self.assertEqual((self.ways[0].closed, self.clock.getDelayedCalls()), (True, []))

    def test_stop_without_a_child(self) -> None:
        """Nothing to stop is stopped at once."""
        self.successResultOf(self.model.stop())


class LoopbackTests(SynchronousTestCase):
    """The way to a real child, on a wire that is played."""

    def look(self, answer: bytes | None) -> tuple[bool, str]:
        """Whether a child that answers like this is healthy, and what it was asked. None: it does not answer."""
        reactor = MemoryReactorClock()
        way = Loopback(msgspec.structs.replace(MODEL.provider, base_url="http://127.0.0.1:4711/v1", key="secret"), reactor)
        looking = Deferred.fromCoroutine(way.healthy())
        host, port, factory, _, _ = reactor.tcpClients[0]
        self.assertEqual((host, port), ("127.0.0.1", 4711))
        wire = StringTransport()
        protocol = factory.buildProtocol(wire.getPeer())
        protocol.makeConnection(wire)
        self.assertNoResult(looking)
        if answer is None:
            reactor.advance(5)
        else:
            protocol.dataReceived(answer)
        way.close()
        return self.successResultOf(looking), wire.value().decode()

    def test_healthy(self) -> None:
        """A child is healthy when it answers as one that knows the key; the question needs no thinking."""
        healthy, asked = self.look(b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"tokens":[]}')
        self.assertTrue(healthy)
        self.assertIn("POST /tokenize HTTP/1.1", asked)
        self.assertIn("Authorization: Bearer secret", asked)

    def test_not_healthy(self) -> None:
        """Another program on the port, nonsense, and silence for 5 s are no health."""
        for answer in (
            b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            b"220 ftp\r\n",
            None,
        ):
            self.assertFalse(self.look(answer)[0])

    def test_nobody_listens(self) -> None:
        """A port where nobody listens is no health."""
        reactor = MemoryReactorClock()
        looking = Deferred.fromCoroutine(
            Loopback(msgspec.structs.replace(MODEL.provider, base_url="http://127.0.0.1:1/v1", key="k"), reactor).healthy()
        )
        reactor.tcpClients[0][2].clientConnectionFailed(None, Failure(ConnectionRefusedError()))
        self.assertFalse(self.successResultOf(looking))


class ChildTests(SynchronousTestCase):
    """A supervised process, whatever program it runs."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.lines: list[bytes] = []
        self.ends: list[str] = []
        self.child = Child(self.clock, self.lines.append, self.ends.append)
        self.processes = Processes()
        self.child.start(self.processes, ["/bin/program", "-x"], {})
        self.process = self.processes.started[0]

    def test_lines(self) -> None:
        """Standard output comes as lines, however it is cut."""
        for piece in (b"o", b"ne\ntw", b"o\nthree\nfo"):
            self.child.outReceived(piece)
        self.assertEqual(self.lines, [b"one", b"two", b"three"])

    def test_a_line_without_end(self) -> None:
        """Output that is no line is not kept for ever: the process is killed."""
        for _ in range(70):
            self.child.outReceived(b"x" * 1024)
        self.assertIn(signal.SIGKILL, self.process.signals)
        self.assertIn("a line without end", self.child.last_words)

    def test_last_words(self) -> None:
        """Of standard error the end is kept, on one line."""
        for number in range(10_000):
            self.child.errReceived(b"line %d\n" % number)
        self.assertTrue(self.child.last_words.endswith("line 9998 line 9999"))
        self.assertLess(len(self.child.last_words), 4100)

    def test_how_it_ended(self) -> None:
        """The end is told once, in words."""
        self.process.end(status=3)
        self.clock.advance(10)
        self.assertEqual(self.ends, ["exit status 3"])
        self.setUp()
        self.process.end(signal=signal.SIGSEGV)
        self.assertEqual(self.ends, ["signal SIGSEGV"])

    def test_pipes_that_stay_open(self) -> None:
        """A process whose pipes somebody else holds open is over 0.2 s after its end."""
        stopped = self.child.stop()
        self.process.ended = True
        self.child.processExited(Failure(ProcessTerminated(None, signal.SIGTERM)))
        self.child.outReceived(b"still in the pipe\n")
        self.assertNoResult(stopped)
        self.clock.advance(0.2)
        self.successResultOf(stopped)
        self.child.processEnded(Failure(ProcessTerminated(None, signal.SIGTERM)))
        self.assertEqual((self.ends, self.lines), (["signal SIGTERM"], [b"still in the pipe"]))

    def test_everybody_may_wait(self) -> None:
        """Each who stops it has a Deferred of his own, and may give up waiting."""
        first, second = self.child.stop(), self.child.stop()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual(self.process.signals, [signal.SIGTERM])
        self.process.end(signal=signal.SIGTERM)
        self.successResultOf(second)
        self.successResultOf(self.child.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_signal_after_the_end(self) -> None:
        """A process that ended meanwhile is not an error."""
        self.process.ended = True
        self.child.kill()

    def test_environment(self) -> None:
        """Children see names of a list; a secret is not on it."""
        self.assertEqual(
            scrubbed({"HOME": "/h", "ANTHROPIC_API_KEY": "x", "NOTIFY_SOCKET": "/n", "LISTEN_FDS": "3"}, EXTRA="1"), {"HOME": "/h", "EXTRA": "1"}
        )


class QuotaTests(SynchronousTestCase):
    """How many cores the control groups allow."""

    def groups(self, membership: str, **limits: str) -> int:
        """The quota with the given `cpu.max` files; keys are paths with __ for /."""
        root = self.mktemp()
        os.mkdir(root)
        with open(os.path.join(root, "cgroup"), "w") as file:
            file.write(membership)
        for path, text in limits.items():
            folder = os.path.join(root, *path.split("__")) if path != "root" else root
            os.makedirs(folder, exist_ok=True)
            with open(os.path.join(folder, "cpu.max"), "w") as file:
                file.write(text)
        return quota(os.path.join(root, "cgroup"), root)

    def test_the_narrowest_counts(self) -> None:
        """The own group and all above it are looked at; part of a core counts as one."""
        self.assertEqual(self.groups("0::/a/b\n", a__b="max 100000\n", a="150000 100000\n"), 2)
        self.assertEqual(self.groups("0::/a/b\n", a__b="50000 100000\n", a="400000 100000\n"), 1)
        self.assertEqual(self.groups("1:cpu:/x\n0::/\n", root="300000 100000\n"), 3)

    def test_no_limit(self) -> None:
        """Without a limit, without control groups or with strange ones, nothing is limited."""
        for number in (
            self.groups("0::/a\n", a="max 100000\n"),
            self.groups("0::/a\n"),
            self.groups("4:cpu:/a\n"),
            self.groups("0::/a\n", a="strange"),
            quota("/nonexistent", "/nonexistent"),
        ):
            self.assertGreater(number, 1000)


class RealChildTests(SynchronousTestCase):
    """The program in the child, in a real process, with a played library."""

    def start(self, parent: int) -> subprocess.Popen[bytes]:
        """The child, told who its parent is."""
        library = self.mktemp()
        os.mkdir(library)
        with open(os.path.join(library, "xllamacpp.py"), "w") as file:
            file.write(
                "from types import SimpleNamespace as Some\n"
                "def CommonParams(): return Some(model=Some(), cpuparams=Some(), cpuparams_batch=Some(), sampling=Some())\n"
                "def Server(params):\n"
                "    print('loud library', params.n_batch, flush=True)\n"
                "    return Some(listening_address='http://127.0.0.1:4711')\n"
            )
        settings = {"parent": parent, "model": "/m", "alias": "m", "api_key": "k", "context": 8192, "max_tokens": 2048}
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "mayros.providers.llama_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": os.pathsep.join([os.path.abspath(library), ROOT])},
        )
        assert child.stdin is not None
        child.stdin.write(json.dumps(settings).encode() + b"\n")
        child.stdin.flush()
        return child

    def test_ends_with_its_standard_input(self) -> None:
        """It says its port and nothing else, leads a session of its own, and ends when standard input does."""
        child = self.start(os.getpid())
        assert child.stdout is not None
        self.assertEqual(json.loads(child.stdout.readline()), {"port": 4711})
        self.assertEqual(os.getsid(child.pid), child.pid)
        rest, _ = child.communicate(timeout=10)
        self.assertEqual((rest, child.returncode), (b"", 0))

    def test_parent_died_before(self) -> None:
        """A child whose parent is gone already ends before it loads anything."""
        child = self.start(1)
        assert child.stdin is not None
        self.addCleanup(child.stdin.close)
        assert child.stdout is not None
        self.addCleanup(child.stdout.close)
        self.assertEqual(child.stdout.read(), b"")
        self.assertEqual(child.wait(10), 0)
