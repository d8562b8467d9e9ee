"""The agent loop: one turn of a conversation, with the model and its fallbacks, as an async iterator of event batches.

The loop has one model turn for each run as long as agents have no tools; a round of tool calls is another pass over `_ask`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

import msgspec
from twisted.logger import Logger

from mayros.core.models import Model
from mayros.core.ports import History, ModelProvider, ModelRequest, Sampling, Turn, Workspace
from mayros.core.prompt import Prompter, window
from mayros.core.tokens import estimate
from mayros.errors import ContextLengthExceeded, GatewayError, Unavailable
from mayros.events import Event, ReasoningDelta, TextDelta

log = Logger()


class AgentLoop:
    """Thinks: builds the prompt, asks the model, falls back. `providers` are the adapters by provider id."""

    def __init__(self, providers: Mapping[str, ModelProvider], workspace: Workspace) -> None:
        self._providers, self._workspace, self._prompter = providers, workspace, Prompter()

    async def think(self, turn: Turn, history: History) -> AsyncGenerator[list[Event], None]:
        """The turn's events up to TurnFinished. Raises errors of mayros.errors; closing the iterator stops the model."""
        agent, messages = turn.agent, [*history.messages, *turn.messages]
        files = await self._workspace.files(agent)
        spoken = False
        refused: GatewayError | None = None
        for position, model in enumerate(agent.models, 1):
            system = self._prompter.system(agent, files, model, turn.extra_system)
            if not fits(system, messages, window(agent, model)):
                refused = too_long(model, turn.stateless)
                continue
            try:
                async with aclosing(self._ask(model, turn, system, messages)) as batches:
                    async for batch in batches:
                        spoken = spoken or any(type(event) in (TextDelta, ReasoningDelta) for event in batch)
                        yield batch
                return
            except ContextLengthExceeded as error:
                # Where the provider's own count refused it, the advice is the same as ours.
                raise too_long(model, turn.stateless) from error
            except GatewayError as error:
                if spoken or not error.fallback or position == len(agent.models):
                    raise
                log.warn(
                    "run {run_id}: {model} failed before it said anything ({error}); trying the next model",
                    run_id=turn.run_id, model=model.ref, error=error.message,
                )  # fmt: skip
                refused = error
        raise refused or Unavailable(f'Agent "{agent.id}" has no model: set agents.defaults.model.primary, or run `mayros setup`.')

    async def _ask(self, model: Model, turn: Turn, system: str, messages: Sequence[msgspec.Raw]) -> AsyncGenerator[list[Event], None]:
        provider = self._providers.get(model.provider.id)
        if provider is None:
            raise Unavailable(f"This version cannot speak to {model.ref}: its api {model.provider.api!r} is not supported yet.")
        request = ModelRequest(model, system, messages, sampling(turn, model), turn.run_id)
        async with aclosing(provider.stream(request)) as batches:
            async for batch in batches:
                yield batch


def sampling(turn: Turn, model: Model) -> Sampling:
    """What the caller asked for, over the agent's own `params`, over the model's limit where the model needs one."""
    asked, params = turn.sampling, turn.agent.params
    if not params and model.provider.api != "local":
        return asked
    changes: dict[str, float | int] = {}
    for field, names in (("temperature", ("temperature",)), ("top_p", ("topP", "top_p")), ("max_tokens", ("maxTokens", "max_tokens"))):
        value = next((params[name] for name in names if isinstance(params.get(name), int | float)), None)
        if value is None and field == "max_tokens" and model.provider.api == "local":
            value = model.max_tokens  # a small model may never stop by itself
        if value is not None and getattr(asked, field) is None:
            changes[field] = value
    return msgspec.structs.replace(asked, **changes) if changes else asked


def fits(system: str, messages: Sequence[msgspec.Raw], window_tokens: int) -> bool:
    """Whether the prompt has room in the window, by estimate. A token is at least one byte, so few bytes need no counting."""
    if len(system) + sum(map(len, map(bytes, messages))) < window_tokens:
        return True
    return estimate(system) + sum(estimate(bytes(raw).decode()) for raw in messages) < window_tokens


def too_long(model: Model, stateless: bool) -> ContextLengthExceeded:
    """The error of a prompt that does not fit, with what to do about it."""
    advice = (
        "Send fewer or shorter messages."
        if stateless
        else "Start a new session: send another `user` or x-mayros-session-key (over WebSocket another sessionKey), or shorter messages."
    )
    return ContextLengthExceeded(
        f"The conversation does not fit into the context window of {model.ref} ({model.context_window} tokens). {advice}", param="messages"
    )
