"""Rows P12 and P15 of bench.faults: the process of the embedded model, and commands that multiply."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.faults_rig import HELLO, Answer, Gateway, Part, Place, Pulse, Row, Turns, wait_until
from bench.rig import ROOT, pause
from mayros.core.models import EMBEDDED
from mayros.providers.embedded import SMOLLM2, model_path
from tests.daemon import read_until

#: The library is another one (faults_model.py), and it has 6 s to begin instead of a minute.
_PLAYED = """
from mayros.providers import local
local._PATHS = {{"PYTHONPATH": {paths!r}}}
local.START_SECONDS = 6.0
local.runtime_installed = lambda: True
local.LocalModel.__init__.__kwdefaults__["runtime"] = local.runtime_installed
"""
#: What is said of each end of the model's process.
_ENDED = "it may be started again in"


class _Model:
    """The played library in a folder of its own; `be` says how the next child is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "library" / "xllamacpp"
        self._folder.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("faults_model.py"), self._folder / "__init__.py")
        self.be("well")

    def be(self, mode: str) -> None:
        """See faults_model."""
        (self._folder / "mode").write_text(mode)

    @property
    def preamble(self) -> str:
        """What makes a gateway use it."""
        return _PLAYED.format(paths=os.pathsep.join((str(self._folder.parent), str(ROOT))))


class _Stranger:
    """Another program on a port: it takes what it is sent and says 404."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.heard = b""
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                client.settimeout(2)
                try:
                    self.heard += client.recv(65_536)
                    client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}")
                except OSError:
                    continue

    def close(self) -> None:
        """It is gone."""
        self._listener.close()


def model(place: Place) -> Iterator[Part]:
    """P12: its process is killed, hangs, ends at its start, or tells of a port that is another program's."""
    played = _Model(place.folder)
    with Gateway(place.folder / "gateway", place.upstream) as gateway:
        gateway.preamble = played.preamble
        gateway.config["agents"]["defaults"]["model"] = EMBEDDED
        file = Path(model_path(str(gateway.state)))
        file.parent.mkdir(parents=True, mode=0o700)
        gateway.state.chmod(0o700)
        file.touch()
        os.truncate(file, SMOLLM2.size)  # it is never read here
        gateway.start()
        turns = Turns(gateway)
        first = turns.ask()
        yield Part("the embedded model's process is started with the first turn", f"turn {first}", first.status == 200)
        for name, number, most in (("is killed (SIGKILL, as when memory runs out)", signal.SIGKILL, 3), ("hangs (SIGSTOP)", signal.SIGSTOP, 60)):
            with Pulse(gateway) as pulse:
                ended, took = _struck(gateway, number)
                soon = turns.ask()
                after = turns.until_answered(20)
            ok = b"[DONE]" not in ended and b'"error"' in ended and took < most and soon.status in (502, 503) and after.status == 200 and pulse.ok
            seen = f"its stream ends in an error after {took:.1f} s; the next turn {soon}; well again {after}; {pulse}"
            yield Part(f"it {name} in the middle of an answer", seen, ok)
        played.be("exit")
        os.kill(_child(gateway), signal.SIGKILL)
        with Pulse(gateway) as pulse:
            before = gateway.said(_ENDED)
            refused = _refusals(turns, 9)
            ends = gateway.said(_ENDED) - before
            played.be("well")
            after = turns.until_answered(20)
        statuses = {one.status for one in refused}
        ok = statuses <= {502, 503} and 3 <= ends <= 5 and after.status == 200 and pulse.ok
        seen = f"{len(refused)} turns in 9 s: {' '.join(map(str, sorted(statuses)))}; it ended {ends} times in these; well again {after}; {pulse}"
        yield Part("it ends at its start", seen, ok)
        stranger = _Stranger()
        try:
            played.be(f"stolen {stranger.port}")
            os.kill(_child(gateway), signal.SIGKILL)
            wait_until(lambda: gateway.ready() == 503, 5)
            wait_until(lambda: gateway.ready() == 200, 10)
            with Pulse(gateway) as pulse:
                lost = turns.ask()
                played.be("well")
                after = turns.until_answered(20)
        finally:
            stranger.close()
        told = b"turn-" in stranger.heard
        ok = lost.status in (502, 503) and not told and stranger.heard != b"" and after.status == 200 and pulse.ok
        seen = f"turn {lost}; the other program was {'told what was asked' if told else 'not told what was asked'}; well again {after}; {pulse}"
        yield Part("its port is another program's", seen, ok)
        child = _child(gateway)
        gateway.kill()
        gone = wait_until(lambda: not Path(f"/proc/{child}").exists(), 5)
        yield Part("the gateway is killed", "the model's process is gone" if gone else "the model's process is left behind", gone)


def _struck(gateway: Gateway, number: int) -> tuple[bytes, float]:
    """Send a signal to the model in the middle of an answer: what comes after that, and in how many seconds."""
    with gateway.stream(HELLO) as stream:
        stream.settimeout(70)
        read_until(stream, b"two")
        began = time.monotonic()
        os.kill(_child(gateway), number)
        return read_until(stream, b"0\r\n\r\n"), time.monotonic() - began


