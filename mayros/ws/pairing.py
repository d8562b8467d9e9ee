"""What clients hear of devices: who asks to be paired, how that ended, and the end of their own connection. Imports mayros.core and mayros.ws.

Connections of devices are known here by device, because when a device's tokens are ended, its connections are too.
"""

from __future__ import annotations

from collections.abc import Mapping

from mayros.core.device_ports import PairingRequest
from mayros.core.devices import Decision
from mayros.core.ports import Clock
from mayros.ws.broadcast import Broadcaster
from mayros.ws.let_in import Connection

SCOPE = "operator.pairing"


class DeviceConnections:
    """The audience of core.devices.Devices."""

    def __init__(self, broadcaster: Broadcaster, clock: Clock) -> None:
        self._broadcaster, self._clock = broadcaster, clock
        self._open: dict[str, dict[Connection, str]] = {}

    def opened(self, device_id: str, role: str, connection: Connection) -> None:
        """A connection of this device was admitted."""
        self._open.setdefault(device_id, {})[connection] = role

    def lost(self, device_id: str, connection: Connection) -> None:
        """It is gone."""
        connections = self._open.get(device_id)
        if connections is not None and connections.pop(connection, None) is not None and not connections:
            del self._open[device_id]

    def requested(self, request: PairingRequest) -> None:
        """See core.devices.Audience."""
        self._broadcaster.publish("device.pair.requested", pending(request), SCOPE, True)

    def resolved(self, request_id: str, device_id: str, decision: Decision, now_ms: int) -> None:
        """See core.devices.Audience."""
        payload = {"requestId": request_id, "deviceId": device_id, "decision": decision, "ts": now_ms}
        self._broadcaster.publish("device.pair.resolved", payload, SCOPE, True)

    def ended(self, device_id: str, role: str | None) -> None:
        """See core.devices.Audience. The one who asked for it may be among them, and gets its answer first."""
        ended = [connection for connection, own in self._open.get(device_id, {}).items() if role is None or own == role]
        if ended:
            self._clock.callLater(0, self._end, ended)

    def _end(self, connections: list[Connection]) -> None:
        for connection in connections:
            connection.end(1008, "device token revoked")


def pending(request: PairingRequest) -> Mapping[str, object]:
    """A request on the wire."""
    entry: dict[str, object] = {
        "requestId": request.request_id,
        "deviceId": request.device_id,
        "publicKey": request.public_key,
        "displayName": request.display_name,
        "platform": request.platform,
        "clientId": request.client_id,
        "clientMode": request.client_mode,
        "role": request.roles[-1],
        "roles": request.roles,
        "scopes": request.scopes,
        "remoteIp": request.remote_ip,
        "silent": request.silent,
        "isRepair": request.is_repair,
        "ts": request.created_ms,
    }
    return {name: value for name, value in entry.items() if value is not None}
