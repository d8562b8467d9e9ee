"""Which programs stay what they are: those that no agent, and nothing an agent runs, can change. Imports core.routing, tools.access.

Only they are worth an answer "always" (core/exec_rules.py): a program in a workspace, in /tmp or in ~/.local/bin is another one tomorrow.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from mayros.core.routing import Agent
from mayros.tools.access import inside

#: Written by a group (also what an access list adds shows there) or by everybody.
_SHARED = 0o022


def fixed(path: str, agents: Iterable[Agent], uid: int | None = None, look: Callable[[str], os.stat_result] = os.stat) -> bool:
    """Whether a program (a real path) and all the folders above it are root's, and nobody else may write there. Looks at the disk, raises nothing.

    A gateway that is root itself (`uid` 0; None: who it is) can write everywhere, and so can agents that are not kept to their workspaces. There
    the program must also lie outside of all workspaces, and every agent be kept to its own.
    """
    account = os.geteuid() if uid is None else uid
    parts = [path]
    while parts[-1] != os.path.dirname(parts[-1]):
        parts.append(os.path.dirname(parts[-1]))
    try:
        found = [look(part) for part in parts]
    except OSError:
        return False
    if any(status.st_uid != 0 or status.st_mode & _SHARED for status in found):
        return False
    return account != 0 or not any(_reaches(agent, path) for agent in agents)


def _reaches(agent: Agent, path: str) -> bool:
    """Whether the agent's file tools may write there."""
    patch = agent.exec.apply_patch
    if not agent.fs.workspace_only or (patch.enabled and not patch.workspace_only):
        return True
    return inside(path, os.path.realpath(agent.workspace))
