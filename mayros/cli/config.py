"""`mayros config`: show, check and find the configuration. Imports config; secrets are shown redacted only."""

from __future__ import annotations

import json
from typing import Any

import click

from mayros.cli.place import here
from mayros.config.load import lookup, redact
from mayros.config.show import effective


@click.group()
def config() -> None:
    """Show and check the configuration."""


@config.command()
@click.argument("key", metavar="[PATH]", required=False)
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
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    if not loaded.exists:
        raise click.ClickException(f"{place.config_path} does not exist: run mayros setup")
    click.echo(f"{place.config_path} is valid" + (f", with {len(loaded.warnings)} warning(s)" if loaded.warnings else ""))


@config.command()
@click.pass_context
def path(ctx: click.Context) -> None:
    """Print where the configuration file is, or would be."""
    click.echo(here(ctx).config_path)


def _show(value: Any, as_json: bool) -> None:
    if as_json or isinstance(value, dict | list):
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
    elif isinstance(value, bool):
        click.echo("true" if value else "false")
    else:
        click.echo("" if value is None else str(value))
