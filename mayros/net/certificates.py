"""Certificates, as far as they can be spoken of without OpenSSL: fingerprints, and why a handshake failed. Imports net.files."""

from __future__ import annotations

import binascii
import re
from hashlib import sha256
from typing import NamedTuple

from mayros.net.files import read_bounded

#: Of a file with certificates, or with a key.
PEM_BYTES = 1 << 20
_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
#: As people write it, and as `openssl x509 -fingerprint -sha256` does.
_FINGERPRINT = re.compile(r"(?:sha-?256(?: fingerprint)?[:= ])?\s*((?:[0-9a-f]{2}:?){31}[0-9a-f]{2})", re.IGNORECASE)


class Trust(NamedTuple):
    """The one certificate that a server may show, by its fingerprint, and what to show it: the files of a certificate and its key; None: nothing."""

    fingerprint: str
    shown: tuple[str, str] | None = None


class WrongCertificate(OSError):
    """A server has shown another certificate than the one that is trusted. The message names both fingerprints."""


def fingerprint(der: bytes) -> str:
    """The SHA-256 fingerprint of a certificate: 64 small hexadecimal digits."""
    return sha256(der).hexdigest()


def parse_fingerprint(text: str) -> str:
    """A fingerprint as somebody wrote it, with or without colons, as `fingerprint` gives it. Raises ValueError with half a sentence."""
    found = _FINGERPRINT.fullmatch(text.strip())
    if found is None:
        raise ValueError("must be a SHA-256 fingerprint: 64 hexadecimal digits, with or without colons")
    return found[1].replace(":", "").lower()


def with_colons(digits: str) -> str:
    """A fingerprint for people."""
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2)).upper()


def pem_blocks(data: bytes) -> list[bytes]:
    """The certificates in a PEM text, each as a PEM text of its own."""
    return [block[0] + b"\n" for block in _BLOCK.finditer(data)]


def fingerprint_of_file(path: str) -> str:
    """The fingerprint of the first certificate in a file, which is the server's own. Raises OSError, and ValueError where there is none."""
    found = _BLOCK.search(read_bounded(path, PEM_BYTES))
    if found is None:
        raise ValueError(f"{path} holds no certificate in PEM")
    try:
        return fingerprint(binascii.a2b_base64(found[1]))
    except binascii.Error:
        raise ValueError(f"{path} holds no certificate in PEM") from None


def check_fingerprint(expected: str, der: bytes | None) -> None:
    """Raise WrongCertificate where what a server has shown is not the certificate with this fingerprint."""
    found = None if der is None else fingerprint(der)
    if found != expected:
        shows = "no certificate" if found is None else f"a certificate with the fingerprint {with_colons(found)}"
        raise WrongCertificate(f"it shows {shows}; expected was {with_colons(expected)}")


def tls_problem(error: BaseException | None) -> str | None:
    """Why a connection was lost, for people, where it was because of TLS; else None."""
    if isinstance(error, WrongCertificate):
        return str(error)
    reasons = error.args[0] if error is not None and error.args else None
    if not isinstance(reasons, list):
        return None
    # OpenSSL's way: a list of (library, function, reason); service_identity's: what did not match.
    if all(isinstance(reason, tuple) for reason in reasons):
        return "TLS: " + (", ".join(str(reason[-1]) for reason in reasons) or "the handshake failed")
    return "TLS: the certificate is for another host"
