"""`mayros config`: show, check, find and change the configuration. Imports config; secrets are shown redacted only, and never taken as arguments.

A change goes through the gateway that runs, which says what is in force; where none does, it goes into the file.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from mayros.cli import candidates
from mayros.cli.place import Place, here
from mayros.cli.remote import Refused, Remote, gateway_options, idle
from mayros.cli.show import print_json, record
from mayros.config.load import lookup, redact
from mayros.config.show import effective
from mayros.config.source import literal
from mayros.errors import ConfigError, GatewayError

if TYPE_CHECKING:
    from mayros.net.statedir import StateDir

MAX_VALUE = 5 << 20
_REFERENCE = re.compile(r"\$\{[A-Z_][A-Z0-9_]*\}")


@click.group()
def config() -> None:
    """Show, check and change the configuration."""


@config.command()
@click.argument("key", metavar="[PATH]", required=False, shell_complete=candidates.config_paths)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def get(ctx: click.Context, key: str | None, as_json: bool) -> None:
    """Show the configuration, or the part at PATH such as gateway.port or agents.list[0].id.

    Secrets are redacted. What the file does not set is shown with the value that is in force.
    """
    loaded = here(ctx).load()
    if key is None:
        _show(redact(loaded.raw), True)
        return
    for tree in (loaded.raw, effective(loaded.config)):
        try:
            value = lookup(redact(tree), key)
        except KeyError:
            continue
        _show(value, as_json)
        return
    raise click.ClickException(f"there is no setting {key!r}: see docs/configuration.md for the names")


@config.command()
@click.option("--strict", is_flag=True, help="Unknown keys are errors, not warnings.")
@click.pass_context
def validate(ctx: click.Context, strict: bool) -> None:
    """Check the configuration file; status 78 when a gateway would not start with it."""
    from mayros.config.load import refuse_unsupported

    place = here(ctx)
    loaded = place.load(strict)
    refuse_unsupported(loaded.config, loaded.raw)
    warnings = place.settings(loaded).warnings
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    if not loaded.exists:
        raise click.ClickException(f"{place.config_path} does not exist: run mayros setup")
    click.echo(f"{place.config_path} is valid" + (f", with {len(warnings)} warning(s)" if warnings else ""))


@config.command()
@click.pass_context
def path(ctx: click.Context) -> None:
    """Print where the configuration file is, or would be."""
    click.echo(here(ctx).config_path)


@config.command("set")
@click.argument("path", metavar="PATH", shell_complete=candidates.config_paths)
@click.argument("value", required=False)
@click.option(
    "--value-file",
    metavar="FILE",
    shell_complete=candidates.files,
    help="The file that holds the value (- is standard input); for secrets the only way.",
)
@gateway_options()
def set_value(remote: Remote, path: str, value: str | None, value_file: str | None) -> None:
    """Set the value at PATH, such as gateway.http.maxBodyBytes 64mb or agents.list[0].name Work.

    VALUE is JSON (18790, true, '["a"]', '"18790"'), and a text where it is no JSON. Comments stay. Says what is in force now, and what only after a
    restart.
    """
    if (value is None) == (value_file is None):
        raise click.UsageError("give either VALUE or --value-file")
    secret = _names_secret(path)
    if value_file is not None:
        text = _read_value(value_file)
        wanted: Any = literal(text.strip()) if secret else _value(text.strip())
    else:
        assert value is not None
        wanted = value if secret else _value(value)
        if any(not _REFERENCE.fullmatch(one) for one in _secrets(wanted, secret)):
            raise click.UsageError("other users can see what is on a command line: give a secret with --value-file FILE (- is standard input)")
    _change(remote, {"set": {path: wanted}})


@config.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, shell_complete=candidates.config_paths)
@gateway_options()
def unset(remote: Remote, paths: tuple[str, ...]) -> None:
    """Take the values at PATH out of the file, so that their defaults hold. Comments above them stay."""
    _change(remote, {"unset": list(paths)})


@config.command()
@gateway_options()
def edit(remote: Remote) -> None:
    """Open the file in your editor ($VISUAL or $EDITOR). It is checked before it is saved; of another gateway's file secrets are hidden, and kept."""
    from mayros.cli.acts import changed, tree_of
    from mayros.config.change import replace
    from mayros.config.source import read_file

    place = remote.place
    state, running = _where(remote)
    if state is not None:
        state.unlock()  # nobody is kept from starting a gateway while an editor is open
    before = None if remote.elsewhere else read_file(place.config_path)
    base_hash: object = None
    if running and (view := _asked(remote, "config.get", {})) is not None:
        base_hash = view.get("hash") if view.get("exists") else None
        if remote.elsewhere or view.get("path") != place.config_path:
            before = (view.get("raw") or "{}\n").encode()
    text = before.decode("utf-8", "replace") if before is not None else "{}\n"
    while True:
        edited = click.edit(text, extension=".json5")
        if edited is None or edited.rstrip("\n") == (before or b"{}").decode("utf-8", "replace").rstrip("\n"):
            click.echo("Nothing was changed.")
            return
        try:
            asked = {"raw": edited} | ({"baseHash": base_hash} if base_hash else {})
            if running and (answer := _asked(remote, "config.set", asked)) is not None:
                _say(remote, answer)
            else:
                old = tree_of(place)
                replace(place.config_path, place.environ, place.state_dir, edited, before)
                changed(place, "config edit", old)
                _saved(place)
            return
        except (Refused, ConfigError, GatewayError) as error:
            click.echo(f"Not saved: {error.message if isinstance(error, Refused | GatewayError) else error}", err=True)
            if not click.confirm("Edit it again?", default=True, err=True):
                raise click.ClickException("nothing was saved") from error
            text = edited


