"""The tables, as SQLAlchemy Core knows them. May import rows.

Migrations hold the history of these; this is the present. Money is BIGINT nano-units, times are BIGINT
microseconds UTC.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

from headgate_gateway.ledger import rows

metadata: Final = MetaData()

accounts = Table(
    "accounts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, CheckConstraint("kind IN ('organization', 'project', 'key')"), nullable=False),
    Column("name", Text, nullable=False),
    Column("parent", Text, ForeignKey("accounts.id")),
    Column("created_us", BigInteger, nullable=False),
)
Index("accounts_by_name", accounts.c.parent, accounts.c.kind, accounts.c.name)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, ForeignKey("accounts.id"), primary_key=True),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("prefix", Text, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("models", Text),
    Column("max_output", BigInteger),
    Column("expires_us", BigInteger, nullable=False),
    Column("revoked_us", BigInteger),
)

prices = Table(
    "prices",
    metadata,
    Column("id", Text, primary_key=True),
    Column("batch", BigInteger, nullable=False),
    Column("model", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("rates", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),
)

limits = Table(
    "limits",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("batch", BigInteger, nullable=False),
    Column("account", Text, ForeignKey("accounts.id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("amount", BigInteger),
    Column("hard", Integer, nullable=False),
    Column("timezone", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("window_id", BigInteger),
    Column("window_version", BigInteger),
    Column("digest", LargeBinary, nullable=False),
)

windows = Table(
    "windows",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("account", Text, ForeignKey("accounts.id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("start_us", BigInteger, nullable=False),
    Column("end_us", BigInteger, nullable=False),
    Column("limit_id", BigInteger, ForeignKey("limits.id"), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("hard", Integer, nullable=False),
    Column("spent", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    Column("cap", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    CheckConstraint("spent >= 0 AND held >= 0", name="windows_not_negative"),
    CheckConstraint("spent + held <= cap", name="windows_within_cap"),
)
Index("windows_by_end", windows.c.end_us)

rates = Table(
    "rates",
    metadata,
    Column("account", Text, ForeignKey("accounts.id"), primary_key=True),
    Column("requests_limit", BigInteger),
    Column("requests_tat", Text),
    Column("tokens_limit", BigInteger),
    Column("tokens_tat", Text),
)

holds = Table(
    "holds",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("packed", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

recent = Table(
    "recent",
    metadata,
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("changes", LargeBinary, nullable=False),
)
"""What the last batches changed of windows, rates and holds, see `recent`."""

usage_records = Table(
    "usage_records",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("batch", BigInteger, nullable=False),
    Column("request_id", Text, nullable=False, unique=True),
    *(
        Column(name, Text, nullable=False)
        for name in (
            "organization_id", "project_id", "key_id", "model", "task", "backend", "outcome", "source",
        )
    ),
    *(
        Column(name, BigInteger, nullable=False)
        for name in (
            "input", "cache_read", "cache_write", "output", "reasoning", "images", "audio_ms", "requests",
            "gpu_ms",
        )
    ),
    Column("price", Text, ForeignKey("prices.id")),
    Column("held", BigInteger, nullable=False),
    Column("cost", BigInteger, nullable=False),
    Column("overrun", BigInteger, nullable=False),
    Column("billed", Integer, nullable=False),
    Column("flagged", Integer, nullable=False),
    Column("admitted_us", BigInteger, nullable=False),
    Column("first_byte_us", BigInteger),
    Column("finished_us", BigInteger, nullable=False),
    Column("claim", Text),
    Column("detail", LargeBinary, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    CheckConstraint("cost >= 0 AND overrun >= 0 AND cost <= held", name="records_within_hold"),
)  # fmt: skip

voids = Table(
    "voids",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("batch", BigInteger, nullable=False),
    Column("request_id", Text, nullable=False, unique=True),
    Column("key_id", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("detail", LargeBinary, nullable=False),
    Column("digest", LargeBinary, nullable=False),
)

personal = Table(
    "personal",
    metadata,
    Column("at_us", BigInteger, primary_key=True, autoincrement=False),
    Column("request_id", Text, primary_key=True),
    Column("project", Text, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("fields", LargeBinary, nullable=False),
)
"""What may name people, see `ledger.personal`. A trigger forbids UPDATE, but for what erases.

