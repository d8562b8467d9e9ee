"""What `mayros import` does with sessions: all of them in order, each by itself, and a record of what became of it. Imports core and storage."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import click
import sqlalchemy as sa

from mayros.core.keys import SessionKey, normalise_agent_id
from mayros.core.routing import Directory
from mayros.errors import InvalidRequest, StartError
from mayros.storage.engine import cause
from mayros.storage.original.folder import Folder, Stored, file_name
from mayros.storage.original.index import Entry
from mayros.storage.original.keep import Keeper, Nothing
from mayros.storage.original.lines import Transcript, Unfit
from mayros.storage.original.speech import moment

#: The name space of sessions that had no key, or that of another one.
SPACE = "imported"
#: Bad lines and sessions that are told one by one.
_TOLD = 1_000
_EVERY_SECONDS = 0.5


class Moving:
    """One import from `source` into the store of `engine` (None: a dry run without a store).

    `main_key`: what main sessions are called there. `quiet`: without a line about the progress.
    """

    def __init__(self, source: Folder, directory: Directory, engine: sa.Engine | None, now_ms: int, *, main_key: str, dry: bool, quiet: bool) -> None:
        self._source, self._directory, self._main_key, self._quiet = source, directory, main_key, quiet
        self._keeper = Keeper(engine, now_ms, dry=dry)
        #: The sessions that were imported.
        self._done: set[str] = set()
        self._shown = 0.0
        self._sessions: list[dict[str, Any]] = []
        self._broken: list[str] = []
        self._bad_lines: list[str] = []
        self._notes: list[str] = []
        self._agents: dict[str, None] = {}
        self._messages = self._existing = self._empty = self._bad = 0

    def run(self, *, orphans: bool) -> dict[str, Any]:
        """Import everything; what was done, for people and programs. Raises StartError where the store cannot be written."""
        stored = [one for agent in self._source.agents for one in self._listed(agent)]
        # The newest first: of several entries of one session here, that one is it.
        stored.sort(key=lambda one: -(moment(one.entry.updated_at if one.entry is not None else None) or 0))
        named = {(one.agent, name) for one in stored if (name := _named(one)) is not None}
        loose = [
            Stored(agent, f"{SPACE}:{session}", Entry(session_id=session))
            for agent in self._source.agents
            for session in self._source.transcripts(agent)
            if (agent, f"{session}.jsonl") not in named
        ]
        wanted = [*stored, *(loose if orphans else ())]
        for number, one in enumerate(wanted):
            self._progress(number, len(wanted))
            try:
                self._one(one)
            except (Unfit, OSError) as error:
                reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
                self._broken.append(f"{_place(one.agent)}/sessions.json: {one.key[:200]}: {reason}")
            except sa.exc.SQLAlchemyError as error:
                raise StartError(f"The store cannot be written ({cause(error)}); {len(self._done)} sessions were imported before.", 1) from error
        self._progress(len(wanted), len(wanted), last=True)
        return {
            "imported": len(self._done),
            "messages": self._messages,
            "existing": self._existing,
            "empty": self._empty,
            "orphans": 0 if orphans else len(loose),
            "broken": self._broken,
            "badLines": self._bad_lines,
            "badLineCount": self._bad,
            "agents": list(self._agents),
            "sessions": self._sessions,
            "labels": self._notes,
        }

    def _listed(self, agent: str) -> Iterator[Stored]:
        try:
            yield from self._source.sessions(agent)
        except Unfit as error:
            self._broken.append(f"{_place(agent)}/sessions.json: {error}")

    def _one(self, stored: Stored) -> None:
        entry = stored.entry
        if entry is None:
            raise Unfit("its entry cannot be read")
        file_name(stored.agent, entry)
        key = self._key(stored, entry)
        text = str(key)
        if text in self._done or self._keeper.known(text):
            self._existing += 1
            return
        try:
            self._keep(stored, entry, key)
        except Nothing:
            self._empty += 1

    def _key(self, stored: Stored, entry: Entry) -> SessionKey:
        """The session here: as it was called, or by its id where that is another session of this import."""
        agent = normalise_agent_id(stored.agent)
        try:
            key = SessionKey.parse(stored.key, None, agent, self._directory.main_key, param="its key", reserved=True)
        except InvalidRequest as error:
            raise Unfit(error.message) from None
        if key.rest.lower() == self._main_key:
            key = SessionKey(key.agent_id, self._directory.main_key)
        return key if str(key) not in self._done else SessionKey(key.agent_id, f"{SPACE}:{entry.session_id}")

    def _keep(self, stored: Stored, entry: Entry, key: SessionKey) -> None:
        updated = moment(entry.updated_at)
        transcript = None
        try:
            file = self._source.open(stored.agent, entry)
        except FileNotFoundError:
            kept = self._keeper.keep(key, entry.session_id, entry.settings, updated, None)
        else:
            with file:
                changed = int(os.fstat(file.fileno()).st_mtime * 1000)
                transcript = Transcript(file)
                try:
                    kept = self._keeper.keep(key, entry.session_id, entry.settings, updated or changed, transcript)
                finally:
                    self._told(stored, entry, transcript)
        self._done.add(str(key))
        self._agents[key.agent_id] = None
        self._messages += kept.messages
        if kept.label is not None:
            self._notes.append(f"{key}: another session has its label {kept.label!r}")
        if len(self._sessions) < _TOLD:
            self._sessions.append({"key": str(key), "sessionId": entry.session_id, "messages": kept.messages, "turns": kept.turns})

    def _told(self, stored: Stored, entry: Entry, transcript: Transcript) -> None:
        self._bad += transcript.bad
        name = file_name(stored.agent, entry)
        left = _TOLD - len(self._bad_lines)
        self._bad_lines += [f"{_place(stored.agent)}/{name}:{one.line}: {one.reason}" for one in sorted(transcript.problems)[:left]]

    def _progress(self, number: int, total: int, *, last: bool = False) -> None:
        now = time.monotonic()
        if self._quiet or (now - self._shown < _EVERY_SECONDS and not (last and self._shown)):
            return
        if self._shown or number:
            click.echo(f"\r{number:,} of {total:,} sessions", nl=last, err=True)
        self._shown = now


def _named(stored: Stored) -> str | None:
    """The file that an entry names; None: none that may be opened."""
    try:
        return file_name(stored.agent, stored.entry) if stored.entry is not None else None
    except Unfit:
        return None


def _place(agent: str) -> str:
    return f"agents/{agent}/sessions"
