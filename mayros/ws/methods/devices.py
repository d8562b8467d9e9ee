"""`device.pair.*` and `device.token.*`: who is paired, who waits, and what their tokens are. Imports mayros.core and mayros.wire.

Nobody gives away more than he has: whoever approves a device, or makes a token for one, has its scopes himself.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec
from twisted.internet.defer import Deferred

from mayros.core.auth import lacking
from mayros.core.claims import shielded
from mayros.core.device_ports import DeviceRecord, DeviceToken
from mayros.core.devices import Devices
from mayros.wire.frames import Request, Text, parse_params
from mayros.ws.pairing import pending

if TYPE_CHECKING:
    from mayros.ws.session import Session

Work = Coroutine[Deferred[object], object, object]


class ListParams(msgspec.Struct, frozen=True):
    """Of device.pair.list."""


class RequestParams(msgspec.Struct, frozen=True, rename="camel"):
    """Of device.pair.approve and device.pair.reject."""

    request_id: Text


class DeviceParams(msgspec.Struct, frozen=True, rename="camel"):
    """Of device.pair.remove."""

    device_id: Text


class TokenParams(msgspec.Struct, frozen=True, rename="camel"):
    """Of device.token.revoke."""

    device_id: Text
    role: Text


class RotateParams(msgspec.Struct, frozen=True, rename="camel"):
    """Of device.token.rotate. `scopes` None: those of the newest token."""

    device_id: Text
    role: Text
    scopes: tuple[Text, ...] | None = None


def pair_list(session: Session, request: Request) -> None:
    """All devices, and all requests that wait."""
    parse_params(ListParams, request.params, "device.pair.list")

    async def work(devices: Devices) -> object:
        paired = [_device(record, devices.tokens(record)) for record in devices.paired()]
        return {"pending": [pending(one) for one in devices.pending()], "paired": paired}

    _answer(session, request, work)


def pair_approve(session: Session, request: Request) -> None:
    """Pair a device that waits."""
    params = parse_params(RequestParams, request.params, "device.pair.approve")

    act = session.acting

    async def work(devices: Devices) -> object:
        _hold(session, devices.request(params.request_id).scopes)
        record = await devices.approve(params.request_id, act)
        return {"requestId": params.request_id, "device": _device(record, devices.tokens(record))}

    _answer(session, request, work)


def pair_reject(session: Session, request: Request) -> None:
    """Forget a request; the device may ask again."""
    params = parse_params(RequestParams, request.params, "device.pair.reject")

    act = session.acting

    async def work(devices: Devices) -> object:
        rejected = await devices.reject(params.request_id, act)
        return {"requestId": params.request_id, "deviceId": rejected.device_id}

    _answer(session, request, work)


def pair_remove(session: Session, request: Request) -> None:
    """Forget a device; its connections end."""
    params = parse_params(DeviceParams, request.params, "device.pair.remove")

    act = session.acting

    async def work(devices: Devices) -> object:
        await devices.remove(params.device_id, act)
        return {"deviceId": params.device_id}

    _answer(session, request, work)


def token_rotate(session: Session, request: Request) -> None:
    """A new token in the place of all of the role; connections of the device in that role end."""
    params = parse_params(RotateParams, request.params, "device.token.rotate")

    act = session.acting

    async def work(devices: Devices) -> object:
        scopes = devices.rotation(params.device_id, params.role, params.scopes)
        _hold(session, scopes)
        grant = await devices.rotate(params.device_id, params.role, scopes, act)
        return {
            "deviceId": params.device_id,
            "role": params.role,
            "token": grant.token,
            "scopes": grant.scopes,
            "rotatedAtMs": grant.issued_ms,
        }

    _answer(session, request, work)


def token_revoke(session: Session, request: Request) -> None:
    """No token of the role is good any more; connections of the device in that role end."""
    params = parse_params(TokenParams, request.params, "device.token.revoke")

    act = session.acting

    async def work(devices: Devices) -> object:
        revoked_ms = await devices.revoke(params.device_id, params.role, act)
        return {"deviceId": params.device_id, "role": params.role, "revokedAtMs": revoked_ms}

    _answer(session, request, work)


def _answer(session: Session, request: Request, work: Callable[[Devices], Work]) -> None:
    """Do the work to its end, whatever becomes of the client, and give its result as the answer."""

    async def run() -> object:
        devices = session.gateway.devices
        await devices.ready()
        return await work(devices)

    async def answered() -> None:
        session.reply(request.id, await shielded(run()))

    session.spawn(request.id, answered())


def _hold(session: Session, scopes: Iterable[str]) -> None:
    """The client must have these scopes itself. Raises Refused."""
    missing = lacking(session.principal.scopes, scopes)
    if missing is not None:
        raise session.lacks(missing)


def _device(record: DeviceRecord, tokens: Iterable[DeviceToken]) -> Mapping[str, object]:
    """A device on the wire."""
    return _given(
        {
            "deviceId": record.device_id,
            "publicKey": record.public_key,
            "displayName": record.display_name,
            "platform": record.platform,
            "clientId": record.client_id,
            "clientMode": record.client_mode,
            "role": record.roles[-1],
            "roles": record.roles,
            "scopes": record.scopes,
            "remoteIp": record.remote_ip,
            "createdAtMs": record.created_ms,
            "approvedAtMs": record.approved_ms,
            "tokens": [_token(token) for token in tokens],
        }
    )


def _token(token: DeviceToken) -> Mapping[str, object]:
    """A token on the wire, without what makes it one."""
    return _given(
        {
            "role": token.role,
            "scopes": token.scopes,
            "createdAtMs": token.created_ms,
            "rotatedAtMs": token.rotated_ms,
            "revokedAtMs": token.revoked_ms,
            "lastUsedAtMs": token.last_used_ms,
        }
    )


def _given(entry: Mapping[str, object]) -> Mapping[str, object]:
    return {name: value for name, value in entry.items() if value is not None}
