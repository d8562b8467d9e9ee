"""Opening files below a folder that is not to be left, whatever stands in it and whoever changes it meanwhile."""

import errno
import os
import stat

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.net.rooted import MAX_DEPTH, Place, enter, open_inside

FIXED = settings(derandomize=bool(os.environ.get("CI")), database=None, deadline=None, max_examples=100)


class RootedTestCase(SynchronousTestCase):
    """A folder `root` with a secret beside it."""

    def setUp(self) -> None:
        self.outside = os.path.realpath(self.mktemp())
        self.root = os.path.join(self.outside, "root")
        os.makedirs(os.path.join(self.root, "deep"))
        self.secret = self.put(os.path.join(self.outside, "secret"), b"secret")

    def put(self, path: str, data: bytes) -> str:
        path = os.path.join(self.root, path)
        with open(path, "wb") as file:
            file.write(data)
        return path

    def link(self, target: str, path: str) -> None:
        os.symlink(target, os.path.join(self.root, path))

    def read(self, path: str) -> bytes:
        with enter(self.root, path) as place:
            return place.read(1_000)[0]

    def refused(self, path: str, **how: bool) -> int | None:
        """The errno with which a path is refused."""
        with self.assertRaises(OSError) as caught, enter(self.root, path, **how) as place:  # type: ignore[arg-type]
            place.read(1_000)
        return caught.exception.errno


class Walking(RootedTestCase):
    """Which places there are."""

    def test_files(self) -> None:
        """A file is found by its path, with needless parts in it too."""
        self.put("deep/file", b"text")
        for path in ("deep/file", "./deep//file", "deep/../deep/file", "deep/./file/"):
            self.assertEqual(self.read(path), b"text")
        with enter(self.root, "deep/file") as place:
            self.assertEqual(place.path, os.path.join(self.root, "deep/file"))

    def test_up(self) -> None:
        """No path climbs out, also not from a folder below."""
        for path in ("../secret", "deep/../../secret", "../root/deep/../../secret", "/../secret"):
            self.assertEqual(self.refused(path), errno.EPERM, path)

    def test_symlinks_out(self) -> None:
        """A symlink that leads out is refused: relative, absolute, through a folder, or through another link."""
        self.link("../secret", "relative")
        self.link(self.secret, "absolute")
        self.link("..", "up")
        self.link("absolute", "twice")
        self.link("../../secret", "deep/further")
        for path in ("relative", "absolute", "up/secret", "twice", "deep/further"):
            self.assertEqual(self.refused(path), errno.EPERM, path)

    def test_symlinks_within(self) -> None:
        """A symlink that stays inside is followed, however it says so."""
        self.put("deep/file", b"text")
        self.link("deep/file", "relative")
        self.link(os.path.join(self.root, "deep", "file"), "absolute")
        self.link("../relative", "deep/back")
        self.link("deep", "folder")
        for path in ("relative", "absolute", "deep/back", "folder/file"):
            self.assertEqual(self.read(path), b"text", path)

    def test_a_root_that_is_a_symlink(self) -> None:
        """Absolute links inside it may use either of its names."""
        other = os.path.join(self.outside, "other")
        os.symlink("root", other)
        self.put("file", b"text")
        self.link(os.path.join(other, "file"), "link")
        with enter(other, "link") as place:
            self.assertEqual(place.read(10)[0], b"text")
            self.assertEqual(place.path, os.path.join(self.root, "file"))

    def test_links_in_a_circle(self) -> None:
        """Symlinks that lead to themselves end."""
        self.link("b", "a")
        self.link("a", "b")
        self.assertEqual(self.refused("a"), errno.ELOOP)

    def test_depth(self) -> None:
        """A path may be only so deep, for each folder on the way is held open."""
        self.assertEqual(self.refused("/".join(["d"] * (MAX_DEPTH + 2)), make=True), errno.ENAMETOOLONG)

    def test_descriptors(self) -> None:
        """Nothing stays open, however a walk ends."""
        before = os.listdir("/proc/self/fd")
        self.read(os.path.relpath(self.put("deep/file", b""), self.root))
        for path in ("deep/../../secret", "deep/none", "deep", "none/none"):
            self.refused(path)
        self.assertEqual(len(os.listdir("/proc/self/fd")), len(before))

    def test_a_folder_that_becomes_a_symlink(self) -> None:
        """Whoever swaps a folder for a symlink right after the check gets nothing: the kernel follows none."""
        self.put("deep/file", b"text")
        os.makedirs(os.path.join(self.outside, "trap"))

        readlink = os.readlink

        def swap(name: str, *, dir_fd: int) -> str:
            try:
                return readlink(name, dir_fd=dir_fd)
            finally:
                os.rename(os.path.join(self.root, "deep"), os.path.join(self.root, "moved"))
                self.link("../trap", "deep")

        self.patch(os, "readlink", swap)
        with self.assertRaises(OSError) as caught:
            enter(self.root, "deep/new/file", make=True)
        self.assertIn(caught.exception.errno, (errno.ENOTDIR, errno.ELOOP))
        self.assertEqual(os.listdir(os.path.join(self.outside, "trap")), [])

    def test_a_file_that_becomes_a_symlink(self) -> None:
        """A symlink that is put in the place of the file after the walk is not read through, and not written through."""
        self.put("file", b"text")
        with enter(self.root, "file") as place:
            os.unlink(os.path.join(self.root, "file"))
            self.link("../secret", "file")
            with self.assertRaises(OSError):
                place.read(1_000)
            with self.assertRaises(OSError):
                place.replace(b"written")
        with open(self.secret, "rb") as file:
            self.assertEqual(file.read(), b"secret")

    @FIXED
    @given(st.lists(st.sampled_from(["..", ".", "deep", "up", "new", "out", "abs", "", "secret", "x"]), min_size=1, max_size=7), st.booleans())
    def test_no_path_leads_out(self, parts: list[str], make: bool) -> None:
        """Whatever the path and the symlinks in it, what is written stands inside of the root."""
        for target, name in (("..", "up"), ("../..", "deep/up"), (self.outside, "abs"), ("../out", "out")):
            if not os.path.lexists(os.path.join(self.root, name)):
                self.link(target, name)
        before = _everything(self.outside, self.root)
        try:
            with enter(self.root, "/".join(parts), make=make) as place:
                place.replace(b"written")
        except OSError:
            pass
        else:
            self.assertTrue(os.path.realpath(place.path).startswith(self.root + "/"))
        self.assertEqual(_everything(self.outside, self.root), before)


