"""Rules for the commands that agents run."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make two tables."""
    op.create_table(
        "exec_allowlist",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("pattern", sa.Text, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("last_used_ms", sa.BigInteger),
        sa.Column("last_command", sa.Text),
        sa.Column("last_resolved", sa.Text),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "exec_policy",
        sa.Column("agent_id", sa.Text, primary_key=True),
        sa.Column("json", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Going back would drop what was allowed, and what was forbidden."""
    raise NotImplementedError("The store does not go back to an older schema: restore a backup.")
