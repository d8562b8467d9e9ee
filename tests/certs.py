"""Certificates for tests: a pair that is signed by itself, and an authority that signs others."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mayros.net.certificates import fingerprint_of_file
from mayros.net.x509 import self_signed

PEM = serialization.Encoding.PEM


class Pair(NamedTuple):
    """The files of a certificate and its key."""

    certificate: Path
    key: Path

    @property
    def fingerprint(self) -> str:
        """Of the certificate, as the file is now."""
        return fingerprint_of_file(str(self.certificate))


def pair(folder: Path, days: float = 30, names: tuple[str, ...] = ("localhost", "127.0.0.1", "::1"), name: str = "") -> Pair:
    """A new certificate and its key, in place of what was there."""
    folder.mkdir(parents=True, exist_ok=True)
    key, certificate = self_signed(names, days, datetime.datetime.now(datetime.UTC))
    return _put(folder, name, certificate, key)


def _put(folder: Path, name: str, certificate: bytes, key: bytes) -> Pair:
    made = Pair(folder / f"{name}cert.pem", folder / f"{name}key.pem")
    for path, data, mode in ((made.key, key, 0o600), (made.certificate, certificate, 0o644)):
        beside = path.with_suffix(".new")
        beside.write_bytes(data)
        beside.chmod(mode)
        beside.replace(path)
    return made


class Authority:
    """Signs certificates; its own is in `path`."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.pem"
        self._folder, self._name = folder, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        made = _builder(self._name, self._name, self._key.public_key()).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.path.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(PEM))

    def sign(self, name: str, server: bool = False) -> Pair:
        """A certificate for a client, or for the server `localhost`; its file holds the authority's too."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        made = _builder(subject, self._name, key.public_key()).add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return _put(self._folder, f"{name}-", made.sign(self._key, hashes.SHA256()).public_bytes(PEM) + self.path.read_bytes(), private)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    return x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), now - day, now + 30 * day)
