"""Which devices are paired, which ask to be, and what each may. In memory, and through the store on disk before anybody is told.

    unknown --asks on this machine--> paired          (also for more scopes, not for another role)
    unknown --asks from elsewhere--> pending --approve--> paired --remove--> unknown
                                        +--reject, or 5 minutes--> unknown

Imports mayros.core and mayros.errors.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

import msgspec

from mayros.core.audit import Act, done
from mayros.core.audit_ports import AuditEntry
from mayros.core.auth import lacking
from mayros.core.device_ports import DeviceRecord, DeviceStore, DeviceToken, PairingRequest
from mayros.core.device_tokens import Grant, Tokens, aside
from mayros.core.once import Once
from mayros.errors import InvalidRequest, Unavailable

MAX_DEVICES, MAX_REQUESTS = 10_000, 256
REQUEST_TTL_MS = 300_000
#: How old the time of a request that is repeated may be on disk.
_REFRESH_MS = 60_000
_MAX_TEXT = 128

#: Why a device cannot come in as it is.
Reason = Literal["not-paired", "role-upgrade", "scope-upgrade"]
Decision = Literal["approved", "rejected"]


class Applicant(msgspec.Struct, frozen=True):
    """A device that has proven its key, and what it wants. What it says of itself (names, platform) is cut here."""

    device_id: str
    public_key: str
    role: str
    scopes: tuple[str, ...]
    display_name: str | None = None
    platform: str | None = None
    client_id: str | None = None
    client_mode: str | None = None
    remote_ip: str | None = None


class Audience(Protocol):
    """Who hears of changes, each once it is on disk; must not raise."""

    def requested(self, request: PairingRequest) -> None:
        """A device asks for approval, and did not before."""
        ...

    def resolved(self, request_id: str, device_id: str, decision: Decision, now_ms: int) -> None: ...

    def ended(self, device_id: str, role: str | None) -> None:
        """The device's tokens of this role (None: of all) are void: its connections must end."""
        ...


class Silence:
    """Nobody listens."""

    def requested(self, request: PairingRequest) -> None: ...

    def resolved(self, request_id: str, device_id: str, decision: Decision, now_ms: int) -> None: ...

    def ended(self, device_id: str, role: str | None) -> None: ...


