"""`mayros models`: which models there are, and the download of the embedded one. Imports config, core types and providers.embedded."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from mayros.cli.place import Place, here
from mayros.core.models import EMBEDDED, key_variable

if TYPE_CHECKING:
    from rich.progress import TaskID

    from mayros.core.models import Model
    from mayros.core.routing import Settings


@click.group()
def models() -> None:
    """List the models, or install the embedded one."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_models(ctx: click.Context, as_json: bool) -> None:
    """List the models that are configured or built in, and whether each can be used."""
    rows = inventory(here(ctx))
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    width = max(len(row["ref"]) for row in rows) if rows else 0
    for row in rows:
        agents = f"  agents: {', '.join(row['agents'])}" if row["agents"] else ""
        click.echo(f"{row['ref']:<{width}}  {row['contextWindow']:>9,} tokens  {row['state']}{agents}")


def inventory(place: Place) -> list[dict[str, Any]]:
    """Each model as `{ref, name, contextWindow, state, agents}`; the agents' own first, in the order they are tried."""
    loaded = place.load()
    settings = place.settings(loaded)
    found: dict[str, Model] = {}
    used: dict[str, list[str]] = {}
    for agent in settings.directory.agents.values():
        for model in agent.models:
            found.setdefault(model.ref, model)
            used.setdefault(model.ref, []).append(agent.id)
    for ref, model in settings.catalogue.models.items():
        found.setdefault(ref, model)
    return [
        {
            "ref": ref,
            "name": model.name,
            "contextWindow": model.context_window,
            "state": _state(settings, model),
            "agents": used.get(ref, []),
        }
        for ref, model in found.items()
    ]


def _state(settings: Settings, model: Model) -> str:
    provider = model.provider
    if provider.api == "local":
        from mayros.providers.embedded import installed

        if model.ref != EMBEDDED:
            return "unknown embedded model"
        return "installed" if installed(settings.state_dir) else "not installed: mayros models install smollm2"
    if provider.key or not provider.base_url.startswith("https://"):
        return "ready"
    return f"no API key: set {key_variable(provider.id)}"


@models.command()
@click.argument("name", type=click.Choice(["smollm2"]))
@click.pass_context
def install(ctx: click.Context, name: str) -> None:
    """Download the embedded model into the state directory; does nothing when it is there."""
    from mayros.net.statedir import StateDir, recognise_foreign
    from mayros.providers import embedded

    place = here(ctx)
    foreign = recognise_foreign(place.state_dir)
    if foreign:
        raise click.ClickException(f"{foreign} Nothing was written.")
    StateDir.open(place.state_dir)
    path = embedded.installed(place.state_dir) or _with_progress(embedded.install, place.state_dir)
    click.echo(f"{name} is installed: {path}")
    if not embedded.runtime_installed():
        raise click.ClickException("the library that runs it is missing: install the gateway with its extra, mayros-gateway[local]")


def _with_progress(install: Callable[[str, Callable[[str, int, int], None]], str], state_dir: str) -> str:
    """Install while a bar on standard error shows how far it is."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bar.add_task(step, total=total or None)
                if not console.is_terminal:
                    click.echo(f"{step} ...", err=True)
            bar.update(tasks[step], completed=done, total=total or None)

        return install(state_dir, progress)
