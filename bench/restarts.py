"""`python -m bench.restarts`: what clients notice of restarts while a service manager holds the port. Status 0: nothing; 1: something was lost.

The manager is a launcher here (tests.activation): it listens, hands the socket to each gateway in turn, waits for READY=1, and restarts as systemctl
does: SIGTERM, wait for the end, start. Meanwhile requests come at a steady rate, each on a fresh connection: short ones, which are over at once, and
streams that take longer than most of a restart and less than the grace. Each must be answered in full, by the old gateway or the new one.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from bench import wire
from bench.rig import ROOT, Process
from tests.activation import HeldDaemon
from tests.daemon import TOKEN

GRACE_MS = 5_000
#: 8 tokens at once, and 50 tokens, one each 50 ms.
SHORT, STREAM = "8", "50x50ms"
_TOKEN = re.compile(rb"tok\d")
#: Seconds that an answer may stay away.
LIMIT = 30.0


def gateway(folder: Path, upstream: int) -> HeldDaemon:
    """The gateway and who holds its port."""
    changes = {"shutdown": {"graceMs": GRACE_MS}, "limits": {"maxConnectionsPerAddress": 4096}}  # all clients are at one address
    daemon = HeldDaemon(folder, None, changes)
    daemon.config["agents"] = {
        "defaults": {"skipBootstrap": True, "maxConcurrent": 256},
        "list": [{"id": f"a{shape}", "model": f"mock/mock-{shape}"} for shape in (SHORT, STREAM)],
    }
    models = [{"id": f"mock-{shape}"} for shape in (SHORT, STREAM)]
    provider = {"baseUrl": f"http://127.0.0.1:{upstream}/v1", "apiKey": "mock-key-0123456789", "models": models}
    daemon.config["models"] = {"providers": {"mock": provider}}
    return daemon


class Load:
    """Fresh connections at `rate` a second, each `every`-th of them a stream, until `stop` is set."""

    def __init__(self, port: int, rate: float, every: int) -> None:
        self.port, self.rate, self.every = port, rate, every
        self.stop = asyncio.Event()
        self.short: collections.Counter[str] = collections.Counter()
        self.streams: collections.Counter[str] = collections.Counter()
        self.times: list[float] = []

    async def run(self) -> None:
        """Keep asking; ends when all is answered."""
        began, number, asking = time.perf_counter(), 0, set()
        while not self.stop.is_set():
            await asyncio.sleep(max(0.0, began + number / self.rate - time.perf_counter()))
            task = asyncio.create_task(self._one(number % self.every == 0))
            asking.add(task)
            task.add_done_callback(asking.discard)
            number += 1
        await asyncio.gather(*asking)

    async def _one(self, stream: bool) -> None:
        began = time.perf_counter()
        try:
            result = await asyncio.wait_for(self._ask(STREAM if stream else SHORT, stream), LIMIT)
        except ConnectionRefusedError:
            result = "refused"
        except (ConnectionResetError, BrokenPipeError):
            result = "reset"
        except TimeoutError:
            result = f"no answer in {LIMIT:.0f} s"
        (self.streams if stream else self.short)[result] += 1
        if not stream:
            self.times.append(time.perf_counter() - began)

    async def _ask(self, shape: str, stream: bool) -> str:
        """`ok`, or what came instead."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            request = wire.request(f"mayros:a{shape}", stream, TOKEN)
            # One request on each connection, and its end is the end of the answer.
            writer.write(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            answer = await reader.read(-1)
        finally:
            writer.close()
        if not answer:
            return "closed without an answer"
        if not answer.startswith(b"HTTP/1.1 200 "):
            return answer[9:12].decode("latin-1")
        whole = len(_TOKEN.findall(answer)) == wire.shape(shape)[0] and (not stream or (b"[DONE]" in answer and answer.endswith(b"0\r\n\r\n")))
        return "ok" if whole else "broken"


async def measure(daemon: HeldDaemon, restarts: int, rate: float, every: int) -> tuple[Load, list[float], list[int]]:
    """The load, how long each restart took in seconds, and the statuses that the gateways ended with."""
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, daemon.start)
    load = Load(daemon.port, rate, every)
    running = asyncio.create_task(load.run())
    took, statuses = [], []
    for _ in range(restarts):
        await asyncio.sleep(2)
        began = time.perf_counter()
        statuses.append(await loop.run_in_executor(None, daemon.stop))
        await loop.run_in_executor(None, daemon.start)
        took.append(time.perf_counter() - began)
    await asyncio.sleep(2)
    load.stop.set()
    await running
    statuses.append(await loop.run_in_executor(None, daemon.stop))
    return load, took, statuses


def report(load: Load, took: list[float], statuses: list[int]) -> int:
    """Print the figures; the exit status."""
    times = sorted(load.times)
    lost = sum(count for tally in (load.short, load.streams) for result, count in tally.items() if result != "ok")
    for name, tally in (("short answers", load.short), ("streams", load.streams)):
        print(f"{name}: {tally['ok']} whole" + "".join(f", {count} {result}" for result, count in tally.items() if result != "ok"))
    print(f"{len(took)} restarts, {min(took):.2f} to {max(took):.2f} s each; lost: {lost}")
    print(f"short answers took {times[len(times) // 2] * 1e3:.0f} ms (p50), {times[-1]:.2f} s (the slowest: it waited for a restart)")
    ended = [status for status in statuses if status]
    if ended:
        print(f"gateways ended with {ended}")
    return 1 if lost or ended or not load.streams["ok"] else 0


def main() -> int:
    """Set up, measure, clean up."""
    parser = argparse.ArgumentParser(prog="python -m bench.restarts", description="Restart the gateway under load and count what clients lose.")
    parser.add_argument("--restarts", type=int, default=10, help="how many (10)")
    parser.add_argument("--rate", type=float, default=50, help="fresh connections a second (50)")
    parser.add_argument("--every", type=int, default=10, help="each so many-th is a stream of 2.5 s (10)")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mayros-restarts-"))
    upstream = Process([sys.executable, "-m", "bench.upstream"], ROOT, str(folder / "upstream"), None, True, {"PYTHONPATH": str(ROOT)})
    status = 1
    try:
        daemon = gateway(folder / "gateway", int(upstream.line(15)))
        try:
            status = report(*asyncio.run(measure(daemon, chosen.restarts, chosen.rate, chosen.every)))
        finally:
            daemon.close()
    finally:
        upstream.end()
        if status:
            print(f"the gateway's log is kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
