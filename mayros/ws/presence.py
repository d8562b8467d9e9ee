"""Who is here: the gateway itself and the clients that are, or were a moment ago, connected. Imports mayros.wire.

One entry for each device, instance or connection, whichever name a client has first. Clients of mode `cli` come and go and are not listed.
Everything a client says about itself is cut here, since all others get to see it.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Collection, Sequence

import msgspec

from mayros.wire.frames import Client

#: How long a client that left is still listed, and how many are.
KEEP_MS, MAX_ENTRIES = 300_000, 200
_MAX_TEXT = 128


class PresenceEntry(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One line of the list, as on the wire. `reason`: what happened last (`self`, `connect`, `disconnect`); `ts`: when, in epoch milliseconds."""

    ts: int
    text: str
    reason: str
    host: str | None = None
    ip: str | None = None
    version: str | None = None
    platform: str | None = None
    device_family: str | None = None
    model_identifier: str | None = None
    mode: str | None = None
    device_id: str | None = None
    instance_id: str | None = None
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()


class Presence:
    """The list. `version` grows with each change; times are epoch milliseconds."""

    def __init__(self, host: str, version: str) -> None:
        self.version = 1
        self._gateway = PresenceEntry(
            ts=0,
            text=f"Gateway: {host} · app {version} · mode gateway · reason self",
            reason="self",
            host=host,
            version=version,
            platform=sys.platform,
            device_family=platform.system(),
            model_identifier=platform.machine(),
            mode="gateway",
        )
        # Oldest first; how many connections each entry has.
        self._entries: dict[str, PresenceEntry] = {}
        self._connections: dict[str, int] = {}

    def connected(
        self,
        client: Client,
        role: str,
        scopes: Collection[str],
        *,
        connection_id: str,
        device_id: str | None,
        ip: str | None,
        now_ms: int,
    ) -> str | None:
        """A client said hello. `ip` None: it is on this machine. Gives what to say when it leaves; None: it is not listed."""
        if client.mode == "cli":
            return None
        instance_id = _cut(device_id or client.instance_id)
        # Of different kinds, so that nobody takes another's entry by calling itself like a device.
        kind = "device" if device_id else "instance" if instance_id else "connection"
        key = f"{kind}:{instance_id or connection_id}".lower()
        before = self._entries.pop(key, None)
        host, mode = _cut(client.display_name or client.id), client.mode
        self._entries[key] = PresenceEntry(
            ts=now_ms,
            text=f"Node: {host} · mode {mode}",
            reason="connect",
            host=host,
            ip=ip,
            version=_cut(client.version),
            platform=_cut(client.platform),
            device_family=_cut(client.device_family),
            model_identifier=_cut(client.model_identifier),
            mode=mode,
            device_id=device_id,
            instance_id=instance_id,
            roles=_together(before.roles if before is not None else (), (role,)),
            scopes=_together(before.scopes if before is not None else (), scopes),
        )
        self._connections[key] = self._connections.get(key, 0) + 1
        self.version += 1
        self._expire(now_ms)
        return key

    def disconnected(self, key: str, now_ms: int) -> bool:
        """A listed client left. Whether that changed the list: too many others may have come since."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        left = self._connections[key] - 1
        if left:
            self._connections[key] = left
        else:
            del self._connections[key]
        self._entries[key] = msgspec.structs.replace(entry, reason="disconnect", ts=now_ms)
        self.version += 1
        return True

    def entries(self, now_ms: int) -> Sequence[PresenceEntry]:
        """The gateway, then the clients, the newest change first."""
        self._expire(now_ms)
        return [msgspec.structs.replace(self._gateway, ts=now_ms), *reversed(self._entries.values())]

    def shown(self, now_ms: int, all_of_them: bool) -> Sequence[PresenceEntry]:
        """`entries`, or the gateway alone for those who are not to know who else is here."""
        entries = self.entries(now_ms)
        return entries if all_of_them else entries[:1]

    def _expire(self, now_ms: int) -> None:
        """Forget who left long ago, and above the limit who left first, or else who came first."""
        gone = [key for key in self._entries if key not in self._connections]
        too_many = len(self._entries) - MAX_ENTRIES
        for number, key in enumerate(gone):
            if number >= too_many and self._entries[key].ts > now_ms - KEEP_MS:
                break
            del self._entries[key]
        while len(self._entries) > MAX_ENTRIES:
            key = next(iter(self._entries))
            del self._entries[key]
            del self._connections[key]


def _cut(text: str | None) -> str | None:
    return None if text is None else text[:_MAX_TEXT]


def _together(known: Collection[str], more: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted({*known, *more}))
