"""`mayros gateway`: run the daemon in this process, ask one how it is or anything else, print the secret. Imports tap and config when asked."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from mayros.cli import candidates, certificate, service
from mayros.cli.place import credential, here
from mayros.cli.remote import Refused, Remote, gateway_options
from mayros.cli.show import cell, print_json, record

if TYPE_CHECKING:
    from mayros.ws.connection import Connection


@click.group()
def gateway() -> None:
    """Run the gateway, make it a service, or ask one how it is."""


for command in (service.install, service.uninstall, service.start, service.stop, service.restart, service.status, certificate.cert):
    gateway.add_command(command)


@gateway.command()
@click.option("--config", metavar="FILE", shell_complete=candidates.files, help="The configuration file.")
@click.option("--port", type=click.IntRange(0, 65535), metavar="N", help="The port to listen on.")
@click.option("--listen", metavar="ENDPOINT", multiple=True, help="A Twisted server endpoint to listen on; may be given several times.")
@click.option("--allow-unconfigured", is_flag=True, help="Start although gateway.mode is not local.")
def run(config: str | None, port: int | None, listen: tuple[str, ...], allow_unconfigured: bool) -> None:
    """Run the gateway in the foreground, as `twistd -n --pidfile= mayros` does."""
    from twisted.python.usage import UsageError

    from mayros.tap import Options
    from mayros.tap import run as run_gateway

    arguments = [*(("--config", config) if config is not None else ()), *(("--port", str(port)) if port is not None else ())]
    for endpoint in listen:
        arguments += ["--listen", endpoint]
    if allow_unconfigured:
        arguments.append("--allow-unconfigured")
    options = Options()
    try:
        options.parseOptions(arguments)  # type: ignore[no-untyped-call]
    except UsageError as failure:
        raise click.UsageError(str(failure)) from failure
    sys.exit(run_gateway(options))


@gateway.command()
@gateway_options(seconds=10.0)
def health(remote: Remote) -> None:
    """Ask the gateway how it is: status 0 when it is healthy, 1 when it is not or cannot be reached."""
    payload = remote.talk(lambda connection: connection.request("health", timeout=remote.timeout), signed=False)
    healthy = isinstance(payload, dict) and payload.get("ok") is True
    if remote.json:
        print_json(payload)
    elif healthy:
        click.echo(f"The gateway at {remote.target.url} is healthy.")
    if not healthy:
        raise click.ClickException(f"the gateway at {remote.target.url} says that it is not healthy")


@gateway.command()
@gateway_options(seconds=10.0)
def probe(remote: Remote) -> None:
    """Connect as this machine's device and tell what answers: version, protocol, scopes. Status 1 when it refuses or cannot be reached."""
    began = time.monotonic()

    async def look(connection: Connection) -> dict[str, Any]:
        connected_ms = round((time.monotonic() - began) * 1000)
        return _found(remote.target.url, connected_ms, connection.hello, await connection.request("health", timeout=remote.timeout))

    try:
        found = remote.talk(look)
    except Refused as failure:
        if remote.json:
            print_json({"ok": False, "url": remote.target.url, "error": {"code": failure.code, "message": failure.message}})
        raise
    if remote.json:
        print_json(found)
    else:
        for name, value in found.items():
            click.echo(f"{name}: {cell(value)}")
    if not found["ok"]:
        raise click.ClickException(f"the gateway at {remote.target.url} says that it is not healthy")


def _found(url: str, connected_ms: int, hello: dict[str, Any], health: Any) -> dict[str, Any]:
    server, auth, features, snapshot = (record(hello.get(name)) for name in ("server", "auth", "features", "snapshot"))
    methods = features.get("methods")
    return {
        "ok": isinstance(health, dict) and health.get("ok") is True,
        "url": url,
        "version": server.get("version"),
        "host": server.get("host"),
        "protocol": hello.get("protocol"),
        "connectMs": connected_ms,
        "uptimeMs": snapshot.get("uptimeMs"),
        "authMode": snapshot.get("authMode"),
        "role": auth.get("role"),
        "scopes": auth.get("scopes"),
        "methods": len(methods) if isinstance(methods, list) else 0,
    }


@gateway.command()
@click.argument("method")
@click.option("--params", metavar="JSON", default="{}", help="The method's parameters, a JSON object.")
@click.option("--expect-final", is_flag=True, help="Wait for the answer that is not just accepted.")
@gateway_options()
def call(remote: Remote, method: str, params: str, expect_final: bool) -> None:
    """Call a METHOD of the gateway and print its answer as JSON, with --json on one line. docs/protocol.md lists the methods."""
    try:
        given = json.loads(params)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise click.UsageError("--params must be a JSON object")
    indent = None if remote.json else 2
    try:
        payload = remote.call(method, given, expect_final=expect_final)
    except Refused as failure:
        if failure.payload is not None:
            print_json(failure.payload, indent)
        raise
    print_json(payload, indent)


@gateway.command()
@click.pass_context
def token(ctx: click.Context) -> None:
    """Print the secret that clients of this machine's gateway send: the token, or the password where that is the mode."""
    place = here(ctx)
    known = credential(place, place.load())
    if known.mode in ("none", "trusted-proxy"):
        raise click.ClickException(f"gateway.auth.mode is {known.mode}: there is no token")
    if not known.value:
        raise click.ClickException("there is no token yet: run mayros setup")
    click.echo(known.value)
