"""How often one client may change the whole configuration: what the protocol says of `config.apply` and `config.patch`. Imports nothing of ours."""

from __future__ import annotations

from collections import OrderedDict

#: So many in a window of so many seconds, which begins with the first.
MOST, WINDOW_SECONDS = 3, 60.0
#: Clients that are remembered; the one whose window began first is forgotten.
MAX_CLIENTS = 1_024


class ConfigWrites:
    """Counts by client. `now` is in seconds of a clock that never steps back."""

    def __init__(self) -> None:
        self._windows: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def take(self, client: str, now: float) -> float:
        """Count one; 0 where it may be made, else the seconds until the next may."""
        began, count = self._windows.get(client, (now, 0))
        if now - began >= WINDOW_SECONDS:
            self._windows.pop(client)
            began, count = now, 0
        if count >= MOST:
            return began + WINDOW_SECONDS - now
        self._windows[client] = began, count + 1
        if len(self._windows) > MAX_CLIENTS:
            self._windows.popitem(last=False)
        return 0.0
