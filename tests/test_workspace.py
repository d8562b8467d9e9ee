"""The agents' files: in order, bounded, cached, and never from outside of the workspace."""

import json
import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.routing import Agent
from mayros.core.workspace_ports import BOOTSTRAP, WorkspaceFile
from mayros.storage.workspace import BOOTSTRAP_TEXT, FILES, MAX_BYTES, STARTER_FILES, FileWorkspace, make_workspace, seed


class Threads:
    """Stands for the thread pool: runs what was handed in when the test says so, or at once."""

    def __init__(self) -> None:
        self.calls = 0
        self.held: list[Callable[[], None]] | None = None

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        self.calls += 1
        if self.held is None:
            return maybeDeferred(function, *arguments)
        done: Deferred[Any] = Deferred()
        self.held.append(lambda: done.callback(function(*arguments)))
        return done


class WorkspaceTestCase(SynchronousTestCase):
    """A workspace folder and what reads it."""

    def setUp(self) -> None:
        self.outside = os.path.abspath(self.mktemp())
        self.root = os.path.join(self.outside, "workspace")
        os.makedirs(self.root)
        self.clock, self.threads = Clock(), Threads()
        self.workspace = FileWorkspace(self.clock, self.threads)
        self.agent = Agent("main", None, None, self.root, (), "", {}, 600.0, 20_000, 150_000, None, None)

    def write(self, name: str, text: str | bytes) -> str:
        path = os.path.join(self.root, name)
        with open(path, "wb") as file:
            file.write(text.encode() if isinstance(text, str) else text)
        return path

    def look(self) -> tuple[WorkspaceFile, ...]:
        """What a prompt gets now."""
        return self.successResultOf(self.workspace.files(self.agent))  # type: ignore[return-value]

    def later(self) -> tuple[WorkspaceFile, ...]:
        """What a prompt gets after the time between two checks."""
        self.clock.advance(1)
        return self.look()

    def text(self, name: str) -> str | None:
        return next(file.text for file in self.later() if file.name == name)


class Reading(WorkspaceTestCase):
    """Which files, and what of them."""

    def test_order(self) -> None:
        """The files come in prompt order, each with its path; others in the folder do not."""
        for name in ("USER.md", "TOOLS.md", "notes.md", "IDENTITY.md", "AGENTS.md", "MAYROS.md"):
            self.write(name, f"This is {name}")
        expected = [
            WorkspaceFile(name, os.path.join(self.root, name), f"This is {name}")
            for name in ("AGENTS.md", "MAYROS.md", "TOOLS.md", "IDENTITY.md", "USER.md")
        ]
        self.assertEqual(list(self.look()), expected)

    def test_missing(self) -> None:
        """A missing file is there by name and path, without a text; so is every file of a folder that does not exist."""
        self.write("USER.md", "me")
        self.assertEqual([file.text for file in self.look()], [None, None, None, None, "me"])
        os.unlink(os.path.join(self.root, "USER.md"))
        os.rmdir(self.root)
        self.assertEqual([(file.name, file.text) for file in self.later()], [(names[0], None) for names in FILES])

    def test_older_name(self) -> None:
        """SOUL.md counts only where there is no MAYROS.md."""
        self.write("SOUL.md", "old")
        self.assertEqual((self.look()[1].name, self.look()[1].text), ("SOUL.md", "old"))
        self.write("MAYROS.md", "new")
        self.assertEqual((self.later()[1].name, self.look()[1].text), ("MAYROS.md", "new"))

    def test_bytes(self) -> None:
        """Invalid UTF-8 is replaced, a byte order mark dropped, and no more than 2 MiB are read."""
        self.write("AGENTS.md", b"caf\xe9")
        self.write("TOOLS.md", b"\xef\xbb\xbftools")
        self.write("USER.md", b"x" * (MAX_BYTES + 5000))
        texts = {file.name: file.text for file in self.look()}
        self.assertEqual((texts["AGENTS.md"], texts["TOOLS.md"], len(texts["USER.md"] or "")), ("caf\ufffd", "tools", MAX_BYTES))


