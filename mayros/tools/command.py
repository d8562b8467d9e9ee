"""What a command line would run, as far as that can be known before it runs. Imports nothing of ours.

Only the plainest lines can be analysed: words and quotes, parts joined by `&&`, `||`, `;`, `|` and line ends. Whatever could run something that is
not seen here (substitutions, redirections, groups, functions, assignments, words of the shell itself) is refused, also where it is harmless; so is
what shells read in different ways. A line that cannot be analysed can still be allowed by a person, who reads it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

import msgspec

from mayros.tools.safebins import DEFAULT, harmless

#: Where a program must lie to be the one that its name promises.
TRUSTED = ("/bin", "/usr/bin")
_RESERVED = "! [[ ]] { } case coproc do done elif else esac fi for function if in select then time until while"
_BUILT_IN = """
    . : alias bg break builtin cd command continue declare disown enable eval exec exit export fc fg getopts hash help history jobs let local logout
    mapfile popd pushd read readarray readonly return set shift shopt source suspend times trap type typeset ulimit umask unalias unset wait
"""
_SPECIAL = frozenset((_RESERVED + _BUILT_IN).split())
#: Programs that shells have inside as well, where an argument can run something (`test -v 'a[$(x)]'`).
_DOUBLE = frozenset({"[", "printf", "test"})
_VARIABLE = re.compile(r"\$(?:\{[A-Za-z_][A-Za-z0-9_]*\}|[A-Za-z_][A-Za-z0-9_]*)")
_BLANK = " \t"
#: Outside of quotes these make more of a word than what is written.
_EXPANDED = "*?[]{}~"


class Word(msgspec.Struct, frozen=True):
    """One word. `literal`: it is exactly `text`; else the shell puts something in or makes several of it."""

    text: str
    literal: bool


class Segment(msgspec.Struct, frozen=True):
    """One simple command. `executable` is a real path; `safe`: it can only work on what it is given on its input."""

    words: tuple[Word, ...]
    executable: str
    safe: bool = False


class Analysis(msgspec.Struct, frozen=True):
    """The parts of a command line, in order; or, with no segments, `why_not`: why they cannot be known."""

    segments: tuple[Segment, ...] = ()
    why_not: str | None = None

    @property
    def resolved(self) -> tuple[str, ...]:
        """The real paths of the executables, one for each part."""
        return tuple(segment.executable for segment in self.segments)

    @property
    def safe(self) -> bool:
        """Whether each part is a safe program used in a safe way."""
        return bool(self.segments) and all(segment.safe for segment in self.segments)


class _Refused(Exception):
    pass


def analyse(text: str, cwd: str, path: str, safe_bins: Sequence[str] = DEFAULT) -> Analysis:
    """Take a command line apart. `cwd` is absolute; `path` is the PATH that the command would get. Looks at the file system, raises nothing."""
    try:
        parts = split(text)
        return Analysis(tuple(_segment(words, cwd, path, safe_bins) for words in parts))
    except _Refused as why:
        return Analysis(why_not=str(why))


def split(text: str) -> list[list[Word]]:
    """The words of each part. Pure."""
    reader = _Reader(text)
    reader.read()
    return reader.parts


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.parts: list[list[Word]] = []
        self._at = 0
        self._words: list[Word] = []
        self._word: list[str] | None = None
        self._literal = True
        self._must_follow = False

    def read(self) -> None:
        text = self.text
        if (found := re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)) is not None:
            raise _Refused(f"it holds the control character {found.group()!r}")
        steps: dict[str, Callable[[], None]] = {"'": self._single, '"': self._double, "\\": self._escape, "$": self._dollar}
        while self._at < len(text):
            char = text[self._at]
            if char in steps:
                steps[char]()
            elif char in _BLANK:
                self._end_word()
                self._at += 1
            elif char in "&|;\n":
                self._operator(char)
            elif char in "<>":
                raise _Refused("it redirects input or output")
            elif char in "()":
                raise _Refused("it groups commands or defines a function")
            elif char == "`":
                raise _Refused("it runs another command inside (backticks)")
            elif char == "#" and self._word is None:
                raise _Refused("it holds a comment")
            else:
                self._put(char, literal=char not in _EXPANDED)
                self._at += 1
        self._end_part(required=self._must_follow or not self.parts)

    def _put(self, text: str, *, literal: bool = True) -> None:
        if self._word is None:
            self._word, self._literal = [], True
        self._word.append(text)
        self._literal = self._literal and literal

    def _end_word(self) -> None:
        if self._word is not None:
            self._words.append(Word("".join(self._word), self._literal))
            self._word = None

    def _end_part(self, *, required: bool) -> None:
        self._end_word()
        if self._words:
            self.parts.append(self._words)
            self._words = []
        elif required:
            raise _Refused("a command is missing")

    def _operator(self, char: str) -> None:
        double = self.text.startswith(char * 2, self._at)
        if char == "&" and not double:
            raise _Refused("it starts something in the background with `&`")
        self._at += 2 if double and char in "&|" else 1
        if char == "\n" and self._word is None and not self._words:
            return  # an empty line, or one that goes on after an operator
        self._end_part(required=True)
        self._must_follow = char in "&|"

    def _single(self) -> None:
        end = self.text.find("'", self._at + 1)
        if end < 0:
            raise _Refused("a quote is not closed")
        self._put(self.text[self._at + 1 : end])
        self._at = end + 1

    def _double(self) -> None:
        text = self.text
        self._put("")
        self._at += 1
        while self._at < len(text) and (char := text[self._at]) != '"':
            if char == "`":
                raise _Refused("it runs another command inside (backticks)")
            if char == "$":
                self._dollar(quoted=True)
                continue
            if char == "\\" and text[self._at + 1 : self._at + 2] in ("$", "`", '"', "\\"):
                self._at += 1
                char = text[self._at]
            elif char == "\\" and text[self._at + 1 : self._at + 2] == "\n":
                raise _Refused("it continues a line with a backslash")
            self._put(char)
            self._at += 1
        if self._at >= len(text):
            raise _Refused("a quote is not closed")
        self._at += 1

    def _escape(self) -> None:
        following = self.text[self._at + 1 : self._at + 2]
        if following in ("", "\n"):
            raise _Refused("it continues a line with a backslash")
        self._put(following)
        self._at += 2

    def _dollar(self, *, quoted: bool = False) -> None:
        following = self.text[self._at + 1 : self._at + 2]
        if following == "(":
            raise _Refused("it runs another command inside, `$(...)`")
        if (found := _VARIABLE.match(self.text, self._at)) is not None:
            self._put(found.group(), literal=False)
            self._at = found.end()
        elif following in ("", " ", "\t", "\n", "/", ".", ",", ":") or (quoted and following == '"'):
            self._put("$")  # a dollar sign
            self._at += 1
        else:
            raise _Refused("it holds an expansion with `$` that is more than a variable's name")


def _segment(words: Sequence[Word], cwd: str, path: str, safe_bins: Sequence[str]) -> Segment:
    name, arguments = words[0], words[1:]
    if not name.literal:
        raise _Refused(f"which program `{name.text}` is depends on an expansion")
    if "=" in name.text:
        raise _Refused("it sets a variable in front of a command; use `env` of the call")
    if name.text in _SPECIAL:
        raise _Refused(f"`{name.text}` is a word of the shell itself and no program")
    if name.text in _DOUBLE and any(not word.literal or word.text == "-v" for word in arguments):
        raise _Refused(f"`{name.text}` is used with more than plain words")
    found = _find(name.text, cwd, path)
    literal = all(word.literal for word in arguments)
    bare = os.path.basename(found)
    trusted = os.path.dirname(found) in TRUSTED and os.path.dirname(os.path.realpath(found)) in TRUSTED
    safe = literal and trusted and "/" not in name.text and bare in safe_bins and harmless(bare, [word.text for word in arguments])
    return Segment(tuple(words), os.path.realpath(found), safe)


def _find(name: str, cwd: str, path: str) -> str:
    """The file that the shell would run, before links are followed."""
    for folder in [""] if "/" in name else path.split(os.pathsep):
        place = os.path.join(cwd, folder, name)
        if os.path.isfile(place) and os.access(place, os.X_OK):
            return place
    raise _Refused(f"there is no program `{name}`")
