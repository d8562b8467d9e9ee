"""A state directory of the original: its agents, their sessions, the files of their transcripts. Only read. Imports core, net.rooted and net.files.

`<folder>/agents/<agent>/sessions/sessions.json` maps session keys to entries, `<sessionId>.jsonl` beside it is a transcript. What stands in an entry
is not believed: a file is looked for in its agent's own folder, whatever path is given, and no link is followed out of the whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import msgspec

from mayros.core.keys import normalise_agent_id
from mayros.core.ports import SessionSettings
from mayros.errors import StartError
from mayros.net.rooted import enter
from mayros.storage.original.lines import UNREADABLE, Unfit

#: The configuration, under the name of either program.
CONFIGS = ("mayros.json", "openclaw.json")
#: Bytes of one sessions.json and of an entry in it, agents of one folder, files of one agent, characters of a label.
MOST_INDEX, MOST_ENTRY, MOST_AGENTS, MOST_FILES, MOST_LABEL = 256 << 20, 8 << 20, 1_000, 1_000_000, 64
_SESSION_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}", re.IGNORECASE | re.ASCII)
_TRANSCRIPT = ".jsonl"
#: Settings that are one of some words; what is none of them is not taken.
_WORDS = {
    "thinking_level": ("off", "minimal", "low", "medium", "high", "xhigh"),
    "verbose_level": ("on", "full", "off"),
    "reasoning_level": ("on", "off", "stream"),
    "response_usage": ("off", "tokens", "full"),
    "elevated_level": ("on", "off", "ask", "full"),
    "exec_host": ("gateway",),
    "exec_security": ("deny", "allowlist", "full"),
    "exec_ask": ("off", "on-miss", "always"),
    "send_policy": ("allow", "deny"),
    "group_activation": ("mention", "always"),
}


class Entry(msgspec.Struct, rename="camel"):
    """A session as sessions.json has it, as far as it is looked at. The types are those of whoever wrote the file."""

    session_id: Any = None
    session_file: Any = None
    updated_at: Any = None
    label: Any = None
    display_name: Any = None
    thinking_level: Any = None
    verbose_level: Any = None
    reasoning_level: Any = None
    response_usage: Any = None
    elevated_level: Any = None
    exec_host: Any = None
    exec_security: Any = None
    exec_ask: Any = None
    send_policy: Any = None
    group_activation: Any = None
    provider_override: Any = None
    model_override: Any = None
    spawned_by: Any = None
    spawn_depth: Any = None

    @property
    def settings(self) -> SessionSettings:
        """What was set for the session and is known here. Rules for commands only narrow: the strictest ones hold (core/permission.py)."""
        found: dict[str, Any] = {}
        for field, words in _WORDS.items():
            value = getattr(self, field)
            if isinstance(value, str) and value.strip().lower() in words:
                found[field] = value.strip().lower()
        found["label"] = next((text for one in (self.label, self.display_name) if (text := _line(one, MOST_LABEL))), None)
        found["model"] = self._model()
        found["spawned_by"] = _line(self.spawned_by, 512)
        if type(self.spawn_depth) is int and 0 <= self.spawn_depth <= 100:
            found["spawn_depth"] = self.spawn_depth
        return SessionSettings(**found)

    def _model(self) -> str | None:
        provider, model = _line(self.provider_override, 100), _line(self.model_override, 200)
        if model is None:
            return None
        return f"{provider}/{model}" if provider is not None and not model.startswith(f"{provider}/") else model if "/" in model else None


def _line(value: object, most: int) -> str | None:
    """A text that may stand in a list, cut; None for anything else."""
    text = "".join(one for one in value[: 4 * most] if one.isprintable()).strip() if isinstance(value, str) else ""
    return text[:most] or None


class Stored(NamedTuple):
    """One entry of an agent's sessions.json; `entry` None: it cannot be read."""

    agent: str
    key: str
    entry: Entry | None


_index = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_entry = msgspec.json.Decoder(Entry).decode


