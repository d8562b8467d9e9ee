"""The seam of paired devices, their tokens and the requests that wait: what is kept of each."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

import msgspec

from mayros.core.audit_ports import AuditEntry


class DeviceRecord(msgspec.Struct, frozen=True):
    """A paired device. `public_key`: base64url of the raw Ed25519 key, as the device sent it; `device_id`: hexadecimal SHA-256 of that key."""

    device_id: str
    public_key: str
    display_name: str | None
    platform: str | None
    client_id: str | None
    client_mode: str | None
    roles: tuple[str, ...]
    scopes: tuple[str, ...]
    remote_ip: str | None
    created_ms: int
    approved_ms: int


class DeviceToken(msgspec.Struct, frozen=True):
    """A device's token for one role, known by its hash only."""

    token_hash: bytes
    device_id: str
    role: str
    scopes: tuple[str, ...]
    created_ms: int
    rotated_ms: int | None = None
    revoked_ms: int | None = None
    last_used_ms: int | None = None


class PairingRequest(msgspec.Struct, frozen=True):
    """A device that waits for somebody's approval; one for each device."""

    request_id: str
    device_id: str
    public_key: str
    display_name: str | None
    platform: str | None
    client_id: str | None
    client_mode: str | None
    roles: tuple[str, ...]
    scopes: tuple[str, ...]
    remote_ip: str | None
    silent: bool
    is_repair: bool
    created_ms: int


class DeviceStore(Protocol):
    """Devices on disk: a change is durable when its Awaitable is done, and so is the row that tells of it (`audit`). All raise StorageUnavailable;
    nothing here decides anything."""

    def load(self) -> Awaitable[tuple[Sequence[DeviceRecord], Sequence[DeviceToken], Sequence[PairingRequest]]]:
        """All there are, oldest first."""
        ...

    def save_device(self, record: DeviceRecord, audit: AuditEntry | None = None) -> Awaitable[None]: ...

    def delete_device(self, device_id: str, audit: AuditEntry | None = None) -> Awaitable[None]:
        """The device with its tokens and its request."""
        ...

    def save_token(self, token: DeviceToken, audit: AuditEntry | None = None) -> Awaitable[None]: ...

    def delete_token(self, token_hash: bytes) -> Awaitable[None]: ...

    def save_request(self, request: PairingRequest) -> Awaitable[None]:
        """Replaces the device's earlier request."""
        ...

    def delete_request(self, request_id: str, audit: AuditEntry | None = None) -> Awaitable[None]: ...
