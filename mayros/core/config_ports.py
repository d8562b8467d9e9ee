"""The seam of the configuration: what is in force, how it is seen, and how it is changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec

from mayros.core.routing import Settings


class Applied(msgspec.Struct, frozen=True):
    """What a write to the configuration did: key paths in force now, and those that wait for a restart."""

    hash: str
    hot: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


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


class NotInFile(Exception):
    """Raised by an edit: the value at these keys is not in the file itself. `ConfigControl.write` then says where it comes from."""

    def __init__(self, *keys: str) -> None:
        super().__init__(".".join(keys))
        self.keys = keys


class ConfigControl(Protocol):
    """The configuration in force. A request or a run reads `current` once, at its start."""

    @property
    def current(self) -> Settings: ...

    def source(self) -> Awaitable[ConfigSource]:
        """The file, read off the reactor. Raises InvalidRequest where it cannot be read."""
        ...

    def view(self) -> Awaitable[ConfigView]:
        """The file for clients, read off the reactor."""
        ...

    def write(self, edit: Callable[[dict[str, Any]], None], base_hash: str | None = None) -> Awaitable[Applied]:
        """Change the file: `edit` changes the tree as the file itself has it (without includes and substitution), what it leaves alone keeps its
        text and comments. Checked as at the start before it is written; a change of `agents` is in force at once. Writes are serial.

        Raises InvalidRequest: the file changed since `base_hash`, the result is not valid, or the change is in an included file; what `edit`
        raises; StorageUnavailable: it cannot be written. File and settings are then as they were. Cancelling only stops the waiting.
        """
        ...

    def changed(self, callback: Callable[[Settings], None]) -> Callable[[], None]:
        """Hear of each new reading; call the result to stop."""
        ...
