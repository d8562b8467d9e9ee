"""`mayros export`: a whole conversation as JSON lines or as Markdown, read from the store. Imports storage when a command asks."""

from __future__ import annotations

import datetime
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import click
import msgspec

from mayros.cli import candidates
from mayros.cli.place import Place, here
from mayros.messages import ImagePart, Message, text_of, unpack

if TYPE_CHECKING:
    from mayros.core.session_ports import SessionRow
    from mayros.storage.export import Record

VERSION = 1
_FENCE = re.compile(r"`{3,}")
_WHO = {"user": "User", "assistant": "Assistant", "tool": "Result of a tool", "system": "System"}


@click.command()
@click.argument("session", metavar="SESSION", shell_complete=candidates.session_keys)
@click.option("--format", "form", type=click.Choice(["jsonl", "markdown"]), default="jsonl", show_default=True, help="How it is written.")
@click.option("--earlier", is_flag=True, help="Also what was said before the session was reset.")
@click.option("--output", metavar="FILE", type=click.Path(dir_okay=False), help="Write into this new file, not to standard output.")
@click.pass_context
def export(ctx: click.Context, session: str, form: str, earlier: bool, output: str | None) -> None:
    """Write the conversation SESSION (a key as in `mayros sessions list`) out of this machine's store, also while the gateway runs.

    jsonl: a line about the session, then one for each message, in the form of OpenAI's chat messages, with what is known about the run. markdown: to
    be read.
    """
    place = here(ctx)
    os.umask(0o077)
    writing = {"jsonl": lines, "markdown": markdown}[form]
    with _opened(place, session, earlier) as (row, found):
        parts = (part.encode("utf-8", "replace") for part in writing(row, found))
        if output is None:
            _write(sys.stdout.buffer, parts)
            return
        try:
            fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise click.ClickException(f"{output} exists already") from None
        with os.fdopen(fd, "wb") as file:
            _write(file, parts)
    click.echo(f"Written: {output}", err=True)


def _write(file: BinaryIO, parts: Iterable[bytes]) -> None:
    for part in parts:
        file.write(part)
    file.flush()


@contextmanager
def _opened(place: Place, session: str, earlier: bool) -> Iterator[tuple[SessionRow, Iterator[Record]]]:
    """The session's row and its records, for as long as the context lasts."""
    from mayros.core.keys import SessionKey
    from mayros.storage.export import open_to_read, records, session_ids
    from mayros.storage.listing import find

    loaded = place.load()
    directory = place.settings(loaded).directory
    key = str(SessionKey.parse(session, None, directory.default_id, directory.main_key, param="SESSION", reserved=True))
    engine = open_to_read(place.store_url(loaded))
    try:
        with engine.connect() as connection:
            row = find(connection, key)
            if row is None:
                raise click.ClickException(f"there is no session {key!r}: see mayros sessions list")
            ids = session_ids(connection, row.key, row.session_id) if earlier else (row.session_id,)
            yield row, (record for id_ in ids for record in records(connection, id_))
    finally:
        engine.dispose()


def lines(row: SessionRow, found: Iterable[Record]) -> Iterator[str]:
    """One JSON object a line: `{"type":"session",...}`, then `{"type":"message",...}` for each record."""
    head: dict[str, Any] = {
        "type": "session",
        "version": VERSION,
        "key": row.key,
        "agentId": row.agent_id,
        "sessionId": row.session_id,
        "label": row.settings.label,
        "createdAt": _iso(row.created_ms),
        "updatedAt": _iso(row.updated_ms),
        "turns": row.turns,
        "inputTokens": row.input_tokens,
        "outputTokens": row.output_tokens,
    }
    yield _line(head)
    for record in found:
        entry: dict[str, Any] = {
            "type": "message",
            # As a text: the numbers are larger than JavaScript's.
            "id": str(record.id),
            "parentId": None if record.parent_id is None else str(record.parent_id),
            "sessionId": record.session_id,
            "runId": record.run_id,
            "kind": record.kind,
            "timestamp": _iso(record.created_ms),
            "message": record.message,
        }
        if record.meta is not None:
            entry["meta"] = record.meta
        yield _line(entry)


def _line(value: dict[str, Any]) -> str:
    return msgspec.json.encode(value).decode() + "\n"


def _iso(moment_ms: int) -> str:
    try:
        moment = datetime.datetime.fromtimestamp(moment_ms / 1000, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return ""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def markdown(row: SessionRow, found: Iterable[Record]) -> Iterator[str]:
    """A page with a heading for each message; calls and results of tools as blocks of code."""
    title = " ".join((row.settings.label or row.key).split())
    yield f"# {title}\n\nSession `{row.key}`, begun {_iso(row.created_ms)}, last used {_iso(row.updated_ms)}.\n"
    part = row.session_id
    for number, record in enumerate(found):
        if number == 0:
            part = record.session_id
        elif record.session_id != part:
            part = record.session_id
            yield "\n---\n\nThe session began anew.\n"
        yield from _message(unpack(record.message), _iso(record.created_ms))


def _message(message: Message, when: str) -> Iterator[str]:
    name = f" ({' '.join(message.name.split())})" if message.name else ""
    yield f"\n## {_WHO[message.role]}{name}, {when}\n"
    text = text_of(message)
    if text:
        yield "\n" + (_block(text) if message.role == "tool" else text.rstrip("\n") + "\n")
    images = sum(isinstance(part, ImagePart) for part in message.content) if isinstance(message.content, tuple) else 0
    if images:
        yield f"\n*{images} image{'s' if images > 1 else ''}*\n"
    for call in message.tool_calls or ():
        yield f"\nCalls `{' '.join(call.function.name.split())}`:\n\n{_block(call.function.arguments, 'json')}"


def _block(text: str, language: str = "") -> str:
    """A block of code that its text cannot end."""
    longest = max((len(found[0]) for found in _FENCE.finditer(text)), default=2)
    fence = "`" * (longest + 1)
    ended = text if text.endswith("\n") else text + "\n"
    return f"{fence}{language}\n{ended}{fence}\n"
