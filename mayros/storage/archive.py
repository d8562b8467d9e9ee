"""The archive of `mayros backup`: a tar.gz with the store, the configuration and what else belongs to a gateway. Imports errors and net.files.

Entries are regular files, and nothing else is written or taken: `manifest.json` (first), `store/mayros.db`, `config/...` (the main file and what it
includes, by their paths below its directory) and `state/...` (files of the state directory). What comes out of an archive is as hostile as any file
from elsewhere: names are checked one by one, their number is bounded, links are refused.
"""

from __future__ import annotations

import gzip
import io
import os
import secrets
import stat
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Protocol

import msgspec

from mayros.errors import StartError
from mayros.net.files import new_file, sync_directory

FORMAT = 1
MANIFEST, STORE = "manifest.json", "store/mayros.db"
#: Files in one archive, bytes of a name, levels of folders.
MOST_FILES, MOST_NAME, MOST_DEPTH = 1_000_000, 4_096, 100
_CHUNK = 1 << 20
#: In seconds since 1970: what every file system can keep.
_LATEST = 4_000_000_000.0


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What an archive says about itself. `schema` None: without a store. `config`: the main file's name below `config/`, None: without one."""

    format: int
    version: str
    created_ms: int
    schema: str | None
    config: str | None
    state_dir: str
    config_path: str
    #: What belongs to the gateway and is not in the archive, for people.
    left_out: tuple[str, ...] = ()


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Manifest).decode


class Packer:
    """Writes an archive beside `path`; `finish` gives it that name, `abandon` removes what there is. Raises StartError and OSError."""

    def __init__(self, path: str, manifest: Manifest) -> None:
        self._path = os.path.abspath(path)
        self._folder, name = os.path.split(self._path)
        self._beside = os.path.join(self._folder, f".{name[:200]}.{secrets.token_hex(6)}.tmp")
        self._file = new_file(self._beside)
        # No name and no time in the header: the same content gives the same bytes. Level 1: a store is mostly text, and must not take minutes.
        self._gzip = gzip.GzipFile("", "wb", 1, self._file, 0)
        self._tar = tarfile.open(fileobj=self._gzip, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115  closed by finish
        self.count = 0
        self._add(MANIFEST, io.BytesIO(data := _encode(manifest)), len(data), 0o600, manifest.created_ms // 1000)

    def add(self, name: str, path: str) -> bool:
        """Put a file into the archive under a name. False where it is no regular file, or is gone. A link is not followed."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            return False
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or len(os.fsencode(name)) > MOST_NAME:
                return False
            self._add(name, _Exactly(file, status.st_size), status.st_size, stat.S_IMODE(status.st_mode) & 0o700, int(status.st_mtime))
        return True

    def _add(self, name: str, file: _Readable, size: int, mode: int, mtime: int) -> None:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode, entry.mtime = size, mode, mtime
        self._tar.addfile(entry, file)
        self.count += 1

    def finish(self) -> int:
        """Complete the archive under its own name, durably; its size in bytes."""
        self._tar.close()
        self._gzip.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        size = os.path.getsize(self._beside)
        os.replace(self._beside, self._path)
        sync_directory(self._folder)
        return size

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        if os.path.lexists(self._beside):
            os.unlink(self._beside)


class _Readable(Protocol):
    def read(self, count: int = ..., /) -> bytes: ...


class _Exactly:
    """The first `size` bytes of a file that may be changed meanwhile; what is missing is filled up, or the entries behind would not be found."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def read(self, count: int = -1, /) -> bytes:
        count = self._left if count < 0 else count
        data = self._file.read(min(count, self._left))
        if not data and self._left:
            data = b"\0" * min(count, self._left)
        self._left -= len(data)
        return data


def unpack(path: str, folder: str) -> Manifest:
    """Write what an archive holds into an empty folder, files with mode 0600 or 0700, and give its manifest.

    The whole archive is read and its checksum compared. Raises StartError naming the archive: no archive of ours, of a newer program, damaged, or
    with names that lead elsewhere; the folder is then not to be used.
    """
    manifest: Manifest | None = None
    try:
        with gzip.open(path, "rb") as plain, tarfile.open(fileobj=plain, mode="r|", format=tarfile.PAX_FORMAT) as tar:
            for number, entry in enumerate(tar):
                if number >= MOST_FILES:
                    raise _Unfit(f"it holds more than {MOST_FILES} files")
                if not entry.isreg() or entry.issparse():
                    raise _Unfit(f"{entry.name!r} is no regular file")
                file = tar.extractfile(entry)
                if file is None:
                    raise _Unfit(f"{entry.name!r} has no content")
                if manifest is None:
                    manifest = _manifest(entry, file)
                    continue
                _write(os.path.join(folder, *_parts(entry.name)), file, entry.mode, entry.mtime)
            while plain.read(_CHUNK):  # to its end, where the checksum is
                pass
    except FileNotFoundError:
        raise StartError(f"{path}: there is no such file", 1) from None
    except _Unfit as error:
        raise StartError(f"{path} cannot be restored: {error}", 1) from None
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
        raise StartError(f"{path} is no archive of `mayros backup`, or is damaged ({' '.join(str(error).split())})", 1) from None
    if manifest is None:
        raise StartError(f"{path} is empty", 1)
    return manifest


class _Unfit(Exception):
    """Why an archive is not taken."""


def _manifest(entry: tarfile.TarInfo, file: IO[bytes]) -> Manifest:
    if entry.name != MANIFEST or entry.size > _CHUNK:
        raise _Unfit("it is no archive of `mayros backup`")
    try:
        manifest = _decode(file.read())
    except msgspec.DecodeError:
        raise _Unfit("its manifest is none of `mayros backup`") from None
    if manifest.format > FORMAT:
        raise _Unfit(f"a newer version made it (format {manifest.format}, this one knows {FORMAT})")
    return manifest


def _parts(name: str) -> list[str]:
    """The parts of an entry's name, if it stays inside."""
    parts = name.split("/")
    good = (name == STORE or parts[0] in ("config", "state")) and 2 <= len(parts) <= MOST_DEPTH and len(os.fsencode(name)) <= MOST_NAME
    if not good or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise _Unfit(f"{name[:200]!r} is no name that it may hold")
    return parts


def _write(path: str, file: IO[bytes], mode: int, mtime: float) -> None:
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        target = new_file(path)
    except (FileExistsError, NotADirectoryError):
        raise _Unfit("it holds a name twice") from None
    with target:
        while data := file.read(_CHUNK):
            target.write(data)
        target.flush()
        fd = target.fileno()
        os.fchmod(fd, 0o700 if mode & 0o100 else 0o600)
        moment = min(max(0.0, float(mtime)), _LATEST)
        os.utime(fd, (moment, moment))
        os.fsync(fd)


def files_below(folder: str) -> Iterator[str]:
    """The paths, relative to `folder`, of all that is no folder below it, in order. No link is followed."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        folders[:] = [name for name in folders if not os.path.islink(os.path.join(place, name))]
        for name in sorted(names):
            yield os.path.relpath(os.path.join(place, name), folder)
