"""What a request asks for, as a turn: agent, session and model, from its body and its `x-mayros-*` headers. Pure; imports core, wire and errors."""

from __future__ import annotations

import re

from mayros.core.address import Headers
from mayros.core.auth import grants
from mayros.core.keys import AGENT_ID, new_id
from mayros.core.models import Model
from mayros.core.ports import CallerTool, Principal, ResponseFormat, Sampling, Turn
from mayros.core.reach import own_key
from mayros.core.routing import Agent, Settings
from mayros.core.tracing import Trace
from mayros.errors import AgentNotFound, Forbidden, InvalidRequest
from mayros.wire.chat import ChatRequest
from mayros.wire.chat_tools import AskedFormat

_NOTHING_ASKED = Sampling()
_SECONDS = re.compile(rb"\d{1,7}(\.\d{1,6})?")
#: How much of what was sent an error may repeat.
_SHOWN = 80


def turn_of(header: Headers, asked: ChatRequest, settings: Settings, principal: Principal, trace: Trace | None = None) -> Turn:
    """The turn of a chat request, which is part of `trace`. Raises InvalidRequest, AgentNotFound or Forbidden, naming the field or header."""
    directory = settings.directory
    agent = None
    named = one_value(header, "x-mayros-agent-id") or one_value(header, "x-mayros-agent")
    if named is not None:
        if not AGENT_ID.fullmatch(named):
            raise AgentNotFound(
                f"x-mayros-agent-id is not an agent id. Configured agents: {', '.join(sorted(directory.agents))}.", param="x-mayros-agent-id"
            )
        agent = directory.agent(named, "x-mayros-agent-id")
    key = one_value(header, "x-mayros-session-key")
    agent, session, stateless = directory.http_session(agent, asked.model, key, asked.user)
    session = own_key(principal, session, "x-mayros-session-key")
    messages = asked.messages
    if not stateless:
        messages = messages[asked.new_from :]
        if not messages:
            raise InvalidRequest(
                "There is nothing new after the last assistant message: this session keeps its own history and takes what follows it.",
                param="messages",
            )
    elif asked.incomplete is not None:
        param, sentence = asked.incomplete
        raise InvalidRequest(sentence, param=param)
    return Turn(
        run_id=new_id(),
        agent=agent,
        session=session,
        stateless=stateless,
        messages=messages,
        door="chat",
        extra_system=asked.system,
        sampling=Sampling(**asked.sampling) if asked.sampling else _NOTHING_ASKED,
        timeout_seconds=agent.timeout_seconds if asked.stream else _patience(header, agent.timeout_seconds),
        metadata=asked.metadata,
        tools=settings.config.gateway.http.endpoints.chat_completions.tools,
        model=_model(one_value(header, "x-mayros-model"), agent, settings, principal),
        caller_tools=tuple([CallerTool(tool.name, tool.description, tool.parameters, tool.strict) for tool in asked.tools]),
        tool_choice=asked.tool_choice,
        parallel_calls=asked.parallel_calls,
        response_format=_format(asked.format) if asked.format is not None else None,
        trace=trace,
    )


def _patience(header: Headers, seconds: float) -> float:
    """How long a run may take whose caller waits in silence: a little less than the caller does, who would leave, or ask again and run it twice.

    OpenAI's SDKs say how long they wait, in seconds. With a key, who asks again gets the same run.
    """
    lines = header(b"x-stainless-read-timeout") or header(b"x-stainless-timeout")
    if not lines or header(b"idempotency-key") or not _SECONDS.fullmatch(lines[0]):
        return seconds
    theirs = float(lines[0])
    return min(seconds, theirs - min(1.0, theirs / 10)) if theirs else seconds


def _format(asked: AskedFormat) -> ResponseFormat:
    return ResponseFormat(asked.schema, asked.name, asked.description, asked.strict)


def _model(ref: str | None, agent: Agent, settings: Settings, principal: Principal) -> Model | None:
    """The model that the caller chose, an alias or `provider/model`, or None where he did not."""
    if ref is None:
        return None
    if not agent.allow_model_override and not grants(principal.scopes, "operator.admin"):
        raise Forbidden("x-mayros-model needs the scope operator.admin, or allowModelOverride in the agent's configuration.", param="x-mayros-model")
    full = settings.directory.full(ref)
    if not full.isprintable() or len(full) > 256 or not all(full.partition("/")):
        raise InvalidRequest("x-mayros-model must be provider/model, or an alias of agents.defaults.models.", param="x-mayros-model")
    model = settings.catalogue.find(full)
    if model is None:
        raise AgentNotFound(f"No model {full[:_SHOWN]!r} is configured.", param="x-mayros-model")
    return model


def one_value(header: Headers, name: str) -> str | None:
    """The value of a header that may come once; blank is not given."""
    lines = header(name.encode())
    if not lines:
        return None
    if len(lines) > 1:
        raise InvalidRequest(f"{name} may be sent once.", param=name)
    try:
        text = lines[0].decode().strip()
    except UnicodeDecodeError:
        raise InvalidRequest(f"{name} must be UTF-8.", param=name) from None
    return text or None
