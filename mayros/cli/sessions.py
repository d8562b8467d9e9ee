"""`mayros sessions`: the conversations that a gateway keeps. Imports ws.client through the place."""

from __future__ import annotations

import sys
from typing import Any

import click

from mayros.cli import candidates
from mayros.cli.remote import Remote, gateway_options
from mayros.cli.show import ago, cell, clean, local_time, print_json, record, records, table


@click.group()
def sessions() -> None:
    """List, show, reset and delete conversations."""


@sessions.command("list")
@click.option("--agent", "agent_id", metavar="ID", shell_complete=candidates.agent_ids, help="Only this agent's.")
@click.option("--search", metavar="TEXT", help="Only those in whose key or label this text is found.")
@click.option("--active", type=click.IntRange(1), metavar="MINUTES", help="Only those used in the last MINUTES.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, metavar="N", help="At most so many, newest first.")
@gateway_options()
def list_sessions(remote: Remote, agent_id: str | None, search: str | None, active: int | None, limit: int) -> None:
    """List conversations, newest first."""
    asked = {"limit": limit, "agentId": agent_id, "search": search, "activeMinutes": active}
    payload = remote.call("sessions.list", {name: value for name, value in asked.items() if value is not None})
    if remote.json:
        print_json(payload)
        return
    found = records(payload.get("sessions") if isinstance(payload, dict) else None)
    if not found:
        click.echo("There are no sessions.")
        return
    rows = [(row.get("key"), row.get("label"), ago(row.get("updatedAt")), row.get("model"), _used(row)) for row in found]
    table(("key", "label", "used", "model", "context"), rows)


@sessions.command()
@click.argument("key", shell_complete=candidates.session_keys)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, metavar="N", help="The newest N messages.")
@gateway_options()
def show(remote: Remote, key: str, limit: int) -> None:
    """Show the newest messages of the conversation KEY, oldest first."""
    payload = remote.call("chat.history", {"sessionKey": key, "limit": limit})
    history = record(payload)
    if not history.get("sessionId"):
        raise click.ClickException(f"there is no session {key!r}: see mayros sessions list")
    if remote.json:
        print_json(payload)
        return
    for message in records(history.get("messages")):
        click.echo(f"{cell(message.get('role')) or 'unknown'}, {local_time(message.get('timestamp')) or 'at an unknown time'}")
        click.echo("".join(f"  {line}\n" for line in _text(message).splitlines()))


@sessions.command()
@click.argument("key", shell_complete=candidates.session_keys)
@gateway_options()
def reset(remote: Remote, key: str) -> None:
    """Begin the conversation KEY anew; its settings stay."""
    payload = remote.call("sessions.reset", {"key": key})
    if remote.json:
        print_json(payload)
    else:
        click.echo(f"The session {_key(payload, key)} begins anew.")


@sessions.command()
@click.argument("key", shell_complete=candidates.session_keys)
@click.option("--yes", is_flag=True, help="Do not ask.")
@gateway_options()
def delete(remote: Remote, key: str, yes: bool) -> None:
    """Delete the conversation KEY with its messages. On a terminal it asks first."""
    if not (yes or remote.json) and sys.stdin.isatty():
        click.confirm(f"Delete the session {clean(key)} and its messages?", abort=True)
    payload = remote.call("sessions.delete", {"key": key})
    if remote.json:
        print_json(payload)
    elif isinstance(payload, dict) and payload.get("deleted") is True:
        click.echo(f"The session {_key(payload, key)} is deleted.")
    else:
        raise click.ClickException(f"there is no session {key!r}: see mayros sessions list")


def _key(payload: object, asked: str) -> str:
    """The session's whole name."""
    return cell(payload.get("key") if isinstance(payload, dict) else asked)


def _used(row: dict[str, Any]) -> str:
    """How much of the model's window the newest prompt took."""
    used, window = row.get("totalTokens"), row.get("contextTokens")
    if not isinstance(used, int) or not isinstance(window, int) or window <= 0:
        return ""
    return f"{used:,} of {window:,} ({round(100 * used / window)}%)"


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return clean(content)
    parts = []
    for part in records(content):
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append(clean(str(part["text"])))
        elif kind != "thinking":
            parts.append(f"[{cell(kind)} {cell(part.get('name'))}]".replace(" ]", "]"))
    return "\n".join(parts)
