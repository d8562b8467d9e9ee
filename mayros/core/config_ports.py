"""The seam of the configuration: what is in force, how it is seen, and how it is changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec

from mayros.core.routing import Settings
from mayros.errors import InvalidRequest


class Applied(msgspec.Struct, frozen=True):
    """What a new reading of the configuration did: key paths in force now, and all that wait for a restart. `hash` is empty after `reload`.

    `changed`: what is another in the file since this change, or this reading.
    """

    hash: str
    hot: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


class ConfigState(msgspec.Struct, frozen=True):
    """How the last reading of the file went. Times are milliseconds since the epoch; `reloads` counts by outcome: `ok`, `unchanged`, `failed`.

    `problem`: why the file as it is now is not in force; the last good one is then. `restart`: what is in the file and waits.
    """

    loaded_at_ms: int
    restart: tuple[str, ...] = ()
    problem: str | None = None
    problem_at_ms: int | None = None
    reloads: Mapping[str, int] = {}


class ConfigSource(msgspec.Struct, frozen=True):
    """The configuration file as it is: its text (None: there is no file) and the SHA-256 of that text, in hexadecimal."""

    path: str
    text: str | None
    hash: str


class ConfigIssue(msgspec.Struct, frozen=True):
    """What is wrong with the configuration, or ignored; `path` is the key path, empty where it is the file as a whole."""

    path: str
    message: str


class ConfigView(msgspec.Struct, frozen=True):
    """The configuration file as clients may see it: no secret is in it.

    `raw` is the text (None: there is none, or it cannot be read as JSON5), `parsed` what it says, `resolved` the same with includes and substitution,
    `config` with all defaults. Empty where it is not `valid`.
    """

    path: str
    exists: bool
    hash: str
    raw: str | None
    parsed: dict[str, Any]
    resolved: dict[str, Any]
    config: dict[str, Any]
    valid: bool
    issues: tuple[ConfigIssue, ...]
    warnings: tuple[ConfigIssue, ...]


class Whole(msgspec.Struct, frozen=True):
    """A change of the file: this text instead of all of it. Values that are hidden in it are the file's own."""

    text: str


class Merge(msgspec.Struct, frozen=True):
    """A change of the file: this object (JSON5) is laid over it; null takes a key away, lists of objects with ids are merged by these."""

    text: str


#: Or a function that changes the tree of the file.
Change = Callable[[dict[str, Any]], None] | Whole | Merge


class InvalidConfig(InvalidRequest):
    """The configuration would not be valid; `issue` says where."""

    def __init__(self, message: str, issue: ConfigIssue) -> None:
        super().__init__(message)
        self.issue = issue


class NotInFile(Exception):
    """Raised by an edit: the value at these keys is not in the file itself. `ConfigControl.write` then says where it comes from."""

    def __init__(self, *keys: str) -> None:
        super().__init__(".".join(keys))
        self.keys = keys


class ConfigControl(Protocol):
    """The configuration in force. A request or a run reads `current` once, at its start."""

    @property
    def current(self) -> Settings: ...

    @property
    def state(self) -> ConfigState:
        """How the last reading went."""
        ...

    def source(self) -> Awaitable[ConfigSource]:
        """The file, read off the reactor. Raises InvalidRequest where it cannot be read."""
        ...

    def view(self) -> Awaitable[ConfigView]:
        """The file for clients, read off the reactor."""
        ...

    def write(self, change: Change, base_hash: str | None = None) -> Awaitable[Applied]:
        """Change the file: a function changes the tree as the file itself has it (without includes and substitution); what it leaves alone keeps its
        text and comments. Checked as at the start before it is written; what is hot (config/reloadable.py) is in force at once. Writes are serial.

        Raises InvalidRequest: the file changed since `base_hash`, or the change is in an included file; InvalidConfig; what a function raises;
        StorageUnavailable: it cannot be written. File and settings are then as they were. Cancelling only stops the waiting.
        """
        ...

    def reload(self, *, hold: bool = False) -> Awaitable[Applied]:
        """Read the file again, and put in force what is hot; nothing with `hold`. Raises InvalidConfig: the last good one stays, see `state`."""
        ...

    def changed(self, callback: Callable[[Settings], None]) -> Callable[[], None]:
        """Hear of each new reading; call the result to stop."""
        ...
