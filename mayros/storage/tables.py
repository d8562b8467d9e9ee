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
    #: Of the input those read from and written to a provider's cache; the cost is in US dollars / 10^9.
    sa.Column("cache_read_tokens", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("cache_write_tokens", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("cost_nano", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    #: What clients have set (settings.py), and the label among it: by itself, because it names one session only.
    sa.Column("settings", sa.Text),
    sa.Column("label", sa.Text),
    sqlite_with_rowid=False,
)

#: As text: Core would write `= 1` for SQLite, which is another condition than that of the index.
STATELESS = sa.text("stateless")
CONVERSATION = sa.text("NOT stateless")
LABELLED = sa.text("label IS NOT NULL")
NAMED = sa.text("session_key <> ''")

# The migrations say the same for PostgreSQL; said here, it would load that dialect (4 MB) into every daemon.
#: What pruning walks: stateless sessions only, oldest first. The second column lets them be counted in the index alone.
sa.Index("sessions_stateless", sessions.c.updated_ms, sessions.c.stateless, sqlite_where=STATELESS)
#: What lists walk, newest first, together with the one above; a stateless turn does not touch it.
sa.Index("sessions_conversations", sessions.c.updated_ms, sqlite_where=CONVERSATION)
sa.Index("sessions_label", sessions.c.label, unique=True, sqlite_where=LABELLED)

#: The session ids a key had before it was reset.
session_history = sa.Table(
    "session_history",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("session_id", sa.Text, primary_key=True),
    sqlite_with_rowid=False,
)

#: Session ids that no key has any more; their entries are being deleted, in chunks.
deleted_sessions = sa.Table(
    "deleted_sessions",
    metadata,
    sa.Column("session_id", sa.Text, primary_key=True),
    sqlite_with_rowid=False,
)

#: The kind of an entry that answers a slash command; all others are `message`.
COMMAND = "command"

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

#: roles and scopes are JSON lists of texts.
devices = sa.Table(
    "devices",
    metadata,
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

device_tokens = sa.Table(
    "device_tokens",
    metadata,
    sa.Column("token_hash", sa.LargeBinary, primary_key=True),
    sa.Column("device_id", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("rotated_ms", sa.BigInteger),
    sa.Column("revoked_ms", sa.BigInteger),
    sa.Column("last_used_ms", sa.BigInteger),
    sa.Index("device_tokens_device", "device_id"),
    sqlite_with_rowid=False,
)

device_requests = sa.Table(
    "device_requests",
    metadata,
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
    sa.Index("device_requests_device", "device_id", unique=True),
    sqlite_with_rowid=False,
)

#: Tokens of persons and programs. scopes, agents and endpoints are JSON lists of texts; NULL: all. Revoked ones stay, as names are not given twice.
api_tokens = sa.Table(
    "api_tokens",
    metadata,
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

#: Which programs agents may run without asking; `pattern` is a glob.
exec_allowlist = sa.Table(
    "exec_allowlist",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("agent_id", sa.Text, nullable=False),
    sa.Column("pattern", sa.Text, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("last_used_ms", sa.BigInteger),
    sa.Column("last_command", sa.Text),
    sa.Column("last_resolved", sa.Text),
    sqlite_with_rowid=False,
)

#: What else is kept of the rules for commands, by agent, as JSON.
exec_policy = sa.Table(
    "exec_policy",
    metadata,
    sa.Column("agent_id", sa.Text, primary_key=True),
    sa.Column("json", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

#: Keys of providers that rest after failures. `model` is empty where the key rests for all models; `fingerprint` tells a key that was replaced.
cooldowns = sa.Table(
    "cooldowns",
    metadata,
    sa.Column("provider", sa.Text, primary_key=True),
    sa.Column("credential", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("failed_ms", sa.BigInteger, nullable=False),
    sa.Column("until_ms", sa.BigInteger, nullable=False),
    sa.Column("told_until_ms", sa.BigInteger, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

#: What was used, day (UTC, `YYYY-MM-DD`) by day. `session_key` is empty for requests without a session, and for sessions that are deleted or whose
#: day is long ago (usage.py). `runs` count where they ended, `turns` are the model's. Tokens are disjoint, but that `output` has `reasoning` in it.
usage_days = sa.Table(
    "usage_days",
    metadata,
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

#: For one session's sums, and for what becomes of them when it is deleted.
sa.Index("usage_days_session", usage_days.c.session_key, sqlite_where=NAMED)

#: Who did what; rows are only added, and dropped when they are old. `details` is a JSON object.
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", _Id, primary_key=True),
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
