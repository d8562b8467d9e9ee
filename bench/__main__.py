"""`python -m bench`: runs the measures and prints one table with targets. Status 0 all reached, 1 something missed, 2 it could not run."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import signal
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench import decode_measure as decode
from bench import failover_measure as failover
from bench import image_measure as images
from bench import large_measure as large
from bench import measure as http
from bench import metrics_measure as metrics
from bench import reload_measure as reloads
from bench import resume_measure as resume
from bench import start_measure as starts
from bench import token_measure as tokens
from bench import tool_measure as tools
from bench import vendor_measure as vendors
from bench import ws_measure as ws
from bench.measure import Effort, Failures, Row
from bench.rig import BenchError, Rig, filesystem, fsync_seconds

FULL = Effort(rounds=5, seconds=3.0, starts=5, bursts=3, pass_requests=10_000)
QUICK = Effort(rounds=2, seconds=1.0, starts=1, bursts=1, pass_requests=1_000, sockets=500, idle_seconds=3.0, watchers=200, churn=1_000)
# What leaves more sessions than are kept comes last: the store prunes them while the next measure runs.
MEASURES = {
    **tools.MEASURES,
    **http.MEASURES,
    **starts.MEASURES,
    **ws.MEASURES,
    **failover.MEASURES,
    **vendors.MEASURES,
    **decode.MEASURES,
    **large.MEASURES,
    **images.MEASURES,
    **resume.MEASURES,
    **reloads.MEASURES,
    **metrics.MEASURES,
    **tokens.MEASURES,
}
PACKAGES = ("twisted", "klein", "autobahn", "msgspec", "httptools", "SQLAlchemy")


def options(arguments: list[str]) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the gateway against a floor on this machine.")
    parser.add_argument("--quick", action="store_true", help="a look, not a result: few rounds, short ones")
    parser.add_argument("--only", action="append", choices=list(MEASURES), help="measure this alone; may be given several times")
    parser.add_argument("--rounds", type=int, help="rounds of each comparison")
    parser.add_argument("--seconds", type=float, help="length of one stretch of load")
    parser.add_argument("--subject", choices=("mayros", "floor"), default="mayros", help="floor: the floor in both roles, to see the noise")
    parser.add_argument("--pin", action="store_true", help="servers on the first core, all else on the others")
    parser.add_argument("--limit", type=float, default=900, help="seconds after which the whole run gives up (900)")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made; its disk is the one whose fsync counts")
    parser.add_argument("--json", type=Path, help="also write the figures of each round to this file")
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder with logs and store")
    return parser.parse_args(arguments)


def effort_of(chosen: argparse.Namespace) -> Effort:
    """How much to measure."""
    effort: Effort = QUICK if chosen.quick else FULL
    if chosen.rounds:
        effort.rounds, effort.bursts = chosen.rounds, min(effort.bursts, chosen.rounds)
    if chosen.seconds:
        effort.seconds = chosen.seconds
    return effort


def configuration(chosen: argparse.Namespace, effort: Effort, folder: Path) -> str:
    """What was measured with what: the head of the report."""
    versions = []
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    kind = filesystem(folder)
    cores = f"{len(os.sched_getaffinity(0))} cores{', pinned' if chosen.pin else ''}"
    lines = [
        f"subject {chosen.subject} · Python {platform.python_version()} · {' · '.join(versions)}",
        f"{platform.system()} {platform.release()} · {cores} · load {os.getloadavg()[0]:.2f} before"
        f" · fsync {fsync_seconds(folder) * 1e3:.2f} ms on {kind}",
        f"{effort.rounds} rounds A B, {effort.seconds:g} s each side · {effort.bursts} bursts · {effort.starts} starts"
        f" · passes of {effort.pass_requests:,} requests",
    ]
    if kind in ("tmpfs", "ramfs"):
        lines.append("this folder is in memory: fsync costs nothing here, give a folder on a disk with --folder")
    return "\n".join(lines)


def table(rows: list[Row], subject: str) -> str:
    """The rows in columns."""
    cells = [("measure", "floor", subject, "ratio", "target", "")]
    cells += [(row.name, row.floor, row.subject, row.shown, row.target, ("pass" if row.passed else "MISS") if row.target else "") for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(6)]
    printed = []
    for number, line in enumerate(cells):
        printed.append("  ".join([line[0].ljust(widths[0]), *(line[column].rjust(widths[column]) for column in range(1, 6))]).rstrip())
        if number == 0:
            printed.append("-" * (sum(widths) + 10))
    return "\n".join(printed)


def run(chosen: argparse.Namespace, folder: Path) -> int:
    """Measure and print; the exit status."""
    began = time.monotonic()
    effort, failures, rows = effort_of(chosen), Failures(), []
    print(configuration(chosen, effort, folder), flush=True)
    status = 0
    with Rig(folder, gateway=chosen.subject == "mayros", pin=chosen.pin, deadline=began + chosen.limit) as rig:
        for name, measure in MEASURES.items():
            if (chosen.only and name not in chosen.only) or (name not in http.MEASURES and not rig.gateway):
                continue
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                rows += measure(rig, failures, effort)
            except BenchError as error:
                print(f"{name}: {error}", flush=True)
                status = 2
                break
    if rows:
        print("\n" + table(rows, chosen.subject))
    for side, count in failures.count.items():
        if count:
            print(f"{side}: {count} answers failed; the first: {failures.why.get(side)}")
            status = status or 1
    print(f"load generator and mock upstream together: at most {rig.busiest:.0%} of a core")
    print(f"took {time.monotonic() - began:.0f} s", flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps([vars(row) for row in rows], indent=1))
    return status or (0 if all(row.passed for row in rows) else 1)


def main() -> int:
    """Set up the folder and the limits, run, clean up."""
    chosen = options(sys.argv[1:])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # TERM and a closed terminal end the run through the same `finally`s as Ctrl-C
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(2))
    folder = Path(tempfile.mkdtemp(prefix="mayros-bench-", dir=chosen.folder))
    try:
        return run(chosen, folder)
    finally:
        if chosen.keep:
            print(f"kept {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
