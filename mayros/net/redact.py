"""What is never shown: known secrets, and what looks like one. One rule for logs, errors and what tools give. Pure; imports net.lookalikes.

Hidden is the secret itself; the words around it stay (`token=***`), so that JSON stays JSON. A text that comes in pieces is hidden as if it had come
whole: what may be the beginning of a secret waits for what follows (`Stream`), and a part of a text is looked at with its surroundings (`window`).
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote, quote_plus

from mayros.net.lookalikes import (
    BEFORE_REACH,
    PATTERNS,
    PEM_BEGIN,
    PEM_BEGINS,
    PEM_END,
    PEM_HEAD,
    PEM_LINE,
    PEM_MAX,
    PEM_WORD,
    WAITS_REACH,
    WORD_REACH,
    Pattern,
)

HIDDEN = "***"
#: A shorter text is no secret (local servers take any key), and hiding it would make every text unreadable.
LEAST_SECRET = 8
#: Characters shown of a stranger's own words.
SHORT_MAX = 300

#: Somewhere in a name it makes a secret of what the name stands for.
SECRET_WORD = re.compile(
    r"token|secret|password|passwd|passphrase|credential|authorization|cookie|(?:api|access|private)[_-]?key|(?-i:KEYS?)$", re.IGNORECASE
)
#: Names that look like a secret's and are counts, places, names of headers or switches.
_HARMLESS = re.compile(
    r"(?:max|context|run|day)tokens|tokens|maxcompletiontokens|tokenizers?|tokenizers?_.*|allowrequestsessionkey|.*_(?:dir|directory|file|path)",
    re.IGNORECASE,
)
_SMALL = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def names_secret(name: str) -> bool:
    """Whether a variable of the environment, or a key of the configuration, holds a secret by its name."""
    return SECRET_WORD.search(name) is not None and _HARMLESS.fullmatch(name) is None


def secret_values(environ: Mapping[str, str]) -> list[str]:
    """The secrets of an environment."""
    return [value for name, value in environ.items() if names_secret(name)]


class Redactor:
    """Takes secrets out of text: the known ones exactly (also as a URL or JSON holds them), and what looks like one."""

    def __init__(self, secrets: Iterable[str | None] = ()) -> None:
        self._secrets: set[str] = set()
        self._forms: Sequence[str] = ()
        #: How many characters before and after a part of a text tell what of it is hidden.
        self.reach = 0
        self.know(*secrets)

    def know(self, *secrets: str | None) -> None:
        """Hide these as well from now on, but in streams that have begun."""
        self._secrets.update(secret for secret in secrets if secret and len(secret) >= LEAST_SECRET)
        forms = {form for secret in self._secrets for form in _forms(secret) if len(form) >= LEAST_SECRET}
        self._forms = sorted(forms, key=lambda form: (-len(form), form))
        self.reach = max([PEM_MAX + 2 * PEM_LINE, *map(len, forms)])

    def __repr__(self) -> str:
        return "<Redactor>"

    def __call__(self, text: str) -> str:
        """The text with each secret replaced by `***`."""
        return self.stream().feed(text, final=True)

    def lines(self, text: str) -> str:
        """The text without secrets and with all its lines: a secret of several lines is hidden in each of them."""
        pieces, at = [], 0
        for start, end in self.stream().scan(text, 0, final=True)[0]:
            pieces += [text[at:start], HIDDEN, f"\n{HIDDEN}" * text.count("\n", start, end)]
            at = end
        return "".join([*pieces, text[at:]])

    def short(self, text: str) -> str:
        """Someone else's words for one of our messages: one line without control characters and secrets, at most 300 characters."""
        shown = self("".join(character for character in " ".join(text.split()) if character.isprintable()))
        return shown if len(shown) <= SHORT_MAX else shown[: SHORT_MAX - 3] + "..."

    def stream(self) -> Stream:
        """For one text that comes in pieces."""
        return Stream(self._forms)

    def window(self, text: str, begin: int, end: int, *, ended: bool = True) -> str:
        """`text[begin:end]` as the whole text would show it. Where the text has not `ended`, what may be the beginning of a secret is left out."""
        start, stop = max(0, begin - self.reach), min(len(text), end + self.reach)
        part = text[start:stop]
        hidden, told = self.stream().scan(part, 0, final=ended or stop < len(text))
        return _shown(part, hidden, begin - start, min(end - start, told), fresh=True)


