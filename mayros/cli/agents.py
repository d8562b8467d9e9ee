"""`mayros agents`: the agents of a gateway's configuration. Imports ws.client through the place."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from mayros.cli import candidates
from mayros.cli.remote import Remote, gateway_options
from mayros.cli.show import cell, clean, print_json, record, records, table
from mayros.core.keys import normalise_agent_id

if TYPE_CHECKING:
    from mayros.ws.connection import Connection


@click.group()
def agents() -> None:
    """List, add, change and remove agents; what is changed is in force at once."""


@agents.command("list")
@gateway_options()
def list_agents(remote: Remote) -> None:
    """List the agents."""
    payload = remote.call("agents.list")
    if remote.json:
        print_json(payload)
        return
    found = record(payload)
    rows = []
    for row in records(found.get("agents")):
        shown = record(row.get("identity"))
        default = "default" if row.get("id") == found.get("defaultId") else None
        rows.append((row.get("id"), shown.get("name") or row.get("name"), shown.get("emoji"), default))
    table(("agent", "name", "emoji", ""), rows)


@agents.command()
@click.argument("name")
@click.option("--workspace", metavar="DIR", help="Folder of its files on the gateway's machine; default: workspace-<id> in the state directory.")
@click.option(
    "--model",
    metavar="MODEL",
    shell_complete=candidates.model_refs,
    help="The model it asks first, as provider/model; default: that of agents.defaults.",
)
@click.option("--emoji", help="Shown beside its name.")
@click.option("--avatar", help="A picture's address or path.")
@gateway_options()
def add(remote: Remote, name: str, workspace: str | None, model: str | None, emoji: str | None, avatar: str | None) -> None:
    """Add an agent called NAME; its id is the name in lower case, with other characters as dashes."""

    async def adding(connection: Connection) -> Any:
        asked = {"name": name, "workspace": _folder(remote, workspace) or _default_folder(connection, name), "emoji": emoji, "avatar": avatar}
        made = await connection.request("agents.create", _given(asked), timeout=remote.timeout)
        if model is not None:
            await connection.request("agents.update", {"agentId": record(made).get("agentId"), "model": model}, timeout=remote.timeout)
        return made

    payload = remote.talk(adding)
    if remote.json:
        print_json(payload)
    else:
        made = record(payload)
        click.echo(f"The agent {cell(made.get('agentId'))} is there, with its files in {cell(made.get('workspace'))}.")


@agents.command("set")
@click.argument("agent_id", shell_complete=candidates.agent_ids)
@click.option("--name", help="Its name.")
@click.option("--workspace", metavar="DIR", help="Folder of its files on the gateway's machine.")
@click.option("--model", metavar="MODEL", shell_complete=candidates.model_refs, help="The model it asks first, as provider/model.")
@click.option("--avatar", help="A picture's address or path.")
@gateway_options()
def set_agent(remote: Remote, agent_id: str, name: str | None, workspace: str | None, model: str | None, avatar: str | None) -> None:
    """Change the agent AGENT_ID."""
    changes = _given({"name": name, "workspace": _folder(remote, workspace), "model": model, "avatar": avatar})
    if not changes:
        raise click.UsageError("nothing to change: give --name, --workspace, --model or --avatar")
    payload = remote.call("agents.update", {"agentId": agent_id, **changes})
    if remote.json:
        print_json(payload)
    else:
        click.echo(f"The agent {cell(agent_id)} is changed: {', '.join(changes)}.")


@agents.command()
@click.argument("agent_id", shell_complete=candidates.agent_ids)
@click.option("--keep-files", is_flag=True, help="Leave the folder of its files where it is.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@gateway_options()
def remove(remote: Remote, agent_id: str, keep_files: bool, yes: bool) -> None:
    """Remove the agent AGENT_ID. On a terminal it asks first."""
    if not (yes or remote.json) and sys.stdin.isatty():
        click.confirm(f"Remove the agent {clean(agent_id)}{'' if keep_files else ' and its files'}?", abort=True)
    payload = remote.call("agents.delete", {"agentId": agent_id, "deleteFiles": not keep_files})
    if remote.json:
        print_json(payload)
    else:
        click.echo(f"The agent {cell(agent_id)} is removed.")


def _given(values: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}


def _folder(remote: Remote, workspace: str | None) -> str | None:
    """As it was written where the gateway may be on another machine; else absolute, for the daemon has another working directory."""
    return os.path.abspath(os.path.expanduser(workspace)) if workspace is not None and remote.target.own else workspace


def _default_folder(connection: Connection, name: str) -> str:
    """What the gateway tells to administrators about its state directory is enough to name a folder."""
    snapshot = connection.hello.get("snapshot")
    state = snapshot.get("stateDir") if isinstance(snapshot, dict) else None
    if not isinstance(state, str) or not state:
        raise click.UsageError("give --workspace: this gateway does not tell where its files are")
    return f"{state.rstrip('/')}/workspace-{normalise_agent_id(name)}"
