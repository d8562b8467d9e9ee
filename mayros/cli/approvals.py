"""`mayros approvals`: commands of agents that wait for somebody's approval. Imports ws.client through the place."""

from __future__ import annotations

import re
import time
from typing import Any

import click

from mayros.cli.remote import Remote, gateway_options
from mayros.cli.show import cell, print_json, record, records, table


@click.group()
def approvals() -> None:
    """List the commands that agents want to run and that wait for an approval, and decide."""


@approvals.command("list")
@gateway_options()
def list_approvals(remote: Remote) -> None:
    """List the commands that wait, with all that is needed to judge them."""
    payload = remote.call("exec.approval.list")
    if remote.json:
        print_json(payload)
        return
    waiting = [(row, record(row.get("request"))) for row in records(payload)]
    if not waiting:
        click.echo("No command waits for an approval.")
        return
    names = ("id", "agent", "session", "directory", "command", "environment", "left")
    table(names, [_row(row, request) for row, request in waiting])


def _row(row: dict[str, object], request: dict[str, Any]) -> tuple[object, ...]:
    env = request.get("env")
    added = [f"{exact(name)}={exact(value)}" for name, value in env.items()] if isinstance(env, dict) else None
    return (
        row.get("id"),
        request.get("agentId"),
        request.get("sessionKey"),
        exact(request.get("cwd")),
        exact(request.get("command")),
        added,
        _left(row.get("expiresAtMs")),
    )


@approvals.command()
@click.argument("approval_id", metavar="ID")
@click.option("--always", is_flag=True, help="Also put the programs that it starts on the agent's list: they run without asking from now on.")
@gateway_options()
def allow(remote: Remote, approval_id: str, always: bool) -> None:
    """Let the command with this ID run, once."""
    payload = remote.call("exec.approval.resolve", {"id": approval_id, "decision": "allow-always" if always else "allow-once"})
    if remote.json:
        print_json(payload)
        return
    click.echo(f"The command {cell(approval_id)} may run.")
    added = record(payload).get("added")
    if isinstance(added, list) and added:
        click.echo(f"On the agent's list: {', '.join(exact(path) for path in added)}")
    elif isinstance(added, list):
        click.echo("Nothing was put on the agent's list: what it starts would allow everything, can be changed, or is not known.")


@approvals.command()
@click.argument("approval_id", metavar="ID")
@gateway_options()
def deny(remote: Remote, approval_id: str) -> None:
    """Refuse the command with this ID; the agent is told."""
    payload = remote.call("exec.approval.resolve", {"id": approval_id, "decision": "deny"})
    if remote.json:
        print_json(payload)
    else:
        click.echo(f"The command {cell(approval_id)} is denied.")


def exact(value: object) -> str:
    """A text that somebody judges: nothing in it is left out, what cannot be seen is written as an escape."""
    text = "" if value is None else str(value)
    shown = "".join(letter if letter.isprintable() and letter != "\\" else letter.encode("unicode_escape").decode("ascii") for letter in text)
    return re.sub(r" (?= )|^ | $", r"\\x20", shown)


def _left(when_ms: object) -> str:
    """Seconds until a time."""
    if not isinstance(when_ms, int | float) or isinstance(when_ms, bool):
        return ""
    return f"{max(0, int(when_ms - time.time_ns() // 1_000_000) // 1000)}s"
