"""From a conversation to the request for one model: what it can read, the tools it is offered, the messages that fit. Imports of core and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
from msgspec.structs import replace

from mayros.core.bounds import fitted
from mayros.core.callers import Callers, CallIds, check_answer, no_tools
from mayros.core.candidates import session_name
from mayros.core.failover import Candidate
from mayros.core.images import described, pictured
from mayros.core.models import Model
from mayros.core.pending import joined
from mayros.core.ports import History, ModelRequest, ToolSpec, Turn
from mayros.core.prompt import Prompter, window
from mayros.core.remembered import Remembered
from mayros.core.reply import Reply
from mayros.core.sampling import sampling
from mayros.core.tool_ports import Tool, Toolbox
from mayros.core.workspace_ports import Skill, Skills, WorkspaceFile
from mayros.errors import ContextLengthExceeded, GatewayError, InvalidRequest

#: Of tools that are offered, what a model is told: the same object for the same mapping, so that it need not be written anew.
_specs: Remembered[Mapping[str, Tool], Sequence[ToolSpec]] = Remembered(lambda offered: tuple([tool.spec for tool in offered.values()]))


class Host(Protocol):
    """The run, as its requests see it; see acting.Host."""

    def asking(self, request: ModelRequest) -> ModelRequest: ...


class Asked(msgspec.Struct, frozen=True):
    """A request, and what is to be known of it when its answer comes. `takes_images`: whether the model does."""

    model: Model
    request: ModelRequest
    offered: Mapping[str, Tool]
    takes_images: bool


class Unfit(msgspec.Struct, frozen=True):
    """Why a model is not asked. `kept`: a reason that was found before is the better one to end with."""

    error: GatewayError
    kept: bool


class Asking:
    """Makes the requests of one run."""

    __slots__ = (
        *("_files", "_given", "_history", "_host", "_prompter", "_seen", "_shown", "_skills", "_store", "_toolbox", "_turn"),
        *("callers", "ids", "messages", "session"),
    )

    def __init__(
        self, turn: Turn, history: History, files: Sequence[WorkspaceFile], host: Host, prompter: Prompter, toolbox: Toolbox, skills: Skills | None
    ) -> None:
        self._turn, self._history, self._files, self._host = turn, history, files, host
        self._prompter, self._toolbox, self._store = prompter, toolbox, skills
        self._skills: Sequence[Skill] = ()
        #: The conversation so far; the run's rounds add to it.
        self.messages: Sequence[msgspec.Raw] = joined(history.messages, turn.messages)
        self._given = len(self.messages)
        self.ids = CallIds(self.messages)
        self.callers = Callers.of(turn, self.ids)
        self._shown = pictured(turn.messages)
        self._seen = self._shown or pictured(history.messages)
        #: Providers' name for the conversation; there is none where it is made for one request.
        self.session = "" if turn.stateless else session_name(turn.session)

    async def request(self, candidate: Candidate) -> Asked | Unfit:
        """The request for a candidate, or why it cannot be asked this."""
        turn, model = self._turn, candidate.model
        takes_images = "image" in model.input
        if self._shown and not takes_images:
            return Unfit(no_images(model.ref, "messages" if turn.door == "chat" else "attachments"), True)
        if self.callers is not None and not model.tools:
            return Unfit(no_tools(model), True)
        offered = self._toolbox.offered(turn, model)
        if self.callers is not None:
            self.callers.check(offered)
        if offered and not self._skills and self._store is not None:
            self._skills = await self._store.skills(turn.agent)
        system = self._prompter.system(turn.agent, self._files, model, turn.extra_system, offered, self._skills)
        readable = described(self.messages) if self._seen and not takes_images else self.messages
        prompt = fitted(system, readable, window(turn.agent, model))
        if prompt is None:
            return Unfit(too_long(model, turn.stateless), False)
        specs = _specs(offered) if offered else ()
        asks = sampling(turn, self._history, model)
        if asks.logprobs and len(self.messages) > self._given:  # of an answer after tools the caller would not know which text they are for
            asks = replace(asks, logprobs=None, top_logprobs=None)
        stable = len(system) - len(turn.extra_system) if turn.extra_system else 0  # the caller's own instructions come last
        asked = ModelRequest(model, system, prompt, asks, turn.run_id, specs, candidate.credential, self.session, stable)
        if self.callers is not None:
            asked = replace(asked, tools=[*specs, *self.callers.tools], tool_choice=self.callers.choice)
        if turn.response_format is not None or not turn.parallel_calls:
            asked = replace(asked, response_format=turn.response_format, parallel_calls=turn.parallel_calls)
        if turn.trace is not None:
            asked = replace(asked, trace=turn.trace)
        return Asked(model, self._host.asking(asked), offered, takes_images)

    def reply(self, offered: Mapping[str, Tool], apart: bool) -> Reply | None:
        """What takes an answer to such a request; None where all of it is handed on as it comes. `apart`: the run has said something before.

        Where the answer must have a form, what is said beside calls is no part of it.
        """
        wanted = self._turn.response_format is not None
        if not offered and self.callers is None and not wanted:
            return None
        return Reply(apart and not wanted, self.callers, held=wanted and bool(offered))

    def check(self, reply: Reply) -> None:
        """Whether the last model turn is what the caller demands. Raises ToolChoiceIgnored or FormatUnsatisfied."""
        check_answer(self._turn, self.callers.choice if self.callers is not None else None, reply.handed, reply.text, reply.finished)


def no_images(ref: str, param: str = "attachments") -> InvalidRequest:
    """The error of a message with images for a model that takes none."""
    return InvalidRequest(f"The model {ref} takes no images. Send the message without them, or choose another model.", param=param)


def some_see_images(models: Sequence[Model], param: str = "attachments") -> None:
    """Raise `no_images` where none of the models takes images; nothing is said of no models."""
    if models and not any("image" in model.input for model in models):
        raise no_images(models[0].ref, param)


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
