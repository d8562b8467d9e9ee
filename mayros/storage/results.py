"""Whole texts of tool results, for a day: files `<folder>/<agent>/<id>`, mode 0600. Implements tool_ports.ResultStore; imports core and net.files.

A reference is `result://<id>`, where the id begins with `u` if the text came from outside, else with `t`. Nothing but an id that was made here is
ever part of a path.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mayros.core.bounds import REFERENCE
from mayros.core.keys import valid_agent_id
from mayros.net.files import new_file, read_bounded

log = Logger()

KEEP_SECONDS = 24 * 3_600
#: Bytes of one text, and of all together.
MOST_BYTES, TOTAL_BYTES = 8 << 20, 256 << 20
#: The least time between two looks at what has to go, in seconds.
PRUNE_SECONDS = 60.0

_REFERENCE = re.compile(re.escape(REFERENCE) + r"([tu][0-9a-f]{32})")


class FileResults:
    """`in_thread` runs a function off the reactor; `now` is in seconds since 1970."""

    def __init__(self, folder: str, in_thread: Callable[..., Deferred[Any]], now: Callable[[], float], total_bytes: int = TOTAL_BYTES) -> None:
        self._folder, self._in_thread, self._now, self._total = folder, in_thread, now, total_bytes
        self._pruned = float("-inf")

    async def keep(self, agent_id: str, text: str, untrusted: bool) -> str | None:
        """See tool_ports.ResultStore."""
        name = ("u" if untrusted else "t") + secrets.token_hex(16)
        try:
            await self._in_thread(self._write, agent_id, name, text)
        except OSError as error:
            log.warn("a tool's result could not be kept: {error}", error=error)
            return None
        return REFERENCE + name

    def open(self, reference: str, agent_id: str) -> str | None:
        """See tool_ports.ResultStore."""
        found = _REFERENCE.fullmatch(reference)
        if found is None or not valid_agent_id(agent_id):
            return None
        path = os.path.join(self._folder, agent_id, found[1])
        try:
            if self._now() - os.lstat(path).st_mtime > KEEP_SECONDS:
                return None
            return read_bounded(path, MOST_BYTES).decode("utf-8", "replace")
        except (OSError, ValueError):
            return None

    def _write(self, agent_id: str, name: str, text: str) -> None:
        if not valid_agent_id(agent_id):
            raise OSError(f"{agent_id!r} cannot be the name of a folder")
        folder = os.path.join(self._folder, agent_id)
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        data = text.encode("utf-8", "replace")[:MOST_BYTES]
        path = os.path.join(folder, name)
        file = new_file(path)
        try:
            with file:  # not synced: what a power cut takes is only the middle of a long result
                file.write(data)
        except OSError:
            os.unlink(path)
            raise
        if self._now() - self._pruned >= PRUNE_SECONDS:
            self._pruned = self._now()
            self.prune()

    def prune(self) -> None:
        """Delete what is older than a day, then the oldest until the rest is small enough. Blocks."""
        found: list[tuple[float, int, str]] = []
        with os.scandir(self._folder) as folders:
            for folder in [entry for entry in folders if entry.is_dir(follow_symlinks=False)]:
                with os.scandir(folder.path) as files:
                    for entry in files:
                        status = entry.stat(follow_symlinks=False)
                        found.append((status.st_mtime, status.st_size, entry.path))
        found.sort(reverse=True)
        total, oldest = 0, self._now() - KEEP_SECONDS
        for changed, size, path in found:
            total += size
            if changed < oldest or total > self._total:
                try:
                    os.unlink(path)
                except OSError as error:
                    log.warn("an old tool result could not be deleted: {error}", error=error)