class Hostile(WorkspaceTestCase):
    """A model can write into its workspace: nothing there may lead out of it or hang the gateway."""

    def test_symlinks_out(self) -> None:
        """A symlink to a file outside is as good as missing, however it gets there."""
        secret = os.path.join(self.outside, "secret")
        with open(secret, "w") as file:
            file.write("key")
        os.symlink(secret, os.path.join(self.root, "AGENTS.md"))
        os.symlink("../secret", os.path.join(self.root, "USER.md"))
        os.symlink("..", os.path.join(self.root, "up"))
        os.symlink("up/secret", os.path.join(self.root, "TOOLS.md"))
        self.assertEqual([file.text for file in self.look()], [None] * 5)

    def test_a_folder_whose_name_begins_alike(self) -> None:
        """`workspace-evil` beside `workspace` is outside of it."""
        os.mkdir(self.root + "-evil")
        with open(os.path.join(self.root + "-evil", "file"), "w") as file:
            file.write("key")
        os.symlink("../workspace-evil/file", os.path.join(self.root, "AGENTS.md"))
        self.assertIsNone(self.text("AGENTS.md"))

    def test_symlinks_within(self) -> None:
        """A symlink to another file of the workspace is followed, also through a folder."""
        os.mkdir(os.path.join(self.root, "deep"))
        self.write("deep/real.md", "real")
        os.symlink("deep/real.md", os.path.join(self.root, "AGENTS.md"))
        self.assertEqual(self.text("AGENTS.md"), "real")

    def test_workspace_that_is_a_symlink(self) -> None:
        """The operator may put the workspace itself elsewhere."""
        self.write("AGENTS.md", "hello")
        os.symlink("workspace", os.path.join(self.outside, "link"))
        agent = Agent("main", None, None, os.path.join(self.outside, "link"), (), "", {}, 600.0, 1, 1, None, None)
        self.assertEqual(self.successResultOf(self.workspace.files(agent))[0].text, "hello")

    def test_odd_files(self) -> None:
        """A FIFO does not hang, a folder and a symlink loop do not raise: all are missing."""
        os.mkfifo(os.path.join(self.root, "AGENTS.md"))
        os.mkdir(os.path.join(self.root, "TOOLS.md"))
        os.symlink("USER.md", os.path.join(self.root, "USER.md"))
        self.assertEqual([file.text for file in self.look()], [None] * 5)

    def test_no_descriptor_is_left_open(self) -> None:
        """Checking again and again opens nothing that it does not close."""
        self.write("AGENTS.md", "hello")
        os.mkfifo(os.path.join(self.root, "TOOLS.md"))
        self.look()
        before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        for _ in range(20):
            self.later()
        after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        self.assertEqual(after, before)


class Caching(WorkspaceTestCase):
    """At most one look a second, shared."""

    def test_at_most_once_a_second(self) -> None:
        """Within a second nothing is looked at; after it a change is seen."""
        self.write("AGENTS.md", "one")
        self.look()
        self.write("AGENTS.md", "twice")
        self.clock.advance(0.9)
        self.assertEqual((self.look()[0].text, self.threads.calls), ("one", 1))
        self.clock.advance(0.1)
        self.assertEqual((self.look()[0].text, self.threads.calls), ("twice", 2))

    def test_same_object_while_nothing_changes(self) -> None:
        """Unchanged files give the same tuple, so that a prompt can be kept by it; a touched file gives another."""
        path = self.write("AGENTS.md", "one")
        first = self.look()
        self.assertIs(self.later(), first)
        os.utime(path, ns=(1, 1))
        self.assertIsNot(self.later(), first)
        self.assertEqual(self.look(), first)

    def test_replaced_file_is_seen(self) -> None:
        """A file that is renamed over another is seen although size and time are the same."""
        self.write("AGENTS.md", "one")
        new = self.write("new", "two")
        for name in ("AGENTS.md", "new"):
            os.utime(os.path.join(self.root, name), ns=(1, 1))
        self.assertEqual(self.look()[0].text, "one")
        os.rename(new, os.path.join(self.root, "AGENTS.md"))
        self.assertEqual(self.later()[0].text, "two")

    def test_concurrent_callers_share_one_look(self) -> None:
        """Many runs that start together cost one look; one of them leaving disturbs no other."""
        self.write("AGENTS.md", "one")
        self.threads.held = []
        waiting = [self.workspace.files(self.agent) for _ in range(3)]
        waiting[0].cancel()
        self.failureResultOf(waiting[0], CancelledError)
        self.threads.held[0]()
        self.assertIs(self.successResultOf(waiting[1]), self.successResultOf(waiting[2]))
        self.assertEqual(self.threads.calls, 1)

    def test_failing_thread(self) -> None:
        """When the look itself fails, a run gets what was known, else missing files; never an error."""

        def broken(*_: object) -> Deferred[Any]:
            return maybeDeferred(lambda: 1 / 0)

        files = self.successResultOf(FileWorkspace(self.clock, broken).files(self.agent))
        self.assertEqual([file.text for file in files], [None] * 5)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_workspaces_are_apart(self) -> None:
        """Each agent gets the files of its own workspace."""
        self.write("AGENTS.md", "one")
        other = Agent("other", None, None, os.path.join(self.outside, "other"), (), "", {}, 600.0, 1, 1, None, None)
        seed(other.workspace)
        self.assertEqual(self.look()[0].text, "one")
        self.assertEqual(self.successResultOf(self.workspace.files(other))[0].text, STARTER_FILES["AGENTS.md"])


