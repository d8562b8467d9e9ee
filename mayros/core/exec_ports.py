"""The seams of commands: the exact request that somebody allows, the rules that are kept, and who judges."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from mayros.core.audit_ports import AuditEntry
from mayros.core.tool_ports import ToolContext

#: What may run at all: nothing, what is on a list, anything.
ExecSecurity = Literal["deny", "allowlist", "full"]


#: When a person is asked: never, when the list does not have it, every time.
ExecAsk = Literal["off", "on-miss", "always"]


class ExecRequest(msgspec.Struct, frozen=True):
    """A command that a model wants to run, exactly as it would run: whoever allows it allows this and nothing else.

    `cwd` is a real path; `env` is what the call adds to the environment, sorted by name. `security` and `ask` are what the call asks for (None:
    nothing), and may only make the configured rules stricter. `analysed`: the command line was understood as parts that start one executable each.
    `resolved` are then the real paths of those executables that must be on the list: parts that only use safe binaries are not among them.
    """

    command: str
    cwd: str
    env: tuple[tuple[str, str], ...]
    agent_id: str
    session: str
    pty: bool = False
    background: bool = False
    security: ExecSecurity | None = None
    ask: ExecAsk | None = None
    resolved: tuple[str, ...] = ()
    analysed: bool = False


class ExecPolicy(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Rules for commands that are kept in the store, for one agent or for all; None: not set. `auto_allow_skills` is kept and has no effect."""

    security: ExecSecurity | None = None
    ask: ExecAsk | None = None
    ask_fallback: ExecSecurity | None = None
    auto_allow_skills: bool | None = None


class AllowedExec(msgspec.Struct, frozen=True):
    """One pattern of an agent's list of allowed programs, and when it was last of use."""

    id: str
    agent_id: str
    pattern: str
    last_used_ms: int | None = None
    last_command: str | None = None
    last_resolved: str | None = None


class ExecRulesStore(Protocol):
    """Rules for commands on disk, durable when the Awaitable is done. All raise StorageUnavailable; nothing here decides anything."""

    def load(self) -> Awaitable[tuple[Sequence[AllowedExec], Mapping[str, ExecPolicy]]]:
        """All lists, and the policies by agent id."""
        ...

    def save(self, entry: AllowedExec) -> Awaitable[None]:
        """One entry: new, or in the place of the one with its id."""
        ...

    def replace(self, entries: Sequence[AllowedExec], policies: Mapping[str, ExecPolicy], audit: AuditEntry | None = None) -> Awaitable[None]:
        """Everything anew, in one transaction with the row that tells of it."""
        ...


class Permission(Protocol):
    """Whether a command may run."""

    async def allow(self, request: ExecRequest, context: ToolContext) -> None:
        """Return where it may, after a person was asked if need be. Raises ToolFailed: why not, and what the model can do."""
        ...
