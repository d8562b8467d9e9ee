"""Changing the configuration file: the smallest change of its text, checked as at a start, and only then written. Blocks.

Imports its sibling modules, errors and net.files. The daemon does this in a thread (ops/control.py), commands do it as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from itertools import islice
from typing import Any

import msgspec

from mayros.config.load import Loaded, load, refuse_unsupported
from mayros.config.source import MAX_FILE, Reader, parse, read_file
from mayros.config.stamps import Stamp
from mayros.errors import ConfigError, InvalidRequest, StorageUnavailable
from mayros.net.files import write_atomic

STALE = "config changed since last load; re-run config.get and retry"
#: Of one change that are told.
MAX_PATHS = 64
_NOTHING = object()


class ConfigText(msgspec.Struct, frozen=True):
    """The file as one reading found it; `data` None: there is none."""

    data: bytes | None
    tree: dict[str, Any]

    @property
    def hash(self) -> str:
        return sha256(self.data or b"").hexdigest()


def read_text(path: str) -> ConfigText:
    """The file as it is. Raises ConfigError."""
    data = read_file(path)
    return ConfigText(None, {}) if data is None else parsed(path, data)


def parsed(path: str, data: bytes) -> ConfigText:
    """What these bytes of the file say. Raises ConfigError."""
    tree = parse(data, path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: the file must hold one object")
    return ConfigText(data, tree)


def compose(
    path: str,
    environ: Mapping[str, str],
    state_dir: str,
    file: ConfigText,
    tree: dict[str, Any],
    text: str | None = None,
    stamps: dict[str, Stamp] | None = None,
) -> tuple[bytes, Loaded]:
    """The new bytes, and what a start would read in them. `text` instead of the file's is made to say what `tree` does. Raises ConfigError.

    `stamps`: see `load`.
    """
    from mayros.config.edit import rewrite  # loaded by the first change, which few gateways see

    reader = Reader(path)
    for keys in changed(file.tree, tree):
        if "$include" in keys:
            raise ConfigError(f"{path}: $include is not changed by programs; edit the file by hand")
        if (elsewhere := _elsewhere(reader, file.tree, keys)) is not None:
            raise ConfigError(elsewhere)
    if text is None:
        text = "{}\n" if file.data is None else file.data.decode("utf-8")
    data = rewrite(text, tree, path).encode()
    if len(data) > MAX_FILE:
        raise ConfigError(f"{path}: the file would be larger than {MAX_FILE >> 20} MB")
    loaded = load(path, environ, state_dir=state_dir, data=data, stamps=stamps)
    refuse_unsupported(loaded.config, loaded.raw)
    return data, loaded


def whole(path: str, text: str, old: dict[str, Any]) -> dict[str, Any]:
    """What a text says that a client sent instead of the whole file, whose hidden values are those of `old`. Raises ConfigError, InvalidRequest."""
    from mayros.config.revise import restored

    found: dict[str, Any] = restored(parsed(path, _bytes(text)).tree, old)
    return found


def merged(text: str, old: dict[str, Any]) -> dict[str, Any]:
    """The tree `old` with a merge patch (JSON5) laid over it. Raises ConfigError, InvalidRequest."""
    from mayros.config.revise import patch, restored

    found: dict[str, Any] = restored(patch(old, parsed("the patch", _bytes(text)).tree), old)
    return found


def _bytes(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ConfigError("half a surrogate pair is not a character") from None


def changed(before: Any, after: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys of each value that is another, new or gone; a list counts as one value."""
    from mayros.config.edit import same

    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            was, becomes = before.get(key, _NOTHING), after.get(key, _NOTHING)
            if was is _NOTHING and isinstance(becomes, dict) and becomes:
                was = {}
            elif becomes is _NOTHING and isinstance(was, dict) and was:
                becomes = {}
            yield from changed(was, becomes, (*keys, key))
    elif before is _NOTHING or after is _NOTHING or not same(before, after):
        yield keys


def paths(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, ...]:
    """The key paths at which two trees of a file differ, at most MAX_PATHS of them."""
    return tuple(".".join(keys) for keys in islice(changed(before, after), MAX_PATHS))


def where(path: str, tree: dict[str, Any], keys: tuple[str, ...]) -> str:
    """Why a value cannot be changed in the file."""
    changed = f"{'.'.join(keys)} in {path} is not what the gateway read: the file was changed since it was started"
    return _elsewhere(Reader(path), tree, keys) or changed


def _elsewhere(reader: Reader, tree: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    """Which included file a value must be changed in; None where it stands in the main file."""
    included = reader.source_of(tree, keys)
    return None if included is None else f"{'.'.join(keys)} comes from {included}, which {reader.path} includes; change it there"


def store(path: str, before: bytes | None, after: bytes) -> None:
    """Replace the file, durably, if it is still as it was. Raises InvalidRequest, StorageUnavailable."""
    if read_file(path) != before:
        raise InvalidRequest(STALE)
    try:
        write_atomic(path, after)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StorageUnavailable(f"{path} cannot be written: {reason}") from None


def replace(path: str, environ: Mapping[str, str], state_dir: str, text: str, before: bytes | None) -> Loaded:
    """Write `text` in place of the whole file, if that is still `before`; what a start would read then. Raises as `change` does."""
    file = ConfigText(None, {}) if before is None else parsed(path, before)
    data, loaded = compose(path, environ, state_dir, file, whole(path, text, file.tree), text)
    store(path, before, data)
    return loaded


def change(path: str, environ: Mapping[str, str], state_dir: str, edit: Callable[[dict[str, Any]], None]) -> Loaded:
    """Let `edit` change the tree of the file, and write it; what a start would read then. Raises ConfigError, InvalidRequest, StorageUnavailable."""
    from mayros.config.edit import same

    file = read_text(path)
    tree = copy.deepcopy(file.tree)
    edit(tree)
    data, loaded = compose(path, environ, state_dir, file, tree)
    if not same(tree, file.tree):
        store(path, file.data, data)
    return loaded
