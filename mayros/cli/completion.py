"""`mayros completion`: what makes bash, zsh and fish complete the words of `mayros`, and what answers their scripts at each Tab.

The scripts of zsh and fish are click's. Imports click; net.files to install one.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class, split_arg_string

from mayros.cli.place import Place, here

#: Asks for an answer instead of a command; click's scripts know it by this name.
VARIABLE = "_MAYROS_COMPLETE"
#: How long a Tab may take at most: of the processor, and on a machine that is busy or a disk that does not answer.
WORK_SECONDS = 1.0
SECONDS = 3.0
MARK = "# Made by `mayros completion`, which writes it anew."
_BASH = """\
%(complete_func)s() {
    local answer
    COMPREPLY=()
    while IFS= read -r answer; do
        case $answer in
            plain,*) COMPREPLY+=("${answer#*,}") ;;
            file,*) compopt -o default ;;
            dir,*) compopt -o dirnames ;;
        esac
    done < <(_MAYROS_LINE="${COMP_LINE:0:COMP_POINT}" _MAYROS_WORD="${COMP_WORDS[COMP_CWORD]}" _MAYROS_BREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F %(complete_func)s %(prog_name)s 2>/dev/null || complete -F %(complete_func)s %(prog_name)s
"""


class Bash(ShellComplete):
    """Bash, which takes a word with a colon for several: click's own script cannot complete a session key. Nothing here is expanded by the shell."""

    name = "bash"
    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one at the cursor, and as much of that one as is there."""
        # With a letter at the cursor the last word is the one that is begun, whether there is anything of it or not.
        words = split_arg_string(os.environ["_MAYROS_LINE"] + "x")
        return words[1:-1], words[-1][:-1]

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        """As click finds them, without what bash has as a word before the one that it replaces."""
        found = super().get_completions(args, incomplete)
        breaks = ":" in os.environ.get("_MAYROS_BREAKS", "") and os.environ.get("_MAYROS_WORD", "")[:1] not in ("'", '"')
        begun = incomplete[: incomplete.rfind(":") + 1] if breaks else ""
        return [CompletionItem(item.value.removeprefix(begun), item.type) for item in found]

    def format_completion(self, item: CompletionItem[str]) -> str:
        """One line of what the script reads."""
        return f"{item.type},{item.value}"


def _kind(shell: str) -> type[ShellComplete] | None:
    return Bash if shell == Bash.name else get_completion_class(shell)


def source(root: click.Command, shell: str) -> str:
    """The script for a shell, with a line that says whose it is."""
    kind = _kind(shell)
    assert kind is not None
    text = kind(root, {}, "mayros", VARIABLE).source()
    # zsh wants to read its own mark in the first line.
    first, rest = text.split("\n", 1) if text.startswith("#compdef") else ("", text)
    return f"{first}\n{MARK}\n{rest}" if first else f"{MARK}\n{rest}"


class _TooLongError(BaseException):
    """A Tab has taken its time: nothing that handles errors may keep it."""


def answer(root: click.Command, instruction: str) -> int:
    """Print what a shell's script asks for, within `SECONDS`, and nothing else whatever happens: the reader is in the middle of a line.

    `instruction` is the value of `VARIABLE`, such as `bash_complete`. Gives the status.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooLongError

    shell, _, what = instruction.partition("_")
    kind = _kind(shell)
    if kind is None or what not in ("complete", "source"):
        return 1
    limits = ((signal.SIGALRM, signal.ITIMER_REAL, SECONDS), (signal.SIGPROF, signal.ITIMER_PROF, WORK_SECONDS))
    for number, timer, seconds in limits:
        signal.signal(number, stop)
        signal.setitimer(timer, seconds)
    try:
        text = source(root, shell) if what == "source" else kind(root, {}, "mayros", VARIABLE).complete()
    except _TooLongError:
        return 1
    except Exception:
        if os.environ.get("MAYROS_DEBUG"):
            raise
        return 1
    finally:
        for _, timer, _ in limits:
            signal.setitimer(timer, 0)
    click.echo(text, nl=bool(text) and not text.endswith("\n"))
    return 0


def _destination(place: Place, shell: str) -> tuple[str, str]:
    """Where a shell looks for a user's own scripts, and what is left to do."""
    data, config = (
        folder if os.path.isabs(folder := place.environ.get(name, "")) else os.path.join(place.home, *usual)
        for name, usual in (("XDG_DATA_HOME", (".local", "share")), ("XDG_CONFIG_HOME", (".config",)))
    )
    return {
        "bash": (
            os.path.join(data, "bash-completion", "completions", "mayros"),
            "New shells complete mayros, where the package bash-completion is installed.",
        ),
        "zsh": (
            os.path.join(place.home, ".zfunc", "_mayros"),
            "Put these lines into ~/.zshrc, if they are not there: fpath=(~/.zfunc $fpath); autoload -Uz compinit && compinit",
        ),
        "fish": (os.path.join(config, "fish", "completions", "mayros.fish"), "New shells complete mayros."),
    }[shell]


@click.command()
@click.argument("shell", metavar="SHELL", type=click.Choice(("bash", "zsh", "fish")))
@click.option("--install", is_flag=True, help="Write it where SHELL looks for your scripts; one that is not ours is kept.")
@click.pass_context
def completion(ctx: click.Context, shell: str, install: bool) -> None:
    """Print the script that makes SHELL (bash, zsh or fish) complete commands, options, and names that this machine knows: agents, models, sessions,
    configuration paths.

    With --install it goes to ~/.local/share/bash-completion/completions/mayros, ~/.zfunc/_mayros or ~/.config/fish/completions/mayros.fish. Without,
    put this into ~/.bashrc: `source <(mayros completion bash)`, into ~/.zshrc behind compinit: `source <(mayros completion zsh)`, or into
    ~/.config/fish/config.fish: `mayros completion fish | source`.
    """
    text = source(ctx.find_root().command, shell)
    if not install:
        click.echo(text, nl=False)
        return
    from mayros.net.files import create, read_bounded, write_atomic

    path, rest = _destination(here(ctx), shell)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        ours = MARK in read_bounded(path, 1 << 20).decode("utf-8", "replace")[:400]
    except FileNotFoundError:
        create(path, text.encode(), 0o644)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    else:
        if not ours:
            raise click.ClickException(f"{path} is not ours and was kept: remove it, or put `mayros completion {shell}` where you want it")
        write_atomic(path, text.encode())
    click.echo(f"Written: {path}")
    click.echo(rest)
