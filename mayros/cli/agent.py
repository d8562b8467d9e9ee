"""`mayros agent`: send one message to an agent and print the reply as it comes.

Over the WebSocket of the running gateway; with `--local` the same run in this process (local.py). Imports ws.client through the place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from mayros.cli import candidates
from mayros.cli.remote import Refused, Remote, gateway_options
from mayros.cli.show import cell, clean, print_json
from mayros.core.keys import new_id

if TYPE_CHECKING:
    from mayros.ws.connection import Connection

#: Added to the run's own limit before the command gives up waiting, in seconds.
PATIENCE = 15.0
#: How long Ctrl-C waits until the gateway has aborted the run, in seconds.
ABORT_SECONDS = 3.0


@click.command()
@click.option("-m", "--message", required=True, help="What to say to the agent.")
@click.option("--agent", "agent_id", metavar="ID", shell_complete=candidates.agent_ids, help="The agent; without it the default agent.")
@click.option(
    "--session-key",
    metavar="KEY",
    shell_complete=candidates.session_keys,
    help="The conversation to go on with; without it the agent's main session.",
)
@click.option("--local", is_flag=True, help="Run in this process, without a gateway.")
@click.option("--timeout", type=click.IntRange(1, 86_400), metavar="S", help="Seconds the run may take.")
@gateway_options(seconds=None)
def agent(remote: Remote, message: str, agent_id: str | None, session_key: str | None, local: bool, timeout: int | None) -> None:
    """Send one message to an agent and print its reply as it comes. Ctrl-C aborts the run.

    With --json the final result is printed, and nothing before it.
    """
    if not message.strip():
        raise click.UsageError("--message must not be empty")
    if local and remote.elsewhere:
        raise click.UsageError("--local runs without a gateway: leave out --url, --token-file, --token and --password")
    reply = Reply(not remote.json, sys.stdout.isatty())
    try:
        if local:
            from mayros.cli.local import run

            place = remote.place
            payload: Any = place.drive(lambda reactor: run(reactor, place, message, agent_id, session_key, timeout, reply.text))
        else:
            payload = ask(remote, message, agent_id, session_key, timeout, reply)
    except Exception as failure:
        reply.line()
        if remote.json and isinstance(failure, Refused) and failure.payload is not None:
            print_json(failure.payload)
        raise
    if remote.json:
        print_json(payload)
    else:
        reply.end(final_text(payload))


def ask(remote: Remote, message: str, agent_id: str | None, session_key: str | None, timeout: int | None, reply: Reply) -> Any:
    """Run it on a gateway; the final payload of the method `agent`. A cancelled wait aborts the run."""
    run_id = new_id()
    params: dict[str, Any] = {"message": message, "idempotencyKey": run_id}
    if agent_id is not None:
        params["agentId"] = agent_id
    if session_key is not None:
        params["sessionKey"] = session_key
    if timeout is not None:
        params["timeout"] = timeout

    async def running(connection: Connection) -> Any:
        from twisted.internet.defer import CancelledError

        try:
            return await connection.request("agent", params, timeout=(timeout or 86_400) + PATIENCE, expect_final=True)
        except CancelledError:
            await _abort(connection, run_id, reply.session_key or session_key or _main_session(connection, agent_id))
            raise

    return remote.talk(running, on_event=reply.watch(run_id))


async def _abort(connection: Connection, run_id: str, session_key: str) -> None:
    from mayros.ws.conversation import CallFailed

    try:
        await connection.request("chat.abort", {"sessionKey": session_key, "runId": run_id}, timeout=ABORT_SECONDS)
    except CallFailed as failure:
        click.echo(f"\nwarning: the run may go on, for it could not be aborted: {clean(failure.message)}", err=True)


def _main_session(connection: Connection, agent_id: str | None) -> str:
    """The session that a run without a session key has."""
    snapshot = connection.hello.get("snapshot")
    defaults = snapshot.get("sessionDefaults") if isinstance(snapshot, dict) else None
    main_key = defaults.get("mainKey") if isinstance(defaults, dict) else None
    return f"agent:{agent_id}:{main_key or 'main'}" if agent_id is not None else str(main_key or "main")


class Reply:
    """Prints a reply piece by piece; what a terminal would obey is taken out when one is there."""

    def __init__(self, shown: bool, terminal: bool) -> None:
        self._shown, self._terminal = shown, terminal
        self._parts: list[str] = []
        #: The run's session, once an event has told it.
        self.session_key: str | None = None

    def text(self, delta: str) -> None:
        """More of the reply."""
        self._parts.append(delta)
        if self._shown:
            click.echo(clean(delta) if self._terminal else delta, nl=False)

    def watch(self, run_id: str) -> Callable[[str, Mapping[str, Any]], None]:
        """A function that takes the gateway's events and shows what the run of that id says."""

        def on_event(name: str, payload: Mapping[str, Any]) -> None:
            if name == "exec.approval.requested":
                self._approval(payload)
            if name != "agent" or not isinstance(payload, dict) or payload.get("runId") != run_id:
                return
            if isinstance(payload.get("sessionKey"), str):
                self.session_key = payload["sessionKey"]
            if payload.get("stream") != "assistant":
                return
            data = payload.get("data")
            delta = data.get("delta") if isinstance(data, dict) else None
            if isinstance(delta, str):
                self.text(delta)

        return on_event

    def _approval(self, payload: Any) -> None:
        """The run waits for a person; who started it is probably one."""
        request = payload.get("request") if isinstance(payload, dict) else None
        if not isinstance(request, dict) or self.session_key is None or request.get("sessionKey") != self.session_key:
            return
        from mayros.cli.approvals import exact

        approval_id = cell(payload.get("id"))
        click.echo(f"\nwaiting for an approval of: {exact(request.get('command'))}  (in {exact(request.get('cwd'))})", err=True)
        click.echo(f"in another terminal: mayros approvals allow {approval_id}, or mayros approvals deny {approval_id}", err=True)

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
