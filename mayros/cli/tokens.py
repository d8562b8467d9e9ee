"""`mayros tokens`: a token for each person or program that may use a gateway. Imports ws.client through the place; core and storage where none runs.

A gateway that runs is asked. Where none does, which the lock of the state directory tells, the tokens are changed in the store itself.
"""

from __future__ import annotations

import re
from collections.abc import Coroutine, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from mayros.cli.acts import now_ms
from mayros.cli.remote import Remote, gateway_options, idle
from mayros.cli.show import ago, cell, print_json, record, records, table
from mayros.errors import GatewayError

if TYPE_CHECKING:
    from mayros.core.api_tokens import ApiTokens
    from mayros.core.audit import Act

_SPAN = re.compile(r"(\d{1,6})(s|m|h|d|w)", re.ASCII)
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_ONCE = "This is the token. It is shown only now: keep it where others cannot read it."


def span_ms(text: str) -> int | None:
    """A time like `30d` in milliseconds; None where it is none."""
    found = _SPAN.fullmatch(text.strip())
    return None if found is None else int(found[1]) * _UNITS[found[2]] * 1000


def _expires(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    """When a token ends: after so long, or with the last moment of a day of UTC."""
    if text is None:
        return None
    span = span_ms(text)
    try:
        until = now_ms() + span if span is not None else _end_of(date.fromisoformat(text.strip()))
    except (ValueError, OverflowError):
        raise click.BadParameter("must be a time like 12h or 30d, or a date like 2026-12-31") from None
    if until <= now_ms():
        raise click.BadParameter("lies in the past")
    return until


def _end_of(day: date) -> int:
    return int((datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)).timestamp() * 1000)


def _grace(ctx: click.Context, param: click.Parameter, text: str) -> int:
    span = 0 if text.strip() == "0" else span_ms(text)
    if span is None:
        raise click.BadParameter("must be a time like 10m or 1h, or 0")
    return span


