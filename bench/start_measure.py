"""How soon a gateway is ready whose store holds a million entries of transcripts, and with how much memory; also after a `kill -9` under load.

The store is filled by SQL, in the tables that the gateway itself has made: sessions of ten turns, as they are after months, and what is kept beside
them. Imports bench.rig and tests.daemon; runs on a state directory of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sqlite3
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench.measure import MB, Effort, Failures, Row, own
from bench.rig import BenchError, Rig, pause, resident_bytes
from tests.daemon import Daemon

ENTRIES = 1_000_000
#: Entries of one session: a question and an answer are two. An entry has some hundred bytes, as chats have.
OF_A_SESSION = 20
#: Of the sessions so many in a hundred are of requests without a session; more of these are not kept (session.stateless.maxEntries).
STATELESS = 20
#: Answers of idempotency keys, and days with rows of usage.
KEYS, DAYS = 20_000, 365
STARTS = 3
CLIENTS = 16
DAY_MS = 86_400_000


def million(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """Start on a store that is full, beside one that is empty; kill the gateway under load, start again."""
    full, empty = _gateway(rig, "million"), _gateway(rig, "empty")
    store = full.state / "mayros.db"
    times: dict[Daemon, list[float]] = {full: [], empty: []}
    memory: dict[Daemon, list[float]] = {full: [], empty: []}
    after: list[float] = []
    acknowledged = 0
    try:
        for daemon in (full, empty):
            daemon.start()
            daemon.stop()
        filled_in = fill(store)
        for daemon in (full, empty) * STARTS:
            rig.left(60)
            times[daemon].append(_ready(daemon))
            pause(2.0)
            memory[daemon].append(_resident(daemon))
            daemon.stop()
        for _ in range(STARTS):
            rig.left(60)
            full.start()
            with _Load(full) as load:
                pause(2.0)
                full.kill()
            acknowledged += load.acknowledged
            after.append(_ready(full))
            full.stop()
        count = _count(store)
    finally:
        full.kill()
        empty.kill()
    if not acknowledged or count < ENTRIES + 2 * acknowledged:
        raise BenchError(f"{count:,} entries in the store, of {ENTRIES:,} and {acknowledged} turns")
    print(f"million: filled in {filled_in:.1f} s, {store.stat().st_size / MB:,.0f} MB", file=sys.stderr, flush=True)
    beside, resident = (statistics.median(found[empty]) for found in (times, memory))
    return [
        own(f"start on {ENTRIES:,} entries (beside: on none), to readyz 200, s", times[full], "{:.2f}", 2.5, f"{beside:.2f}"),
        own(f"  after kill -9 under load ({acknowledged} turns), s", after, "{:.2f}", 5.0, f"{beside:.2f}"),
        own("  resident memory two seconds later, MB", memory[full], "{:.1f}", 90, f"{resident:.1f}"),
    ]


def _gateway(rig: Rig, name: str) -> Daemon:
    """One on a state directory of its own, with the mock upstream."""
    daemon = Daemon(rig.folder / name)
    provider = {"baseUrl": f"http://127.0.0.1:{rig.upstream_port}/v1", "apiKey": "mock-key-0123456789", "models": [{"id": "mock-8"}]}
    daemon.config["models"] = {"providers": {"mock": provider}}
    daemon.config["agents"] = {"defaults": {"model": "mock/mock-8", "skipBootstrap": True}}
    return daemon


#: Sessions `n.i`, oldest first; the places of their entries, `p.j`. Times: all of the last ninety days, the newest an hour ago; sessions without a
#: conversation are of the last half day, or they would be pruned. Entries of sessions of one time are mixed, as they are where many people talk.
_NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :sessions), "
_PLACES = "p(j) AS (SELECT 0 UNION ALL SELECT j + 1 FROM p WHERE j + 1 < :entries) "
_AT = ":now - 3600000 - (CASE WHEN i % 100 < :stateless THEN 43200000 ELSE 7776000000 END) * (:sessions - i) / :sessions"
_SESSIONS = (
    _NUMBERS + _PLACES + "INSERT INTO sessions (key, agent_id, session_id, stateless, created_ms, updated_ms, turns, input_tokens, output_tokens) "
    f"SELECT 'agent:main:s' || i, 'agent' || (i % 3), printf('%024x', i), i % 100 < :stateless, {_AT}, {_AT} + 60000, :entries / 2, 900, 300 FROM n"
)
_ENTRIES = (
    _NUMBERS + _PLACES + "INSERT INTO entries SELECT :first + j * :sessions + i, printf('%024x', i), "
    "CASE WHEN j THEN :first + (j - 1) * :sessions + i END, 'run-' || i || '-' || (j / 2), 'message', "
    f"CASE WHEN j % 2 THEN :answer ELSE :question END, CASE WHEN j % 2 THEN :meta END, {_AT} FROM p CROSS JOIN n"
)
_KEYS = (
    _NUMBERS + _PLACES + "INSERT INTO idempotency SELECT 'owner:chat', 'key-' || i, x'00', 'run-' || i, 'done', '{\"run_id\":\"r\"}', :now, "
    ":now + 86400000 FROM n WHERE i < :keys"
)
_USAGE = (
    _NUMBERS
    + _PLACES
    + "INSERT INTO usage_days SELECT date(:now / 1000 - 86400 * i, 'unixepoch'), 'agent' || (j % 3), 'owner', 'agent:main:s' || j, "
    "'mock', 'mock-8', 1, 10, 900, 300, 0, 0, 0, 0 FROM n CROSS JOIN p WHERE i < :days"
)


def fill(store: Path) -> float:
    """Put a million entries, and what belongs to them, into a store that is there and that nobody uses. Seconds."""
    began = time.perf_counter()
    now = int(time.time() * 1000)
    text = "The weather station in the mountains reports every hour: wind, rain, snow, and how far one can see. " * 2
    values = {
        "sessions": ENTRIES // OF_A_SESSION,
        "entries": OF_A_SESSION,
        "stateless": STATELESS,
        "keys": KEYS,
        "days": DAYS,
        "now": now,
        "first": (now - 100 * DAY_MS) << 20,
        "question": json.dumps({"role": "user", "content": text}),
        "answer": json.dumps({"role": "assistant", "content": text}),
        "meta": json.dumps({"outcome": "ok", "provider": "mock", "model": "mock-8", "usage": {"input": 90, "output": 30}}),
    }
    with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as database:
        # Nothing is lost if it is: it is made anew.
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA cache_size = -200000")
        database.execute("BEGIN EXCLUSIVE")
        for statement in (_SESSIONS, _ENTRIES, _KEYS, _USAGE):
            database.execute(statement, values)
        database.execute("COMMIT")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return time.perf_counter() - began


def _ready(daemon: Daemon) -> float:
    """Seconds from exec to the first 200 of /readyz."""
    began = time.perf_counter()
    daemon.start()
    return time.perf_counter() - began


def _resident(daemon: Daemon) -> float:
    assert daemon.process is not None
    return resident_bytes(daemon.process.pid) / MB


class _Load:
    """Clients that talk on until the gateway is gone. `acknowledged`: turns, once it is over."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._done = [0] * CLIENTS
        self._threads = [threading.Thread(target=self._talk, args=(client,), daemon=True) for client in range(CLIENTS)]

    def __enter__(self) -> _Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join(15)

    @property
    def acknowledged(self) -> int:
        return sum(self._done)

    def _talk(self, client: int) -> None:
        for turn in itertools.count():
            body = {"model": "mayros", "user": f"client-{client}-{turn // 10}", "messages": [{"role": "user", "content": f"turn {turn}"}]}
            try:
                self._done[client] += self._daemon.request("POST", "/v1/chat/completions", body)[0] == 200
            except OSError:
                return


def _count(store: Path) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as database:
        count: int = database.execute("SELECT count(*) FROM entries").fetchone()[0]
    return count


MEASURES: dict[str, Callable[[Rig, Failures, Effort], list[Row]]] = {"million": million}
