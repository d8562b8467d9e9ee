"""`mayros tools`: which tools an agent has, and the rule that decided. Reads the configuration; no gateway need run. Imports core and the place."""

from __future__ import annotations

import click

from mayros.cli import candidates
from mayros.cli.place import here
from mayros.cli.show import print_json, table
from mayros.errors import GatewayError


@click.group()
def tools() -> None:
    """Show which tools an agent has, and why."""


@tools.command("list")
@click.option("--agent", "agent_id", metavar="ID", shell_complete=candidates.agent_ids, help="The agent; default: the default agent.")
@click.option(
    "--model",
    "ref",
    metavar="MODEL",
    shell_complete=candidates.model_refs,
    help="As for this model (provider/model); default: the agent's first one.",
)
@click.option("--why", is_flag=True, help="Every tool that policies may name, with the rule that decided.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_tools(ctx: click.Context, agent_id: str | None, ref: str | None, why: bool, as_json: bool) -> None:
    """List the tools that an agent has, as the configuration says."""
    from mayros.core.toolbox import catalogue

    place = here(ctx)
    settings = place.settings(place.load())
    directory = settings.directory
    try:
        agent = directory.agent(agent_id or directory.default_id)
    except GatewayError as error:
        raise click.ClickException(error.message) from None
    model = settings.catalogue.find(ref) if ref is not None else agent.models[0] if agent.models else None
    if ref is not None and model is None:
        raise click.ClickException(f"there is no model {ref!r}: see mayros models list")
    rows = [row for row in catalogue(None, agent, model) if why or row.verdict.allowed]
    if as_json:
        shown = [{"name": row.name, "allowed": row.verdict.allowed, "rule": row.verdict.rule, "description": row.description} for row in rows]
        print_json({"agentId": agent.id, "model": model.ref if model else None, "tools": shown})
    elif why:
        table(("tool", "allowed", "rule"), [(row.name, "yes" if row.verdict.allowed else "no", row.verdict.rule) for row in rows])
    elif rows:
        table(("tool", "what it does"), [(row.name, row.description) for row in rows])
    else:
        click.echo(f"Agent {agent.id} has no tools; --why says which rule decided.")
