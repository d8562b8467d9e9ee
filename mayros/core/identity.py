"""A device's identity: an Ed25519 key, the id that is its hash, and the proof that a client holds it. Pure.

What is signed is a line of fields joined with `|`, in three versions that are all in use:

    v1|deviceId|client.id|client.mode|role|scopes|signedAt|token
    v2|... the same ...|nonce
    v3|... the same ...|nonce|platform|deviceFamily

`scopes` are joined with commas in the order in which `connect` sends them, `token` is `auth.token` as sent, and the last two of v3 are trimmed and
in ASCII lower case. Imports cryptography and nothing of ours.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import string
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

Version = Literal["v1", "v2", "v3"]
#: How far the clock of a device may be off, in milliseconds.
MAX_SKEW_MS = 600_000
KEY_BYTES, SIGNATURE_BYTES = 32, 64
#: Longest public key and signature, as text; a PEM has about 120 characters.
MAX_TEXT = 1024
_ALPHABET = str.maketrans("-_", "+/")
#: What clients trim: white space as JavaScript knows it.
_BLANKS = "\t\n\v\f\r \xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class Signed(msgspec.Struct, frozen=True):
    """What a device signs when it connects. Times are epoch milliseconds; `nonce` "" where there is none."""

    device_id: str
    client_id: str
    client_mode: str
    role: str
    scopes: Sequence[str]
    signed_at_ms: int
    token: str
    nonce: str = ""
    platform: str = ""
    device_family: str = ""

    def __repr__(self) -> str:
        return f"<Signed {self.device_id}>"

    def line(self, version: Version) -> bytes:
        """The text that is signed."""
        fields = [
            version,
            self.device_id,
            self.client_id,
            self.client_mode,
            self.role,
            ",".join(self.scopes),
            str(self.signed_at_ms),
            self.token,
        ]
        if version != "v1":
            fields.append(self.nonce)
        if version == "v3":
            fields += (_plain(self.platform), _plain(self.device_family))
        return "|".join(fields).encode("utf-8", "surrogatepass")


def _plain(text: str) -> str:
    return text.strip(_BLANKS).translate(_LOWER)


def decode(text: str) -> bytes | None:
    """base64 or base64url, padded or not; None for anything else."""
    if len(text) > MAX_TEXT:
        return None
    body = text.strip().translate(_ALPHABET).rstrip("=")
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def encode(raw: bytes) -> str:
    """base64url without padding, as keys and signatures are sent."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def raw_key(text: str) -> bytes | None:
    """The 32 bytes of a public key that is sent as base64url, base64 or PEM; None where it is none."""
    if len(text) > MAX_TEXT:
        return None
    if "BEGIN" not in text:
        raw = decode(text)
        return raw if raw is not None and len(raw) == KEY_BYTES else None
    try:
        key = load_pem_public_key(text.strip().encode())
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw) if isinstance(key, Ed25519PublicKey) else None


def device_id(raw: bytes) -> str:
    """The id of the device that has this key: its SHA-256, in lower-case hexadecimal."""
    return hashlib.sha256(raw).hexdigest()


def verified(raw: bytes, signature: str, lines: Iterable[bytes]) -> bool:
    """Whether the signature is this key's under one of the lines."""
    given = decode(signature)
    if given is None or len(given) != SIGNATURE_BYTES:
        return False
    key = Ed25519PublicKey.from_public_bytes(raw)
    return any(_fits(key, given, line) for line in lines)


def _fits(key: Ed25519PublicKey, signature: bytes, line: bytes) -> bool:
    try:
        key.verify(signature, line)
    except InvalidSignature:
        return False
    return True
