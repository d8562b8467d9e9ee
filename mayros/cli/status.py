"""`mayros status`: how the gateway is, on one screen. Imports cli.show and what other commands print."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from mayros.cli.model_status import rows as provider_rows
from mayros.cli.remote import Remote, gateway_options
from mayros.cli.show import ago, cell, print_json, record, records

if TYPE_CHECKING:
    from mayros.ws.connection import Connection

#: How many of each there is room for.
RUNS, ERRORS, SESSIONS = 5, 5, 3


@click.command()
@gateway_options(seconds=10.0)
def status(remote: Remote) -> None:
    """Show how the gateway is: doors, runs, sessions, providers, the last errors. Exit status 1 where it cannot take work, or cannot be reached."""

    async def ask(connection: Connection) -> dict[str, Any]:
        whole = await connection.request("status", {}, timeout=remote.timeout)
        models = await connection.request("models.status", {}, timeout=remote.timeout)
        return {**record(whole), "models": models}

    found = remote.talk(ask)
    gateway = record(found.get("gateway"))
    if remote.json:
        print_json(found)
    else:
        for line in screen(found, remote.target.url):
            click.echo(line)
    if gateway.get("notReady"):
        raise click.exceptions.Exit(1)


def screen(found: dict[str, Any], url: str) -> list[str]:
    """The lines."""
    gateway, sessions, config = record(found.get("gateway")), record(found.get("sessions")), record(found.get("config"))
    doors, runs, store = record(gateway.get("doors")), record(gateway.get("runs")), record(gateway.get("store"))
    ready = f"NOT READY: {cell(gateway['notReady'])}" if gateway.get("notReady") else "ready"
    made = [
        _row("gateway", f"{cell(gateway.get('version'))} at {cell(url)}, up {lasting(gateway.get('uptimeMs'))}, {ready}"),
        _row("doors", f"{cell(doors.get('urls'))}: {_count(doors, 'httpConnections', 'HTTP connection')}, {_count(doors, 'streams', 'stream')}, "
             f"{_count(doors, 'webSockets', 'WebSocket')}"),
        *_certificate(record(doors.get("tls"))),
        _row("runs", f"{cell(runs.get('live'))} live, {cell(runs.get('waitingForSession'))} waiting for their session, "
             f"{cell(runs.get('waitingForSlot'))} for a slot"),
    ]  # fmt: skip
    for run in records(runs.get("newest"))[:RUNS]:
        where = f"{cell(run.get('sessionKey'))} by {cell(run.get('door'))}, {cell(run.get('model')) or 'no answer yet'}"
        made.append(_row("", f"{cell(run.get('runId'))}  {where}, since {ago(run.get('startedAtMs'))}".replace(" ago", "")))
    made.append(_row("sessions", cell(sessions.get("count"))))
    made += [_row("", f"{cell(one.get('key'))}, {ago(one.get('updatedAt'))}") for one in records(sessions.get("recent"))[:SESSIONS]]
    for place, provider in enumerate(_providers(found.get("models"))):
        made.append(_row("providers" if not place else "", provider))
    made.append(
        _row("store", f"{cell(store.get('kind'))}, {'writable' if store.get('writable') else 'CANNOT BE WRITTEN'}, {cell(store.get('written'))} "
             f"writes, {cell(store.get('failed'))} failed")
    )  # fmt: skip
    if config:
        waits = cell(config.get("restartRequired"))
        text = f"read {ago(config.get('loadedAt'))}" + (f"; after a restart: {waits}" if waits else "")
        made.append(_row("config", f"CANNOT BE USED: {cell(config['error'])}" if config.get("error") else text))
    errors = records(gateway.get("lastErrors"))
    made.append(_row("last errors", "none" if not errors else ""))
    made += [
        _row("", f"{ago(one.get('ts'))} {cell(one.get('level'))} {cell(one.get('logger'))}: {cell(one.get('message'))[:200]}")
        for one in errors[:ERRORS]
    ]
    return made


def _certificate(tls: dict[str, Any]) -> list[str]:
    """The line of the certificate, where the gateway speaks TLS."""
    if not tls:
        return []
    ends = tls.get("expiresAtMs")
    left = ends - time.time_ns() // 1_000_000 if isinstance(ends, int) else None
    valid = "" if left is None else "EXPIRED" if left <= 0 else f"valid for {lasting(left)}"
    return [_row("certificate", f"CANNOT BE LOADED AGAIN: {cell(tls['error'])}; the old one is {valid}" if tls.get("error") else valid)]


def _providers(models: Any) -> list[str]:
    """A line for each: how it is, and what it said when it was not well."""
    lines: dict[str, list[str]] = {}
    for name, key, state, kind, left, said in provider_rows(models):
        text = cell(state) + (f" ({cell(kind)}{f', {cell(left)} more' if left else ''})" if kind else "")
        lines.setdefault(cell(name), []).append(f"{f'{cell(key)} ' if key else ''}{text}{f': {cell(said)[:120]}' if said else ''}")
    return [f"{name}: {'; '.join(texts)}" for name, texts in lines.items()]


def _row(name: str, text: str) -> str:
    return f"{name:<12} {text}".rstrip()


def _count(part: dict[str, Any], name: str, what: str) -> str:
    number = part.get(name)
    return f"{cell(number)} {what}{'' if number == 1 else 's'}"


def lasting(milliseconds: object) -> str:
    """A duration, roughly: `3d 4h`, `2h 5m`, `40s`; empty where it is none."""
    if not isinstance(milliseconds, int) or isinstance(milliseconds, bool) or milliseconds < 0:
        return ""
    seconds = milliseconds // 1000
    for size, unit, small, below in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            return f"{seconds // size}{unit} {seconds % size // small}{below}"
    return f"{seconds}s"
