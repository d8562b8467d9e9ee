"""Who may come in: authentication, where it listens, proxies, browsers, and keys of the original that would open it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mayros.config.check import secret_problem
from mayros.config.show import conceals
from mayros.config.source import join
from mayros.config.toolnames import matches
from mayros.ops.subject import Finding, Subject

TOKEN_LENGTH, PASSWORD_LENGTH = 32, 24
_PLACEHOLDER = re.compile(
    r"<.*>|(.)\1*"
    r"|(your|my|the|a|change|replace|enter|insert|put|set)[-_ ]?([a-z0-9]+[-_ ])*(token|password|passwd|secret|key|me|this|here|it)([-_ ]here)?"
    r"|(gateway[-_]?)?(token|password|passwd|secret|admin|test|example|placeholder|default|todo|mayros|openclaw|letmein|qwerty|undefined|null|none)\d*"
    r"|1234\d*|abc123|dummy.*|sample.*|changeme.*",
    re.IGNORECASE,
)
_REFERENCE = re.compile(r"\$\{[A-Z_][A-Z0-9_]*\}")
#: Tools that the original keeps from its HTTP door unless `gateway.tools.allow` has them.
_STRONG = ("exec", "write", "edit", "apply_patch", "process", "sessions_spawn", "sessions_send", "cron", "gateway", "nodes")


def open_without_authentication(subject: Subject) -> Iterator[Finding]:
    """Without authentication it listens on loopback only."""
    if _mode(subject) == "none" and subject.open_to_others:
        text = f"gateway.auth.mode is none and gateway.bind is {subject.gateway.bind}: whoever reaches the port is its owner (it does not start so)"
        yield Finding("gateway.bind.no-auth", "critical", text, "mayros config set gateway.auth.mode token, or gateway.bind loopback")


def http_without_authentication(subject: Subject) -> Iterator[Finding]:
    """Without authentication the HTTP endpoints are off: every program and every user of this machine reaches loopback."""
    endpoints = subject.gateway.http.endpoints
    on = [name for name, one in (("chatCompletions", endpoints.chat_completions), ("responses", endpoints.responses)) if one.enabled]
    if _mode(subject) == "none" and on:
        text = f"gateway.auth.mode is none, and these HTTP endpoints are on: {', '.join(on)}; every user of this machine can have agents act as you"
        yield Finding("gateway.http.no-auth", "critical", text, "mayros config set gateway.auth.mode token")


def proxies_without_authentication(subject: Subject) -> Iterator[Finding]:
    """Without authentication no proxy is trusted: it would let the world in as if it were this machine."""
    if _mode(subject) == "none" and subject.gateway.trusted_proxies:
        text = "gateway.auth.mode is none, and gateway.trustedProxies has entries: whoever reaches the proxy would be the owner"
        yield Finding("gateway.trustedProxies.no-auth", "critical", text, "mayros config set gateway.auth.mode token")


def secret_strong(subject: Subject) -> Iterator[Finding]:
    """The token or password is none that can be guessed."""
    secret = subject.secret
    if secret is None or secret.value is None:
        return
    least = PASSWORD_LENGTH if secret.mode == "password" else TOKEN_LENGTH
    how = "mayros config set gateway.auth.token --value-file FILE (openssl rand -base64 32 makes one)"
    if secret_problem(secret.value) is not None or _PLACEHOLDER.fullmatch(secret.value.strip()):
        yield Finding("gateway.auth.placeholder", "critical", f"the gateway's {secret.mode} ({secret.source}) is a placeholder", how)
    elif len(secret.value) < least:
        text = f"the gateway's {secret.mode} ({secret.source}) has {len(secret.value)} characters; fewer than {least} can be guessed"
        yield Finding("gateway.auth.short", "warn", text, how.replace("auth.token", f"auth.{secret.mode}"))


def failures_limited(subject: Subject) -> Iterator[Finding]:
    """Off loopback, guessing is limited."""
    if subject.open_to_others and subject.gateway.auth.rate_limit is None and _mode(subject) != "none":
        text = f"gateway.bind is {subject.gateway.bind}, and nothing limits how often somebody may guess the secret"
        yield Finding(
            "gateway.auth.no-rate-limit", "warn", text, "mayros config set gateway.auth.rateLimit '{}' (10 failures a minute, then 5 minutes)"
        )


def encrypted_off_loopback(subject: Subject) -> Iterator[Finding]:
    """Off loopback, there is TLS or a proxy that does it."""
    gateway = subject.gateway
    if subject.open_to_others and not gateway.tls.enabled and not gateway.trusted_proxies:
        text = f"gateway.bind is {gateway.bind} without TLS: the secret and every conversation can be read on the network"
        yield Finding(
            "gateway.tls.off", "warn", text, "put a TLS proxy in front (gateway.trustedProxies), switch gateway.tls on, or bind to loopback"
        )


def proxy_users_listed(subject: Subject) -> Iterator[Finding]:
    """Behind an authenticating proxy, the users who may come in are listed."""
    if _mode(subject) == "trusted-proxy" and not subject.gateway.auth.trusted_proxy.allow_users:
        text = "gateway.auth.mode is trusted-proxy, and everybody whom the proxy knows may come in"
        yield Finding("gateway.auth.trustedProxy.all-users", "warn", text, "list them in gateway.auth.trustedProxy.allowUsers")


def real_ip_not_believed(subject: Subject) -> Iterator[Finding]:
    """No address is taken from X-Real-IP, which some proxies let pass."""
    if subject.gateway.allow_real_ip_fallback:
        text = "gateway.allowRealIpFallback: a client can choose its address where the proxy does not set X-Real-IP itself"
        yield Finding("gateway.real-ip", "warn", text, "have the proxy set X-Forwarded-For, and mayros config unset gateway.allowRealIpFallback")


def devices_authenticated(subject: Subject) -> Iterator[Finding]:
    """No key asks for devices without proof. This version honours none of them, but other programs that read the file do."""
    for name in ("dangerouslyDisableDeviceAuth", "allowInsecureAuth", "dangerouslyAllowHostHeaderOriginFallback"):
        if subject.said("gateway", "controlUi", name) is True:
            text = f"gateway.controlUi.{name} is true: it switches a protection off (this version does not honour it; others do)"
            yield Finding("gateway.controlUi.insecure", "critical", text, f"take gateway.controlUi.{name} out of the file")


def hooks_apart(subject: Subject) -> Iterator[Finding]:
    """Hooks have a secret of their own, and do not choose sessions."""
    token = subject.said("hooks", "token")
    if isinstance(token, str) and subject.secret is not None and token == subject.secret.value:
        text = "hooks.token is the gateway's own secret: whoever may send a hook would be the owner"
        yield Finding("hooks.shared-secret", "critical", text, "give hooks.token a value of its own")
    if subject.said("hooks", "allowRequestSessionKey") is True:
        text = "hooks.allowRequestSessionKey: whoever sends a hook may write into any conversation"
        yield Finding("hooks.session-key", "warn", text, "take hooks.allowRequestSessionKey out of the file")


def strong_tools_over_http(subject: Subject) -> Iterator[Finding]:
    """`gateway.tools.allow` does not give back what the HTTP door withholds. This version has no such door, but other programs do."""
    allowed = subject.said("gateway", "tools", "allow")
    patterns = [one for one in allowed if isinstance(one, str)] if isinstance(allowed, list) else []
    found = [name for name in _STRONG if any(matches(name, one) for one in patterns)]
    if found:
        text = f"gateway.tools.allow gives callers over HTTP: {', '.join(found)}, without asking anybody"
        yield Finding("gateway.tools.strong", "critical", text, "take them out of gateway.tools.allow")


def log_discreet(subject: Subject) -> Iterator[Finding]:
    """The log says no more than it must."""
    if subject.said("logging", "redactSensitive") in ("off", False):
        text = "logging.redactSensitive is off (this version hides secrets all the same; others do not)"
        yield Finding("logging.redaction", "warn", text, "take logging.redactSensitive out of the file")
    logging = subject.config.logging
    if "debug" in (logging.level, logging.console_level):
        text = "the log is at debug: it grows fast and tells more about people and their work"
        yield Finding("logging.debug", "warn", text, "mayros config set logging.level info")


def secrets_in_the_file(subject: Subject) -> Iterator[Finding]:
    """Keys come from the environment or from files, so that the configuration can be shown and copied."""
    found = [path for path in _literal(subject.written, (), "") if path != "gateway.auth.token"]
    if found:
        shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        text = f"the configuration holds secrets as they are: {shown}"
        yield Finding("config.secrets", "info", text, "write ${NAME} there, and NAME=value in the .env of the state directory (mode 600)")


def _literal(tree: Any, keys: tuple[str, ...], path: str) -> Iterator[str]:
    """The paths of secrets that are written out."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _literal(value, (*keys, key), join(path, key))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from _literal(value, keys, f"{path}[{number}]")
    elif isinstance(tree, str) and tree and not _REFERENCE.search(tree) and keys[:1] != ("env",) and conceals(keys):
        yield path


def _mode(subject: Subject) -> str:
    return subject.secret.mode if subject.secret is not None else subject.gateway.auth.mode or "token"
