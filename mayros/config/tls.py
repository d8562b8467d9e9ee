"""Where the files of `gateway.tls` are, and what commands on this machine trust of them. Imports schema, net.certificates and net.statedir."""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from mayros.config.gateway import Tls
from mayros.errors import ConfigError
from mayros.net.certificates import Trust, fingerprint_of_file
from mayros.net.statedir import from_state

#: Below the state directory: what `mayros gateway cert` makes, and what is used where the configuration names nothing else.
FOLDER, CERTIFICATE, KEY = "tls", "cert.pem", "key.pem"
#: The command that makes them.
MAKE = "mayros gateway cert"


class TlsFiles(msgspec.Struct, frozen=True):
    """The files of a gateway with TLS, as absolute paths. `made`: certificate and key are those of `mayros gateway cert`, which nothing names."""

    certificate: str
    key: str
    ca: str | None = None
    made: bool = False

    @property
    def all(self) -> tuple[str, ...]:
        """All of them."""
        return (self.certificate, self.key) if self.ca is None else (self.certificate, self.key, self.ca)


def tls_files(tls: Tls, state_dir: str) -> TlsFiles:
    """The files that count when `gateway.tls` is enabled. They need not exist."""
    ca = from_state(state_dir, tls.ca_path) if tls.ca_path else None
    if tls.cert_path and tls.key_path:
        return TlsFiles(from_state(state_dir, tls.cert_path), from_state(state_dir, tls.key_path), ca)
    return TlsFiles(os.path.join(state_dir, FOLDER, CERTIFICATE), os.path.join(state_dir, FOLDER, KEY), ca, made=True)


def own_trust(tls: Tls, state_dir: str) -> Trust | None:
    """What a command of this machine trusts its gateway by; None: it speaks no TLS. Raises ConfigError where the certificate cannot be read.

    Where the gateway wants certificates of its clients (`caPath`), its own is shown, which it takes: whoever can read its key may.
    """
    if not tls.enabled:
        return None
    files = tls_files(tls, state_dir)
    try:
        known = fingerprint_of_file(files.certificate)
    except (OSError, ValueError) as error:
        raise ConfigError(unusable("gateway.tls.certPath", files.certificate, error, files.made)) from None
    return Trust(known, None if files.ca is None else (files.certificate, files.key))


def handed_over(environ: Mapping[str, str]) -> str | None:
    """The folder in which the service manager hands files over, as an absolute path."""
    folder = environ.get("CREDENTIALS_DIRECTORY", "").strip()
    return os.path.normpath(folder) if os.path.isabs(folder) else None


def unusable(key: str, path: str, error: OSError | ValueError, made: bool) -> str:
    """A sentence about a file that cannot be used, and what to do. `key`: which key of the configuration means it."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error).removeprefix(f"{path} ")
    return f"{key}: {path}: {why}{f' (run `{MAKE}`)' if made and isinstance(error, FileNotFoundError) else ''}"
