"""Whose the files are and who may read them: the state directory, the configuration, secrets, the store, the TLS key."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator

import msgspec

from mayros.config.tls import MAKE, tls_files, unusable
from mayros.errors import ConfigError
from mayros.net.certificates import PEM_BYTES
from mayros.net.files import read_bounded
from mayros.net.statedir import from_state
from mayros.ops.subject import Finding, Level, Subject

_SYNCED = re.compile(
    r"/(Dropbox[^/]*|OneDrive[^/]*|Google ?Drive[^/]*|Nextcloud|ownCloud|Syncthing|Sync|pCloud ?Drive|Mobile Documents|iCloud ?Drive)/"
)


def state_directory(subject: Subject) -> Iterator[Finding]:
    """The state directory is there, of this user, and nobody else's to read or write."""
    path = subject.state_dir
    try:
        status = os.stat(path)
    except FileNotFoundError:
        yield Finding("state.missing", "warn", f"the state directory {path} does not exist", "run mayros setup, or set MAYROS_STATE_DIR")
        return
    if not stat.S_ISDIR(status.st_mode):
        yield Finding("state.no-directory", "critical", f"the state directory {path} is no directory", "move it away, or set MAYROS_STATE_DIR")
        return
    if status.st_uid != subject.machine.uid and subject.machine.uid != 0:
        text = f"the state directory {path} belongs to user {status.st_uid}; this is user {subject.machine.uid}"
        yield Finding("state.owner", "critical", text, f"run this as that user, or chown -R {subject.machine.uid} {path}")
    if status.st_mode & stat.S_IWOTH:
        text = f"every user of this machine may write to the state directory {path}, and so become the owner of the gateway"
        yield Finding("state.world-writable", "critical", text, f"chmod 700 {path}", _close(path, 0o077))
    elif status.st_mode & 0o077:
        text = f"other users may read the state directory {path} or write to it (mode {stat.S_IMODE(status.st_mode):o})"
        yield Finding("state.open", "warn", text, f"chmod 700 {path}", _close(path, 0o077))


def written_by_others(subject: Subject) -> Iterator[Finding]:
    """Nobody else may write the configuration, what it includes, .env or the store, nor the folder of the configuration."""
    for path in (*configuration_files(subject), *store_files(subject)):
        mode = _mode(path)
        if mode is not None and mode & 0o022:
            text = f"other users may write {path} (mode {mode:o})"
            yield Finding("file.writable-by-others", "critical", text, f"chmod go-w {path}", _close(path, 0o022))
    folder = os.path.dirname(os.path.realpath(subject.config_path))
    mode = _mode(folder)
    if mode is not None and mode & stat.S_IWOTH and not mode & stat.S_ISVTX and folder != os.path.realpath(subject.state_dir):
        text = f"every user may put another file in the place of the configuration: its folder {folder} has mode {mode:o}"
        yield Finding("config.folder-writable", "critical", text, f"chmod o-w {folder}", _close(folder, stat.S_IWOTH))


def secrets_read_by_others(subject: Subject) -> Iterator[Finding]:
    """Nobody else may read the configuration, .env, the token, keys, or the identity of this machine."""
    for path in (*configuration_files(subject), *secret_files(subject)):
        try:
            status = os.stat(path)
        except OSError:
            continue
        mode = stat.S_IMODE(status.st_mode)
        # The configuration of a system service is root's, and its group the service's own.
        shared = mode & 0o040 and status.st_uid != 0
        if mode & stat.S_IROTH or shared:
            everybody = mode & stat.S_IROTH
            text = f"{'every user' if everybody else 'the group'} may read {path}, which holds secrets (mode {mode:o})"
            taken = 0o007 if status.st_uid == 0 else 0o077
            level: Level = "critical" if everybody else "warn"
            yield Finding("secret.readable-by-others", level, text, f"chmod {mode & ~taken:o} {path}", _close(path, taken))


def store_read_by_others(subject: Subject) -> Iterator[Finding]:
    """Nobody else may read the store: it holds every conversation."""
    for path in store_files(subject):
        mode = _mode(path)
        if mode is not None and mode & 0o044:
            text = f"other users may read the store {path} (mode {mode:o}), if they can reach its folder"
            yield Finding("store.readable-by-others", "warn", text, f"chmod 600 {path}", _close(path, 0o077))


