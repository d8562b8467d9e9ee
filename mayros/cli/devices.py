"""`mayros devices`: which devices may connect to a gateway. Imports ws.client and ws.identity through the place."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from mayros.cli.remote import Remote, gateway_options
from mayros.cli.show import ago, cell, print_json, record, records, table

if TYPE_CHECKING:
    from mayros.ws.identity import Identity


@click.group()
def devices() -> None:
    """List the devices that may connect and those that ask to, decide, and take tokens back."""


@devices.command("list")
@gateway_options()
def list_devices(remote: Remote) -> None:
    """List the devices that wait for an approval, and those that have one."""
    payload = remote.call("device.pair.list")
    if remote.json:
        print_json(payload)
        return
    found = record(payload)
    pending, paired = records(found.get("pending")), records(found.get("paired"))
    if pending:
        click.echo("Waiting for approval:")
        names = ("request", "device", "name", "role", "scopes", "address", "asked")
        table(names, [(row.get("requestId"), row.get("deviceId"), _name(row), _roles(row), row.get("scopes"), *_seen(row)) for row in pending])
        click.echo()
    if paired:
        click.echo("Approved:")
        names = ("device", "name", "roles", "scopes", "tokens", "address", "approved")
        table(names, [(row.get("deviceId"), _name(row), _roles(row), row.get("scopes"), _tokens(row), *_seen(row)) for row in paired])
    if not pending and not paired:
        click.echo("There are no devices.")


@devices.command()
@click.argument("request_id")
@gateway_options()
def approve(remote: Remote, request_id: str) -> None:
    """Let the device of a REQUEST_ID connect with the role and the scopes that it asks for."""
    payload = remote.call("device.pair.approve", {"requestId": request_id})
    if remote.json:
        print_json(payload)
        return
    shown = record(record(payload).get("device"))
    click.echo(f"The device {cell(shown.get('deviceId'))} is approved, with the scopes: {cell(shown.get('scopes')) or 'none'}.")


@devices.command()
@click.argument("request_id")
@gateway_options()
def reject(remote: Remote, request_id: str) -> None:
    """Refuse the request REQUEST_ID of a device."""
    payload = remote.call("device.pair.reject", {"requestId": request_id})
    if remote.json:
        print_json(payload)
    else:
        click.echo(f"The request {cell(request_id)} is rejected.")


@devices.command()
@click.argument("device_id")
@gateway_options()
def remove(remote: Remote, device_id: str) -> None:
    """Forget the device DEVICE_ID: its tokens end, and to come back it must be approved again."""
    payload = remote.call("device.pair.remove", {"deviceId": device_id})
    if remote.json:
        print_json(payload)
    else:
        click.echo(f"The device {cell(device_id)} is removed.")


@devices.command()
@click.argument("device_id")
@click.option("--role", default="operator", show_default=True, help="The role whose tokens end.")
@gateway_options()
def revoke(remote: Remote, device_id: str, role: str) -> None:
    """End all tokens of the device DEVICE_ID and close the connections that used them."""
    payload = remote.call("device.token.revoke", {"deviceId": device_id, "role": role})
    if remote.json:
        print_json(payload)
    else:
        click.echo(f"The {cell(role)} tokens of the device {cell(device_id)} are revoked.")


@devices.command()
@click.argument("device_id")
@click.option("--role", default="operator", show_default=True, help="The role whose tokens are replaced.")
@click.option("--scope", "scopes", multiple=True, metavar="SCOPE", help="A scope of the new token; may be given several times. Default: as before.")
@gateway_options()
def rotate(remote: Remote, device_id: str, role: str, scopes: tuple[str, ...]) -> None:
    """Replace all tokens of the device DEVICE_ID by a new one, and print that. If it is this machine's own device, the token is kept here too."""
    asked: dict[str, object] = {"deviceId": device_id, "role": role}
    if scopes:
        asked["scopes"] = list(scopes)
    payload = remote.call("device.token.rotate", asked)
    token = payload.get("token") if isinstance(payload, dict) else None
    if not isinstance(token, str) or not token:
        raise click.ClickException("the gateway gave no token")
    identity = remote.place.identity()
    if identity is not None and identity.device_id == device_id:
        _keep(remote, identity, role, token, payload.get("scopes"))
    if remote.json:
        print_json(payload)
    else:
        click.echo(cell(token))


def _keep(remote: Remote, identity: Identity, role: str, token: str, scopes: object) -> None:
    named = [scope for scope in scopes if isinstance(scope, str)] if isinstance(scopes, list) else []
    identity.keep(remote.target.gateway, role, token, named, time.time_ns() // 1_000_000)


def _name(row: dict[str, Any]) -> object:
    return row.get("displayName") or row.get("clientId")


def _roles(row: dict[str, Any]) -> object:
    return row.get("roles") or row.get("role")


def _seen(row: dict[str, Any]) -> tuple[object, str]:
    return row.get("remoteIp"), ago(row.get("ts") or row.get("approvedAtMs"))


def _tokens(row: dict[str, Any]) -> int:
    """How many tokens are valid."""
    return sum(1 for token in records(row.get("tokens")) if not token.get("revokedAtMs"))
