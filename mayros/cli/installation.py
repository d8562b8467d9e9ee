"""What `mayros gateway install` does, in order. Imports config, net and ops.units."""

from __future__ import annotations

import os
import secrets
import sys
from typing import TYPE_CHECKING, Any

import click

from mayros.cli.host import Host

if TYPE_CHECKING:
    from mayros.cli.service import Service
    from mayros.ops.units import Plan


class Installation:
    """One installation of a service. `port`: to be written into the configuration; None: as it is there."""

    def __init__(self, service: Service, port: int | None, force: bool) -> None:
        self.service, self.port, self.force = service, port, force

    @property
    def host(self) -> Host:
        """The machine."""
        return self.service.host

    def show(self) -> None:
        """Print the files, and the commands that would be run."""
        plan = self.service.plan(self.port)
        for name, text in plan.texts().items():
            click.echo(f"# {os.path.join(self.service.folder, name)}\n{text}")
        if self.service.system:
            from mayros.ops.units import sysusers

            click.echo(f"# {self.host.path('/etc/sysusers.d/mayros.conf')}\n{sysusers()}")
        if self.port is not None:
            click.echo(f"# {self.service.place.config_path}: gateway.port would be {self.port}")
        for arguments in self._commands(plan):
            click.echo(f"# systemctl {'' if self.service.system else '--user '}{' '.join(arguments)}")

    def do(self) -> None:
        """Install and start. Raises ClickException and StartError; what was done until then stays, and doing it again goes on from there."""
        service, host = self.service, self.host
        if service.system:
            self._check_system()
        self._configuration()
        plan = service.plan()
        self._check_units(plan)
        if service.system:
            self._user()
        commands = self._commands(plan)
        os.makedirs(service.folder, mode=0o755, exist_ok=True)
        for name, text in plan.texts().items():
            _write(os.path.join(service.folder, name), text, 0o644)
        for arguments in commands:
            host.systemctl(service.system, *arguments)
        click.echo(f"Running: {plan.service} on {', '.join(plan.listen)}")
        if service.system:
            self._model()
        else:
            self._lingering()

    def _commands(self, plan: Plan) -> list[list[str]]:
        """What systemctl is told, as long as the units are not written yet."""
        first = [["daemon-reload"], ["enable", plan.socket, plan.service]]
        if self.service.installed(plan.socket) == plan.texts()[plan.socket]:
            # The port is what it was: it stays open.
            return [*first, ["start", plan.socket], ["restart", plan.service]]
        return [*first, ["stop", plan.service], ["restart", plan.socket], ["start", plan.service]]

    def _check_system(self) -> None:
        """Whether a service of the system can be installed, and could run this program."""
        from mayros.cli.host import program
        from mayros.ops.units import HIDDEN

        if self.host.uid != 0:
            raise click.ClickException("a service of the system is installed by root: sudo mayros gateway install --system")
        for path in (program(), sys.prefix, sys.base_prefix):
            real = os.path.realpath(path)
            if self.host.root == "/" and any(os.path.commonpath([real, hidden]) == hidden for hidden in HIDDEN):
                raise click.ClickException(
                    f"a service of the system cannot see {real}: install the program elsewhere, such as in /opt/mayros "
                    "(python3 -m venv /opt/mayros && /opt/mayros/bin/pip install mayros-gateway), and run its `mayros gateway install --system`"
                )

    def _check_units(self, plan: Plan) -> None:
        for name, text in plan.texts().items():
            there = self.service.installed(name)
            if there is not None and there != text and not self.force:
                path = os.path.join(self.service.folder, name)
                raise click.ClickException(f"{path} differs from what would be written (see --dry-run); --force replaces it")

    def _configuration(self) -> None:
        """Make one where there is none, and write the port into it."""
        service, place = self.service, self.service.place
        loaded = place.load()
        if not loaded.exists and service.system:
            self._system_configuration()
        elif not loaded.exists:
            from mayros.cli.setup import setup

            setup.main([], obj=place, standalone_mode=False)
        if self.port is not None and place.load().config.gateway.port != self.port:
            from mayros.cli.acts import change_file

            def edit(tree: dict[str, Any]) -> None:
                tree.setdefault("gateway", {})["port"] = self.port

            change_file(place, "gateway install", edit)
            click.echo(f"Port: {self.port} (gateway.port in {place.config_path})")
        if place.load().config.gateway.mode != "local":
            raise click.ClickException(f"gateway.mode is not local in {place.config_path}: the gateway would not start")

    def _system_configuration(self) -> None:
        from mayros.cli.setup import choose
        from mayros.config.write import initial

        place = self.service.place
        model, fallbacks, _ = choose({})
        workspace = f"/var/lib/mayros{f'-{self.service.instance}' if self.service.instance else ''}/workspace"
        os.makedirs(os.path.dirname(place.config_path), 0o755, exist_ok=True)
        initial(place.config_path, token=None, model=model, fallbacks=fallbacks, workspace=workspace)
        click.echo(f"Configuration: {place.config_path} (new)")

    def _user(self) -> None:
        """The user that the service runs as, the token, and whose the configuration is."""
        from mayros.ops.units import sysusers

        host = self.host
        path = host.path("/etc/sysusers.d/mayros.conf")
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        _write(path, sysusers(), 0o644)
        done = host.run(["systemd-sysusers", path])
        if done.status != 0:
            raise click.ClickException(f"systemd-sysusers {path}: {' '.join(done.error.split()) or f'status {done.status}'}")
        self._token()
        # Commands of agents run as that user: what they may do is decided in this file, so they can read it and not change it.
        done = host.run(["chown", "root:mayros", self.service.place.config_path])
        if done.status != 0:
            raise click.ClickException(f"chown root:mayros {self.service.place.config_path}: {' '.join(done.error.split())}")
        os.chmod(self.service.place.config_path, 0o640)

    def _token(self) -> None:
        from mayros.net.files import create
        from mayros.ops.units import CREDENTIALS

        folder = self.host.path(CREDENTIALS)
        os.makedirs(folder, 0o700, exist_ok=True)
        os.chmod(folder, 0o700)
        path = os.path.join(folder, f"{self.service.instance or 'gateway'}-token")
        if os.path.lexists(path):
            click.echo(f"Token: {path} (kept as it is)")
        else:
            create(path, secrets.token_urlsafe(32).encode() + b"\n", 0o600)
            click.echo(f"Token: {path} (new)")

    def _model(self) -> None:
        """Its state directory is its own user's, so the embedded model is downloaded by that."""
        from mayros.core.models import EMBEDDED
        from mayros.providers.embedded import installed

        place = self.service.place
        directory = place.settings(place.load()).directory
        if any(model.ref == EMBEDDED for model in directory.agents[directory.default_id].models) and installed(place.state_dir) is None:
            from mayros.cli.host import program

            click.echo(
                f"The embedded model is downloaded by: runuser -u mayros -- env MAYROS_STATE_DIR={place.state_dir} {program()} models install smollm2"
            )

    def _lingering(self) -> None:
        """A user's services end with the last login, unless the user lingers."""
        name = self.host.user(self.service.place.environ)
        if not self.host.lingers(name):
            click.echo(f"It ends when you log out. To keep it running, and start it with the machine: sudo loginctl enable-linger {name}")
        click.echo("Keys of providers in your shell (such as OPENAI_API_KEY) do not reach a service: mayros setup --provider ID keeps one for it.")


def _write(path: str, text: str, mode: int) -> None:
    from mayros.net.files import write_atomic

    try:
        with open(path, encoding="utf-8") as file:
            if file.read() == text:
                return
    except FileNotFoundError:
        pass
    write_atomic(path, text.encode(), mode)
    click.echo(f"Written: {path}")