def tls_key_private(subject: Subject) -> Iterator[Finding]:
    """The TLS key is its owner's only."""
    tls = subject.gateway.tls
    if not tls.enabled and not tls.key_path:
        return
    path = tls_files(tls, subject.state_dir).key
    mode = _mode(path)
    if mode is not None and mode & 0o077:
        text = f"other users may read the TLS key {path} (mode {mode:o}), and stand between the gateway and its clients"
        yield Finding("tls.key-readable-by-others", "critical", text, f"chmod 600 {path}, and make a new key", _close(path, 0o077))


def certificate_valid(subject: Subject) -> Iterator[Finding]:
    """The files can be used together, and the certificate is good for two weeks more."""
    tls = subject.gateway.tls
    if not tls.enabled:
        return
    from mayros.net.x509 import about
    from mayros.ops.certificates import load

    files = tls_files(tls, subject.state_dir)
    path = files.certificate
    try:
        ends_ms = about(read_bounded(path, PEM_BYTES)).ends_ms
        # Who may read the key is another check's.
        if not (_mode(files.key) or 0) & 0o077:
            load(msgspec.structs.replace(files, made=False), None)
    except (OSError, ValueError, ConfigError) as error:
        text = str(error) if isinstance(error, ConfigError) else unusable("gateway.tls.certPath", path, error, False)
        yield Finding("tls.certificate-unusable", "critical", text, f"{MAKE} --force" if files.made else "mend gateway.tls")
        return
    days = (ends_ms - subject.now_ms) / 86_400_000
    if days < 14:
        text = f"the certificate {path} {'has expired' if days < 0 else f'expires in {int(days)} days'}"
        how = f"{f'{MAKE} --force' if files.made else 'renew it'}; the gateway notices the new file"
        yield Finding("tls.certificate-expires", "critical" if days < 0 else "warn", text, how)


def configuration_elsewhere(subject: Subject) -> Iterator[Finding]:
    """The configuration is no link, and neither it nor the state is in a folder that is copied to other machines."""
    if os.path.islink(subject.config_path):
        text = f"{subject.config_path} is a link to {os.path.realpath(subject.config_path)}: who may write there decides what the gateway does"
        yield Finding("config.link", "warn", text, "set MAYROS_CONFIG_PATH to the file itself, if that is its place")
    for name, path in (("configuration", subject.config_path), ("state directory", subject.state_dir)):
        if _SYNCED.search(os.path.realpath(path) + "/"):
            text = f"the {name} {path} is in a folder that is synchronised: secrets leave this machine, and a store can be damaged"
            yield Finding("state.synchronised", "warn", text, "move it out of there (MAYROS_STATE_DIR, MAYROS_CONFIG_PATH)")


def configuration_files(subject: Subject) -> list[str]:
    """The configuration, what it includes, and the .env of the state directory."""
    files = subject.loaded.files if subject.loaded is not None else []
    return list(dict.fromkeys([*(files or [os.path.realpath(subject.config_path)]), os.path.join(subject.state_dir, ".env")]))


def secret_files(subject: Subject) -> list[str]:
    """Files with a token or key in them."""
    found = [os.path.join(subject.state_dir, "gateway-token")]
    for name in ("identity", "keys"):
        folder = os.path.join(subject.state_dir, name)
        if os.path.isdir(folder):
            found += [os.path.join(folder, one) for one in sorted(os.listdir(folder))]
    profiles = subject.loaded.config.auth.profiles.values() if subject.loaded is not None else ()
    found += [from_state(subject.state_dir, profile.key_file) for profile in profiles if profile.key_file is not None]
    return list(dict.fromkeys(path for path in found if os.path.isfile(path)))


def store_files(subject: Subject) -> list[str]:
    """The store, where it is in a file, and its log."""
    return [] if subject.store is None else [path for path in (subject.store, subject.store + "-wal", subject.store + "-shm") if os.path.exists(path)]


def _mode(path: str) -> int | None:
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        return None


def _close(path: str, bits: int) -> Callable[[], str]:
    """Takes these bits from the mode; what another finding took meanwhile stays taken."""

    def repair() -> str:
        mode = stat.S_IMODE(os.stat(path).st_mode) & ~bits
        os.chmod(path, mode)
        return f"chmod {mode:o} {path}"

    return repair
