"""The entry point of `mayros`: the group of commands, found when they are named, and the one place where an error becomes a line.

Imports click, errors and the sibling modules of the command that runs; `mayros --version` loads nothing else.
"""

from __future__ import annotations

import importlib
import keyword
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from mayros.errors import GatewayError, StartError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

#: Command -> the module beside this one that holds it under the command's name.
COMMANDS = {
    name: name
    for name in (
        "agent",
        "agents",
        "approvals",
        "audit",
        "backup",
        "completion",
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
} | {"import": "importing", "restore": "backup"}


class Root(click.Group):
    """Loads a command's module only when it is asked for, and turns every failure into `error: ...` and a status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        attribute = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        command = getattr(importlib.import_module(f"mayros.cli.{COMMANDS[cmd_name]}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """The names alone: to tell what each does would load them all, at a Tab."""
        from click.shell_completion import CompletionItem

        names = [CompletionItem(name) for name in self.list_commands(ctx) if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command and leave with its status: 0, 1 failed, 2 wrong usage, 78 configuration, 130 interrupted."""
        if asked_by_shell := os.environ.get("_MAYROS_COMPLETE"):
            from mayros.cli.completion import answer

            sys.exit(answer(self, asked_by_shell))
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
