"""The seam of conversations as lists and clients see them; what a run needs of them is TurnStore in ports.py."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Protocol

import msgspec

from mayros.core.keys import SessionKey
from mayros.core.ports import SessionSettings
from mayros.events import FinishReason, Outcome, Usage


class SessionRow(msgspec.Struct, frozen=True):
    """One session as lists show it. Tokens are sums over its current session id's turns; `last_*` are of its newest turn."""

    key: str
    agent_id: str
    session_id: str
    created_ms: int
    updated_ms: int
    turns: int
    stateless: bool
    settings: SessionSettings
    input_tokens: int
    output_tokens: int
    last_outcome: Outcome | None = None
    last_model: str | None = None
    last_usage: Usage | None = None
    #: Of `input_tokens`, those that were read from and written to a provider's cache; and what all cost, in US dollars / 10^9.
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost_nano: int = 0
    #: The first user message and the newest message, cut; only where the query asked.
    title: str | None = None
    preview: str | None = None


class SessionQuery(msgspec.Struct, frozen=True):
    """What `Sessions.list` gives: newest first, at most `limit` (1-1000)."""

    limit: int = 200
    active_since_ms: int | None = None
    agent_id: str | None = None
    label: str | None = None
    spawned_by: str | None = None
    session_id: str | None = None
    search: str | None = None
    titles: bool = False
    previews: bool = False
    #: Only those in this name space (core/reach.py).
    space: str | None = None


class EntryMeta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is kept beside an assistant message; only what is set."""

    outcome: Outcome | None = None
    finish_reason: FinishReason | None = None
    usage: Usage = Usage()
    provider: str | None = None
    model: str | None = None
    door: str | None = None
    metadata: dict[str, str] | None = None
    error_code: str | None = None
    #: Written by the gateway and not by a model: `inject`, `command`.
    origin: str | None = None


class Entry(msgspec.Struct, frozen=True):
    """One message of a transcript, oldest first; `message` is canonical."""

    id: int
    run_id: str
    message: msgspec.Raw
    created_ms: int
    meta: EntryMeta | None = None


class Transcript(msgspec.Struct, frozen=True):
    """The newest entries of a session, oldest first; everything that was recorded, also what prompts leave out."""

    row: SessionRow
    entries: tuple[Entry, ...]


class Sessions(Protocol):
    """The sessions there are. Whoever changes one that may have live runs holds its lane. All raise StorageUnavailable."""

    def list(self, query: SessionQuery) -> Awaitable[Sequence[SessionRow]]: ...

    def count(self) -> Awaitable[int]: ...

    def get(self, key: str) -> Awaitable[SessionRow | None]: ...

    def transcript(self, key: str, limit: int) -> Awaitable[Transcript | None]:
        """The newest `limit` entries; None where there is no such session."""
        ...

    def patch(self, key: SessionKey, changes: Mapping[str, object]) -> Awaitable[SessionRow]:
        """Set settings by their Python field names; None clears. Makes the session where it is missing. Raises InvalidRequest: label in use."""
        ...

    def reset(self, key: SessionKey) -> Awaitable[SessionRow]:
        """A new session id under the same key; settings stay, counters begin anew, the old entries stay in the store."""
        ...

    def delete(self, key: SessionKey) -> Awaitable[bool]:
        """The session and all its entries; False where there was none."""
        ...

    def append(self, key: SessionKey, message: msgspec.Raw, run_id: str, meta: EntryMeta) -> Awaitable[Entry]:
        """Add a message that no run made. The session is made where it is missing."""
        ...
