"""Keys that ask for a protection this version cannot give: the gateway does not start with them rather than ignore them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mayros.config.schema import Config
from mayros.config.source import value_at
from mayros.errors import ConfigError


def refuse_unsupported(config: Config, raw: dict[str, Any]) -> None:
    """Raise ConfigError (status 78) for the first such key. `raw` is the tree of `Loaded.raw`; the list is in docs/configuration.md."""
    for path, reason in _asked(config, raw):
        raise ConfigError(f"{path}: this version cannot do that and does not start as if it could: {reason}")


def _asked(config: Config, raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
    gateway = config.gateway
    if gateway.bind in ("tailnet", "auto"):
        yield "gateway.bind", f"{gateway.bind} is not offered; use loopback, lan, or custom with gateway.customBindHost"
    if _given(headers := value_at(raw, "gateway", "http", "securityHeaders")) and isinstance(headers, dict) and any(map(_given, headers.values())):
        yield "gateway.http.securityHeaders", "let the TLS proxy add the headers"
    if _given(value_at(raw, "agents", "defaults", "limits")):
        yield "agents.defaults.limits", "write limits on all agents together as limits, and those of one agent as agents.list[].limits"
    agents = value_at(raw, "agents", "list")
    for path, host in _hosts(config):
        if host in ("sandbox", "node"):
            yield path, f"commands run on the gateway's host, under approvals; {host} is not offered: remove the key or set it to gateway"
    for path, sandbox in (
        ("agents.defaults.sandbox", value_at(raw, "agents", "defaults", "sandbox")),
        *((f"agents.list[{number}].sandbox", value_at(agent, "sandbox")) for number, agent in enumerate(agents if isinstance(agents, list) else ())),
    ):
        mode = value_at(sandbox, "mode")
        if mode is not None and mode != "off":
            yield f"{path}.mode", "there are no sandboxes: tools run in the gateway's account; forbid them under tools.deny, or set it to off"
    if _denies(value_at(raw, "session", "sendPolicy")):
        yield "session.sendPolicy", "no session is barred from sending"
    if _given(value_at(raw, "logging", "redactPatterns")):
        yield "logging.redactPatterns", "only the built-in patterns of secrets are hidden from the log"


def _hosts(config: Config) -> Iterator[tuple[str, str | None]]:
    yield "tools.exec.host", config.tools.exec.host
    for number, agent in enumerate(config.agents.list):
        yield f"agents.list[{number}].tools.exec.host", agent.tools.exec.host


def _given(value: Any) -> bool:
    """Whether a key asks for anything; an empty object, an empty list, null and false do not."""
    return value not in (None, False, "", [], {})


def _denies(policy: Any) -> bool:
    if isinstance(policy, str):
        return policy.strip().lower() == "deny"
    if isinstance(policy, dict):
        return any(_denies(value) for value in policy.values() if isinstance(value, str | dict | list))
    return isinstance(policy, list) and any(_denies(item) for item in policy)
