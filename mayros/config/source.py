"""From files to one tree: JSON5, `$include`, `${NAME}`. Bounded throughout. Imports net.files and errors.

A tree is what JSON gives: dicts with text keys, lists, texts, numbers, booleans, None. Every error is a ConfigError that names the file.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from mayros.config.stamps import Stamp, stamp
from mayros.errors import ConfigError
from mayros.net.files import read_bounded

MAX_FILE = 5 << 20
MAX_TOTAL = 20 << 20
#: The json5 package takes about 25 ms a kilobyte; only what `_as_json` cannot translate reaches it.
MAX_SLOW = 256 << 10
MAX_DEPTH = 64
MAX_INCLUDES = 10

_TOKEN = re.compile(
    r"""(?P<space>(?:[ \t\r\n\v\f\u00a0\ufeff]|//[^\r\n\u2028\u2029]*(?=[\r\n]|\Z)|/\*(?s:.*?)\*/)+)
    |(?P<text>"[^"\\\x00-\x1f]*(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*)*")
    |(?P<single>'[^'"\\\x00-\x1f]*')
    |(?P<name>[A-Za-z_$][A-Za-z0-9_$]*)
    |(?P<number>-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
    |(?P<mark>[{}\[\],:])""",
    re.VERBOSE,
)
_BRACKET = re.compile(r"""\"(?:[^"\\]|\\.)*(?:"|\Z)|'(?:[^'\\]|\\.)*(?:'|\Z)|//[^\r\n\u2028\u2029]*|/\*.*?(?:\*/|\Z)|[\[{\]}]""", re.DOTALL)
_PLACE = re.compile(r"(?:<string>:|\bline )(\d+)")
_BYTE = re.compile(r" \(byte (\d+)\)$")
_VARIABLE = re.compile(r"\$(\$?)\{([A-Z_][A-Z0-9_]*)\}")
_NOTHING = object()
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_$-]+")
_STEP = re.compile(r"""(?:^|\.)(?P<word>[^.\[\]"]+)|\[(?P<index>[0-9]{1,6})\]|\[(?P<quoted>"(?:[^"\\]|\\.)*")\]""")


def join(path: str, key: str) -> str:
    """The path of a member: `a.b`, or `a["b/c"]` where the key is no plain word."""
    if not _PLAIN_KEY.fullmatch(key):
        return f"{path}[{ascii_json(key)}]"
    return f"{path}.{key}" if path else key


def split(path: str) -> Iterator[tuple[str | int, int]]:
    """The keys and indices of `a.b[0].c` or `a["b/c"].d`, each with the position where it ends. Raises ValueError where the path goes wrong."""
    position = 0
    while position < len(path):
        step = _STEP.match(path, position)
        if step is None or path.startswith("."):
            raise ValueError(path)
        position = step.end()
        if step["index"] is not None:
            yield int(step["index"]), position
            continue
        try:
            key = step["word"] or msgspec.json.decode(step["quoted"], type=str)
        except msgspec.DecodeError:
            raise ValueError(path) from None
        yield key, position


def below(prefix: str, names: str) -> frozenset[str]:
    """The paths of several keys, given between blanks; `prefix` ends with its dot."""
    return frozenset(prefix + name for name in names.split())


def value_at(tree: Any, *keys: str) -> Any:
    """The value at these keys of a tree; None where it is not set."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def ascii_json(text: str) -> str:
    """A text as a JSON string without control or non-ASCII characters, at most about 80 long."""
    shown = text if len(text) <= 60 else text[:60] + "..."
    return '"' + shown.encode("unicode_escape").decode("ascii").replace('"', '\\"') + '"'


def parse(data: bytes, name: str) -> Any:
    """The tree of one file's bytes, which may be JSON or JSON5. Raises ConfigError naming the file and the line."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}:{_line(data, error.start)}: not UTF-8") from None
    try:
        tree = _decode(text, name)
    except RecursionError:
        raise ConfigError(f"{name}: nested deeper than {MAX_DEPTH} levels") from None
    _check(tree, name, "", 0)
    return tree


def _decode(text: str, name: str) -> Any:
    # Plain JSON first, then JSON in the clothes of JSON5: the json5 package is a thousand times slower.
    tried = text
    try:
        return msgspec.json.decode(tried)
    except msgspec.DecodeError as error:
        reason = str(error)
    plain = _as_json(text)
    if plain is not None:
        tried = plain
        try:
            return msgspec.json.decode(tried)
        except msgspec.DecodeError as error:
            reason = str(error)
    if len(text) <= MAX_SLOW:
        return _decode_json5(text, name)
    byte = _BYTE.search(reason)
    place = f"{name}:{_line(tried.encode(), int(byte[1]))}" if byte else name
    raise ConfigError(f"{place}: {_BYTE.sub('', reason)}; in a file over {MAX_SLOW >> 10} KB the rarer parts of JSON5 are not read")


def _as_json(text: str) -> str | None:
    """JSON for the everyday part of JSON5: comments, trailing commas, bare keys, simple single quotes. None where there is more in it."""
    parts: list[str] = []
    position = 0
    comma = -1  # where a comma stands that may turn out to be a trailing one
    before = last = ""  # kinds of the last two tokens that count; a mark is its own kind
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            return None
        position = match.end()
        kind, word = match.lastgroup or "", match.group()
        if kind == "space":
            # Line ends stay, so that an error still has its line.
            parts.append("\n" * word.count("\n") or " ")
            continue
        if kind == "mark":
            kind = word
            if word in "}]" and last == "," and before not in ("", ",", ":", "{", "["):
                parts[comma] = " "
            elif word == ",":
                comma = len(parts)
            elif word == ":" and last == "name":
                at = max(index for index, part in enumerate(parts[-2:], max(len(parts) - 2, 0)) if part.strip())
                parts[at] = f'"{parts[at]}"'
        elif kind == "single":
            word = f'"{word[1:-1]}"'
        parts.append(word)
        before, last = last, kind
    return "".join(parts)


def _decode_json5(text: str, name: str) -> Any:
    depth = deepest = 0
    for match in _BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match.group(), 0)
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise ConfigError(f"{name}: nested deeper than {MAX_DEPTH} levels")
    import json5

    try:
        return _plain(json5.loads(text))
    except RecursionError:
        raise ConfigError(f"{name}: nested too deep for JSON5; write it as plain JSON") from None
    except ValueError as error:
        # The parser's sentence may quote the file, and with it a secret: only the place is taken from it.
        place = _PLACE.search(str(error))
        line = place[1] if place else str(max(1, text.rstrip().count("\n") + 1))
    raise ConfigError(f"{name}:{line}: not valid JSON5: " + ("the file is empty" if not text.strip() else "syntax error in or before this line"))


