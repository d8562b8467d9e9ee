"""The texts of systemd's units, made from those in mayros/systemd for one place: a user's service, the system's, or a named instance of either.

Pure but for reading the texts. Imports config and errors. A marker in a text is `@NAME@` in capitals; systemd's own `@groups` are small.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from ipaddress import ip_address

import msgspec

from mayros.config.gateway import Gateway
from mayros.errors import StartError

#: Names of instances: what is the same for systemd, in a path and in a file's name.
INSTANCE = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
#: Where a system service cannot look: home directories (ProtectHome=) and temporary ones (PrivateTmp=).
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108  compared, not written to
_MARKER = re.compile(r"@([A-Z_]+)@")
_UNFIT = re.compile(r'["\\$\x00-\x1f\x7f]')


def stem(instance: str | None) -> str:
    """How the names of a service's units begin."""
    return f"mayros-gateway@{instance}" if instance else "mayros-gateway"


class Plan(msgspec.Struct, frozen=True):
    """One service. `program` is the `mayros` that it runs, `listen` the addresses of its socket; `config` and `state` are a user's."""

    system: bool
    program: str
    listen: tuple[str, ...]
    config: str = ""
    state: str = ""
    search: str = ""
    instance: str | None = None

    @property
    def service(self) -> str:
        """The unit that is started."""
        return f"{stem(self.instance)}.service"

    @property
    def socket(self) -> str:
        """The unit that holds its port."""
        return f"{stem(self.instance)}.socket"

    @property
    def names(self) -> tuple[str, str]:
        """The files that `texts` gives: that of the service (of all instances, the template) and that of the socket."""
        return ("mayros-gateway@.service" if self.instance else self.service), self.socket

    def texts(self) -> dict[str, str]:
        """Each file's text. Raises StartError for a path that cannot stand in a unit."""
        kind = "mayros-gateway.service" if self.system else "mayros-gateway.user.service"
        service, socket = self.names
        label = f" ({self.instance})" if self.instance else ""
        values = {"LISTEN": "\n".join(f"ListenStream={address}" for address in self.listen), "DESCRIPTION": label}
        return {service: _filled(kind, self._values()), socket: _filled("mayros-gateway.socket", values)}

    def _values(self) -> dict[str, str]:
        """What the service's text says. Of an instance nothing but its name, as %i: the file is that of all instances."""
        dash, name = ("-%i", "%i") if self.instance else ("", "mayros")
        if self.system:
            config, state = f"%E/mayros/{name}.json", f"%S/mayros{dash}"
        elif self.instance:
            config, state = "%h/.mayros-%i/mayros.json", "%h/.mayros-%i"
        else:
            config, state = _fit(self.config), _fit(self.state)
        return {
            "UNIT": self.names[0].replace("@", "@NAME") if self.instance else self.service,
            "DESCRIPTION": " (%i)" if self.instance else "",
            "SOCKET": "mayros-gateway@%i.socket" if self.instance else self.socket,
            "EXEC": _fit(self.program),
            "CONFIG": config,
            "STATE": state,
            "STATE_NAME": f"mayros{dash}",
            "TOKEN": f"{CREDENTIALS}/{name}-token" if self.instance else f"{CREDENTIALS}/gateway-token",
            "ENVIRONMENT": f"/etc/mayros/{name}.environment" if self.instance else "/etc/mayros/environment",
            "IDENTIFIER": f"mayros{dash}",
            "PATH": _fit(self.search),
        }


#: Where the secrets of system services are: a directory of root's.
CREDENTIALS = "/etc/mayros/credentials"


def sysusers() -> str:
    """The file for systemd-sysusers that makes the user of system services."""
    return _filled("sysusers.conf", {})


def addresses(gateway: Gateway, port: int, ipv6: bool) -> tuple[str, ...]:
    """What the socket listens on, as systemd writes it, by `gateway.bind`. `ipv6`: whether this machine has ::1. Raises StartError."""
    if gateway.bind == "loopback":
        return (f"127.0.0.1:{port}", f"[::1]:{port}") if ipv6 else (f"127.0.0.1:{port}",)
    if gateway.bind == "lan":
        return (f"0.0.0.0:{port}",)
    if gateway.bind != "custom":
        raise StartError(f"gateway.bind: {gateway.bind} is not offered; use loopback, lan, or custom with gateway.customBindHost.")
    host = gateway.custom_bind_host or ""
    try:
        return (f"[{host}]:{port}",) if ip_address(host).version == 6 else (f"{host}:{port}",)
    except ValueError:
        raise StartError("gateway.customBindHost must be an IP address of this machine.") from None


def listened_on(text: str) -> list[tuple[str, int]]:
    """The TCP addresses of a socket unit's text."""
    found = []
    for line in text.splitlines():
        host, _, port = line.removeprefix("ListenStream=").rpartition(":")
        if line.startswith("ListenStream=") and port.isdigit():
            found.append((host.strip("[]") or "127.0.0.1", int(port)))
    return found


def _filled(name: str, values: Mapping[str, str]) -> str:
    text = (files("mayros") / "systemd" / name).read_text("utf-8")
    return _MARKER.sub(lambda marker: values[marker[1]], text)


def _fit(path: str) -> str:
    """A path or a list of paths as it stands between quotes of a unit."""
    if _UNFIT.search(path):
        raise StartError(f"{path!r} cannot stand in a unit of systemd: quotes, backslashes, `$` and control characters are not possible there.")
    return path.replace("%", "%%")
