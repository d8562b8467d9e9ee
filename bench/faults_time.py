"""Rows P07, R7 and R9 of bench.faults: a clock that is set, what is left of many requests, and a process that stands still."""

from __future__ import annotations

import json
import mmap
import signal
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import wire
from bench.faults_rig import HELLO, Gateway, Part, Place, Row, Turns
from bench.rig import ROOT, Process, pause
from tests.activation import HeldDaemon
from tests.daemon import TOKEN, read_until

DAY = 86_400
#: The wall clock of the process is off by so many seconds as the file says. That is what setting the clock does to it: monotonic time goes on.
_CLOCK = """
import mmap, struct, time
_file = open({file!r}, "r+b")
_offset, _time, _time_ns, _localtime, _gmtime = mmap.mmap(_file.fileno(), 8), time.time, time.time_ns, time.localtime, time.gmtime
def _moved():
    return struct.unpack("q", _offset[:8])[0]
time.time = lambda: _time() + _moved()
time.time_ns = lambda: _time_ns() + _moved() * 1_000_000_000
time.localtime = lambda seconds=None: _localtime(time.time() if seconds is None else seconds)
time.gmtime = lambda seconds=None: _gmtime(time.time() if seconds is None else seconds)
"""


class _Clock:
    """The wall clock of a gateway."""

    def __init__(self, file: Path) -> None:
        file.write_bytes(bytes(8))
        self.preamble = _CLOCK.format(file=str(file))
        self._file = file.open("r+b")
        self._offset = mmap.mmap(self._file.fileno(), 8)

    def move(self, seconds: int) -> None:
        """It is so much off from now on."""
        self._offset[:8] = struct.pack("q", seconds)


def clock_steps(place: Place) -> Iterator[Part]:
    """P07: by a day forth and back, while a stream is live, a run's limit and a lockout count, and turns are recorded."""
    clock = _Clock(place.folder / "offset")
    changes: dict[str, Any] = {"auth": {"token": TOKEN, "rateLimit": {"maxAttempts": 3, "lockoutMs": 9_000, "exemptLoopback": False}}}
    with Gateway(place.folder / "gateway", place.upstream, **changes) as gateway:
        gateway.preamble = clock.preamble
        gateway.config["agents"]["defaults"]["timeoutSeconds"] = 6
        gateway.start()
        turns = Turns(gateway)
        first = [turns.ask() for _ in range(2)]
        place.upstream.hold()
        with gateway.stream(HELLO) as stream:
            seen = read_until(stream, b'"one"')
            for offset in (DAY, -DAY, 0):
                clock.move(offset)
                pause(1)
            place.upstream.go()
            seen += read_until(stream, b"0\r\n\r\n")
        whole = b"[DONE]" in seen and b"three" in seen
        yield Part("the clock is set by a day forth and back while a stream is live", "the stream is whole" if whole else "it is not whole", whole)
        for offset in (DAY, -DAY):
            clock.move(0)
            place.upstream.hold()
            began = time.monotonic()
            with gateway.stream(HELLO) as stream:
                read_until(stream, b'"one"')
                clock.move(offset)
                timed_out = b"timeout" in read_until(stream, b"0\r\n\r\n")
            took = time.monotonic() - began
            place.upstream.go()
            seen_ended = f"it ends by its limit after {took:.1f} s" if timed_out else f"it ends after {took:.1f} s, not by its limit"
            yield Part(f"by {_days(offset)} under a run that may take 6 s", seen_ended, timed_out and 5.5 < took < 8)
        clock.move(0)
        yield _lockout(gateway, clock)
        answers = []
        for offset in (DAY, 0, -DAY, 0):
            clock.move(offset)
            answers.append(turns.ask())
        order = _order(place, turns)
        ok = all(one.status == 200 for one in (*first, *answers)) and not (wrong := turns.kept()) and order and gateway.up()
        said = f"turns {', '.join(str(one.status) for one in answers)}; {'their order is kept' if order else 'out of order'}"
        yield Part("it is set between the turns of a session", f"{said}; {wrong or 'nothing lost or doubled'}", ok)
        clock.move(DAY)
        seen_at = _created(gateway) - time.time()
        clock.move(0)
        ok = DAY - 60 < seen_at < DAY + 60 and not gateway.said("Traceback")
        yield Part("what it tells of the time", f"{seen_at / DAY:+.2f} days, as it was set; {gateway.said('Traceback')} tracebacks in its log", ok)


def _created(gateway: Gateway) -> int:
    """The time of day that an answer bears: shows that the clock of the process was moved at all."""
    created: int = json.loads(gateway.request("POST", "/v1/chat/completions", HELLO)[1])["created"]
    return created


def _days(seconds: int) -> str:
    return f"{seconds // DAY:+d} day"