def _names(ctx: click.Context, param: click.Parameter, text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [name for part in text.split(",") if (name := part.strip())]
    if not names:
        raise click.BadParameter("names at least one, and commas between them")
    return names


def _scopes(ctx: click.Context, param: click.Parameter, text: str | None) -> list[str] | None:
    names = _names(ctx, param, text)
    return None if names is None else [name if name.startswith("operator.") else f"operator.{name}" for name in names]


_EXPIRES = "When it ends: after a time like 12h or 30d, or with the day of a date like 2026-12-31, in UTC."


@click.group()
def tokens() -> None:
    """Give each person or program a token of its own, with limits; list them, take them back, replace them.

    Without operator.admin a token has sessions of its own, and knows of no others.
    """


@tokens.command()
@click.argument("name")
@click.option("--agents", callback=_names, metavar="A,B", help="The agents it may use. Default: all.")
@click.option("--endpoints", callback=_names, metavar="E,F", help="Some of chat, models, ws, responses, embeddings, tools, metrics. Default: all.")
@click.option("--scopes", callback=_scopes, metavar="S,T", help="Some of read, write, approvals, admin, pairing. Default: read,write.")
@click.option("--rpm", type=click.IntRange(1, 1_000_000), metavar="N", help="How many runs it may ask for in a minute. Default: no limit.")
@click.option("--tokens-per-day", type=click.IntRange(1, 10**15), metavar="N", help="How many tokens of the models its runs may use in a day (UTC).")
@click.option("--expires", callback=_expires, metavar="WHEN", help=_EXPIRES)
@gateway_options()
def create(
    remote: Remote,
    name: str,
    agents: list[str] | None,
    endpoints: list[str] | None,
    scopes: list[str] | None,
    rpm: int | None,
    tokens_per_day: int | None,
    expires: int | None,
) -> None:
    """Make a token for NAME, a person or a program, and print it."""
    asked = {
        "name": name, "agents": agents, "endpoints": endpoints, "scopes": scopes, "rpm": rpm, "tokensPerDay": tokens_per_day, "expiresAtMs": expires,
    }  # fmt: skip
    _show_secret(remote, _call(remote, "tokens.create", {key: value for key, value in asked.items() if value is not None}))


@tokens.command("list")
@gateway_options()
def list_tokens(remote: Remote) -> None:
    """List the tokens there are, without their secrets."""
    answer = _call(remote, "tokens.list", {})
    if remote.json:
        print_json(answer)
        return
    found = records(answer.get("tokens"))
    if not found:
        click.echo("There are no tokens.")
        return
    names = ("name", "state", "scopes", "agents", "endpoints", "a minute", "a day", "until", "made", "used")
    table(names, [_row(token) for token in found])


@tokens.command()
@click.argument("name")
@gateway_options()
def revoke(remote: Remote, name: str) -> None:
    """Take back the token of NAME: it is refused at once, and what it has going on ends."""
    answer = _call(remote, "tokens.revoke", {"name": name})
    if remote.json:
        print_json(answer)
    else:
        click.echo(f"The token {cell(name)} is revoked.")


@tokens.command()
@click.argument("name")
@click.option("--grace", callback=_grace, default="0", show_default=True, metavar="TIME", help="For how long the old one stays good, like 10m or 1h.")
@click.option("--expires", callback=_expires, metavar="WHEN", help=f"{_EXPIRES} Default: as before.")
@gateway_options()
def rotate(remote: Remote, name: str, grace: int, expires: int | None) -> None:
    """Replace the token of NAME by a new one with the same limits, and print that."""
    asked: dict[str, object] = {"name": name, "graceMs": grace}
    if expires is not None:
        asked["expiresAtMs"] = expires
    _show_secret(remote, _call(remote, "tokens.rotate", asked))


def _show_secret(remote: Remote, answer: Mapping[str, Any]) -> None:
    secret = answer.get("token")
    if not isinstance(secret, str) or not secret:
        raise click.ClickException("the gateway gave no token")
    if remote.json:
        print_json(answer)
        return
    click.echo(_ONCE, err=True)
    click.echo(cell(secret))


def _row(token: Mapping[str, Any]) -> tuple[object, ...]:
    scopes = token.get("scopes")
    short = [str(scope).removeprefix("operator.") for scope in scopes] if isinstance(scopes, list | tuple) else None
    until = token.get("expiresAtMs")
    day = datetime.fromtimestamp(until / 1000, UTC).strftime("%Y-%m-%d %H:%M") if isinstance(until, int) else "-"
    return (
        token.get("name"), token.get("state"), short, token.get("agents") or "all", token.get("endpoints") or "all", token.get("rpm") or "-",
        token.get("tokensPerDay") or "-", day, ago(token.get("createdAtMs")), ago(token.get("lastUsedAtMs")) or "never",
    )  # fmt: skip


def _call(remote: Remote, method: str, params: dict[str, object]) -> Mapping[str, Any]:
    """The answer of the gateway that the options mean, or of the store of this machine's where it does not run."""
    state = None if remote.elsewhere else idle(remote)
    if state is None:
        return record(remote.call(method, params))
    try:
        return _in_store(remote, method, params)
    finally:
        state.unlock()


def _in_store(remote: Remote, method: str, params: dict[str, object]) -> Mapping[str, Any]:
    """What the gateway's method would answer. The state directory is locked."""
    from mayros.cli.acts import actor, audit_of
    from mayros.core.api_tokens import ApiTokens
    from mayros.storage.api_tokens import DirectApiTokens, load
    from mayros.storage.migrate import open_engine

    loaded = remote.place.load()
    engine = open_engine(remote.place.store_url(loaded))
    try:
        register = ApiTokens(DirectApiTokens(engine), now_ms)
        register.restore(load(engine))
        audit = audit_of(engine, loaded)
        named = params.get("name")
        act = audit.begin(
            actor(), method, named if isinstance(named, str) else None, None, **{name: value for name, value in params.items() if name != "name"}
        )
        try:
            return _done(_answer(register, method, params, list(remote.place.settings(loaded).directory.agents), act))
        except GatewayError as error:
            audit.settle(act, error)
            raise
    finally:
        engine.dispose()


async def _answer(register: ApiTokens, method: str, params: dict[str, Any], agents: list[str], act: Act) -> Mapping[str, Any]:
    from mayros.core.api_tokens import DEFAULT_SCOPES, Wanted, shown

    if method == "tokens.list":
        return {"ts": now_ms(), "tokens": [shown(token, now_ms()) for token in register.list()]}
    if method == "tokens.revoke":
        return {"entry": shown(await register.revoke(params["name"], act), now_ms())}
    if method == "tokens.rotate":
        secret, token = await register.rotate(params["name"], params["graceMs"], params.get("expiresAtMs"), act)
    else:
        lists = {name: None if (names := params.get(name)) is None else tuple(names) for name in ("agents", "endpoints")}
        limits = params.get("rpm"), params.get("tokensPerDay"), params.get("expiresAtMs")
        wanted = Wanted(params["name"], tuple(params.get("scopes", DEFAULT_SCOPES)), lists["agents"], lists["endpoints"], *limits)
        secret, token = await register.create(wanted, agents, act)
    return {"token": secret, "entry": shown(token, now_ms())}


def _done(work: Coroutine[Any, Any, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The result of what never waits."""
    try:
        work.send(None)
    except StopIteration as end:
        answer: Mapping[str, Any] = end.value
        return answer
    raise AssertionError("the store made somebody wait")
