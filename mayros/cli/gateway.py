"""`mayros gateway`: run the daemon in this process, ask one whether it is well, print the secret. Imports tap, ws.client and config when asked."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from mayros.cli.place import credential, here, target


@click.group()
def gateway() -> None:
    """Run the gateway, or ask one how it is."""


@gateway.command()
@click.option("--config", metavar="FILE", help="The configuration file.")
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
@click.option("--url", metavar="URL", help="Another gateway: ws://, wss:// or unix:/path. Stored secrets are not sent there.")
@click.option("--token-file", type=click.Path(exists=True, dir_okay=False), help="A file that holds the gateway's token.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer as JSON.")
@click.option("--timeout", type=click.FloatRange(0.1, 3600), default=10.0, show_default=True, metavar="S", help="Seconds to wait.")
@click.pass_context
def health(ctx: click.Context, url: str | None, token_file: str | None, as_json: bool, timeout: float) -> None:
    """Ask the gateway how it is: status 0 when it is healthy, 1 when it is not or cannot be reached."""
    place = here(ctx)
    to = target(place, url, token_file)
    call = place.calls()
    payload: Any = place.drive(
        lambda reactor: call(
            reactor,
            to.url,
            token=to.token,
            password=to.password,
            method="health",
            params={},
            on_event=None,
            timeout=timeout,
            scopes=("operator.read",),
        )
    )
    healthy = isinstance(payload, dict) and payload.get("ok") is True
    if as_json:
        click.echo(json.dumps(payload, ensure_ascii=False))
    elif healthy:
        click.echo(f"The gateway at {to.url} is healthy.")
    if not healthy:
        raise click.ClickException(f"the gateway at {to.url} says that it is not healthy")


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
