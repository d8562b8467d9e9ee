"""`exec.approval.*`: may this command run? `exec.approvals.*`: the rules that are kept for that. Imports mayros.core and mayros.wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from mayros.core.approvals import DECISIONS, DEFAULT_MS, LONGEST_MS, MAX_COMMAND, Approval, Question, about
from mayros.core.audit import Act
from mayros.core.claims import shielded
from mayros.core.exec_ports import AllowedExec, ExecAsk, ExecPolicy, ExecSecurity
from mayros.core.exec_rules import ANY_AGENT, DEFAULTS, ExecRules
from mayros.core.keys import normalise_agent_id, valid_agent_id
from mayros.core.reach import sees
from mayros.errors import InvalidRequest
from mayros.wire.frames import Request, Text, parse_params
from mayros.ws.acts import actor_of
from mayros.ws.approvals import asked
from mayros.ws.methods.where import own_session

if TYPE_CHECKING:
    from mayros.ws.session import Session

Short = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Place = Annotated[str, msgspec.Meta(max_length=4096)]
_RELOAD = "re-run exec.approvals.get and retry"


class RequestParams(msgspec.Struct, frozen=True, rename="camel"):
    """Of exec.approval.request."""

    command: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_COMMAND)]
    id: Short | None = None
    cwd: Place | None = None
    host: Place | None = None
    security: ExecSecurity | None = None
    ask: ExecAsk | None = None
    agent_id: Place | None = None
    resolved_path: Place | None = None
    session_key: Place | None = None
    timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=LONGEST_MS)] | None = None
    two_phase: bool = False


class WaitParams(msgspec.Struct, frozen=True):
    """Of exec.approval.waitDecision."""

    id: Text


class ResolveParams(msgspec.Struct, frozen=True):
    """Of exec.approval.resolve."""

    id: Text
    decision: str


class NoParams(msgspec.Struct, frozen=True):
    """Of exec.approval.list and exec.approvals.get: none."""


class AllowedEntry(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """One pattern of a list."""

    pattern: Text
    id: Short | None = None
    last_used_at: int | None = None
    last_used_command: str | None = None
    last_resolved_path: str | None = None


class DefaultRules(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """What is kept for all agents."""

    security: ExecSecurity | None = None
    ask: ExecAsk | None = None
    ask_fallback: ExecSecurity | None = None
    auto_allow_skills: bool | None = None


class AgentRules(DefaultRules, frozen=True):
    """What is kept for one agent; `*`: for any that has none of its own. `auto_allow_skills` has no effect."""

    allowlist: tuple[AllowedEntry, ...] = ()


class RulesFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it, as other gateways of this protocol keep it in a file. `socket` has no effect and is not kept."""

    version: Literal[1]
    socket: dict[str, Any] | None = None
    defaults: DefaultRules = DefaultRules()
    agents: dict[str, AgentRules] = {}


class SetParams(msgspec.Struct, frozen=True, rename="camel"):
    """Of exec.approvals.set. `base_hash`: of what the caller has read."""

    file: RulesFile
    base_hash: str | None = None


def approval_request(session: Session, request: Request) -> None:
    """Ask whoever may answer, and wait for the decision; with `twoPhase`, say first that it was asked."""
    params = parse_params(RequestParams, request.params, "exec.approval.request")
    gateway, principal = session.gateway, session.principal
    where = params.session_key
    if principal.space is not None:
        # What it asks is about a session of its own, so that it hears of the answer, and is decided by whoever may decide for that.
        where = str(own_session(session, where or gateway.config.current.directory.main_key, "exec.approval.request"))
    question = Question(
        params.command,
        params.cwd,
        params.host,
        params.security,
        params.ask,
        params.agent_id,
        params.resolved_path,
        where,
    )
    approval = gateway.approvals.ask(question, params.timeout_ms or DEFAULT_MS, params.id)
    gateway.audit.note(actor_of(session), "exec.approval.request", approval.id, **about(question))
    if params.two_phase:
        session.reply(request.id, {"status": "accepted", "id": approval.id, **_times(approval)})
    session.spawn(request.id, _decided(session, request.id, approval))


def approval_wait(session: Session, request: Request) -> None:
    """Wait for the decision on a question that was asked before."""
    params = parse_params(WaitParams, request.params, "exec.approval.waitDecision")
    approval = session.gateway.approvals.get(params.id)
    if not _concerns(session, approval):
        raise InvalidRequest("unknown approval id")
    session.spawn(request.id, _decided(session, request.id, approval))


async def _decided(session: Session, request_id: str, approval: Approval) -> None:
    decision = await session.gateway.approvals.decision(approval)
    session.reply(request_id, {"id": approval.id, "decision": decision, **_times(approval)})


def _times(approval: Approval) -> Mapping[str, int]:
    return {"createdAtMs": approval.created_ms, "expiresAtMs": approval.expires_ms}


def approval_resolve(session: Session, request: Request) -> None:
    """Decide. `added`: the programs that "allow-always" puts on the agent's list, where the gateway itself asked."""
    params = parse_params(ResolveParams, request.params, "exec.approval.resolve")
    approval = next((one for one in session.gateway.approvals.pending() if one.id == params.id and _concerns(session, one)), None)
    if approval is None:
        raise InvalidRequest("unknown approval id")
    if params.decision not in DECISIONS:
        raise InvalidRequest("invalid decision")
    session.acting.tell(**about(approval.question))
    session.spawn(request.id, _resolve(session, request.id, session.acting, approval, params.decision))


