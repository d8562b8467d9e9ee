"""A client's device identity: its Ed25519 key, the tokens that gateways gave to it, and its signature of a challenge.

Two files, in the form that other programs of this protocol read, mode 0600:

    device.json       {version: 1, deviceId, publicKeyPem, privateKeyPem, createdAtMs}
    device-auth.json  {version: 1, deviceId, tokens: {<role>: {token, role, scopes, updatedAtMs}}, gateways: {<url>: {<role>: ...}}}

`tokens` are those of this machine's own gateway; a token is sent to no gateway but the one that issued it, so those of others stand under their
URLs. Imports mayros.core.identity, mayros.net.files and mayros.errors; cryptography.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Sequence

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mayros.core.identity import Signed, device_id, encode
from mayros.errors import StartError
from mayros.net.files import create, read_bounded, write_atomic

#: The key of this machine's own gateway among the tokens.
OWN = ""
_MAX_FILE = 1 << 20
_MAX_GATEWAYS = 64


class StoredToken(msgspec.Struct, frozen=True, rename="camel"):
    """A device token, and what it is good for."""

    token: str
    role: str
    scopes: tuple[str, ...]
    updated_at_ms: int

    def __repr__(self) -> str:
        return f"<StoredToken {self.role}>"

    def covers(self, scope: str) -> bool:
        """Whether the gateway takes the token for this scope: admin stands for every operator scope, write for read."""
        if scope in self.scopes or ("operator.admin" in self.scopes and scope.startswith("operator.")):
            return True
        return scope == "operator.read" and "operator.write" in self.scopes


class _DeviceFile(msgspec.Struct, frozen=True, rename="camel"):
    version: int
    device_id: str
    public_key_pem: str
    private_key_pem: str
    created_at_ms: int


class _AuthFile(msgspec.Struct, rename="camel"):
    device_id: str
    version: int = 1
    tokens: dict[str, StoredToken] = {}
    gateways: dict[str, dict[str, StoredToken]] = {}


class Identity:
    """The identity kept in a folder. `device_id` is the hexadecimal SHA-256 of the raw public key, `public_key` its base64url."""

    def __init__(self, folder: str, key: Ed25519PrivateKey) -> None:
        raw = key.public_key().public_bytes_raw()
        self.folder, self._key = folder, key
        self.device_id, self.public_key = device_id(raw), encode(raw)

    @classmethod
    def open(cls, folder: str, now_ms: int) -> Identity:
        """The identity in `folder`, made where there is none. Raises StartError for a file that holds none, and OSError."""
        path = os.path.join(folder, "device.json")
        if not os.path.exists(path):
            os.makedirs(folder, 0o700, exist_ok=True)
            _create_whole(path, _new_device(now_ms))
        try:
            device = msgspec.json.decode(read_bounded(path, _MAX_FILE), type=_DeviceFile)
            key = serialization.load_pem_private_key(device.private_key_pem.encode(), None)
        except (ValueError, TypeError, UnsupportedAlgorithm, msgspec.DecodeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise StartError(f"{path}: holds no device identity; move it away and a new one is made")
        return cls(folder, key)

    def prove(
        self,
        *,
        client_id: str,
        client_mode: str,
        role: str,
        scopes: Sequence[str],
        token: str,
        nonce: str,
        signed_at_ms: int,
        platform: str,
        device_family: str = "",
    ) -> dict[str, object]:
        """The `device` of `connect`, with a version 3 signature. `scopes` in the order in which they are sent; `token` as in `auth`, or empty."""
        signed = Signed(self.device_id, client_id, client_mode, role, scopes, signed_at_ms, token, nonce, platform, device_family)
        return {
            "id": self.device_id,
            "publicKey": self.public_key,
            "signature": encode(self._key.sign(signed.line("v3"))),
            "signedAt": signed_at_ms,
            "nonce": nonce,
        }

    def token(self, gateway: str, role: str) -> StoredToken | None:
        """The token that a gateway (its URL, or OWN) gave to this device for a role."""
        return self._tokens(self._load(), gateway).get(role)

    def keep(self, gateway: str, role: str, token: str, scopes: Sequence[str], now_ms: int) -> None:
        """Remember a token. A known one is good for the scopes that are known already, too: a hello tells those of the connection.

        Raises OSError, and ValueError where the file is no file.
        """
        auth = self._load()
        tokens = self._tokens(auth, gateway)
        held = tokens.get(role)
        known = held.scopes if held is not None and held.token == token else ()
        covered = tuple(sorted({*known, *scopes}))
        if held is not None and (held.token, held.scopes) == (token, covered):
            return
        tokens[role] = StoredToken(token, role, covered, now_ms)
        if gateway != OWN:
            auth.gateways[gateway] = tokens
            newest = sorted(auth.gateways.items(), key=lambda item: max((one.updated_at_ms for one in item[1].values()), default=0))
            auth.gateways = dict(newest[-_MAX_GATEWAYS:])
        self._save(auth)

    def forget(self, gateway: str, role: str) -> None:
        """A token is not taken any more. Raises OSError, and ValueError where the file is no file."""
        auth = self._load()
        if self._tokens(auth, gateway).pop(role, None) is not None:
            self._save(auth)

    @staticmethod
    def _tokens(auth: _AuthFile, gateway: str) -> dict[str, StoredToken]:
        return auth.tokens if gateway == OWN else auth.gateways.get(gateway, {})

    @property
    def _path(self) -> str:
        return os.path.join(self.folder, "device-auth.json")

    def _load(self) -> _AuthFile:
        """The file; an empty one where it is missing, damaged or another device's, for tokens can be had anew."""
        with contextlib.suppress(OSError, ValueError, msgspec.DecodeError):
            auth = msgspec.json.decode(read_bounded(self._path, _MAX_FILE), type=_AuthFile)
            if auth.device_id == self.device_id:
                return auth
        return _AuthFile(self.device_id)

    def _save(self, auth: _AuthFile) -> None:
        write_atomic(self._path, _json(auth))


def _new_device(now_ms: int) -> bytes:
    key = Ed25519PrivateKey.generate()
    public = key.public_key()
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    shown = public.public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    return _json(_DeviceFile(1, device_id(public.public_bytes_raw()), shown.decode(), secret.decode(), now_ms))


def _create_whole(path: str, data: bytes) -> None:
    """Write a file that nobody sees half; another process that was first wins."""
    beside = f"{path}.{secrets.token_hex(6)}.tmp"
    create(beside, data, 0o600)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(beside, path)
    finally:
        os.unlink(beside)


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
