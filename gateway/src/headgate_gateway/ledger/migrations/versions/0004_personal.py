"""A table beside the history for what may name people, whose rows can be deleted but never changed.

Revision ID: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it. Records of before keep their tags: history is not rewritten."""
    op.create_table(
        "personal",
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        sa.Column("fields", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("at_us", "request_id"),
        sqlite_with_rowid=False,
    )
    op.execute(
        "CREATE TRIGGER personal_no_update BEFORE UPDATE ON personal "
        "BEGIN SELECT RAISE(ABORT, 'personal is never changed'); END"
    )
