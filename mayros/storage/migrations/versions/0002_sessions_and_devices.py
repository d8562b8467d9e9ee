"""What clients set for a session, session ids of the past, and devices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add to the sessions; make five tables."""
    op.add_column("sessions", sa.Column("settings", sa.Text))
    op.add_column("sessions", sa.Column("label", sa.Text))
    conversation, labelled = sa.text("NOT stateless"), sa.text("label IS NOT NULL")
    op.create_index("sessions_conversations", "sessions", ["updated_ms"], sqlite_where=conversation, postgresql_where=conversation)
    op.create_index("sessions_label", "sessions", ["label"], unique=True, sqlite_where=labelled, postgresql_where=labelled)
    op.create_table(
        "session_history",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("session_id", sa.Text, primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_table("deleted_sessions", sa.Column("session_id", sa.Text, primary_key=True), sqlite_with_rowid=False)
    op.create_table(
        "devices",
        sa.Column("device_id", sa.Text, primary_key=True),
        sa.Column("public_key", sa.Text, nullable=False),
        sa.Column("display_name", sa.Text),
        sa.Column("platform", sa.Text),
        sa.Column("client_id", sa.Text),
        sa.Column("client_mode", sa.Text),
        sa.Column("roles", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("remote_ip", sa.Text),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("approved_ms", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "device_tokens",
        sa.Column("token_hash", sa.LargeBinary, primary_key=True),
        sa.Column("device_id", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("rotated_ms", sa.BigInteger),
        sa.Column("revoked_ms", sa.BigInteger),
        sa.Column("last_used_ms", sa.BigInteger),
        sqlite_with_rowid=False,
    )
    op.create_index("device_tokens_device", "device_tokens", ["device_id"])
    op.create_table(
        "device_requests",
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("device_id", sa.Text, nullable=False),
        sa.Column("public_key", sa.Text, nullable=False),
        sa.Column("display_name", sa.Text),
        sa.Column("platform", sa.Text),
        sa.Column("client_id", sa.Text),
        sa.Column("client_mode", sa.Text),
        sa.Column("roles", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("remote_ip", sa.Text),
        sa.Column("silent", sa.Boolean, nullable=False),
        sa.Column("is_repair", sa.Boolean, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("device_requests_device", "device_requests", ["device_id"], unique=True)


def downgrade() -> None:
    """Going back would drop the devices and what clients have set."""
    raise NotImplementedError("The store does not go back to an older schema: restore a backup.")
