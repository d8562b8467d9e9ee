"""The agent loop: one turn of a conversation, with the model and its fallbacks, as an async iterator of event batches.

A model turn, the calls it makes (rounds.py, acting.py), the next model turn with their results, until the model makes none.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Protocol

import msgspec
from twisted.logger import Logger

from mayros.core.acting import Host, Redact
from mayros.core.bounds import fitted
from mayros.core.calls import APART, Reply
from mayros.core.cost import priced
from mayros.core.images import described, pictured
from mayros.core.models import Model
from mayros.core.ports import History, ModelProvider, ModelRequest, Sampling, Turn
from mayros.core.prompt import NO_TOOLS, Prompter, window
from mayros.core.rounds import Rounds
from mayros.core.tool_ports import ResultStore, Tool, Toolbox
from mayros.core.workspace_ports import Skill, Skills, Workspace
from mayros.errors import ContextLengthExceeded, GatewayError, InvalidRequest, Unavailable, bare
from mayros.events import Event, ReasoningDelta, TextDelta, TurnFinished, Usage

log = Logger()


class Providers(Protocol):
    """The adapters by provider id; a dict will do."""

    def get(self, provider_id: str, /) -> ModelProvider | None: ...


class NoTools:
    """The toolbox of agents that only talk."""

    def offered(self, turn: Turn, model: Model) -> Mapping[str, Tool]:
        """See ports.Toolbox."""
        return NO_TOOLS

    def why_not(self, turn: Turn, model: Model, name: str) -> str | None:
        """See ports.Toolbox."""
        return None


class AgentLoop:
    """Thinks: builds the prompt, asks the model, falls back, makes the calls that the model wants, and asks again.

    `find_model` gives the model of a `provider/model` that a session has chosen. `redact` hides the secrets that the gateway knows; `results` keeps
    what is too long for a model.
    """

    def __init__(
        self,
        providers: Providers,
        workspace: Workspace,
        find_model: Callable[[str], Model | None] = lambda ref: None,
        toolbox: Toolbox | None = None,
        results: ResultStore | None = None,
        redact: Redact = str,
        skills: Skills | None = None,
    ) -> None:
        self._providers, self._workspace, self._find_model, self._prompter = providers, workspace, find_model, Prompter()
        self._toolbox, self._results, self._redact, self._skills = toolbox or NoTools(), results, redact, skills

    async def think(self, turn: Turn, history: History, host: Host) -> AsyncGenerator[list[Event], None]:
        """The turn's events; its model turns with calls, and their results, are recorded with the host. Raises errors of mayros.errors.

        Closing the iterator stops the model at once, and calls that are being made within a second.
        """
        agent, messages = turn.agent, [*history.messages, *turn.messages]
        files = await self._workspace.files(agent)
        refused: GatewayError | None = None
        models, position = self._models(turn, history), 0
        seen, shown = pictured(messages), pictured(turn.messages)
        rounds: Rounds | None = None
        skills: Sequence[Skill] = ()
        while position < len(models):
            model = models[position]
            position += 1
            takes_images = "image" in model.input
            if shown and not takes_images:
                refused = refused or no_images(model.ref)
                continue
            offered = self._toolbox.offered(turn, model)
            if offered and not skills and self._skills is not None:
                skills = await self._skills.skills(agent)
            system = self._prompter.system(agent, files, model, turn.extra_system, offered, skills)
            readable = described(messages) if seen and not takes_images else messages
            prompt = fitted(system, readable, window(agent, model))
            if prompt is None:
                refused = too_long(model, turn.stateless)
                continue
            specs = [tool.spec for tool in offered.values()] if offered else ()
            request = ModelRequest(model, system, prompt, sampling(turn, history, model), turn.run_id, specs)
            reply = Reply(rounds is not None and rounds.spoken) if offered else None
            spoken = False
            try:
                async with aclosing(self._stream(request)) as batches:
                    async for batch in batches:
                        if any(type(event) is Usage for event in batch):
                            batch = [priced(event, model.cost) if type(event) is Usage else event for event in batch]
                        spoken = spoken or any(type(event) in (TextDelta, ReasoningDelta) for event in batch)
                        if reply is None:
                            yield batch
                        elif kept := reply.take(batch):
                            yield kept
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
                continue
            if reply is None or (rounds is None and not reply.calling):  # as most runs end
                return
            if rounds is None:
                rounds = Rounds(turn, host, self._redact, self._results, messages)
            if not rounds.read(reply, offered, partial(self._toolbox.why_not, turn, model), model.ref):
                if reply.finished is not None and not reply.told:
                    yield [reply.finished]
                return
            async with aclosing(rounds.make(window(agent, model), takes_images)) as made:
                async for batch in made:
                    yield batch
            messages = [*messages, *rounds.new]
            if (limit := host.exceeded()) is not None:
                yield [TextDelta(APART + limit if rounds.spoken else limit), TurnFinished("length")]
                return
            position -= 1  # the same model goes on
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

    def _stream(self, request: ModelRequest) -> AsyncGenerator[list[Event], None]:
        model = request.model
        provider = self._providers.get(model.provider.id)
        if provider is None:
            raise Unavailable(f"This version cannot speak to {model.ref}: its api {model.provider.api!r} is not supported yet.")
        return provider.stream(request)


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


def no_images(ref: str) -> InvalidRequest:
    """The error of a message with images for a model that takes none."""
    return InvalidRequest(f"The model {ref} takes no images. Send the message without them, or choose another model.", param="attachments")


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