class Folder:
    """The state directory at `path`. Raises StartError where it is none of the original's."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(os.path.expanduser(path))
        if not os.path.isdir(self.path):
            raise StartError(f"{self.path}: there is no such directory", 1)
        self.config = next((file for name in CONFIGS if os.path.lexists(file := os.path.join(self.path, name))), None)
        #: The folders of agents, by their names.
        self.agents = tuple(self._agents())
        if self.config is None and not self.agents:
            raise StartError(f"{self.path} is no state directory of Mayros or OpenClaw: it has neither {' nor '.join(CONFIGS)} nor agents/", 1)

    def _agents(self) -> Iterator[str]:
        try:
            names = sorted(os.listdir(os.path.join(self.path, "agents")))
        except (FileNotFoundError, NotADirectoryError):
            return
        if len(names) > MOST_AGENTS:
            raise StartError(f"{self.path}/agents holds more than {MOST_AGENTS:,} agents", 1)
        yield from (name for name in names if _text(name) and os.path.isdir(os.path.join(self.path, "agents", name)))

    def sessions(self, agent: str) -> list[Stored]:
        """What an agent's sessions.json lists; nothing where there is none. Raises Unfit where it cannot be read."""
        try:
            with enter(self.path, self._below(agent, "sessions.json"), follow=False) as place:
                data, _ = place.read(MOST_INDEX)
            found = _index(data)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Unfit(error.strerror or str(error)) from None
        except UNREADABLE:
            raise Unfit("it is no JSON object of sessions") from None
        return [Stored(agent, key, _read(raw)) for key, raw in found.items()]

    def transcripts(self, agent: str) -> Iterator[str]:
        """The session ids of an agent's transcripts; those that were reset or deleted have another name and are not among them."""
        try:
            with os.scandir(os.path.join(self.path, "agents", agent, "sessions")) as entries:
                names = [entry.name for _, entry in zip(range(MOST_FILES), entries, strict=False) if entry.is_file(follow_symlinks=False)]
        except OSError:
            return  # no folder, or none that may be read: what is listed in it is told one by one
        for name in sorted(names):
            if name.endswith(_TRANSCRIPT) and _SESSION_ID.fullmatch(session := name.removesuffix(_TRANSCRIPT)):
                yield session

    def open(self, agent: str, entry: Entry) -> BinaryIO:
        """The transcript of an entry. Raises FileNotFoundError, and Unfit for anything that is no regular file in the agent's folder."""
        name = file_name(agent, entry)
        try:
            with enter(self.path, self._below(agent, name), follow=False) as place:
                return os.fdopen(place.open(), "rb", 1 << 18)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Unfit(f"{name}: {error.strerror or error}") from None

    @staticmethod
    def _below(agent: str, name: str) -> str:
        return f"agents/{agent}/sessions/{name}"

    @staticmethod
    def agent_id(agent: str) -> str:
        """The agent's id here."""
        return normalise_agent_id(agent)


def file_name(agent: str, entry: Entry) -> str:
    """The name of an entry's file in its agent's folder. Raises Unfit where it names none, or one elsewhere."""
    if not isinstance(entry.session_id, str) or not _SESSION_ID.fullmatch(entry.session_id):
        raise Unfit("its session id is none")
    if entry.session_file is None:
        return entry.session_id + _TRANSCRIPT
    path = entry.session_file if isinstance(entry.session_file, str) else ""
    folder, _, name = path.rpartition("/")
    # The directory may have been moved since; the end of the path tells whose folder is meant.
    inside = folder in ("", ".") if not path.startswith("/") else folder.endswith(f"/agents/{agent}/sessions") and ".." not in folder.split("/")
    if not inside or name in ("", ".", "..") or not _text(name) or len(name.encode()) > 255:
        raise Unfit("its sessionFile is not in the agent's own folder of sessions")
    return name


def _read(raw: msgspec.Raw) -> Entry | None:
    try:
        return _entry(raw) if memoryview(raw).nbytes <= MOST_ENTRY else None
    except UNREADABLE:
        return None


def _text(name: str) -> bool:
    """Whether a file's name can be told and written: whole characters, no controls."""
    return name.isprintable() and not any("\ud800" <= one <= "\udfff" for one in name)
