"""The keys of `auth.profiles`, read when the configuration is: from the text, a file, or what the service manager handed over. Imports net."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from mayros.config.check import secret_problem
from mayros.config.schema import AuthProfile, Config
from mayros.config.source import join
from mayros.config.stamps import Stamp, stamp
from mayros.errors import ConfigError
from mayros.net.files import read_bounded
from mayros.net.statedir import from_state

KEY_BYTES = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def profile_keys(
    config: Config, environ: Mapping[str, str], state_dir: str, name: str, warnings: list[str], stamps: dict[str, Stamp]
) -> dict[str, str]:
    """The keys by profile id. A relative `keyFile` is below the state directory. Raises ConfigError, which names the key path and never the key.

    `name` is the configuration file, for messages; `stamps` gets the stamp of each file before it is read.
    """
    providers_of = {profile_id: profile.provider for profile_id, profile in config.auth.profiles.items()}
    for provider, order in config.auth.order.items():
        for profile_id in order:
            if providers_of.get(profile_id) != provider:
                raise ConfigError(f"{name}: {join('auth.order', provider)}: {profile_id!r} is no profile of this provider under auth.profiles")
    keys = {}
    for profile_id, profile in config.auth.profiles.items():
        path = join("auth.profiles", profile_id)
        given = [source for source in (profile.key, profile.key_file, profile.credential) if source is not None]
        if len(given) != 1:
            raise ConfigError(f"{name}: {path}: needs exactly one of key, keyFile and credential")
        if not profile.provider.strip() or "/" in profile.provider:
            raise ConfigError(f"{name}: {path}.provider: must be the id of a provider")
        where, key = _key(profile, path, environ, state_dir, name, warnings, stamps)
        if (problem := secret_problem(key)) is not None or not key.isascii() or " " in key:
            raise ConfigError(f"{name}: {where}: the key {problem or 'must be ASCII text without blanks'}")
        keys[profile_id] = key
    return keys


def _key(
    profile: AuthProfile, path: str, environ: Mapping[str, str], state_dir: str, name: str, warnings: list[str], stamps: dict[str, Stamp]
) -> tuple[str, str]:
    """Where the key comes from, for messages, and the key."""
    if profile.key is not None:
        return f"{path}.key", profile.key
    if profile.credential is not None:
        folder = environ.get("CREDENTIALS_DIRECTORY", "").strip()
        if not _NAME.fullmatch(profile.credential):
            raise ConfigError(f"{name}: {path}.credential: must be the name of a file")
        if not os.path.isabs(folder):
            raise ConfigError(f"{name}: {path}.credential: there is no $CREDENTIALS_DIRECTORY; LoadCredential= of the service makes it")
        return f"{path}.credential", _read(os.path.join(folder, profile.credential), f"{name}: {path}.credential", stamps)
    file = from_state(state_dir, profile.key_file or "")
    key = _read(file, f"{name}: {path}.keyFile", stamps)
    if os.stat(file).st_mode & 0o077:
        warnings.append(f"{path}.keyFile: {file} can be read by others: chmod 600 it")
    return f"{path}.keyFile", key


def _read(file: str, where: str, stamps: dict[str, Stamp]) -> str:
    stamps[file] = stamp(file)
    try:
        return read_bounded(file, KEY_BYTES).decode("utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{where}: {file}: {error.strerror}") from None
    except ValueError:  # too long, not regular, not UTF-8
        raise ConfigError(f"{where}: {file}: must be a file of at most {KEY_BYTES} bytes that holds nothing but the key") from None