def _lockout(gateway: Gateway, clock: _Clock) -> Part:
    """Three wrong tokens lock this address out, for 9 s whatever the clock says."""
    statuses = [gateway.request("GET", "/v1/models", Authorization="Bearer wrong-token-0123456789")[0] for _ in range(4)]
    began, ended = time.monotonic(), 0.0
    offsets = [DAY, -DAY, 0]
    while time.monotonic() - began < 15 and not ended:
        clock.move(offsets[int(time.monotonic() - began) % 3])
        if gateway.request("GET", "/v1/models")[0] == 200:
            ended = time.monotonic() - began
        pause(0.1)
    clock.move(0)
    seen = f"{' '.join(map(str, statuses))}, and the right token is let in after {ended:.1f} s"
    return Part("each second, under a lockout of 9 s", seen, statuses == [401, 401, 401, 429] and 8 < ended < 10.5)


def _order(place: Place, turns: Turns) -> bool:
    """Whether the model was told of the turns in their order, the last time."""
    said = [message["content"].split()[0] for message in place.upstream.asked[-1]["messages"] if message["role"] == "user"]
    return said == turns.acknowledged


def standstill(place: Place) -> Iterator[Part]:
    """R9: a gateway that does not come to its turn does not tell the watchdog; what a service manager does then brings it back."""
    daemon = HeldDaemon(place.folder / "gateway", place.upstream)
    daemon.more = {"WATCHDOG_USEC": "2000000"}
    try:
        daemon.start()
        for _ in range(3):
            daemon.manager.wait("WATCHDOG", 5)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGSTOP)
        pause(0.2)
        while daemon.manager.hear() is not None:
            pass
        pause(2.5)
        silent = daemon.manager.hear() is None
        # As systemd does it: WatchdogSignal= and a SIGCONT behind it, then the start anew.
        for number in (signal.SIGABRT, signal.SIGCONT):
            daemon.process.send_signal(number)
        status = daemon.process.wait(10)
        told = daemon.log.read_text().count("Fatal Python error: Aborted")
        daemon.start()
        served = daemon.request("POST", "/v1/chat/completions", HELLO)[0]
    finally:
        daemon.close()
    seen = f"no WATCHDOG=1 for 2.5 s; SIGABRT ends it ({status}) with a traceback; started anew, a turn is {served}"
    ok = silent and status < 0 and told == 1 and served == 200
    yield Part("SIGSTOP, with a watchdog of 2 s", seen if silent else "the watchdog was told all the same", ok)


def leaks(place: Place) -> Iterator[Part]:
    """R7: 20,000 requests and 2,000 streams that are left in the middle. Measured against a gateway that has done a tenth of that."""
    environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    upstream = Process([sys.executable, "-m", "bench.upstream"], ROOT, str(place.folder / "upstream"), None, True, environ)
    load = Process([sys.executable, "-m", "bench.load"], ROOT, str(place.folder / "load"), None, True, environ)
    try:
        with Gateway(place.folder / "gateway", None, limits={"maxConnectionsPerAddress": 4_096}) as gateway:
            models = [{"id": f"mock-{shape}"} for shape in ("8", "50x50ms")]
            provider = {"baseUrl": f"http://127.0.0.1:{int(upstream.line(15))}/v1", "apiKey": "mock-key-0123456789", "models": models}
            gateway.config["models"] = {"providers": {"mock": provider}}
            gateway.config["agents"]["list"] = [{"id": f"a{model['id'][5:]}", "model": f"mock/{model['id']}"} for model in models]
            gateway.start()
            failed = _requests(gateway, load, 2_000) + _left(gateway, 200)
            before = _still(gateway)
            failed += _requests(gateway, load, 20_000) + _left(gateway, 2_000)
            after = _still(gateway)
    finally:
        load.end()
        upstream.end()
    more, memory = after[0] - before[0], after[1] / before[1]
    seen = f"{'; '.join(failed[:3]) or 'none failed'}; {more:+d} descriptors; resident {before[1]:.1f} to {after[1]:.1f} MB ({memory - 1:+.1%})"
    yield Part("20,000 requests, half of them streamed, and 2,000 streams whose clients leave", seen, not failed and more <= 0 and memory < 1.1)


def _requests(gateway: Gateway, load: Process, count: int) -> list[str]:
    """How many failed, and why."""
    failed = []
    for stream in (False, True):
        request = wire.request("mayros:a8", stream, TOKEN).decode()
        job = {"port": gateway.port, "request": request, "tokens": 8, "stream": stream, "clients": 32, "seconds": 0, "requests": count // 2}
        load.say(json.dumps(job | {"limit": 60}))
        answer = json.loads(load.line(90))
        failed += [f"{answer['failed']} requests: {answer['why']}"] * bool(answer["failed"])
    return failed


def _left(gateway: Gateway, count: int) -> list[str]:
    """Streams whose clients leave after the first words; what came of those that did not begin."""
    failed = []
    for _ in range(count):
        with gateway.stream({"model": "mayros:a50x50ms", "messages": [{"role": "user", "content": "hello"}]}) as client:
            if b"tok0" not in (answer := read_until(client, b"tok0")):
                failed.append(answer.decode("latin-1")[:200])
    return failed


def _still(gateway: Gateway) -> tuple[int, float]:
    """Descriptors and MB when nothing goes on any more."""
    pause(3)
    return gateway.descriptors(), gateway.megabytes()


ROWS: dict[str, Row] = {"P07": clock_steps, "R7": leaks, "R9": standstill}
