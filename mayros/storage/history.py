"""Histories of hot sessions in memory, least recently used out first, bounded by bytes. Imports core.ports."""

from __future__ import annotations

from collections import OrderedDict

from mayros.core.ports import History

#: About what Python needs beside the bytes: for a session, and for each message.
_SESSION_BYTES, _MESSAGE_BYTES = 500, 100


def size_of(history: History) -> int:
    """About how many bytes a history keeps in memory."""
    return _SESSION_BYTES + sum(_MESSAGE_BYTES + memoryview(message).nbytes for message in history.messages)


class Histories:
    """A cache by session key. A history larger than the whole of it is not kept."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit, self._used = limit_bytes, 0
        self._kept: OrderedDict[str, tuple[History, int]] = OrderedDict()

    @property
    def used_bytes(self) -> int:
        """The sum of the sizes of what is kept."""
        return self._used

    def get(self, key: str) -> History | None:
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def put(self, key: str, history: History) -> None:
        """Keep `history` in the place of what was kept."""
        self.drop(key)
        self._keep(key, history, size_of(history))

    def extend(self, key: str, history: History, follows: History) -> None:
        """Keep `history`, which adds messages to `follows`. If it is not `follows` that is kept, the session has changed since: forget it."""
        old = self._kept.pop(key, None)
        if old is not None:
            self._used -= old[1]
            if old[0] is follows:
                added = history.messages[len(follows.messages) :]
                self._keep(key, history, old[1] + sum(_MESSAGE_BYTES + memoryview(message).nbytes for message in added))

    def _keep(self, key: str, history: History, size: int) -> None:
        if size > self._limit:
            return
        self._kept[key] = (history, size)
        self._used += size
        while self._used > self._limit:
            _, (_, gone) = self._kept.popitem(last=False)
            self._used -= gone

    def drop(self, key: str) -> None:
        """Forget a session."""
        old = self._kept.pop(key, None)
        if old is not None:
            self._used -= old[1]
