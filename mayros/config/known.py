"""Which keys there are: a tree against the schema, key by key. Pure; imports schema, source and errors.

Three kinds of key: those of schema.py, those of the original that this version does not implement (one warning each), and unknown ones (an
error where a slip of the pen would cost a protection, else a warning).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from mayros.config.schema import Config
from mayros.config.section import Bytes, Milliseconds
from mayros.config.source import below, join
from mayros.errors import ConfigError

_TOOLS_LATER = """
    elevated subagents agentToAgent media links message sandbox sessions web exec.node exec.notifyOnExit exec.approvalRunningNoticeMs exec.cleanupMs
    loopDetection.historySize loopDetection.warningThreshold loopDetection.criticalThreshold loopDetection.globalCircuitBreakerThreshold
    loopDetection.detectors
"""
#: Keys of the original, or of this project's later versions. `[]` stands for any index, `*` for any name.
LATER = (
    below("", "acp approvals audio bindings broadcast browser canvasHost channels cli commands cron diagnostics discovery hooks mcp")
    | below("", "media memory messages meta nodeHost plugins secrets talk ui update web wizard")
    | below("gateway.", "channelHealthCheckMinutes nodes push tailscale tools http.securityHeaders")
    | below("gateway.controlUi.", "allowInsecureAuth dangerouslyAllowHostHeaderOriginFallback dangerouslyDisableDeviceAuth basePath root")
    | below("gateway.http.endpoints.", "responses")
    | below("gateway.http.endpoints.chatCompletions.", "maxBodyBytes files.allowUrl files.urlAllowlist files.maxRedirects files.timeoutMs")
    | below("gateway.http.endpoints.chatCompletions.files.pdf.", "maxPixels minTextChars")
    | below("agents.defaults.", "blockStreamingBreak blockStreamingChunk blockStreamingCoalesce blockStreamingDefault cliBackends compaction")
    | below("agents.defaults.", "contextPruning elevatedDefault embeddingModel envelopeElapsed envelopeTimestamp envelopeTimezone heartbeat")
    | below("agents.defaults.", "humanDelay imageMaxDimensionPx imageModel limits mediaMaxMb memorySearch models.*.streaming pdfModel repoRoot")
    | below("agents.defaults.", "sandbox subagents timeFormat typingIntervalSeconds typingMode verboseDefault")
    | below("agents.list[].", "agentDir groupChat heartbeat humanDelay memorySearch sandbox subagents")
    | below("session.", "agentToAgent dmScope identityLinks idleMinutes maintenance parentForkMaxTokens reset resetByChannel resetByType")
    | below("session.", "resetTriggers sendPolicy threadBindings typingIntervalSeconds typingMode")
    | below("models.", "bedrockDiscovery providers.*.auth providers.*.injectNumCtxForOpenAICompat")
    | below("models.providers.*.models[].", "api headers")
    | below("tools.", _TOOLS_LATER)
    | below("agents.list[].tools.", _TOOLS_LATER)
    | below("skills.", "allowBundled install limits entries.*.apiKey entries.*.env entries.*.config load.watch load.watchDebounceMs")
    | below("logging.", "redactPatterns redactSensitive")
)
#: Below these an unknown key is an error: it was probably meant to protect.
STRICT = ("gateway.auth", "gateway.bind", "gateway.tls", "tools", "agents.list[].tools")
#: A value with its path, its generic path (`[]` and `*`) and its type in the schema.
Node = tuple[str, str, Any, Any]


def check_keys(tree: dict[str, Any], name: str, warnings: list[str], *, strict: bool) -> None:
    """Judge every key of a tree. Raises ConfigError for one that is refused; adds to `warnings` for the rest, once for each kind of key."""
    seen: set[str] = set()

    def later(generic: str, reason: str = "not implemented by this version, ignored") -> None:
        if generic not in seen:
            seen.add(generic)
            warnings.append(f"{generic}: {reason}")

    def visit(node: Node) -> None:
        path, generic, value, kind = node
        struct = _struct(kind)
        if struct is not None and isinstance(value, dict):
            known = [field.encode_name for field in _fields(struct)]
            for key in value:
                place, general = join(path, key), join(generic, key)
                if general in LATER:
                    later(general)
                elif key not in known:
                    known_here = known + [known_path.rpartition(".")[2] for known_path in LATER if known_path.rpartition(".")[0] == generic]
                    _unknown(place, path, key, known_here, name, warnings, fatal=strict or _is_strict(generic))
        for child in children(node):
            if child[1] not in LATER:
                visit(child)

    visit(("", "", tree, Config))


def _is_strict(generic: str) -> bool:
    return any(generic == prefix or generic.startswith((prefix + ".", prefix + "[")) for prefix in STRICT)


def _unknown(place: str, path: str, key: str, known: list[str], name: str, warnings: list[str], *, fatal: bool) -> None:
    lowered = {one.lower(): one for one in known}
    near = difflib.get_close_matches(key.lower()[:100], lowered, 1, 0.0 if fatal else 0.6)
    hint = f"; the nearest known key is {join(path, lowered[near[0]])}" if near else ""
    if fatal:
        raise ConfigError(f"{name}: {place}: unknown key{hint}")
    warnings.append(f"{place}: unknown key, ignored{hint}")


@cache
def _fields(struct: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    # msgspec works them out anew each time, which is most of the time that a reading takes.
    return msgspec.structs.fields(struct)


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _struct(kind: Any) -> type[msgspec.Struct] | None:
    return next((one for one in _members(kind) if isinstance(one, type) and issubclass(one, msgspec.Struct)), None)


def children(node: Node) -> Iterator[Node]:
    """The members of a value that the schema knows, each with its own type."""
    path, generic, value, kind = node
    if isinstance(value, dict) and (struct := _struct(kind)) is not None:
        for field in _fields(struct):
            if field.encode_name in value:
                yield join(path, field.encode_name), join(generic, field.encode_name), value[field.encode_name], field.type
        return
    for member in _members(kind):
        if isinstance(value, dict) and get_origin(member) is dict:
            kind_below = get_args(member)[1]
            for key, item in value.items():
                yield join(path, key), f"{generic}.*", item, kind_below
        elif isinstance(value, list) and get_origin(member) is tuple:
            kind_below = get_args(member)[0]
            for number, item in enumerate(value):
                yield f"{path}[{number}]", f"{generic}[]", item, kind_below


def decode(tree: dict[str, Any], name: str) -> Config:
    """The configuration of a tree. Raises ConfigError with the key path of the first value of a wrong type."""
    try:
        return msgspec.convert(tree, Config, dec_hook=_number_with_unit)
    except msgspec.ValidationError as error:
        path, text = _locate(("", "", tree, Config)) or ("", str(error))
    raise ConfigError(f"{name}: {path}: {text}" if path else f"{name}: {text}")


def _locate(node: Node) -> tuple[str, str] | None:
    """The deepest place where a value is not of its type, and why; None where it is."""
    path, _, value, kind = node
    try:
        msgspec.convert(value, kind, dec_hook=_number_with_unit)
    except msgspec.ValidationError as error:
        for child in children(node):
            if (found := _locate(child)) is not None:
                return found
        words = [word for one in _members(kind) if get_origin(one) is Literal for word in get_args(one)]
        if words:
            return path, f"must be one of {', '.join(words)}"
        return path, re.sub(r" - at `\$.*`$", "", str(error)).replace("`", "")
    return None


_UNITS: dict[type, dict[str, float]] = {
    Milliseconds: {"": 1, "ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000},
    Bytes: {"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30},
}
_MOST = {Milliseconds: 3650 * 86_400_000, Bytes: 1 << 50}
_HELP = {
    Milliseconds: 'must be a duration of at most 3650 days: milliseconds, or a number with ms, s, m, h or d such as "30s"',
    Bytes: 'must be a size of at most 1 PB: bytes, or a number with b, kb, mb or gb such as "32mb"',
}
_QUANTITY = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)\s*")


def _number_with_unit(kind: type, value: Any) -> Any:
    """msgspec's hook for `Milliseconds` and `Bytes`. Raises ValueError, which msgspec turns into its own error."""
    if kind not in _UNITS:
        raise NotImplementedError(kind)
    number: float = -1
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value)
        if match and match[2].lower() in _UNITS[kind]:
            number = float(match[1]) * _UNITS[kind][match[2].lower()]
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    if not 0 <= number <= _MOST[kind]:
        raise ValueError(_HELP[kind])
    return kind(round(number))
