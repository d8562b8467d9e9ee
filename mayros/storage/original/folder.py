"""A state directory of the original: its agents, their sessions, the files of their transcripts. Only read. Imports net.rooted.

`<folder>/agents/<agent>/sessions/sessions.json` maps session keys to entries, `<sessionId>.jsonl` beside it is a transcript. What stands in an entry
is not believed: a file is looked for in its agent's own folder, whatever path is given, and no link is followed out of the whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from mayros.errors import StartError
from mayros.net.rooted import enter
from mayros.storage.original import index
from mayros.storage.original.index import Entry
from mayros.storage.original.lines import Unfit

#: The configuration, under the name of either program.
CONFIGS = ("mayros.json", "openclaw.json")
#: Bytes of one sessions.json, agents of one folder, sessions of all of them and bytes of what is kept of these, files of one agent.
MOST_INDEX, MOST_AGENTS, MOST_SESSIONS, MOST_KEPT, MOST_FILES = 128 << 20, 1_000, 100_000, 32 << 20, 200_000
_SESSION_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}", re.IGNORECASE | re.ASCII)
_TRANSCRIPT = ".jsonl"


class Stored(NamedTuple):
    """One entry of an agent's sessions.json; `entry` None: it cannot be read."""

    agent: str
    key: str
    entry: Entry | None


class Folder:
    """The state directory at `path`. Raises StartError where it is none of the original's."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(os.path.expanduser(path))
        if not os.path.isdir(self.path):
            raise StartError(f"{self.path}: there is no such directory", 1)
        self._left, self._room = MOST_SESSIONS, MOST_KEPT
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
        """What an agent's sessions.json lists; nothing where there is none. Raises Unfit where it cannot be read. To be asked once."""
        try:
            with enter(self.path, self._below(agent, "sessions.json"), follow=False) as place:
                data, _ = place.read(MOST_INDEX)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Unfit(error.strerror or str(error)) from None
        stored = []
        for key, entry, size in index.read(data):
            self._left, self._room = self._left - 1, self._room - size
            if self._left < 0 or self._room < 0:
                raise Unfit(f"there are more than {MOST_SESSIONS:,} sessions, or what is known of them is larger than {MOST_KEPT >> 20} MB")
            stored.append(Stored(agent, key, entry))
        return stored

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


def _text(name: str) -> bool:
    """Whether a file's name can be told and written: whole characters, no controls."""
    return name.isprintable() and not any("\ud800" <= one <= "\udfff" for one in name)
