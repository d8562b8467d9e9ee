"""Keep a process to itself: its memory, and the environment that it was started with. Imports nothing of ours.

Commands of agents run as the gateway's own user. Taking a secret out of `os.environ` does not take it out of /proc/PID/environ, which shows the first
environment for ever and which every process of the same user may read, as it may read memory by ptrace. Linux has one switch for both: a process that
may not be dumped belongs to root in /proc.
"""

from __future__ import annotations

import sys

_PR_SET_DUMPABLE = 4


def hide() -> bool:
    """Hide this process from the others of its user; whether the system can do that. Children that run another program are not hidden."""
    if sys.platform != "linux":
        return False
    import ctypes

    return bool(ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0)
