"""The configuration of the original, as `mayros import` takes it over: what of it is known here, what is in the way, and the file that it becomes.

The text stays as it is, with its comments and its secrets; only what is left out goes. What would keep the gateway from starting is never dropped
silently, for it may be a protection: it is told, and whoever imports names it. Imports config.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mayros.cli.place import Place
from mayros.cli.show import record
from mayros.config.change import ConfigText, read_text
from mayros.config.edit import rewrite
from mayros.config.load import Loaded, load, refuse_unsupported
from mayros.config.source import Reader, join, split
from mayros.errors import ConfigError, StartError
from mayros.net.files import create

#: Problems that are looked for.
_MOST = 100
_NO_KEY = "its key is in a file of the original's own, which is not read: mayros setup --provider adds it"


class LeftOut(NamedTuple):
    """A key that is not taken over, and why."""

    path: str
    reason: str


class Adoption(NamedTuple):
    """What becomes of a configuration. `loaded` and `data`: what a start would read, and the file; None where there are `problems`."""

    source: str
    left_out: list[LeftOut]
    #: What is kept and has no effect, or another one.
    ignored: list[str]
    problems: list[str]
    flattened: bool
    data: bytes | None
    loaded: Loaded | None
    #: What the original calls the main session of each agent.
    main_key: str = "main"


def plan(place: Place, source: str, without: Sequence[str]) -> Adoption:
    """Look at the configuration at `source`; `without` are key paths that are left out. Raises ConfigError, StartError."""
    file = read_text(source)
    flattened = _includes(file.tree)
    if flattened:
        tree = Reader(source).read() or {}
        file = ConfigText((json.dumps(tree, indent=2, ensure_ascii=False) + "\n").encode(), tree)
    tree = copy.deepcopy(file.tree)
    left_out = list(_without_keys(tree))
    for path in without:
        if not _take_out(tree, path):
            raise StartError(f"{source} has no {path}: --without takes the path of a key, such as gateway.tls", 2)
        left_out.append(LeftOut(path, "you left it out"))
    data = rewrite((file.data or b"{}\n").decode("utf-8-sig"), tree, source).encode()
    problems, loaded = _examine(place, tree)
    usable = None if problems else loaded
    return Adoption(source, left_out, loaded.warnings, problems, flattened, None if problems else data, usable, _main_key(file.tree))


def write(place: Place, adoption: Adoption) -> None:
    """Make it this gateway's configuration, mode 0600. Raises FileExistsError: there is one, which is never overwritten."""
    assert adoption.data is not None
    path = os.path.realpath(place.config_path)
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    create(path, adoption.data, 0o600)


def _examine(place: Place, tree: dict[str, Any]) -> tuple[list[str], Loaded]:
    """What is in the way of a start, all of it as far as one problem does not hide another; and what is read without that."""
    problems: list[str] = []
    trial, path = copy.deepcopy(tree), place.config_path
    while True:
        try:
            data = json.dumps(trial).encode()
            loaded = load(path, place.environ, state_dir=place.state_dir, cwd=os.getcwd(), data=data)
            refuse_unsupported(loaded.config, loaded.raw)
            return problems, loaded
        except ConfigError as error:
            problem = str(error).removeprefix(f"{path}: ")
            problems.append(problem)
            if len(problems) == _MOST or not _take_out(trial, problem.partition(": ")[0]):
                return problems, load(path, place.environ, state_dir=place.state_dir, data=b"{}")


def _main_key(tree: dict[str, Any]) -> str:
    key = record(tree.get("session")).get("mainKey")
    return key.strip().lower() or "main" if isinstance(key, str) else "main"


def _includes(tree: Any) -> bool:
    if isinstance(tree, dict):
        return "$include" in tree or any(map(_includes, tree.values()))
    return isinstance(tree, list) and any(map(_includes, tree))


def _take_out(tree: Any, path: str) -> bool:
    """Remove the value of a path; whether there was one."""
    try:
        steps = [step for step, _ in split(path)]
    except ValueError:
        return False
    for step in steps[:-1]:
        tree = _member(tree, step)
    if not steps or _member(tree, steps[-1]) is None:
        return False
    del tree[steps[-1]]
    return True


def _member(tree: Any, step: str | int) -> Any:
    if isinstance(tree, dict):
        return tree.get(step)
    return tree[step] if isinstance(tree, list) and isinstance(step, int) and step < len(tree) else None


def _without_keys(tree: dict[str, Any]) -> Iterator[LeftOut]:
    """Take out the profiles of keys that hold none, and what names them: the original keeps its keys elsewhere."""
    auth = record(tree.get("auth"))
    profiles, order = record(auth.get("profiles")), record(auth.get("order"))
    gone = [name for name, one in profiles.items() if isinstance(one, dict) and not {"key", "keyFile", "credential"} & set(one)]
    for name in gone:
        del profiles[name]
        yield LeftOut(join("auth.profiles", name), _NO_KEY)
    for provider, names in list(order.items()):
        if isinstance(names, list) and any(name in gone for name in names):
            order[provider] = [name for name in names if name not in gone]
            if not order[provider]:
                del order[provider]
