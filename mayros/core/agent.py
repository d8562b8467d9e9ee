"""The agent loop: one turn of a conversation, with the model and its fallbacks, as an async iterator of event batches.

A model turn, the calls it makes (rounds.py, acting.py), the next model turn with their results, until the model makes none. course.py says whom to
ask, asking.py what.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Protocol

from twisted.logger import Logger

from mayros.core.acting import Host
from mayros.core.asking import Asked, Asking, Unfit, too_long
from mayros.core.candidates import Plans
from mayros.core.cost import priced
from mayros.core.course import Course
from mayros.core.health import ModelHealth, Try
from mayros.core.models import Model
from mayros.core.ports import Clock, History, ModelProvider, ModelRequest, Turn
from mayros.core.prompt import Prompter, window
from mayros.core.reply import APART
from mayros.core.rounds import Rounds
from mayros.core.tool_ports import NO_TOOLS, ResultStore, Tool, Toolbox
from mayros.core.workspace_ports import Skills, Workspace
from mayros.errors import ContextLengthExceeded, GatewayError, Unavailable
from mayros.events import Event, ReasoningDelta, TextDelta, ToolCallDelta, TurnFinished, Usage
from mayros.net.redact import Redactor

if TYPE_CHECKING:
    from mayros.core.hedge import Stream

log = Logger()

#: After one of these no other model is asked in the same model turn: it has been paid for, and may have been shown.
DELTAS = frozenset((TextDelta, ReasoningDelta, ToolCallDelta))


class Providers(Protocol):
    """The adapters by provider id; a dict will do."""

    def get(self, provider_id: str, /) -> ModelProvider | None: ...


class NoTools:
    """The toolbox of agents that only talk."""

    def offered(self, turn: Turn, model: Model) -> Mapping[str, Tool]:
        """See tool_ports.Toolbox."""
        return NO_TOOLS

    def why_not(self, turn: Turn, model: Model, name: str) -> str | None:
        """See tool_ports.Toolbox."""
        return None


class AgentLoop:
    """Thinks: builds the prompt, asks the model, falls back, makes the calls that the model wants, and asks again.

    `find_model` gives the model of a `provider/model` that a session has chosen. `redact` hides the secrets that the gateway knows; `results` keeps
    what is too long for a model; `health` knows which providers and keys may be asked.
    """

    def __init__(
        self,
        providers: Providers,
        workspace: Workspace,
        find_model: Callable[[str], Model | None] = lambda ref: None,
        toolbox: Toolbox | None = None,
        results: ResultStore | None = None,
        redact: Redactor | None = None,
        skills: Skills | None = None,
        health: ModelHealth | None = None,
    ) -> None:
        self._providers, self._workspace, self._find_model, self._prompter = providers, workspace, find_model, Prompter()
        self._toolbox, self._results, self._redact, self._skills = toolbox or NoTools(), results, redact or Redactor(), skills
        self._health, self._plans = health or ModelHealth(), Plans()

    async def think(self, turn: Turn, history: History, host: Host) -> AsyncGenerator[list[Event], None]:
        """The turn's events; its model turns with calls, and their results, are recorded with the host. Raises errors of mayros.errors.

        Closing the iterator stops the model at once, and calls that are being made within a second.
        """
        files = await self._workspace.files(turn.agent)
        asking = Asking(turn, history, files, host, self._prompter, self._toolbox, self._skills)
        models = self._models(turn, history)
        course = Course(self._health, self._plans.candidates(models, asking.session or turn.run_id, models is turn.agent.models))
        clock, hedge = host.clock, turn.agent.hedge_seconds
        rounds: Rounds | None = None
        try:
            while True:
                tried = course.next(clock.seconds())
                asked = await asking.request(tried.candidate)
                if isinstance(asked, Unfit):
                    course.unfit(asked.error, asked.kept)
                    continue
                if course.untold:
                    yield course.tell(turn.run_id)
                spoken = heard = False
                try:
                    if hedge is None or not course.has_other:
                        batches = stream = self._stream(asked.request)
                    else:
                        asked, stream, batches = await self._hedged(asked, asking, course, hedge, clock)
                    model, offered = asked.model, asked.offered
                    reply = asking.reply(offered, rounds is not None and rounds.spoken)
                    async with aclosing(stream), aclosing(batches):
                        if course.untold:
                            yield course.tell(turn.run_id)
                        async for batch in batches:
                            if not heard:
                                heard = True
                                course.answered()
                            kinds = {type(event) for event in batch}
                            if Usage in kinds:
                                batch = [priced(event, model.cost) if type(event) is Usage else event for event in batch]
                            spoken = spoken or not DELTAS.isdisjoint(kinds)
                            if reply is None:
                                yield batch
                            elif kept := reply.take(batch):
                                yield kept
                    course.finished()
                except ContextLengthExceeded as error:
                    course.failed(error, True, clock.seconds())
                    # Where the provider's own count refused it, the advice is the same as ours.
                    raise too_long(asked.model, turn.stateless) from error
                except GatewayError as error:
                    if not course.failed(error, spoken, clock.seconds()):
                        raise
                    continue
                if reply is None:  # as most runs end
                    return
                if rounds is None and not reply.calling:
                    asking.check(reply)
                    return
                if rounds is None:
                    rounds = Rounds(turn, host, self._redact, self._results, asking.ids, asking.callers.names if asking.callers is not None else ())
                if not rounds.read(reply, offered, partial(self._toolbox.why_not, turn, model), model.ref):
                    asking.check(reply)
                    if reply.finished is not None and not reply.told:
                        yield [reply.finished]
                    return
                async with aclosing(rounds.make(window(turn.agent, model), asked.takes_images)) as made:
                    async for batch in made:
                        yield batch
                if reply.handed:
                    host.hand_back(rounds.handed_back)
                    yield [TurnFinished("length" if reply.cut_off else "tool_calls")]
                    return
                asking.messages = [*asking.messages, *rounds.new]
                if (limit := host.exceeded()) is not None:
                    yield [TextDelta(APART + limit if rounds.spoken else limit), TurnFinished("length")]
                    return
        finally:
            course.end(turn.run_id)

    async def _hedged(self, asked: Asked, asking: Asking, course: Course, seconds: float, clock: Clock) -> tuple[Asked, Stream, Stream]:
        """Ask, and after so many seconds of silence the next model too: of the one that was faster the request, the stream, and all its batches."""
        from mayros.core.hedge import race, resumed  # few configurations need it

        others: list[tuple[Asked, Stream]] = []
        other: Try | None = None

        async def second() -> Stream | None:
            nonlocal other
            other = course.other(clock.seconds())
            if other is None:
                return None
            try:
                made = await asking.request(other.candidate)
                if isinstance(made, Asked):
                    others.append((made, self._stream(made.request)))
                    return others[0][1]
            except GatewayError as error:
                log.debug("run {run_id}: no hedge: {why}", run_id=asked.request.run_id, why=error.message)
            return None

        first = self._stream(asked.request)
        try:
            lead = await race(first, second, seconds, clock)
            now, errors = clock.seconds(), dict(lead.errors)
            if lead.winner == 1:
                rival, other = other, None
                assert rival is not None
                if 0 in errors:
                    course.succeeded_by(rival, errors[0], now)
                else:
                    course.overtaken(rival, seconds * 1000)
                return *others[0], resumed(lead.batch, others[0][1])
            if other is not None and 1 in errors:
                rival, other = other, None
                course.beaten(rival, errors[1], now)
            if lead.winner is None:
                raise errors[0]
            return asked, first, resumed(lead.batch, first)
        finally:
            if other is not None:
                course.beaten(other, None, clock.seconds())

    def _models(self, turn: Turn, history: History) -> tuple[Model, ...]:
        """The agent's models, or the one that was chosen for the turn or the session: an explicit choice falls back to other keys, not to models."""
        if turn.model is not None:
            return (turn.model,)
        chosen = history.settings.model
        model = self._find_model(chosen) if chosen is not None else None
        if chosen is not None and model is None:
            log.warn(
                "session {session}: its model {model} is not configured any more; the agent's own is used", session=str(turn.session), model=chosen
            )
        return turn.agent.models if model is None else (model,)

    def _stream(self, request: ModelRequest) -> Stream:
        model = request.model
        provider = self._providers.get(model.provider.id)
        if provider is None:
            raise Unavailable(f"This version cannot speak to {model.ref}: its api {model.provider.api!r} is not supported yet.")
        return provider.stream(request)
