"""What `mayros restore` does: check an unpacked archive, set aside what is in its way, put its files in their places. Imports storage and config."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from mayros.cli.backup import FILES, FOLDERS, WORKSPACES
from mayros.cli.place import Place
from mayros.cli.show import cell, local_time
from mayros.errors import ConfigError, StartError
from mayros.net.files import sync_directory
from mayros.storage.archive import STORE, files_below, unpack
from mayros.storage.backup import BESIDE, damage, revision
from mayros.storage.migrate import HEAD, REVISIONS

if TYPE_CHECKING:
    from mayros.config.load import Loaded


class Move(NamedTuple):
    """A file or folder of the archive, and its place. `ends`: what may stand beside it under its name with this at the end."""

    staged: str
    path: str
    ends: tuple[str, ...] = ()


class Restoring:
    """One restoring. `folder`: an empty one in the state directory, whose lock is held. Nothing is changed before `do`; raises StartError."""

    def __init__(self, place: Place, file: str, folder: str, store_only: bool) -> None:
        self._place, self._file, self._folder = place, file, folder
        self.manifest = unpack(file, folder)
        self._store_only = store_only
        self._check_store()
        self._loaded = self._load()
        self.moves = list(self._moves())
        if not self.moves:
            raise self._unfit("there is nothing in it to restore")
        for move in self.moves:
            parent = os.path.dirname(move.path)
            while not os.path.lexists(parent):
                parent = os.path.dirname(parent)
            if not os.access(parent, os.W_OK | os.X_OK):
                raise StartError(f"{move.path}: {parent} cannot be written to; --store-only leaves all but the store as it is", 1)

    def describe(self) -> str:
        """What would happen, for the person who is asked."""
        when = local_time(self.manifest.created_ms) or "at an unknown time"
        return f"{self._file}: written {when} by version {cell(self.manifest.version)}; would replace\n" + "\n".join(
            f"  {move.path}" for move in self.moves
        )

    def do(self, stamp: str) -> dict[str, Any]:
        """Put everything in its place; what was done. `stamp` ends the names of what is set aside."""
        aside: list[str] = []
        try:
            for move in self.moves:
                os.makedirs(os.path.dirname(move.path), 0o700, exist_ok=True)
                aside += _set_aside(move, stamp)
                _put(move)
        except OSError as error:
            kept = f"; set aside so far: {', '.join(aside)}" if aside else ""
            raise StartError(f"{move.path}: {error.strerror}, so only a part was restored{kept}", 1) from error
        return {
            "file": os.path.abspath(self._file),
            "schema": self.manifest.schema,
            "restored": [move.path for move in self.moves],
            "aside": aside,
            "leftOut": [] if self._store_only else list(self.manifest.left_out),
        }

    def _unfit(self, why: str) -> StartError:
        return StartError(f"{self._file} cannot be restored: {why}", 1)

    @property
    def _store(self) -> str:
        return os.path.join(self._folder, STORE)

    def _check_store(self) -> None:
        if not os.path.exists(self._store):
            if self._store_only:
                raise self._unfit("there is no store in it")
            return
        problems = damage(self._store)
        if problems:
            raise self._unfit(f"its store is damaged ({problems[0]})")
        found = revision(self._store)
        if found is None:
            raise self._unfit("its store is none of this program")
        if found not in REVISIONS:
            raise self._unfit(f"a newer version wrote its store (schema {found}, this one knows {HEAD}); install that version first")

    def _moves(self) -> Iterator[Move]:
        if not self._store_only:
            yield from self._configuration()
            yield from self._state()
        if os.path.exists(self._store):
            # Where it belongs, by the configuration that will be in force.
            path = self._place.store_path(self._loaded or self._place.load())
            if path is None:
                raise self._unfit("the configuration has its store in PostgreSQL, and the archive has one of SQLite")
            yield Move(self._store, path, BESIDE)

    def _configuration(self) -> Iterator[Move]:
        """The main file and what it includes; the archive may hold nothing else beside them."""
        if self._loaded is None:
            return
        staged, main = os.path.realpath(os.path.join(self._folder, "config")), self._loaded.files[0]
        folder, name = os.path.split(os.path.realpath(self._place.config_path))
        for below in files_below(staged):
            path = os.path.join(staged, below)
            if path not in self._loaded.files:
                raise self._unfit(f"{below!r} does not belong to its configuration")
            yield Move(path, os.path.join(folder, name if path == main else below))

    def _state(self) -> Iterator[Move]:
        staged = os.path.join(self._folder, "state")
        for name in sorted(os.listdir(staged)) if os.path.isdir(staged) else ():
            if not (name in FILES or name in FOLDERS or name.startswith(WORKSPACES)):
                raise self._unfit(f"{name!r} does not belong into a state directory")
            yield Move(os.path.join(staged, name), os.path.join(self._place.state_dir, name))

    def _load(self) -> Loaded | None:
        """The configuration of the archive, if it is to be restored: it must be one that can be used here."""
        name = self.manifest.config
        if self._store_only or name is None:
            return None
        path = os.path.join(self._folder, "config", name)
        if name != os.path.basename(name) or not os.path.isfile(path):
            raise self._unfit("it has not the configuration that it names")
        from mayros.config.load import load

        try:
            # With the .env and the keys of the archive, which will be in force too.
            return load(path, self._place.environ, state_dir=os.path.join(self._folder, "state"))
        except ConfigError as error:
            raise self._unfit(f"its configuration cannot be used here ({error}); set what is missing, or use --store-only") from None


def _set_aside(move: Move, stamp: str) -> list[str]:
    """Give what is in the place of a move another name, a store with its log; the new names.

    A file keeps its name too, until the new one takes it: whatever happens in between, the next start finds no store missing and makes an empty one.
    """
    names = [(move.path + end, f"{move.path}.before-restore-{stamp}{end}") for end in (*move.ends, "") if os.path.lexists(move.path + end)]
    for path, kept in names:
        if os.path.lexists(kept):
            raise FileExistsError(errno.EEXIST, "it was restored within the same second")
        if path != move.path or not _linked(path, kept):
            os.rename(path, kept)
    sync_directory(os.path.dirname(move.path))
    return [kept for _, kept in names]


def _linked(path: str, kept: str) -> bool:
    """Give a file a second name. False for what is no file, and where the file system has no such thing."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return False
    try:
        os.link(path, kept)
    except PermissionError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EMLINK):
            raise
        return False
    return True


def _put(move: Move) -> None:
    """Move a file or folder to its place, where at most a file is; over the border of a file system it is copied first."""
    try:
        os.rename(move.staged, move.path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = move.path + ".restoring"
        try:
            shutil.copyfile(move.staged, beside)
            with open(beside, "rb") as file:
                os.fsync(file.fileno())
            os.rename(beside, move.path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)
    sync_directory(os.path.dirname(move.path))
