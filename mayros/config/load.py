"""Reading the configuration: where it is, what it says, what is wrong with it. Imports its sibling modules and errors.

The file is read, its includes merged, the environment completed, `${NAME}` put in, and the result checked: names first, then types, then
what types cannot say. A missing file is an empty configuration. Nothing here starts or changes anything.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from mayros.config.check import Checker
from mayros.config.environ import add_dotenv, add_section
from mayros.config.keys import profile_keys
from mayros.config.known import check_keys, decode
from mayros.config.refuse import refuse_unsupported
from mayros.config.schema import Config
from mayros.config.show import lookup, redact
from mayros.config.source import Reader, substitute
from mayros.config.stamps import Stamp

__all__ = ["Loaded", "config_path", "load", "lookup", "redact", "refuse_unsupported", "state_dir"]

#: Levels of the original that have a neighbour here.
_LEVELS = {"trace": "debug", "fatal": "error", "silent": "error"}


class Loaded(msgspec.Struct, frozen=True):
    """One reading of the configuration.

    `raw` is the tree after includes and substitution, `environ` the environment it was read with; both hold secrets. `warnings` are one line
    each, `files` the real paths of the main file and all it includes, `exists` whether there is a main file.
    """

    config: Config
    raw: dict[str, Any]
    environ: dict[str, str]
    warnings: list[str]
    files: list[str]
    exists: bool
    #: The keys of `auth.profiles`, by profile id; secrets.
    keys: dict[str, str] = {}
    #: The stamps of all files that were read, those of keys too, by the paths under which they were looked for.
    stamps: dict[str, Stamp] = {}

    def __repr__(self) -> str:
        return f"<Loaded {self.files[0] if self.files else 'nothing'}>"


def _expand(path: str, environ: Mapping[str, str]) -> str:
    home = environ.get("HOME", "").strip()
    if home and (path == "~" or path.startswith("~/")):
        path = home + path[1:]
    return os.path.abspath(os.path.expanduser(path))


def state_dir(environ: Mapping[str, str]) -> str:
    """The state directory: `MAYROS_STATE_DIR`, else `~/.mayros`. It need not exist."""
    return _expand(environ.get("MAYROS_STATE_DIR", "").strip() or "~/.mayros", environ)


def config_path(environ: Mapping[str, str]) -> str:
    """The configuration file: `MAYROS_CONFIG_PATH`, else `mayros.json` in the state directory. It need not exist."""
    path = environ.get("MAYROS_CONFIG_PATH", "").strip()
    return _expand(path, environ) if path else os.path.join(state_dir(environ), "mayros.json")


def load(
    path: str,
    environ: Mapping[str, str],
    *,
    state_dir: str,
    cwd: str | None = None,
    strict: bool = False,
    data: bytes | None = None,
    stamps: dict[str, Stamp] | None = None,
) -> Loaded:
    """Read the configuration at `path`.

    `environ` is the environment of the start; `.env` in `cwd` (where given) and in `state_dir` fill in what it lacks. With `strict` an unknown
    key is an error wherever it stands. `data` is read in place of the main file. `stamps` becomes `Loaded.stamps`, and is filled as far as reading
    came. Raises ConfigError naming the file and, where there is one, the line or the key path.
    """
    warnings: list[str] = []
    stamps = {} if stamps is None else stamps
    reader = Reader(path, data, stamps)
    tree = reader.read()
    exists = tree is not None
    tree = tree or {}
    full = dict(environ)
    if cwd is not None and os.path.realpath(cwd) != os.path.realpath(state_dir):
        add_dotenv(full, os.path.join(cwd, ".env"), trusted=False, warnings=warnings)
    add_dotenv(full, os.path.join(state_dir, ".env"), trusted=True, warnings=warnings)
    if "env" in tree:
        tree["env"] = substitute(tree["env"], full, path, "env")
        add_section(full, tree["env"], path, warnings)
    raw = {key: value if key == "env" else substitute(value, full, path, key) for key, value in tree.items()}
    typed = {key: value for key, value in raw.items() if key not in ("env", "$schema")}
    check_keys(typed, path, warnings, strict=strict)
    config = decode(_with_known_level(typed, warnings), path)
    config = Checker(path, warnings).check(config)
    keys = profile_keys(config, full, state_dir, path, warnings, stamps)
    return Loaded(config, raw, full, warnings, reader.files, exists, keys, stamps)


def _with_known_level(tree: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    logging = tree.get("logging")
    if not isinstance(logging, dict):
        return tree
    for key in ("level", "consoleLevel"):
        level = logging.get(key)
        if isinstance(level, str) and level in _LEVELS:
            warnings.append(f"logging.{key}: {level} is not offered, {_LEVELS[level]} is used")
            logging = {**logging, key: _LEVELS[level]}
    return {**tree, "logging": logging}
