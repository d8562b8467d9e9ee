"""What a caller can reach: agents, and sessions. Pure.

Most callers reach everything. A narrowed token (core/api_tokens.py) has some agents only, and its sessions are a name space of their own:
`agent:<agent id>:token:<name>:<rest>`. Whatever session it names is one of these, so there is no name for any other.
"""

from __future__ import annotations

from collections.abc import Iterable

from mayros.core.keys import SessionKey, check_text, refuse_reserved
from mayros.core.ports import Principal
from mayros.errors import Forbidden

#: What the name space of a token begins with; its name follows, which has no colon.
KIND = "token"
_PARTS = 4


def check_agent(principal: Principal, agent_id: str) -> None:
    """Raise Forbidden where the caller may not use this agent."""
    if not may_use(principal, agent_id):
        raise Forbidden(f'This token may not use the agent "{agent_id}". Its agents: {", ".join(sorted(principal.agents or ()))}.')


def may_use(principal: Principal, agent_id: str) -> bool:
    """Whether the caller may use this agent."""
    return principal.agents is None or agent_id in principal.agents


def default_agent(principal: Principal, default_id: str, agent_ids: Iterable[str]) -> str:
    """The agent that the caller may take for the default one: that, or else the first that it may use."""
    if may_use(principal, default_id):
        return default_id
    return next((agent_id for agent_id in agent_ids if may_use(principal, agent_id)), default_id)


def own_key(principal: Principal, key: SessionKey, param: str) -> SessionKey:
    """The session that the caller means by a key: of a narrowed token, the one of that name in its own space.

    A key that is in the space already (the gateway tells whole keys) is taken as it is. Raises Forbidden for an agent that it may not use, and
    InvalidRequest, naming `param`, for a key that becomes too long or that would look like one of the gateway's own.
    """
    check_agent(principal, key.agent_id)
    space = principal.space
    if space is None or key.rest.startswith(space + ":"):
        return key
    refuse_reserved(key.rest, param)
    own = SessionKey(key.agent_id, f"{space}:{key.rest}")
    check_text(str(own), param)
    return own


def sees(principal: Principal, key: str) -> bool:
    """Whether a session, by its whole key, is one of the caller's."""
    return principal.space is None or space_of(key) == principal.space


def space_of(key: str) -> str | None:
    """The name space that a session is in, `token:<name>`; None: in that of all."""
    parts = key.split(":", _PARTS)
    return f"{KIND}:{parts[3]}" if len(parts) > _PARTS and parts[0] == "agent" and parts[2] == KIND else None
