"""The tables of the store, as SQLAlchemy Core sees them. Imports SQLAlchemy only.

migrations/ is what makes them; a test keeps both equal. Times are milliseconds of the wall clock. Session key -> many session ids over time;
entries of one session id form a chain by `parent_id`, so that edits and compaction can later be branches and not rewrites.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

#: On SQLite only INTEGER PRIMARY KEY is the row id itself; BIGINT would cost a second index.
_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("agent_id", sa.Text, nullable=False),
    sa.Column("session_id", sa.Text, nullable=False),
    sa.Column("stateless", sa.Boolean, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("updated_ms", sa.BigInteger, nullable=False),
    sa.Column("turns", sa.Integer, nullable=False),
    sa.Column("input_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

#: As text: Core would write `= 1` for SQLite, which is another condition than that of the index.
STATELESS = sa.text("stateless")

#: What pruning walks: stateless sessions only, oldest first. The second column lets them be counted in the index alone.
sa.Index("sessions_stateless", sessions.c.updated_ms, sessions.c.stateless, sqlite_where=STATELESS, postgresql_where=STATELESS)

entries = sa.Table(
    "entries",
    metadata,
    sa.Column("id", _Id, primary_key=True, autoincrement=False),
    sa.Column("session_id", sa.Text, nullable=False),
    sa.Column("parent_id", sa.BigInteger),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("meta", sa.Text),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Index("entries_session", "session_id"),
)

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("scope", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("result", sa.Text),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("expires_ms", sa.BigInteger, nullable=False),
    sa.Index("idempotency_expires", "expires_ms"),
    sqlite_with_rowid=False,
)
