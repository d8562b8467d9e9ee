"""`mayros backup` and `mayros restore`: one archive with a gateway's store, configuration and workspaces. Imports storage when a command asks."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from mayros.cli.acts import note, now_ms
from mayros.cli.place import Place, here, stopped
from mayros.cli.show import clean, print_json

if TYPE_CHECKING:
    from mayros.config.load import Loaded

#: Of the state directory: single files, and folders with everything below them. Logs, models and locks can be made again.
FILES = (".env", "gateway-token")
FOLDERS = ("identity", "keys", "tls")
WORKSPACES = "workspace"


class Part(NamedTuple):
    """A file that goes into an archive: its name there, and where it is."""

    name: str
    path: str


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False))
@click.option("--store-only", is_flag=True, help="The store alone: no configuration, no secrets, no workspaces.")
@click.option("--force", is_flag=True, help="Replace FILE.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def backup(ctx: click.Context, file: str, store_only: bool, force: bool, as_json: bool) -> None:
    """Write everything that a gateway is made of into FILE (tar.gz, mode 0600), also while it runs.

    In it: the store as it is at one moment (sessions, devices, tokens, rules), the configuration file with what it includes, .env, the token, this
    machine's identity, keys, the TLS certificate, and the workspaces in the state directory. It holds secrets. Not in it: models, logs, and what lies
    elsewhere, which is listed. A store in PostgreSQL is not in it either: pg_dump.
    """
    place = here(ctx)
    os.umask(0o077)
    if os.path.lexists(file) and not force:
        raise click.ClickException(f"{file} exists: --force replaces it")
    told = write(place, file, store_only)
    note(place, "backup", told["file"], files=told["files"], storeOnly=store_only)
    if as_json:
        print_json(told)
        return
    click.echo(f"Written: {file} ({told['bytes']:,} bytes, {told['files']} files)")
    for sentence in told["leftOut"]:
        click.echo(f"Not in it: {sentence}")


def write(place: Place, file: str, store_only: bool) -> dict[str, Any]:
    """Make an archive; what is in it, for people and programs. Raises StartError and OSError; nothing is left behind then."""
    from mayros.net.version import program_version
    from mayros.storage.archive import FORMAT, STORE, Manifest, Packer
    from mayros.storage.backup import copy_store, revision

    loaded = place.load()
    store = place.store_path(loaded)
    if store is not None and not os.path.exists(store):
        raise click.ClickException(f"there is no store to back up at {store}")
    if store is None and store_only:
        raise click.ClickException("the store is in PostgreSQL: back it up with pg_dump")
    parts = [] if store_only else list(parts_of(place, loaded))
    left_out = [] if store_only else list(elsewhere(place, loaded))
    if store is None:
        left_out.append("the store, which is in PostgreSQL: back it up with pg_dump")
    with tempfile.TemporaryDirectory(prefix=".mayros-backup-", dir=os.path.dirname(os.path.abspath(file))) as folder:
        if store is not None:
            parts.insert(0, Part(STORE, copy := os.path.join(folder, "mayros.db")))
            copy_store(store, copy)
        manifest = Manifest(
            format=FORMAT,
            version=program_version(),
            created_ms=now_ms(),
            schema=revision(copy) if store is not None else None,
            config=None if store_only or not loaded.exists else os.path.basename(loaded.files[0]),
            state_dir=place.state_dir,
            config_path=place.config_path,
            left_out=tuple(left_out),
        )
        packer = Packer(file, manifest)
        try:
            skipped = [part.path for part in parts if not packer.add(part.name, part.path)]
            if store is not None and copy in skipped:
                raise click.ClickException("the copy of the store is gone")
            size = packer.finish()
        except BaseException:
            packer.abandon()
            raise
    left_out += [f"{clean(path)}, which is no regular file" for path in skipped]
    return {"file": os.path.abspath(file), "bytes": size, "files": packer.count, "schema": manifest.schema, "leftOut": left_out}


def parts_of(place: Place, loaded: Loaded) -> Iterator[Part]:
    """What goes into an archive beside the store."""
    from mayros.storage.archive import files_below

    if loaded.exists:
        root = os.path.dirname(loaded.files[0])
        for path in dict.fromkeys(loaded.files):
            yield Part(f"config/{os.path.relpath(path, root)}", path)
    state = place.state_dir
    for name in FILES:
        if os.path.isfile(path := os.path.join(state, name)):
            yield Part(f"state/{name}", path)
    for name in folders(state):
        for below in files_below(os.path.join(state, name)):
            yield Part(f"state/{name}/{below}", os.path.join(state, name, below))


def folders(state: str) -> list[str]:
    """The folders of a state directory that belong into an archive; none that is a link."""
    try:
        names = sorted(os.listdir(state))
    except FileNotFoundError:
        return []
    wanted = [name for name in names if name in FOLDERS or name in (WORKSPACES, "workspaces") or name.startswith(f"{WORKSPACES}-")]
    # What an earlier restore set aside is no part of the gateway.
    return [name for name in wanted if ".before-" not in name and _is_folder(os.path.join(state, name))]


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def elsewhere(place: Place, loaded: Loaded) -> Iterator[str]:
    """What belongs to the gateway and is not taken."""
    from mayros.config.tls import tls_files

    state = os.path.realpath(place.state_dir)
    inside = [os.path.join(state, name) for name in folders(state)]
    for agent in place.settings(loaded).directory.agents.values():
        real = os.path.realpath(agent.workspace)
        if os.path.exists(real) and not any(os.path.commonpath([real, one]) == one for one in inside):
            yield f"the workspace of {agent.id}, {agent.workspace}"
    for profile_id, profile in loaded.config.auth.profiles.items():
        if profile.key_file is not None:
            path = os.path.realpath(os.path.join(state, os.path.expanduser(profile.key_file)))
            if os.path.commonpath([path, state]) != state or os.path.relpath(path, state).split(os.sep)[0] not in FOLDERS:
                yield f"the key of {profile_id}, {profile.key_file}"
        elif profile.credential is not None:
            yield f"the key of {profile_id}, which the service manager keeps"
    tls = loaded.config.gateway.tls
    for path in tls_files(tls, state).all if tls.enabled else ():
        if os.path.relpath(os.path.realpath(path), state).split(os.sep)[0] not in FOLDERS:
            yield f"of gateway.tls, {path}"


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False))
@click.option("--store-only", is_flag=True, help="The store alone; configuration, secrets and workspaces stay as they are.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def restore(ctx: click.Context, file: str, store_only: bool, yes: bool, as_json: bool) -> None:
    """Put back what `mayros backup` wrote into FILE. The gateway must be stopped.

    The archive is checked first. What is in the way is kept beside, under its name with .before-restore- and the time. Files that are not in the
    archive stay as they are.
    """
    from mayros.cli.restoring import Restoring

    place = here(ctx)
    state = stopped(place)
    try:
        with tempfile.TemporaryDirectory(prefix=".restore-", dir=state.path) as folder:
            work = Restoring(place, file, folder, store_only)
            if not (yes or as_json) and sys.stdin.isatty():
                click.echo(work.describe())
                click.confirm("Restore this?", abort=True)
            told = work.do(time.strftime("%Y%m%d-%H%M%S"))
        note(place, "restore", told["file"], restored=told["restored"], schema=told["schema"], storeOnly=store_only)
    finally:
        state.unlock()
    if as_json:
        print_json(told)
        return
    for path in told["aside"]:
        click.echo(f"Kept: {clean(path)}")
    for path in told["restored"]:
        click.echo(f"Restored: {clean(path)}")
    for sentence in told["leftOut"]:
        click.echo(f"Was not in it: {clean(sentence)}")