class Stream:
    """One text in pieces: `feed` them, then `end`. What comes out is, put together, what `Redactor` makes of the whole.

    Held back is only what may be the beginning of a secret: of a known one as much as is there, after a word such as `token=` a few characters (1,300
    at most). From the first line of a private key on everything is hidden, up to its last line or for 16 KB.
    """

    def __init__(self, forms: Sequence[str]) -> None:
        self._forms = forms
        self._before = ""  # the end of what was told: the word before a secret may be there
        self._held = ""
        self._skip = 0  # of what is held, so much belongs to a secret whose stars are written
        self._running: list[Pattern] = []  # whose run goes on where what is held begins
        self._after = [0] * len(forms)  # from there on each known secret is looked for
        self._key = 0  # so much of a private key may still come
        self._key_from = 0  # and the next one is looked for from there on

    def feed(self, text: str, *, final: bool = False) -> str:
        """More of the text; what of it, and of what was held back, can be shown."""
        base, text = len(self._before), self._before + self._held + text
        hidden, told = self.scan(text, base, final)
        self._before, self._held = text[max(0, told - BEFORE_REACH) : told], text[told:]
        return _shown(text, hidden, base, told, fresh=False)

    def end(self) -> str:
        """The text is over: the rest of it."""
        return self.feed("", final=True)

    def scan(self, text: str, base: int, final: bool) -> tuple[list[tuple[int, int]], int]:
        """What is hidden of a text that was told up to `base`, in order and not overlapping; and up to where that is certain."""
        size, waits = len(text), [len(text)]
        runs = [(pattern, -1, _end(pattern, text, base)) for pattern in self._running]
        begun = max([base + self._skip, *(end for _, _, end in runs)])
        spans = [(-1, begun)] if begun > base else []
        known: list[list[int]] = []  # where each known secret is
        for form, after in zip(self._forms, self._after, strict=True):
            at = base + after
            known.append([])
            while (found := text.find(form, at)) >= 0:
                at = found + len(form)
                known[-1].append(found)
                spans.append((found, at))
            if not final:
                waits.append(_begins(form, text, at))
        runs += self._lookalikes(text, base, final, waits)
        spans += [(max(start, base), end) for _, start, end in runs if end > base]
        key_begin, key_from, key_end = self._keys(text, base, final, spans, waits)
        told = size if final else min(waits)
        hidden = _merged(spans)
        self._skip = max([0, *(end - told for start, end in hidden if start < told)])
        self._running = list(dict.fromkeys(run for run, start, end in runs if run.goes_on and start < told and (end > told or end == size)))
        # What is not told yet is looked at again.
        self._after = [
            max([0, after + base - told, *(at + len(form) - told for at in places if at < told)])
            for form, after, places in zip(self._forms, self._after, known, strict=True)
        ]
        self._key = max(0, key_end - told) if told > key_begin else 0
        self._key_from = max(0, key_from - told)
        return hidden, told

    def _lookalikes(self, text: str, base: int, final: bool, waits: list[int]) -> Iterable[tuple[Pattern, int, int]]:
        """What is a secret by its form; adds to `waits`."""
        size, small = len(text), text.lower()
        if len(small) != size:  # a few letters become two; none of ours
            small = text.translate(_SMALL)
        first = WORD_REACH if base >= BEFORE_REACH else 0
        for pattern in PATTERNS:
            for word in pattern.words:
                where = small if word.islower() or not word.isalpha() else text
                at = where.find(word, first)
                while at >= 0:
                    match = pattern.find.match(text, at)
                    if match is not None:
                        yield pattern, *match.span(1)
                        at = where.find(word, match.end())
                        continue
                    if not final and at >= size - WAITS_REACH and (some := pattern.waits.match(text, at)) is not None:
                        waits.append(max(base, some.start(1)))
                    at = where.find(word, at + 1)

    def _keys(self, text: str, base: int, final: bool, spans: list[tuple[int, int]], waits: list[int]) -> tuple[int, int, int]:
        """Private keys: adds to `spans` and `waits`. Where one that is not over begins, where to look for the next, and where it must end."""
        size, at = len(text), base + self._key_from
        begin, body, left = base - 1, base, self._key
        while True:
            if not left:
                match = PEM_BEGIN.search(text, at) if PEM_WORD in text else None
                if match is None:
                    if not final:
                        some = PEM_BEGINS.search(text, max(at, size - PEM_LINE))
                        waits.append(_begins(PEM_HEAD, text, at) if some is None else some.start())
                    return size, at, 0
                begin, body, left = match.start(), match.end(), PEM_MAX
            stop = body + left
            last = PEM_END.search(text, body, stop + PEM_LINE)
            end = last.end() if last is not None else min(size, stop)
            spans.append((begin, end))
            if last is None and not final and size < stop + PEM_LINE:
                # Its last line may have begun.
                waits.append(max(body, end - PEM_LINE))
                return begin, begin, stop
            at, left = end, 0


def _shown(text: str, hidden: Iterable[tuple[int, int]], begin: int, end: int, *, fresh: bool) -> str:
    """A part of a text with stars for what is hidden; for what began before the part only where nothing was shown before it (`fresh`)."""
    pieces, at = [], begin
    for start, stop in hidden:
        if stop <= begin:
            continue
        if start >= end:
            break
        if start >= begin or fresh:
            pieces += [text[at : max(at, start)], HIDDEN]
        at = stop
    return "".join([*pieces, text[at:end]])


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        elif start < end:
            merged.append((start, end))
    return merged


def _end(pattern: Pattern, text: str, position: int) -> int:
    match = pattern.more.match(text, position)
    return position if match is None else match.end()


def _begins(form: str, text: str, position: int) -> int:
    """Where, from `position` on, the end of the text is the beginning of `form`; the length of the text where it is not."""
    size = len(text)
    start, head = max(position, size - len(form) + 1), form[:3]
    at = text.find(head, start)
    while at >= 0:
        if form.startswith(text[at:]):
            return at
        at = text.find(head, at + 1)
    return next((size - some for some in (2, 1) if size - some >= start and text.endswith(form[:some])), size)


def _forms(secret: str) -> Iterable[str]:
    """A secret as it stands in texts: itself, without blanks around it, and as a URL, a form and JSON hold it."""
    for form in (secret, secret.strip()):
        yield form
        yield quote(form, safe="", errors="surrogateescape")
        yield quote_plus(form, errors="surrogateescape")
        yield form.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
