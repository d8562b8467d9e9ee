"""Finds the skills of an agent on disk. Imports core.ports, core.routing, core.skills, net.rooted, recent.

Looking happens in a thread, at most every few seconds for each agent; whoever asks meanwhile shares it. What did not change gives the same tuple
again. A SKILL.md is read only when its size or time changed. Nothing outside of a folder of skills is read: a workspace is written by the model too.
A folder that lies in a workspace, on whatever way it is reached, is walked from there: the folder itself might be a link by now.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mayros.config.schema import Skills as SkillSettings
from mayros.core.ports import Clock
from mayros.core.routing import Agent
from mayros.core.skills import Gate, Head, folders, gate_of, head_of
from mayros.core.workspace_ports import Skill
from mayros.net.rooted import MAX_LINKS, open_inside
from mayros.storage.recent import Recent

log = Logger()

CHECK_SECONDS = 5.0
MOST_CANDIDATES, MOST_LOADED = 300, 200
MAX_BYTES = 256_000
_Stamp = tuple[int, ...]
#: What was read, by path: when, and what it said.
_Heads = dict[str, tuple[_Stamp, Head | None]]


class _Watched:
    """The skills that one agent has."""

    def __init__(self, clock: Clock) -> None:
        self.skills: Recent[tuple[Skill, ...]] = Recent(clock, CHECK_SECONDS)
        self.heads: _Heads = {}
        #: What one agent's list of names leaves of it.
        self.shown: tuple[Agent, tuple[Skill, ...], tuple[Skill, ...]] | None = None


class FileSkills:
    """Implements workspace_ports.Skills. `clock` gives the seconds between two looks; `environ` is the private map of the start; `workspaces` are
    those of all agents."""

    def __init__(
        self,
        settings: SkillSettings,
        state_dir: str,
        home: str,
        environ: Mapping[str, str],
        clock: Clock,
        in_thread: Callable[..., Deferred[Any]],
        workspaces: Callable[[], Iterable[str]] = lambda: (),
    ) -> None:
        self._settings, self._state, self._home, self._environ = settings, state_dir, home, environ
        self._clock, self._in_thread, self._workspaces = clock, in_thread, workspaces
        self._agents: dict[str, _Watched] = {}
        #: By workspace: until when they hold, and the folders.
        self._places: dict[str, tuple[float, list[tuple[str, str]]]] = {}

    def use(self, settings: SkillSettings) -> None:
        """Other settings, from the next look on, which is the next time that somebody asks."""
        self._settings = settings
        self._places.clear()
        for watched in self._agents.values():
            watched.skills.expire()

    def folders(self, agent: Agent) -> list[tuple[str, str]]:
        """Where an agent's skills may be, also outside of its workspace: its tools may read there. `(root, path)`: nothing outside of `root` counts.

        Looks at the disk every few seconds, so it is called in a thread. What it finds does not depend on what a model can change.
        """
        now = self._clock.seconds()
        kept = self._places.get(agent.workspace)
        if kept is not None and now < kept[0]:
            return kept[1]
        shared = {os.path.realpath(workspace): workspace for workspace in (*self._workspaces(), agent.workspace)}
        places = folders(agent.workspace, self._home, self._state, self._settings.load.extra_dirs)
        found = [(root, path) if path else _anchored(root, shared) for root, path in places]
        self._places[agent.workspace] = now + CHECK_SECONDS, found
        return found

    def skills(self, agent: Agent) -> Deferred[Sequence[Skill]]:
        """See core.workspace_ports.Skills."""
        watched = self._agents.get(agent.id)
        if watched is None:
            watched = self._agents[agent.id] = _Watched(self._clock)
        return watched.skills.get(partial(self._look, agent, watched), partial(_shown, agent, watched))

    def _look(self, agent: Agent, watched: _Watched) -> Deferred[tuple[Skill, ...]]:
        looking = self._in_thread(lambda: _look(self.folders(agent), self._disabled(), watched.heads, self._environ))
        return looking.addErrback(self._failed, watched).addCallback(self._looked, watched)

    def _disabled(self) -> frozenset[str]:
        return frozenset(name for name, entry in self._settings.entries.items() if not entry.enabled)

    @staticmethod
    def _failed(failure: Failure, watched: _Watched) -> tuple[tuple[Skill, ...], _Heads]:
        log.failure("The skills could not be looked for", failure)
        return watched.skills.found or (), watched.heads

    @staticmethod
    def _looked(result: tuple[tuple[Skill, ...], _Heads], watched: _Watched) -> tuple[Skill, ...]:
        found, watched.heads = result
        known = watched.skills.found
        return known if found == known and known is not None else found


def _shown(agent: Agent, watched: _Watched, found: tuple[Skill, ...]) -> Sequence[Skill]:
    """What was found, as far as the agent may have it; the same tuple again as long as both are the same."""
    if agent.skills is None:
        return found
    if watched.shown is None or watched.shown[0] is not agent or watched.shown[1] is not found:
        watched.shown = agent, found, tuple(skill for skill in found if skill.name in agent.skills)
    return watched.shown[2]


# The rest runs in a thread.


def _anchored(folder: str, workspaces: Mapping[str, str]) -> tuple[str, str]:
    """The folder as `(root, path)`: from the first workspace on the way to it, links followed one by one; else the folder itself and "".

    `workspaces` are by their real paths. What lies behind the first one may be changed by a model at any time, what lies before it may not.
    """
    done, links = "/", 0
    pending = [part for part in reversed(folder.split("/")) if part not in ("", ".")]
    while done not in workspaces and pending and links < MAX_LINKS:
        part = pending.pop()
        if part == "..":
            done = os.path.dirname(done)
            continue
        try:
            target = os.readlink(os.path.join(done, part))
        except OSError:  # no link, or nothing is there
            done = os.path.join(done, part)
            continue
        links += 1
        done = "/" if target.startswith("/") else done
        pending += [one for one in reversed(target.split("/")) if one not in ("", ".")]
    return (workspaces[done], "/".join(reversed(pending))) if done in workspaces else (folder, "")


def _look(places: Sequence[tuple[str, str]], disabled: frozenset[str], known: _Heads, environ: Mapping[str, str]) -> tuple[tuple[Skill, ...], _Heads]:
    """The skills there are, by name, and what was read of each file."""
    heads: _Heads = {}
    found: dict[str, Skill] = {}
    for root, folder in places:
        loaded = 0
        for name in _names(os.path.join(root, folder)):
            inside = os.path.join(folder, name, "SKILL.md")
            path = os.path.join(root, inside)
            if (kept := _head(root, inside, known.get(path))) is None:
                continue
            heads[path] = kept
            head = kept[1]
            if head is None or head.hidden or head.name in disabled or head.name in found or not _fits(head, environ):
                continue
            found[head.name] = Skill(head.name, head.description, path)
            loaded += 1
            if loaded == MOST_LOADED:
                break
    return tuple(sorted(found.values(), key=lambda skill: skill.name)), heads


def _names(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except OSError:
        # No such folder, as a rule; the others are looked at all the same.
        return []
    if len(names) > MOST_CANDIDATES:
        log.warn("{folder} holds {count} entries; only the first {most} are looked at", folder=folder, count=len(names), most=MOST_CANDIDATES)
    return names[:MOST_CANDIDATES]


def _head(root: str, inside: str, known: tuple[_Stamp, Head | None] | None) -> tuple[_Stamp, Head | None] | None:
    """The head of a file with its stamp; None where there is no such file."""
    try:
        descriptor = open_inside(root, inside)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if known is not None and known[0] == stamp:
            return known
        path = os.path.join(root, inside)
        if status.st_size > MAX_BYTES:
            log.warn("{path} is larger than {most} bytes and not listed", path=path, most=MAX_BYTES)
            return stamp, None
        head = head_of(file.read(MAX_BYTES).decode("utf-8", "replace"))
    if head is None:
        log.warn("{path} has no head with name and description and is not listed", path=path)
    return stamp, head


def _fits(head: Head, environ: Mapping[str, str]) -> bool:
    """Whether what the skill needs is here. Keys of the configuration that a skill may ask for are of parts that this gateway does not have."""
    gate = gate_of(head)
    if gate is None or (gate.os and sys.platform not in gate.os):
        return False
    return gate.always or _met(gate, environ)


def _met(gate: Gate, environ: Mapping[str, str]) -> bool:
    needs, path = gate.requires, environ.get("PATH")
    if needs.config or not all(environ.get(name, "").strip() for name in needs.env):
        return False
    if not all(shutil.which(name, path=path) for name in needs.bins):
        return False
    return not needs.any_bins or any(shutil.which(name, path=path) for name in needs.any_bins)
