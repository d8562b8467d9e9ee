"""How commands print what a gateway says: tables on a terminal, plain columns elsewhere, JSON. Texts come from outside: nothing in them is obeyed.

Imports rich, when a table goes to a terminal.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

#: What a terminal would obey: the C0 and C1 controls but tab and newline.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_UNESCAPED = re.compile(r"[\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
#: What makes other letters change their places: in a table somebody's name could look like another column.
_TURNS = re.compile(r"[\u202a-\u202e\u2066-\u2069]")
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


def clean(text: str) -> str:
    """The text without what a terminal would obey."""
    return _CONTROL.sub("", text)


def cell(value: object) -> str:
    """One line of text for a value; empty for None."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(cell(item) for item in value)
    return " ".join(_TURNS.sub("", clean(str(value))).split())


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], terminal: bool | None = None) -> None:
    """Print rows under headings. `terminal`: whether standard output is one; None finds out."""
    cells = [[cell(value) for value in row] for row in rows]
    if sys.stdout.isatty() if terminal is None else terminal:
        _rich(columns, cells)
        return
    lines = [list(columns), *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _rich(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        drawn.add_column(name, overflow="fold")
    for row in cells:
        drawn.add_row(*(Text(text) for text in row))
    Console().print(drawn)


def print_json(value: object, indent: int | None = None) -> None:
    """Print JSON, on one line unless there is an `indent`."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    click.echo(_UNESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def ago(when_ms: object, now_ms: int | None = None) -> str:
    """How long a time lies back, roughly: `5m ago`; empty where it is no time."""
    if not isinstance(when_ms, int | float) or isinstance(when_ms, bool):
        return ""
    now = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    seconds = max(0, int((now - when_ms) // 1000))
    return next((f"{seconds // size}{unit} ago" for size, unit in _UNITS if seconds >= size), "now")


def local_time(when_ms: object) -> str | None:
    """A moment by this machine's clock, to the second; None where it is no time."""
    if not isinstance(when_ms, int | float) or isinstance(when_ms, bool):
        return None
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when_ms / 1000))
    except (OverflowError, ValueError, OSError):
        return None


def record(value: object) -> dict[str, Any]:
    """An object that a gateway sent; an empty one where it is none."""
    return value if isinstance(value, dict) else {}


def records(value: object) -> list[dict[str, object]]:
    """The objects in a list that a gateway sent; nothing where it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
