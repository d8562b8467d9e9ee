"""What `mayros gateway status` finds out about a service, as JSON and as lines. Imports ops.units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mayros.errors import StartError

if TYPE_CHECKING:
    from mayros.cli.service import Service

_SHOWN = ("ActiveState", "SubState", "MainPID", "Result", "ExecMainStatus", "NRestarts", "StatusText", "UnitFileState", "ActiveEnterTimestamp")
#: Hosts that mean every address, and what to connect to instead.
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  compared, not bound


def condition(service: Service, *, deep: bool, probe: bool) -> dict[str, Any]:
    """What is known of a service. `exit`: 0 ready, 1 not, 3 stopped."""
    socket, unit = service.units
    text = service.installed(socket)
    shown = service.host.properties(service.system, unit, *_SHOWN) if text is not None else {}
    found: dict[str, Any] = {
        "unit": unit,
        "scope": "system" if service.system else "user",
        "installed": text is not None,
        "systemd": service.host.booted,
        "config": service.place.config_path,
        "state": service.place.state_dir,
        "active": shown.get("ActiveState", "unknown" if text is not None else "not installed"),
        "sub": shown.get("SubState", ""),
        "pid": _number(shown.get("MainPID")) or None,
        "result": shown.get("Result", ""),
        "exitStatus": _number(shown.get("ExecMainStatus")),
        "restarts": _number(shown.get("NRestarts")),
        "says": shown.get("StatusText", ""),
        "since": shown.get("ActiveEnterTimestamp", ""),
        "starts": shown.get("UnitFileState", ""),
        "port": service.host.properties(service.system, socket, "ActiveState").get("ActiveState", "") if text is not None else "",
    }
    stopped = found["active"] in ("inactive", "failed", "not installed")
    found["exit"] = 3 if stopped else 0 if found["active"] == "active" else 1
    # A socket that waits is not to be woken by a look. Where there is no service, somebody may run one in the foreground.
    if probe and not (stopped and found["port"] == "active"):
        found["probe"] = answer = _probe(service, text)
        found["exit"] = 0 if answer["ready"] else 3 if stopped else 1
    if deep:
        found["outdated"] = service.outdated()
        found["others"] = _others(service)
    return found


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _probe(service: Service, text: str | None) -> dict[str, Any]:
    from mayros.config.tls import own_trust
    from mayros.ops.units import addresses, listened_on

    gateway = trust = None
    try:
        gateway = service.place.load().config.gateway
    except StartError as error:
        if text is None:
            return {"ready": False, "url": None, "why": str(error)}
        # A gateway that runs goes on with what it has read before.
    try:
        if gateway is not None:
            trust = own_trust(gateway.tls, service.place.state_dir)
            if text is None:
                text = "\n".join(f"ListenStream={address}" for address in addresses(gateway, gateway.port, False))
        assert text is not None
        host, port = next(iter(listened_on(text)), ("127.0.0.1", 18789))
    except StartError as error:
        return {"ready": False, "url": None, "why": str(error)}
    host = _ANY.get(host, host)
    url = f"{'http' if trust is None else 'https'}://{f'[{host}]' if ':' in host else host}:{port}/readyz"
    try:
        code = service.host.get(host, port, "/readyz", trust)
    except OSError as error:
        return {"ready": False, "url": url, "why": error.strerror or str(error)}
    return {"ready": code == 200, "url": url, "why": "" if code == 200 else f"it answers {code}; `mayros status` says why"}


def _others(service: Service) -> list[dict[str, Any]]:
    """All units of gateways that either manager knows."""
    found = []
    for system in (True, False):
        done = service.host.manager(system, "list-units", "--all", "--plain", "--no-legend", "--no-pager", "mayros-gateway*")
        for line in done.out.splitlines() if done.status == 0 else ():
            words = line.split(None, 4)
            if len(words) >= 4:
                found.append({"scope": "system" if system else "user", "unit": words[0], "active": words[2], "sub": words[3]})
    return found


def print_condition(found: dict[str, Any]) -> None:
    """The same for people."""
    state = found["active"] if not found["sub"] else f"{found['active']} ({found['sub']})"
    lines = [("Service", f"{found['unit']} of the {found['scope']}: {state}")]
    if found["installed"]:
        since = f", since {found['since']}" if found["pid"] and found["since"] else ""
        lines.append(("Process", f"{found['pid'] or 'none'}{since}"))
        held = "open, held by systemd" if found["pid"] else "open, held by systemd, who starts the gateway for the next client"
        lines.append(("Port", held if found["port"] == "active" else "closed"))
        if found["says"] and found["pid"]:
            lines.append(("Says", found["says"]))
        if found["exitStatus"]:
            lines.append(("Ended", f"with status {found['exitStatus']} ({found['result']}), started again {found['restarts'] or 0} times"))
        if found["starts"] and found["starts"] != "enabled":
            lines.append(("Boot", f"does not start by itself ({found['starts']})"))
    if "probe" in found:
        probe = found["probe"]
        lines.append(("Answers", f"{probe['url']}: {'ready' if probe['ready'] else probe['why']}"))
    for name in found.get("outdated", ()):
        lines.append(("Outdated", f"{name}: mayros gateway install --force writes it anew"))
    for other in found.get("others", ()):
        lines.append(("Unit", f"{other['unit']} of the {other['scope']}: {other['active']} ({other['sub']})"))
    lines.append(("Config", found["config"]))
    lines.append(("State", found["state"]))
    if not found["systemd"]:
        lines.append(("Note", "systemd does not run this machine"))
    elif not found["installed"]:
        lines.append(("Note", f"mayros gateway install{' --system' if found['scope'] == 'system' else ''} makes it a service"))
    width = max(len(name) for name, _ in lines) + 1
    for name, value in lines:
        click.echo(f"{name + ':':<{width}} {' '.join(str(value).split())}")
