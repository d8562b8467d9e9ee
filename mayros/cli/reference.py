"""docs/cli.md: every command with its arguments and options, from the commands themselves.

    python -m mayros.cli.reference docs/cli.md

The same on every machine: nothing depends on a terminal's width, a home or a locale. Imports click and, by way of main, every command.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mayros.cli.main import main

_HEAD = """\
# The command line

Made by `make docs` from the commands themselves; `--help` (or `-h`) after any of them says the same. The [README](../README.md#use-it) has them in
short.

Status 0 is success, 1 a failure that may pass, 2 wrong usage, 78 a configuration that cannot work, 130 an interruption; failures are one line on
standard error. `MAYROS_CONFIG_PATH` and `MAYROS_STATE_DIR` name other places for the configuration (`~/.mayros/mayros.json`) and the state
(`~/.mayros`), `MAYROS_GATEWAY_PORT` another port. Commands that ask a gateway take its secret from `MAYROS_GATEWAY_TOKEN` or
`MAYROS_GATEWAY_PASSWORD`, where no option names one. `MAYROS_DEBUG=1` shows where a command failed. `mayros completion` makes a shell complete all of
this.
"""
#: What the commands that ask a gateway have in common (`gateway_options`), told once.
_WHICH = ("--url", "--tls-fingerprint", "--token-file", "--token", "--password")
#: Words between backticks are left as they are.
_CODE = re.compile(r"(`[^`]*`)")
_ACTIVE = re.compile(r"([\\<*|]|(?<!\w)_|_(?!\w))")


def text() -> str:
    """The document."""
    found = list(commands(main, ("mayros",)))
    which = {option.opts[0]: _row(option) for _, command in found for option in options(command) if option.opts[0] in _WHICH}
    told = f"\n## Which gateway\n\nWithout any of these it is this machine's.\n\n{_table(list(which.values()))}"
    return _HEAD + told + "".join(_section(command, words) for words, command in found)


def commands(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Each command below this one with its words, groups before what is in them, by name; hidden ones are left out."""
    if isinstance(command, click.Group):
        ctx = click.Context(command, info_name=words[-1])
        for name in sorted(command.list_commands(ctx)):
            found = command.get_command(ctx, name)
            if found is not None and not found.hidden:
                yield (*words, name), found
                yield from commands(found, (*words, name))


def options(command: click.Command) -> list[click.Option]:
    """Its options in their order, without --help and hidden ones."""
    return [one for one in command.params if isinstance(one, click.Option) and not one.hidden]


def _section(command: click.Command, words: tuple[str, ...]) -> str:
    parts = [f"\n{'#' * len(words)} {' '.join(words)}\n"]
    if not isinstance(command, click.Group):
        taken = [_argument(one) for one in command.params if isinstance(one, click.Argument)]
        parts.append(f"```\n{' '.join([*words, *(['[OPTIONS]'] if options(command) else []), *taken])}\n```\n")
    parts += [f"{paragraph}\n" for paragraph in _paragraphs(command.help or "")]
    given = options(command)
    if given:
        rows = [_row(option) for option in given if option.opts[0] not in _WHICH]
        if which := ", ".join(f"`{option.opts[0]}`" for option in given if option.opts[0] in _WHICH):
            rows.append(f"| {which} | [Which gateway](#which-gateway). |\n")
        parts.append(_table(rows))
    return "\n".join(parts)


def _table(rows: list[str]) -> str:
    return "".join(["| option | what it does |\n|---|---|\n", *rows])


def _argument(argument: click.Argument) -> str:
    if argument.metavar is not None:
        return argument.metavar
    name = (argument.name or "").upper()
    if argument.nargs != 1:
        name += "..."
    return name if argument.required else f"[{name}]"


def _row(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=lambda name: (name.startswith("--"), name)))
    if option.secondary_opts:
        names += " / " + ", ".join(f"`{name}`" for name in option.secondary_opts)
    if (takes := _takes(option)) is not None:
        names += f" {_escaped(takes)}"
    said = [_escaped(" ".join((option.help or "").split()))]
    if option.required:
        said.append("Must be given.")
    if (bounds := _bounds(option.type)) is not None:
        said.append(bounds)
    if isinstance(option.default, str | int | float) and not option.is_flag:
        said.append(f"Default: `{_default(option.default)}`.")
    if option.envvar:
        variables = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar)
        said.append(f"Environment: {', '.join(f'`{name}`' for name in variables)}.")
    return f"| {names} | {' '.join(said)} |\n"


def _takes(option: click.Option) -> str | None:
    """What stands for its value; None: it takes none."""
    if option.is_flag or option.count:
        return None
    if isinstance(option.type, click.Choice):
        return "|".join(str(choice) for choice in option.type.choices)
    if option.metavar is not None:
        return option.metavar
    kind = option.type
    return (kind.name if isinstance(kind, click.Path) else "n" if isinstance(kind, click.IntRange | click.FloatRange) else "text").upper()


def _bounds(kind: click.ParamType[Any]) -> str | None:
    if not isinstance(kind, click.IntRange | click.FloatRange):
        return None
    low, high = (None if end is None else f"{end:,g}" if isinstance(end, float) else f"{end:,}" for end in (kind.min, kind.max))
    if low is not None and high is not None:
        return f"{low} to {high}."
    return f"At least {low}." if low is not None else f"At most {high}."


def _default(value: object) -> str:
    written = f"{value:g}" if isinstance(value, float) else str(value)
    # A path in somebody's home is one in everybody's.
    home = str(Path.home())
    return f"~{written.removeprefix(home)}" if written == home or written.startswith(f"{home}/") else written


def _paragraphs(help_text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", help_text.strip()):
        yield _escaped(" ".join(paragraph.split()))


def _escaped(line: str) -> str:
    """The line as Markdown that reads as it stands."""
    parts = _CODE.split(line)
    return "".join(part.replace("|", "\\|") if part.startswith("`") else _ACTIVE.sub(r"\\\1", part) for part in parts)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
