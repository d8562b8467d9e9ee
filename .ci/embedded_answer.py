"""One real answer of the embedded model, and what only a real child can show. Not part of `make test`: it downloads the model where it is missing.

    python .ci/embedded_answer.py

Uses MAYROS_STATE_DIR, or a temporary directory. Linux only (it looks into /proc). Prints what it measured; exit status 1 where something is wrong.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import aclosing
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater, react
from twisted.logger import globalLogBeginner, textFileLogObserver

from mayros.config.schema import Models
from mayros.core.models import EMBEDDED, Catalogue
from mayros.core.ports import ModelRequest, Sampling
from mayros.events import Event, TextDelta, TurnFinished, Usage
from mayros.messages import Message, pack
from mayros.providers.embedded import install
from mayros.providers.local import LocalModel

MODEL = Catalogue(Models(), {}).find(EMBEDDED)
assert MODEL is not None
SYSTEM = "You are a helpful assistant."


def request(text: str, max_tokens: int) -> ModelRequest:
    """One user message for the model."""
    assert MODEL is not None
    return ModelRequest(MODEL, SYSTEM, [pack(Message(role="user", content=text))], Sampling(max_tokens=max_tokens), "run-1")


class Answer:
    """What came back, and when."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.first = 0.0
        self.text = ""
        self.usage = Usage()
        self.finish: str | None = None

    def take(self, events: list[Event]) -> None:
        """Add a batch."""
        for event in events:
            if isinstance(event, TextDelta):
                self.first = self.first or time.monotonic() - self.begun
                self.text += event.text
            elif isinstance(event, Usage):
                self.usage = event
            elif isinstance(event, TurnFinished):
                self.finish = event.reason
        self.took = time.monotonic() - self.begun

    def __str__(self) -> str:
        rate = self.usage.output / max(self.took - self.first, 1e-9)
        read = f"{self.usage.input}+{self.usage.cache_read} cached tokens read"
        return f"{self.text!r} ({self.finish}; {read}; first text after {self.first:.2f} s, {self.took:.2f} s in all, {rate:.0f} tokens/s)"


async def ask(model: LocalModel, text: str, max_tokens: int, answer: Answer | None = None) -> Answer:
    """The model's whole answer."""
    answer = answer or Answer()
    async with aclosing(model.stream(request(text, max_tokens))) as batches:
        async for batch in batches:
            answer.take(batch)
    return answer


def child_of(pid: int) -> int:
    """The one child of a process."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return int(file.read().split()[0])


def processor(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """MiB of resident memory."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) >> 10 for line in file if line.startswith("VmRSS"))


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def stops_after_cancel(reactor: Any, model: LocalModel, pid: int, text: str, wait: float) -> float:
    """Cancel a long answer after `wait` seconds; seconds until the child computes no more."""
    asked = Deferred.fromCoroutine(ask(model, text, 2000))
    await deferLater(reactor, wait)
    assert not asked.called, "the answer was over too early to cancel it"
    asked.cancel()
    try:
        await asked
    except CancelledError:
        pass
    begun = time.monotonic()
    while time.monotonic() - begun < 20:
        before = processor(pid)
        await deferLater(reactor, 0.2)
        if processor(pid) - before < 0.05:
            return time.monotonic() - begun - 0.2
    raise AssertionError("the child went on computing for 20 s")


async def check(reactor: Any, state: str) -> None:
    """All of it."""
    assert MODEL is not None
    model = LocalModel.connect(MODEL.provider, state, reactor)
    assert model.ready(), "not ready"
    print("cold:", await ask(model, "What is the capital of France?", 60))
    pid = child_of(os.getpid())
    answer = await ask(model, "Tell me a long story about a fox.", 200)
    print("warm:", answer)
    assert answer.text.strip(), "no answer"
    assert answer.usage.output > 0, "no usage"
    long = " ".join(f"word{number}" for number in range(150))
    print("long:", await ask(model, long, 5))
    print("long, again:", await ask(model, long + " and more", 5))
    print(f"child: {resident(pid)} MiB resident")
    print(f"cancelled while it wrote: still after {await stops_after_cancel(reactor, model, pid, 'Tell me a long story about a fox.', 1.0):.1f} s")
    other = " ".join(f"other{number}" for number in range(500))
    print(f"cancelled while it read: still after {await stops_after_cancel(reactor, model, pid, other, 1.0):.1f} s")
    os.kill(pid, signal.SIGKILL)
    while model.up:
        await deferLater(reactor, 0.01)
    assert not model.ready(), "ready in back-off"
    await deferLater(reactor, 1.1)
    print("after a crash:", await ask(model, "Hello!", 20))
    pid = child_of(os.getpid())
    begun = time.monotonic()
    await model.stop()
    assert not alive(pid), "the child outlived stop()"
    print(f"stopped in {time.monotonic() - begun:.2f} s")


async def hold(reactor: Any, state: str) -> None:
    """Start the model, say its process id, and wait to be killed."""
    assert MODEL is not None
    await ask(LocalModel.connect(MODEL.provider, state, reactor), "Hello!", 5)
    print(child_of(os.getpid()), flush=True)
    await Deferred()


def killed(state: str) -> None:
    """After `kill -9` of the parent, no child is left."""
    with subprocess.Popen([sys.executable, __file__, "hold", state], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        begun = time.monotonic()
        parent.kill()
    ended, _, _ = select.select([child], [], [], 5)
    assert ended, "the child outlived a kill -9 of its parent"
    print(f"kill -9 of the parent: the child was gone after {time.monotonic() - begun:.3f} s")


def main(reactor: Any, what: str, state: str) -> Deferred[None]:
    """Run one part in the reactor."""
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    return Deferred.fromCoroutine((hold if what == "hold" else check)(reactor, state))


if __name__ == "__main__":
    if sys.argv[1:2] == ["hold"]:
        react(main, ("hold", sys.argv[2]))
    with tempfile.TemporaryDirectory() as temporary:
        place = os.environ.get("MAYROS_STATE_DIR") or temporary
        begun = time.monotonic()
        shown = ""

        def progress(step: str, done: int, total: int) -> None:
            """Print each step once, and its end."""
            global shown
            if step != shown or done == total:
                print(f"{step}: {done} of {total} bytes")
                shown = step

        print(f"{install(place, progress)} after {time.monotonic() - begun:.1f} s")
        killed(place)
        react(main, ("check", place))
