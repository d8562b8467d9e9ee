"""Tokens of persons and programs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "api_tokens",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("token_hash", sa.LargeBinary, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("agents", sa.Text),
        sa.Column("endpoints", sa.Text),
        sa.Column("rpm", sa.Integer),
        sa.Column("tokens_per_day", sa.BigInteger),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger),
        sa.Column("rotated_ms", sa.BigInteger),
        sa.Column("revoked_ms", sa.BigInteger),
        sa.Column("last_used_ms", sa.BigInteger),
        sa.Column("previous_hash", sa.LargeBinary),
        sa.Column("previous_until_ms", sa.BigInteger),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Going back would drop the tokens."""
    raise NotImplementedError("The store does not go back to an older schema: restore a backup.")
