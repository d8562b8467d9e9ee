"""The environment that a configuration is read with: the process's own, then `.env` files, then the file's `env`. Imports net.files and errors.

What comes first wins; a later source only fills in what is absent or blank. The result is a private map: `os.environ` is not touched.
"""

from __future__ import annotations

import re
from typing import Any

from mayros.config.source import join
from mayros.errors import ConfigError
from mayros.net.files import read_bounded

MAX_DOTENV = 256 << 10
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LINE = re.compile(
    r"""\s*(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*=[ \t]*
    (?:"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>[^']*)'|(?P<bare>[^"'\#\s].*?)?)(?:\s+\#.*|\s*)""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(.)")
#: What a `.env` in whatever directory the gateway was started in may not decide: the gateway's own settings, where traffic goes and whom
#: it trusts, and what is loaded into processes. The one in the state directory is the operator's and may.
_FORBIDDEN = re.compile(
    r"MAYROS_.*|(HTTPS?|ALL|NO|FTP)_PROXY|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL|NODE_EXTRA)_CA_(BUNDLE|CERTS)|NODE_(OPTIONS|TLS_REJECT_UNAUTHORIZED)"
    r"|CREDENTIALS_DIRECTORY|(LD|DYLD|GIT)_.*|PYTHON.*|BASH_ENV|ENV|PATH|HOME|IFS",
    re.IGNORECASE,
)


def add_dotenv(environ: dict[str, str], path: str, *, trusted: bool, warnings: list[str]) -> None:
    """Fill `environ` from a `.env` file. What cannot be read or understood is warned about, by line and without the text."""
    try:
        lines = read_bounded(path, MAX_DOTENV).decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        return
    except UnicodeDecodeError:
        warnings.append(f"{path}: not UTF-8, ignored")
        return
    except OSError as error:
        warnings.append(f"{path}: {error.strerror}, ignored")
        return
    except ValueError as error:
        warnings.append(f"{error}, ignored")
        return
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None or "\0" in line:
            warnings.append(f"{path}:{number}: not NAME=value, ignored")
        elif not trusted and _FORBIDDEN.fullmatch(match["name"]):
            warnings.append(f"{path}:{number}: {match['name']} cannot be set by a .env in the working directory, ignored")
        else:
            found[match["name"]] = _value(match)
    _fill(environ, found)


def _value(match: re.Match[str]) -> str:
    if match["double"] is not None:
        return _ESCAPE.sub(lambda escape: {"n": "\n", "r": "\r", "t": "\t"}.get(escape[1], escape[1]), match["double"])
    return (match["single"] or match["bare"] or "").strip()


def add_section(environ: dict[str, str], section: Any, name: str, warnings: list[str]) -> None:
    """Fill `environ` from `env.NAME` and `env.vars.NAME`; `section` is the tree of `env`. Raises ConfigError naming the key path."""
    if not isinstance(section, dict):
        raise ConfigError(f"{name}: env: must be an object")
    entries = [(join("env", key), key, value) for key, value in section.items() if key not in ("vars", "shellEnv")]
    variables = section.get("vars", {})
    if not isinstance(variables, dict):
        raise ConfigError(f"{name}: env.vars: must be an object")
    entries += [(join("env.vars", key), key, value) for key, value in variables.items()]
    if "shellEnv" in section:
        warnings.append("env.shellEnv: not implemented by this version, ignored")
    found: dict[str, str] = {}
    for path, key, value in entries:
        if not _NAME.fullmatch(key):
            raise ConfigError(f"{name}: {path}: not a name of an environment variable")
        if not isinstance(value, str) or "\0" in value:
            raise ConfigError(f"{name}: {path}: must be a text")
        if key in ("MAYROS_STATE_DIR", "MAYROS_CONFIG_PATH", "HOME", "CREDENTIALS_DIRECTORY"):
            warnings.append(f"{path}: has no effect here, it is read before the configuration")
            continue
        found[key] = value
    _fill(environ, found)


def _fill(environ: dict[str, str], found: dict[str, str]) -> None:
    for key, value in found.items():
        if not environ.get(key, "").strip():
            environ[key] = value
