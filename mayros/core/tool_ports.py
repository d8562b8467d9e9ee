"""The seams of tools: what the loop needs of one, what one sees of its run, and where long results go."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import msgspec

from mayros.core.models import Model
from mayros.core.ports import Principal, ToolSpec, Turn

T = TypeVar("T")


class ToolImage(msgspec.Struct, frozen=True):
    """An image that a tool gives to the model; `data` is base64."""

    media_type: str
    data: str


class ToolResult(msgspec.Struct, frozen=True):
    """What a call came to. `text` goes to the model, bounded and redacted by the loop; `untrusted`: it comes from outside and is marked so."""

    text: str
    is_error: bool = False
    images: tuple[ToolImage, ...] = ()
    untrusted: bool = False


class ToolContext(Protocol):
    """The run that a call belongs to, as its tool sees it."""

    turn: Turn
    principal: Principal
    call_id: str
    #: Whether the model takes images.
    images: bool

    def update(self, text: str) -> None:
        """Tell watchers what there is so far; called as often as one likes, told a few times in a second."""
        ...

    async def waiting(self, answer: Awaitable[T]) -> T:
        """Wait for a person (or for another session): meanwhile the run's clock stops and its slot is given back."""
        ...


class Tool(Protocol):
    """One tool. `read_only`: it changes nothing, so that several calls may run side by side."""

    spec: ToolSpec
    read_only: bool

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """Do it. `arguments` fit the schema. Raises ToolFailed with what the model should do; cancelled, it ends what it started within a second."""
        ...


class ResultStore(Protocol):
    """The whole texts of results that were too long for the model; for a day, each for its agent."""

    def keep(self, agent_id: str, text: str, untrusted: bool) -> Awaitable[str | None]:
        """A reference (`result://...`) that `open` takes, and in which `untrusted` shows; None where the text cannot be kept. Raises nothing."""
        ...

    def open(self, reference: str, agent_id: str) -> str | None:
        """The text; None where there is none for this agent (any more). Blocks: call it off the reactor."""
        ...


#: Of runs without tools.
NO_TOOLS: Mapping[str, Tool] = MappingProxyType({})


class Toolbox(Protocol):
    """Which tools a run has: the registry after policy."""

    def offered(self, turn: Turn, model: Model) -> Mapping[str, Tool]:
        """By exact name; empty where the model takes no tools or its door has none."""
        ...

    def why_not(self, turn: Turn, model: Model, name: str) -> str | None:
        """Why a tool that exists is not offered (the rule that decided); None where there is no tool of that name."""
        ...
