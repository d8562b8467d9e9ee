"""Records of core as rows: field by field, lists of texts as JSON. Imports errors and engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

from mayros.errors import StartError
from mayros.storage.engine import cause

R = TypeVar("R", bound=msgspec.Struct)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[str, ...]).decode


def row_of(record: msgspec.Struct, lists: Collection[str] = ()) -> dict[str, Any]:
    """The columns of a record; `lists` names those that are lists of texts, or None."""
    found = msgspec.structs.asdict(record)
    return {name: _encode(value).decode() if name in lists and value is not None else value for name, value in found.items()}


def record_of(row: Mapping[Any, Any], kind: type[R], lists: Collection[str] = ()) -> R:
    """The record of a row; what `row_of` made, made undone."""
    return msgspec.convert({str(name): _decode(value) if name in lists and value is not None else value for name, value in row.items()}, kind)


def put(connection: sa.Connection, row: Mapping[str, Any], *same: sa.Column[Any]) -> None:
    """In the writer thread: write a row in the place of the one that has the same values in these columns of its table."""
    table = same[0].table
    if not connection.execute(sa.update(table).where(*(column == row[column.name] for column in same)).values(row)).rowcount:
        connection.execute(sa.insert(table).values(row))


def load_rows(engine: sa.Engine, statement: sa.Select[Any]) -> Sequence[sa.RowMapping]:
    """The rows of a statement. Blocks, so before the reactor runs. Raises StartError."""
    try:
        with engine.connect() as connection:
            return connection.execute(statement).mappings().all()
    except sa.exc.SQLAlchemyError as error:
        raise StartError(f"The store cannot be read: {cause(error)}") from error