def _where(remote: Remote) -> tuple[StateDir | None, bool]:
    """The state directory where it is ours, and whether there is a gateway to ask."""
    if remote.elsewhere:
        return None, True
    try:
        state = idle(remote)
    except ConfigError:
        return None, False  # so that a file which cannot be read can be mended; a gateway that runs looks at it by itself
    return state, state is None


def _asked(remote: Remote, method: str, params: dict[str, Any]) -> Any:
    """The gateway's answer; None where it is this machine's and does not let us in, as after a change that waits for its restart: then only the file
    is changed, which it notices."""
    try:
        return remote.call(method, params)
    except Refused as refused:
        if remote.elsewhere or not (refused.message.startswith(("Cannot reach", "unauthorized"))):
            raise
        why = refused.message.partition(" (")[0]
        click.echo(f"note: the gateway that is running could not be asked ({why}); it notices the change of its file", err=True)
        return None


def _change(remote: Remote, changes: dict[str, Any]) -> None:
    from mayros.cli.acts import change_file
    from mayros.config.revise import assign, remove

    def editing(tree: dict[str, Any]) -> None:
        for path in changes.get("unset", ()):
            if not remove(tree, path):
                raise click.ClickException(f"{path} is not set in the file")
        for path, value in changes.get("set", {}).items():
            assign(tree, path, value)

    place = remote.place
    state, running = _where(remote)
    try:
        if running and (answer := _asked(remote, "config.change", changes)) is not None:
            _say(remote, answer)
            return
        try:
            change_file(place, "config set" if "set" in changes else "config unset", editing)
        except GatewayError as error:
            raise click.ClickException(error.message) from error
        if remote.json:
            print_json({"ok": True, "path": place.config_path, "hot": [], "restartRequired": []})
        else:
            _saved(place)
    finally:
        if state is not None:
            state.unlock()


def _saved(place: Place) -> None:
    click.echo(f"{place.config_path} was changed: for a gateway that starts, or that runs and notices it.")


def _say(remote: Remote, answer: Any) -> None:
    """What a gateway did with a change."""
    told = record(answer)
    if remote.json:
        print_json({name: told.get(name) for name in ("ok", "path", "hash", "hot", "restartRequired")})
        return
    hot, waiting = _paths(told.get("hot")), _paths(told.get("restartRequired"))
    click.echo(f"{told.get('path')}: " + (f"in force now: {', '.join(hot)}" if hot else "nothing changed for the running gateway"))
    if waiting:
        click.echo(f"After a restart of the gateway: {', '.join(waiting)}")


def _paths(value: object) -> Sequence[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def _names_secret(path: str) -> bool:
    from mayros.config.revise import steps
    from mayros.config.show import conceals

    try:
        return conceals([step for step in steps(path) if isinstance(step, str)])
    except GatewayError as error:
        raise click.UsageError(error.message) from error


def _secrets(value: Any, secret: bool) -> list[str]:
    from mayros.config.show import secrets_of

    return [str(value)] if secret else list(secrets_of(value))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _read_value(file: str) -> str:
    from mayros.net.files import read_bounded

    try:
        data = sys.stdin.read(MAX_VALUE + 1).encode() if file == "-" else read_bounded(file, MAX_VALUE)
        text = data.decode("utf-8") if len(data) <= MAX_VALUE else ""
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}") from None
    except ValueError:
        text = ""
    if not text.strip():
        raise click.ClickException(f"{file}: must hold a value, in UTF-8 and of at most {MAX_VALUE >> 20} MB")
    return text


def _show(value: Any, as_json: bool) -> None:
    if as_json or isinstance(value, dict | list):
        print_json(value, 2)
    elif isinstance(value, bool):
        click.echo("true" if value else "false")
    else:
        click.echo("" if value is None else str(value))