def _refusals(turns: Turns, seconds: float) -> list[Answer]:
    """Turn after turn for so long."""
    end, found = time.monotonic() + seconds, list[Answer]()
    while time.monotonic() < end:
        found.append(turns.ask())
        pause(0.1)
    return found


def _child(gateway: Gateway) -> int:
    """The process of the model."""
    found = [pid for pid, parent in _processes() if parent == gateway.pid]
    if len(found) != 1:
        raise AssertionError(f"the gateway has {len(found)} children, not one")
    return found[0]


def _processes() -> Iterator[tuple[int, int]]:
    """All processes that are no zombies, each with its parent's id."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                state, parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state != "Z":
                yield int(entry), int(parent)


#: Chains of processes, each of which starts the next one after some milliseconds and ends, half of them in sessions of their own; and daemons. No
#: more than that: this machine is not to run out of process numbers.
_BOMB = """
import os, sys, time
chains, daemons, end = int(sys.argv[1]), int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
for number in range(1, chains + daemons + 1):
    if os.fork() == 0:
        break
else:
    number = 0
if number % 2:
    os.setsid()
while 0 < number <= chains and time.monotonic() < end:
    time.sleep(0.01)
    if os.fork():
        os._exit(0)
time.sleep(max(0.0, end - time.monotonic()))
"""
CHAINS, DAEMONS, BOMB_SECONDS = 6, 20, 40


def bomb(place: Place) -> Iterator[Part]:
    """P15: a command multiplies; its client leaves, its time is over, or the gateway is killed and started anew."""
    mark = f"mayros-bomb-{os.getpid()}-{os.urandom(4).hex()}"
    script = place.folder / mark
    script.write_text(_BOMB)
    command = f"{sys.executable} {script} {CHAINS} {DAEMONS} {BOMB_SECONDS}"
    with Gateway(place.folder / "gateway", place.upstream) as gateway:
        gateway.config["tools"] = {"exec": {"security": "full", "ask": "off"}}
        gateway.start()
        try:
            yield _left_by_its_client(gateway, place, command, mark)
            yield _over_its_time(gateway, place, command, mark)
            yield _left_by_a_gateway(gateway, place, command, mark)
        finally:
            for pid in _marked(mark):  # what is not as promised must not be left on this machine
                os.kill(pid, signal.SIGKILL)


def _left_by_its_client(gateway: Gateway, place: Place, command: str, mark: str) -> Part:
    place.upstream.script = [[("exec", {"command": command})]]
    with Pulse(gateway) as pulse:
        with gateway.stream(HELLO):
            grown = wait_until(lambda: len(_marked(mark)) >= DAEMONS, 10)
        began = time.monotonic()
        gone = _all_gone(mark, 5)
        took = time.monotonic() - began
    seen = f"{'all of them are gone' if gone else 'some are left'} after {took:.1f} s; {pulse}"
    return Part(f"a command with {CHAINS} endless chains of processes and {DAEMONS} daemons, whose client leaves", seen, grown and gone and pulse.ok)


def _over_its_time(gateway: Gateway, place: Place, command: str, mark: str) -> Part:
    place.upstream.script = [[("exec", {"command": command, "timeout": 2})], "It is over."]
    with Pulse(gateway) as pulse:
        answer = Turns(gateway).ask()
        gone = _all_gone(mark, 3)
    result: dict[str, Any] = place.upstream.asked[-1]["messages"][-1]
    said = "time" in json.dumps(result)
    seen = f"turn {answer}; {'all are gone' if gone else 'some are left'}; {pulse}"
    return Part("such a command, whose time is over after 2 s", seen, answer.status == 200 and answer.seconds < 8 and gone and said and pulse.ok)


def _left_by_a_gateway(gateway: Gateway, place: Place, command: str, mark: str) -> Part:
    place.upstream.script = [[("exec", {"command": command, "background": True})], "It runs."]
    Turns(gateway).ask()
    grown = wait_until(lambda: len(_marked(mark)) >= DAEMONS, 10)
    gateway.kill()
    pause(1)
    left = len(_marked(mark))
    gateway.start()
    began = time.monotonic()
    gone = _all_gone(mark, 12)
    took = time.monotonic() - began
    seen = f"{left} processes are left a second later; {'none' if gone else 'some'} {took:.1f} s after the next start"
    return Part("the gateway is killed beside such a command", seen, grown and gone and gateway.up())


def _all_gone(mark: str, seconds: float) -> bool:
    """None is there, and none comes back: these processes are hard to see, since each lives for some milliseconds."""

    def look() -> bool:
        pause(0.005)
        return bool(_marked(mark))

    return wait_until(lambda: not any(look() for _ in range(20)), seconds)


def _marked(mark: str) -> list[int]:
    """Processes whose command line has the mark; not the shells that are given it as a text are meant, but they go with them."""
    found = []
    for pid, _ in _processes():
        try:
            if mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


ROWS: dict[str, Row] = {"P12": model, "P15": bomb}
