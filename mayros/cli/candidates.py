"""What the shell may complete a value with: agents, models, configuration paths, sessions, instances. From this machine's files, never the network.

Names come from outside, and what a shell completes lands on a command line: only words that mean nothing but themselves to a shell are offered,
so a name with a `$`, a quote or a blank is not. What cannot be read offers nothing. Imports click; config, core and sqlite3 when asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click
from click.shell_completion import CompletionItem

from mayros.cli.place import Place, here
from mayros.cli.show import record, records
from mayros.errors import ConfigError

#: No quote, `$`, glob, blank or control character; no `,`, at which fish's script ends a word; no `-`, `=`, `~`, `%` in front.
_WORD = re.compile(r"[A-Za-z0-9_/.:@+][A-Za-z0-9_/.:@+=%-]{0,255}")
MOST = 500
#: As many of the newest conversations are looked at.
NEWEST = 1_000
BUSY_SECONDS = 0.05


def _offering(words: Callable[[Place, str], Iterable[str]]) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]:
    """`shell_complete` of a parameter: those of `words(place, incomplete)` that go on from what was typed."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        fit = dict.fromkeys(word for word in words(here(ctx), incomplete) if word.startswith(incomplete) and _WORD.fullmatch(word))
        return [CompletionItem(word) for word in list(fit)[:MOST]]

    return complete


@_offering
def agent_ids(place: Place, incomplete: str) -> Iterator[str]:
    """The agents of the configuration."""
    from mayros.core.keys import normalise_agent_id

    ids = (entry.get("id") for entry in records(_configured(place, "agents", "list")))
    listed = [normalise_agent_id(one) for one in ids if isinstance(one, str)]
    yield from listed or ["main"]


@_offering
def model_refs(place: Place, incomplete: str) -> Iterator[str]:
    """The models as `provider/model`: the built-in ones, and those of the configuration."""
    from mayros.core.vendors import built_in

    models = record(_configured(place, "models"))
    if models.get("mode") != "replace":
        for name, entry in built_in().items():
            yield from (f"{name}/{model.id}" for model in entry.models)
    for name, provider in record(models.get("providers")).items():
        yield from (f"{name}/{model.get('id')}" for model in records(record(provider).get("models")))


@_offering
def providers(place: Place, incomplete: str) -> Iterator[str]:
    """The ids of providers, built in and configured."""
    from mayros.core.vendors import VENDORS

    yield from VENDORS
    yield from record(_configured(place, "models", "providers"))


@_offering
def config_paths(place: Place, incomplete: str) -> list[str]:
    """The keys of the configuration, a level at a time; where only one fits, with those below it. Names that users give are those in the file."""
    from mayros.config.schema import Config

    found: list[tuple[str, Any, Any]] = [("", Config, _configured(place))]
    for number in range(incomplete.count(".") + 1):
        begun = ".".join(incomplete.split(".")[:number])
        found = [child for node in found if node[0] == begun for child in _members(*node)]
    found = [node for node in found if node[0].startswith(incomplete)]
    if len(found) == 1:
        found += _members(*found[0])
    return [path for path, _, _ in found]


def _members(path: str, kind: Any, value: Any) -> Iterator[tuple[str, Any, Any]]:
    """The path, type and value of each key below one."""
    from types import UnionType
    from typing import Union, get_args, get_origin

    import msgspec

    tree = record(value)
    for member in get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,):
        below: dict[str, Any] = {}
        if isinstance(member, type) and issubclass(member, msgspec.Struct):
            below = {field.encode_name: field.type for field in msgspec.structs.fields(member)}
        elif get_origin(member) is dict:
            below = dict.fromkeys(tree, get_args(member)[1])
        for name, kind_below in below.items():
            # A name with a dot would read as two; its path needs quotes.
            if "." not in name:
                yield f"{path}.{name}" if path else name, kind_below, tree.get(name)


@_offering
def session_keys(place: Place, incomplete: str) -> list[str]:
    """The keys of the newest conversations, where the store is a file."""
    # Not by way of storage: that loads SQLAlchemy, which takes longer than a Tab may.
    import sqlite3
    from contextlib import closing
    from os.path import exists, join
    from urllib.parse import quote

    store = _configured(place, "session", "store")
    if isinstance(store, str) and store and not store.startswith("sqlite:///"):
        return []
    path = store.removeprefix("sqlite:///") if isinstance(store, str) and store else join(place.state_dir, "mayros.db")
    # Where no gateway has it open, SQLite would make files beside it even to read.
    how = "mode=ro" if exists(f"{path}-wal") else "mode=ro&immutable=1"
    newest = "SELECT key FROM sessions WHERE NOT stateless ORDER BY updated_ms DESC LIMIT ?"
    try:
        with closing(sqlite3.connect(f"file:{quote(path)}?{how}", uri=True, timeout=BUSY_SECONDS)) as connection:
            return [str(key) for (key,) in connection.execute(newest, (NEWEST,))]
    except sqlite3.Error:
        return []  # none yet, or not a store of this version


@_offering
def instances(place: Place, incomplete: str) -> Iterator[str]:
    """The named gateways that are installed as services beside the plain one."""
    from mayros.cli.service import Service
    from mayros.ops.units import stem

    for system in (False, True):
        for name in Service(place, system, None).files():
            begin, end = f"{stem(None)}@", ".socket"
            if name.startswith(begin) and name.endswith(end):
                yield name.removeprefix(begin).removesuffix(end)


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """`shell_complete` of a parameter that names a file: the shell knows better."""
    return [CompletionItem(incomplete, type="file")]


def _configured(place: Place, *keys: str) -> Any:
    """What the configuration file says at these keys, unchecked; None where it says nothing, or cannot be read."""
    from mayros.config.source import Reader, value_at

    try:
        return value_at(Reader(place.config_path).read(), *keys)
    except (ConfigError, OSError):
        return None  # `mayros config validate` says why