def _everything(folder: str, but: str) -> dict[str, bytes]:
    found = {}
    for at, folders, files in os.walk(folder):
        if at == but:
            folders.clear()
            continue
        for name in files:
            with open(os.path.join(at, name), "rb") as file:
                found[os.path.join(at, name)] = file.read()
    return found


class Reading(RootedTestCase):
    """What is read."""

    def test_regular_files_only(self) -> None:
        """A FIFO does not hang, a folder and a device are refused."""
        os.mkfifo(os.path.join(self.root, "fifo"))
        self.assertEqual(self.refused("fifo"), errno.EINVAL)
        self.assertEqual(self.refused("deep"), errno.EISDIR)
        self.assertEqual(self.refused("."), errno.EISDIR)
        with self.assertRaises(OSError), enter("/", "dev/null") as place:
            place.open()

    def test_a_fifo_that_was_a_file(self) -> None:
        """A FIFO that is swapped in after the look at it does not hang either."""
        self.put("file", b"text")
        fifo = os.path.join(self.root, "file")
        place = enter(self.root, "file")
        looked = os.stat(fifo)
        os.unlink(fifo)
        os.mkfifo(fifo)
        self.patch(os, "stat", lambda *_, **__: looked)
        with place, self.assertRaises(OSError) as caught:
            place.open()
        self.assertEqual(caught.exception.errno, errno.EINVAL)

    def test_sizes(self) -> None:
        """A file over the limit is refused before it is read: a huge one costs nothing."""
        self.put("file", b"x" * 1_000)
        self.assertEqual(len(self.read("file")), 1_000)
        with open(os.path.join(self.root, "huge"), "wb") as file:
            file.truncate(1 << 40)
        self.assertEqual(self.refused("huge"), errno.EFBIG)

    def test_open_inside(self) -> None:
        """The descriptor alone, for whoever wants to look first."""
        self.put("file", b"text")
        with os.fdopen(open_inside(self.root, "file"), "rb") as file:
            self.assertEqual(file.read(), b"text")


