"""What looks like a secret: the forms of keys and tokens, by what stands before them and what they are made of. Pure; imports nothing of ours."""

from __future__ import annotations

import re
from functools import cached_property


class Pattern:
    """A secret by its form: a run of at least `least` of `letters`, after `before`, which itself may be shown.

    `words`: `before` begins with one of these; small letters mean any case. `sign`: what the first characters of the run must look like besides.
    `value`: the run, where it is more than a number of letters. `waits`: what, at the end of a text, may still become one; 1,300 characters at
    most. A run that holds its own `before` again is gone through `once`, or that would take long.
    """

    def __init__(
        self, words: str, before: str, letters: str, least: int, *, sign: str = "", value: str = "", waits: str = "", once: bool = False
    ) -> None:
        self.words = tuple(words.split())
        found = sign + (value or f"{letters}{{{least},}}")
        #: To be matched where a word is; its first group is the secret.
        self.find = re.compile(f"{before}({found})" if once else f"{before}(?=({found}))")
        self.goes_on = bool(letters)
        self._letters = letters
        self._waits = f"{before}(?=({waits or f'{letters}{{0,{least - 1}}}'})\\Z)"

    @cached_property
    def waits(self) -> re.Pattern[str]:
        """Matches, where a word is, if the text ends inside of a secret that cannot be told yet; its first group is what there is of that."""
        return re.compile(self._waits)

    @cached_property
    def more(self) -> re.Pattern[str]:
        """What goes on with a run."""
        return re.compile(f"{self._letters}*")


_KEY, _CODE, _JWT = r"[\w*.-]", r"[\w.~+/=*-]", "[A-Za-z0-9_-]"
_NAMED, _SEPARATED = "[A-Za-z0-9_./+-]", "[=:\"' ]{1,4}"
_BASIC = r"(?i:basic)\s{1,64}"

PATTERNS = (
    Pattern("bearer", r"(?i:bearer)\s{1,64}", r"[^\s\"']", 1),
    Pattern("authorization", r"(?i:authorization)[\"']?\s?[:=]\s?[\"']?" + _BASIC, _CODE, 1),
    # Elsewhere only what is no word: with a digit or such, or with capitals inside of it twice.
    Pattern("basic", r"\b" + _BASIC, _CODE, 6, waits=_CODE + "{0,26}",
            sign=r"(?=[\w.~+/=*-]{0,23}[0-9=*+~_]|[A-Za-z./-]{0,10}[a-z][A-Z][A-Za-z./-]{0,10}[a-z][A-Z])"),
    Pattern("k-", r"(?<=\b[Ss])[Kk]-", _KEY, 6, once=True),
    # With a digit: `sk_` and its like are in many a name of a program.
    Pattern("k- k_", r"(?:(?<=\b[PpRrSs])|(?<=\b[Gg][Ss]))[Kk][-_]", _KEY, 6, sign=r"(?=[\w*.-]{0,23}[0-9*])", waits=_KEY + "{0,24}", once=True),
    Pattern("xai", r"\b(?i:xai)[-_]", _KEY, 6, sign=r"(?=[\w*.-]{0,23}[0-9*])", waits=_KEY + "{0,24}", once=True),
    Pattern("gh", r"\bgh[pousr]_", "[A-Za-z0-9]", 8, once=True),
    Pattern("github_pat_", r"\bgithub_pat_", r"\w", 8, once=True),
    Pattern("mgt_", r"\bmgt_", _JWT, 16, once=True),
    Pattern("xox", r"\bxox[abprs]-", "[A-Za-z0-9-]", 8, once=True),
    Pattern("AKIA", r"\bAKIA", "[A-Z0-9]", 12, once=True),
    Pattern("AIza", r"\bAIza", _JWT, 20, once=True),
    Pattern("eyJ", r"\beyJ", "[A-Za-z0-9_.-]", 0, value=rf"{_JWT}{{8,1024}}+\.{_JWT}{{8,}}+[A-Za-z0-9_.-]*",
            waits=rf"{_JWT}{{0,1024}}+(?:\.{_JWT}{{0,7}})?", once=True),
    *(Pattern(word, f"(?i:{word})" + _SEPARATED, _NAMED, 12) for word in ("token", "secret", "password")),
    Pattern("api", "(?i:api.?key)" + _SEPARATED, _NAMED, 12),
    Pattern("//", "//", "", 0, value=r"[^/\s:@]{1,256}+:[^/\s@]{1,1024}+(?=@)", waits=r"[^/\s:@]{0,256}+(?::[^/\s@]{0,1024})?"),
)  # fmt: skip
#: As much of the end of a text as a `waits` can need.
WAITS_REACH = 1_400
#: As much before a secret as a `before` can need; and before that, to see where a word begins.
BEFORE_REACH, WORD_REACH = 256, 4

PEM_HEAD, PEM_WORD = "-----BEGIN ", "PRIVATE KEY-----"
PEM_BEGIN = re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----")
#: The beginning of one, after its head.
PEM_BEGINS = re.compile(r"-----BEGIN [A-Z ]{0,51}-{0,4}\Z")
PEM_END = re.compile(r"-----END [A-Z ]{0,40}PRIVATE KEY-----")
#: Characters of such a line at most; and of a block that are hidden where no last line comes.
PEM_LINE, PEM_MAX = 72, 16_384