def _plain(tree: Any) -> Any:
    """The tree with keys that are nothing but texts: another package of the same import name gives bare keys a type of their own."""
    if isinstance(tree, dict):
        return {str(key): _plain(value) for key, value in tree.items()}
    return [_plain(value) for value in tree] if isinstance(tree, list) else tree


def _line(data: bytes, offset: int) -> int:
    return data.count(b"\n", 0, offset) + 1


def _check(tree: Any, name: str, path: str, depth: int) -> None:
    """Refuse what JSON5 lets through and nothing here can use."""
    if depth > MAX_DEPTH:
        raise ConfigError(f"{name}: nested deeper than {MAX_DEPTH} levels")
    if isinstance(tree, dict):
        for key, value in tree.items():
            _check(key, name, path, depth)
            _check(value, name, join(path, key), depth + 1)
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            _check(value, name, f"{path}[{number}]", depth + 1)
    elif isinstance(tree, str):
        if not tree.isascii() and any("\ud800" <= character <= "\udfff" for character in tree):
            raise ConfigError(f"{name}: {path}: half a surrogate pair is not a character")
    elif isinstance(tree, float) and not math.isfinite(tree):
        raise ConfigError(f"{name}: {path}: not a finite number")


class Reader:
    """Reads a main file and what it includes. `files` lists the real paths that were read, the main one first.

    `data` stands for the content of the main file: what it is about to become. `stamps` gets the stamp of each file before it is read.
    """

    def __init__(self, path: str, data: bytes | None = None, stamps: dict[str, Stamp] | None = None) -> None:
        self.path = path
        self._data = data
        self._stamps = {} if stamps is None else stamps
        self.files: list[str] = []
        self._total = 0
        self._root = os.path.dirname(os.path.realpath(path))

    def read(self) -> dict[str, Any] | None:
        """The merged tree, or None where the main file is missing. Raises ConfigError."""
        self._stamps[self.path] = stamp(self.path)
        data = read_file(self.path) if self._data is None else self._data
        if data is None:
            return None
        real = os.path.realpath(self.path)
        self._took(real, data)
        tree = self._resolve(parse(data, self.path), self.path, "", (real,), 0)
        if not isinstance(tree, dict):
            raise ConfigError(f"{self.path}: the file must hold one object")
        return tree

    def _took(self, real: str, data: bytes) -> None:
        self.files.append(real)
        self._total += len(data)
        if self._total > MAX_TOTAL or len(self.files) > 1_000:
            raise ConfigError(f"{self.path}: more than {MAX_TOTAL >> 20} MB, or 1000 files, with everything it includes")

    def _resolve(self, tree: Any, name: str, path: str, chain: tuple[str, ...], depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ConfigError(f"{name}: nested deeper than {MAX_DEPTH} levels with what it includes")
        if isinstance(tree, list):
            return [self._resolve(value, name, f"{path}[{number}]", chain, depth + 1) for number, value in enumerate(tree)]
        if not isinstance(tree, dict):
            return tree
        own = {key: self._resolve(value, name, join(path, key), chain, depth + 1) for key, value in tree.items() if key != "$include"}
        if "$include" not in tree:
            return own
        wanted = tree["$include"]
        place = join(path, "$include")
        many = wanted if isinstance(wanted, list) else [wanted]
        if not many or not all(isinstance(one, str) and one for one in many):
            raise ConfigError(f"{name}: {place}: must be a path or a list of paths")
        merged: Any = None
        for number, one in enumerate(many):
            part = self._include(one, name, place, path, chain, depth)
            merged = part if number == 0 else merge(merged, part)
        if not own:
            return merged
        if not isinstance(merged, dict):
            raise ConfigError(f"{name}: {place}: a file included beside other keys must hold an object")
        return merge(merged, own)

    def _include(self, wanted: str, name: str, place: str, path: str, chain: tuple[str, ...], depth: int) -> Any:
        shown = ascii_json(wanted)
        if len(chain) > MAX_INCLUDES:
            raise ConfigError(f"{name}: {place}: more than {MAX_INCLUDES} levels of $include")
        if "\0" in wanted:
            raise ConfigError(f"{name}: {place}: {shown} is not a path")
        given = os.path.join(os.path.dirname(chain[-1]), wanted)
        real = os.path.realpath(given)
        if os.path.commonpath((self._root, real)) != self._root:
            raise ConfigError(f"{name}: {place}: {shown} is outside the directory of the main file ({self._root})")
        if real in chain:
            raise ConfigError(f"{name}: {place}: {shown} includes itself, directly or through another file")
        self._stamps[given] = stamp(given)
        try:
            data = read_bounded(real, MAX_FILE)
        except OSError as error:
            raise ConfigError(f"{name}: {place}: {shown}: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"{name}: {place}: {error}") from None
        self._took(real, data)
        return self._resolve(parse(data, real), real, path, (*chain, real), depth)

    def source_of(self, tree: Any, keys: Sequence[str]) -> str | None:
        """Which included file gives a value at the path `keys` of the main file's own `tree`, as it is named there; None where none does."""
        real = os.path.realpath(self.path)
        for number, key in enumerate((*keys, "")):
            if not isinstance(tree, dict):
                return None
            wanted = tree.get("$include", [])
            for one in wanted if isinstance(wanted, list) else [wanted]:
                if not isinstance(one, str):
                    continue
                part = self._include(one, self.path, "$include", "", (real,), 0)
                for below in keys[number:]:
                    part = part.get(below, _NOTHING) if isinstance(part, dict) else _NOTHING
                if part is not _NOTHING:
                    return one
            tree = tree.get(key)
        return None


def read_file(path: str) -> bytes | None:
    """The bytes of a configuration file, None where it is missing. Raises ConfigError."""
    try:
        return read_bounded(path, MAX_FILE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None


def merge(under: Any, over: Any) -> Any:
    """`over` laid over `under`: objects key by key, lists one after the other (as the original does), all else replaced."""
    if isinstance(under, dict) and isinstance(over, dict):
        return {**under, **{key: merge(under[key], value) if key in under else value for key, value in over.items()}}
    if isinstance(under, list) and isinstance(over, list):
        return [*under, *over]
    return over


def literal(text: str) -> str:
    """The text as it must stand in a file so that it is not taken for an environment variable."""
    return text.replace("${", "$${")


def substitute(tree: Any, environ: Mapping[str, str], name: str, path: str = "") -> Any:
    """A copy of the tree with each `${NAME}` in its texts replaced; `$${NAME}` is the text `${NAME}`. Raises ConfigError naming the key path."""
    if isinstance(tree, dict):
        return {key: substitute(value, environ, name, join(path, key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return [substitute(value, environ, name, f"{path}[{number}]") for number, value in enumerate(tree)]
    if not isinstance(tree, str) or "${" not in tree:
        return tree

    def replaced(match: re.Match[str]) -> str:
        if match[1]:
            return match[0][1:]
        value = environ.get(match[2], "")
        if not value:
            raise ConfigError(f"{name}: {path}: the environment variable {match[2]} is missing or empty")
        return value

    return _VARIABLE.sub(replaced, tree)
