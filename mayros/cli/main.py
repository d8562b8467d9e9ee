"""The entry point of `mayros`: the group of commands, found when they are named, and the one place where an error becomes a line.

Imports click, errors and the sibling modules of the command that runs; `mayros --version` loads nothing else.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from mayros.errors import GatewayError, StartError

#: Command -> the module beside this one that holds it under the command's name.
COMMANDS = {
    name: name
    for name in (
        "agent",
        "agents",
        "approvals",
        "backup",
        "config",
        "devices",
        "doctor",
        "export",
        "gateway",
        "logs",
        "models",
        "security",
        "sessions",
        "setup",
        "status",
        "tokens",
        "tools",
        "usage",
    )
} | {"restore": "backup"}


class Root(click.Group):
    """Loads a command's module only when it is asked for, and turns every failure into `error: ...` and a status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"mayros.cli.{COMMANDS[cmd_name]}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command and leave with its status: 0, 1 failed, 2 wrong usage, 78 configuration, 130 interrupted."""
        try:
            status = super().main(*args, **{"prog_name": "mayros", **extra, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as asked:
            click.echo(asked.format_message(), err=True)
            status = 2
        except click.ClickException as failure:
            status = complain(failure.format_message(), failure.exit_code)
        except StartError as failure:
            status = complain(str(failure), failure.status)
        except GatewayError as failure:
            status = complain(failure.message)
        except (click.exceptions.Abort, KeyboardInterrupt):
            click.echo(err=True)
            status = 130
        except BrokenPipeError:
            # Whoever read our output has gone; a second flush at exit would complain about it again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = 1
        except OSError as failure:
            name = f"{failure.filename}: " if failure.filename else ""
            status = complain(f"{name}{failure.strerror or failure}")
        except Exception as failure:
            if os.environ.get("MAYROS_DEBUG"):
                raise
            status = complain(f"mayros failed inside: {type(failure).__name__}: {failure} (MAYROS_DEBUG=1 shows where)")
        sys.exit(status if isinstance(status, int) else 0)


def complain(message: str, status: int = 1) -> int:
    """Write one line about a failure; gives `status` back."""
    click.echo("error: " + " ".join(message.split()), err=True)
    return status


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mayros-gateway", prog_name="mayros")
def main() -> None:
    """Mayros Gateway: one port for chat clients, one agent run behind it.

    Start with `mayros setup`, then `mayros gateway run`, then `mayros agent --message "hi"`.
    """
