"""What a certificate says, and making one that is signed by itself. Loads cryptography; imports net.certificates."""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from mayros.net.certificates import fingerprint, pem_blocks

#: A certificate is good from so long before it was made: clocks differ.
EARLY = datetime.timedelta(hours=1)
#: The longest name that fits into a certificate's subject.
_SUBJECT = 64
_NAME = re.compile(r"(\*\.)?(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?)*", re.IGNORECASE)


class About(NamedTuple):
    """A certificate. `names`: the hosts that it is for. Times are milliseconds since the epoch."""

    fingerprint: str
    names: tuple[str, ...]
    begins_ms: int
    ends_ms: int


def about(pem: bytes) -> About:
    """What the first certificate of a PEM text says. Raises ValueError where it is none."""
    blocks = pem_blocks(pem)
    if not blocks:
        raise ValueError("it is no certificate in PEM")
    try:
        found = x509.load_pem_x509_certificate(blocks[0])
        return About(fingerprint(found.public_bytes(serialization.Encoding.DER)), _names(found), *_times(found))
    except (ValueError, x509.DuplicateExtension):
        raise ValueError("it is no certificate in PEM") from None


def _times(certificate: x509.Certificate) -> tuple[int, int]:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return int(begins.timestamp() * 1000), int(ends.timestamp() * 1000)


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return (*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress)))


def checked_name(text: str) -> str:
    """The name or address of a host as it goes into a certificate. Raises ValueError with half a sentence."""
    text = text.strip().removeprefix("[").removesuffix("]")
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    if not text.isascii():
        try:
            text = text.encode("idna").decode("ascii")
        except UnicodeError:
            text = ""
    text = text.lower().removesuffix(".")
    if not _NAME.fullmatch(text):
        raise ValueError("must be the name or the address of a host, without a port")
    return text


def self_signed(names: Iterable[str], days: float, now: datetime.datetime) -> tuple[bytes, bytes]:
    """A new key (ECDSA, P-256) and its certificate for these hosts (as `checked_name` gives them, the first in the subject): two PEM texts."""
    hosts = list(dict.fromkeys(names))
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, hosts[0] if len(hosts[0]) <= _SUBJECT else "Mayros Gateway")])
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(), now - EARLY, now + datetime.timedelta(days))
        .add_extension(x509.SubjectAlternativeName([_general(host) for host in hosts]), critical=False)
        # It is no authority: whoever trusts it trusts this host, and no other that its key would sign for.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(key_id, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id), critical=False)
    )
    certificate = builder.sign(key, hashes.SHA256())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, certificate.public_bytes(serialization.Encoding.PEM)


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
