"""The state directory and the files in it: mayros/net/statedir.py and mayros/net/files.py."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mayros.errors import StartError
from mayros.net.files import create, read_bounded, write_atomic
from mayros.net.statedir import StateDir, raise_open_files, recognise_foreign


def mode(path: Path) -> int:
    """The permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


class Folder(SynchronousTestCase):
    """A temporary folder of the test's own, and the umask put back."""

    def setUp(self) -> None:
        self.addCleanup(os.umask, os.umask(0o022))
        self.folder = Path(self.mktemp()).resolve()
        self.folder.mkdir(parents=True)
        self.path = self.folder / "state"

    def refused(self, *words: str, status: int = 78, create: bool = True) -> None:
        """Opening fails with one line that holds the words."""
        error = self.assertRaises(StartError, StateDir.open, str(self.path), create=create)
        self.assertEqual(error.status, status)
        self.assertNotIn("\n", str(error))
        for word in (str(self.path), *words):
            self.assertIn(word, str(error))


class OpenTests(Folder):
    """Whose directory it is."""

    def test_new(self) -> None:
        """A missing directory is made for its owner alone, and so is every file made later."""
        state = StateDir.open(str(self.path / "deep"))
        self.assertEqual((mode(self.path), mode(self.path / "deep")), (0o700, 0o700))
        Path(state.join("file")).write_text("x")
        self.assertEqual(mode(self.path / "deep" / "file"), 0o600)
        self.assertEqual(state.warnings, [])

    def test_missing_and_not_to_be_made(self) -> None:
        """A command that only reads makes nothing."""
        self.refused("No such file", create=False)
        self.assertFalse(self.path.exists())

    def test_readable_by_others(self) -> None:
        """A directory that others may read is used, with a warning that says what to do."""
        self.path.mkdir()
        self.path.chmod(0o755)
        state = StateDir.open(str(self.path))
        self.assertEqual(len(state.warnings), 1)
        self.assertIn("chmod 700", state.warnings[0])

    def test_world_writable(self) -> None:
        """P11: a directory that everybody may write to is refused, a sticky one as well."""
        self.path.mkdir()
        for bits in (0o777, 0o1777, 0o702):
            self.path.chmod(bits)
            self.refused("every user may write")

    def test_another_users(self) -> None:
        """P11: a directory of another user is refused."""
        self.path.mkdir()
        self.patch(os, "geteuid", lambda: self.path.stat().st_uid + 1)
        self.refused("belongs to user")

    def test_read_only(self) -> None:
        """P03: a directory that cannot be written is refused at the start; a command that only reads may use it."""
        self.path.mkdir(0o700)
        self.patch(os, "access", lambda path, wanted, **more: False)
        self.refused("not writable")
        self.assertEqual(StateDir.open(str(self.path), create=False).path, str(self.path))

    def test_not_a_directory(self) -> None:
        """A file in its place, or above it, is refused."""
        self.path.write_text("")
        self.refused("not a directory")
        self.path = self.path / "below"
        self.refused("Not a directory")


