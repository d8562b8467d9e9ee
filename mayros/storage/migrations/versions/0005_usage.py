"""What sessions, agents and days have used."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add to the sessions; make a table."""
    for name in ("cache_read_tokens", "cache_write_tokens", "cost_nano"):
        op.add_column("sessions", sa.Column(name, sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.create_table(
        "usage_days",
        sa.Column("day", sa.Text, primary_key=True),
        sa.Column("agent_id", sa.Text, primary_key=True),
        sa.Column("principal", sa.Text, primary_key=True),
        sa.Column("session_key", sa.Text, primary_key=True),
        sa.Column("provider", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("runs", sa.BigInteger, nullable=False),
        sa.Column("turns", sa.BigInteger, nullable=False),
        sa.Column("input", sa.BigInteger, nullable=False),
        sa.Column("output", sa.BigInteger, nullable=False),
        sa.Column("cache_read", sa.BigInteger, nullable=False),
        sa.Column("cache_write", sa.BigInteger, nullable=False),
        sa.Column("reasoning", sa.BigInteger, nullable=False),
        sa.Column("cost_nano", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    named = sa.text("session_key <> ''")
    op.create_index("usage_days_session", "usage_days", ["session_key"], sqlite_where=named, postgresql_where=named)


def downgrade() -> None:
    """Going back would drop what was counted."""
    raise NotImplementedError("The store does not go back to an older schema: restore a backup.")
