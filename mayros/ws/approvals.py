"""What clients hear of approvals: which commands wait for one, and how that ended. Imports mayros.core and mayros.ws."""

from __future__ import annotations

from collections.abc import Mapping

from mayros.core.approvals import Approval
from mayros.ws.broadcast import Broadcaster

SCOPE = "operator.approvals"


class Approvers:
    """The audience of core.approvals.Approvals: all connections that may answer."""

    def __init__(self, broadcaster: Broadcaster) -> None:
        self._broadcaster = broadcaster

    def present(self, session: str) -> bool:
        """See core.approvals.Audience."""
        return self._broadcaster.anyone(SCOPE, session)

    def requested(self, approval: Approval) -> None:
        """See core.approvals.Audience."""
        self._broadcaster.publish("exec.approval.requested", asked(approval), SCOPE, True, session=approval.question.session_key or "")

    def resolved(self, approval: Approval, now_ms: int) -> None:
        """See core.approvals.Audience. `decision` is null where nobody decided."""
        payload = {"id": approval.id, "decision": approval.decision, "resolvedBy": approval.resolved_by, "ts": now_ms}
        self._broadcaster.publish("exec.approval.resolved", payload, SCOPE, True, session=approval.question.session_key or "")


def asked(approval: Approval) -> Mapping[str, object]:
    """A question on the wire."""
    question = approval.question
    request: dict[str, object] = {
        "command": question.command,
        "cwd": question.cwd,
        "host": question.host,
        "security": question.security,
        "ask": question.ask,
        "agentId": question.agent_id,
        "resolvedPath": question.resolved_path,
        "sessionKey": question.session_key,
    }
    if question.env:
        request["env"] = dict(question.env)
    if question.pty:
        request["pty"] = True
    if question.background:
        request["background"] = True
    if question.always is not None:
        request["always"] = question.always
    return {"id": approval.id, "request": request, "createdAtMs": approval.created_ms, "expiresAtMs": approval.expires_ms}
