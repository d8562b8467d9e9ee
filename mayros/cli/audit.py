"""`mayros audit log`: who did what. Through the gateway, or from the store where this machine's gateway does not answer. Imports storage then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from mayros.cli.acts import now_ms
from mayros.cli.remote import Refused, Remote, gateway_options
from mayros.cli.show import cell, local_time, print_json, record, records, table
from mayros.cli.tokens import span_ms
from mayros.errors import GatewayError, StartError

if TYPE_CHECKING:
    from mayros.core.audit_ports import AuditRow
    from mayros.ws.connection import Connection

#: While following: how often it is asked, for how many rows at most, and how often in a row that may fail.
FOLLOW_SECONDS, FOLLOW_ROWS, MOST_FAILURES = 1.0, 200, 8
MAX_ROWS = 1_000
_COLUMNS = ("time", "action", "who", "from", "target", "outcome", "details")


def _since(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    """From when on, in epoch milliseconds: so long ago, or a date or time of this machine's clock."""
    if text is None:
        return None
    span = span_ms(text)
    try:
        moment_ms = now_ms() - span if span is not None else int(datetime.fromisoformat(text.strip()).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter("must be a time like 2h or 7d, or a date like 2026-12-31 or 2026-12-31T18:00") from None
    return max(0, moment_ms)


@click.group()
def audit() -> None:
    """Look at who changed what: approvals, configuration, tokens, devices."""


@audit.command()
@click.option("--since", callback=_since, metavar="WHEN", help="Only what is newer than so long (2h, 7d), or than a date or time (2026-12-31).")
@click.option("--action", metavar="PREFIX", help="Only actions that begin so, like `tokens` or `exec.approval`.")
@click.option("--who", metavar="TEXT", help="Only of those in whose name this is, like token:ann or cli:.")
@click.option("--limit", type=click.IntRange(1, MAX_ROWS), default=50, show_default=True, metavar="N", help="How many rows, the newest.")
@click.option("--follow", "-f", is_flag=True, help="Go on printing what comes, until interrupted.")
@gateway_options(seconds=10.0)
def log(remote: Remote, since: int | None, action: str | None, who: str | None, limit: int, follow: bool) -> None:
    """Print the audit trail, the oldest of the rows first. With --json one JSON object for each.

    Where this machine's gateway does not answer, the store is read.
    """
    asked = {name: value for name, value in {"sinceMs": since, "action": action, "who": who}.items() if value is not None}
    try:
        remote.talk(lambda connection: _log(remote, connection, asked, limit, follow), again=follow)
    except Refused as failure:
        if remote.elsewhere or not (remote.target.own and failure.message.startswith("Cannot reach")):
            raise
        try:
            rows = _stored(remote, since, action, who, limit)
        except (GatewayError, StartError):
            raise failure from None  # that there is no store either is no help
        click.echo(f"{failure.message.partition(' (')[0].rstrip('.')}; this is what its store has:", err=True)
        _print(remote, rows)
        _more(since, rows, limit)


async def _log(remote: Remote, connection: Connection, asked: dict[str, Any], limit: int, follow: bool) -> None:
    from mayros.ws.conversation import CallFailed

    rows = records(record(await connection.request("audit.list", {**asked, "limit": limit}, timeout=remote.timeout)).get("entries"))[::-1]
    _print(remote, rows)
    _more(asked.get("sinceMs"), rows, limit)
    last, failures = _last(rows, 0), 0
    while follow:
        if len(rows) < FOLLOW_ROWS:
            await remote.pause(FOLLOW_SECONDS)
        try:
            answer = await connection.request("audit.list", {**asked, "after": last, "limit": FOLLOW_ROWS}, timeout=remote.timeout)
            failures = 0
        except CallFailed:
            failures += 1
            if failures >= MOST_FAILURES:
                raise
            rows = []
            continue
        rows = records(record(answer).get("entries"))
        _print(remote, rows, more=True)
        last = _last(rows, last)


def _more(since: int | None, rows: Sequence[object], limit: int) -> None:
    """Whoever asks for all since some time must know that it is not all."""
    if since is not None and len(rows) == limit:
        click.echo(f"Only the newest {limit} are shown: --limit N shows more.", err=True)


def _last(rows: Sequence[Mapping[str, object]], before: int) -> int:
    return max([before, *(found for row in rows if isinstance(found := row.get("id"), int))])


def _stored(remote: Remote, since: int | None, action: str | None, who: str | None, limit: int) -> list[dict[str, object]]:
    from mayros.core.audit_ports import AuditQuery
    from mayros.storage.audit import found
    from mayros.storage.export import open_to_read

    engine = open_to_read(remote.place.store_url(remote.place.load()))
    try:
        with engine.connect() as connection:
            return [_row(row) for row in reversed(found(connection, AuditQuery(limit, since_ms=since, action=action, who=who)))]
    finally:
        engine.dispose()


def _row(row: AuditRow) -> dict[str, object]:
    """As a gateway tells it."""
    import json

    import msgspec

    told = {"id": row.id, **{"atMs" if name == "at_ms" else name: value for name, value in msgspec.structs.asdict(row.entry).items()}}
    return {name: json.loads(row.entry.details) if name == "details" else value for name, value in told.items() if value is not None}


def _print(remote: Remote, rows: Sequence[Mapping[str, object]], more: bool = False) -> None:
    """`more`: these go on below others, so that no heading is due."""
    if remote.json:
        for row in rows:
            print_json(row)
    elif more:
        for row in rows:
            when, *rest = shown(row)
            click.echo("  ".join([when, *(text for text in rest if text)]))
    elif rows:
        table(_COLUMNS, [shown(row) for row in rows])
    else:
        click.echo("There is nothing in the audit trail.")


def shown(row: Mapping[str, object]) -> tuple[str, ...]:
    """One row for people: local time, what was done by whom, from where, to what, how it ended, and the rest."""
    who, label = cell(row.get("who")), cell(row.get("label"))
    kind, _, name = who.partition(":")
    short = f"{kind}:{name[:12]}" if kind == "device" else who
    whence = " ".join(part for part in (cell(row.get("door")), cell(row.get("address"))) if part and part != kind)
    details = " ".join(f"{cell(name)}={cell(value)}" for name, value in record(row.get("details")).items())
    return (
        local_time(row.get("atMs")) or "-",
        cell(row.get("action")),
        f"{short} ({label})" if label else short,
        whence,
        cell(row.get("target")),
        cell(row.get("outcome")),
        details,
    )
