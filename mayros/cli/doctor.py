"""`mayros doctor`: what is wrong with this machine's gateway, and what to do. Also what `mayros security audit` has in common with it.

Imports config, storage and ops when a command asks.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from mayros.cli.host import Host
from mayros.cli.place import Place, here, port
from mayros.cli.show import clean, print_json
from mayros.errors import StartError

if TYPE_CHECKING:
    from mayros.ops.doctor import Report
    from mayros.ops.subject import Installed, Subject


@click.command()
@click.option("--fix", is_flag=True, help="Mend what needs no decision: permissions of files, a lock that was left behind.")
@click.option("--strict", is_flag=True, help="Status 1 also for warnings.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, fix: bool, strict: bool, as_json: bool) -> None:
    """Look for what is wrong with this machine's gateway, and say what to do about it.

    All that `mayros security audit` looks at, and whether it works: the configuration, the store, the port, models and their keys, the service, the
    disk, the clock. Nothing is changed without --fix. Status 1 where something is critical.
    """
    run(here(ctx), health=True, fix=fix, strict=strict, as_json=as_json)


def run(place: Place, *, health: bool, fix: bool, strict: bool, as_json: bool) -> None:
    """Make the checks, print the report, and leave with its status."""
    from mayros.ops.doctor import Report, checks, examine, mend

    os.umask(0o077)
    subject = subject_of(place)
    report = examine(subject, checks(subject, health))
    if fix and any(finding.repair is not None for finding in report.findings):
        mended, failed = mend(report)
        subject = subject_of(place)
        report = Report(examine(subject, checks(subject, health)).findings, tuple(mended), tuple(failed))
    bad = report.count("critical") or (strict and report.count("warn"))
    if as_json:
        print_json(told(report, not bad), 2)
    else:
        show(report, fix)
    sys.exit(1 if bad else 0)


def told(report: Report, ok: bool) -> dict[str, Any]:
    """A report for programs."""
    findings = [
        {"id": one.id, "level": one.level, "text": one.text, "remedy": one.remedy, "fixable": one.repair is not None} for one in report.findings
    ]
    counts = {level: report.count(level) for level in ("critical", "warn", "info")}
    return {"ok": ok, **counts, "findings": findings, "fixed": list(report.mended), "notFixed": list(report.failed)}


def show(report: Report, fix: bool) -> None:
    """A report for people."""
    for sentence in report.mended:
        click.echo(f"fixed: {clean(sentence)}")
    for sentence in report.failed:
        click.echo(f"not fixed: {clean(sentence)}")
    for finding in report.findings:
        click.echo(f"{finding.level}: {clean(' '.join(finding.text.split()))} [{finding.id}]")
        click.echo(f"    {'--fix does: ' if finding.repair is not None and not fix else ''}{clean(finding.remedy)}")
    if report.findings:
        parts = [f"{count} {word}" for level, word in _WORDS.items() if (count := report.count(level))]
        click.echo(f"{', '.join(parts)}.")
    else:
        click.echo("Nothing is wrong.")


_WORDS = {"critical": "critical", "warn": "to look at", "info": "to know"}


def subject_of(place: Place) -> Subject:
    """What the checks look at, as far as it can be read."""
    from mayros.config.secret import resolve
    from mayros.net.statedir import StateDir
    from mayros.ops.subject import Subject

    host = place.host if place.host is not None else Host()
    known: dict[str, Any] = {}
    try:
        loaded = place.load()
    except StartError as failure:
        known["trouble"] = str(failure)
    else:
        known |= {"loaded": loaded, "settings": place.settings(loaded), "written": _written(place), "embedded": _embedded(place.state_dir)}
        try:
            # Not by StateDir.open, which refuses what a check is to tell of.
            token = StateDir(place.state_dir).token()
            known["secret"] = resolve(loaded.config, loaded.environ, token)
        except StartError as failure:
            known["trouble"] = str(failure)
        try:
            known["port"] = port(place, loaded.config.gateway.port)
            known["store_url"] = place.store_url(loaded)
            known["store"] = place.store_path(loaded)
        except (StartError, click.ClickException) as failure:
            known["trouble"] = str(failure)
        known["service"] = _service(place, host)
    return Subject(
        config_path=place.config_path, state_dir=place.state_dir, home=place.home, now_ms=time.time_ns() // 1_000_000, machine=host, **known
    )


def _written(place: Place) -> Any:
    """The configuration as it is written: with its includes, before variables are put in."""
    from mayros.config.source import Reader

    return Reader(place.config_path).read()


def _embedded(state_dir: str) -> bool:
    from mayros.providers.embedded import installed, runtime_installed

    return installed(state_dir) is not None and runtime_installed()


def _service(place: Place, host: Host) -> Installed | None:
    """The service that runs this gateway: the user's own, or the system's where its state directory is the one that is meant."""
    from mayros.cli.service import Service
    from mayros.ops.subject import Installed

    if not host.booted:
        return None
    for system in (False, True):
        service = Service(Place(place.environ, host=host), system, None)
        _, unit = service.units
        text = service.installed(unit)
        if text is None or os.path.realpath(service.place.state_dir) != os.path.realpath(place.state_dir):
            continue
        try:
            outdated = tuple(service.outdated())
        except (StartError, click.ClickException):
            outdated = ()  # the configuration, or the program, is what has to be mended first; other checks say so
        starts = host.properties(system, unit, "UnitFileState").get("UnitFileState", "enabled") != "disabled"
        return Installed(unit, system, outdated, starts, None if system else host.lingers(host.user(place.environ)))
    return None
