"""Which agent, session and levels a method's parameters mean. Pure. Imports mayros.core."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mayros.core.keys import SessionKey
from mayros.core.models import Model
from mayros.core.ports import Principal
from mayros.core.reach import check_agent, own_key
from mayros.core.routing import Agent, Directory, Settings
from mayros.errors import AgentNotFound, InvalidRequest

if TYPE_CHECKING:
    from mayros.ws.session import Session

#: What `thinkingLevel` and `thinking` may be.
THINKING = ("off", "minimal", "low", "medium", "high", "xhigh")
_SHOWN = 64


def session_key(directory: Directory, text: str, method: str, param: str = "sessionKey") -> SessionKey:
    """The session that a client names; bare keys belong to the default agent. Raises InvalidRequest."""
    try:
        return SessionKey.parse(text, None, directory.default_id, directory.main_key, param=param, reserved=True)
    except InvalidRequest as error:
        raise InvalidRequest(f"invalid {method} params: {error.message}") from None


def own_session(session: Session, text: str, method: str, param: str = "sessionKey") -> SessionKey:
    """The session that a client means (core/reach.py). Raises InvalidRequest, and Forbidden for an agent that it may not use."""
    return own_key(session.principal, session_key(session.gateway.config.current.directory, text, method, param), param)


def known_agent(directory: Directory, agent_id: str, method: str, principal: Principal | None = None) -> Agent:
    """The agent of an id. Raises InvalidRequest, and Forbidden for one that the principal may not use."""
    try:
        agent = directory.agent(agent_id.strip(), "agentId")
        if principal is not None:
            check_agent(principal, agent.id)
        return agent
    except AgentNotFound:
        raise InvalidRequest(f'invalid {method} params: unknown agent id "{agent_id[:_SHOWN]}"') from None


def level(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """One of the allowed words, whatever its case. Raises InvalidRequest."""
    word = value.strip().lower()
    if word not in allowed:
        raise InvalidRequest(f"invalid {name} (use {'|'.join(allowed)})")
    return word


def thinking_level(name: str, value: str) -> str:
    """`on` is what clients say of models that only know on and off."""
    return "low" if value.strip().lower() == "on" else level(name, value, THINKING)


def effort(thinking: str | None) -> str | None:
    """The reasoning effort of a request's own `thinking`; blank is not given. Raises InvalidRequest."""
    if thinking is None or not thinking.strip():
        return None
    word = thinking_level("thinking", thinking)
    return "none" if word == "off" else word


def model_of(settings: Settings, text: str) -> Model:
    """The model of an alias, of `provider/model`, or of an id that only one listed model has. Raises InvalidRequest."""
    wanted = settings.directory.full(text.strip())
    model = settings.catalogue.find(wanted)
    if model is None:
        same = [model for model in settings.catalogue.models.values() if model.id == wanted]
        model = same[0] if len(same) == 1 else None
    if model is None:
        raise InvalidRequest(f"model not allowed: {text.strip()[:_SHOWN]} (no model of that name is configured)")
    return model
