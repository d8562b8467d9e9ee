"""The store: whether it is whole, whether this version can open it, and who has been given much and uses it no more."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator

from mayros.errors import StartError
from mayros.ops.subject import Finding, Subject

UNUSED_MS = 90 * 86_400_000
_ADMIN = "operator.admin"


def store_whole(subject: Subject) -> Iterator[Finding]:
    """SQLite's full check finds no damage. Reads the whole file."""
    from mayros.storage.backup import damage

    path = subject.store
    if path is None:
        return
    if not os.path.exists(path):
        if os.path.exists(path + "-wal"):
            text = f"the store {path} is missing, but its log {path}-wal is there"
            yield Finding("store.missing", "critical", text, "put the store back, or move the log away to begin with an empty one")
        return
    problems = damage(path)
    if problems:
        text = f"the store {path} is damaged: {problems[0]}" + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")
        yield Finding("store.damaged", "critical", text, "stop the gateway, keep the file, and mayros restore FILE")


def store_of_this_version(subject: Subject) -> Iterator[Finding]:
    """This version can open the store."""
    from mayros.storage.backup import revision
    from mayros.storage.migrate import HEAD, REVISIONS

    path = subject.store
    if path is None or not os.path.exists(path):
        return
    try:
        found = revision(path)
    except StartError:
        return  # damage, which the full check tells of
    if found is None:
        text = f"the store {path} has no schema of this program"
        yield Finding("store.foreign", "critical", text, "set session.store to another file, or move this one away")
    elif found not in REVISIONS:
        text = f"the store {path} was written by a newer version (schema {found}, this one knows {HEAD})"
        yield Finding("store.newer", "critical", text, "install that version again, or restore a backup of before")
    elif found != HEAD:
        text = f"the store {path} is of an older version (schema {found} of {HEAD}); the next start migrates it, and keeps a copy"
        yield Finding("store.older", "info", text, "mayros gateway restart")


def administrators_used(subject: Subject) -> Iterator[Finding]:
    """Devices that may do everything are in use."""
    import msgspec
    import sqlalchemy as sa

    from mayros.storage.export import open_to_read
    from mayros.storage.tables import device_tokens, devices

    try:
        engine = open_to_read(subject.store_url)
    except StartError:
        return  # no store yet, or one that the other checks tell of
    used = sa.select(sa.func.max(device_tokens.c.last_used_ms)).where(device_tokens.c.device_id == devices.c.device_id).scalar_subquery()
    try:
        with engine.connect() as connection:
            columns = (devices.c.device_id, devices.c.display_name, devices.c.scopes, devices.c.approved_ms, used)
            rows = connection.execute(sa.select(*columns).order_by(devices.c.device_id)).all()
    except sa.exc.SQLAlchemyError as error:
        raise StartError(f"the devices in the store cannot be read ({type(error).__name__})") from error
    finally:
        engine.dispose()
    for device_id, name, scopes, approved_ms, used_ms in rows:
        since = max(approved_ms, used_ms or 0)
        if _ADMIN in msgspec.json.decode(scopes) and subject.now_ms - since > UNUSED_MS:
            days = (subject.now_ms - since) // 86_400_000
            text = f"the device {device_id[:12]}{f' ({name})' if name else ''} may do everything, and was not used for {days} days"
            yield Finding("devices.unused-admin", "info", text, f"mayros devices remove {device_id}")


def no_old_copies(subject: Subject) -> Iterator[Finding]:
    """No copies of migrations and restores take room."""
    from mayros.storage.backup import BESIDE

    if subject.store is None:
        return
    found = sorted(path for path in glob.glob(glob.escape(subject.store) + ".before-*") if not path.endswith(BESIDE))
    if found:
        size = sum(os.path.getsize(path) for path in found) >> 20
        text = f"copies of the store from before migrations or restores ({size} MB): {', '.join(found)}"
        yield Finding("store.old-copies", "info", text, "delete them when you will not go back to that version")
