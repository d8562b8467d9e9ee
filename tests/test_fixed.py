"""Which programs stay what they are. On real files."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from mayros.config.schema import ApplyPatch, ToolsExec, ToolsFs
from mayros.core.routing import Agent
from mayros.tools.fixed import fixed

SHELL = "/usr/bin/sh"
KEPT = ApplyPatch()


def agent(workspace: str, *, only: bool = True, patch: ApplyPatch = KEPT) -> Agent:
    """An agent that is kept to its workspace, or is not."""
    return Agent(
        "a", None, None, workspace, (), "", {}, 600.0, 20_000, 150_000, None, None, exec=ToolsExec(apply_patch=patch), fs=ToolsFs(workspace_only=only)
    )


class Disk:
    """Files and folders: who owns them and what their mode is. What is not said is root's, 0755."""

    def __init__(self, **odd: tuple[int, int]) -> None:
        self._odd = {"/" + name.replace("_", "/"): found for name, found in odd.items()}

    def __call__(self, path: str) -> os.stat_result:
        owner, mode = self._odd.get(path, (0, 0o755))
        return os.stat_result((mode, 1, 1, 1, owner, 50, 0, 0, 0, 0))


class FixedTests(SynchronousTestCase):
    """The account is said where it matters, so the same holds whoever runs the tests."""

    def test_a_program_of_the_system(self) -> None:
        """Root's, in folders of root's: for an ordinary account, whatever its agents may do."""
        self.assertTrue(fixed(SHELL, [agent("/home/ann/workspace", only=False), agent("/")], 1_000, Disk()))

    def test_a_gateway_of_root(self) -> None:
        """It can write everywhere, so its agents must be kept to their workspaces, and the program must lie in none."""
        patch = ApplyPatch(enabled=True, workspace_only=False)
        self.assertTrue(fixed(SHELL, [agent("/root/a"), agent("/root/b")], 0, Disk()))
        for other in (agent("/root/b", only=False), agent("/root/b", patch=patch), agent(os.path.dirname(SHELL)), agent("/")):
            self.assertFalse(fixed(SHELL, [agent("/root/a"), other], 0, Disk()), other)

    def test_what_others_can_change(self) -> None:
        """Its own account's, or for a group or everybody to write: the program, or a folder above it, or the root."""
        self.assertTrue(fixed("/opt/tool/run", [], 1_000, Disk()))
        for place in ("opt_tool_run", "opt_tool", "opt", ""):
            for odd in ((1_000, 0o755), (0, 0o775), (0, 0o757), (0, 0o1777)):
                self.assertFalse(fixed("/opt/tool/run", [], 1_000, Disk(**{place: odd})), (place, odd))
        self.assertTrue(fixed("/opt/tool/run", [], 1_000, Disk(opt_other=(1_000, 0o777))))

    def test_what_is_not_there(self) -> None:
        """Nobody can tell what it will be."""
        self.assertFalse(fixed("/usr/no such program", []))
