"""The agent loop: one turn of a conversation, with the model and its fallbacks, as an async iterator of event batches.

The loop has one model turn for each run as long as agents have no tools; a round of tool calls is another pass over `_ask`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

import msgspec
from twisted.logger import Logger

from mayros.core.models import Model
from mayros.core.ports import History, ModelProvider, ModelRequest, Sampling, Turn, Workspace
from mayros.core.prompt import Prompter, window
from mayros.core.tokens import estimate
from mayros.errors import ContextLengthExceeded, GatewayError, Unavailable, bare
from mayros.events import Event, ReasoningDelta, TextDelta

log = Logger()


class Providers(Protocol):
    """The adapters by provider id; a dict will do."""

    def get(self, provider_id: str, /) -> ModelProvider | None: ...


class AgentLoop:
    """Thinks: builds the prompt, asks the model, falls back. `find_model` gives the model of a `provider/model` that a session has chosen."""

    def __init__(self, providers: Providers, workspace: Workspace, find_model: Callable[[str], Model | None] = lambda ref: None) -> None:
        self._providers, self._workspace, self._find_model, self._prompter = providers, workspace, find_model, Prompter()

    async def think(self, turn: Turn, history: History) -> AsyncGenerator[list[Event], None]:
        """The turn's events up to TurnFinished. Raises errors of mayros.errors; closing the iterator stops the model."""
        agent, messages = turn.agent, [*history.messages, *turn.messages]
        files = await self._workspace.files(agent)
        spoken = False
        refused: GatewayError | None = None
        models = self._models(turn, history)
        for position, model in enumerate(models, 1):
            system = self._prompter.system(agent, files, model, turn.extra_system)
            if not fits(system, messages, window(agent, model)):
                refused = too_long(model, turn.stateless)
                continue
            try:
                async with aclosing(self._ask(model, turn, history, system, messages)) as batches:
                    async for batch in batches:
                        spoken = spoken or any(type(event) in (TextDelta, ReasoningDelta) for event in batch)
                        yield batch
                return
            except ContextLengthExceeded as error:
                # Where the provider's own count refused it, the advice is the same as ours.
                raise too_long(model, turn.stateless) from error
            except GatewayError as error:
                if spoken or not error.fallback or position == len(models):
                    raise
                log.warn(
                    "run {run_id}: {model} failed before it said anything ({error}); trying the next model",
                    run_id=turn.run_id, model=model.ref, error=error.message,
                )  # fmt: skip
                refused = bare(error)
        raise refused or Unavailable(f'Agent "{agent.id}" has no model: set agents.defaults.model.primary, or run `mayros setup`.')

    def _models(self, turn: Turn, history: History) -> Sequence[Model]:
        """The agent's models, or the one that was chosen for the session: an explicit choice does not fall back."""
        chosen = history.settings.model
        model = self._find_model(chosen) if chosen is not None else None
        if chosen is not None and model is None:
            log.warn(
                "session {session}: its model {model} is not configured any more; the agent's own is used", session=str(turn.session), model=chosen
            )
        return turn.agent.models if model is None else (model,)

    async def _ask(
        self, model: Model, turn: Turn, history: History, system: str, messages: Sequence[msgspec.Raw]
    ) -> AsyncGenerator[list[Event], None]:
        provider = self._providers.get(model.provider.id)
        if provider is None:
            raise Unavailable(f"This version cannot speak to {model.ref}: its api {model.provider.api!r} is not supported yet.")
        request = ModelRequest(model, system, messages, sampling(turn, history, model), turn.run_id)
        async with aclosing(provider.stream(request)) as batches:
            async for batch in batches:
                yield batch


def sampling(turn: Turn, history: History, model: Model) -> Sampling:
    """What the caller asked for, over the session's thinking level and the agent's own `params`, over the model's limit where it needs one."""
    asked, params = turn.sampling, turn.agent.params
    thinking = history.settings.thinking_level
    if thinking is not None and asked.reasoning_effort is None:
        asked = msgspec.structs.replace(asked, reasoning_effort="none" if thinking == "off" else thinking)
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
