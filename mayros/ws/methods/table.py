"""The methods there are: who may call each, and who answers. `hello-ok` advertises exactly these. Imports mayros.ws.methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from mayros.wire.frames import Request
from mayros.ws.methods.agent import agent
from mayros.ws.methods.agents import agents_create, agents_delete, agents_list, agents_update
from mayros.ws.methods.approvals import approval_list, approval_request, approval_resolve, approval_wait, approvals_get, approvals_set
from mayros.ws.methods.chat import chat_abort, chat_inject, chat_send
from mayros.ws.methods.config import config_get, config_schema
from mayros.ws.methods.devices import pair_approve, pair_list, pair_reject, pair_remove, token_revoke, token_rotate
from mayros.ws.methods.files import agents_files_get, agents_files_list, agents_files_set
from mayros.ws.methods.health import health
from mayros.ws.methods.history import chat_history, sessions_preview
from mayros.ws.methods.models import models_list
from mayros.ws.methods.presence import last_heartbeat, system_presence
from mayros.ws.methods.sessions import sessions_delete, sessions_list, sessions_patch, sessions_reset, sessions_resolve
from mayros.ws.methods.status import status
from mayros.ws.methods.tools import tools_catalog
from mayros.ws.methods.wait import agent_identity_get, agent_wait

if TYPE_CHECKING:
    from mayros.ws.session import Session

#: Answers through the session: at once, or later from a coroutine given to `Session.spawn`. Raises GatewayError.
Handler = Callable[["Session", Request], None]


class Method(NamedTuple):
    """`scope` None: every client may call it."""

    scope: str | None
    handler: Handler


METHODS: Mapping[str, Method] = {
    "health": Method(None, health),
    "status": Method("operator.read", status),
    "agent": Method("operator.write", agent),
    "agent.wait": Method("operator.write", agent_wait),
    "agent.identity.get": Method("operator.read", agent_identity_get),
    "chat.send": Method("operator.write", chat_send),
    "chat.history": Method("operator.read", chat_history),
    "chat.abort": Method("operator.write", chat_abort),
    "chat.inject": Method("operator.admin", chat_inject),
    "sessions.list": Method("operator.read", sessions_list),
    "sessions.preview": Method("operator.read", sessions_preview),
    "sessions.resolve": Method("operator.read", sessions_resolve),
    "sessions.patch": Method("operator.admin", sessions_patch),
    "sessions.reset": Method("operator.admin", sessions_reset),
    "sessions.delete": Method("operator.admin", sessions_delete),
    "models.list": Method("operator.read", models_list),
    "tools.catalog": Method("operator.read", tools_catalog),
    "agents.list": Method("operator.read", agents_list),
    "agents.create": Method("operator.admin", agents_create),
    "agents.update": Method("operator.admin", agents_update),
    "agents.delete": Method("operator.admin", agents_delete),
    "agents.files.list": Method("operator.read", agents_files_list),
    "agents.files.get": Method("operator.read", agents_files_get),
    "agents.files.set": Method("operator.admin", agents_files_set),
    "config.get": Method("operator.read", config_get),
    "config.schema": Method("operator.admin", config_schema),
    "device.pair.list": Method("operator.pairing", pair_list),
    "device.pair.approve": Method("operator.pairing", pair_approve),
    "device.pair.reject": Method("operator.pairing", pair_reject),
    "device.pair.remove": Method("operator.pairing", pair_remove),
    "device.token.rotate": Method("operator.pairing", token_rotate),
    "device.token.revoke": Method("operator.pairing", token_revoke),
    "exec.approval.request": Method("operator.approvals", approval_request),
    "exec.approval.waitDecision": Method("operator.approvals", approval_wait),
    "exec.approval.resolve": Method("operator.approvals", approval_resolve),
    "exec.approval.list": Method("operator.approvals", approval_list),
    "exec.approvals.get": Method("operator.admin", approvals_get),
    "exec.approvals.set": Method("operator.admin", approvals_set),
    "system-presence": Method("operator.read", system_presence),
    "last-heartbeat": Method("operator.read", last_heartbeat),
}
