"""The seams of the agents' own files: for the prompt, and for clients that look after them."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

import msgspec

from mayros.core.routing import Agent

#: Once in a new workspace; the model deletes it. In a prompt only where it is there, and the run can do what it asks for.
BOOTSTRAP = "BOOTSTRAP.md"


class Workspace(Protocol):
    """The agents' own files, for the prompt."""

    def files(self, agent: Agent) -> Awaitable[Sequence[WorkspaceFile]]:
        """The texts in prompt order; read off the reactor, at most a second old. Raises nothing: what cannot be read is missing."""
        ...


class WorkspaceFile(msgspec.Struct, frozen=True):
    """One workspace file. `text` None: it is missing. At most 2 MiB are read."""

    name: str
    path: str
    text: str | None


class Skill(msgspec.Struct, frozen=True):
    """A folder with instructions for one kind of task; `path` is that of its SKILL.md."""

    name: str
    description: str
    path: str


class Skills(Protocol):
    """What the agents know how to do, for the prompt."""

    def skills(self, agent: Agent) -> Awaitable[Sequence[Skill]]:
        """The skills that the agent may use, by name; looked for off the reactor, a few seconds old. Raises nothing."""
        ...


class AgentFile(msgspec.Struct, frozen=True):
    """A file of an agent's workspace, by name. `size` is in bytes; `text` only where it was asked for."""

    name: str
    path: str
    missing: bool
    size: int | None = None
    updated_ms: int | None = None
    text: str | None = None


class AgentFiles(Protocol):
    """The agents' workspaces, for clients that look after them. Nothing is read or written outside of a workspace, also not by symlinks.

    All raise InvalidRequest for what cannot be that, and StorageUnavailable where the disk fails.
    """

    def list(self, workspace: str, names: Sequence[str]) -> Awaitable[Sequence[AgentFile]]:
        """Which of these there are."""
        ...

    def read(self, workspace: str, name: str) -> Awaitable[AgentFile]:
        """One file with its text; `missing` where there is none."""
        ...

    def write(self, workspace: str, name: str, text: str) -> Awaitable[AgentFile]:
        """Replace one file, durably and as a whole, mode 0600."""
        ...

    def make(self, workspace: str, starter: bool, identity: str) -> Awaitable[str]:
        """Make a folder as a workspace, with starter files where it has none and they are wanted, and `identity` as IDENTITY.md of these.

        The absolute path. A folder that must not be one (the home directory, the gateway's own state, `/`) is refused.
        """
        ...

    def discard(self, workspace: str, others: Sequence[str]) -> Awaitable[str | None]:
        """Move a workspace aside, to `<workspace>.deleted.<milliseconds>`; the new path.

        None where there is nothing to move, or one of `others`, the workspaces that stay, is the same folder, in it, or around it.
        """
        ...
