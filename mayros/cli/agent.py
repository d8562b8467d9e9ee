"""`mayros agent`: send one message to an agent and print the reply as it comes.

Over the WebSocket of the running gateway; with `--local` the same run in this process (local.py). Imports ws.client through the place.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from mayros.cli.place import Place, Refused, here, target
from mayros.core.keys import new_id

#: What a terminal would obey: the C0 and C1 controls but tab and newline.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
#: Added to the run's own limit before the command gives up waiting, in seconds.
PATIENCE = 15.0


@click.command()
@click.option("-m", "--message", required=True, help="What to say to the agent.")
@click.option("--agent", "agent_id", metavar="ID", help="The agent; without it the default agent.")
@click.option("--session-key", metavar="KEY", help="The conversation to go on with; without it the agent's main session.")
@click.option("--json", "as_json", is_flag=True, help="Print the final result as JSON, and nothing before it.")
@click.option("--local", is_flag=True, help="Run in this process, without a gateway.")
@click.option("--timeout", type=click.IntRange(1, 86_400), metavar="S", help="Seconds the run may take.")
@click.option("--url", metavar="URL", help="Another gateway: ws://, wss:// or unix:/path. Stored secrets are not sent there.")
@click.option("--token-file", type=click.Path(exists=True, dir_okay=False), help="A file that holds the gateway's token.")
@click.pass_context
def agent(
    ctx: click.Context,
    message: str,
    agent_id: str | None,
    session_key: str | None,
    as_json: bool,
    local: bool,
    timeout: int | None,
    url: str | None,
    token_file: str | None,
) -> None:
    """Send one message to an agent and print its reply.

    With --url, or to use another token, set MAYROS_GATEWAY_TOKEN or give --token-file: secrets do not belong on a command line.
    """
    place = here(ctx)
    if not message.strip():
        raise click.UsageError("--message must not be empty")
    if local and (url or token_file):
        raise click.UsageError("--local runs without a gateway: leave out --url and --token-file")
    reply = Reply(not as_json, sys.stdout.isatty())
    try:
        if local:
            from mayros.cli.local import run

            payload = place.drive(lambda reactor: run(reactor, place, message, agent_id, session_key, timeout, reply.text))
        else:
            payload = remote(place, message, agent_id, session_key, timeout, url, token_file, reply)
    except Exception as failure:
        reply.line()
        if as_json and isinstance(failure, Refused) and failure.payload is not None:
            click.echo(json.dumps(failure.payload, ensure_ascii=False))
        raise
    if as_json:
        click.echo(json.dumps(payload, ensure_ascii=False))
    else:
        reply.end(final_text(payload))


def remote(
    place: Place,
    message: str,
    agent_id: str | None,
    session_key: str | None,
    timeout: int | None,
    url: str | None,
    token_file: str | None,
    reply: Reply,
) -> Any:
    """Run it on a gateway; the final payload of the method `agent`."""
    to = target(place, url, token_file)
    run_id = new_id()
    params: dict[str, Any] = {"message": message, "idempotencyKey": run_id}
    if agent_id is not None:
        params["agentId"] = agent_id
    if session_key is not None:
        params["sessionKey"] = session_key
    if timeout is not None:
        params["timeout"] = timeout
    call = place.calls()
    return place.drive(
        lambda reactor: call(
            reactor,
            to.url,
            token=to.token,
            password=to.password,
            method="agent",
            params=params,
            on_event=reply.watch(run_id),
            timeout=(timeout or 86_400) + PATIENCE,
            scopes=("operator.read", "operator.write"),
        )
    )


class Reply:
    """Prints a reply piece by piece; what a terminal would obey is taken out when one is there."""

    def __init__(self, shown: bool, terminal: bool) -> None:
        self._shown, self._terminal = shown, terminal
        self._parts: list[str] = []

    def text(self, delta: str) -> None:
        """More of the reply."""
        self._parts.append(delta)
        if self._shown:
            click.echo(_CONTROL.sub("", delta) if self._terminal else delta, nl=False)

    def watch(self, run_id: str) -> Callable[[str, Mapping[str, Any]], None]:
        """A function that takes the gateway's events and shows what the run of that id says."""

        def on_event(name: str, payload: Mapping[str, Any]) -> None:
            if name != "agent" or payload.get("runId") != run_id or payload.get("stream") != "assistant":
                return
            data = payload.get("data")
            delta = data.get("delta") if isinstance(data, dict) else None
            if isinstance(delta, str):
                self.text(delta)

        return on_event

    def end(self, final: str) -> None:
        """The whole reply is known: show what the events did not bring, and end the line."""
        said = "".join(self._parts)
        if final.startswith(said):
            self.text(final[len(said) :])
        elif not said.strip().startswith(final.strip()):
            click.echo()
            self._parts.clear()
            self.text(final)
        self.line(always=True)

    def line(self, always: bool = False) -> None:
        """End the line that was begun, if one was."""
        if self._shown and (always or self._parts) and not "".join(self._parts).endswith("\n"):
            click.echo()


def final_text(payload: Any) -> str:
    """The reply in a final payload; empty where it holds none."""
    result = payload.get("result") if isinstance(payload, dict) else None
    payloads = result.get("payloads") if isinstance(result, dict) else None
    texts = [item.get("text") for item in payloads if isinstance(item, dict)] if isinstance(payloads, list) else []
    return "\n".join(text for text in texts if isinstance(text, str))