class LockTests(Folder):
    """One gateway at a time."""

    def test_second_gateway(self) -> None:
        """P13: while the directory is held another claim fails with status 1 and names the process; afterwards it succeeds."""
        first, second = StateDir.open(str(self.path)), StateDir.open(str(self.path))
        first.lock()
        self.assertEqual(mode(self.path / "gateway.lock"), 0o600)
        error = self.assertRaises(StartError, second.lock)
        self.assertEqual(error.status, 1)
        self.assertIn(f"process {os.getpid()}", str(error))
        first.unlock()
        first.unlock()
        second.lock()
        second.unlock()

    def test_killed_holder(self) -> None:
        """The lock of a process that was killed is taken over, though its file is still there with its process id."""
        code = (
            "import sys, os\nfrom mayros.net.statedir import StateDir\nStateDir.open(sys.argv[1]).lock()\nprint('held', flush=True)\nsys.stdin.read()"
        )
        environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        holder = subprocess.Popen([sys.executable, "-c", code, str(self.path)], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert holder.stdout is not None
            self.assertEqual(holder.stdout.readline(), "held\n")
            state = StateDir.open(str(self.path))
            self.assertIn(f"process {holder.pid}", str(self.assertRaises(StartError, state.lock)))
        finally:
            holder.kill()
            holder.communicate()
        self.assertEqual((self.path / "gateway.lock").read_text(), f"{holder.pid}\n")
        state.lock()
        self.assertEqual((self.path / "gateway.lock").read_text(), f"{os.getpid()}\n")
        state.unlock()

    def test_full_disk(self) -> None:
        """May pass by itself: status 1, so that a service manager tries again; and the lock is given back."""
        state = StateDir.open(str(self.path))

        def full(fd: int, data: bytes, offset: int) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patched = self.patch(os, "pwrite", full)
        error = self.assertRaises(StartError, state.lock)
        patched.restore()
        self.assertEqual((error.status, str(error)), (1, f"{self.path}/gateway.lock: No space left on device"))
        state.lock()
        state.unlock()

    def test_strange_lock_file(self) -> None:
        """A symlink in place of the lock file is not followed; a holder without a process id is still a holder."""
        state = StateDir.open(str(self.path))
        (self.path / "gateway.lock").symlink_to(self.folder / "elsewhere")
        self.assertEqual(self.assertRaises(StartError, state.lock).status, 78)
        self.assertFalse((self.folder / "elsewhere").exists())
        (self.path / "gateway.lock").unlink()
        with open(self.path / "gateway.lock", "w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            self.assertIn("another process", str(self.assertRaises(StartError, state.lock)))


class TokenTests(Folder):
    """`gateway-token`."""

    def setUp(self) -> None:
        super().setUp()
        self.state = StateDir.open(str(self.path))
        self.file = self.path / "gateway-token"

    def test_made_once(self) -> None:
        """The first call makes 32 random bytes, for the owner's eyes; later ones give the same token."""
        self.assertIsNone(self.state.token())
        token = self.state.make_token()
        self.assertEqual(len(token), 43)
        self.assertEqual(mode(self.file), 0o600)
        self.assertEqual(self.state.token(), token)
        self.assertEqual(self.state.make_token(), token)
        self.assertEqual(self.state.warnings, [])

    def test_readable_by_others(self) -> None:
        """A token that others can read works, with a warning that does not hold it."""
        self.file.write_text("open-secret\n")
        self.file.chmod(0o644)
        self.assertEqual(self.state.token(), "open-secret")
        self.assertIn("chmod 600", self.state.warnings[0])
        self.assertNotIn("open-secret", self.state.warnings[0])

    def test_no_token(self) -> None:
        """An empty file, two words, binary noise or far too much is no token: one line says what to do, and nothing is made up."""
        for content in (b"", b"\n", b"two words", b"\xff\xfe", b"a\x00b", b"x" * 5000):
            self.file.write_bytes(content)
            self.file.chmod(0o600)
            for call in (self.state.token, self.state.make_token):
                error = self.assertRaises(StartError, call)
                self.assertIn(str(self.file), str(error))
                self.assertEqual(error.status, 78)
            self.assertEqual(self.file.read_bytes(), content)

    def test_dangling_link(self) -> None:
        """A link that leads nowhere is not followed when a token is made."""
        self.file.symlink_to(self.folder / "elsewhere")
        self.assertRaises(StartError, self.state.make_token)
        self.assertFalse((self.folder / "elsewhere").exists())


class ForeignTests(Folder):
    """Directories of other programs."""

    def test_own(self) -> None:
        """Missing, empty, hidden files only, and what setup, an installed model or a start leave: nobody else's."""
        self.assertIsNone(recognise_foreign(str(self.path)))
        self.path.mkdir()
        self.assertIsNone(recognise_foreign(str(self.path)))
        (self.path / ".env").write_text("OPENAI_API_KEY=x")
        self.assertIsNone(recognise_foreign(str(self.path)))
        (self.path / "models").mkdir()
        self.assertIsNone(recognise_foreign(str(self.path)))
        (self.path / "mayros.json").write_text("{}")
        (self.path / "anything").write_text("")
        self.assertIsNone(recognise_foreign(str(self.path)))

    def test_original(self) -> None:
        """The original's sessions, pairings and file names are named, whatever else is there."""
        for sign in ("agents/main/sessions/sessions.json", "devices/paired.json", "openclaw.json"):
            folder = self.folder / sign.replace("/", "-")
            (folder / sign).parent.mkdir(parents=True)
            (folder / sign).write_text("{}")
            (folder / "mayros.json").write_text("{}")
            said = recognise_foreign(str(folder)) or ""
            self.assertIn(sign, said)
            self.assertIn("another program", said)
            self.assertIn("MAYROS_STATE_DIR", said)

    def test_once_accepted(self) -> None:
        """A directory in which this gateway ran already is its own, also beside the original's files."""
        self.path.mkdir()
        (self.path / "openclaw.json").write_text("{}")
        StateDir.open(str(self.path)).make_token()
        self.assertIsNone(recognise_foreign(str(self.path)))

    def test_unknown(self) -> None:
        """A folder full of something else is said to be that; names with control characters cannot garble the line."""
        self.path.mkdir()
        (self.path / "letters\x1b[2J.txt").write_text("")
        said = recognise_foreign(str(self.path)) or ""
        self.assertIn("not empty", said)
        self.assertNotIn("\x1b", said)

    def test_file(self) -> None:
        """A file is no state directory."""
        self.path.write_text("")
        self.assertIn("Not a directory", recognise_foreign(str(self.path)) or "")


class FileTests(Folder):
    """Whole files, bounded reads."""

    def test_replace(self) -> None:
        """A file is replaced whole and keeps its permissions; a new one is private. Nothing is left beside it."""
        file = self.folder / "file"
        write_atomic(str(file), b"one")
        self.assertEqual((file.read_bytes(), mode(file)), (b"one", 0o600))
        file.chmod(0o640)
        write_atomic(str(file), b"two")
        self.assertEqual((file.read_bytes(), mode(file)), (b"two", 0o640))
        self.assertEqual(os.listdir(self.folder), ["file"])

    def test_through_a_link(self) -> None:
        """A symlink stays one; what it points to is replaced."""
        target, link = self.folder / "target", self.folder / "link"
        link.symlink_to(target)
        write_atomic(str(link), b"x")
        self.assertTrue(link.is_symlink())
        self.assertEqual(target.read_bytes(), b"x")

    def test_failure(self) -> None:
        """When the last step fails the old content stands and no temporary file stays."""
        file = self.folder / "file"
        file.write_bytes(b"old")

        def full(old: str, new: str) -> None:
            raise OSError(28, "No space left on device")

        self.patch(os, "replace", full)
        self.assertRaises(OSError, write_atomic, str(file), b"new")
        self.assertEqual(file.read_bytes(), b"old")
        self.assertEqual(os.listdir(self.folder), ["file"])

    def test_not_a_file(self) -> None:
        """Neither a directory nor a pipe is replaced, or read: opening a pipe must not wait for a writer."""
        pipe = self.folder / "pipe"
        os.mkfifo(pipe)
        for path in (pipe, self.folder):
            self.assertRaises(ValueError, write_atomic, str(path), b"")
        self.assertIn("regular file", str(self.assertRaises(ValueError, read_bounded, str(pipe), 10)))
        self.assertRaises((ValueError, OSError), read_bounded, str(self.folder), 10)
        self.assertRaises(ValueError, read_bounded, os.devnull, 10)

    def test_bounded(self) -> None:
        """Up to the limit a file is read, beyond it is refused; a missing one is the system's own error."""
        file = self.folder / "file"
        file.write_bytes(b"x" * 10)
        self.assertEqual(read_bounded(str(file), 10), b"x" * 10)
        self.assertIn("larger than 9", str(self.assertRaises(ValueError, read_bounded, str(file), 9)))
        self.assertRaises(FileNotFoundError, read_bounded, str(self.folder / "none"), 9)

    def test_create(self) -> None:
        """A new file has the mode asked for whatever the umask; an existing one is left alone."""
        file = self.folder / "file"
        os.umask(0o777)
        create(str(file), b"first", 0o640)
        self.assertEqual(mode(file), 0o640)
        self.assertRaises(FileExistsError, create, str(file), b"second")
        self.assertEqual(file.read_bytes(), b"first")


class OpenFilesTests(SynchronousTestCase):
    """The limit of open files."""

    def setUp(self) -> None:
        self.limits = (256, 4096)
        self.patch(resource, "getrlimit", lambda which: self.limits)
        self.patch(resource, "setrlimit", self.set)

    def set(self, which: int, limits: tuple[int, int]) -> None:
        """Stands for the kernel, which does not grant more than a million here."""
        if limits[0] > 1 << 20:
            raise ValueError("not allowed to raise maximum limit")
        self.limits = limits

    def test_raised(self) -> None:
        """The soft limit becomes the hard one, which stays."""
        self.assertEqual(raise_open_files(), 4096)
        self.assertEqual(self.limits, (4096, 4096))
        self.assertEqual(raise_open_files(), 4096)

    def test_without_end(self) -> None:
        """A hard limit without end gives a large finite one; one that the kernel does not grant leaves the old."""
        self.limits = (256, resource.RLIM_INFINITY)
        self.assertEqual(raise_open_files(), 1 << 20)
        self.limits = (256, 1 << 30)
        self.assertEqual(raise_open_files(), 256)
