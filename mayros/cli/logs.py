"""`mayros logs`: the gateway's log, through the gateway, or from its file where this machine's gateway does not answer. Imports config and ops."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from mayros.cli.remote import Refused, Remote, gateway_options
from mayros.cli.show import cell, clean, local_time, record
from mayros.errors import GatewayError

if TYPE_CHECKING:
    from mayros.ws.connection import Connection

#: While following, how often it is asked, for how many lines at most, and how often in a row that may fail.
FOLLOW_SECONDS, FOLLOW_LINES, MOST_FAILURES = 1.0, 200, 8
_KNOWN = ("time", "level", "logger", "message")


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on printing what comes, until interrupted.")
@click.option("--limit", type=click.IntRange(1, 5000), default=200, show_default=True, metavar="N", help="How many lines, from the end.")
@gateway_options(seconds=10.0)
def logs(remote: Remote, follow: bool, limit: int) -> None:
    """Print the end of the gateway's log. With --json its lines as they are, a JSON object each.

    Where this machine's gateway does not answer, its log file is read.
    """
    try:
        remote.talk(lambda connection: _logs(remote, connection, follow, limit), again=follow)
    except Refused as failure:
        if remote.elsewhere or not _unreachable(remote, failure):
            raise
        try:
            lines = _local(remote, limit)
        except GatewayError:
            raise failure from None  # that there is no log either is no help
        click.echo(f"{failure.message.partition(' (')[0]}; this is its log file:", err=True)
        _print(lines, remote.json)


async def _logs(remote: Remote, connection: Connection, follow: bool, limit: int) -> None:
    from mayros.ws.conversation import CallFailed

    params: dict[str, Any] = {"limit": limit}
    file, failures = None, 0
    while True:
        try:
            answer = await connection.request("logs.tail", params, timeout=remote.timeout)
            failures = 0
        except CallFailed:
            failures += 1
            if not follow or file is None or failures >= MOST_FAILURES:
                raise
            await remote.pause(FOLLOW_SECONDS)
            continue
        found = record(answer)
        if file is not None and found.get("file") != file and not found.get("reset"):
            # A new day has a new file: all of it, whatever the offset meant in the old one.
            file, params = found.get("file"), {"cursor": 0, "limit": FOLLOW_LINES}
            continue
        lines = found.get("lines")
        file = found.get("file")
        _print([line for line in lines if isinstance(line, str)] if isinstance(lines, list) else [], remote.json)
        if not follow:
            return
        params = {"cursor": found.get("cursor"), "limit": FOLLOW_LINES}
        if not lines or len(lines) < FOLLOW_LINES:
            await remote.pause(FOLLOW_SECONDS)


def _unreachable(remote: Remote, failure: Refused) -> bool:
    return remote.target.own and failure.message.startswith(("Cannot reach", "Cannot speak to"))


def _local(remote: Remote, limit: int) -> list[str]:
    from mayros.ops.tail import current, log_files, read

    logging = remote.place.load().config.logging
    files = log_files(logging.file, remote.place.state_dir, logging.max_file_bytes)
    return list(read(current(files, time.time()), None, limit, 1_000_000).lines)


def _print(lines: list[str], as_json: bool) -> None:
    for line in lines:
        click.echo(clean(line) if as_json else shown(line))


def shown(line: str) -> str:
    """One line for people: local time, level, who says it, and what; whatever is no line of the gateway's as it is."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or not isinstance(said.get("message"), str):
        return clean(line)
    at, text = said.get("time"), clean(said["message"])
    stamp = local_time(at * 1000 if isinstance(at, int | float) else None) or "-"
    ids = " ".join(f"{cell(name)}={cell(value)}" for name, value in said.items() if name not in _KNOWN and cell(value) not in text)
    first, end, rest = text.partition("\n")
    return f"{stamp} {cell(said.get('level')):5} {cell(said.get('logger'))}: {first}{f' [{ids}]' if ids else ''}{end}{rest}"
