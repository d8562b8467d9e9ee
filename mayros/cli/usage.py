"""`mayros usage`: what runs have used, and what it cost. Imports ws.client through the place; the store with --local."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import click

from mayros.cli.place import Place
from mayros.cli.remote import Remote, gateway_options
from mayros.cli.show import cell, print_json, record, records, table
from mayros.errors import StartError

BAR = 24
#: More days are not drawn one by one where nothing was used.
DRAWN_DAYS = 92
#: Sessions that are shown.
MOST_SESSIONS = 50
NAMELESS = "(no session: stateless, deleted, or over 90 days ago)"
_SINCE = re.compile(r"(\d{1,4})d|(\d{4}-\d{2}-\d{2})", re.ASCII)

#: What `sessions.usage` answers, or as much of it as is needed here.
Answer = dict[str, Any]


def _since(ctx: click.Context, param: click.Parameter, text: str) -> date:
    found = _SINCE.fullmatch(text.strip())
    try:
        if found is None:
            raise ValueError
        today = date.fromisoformat(_today())
        since = date.fromisoformat(found[2]) if found[2] else date.fromordinal(today.toordinal() - max(1, int(found[1])) + 1)
    except ValueError:
        raise click.BadParameter("must be a number of days like 7d, or a date like 2026-01-31") from None
    if since > today:
        raise click.BadParameter("lies in the future")
    return since


def _today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


@click.command()
@click.option("--by", type=click.Choice(("day", "agent", "model", "session", "principal")), default="day", show_default=True, help="What to add up.")
@click.option("--since", callback=_since, default="30d", show_default=True, metavar="WHEN", help="So many days, like 7d, or from a date on. In UTC.")
@click.option("--local", is_flag=True, help="Read this machine's store without a gateway, which must not be running.")
@gateway_options()
def usage(remote: Remote, by: str, since: date, local: bool) -> None:
    """Show what runs have used, and what it cost at the models' listed prices."""
    if local and remote.elsewhere:
        raise click.UsageError("--local reads this machine's store: leave out --url and the secrets")
    asked = {"startDate": since.isoformat(), "limit": MOST_SESSIONS}
    answer = _local(remote.place, since.isoformat()) if local else record(remote.call("sessions.usage", asked))
    rows = _ROWS[by](answer)
    if remote.json:
        print_json({"by": by, "since": since.isoformat(), "until": _today(), "rows": rows, "totals": answer.get("totals")})
    elif not any(_number(row, "turns") for row in rows):
        click.echo(f"Nothing was used since {since.isoformat()}.")
    else:
        _show(by, rows, since, answer.get("totals"))


def _local(place: Place, since: str) -> Answer:
    """What a gateway would answer, from the store."""
    from mayros.core.usage import daily, models, named, totals
    from mayros.core.usage_ports import UsageQuery
    from mayros.net.statedir import StateDir
    from mayros.storage.migrate import open_engine
    from mayros.storage.usage import sums

    loaded = place.load()
    path = place.store_path(loaded)
    if not os.path.isdir(place.state_dir) or (path is not None and not os.path.exists(path)):
        return {}
    state = StateDir.open(place.state_dir)
    try:
        state.lock()
    except StartError as failure:
        raise StartError(f"{failure}; leave out --local to ask the gateway that is running", failure.status) from failure
    query = UsageQuery(since, _today())
    engine = open_engine(place.store_url(loaded))
    try:
        with engine.connect() as connection:
            days = sums(connection, ("day",), query)
            by_session = sums(connection, ("session", "agent"), query)
            sessions = [one for one in by_session if one.names[0]][:MOST_SESSIONS]
            return {
                "sessions": [{"key": one.names[0], "agentId": one.names[1], "usage": totals((one,))} for one in sessions],
                "totals": totals(days),
                "aggregates": {
                    "byModel": models(sums(connection, ("provider", "model"), query)),
                    "byAgent": named("agentId", sums(connection, ("agent",), query)),
                    "byPrincipal": named("principal", sums(connection, ("principal",), query)),
                    "daily": daily(days),
                    "withoutSession": totals(one for one in by_session if not one.names[0]),
                },
            }
    finally:
        engine.dispose()
        state.unlock()


