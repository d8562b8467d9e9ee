"""What commands change by themselves, without asking a gateway: its row in the audit trail of the store here, if there is one.

A command does not fail because its row cannot be written; then it says so. Imports core, config, net and storage when there is something to tell.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from mayros.cli.place import Place
from mayros.errors import ConfigError, StartError

if TYPE_CHECKING:
    import sqlalchemy as sa

    from mayros.config.load import Loaded
    from mayros.core.audit import Audit
    from mayros.core.audit_ports import Actor, Outcome


def now_ms() -> int:
    """Milliseconds of the wall clock."""
    return time.time_ns() // 1_000_000


def actor() -> Actor:
    """Whoever runs the command, as the system knows him; `sudo` tells whose command it was before."""
    from mayros.core.audit_ports import Actor

    before = os.environ.get("SUDO_USER", "") if os.getuid() == 0 else ""
    return Actor(f"cli:{_name(os.getuid())}", "cli", f"sudo by {before}" if before else None)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def audit_of(engine: sa.Engine, loaded: Loaded) -> Audit:
    """The trail of a store that nobody else writes, or may write."""
    from mayros.config.show import secrets_of
    from mayros.core.audit import Audit
    from mayros.net.redact import Redactor, secret_values
    from mayros.storage.audit import DirectAudit

    return Audit(DirectAudit(engine), now_ms, Redactor([*secrets_of(loaded.raw), *secret_values(loaded.environ)]))


def note(place: Place, action: str, target: str | None = None, outcome: Outcome = "done", /, **details: object) -> None:
    """Write down what a command has done. Does nothing where there is no store yet."""
    import sqlalchemy as sa

    from mayros.storage.engine import cause
    from mayros.storage.export import open_to_read

    try:
        loaded = place.load()
        path = place.store_path(loaded)
        if path is not None and not os.path.exists(path):
            return
        engine = open_to_read(place.store_url(loaded))
        try:
            audit = audit_of(engine, loaded)
            audit.trail.record(audit.entry(audit.begin(actor(), action, target, None, **details), outcome))
        finally:
            engine.dispose()
    except (StartError, OSError) as error:
        _untold(str(error))
    except sa.exc.SQLAlchemyError as error:
        _untold(cause(error))


def _untold(why: str) -> None:
    click.echo(f"note: this is not in the audit trail: {why}", err=True)


def change_file(place: Place, command: str, edit: Callable[[dict[str, Any]], None]) -> Loaded:
    """Change the configuration file (config.change.change), and write down which key paths a command has changed. Raises as that does."""
    from mayros.config.change import change

    before = tree_of(place)
    loaded = change(place.config_path, place.environ, place.state_dir, edit)
    changed(place, command, before)
    return loaded


def tree_of(place: Place) -> dict[str, Any]:
    """What the configuration file says; nothing where it cannot be read."""
    from mayros.config.change import read_text

    try:
        return read_text(place.config_path).tree
    except ConfigError:
        return {}


def changed(place: Place, command: str, before: dict[str, Any]) -> None:
    """Write down which key paths a command has changed, if any, since the file said this."""
    from mayros.config.change import paths

    found = paths(before, tree_of(place))
    if found:
        note(place, "config.write", place.config_path, command=command, paths=found)
