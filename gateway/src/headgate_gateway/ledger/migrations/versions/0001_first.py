"""The first schema: accounts, keys, prices, limits, windows, holds, records, claims, chain.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_APPEND_ONLY = ("usage_records", "voids", "prices", "limits", "audit_log", "links")


def _text(name: str, *, null: bool = False, primary: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=null, primary_key=primary)


def _count(name: str, *, null: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=null)


def _flag(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False)


def _bytes(name: str) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary, nullable=False)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, _NUMBER, primary_key=True, autoincrement=False)


def upgrade() -> None:
    """Make everything."""
    _accounts()
    _limits()
    _requests()
    _history()
    for table in _APPEND_ONLY:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )


def _accounts() -> None:
    op.create_table(
        "accounts",
        _text("id", primary=True),
        sa.Column(
            "kind", sa.Text, sa.CheckConstraint("kind IN ('organization', 'project', 'key')"), nullable=False
        ),
        _text("name"),
        sa.Column("parent", sa.Text, sa.ForeignKey("accounts.id")),
        _count("created_us"),
    )
    op.create_index("accounts_by_name", "accounts", ["parent", "kind", "name"])
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text, sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),
        _text("prefix"),
        _text("scopes"),
        _text("models", null=True),
        _count("max_output", null=True),
        _count("expires_us"),
        _count("revoked_us", null=True),
    )


def _limits() -> None:
    op.create_table(
        "prices",
        _text("id", primary=True),
        _count("batch"),
        _text("model"),
        _text("scope"),
        _text("source"),
        _text("rates"),
        _count("at_us"),
        _bytes("digest"),
    )
    op.create_table(
        "limits",
        _number("id"),
        _count("batch"),
        sa.Column("account", sa.Text, sa.ForeignKey("accounts.id"), nullable=False),
        _text("kind"),
        _count("amount", null=True),
        _flag("hard"),
        _text("timezone"),
        _count("at_us"),
        _count("window_id", null=True),
        _count("window_version", null=True),
        _bytes("digest"),
    )
    op.create_table(
        "windows",
        _number("id"),
        sa.Column("account", sa.Text, sa.ForeignKey("accounts.id"), nullable=False),
        _text("kind"),
        _count("start_us"),
        _count("end_us"),
        sa.Column("limit_id", sa.BigInteger, sa.ForeignKey("limits.id"), nullable=False),
        _count("amount"),
        _flag("hard"),
        _count("spent"),
        _count("held"),
        _count("cap"),
        _count("version"),
        sa.CheckConstraint("spent >= 0 AND held >= 0", name="windows_not_negative"),
        sa.CheckConstraint("spent + held <= cap", name="windows_within_cap"),
    )
    op.create_table(
        "rates",
        sa.Column("account", sa.Text, sa.ForeignKey("accounts.id"), primary_key=True),
        _count("requests_limit", null=True),
        _text("requests_tat", null=True),
        _count("tokens_limit", null=True),
        _text("tokens_tat", null=True),
    )


def _requests() -> None:
    op.create_table("holds", _text("request_id", primary=True), _bytes("packed"), sqlite_with_rowid=False)
    op.create_table(
        "usage_records",
        _number("seq"),
        _count("batch"),
        sa.Column("request_id", sa.Text, nullable=False, unique=True),
        *map(
            _text,
            ("organization_id", "project_id", "key_id", "model", "task", "backend", "outcome", "source"),
        ),
        *map(
            _count,
            (
                "input",
                "cache_read",
                "cache_write",
                "output",
                "reasoning",
                "images",
                "audio_ms",
                "requests",
                "gpu_ms",
            ),
        ),
        sa.Column("price", sa.Text, sa.ForeignKey("prices.id")),
        *map(_count, ("held", "cost", "overrun")),
        *map(_flag, ("billed", "flagged")),
        _count("admitted_us"),
        _count("first_byte_us", null=True),
        _count("finished_us"),
        _text("claim", null=True),
        _bytes("detail"),
        _bytes("digest"),
        sa.CheckConstraint("cost >= 0 AND overrun >= 0 AND cost <= held", name="records_within_hold"),
    )
    op.create_table(
        "voids",
        sa.Column("seq", _NUMBER, primary_key=True),
        _count("batch"),
        sa.Column("request_id", sa.Text, nullable=False, unique=True),
        _text("key_id"),
        _count("at_us"),
        _bytes("detail"),
        _bytes("digest"),
    )
    op.create_table(
        "claims",
        _text("project", primary=True),
        _text("key", primary=True),
        _bytes("fingerprint"),
        _text("request_id"),
        sa.Column(
            "state",
            sa.Text,
            sa.CheckConstraint("state IN ('open', 'stored', 'released', 'spent')"),
            nullable=False,
        ),
        _count("expires_us"),
        _flag("reruns"),
        sqlite_with_rowid=False,
    )
    op.create_index("claims_by_expiry", "claims", ["expires_us"])
    op.create_table("answers", _text("request_id", primary=True), _bytes("answer"), _count("expires_us"))
    op.create_index("answers_by_expiry", "answers", ["expires_us"])


def _history() -> None:
    op.create_table(
        "audit_log",
        _number("id"),
        _count("batch"),
        _count("at_us"),
        *map(_text, ("actor", "action", "target", "detail")),
        _bytes("digest"),
    )
    op.create_table(
        "links",
        _number("number"),
        _count("at_us"),
        *map(_flag, ("admitted", "extended", "recorded", "voided")),
        _bytes("link"),
    )


def downgrade() -> None:
    """History is not undone: restore the copy that was made before the migration."""
    raise NotImplementedError("restore the copy that was made before the migration")
