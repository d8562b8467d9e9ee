"""The methods there are: who may call each, and who answers. `hello-ok` advertises exactly these. Imports mayros.ws.methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, cast

from mayros.wire.frames import Request

if TYPE_CHECKING:
    from mayros.ws.session import Session

#: Answers through the session: at once, or later from a coroutine given to `Session.spawn`. Raises GatewayError.
Handler = Callable[["Session", Request], None]


class Method:
    """`scope` None: every client may call it. The handler is `module.function` of this package, loaded with the first call. `audited`: ws/acts.py
    says what the audit trail tells of a call.

    An idle gateway has no use for most of them, and together they are the largest part of the door.
    """

    __slots__ = ("_found", "_where", "audited", "scope")

    def __init__(self, scope: str | None, where: str, audited: bool = False) -> None:
        self.scope, self._where, self.audited = scope, where, audited
        self._found: Handler | None = None

    @property
    def handler(self) -> Handler:
        """Who answers."""
        if self._found is None:
            module, _, name = self._where.partition(".")
            self._found = cast(Handler, getattr(import_module(f"mayros.ws.methods.{module}"), name))
        return self._found


#: What a narrowed token (core/reach.py) may call: each of these tells it of its own sessions only. No other method is for it, whatever its scopes.
NARROWED = frozenset(
    (
        *("health", "status", "agent", "agent.wait", "agent.identity.get", "chat.send", "chat.history", "chat.abort"),
        *("sessions.list", "sessions.preview", "sessions.resolve", "sessions.usage", "usage.status", "usage.cost"),
        *("models.list", "tools.catalog", "agents.list", "system-presence", "last-heartbeat"),
        *("exec.approval.request", "exec.approval.waitDecision", "exec.approval.resolve", "exec.approval.list"),
    )
)
METHODS: Mapping[str, Method] = {
    "health": Method(None, "health.health"),
    "status": Method("operator.read", "status.status"),
    "agent": Method("operator.write", "agent.agent"),
    "agent.wait": Method("operator.write", "wait.agent_wait"),
    "agent.identity.get": Method("operator.read", "wait.agent_identity_get"),
    "chat.send": Method("operator.write", "chat.chat_send"),
    "chat.history": Method("operator.read", "history.chat_history"),
    "chat.abort": Method("operator.write", "chat.chat_abort"),
    "chat.inject": Method("operator.admin", "chat.chat_inject"),
    "sessions.list": Method("operator.read", "sessions.sessions_list"),
    "sessions.preview": Method("operator.read", "history.sessions_preview"),
    "sessions.resolve": Method("operator.read", "sessions.sessions_resolve"),
    "sessions.patch": Method("operator.admin", "sessions.sessions_patch", audited=True),
    "sessions.reset": Method("operator.admin", "sessions.sessions_reset", audited=True),
    "sessions.delete": Method("operator.admin", "sessions.sessions_delete", audited=True),
    "sessions.usage": Method("operator.read", "usage.sessions_usage"),
    "usage.status": Method("operator.read", "usage.usage_status"),
    "usage.cost": Method("operator.read", "usage.usage_cost"),
    "logs.tail": Method("operator.read", "logs.logs_tail"),
    "models.list": Method("operator.read", "models.models_list"),
    "models.status": Method("operator.read", "models.models_status"),
    "tools.catalog": Method("operator.read", "tools.tools_catalog"),
    "agents.list": Method("operator.read", "agents.agents_list"),
    "agents.create": Method("operator.admin", "agents.agents_create", audited=True),
    "agents.update": Method("operator.admin", "agents.agents_update", audited=True),
    "agents.delete": Method("operator.admin", "agents.agents_delete", audited=True),
    "agents.files.list": Method("operator.read", "files.agents_files_list"),
    "agents.files.get": Method("operator.read", "files.agents_files_get"),
    "agents.files.set": Method("operator.admin", "files.agents_files_set", audited=True),
    "config.get": Method("operator.read", "config.config_get"),
    "config.schema": Method("operator.admin", "config.config_schema"),
    "config.set": Method("operator.admin", "config.config_set", audited=True),
    "config.patch": Method("operator.admin", "config.config_patch", audited=True),
    "config.apply": Method("operator.admin", "config.config_apply", audited=True),
    "config.change": Method("operator.admin", "config.config_change", audited=True),
    "device.pair.list": Method("operator.pairing", "devices.pair_list"),
    "device.pair.approve": Method("operator.pairing", "devices.pair_approve", audited=True),
    "device.pair.reject": Method("operator.pairing", "devices.pair_reject", audited=True),
    "device.pair.remove": Method("operator.pairing", "devices.pair_remove", audited=True),
    "device.token.rotate": Method("operator.pairing", "devices.token_rotate", audited=True),
    "device.token.revoke": Method("operator.pairing", "devices.token_revoke", audited=True),
    "exec.approval.request": Method("operator.approvals", "approvals.approval_request"),
    "exec.approval.waitDecision": Method("operator.approvals", "approvals.approval_wait"),
    "exec.approval.resolve": Method("operator.approvals", "approvals.approval_resolve", audited=True),
    "exec.approval.list": Method("operator.approvals", "approvals.approval_list"),
    "exec.approvals.get": Method("operator.admin", "approvals.approvals_get"),
    "exec.approvals.set": Method("operator.admin", "approvals.approvals_set", audited=True),
    "tokens.create": Method("operator.admin", "tokens.tokens_create", audited=True),
    "tokens.list": Method("operator.admin", "tokens.tokens_list"),
    "tokens.revoke": Method("operator.admin", "tokens.tokens_revoke", audited=True),
    "tokens.rotate": Method("operator.admin", "tokens.tokens_rotate", audited=True),
    "audit.list": Method("operator.admin", "audit.audit_list"),
    "system-presence": Method("operator.read", "presence.system_presence"),
    "last-heartbeat": Method("operator.read", "presence.last_heartbeat"),
}
