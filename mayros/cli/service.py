"""`mayros gateway install`, `uninstall`, `start`, `stop`, `restart` and `status`: the gateway as a service of systemd.

Of a user (in ~/.config/systemd/user) or of the system (in /etc/systemd/system), each with any number of named instances beside the plain one.
Imports config, net and ops.units when a command asks.
"""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from mayros.cli import candidates
from mayros.cli.host import Host, program
from mayros.cli.place import Place, here

if TYPE_CHECKING:
    from mayros.ops.units import Plan

ABSENT = """\
systemd does not run this machine, so nothing was installed. Let whatever starts your services run this, as the user whose gateway it is:

  {environment} {program} gateway run

It stays in the foreground and writes its log to standard output. SIGTERM stops it within gateway.shutdown.graceMs and {close} seconds more (give it
that time), SIGHUP reads the configuration again. Status 0: it was stopped; 78: a configuration or a store that cannot work, so do not start it again;
anything else: start it again. In a container this line is the command, with no init needed. `--dry-run` prints the units of systemd."""


class Service:
    """The service that the options mean."""

    def __init__(self, place: Place, system: bool, instance: str | None) -> None:
        self.system, self.instance = system, instance
        self.host: Host = place.host if place.host is not None else Host()
        environ = dict(place.environ)
        name = instance or "mayros"
        if system:
            environ["MAYROS_CONFIG_PATH"] = self.host.path(f"/etc/mayros/{name}.json")
            environ["MAYROS_STATE_DIR"] = self.host.path(f"/var/lib/mayros{f'-{instance}' if instance else ''}")
        elif instance:
            state = os.path.join(place.home, f".mayros-{instance}")
            environ.update(MAYROS_STATE_DIR=state, MAYROS_CONFIG_PATH=os.path.join(state, "mayros.json"))
        environ.pop("MAYROS_GATEWAY_PORT", None)
        #: As the service sees it.
        self.place = Place(environ, host=self.host)

    @property
    def folder(self) -> str:
        """Where its units are."""
        if self.system:
            return self.host.path("/etc/systemd/system")
        config = self.place.environ.get("XDG_CONFIG_HOME") or os.path.join(self.place.home, ".config")
        return os.path.join(config, "systemd", "user")

    def plan(self, port: int | None = None) -> Plan:
        """The units for the configuration as it is."""
        from mayros.ops.units import Plan, addresses

        gateway = self.place.load().config.gateway
        return Plan(
            system=self.system,
            program=program(),
            listen=addresses(gateway, gateway.port if port is None else port, self.host.has_ipv6_loopback()),
            config=self.place.config_path,
            state=self.place.state_dir,
            search=_search(self.place.environ.get("PATH", "")),
            instance=self.instance,
        )

    @property
    def units(self) -> tuple[str, str]:
        """Its socket and its service."""
        from mayros.ops.units import stem

        name = stem(self.instance)
        return f"{name}.socket", f"{name}.service"

    def installed(self, name: str) -> str | None:
        """The text of an installed unit."""
        try:
            with open(os.path.join(self.folder, name), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def outdated(self) -> list[str]:
        """The installed units that differ from what would be written now."""
        return [name for name, text in self.plan().texts().items() if self.installed(name) not in (None, text)]

    def files(self) -> list[str]:
        """The units that are there, ours and others."""
        try:
            return sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []

    def need(self) -> None:
        """Raises ClickException where it cannot be told anything."""
        if not self.host.booted:
            raise click.ClickException("systemd does not run this machine: start and stop the gateway as you start and stop your other services")
        if self.installed(self.units[0]) is None:
            how = f"mayros gateway install{' --system' if self.system else ''}{f' --instance {self.instance}' if self.instance else ''}"
            raise click.ClickException(f"{self.units[1]} is not installed: {how}")


def _search(path: str) -> str:
    """PATH for the service of a user: the shell's, without what is relative or not there."""
    folders = [folder for folder in path.split(os.pathsep) if os.path.isabs(folder) and os.path.isdir(folder)]
    return os.pathsep.join(dict.fromkeys(folders)) or os.defpath


def which(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say which service, and that service as its first parameter."""

    @functools.wraps(command)
    def found(scope: str | None, instance: str | None, **options: Any) -> Any:
        from mayros.ops.units import INSTANCE

        if instance is not None and not INSTANCE.fullmatch(instance):
            raise click.UsageError("--instance must be a short name of small letters, digits and dashes")
        return command(chosen(here(click.get_current_context()), scope, instance), **options)

    for option in (
        click.option(
            "--instance",
            metavar="NAME",
            shell_complete=candidates.instances,
            help="A gateway beside the plain one, with a configuration, state and port of its own.",
        ),
        click.option("--system", "scope", flag_value="system", help="The service of the system (the default for root)."),
        click.option("--user", "scope", flag_value="user", help="The service of this user."),
    ):
        found = option(found)
    return found


def chosen(place: Place, scope: str | None, instance: str | None) -> Service:
    """The service that was named, else the one that is installed, else root's is the system's."""
    user, system = Service(place, False, instance), Service(place, True, instance)
    if scope is not None:
        return system if scope == "system" else user
    order = (system, user) if system.host.uid == 0 else (user, system)
    return next((one for one in order if one.installed(one.units[0]) is not None), order[0])


@click.command()
@which
@click.option("--port", type=click.IntRange(1, 65535), metavar="N", help="The port, which is written into the configuration.")
@click.option("--force", is_flag=True, help="Replace units that differ from what would be written.")
@click.option("--dry-run", is_flag=True, help="Print what would be written and run; do neither.")
def install(service: Service, port: int | None, force: bool, dry_run: bool) -> None:
    """Install the gateway as a service of systemd, start it, and let it start by itself from now on.

    Run it again, with --force, after an upgrade that moved the program, or after a change of gateway.port or gateway.bind. The configuration, a
    token and the state directory are made where there are none; what is there is kept. A system service runs as the user mayros, with
    /etc/mayros/mayros.json, which only root can change, and /var/lib/mayros.
    """
    from mayros.cli.installation import Installation

    work = Installation(service, port, force)
    if dry_run:
        work.show()
        return
    if not service.host.booted:
        click.echo(absent(service))
        raise click.ClickException("systemd is not here")
    work.do()


def absent(service: Service) -> str:
    """What to do without systemd."""
    from mayros.stopping import ABORT_SECONDS, CLOSE_SECONDS

    environ = {name: service.place.environ[name] for name in ("MAYROS_CONFIG_PATH", "MAYROS_STATE_DIR") if service.place.environ.get(name)}
    words = " ".join(f"{name}={shlex.quote(value)}" for name, value in environ.items())
    return ABSENT.format(environment=words, program=shlex.quote(program()), close=int(2 * ABORT_SECONDS + CLOSE_SECONDS)).replace("   ", "  ")


@click.command()
@which
def uninstall(service: Service) -> None:
    """Stop the service and remove its units. Configuration and state stay."""
    socket, unit = service.units
    others = any(name.startswith("mayros-gateway@") and name.endswith(".socket") and name != socket for name in service.files())
    template = "" if not service.instance or others else "mayros-gateway@.service"
    names = [name for name in (socket, unit, template) if name in service.files()]
    if not names:
        raise click.ClickException(f"{unit} is not installed in {service.folder}")
    if service.host.booted:
        service.host.systemctl(service.system, "disable", "--now", socket, unit)
    for name in names:
        os.unlink(os.path.join(service.folder, name))
        click.echo(f"Removed: {os.path.join(service.folder, name)}")
    if service.host.booted:
        service.host.systemctl(service.system, "daemon-reload")
    click.echo(f"Kept: {service.place.config_path} and {service.place.state_dir}")


@click.command()
@which
def start(service: Service) -> None:
    """Start the service, and wait until it is ready."""
    service.need()
    service.host.manager(service.system, "reset-failed", *service.units)
    service.host.systemctl(service.system, "start", *service.units)
    click.echo(f"Started: {service.units[1]}")


@click.command()
@which
def stop(service: Service) -> None:
    """Stop the service: live runs may finish within gateway.shutdown.graceMs, then it ends, and its port is closed."""
    service.need()
    # The socket too: it would start the gateway again for the next client.
    service.host.systemctl(service.system, "stop", *service.units)
    click.echo(f"Stopped: {service.units[1]}")


@click.command()
@which
def restart(service: Service) -> None:
    """Restart the service. Its port stays open: who connects meanwhile waits, and is answered by the new process."""
    service.need()
    service.host.manager(service.system, "reset-failed", *service.units)
    service.host.systemctl(service.system, "restart", service.units[1])
    click.echo(f"Restarted: {service.units[1]}")


@click.command()
@which
@click.option("--deep", is_flag=True, help="Also the other manager's services, all instances, and whether the units are up to date.")
@click.option("--no-probe", is_flag=True, help="Do not connect to the gateway.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(service: Service, deep: bool, no_probe: bool, as_json: bool) -> None:
    """Tell whether the service runs and answers. Status 0: it answers and is ready; 1: it does not, or is not; 3: it is stopped."""
    from mayros.cli.condition import condition, print_condition
    from mayros.cli.show import print_json

    found = condition(service, deep=deep, probe=not no_probe)
    if as_json:
        print_json(found)
    else:
        print_condition(found)
    sys.exit(found["exit"])
