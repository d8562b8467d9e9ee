"""`mayros import`: the sessions and the configuration of the original's state directory, put into this gateway's.

Imports config and storage when a command asks.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from mayros.cli.acts import note, now_ms
from mayros.cli.place import Place, here, stopped
from mayros.cli.show import clean, print_json, table

if TYPE_CHECKING:
    import sqlalchemy as sa

    from mayros.cli.adopting import Adoption
    from mayros.config.load import Loaded
    from mayros.core.audit_ports import Outcome
    from mayros.storage.original.folder import Folder

#: Lines of one list that are shown; JSON has all that were kept.
_SHOWN = 20
#: What the original keeps beside its sessions and what is not taken over, with what to do instead.
_NOT_TAKEN = (
    (".env", "keys of providers, among others: copy it to {state}/.env (mode 600) if the configuration needs its variables"),
    ("credentials", "channels are not offered"),
    ("devices", "pair devices anew: mayros devices"),
    ("exec-approvals.json", "which programs agents may run is decided anew: mayros approvals"),
    ("sessions", "of versions before there were agents: start the original once, which moves it"),
)


class Options(NamedTuple):
    """What was asked for. `config`: take the configuration over; False: do not even look at it; None: only say what would become of it."""

    config: bool | None
    without: tuple[str, ...]
    orphans: bool
    dry: bool


@click.command("import")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False))
@click.option("--config/--no-config", default=None, help="Take the configuration over too; or do not even look at it.")
@click.option("--without", multiple=True, metavar="KEY", help="Leave this key of the configuration out, such as gateway.tls; may be repeated.")
@click.option("--orphans", is_flag=True, help="Also transcripts that no sessions.json lists, as sessions of their own (imported:ID).")
@click.option("--dry-run", is_flag=True, help="Read everything, write nothing, and say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def import_(ctx: click.Context, folder: str, config: bool | None, without: tuple[str, ...], orphans: bool, dry_run: bool, as_json: bool) -> None:
    """Import the conversations of DIR, a state directory of Mayros for Node or of OpenClaw. The gateway must be stopped.

    DIR is only read. A session that is here already stays as it is, so what was interrupted can be done again. With --config the configuration
    becomes this gateway's, if it has none yet; without, it is only told what would become of it. Status 1 where something could not be taken over.
    """
    if without and not config:
        raise click.UsageError("--without needs --config: it is about the configuration")
    place = here(ctx)
    told = run(place, folder, Options(config, without, orphans, dry_run))
    if as_json:
        print_json(told)
    else:
        show(told)
    sys.exit(1 if told["broken"] or told["badLines"] else 0)


def run(place: Place, path: str, options: Options) -> dict[str, Any]:
    """Import, and say what was done. Raises StartError, ClickException."""
    from mayros.cli.adopting import plan
    from mayros.net.statedir import recognise_foreign
    from mayros.storage.original.folder import Folder

    os.umask(0o077)
    source = Folder(path)
    _apart(place, source)
    if (foreign := recognise_foreign(place.state_dir)) is not None:
        raise click.ClickException(f"{foreign} Nothing was imported.")
    adoption = plan(place, source.config, options.without) if options.config is not False and source.config is not None else None
    if options.config:
        _fit(place, source, adoption)
    state = None if options.dry else stopped(place)
    try:
        return _import(place, source, options, adoption)
    finally:
        if state is not None:
            state.unlock()


def _apart(place: Place, source: Folder) -> None:
    """The two directories must not be one, or in one another: DIR stays as it is."""
    own, theirs = os.path.realpath(place.state_dir), os.path.realpath(source.path)
    if os.path.commonpath([own, theirs]) in (own, theirs):
        raise click.ClickException(
            f"{source.path} is, or lies in, this gateway's own state directory ({place.state_dir}), or the other way round: choose another one with"
            " MAYROS_STATE_DIR, and keep it set for the gateway"
        )


def _fit(place: Place, source: Folder, adoption: Adoption | None) -> None:
    """Whether the configuration can be taken over, before anything is done."""
    if adoption is None:
        raise click.ClickException(f"{source.path} has no configuration; import without --config")
    if os.path.lexists(place.config_path):
        raise click.ClickException(f"there is a configuration already, {place.config_path}, which stays as it is; import without --config")
    if adoption.problems:
        hint = "" if len(adoption.problems) == 1 else f", and {len(adoption.problems) - 1} more (--dry-run without --config lists them)"
        raise click.ClickException(
            f"{adoption.source} cannot be used here: {clean(adoption.problems[0])}{hint}. Leave keys out with --without KEY, set what is missing, or"
            " import without --config"
        )


def _import(place: Place, source: Folder, options: Options, adoption: Adoption | None) -> dict[str, Any]:
    from mayros.cli.adopting import write
    from mayros.cli.moving import Moving

    if adoption is not None and adoption.loaded is not None and options.config:
        loaded = adoption.loaded
        if not options.dry:
            write(place, adoption)
            loaded = place.load()
    else:
        loaded = place.load()
    settings = place.settings(loaded)
    engine = _store(place, loaded, options.dry)
    outcome: Outcome = "failed"
    told: dict[str, Any] = {}
    try:
        main_key = adoption.main_key if adoption is not None else "main"
        quiet = not sys.stderr.isatty()
        moving = Moving(source, settings.directory, engine, now_ms(), main_key=main_key, dry=options.dry, quiet=quiet)
        told = moving.run(orphans=options.orphans)
        outcome = "done"
    finally:
        if engine is not None:
            engine.dispose()
        if not options.dry:
            counts = {"sessions": told.get("imported"), "messages": told.get("messages")}
            note(place, "import", source.path, outcome, config=bool(options.config), **counts)
    workspaces = {agent.id: agent.workspace for agent in settings.directory.agents.values()}
    told |= {"from": source.path, "dryRun": options.dry, "store": place.store_path(loaded), "workspaces": workspaces}
    told["configuration"] = None if adoption is None else _about(place, adoption, options)
    told["notes"] = [*told.pop("labels"), *_unknown(told, settings.directory.agents), *_beside(place, source, workspaces)]
    return told


def _store(place: Place, loaded: Loaded, dry: bool) -> sa.Engine | None:
    """The store, made where it is missing; for a dry run one that is only read, None: there is none."""
    from mayros.storage.export import open_to_read
    from mayros.storage.migrate import open_engine

    if not dry:
        return open_engine(place.store_url(loaded))
    path = place.store_path(loaded)
    return None if path is not None and not os.path.exists(path) else open_to_read(place.store_url(loaded))


def _about(place: Place, adoption: Adoption, options: Options) -> dict[str, Any]:
    if options.config:
        state = "planned" if options.dry else "written"
    elif os.path.lexists(place.config_path):
        state = "kept"
    else:
        state = "refused" if adoption.problems else "possible"
    return {
        "from": adoption.source,
        "to": place.config_path,
        "state": state,
        "problems": adoption.problems,
        "leftOut": [one._asdict() for one in adoption.left_out],
        "ignored": adoption.ignored,
        "flattened": adoption.flattened,
    }


def _unknown(told: dict[str, Any], agents: Any) -> list[str]:
    """Agents whose sessions were imported and of whom the configuration does not know."""
    return [
        f"the agent {agent} is not in the configuration: its sessions are kept, and can go on once it is under agents.list"
        for agent in told["agents"]
        if agent not in agents
    ]


def _beside(place: Place, source: Folder, workspaces: dict[str, str]) -> list[str]:
    """What else is in DIR."""
    notes = [
        f"{os.path.join(source.path, name)} is not taken over: {what.format(state=place.state_dir)}"
        for name, what in _NOT_TAKEN
        if os.path.exists(os.path.join(source.path, name))
    ]
    files = os.path.join(source.path, "workspace")
    if os.path.isdir(files) and os.path.realpath(files) not in map(os.path.realpath, workspaces.values()):
        notes.append(f"{files} has files of agents and stays where it is: copy it to the agent's workspace, or name it as agents.defaults.workspace")
    return notes


def show(told: dict[str, Any]) -> None:
    """What was done, for people."""
    dry = told["dryRun"]
    if dry and told["sessions"]:
        table(("session", "messages", "turns"), [(one["key"], one["messages"], one["turns"]) for one in told["sessions"]])
    counts = f"{told['imported']:,} sessions with {told['messages']:,} messages"
    click.echo(f"{'Would import' if dry else 'Imported'}: {counts}. Here already: {told['existing']:,}. Empty: {told['empty']:,}.")
    if told["orphans"]:
        click.echo(f"Transcripts that no sessions.json lists: {told['orphans']:,} (--orphans imports them)")
    _list("Not taken", told["broken"])
    _list("Line passed over", told["badLines"], told["badLineCount"])
    _configuration(told["configuration"])
    for agent, workspace in told["workspaces"].items():
        click.echo(f"Workspace of {clean(agent)}: {clean(workspace)}")
    _list("Note", told["notes"])


def _list(title: str, sentences: list[str], count: int | None = None) -> None:
    for sentence in sentences[:_SHOWN]:
        click.echo(f"{title}: {clean(' '.join(sentence.split()))}")
    count = len(sentences) if count is None else count
    if count > _SHOWN:
        click.echo(f"{title}: {count - _SHOWN:,} more (--json)")


def _configuration(about: dict[str, Any] | None) -> None:
    if about is None:
        return
    said = {
        "written": f"{about['to']} (new; mode 600)",
        "planned": f"would become {about['to']}",
        "possible": f"{about['from']} was not taken over: --config makes it {about['to']}",
        "refused": f"{about['from']} was not taken over, and cannot be as it is",
        "kept": f"{about['to']} stays as it is",
    }
    click.echo(f"Configuration: {clean(said[about['state']])}")
    _list("  In the way", about["problems"])
    if about["state"] == "kept":
        return
    _list("  Left out", [f"{one['path']}: {one['reason']}" for one in about["leftOut"]])
    _list("  Kept, but", about["ignored"])
    if about["flattened"]:
        click.echo("  Its included files become one with it, without comments.")
    if about["state"] in ("written", "planned"):
        click.echo("  It decides who gets in and what agents may do, as it did there: mayros security audit looks it over.")
