"""Whether a command may run: the rules, and a person where they say so. Implements the port Permission. Imports mayros.core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from twisted.logger import Logger

from mayros.config.schema import ToolsExec
from mayros.core.approvals import MAX_COMMAND, Approvals, Question, about, digest
from mayros.core.audit_ports import Actor
from mayros.core.exec_ports import AllowedExec, ExecAsk, ExecPolicy, ExecRequest, ExecSecurity
from mayros.core.exec_rules import ExecRules, Layer, Verdict, stricter_fallback, strictest
from mayros.core.ports import SessionSettings
from mayros.core.session_ports import Sessions
from mayros.core.tool_ports import ToolContext
from mayros.errors import GatewayError, ToolFailed

log = Logger()

_NOTHING = SessionSettings()


class _Judged(NamedTuple):
    """What the rules say of one command. `found`: the entries that allow it; None: it is not on the list, or was not understood."""

    verdict: Verdict
    layers: Sequence[Layer]
    found: Sequence[AllowedExec] | None
    fallback: ExecSecurity


class ExecPermission:
    """Judges by the configuration of the run's agent, what is stored for it, what its session and the call ask for: the strictest holds."""

    def __init__(self, rules: ExecRules, approvals: Approvals, sessions: Sessions) -> None:
        self._rules, self._approvals, self._sessions = rules, approvals, sessions

    async def allow(self, request: ExecRequest, context: ToolContext) -> None:
        """See exec_ports.Permission."""
        judged = self._judge(request, context, await self._session(context))
        if judged.verdict == "ask":
            always = self._rules.lasting(request.resolved) if request.analysed else ()
            await self._ask(request, context, judged, always)
            # The rules, or what is set for the session, may have become stricter meanwhile.
            judged = self._judge(request, context, await self._session(context))
        if judged.verdict == "refuse":
            raise ToolFailed(_refused(judged.layers, request))
        if judged.found:
            self._rules.used(judged.found, request.resolved, request.command)

    def _judge(self, request: ExecRequest, context: ToolContext, session: SessionSettings) -> _Judged:
        configured, stored = context.turn.agent.exec, self._rules.policy(request.agent_id)
        found = self._rules.find(request.agent_id, request.resolved) if request.analysed else None
        layers = _layers(configured, stored, session, request)
        fallback = stricter_fallback(configured.ask_fallback, stored.ask_fallback)
        return _Judged(strictest(layers, found is not None), layers, found, fallback)

    async def _session(self, context: ToolContext) -> SessionSettings:
        """What clients have set for the session, with the stored rules at hand; one that is made for its request has nothing set.

        Raises ToolFailed where they cannot be read.
        """
        try:
            await self._rules.ready()
            row = None if context.turn.stateless else await self._sessions.get(str(context.turn.session))
        except GatewayError as error:
            raise ToolFailed("The rules for commands cannot be read at the moment, so nothing may run. Try again later.") from error
        return _NOTHING if row is None else row.settings

    async def _ask(self, request: ExecRequest, context: ToolContext, judged: _Judged, always: Sequence[str]) -> None:
        """Return where a person, or what holds without one, allows it. Raises ToolFailed."""
        approvals = self._approvals
        if not approvals.audience.present(request.session):
            _unanswered("nobody is connected who could approve it", judged)
            return
        if len(request.command) > MAX_COMMAND:
            raise ToolFailed(f"Nobody can be asked to approve a command of more than {MAX_COMMAND} characters. Write a script, and run that.")
        shown = _strictest_settings(judged.layers)
        question = Question(
            request.command,
            request.cwd,
            "gateway",
            shown.security,
            shown.ask,
            request.agent_id,
            request.resolved[0] if request.resolved else None,
            request.session,
            request.env,
            request.pty,
            request.background,
            tuple(always),
        )
        try:
            approval = approvals.ask(question)
        except GatewayError as error:
            raise ToolFailed(error.message) from error
        actor = Actor(f"agent:{request.agent_id}", "gateway", context.principal.id)
        approvals.audit.note(actor, "exec.approval.request", approval.id, run=context.turn.run_id, **about(question))
        context.update(f"Waiting for somebody to approve this command (approval {approval.id}).")
        try:
            await context.waiting(approvals.decision(approval))
        finally:
            approvals.withdraw(approval)  # does nothing where it is decided
        decision = approvals.use(approval, digest(request))
        if decision is None:
            _unanswered("nobody approved it in time", judged)
        elif decision == "deny":
            raise ToolFailed("The command was denied. Do not try to do the same in another way: ask the user, or go on without it.")
        elif decision == "allow-always":
            await self._remember(request, always)

    async def _remember(self, request: ExecRequest, paths: Sequence[str]) -> None:
        """The person said always; that this cannot be kept does not take back that it may run now."""
        for path in paths:
            try:
                await self._rules.allow(request.agent_id, path, request.command)
            except GatewayError as error:
                log.error("{path} was not put on the list of agent {agent}: {reason}", path=path, agent=request.agent_id, reason=error.message)


def _unanswered(why: str, judged: _Judged) -> None:
    """Without a person, `askFallback` decides. Raises ToolFailed."""
    if judged.fallback == "full" or (judged.fallback == "allowlist" and judged.found is not None):
        return
    raise ToolFailed(f"The command needs an approval, and {why}. Tell the user what you wanted to run, or go on without it.")


def _layers(configured: ToolsExec, stored: ExecPolicy, session: SessionSettings, request: ExecRequest) -> Sequence[Layer]:
    """What a layer leaves open it takes from the configuration."""
    asked = (
        (stored.security, stored.ask),
        (cast(ExecSecurity | None, session.exec_security), cast(ExecAsk | None, session.exec_ask)),
        (request.security, request.ask),
    )
    own = Layer(configured.security, configured.ask)
    return (own, *(Layer(security or own.security, ask or own.ask) for security, ask in asked if security or ask))


def _strictest_settings(layers: Sequence[Layer]) -> Layer:
    """For the person who is asked: what rules led here."""
    securities: Sequence[ExecSecurity] = ("deny", "allowlist", "full")
    asks: Sequence[ExecAsk] = ("always", "on-miss", "off")
    return Layer(min((layer.security for layer in layers), key=securities.index), min((layer.ask for layer in layers), key=asks.index))


def _refused(layers: Sequence[Layer], request: ExecRequest) -> str:
    if any(layer.security == "deny" for layer in layers):
        return "Commands are not allowed here. Go on without them."
    if not request.analysed:
        return (
            "Only listed programs may run, and this command line cannot be checked against the list. Use plain commands, without redirections,"
            " substitutions or shell syntax other than | && || ;"
        )
    return f"Only listed programs may run, and this one is not listed: {', '.join(request.resolved)[:1000]}. Go on without it, or tell the user."
