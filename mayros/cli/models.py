"""`mayros models`: which models there are, which ones agents ask, whether they answer, and the download of the embedded one.

Imports config, core types and providers.embedded; the trial of a model is in model_trial.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from mayros.cli import candidates
from mayros.cli.place import Place, here
from mayros.cli.remote import Remote, gateway_options
from mayros.cli.show import print_json, table
from mayros.core.models import EMBEDDED, key_variables

if TYPE_CHECKING:
    from rich.progress import TaskID

    from mayros.core.models import Model, Provider
    from mayros.core.routing import Settings


@click.group()
def models() -> None:
    """List and try the models, choose the ones that agents ask, or install the embedded one."""


@models.command("list")
@click.option("--all", "everything", is_flag=True, help="Also built-in models of vendors that there is no key for.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_models(ctx: click.Context, everything: bool, as_json: bool) -> None:
    """List the models that can be used: context window, prices per million tokens (input/output), and the agents that ask them."""
    rows = inventory(here(ctx))
    if as_json:
        print_json(rows, 2)
        return
    shown = [row for row in rows if everything or row["usable"] or row["agents"]]
    width = max((len(row["ref"]) for row in shown), default=0)
    for row in shown:
        cost = row["cost"]
        price = f"${cost['input']:g}/${cost['output']:g}" if cost["input"] or cost["output"] else "-"
        takes = " ".join(word for word, has in (("images", "image" in row["input"]), ("thinks", row["reasoning"]), ("tools", row["tools"])) if has)
        agents = f"  agents: {', '.join(row['agents'])}" if row["agents"] else ""
        click.echo(f"{row['ref']:<{width}}  {row['contextWindow']:>9,} tokens  {price:>12}  {takes:<19}  {row['state']}{agents}")
    if len(shown) < len(rows):
        click.echo(f"({len(rows) - len(shown)} more that there is no key for: --all)", err=True)


def inventory(place: Place) -> list[dict[str, Any]]:
    """Each model as `{ref, name, contextWindow, maxTokens, input, reasoning, tools, cost, usable, state, agents}`.

    The agents' own come first, in the order in which they are tried.
    """
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
    rows = []
    for ref, model in found.items():
        usable, state = _state(settings, model)
        cost = model.cost
        rows.append(
            {
                "ref": ref,
                "name": model.name,
                "contextWindow": model.context_window,
                "maxTokens": model.max_tokens,
                "input": list(model.input),
                "reasoning": model.reasoning,
                "tools": model.tools,
                "cost": {"input": cost.input, "output": cost.output, "cacheRead": cost.cache_read, "cacheWrite": cost.cache_write},
                "usable": usable,
                "state": state,
                "agents": used.get(ref, []),
            }
        )
    return rows


def _state(settings: Settings, model: Model) -> tuple[bool, str]:
    """Whether it can be used, and a word on that."""
    provider = model.provider
    if provider.api == "local":
        from mayros.providers.embedded import installed

        if model.ref != EMBEDDED:
            return False, "unknown embedded model"
        there = installed(settings.state_dir) is not None
        return there, "installed" if there else "not installed: mayros models install smollm2"
    if provider.credentials:
        keys = len(provider.credentials)
        return True, "ready" if keys == 1 else f"ready, {keys} keys"
    way = key_wanted(settings, provider)
    return (False, f"no API key: {way}") if way is not None else (provider.id in settings.config.models.providers, "ready, without a key")


def key_wanted(settings: Settings, provider: Provider) -> str | None:
    """What to do about the key that a provider has not and cannot be asked without; None: it has one, or none is needed."""
    if provider.credentials or provider.id in settings.config.models.providers or not provider.base_url.startswith("https://"):
        return None
    return f"set {key_variables(provider.id)[0]}, or mayros setup --provider {provider.id}"


@models.command("set")
@click.argument("ref", shell_complete=candidates.model_refs)
@click.option(
    "--fallback",
    "fallbacks",
    multiple=True,
    metavar="REF",
    shell_complete=candidates.model_refs,
    help="Tried when it fails; may be given several times, in order.",
)
@click.option(
    "--agent",
    "agent_id",
    metavar="ID",
    shell_complete=candidates.agent_ids,
    help="Only for this agent; default: for all that have no model of their own.",
)
@click.pass_context
def set_model(ctx: click.Context, ref: str, fallbacks: tuple[str, ...], agent_id: str | None) -> None:
    """Make REF (provider/model, or an alias) the model that agents ask first.

    Changes the configuration file and nothing else in it; fallbacks that are not given stay as they are. A running gateway notices it.
    """
    from mayros.cli.acts import change_file
    from mayros.cli.model_trial import ready

    place = here(ctx)
    settings = place.settings(place.load())
    for one in (ref, *fallbacks):
        ready(settings, one)

    chain: list[str] = list(fallbacks)

    def edit(tree: dict[str, Any]) -> None:
        nonlocal chain
        holder = tree.setdefault("agents", {}).setdefault("defaults", {}) if agent_id is None else _entry(tree, agent_id)
        old = holder.get("model")
        if isinstance(old, dict):
            old["primary"] = ref
            if fallbacks:
                old["fallbacks"] = chain
            elif isinstance(kept := old.get("fallbacks"), list):
                chain = kept
        else:
            holder["model"] = {"primary": ref, "fallbacks": chain} if chain else ref

    change_file(place, "models set", edit)
    whom = "all agents without a model of their own" if agent_id is None else f"the agent {agent_id}"
    then = f", then {', '.join(map(str, chain))}" if chain else ""
    click.echo(f"{place.config_path}: {ref} is the model of {whom}{then}. A running gateway asks it from its next run on.")


def _entry(tree: dict[str, Any], agent_id: str) -> dict[str, Any]:
    listed = tree.get("agents", {}).get("list", [])
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict) and str(entry.get("id", "")).strip().lower() == agent_id.lower():
            return entry
    raise click.ClickException(f"the file lists no agent {agent_id!r} under agents.list")


@models.command("test")
@click.argument("refs", nargs=-1, metavar="[REF]...", shell_complete=candidates.model_refs)
@click.option("--live", is_flag=True, help="Ask each model for one word: a real request, which may cost a fraction of a cent.")
@click.option("--timeout", type=click.FloatRange(1, 600), default=60.0, show_default=True, metavar="S", help="Seconds to wait for each answer.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def test(ctx: click.Context, refs: tuple[str, ...], live: bool, timeout: float, as_json: bool) -> None:
    """Check that models can be used; without REF those that agents ask. Status 1 where one cannot be.

    Without --live nothing is sent: the provider is configured, its key is there, and its address can be used.
    """
    from mayros.cli.model_trial import try_models

    rows = try_models(here(ctx), refs, live, timeout)
    if as_json:
        print_json(rows, 2)
    else:
        for row in rows:
            said = f"{row['detail']}" if row["ok"] else f"FAILED: {row['detail']}"
            click.echo(f"{row['ref']}{' (' + row['credential'] + ')' if row.get('credential') else ''}: {said}")
    if not rows:
        raise click.ClickException("no agent has a model: mayros models set REF")
    if not all(row["ok"] for row in rows):
        ctx.exit(1)


@models.command()
@gateway_options()
def status(remote: Remote) -> None:
    """Show how the providers of a running gateway do: which are not asked, and which keys rest, until when and why."""
    from mayros.cli.model_status import COLUMNS, rows

    payload = remote.call("models.status")
    if remote.json:
        print_json(payload)
    else:
        table(COLUMNS, rows(payload))


@models.command()
@click.argument("name", type=click.Choice(["smollm2"]))
@click.pass_context
def install(ctx: click.Context, name: str) -> None:
    """Download the embedded model NAME (smollm2) into the state directory; does nothing when it is there."""
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