async def _resolve(session: Session, request_id: str, act: Act, approval: Approval, decision: str) -> None:
    client = session.admitted.client if session.admitted is not None else None
    by = None if client is None else client.display_name or client.id
    added = approval.question.always if decision == "allow-always" else None
    if decision != "deny":
        # Nothing runs by the word of somebody who cannot be found afterwards (decision 0016). A denial must not wait for the store.
        act.tell(always=added or None)
        await act.record()
    session.gateway.approvals.resolve(approval.id, decision, by)
    session.reply(request_id, {"ok": True} if added is None else {"ok": True, "added": added})


def _concerns(session: Session, approval: Approval) -> bool:
    """Whether a question is about a session that the client may know of."""
    return sees(session.principal, approval.question.session_key or "")


def approval_list(session: Session, request: Request) -> None:
    """All questions that wait, the oldest first."""
    parse_params(NoParams, request.params, "exec.approval.list")
    session.reply(request.id, [asked(approval) for approval in session.gateway.approvals.pending() if _concerns(session, approval)])


def approvals_get(session: Session, request: Request) -> None:
    """The rules that are kept, with a hash for changing them."""
    parse_params(NoParams, request.params, "exec.approvals.get")

    async def work() -> None:
        rules = session.gateway.exec_rules
        await rules.ready()
        session.reply(request.id, _snapshot(rules))

    session.spawn(request.id, work())


def approvals_set(session: Session, request: Request) -> None:
    """Replace the rules that are kept, if they are still as the caller has read them."""
    params = parse_params(SetParams, request.params, "exec.approvals.set")
    entries, policies = _parsed(params.file)
    rules, act = session.gateway.exec_rules, session.acting

    async def change() -> None:
        await rules.ready()
        if rules.entries or rules.policies:
            if not params.base_hash:
                raise InvalidRequest(f"exec approvals base hash required; {_RELOAD}")
            if params.base_hash != rules.hash:
                raise InvalidRequest(f"exec approvals changed since last load; {_RELOAD}")
        had, wanted = ([f"{one.agent_id}: {one.pattern}" for one in some] for some in (rules.entries, entries))
        added, removed = ([one for one in some if one not in others] for some, others in ((wanted, set(had)), (had, set(wanted))))
        before, names = rules.policies, dict.fromkeys((*rules.policies, *policies))
        act.tell(added=added, removed=removed, policies=[_told(name, policies.get(name)) for name in names if before.get(name) != policies.get(name)])
        await rules.replace(entries, policies, act)

    async def work() -> None:
        await shielded(change())
        session.reply(request.id, _snapshot(rules))

    session.spawn(request.id, work())


def _told(name: str, policy: ExecPolicy | None) -> str:
    """A policy in one line, for the audit trail."""
    return f"{name}: {msgspec.json.encode(policy).decode() if policy is not None else 'none'}"


def _parsed(file: RulesFile) -> tuple[list[AllowedExec], dict[str, ExecPolicy]]:
    """The lists and the policies of a file. Raises InvalidRequest."""
    entries: list[AllowedExec] = []
    policies: dict[str, ExecPolicy] = {}
    if file.defaults != DefaultRules():
        policies[DEFAULTS] = _policy(file.defaults)
    for name, rules in file.agents.items():
        if name != ANY_AGENT and not valid_agent_id(name):
            raise InvalidRequest(f"invalid exec.approvals.set params: at /file/agents: {name[:64]!r} is no agent id")
        agent_id = name if name == ANY_AGENT else normalise_agent_id(name)
        if agent_id in policies:
            raise InvalidRequest(f"invalid exec.approvals.set params: at /file/agents: {agent_id} is there twice")
        # Also when it says nothing: that the agent is named is a thing the caller will look for.
        policies[agent_id] = _policy(rules)
        entries += [
            AllowedExec(one.id or "", agent_id, one.pattern, one.last_used_at, one.last_used_command, one.last_resolved_path)
            for one in rules.allowlist
        ]
    return entries, policies


def _policy(rules: DefaultRules) -> ExecPolicy:
    return ExecPolicy(rules.security, rules.ask, rules.ask_fallback, rules.auto_allow_skills)


def _snapshot(rules: ExecRules) -> Mapping[str, object]:
    """`{path, exists, hash, file}`; `path` is the store."""
    lists: dict[str, list[AllowedEntry]] = {}
    for entry in rules.entries:
        shown = AllowedEntry(entry.pattern, entry.id, entry.last_used_ms, entry.last_command, entry.last_resolved)
        lists.setdefault(entry.agent_id, []).append(shown)
    policies = rules.policies
    named = [name for name in dict.fromkeys((*policies, *lists)) if name != DEFAULTS]
    agents = {name: _rules(policies.get(name, ExecPolicy()), lists.get(name, ())) for name in named}
    own = policies.get(DEFAULTS, ExecPolicy())
    defaults = DefaultRules(own.security, own.ask, own.ask_fallback, own.auto_allow_skills)
    file = {"version": 1, "defaults": defaults, "agents": agents}
    return {"path": rules.place, "exists": bool(named or policies), "hash": rules.hash, "file": file}


def _rules(policy: ExecPolicy, allowlist: Any) -> AgentRules:
    return AgentRules(policy.security, policy.ask, policy.ask_fallback, policy.auto_allow_skills, tuple(allowlist))