class Seeding(WorkspaceTestCase):
    """A new workspace begins with something useful."""

    def test_new_workspace(self) -> None:
        """All five files are written, private, short enough for a small model, and what a prompt then gets."""
        root = os.path.join(self.outside, "fresh", "workspace")
        self.assertEqual(seed(root), ["AGENTS.md", "MAYROS.md", "TOOLS.md", "IDENTITY.md", "USER.md", "BOOTSTRAP.md"])
        self.assertEqual(os.stat(os.path.join(root, "USER.md")).st_mode & 0o777, 0o600)
        self.assertLess(sum(map(len, STARTER_FILES.values())), 1000)
        agent = Agent("main", None, None, root, (), "", {}, 600.0, 20_000, 150_000, None, None)
        files = self.successResultOf(self.workspace.files(agent))
        self.assertEqual({file.name: file.text for file in files}, {**STARTER_FILES, BOOTSTRAP: BOOTSTRAP_TEXT})

    def test_a_workspace_that_the_gateway_makes(self) -> None:
        """It gets the files when it is new or empty, not when they are not wanted, and never one with something in it."""
        fresh, plain = (os.path.join(self.outside, name) for name in ("fresh", "plain"))
        self.assertEqual(make_workspace(plain, False), [])
        self.assertEqual(os.listdir(plain), [])
        self.assertEqual(make_workspace(fresh, True), [*STARTER_FILES, BOOTSTRAP])
        os.unlink(os.path.join(fresh, "USER.md"))
        self.assertEqual(make_workspace(fresh, True), [])
        self.write("letter.txt", "mine")
        self.assertEqual(make_workspace(self.root, True), [])
        self.assertEqual((os.listdir(self.root), os.path.exists(os.path.join(fresh, "USER.md"))), (["letter.txt"], False))

    def test_the_first_run_is_once_only(self) -> None:
        """Its file is deleted when it is done; a workspace that is emptied later gets its starter files again, but not that one."""
        seed(self.root)
        self.assertEqual(self.look()[-1].name, BOOTSTRAP)
        os.unlink(os.path.join(self.root, BOOTSTRAP))
        self.assertNotIn(BOOTSTRAP, [file.name for file in self.later()])
        self.assertEqual(seed(self.root), [])
        with open(os.path.join(self.root, ".mayros", "workspace-state.json"), encoding="utf-8") as file:
            state = json.load(file)
        self.assertEqual(set(state), {"version", "bootstrapSeededAt", "onboardingCompletedAt"})
        for name in STARTER_FILES:
            os.unlink(os.path.join(self.root, name))
        self.assertEqual(seed(self.root), list(STARTER_FILES))

    def test_never_overwrites(self) -> None:
        """A workspace with any of the files, under the older name too, is left alone."""
        self.write("SOUL.md", "mine")
        self.assertEqual(seed(self.root), [])
        self.assertEqual(os.listdir(self.root), ["SOUL.md"])

    def test_twice(self) -> None:
        """Seeding again does nothing."""
        seed(self.root)
        self.write("USER.md", "Ann")
        self.assertEqual(seed(self.root), [])
        self.assertEqual(self.text("USER.md"), "Ann")
