"""`mayros security audit`: who could do what he must not. The checks are those of ops/doctor.py that are about security."""

from __future__ import annotations

import click

from mayros.cli.place import here


@click.group()
def security() -> None:
    """Look after the gateway's security."""


@security.command()
@click.option("--fix", is_flag=True, help="Mend what needs no decision: permissions of files.")
@click.option("--strict", is_flag=True, help="Status 1 also for warnings.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def audit(ctx: click.Context, fix: bool, strict: bool, as_json: bool) -> None:
    """Look for what lets others in, or agents out. Nothing is changed without --fix. Status 1 where something is critical."""
    from mayros.cli.doctor import run

    run(here(ctx), health=False, fix=fix, strict=strict, as_json=as_json)