def _days(answer: Answer) -> list[dict[str, Any]]:
    return records(_aggregates(answer).get("daily"))


def _sessions(answer: Answer) -> list[dict[str, Any]]:
    found = [{"key": row.get("key"), "label": row.get("label"), **record(row.get("usage"))} for row in records(answer.get("sessions"))]
    rest = record(_aggregates(answer).get("withoutSession"))
    return [*found, {"key": "", **rest}] if _number(rest, "turns") else found


def _aggregated(group: str) -> Callable[[Answer], list[dict[str, Any]]]:
    """The rows of a group of the answer, each with its sums beside its names."""

    def rows(answer: Answer) -> list[dict[str, Any]]:
        found = records(_aggregates(answer).get(group))
        return [{**{name: value for name, value in row.items() if name != "totals"}, **record(row.get("totals"))} for row in found]

    return rows


_ROWS: dict[str, Callable[[Answer], list[dict[str, Any]]]] = {
    "day": _days,
    "agent": _aggregated("byAgent"),
    "model": _aggregated("byModel"),
    "principal": _aggregated("byPrincipal"),
    "session": _sessions,
}


def _aggregates(answer: Answer) -> Answer:
    return record(answer.get("aggregates"))


def _show(by: str, rows: Sequence[dict[str, Any]], since: date, totals: object) -> None:
    terminal = sys.stdout.isatty()
    if by == "day" and terminal:
        rows = _every_day(rows, since)
    # Money is what counts; where nothing has a price, tokens are.
    measure = "totalCost" if any(_number(row, "totalCost") for row in rows) else "totalTokens"
    most = max((_number(row, measure) for row in rows), default=0)
    lines = [(*_line(_name(by, row), row), *([bar(_number(row, measure), most)] if terminal else ())) for row in rows]
    lines.append((*_line("total", record(totals)), *([""] if terminal else ())))
    table((by, "runs", "input", "cached", "output", "cost", *([""] if terminal else ())), lines, terminal)
    missing = _number(record(totals), "missingCostEntries")
    if missing and measure == "totalCost":
        click.echo(f"{missing:,.0f} answers came from models without a price and are not in the cost.")


def _every_day(rows: Sequence[dict[str, Any]], since: date) -> Sequence[dict[str, Any]]:
    """With the days on which nothing was used, where they are not too many."""
    known = {str(row.get("date")): row for row in rows}
    first, last = since.toordinal(), date.fromisoformat(_today()).toordinal()
    if last - first >= DRAWN_DAYS:
        return rows
    return [known.get(day, {"date": day}) for day in (date.fromordinal(number).isoformat() for number in range(first, last + 1))]


def _name(by: str, row: dict[str, Any]) -> object:
    if by == "model":
        return f"{cell(row.get('provider'))}/{cell(row.get('model'))}"
    if by == "session":
        return row.get("key") or NAMELESS
    return row.get({"day": "date", "agent": "agentId"}.get(by, by))


def _line(name: object, row: dict[str, Any]) -> tuple[object, ...]:
    cached = _number(row, "cacheRead") + _number(row, "cacheWrite")
    counts = (_number(row, "runs"), _number(row, "input"), cached, _number(row, "output"))
    return name, *(f"{count:,.0f}" for count in counts), money(_number(row, "totalCost"))


def money(dollars: float) -> str:
    """Dollars and cents; small sums with as many digits as say something."""
    return f"${dollars:,.2f}" if dollars >= 1 or not dollars else f"${dollars:.4f}" if dollars >= 0.0001 else "<$0.0001"


def bar(value: float, most: float) -> str:
    """A bar whose length is the share of the largest value; anything is at least visible."""
    halves = round(2 * BAR * value / most) if most > 0 else 0
    halves = max(halves, 1) if value > 0 else 0
    return "█" * (halves // 2) + "▌" * (halves % 2)


def _number(row: dict[str, Any], name: str) -> float:
    value = row.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0