Erased rows are not deleted but overwritten with zeros where they lie. When rows are deleted SQLite moves those
beside them to other pages, and leaves copies in what is free then, also with `secure_delete`: these could not be
erased any more. For the same reason it has rowids: rows that are only added at the end are never moved.
"""

PRESENT: Final = "salt <> zeroblob(16)"
"""Rows of `personal` that were not erased."""

ERASES_NOT: Final = (
    "WHEN NEW.at_us <> OLD.at_us OR NEW.request_id <> OLD.request_id OR NEW.project <> OLD.project "
    "OR NEW.salt <> zeroblob(16) OR NEW.fields <> zeroblob(length(OLD.fields)) "
)
"""An UPDATE of `personal` that does anything but erase."""

claims = Table(
    "claims",
    metadata,
    Column("project", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("state", Text, CheckConstraint("state IN ('open', 'stored', 'released', 'spent')"), nullable=False),
    Column("expires_us", BigInteger, nullable=False),
    Column("reruns", Integer, nullable=False),
    sqlite_with_rowid=False,
)
Index("claims_by_expiry", claims.c.expires_us)

answers = Table(
    "answers",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("answer", LargeBinary, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
)
Index("answers_by_expiry", answers.c.expires_us)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("batch", BigInteger, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
)

links = Table(
    "links",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("at_us", BigInteger, nullable=False),
    Column("admitted", Integer, nullable=False),
    Column("extended", Integer, nullable=False),
    Column("recorded", Integer, nullable=False),
    Column("voided", Integer, nullable=False),
    Column("link", LargeBinary, nullable=False),
)

seals = Table(
    "seals",
    metadata,
    Column("batch", BigInteger, nullable=False),
    Column("seal", BigInteger, primary_key=True, autoincrement=False),
    Column("part", BigInteger, primary_key=True, autoincrement=False),
    Column("parts", BigInteger, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("mac", LargeBinary, nullable=False),
    Column("digest", LargeBinary, nullable=False),
)

archives = Table(
    "archives",
    metadata,
    Column("batch", BigInteger, nullable=False),
    Column("seal", BigInteger, primary_key=True, autoincrement=False),
    Column("covers", BigInteger, primary_key=True, autoincrement=False),
    Column("until", BigInteger, nullable=False),
    Column("until_us", BigInteger, nullable=False),
    Column("file", Text, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("row_count", BigInteger, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),
)
"""What left the store, see `rows.Archive`."""

cursors = Table(
    "cursors",
    metadata,
    Column("consumer", Text, primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("error", Text, nullable=False),
    sqlite_with_rowid=False,
)
"""How far consumers of usage records have come, see `cursors`."""

APPEND_ONLY: Final = ("usage_records", "voids", "prices", "limits", "audit_log", "seals", "archives", "links")
"""Tables on which triggers forbid UPDATE, and DELETE of all that no row of `archives` covers."""


def batch_of(table: str) -> str:
    """The column that says of which batch a row of history is."""
    return "number" if table == "links" else "batch"


def guard(table: str, verb: str) -> tuple[str, str]:
    """The name of the trigger that forbids a verb on a table, and how it is made."""
    name, when, says = f"{table}_no_{verb.lower()}", "", "append-only"
    if verb == "DELETE" and table in rows.LEAVING:
        when = f"WHEN OLD.{batch_of(table)} > (SELECT coalesce(max(until), 0) FROM archives) "  # noqa: S608
    if table == "personal":
        when, says = ERASES_NOT, "never changed"
    return name, (
        f"CREATE TRIGGER {name} BEFORE {verb} ON {table} {when}"
        f"BEGIN SELECT RAISE(ABORT, '{table} is {says}'); END"
    )
