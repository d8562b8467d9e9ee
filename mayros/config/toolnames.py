"""The names of tools that policies may use: all of the original's, in the order of the prompt, with groups and profiles. Pure: data and look-ups."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple


class Known(NamedTuple):
    """A tool by name. `summary` is its line in the prompt; `here`: this gateway has it."""

    group: str
    summary: str
    here: bool = False


#: In the order of the prompt.
TOOLS: Mapping[str, Known] = MappingProxyType(
    {
        "read": Known("fs", "Read a file", True),
        "write": Known("fs", "Create or replace a file", True),
        "edit": Known("fs", "Replace an exact text in a file", True),
        "apply_patch": Known("fs", "Change several files by one patch", True),
        "exec": Known("runtime", "Run a shell command", True),
        "process": Known("runtime", "Look after commands in the background", True),
        "web_search": Known("web", "Search the web"),
        "web_fetch": Known("web", "Fetch a page of the web as text"),
        "browser": Known("ui", "Drive a web browser"),
        "canvas": Known("ui", "Show a canvas"),
        "nodes": Known("nodes", "Use paired devices"),
        "cron": Known("automation", "Plan later runs"),
        "message": Known("messaging", "Send messages to channels"),
        "gateway": Known("automation", "Restart or configure the gateway"),
        "agents_list": Known("agents", "List the agents that a session may be started for", True),
        "sessions_list": Known("sessions", "List sessions"),
        "sessions_history": Known("sessions", "Read another session"),
        "sessions_send": Known("sessions", "Send a message to another session"),
        "sessions_spawn": Known("sessions", "Start a session for a task"),
        "subagents": Known("sessions", "Look after the sessions that were started"),
        "session_status": Known("sessions", "Show or set the state of a session: time, model, tokens", True),
        "memory_search": Known("memory", "Search the memory files"),
        "memory_get": Known("memory", "Read a part of a memory file"),
        "image": Known("media", "Ask a model about images"),
        "tts": Known("media", "Speak a text"),
    }
)
#: Names that models and older files use.
ALIASES = {"bash": "exec", "apply-patch": "apply_patch"}


def _group(*groups: str) -> frozenset[str]:
    return frozenset(name for name, tool in TOOLS.items() if tool.group in groups)


#: `group:plugins` is for tools of programs beside the gateway; this version has none.
GROUPS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        **{f"group:{name}": _group(name) for name in ("fs", "runtime", "sessions", "memory", "web", "ui", "automation", "messaging", "nodes")},
        "group:mayros": frozenset(TOOLS) - _group("fs", "runtime") - {"tts"},
        "group:plugins": frozenset(),
    }
)
_OLDER_GROUPS = {"group:openclaw": "group:mayros"}
#: `full` is no filter.
PROFILES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "minimal": ("session_status",),
        "coding": ("group:fs", "group:runtime", "group:sessions", "group:memory", "image"),
        "messaging": ("group:messaging", "sessions_list", "sessions_history", "sessions_send", "session_status"),
    }
)


def plain(pattern: str) -> str:
    """A name or pattern as it is compared: without blanks around it, in small letters, under its present name."""
    text = pattern.strip().lower()
    return _OLDER_GROUPS.get(text, ALIASES.get(text, text))


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    # Stars in a row mean one; each part between stars is looked for once, so that no pattern takes long.
    first, *rest = re.sub(r"\*+", "*", pattern).split("*")
    if not rest:
        return re.compile(re.escape(first))
    middle = "".join(f"(?>.*?{re.escape(part)})" for part in rest[:-1])
    return re.compile(f"{re.escape(first)}{middle}.*{re.escape(rest[-1])}", re.DOTALL)


def matches(name: str, pattern: str) -> bool:
    """Whether an entry of an `allow` or `deny` means the tool of this (small-letter) name. `*` stands for anything, anywhere."""
    wanted = plain(pattern)
    if wanted.startswith("group:"):
        return name in GROUPS.get(wanted, ())
    return _compiled(wanted).fullmatch(name) is not None


def first_match(name: str, patterns: Iterable[str]) -> str | None:
    """The first entry that means the tool."""
    return next((pattern for pattern in patterns if matches(name, pattern)), None)


def known(pattern: str) -> bool:
    """Whether an entry means any tool that there is or might be, or a group."""
    return plain(pattern) in GROUPS or any(matches(name, pattern) for name in TOOLS)
