"""Sessions as clients see them in lists, in answers to changes and in `status`. Pure. Imports mayros.core."""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

from mayros.core.routing import Settings
from mayros.core.session_ports import SessionRow

#: One firing of a scheduled job: not listed.
_JOB_RUN = re.compile(r"agent:[^:]+:cron:[^:]+:run:.+", re.IGNORECASE)
_GROUP = re.compile(r":(?:group|channel):")
#: Settings that lists show; the others are shown where a session is changed.
_LISTED = ("thinking_level", "verbose_level", "reasoning_level", "elevated_level", "send_policy", "response_usage", "spawned_by")


class Chosen(NamedTuple):
    """The model that a session's next run asks first."""

    provider: str | None
    model: str | None
    context_tokens: int | None

    @property
    def ref(self) -> str | None:
        """`provider/model`."""
        return f"{self.provider}/{self.model}" if self.model is not None else None


def chosen(settings: Settings, agent_id: str, row: SessionRow | None = None) -> Chosen:
    """The session's own model, else its agent's first. A model that is not configured any more does not count (core/agent.py)."""
    agent = settings.directory.agents.get(agent_id)
    own = row.settings.model if row is not None else None
    model = settings.catalogue.find(own) if own is not None else None
    if model is None and agent is not None and agent.models:
        model = agent.models[0]
    if model is None:
        return Chosen(None, None, None)
    limit = agent.context_tokens if agent is not None else None
    return Chosen(model.provider.id, model.id, min(model.context_window, limit or model.context_window))


def kind(key: str) -> str:
    """`direct` or `group`."""
    return "group" if _GROUP.search(key) else "direct"


def hidden(key: str) -> bool:
    """Whether lists leave the session out."""
    return _JOB_RUN.fullmatch(key) is not None


def context_used(row: SessionRow | None) -> int | None:
    """Tokens of the newest prompt; None before the first turn."""
    usage = row.last_usage if row is not None else None
    return usage.input + usage.cache_read + usage.cache_write if usage is not None else None


def _counts(row: SessionRow) -> dict[str, object]:
    used = context_used(row)
    found: dict[str, object] = {
        "systemSent": row.turns > 0,
        "abortedLastRun": row.last_outcome == "aborted",
        "inputTokens": row.input_tokens,
        "outputTokens": row.output_tokens,
        "totalTokens": used or 0,
        "totalTokensFresh": used is not None or row.turns == 0,
    }
    if row.last_usage is not None:
        found |= {"cacheRead": row.last_usage.cache_read, "cacheWrite": row.last_usage.cache_write}
    return found


def _settings(row: SessionRow, names: tuple[str, ...]) -> dict[str, object]:
    fields = {field.name: field.encode_name for field in msgspec.structs.fields(row.settings)}
    return {fields[name]: value for name in names if (value := getattr(row.settings, name)) is not None}


def listed(settings: Settings, row: SessionRow) -> dict[str, object]:
    """A row of `sessions.list`."""
    model = chosen(settings, row.agent_id, row)
    found: dict[str, object] = {
        "key": row.key,
        "kind": kind(row.key),
        "chatType": kind(row.key),
        "updatedAt": row.updated_ms,
        "sessionId": row.session_id,
        **_counts(row),
        **_settings(row, _LISTED),
        "modelProvider": model.provider,
        "model": model.model,
        "contextTokens": model.context_tokens,
    }
    if row.settings.label is not None:
        found |= {"label": row.settings.label, "displayName": row.settings.label}
    if row.title is not None:
        found["derivedTitle"] = row.title
    if row.preview is not None:
        found["lastMessagePreview"] = row.preview
    return found


def entry(settings: Settings, row: SessionRow) -> dict[str, object]:
    """What a session is after a change, with all that was set for it."""
    model = chosen(settings, row.agent_id, row)
    names = tuple(field.name for field in msgspec.structs.fields(row.settings) if field.name != "model")
    found: dict[str, object] = {
        "sessionId": row.session_id,
        "updatedAt": row.updated_ms,
        **_counts(row),
        **_settings(row, names),
        "chatType": kind(row.key),
        "modelProvider": model.provider,
        "model": model.model,
        "contextTokens": model.context_tokens,
    }
    if row.settings.model is not None:
        found |= {"providerOverride": model.provider, "modelOverride": model.model}
    return found


def told(settings: Settings, row: SessionRow, now_ms: int) -> dict[str, object]:
    """A row of `status`."""
    model, used = chosen(settings, row.agent_id, row), context_used(row)
    window = model.context_tokens
    flags = [f"{short}:{value}" for short, value in (("think", row.settings.thinking_level), ("verbose", row.settings.verbose_level)) if value]
    flags += ["system"] if row.turns else []
    flags += ["aborted"] if row.last_outcome == "aborted" else []
    return {
        "agentId": row.agent_id,
        "key": row.key,
        "kind": kind(row.key),
        "sessionId": row.session_id,
        "updatedAt": row.updated_ms,
        "age": max(0, now_ms - row.updated_ms),
        **_counts(row),
        **_settings(row, _LISTED),
        "totalTokens": used,
        "remainingTokens": max(0, window - used) if window is not None and used is not None else None,
        "percentUsed": min(999, round(100 * used / window)) if window and used is not None else None,
        "model": model.model,
        "contextTokens": window,
        "flags": [*flags, f"id:{row.session_id}"],
    }
