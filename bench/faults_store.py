"""Rows P02 to P05 of bench.faults: a disk that is full or cannot be written, a store that is locked or damaged."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.faults_rig import Gateway, Locker, Part, Place, Pulse, Row, Turns, refusal
from bench.rig import pause

#: Bytes of a turn that does not fit into what is free in the pages of a new store.
LARGE = 200_000
#: A small file system has at most so many bytes free, or it is not filled.
SMALL_BYTES = 1 << 30
#: Each connection of the store has no room for one more page while the file is there: then SQLite says SQLITE_FULL, as it does for ENOSPC.
_FULL = """
import os, sqlite3
_connect = sqlite3.connect
def connect(*arguments, **more):
    connection = _connect(*arguments, **more)
    if os.path.exists({flag!r}):
        connection.execute("PRAGMA max_page_count = 1")  # SQLite takes the number of pages that there are
    return connection
sqlite3.connect = connect
"""


def full(place: Place) -> Iterator[Part]:
    """P02: turns are refused and nothing of them is kept; with room again the gateway goes on by itself."""
    with Gateway(place.folder / "limit", place.upstream) as gateway:
        gateway.start()
        yield _filled(
            "every write of the gateway fails (RLIMIT_FSIZE 0: EFBIG, log files too)",
            gateway,
            lambda: gateway.limit_files(0),
            lambda: gateway.limit_files(-1),
        )
    flag = place.folder / "full"
    with Gateway(place.folder / "pages", place.upstream) as gateway:
        gateway.preamble = _FULL.format(flag=str(flag))
        gateway.start()
        gateway.stop()
        flag.touch()
        gateway.start()
        yield _filled("no page is left for SQLite (SQLITE_FULL by max_page_count)", gateway, lambda: None, flag.unlink, begun=False)
    if place.small is None:
        yield Part("a small file system is filled", "not tried: name one with --tmpfs DIR", None)
        return
    folder = place.small / f"mayros-faults-{os.getpid()}"
    try:
        with Gateway(folder, place.upstream) as gateway:
            gateway.start()
            filler = folder / "filler"
            yield _filled(f"the file system of {place.small} is full (ENOSPC)", gateway, lambda: _fill(filler), filler.unlink)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill(file: Path) -> None:
    status = os.statvfs(file.parent)
    if status.f_bavail * status.f_frsize > SMALL_BYTES:
        raise AssertionError(f"{file.parent} has more than {SMALL_BYTES >> 20} MiB free: it is not filled")
    for size in (1 << 20, 4096, 1):
        with contextlib.suppress(OSError), open(file, "ab", buffering=0) as filler:
            while filler.write(bytes(size)) == size:
                pass


def _filled(done: str, gateway: Gateway, fill: Callable[[], object], empty: Callable[[], object], *, begun: bool = True) -> Part:
    """`begun`: turns can be recorded before `fill`."""
    turns = Turns(gateway, LARGE)
    before = turns.ask() if begun else None
    with Pulse(gateway) as pulse:
        fill()
        refused = [turns.ask() for _ in range(3)]
        ready = gateway.ready()
        empty()
        after = turns.until_answered(15)
    wrong = turns.kept()
    ok = all((one.status, one.code) == (503, "storage_unavailable") for one in refused) and (before is None or before.status == 200)
    ok = ok and ready == 503 and after.status == 200 and not wrong and pulse.ok
    return Part(done, f"turns {refused[-1]}; readyz {ready}; with room {after}; {wrong or 'nothing lost or doubled'}; {pulse}", ok)


def unwritable(place: Place) -> Iterator[Part]:
    """P03: the state directory is read-only."""
    with Gateway(place.folder / "gateway", place.upstream) as gateway:
        if os.geteuid() == 0:
            if shutil.which("setpriv") is None:
                yield Part("a read-only state directory", "root may write everywhere, and there is no setpriv to take that from it", None)
                return
            gateway.before = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--"]
        gateway.start()
        turns = Turns(gateway)
        first = turns.ask()
        gateway.stop()
        with _modes(gateway):
            status, said = refusal(gateway)
        ok = status == 78 and "\n" not in said and str(gateway.state) in said
        yield Part("the state directory is read-only at the start", f"status {status}: {said}", ok)
        gateway.start()
        turns.ask()
        with Pulse(gateway) as pulse:
            with _modes(gateway):
                goes_on = turns.ask()
                with _no_room(gateway):  # so that the open connection is given up
                    turns.ask()
                refused, ready = turns.ask(), gateway.ready()
            after = turns.until_answered(15)
        wrong = turns.kept()
        ok = first.status == goes_on.status == after.status == 200 and refused.code == "storage_unavailable" and ready == 503 and not wrong
        seen = f"what is open is written ({goes_on.status}); a new connection cannot: turns {refused}, readyz {ready}; writable again {after}"
        yield Part("it becomes read-only while the gateway runs", f"{seen}; {wrong or 'nothing lost or doubled'}; {pulse}", ok and pulse.ok)


@contextlib.contextmanager
def _modes(gateway: Gateway) -> Iterator[None]:
    files = [path for path in gateway.state.iterdir() if path.name.startswith("mayros.db")]
    for path in files:
        path.chmod(0o400)
    gateway.state.chmod(0o500)
    try:
        yield
    finally:
        gateway.state.chmod(0o700)
        for path in files:
            if path.exists():
                path.chmod(0o600)


@contextlib.contextmanager
def _no_room(gateway: Gateway) -> Iterator[None]:
    gateway.limit_files(0)
    try:
        yield
    finally:
        gateway.limit_files(-1)


def locked(place: Place) -> Iterator[Part]:
    """P04: another process holds the store's lock, for less time than is waited (5 s), and for more."""
    with Gateway(place.folder / "gateway", place.upstream) as gateway, ThreadPoolExecutor(1) as aside:
        gateway.start()
        turns = Turns(gateway)
        for seconds, expected in ((2.5, 200), (8.0, 503)):
            with Pulse(gateway) as pulse:
                with Locker(gateway.store):
                    asked = aside.submit(turns.ask)
                    pause(seconds)
                    ready = gateway.ready()
                answer = asked.result(15)
                after = turns.until_answered(15)
            wrong = turns.kept()
            waited = 2 <= answer.seconds <= 4.9 if expected == 200 else 4.9 <= answer.seconds < 8
            ok = answer.status == expected and waited and after.status == 200 and not wrong and pulse.ok and (expected == 200 or ready == 503)
            seen = f"the turn waits: {answer}; readyz {ready}; free again {after}; {wrong or 'nothing lost or doubled'}; {pulse}"
            yield Part(f"another process holds the store's lock for {seconds:g} s", seen, ok)