class Devices:
    """The register. Await `ready` before anything else. `now_ms` is the wall clock in epoch milliseconds.

    Coroutines raise StorageUnavailable, and must not be cancelled: whoever may lose interest shields them.
    The row of an `act` goes with what it does.
    """

    def __init__(self, store: DeviceStore, now_ms: Callable[[], int]) -> None:
        self._store, self._now_ms = store, now_ms
        self._devices: dict[str, DeviceRecord] = {}
        # By device; the one that asked longest ago comes first.
        self._requests: dict[str, PairingRequest] = {}
        self._tokens = Tokens(store, now_ms)
        self._read = Once(self._load)
        self.audience: Audience = Silence()

    async def ready(self) -> None:
        """Read the store, once. Raises StorageUnavailable; the next call tries again."""
        await self._read.done()

    async def _load(self) -> None:
        devices, tokens, requests = await self._store.load()
        self._devices = {record.device_id: record for record in devices}
        self._tokens.fill(token for token in tokens if token.device_id in self._devices)
        self._requests = {request.device_id: request for request in requests}

    # What there is

    def paired(self) -> Sequence[DeviceRecord]:
        """The newest approval first."""
        return sorted(self._devices.values(), key=lambda record: -record.approved_ms)

    def pending(self) -> Sequence[PairingRequest]:
        """The newest first."""
        self._expire()
        return list(reversed(self._requests.values()))

    def request(self, request_id: str) -> PairingRequest:
        """A pending request. Raises InvalidRequest."""
        self._expire()
        for request in self._requests.values():
            if request.request_id == request_id:
                return request
        raise InvalidRequest("unknown requestId")

    def tokens(self, record: DeviceRecord) -> Sequence[DeviceToken]:
        """The newest token of each role."""
        latest = (self._tokens.latest(record.device_id, role) for role in record.roles)
        return [token for token in latest if token is not None]

    def problem(self, device_id: str, role: str, scopes: Iterable[str]) -> Reason | None:
        """Why the device may not come in with this role and these scopes; None: it may."""
        record = self._devices.get(device_id)
        if record is None:
            return "not-paired"
        if role not in record.roles:
            return "role-upgrade"
        return "scope-upgrade" if lacking(record.scopes, scopes) is not None else None

    # Pairing

    async def pair(self, applicant: Applicant, act: Act | None = None) -> None:
        """Approve at once what the device asks for now, and no more. Raises Unavailable when there are too many."""
        await self._approve(self._merged(applicant, None), act)

    async def ask(self, applicant: Applicant) -> PairingRequest:
        """The device's request: a new one, or the one that waits already, with what is asked for now added."""
        self._expire()
        before = self._requests.pop(applicant.device_id, None)
        request = self._merged(applicant, before)
        if before is None and len(self._requests) >= MAX_REQUESTS:
            self._drop(next(iter(self._requests)))
        self._requests[applicant.device_id] = request
        same = before is not None and (before.roles, before.scopes) == (request.roles, request.scopes)
        if before is not None and same and request.created_ms - before.created_ms < _REFRESH_MS:
            # Without a write each time it comes back.
            self._requests[applicant.device_id] = before
            return before
        try:
            await self._store.save_request(request)
        except BaseException:
            if self._requests.get(applicant.device_id) is request:
                del self._requests[applicant.device_id]
                if before is not None:
                    self._requests[applicant.device_id] = before
            raise
        if before is None:
            self.audience.requested(request)
        return request

    async def approve(self, request_id: str, act: Act | None = None) -> DeviceRecord:
        """Pair the device that asked. Raises InvalidRequest, Unavailable."""
        return await self._approve(self.request(request_id), act)

    async def reject(self, request_id: str, act: Act | None = None) -> PairingRequest:
        """Forget the request. Raises InvalidRequest."""
        request = self.request(request_id)
        del self._requests[request.device_id]
        await self._store.delete_request(request_id, _row(act, request))
        self.audience.resolved(request_id, request.device_id, "rejected", self._now_ms())
        return request

    async def remove(self, device_id: str, act: Act | None = None) -> None:
        """Forget the device, its tokens and its request; its connections end. Raises InvalidRequest."""
        record = self._known(device_id)
        del self._devices[device_id]
        self._requests.pop(device_id, None)
        self._tokens.forget(device_id, record.roles)
        try:
            await self._store.delete_device(device_id, _row(act, record))
        finally:
            self.audience.ended(device_id, None)

    # Tokens

    def check_token(self, device_id: str, role: str, scopes: Iterable[str], text: str) -> Grant | None:
        """What the token gives, if it is a live one of this device and role for at least these scopes."""
        return self._tokens.check(device_id, role, scopes, text) if device_id in self._devices else None

    async def issue(self, device_id: str, role: str, scopes: Iterable[str]) -> Grant | None:
        """A new token for a paired device. None: the device's tokens were ended meanwhile."""
        if self.problem(device_id, role, scopes) is not None:
            return None
        return await self._tokens.issue(device_id, role, scopes)

    def rotation(self, device_id: str, role: str, scopes: Iterable[str] | None) -> tuple[str, ...]:
        """The scopes that a rotation would give: those asked for, or those of the newest token. Raises InvalidRequest."""
        record = self._devices.get(device_id)
        if record is None or role not in record.roles:
            raise InvalidRequest("unknown deviceId/role")
        if role == "node":
            scopes = ()
        if scopes is None:
            latest = self._tokens.latest(device_id, role)
            scopes = record.scopes if latest is None else latest.scopes
        wanted = tuple(dict.fromkeys(scopes))
        if (missing := lacking(record.scopes, wanted)) is not None:
            raise InvalidRequest(f"scopes exceed what the device is approved for: {missing[:_MAX_TEXT]}")
        return wanted

    async def rotate(self, device_id: str, role: str, scopes: Iterable[str] | None, act: Act | None = None) -> Grant:
        """End the role's tokens and its connections, and make a new token. Raises InvalidRequest."""
        wanted = self.rotation(device_id, role, scopes)
        try:
            return await self._tokens.rotate(device_id, role, wanted, done(act))
        finally:
            self.audience.ended(device_id, role)

    async def revoke(self, device_id: str, role: str, act: Act | None = None) -> int:
        """End the role's tokens and its connections; gives the time. Raises InvalidRequest."""
        if device_id not in self._devices or self._tokens.latest(device_id, role) is None:
            raise InvalidRequest("unknown deviceId/role")
        try:
            return await self._tokens.revoke(device_id, role, done(act))
        finally:
            self.audience.ended(device_id, role)

    # Inside

    def _known(self, device_id: str) -> DeviceRecord:
        record = self._devices.get(device_id)
        if record is None:
            raise InvalidRequest("unknown deviceId")
        return record

    def _merged(self, applicant: Applicant, before: PairingRequest | None) -> PairingRequest:
        return PairingRequest(
            request_id=str(uuid.uuid4()) if before is None else before.request_id,
            device_id=applicant.device_id,
            public_key=applicant.public_key,
            display_name=_cut(applicant.display_name) or (before.display_name if before is not None else None),
            platform=_cut(applicant.platform),
            client_id=_cut(applicant.client_id),
            client_mode=_cut(applicant.client_mode),
            roles=_together(() if before is None else before.roles, (applicant.role,)),
            scopes=_together(() if before is None else before.scopes, applicant.scopes),
            remote_ip=applicant.remote_ip,
            silent=False,
            is_repair=applicant.device_id in self._devices,
            created_ms=self._now_ms(),
        )

    async def _approve(self, request: PairingRequest, act: Act | None) -> DeviceRecord:
        device_id, now = request.device_id, self._now_ms()
        before = self._devices.get(device_id)
        if before is None and len(self._devices) >= MAX_DEVICES:
            raise Unavailable(f"{MAX_DEVICES} devices are paired already. Remove some.")
        record = DeviceRecord(
            device_id=device_id,
            public_key=request.public_key,
            display_name=request.display_name or (before.display_name if before is not None else None),
            platform=request.platform,
            client_id=request.client_id,
            client_mode=request.client_mode,
            roles=_together(() if before is None else before.roles, request.roles),
            scopes=_together(() if before is None else before.scopes, request.scopes),
            remote_ip=request.remote_ip,
            created_ms=now if before is None else before.created_ms,
            approved_ms=now,
        )
        waiting = self._requests.get(device_id)
        if waiting is not None and (lacking(record.scopes, waiting.scopes) is not None or not set(waiting.roles) <= set(record.roles)):
            waiting = None  # it asks for more than was approved, and goes on waiting
        if waiting is not None:
            del self._requests[device_id]
        self._devices[device_id] = record
        try:
            await self._store.save_device(record, _row(act, record))
        except BaseException:
            if self._devices.get(device_id) is record:
                if before is None:
                    del self._devices[device_id]
                else:
                    self._devices[device_id] = before
                if waiting is not None:
                    self._requests.setdefault(device_id, waiting)
            raise
        if waiting is not None:
            aside(self._store.delete_request(waiting.request_id), "the end of a pairing request")
        self.audience.resolved(request.request_id, device_id, "approved", now)
        return record

    def _expire(self) -> None:
        oldest = self._now_ms() - REQUEST_TTL_MS
        for device_id in [device_id for device_id, request in self._requests.items() if request.created_ms < oldest]:
            self._drop(device_id)

    def _drop(self, device_id: str) -> None:
        aside(self._store.delete_request(self._requests.pop(device_id).request_id), "the end of a pairing request")


def _row(act: Act | None, whom: DeviceRecord | PairingRequest) -> AuditEntry | None:
    """The row that tells what becomes of a device, or of what asks to be one."""
    if act is None:
        return None
    act.tell(whom.device_id, name=whom.display_name, client=whom.client_id, roles=whom.roles, scopes=whom.scopes, address=whom.remote_ip)
    return act.done()


def _cut(text: str | None) -> str | None:
    return None if text is None else "".join(letter for letter in text[:_MAX_TEXT] if letter.isprintable()) or None


def _together(known: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*known, *more)))
