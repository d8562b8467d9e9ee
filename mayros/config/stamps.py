"""Whether a file is still the one that was read: what `stat` says of it, cheap enough to be asked twice a second. Imports nothing of ours.

A stamp is taken before the file is read, so that what is saved meanwhile is noticed later. Links are followed, as reading follows them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

#: Device, inode, time of the last change in nanoseconds, and size; None: there is no such file, or it cannot be looked at.
Stamp = tuple[int, int, int, int] | None


def stamp(path: str, *, access: bool = False) -> Stamp:
    """The stamp of a file now. With `access` it is another one too when another owner or mode was set, which may make the file usable."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns if access else status.st_mtime_ns, status.st_size


def stamps(paths: Iterable[str], *, access: bool = False) -> dict[str, Stamp]:
    """The stamps of these files now."""
    return {path: stamp(path, access=access) for path in paths}
