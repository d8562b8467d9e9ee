"""The audit trail."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("door", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("label", sa.Text),
        sa.Column("address", sa.Text),
        sa.Column("connection", sa.Text),
        sa.Column("request", sa.Text),
        sa.Column("target", sa.Text),
        sa.Column("details", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """Going back would drop the trail."""
    raise NotImplementedError("The store does not go back to an older schema: restore a backup.")