def damaged(place: Place) -> Iterator[Part]:
    """P05: at the start status 78, naming the file, which is left as it is; what is found at run time makes turns fail."""
    with Gateway(place.folder / "gateway", place.upstream) as gateway:
        gateway.start()
        turns = Turns(gateway, 2_000)
        for number in range(30):
            turns.ask(f"someone-{number % 3}")
        gateway.stop()
        sound = gateway.store.read_bytes()
        for name, data in (
            ("its header is overwritten", bytes(100) + sound[100:]),
            ("its schema is overwritten", sound[:100] + b"\xff" * 3_996 + sound[4_096:]),
            ("it is cut in the middle", sound[: len(sound) // 2]),
            ("it is cut to 0 bytes", b""),
        ):
            gateway.store.write_bytes(data)
            status, said = refusal(gateway)
            ok = status == 78 and "\n" not in said and str(gateway.store) in said and gateway.store.read_bytes() == data
            yield Part(f"the store is damaged: {name}", f"status {status}: {said}; the file is as it was", ok)
        gateway.store.write_bytes(sound)
        gateway.start()
        before = gateway.store.stat().st_ino
        with Pulse(gateway) as pulse:
            with gateway.store.open("r+b") as file:
                file.seek(4_096)
                file.write(b"\xff" * (len(sound) - 4_096))
            refused, ready = turns.ask("someone-1"), gateway.ready()
        same = gateway.store.stat().st_ino == before and gateway.store.stat().st_size >= len(sound)
        ok = (refused.status, refused.code) == (503, "storage_unavailable") and same and pulse.ok and gateway.up()
        yield Part("the inner pages are overwritten at run time", f"turns {refused}; readyz {ready}; it is the same file; {pulse}", ok)


ROWS: dict[str, Row] = {"P02": full, "P03": unwritable, "P04": locked, "P05": damaged}
