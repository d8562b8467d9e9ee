"""Programs that can do no harm when they work on their standard input only, and how these must be called. Pure; imports nothing of ours."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from mayros.core.exec_rules import runs_its_arguments

DEFAULT = ("jq", "cut", "uniq", "head", "tail", "tr", "wc")


class _Form(msgspec.Struct, frozen=True):
    """`flags` stand alone, `values` take so many words more, `operands` is how many other words there may be; none of these is a file."""

    flags: frozenset[str]
    values: dict[str, int] = {}
    operands: int = 0
    #: Letters that may stand together behind one dash, and those of which the value may follow at once.
    short: str = ""
    attached: str = ""


def _form(flags: str, values: dict[str, int] | None = None, operands: int = 0, attached: str = "") -> _Form:
    names = frozenset(flags.split())
    return _Form(names, values or {}, operands, "".join(name[1] for name in names if len(name) == 2), attached)


_FORMS = {
    "jq": _form(
        "-r -c -S -s -n -e -j -a -M -C -R --raw-output --compact-output --sort-keys --slurp --null-input --exit-status --join-output"
        " --ascii-output --monochrome-output --color-output --raw-input --tab",
        {"--arg": 2, "--argjson": 2, "--indent": 1},
        operands=1,
    ),
    "cut": _form("-s -n --complement --only-delimited", {"-b": 1, "-c": 1, "-f": 1, "-d": 1}, attached="bcfd"),
    "uniq": _form("-c -d -u -i -D -z --count --repeated --unique --ignore-case", {"-f": 1, "-s": 1, "-w": 1}, attached="fsw"),
    "head": _form("-q -v -z --quiet --verbose", {"-n": 1, "-c": 1}, attached="nc"),
    "tail": _form("-q -v -z --quiet --verbose", {"-n": 1, "-c": 1}, attached="nc"),
    "tr": _form("-c -C -d -s -t --complement --delete --squeeze-repeats --truncate-set1", operands=2),
    "wc": _form("-c -m -l -w -L --bytes --chars --lines --words --max-line-length"),
}
#: Filters of jq that read files, or look for them.
_JQ_READS = re.compile(r"\b(?:import|include|modulemeta|input_filename|get_search_list)\b")


def harmless(name: str, words: Sequence[str]) -> bool:
    """Whether this program, called with these words, reads its standard input and nothing else. One without a known form: only with no words."""
    form = _FORMS.get(name)
    if form is None:
        return not words and not runs_its_arguments(name)  # a shell without words takes commands from its input
    operands: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            operands.append(word)
        elif word in form.values:
            if len(rest) < form.values[word]:
                return False
            del rest[: form.values[word]]
        elif not (word in form.flags or _together(word, form) or (name in ("head", "tail") and re.fullmatch(r"-[0-9]+", word, re.ASCII))):
            return False
    if name == "jq" and any(_JQ_READS.search(word) for word in operands):
        return False
    return len(operands) <= form.operands


def _together(word: str, form: _Form) -> bool:
    """Short options behind one dash, the last of which may have its value there too: `-d,`, `-rc`."""
    if word.startswith("--"):
        return False
    for index, letter in enumerate(word[1:], 1):
        if letter in form.attached:
            return len(word) > index + 1
        if letter not in form.short:
            return False
    return True