class Writing(RootedTestCase):
    """What is written."""

    def replace(self, path: str, data: bytes, **how: bool) -> os.stat_result:
        with enter(self.root, path, **how) as place:  # type: ignore[arg-type]
            return place.replace(data)

    def test_new_files(self) -> None:
        """A new file is its owner's only; missing folders are made when that is asked for, the root too."""
        self.assertEqual(stat.S_IMODE(self.replace("file", b"text").st_mode), 0o600)
        with self.assertRaises(FileNotFoundError):
            self.replace("a/b/file", b"text")
        self.replace("a/b/file", b"text", make=True)
        self.assertEqual(self.read("a/b/file"), b"text")
        self.root = os.path.join(self.outside, "another")
        self.replace("file", b"text", make=True)
        self.assertEqual(self.read("file"), b"text")
        self.assertEqual(os.listdir(self.root), ["file"])

    def test_existing_files(self) -> None:
        """An existing file keeps its permissions, and never the bit that would run it as somebody."""
        os.chmod(self.put("file", b"old"), 0o4755)
        self.replace("file", b"new")
        self.assertEqual(self.read("file"), b"new")
        self.assertEqual(stat.S_IMODE(os.stat(os.path.join(self.root, "file")).st_mode), 0o755)

    def test_through_a_symlink(self) -> None:
        """The target is replaced and the symlink stays."""
        self.put("deep/file", b"old")
        self.link("deep/file", "link")
        self.replace("link", b"new")
        self.assertTrue(os.path.islink(os.path.join(self.root, "link")))
        self.assertEqual(self.read("deep/file"), b"new")

    def test_what_is_refused(self) -> None:
        """No folder, no FIFO, no write-protected file, and no file that has a second name somewhere."""
        os.mkfifo(os.path.join(self.root, "fifo"))
        os.chmod(self.put("protected", b"old"), 0o444)
        os.link(self.secret, os.path.join(self.root, "hard"))
        for path, number in (("deep", errno.EISDIR), ("fifo", errno.EINVAL), ("protected", errno.EACCES), ("hard", errno.EPERM)):
            with self.assertRaises(OSError) as caught:
                self.replace(path, b"new")
            self.assertEqual(caught.exception.errno, number, path)
        self.assertEqual(sorted(os.listdir(self.root)), ["deep", "fifo", "hard", "protected"])

    def test_a_file_that_changed(self) -> None:
        """What was read before is only replaced as long as nobody else did."""
        self.put("file", b"old")
        with enter(self.root, "file") as place:
            _, status = place.read(10)
            self.put("file", b"other")
            with self.assertRaises(OSError) as caught:
                place.replace(b"new", expected=status)
        self.assertEqual(caught.exception.errno, errno.ESTALE)
        self.assertEqual(self.read("file"), b"other")

    def test_a_write_that_fails(self) -> None:
        """The old content stays and nothing is left behind."""
        self.put("file", b"old")
        with enter(self.root, "file") as place, self.assertRaises(TypeError):
            place.replace("no bytes")  # type: ignore[arg-type]
        self.assertEqual(self.read("file"), b"old")
        self.assertEqual(sorted(os.listdir(self.root)), ["deep", "file"])

    def test_a_check(self) -> None:
        """A check sees the real path before anything is made there."""
        self.link("deep", "link")
        seen: list[str] = []

        def check(path: str) -> None:
            seen.append(os.path.relpath(path, self.root))
            if "closed" in path:
                raise PermissionError(errno.EPERM, "closed")

        with self.assertRaises(PermissionError):
            enter(self.root, "link/new/closed/file", make=True, check=check)
        self.assertEqual(seen, ["deep/new/closed/file"])
        self.assertEqual(os.listdir(os.path.join(self.root, "deep")), [])
        enter(self.root, "link/new/file", make=True, check=check).__exit__()
        self.assertEqual(seen[1:], ["deep/new/file"] * 2)

    def test_removing(self) -> None:
        """A file is removed, of a symlink the symlink; a folder is not."""
        self.put("file", b"text")
        self.link("file", "link")
        for path in ("link", "file"):
            with enter(self.root, path, follow=False) as place:
                place.remove()
                self.assertIsNone(place.status())
            self.assertEqual(os.path.lexists(os.path.join(self.root, "file")), path == "link")
        with enter(self.root, "deep") as place, self.assertRaises(OSError):
            place.remove()
        self.assertIsInstance(place, Place)
