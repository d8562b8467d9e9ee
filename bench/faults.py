"""`python -m bench.faults [ROW ...]`: what happens to machines, and what operators do, done to real gateways. Status 0: all as promised; 1: not.

A line for each thing that is done: the row, what was done, what was seen. Rows that are shown by tests alone are in bench/README.md, with
all others. Each row has a temporary folder, is given up after LIMIT_SECONDS, and ends its own processes only. Part of `make faults`.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from bench import faults_children, faults_life, faults_store, faults_time, faults_units
from bench.faults_rig import Part, Place, Row
from tests.daemon import Upstream

LIMIT_SECONDS = 150
_BY_SUBJECT = (faults_store.ROWS, faults_life.ROWS, faults_time.ROWS, faults_children.ROWS, faults_units.ROWS)
ROWS: dict[str, Row] = dict(sorted((name, row) for rows in _BY_SUBJECT for name, row in rows.items()))


class Late(Exception):
    """A row takes too long. Not TimeoutError, which is an OSError: those are waited out by who asks a gateway that is starting."""


def run(name: str, folder: Path, small: Path | None) -> list[Part]:
    """The parts of a row. What goes wrong besides is one more, that failed."""
    parts: list[Part] = []
    folder.mkdir()
    upstream = Upstream()
    signal.alarm(LIMIT_SECONDS)
    try:
        for part in ROWS[name](Place(folder, upstream, small)):
            say(name, part)
            parts.append(part)
    except Exception as error:  # noqa: BLE001  whatever it is, the row has failed and the others go on
        parts.append(Part("the row could not be brought to its end", f"{type(error).__name__}: {error}", False))
        say(name, parts[-1])
    finally:
        signal.alarm(0)
        upstream.close()
    return parts


def say(name: str, part: Part) -> None:
    """Print one line."""
    verdict = {True: "ok", False: "NOT OK", None: "not shown here"}[part.ok]
    print(f"{name}  {part.done}: {' '.join(part.seen.split())}. {verdict}", flush=True)


def _late(*_: object) -> None:
    raise Late(f"it took more than {LIMIT_SECONDS} s")


def main() -> int:
    """Run the rows; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description="Do to real gateways what happens to machines.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {' '.join(ROWS)} (all)")
    parser.add_argument("--tmpfs", type=Path, metavar="DIR", help="a small file system of its own (at most 1 GiB), which is filled for P02")
    chosen = parser.parse_args()
    for unknown in sorted(set(chosen.rows) - set(ROWS)):
        parser.error(f"there is no row {unknown}")
    signal.signal(signal.SIGALRM, _late)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    home = Path(tempfile.mkdtemp(prefix="mayros-faults-"))
    began, failed = time.monotonic(), []
    for name in dict.fromkeys(chosen.rows) or ROWS:
        if any(part.ok is False for part in run(name, home / name, chosen.tmpfs)):
            failed.append(name)
    if failed:
        print(f"not as promised: {', '.join(failed)}; logs and stores are kept in {home}")
    else:
        shutil.rmtree(home, ignore_errors=True)
    print(f"took {time.monotonic() - began:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
